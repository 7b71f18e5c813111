"""Rules that read one learning rate off a ramp: those of three libraries, the paper's, and this project's.

Each is written from its source's own definition, smoothing, end and trimming included, so that the same ramp can be
put before all of them. `RULES` has them by name; to add one, write a function and put it there.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from ..range_test.reading import (
    CLEAR,
    NO_RISE,
    TOO_EARLY,
    best_rate,
    diverged_as_chance,
    evaluated,
    points_and_runs,
    suggest_bounds,
    without_holes,
)
from ..statistics import AnalysisError

ROWS = 50  # into which this project's rules and the paper's divide a ramp
SLIDE = 15  # iterations between the two ends of fastai's sliding interval
BETA = 0.98  # of the exponential average that smooths a loss
LEAST_ITERATIONS = 100  # of a ramp: on shorter ones nothing is learnt before the average has settled
NO_RISE_OF_ACCURACY = (
    "the accuracy does not rise clear of its noise: let the ramp be longer, validate on more images, or leave it out"
)
PEAK_EARLY = "the accuracy is highest at the ramp's start: let it start lower (min_lr)"
NO_FALL = "the accuracy does not fall again by the last learning rate: let the ramp end higher (max_lr)"
LEAST_EVALUATIONS = 10  # of the accuracy: a mean of five has to rise and fall


@dataclass(frozen=True)
class Rule:
    """A rule, and where it is from.

    Attributes:
        rate: given the rates of a ramp and what was measured at them, both `[points]`, NaN from where it diverged: the
            rate suggested, NaN for no answer.
        source: who has it.
        of: what it reads: the training `loss` of every iteration, or the `accuracy` of some 50 rows.
    """

    rate: Callable[[np.ndarray, np.ndarray], float]
    source: str
    of: str = "loss"

    def __call__(self, lr: np.ndarray, values: np.ndarray) -> float:
        """The rate suggested, NaN for no answer; arrays as `one_curve` takes them."""
        try:
            lr, values = one_curve(lr, values, self.of)
            rate = math.nan if np.isnan(values).all() else self.rate(lr, values)
        except AnalysisError:
            return math.nan
        return float(rate) if np.isfinite(rate) and rate > 0 else math.nan


def one_curve(lr: np.ndarray, values: np.ndarray, name: str) -> tuple[np.ndarray, np.ndarray]:
    """A ramp's rates and what was measured at them, both `[points]`; NaN in no place but its end, where it diverged.

    Args:
        lr: increasing, `[points]`.
        values: `[points]`, or `[points, runs]`, of which the mean is taken. A loss that is missing between others, as
            where a batch was lost, is put on the line between its neighbours; the point of such an accuracy is left
            out, as it is not measured in every iteration.
        name: `loss` or `accuracy`.

    Raises:
        AnalysisError: arrays that do not fit together, or rates that do not increase.
    """
    lr, values = points_and_runs(lr, values, name)
    if name == "accuracy":
        there = evaluated(values)
        lr, values = lr[there], values[there]
    return lr, without_holes(values).mean(axis=1)


def _averaged(loss: np.ndarray, ahead: int = 0) -> np.ndarray:
    """The exponential average of `loss` `[points]`, freed of its start at 0 (as if `ahead` points more had come)."""
    out, average = np.empty(len(loss)), 0.0
    for index, value in enumerate(loss):
        average = BETA * average + (1 - BETA) * value
        out[index] = average / (1 - BETA ** (index + 1 + ahead))
    return out


def _stopped(loss: np.ndarray, factor: float, first: int = 0) -> int:
    """How many points there are up to the first that exceeds `factor` times the least before it.

    Raises:
        AnalysisError: a loss below zero, where so many times the least is less than it.
    """
    lowest = math.inf
    for index, value in enumerate(loss):
        if value < 0:
            raise AnalysisError("this rule counts in multiples of the least loss, which must not be below zero")
        if index >= first and value > factor * lowest:
            return index + 1
        lowest = min(lowest, value)
    return len(loss)


def _fastai(lr: np.ndarray, loss: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What fastai's rules are given: without the first tenth of the ramp and the last five points."""
    smooth = _averaged(loss)
    end = _stopped(smooth, 4)
    kept = slice(len(loss) // 10, max(0, end - 5))
    lr, smooth = lr[kept], smooth[kept]
    lost = np.flatnonzero(np.isnan(smooth))
    end = lost[0] if len(lost) else len(smooth)
    return lr[:end], smooth[:end]


def fastai_valley(lr: np.ndarray, loss: np.ndarray) -> float:
    """In the middle third of the longest valley: half of it past its first third.

    The valley is the longest falling subsequence, as long ago as its length reaches. Source: fastai,
    callback/schedule.py, `valley`.
    """
    lr, loss = _fastai(lr, loss)
    lengths = np.ones(len(loss), dtype=int)
    start = end = 0
    for point in range(1, len(loss)):
        higher = lengths[:point][loss[:point] > loss[point]]
        lengths[point] = 1 + (higher.max() if len(higher) else 0)
        if lengths[point] > lengths[end]:
            end, start = point, point - lengths[point]
    third = (end - start) / 3
    return lr[start + int(third) + int(third / 2)] if len(lr) else math.nan


def fastai_slide(lr: np.ndarray, loss: np.ndarray) -> float:
    """An interval slides down from the highest rate until the slopes at its two ends are alike.

    Source: fastai, callback/schedule.py, `slide`, with its defaults (15 points, 0.005).
    """
    lr, loss = _fastai(lr, loss)
    if len(loss) <= SLIDE:
        return math.nan
    slope = np.gradient(loss)
    right, found = len(loss) - 1, lr[-1 - SLIDE]
    while right >= SLIDE and abs(slope[right] - slope[right - SLIDE]) > 0.005:
        found = lr[right - SLIDE]
        right -= 1
    return found


def fastai_minimum(lr: np.ndarray, loss: np.ndarray) -> float:
    """A tenth of the rate of the lowest smoothed loss. Source: fastai, callback/schedule.py, `minimum`."""
    lr, loss = _fastai(lr, loss)
    return lr[loss.argmin()] / 10 if len(lr) else math.nan


def fastai_steep(lr: np.ndarray, loss: np.ndarray) -> float:
    """Where the smoothed loss falls most steeply over log rate. Source: fastai, callback/schedule.py, `steep`."""
    lr, loss = _fastai(lr, loss)
    return lr[(np.diff(loss) / np.diff(np.log(lr))).argmin()] if len(lr) > 1 else math.nan


def _lightning(loss: np.ndarray) -> np.ndarray:
    """Lightning's smoothed losses, to where it stops; its count of steps is one ahead, which is part of its rule."""
    smooth = _averaged(loss, ahead=1)
    return smooth[: _stopped(smooth, 4, first=1)]


def lightning(lr: np.ndarray, loss: np.ndarray) -> float:
    """Where the slope over the *rate* is steepest. Source: Lightning from 2.5.3 on, tuner/lr_finder.py."""
    smooth = _lightning(loss)[10:-1]
    lr, smooth = lr[10 : 10 + len(smooth)][np.isfinite(smooth)], smooth[np.isfinite(smooth)]
    return lr[np.gradient(smooth, lr).argmin()] if len(smooth) > 1 else math.nan


def lightning_per_step(lr: np.ndarray, loss: np.ndarray) -> float:
    """Where the slope over the iterations is steepest. Source: Lightning up to 2.5.2, tuner/lr_finder.py."""
    smooth = _lightning(loss)[10:-1]
    smooth = smooth[np.isfinite(smooth)]
    return lr[10 + np.gradient(smooth).argmin()] if len(smooth) > 1 else math.nan


def lr_finder(lr: np.ndarray, loss: np.ndarray) -> float:
    """Where the smoothed loss falls most steeply over the iterations.

    Source: pytorch-lr-finder, `LRFinder.range_test` (smooth_f 0.05, diverge_th 5), `plot` (skip_start 10, skip_end 5).
    """
    smooth = np.array(loss, dtype=float)
    for index in range(1, len(smooth)):
        smooth[index] = 0.05 * smooth[index] + 0.95 * smooth[index - 1]
    smooth = smooth[: _stopped(smooth, 5)][10:-5]
    # With a NaN among the slopes numpy's argmin is the NaN: the package would suggest the rate of the divergence.
    return lr[10 + np.gradient(smooth).argmin()] if len(smooth) > 1 else math.nan


def in_rows(lr: np.ndarray, loss: np.ndarray, rows: int = ROWS) -> tuple[np.ndarray, np.ndarray]:
    """A ramp's iterations as `range_test` would have put them down in rows: last rate and mean loss of each."""
    every = max(1, len(loss) // rows)
    ends = [*range(every, len(loss), every), len(loss)]
    starts = [0, *ends[:-1]]
    return lr[np.array(ends) - 1], np.array([loss[a:b].mean() for a, b in zip(starts, ends, strict=True)])


def lowest_loss(lr: np.ndarray, loss: np.ndarray) -> float:
    """The rate of the lowest smoothed loss, in some 50 rows of the ramp. Source: this project, after best_lr."""
    return best_rate(*in_rows(lr, loss)).lr


def half_lowest_loss(lr: np.ndarray, loss: np.ndarray) -> float:
    """Half of the rate of the lowest smoothed loss. Source: this project's README."""
    return lowest_loss(lr, loss) / 2


def accuracy_peak(lr: np.ndarray, accuracy: np.ndarray) -> float:
    """The rate of the highest accuracy, a centred mean of five rows: where it "starts to fall".

    Source: the paper, 3.3, its upper bound, which is read by eye there; this is a mechanical stand-in.
    """
    smooth = pd.Series(diverged_as_chance(accuracy[:, None])[:, 0]).rolling(5, center=True, min_periods=1).mean()
    return lr[int(smooth.argmax())] if smooth.notna().all() else math.nan


def third_of_peak(lr: np.ndarray, accuracy: np.ndarray) -> float:
    """A third of `accuracy_peak`. Source: the paper, 3.3, its rule of thumb for the lower bound."""
    return accuracy_peak(lr, accuracy) / 3


def upper_bound(lr: np.ndarray, accuracy: np.ndarray) -> float:
    """`suggest_bounds`' upper bound, on an exponential ramp. Source: this project, after the paper's 3.3."""
    return suggest_bounds(lr, accuracy, log=True).max_lr


def mean_of_bounds(lr: np.ndarray, accuracy: np.ndarray) -> float:
    """The middle of `suggest_bounds`' range, the mean rate of a cycle. Source: this project."""
    found = suggest_bounds(lr, accuracy, log=True)
    return (found.base_lr + found.max_lr) / 2


RULES: dict[str, Rule] = {
    "best_rate": Rule(lowest_loss, "this project"),
    "best_rate / 2": Rule(half_lowest_loss, "this project"),
    "suggest_bounds, max_lr": Rule(upper_bound, "this project", "accuracy"),
    "suggest_bounds, mean": Rule(mean_of_bounds, "this project", "accuracy"),
    "accuracy peak": Rule(accuracy_peak, "the paper, 3.3", "accuracy"),
    "accuracy peak / 3": Rule(third_of_peak, "the paper, 3.3", "accuracy"),
    "fastai minimum": Rule(fastai_minimum, "fastai"),
    "fastai valley": Rule(fastai_valley, "fastai"),
    "fastai steep": Rule(fastai_steep, "fastai"),
    "fastai slide": Rule(fastai_slide, "fastai"),
    "Lightning": Rule(lightning, "Lightning from 2.5.3 on"),
    "Lightning, per step": Rule(lightning_per_step, "Lightning up to 2.5.2"),
    "pytorch-lr-finder": Rule(lr_finder, "pytorch-lr-finder"),
}


#: What `suggest_rate` divides by, for each schedule: chosen on the digits tasks of notebook 9, ramps of 400 iterations.
DIVISORS = {"constant": 10, "linear": 5, "cycle": 7}


def _lowest(loss: np.ndarray) -> int | None:
    """Where the exponential average of a loss `[points]` is least, but for the first tenth and the last five points.

    Returns:
        None where the loss is no number from the first tenth on.
    """
    measured = loss[: len(loss) - np.isfinite(loss[::-1]).argmax()] if np.isfinite(loss).any() else loss[:0]
    smooth = pd.Series(measured).ewm(alpha=1 - BETA).mean()
    kept = smooth.to_numpy()[len(loss) // 10 : max(0, len(loss) - 5)]
    return len(loss) // 10 + int(kept.argmin()) if len(kept) else None


def share_of_lowest(lr: np.ndarray, loss: np.ndarray, schedule: str, accuracy: np.ndarray | None = None) -> float:
    """`suggest_rate` without its refusals: a number for nearly every curve, NaN for no answer.

    For the benchmark, which counts what the rule costs on every ramp. Arguments as for `suggest_rate`.
    """
    if schedule not in DIVISORS:
        raise ValueError(f"schedule must be one of {', '.join(DIVISORS)}, not {schedule!r}")
    lr, loss = one_curve(lr, loss, "loss")
    at = _lowest(loss)
    share = math.nan if at is None else float(lr[at] / DIVISORS[schedule])
    if accuracy is None:
        return share
    return float(np.fmin(share, RULES["accuracy peak / 3"](*_some(lr, accuracy))))


def _some(lr: np.ndarray, accuracy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The rates at which accuracy was measured, and the accuracies; of many, some 50."""
    lr, accuracy = points_and_runs(lr, accuracy, "accuracy")
    accuracy = accuracy.mean(axis=1)
    measured = np.flatnonzero(np.isfinite(accuracy))
    if not len(measured):
        raise AnalysisError(
            "there is no finite accuracy here: give range_test a validation whose targets are classes, or an evaluate"
        )
    every = max(1, len(measured) // ROWS)
    measured = measured[every - 1 :: every]
    return lr[measured], accuracy[measured]


def suggest_rate(lr: np.ndarray, loss: np.ndarray, schedule: str, accuracy: np.ndarray | None = None) -> float:
    """A rate for a schedule, read off a ramp: give it the accuracies, too, where there are any.

    Of accuracies on images that do not train: a third of the rate where they peak, which is the paper's lower bound,
    but no more than a share of the rate where the smoothed loss is lowest. Where the loss says nothing, the accuracies
    are enough. Of the loss alone: that share. A constant rate must be safe to the end; one that falls to zero may start
    higher; a cycle's top lies between. The divisors also make up for the smoothing, which lags behind the ramp: they
    belong to ramps from 1e-6 to 10 that are measured in every iteration. What both ways cost:
    results/published/rate-finders.md.

    Of the loss alone there is an answer only where `best_rate` has one: where the loss falls clear of its noise, and
    rises again or diverges. Only differences count: a constant added to the loss changes nothing. That a fall of the
    loss is worth something on new data the loss cannot say: on labels that mean nothing it falls a little, too.

    Args:
        lr, loss: of every iteration, `[points]`, NaN from where the ramp diverged, as `range_test` gives them; losses
            `[points, runs]` are averaged. A point that is missing between others is put between its neighbours.
        schedule: `constant`, `linear` (to zero) or `cycle` (its top).
        accuracy: at the same iterations, 0 to 1, `[points]`, NaN where it was not measured. Of many, some 50 are read.

    Returns:
        The rate, above 0.

    Raises:
        ValueError: a schedule that is none of these.
        AnalysisError: arrays that do not fit together; accuracies that say nothing: fewer than ten of them, no rise
            clear of their noise, or a peak at either end. Without accuracies fewer than 100 finite losses, or more than
            half of them missing before the last one; a loss that says nothing. In a line that says why and what to do.

    Source: the paper, 3.3; this project for the shares.
    """
    rate = share_of_lowest(lr, loss, schedule, accuracy)
    if accuracy is not None:
        _check_peak(_some(lr, accuracy)[1], lost=not np.isfinite(points_and_runs(lr, loss, "loss")[1][-1]).all())
        return rate
    measured = np.isfinite(points_and_runs(lr, loss, "loss")[1])
    lr, loss = one_curve(lr, loss, "loss")
    if len(lr) < LEAST_ITERATIONS:
        raise AnalysisError(
            f"the loss of {LEAST_ITERATIONS} iterations or more is needed, each with its row, not {len(lr)} rows: let "
            "the ramp be longer, and do not set evaluate_every"
        )
    if np.isnan(loss).all():
        raise AnalysisError("there is no finite loss here")
    at = _lowest(loss)
    if at is None:
        raise AnalysisError("the loss is no number from the ramp's first tenth on: let it start lower (min_lr)")
    _check_measured(measured)
    best_rate(lr, loss)  # refuses a loss that does not fall, or does not rise again
    if at == len(lr) // 10 or rate < lr[0]:
        raise AnalysisError(TOO_EARLY)
    if at == len(lr) - 6:
        raise AnalysisError(NO_RISE)
    return rate


def _check_measured(measured: np.ndarray) -> None:
    """Refuse losses that are mostly missing, before the line between two of them is taken for a smooth curve.

    Args:
        measured: whether there is a finite loss, `[points, runs]`.
    """
    for run in measured.T:
        count, end = int(run.sum()), len(run) - int(run[::-1].argmax())
        if count < max(LEAST_ITERATIONS, end / 2):
            raise AnalysisError(
                f"only {count} of the first {end} losses are finite, at least {LEAST_ITERATIONS} and half of them are "
                "needed: look at the batches, or let the ramp be longer"
            )


def _check_peak(accuracy: np.ndarray, lost: bool) -> None:
    """Refuse accuracies `[points]` that do not rise, and fall again, in a mean of five, clear of their noise.

    Args:
        accuracy: of every evaluation until the ramp diverged.
        lost: whether it did: then the accuracy need not fall before.
    """
    if len(accuracy) < LEAST_EVALUATIONS:
        raise AnalysisError(f"{LEAST_EVALUATIONS} accuracies or more are needed, not {len(accuracy)}")
    smooth = pd.Series(accuracy).rolling(5, center=True, min_periods=1).mean().to_numpy()
    at = int(smooth.argmax())
    clear = CLEAR * (accuracy - smooth)[: at + 1].std(ddof=1) if at else 0.0
    if at < 2 and smooth[at] - smooth[-1] > clear:
        raise AnalysisError(PEAK_EARLY)
    if not smooth[at] - smooth[0] > clear:
        raise AnalysisError(NO_RISE_OF_ACCURACY)
    if not (lost or smooth[at] - smooth[at:].min() > clear):
        raise AnalysisError(NO_FALL)
