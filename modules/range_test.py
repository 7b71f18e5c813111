"""The learning rate range test (the paper, 3.3): run it on any model, and read bounds off its curve as numbers."""

from collections.abc import Callable, Iterable
from copy import deepcopy
from dataclasses import dataclass, field
from itertools import combinations

import numpy as np
import pandas as pd
from torch import Tensor, nn
from torch.optim import Optimizer
from tqdm import tqdm

from modules.schedulers import RangeTestLR
from modules.statistics import CONFIDENCE, AnalysisError, Resamples, quantiles, resamples

LARGEST_RATE = 1e36  # beyond it a rate does not fit into float32, whatever the optimizer divides it by
LEAST_RISE = 0.01  # a rise of less than one point of accuracy is none
MOST_POINTS = 50  # the fit tries every three of them
LEAST_RUNS = 5  # of fewer the bootstrap's interval is far too narrow
FITTED_TOGETHER = 64  # curves, which bounds the fit's memory


def range_test(
    model: nn.Module,
    optimizer: Optimizer,
    loss_fn: Callable[[Tensor, Tensor], Tensor],
    batches: Iterable[tuple[Tensor, Tensor]],
    evaluate: Callable[[nn.Module], float] | None,
    min_lr: float,
    max_lr: float,
    iterations: int,
    evaluate_every: int,
    ramp: str = "linear",
    stop_factor: float | None = None,
) -> pd.DataFrame:
    """Train while the learning rate climbs, and measure loss and accuracy on the way.

    Afterwards weights, buffers, modes and the optimizer are as they were, and there are no gradients. Random generators
    have moved on.

    Args:
        model: the network; trained in place, on whatever device it is on. Modules that are in evaluation mode while
            the model is in training mode stay in it.
        optimizer: over the model's parameters. All groups get the ramp's rate, times their `lr_mult` if they have one.
        loss_fn: called as `loss_fn(model(inputs), targets)`.
        batches: pairs of inputs and targets, e.g. a DataLoader; gone through again whenever it ends, and brought to the
            model's device.
        evaluate: given the model, its accuracy, 0 to 1; call `model.eval()` in it where that matters. None where the
            training loss is enough.
        min_lr, max_lr, ramp: as in `schedulers.RangeTestLR`.
        iterations: length of the ramp; the paper lets it run for several epochs.
        evaluate_every: iterations between rows and evaluations; `iterations / evaluate_every` of at least 20 is
            sensible.
        stop_factor: end when the training loss, as a mean of three rows, exceeds this many times the least such mean;
            None goes on while the loss is finite.

    Returns:
        One row every `evaluate_every` iterations and one at the end: `lr` (before any `lr_mult`), `train_loss` (mean
        since the last row), `accuracy` (NaN without `evaluate`). From where the run has diverged, by its loss or by
        `stop_factor`, loss and accuracy are NaN. `suggest_bounds` takes rate and accuracy, `best_rate` rate and loss.

    Raises:
        ValueError: rates, ramp, intervals or factor that make no sense, or `batches` that are empty.

    Source: the paper, 3.3; coxy1989/clr for the linear ramp; best_lr for the exponential one and for the early end.
    """
    if not 0 < evaluate_every <= iterations:
        raise ValueError(f"evaluate_every must be between 1 and iterations={iterations}, not {evaluate_every!r}")
    if stop_factor is not None and not stop_factor > 1:
        raise ValueError(f"stop_factor must be above 1, or None, not {stop_factor!r}")
    before = deepcopy((model.state_dict(), optimizer.state_dict()))
    given = _modes(model)
    if not model.training:
        model.train()
    modes = _modes(model)  # a BatchNorm that was frozen stays so
    device = next((parameter.device for parameter in model.parameters()), None)
    rows: list[tuple[float, float, float]] = []
    losses: list[float] = []
    try:
        scheduler = RangeTestLR(optimizer, min_lr, max_lr, iterations, ramp)
        stream = _endless(batches)
        for iteration in tqdm(range(1, iterations + 1), "range test", unit="it", leave=False, disable=None):
            _set_modes(modes)
            inputs, targets = (part.to(device) for part in next(stream))
            optimizer.zero_grad()
            loss = loss_fn(model(inputs), targets)
            if not loss.isfinite():
                break
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            scheduler.step()
            if iteration % evaluate_every == 0 or iteration == iterations:
                accuracy = evaluate(model) if evaluate else np.nan
                rows.append((scheduler.lr_at(iteration - 1), float(np.mean(losses)), accuracy))
                losses.clear()
                if stop_factor and climbed([row[1] for row in rows], stop_factor):
                    break
    finally:
        optimizer.zero_grad()
        model.load_state_dict(before[0])
        optimizer.load_state_dict(before[1])
        _set_modes(given)
    ends = [*range(evaluate_every, iterations, evaluate_every), iterations]
    rows += [(scheduler.lr_at(end - 1), np.nan, np.nan) for end in ends[len(rows) :]]
    return pd.DataFrame(rows, columns=["lr", "train_loss", "accuracy"])


