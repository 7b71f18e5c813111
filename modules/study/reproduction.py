"""The whole study: check every notebook's parameters, run the notebooks through papermill, compare, make pages."""

import time
from pathlib import Path

from modules.checks import printable, printable_lines
from modules.report.comparison import REPRODUCED, compare
from modules.report.outcome import report
from modules.report.tables import write
from modules.runs.files import sweep, writing
from modules.runs.parallel import shared_cluster
from modules.runs.verification import runs_in, verify
from modules.study.design import check
from modules.study.notebooks import conclude, execute, one_kernel
from modules.study.parameters import chosen, counterpart, parameters
from modules.study.terminal import Screen


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
    with writing(results):
        for part in ("tables", "figures"):
            sweep(results / part)
        started = time.monotonic()
        screen = Screen()
        with shared_cluster(screen.show), one_kernel() as kernel:
            for name in plan:
                print(f"\n== {name}", flush=True)
                execute(name, plan, results, kernel, screen)
        if (published := counterpart(study, results)).is_dir():
            conclude(study, results, published, published.name)
        comparison = compare(results, published)
        if len(comparison):
            write(comparison, results / "tables" / "comparison.csv")
        print(printable_lines(f"\n{report(comparison, results, published)}\n"))
        verdicts = f"; every verdict: {results}/tables/comparison.csv" if len(comparison) else ""
        print(f"All numbers: {results}/tables{verdicts}")
        print(f"Figures: {results}/figures; executed notebooks: {results}/notebooks")
        if len(plan) == 1:
            from modules.study.site import page  # a second to import, and nothing else here needs it

            print(f"As a web page: {page(results / 'notebooks' / f'{next(iter(plan))}.ipynb')}")
        elif Path("results").resolve() in results.resolve().parents:
            print("As web pages: make html")
        else:
            print("No web pages: they are made of what lies in results/")
        print(f"Study took {time.monotonic() - started:.0f} s")
    return bool(len(comparison)) and set(comparison.verdict) <= set(REPRODUCED)


def verify_all(place: Path, rows: int, data_dir: str | None, model: str | None = None) -> int:
    """Print of every run at a place whether its first rows came out again; returns the exit status, 1 when not all."""
    differing = 0
    for run in runs_in(place):
        found = verify(run, rows, data_dir, model)
        differing += found is not None
        print(printable(f"{run.place}: {found or 'same bytes'}"), flush=True)
    return 1 if differing else 0
