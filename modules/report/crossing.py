"""The headline: one policy's accuracy against another's, and the iterations it needs to catch up with it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from modules.report.formatting import show
from modules.report.tables import TABLE_COLUMNS, by_policy, curves, final_difference, over_runs, percentiles


@dataclass(frozen=True)
class Crossing:
    """Where one policy's mean accuracy first reaches the best mean accuracy of another.

    Attributes:
        target: the best mean accuracy of the baseline, over its evaluations.
        target_iteration: the evaluation at which the baseline has it.
        iteration: the first evaluation at which the challenger's mean reaches it; NaN when it never does.
        low, high: bootstrap interval of `iteration` over runs; infinite when that many resamples never reach it, NaN
            with fewer than five runs.
        ratio, ratio_low, ratio_high: the baseline's length over those iterations.
        never: share of resamples in which the challenger never reaches the target.
    """

    target: float
    target_iteration: float
    iteration: float
    low: float
    high: float
    ratio: float
    ratio_low: float
    ratio_high: float
    never: float


def crossing(baseline: pd.DataFrame, challenger: pd.DataFrame) -> Crossing:
    """Iterations the challenger needs for the baseline's best mean accuracy (coxy1989/clr's definition).

    The target is taken anew in every resample, so its own uncertainty is in the interval. Where both sides have the
    same seeds, runs are resampled in pairs: a seed gives both policies the same initial weights and image order.

    Args:
        baseline, challenger: accuracies as `curves` gives them, `[iterations, seeds]`; without a run of either nothing
            is known, and all is NaN.
    """
    if baseline.empty or challenger.empty:
        nothing = dict.fromkeys(("iteration", "low", "high", "ratio", "ratio_low", "ratio_high", "never"), np.nan)
        target = np.nan if baseline.empty else baseline.mean(axis=1)
        return Crossing(target=float(np.max(target)), target_iteration=_best_at(baseline), **nothing)
    base, chall = baseline.to_numpy(), challenger.to_numpy()
    steps = challenger.index.to_numpy(dtype=float)

    # A tie counts as reached, so it must not depend on how a mean is rounded.
    def first(base_runs: Sequence[int], chall_runs: Sequence[int]) -> float:
        reached = chall[:, chall_runs].mean(axis=1) >= base[:, base_runs].mean(axis=1).max() - 1e-9
        return steps[reached.argmax()] if reached.any() else np.inf

    mean = base.mean(axis=1)
    paired = list(baseline.columns) == list(challenger.columns)
    counts = base.shape[1], chall.shape[1]
    at = first(*(range(count) for count in counts))
    drawn = over_runs(first, *counts, paired=paired)
    low, high = percentiles(drawn)
    length = float(baseline.index[-1])
    return Crossing(
        target=float(mean.max()),
        target_iteration=_best_at(baseline),
        iteration=at if np.isfinite(at) else np.nan,
        low=low,
        high=high,
        ratio=length / at if np.isfinite(at) else np.nan,
        ratio_low=length / high,
        ratio_high=length / low,
        never=float(np.isinf(drawn).mean()) if len(drawn) else np.nan,
    )


def _best_at(curve: pd.DataFrame) -> float:
    """The evaluation at which the mean is best."""
    return np.nan if curve.empty else float(curve.mean(axis=1).idxmax())


def headline(runs: pd.DataFrame, baseline: str = "fixed", challenger: str = "triangular") -> pd.DataFrame:
    """The headline table, one quantity a row; accuracies are on the test images, 0 to 1.

    Final accuracy, which nobody selected, comes before best accuracy, the highest of a run's evaluations.

    Args:
        runs: as `read_runs` gives them.
        baseline, challenger: two policies' names.

    Returns:
        Columns `quantity`, `policy`, `runs`, `diverged`, `value`, `std`, `low`, `high`, `t_low`, `t_high`.

    Raises:
        AnalysisError: a policy without a run.
    """
    both = {policy: curves(runs, policy) for policy in (baseline, challenger)}
    compared = pd.concat([runs[runs.policy == policy] for policy in both])
    rows = by_policy(compared, ("iterations", "final_accuracy", "best_accuracy")).to_dict("records")
    if not (both[baseline].empty or both[challenger].empty):
        rows.append(final_difference(runs, challenger, baseline))
    cross = crossing(both[baseline], both[challenger])
    count = both[challenger].shape[1]
    rows += [
        {"quantity": "best_mean_accuracy", "policy": baseline, "runs": both[baseline].shape[1], "value": cross.target},
        {
            "quantity": "best_mean_iteration",
            "policy": baseline,
            "runs": both[baseline].shape[1],
            "value": cross.target_iteration,
        },
        {
            "quantity": "crossing_iteration",
            "policy": challenger,
            "runs": count,
            "value": cross.iteration,
            "low": cross.low,
            "high": cross.high,
        },
        {
            "quantity": "crossing_ratio",
            "policy": challenger,
            "runs": count,
            "value": cross.ratio,
            "low": cross.ratio_low,
            "high": cross.ratio_high,
        },
        {"quantity": "never_crossed_share", "policy": challenger, "runs": count, "value": cross.never},
    ]
    table = pd.DataFrame(rows, columns=TABLE_COLUMNS)
    return table.astype({"diverged": "Int64"})


def in_words(table: pd.DataFrame) -> str:
    """What a table of `headline` says, in two sentences, broken into short lines."""
    rows = {row.quantity: row for row in table.itertuples()}
    cross, ratio, target = (rows[key] for key in ("crossing_iteration", "crossing_ratio", "best_mean_accuracy"))
    if pd.isna(target.value) or "final_accuracy_difference" not in rows:
        return "Nothing can be compared: all runs of a policy diverged."
    reached = f"{show(target.quantity, target.value, np.nan, np.nan)}, the best mean of {target.policy}"
    if pd.isna(cross.value):
        first = f"The mean of {cross.policy} never reached {reached}."
    else:
        first = f"The mean of {cross.policy} first reached {reached}, after {cross.value:,.0f} iterations,\n"
        first += show("crossing_ratio", ratio.value, ratio.low, ratio.high) + " times fewer than that policy was given."
    final = rows["final_accuracy_difference"]
    if pd.isna(final.value):
        return f"{first}\nNo seed finished under both policies, so their ends cannot be compared."
    second = "At the end, the two differ by " + show(final.quantity, final.value, final.t_low, final.t_high)
    if pd.isna(final.t_low):
        return f"{first}\n{second}; of so few runs there is no interval."
    inside = ", which contains 0" if final.t_low <= 0 <= final.t_high else ""
    return f"{first}\n{second} (Student's interval{inside})."
