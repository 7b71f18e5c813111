"""The learning rate range test (the paper, 3.3): run it on any model, and read bounds off its curve as numbers."""

import inspect
import math
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, nullcontext
from copy import deepcopy
from dataclasses import dataclass, field
from itertools import chain, combinations
from numbers import Integral

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer
from tqdm import tqdm

from modules.schedulers import RangeTestLR
from modules.statistics import CONFIDENCE, AnalysisError, Resamples, quantiles, resamples

LARGEST_RATE = 1e36  # beyond it a rate does not fit into float32, whatever the optimizer divides it by
LEAST_RISE = 0.01  # a rise of less than one point of accuracy is none
MOST_POINTS = 50  # the fit tries every three of them
LEAST_RUNS = 5  # of fewer the bootstrap's interval is far too narrow
FITTED_RESAMPLES = 2_000  # of more than eight runs; the ends of an interval are measured rates, so more say no more
FITTED_TOGETHER = 64  # curves, which bounds the fit's memory


def range_test(
    model: nn.Module,
    optimizer: Optimizer,
    loss_fn: Callable[[Tensor, Tensor], Tensor] | None = None,
    batches: Iterable = (),
    evaluate: Callable[[nn.Module], float] | None = None,
    min_lr: float = 1e-6,
    max_lr: float = 10.0,
    iterations: int = 400,
    evaluate_every: int | None = None,
    ramp: str = "exponential",
    stop_factor: float | None = None,
    *,
    forward: Callable[[nn.Module, object], Tensor] | None = None,
    validation: Iterable | None = None,
    accumulate: int = 1,
    autocast: torch.dtype | None = None,
    scaler: torch.amp.GradScaler | None = None,
    keep_ratios: bool = True,
) -> pd.DataFrame:
    """Train while the learning rate climbs, and measure loss and accuracy on the way.

    Afterwards everything is as it was, whether the test ended well or not: weights, buffers, modes, the optimizer and
    the scaler (where a rate is a tensor, the same tensor), gradients, and the random states of torch, numpy, Python and
    the DataLoader's generator. Only lazy modules do not return: they are initialised by the first batch.

    Args:
        model: the network; trained in place, on whatever device it is on. Modules that are in evaluation mode while
            the model is in training mode stay in it.
        optimizer: over the model's parameters. Groups with an `lr_mult` get the ramp's rate times it; else groups of
            different rates keep their ratios, and the largest follows the ramp.
        loss_fn: called as `loss_fn(model(*inputs), target)`; may have parameters of its own.
        batches: e.g. a DataLoader: pairs of an input and a target, or several inputs with the target last; an input
            that is a mapping becomes the model's keyword arguments. Brought to the model's device, however nested.
            Gone through again when they end; a generator must last for the whole ramp.
        evaluate: given the model, its accuracy, 0 to 1; call `model.eval()` in it where that matters. None where the
            training loss is enough.
        min_lr, max_lr, ramp: as in `schedulers.RangeTestLR`.
        iterations: length of the ramp; the paper lets it run for several epochs.
        evaluate_every: iterations between rows and evaluations; by default there are 50 rows.
        stop_factor: end when the training loss, as a mean of three rows, exceeds this many times the least such mean;
            None goes on while the loss is finite.
        forward: instead of `loss_fn`, for batches of any kind: `forward(model, batch)` is the loss.
        validation: batches as `batches`, in place of `evaluate`: at each row the mean loss over them and, where the
            targets are classes, the accuracy; in evaluation mode.
        accumulate: batches an iteration, whose gradients are averaged.
        autocast: the type of a forward pass under autocast, such as `torch.bfloat16`.
        scaler: of the gradients, where the type is `torch.float16`.
        keep_ratios: False gives all groups without an `lr_mult` the same rate.

    Returns:
        One row every `evaluate_every` iterations and one at the end: `iteration`, `lr` (before any `lr_mult`),
        `train_loss` (mean since the last row), `val_loss` (NaN without `validation`), `accuracy` (NaN without
        `validation` or `evaluate`). An iteration whose loss is not finite changes nothing and counts nowhere; from the
        first of two in a row, a validation that is not finite, or `stop_factor` on, the run has diverged, and the rest
        is NaN. `suggest_bounds` takes rate and accuracy, `best_rate` rate and loss.

    Raises:
        ValueError: rates, ramp, intervals or factor that make no sense; batches that are empty, too few or of a kind
            that needs a `forward`; an optimizer whose `step` needs a closure (LBFGS).

    Source: the paper, 3.3; coxy1989/clr for the linear ramp; best_lr for the exponential one and for the early end.
    """
    if evaluate_every is None:
        evaluate_every = max(1, iterations // 50)
    _check(model, optimizer, loss_fn, batches, forward, evaluate, validation)
    _check_lengths(iterations, evaluate_every, accumulate, stop_factor)
    # On an optimizer of its own: a scheduler would leave its marks on the user's.
    lr_at = RangeTestLR(torch.optim.SGD([torch.zeros(1)], lr=1.0), min_lr, max_lr, iterations, ramp).lr_at
    ratios = _ratios(optimizer, keep_ratios)
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))

    def measure(batch: object) -> tuple[Tensor, object, object]:
        """A batch's mean loss, and where there is no `forward` the outputs and targets it is of."""
        batch = _to(batch, device)
        with torch.autocast(device.type, autocast) if autocast else nullcontext():
            return (forward(model, batch), None, None) if forward else _measure(model, loss_fn, batch)

    rows: list[tuple[int, float, float, float, float]] = []
    with ExitStack() as afterwards:
        afterwards.callback(_random_states(batches, validation))
        forked = dict(devices=[]) if device.type == "cpu" else dict(devices=[device], device_type=device.type)
        afterwards.enter_context(torch.random.fork_rng(**forked))
        stream = _endless(batches, iterations * accumulate)
        if any(is_lazy(tensor) for tensor in chain(model.parameters(), model.buffers())):
            first = next(stream)
            _initialise(model, lambda: measure(first))
            stream = chain([first], stream)
        afterwards.callback(_contents([model, loss_fn], optimizer, scaler))
        if not model.training:
            model.train()
        modes = _modes(model)  # a BatchNorm that was frozen stays so
        total, count = 0.0, 0  # of the losses since the last row
        lost = False  # whether the last iteration's loss was not finite
        for iteration in tqdm(range(1, iterations + 1), "range test", unit="it", leave=False, disable=None):
            lr = lr_at(iteration - 1)
            if not lr * max(ratios) < LARGEST_RATE:
                break
            for group, ratio in zip(optimizer.param_groups, ratios, strict=True):
                _set_lr(group, lr * ratio)
            _set_modes(modes)
            optimizer.zero_grad()
            loss = _backward((measure(next(stream))[0] for _ in range(accumulate)), accumulate, scaler)
            if math.isfinite(loss):
                _step(optimizer, scaler)
                total, count, lost = total + loss, count + 1, False
            elif lost:  # a single batch may be at fault, not two in a row
                rows = [row for row in rows if row[0] < iteration - 1]
                break
            else:
                lost = True
            if iteration % evaluate_every == 0 or iteration == iterations:
                val_loss = accuracy = math.nan
                if validation is not None:
                    val_loss, accuracy = _validate(model, validation, measure)
                elif evaluate:
                    accuracy = float(evaluate(model))
                if not math.isfinite(val_loss if validation is not None else accuracy if evaluate else 0.0):
                    break
                rows.append((iteration, lr, total / count if count else math.nan, val_loss, accuracy))
                total, count = 0.0, 0
                if stop_factor and climbed([row[2] for row in rows if math.isfinite(row[2])], stop_factor):
                    break
    ends = [*range(evaluate_every, iterations, evaluate_every), iterations]
    rows += [(end, lr_at(end - 1), math.nan, math.nan, math.nan) for end in ends[len(rows) :]]
    return pd.DataFrame(rows, columns=["iteration", "lr", "train_loss", "val_loss", "accuracy"])


