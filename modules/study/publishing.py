"""What a study found, promoted to `results/published/`: complete, with its numbers and figures in the documents."""

import ast
import io
import json
import os
import re
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pandas as pd

from modules.checks import short
from modules.models import own
from modules.report.comparison import TABLES
from modules.report.tables import read_runs
from modules.runs.files import atomic_write, complete_runs, experiments, pack_runs, writing
from modules.study import documents, parameters
from modules.study.design import NOTEBOOKS, StudyError, declared, source
from modules.study.notebooks import conclude, execute, one_kernel
from modules.study.parameters import published_folder, read_study

IMAGES = Path("images")


def publish(study: str, results: Path, model: str | None = None) -> None:
    """Promote a study's complete results to `results/published/`, with the figures that documents show.

    Tables are made again from the runs first: what was edited is not published. Runs are packed. What is published
    already is only packed, and its numbers go into the documents. README's figures go to `images/`, those of other
    pages to the study's `figures/`. The rest stands in its executed notebooks.

    Args:
        study: as for `read_study`.
        results: the results folder.
        model: the network in a Python file that its notebooks were given, by the user's name for it. Notebooks are run
            again, and what stands in a results folder is not run on its word.

    Raises:
        StudyError: results are missing, unfinished, failed, not of the runs beside them, no regular files, or name a
            place on this machine; or a document shows a figure that they do not have.
        DocumentError: a document, or the study's conclusions, need a number that these results do not have.
    """
    target = _target(results)
    if not (results / "notebooks").is_dir():
        raise StudyError(f"nothing to publish: {results} has no executed notebooks, run make reproduce first")
    with writing(results):
        files = _files(results)
        _check_complete(study, results)
        here = [re.escape(f"{place}/") for place in (Path.cwd(), Path.home(), Path(sys.prefix)) if place != Path("/")]
        # Also the folders that a notebook was given, wherever they are.
        named = re.compile("|".join([*here, r'(results_dir|published_dir|data_dir|log_dir|reference) = \\"[/~]']))
        for path in (results / path for path in files if path.suffix in (".ipynb", ".json", ".jsonl", ".csv")):
            if named.search(path.read_text(encoding="utf-8", errors="replace")):
                raise StudyError(f"{path} names a folder of this machine: use relative paths for RESULTS and data_dir")
        if lost := sorted(set(experiments(target)) - set(experiments(results))):
            raise StudyError(f"{target} also holds {', '.join(lost)}, which {results} has not: make them there, too")
        texts = documents.updated({target.name: results})  # before anything is replaced
        images = _shown(f"images/{target.name}", results, texts.values())
        pages = _shown(f"{target.name}/figures", results, texts.values())
        files = [path for path in files if path.parts[0] != "figures" or path.name in pages]
        if results.resolve() == target.resolve():
            for experiment in experiments(target):
                pack_runs(target / experiment)
        else:
            _check_tables(results, model)
            _replace(target, results, files, study)
    for figure in images:
        (IMAGES / target.name).mkdir(parents=True, exist_ok=True)
        atomic_write(IMAGES / target.name / figure, (results / "figures" / figure).read_bytes())
    changed = {path: text for path, text in texts.items() if text != path.read_text(encoding="utf-8")}
    for path, text in changed.items():
        atomic_write(path, text)
    print(f"published {target}, {len(images)} figures in {IMAGES}, new numbers in {len(changed)} documents")


def _target(results: Path) -> Path:
    """The folder to publish results in: a folder of its own, right in `results/published/`."""
    target = published_folder(results)
    resolved, place = target.resolve(), parameters.PUBLISHED.resolve()
    if resolved.parent != place or not re.fullmatch(r"[\w-][\w.-]*", target.name) or target.is_symlink():
        raise StudyError(f"results={short(str(results))}: the folder's name is what is published, such as results/mine")
    if results.resolve() != resolved and results.resolve() in resolved.parents:
        raise StudyError(f"{results} holds what is published itself: name the results folder of one study")
    return target


def _files(results: Path) -> list[Path]:
    """The files to publish, by their paths in the results folder; hidden ones and trained weights stay where they are.

    One that is no regular file is refused: a link leads elsewhere, and a pipe has no end.
    """
    found = []
    for folder, folders, files in os.walk(results):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted([*folders, *files]):
            path = Path(folder) / name
            if name.startswith(".") or name.endswith(".weights.pt") or name == "comparison.csv":
                continue
            mode = path.lstat().st_mode
            if stat.S_ISREG(mode):
                found.append(path.relative_to(results))
            elif not stat.S_ISDIR(mode):
                raise StudyError(f"{path} is a link, or no file: only files are published, take it out")
    return found


