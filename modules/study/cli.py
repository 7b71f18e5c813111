"""The whole study: check every notebook's parameters, run the notebooks through papermill, compare, publish, HTML.

python -m modules reproduce --study digits [--results FOLDER] [--strict] [-p NAME VALUE ...]
python -m modules publish --study digits [--results FOLDER]
python -m modules verify --results FOLDER [--rows 1] [--data-dir FOLDER]
python -m modules html
"""

import argparse
import logging
import re
import shutil
import sys
import time
import warnings
from collections.abc import Iterable
from pathlib import Path

import nbformat
import pandas as pd

from modules.checks import at_root
from modules.report.comparison import REPRODUCED, TABLES, compare, counts
from modules.report.formatting import readable
from modules.report.notes import write_notes
from modules.report.tables import read_runs, write
from modules.runs.files import atomic_write, sweep, writing
from modules.runs.verification import runs_in, verify
from modules.study import documents
from modules.study.pages import html
from modules.study.parameters import (
    NOTEBOOKS,
    NOTES,
    STUDIES,
    StudyError,
    check,
    parameters,
    published_folder,
    study_notes,
    value,
)

IMAGES = Path("images")
MAIN_STUDY = "cifar10-jpeg"  # its figures go to images/ itself, every other study's to images/<study>/


def execute(name: str, plan: dict[str, dict], results: Path) -> None:
    """Run one notebook of a plan through papermill into `<results>/notebooks/`, where it appears when it succeeded.

    Raises:
        StudyError: a cell failed; the message is the error's first line.
    """
    import papermill
    from nbclient.exceptions import DeadKernelError

    # Ctrl-C ends the notebook's task from outside; asyncio would print its traceback below the one line that says so.
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    target = results / "notebooks" / f"{name}.ipynb"
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_name(f".{target.name}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            papermill.execute_notebook(
                str(NOTEBOOKS / f"{name}.ipynb"),
                str(unfinished),
                plan[name],
                kernel_name="python3",
                progress_bar=False,
                stdout_file=sys.stdout,
                stderr_file=sys.stderr,
                autosave_cell_every=0,
                # Kernels announce themselves on the terminal at the level of a warning.
                extra_arguments=["--IPKernelApp.log_level=40"],
            )
        except papermill.PapermillExecutionError as error:
            raise StudyError(f"{name}: {error.ename}: {(error.evalue.splitlines() or [''])[0]}") from None
        except DeadKernelError:
            raise StudyError(
                f"{name}: its kernel died (out of memory?): the same command goes on with the rest"
            ) from None
        else:
            atomic_write(target, nbformat.writes(tidy(nbformat.read(unfinished, 4), plan)) + "\n")
        finally:
            unfinished.unlink(missing_ok=True)


def tidy(notebook: nbformat.NotebookNode, others: Iterable[str]) -> nbformat.NotebookNode:
    """Leave out of an executed notebook what tells of the machine: papermill's paths, and the progress bar's frames.

    And links to notebooks that are not among `others`: they would lead nowhere.
    """
    notebook.metadata.pop("papermill", None)
    for cell in notebook.cells:
        cell.metadata.pop("papermill", None)
        cell.metadata.pop("execution", None)
        if cell.cell_type == "markdown":
            cell.source = re.sub(
                r"\[([^]]+)\]\((\w+)\.ipynb\)", lambda link: link[0 if link[2] in others else 1], cell.source
            )
        if cell.cell_type == "code":
            cell.outputs = [
                output for output in cell.outputs if not (output.get("name") == "stderr" and _is_progress(output.text))
            ]
    return notebook


def _is_progress(text: str) -> bool:
    """Whether a piece of stderr is a progress bar's frames, or the newline after the last."""
    return "\r" in text or not text.strip()


def reproduce(study: str, results: Path | None, overrides: dict[str, object]) -> bool:
    """Check, run all notebooks, and print what came out beside what is published.

    Returns:
        Whether every number that is judged is the same bytes as the published one, or equivalent.
    """
    results = results or Path("results") / study
    plan = parameters(study, results, overrides)
    check(plan)
    notes = study_notes(study)
    with writing(results):
        for part in ("tables", "figures"):
            sweep(results / part)
        started = time.monotonic()
        for name in plan:
            print(f"\n== {name}", flush=True)
            execute(name, plan, results)
        write_notes(notes, results)
        comparison = compare(results, published_folder(results))
        if len(comparison):
            write(comparison, results / "tables" / "comparison.csv")
            print(f"\nThis run beside {published_folder(results)}:\n")
            print(readable(comparison).to_string(index=False))
        print(f"\nVerdicts: {counts(comparison)}")
        print(f"\nTables and figures: {results}/tables, {results}/figures\nExecuted notebooks: {results}/notebooks")
        print(f"Study took {time.monotonic() - started:.0f} s")
        if Path("results").resolve() in results.resolve().parents:
            print(f"As web pages: {html()}")
    return bool(len(comparison)) and set(comparison.verdict) <= set(REPRODUCED)


