"""The headline: one policy's accuracy against another's, and the iterations it needs to catch up with it."""

import math
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import pandas as pd

from modules import statistics
from modules.report.formatting import show
from modules.report.tables import METHODS, blocks, by_policy, curves, final_difference, row_of, table_of
from modules.statistics import DRAWS

TIE = 1e-9  # a tie counts as reached, so it must not depend on how a mean is rounded
MOST_PAIRS = 2_000_000  # 126 x 126 resamples of five runs are listed; of so many, some are drawn
SET_COLUMNS = ["iteration", "share", "factor", "difference", "low", "high", "in_set", "step"]


@dataclass(frozen=True)
class Crossing:
    """Where one policy's mean accuracy first reaches the best mean accuracy of another.

    Attributes:
        target: the best mean accuracy of the baseline, over its evaluations.
        target_iteration: the evaluation at which the baseline has it.
        iteration: the first evaluation at which the challenger's mean reaches it; NaN when it never does.
        low, high: the ends of the confidence set of `iteration`; infinite when the last evaluation does not surely
            reach it, NaN where one run says nothing of another.
        length: the baseline's iterations.
        never: share of resamples in which the challenger never reaches the target.
        table: both as a table, an evaluation of the challenger a row: `iteration` (infinite: never), its `share` of the
            resamples, the `factor` it would mean, the challenger's mean less the baseline's best with Welch's interval
            (`difference`, `low`, `high`), whether it is `in_set`, and the `step` between evaluations.
        symmetric: iterations of both, so of the baseline until it first has its best mean, as a factor, with the
            interval of its resamples.
        method: how the ends of the set were found.
    """

    target: float
    target_iteration: float
    iteration: float
    low: float
    high: float
    length: float
    never: float
    table: pd.DataFrame = field(repr=False, compare=False)
    symmetric: tuple[float, float, float] = (math.nan, math.nan, math.nan)
    method: str | None = None

    @property
    def ratio(self) -> tuple[float, float, float]:
        """The baseline's length over the crossing, and the ends of its set."""
        return self.length / self.iteration, self.length / self.high, self.length / self.low


def crossing(baseline: pd.DataFrame, challenger: pd.DataFrame) -> Crossing:
    """Iterations the challenger needs for the baseline's best mean accuracy (coxy1989/clr's definition).

    Said twice, as a set. The *shares* are the exact distribution over resampled runs, each arm's independently; the
    target is taken anew in every resample, so its own uncertainty is in them. The *confidence set* inverts Welch's
    test: an evaluation is in it unless the challenger is below the target there, or above it at an earlier one. Runs
    that are tested on folds are resampled within them, and compared by blocks.

    Args:
        baseline, challenger: accuracies as `curves` gives them, `[iterations, seeds]`; without a run of either nothing
            is known, and all is NaN.
    """
    steps = challenger.index.to_numpy(dtype=float)
    length = float(baseline.index[-1]) if len(baseline) else math.nan
    best_at = math.nan if baseline.empty else float(baseline.mean(axis=1).idxmax())
    target = math.nan if baseline.empty else float(baseline.mean(axis=1).max())
    if baseline.empty or challenger.empty:
        nothing = pd.DataFrame(columns=SET_COLUMNS)
        return Crossing(target, best_at, math.nan, math.nan, math.nan, length, math.nan, nothing)
    base, chall = baseline.to_numpy(), challenger.to_numpy()
    folds = blocks(baseline), blocks(challenger)
    at = _first(chall.mean(axis=1)[:, None], np.array([target]), steps)[0]

    known = min(base.shape[1], chall.shape[1]) > 1
    table = _confidence_set(baseline.loc[best_at], challenger, folds)
    inside = table[table.in_set].iteration
    shares, ends = {}, (math.nan, math.nan)
    if known:
        pairs = _pairs(baseline, challenger)
        mean, other = base @ pairs.first.T, chall @ pairs.second.T
        drawn = _first(other[:, pairs.j], mean.max(axis=0)[pairs.i], steps)
        shares = statistics.shares(drawn, pairs.weights)
        if math.inf in shares and math.inf not in set(table.iteration):
            table.loc[len(table)] = {"iteration": math.inf, "in_set": False}
        took = baseline.index.to_numpy(dtype=float)[mean.argmax(axis=0)]
        ends = statistics.quantiles(took[pairs.i] / drawn, pairs.weights)
    table["share"] = table.iteration.map(shares).fillna(0.0) if known else math.nan
    table["factor"] = length / table.iteration
    table = table.assign(in_set=table.in_set.astype(bool), step=float(np.diff(steps, prepend=0).min()))
    return Crossing(
        target,
        best_at,
        at if np.isfinite(at) else math.nan,
        float(inside.min()) if len(inside) else math.nan,
        float(inside.max()) if len(inside) else math.nan,
        length,
        shares.get(math.inf, 0.0) if known else math.nan,
        table[table.in_set | (table.share > 0)].reindex(columns=SET_COLUMNS).reset_index(drop=True),
        (best_at / at if np.isfinite(at) else math.nan, *ends),
        f"{METHODS['welch' if None in folds else 'blocks']}, inverted" if known else None,
    )


