"""A notebook's design: its cells up to the one tagged `design`, which build its runs, look for whatever is wrong with
them, and train nothing.

The driver runs these cells of all notebooks before the first training, so a wrong parameter of the last notebook costs
nothing. What several notebooks need for it is here.
"""

import ast
import io
import json
import os
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import redirect_stdout, suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch

from modules import policies
from modules.checks import RunError, at_root, check_file, did_you_mean, first_line, short
from modules.data.batches import Data, batches
from modules.data.datasets import load
from modules.data.sources import DataError
from modules.data.splits import split
from modules.report.formatting import read_reference
from modules.report.tables import read_bounds
from modules.runs.files import RunFiles, complete_runs
from modules.runs.spec import Spec
from modules.runs.training import build as network_of
from modules.runs.training import evaluate, make_optimizer, one_thread, step
from modules.statistics import AnalysisError

NOTEBOOKS = Path("notebooks")

#: The settings of a run that the experiment itself decides: `settings` cannot.
SET_BY_EXPERIMENT = (
    *("dataset", "policy", "variant", "iterations", "evaluate_every", "seed", "keep_weights", "registration"),
)

#: The types a parameters cell can declare, and what a message calls them.
KINDS = {
    "bool": (bool, "True or False"),
    "int": (int, "a whole number"),
    "float": (float, "a number"),
    "str": (str, "text"),
    "list": (list, "a list"),
    "dict": (dict, "settings such as {name: value}"),
    "None": (type(None), "None"),
}

LONG = 300  # seconds: of a shorter training nothing is said beforehand


class StudyError(ValueError):
    """Something asked of a study that cannot be done; the message is one line for the user."""


class Pending(AnalysisError):
    """Nothing is wrong yet, but the range test has to run first.

    Attributes:
        stand_in: parameters in place of what it will say, so that the rest can be checked before.
    """

    def __init__(self, message: str, stand_in: Mapping[str, object]) -> None:
        super().__init__(message)
        self.stand_in = stand_in


class Parameter(NamedTuple):
    """What a notebook's parameters cell declares of one parameter."""

    default: object
    kinds: tuple[str, ...]  # of `KINDS`


class Cell(NamedTuple):
    """A code cell."""

    code: str
    tags: Sequence[str]


def source(name: str) -> Path:
    """The notebook of a name."""
    return NOTEBOOKS / f"{name}.ipynb"


def code_cells(name: str) -> list[Cell]:
    """The code cells of a notebook, in their order."""
    cells = json.loads(source(name).read_text(encoding="utf-8"))["cells"]
    return [
        Cell("".join(cell["source"]), cell["metadata"].get("tags", [])) for cell in cells if cell["cell_type"] == "code"
    ]


def declared(name: str) -> dict[str, Parameter]:
    """The parameters of a notebook, by their names; its parameters cell is read, not run."""
    (code,) = [cell.code for cell in code_cells(name) if "parameters" in cell.tags]
    found = {}
    for line in ast.parse(code, type_comments=True).body:
        if isinstance(line, ast.AnnAssign):  # `runs: int = 5`
            target, kinds = line.target, ast.unparse(line.annotation)
        else:  # `base_lr = None  # type: float|None`, which papermill reads, too; of an annotation it reads no bar
            target, kinds = line.targets[0], line.type_comment.split()[0]
        found[target.id] = Parameter(ast.literal_eval(line.value), tuple(kinds.split("|")))
    return found


def typed(name: str, parameter: Parameter, value: object) -> object:
    """A value of the kind that its parameter declares.

    Raises:
        StudyError: it is of another kind.
    """
    # A whole number is a number, and YAML takes 1e-3 for text.
    if "float" in parameter.kinds and isinstance(value, int | str) and not isinstance(value, bool):
        with suppress(ValueError, OverflowError):
            return float(value)
    if type(value) in [KINDS[kind][0] for kind in parameter.kinds]:
        return value
    needed = " or ".join(KINDS[kind][1] for kind in parameter.kinds)
    raise StudyError(f"{name}={short(value)}: {needed} is needed, such as {short(parameter.default)}")


def begin(name: str, values: dict[str, Any]) -> None:
    """What a design starts with: the project's folder, and parameters of the types that the first cell declares.

    In Jupyter a refusal is from here on one line, without a traceback.

    Args:
        name: the notebook's.
        values: its variables; a whole number becomes a number where one is declared.

    Raises:
        StudyError: a parameter is of another type; the message is one line that names it.
    """
    at_root()
    ipython = sys.modules.get("IPython")
    if ipython and (shell := ipython.get_ipython()):
        shell.set_custom_exc((RunError, AnalysisError, DataError, StudyError), _one_line)
    for key, parameter in declared(name).items():
        values[key] = typed(key, parameter, values[key])


