"""The study's statistics, one method for everything; intervals are 95 % unless their name says otherwise.

* A mean over runs: Student's interval (`mean`). Where runs are tested on folds that together are all images, the folds
  are no sample: what varies is a run within its fold (`blocked_mean`).
* A difference between two arms: Welch's (`difference`), or the variance pooled over arms that were named beforehand
  (`pooled_sd`, `difference`). Runs of one seed are not taken as pairs: seeds explain nothing of the results here
  (intraclass correlation 0.07 and less). Pairs (`paired_difference`) are for runs that share a prefix or a precision's
  trajectory, blocks (`blocked_difference`) for runs that share a test fold.
* Somebody else's single run: the prediction interval (`prediction`).
* No difference: two one-sided tests against a margin named beforehand (`verdict`).
* Where a curve crosses: the exact distribution over resampled runs (`resamples`, `quantiles`).

scipy is imported where it is needed: the range test, which everybody imports, resamples without it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement
from typing import NamedTuple

import numpy as np

CONFIDENCE = 0.95
EXACT_RUNS = 8  # 8 runs have 6,435 multisets; of more runs resamples are drawn
DRAWS = 10_000


class AnalysisError(ValueError):
    """Results that cannot answer the question; the message is one line for the user."""


class Estimate(NamedTuple):
    """A number with its standard error and degrees of freedom; NaN and 0 where one run says nothing of either."""

    value: float
    error: float
    df: float

    def interval(self, confidence: float = CONFIDENCE) -> tuple[float, float]:
        """The interval that Student's distribution gives; NaN without an error.

        Where all values are the same the error is 0, and so is the width.
        """
        from scipy import stats

        if not self.df > 0:
            return math.nan, math.nan
        half = stats.t.ppf((1 + confidence) / 2, self.df) * self.error
        return self.value - half, self.value + half


def error_of(low: float, high: float) -> float:
    """The standard error that a normal distribution's 95 % interval stands for."""
    return (high - low) / (2 * 1.959964)


NOTHING = Estimate(math.nan, math.nan, 0)


def _finite(values: Sequence[float]) -> np.ndarray:
    values = np.asarray(values, dtype=float)
    if values.ndim != 1 or not np.isfinite(values).all():
        raise AnalysisError(f"finite values [runs] are needed, not an array of shape {values.shape}")
    return values


def mean(values: Sequence[float]) -> Estimate:
    """The mean of `values` `[runs]`; without a run NaN, with one run no interval.

    Raises:
        AnalysisError: values that are not finite.
    """
    values = _finite(values)
    if not len(values):
        return NOTHING
    if len(values) == 1:
        return Estimate(float(values[0]), math.nan, 0)
    return Estimate(float(values.mean()), float(values.std(ddof=1) / math.sqrt(len(values))), len(values) - 1)


def blocked_mean(values: Sequence[float], blocks: Sequence[int]) -> Estimate:
    """The mean over blocks of each block's mean, its error from the runs' deviation within blocks.

    Args:
        values: `[runs]`.
        blocks: the block of each run, `[runs]`.

    Raises:
        AnalysisError: values that are not finite, or a block for each run is missing.
    """
    values, blocks = _finite(values), np.asarray(blocks)
    if len(values) != len(blocks):
        raise AnalysisError("a block for each run is needed")
    if not len(values):
        return NOTHING
    parts = [values[blocks == block] for block in np.unique(blocks)]
    value = float(np.mean([part.mean() for part in parts]))
    if len(values) == len(parts):
        return Estimate(value, math.nan, 0)
    sd, df = pooled_sd(parts)
    return Estimate(value, sd * math.sqrt(sum(1 / len(part) for part in parts)) / len(parts), df)


def pooled_sd(arms: Sequence[Sequence[float]]) -> tuple[float, int]:
    """The standard deviation within arms, pooled, and its degrees of freedom.

    Args:
        arms: values `[runs]` of each arm; the arms must have been named before the results were seen.

    Raises:
        AnalysisError: no arm has two runs.
    """
    arms = [_finite(arm) for arm in arms]
    df = sum(len(arm) - 1 for arm in arms if len(arm))
    if df < 1:
        raise AnalysisError("no arm has two runs: there is no standard deviation to pool")
    squares = sum(((arm - arm.mean()) ** 2).sum() for arm in arms if len(arm))
    return math.sqrt(squares / df), df


