"""The learning rate range test (the paper, 3.3): run it on any model, and read bounds off its curve as numbers."""

from collections.abc import Callable, Iterable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from itertools import combinations

import numpy as np
import pandas as pd
from torch import Tensor, nn
from torch.optim import Optimizer

from modules.analysis import CONFIDENCE, AnalysisError, over_runs, percentiles
from modules.schedulers import RangeTestLR

LEAST_RISE = 0.01  # a rise of less than one point of accuracy is none


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
        evaluate_every: iterations between evaluations; `iterations / evaluate_every` of at least 20 is sensible.

    Returns:
        Columns `lr` (before any `lr_mult`), `train_loss` (mean since the last row), `accuracy` (NaN without
        `evaluate`); shorter when the loss stops being finite. `suggest_bounds` takes rate and accuracy, `best_rate`
        rate and loss.

    Raises:
        ValueError: rates, ramp or intervals that make no sense, or `batches` that are empty.

    Source: the paper, 3.3; coxy1989/clr for the linear ramp; best_lr for the exponential one.
    """
    if not 0 < evaluate_every <= iterations:
        raise ValueError(f"evaluate_every must be between 1 and iterations={iterations}, not {evaluate_every!r}")
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
        for iteration in range(1, iterations + 1):
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
    finally:
        optimizer.zero_grad()
        model.load_state_dict(before[0])
        optimizer.load_state_dict(before[1])
        _set_modes(given)
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


@dataclass(frozen=True)
class Bounds:
    """Learning rate bounds read off a range test, with bootstrap intervals over its runs (of fewer than five: NaN)."""

    base_lr: float
    max_lr: float
    base_low: float
    base_high: float
    max_low: float
    max_high: float


def suggest_bounds(lr: np.ndarray, accuracy: np.ndarray, log: bool = False) -> Bounds:
    """Read `base_lr` and `max_lr` off a range test.

    The accuracy, averaged over runs, is fitted by least squares with a continuous line of four straight pieces: flat,
    rising, and two free ones. `base_lr` is where the flat piece ends: accuracy starts to rise. `max_lr` is where the
    rising piece ends and the slope at least halves: accuracy slows, turns ragged or falls (the paper, 3.3). The joints
    are tried at all measured rates (at 50 of them where there are more), at least two apart. The intervals are the same
    fit on resampled runs; there are none with fewer than five runs, or when over one resample in forty has no rise. A
    `base_lr`, or an end of its interval, that is the first measured rate says only that accuracy rises from there on,
    if not from below: start the ramp lower.

    Args:
        lr: learning rates in increasing order, `[points]`.
        accuracy: accuracy at those rates, `[points]` or `[points, runs]`, 0 to 1.
        log: whether the ramp was exponential; pieces are then straight over log(lr).

    Raises:
        AnalysisError: fewer than 12 points, numbers that are not finite, or an accuracy that does not rise clear of
            its own noise.
    """
    lr = np.asarray(lr, dtype=float)
    accuracy = np.asarray(accuracy, dtype=float).reshape(len(lr), -1)
    if len(lr) < 12:
        raise AnalysisError(f"a range test needs at least 12 evaluations, this one has {len(lr)}")
    if not (np.isfinite(lr).all() and np.isfinite(accuracy).all() and (lr > 0).all() and (np.diff(lr) > 0).all()):
        raise AnalysisError("a range test needs finite accuracies at increasing positive learning rates")
    fit = _four_pieces(np.log(lr) if log else lr)
    base, top, rises = fit(accuracy.mean(axis=1))
    if not rises:
        raise AnalysisError("accuracy does not rise within the tested learning rates: test a wider range or for longer")

    @cache
    def rates(runs: tuple[int, ...]) -> tuple[float, float]:
        first, second, rises = fit(accuracy[:, runs].mean(axis=1))
        return (lr[first], lr[second]) if rises else (np.nan, np.nan)

    resampled = (over_runs(lambda runs, end=end: rates(runs)[end], accuracy.shape[1]) for end in (0, 1))
    intervals = [_interval(values) for values in resampled]
    return Bounds(float(lr[base]), float(lr[top]), *intervals[0], *intervals[1])


def _interval(values: np.ndarray) -> tuple[float, float]:
    """The percentiles of the resamples that rise; NaN when those that do not are too many to leave out."""
    rising = values[~np.isnan(values)]
    return percentiles(rising) if len(rising) >= len(values) * (1 + CONFIDENCE) / 2 else (np.nan, np.nan)


def _four_pieces(x: np.ndarray) -> Callable[[np.ndarray], tuple[int, int, bool]]:
    """Least squares with a flat, a rising and two free pieces over `x` `[points]`.

    Returns:
        A function of accuracies `[points]` giving the indices of the rising piece's two ends, and whether its height is
        clear of what the fit leaves over.
    """
    last = len(x) - 1
    candidates = np.unique(np.linspace(0, last, min(len(x), 50)).round().astype(int))
    joints = np.array([j for j in combinations(candidates, 3) if min(j[1] - j[0], j[2] - j[1], last - j[2]) >= 2])
    scaled = (x - x[0]) / (x[-1] - x[0])
    hinges = np.maximum(0, scaled[None, :, None] - scaled[joints][:, None, :])
    design = np.concatenate([np.ones_like(hinges[..., :1]), hinges], axis=2)
    solve = np.linalg.pinv(design)

    def fit(y: np.ndarray) -> tuple[int, int, bool]:
        weights = solve @ y
        left_over = ((np.einsum("mpk,mk->mp", design, weights) - y) ** 2).sum(axis=1)
        # The second piece rises, and what follows it at half its slope at the most: a straight rise is not cut in two.
        left_over[(weights[:, 1] <= 0) | (weights[:, 2] > -0.5 * weights[:, 1])] = np.inf
        best = left_over.argmin()
        first, second, _ = joints[best]
        height = weights[best, 1] * (scaled[second] - scaled[first])
        noise = np.sqrt(left_over[best] / (len(y) - 7))  # infinite when no piece rises
        return int(first), int(second), bool(height > max(4 * noise, LEAST_RISE))

    return fit


def bounds_table(runs: pd.DataFrame, log: bool = False) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The range test's curve and the bounds suggested from it.

    A run that diverged stands at its first accuracy, chance, from there on: that is the fall the test looks for.

    Args:
        runs: as `read_runs` gives them, of the policy `range_test`.
        log: whether the ramp was exponential.

    Returns:
        The curve (`lr`, `mean`, lowest run `low`, highest `high`) and the bounds (`bound`, `value`, `low`, `high`,
        `runs`).

    Raises:
        AnalysisError: no range test here, or no rise in it.
    """
    rates, accuracy = _accuracies(runs)
    found = suggest_bounds(rates.to_numpy(), accuracy.to_numpy(), log)
    bounds = pd.DataFrame(
        {
            "bound": ["base_lr", "max_lr"],
            "value": [found.base_lr, found.max_lr],
            "low": [found.base_low, found.max_low],
            "high": [found.base_high, found.max_high],
            "runs": accuracy.shape[1],
        }
    )
    return curve_of(runs), bounds