def _replace(target: Path, results: Path, files: Iterable[Path], study: str) -> None:
    """Put copies of a results folder's files in place of what is published, all of them or none."""
    # Beside what is published, on the same disk, and where git does not look.
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".publish-", dir=target.parent.parent) as place:
        new, old = Path(place) / "new", Path(place) / "old"
        for path in files:
            (new / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(results / path, new / path, follow_symlinks=False)
        conclude(study, new, new, target.name)
        for experiment in experiments(new):
            pack_runs(new / experiment)
        if target.exists():
            target.rename(old)
        try:
            new.rename(target)
        except OSError:
            if old.exists():
                old.rename(target)
            raise


def _check_tables(results: Path, model: str | None) -> None:
    """Make all tables of a results folder again, from copies of its runs, and compare."""
    print(f"making the tables of {results} again, from its runs", flush=True)
    with tempfile.TemporaryDirectory() as place, redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        again = Path(place) / results.name
        for neighbour in results.parent.iterdir():  # a study may quote runs of another one, by its name
            if neighbour.is_dir() and neighbour.name != results.name:
                (Path(place) / neighbour.name).symlink_to(neighbour.resolve())
        for experiment in experiments(results):
            (again / experiment).mkdir(parents=True)
            for path in _files(results / experiment):
                shutil.copyfile(results / experiment / path, again / experiment / path)
            pack_runs(again / experiment)
        plan = {}
        for path in sorted((results / "notebooks").glob("[!.]*.ipynb")):
            values = _parameters(path)
            _check_networks(path, values, model)
            places = {"results_dir": str(again), "log_dir": str(again / "logs")}
            plan[path.stem] = values | {key: place for key, place in places.items() if key in declared(path.stem)}
        with one_kernel() as kernel:
            for name in plan:
                execute(name, plan, again, kernel)
        for experiment in experiments(again):
            here, there = ([run.name for run in complete_runs(place / experiment)] for place in (results, again))
            if here != there:
                missing = sorted(set(there) - set(here))[0]
                raise StudyError(f"{results / experiment} has no run {missing}: run make reproduce again first")
        made = {path.name for path in (again / "tables").glob("*.csv")}
        for name in sorted(made):
            if not _same_table(results / "tables" / name, again / "tables" / name):
                raise StudyError(f"{results}/tables/{name} is not what its runs give: run make reproduce again first")
    if others := sorted({path.name for path in (results / "tables").glob("*.csv")} - made - {"comparison.csv"}):
        print(f"taken as they are, no notebook makes them: tables {', '.join(others)}")


def _parameters(path: Path) -> dict[str, object]:
    """The parameters that an executed notebook was given."""
    if not source(path.stem).is_file():
        raise StudyError(f"{path}: there is no notebook {short(path.stem)} in {NOTEBOOKS}")
    try:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        given = ["".join(cell["source"]) for cell in cells if "injected-parameters" in cell["metadata"].get("tags", [])]
        lines = [line for code in given for line in ast.parse(code).body]
        found = {line.targets[0].id: ast.literal_eval(line.value) for line in lines}
    except (ValueError, SyntaxError, KeyError, TypeError, AttributeError) as error:
        raise StudyError(f"{path}: its parameters cannot be read ({type(error).__name__})") from error
    if unknown := sorted(found.keys() - declared(path.stem).keys()):
        raise StudyError(f"{path}: there is no parameter {unknown[0]} any more: run make reproduce again first")
    return found


def _check_networks(path: Path, values: object, model: str | None) -> None:
    """Raise StudyError where a notebook was given a network in a Python file that the user has not named."""
    if isinstance(values, str) and own.is_own(values) and values != model:
        raise StudyError(
            f"{path} was given a network in a Python file, {short(values)}, which is run again: read the file first, "
            "then name it with --model"
        )
    for value in values.values() if isinstance(values, dict) else values if isinstance(values, list) else ():
        _check_networks(path, value, model)


def _same_table(ours: Path, again: Path) -> bool:
    """Whether two tables have the same rows, up to the last digits: libraries' versions may round differently."""
    try:
        pd.testing.assert_frame_equal(pd.read_csv(ours), pd.read_csv(again), rtol=1e-9, atol=1e-12)
    except (AssertionError, OSError, ValueError):
        return False
    return True


def _shown(place: str, results: Path, texts: Iterable[str]) -> list[str]:
    """The figures of a study that the documents show, as `<place>/<figure>`."""
    shown = {found for text in texts for found in re.findall(rf"(?<![\w-]){re.escape(place)}/([\w.-]+\.png)", text)}
    for figure in shown:
        if not (results / "figures" / figure).exists():
            raise StudyError(f"{results} has no figures/{figure}, which a document shows as {place}/{figure}")
    return sorted(shown)


def _check_complete(study: str, results: Path) -> None:
    """Raise StudyError when something is missing from a study's results, before anything published is touched."""
    notebooks = list(read_study(study)["notebooks"])
    parts = [f"notebooks/{name}.ipynb" for name in notebooks]
    for name, table in TABLES.items():
        if table.notebook in notebooks:
            for experiment in table.experiments:
                for unfinished in results.glob(f"{experiment}/.partial/*"):
                    raise StudyError(f"{unfinished} is of an unfinished run: run make reproduce again first")
            if table.always or any(any(results.glob(experiment)) for experiment in table.experiments):
                parts.append(f"tables/{name}.csv")
    for part in parts:
        if not (results / part).exists():
            raise StudyError(f"{results} is not complete: {part} is missing, run make reproduce again first")
    for name, table in TABLES.items():
        path = results / "tables" / f"{name}.csv"
        if table.compared and table.counts_runs and path.exists():
            counted = pd.read_csv(path)
            policy = counted.get("policy", pd.Series("range_test", counted.index))
            counted = counted[~policy.str.contains(" - ")].groupby(policy).runs.first()
            runs_of = [read_runs(folder) for part in table.experiments if (folder := results / part).exists()]
            found = pd.concat(runs_of).groupby("policy").seed.nunique() if runs_of else {}
            for policy, runs in counted.items():
                if runs != found.get(policy, 0):
                    raise StudyError(
                        f"{path} is not of the runs beside it: it counts {runs} of {policy}, there are "
                        f"{found.get(policy, 0)}: run make reproduce again first, with as many runs"
                    )
