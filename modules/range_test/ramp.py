"""The learning rate range test (the paper, 3.3), on any model."""

import math
import warnings
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from copy import copy
from itertools import chain
from numbers import Integral, Real

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer
from torch.utils.data import DataLoader
from tqdm import tqdm

from .. import snapshot
from ..schedulers import RangeTestLR, filled, multiplier
from .loop import (
    LARGEST_RATE,
    LastBatches,
    backward,
    check_given,
    check_precision,
    check_validation,
    endless,
    group_shares,
    ignored_by,
    measure_batch,
    optimizer_step,
    validate,
)

LOOKED_AT = 100  # batches, for whether they are shuffled


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
    forward: Callable[[nn.Module, object], Tensor | None] | None = None,
    validation: Iterable | None = None,
    accumulate: int = 1,
    autocast: torch.dtype | None = None,
    scaler: torch.amp.GradScaler | None = None,
    keep_ratios: bool = True,
    lost_in_a_row: int = 3,
) -> pd.DataFrame:
    """Train while the learning rate climbs, and measure loss and accuracy on the way.

    Afterwards everything is as it was, whether the test ended well or not: weights, buffers, modes, the optimizer (with
    one that it wraps) and the scaler (where a rate is a tensor, the same tensor), gradients, and the random states of
    torch, numpy, Python and the DataLoader's generator. So are numbers, tensors and None that the network's own modules
    keep as attributes, a sampler's count of epochs, and other networks and optimizers that the functions given here can
    be seen to use, such as a teacher or an average of the weights. Workers that stay are set aside. Only lazy modules
    do not return: they are initialised by the first batch. Each `state_dict()` is compared with the one before; a
    warning names what differs.

    Args:
        model: the network; trained in place, on whatever device it is on. Modules that are in evaluation mode while
            the model is in training mode stay in it.
        optimizer: over the model's parameters. Groups with an `lr_mult`, or timm's `lr_scale`, get the ramp's rate
            times it; all other groups keep the ratios of their rates among themselves, and the largest of them follows
            the ramp. `apply_rate` sets a rate in the same way.
        loss_fn: called as `loss_fn(model(*inputs), target)`; may have parameters of its own.
        batches: e.g. a DataLoader: pairs of an input and a target, or several inputs with the target last. An input
            that is a mapping becomes the model's keyword arguments, a plain list or tuple its arguments, a named tuple
            stays one argument. Brought to the model's device, however nested. Gone through again when they end; a
            generator must last for the whole ramp.
        evaluate: given the model, its accuracy, 0 to 1; call `model.eval()` in it where that matters. NaN where it is
            not defined, as an F-score is of a model that always says the same. None where the training loss is enough.
        min_lr, max_lr, ramp: as in `schedulers.RangeTestLR`. One ramp for all groups, as the answer is one rate: what
            groups should differ by is the ratio of the rates they have.
        iterations: length of the ramp; the paper lets it run for several epochs.
        evaluate_every: iterations between rows, each with its evaluation. By default there is a row an iteration, and
            there are 50 evaluations.
        stop_factor: end when the training loss, as a mean of three rows, exceeds this many times the least such mean;
            None goes on while the loss is finite. By default such a row is a fiftieth of the ramp. It counts from a
            loss of zero: where a row is not above that, the ramp goes on.
        forward: instead of `loss_fn`, for batches of any kind: `forward(model, batch)` is the loss, or None for a batch
            to skip. Validation is measured without gradients: what takes one there needs `torch.enable_grad()`. Where
            batch normalisation trains, it is called in evaluation mode, too, at each evaluation.
        validation: batches as `batches`, in place of `evaluate`: at each evaluation the mean loss over them and, where
            the targets are classes, the accuracy; in evaluation mode. Here, and for `evaluate`, batch normalisation has
            the statistics of the last training batches under the present weights (`loop.LastBatches`): its running ones
            lag behind a rate that climbs, and would show an end of the useful rates that is several times too low.
        accumulate: batches an iteration, whose gradients are averaged.
        autocast: the type of a forward pass under autocast, such as `torch.bfloat16`.
        scaler: of the gradients, where the type is `torch.float16`.
        keep_ratios: False gives all groups without a multiplier the same rate.
        lost_in_a_row: so many losses in a row that are not finite are a divergence; fewer are batches at fault.

    Returns:
        One row every `evaluate_every` iterations and one at the end: `iteration`, `lr` (before any multiplier),
        `train_loss` (mean since the last row), `val_loss` (NaN without `validation`), `accuracy` (NaN without
        `validation` or `evaluate`). An iteration whose loss is not finite, or None, changes nothing and counts nowhere:
        its loss is NaN where it has a row of its own; from the last batch on that is not skipped, the loss of that one.
        From the first of `lost_in_a_row` that are not finite, a `validation`
        loss that is not finite, or `stop_factor` on, the run has diverged, and the rest is NaN. `rules.suggest_rate`
        and `best_rate` take rate and loss, `suggest_bounds` rate and accuracy.

    Raises:
        ValueError: rates, ramp, intervals or factor that make no sense; batches that are empty, too few, a `Dataset` or
            of a kind that needs a `forward`; no loss or no accuracy where one is asked for; an optimizer whose `step`
            needs a closure (LBFGS), or without a rate.
        AnalysisError: the validation loss is not finite at the first evaluation already.

    Warns:
        UserWarning: most batches hold a single class; something that changed could not be put back.

    Source: the paper, 3.3; coxy1989/clr for the linear ramp; best_lr for the exponential one and for the early end.
    """
    check_given(model, optimizer, loss_fn, batches, forward, evaluate, validation)
    check_precision(autocast, scaler)
    _check_lengths(iterations, evaluate_every, accumulate, lost_in_a_row, stop_factor)
    if validation is batches and isinstance(validation, DataLoader):
        validation = copy(validation)  # workers that stay would end the epoch that trains
    row_every, every = evaluate_every or 1, evaluate_every or max(1, iterations // 50)
    # On an optimizer of its own: a scheduler would leave its marks on the user's.
    lr_at = RangeTestLR(torch.optim.SGD([torch.zeros(1)], lr=1.0), min_lr, max_lr, iterations, ramp).lr_at
    shares = zip(group_shares(optimizer, keep_ratios), optimizer.param_groups, strict=True)
    ratios = [share * multiplier(group) for share, group in shares]
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))

    def measure(batch: object) -> tuple[Tensor | None, object, object]:
        return measure_batch(model, loss_fn, forward, batch, device, autocast)

    def next_loss() -> Tensor | None:
        taken.append(next(stream))
        loss, _, target = measure(taken[-1])
        if len(classes) < LOOKED_AT:
            classes.append(_only_class(target))
        return loss

    taken: list = []  # the batches of an iteration
    last_batches = LastBatches(model, measure)
    classes: list[int | None] = []  # of the first batches, the one class that a batch has; None where it has several
    rows: list[tuple[int, float, float, float, float]] = []
    found = snapshot.reached((model, optimizer, loss_fn, forward, evaluate), (batches, validation))
    before: dict[str, object] = {}
    try:
        with ExitStack() as afterwards:
            afterwards.enter_context(snapshot.forked(found, device))
            stream = endless(batches, iterations * accumulate)
            if any(is_lazy(tensor) for tensor in chain(model.parameters(), model.buffers())):
                first = next(stream)
                _initialise(model, lambda: measure(first))
                stream = chain([first], stream)
            before = snapshot.fingerprint(found.stateful)
            afterwards.callback(snapshot.contents([model, loss_fn], optimizer, scaler, found))
            if not model.training:
                model.train()
            modes = snapshot.modes(model)  # a BatchNorm that was frozen stays so
            row, stretch, means = _Mean(), _Mean(), []  # the losses since the last row, and since the last evaluation
            lost, skipped = 0, False  # the last losses in a row that were not finite; whether a batch was skipped
            given = first_lost = 0  # the last iteration with a loss, the first of those lost in a row
            validated = False
            for iteration in tqdm(range(1, iterations + 1), "range test", unit="it", leave=False, disable=None):
                lr = lr_at(iteration - 1)
                if not lr * max(ratios) < LARGEST_RATE:
                    break
                for group, ratio in zip(optimizer.param_groups, ratios, strict=True):
                    group["lr"] = filled(group["lr"], lr * ratio)
                snapshot.set_modes(modes)
                optimizer.zero_grad()
                taken.clear()
                loss = backward((next_loss() for _ in range(accumulate)), accumulate, scaler, model)
                if loss is None:  # no divergence: the batch is passed over
                    skipped = True
                elif math.isfinite(loss):
                    optimizer_step(optimizer, scaler)
                    if validation is not None or evaluate:
                        last_batches.add(taken)
                    row.add(loss)
                    stretch.add(loss)
                    given, lost = iteration, 0
                else:
                    given = iteration
                    lost, first_lost = lost + 1, first_lost if lost else iteration
                    if lost == lost_in_a_row:
                        rows = [kept for kept in rows if kept[0] < first_lost]
                        break
                last = iteration == iterations
                val_loss = accuracy = math.nan
                if evaluates := iteration % every == 0 or last:
                    with last_batches.statistics():
                        if validation is not None:
                            val_loss, accuracy = validate(model, validation, measure, ignored_by(loss_fn))
                        elif evaluate:
                            accuracy = _number_of(evaluate(model))
                    if validation is not None and not (validated or lost):
                        check_validation(val_loss, f"at the first evaluation, lr={lr:.3g}")
                    validated = validation is not None
                    if validation is not None and not math.isfinite(val_loss):
                        break
                    means += [mean] if math.isfinite(mean := stretch.taken()) else []
                if iteration % row_every == 0 or last:
                    rows.append((iteration, lr, row.taken(), val_loss, accuracy))
                if evaluates and stop_factor and climbed(means, stop_factor):
                    break
            else:  # skipped to the end: the ramp has not diverged, and nothing has changed since
                ends = [0, *(end for end, *_ in rows)]
                last_loss = next((loss for _, _, loss, *_ in reversed(rows) if math.isfinite(loss)), math.nan)
                for index in range(len(rows)):
                    if given <= ends[index]:
                        rows[index] = (*rows[index][:2], last_loss, *rows[index][3:])
            if skipped and not given:
                raise ValueError("no batch gave a loss: forward, or loss_fn, returned None each time")
    finally:
        if before and (lost_paths := snapshot.differing(before, snapshot.fingerprint(found.stateful))):
            warnings.warn(f"range_test could not put back {lost_paths}: make them anew before you train", stacklevel=2)
    alone = [label for label in classes if label is not None]
    if 2 * len(alone) > len(classes) and len(set(alone)) > 1:
        warnings.warn(
            "most batches have a single class, and not the same: shuffle them, or the ramp tells of their order",
            stacklevel=2,
        )
    ends = [*range(row_every, iterations, row_every), iterations]
    rows += [(end, lr_at(end - 1), math.nan, math.nan, math.nan) for end in ends[len(rows) :]]
    return pd.DataFrame(rows, columns=["iteration", "lr", "train_loss", "val_loss", "accuracy"])