def publish(study: str, results: Path) -> None:
    """Promote a study's complete results to `results/published/`, and its figures to `images/`.

    Raises:
        StudyError: results are missing, unfinished, failed, or name a place on this machine.
        DocumentError: README or the ledger needs a number that these results do not have.
    """
    target = published_folder(results)
    if not (results / "notebooks").is_dir():
        raise StudyError(f"nothing to publish: {results} has no executed notebooks, run make reproduce first")
    with writing(results):
        _check_complete(study, results)
        here = [re.escape(f"{place}/") for place in (Path.cwd(), Path.home(), Path(sys.prefix)) if place != Path("/")]
        # Also the folders that a notebook was given, wherever they are.
        named = re.compile("|".join([*here, r'(results_dir|published_dir|data_dir|log_dir|reference) = \\"[/~]']))
        for path in results.rglob("*"):
            if path.suffix in (".ipynb", ".json", ".csv") and named.search(path.read_text()):
                raise StudyError(f"{path} names a folder of this machine: use relative paths for RESULTS and data_dir")
        if lost := sorted(_folders(target) - _folders(results)):
            raise StudyError(f"{target} also holds {', '.join(lost)}, which {results} has not: make them there, too")
        texts = documents.updated({target.name: results})  # before anything is replaced
        if results.resolve() != target.resolve():
            new = target.with_name(f".{target.name}.new")
            shutil.rmtree(new, ignore_errors=True)
            shutil.copytree(results, new, ignore=shutil.ignore_patterns(".*", "comparison.csv", "*.weights.pt"))
            shutil.rmtree(target, ignore_errors=True)
            new.replace(target)
    images = IMAGES if results.name == MAIN_STUDY else IMAGES / results.name
    images.mkdir(parents=True, exist_ok=True)
    for figure in FIGURES:
        if (target / "figures" / figure).exists():
            shutil.copyfile(target / "figures" / figure, images / figure)
    for path, text in texts.items():
        atomic_write(path, text)
    print(f"published {target}, figures in {images}, numbers in {' and '.join(map(str, texts))}")


def _folders(results: Path) -> set[str]:
    """The experiments in a results folder."""
    return {path.name for path in results.glob("*") if any(path.glob("*-seed*.csv"))}


#: Figures that README shows.
FIGURES = (
    "run.png",
    "factor.png",
    "lrrt.png",
    "policies.png",
    "ablation.png",
    "best_lr_sweep.png",
    "best_lr.png",
    "mlp.png",
)


def _check_complete(study: str, results: Path) -> None:
    """Raise StudyError when something is missing from a study's results, before anything published is touched."""
    notebooks = [path.stem for path in sorted((STUDIES / study).glob("*.yaml")) if path.name != NOTES]
    if not notebooks:
        raise StudyError(f"unknown study {study!r}: publish with the STUDY that made {results}")
    parts = [f"notebooks/{name}.ipynb" for name in notebooks]
    for name, table in TABLES.items():
        if table.notebook in notebooks:
            for experiment in table.experiments:
                for unfinished in (results / experiment).glob(".partial/*"):
                    raise StudyError(f"{unfinished} is of an unfinished run: run make reproduce again first")
            if table.always or any((results / experiment).exists() for experiment in table.experiments):
                parts.append(f"tables/{name}.csv")
    for part in parts:
        if not (results / part).exists():
            raise StudyError(f"{results} is not complete: {part} is missing, run make reproduce again first")
    for name, table in TABLES.items():
        path = results / "tables" / f"{name}.csv"
        if table.compared and path.exists():
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


def verify_all(place: Path, rows: int, data_dir: str | None) -> int:
    """Print of every run at a place whether its first rows came out again; returns the exit status, 1 when not all."""
    differing = 0
    for path in runs_in(place):
        found = verify(path, rows, data_dir)
        differing += found is not None
        print(f"{path}: {found or 'same bytes'}", flush=True)
    return 1 if differing else 0


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m modules", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("reproduce", help="run a study's notebooks and compare with what is published")
    run.add_argument("--study", required=True, help="a folder of studies/")
    run.add_argument("--results", type=Path, help="results folder; by default results/<study>")
    run.add_argument("--strict", action="store_true", help="exit with 1 unless all is the same bytes or equivalent")
    run.add_argument("-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), help="a notebook parameter")
    promote = commands.add_parser("publish", help="promote a results folder to results/published/")
    promote.add_argument("--study", required=True, help="the study it is of")
    promote.add_argument("--results", type=Path, help="a complete results folder; by default results/<study>")
    again = commands.add_parser("verify", help="train the first rows of complete runs again: the same bytes?")
    again.add_argument("--results", type=Path, required=True, help="a run's CSV, or a folder of runs")
    again.add_argument("--rows", type=int, default=1, help="how many rows of each run")
    again.add_argument("--data-dir", help="where the data lie, if not in data/")
    commands.add_parser("html", help="convert executed notebooks to web pages in site/")
    options = parser.parse_args(arguments)
    at_root()
    try:
        if options.command == "reproduce":
            good = reproduce(options.study, options.results, {name: value(text) for name, text in options.p})
            return int(options.strict and not good)
        elif options.command == "publish":
            publish(options.study, options.results or Path("results") / options.study)
        elif options.command == "verify":
            return verify_all(options.results, options.rows, options.data_dir)
        else:
            print(html())
    except OSError as error:
        print(f"error: {error.filename or 'a file'}: {error.strerror or error}", file=sys.stderr)
        return 2
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0
