"""Bounds and a rate, read off a range test as numbers (the paper, 3.3)."""

import math
from dataclasses import dataclass, field
from itertools import combinations
from numbers import Integral

import numpy as np
import pandas as pd
from numpy.lib.stride_tricks import sliding_window_view

from ..statistics import CONFIDENCE, AnalysisError, Resamples, quantiles, resamples

LEAST_RISE = 0.01  # a rise of less than one point of accuracy is none
MOST_POINTS = 50  # the fit tries every three of them
LEAST_RUNS = 5  # of fewer the bootstrap's interval is far too narrow
FITTED_RESAMPLES = 2_000  # of more than eight runs; the ends of an interval are measured rates, so more say no more
FITTED_TOGETHER = 64  # curves, which bounds the fit's memory
CLEAR = 4  # standard deviations of its noise, by which a loss must fall and rise
#: How far a loss must go beyond its own slow ups and downs. Of 100 random walks some five are taken for a ramp, of
#: losses of sorted batches two; of 100 ramps on digits and MNIST two are refused.
BEYOND = 14
WANDERS = (
    "the loss falls no further than it wanders anyway: shuffle the batches, see that the weights are trained, or make "
    "several range tests"
)
TOO_EARLY = "the loss is least near the ramp's start: let it start lower (min_lr)"
NO_RISE = "the loss does not rise again by the last learning rate: let the ramp end higher (max_lr)"


@dataclass(frozen=True)
class Bounds:
    """Learning rate bounds read off a range test, with bootstrap intervals over its runs (of fewer than five: NaN)."""

    base_lr: float
    max_lr: float
    base_low: float
    base_high: float
    max_low: float
    max_high: float
    fitted: np.ndarray = field(repr=False, compare=False)  # the four pieces' accuracy at the rates given, `[points]`


def suggest_bounds(
    lr: np.ndarray, accuracy: np.ndarray, log: bool | None = None, skip_start: int = 0, skip_end: int = 0
) -> Bounds:
    """Read `base_lr` and `max_lr` off a range test.

    The accuracy, averaged over runs, is fitted by least squares with a piecewise linear function of four segments:
    flat, rising, and two free ones. `base_lr` is where the flat piece ends: accuracy starts to rise. `max_lr` is where
    the rising piece ends and the slope at least halves: accuracy slows, turns ragged or falls (the paper, 3.3). The
    joints are tried at all measured rates, at least two apart; more than 50 rates are averaged in 50 groups first.
    Where a flat piece and one that rises to the end leave less than twice as much over, there is no knee and no bound.
    The intervals are the same fit on resampled runs, each resample once and with its probability; there are none with
    fewer than five runs, or when over one resample in forty has no rise. A `base_lr`, or an end of its interval, that
    is the first measured rate says only that accuracy rises from there on, if not from below: start the ramp lower.

    Args:
        lr: learning rates in increasing order, `[points]`.
        accuracy: accuracy at those rates, `[points]` or `[points, runs]`, 0 to 1; NaN from where a run has diverged,
            which counts as its first accuracy, chance: that is the fall the test looks for. Points between measured
            ones that are NaN in some run are left out.
        log: whether the ramp was exponential; pieces are then straight over log(lr). By default the rates' spacing
            says it.
        skip_start, skip_end: points to leave out at either end.

    Raises:
        AnalysisError: arrays that do not fit together, fewer than 12 points, numbers that are not finite, or not from 0
            to 1, an accuracy that does not rise clear of its own noise, or that has no knee: it still rises at the last
            rate, or noise hides where the rise ends.
    """
    if not isinstance(log, bool | np.bool_ | None):
        raise AnalysisError(f"log={log!r}: True, False or None is needed")
    lr, accuracy = points_and_runs(lr, accuracy, "accuracy", skip_start, skip_end)
    if np.isnan(accuracy).all():
        raise AnalysisError(
            "there is no finite accuracy here: give range_test a validation whose targets are classes, or an evaluate"
        )
    if np.nanmin(accuracy) < 0 or np.nanmax(accuracy) > 1:
        raise AnalysisError("accuracy must lie between 0 and 1: this may be a loss, or per cent")
    evaluations = evaluated(accuracy)
    accuracy = diverged_as_chance(accuracy)
    measured = evaluations & np.isfinite(accuracy).all(axis=1)
    if measured.sum() < 12:
        raise AnalysisError(f"a range test needs at least 12 evaluations, this one has {measured.sum()}")
    if log is None:
        log = exponential(lr)
    if log and lr[0] == 0:
        raise AnalysisError("a ramp that starts at 0 has no logarithm: log=False, or skip_start=1")
    given = np.log(lr) if log else lr
    lr, x, accuracy = lr[measured], given[measured], accuracy[measured]
    if len(x) > MOST_POINTS:
        starts = np.arange(MOST_POINTS) * len(x) // MOST_POINTS
        count = np.diff(starts, append=len(x))
        x, accuracy = np.add.reduceat(x, starts) / count, np.add.reduceat(accuracy, starts) / count[:, None]
        lr = np.exp(x) if log else x
    pieces = _FourPieces(x)
    mean = accuracy.mean(axis=1)
    (base,), (top,), (rises,) = pieces.fit(mean[:, None])
    line = pieces.line(mean, base, top)
    kneeless = _left_over_without_knee(x, mean)
    if np.isfinite(kneeless) and not (rises and ((line - mean) ** 2).sum() < kneeless / 2):
        raise AnalysisError(
            "accuracy has no knee that is clear of its noise: "
            "let the ramp end higher if accuracy still rises there, else make more runs"
        )
    if not rises:
        raise AnalysisError("accuracy does not rise within the tested learning rates: test a wider range or for longer")
    intervals = ((np.nan, np.nan), (np.nan, np.nan))
    if accuracy.shape[1] >= LEAST_RUNS:
        drawn = resamples(accuracy.shape[1], draws=FITTED_RESAMPLES)
        *ends, rising = pieces.fit(drawn.means(accuracy))
        # Resamples without a rise are left out, unless they are too many for that.
        if drawn.weights[rising].sum() >= (1 + CONFIDENCE) / 2:
            intervals = [quantiles(lr[end[rising]], drawn.weights[rising]) for end in ends]
    fitted = np.pad(np.interp(given, x, line), (skip_start, skip_end), constant_values=np.nan)
    return Bounds(float(lr[base]), float(lr[top]), *intervals[0], *intervals[1], fitted)