def _one_line(shell: Any, kind: type, error: Exception, *traceback: object, **where: object) -> list[str]:
    """Show a refusal as its message alone; the cells behind it do not run, as after any error."""
    said = [f"{kind.__name__}: {error}"]
    shell._showtraceback(kind, error, said)
    return said


def build(name: str, values: Mapping[str, object]) -> dict[str, Any]:
    """Run a notebook's cells up to its design.

    Args:
        name: the notebook's.
        values: parameters that are not its defaults.

    Returns:
        The notebook's variables then.

    Raises:
        Pending: the range test must run first.
        ValueError: the design was refused.
    """
    names: dict[str, Any] = {"__name__": "__main__"}
    for number, cell in enumerate(code_cells(name), start=1):
        exec(compile(cell.code, f"{name}, code cell {number}", "exec"), names)
        if "parameters" in cell.tags:
            names.update(values)
        if "design" in cell.tags:
            return names
    raise StudyError(f"{source(name)} has no cell with the tag design")


def check(plan: Mapping[str, Mapping[str, object]]) -> None:
    """Run the design of every notebook of a study, so that whatever is wrong is said before anything is trained.

    Args:
        plan: the parameters of each notebook, by its name.

    Raises:
        StudyError: a design was refused; the message has the notebook's name and why.
    """
    for name, values in plan.items():
        try:
            with redirect_stdout(io.StringIO()):
                try:
                    build(name, values)
                except Pending as pending:
                    build(name, {**values, **pending.stand_in})
                    if "02_range_test" not in plan:
                        raise
        except ValueError as error:
            raise StudyError(f"{name}: {error}") from error
        except (TypeError, KeyError, AttributeError, IndexError, ArithmeticError) as error:
            # A list or a mapping of something unforeseen.
            raise StudyError(f"{name}: {type(error).__name__}: {first_line(error)}") from error


def shared_settings(settings: Mapping[str, object], **own: object) -> dict[str, object]:
    """The settings that an experiment's runs share: those that have parameters of their own, and the user's `settings`.

    Args:
        settings: anything else that a `Spec` has.
        own: by name; `settings` cannot hold them.

    Raises:
        RunError: `settings` hold something else, or what the notebook decides.
    """
    for key, value in settings.items():
        if key not in Spec.model_fields:
            hint = did_you_mean(str(key), set(Spec.model_fields).difference(SET_BY_EXPERIMENT))
            raise RunError(f"settings: {short(key)} (value {short(value)}): no such setting of a run{hint}")
        _check_free("settings", key, value, {*own, *SET_BY_EXPERIMENT})
    return {**settings, **own}


def _check_free(name: str, key: str, value: object, decided: Iterable[str]) -> None:
    if key in decided:
        raise RunError(f"{name}: {key} (value {short(value)}) is decided by the notebook, or has its own parameter")


def challenger(
    asked: Mapping[str, object], more: Mapping[str, object], results_dir: str, runs: int
) -> dict[str, object]:
    """The settings of the policy that notebook 3 sets beside *fixed*; bounds that are not given are the range test's.

    Args:
        asked: its `name`, and the parameters it may have; None, and a `step_size` that it does not have, are left out.
        more: its other settings, the notebook's `clr_settings`.
        results_dir: where the range test's bounds are.
        runs: how many runs a policy gets.

    Raises:
        Pending: the bounds are the range test's, and it has not run yet.
        RunError: one bound alone, another setting twice, or runs of something else in the folder.
    """
    name, folder = asked["name"], Path(results_dir) / "headline"
    if name == "fixed":
        raise RunError("clr_policy='fixed': the baseline is fixed already, choose another policy")
    kind = policies.kinds().get(name)  # an unknown one is refused by the run's specification
    fields = kind.model_fields if kind else {}
    for key, value in more.items():
        _check_free("clr_settings", key, value, asked)
    clr = {key: value for key, value in asked.items() if value is not None and (key != "step_size" or key in fields)}
    clr |= more
    there = {run.name.rpartition("-seed")[0] for run in complete_runs(folder)}
    if others := sorted(there - {"fixed", name}):
        raise RunError(f"clr_policy={name!r}: {folder} holds runs of {', '.join(others)}, use another RESULTS")
    missing = [bound for bound in ("base_lr", "max_lr") if bound in fields and bound not in clr]
    if not missing:
        return clr
    if "base_lr" in clr or "max_lr" in clr:
        raise RunError(f"give both bounds or neither: base_lr={asked['base_lr']}, max_lr={asked['max_lr']}")
    tested = len(complete_runs(Path(results_dir) / "range_test", "range_test"))
    if name in there and tested not in (0, runs):
        raise RunError(
            f"runs={runs}: {folder} holds runs between the bounds of {tested} range tests, and another number "
            "would move them: give base_lr and max_lr, or use another RESULTS"
        )
    try:
        bounds = dict(zip(("base_lr", "max_lr"), read_bounds(results_dir), strict=True))
    except AnalysisError as error:
        guess = {"base_lr": 1e-3, "max_lr": 1e-2}
        stand_in = {bound: guess[bound] for bound in missing} | {"results_dir": f"{results_dir}/pending"}
        raise Pending(str(error), stand_in) from None
    return clr | {bound: bounds[bound] for bound in missing}