def _modes(model: nn.Module) -> dict[nn.Module, bool]:
    return {module: module.training for module in model.modules()}


def _set_modes(modes: dict[nn.Module, bool]) -> None:
    for module, training in modes.items():
        module.training = training


def _endless(batches: Iterable[tuple[Tensor, Tensor]]) -> Iterable[tuple[Tensor, Tensor]]:
    while True:
        empty = True
        for batch in batches:
            empty = False
            yield batch
        if empty:
            raise ValueError(
                "batches is empty, or an iterator that can be gone through only once: pass a DataLoader or a list"
            )


def climbed(losses: list[float], factor: float) -> bool:
    """Whether the loss, as a mean of three rows, exceeds `factor` times the least such mean so far.

    Args:
        losses: mean training loss of each row so far.
        factor: above 1.
    """
    means = np.convolve(losses, np.ones(3) / 3, "valid") if len(losses) >= 3 else []
    return len(means) > 0 and bool(means[-1] > factor * min(means))


def diverged_as_chance(accuracy: np.ndarray) -> np.ndarray:
    """Accuracies `[points, runs]` where a run that ended early stands at its first accuracy, chance, from there on.

    That is the fall the range test looks for. A run without any accuracy gets the lowest first one of the others. NaN
    that are not at a run's end stay.
    """
    ended = np.isnan(accuracy[::-1]).cumprod(axis=0, dtype=bool)[::-1]
    first = accuracy[0]
    if not np.isnan(first).all():
        first = np.where(np.isnan(first), np.nanmin(first), first)
    return np.where(ended, first, accuracy)


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