def curve_of(runs: pd.DataFrame) -> pd.DataFrame:
    """The range test's curve alone; arguments, errors and columns as for `bounds_table`."""
    rates, accuracy = _accuracies(runs)
    ends = {"mean": accuracy.mean(axis=1), "low": accuracy.min(axis=1), "high": accuracy.max(axis=1)}
    return pd.DataFrame({"lr": rates, **ends}).reset_index(drop=True)


def _accuracies(runs: pd.DataFrame) -> tuple[pd.Series, pd.DataFrame]:
    """Learning rate, and accuracy by seed, at each evaluation of the range tests among these runs."""
    tests = runs[runs.policy == "range_test"]
    if tests.empty:
        raise AnalysisError("no range test among these runs")
    accuracy = tests.pivot(index="iteration", columns="seed", values="val_acc")
    accuracy = accuracy.fillna(accuracy.iloc[0]).fillna(accuracy.iloc[0].min())
    return tests.groupby("iteration").lr.first(), accuracy


@dataclass(frozen=True)
class BestRate:
    """The rate of the least training loss in a sweep, with a bootstrap interval over runs (of fewer than five: NaN)."""

    lr: float
    low: float
    high: float


def best_rate(lr: np.ndarray, loss: np.ndarray, window: int = 5) -> tuple[BestRate, np.ndarray]:
    """The rate at which a sweep's smoothed training loss, averaged over runs, is smallest.

    Args:
        lr: learning rates in increasing order, `[points]`.
        loss: training loss at those rates, `[points]` or `[points, runs]`; NaN from where a run has ended.
        window: points of the centred mean that smooths it; near both ends as many as there are.

    Returns:
        The rate, and the smoothed mean loss `[points]`, NaN where some run had ended.

    Raises:
        AnalysisError: no point that all runs reached, a loss that does not fall clear of its own noise, or one whose
            least lies at an end of the sweep.

    Source: best_lr. The rate is a place to start. Where the loss rises steeply behind it, it is near the edge of
    divergence; with batch normalisation the loss can stay almost as low at many times that rate.
    """
    lr = np.asarray(lr, dtype=float)
    loss = pd.DataFrame(np.asarray(loss, dtype=float).reshape(len(lr), -1))
    if not loss.notna().all(axis=1).any():
        raise AnalysisError("no learning rate of the sweep was reached by every run: start it at a smaller one")

    def smooth(runs: Sequence[int]) -> np.ndarray:
        mean = loss[list(runs)].mean(axis=1, skipna=False)
        return mean.rolling(window, center=True, min_periods=1).mean().where(mean.notna()).to_numpy()

    def best(runs: Sequence[int]) -> float:
        return lr[np.nanargmin(smooth(runs))]

    whole = smooth(loss.columns)
    at = np.nanargmin(whole)
    noise = (loss.mean(axis=1) - whole)[: at + 1].std()  # of what divergence does afterwards nothing is asked
    if not (at > 0 and whole[0] - whole[at] > 4 * noise):
        raise AnalysisError("the loss does not fall clear of its noise: sweep other learning rates, or for longer")
    if at >= len(lr) - window // 2 and not np.isnan(whole[-1]):
        raise AnalysisError("the loss is least at the last learning rates of the sweep: let it end higher")
    return BestRate(float(lr[at]), *percentiles(over_runs(best, loss.shape[1]))), whole
