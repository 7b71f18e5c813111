"""Advice from range tests and trainings on a user's own data: a rate for each schedule, and which schedule to take."""

from collections.abc import Mapping
from itertools import combinations

import numpy as np
import pandas as pd

from modules.range_test import after_divergence, best_rate
from modules.rate_finders.rules import DIVISORS, ROWS, in_rows, share_of_lowest
from modules.report.formatting import show
from modules.report.tables import final_accuracies, final_difference, mean_row, table_of
from modules.statistics import AnalysisError

#: Of schedules that nothing tells apart the first is advised: it forgives a wrong rate most (notebook 9).
PREFERENCE = ("linear", "cycle", "constant")

#: What is said of a schedule beside another.
LOWER, ALIKE, DIVERGED, ONE_RUN = "ends lower", "is not told from it", "is no choice: runs diverged", "has one run"

#: Each schedule in torch's own words, for a training of `iterations`; `{0}` is its rate, `{1}` a quarter of it.
IN_TORCH = {
    "constant": "no scheduler",
    "linear": "LinearLR(optimizer, 1.0, 0.0, total_iters=iterations)",
    "cycle": "CyclicLR(optimizer, {1:.3g}, {0:.3g}, step_size_up=iterations // 8, cycle_momentum=False)",
}


def suggested(ramps: pd.DataFrame) -> pd.DataFrame:
    """The rate for each schedule, read off a few range tests.

    Args:
        ramps: their runs, as `tables.read_runs` gives them, a row an iteration.

    Returns:
        A table of results. `value` is the geometric mean of what `suggest_rate`'s rule says of each range test; `low`
        and `high` are the lowest and the highest of these, and no interval. Whether the loss falls at all is asked of
        all range tests together, which is less noisy than one.

    Raises:
        AnalysisError: a loss that never falls clear of its noise, or does not rise again, or a range test without an
            answer.
    """
    losses = ramps.pivot(index="lr", columns="seed", values="train_loss").sort_index()
    lr, curves = losses.index.to_numpy(), losses.to_numpy()
    if len(lr) < ROWS:
        raise AnalysisError(f"the loss was no number any more after {len(lr)} iterations, at a rate of {lr[-1]:.2g}")
    if "diverged" in ramps and ramps.diverged[ramps.lr == lr[-1]].any():
        lr, curves = after_divergence(lr, curves)
    rows = [in_rows(lr, curve) for curve in curves.T]
    best_rate(rows[0][0], np.stack([loss for _, loss in rows], axis=1))  # refuses what teaches nothing
    rows = []
    for schedule in DIVISORS:
        found = [share_of_lowest(lr, curve, schedule) for curve in curves.T]
        if np.isnan(found).any():
            raise AnalysisError("a range test gives no rate: its loss is no number from early on")
        rows.append(
            {
                "quantity": "suggested_rate",
                "policy": schedule,
                "runs": len(found),
                "value": float(f"{np.exp(np.log(found).mean()):.3g}"),
                "low": min(found) if len(found) > 1 else np.nan,
                "high": max(found) if len(found) > 1 else np.nan,
                "method": "lowest and highest range test" if len(found) > 1 else None,
            }
        )
    return table_of(rows)


def differences(trained: pd.DataFrame) -> pd.DataFrame:
    """By how much the schedules' final accuracies differ, in pairs, as a table of results."""
    return table_of([final_difference(trained, a, b) for a, b in combinations(PREFERENCE, 2)])


def advised(trained: pd.DataFrame, deciding: int) -> str:
    """The schedule to take: the best mean, unless an earlier one of `PREFERENCE` is not told from it.

    Args:
        trained: the trainings, a policy for each schedule; as `tables.read_runs` gives them.
        deciding: images that accuracies are of.

    Raises:
        AnalysisError: every schedule has runs that diverged.
    """
    stable = [arm for arm in PREFERENCE if not trained[trained.policy == arm].diverged.any()]
    if not stable:
        raise AnalysisError("every schedule has runs that diverged: train with a tenth of these rates")
    best = max(stable, key=lambda arm: final_accuracies(trained, arm).mean())
    return next(arm for arm in stable if arm == best or compared(trained, arm, best, deciding) != LOWER)


def compared(trained: pd.DataFrame, arm: str, best: str, deciding: int) -> str:
    """What is said of a schedule beside another: one of `LOWER`, `ALIKE`, `DIVERGED`, `ONE_RUN`.

    It ends lower where the whole interval of the difference lies more than one of the deciding images below zero: runs
    that end alike have an interval without width.

    Args:
        trained, deciding: as for `advised`.
        arm, best: the schedules.
    """
    if trained[trained.policy == arm].diverged.any():
        return DIVERGED
    high = final_difference(trained, arm, best)["high"]
    if np.isnan(high):
        return ONE_RUN
    return LOWER if round(high * deciding, 6) < -1 else ALIKE


def advice(trained: pd.DataFrame, rates: Mapping[str, float], deciding: int, majority: float) -> list[str]:
    """What to do, in a few paragraphs, with how sure it is.

    Args:
        trained: the trainings, as for `advised`.
        rates: the rate of each schedule.
        deciding: as there.
        majority: the share of the largest class among them.

    Raises:
        AnalysisError: as `advised`.
    """
    arm = advised(trained, deciding)
    what = {
        "constant": "Hold the rate constant at {0:.3g}.",
        "linear": "Let the rate fall in a straight line from {0:.3g} to zero.",
        "cycle": "Let the rate cycle between {1:.3g} and {0:.3g}, four whole cycles.",
    }[arm].format(rates[arm], rates[arm] / 4)
    ends = final_accuracies(trained, arm)
    reached = mean_row(ends, 0, 1)
    count = f"{len(ends)} runs" if len(ends) > 1 else "One run"
    alike = len(ends) > 1 and ends.nunique() == 1  # an interval without width would say too much
    shown = show("final_accuracy", reached["value"], *(() if alike else (reached["low"], reached["high"])))
    said = [
        f"{what} {count}{' all' if alike else ''} ended at {shown} of {deciding:,} images that did not train; one of "
        f"them is {100 / deciding:.2g} points."
    ]
    for other in (other for other in PREFERENCE if other != arm):
        found, verdict = final_difference(trained, other, arm), compared(trained, other, arm, deciding)
        by = show("final_accuracy_difference", found["value"], found["low"], found["high"])
        said.append(f"{other.capitalize()} at {rates[other]:.3g} {verdict}{'' if verdict == DIVERGED else f': {by}'}.")
    if not (reached["low"] if len(ends) > 1 else reached["value"]) > majority:
        said.insert(
            0,
            f"That anything was learnt is not sure: always naming the largest class is right in {majority:.1%}, and "
            "the accuracy is not clear of that. More runs may settle it; else look at the data and the network first.",
        )
    code = IN_TORCH[arm].format(rates[arm], rates[arm] / 4)
    steps = "" if arm == "constant" else ", a step after every batch; iterations is the number of all batches"
    return [
        *said,
        "A difference is the schedule's accuracy less that of the advised one. Of schedules that are not told apart, "
        "linear is advised before cycle, and cycle before constant: it forgives a wrong rate most (notebook 9).",
        f"In torch: the optimizer at lr={rates[arm]:.3g}, {code}{steps}.",
        "It is a start: try twice, half and a quarter of this rate before a training of days.",
    ]