def _check(
    model: object,
    optimizer: object,
    loss_fn: object,
    batches: object,
    forward: object,
    evaluate: object,
    validation: object,
) -> None:
    if not isinstance(model, nn.Module):
        raise ValueError(f"model must be a torch.nn.Module, not {type(model).__name__}")
    if not isinstance(optimizer, Optimizer):
        raise ValueError(f"optimizer must be a torch.optim.Optimizer, not {type(optimizer).__name__}")
    trained = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    if not any(id(parameter) in trained for parameter in model.parameters() if parameter.requires_grad):
        raise ValueError("the optimizer trains none of the model's parameters: is it another model's?")
    needed = inspect.signature(optimizer.step).parameters.get("closure")
    if needed and needed.default is inspect.Parameter.empty:
        raise ValueError(
            f"{type(optimizer).__name__} calls a closure many times a step: the range test is for optimizers "
            "whose step needs none"
        )
    if (loss_fn is None) == (forward is None):
        raise ValueError("either a loss_fn(outputs, target) or a forward(model, batch) that gives the loss is needed")
    if isinstance(loss_fn, type):
        raise ValueError(f"loss_fn is a class: {loss_fn.__name__}() is a loss")
    if loss_fn is not None and not callable(loss_fn):
        raise ValueError(
            f"loss_fn must be a function, not {type(loss_fn).__name__}: the order is loss_fn, then batches"
        )
    if not isinstance(batches, Iterable) and not hasattr(batches, "__getitem__"):
        raise ValueError(f"batches must be e.g. a DataLoader, not {type(batches).__name__}")
    if evaluate is not None and validation is not None:
        raise ValueError("evaluate and validation are two ways to the same column: give one of them")
    if evaluate is not None and not callable(evaluate):
        raise ValueError("evaluate must be a function of the model; batches to evaluate on are called validation")
    if validation is not None and iter(validation) is validation:
        raise ValueError("validation can be gone through only once: pass a DataLoader or a list")