class _FourPieces:
    """Least squares with a flat, a rising and two free pieces over `x` `[points]`, the joints tried one and all.

    The designs do not depend on the curve, so their QR decompositions serve every curve: of a design `Q R` the sum of
    squares left over is `|y|^2 - |Q'y|^2`.
    """

    def __init__(self, x: np.ndarray) -> None:
        last = len(x) - 1
        triples = combinations(range(len(x)), 3)
        self.joints = np.array([j for j in triples if min(j[1] - j[0], j[2] - j[1], last - j[2]) >= 2])
        self.x = (x - x[0]) / (x[-1] - x[0])
        self.q, r = np.linalg.qr(self._design(self.joints))
        self.slopes = np.linalg.inv(r)[:, 1:3]  # from Q'y to the second piece's slope, and the third's less it

    def _design(self, joints: np.ndarray) -> np.ndarray:
        hinges = np.maximum(0, self.x[:, None] - self.x[joints][..., None, :])
        return np.concatenate([np.ones_like(hinges[..., :1]), hinges], axis=-1)

    def fit(self, curves: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The best joints of each of the `curves` `[points, curves]`.

        Returns:
            Where the rising piece begins and ends, as indices, and whether its height is clear of what the fit leaves
            over; each `[curves]`.
        """
        parts = [curves[:, start : start + FITTED_TOGETHER] for start in range(0, curves.shape[1], FITTED_TOGETHER)]
        return tuple(np.concatenate(found) for found in zip(*map(self._fit, parts), strict=True))

    def _fit(self, curves: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        centred = curves - curves.mean(axis=0)  # or the squares' difference loses its last digits
        projected = self.q.transpose(0, 2, 1) @ centred
        second, bend = (self.slopes @ projected).transpose(1, 0, 2)
        left_over = (centred**2).sum(axis=0) - (projected**2).sum(axis=1)
        # The second piece rises, and what follows it at half its slope at the most: a straight rise is not cut in two.
        left_over[(second <= 0) | (bend > -0.5 * second)] = np.inf
        best = left_over.argmin(axis=0)
        each = np.arange(curves.shape[1])
        begin, end, _ = self.joints[best].T
        height = second[best, each] * (self.x[end] - self.x[begin])
        # Infinite when no piece rises; a rounding error may leave less than nothing.
        noise = np.sqrt(np.maximum(left_over[best, each], 0) / (len(curves) - 7))
        return begin, end, height > np.maximum(4 * noise, LEAST_RISE)

    def line(self, curve: np.ndarray, begin: int, end: int) -> np.ndarray:
        """The fitted line `[points]` of one curve `[points]` whose rising piece is known."""
        designs = self._design(self.joints[(self.joints[:, :2] == (begin, end)).all(axis=1)])
        lines = (designs @ np.linalg.pinv(designs)) @ curve
        return lines[((lines - curve) ** 2).sum(axis=1).argmin()]


def _left_over_without_knee(x: np.ndarray, y: np.ndarray) -> float:
    """What a flat piece and one that rises to the end leave over, a sum of squares; infinite where nothing rises."""

    def fit(joint: int) -> float:
        hinge = np.maximum(0, x - x[joint])
        slope, level = np.polyfit(hinge, y, 1)
        left_over = ((slope * hinge + level - y) ** 2).sum()
        return left_over if slope * hinge[-1] > max(4 * np.sqrt(left_over / (len(y) - 3)), LEAST_RISE) else np.inf

    return min(fit(joint) for joint in range(len(x) - 2))


@dataclass(frozen=True)
class BestRate:
    """The rate of the lowest training loss in a sweep, with a bootstrap interval over runs (fewer than five: NaN)."""

    lr: float
    low: float
    high: float
    smoothed: np.ndarray = field(repr=False, compare=False)  # mean loss `[points]`, NaN where some run had ended


def best_rate(
    lr: np.ndarray, loss: np.ndarray, window: int | None = None, skip_start: int = 0, skip_end: int = 0
) -> BestRate:
    """The rate at which a sweep's smoothed training loss, averaged over runs, is smallest.

    Args:
        lr: learning rates in increasing order, `[points]`.
        loss: training loss at those rates, `[points]` or `[points, runs]`; NaN from where a run has ended. A point
            that is NaN between others is left out.
        window: points of the centred mean that smooths it, 1 or more; near both ends as many as there are. By default
            five, of more than 100 points a twentieth.
        skip_start, skip_end: points to leave out at either end.

    Raises:
        AnalysisError: arrays that do not fit together, no point that all runs reached, a loss that does not fall clear
            of its own noise or of its slow ups and downs (as of batches that are sorted, not shuffled), that is least
            in the ramp's first tenth, or that does not rise again behind its least.

    Source: best_lr. The rate is a place to start. Where the loss rises steeply behind it, it is near the edge of
    divergence; with batch normalisation the loss can stay almost as low at many times that rate.
    """
    lr, loss = points_and_runs(lr, loss, "loss", skip_start, skip_end)
    if window is None:
        window = max(5, len(lr) // 20)
    if not (isinstance(window, Integral) and not isinstance(window, bool) and window >= 1):
        raise AnalysisError(f"window={window!r}: at least one point is needed, as a whole number")
    if np.isnan(loss).any(axis=1).all():
        raise AnalysisError("no learning rate of the sweep was reached by every run: start it at a smaller one")

    mean = loss.mean(axis=1)
    reached = np.flatnonzero(np.isfinite(mean))
    # Of differences alone: a constant that is added to the loss changes nothing, not even its rounding.
    first = mean[reached[0]]
    mean = mean - first
    whole = _centred(mean[:, None], window)[:, 0]
    at = np.nanargmin(whole)
    # What divergence does afterwards is not asked. Five points are the measure for a longer mean, too.
    clear = CLEAR * pd.Series(mean - whole)[: at + 1].std() * math.sqrt(min(1, 5 / window))
    if not whole[reached[0]] - whole[at] > clear:  # not `<=`: the deviation of one point is NaN
        raise AnalysisError("the loss does not fall clear of its noise: sweep other learning rates, or for longer")
    diverges = reached[-1] < len(lr) - 2  # one point that is missing is a lost batch
    last = at > reached[-1] - max(1, window // 2)
    if not diverges and (last or not np.nanmax(whole[at:]) - whole[at] > clear):
        raise AnalysisError(NO_RISE)
    _check_wandering(mean, diverges)
    interval = np.nan, np.nan
    if loss.shape[1] >= LEAST_RUNS:
        drawn = resamples(loss.shape[1])
        lowest = np.nanargmin(_centred(_means_where_all_are(loss, drawn), window), axis=0)
        interval = quantiles(lr[lowest], drawn.weights)
    smoothed = np.pad(first + whole, (skip_start, skip_end), constant_values=np.nan)
    return BestRate(float(lr[at]), *interval, smoothed)


def _check_wandering(mean: np.ndarray, diverges: bool) -> None:
    """Refuse a loss `[points]` that may fall and rise by chance alone, its noise being slow.

    What neighbouring points have in common, no count of points averages away. There are two measures of it. One is how
    far the loss goes the wrong way within its fall, or its rise. The other is how far a random walk drifts in that time
    if its steps are the loss's own, before the least. Steps are measured at two scales, and the smaller counts: over a
    tenth of the ramp by their median, as on most ramps nothing is learnt yet in most of them; over a twentieth by their
    mean square, as a steady fall is little there. A walk's are the same at both. A move must exceed the drift, and its
    square the product of both measures, times `BEYOND`. Divergence has no size: there the fall must be twice as clear.

    Raises:
        AnalysisError: it may.
    """
    there = np.isfinite(mean)
    tenth, twentieth = max(3, len(mean) // 10), max(1, len(mean) // 20)
    loss = _centred(mean[there, None], max(5, twentieth))[:, 0]
    least = int(loss.argmin())
    if least < tenth:
        raise AnalysisError(TOO_EARLY)

    def steps(scale: int) -> np.ndarray:
        """Differences of neighbouring means of so many points, as steps of a walk from one point to the next."""
        means = _centred(mean[there, None], scale)[: least + 1, 0]
        return np.abs(means[scale:] - means[:-scale]) / math.sqrt((2 * scale + 1 / scale) / 3)

    # A normal number's median size is 0.6745 of its deviation.
    step = min(np.median(steps(tenth)) / 0.6745, math.sqrt((steps(twentieth) ** 2).mean()))
    loss = np.minimum(loss, loss[0])  # whatever divergence does above

    late = steps(twentieth)[-2 * tenth :]  # the rise is beside a bottom: large steps of a steep fall do not concern it
    late = min(step, math.sqrt((late**2).mean()))

    def clear(climb: np.ndarray, length: int, beyond: float, step: float) -> bool:
        move, back = climb[length] - climb[0], (np.maximum.accumulate(climb) - climb).max()
        drift = step * math.sqrt(max(tenth, length))
        return move > drift and move**2 > beyond * back * drift

    if not clear(loss[least::-1], least, 2 * BEYOND if diverges else BEYOND, step):  # a fall is a climb from behind
        raise AnalysisError(TOO_EARLY if least < 2 * tenth else WANDERS)
    if not (diverges or clear(loss[least:], int(loss[least:].argmax()), BEYOND, late)):
        raise AnalysisError(NO_RISE)


def _centred(values: np.ndarray, window: int) -> np.ndarray:
    """A centred mean of `values` `[points, curves]`; near both ends of as many as there are, NaN where one is missing.

    Each window is summed by itself: a running sum would forget all small values behind one of 1e20, as where a run
    diverges.
    """
    there = np.isfinite(values)
    ends = ((window // 2, window - 1 - window // 2), (0, 0))
    totals, counts = (
        sliding_window_view(np.pad(part, ends), window, axis=0).sum(axis=-1)
        for part in (np.where(there, values, 0.0), there)
    )
    return np.where(there, totals / np.maximum(counts, 1), np.nan)


def _means_where_all_are(values: np.ndarray, drawn: Resamples) -> np.ndarray:
    """Means of `values` `[points, runs]` in each resample, NaN only where a run that is in it has none."""
    lost = np.isnan(values)
    means = drawn.means(np.where(lost, 0, values))
    means[drawn.means(lost) > 0] = np.nan
    return means


def evaluated(values: np.ndarray) -> np.ndarray:
    """Which points of `values` `[points, runs]` were measured, or would have been had no run diverged: `[points]`.

    Where only every eighth point was measured, as in a ramp with a row an iteration, so it is after the last.
    """
    found = np.isfinite(values).any(axis=1)
    at = np.flatnonzero(found)
    if len(at):
        every = np.diff(at).min() if len(at) > 1 else 1
        found[at[-1] + every :: every] = True
    return found


def after_divergence(lr: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A curve whose rows end where its run diverged, with some of the NaN that `range_test` gives from there on.

    A run of the study has no rows from there on; read as they are, they look like a ramp that was too short.

    Args:
        lr: of an exponential ramp, `[points]`, two or more.
        values: `[points]` or `[points, runs]`.
    """
    lr, values = _numbers(lr, "lr"), _numbers(values, "values")
    more = max(2, len(lr) // 10)
    further = lr[-1] * (lr[-1] / lr[-2]) ** np.arange(1, more + 1)
    return np.append(lr, further), np.append(values, np.full((more, *values.shape[1:]), np.nan), axis=0)


def exponential(lr: np.ndarray) -> bool:
    """Whether the rates of a ramp `[points]` are spaced by a factor, not by a difference."""
    lr = np.asarray(lr, dtype=float)
    if len(lr) < 3 or lr[0] <= 0:
        return False
    steps = np.diff(lr), np.diff(np.log(lr))
    return bool(np.argmin([step.std() / step.mean() for step in steps]) == 1)


def diverged_as_chance(accuracy: np.ndarray) -> np.ndarray:
    """Accuracies `[points, runs]` where a run that ended early stands at its first accuracy, chance, from there on.

    That is the fall the range test looks for. A run without any accuracy gets the lowest first one of the others. NaN
    that are not at a run's end stay.
    """
    measured = np.isfinite(accuracy)
    ended = ~np.logical_or.accumulate(measured[::-1])[::-1]
    first = np.where(measured.any(axis=0), accuracy[measured.argmax(axis=0), np.arange(accuracy.shape[1])], np.nan)
    if not np.isnan(first).all():
        first = np.where(np.isnan(first), np.nanmin(first), first)
    return np.where(ended, first, accuracy)


def points_and_runs(
    lr: np.ndarray, values: np.ndarray, name: str, skip_start: int = 0, skip_end: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """The check of whatever reads a curve.

    Args:
        lr: learning rates `[points]`.
        values: what was measured at them, `[points]` or `[points, runs]`.
        name: of the values, for a message.
        skip_start, skip_end: points to leave out at either end.

    Returns:
        Rates `[points]`, finite and increasing, and the values `[points, runs]`; what is not finite there is NaN.

    Raises:
        AnalysisError: anything else.
    """
    lr, values = _numbers(lr, "lr"), _numbers(values, name)
    if not (lr.ndim == 1 and len(lr) and values.ndim in (1, 2) and len(values) == len(lr) and values.size):
        raise AnalysisError(
            f"lr [points] and {name} [points] or [points, runs] are needed, not {lr.shape} and {values.shape}"
        )
    if not (np.isfinite(lr).all() and (lr >= 0).all() and (np.diff(lr) > 0).all()):
        raise AnalysisError("a range test needs increasing positive learning rates")
    if len(lr) > 2 and (lr == lr.round()).all():
        raise AnalysisError("lr are whole numbers, as iterations are: the learning rates are needed")
    for side, skip in (("skip_start", skip_start), ("skip_end", skip_end)):
        if not isinstance(skip, Integral) or isinstance(skip, bool) or skip < 0:
            raise AnalysisError(f"{side}={skip!r}: a whole number of points is needed, 0 or more")
    if skip_start + skip_end >= len(lr):
        raise AnalysisError(f"{skip_start=}, {skip_end=}: no point is left of {len(lr)}")
    kept = slice(skip_start, len(lr) - skip_end)
    values = np.where(np.isfinite(values), values, np.nan)
    return lr[kept], values[kept].reshape(len(lr[kept]), -1)


def _numbers(values: object, name: str) -> np.ndarray:
    """Values as floats; NaN where one is masked, or missing.

    Raises:
        AnalysisError: what are no real numbers.
    """
    try:
        if isinstance(values, np.ma.MaskedArray):
            values = values.astype(float).filled(np.nan)
        elif isinstance(values, pd.Series | pd.DataFrame):
            values = values.to_numpy(dtype=float, na_value=np.nan)
        values = np.asarray(values)
        if values.dtype.kind in "biufO":
            return values.astype(float)
    except (TypeError, ValueError, RuntimeError):  # torch's, of a tensor that requires a gradient
        pass
    raise AnalysisError(f"{name} must be an array of numbers")


def without_holes(values: np.ndarray) -> np.ndarray:
    """Values `[points, runs]` where what is missing between two points is on the line between them.

    A batch was lost there. What is missing at a run's end stays missing: the run has diverged.
    """
    values, points = values.copy(), np.arange(len(values))
    for run in values.T:
        there = np.flatnonzero(np.isfinite(run))
        if len(there):
            holes = np.flatnonzero(np.isnan(run[: there[-1]]))
            run[holes] = np.interp(points[holes], there, run[there])
    return values