def difference(a: Sequence[float], b: Sequence[float], pooled: tuple[float, int] | None = None) -> Estimate:
    """The mean of `a` less the mean of `b`, both `[runs]`, as independent samples.

    Args:
        a, b: values of two arms.
        pooled: standard deviation and degrees of freedom of `pooled_sd`; without it Welch's.

    Raises:
        AnalysisError: values that are not finite.
    """
    a, b = _finite(a), _finite(b)
    if not (len(a) and len(b)):
        return NOTHING
    value = float(a.mean() - b.mean())
    if pooled:
        sd, df = pooled
        return Estimate(value, sd * math.sqrt(1 / len(a) + 1 / len(b)), df)
    if min(len(a), len(b)) < 2:
        return Estimate(value, math.nan, 0)
    parts = a.var(ddof=1) / len(a), b.var(ddof=1) / len(b)
    total = sum(parts)
    if total == 0:
        return Estimate(value, 0.0, len(a) + len(b) - 2)
    df = total**2 / (parts[0] ** 2 / (len(a) - 1) + parts[1] ** 2 / (len(b) - 1))
    return Estimate(value, math.sqrt(total), float(df))


def paired_difference(a: Sequence[float], b: Sequence[float]) -> Estimate:
    """The mean of `a - b`, pair by pair, both `[pairs]`: for a shared prefix, or a changed precision.

    Raises:
        AnalysisError: values that are not finite, or no pairs.
    """
    a, b = _finite(a), _finite(b)
    if len(a) != len(b):
        raise AnalysisError(f"pairs are needed, not {len(a)} and {len(b)} runs")
    return mean(a - b)


def blocked_difference(
    a: Sequence[float], a_blocks: Sequence[int], b: Sequence[float], b_blocks: Sequence[int]
) -> Estimate:
    """The difference of two arms whose runs are tested on shared blocks of images (folds).

    Least squares with an effect of the arm and one of each block; what is left over is the noise.

    Args:
        a, b: values `[runs]`.
        a_blocks, b_blocks: the block of each run, `[runs]`.

    Raises:
        AnalysisError: values that are not finite, or a block for each run is missing.
    """
    a, b = _finite(a), _finite(b)
    if len(a) != len(a_blocks) or len(b) != len(b_blocks):
        raise AnalysisError("a block for each run is needed")
    if not (len(a) and len(b)):
        return NOTHING
    blocks = np.concatenate([a_blocks, b_blocks])
    known = np.unique(blocks)
    design = np.column_stack([np.repeat([1.0, 0.0], (len(a), len(b))), blocks[:, None] == known])
    values = np.concatenate([a, b])
    fitted, _, rank, _ = np.linalg.lstsq(design, values, rcond=None)
    df = len(values) - rank
    if rank < design.shape[1]:
        raise AnalysisError("the two arms share no block")
    if df < 1:
        return Estimate(float(fitted[0]), math.nan, 0)
    variance = ((values - design @ fitted) ** 2).sum() / df
    error = math.sqrt(variance * np.linalg.inv(design.T @ design)[0, 0])
    return Estimate(float(fitted[0]), error, int(df))


def prediction(values: Sequence[float], pooled: tuple[float, int] | None = None) -> Estimate:
    """What one further run would be: its interval is `mean +- t s sqrt(1 + 1/n)`.

    This is what a single published number of somebody else's is held against.

    Args:
        values: `[runs]`.
        pooled: as for `difference`; without it the values' own standard deviation.
    """
    values = _finite(values)
    if len(values) < 2 and not (pooled and len(values)):
        return Estimate(float(values[0]) if len(values) else math.nan, math.nan, 0)
    sd, df = pooled or (float(values.std(ddof=1)), len(values) - 1)
    return Estimate(float(values.mean()), sd * math.sqrt(1 + 1 / len(values)), df)


def prediction_of_difference(
    a: Sequence[float], b: Sequence[float], pooled: tuple[float, int] | None = None
) -> Estimate:
    """What the difference of two further runs would be, one an arm: for a pair of somebody else's single runs.

    Args:
        a, b: values `[runs]` of two arms.
        pooled: as for `difference`.
    """
    return difference_of_estimates(prediction(a, pooled), prediction(b, pooled), pooled[1] if pooled else None)


def difference_of_estimates(a: Estimate, b: Estimate, df: float | None = None) -> Estimate:
    """The difference of two independent estimates, with Welch's degrees of freedom.

    Args:
        a, b: the estimates.
        df: degrees of freedom, where both errors come from one standard deviation.
    """
    value = a.value - b.value
    if not min(a.df, b.df) > 0:
        return Estimate(value, math.nan, 0)
    squares = a.error**2, b.error**2
    if df is None:
        parts = sum(square**2 / some.df for square, some in zip(squares, (a, b), strict=True))
        df = sum(squares) ** 2 / parts if parts else a.df + b.df
    return Estimate(value, math.sqrt(sum(squares)), df)