def _check_lengths(iterations: int, evaluate_every: int, accumulate: int, stop_factor: float | None) -> None:
    for name, value in (("iterations", iterations), ("accumulate", accumulate)):
        if not isinstance(value, Integral) or value < 1:
            raise ValueError(f"{name} must be a whole number above 0, not {value!r}")
    if not 0 < evaluate_every <= iterations:
        raise ValueError(f"evaluate_every must be between 1 and iterations={iterations}, not {evaluate_every!r}")
    if stop_factor is not None and not stop_factor > 1:
        raise ValueError(f"stop_factor must be above 1, or None, not {stop_factor!r}")


def _ratios(optimizer: Optimizer, keep: bool) -> list[float]:
    """What each group's rate is a multiple of the ramp's."""
    groups = optimizer.param_groups
    rates = [float(group["lr"]) for group in groups]
    if any("lr_mult" in group for group in groups):
        return [group.get("lr_mult", 1.0) for group in groups]
    return [rate / max(rates) for rate in rates] if keep and max(rates) > 0 else [1.0] * len(groups)


def _set_lr(group: dict, lr: float) -> None:
    """Set a group's rate; a tensor is filled, as compiled and captured optimizers hold on to theirs."""
    if isinstance(group["lr"], Tensor):
        group["lr"].fill_(lr)
    else:
        group["lr"] = lr


def _to(batch: object, device: torch.device) -> object:
    """A batch on a device, however its tensors are nested."""
    if hasattr(batch, "to"):
        return batch.to(device)
    if isinstance(batch, Mapping):
        return {key: _to(value, device) for key, value in batch.items()}
    if isinstance(batch, list | tuple):
        parts = [_to(part, device) for part in batch]
        return type(batch)(*parts) if hasattr(batch, "_fields") else type(batch)(parts)
    return batch


def _measure(model: nn.Module, loss_fn: Callable, batch: object) -> tuple[Tensor, object, object]:
    """Loss, outputs and target of a batch of inputs and a target."""
    if not isinstance(batch, list | tuple) or len(batch) < 2:
        raise ValueError(
            f"a batch is inputs and a target, not a {type(batch).__name__}: give a forward, such as "
            "forward=lambda model, batch: model(**batch).loss"
        )
    *inputs, target = batch
    if len(inputs) == 1 and isinstance(inputs[0], Mapping):
        outputs = model(**inputs[0])
    else:
        outputs = model(*(inputs[0] if len(inputs) == 1 and isinstance(inputs[0], list | tuple) else inputs))
    return loss_fn(outputs, target), outputs, target


def _backward(losses: Iterable[Tensor], count: int, scaler: torch.amp.GradScaler | None) -> float:
    """Accumulate the gradients of the mean of `count` losses, and return it; NaN as soon as one is not finite."""
    total = 0.0
    for loss in losses:
        if not (isinstance(loss, Tensor) and loss.numel() == 1):
            what = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
            raise ValueError(f"the loss must be a tensor of one number, not {what}")
        if not loss.isfinite():
            return math.nan
        mean = loss / count if count > 1 else loss
        (scaler.scale(mean) if scaler else mean).backward()
        total += mean.item()
    return total


def _step(optimizer: Optimizer, scaler: torch.amp.GradScaler | None) -> None:
    if scaler:
        scaler.step(optimizer)
        scaler.update()
    else:
        optimizer.step()