def _confidence_set(target: pd.Series, challenger: pd.DataFrame, folds: tuple) -> pd.DataFrame:
    """The evaluations at which the challenger may cross, as far as a test can say.

    Args:
        target: the baseline's accuracies, `[runs]`.
        challenger: `[iterations, runs]`.
        folds: of both, as `blocks` gives them.

    Returns:
        A row an evaluation, and an infinite one where it may never cross: `iteration`, the `difference` there with its
        interval, whether it is `in_set`.
    """
    rows, reached = [], False
    for step, values in zip(challenger.index, challenger.to_numpy(), strict=True):
        found = _difference(values, target, folds)
        low, high = found.interval()
        inside = found.df > 0 and not reached and high >= -TIE
        reached |= low > 0
        rows.append({"iteration": float(step), "difference": found.value, "low": low, "high": high, "in_set": inside})
    if min(len(target), challenger.shape[1]) > 1 and not reached:
        rows.append({"iteration": math.inf, "in_set": True})
    return pd.DataFrame(rows)


class Pairs(NamedTuple):
    """Resamples of two arms, drawn independently of each other, and pairs of these.

    `first` `[resamples, runs]` and `second` are the runs' weights in each arm's resamples; `i` and `j` `[pairs]` say
    which two make a pair, `weights` `[pairs]` how probable it is.
    """

    first: np.ndarray
    second: np.ndarray
    i: np.ndarray
    j: np.ndarray
    weights: np.ndarray


def _difference(a: np.ndarray, b: np.ndarray, folds: tuple[list[int] | None, list[int] | None]) -> statistics.Estimate:
    """The difference of two arms at an evaluation each: Welch's, or by blocks where both have folds."""
    if None in folds:
        return statistics.difference(a, b)
    return statistics.blocked_difference(a, folds[0], b, folds[1])


def _pairs(first: pd.DataFrame, second: pd.DataFrame) -> Pairs:
    """All pairs of resamples of two arms' runs, or some of them, where there are too many to list."""
    a, b = (statistics.resamples(curve.shape[1], blocks(curve)) for curve in (first, second))
    if len(a.weights) * len(b.weights) <= MOST_PAIRS:
        i, j = (index.ravel() for index in np.indices((len(a.weights), len(b.weights))))
        weights = a.weights[i] * b.weights[j]
    else:
        rng = np.random.default_rng(0)
        i, j = (rng.choice(len(some.weights), DRAWS, p=some.weights) for some in (a, b))
        weights = np.full(DRAWS, 1 / DRAWS)
    return Pairs(a.counts / first.shape[1], b.counts / second.shape[1], i, j, weights)


