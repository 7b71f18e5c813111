"""The whole study: check every notebook's parameters, run the notebooks through papermill, compare, make pages."""

import time
from pathlib import Path

from modules.report.comparison import REPRODUCED, compare
from modules.report.notes import write_notes
from modules.report.outcome import report
from modules.report.tables import write
from modules.runs.files import sweep, writing
from modules.runs.parallel import shared_cluster
from modules.runs.verification import runs_in, verify
from modules.study.design import check
from modules.study.notebooks import conclude, execute, one_kernel
from modules.study.parameters import chosen, counterpart, parameters, study_notes
from modules.study.terminal import Screen


def html_pages() -> Path:
    """As `pages.html_pages`; what makes pages takes a second to import, and no other command needs it."""
    from modules.study import pages

    return pages.html_pages()


def reproduce(study: str, results: Path | None, overrides: dict[str, object], only: str | None = None) -> bool:
    """Check, run all notebooks, and print what came out beside what is published.

    Args:
        study: as for `parameters.read_study`.
        results: the results folder; by default `results/<study>`.
        overrides: as for `parameters.parameters`.
        only: the number or the name of the one notebook to run; by default all.

    Returns:
        Whether every number that is judged is the same bytes as the published one, or equivalent.
    """
    results = results or Path("results") / Path(study).stem
    plan = chosen(parameters(study, results, overrides), only)
    check(plan)
    notes = study_notes(study)
    with writing(results):
        for part in ("tables", "figures"):
            sweep(results / part)
        started = time.monotonic()
        screen = Screen()
        with shared_cluster(screen.show), one_kernel() as kernel:
            for name in plan:
                print(f"\n== {name}", flush=True)
                execute(name, plan, results, kernel, screen)
        write_notes(notes, results)
        if (published := counterpart(study, results)).is_dir():
            conclude(study, results, published, published.name)
        comparison = compare(results, published)
        if len(comparison):
            write(comparison, results / "tables" / "comparison.csv")
        print(f"\n{report(comparison, results, published)}\n")
        print(f"All numbers: {results}/tables; every verdict: {results}/tables/comparison.csv")
        print(f"Figures: {results}/figures; executed notebooks: {results}/notebooks")
        if Path("results").resolve() in results.resolve().parents:
            index = html_pages()
            alone = index.parent / results.resolve().relative_to(Path.cwd()) / f"{next(iter(plan))}.html"
            print(f"As a web page: {alone}" if len(plan) == 1 else f"As web pages: {index}")
        else:
            print("No web pages: they are made of what lies in results/")
        print(f"Study took {time.monotonic() - started:.0f} s")
    return bool(len(comparison)) and set(comparison.verdict) <= set(REPRODUCED)


def verify_all(place: Path, rows: int, data_dir: str | None) -> int:
    """Print of every run at a place whether its first rows came out again; returns the exit status, 1 when not all."""
    differing = 0
    for run in runs_in(place):
        found = verify(run, rows, data_dir)
        differing += found is not None
        print(f"{run.place}: {found or 'same bytes'}", flush=True)
    return 1 if differing else 0