@torch.no_grad()
def _validate(model: nn.Module, validation: Iterable, measure: Callable) -> tuple[float, float]:
    """Mean loss over all batches, and accuracy; NaN where the targets are no classes."""
    model.eval()
    total, size, right, labels = 0.0, 0, 0, 0
    for batch in validation:
        loss, outputs, target = measure(batch)
        count = len(target) if isinstance(target, Tensor) and target.ndim else 1
        total, size = total + count * loss.item(), size + count
        classes = isinstance(outputs, Tensor) and isinstance(target, Tensor) and not target.is_floating_point()
        if classes and outputs.ndim == target.ndim + 1:
            right, labels = right + (outputs.argmax(1) == target).sum().item(), labels + target.numel()
    if not size:
        raise ValueError("validation is empty")
    return total / size, right / labels if labels else math.nan


@torch.no_grad()
def _initialise(model: nn.Module, measure: Callable) -> None:
    """Give lazy modules their weights; in evaluation mode, so that no statistic of a BatchNorm has seen the batch."""
    modes = _modes(model)
    model.eval()
    try:
        measure()
    finally:
        _set_modes(modes)


def _random_states(*loaders: object) -> Callable[[], None]:
    """A function that puts numpy's, Python's and the loaders' random states back as they are now."""
    own, legacy = random.getstate(), np.random.get_state()
    owners = [owner for loader in loaders for owner in (loader, getattr(loader, "sampler", None))]
    generators = [getattr(owner, "generator", None) for owner in owners]
    states = [(found, found.get_state()) for found in generators if isinstance(found, torch.Generator)]

    def restore() -> None:
        random.setstate(own)
        np.random.set_state(legacy)
        for generator, state in states:
            generator.set_state(state)

    return restore


def _contents(modules: list, optimizer: Optimizer, scaler: torch.amp.GradScaler | None) -> Callable[[], None]:
    """A function that puts modules, optimizer, scaler and gradients back as they are now; gradients are none from here.

    Not by their `state_dict()`: that leaves out non-persistent buffers, and `load_state_dict` replaces tensors.
    """
    roots = [module for module in modules if isinstance(module, nn.Module)]
    parts = [module for root in roots for module in root.modules()]
    in_groups = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    parameters = list({id(p): p for p in [*in_groups, *(p for root in roots for p in root.parameters())]}.values())
    tensors = [_kept(parameter) for parameter in parameters]
    buffers = [(part, name, _kept(buffer)) for part in parts for name, buffer in dict(part._buffers).items()]
    extra = [
        (p, deepcopy(p.get_extra_state())) for p in parts if type(p).get_extra_state is not nn.Module.get_extra_state
    ]
    modes = {part: part.training for part in parts}
    groups = [
        (group, {key: _kept(value) for key, value in group.items() if key != "params"})
        for group in optimizer.param_groups
    ]
    state = {parameter: _kept(values) for parameter, values in optimizer.state.items()}
    scale = deepcopy(scaler.state_dict()) if scaler else None
    gradients = [(parameter, parameter.grad) for parameter in parameters]
    for parameter in parameters:
        parameter.grad = None

    def restore() -> None:
        for back in tensors:
            back()
        for part, name, back in buffers:
            part._buffers[name] = back()
        for part, values in extra:
            part.set_extra_state(values)
        _set_modes(modes)
        for group, values in groups:
            given = {key: back() for key, back in values.items()} | {"params": group["params"]}
            group.clear()
            group.update(given)
        optimizer.state.clear()
        optimizer.state.update({parameter: back() for parameter, back in state.items()})
        if scaler:
            scaler.load_state_dict(scale)
        for parameter, gradient in gradients:
            parameter.grad = gradient

    return restore


def _kept(value: object) -> Callable[[], object]:
    """A function that gives a value back with the contents it has now: the same tensors and dictionaries."""
    if isinstance(value, Tensor):
        contents = value.detach().clone()

        def back() -> Tensor:
            with torch.no_grad():
                return value.copy_(contents)

    elif isinstance(value, dict):
        kept = {key: _kept(entry) for key, entry in value.items()}

        def back() -> dict:
            entries = {key: entry() for key, entry in kept.items()}
            value.clear()
            value.update(entries)
            return value

    else:
        contents = deepcopy(value)

        def back() -> object:
            return contents

    return back


def _modes(model: nn.Module) -> dict[nn.Module, bool]:
    return {module: module.training for module in model.modules()}


def _set_modes(modes: dict[nn.Module, bool]) -> None:
    for module, training in modes.items():
        module.training = training