def _first(means: np.ndarray, targets: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """The first of `steps` at which each of the curves `[evaluations, curves]` has its target; infinite if none."""
    reached = means >= targets - TIE
    return np.where(reached.any(axis=0), steps[reached.argmax(axis=0)], math.inf)


def factor_curve(baseline: pd.DataFrame, challenger: pd.DataFrame) -> pd.DataFrame:
    """How many times fewer iterations the challenger needs, for every whole per cent of accuracy, and the best mean.

    Args:
        baseline, challenger: as for `crossing`.

    Returns:
        Rows of `factor_at`, from the first target that neither side has at its first evaluation up to the baseline's
        best mean accuracy.
    """
    columns = ["target", "baseline_iteration", "challenger_iteration", "factor", "low", "high"]
    rows = []
    if not (baseline.empty or challenger.empty):
        best, start = baseline.mean(axis=1).max(), max(side.mean(axis=1).iloc[0] for side in (baseline, challenger))
        pairs = _pairs(baseline, challenger)
        for target in [*np.arange(math.floor(100 * start) + 1, 100 * best) / 100, best]:
            found = factor_at(baseline, challenger, target, pairs)
            rows.append({**found, "factor": found["value"]})
    return pd.DataFrame(rows, columns=columns)


def factor_at(baseline: pd.DataFrame, challenger: pd.DataFrame, target: float, pairs: Pairs | None = None) -> dict:
    """How many times fewer iterations the challenger's mean needs for a target than the baseline's.

    Both sides count until their mean first has it, so the factor is symmetric.

    Args:
        baseline, challenger: as for `crossing`.
        target: an accuracy.
        pairs: resamples as `_pairs` gives them, where they are known already.

    Returns:
        `target`, `baseline_iteration`, `challenger_iteration` (infinite: never), `value`, and the 95 % interval `low`,
        `high` over independently resampled runs, NaN with one run.
    """
    took, drawn, targets = [], [], np.array([target])
    pairs = pairs or _pairs(baseline, challenger)
    for side, weights, which in ((baseline, pairs.first, pairs.i), (challenger, pairs.second, pairs.j)):
        steps, values = side.index.to_numpy(dtype=float), side.to_numpy()
        took.append(float(_first(values.mean(axis=1)[:, None], targets, steps)[0]))
        drawn.append(_first(values @ weights.T, targets, steps)[which])
    known = min(baseline.shape[1], challenger.shape[1]) > 1
    with np.errstate(invalid="ignore"):
        low, high = statistics.quantiles(drawn[0] / drawn[1], pairs.weights) if known else (math.nan, math.nan)
    value = math.nan if np.isinf(took).all() else took[0] / took[1]
    sides = dict(zip(("baseline_iteration", "challenger_iteration"), took, strict=True))
    return {"target": target, **sides, "value": value, "low": low, "high": high}


def headline(runs: pd.DataFrame, baseline: str = "fixed", challenger: str = "triangular") -> pd.DataFrame:
    """The headline table, one quantity a row; accuracies are on the test images, 0 to 1.

    Final accuracy, which nobody selected, comes before best accuracy, the highest of a run's evaluations.

    Args:
        runs: as `read_runs` gives them.
        baseline, challenger: two policies' names.

    Returns:
        A table with `tables.TABLE_COLUMNS`.

    Raises:
        AnalysisError: a policy without a run.
    """
    both = {policy: curves(runs, policy) for policy in (baseline, challenger)}
    compared = pd.concat([runs[runs.policy == policy] for policy in both])
    rows = by_policy(compared, ("iterations", "final_accuracy", "best_accuracy")).to_dict("records")
    if not (both[baseline].empty or both[challenger].empty):
        rows.append(final_difference(runs, challenger, baseline))
    cross = crossing(both[baseline], both[challenger])
    best = {"policy": baseline, "runs": both[baseline].shape[1]}
    of = {"policy": challenger, "runs": both[challenger].shape[1]}
    resampled = "resampled" if not math.isnan(cross.symmetric[1]) else None
    rows += [
        {"quantity": "best_mean_accuracy", **best, **best_mean_row(both[baseline])},
        {"quantity": "best_mean_iteration", **best, "value": cross.target_iteration},
        {"quantity": "crossing_iteration", **of, **set_row(cross)},
        {"quantity": "crossing_ratio", **of, **_ends(cross.ratio), "method": cross.method},
        {"quantity": "symmetric_ratio", **of, **_ends(cross.symmetric), "method": resampled},
        {"quantity": "never_crossed_share", **of, "value": cross.never},
    ]
    return table_of(rows)


def set_row(cross: Crossing) -> dict[str, object]:
    """A crossing with the ends of its set, and the set in words, as part of a table's row."""
    ends = _ends((cross.iteration, cross.low, cross.high))
    return {**ends, "method": cross.method, "note": set_in_words(cross)}


def _ends(numbers: tuple[float, float, float]) -> dict[str, float]:
    return dict(zip(("value", "low", "high"), numbers, strict=True))


def best_mean_row(curve: pd.DataFrame) -> dict[str, object]:
    """The highest mean over runs of any evaluation, with the spread that resampled runs give it, as a row's part."""
    count, folds = curve.shape[1], blocks(curve)
    value, df = float(curve.mean(axis=1).max()) if count else math.nan, count - len(set(folds or [0]))
    if df < 1:
        return {"value": value}
    sample = statistics.resamples(count, folds)
    best = sample.means(curve.to_numpy()).max(axis=0)
    # Resampled means spread less than means of other runs would, by this factor.
    spread = math.sqrt(np.cov(best, aweights=sample.weights, ddof=0) * count / df)
    return row_of(statistics.Estimate(value, spread, df), "resampled")


def set_in_words(cross: Crossing) -> str | None:
    """Where the resamples cross, each evaluation with its share: `16,000 (6 %), 20,000 (56 %), 24,000 (38 %)`."""
    kept = cross.table[cross.table.share >= 0.005]
    if kept.empty:
        return None
    names = ("never" if math.isinf(row.iteration) else f"{row.iteration:,.0f}" for row in kept.itertuples())
    shares = (f"{100 * share:.0f} %" for share in kept.share)
    return ", ".join(f"{name} ({share})" for name, share in zip(names, shares, strict=True))


def in_words(table: pd.DataFrame) -> str:
    """What a table of `headline` says, in two sentences, broken into short lines."""
    rows = {row.quantity: row for row in table.itertuples()}
    cross, ratio, target = (rows[key] for key in ("crossing_iteration", "crossing_ratio", "best_mean_accuracy"))
    if pd.isna(target.value) or "final_accuracy_difference" not in rows:
        return "Nothing can be compared: all runs of a policy diverged."
    reached = f"{show(target.quantity, target.value)}, the best mean of {target.policy}"
    if pd.isna(cross.value):
        first = f"The mean of {cross.policy} never reached {reached}."
    else:
        first = f"The mean of {cross.policy} first reached {reached}, after {cross.value:,.0f} iterations,\n"
        first += show("crossing_ratio", ratio.value, ratio.low, ratio.high) + " times fewer than that policy was given."
    final = rows["final_accuracy_difference"]
    second = "At the end, the two differ by " + show(final.quantity, final.value, final.low, final.high)
    if pd.isna(final.low):
        return f"{first}\n{second}; of one run a policy there is no interval."
    inside = ", which contains 0" if final.low <= 0 <= final.high else ""
    return f"{first}\n{second} (interval: {final.method}{inside})."
