"""The whole study: check every notebook's parameters, run the notebooks through papermill, compare, publish, HTML.

python -m modules reproduce --study digits [--results FOLDER] [--strict] [-p NAME VALUE ...]
python -m modules publish --study digits [--results FOLDER]
python -m modules verify --results FOLDER [--rows 1] [--data-dir FOLDER]
python -m modules html
"""

import argparse
import sys
import time
from pathlib import Path

from modules.checks import at_root, enough_files
from modules.report.comparison import REPRODUCED, compare, counts
from modules.report.formatting import readable
from modules.report.notes import write_notes
from modules.report.tables import write
from modules.runs.files import sweep, writing
from modules.runs.parallel import shared_cluster
from modules.runs.verification import runs_in, verify
from modules.study.design import check
from modules.study.notebooks import conclude, execute, one_kernel
from modules.study.parameters import parameters, published_folder, study_notes
from modules.study.publishing import publish


def html_pages() -> Path:
    """As `pages.html_pages`; what makes pages takes a second to import, and no other command needs it."""
    from modules.study import pages

    return pages.html_pages()


def reproduce(study: str, results: Path | None, overrides: dict[str, object]) -> bool:
    """Check, run all notebooks, and print what came out beside what is published.

    Returns:
        Whether every number that is judged is the same bytes as the published one, or equivalent.
    """
    enough_files()
    results = results or Path("results") / Path(study).stem
    plan = parameters(study, results, overrides)
    check(plan)
    notes = study_notes(study)
    with writing(results):
        for part in ("tables", "figures"):
            sweep(results / part)
        started = time.monotonic()
        with shared_cluster(), one_kernel() as kernel:
            for name in plan:
                print(f"\n== {name}", flush=True)
                execute(name, plan, results, kernel)
        write_notes(notes, results)
        if (published := published_folder(results)).is_dir():
            conclude(study, results, published, published.name)
        comparison = compare(results, published)
        if len(comparison):
            write(comparison, results / "tables" / "comparison.csv")
            print(f"\nThis run beside {published}:\n")
            print(readable(comparison).to_string(index=False))
            print(f"\nVerdicts: {counts(comparison)}")
        print(f"\nTables and figures: {results}/tables, {results}/figures\nExecuted notebooks: {results}/notebooks")
        print(f"Study took {time.monotonic() - started:.0f} s")
        if Path("results").resolve() in results.resolve().parents:
            index = html_pages()
            alone = index.parent / results.resolve().relative_to(Path.cwd()) / f"{next(iter(plan))}.html"
            print(f"As a web page: {alone}" if len(plan) == 1 else f"As web pages: {index}")
    return bool(len(comparison)) and set(comparison.verdict) <= set(REPRODUCED)


def verify_all(place: Path, rows: int, data_dir: str | None) -> int:
    """Print of every run at a place whether its first rows came out again; returns the exit status, 1 when not all."""
    differing = 0
    for run in runs_in(place):
        found = verify(run, rows, data_dir)
        differing += found is not None
        print(f"{run.place}: {found or 'same bytes'}", flush=True)
    return 1 if differing else 0


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m modules", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("reproduce", help="run a study's notebooks and compare with what is published")
    run.add_argument("--study", required=True, help="a file of studies/, without .yaml; or the path of one")
    run.add_argument("--results", type=Path, help="results folder; by default results/<study>")
    run.add_argument("--strict", action="store_true", help="exit with 1 unless all is the same bytes or equivalent")
    run.add_argument("-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), help="a notebook parameter")
    promote = commands.add_parser("publish", help="promote a results folder to results/published/")
    promote.add_argument("--study", required=True, help="the study it is of")
    promote.add_argument("--results", type=Path, help="a complete results folder; by default results/<study>")
    again = commands.add_parser("verify", help="train the first rows of complete runs again: the same bytes?")
    again.add_argument("--results", type=Path, required=True, help="a run, as FOLDER/NAME, or a folder of runs")
    again.add_argument("--rows", type=int, default=1, help="how many rows of each run")
    again.add_argument("--data-dir", help="where the data lie, if not in data/")
    commands.add_parser("html", help="convert executed notebooks to web pages in site/")
    options = parser.parse_args(arguments)
    at_root()
    try:
        if options.command == "reproduce":
            good = reproduce(options.study, options.results, dict(options.p))
            return int(options.strict and not good)
        elif options.command == "publish":
            publish(options.study, options.results or Path("results") / options.study)
        elif options.command == "verify":
            return verify_all(options.results, options.rows, options.data_dir)
        else:
            print(html_pages())
    except OSError as error:
        print(f"error: {error.filename or 'a file'}: {error.strerror or error}", file=sys.stderr)
        return 2
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0