def _endless(batches: Iterable, needed: int) -> Iterator:
    """The batches again and again, `needed` of them at least."""
    given = 0
    while True:
        before = given
        for batch in batches:
            given += 1
            yield batch
        if given == before:
            raise ValueError(
                f"batches ended after {given} of {needed}, and can be gone through only once: pass a DataLoader, "
                "a list, or more of them"
                if given
                else "batches is empty"
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
            which counts as its first accuracy, chance: that is the fall the test looks for.
        log: whether the ramp was exponential; pieces are then straight over log(lr). By default the rates' spacing
            says it.
        skip_start, skip_end: points to leave out at either end.

    Raises:
        AnalysisError: arrays that do not fit together, fewer than 12 points, numbers that are not finite, an accuracy
            that does not rise clear of its own noise, or that has no knee: it still rises at the last rate, or noise
            hides where the rise ends.
    """
    lr, accuracy = _points_and_runs(lr, accuracy, "accuracy", skip_start, skip_end)
    if len(lr) < 12:
        raise AnalysisError(f"a range test needs at least 12 evaluations, this one has {len(lr)}")
    if np.isnan(accuracy).all():
        raise AnalysisError("there is no finite accuracy here: give range_test a validation, or an evaluate")
    accuracy = diverged_as_chance(accuracy)
    if not np.isfinite(accuracy).all():
        raise AnalysisError("a range test needs finite accuracies, up to where a run diverges")
    if log is None:
        steps = [np.diff(lr), np.diff(np.log(lr))] if lr[0] > 0 else []
        log = bool(steps) and np.argmin([step.std() / step.mean() for step in steps]) == 1
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


def best_rate(lr: np.ndarray, loss: np.ndarray, window: int = 5, skip_start: int = 0, skip_end: int = 0) -> BestRate:
    """The rate at which a sweep's smoothed training loss, averaged over runs, is smallest.

    Args:
        lr: learning rates in increasing order, `[points]`.
        loss: training loss at those rates, `[points]` or `[points, runs]`; NaN from where a run has ended.
        window: points of the centred mean that smooths it, 1 or more; near both ends as many as there are.
        skip_start, skip_end: points to leave out at either end.

    Raises:
        AnalysisError: arrays that do not fit together, no point that all runs reached, a loss that does not fall clear
            of its own noise, or one whose least lies at an end of the sweep.

    Source: best_lr. The rate is a place to start. Where the loss rises steeply behind it, it is near the edge of
    divergence; with batch normalisation the loss can stay almost as low at many times that rate.
    """
    lr, loss = _points_and_runs(lr, loss, "loss", skip_start, skip_end)
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
    noise = pd.Series(mean - whole)[: at + 1].std()  # what divergence does afterwards is not asked
    if not (at > 0 and whole[0] - whole[at] > 4 * noise):
        raise AnalysisError("the loss does not fall clear of its noise: sweep other learning rates, or for longer")
    if at >= len(lr) - max(1, window // 2) and not np.isnan(whole[-1]):
        raise AnalysisError("the loss is least at the last learning rates of the sweep: let it end higher")
    interval = np.nan, np.nan
    if loss.shape[1] >= LEAST_RUNS:
        drawn = resamples(loss.shape[1])
        lowest = np.nanargmin(smooth(_means_where_all_are(loss, drawn)), axis=0)
        interval = quantiles(lr[lowest], drawn.weights)
    smoothed = np.pad(whole, (skip_start, skip_end), constant_values=np.nan)
    return BestRate(float(lr[at]), *interval, smoothed)


def _means_where_all_are(values: np.ndarray, drawn: Resamples) -> np.ndarray:
    """Means of `values` `[points, runs]` in each resample, NaN only where a run that is in it has none."""
    lost = np.isnan(values)
    means = drawn.means(np.where(lost, 0, values))
    means[drawn.means(lost) > 0] = np.nan
    return means


def _points_and_runs(
    lr: np.ndarray, values: np.ndarray, name: str, skip_start: int, skip_end: int
) -> tuple[np.ndarray, np.ndarray]:
    """Rates `[points]`, finite, positive and increasing, and what was measured at them, `[points, runs]`."""
    lr, values = np.asarray(lr, dtype=float), np.asarray(values, dtype=float)
    if not (lr.ndim == 1 and len(lr) and values.ndim in (1, 2) and len(values) == len(lr)):
        raise AnalysisError(
            f"lr [points] and {name} [points] or [points, runs] are needed, not {lr.shape} and {values.shape}"
        )
    if not (np.isfinite(lr).all() and (lr > 0).all() and (np.diff(lr) > 0).all()):
        raise AnalysisError("a range test needs increasing positive learning rates")
    if min(skip_start, skip_end) < 0 or skip_start + skip_end >= len(lr):
        raise AnalysisError(f"{skip_start=}, {skip_end=}: no point is left of {len(lr)}")
    kept = slice(skip_start, len(lr) - skip_end)
    return lr[kept], values[kept].reshape(len(lr[kept]), -1)
