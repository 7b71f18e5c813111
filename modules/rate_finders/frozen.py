"""The benchmark as one file that a rule of anybody's is scored on in seconds: every ramp, and where every rate ends.

The file is a table of notebook 9. A rule may be made with the tasks where `chosen` is true; on all others it is only
scored.
"""

import math
import runpy
from collections.abc import Callable, Sequence
from inspect import Parameter, signature
from pathlib import Path

import numpy as np
import pandas as pd

from modules.checks import RunError, check_file, first_line, short
from modules.rate_finders.benchmark import SCHEDULES, Task, at_every_rate, read_off
from modules.rate_finders.regret import Landscape, regret_table, regrets
from modules.rate_finders.rules import Rule
from modules.statistics import AnalysisError

VERSION = 2  # of the tasks and of what is measured; regrets compare within one
FILE = f"rate_finders_frozen_{VERSION}.csv"
COLUMNS = ("task", "chosen", "what", "seed", "rate", "value")
RAMP = {"loss": "ramp", "accuracy": "ramp's accuracy"}
PUBLISHED = Path("results/published/rate-finders/tables") / FILE


def frozen(tasks: Sequence[Task]) -> pd.DataFrame:
    """The ramps and the accuracies of tasks.

    Returns:
        `task`, `chosen`, `what` (of `RAMP`, or the schedule of a training), `seed`, `rate`, `value`: a ramp's training
        loss in the iteration of that rate, or its accuracy on validation images behind it, both NaN from where it
        diverged; a training's test accuracy.
    """
    parts = []
    for task in tasks:
        for seed in task.seeds:
            for of, what in RAMP.items():
                lr, values = task.read_ramp(seed, of)
                about = dict(task=task.name, chosen=task.chosen, what=what, seed=seed)
                parts.append(pd.DataFrame(about | dict(rate=lr, value=values)))
        for (name, schedule), found in task.landscapes().items():
            for seed, accuracies in enumerate(found.accuracies.T, start=1):
                about = dict(task=name, chosen=task.chosen, what=schedule, seed=seed)
                parts.append(pd.DataFrame(about | dict(rate=found.rates, value=accuracies)))
    return pd.concat(parts, ignore_index=True)


def scored(table: pd.DataFrame, rule: Callable[..., float], name: str) -> pd.DataFrame:
    """The regret of a rule beside all others that read a ramp.

    Args:
        table: as `frozen` gives it.
        rule: of the rates, the losses and the accuracies of a ramp, `[points]`; an accuracy is NaN where none was
            measured.
        name: what to call it.

    Returns:
        As `regret.regret_table` gives it; its means over tasks are of those that chose no rule, where there are any.
    """
    landscapes = {
        (task, what): Landscape(*_matrix(part))
        for (task, what), part in table[table.what.isin(SCHEDULES)].groupby(["task", "what"], sort=False)
    }
    rows = []
    for (task, seed), ramp in table[table.what.isin(RAMP.values())].groupby(["task", "seed"], sort=False):
        of = {what: part[["rate", "value"]].to_numpy().T for what, part in ramp.groupby("what")}
        loss, accuracy = (tuple(of[what]) for what in RAMP.values())
        found = [*read_off(loss, accuracy), (name, None, rule(*loss, at_every_rate(loss, accuracy)))]
        rows += [(known, seed, only, rate, math.nan, task) for known, only, rate in found]
    answers = pd.DataFrame(rows, columns=["rule", "seed", "only", "rate", "accuracy", "task"])
    tasks = list(dict.fromkeys(table.task))
    held_out = list(dict.fromkeys(table.task[~table.chosen]))
    return regret_table(regrets(answers, landscapes), landscapes, held_out or tasks)


def _matrix(part: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """A schedule's rates `[rates]` and accuracies `[rates, seeds]`."""
    wide = part.pivot(index="rate", columns="seed", values="value")
    return wide.index.to_numpy(), wide.to_numpy()


def _rule_of(file: str | Path) -> Callable[..., float]:
    """The rule in a Python file, as `scored` takes it; whatever goes wrong in it is a RunError that names the file."""

    def failed(error: BaseException) -> RunError:
        return RunError(f"{file}: {type(error).__name__}: {first_line(error)}")

    check_file("rule", str(file))
    try:
        rule = runpy.run_path(str(file)).get("rule")
    except (Exception, SystemExit) as error:
        raise failed(error) from error
    if not callable(rule):
        raise RunError(f"{file} has no function rule(lr, loss)")

    def called(lr: np.ndarray, loss: np.ndarray, *accuracy: np.ndarray) -> float:
        try:
            given = rule(lr, loss, *accuracy)
            found = np.asarray(given)
        except AnalysisError:  # no answer
            raise
        except (Exception, SystemExit) as error:
            raise failed(error) from error
        if found.shape or found.dtype.kind not in "fiu":
            raise RunError(f"{file}: rule gave {short(given)}: one rate is needed, or NaN for no answer")
        return float(found)

    try:
        kinds = [parameter.kind for parameter in signature(rule).parameters.values()]
    except (TypeError, ValueError):  # one that is written in C
        kinds = []
    three = sum(kind in (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD) for kind in kinds) > 2

    def rate(lr: np.ndarray, loss: np.ndarray, accuracy: np.ndarray) -> float:
        given = (accuracy,) if three else ()
        return Rule(lambda lr, loss: called(lr, loss, *given), str(file))(lr, loss)

    return rate


def _table(file: str | Path) -> pd.DataFrame:
    """What `frozen` gave, read again."""
    check_file("table", str(file))
    try:
        read = pd.read_csv(file)
    except ValueError as error:
        raise RunError(f"{file} is no table: {first_line(error)}") from error
    if missing := [column for column in COLUMNS if column not in read] or sorted({*RAMP.values()} - {*read.what}):
        raise RunError(f"{file} is no table of the benchmark: it has no {', '.join(missing)}")
    return read


def score(file: str | Path, table: str | Path) -> str:
    """Score a rule in a Python file.

    Args:
        file: has a function `rule` of the rates of a ramp and the training losses at them, both arrays `[points]`, NaN
            from where the ramp diverged; with a third argument also of the accuracies on validation images, NaN where
            none was measured. It gives the rate, or NaN for no answer.
        table: a file that `frozen` was written to.

    Returns:
        A table, in text: mean regrets in points, rules down, best first.

    Raises:
        RunError: a file is missing or is none of these; the rule fails, or gives something else than one number.
    """
    name, rule, read = Path(file).name, _rule_of(file), _table(table)  # with `.py`: no rule of ours is called so
    found = scored(read, rule, name)
    over = "held-out tasks" if not read.chosen.all() else "tasks"
    whole = found[found.task == "all"]
    wide = whole.pivot(index="rule", columns="schedule", values="value")[list(SCHEDULES)]
    wide["worst repeat"] = whole.groupby("rule").worst.max()
    wide["no answer"] = whole.groupby("rule").no_answer.max().map("{:.0%}".format)
    wide = wide.assign(mean=wide[list(SCHEDULES)].mean(axis=1)).sort_values("mean").drop(columns="mean")
    count = read.task[~read.chosen].nunique() or read.task.nunique()
    title = f"Mean regret in points over {count} {over}, version {VERSION} of the benchmark ({name} is yours):"
    return f"{title}\n{wide.rename_axis(columns=None).to_string(float_format='{:.2f}'.format)}"
