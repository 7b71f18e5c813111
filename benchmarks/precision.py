"""Is bfloat16 safe? CLR's runs of the headline again in bfloat16, each beside its own float32 rows.

    make benchmark-precision RESULTS=results/cifar10 [PARAMS="--iterations 20000 --data-dir data/mine"]

Hours on a CPU, with bfloat16 instructions or without; finished runs are kept, unfinished ones go on. The runs go to
`<results>/bfloat16/`, the table to `<results>/tables/bfloat16.csv`. Whatever else a run of the headline was asked for
stays as it is, so a pair of runs starts from the same weights and sees the same images in the same order.
"""

import argparse
from pathlib import Path

import pandas as pd

from modules.checks import RunError
from modules.models import own
from modules.report import tables
from modules.report.formatting import readable
from modules.runs.files import RunFiles, complete_runs
from modules.runs.parallel import run_all
from modules.runs.spec import Spec, spec


def again(run: RunFiles, iterations: int) -> Spec:
    """A run of the headline in bfloat16, up to one of its evaluations."""
    asked = run.read()[1]["spec"]
    if own.is_own(asked["model"]):
        raise RunError(
            f"{run.place} was trained with a network in a Python file: only the study's own are trained again"
        )
    if iterations > asked["iterations"] or iterations % asked["evaluate_every"]:
        raise RunError(
            f"iterations={iterations}: a multiple of {asked['evaluate_every']} up to {asked['iterations']} is needed"
        )
    return spec(**{**asked, "variant": "bfloat16", "precision": "bfloat16", "iterations": iterations})


def compared(results: Path, policy: str, specs: list[Spec]) -> pd.DataFrame:
    """Accuracies by precision after as many iterations, and their difference in pairs."""
    headline = tables.read_runs(results / "headline")
    kept = headline[(headline.policy == policy) & (headline.iteration <= specs[0].iterations)]
    runs = pd.concat([kept.assign(policy="float32"), tables.read_runs(results / "bfloat16", specs)])
    table = tables.by_policy(runs, ("iterations", "final_accuracy", "best_accuracy"))
    difference = tables.differences(
        runs, [{"a": "bfloat16", "b": "float32", "method": "pairs", "note": "one trajectory"}]
    )
    return pd.concat([table, difference], ignore_index=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, required=True, help="a results folder whose headline is complete")
    parser.add_argument("--policy", default="triangular", help="the headline's policy to train again")
    parser.add_argument("--iterations", type=int, default=20_000)
    parser.add_argument("--data-dir", help="where the data lie, if not in data/")
    options = parser.parse_args()
    found = complete_runs(options.results / "headline", options.policy)
    try:
        if not found:
            raise RunError(f"{options.results}/headline has no complete run of {options.policy}")
        specs = [again(run, options.iterations) for run in found]
        run_all(specs, options.results / "bfloat16", options.data_dir)
    except ValueError as error:
        parser.exit(2, f"error: {error}\n")
    table = compared(options.results, options.policy, specs)
    tables.write(table, options.results / "tables" / "bfloat16.csv")
    print(readable(table).to_string(index=False))


if __name__ == "__main__":
    main()