def suggest_bounds(lr: np.ndarray, accuracy: np.ndarray, log: bool = False) -> Bounds:
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
            which counts as its first accuracy, chance: that is the fall the test looks for.
        log: whether the ramp was exponential; pieces are then straight over log(lr).

    Raises:
        AnalysisError: arrays that do not fit together, fewer than 12 points, numbers that are not finite, an accuracy
            that does not rise clear of its own noise, or one that still rises at the last rate.
    """
    lr, accuracy = _points_and_runs(lr, accuracy, "accuracy")
    if len(lr) < 12:
        raise AnalysisError(f"a range test needs at least 12 evaluations, this one has {len(lr)}")
    accuracy = diverged_as_chance(accuracy)
    if not np.isfinite(accuracy).all():
        raise AnalysisError("a range test needs finite accuracies, up to where a run diverges")
    given = x = np.log(lr) if log else lr
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
        raise AnalysisError("accuracy still rises at the last learning rate: let the ramp end higher")
    if not rises:
        raise AnalysisError("accuracy does not rise within the tested learning rates: test a wider range or for longer")
    intervals = ((np.nan, np.nan), (np.nan, np.nan))
    if accuracy.shape[1] >= LEAST_RUNS:
        drawn = resamples(accuracy.shape[1])
        *ends, rising = pieces.fit(drawn.means(accuracy))
        # Resamples without a rise are left out, unless they are too many for that.
        if drawn.weights[rising].sum() >= (1 + CONFIDENCE) / 2:
            intervals = [quantiles(lr[end[rising]], drawn.weights[rising]) for end in ends]
    return Bounds(float(lr[base]), float(lr[top]), *intervals[0], *intervals[1], np.interp(given, x, line))


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


def best_rate(lr: np.ndarray, loss: np.ndarray, window: int = 5) -> BestRate:
    """The rate at which a sweep's smoothed training loss, averaged over runs, is smallest.

    Args:
        lr: learning rates in increasing order, `[points]`.
        loss: training loss at those rates, `[points]` or `[points, runs]`; NaN from where a run has ended.
        window: points of the centred mean that smooths it, 1 or more; near both ends as many as there are.

    Raises:
        AnalysisError: arrays that do not fit together, no point that all runs reached, a loss that does not fall clear
            of its own noise, or one whose least lies at an end of the sweep.

    Source: best_lr. The rate is a place to start. Where the loss rises steeply behind it, it is near the edge of
    divergence; with batch normalisation the loss can stay almost as low at many times that rate.
    """
    lr, loss = _points_and_runs(lr, loss, "loss")
    if not window >= 1:
        raise AnalysisError(f"window={window!r}: at least one point is needed")
    if np.isnan(loss).any(axis=1).all():
        raise AnalysisError("no learning rate of the sweep was reached by every run: start it at a smaller one")

    def smooth(means: np.ndarray) -> np.ndarray:
        table = pd.DataFrame(means)
        return table.rolling(window, center=True, min_periods=1).mean().where(table.notna()).to_numpy()

    mean = loss.mean(axis=1)
    whole = smooth(mean[:, None])[:, 0]
    at = np.nanargmin(whole)
    noise = (mean - whole)[: at + 1].std(ddof=1)  # what divergence does afterwards is not asked
    if not (at > 0 and whole[0] - whole[at] > 4 * noise):
        raise AnalysisError("the loss does not fall clear of its noise: sweep other learning rates, or for longer")
    if at >= len(lr) - max(1, window // 2) and not np.isnan(whole[-1]):
        raise AnalysisError("the loss is least at the last learning rates of the sweep: let it end higher")
    interval = np.nan, np.nan
    if loss.shape[1] >= LEAST_RUNS:
        drawn = resamples(loss.shape[1])
        lowest = np.nanargmin(smooth(_means_where_all_are(loss, drawn)), axis=0)
        interval = quantiles(lr[lowest], drawn.weights)
    return BestRate(float(lr[at]), *interval, whole)


def _means_where_all_are(values: np.ndarray, drawn: Resamples) -> np.ndarray:
    """Means of `values` `[points, runs]` in each resample, NaN only where a run that is in it has none."""
    lost = np.isnan(values)
    means = drawn.means(np.where(lost, 0, values))
    means[drawn.means(lost) > 0] = np.nan
    return means


def _points_and_runs(lr: np.ndarray, values: np.ndarray, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Rates `[points]`, finite, positive and increasing, and what was measured at them, `[points, runs]`."""
    lr, values = np.asarray(lr, dtype=float), np.asarray(values, dtype=float)
    if not (lr.ndim == 1 and len(lr) and values.ndim in (1, 2) and len(values) == len(lr)):
        raise AnalysisError(
            f"lr [points] and {name} [points] or [points, runs] are needed, not {lr.shape} and {values.shape}"
        )
    if not (np.isfinite(lr).all() and (lr > 0).all() and (np.diff(lr) > 0).all()):
        raise AnalysisError("a range test needs increasing positive learning rates")
    return lr, values.reshape(len(lr), -1)