def verdict(found: Estimate, margin: float) -> str:
    """What a difference says, by a margin named beforehand: `equivalent`, `differs` or `not resolved`.

    * `equivalent`: the 90 % interval lies inside `+-margin` (two one-sided tests at 5 %).
    * `differs`: the 95 % interval excludes 0 and the estimate lies beyond the margin.
    * `not resolved`: anything else, and whatever has no interval.

    Args:
        found: the difference.
        margin: above 0, in the same unit.
    """
    low, high = found.interval(0.90)
    if -margin < low and high < margin:
        return "equivalent"
    low, high = found.interval()
    if (low > 0 or high < 0) and abs(found.value) > margin:
        return "differs"
    return "not resolved"


def runs_to_resolve(sd_a: float, sd_b: float, margin: float, power: float = 0.8, most: int = 100_000) -> int:
    """Runs an arm with which two arms that do not differ would be found equivalent within `margin`.

    Args:
        sd_a, sd_b: standard deviations between runs.
        margin: as for `verdict`.
        power: the probability of that verdict, when the true difference is 0.
        most: the answer for what would need more.
    """
    from scipy import stats

    for runs in range(2, most):
        df = 2 * (runs - 1)
        error = math.sqrt((sd_a**2 + sd_b**2) / runs)
        if error == 0:
            return runs
        # Both one-sided tests must reject; at a true difference of 0 they do so together with this probability.
        if 2 * stats.nct.cdf(-stats.t.ppf(0.95, df), df, -margin / error) - 1 >= power:
            return runs
    return most


@dataclass(frozen=True)
class Resamples:
    """Resamples of runs with replacement: how often each run is in each, and how probable the resample is.

    Attributes:
        counts: `[resamples, runs]`, each row's sum is the number of runs.
        weights: `[resamples]`, their sum is 1.
    """

    counts: np.ndarray
    weights: np.ndarray

    def means(self, values: np.ndarray) -> np.ndarray:
        """The mean over runs of `values` `[..., runs]` in every resample: `[..., resamples]`."""
        return values @ (self.counts.T / self.counts.shape[1])


def resamples(runs: int, blocks: Sequence[int] | None = None, draws: int = DRAWS) -> Resamples:
    """Every resample of up to `EXACT_RUNS` runs with its probability; of more runs some draws, always the same.

    Five runs have 126 different resamples: to list them is exact, and cheaper than to draw thousands.

    Args:
        runs: how many there are.
        blocks: the block of each run, where runs are resampled within their block only.
        draws: how many, where not all are listed.
    """
    if blocks is not None and len(set(blocks)) > 1:
        rng, counts = np.random.default_rng(0), np.zeros((draws, runs), dtype=int)
        for block in sorted(set(blocks)):
            inside = np.flatnonzero(np.asarray(blocks) == block)
            counts[:, inside] = rng.multinomial(len(inside), np.full(len(inside), 1 / len(inside)), draws)
        return Resamples(counts, np.full(draws, 1 / draws))
    if runs > EXACT_RUNS:
        counts = np.random.default_rng(0).multinomial(runs, np.full(runs, 1 / runs), draws)
        return Resamples(counts, np.full(draws, 1 / draws))
    chosen = combinations_with_replacement(range(runs), runs)
    counts = np.array([np.bincount(which, minlength=runs) for which in chosen])
    ways = np.array([math.factorial(runs) / math.prod(map(math.factorial, row)) for row in counts.tolist()])
    return Resamples(counts, ways / runs**runs)


def quantiles(values: np.ndarray, weights: np.ndarray, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """The central interval of weighted values `[n]`, each end one of them; infinite ones count, NaN are left out."""
    kept = ~np.isnan(values)
    if not kept.any():
        return math.nan, math.nan
    values, weights = values[kept], weights[kept]
    order = np.argsort(values, kind="stable")
    reached = np.cumsum(weights[order]) / weights.sum()
    tail = (1 - confidence) / 2
    # A share that equals the tail in exact arithmetic may fall short of it by a rounding error.
    ends = (np.searchsorted(reached, share - 1e-12) for share in (tail, 1 - tail))
    return tuple(float(values[order][min(end, len(values) - 1)]) for end in ends)


def shares(values: np.ndarray, weights: np.ndarray) -> dict[float, float]:
    """The distribution of weighted values `[n]`: each value's share, in increasing order."""
    return {float(value): float(weights[values == value].sum()) for value in np.unique(values)}