def _check_lengths(
    iterations: int, evaluate_every: int | None, accumulate: int, lost_in_a_row: int, stop_factor: float | None
) -> None:
    given = dict(iterations=iterations, accumulate=accumulate, evaluate_every=evaluate_every)
    for name, value in (given | dict(lost_in_a_row=lost_in_a_row)).items():
        whole = isinstance(value, Integral) and not isinstance(value, bool) and value >= 1
        if not (whole or (value is None and name == "evaluate_every")):
            raise ValueError(f"{name} must be a whole number above 0, not {value!r}")
    if evaluate_every is not None and evaluate_every > iterations:
        raise ValueError(f"evaluate_every must be between 1 and iterations={iterations}, not {evaluate_every!r}")
    if stop_factor is not None and not (isinstance(stop_factor, Real) and stop_factor > 1):
        raise ValueError(f"stop_factor must be above 1, or None, not {stop_factor!r}")


def _only_class(target: object) -> int | None:
    """The class of a batch of 8 or more (of fewer that is chance) that has no other; None too where there are none."""
    if isinstance(target, Tensor) and target.ndim == 1 and len(target) >= 8 and not target.is_floating_point():
        return int(target[0]) if (target == target[0]).all() else None
    return None


class _Mean:
    """A mean of what was added since it was last taken."""

    def __init__(self) -> None:
        self.total, self.count = 0.0, 0

    def add(self, value: float) -> None:
        self.total, self.count = self.total + value, self.count + 1

    def taken(self) -> float:
        """The mean, NaN of nothing."""
        mean = self.total / self.count if self.count else math.nan
        self.total, self.count = 0.0, 0
        return mean


def _number_of(found: object) -> float:
    """What `evaluate` returned, as a number."""
    try:
        return float(found)
    except (TypeError, ValueError):
        raise ValueError(f"evaluate must return a number, not {type(found).__name__}") from None


@torch.no_grad()
def _initialise(model: nn.Module, measure: Callable) -> None:
    """Give lazy modules their weights; in evaluation mode, so that no statistic of a BatchNorm has seen the batch."""
    modes = snapshot.modes(model)
    model.eval()
    try:
        measure()
    finally:
        snapshot.set_modes(modes)


def climbed(losses: list[float], factor: float) -> bool:
    """Whether the loss, as a mean of three rows, exceeds `factor` times the least such mean so far.

    Where a row is not above zero that says nothing, and the answer is no.

    Args:
        losses: mean training loss of each row so far.
        factor: above 1.
    """
    if len(losses) < 3 or min(losses) <= 0:
        return False
    means = np.convolve(losses, np.ones(3) / 3, "valid")
    return bool(means[-1] > factor * means.min())
