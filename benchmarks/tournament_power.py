"""How often the second tournament's rule says what, when the truth is known: coverage and power, by simulation.

    python benchmarks/tournament_power.py [--draws 2000]

Estimator and rule are the study's (`modules.tournament.analysis`); runs, octaves and margins are the registration's.
The tuning's error is in it: each arm's true curve has its top somewhere else each time, and the estimator must find it.
Curves and noise are like the first tournament's: -0.4 to -0.9 points an octave squared; between runs a standard
deviation of 0.4 points on test as on validation images, correlated 0.36; 0.55 after a quarter of the budget; 0.7 at
eight times the best rate, where a run may collapse. The eight runs in bfloat16 that chose the precision have 0.6, not
0.4: everything is made up with one and a half times the noise, too.
"""

import argparse
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd

from modules.checks import at_root
from modules.report.tables import write
from modules.statistics import Estimate, difference, difference_of_estimates
from modules.tournament.analysis import level, top, verdict
from modules.tournament.design import Contrast, Design, read

REGISTERED = Path("studies/registered/tournament-2.yaml")
TABLE = Path("results/published/benchmarks/tournament_power.csv")
SAID = ("not needed", "helps", "harms", "not resolved")
BEND = {"a parabola": 0.0, "falls faster above the top": 0.15}  # the third term over the second, an octave away
#: The share of runs that collapse, of the first arm and of the second.
COLLAPSE = {
    "no run collapses": (0.0, 0.0),
    "1 in 16 collapses": (1 / 16, 1 / 16),
    "1 in 50 of the second arm collapses": (0.0, 1 / 50),
}
NOISE = (1.0, 1.5)
LOST = 0.1
HEIGHT = 0.73  # at eight times the best rate, and after a part of the budget


def counts(design: Design, question: str, arm: str, budget: int) -> dict[float, int]:
    """How many runs of an arm a question has, by octave."""
    found: dict[float, int] = {}
    for ladder in design.questions[question].runs:
        if arm in ladder.arms and budget in (ladder.budgets or (design.iterations,)):
            for octave, (first, last) in ladder.octaves.items():
                found[octave] = found.get(octave, 0) + last - first + 1
    return found


def curve(rng: np.random.Generator, height: float, runs: dict[float, int], bend: float, sd: float) -> tuple[dict, dict]:
    """One arm's accuracies on validation and on test images, by octave; the true curves' tops are `height`."""
    place, square = rng.uniform(-0.35, 0.35) + np.median(list(runs)), -rng.uniform(0.004, 0.009)
    places = place + rng.normal(0, 0.05), place  # the validation images have a best rate of their own
    made = {}, {}
    for octave, count in runs.items():
        shared = rng.normal(0, 1, count)
        for values, top_at in zip(made, places, strict=True):
            x = octave - top_at
            noise = 0.6 * shared + 0.8 * rng.normal(0, 1, count)
            values[octave] = height + square * x**2 * (1 + bend * x) + sd * noise
    return made


def spread(design: Design, one: Contrast) -> float:
    """The standard deviation between runs that a difference is of."""
    return 0.007 if one.octave else 0.0055 if (one.budget or design.iterations) < design.iterations / 2 else 0.004


def draw(
    rng: np.random.Generator, design: Design, question: str, one: Contrast, truth: float, case: object, sd: float
) -> tuple[Estimate, bool]:
    """One made-up tournament's estimate of a difference, and whether the tops are inside."""
    budget = one.budget or design.iterations
    runs = [counts(design, question, arm, budget) for arm in one.arms]
    if one.octave is None:
        tops = [top(*curve(rng, 0.75 + part, ladder, case, sd)) for part, ladder in zip((truth, 0), runs, strict=True)]
        return difference_of_estimates(*(arm.accuracy for arm in tops)), all(arm.inside for arm in tops)
    ends = []
    for part, ladder, lost in zip((truth, 0), runs, case, strict=True):
        end = HEIGHT + part + rng.normal(0, sd, ladder[one.octave])
        ends.append(np.where(rng.random(len(end)) < lost, LOST, end))
    return difference(*ends), True


def of_means(truth: float, case: tuple[float, float]) -> float:
    """The difference of two arms' means whose runs that do not collapse differ by `truth`."""
    heights = HEIGHT + truth, HEIGHT
    first, second = ((1 - lost) * height + lost * LOST for height, lost in zip(heights, case, strict=True))
    return first - second


def row(
    name: str, case: str, noise: float, truth: float, margin: float, high: float, found: list[tuple[Estimate, bool]]
) -> dict:
    """What a difference's draws came to."""
    said = [verdict(some, margin, high) if inside else "not resolved" for some, inside in found]
    ends = np.array([some.interval(high) for some, _ in found])
    values = np.array([some.value for some, _ in found])
    about = {"difference": name, "case": case, "noise": noise, "truth": truth, "margin": margin}
    about |= {"level": high, "draws": len(found)}
    about |= {"covers": np.mean((ends[:, 0] <= truth) & (truth <= ends[:, 1])), "bias": values.mean() - truth}
    about |= {"sd": values.std(ddof=1), "error": np.mean([some.error for some, _ in found])}
    about |= {"no top inside": np.mean([not inside for _, inside in found])}
    return about | {verdict: said.count(verdict) / len(said) for verdict in SAID}


def simulate(draws: int, design: Design) -> pd.DataFrame:
    """One row for each primary difference, case, noise and true difference: coverage, and the share of each verdict."""
    rng, rows, high = np.random.default_rng(0), [], level(design.alpha, len(design.primary))
    for name, (question, one) in design.primary.items():
        margin = design.questions[question].margin
        cases = BEND if one.octave is None else COLLAPSE if one.octave else {"": (0.0, 0.0)}
        for (case, value), times, share in product(cases.items(), NOISE, (0, -0.32, 0.32, -1, 1, -2, 2)):
            noise = times * spread(design, one)
            found = [draw(rng, design, question, one, share * margin, value, noise) for _ in range(draws)]
            truth = share * margin if one.octave is None else of_means(share * margin, value)
            rows.append(row(name, case, noise, truth, margin, high, found))
    return pd.DataFrame(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--draws", type=int, default=2000, help="made-up tournaments for each row")
    parser.add_argument("--table", type=Path, default=TABLE, help="where the table is written")
    options = parser.parse_args()
    at_root()
    table = simulate(options.draws, read(REGISTERED)[0])
    write(table.round(6), options.table)
    print(table.round(4).to_string(index=False))


if __name__ == "__main__":
    main()