def check_entries(name: str, entries: Sequence[object]) -> None:
    """Refuse a list of runs whose entries are none, or differ in what they cannot.

    Raises:
        RunError: one line that shows the entry.
    """
    for entry in entries:
        if not isinstance(entry, dict) or not {"variant", "policy", "iterations"} <= entry.keys():
            raise RunError(f"{name}: an entry with variant, iterations and policy is needed, not {short(entry)}")
        if same := entry.keys() & {"seed", "dataset", "keep_weights", "evaluation"}:
            raise RunError(f"{name}: {', '.join(sorted(same))} cannot differ between the entries: {short(entry)}")


def check_reference(reference: str | None) -> None:
    """Raise RunError or AnalysisError when a notebook's `reference` is no CSV of what others published."""
    if reference is not None:
        check_file("reference", reference)
        read_reference(reference)


def say_how_long(
    specs: Sequence[Spec], folder: str | Path, data_dir: str | None = None, workers: int | None = None
) -> None:
    """Print about how long the runs that are not complete will take, where that is minutes or more.

    A few iterations of each kind of run are timed, alone and on one core. Of a GPU or a cluster nothing is said.

    Args:
        specs, folder, data_dir, workers: as for `parallel.run_all`.
    """
    if torch.cuda.is_available() or os.environ.get("DASK_SCHEDULER_ADDRESS"):
        return
    kinds: dict[Spec, list[Spec]] = {}
    for run in specs:
        if not RunFiles(folder, run.name).complete:
            same = run.model_copy(update=dict(policy=specs[0].policy, variant=None, seed=1, iterations=1))
            kinds.setdefault(same, []).append(run)
    work = 0.0
    for kind, runs in kinds.items():
        iteration, evaluation = _seconds(kind, data_dir)
        for run in runs:
            rows = 0 if run.evaluation == "none" else run.iterations // run.evaluate_every
            work += run.iterations * iteration + rows * evaluation
    count = sum(map(len, kinds.values()))
    cores = min(workers or os.cpu_count() or 1, count or 1)
    if work / cores > LONG:
        span = work / cores / 60
        took = f"{span / 60:.1f} hours" if span > 90 else f"{span:.0f} minutes"
        print(f"{count} runs to train: about {took} on {cores} cores, or less. What is finished is kept.")


def _seconds(run: Spec, data_dir: str | None) -> tuple[float, float]:
    """What an iteration and an evaluation of a run take on one core of this machine."""
    dataset = load(run.dataset, data_dir)
    data = Data(split(dataset, run.split, run.seed), torch.device("cpu"), run.pixels)
    with torch.random.fork_rng(), one_thread():
        network = network_of(run, dataset).to(memory_format=torch.channels_last)
        optimizer = make_optimizer(run, network)
        order = batches(len(data.split.train), run.batch_size, run.seed)
        took = []
        while len(took) < 3 or sum(took) < 0.2:  # the first is slower, and not counted
            images, labels = data.batch(next(order))
            started = time.perf_counter()
            step(network, optimizer, data.pixels(images), labels, run.precision)
            took.append(time.perf_counter() - started)
        started = time.perf_counter()
        if run.evaluation != "none":
            evaluate(network, data, run.evaluation)
        return min(took), time.perf_counter() - started
