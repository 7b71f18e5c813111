"""The learning rate range test (the paper, 3.3): run it on any model, and read bounds off its curve as numbers."""

import inspect
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, nullcontext
from copy import copy
from dataclasses import dataclass, field
from itertools import chain, combinations
from numbers import Integral, Real

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from . import snapshot
from .schedulers import RangeTestLR, filled, separate_rates, set_lr
from .statistics import CONFIDENCE, AnalysisError, Resamples, quantiles, resamples

LARGEST_RATE = 1e36  # beyond it a rate does not fit into float32, whatever the optimizer divides it by
LEAST_RISE = 0.01  # a rise of less than one point of accuracy is none
LOOKED_AT = 100  # batches, for whether they are shuffled
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
LEAST_ROWS_OF_A_RANGE = 5  # of fewer rows the range may be small by chance


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
            loss of zero: leave it out for a loss that could as well have another zero. Below zero `climbed` says what
            takes its place.
        forward: instead of `loss_fn`, for batches of any kind: `forward(model, batch)` is the loss, or None for a batch
            to skip. Validation is measured without gradients: what takes one there needs `torch.enable_grad()`.
        validation: batches as `batches`, in place of `evaluate`: at each evaluation the mean loss over them and, where
            the targets are classes, the accuracy; in evaluation mode.
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
    ratios = [share * group.get("lr_mult", 1.0) for share, group in shares]
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))

    def measure(batch: object) -> tuple[Tensor | None, object, object]:
        return measure_batch(model, loss_fn, forward, batch, device, autocast)

    def next_loss() -> Tensor | None:
        loss, _, target = measure(next(stream))
        if len(classes) < LOOKED_AT:
            classes.append(_only_class(target))
        return loss

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
                loss = backward((next_loss() for _ in range(accumulate)), accumulate, scaler, model)
                if loss is None:  # no divergence: the batch is passed over
                    skipped = True
                elif math.isfinite(loss):
                    optimizer_step(optimizer, scaler)
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
                    if validation is not None:
                        val_loss, accuracy = validate(model, validation, measure, ignored_by(loss_fn))
                        if not (validated or lost):
                            check_validation(val_loss, f"at the first evaluation, lr={lr:.3g}")
                        validated = True
                    elif evaluate:
                        accuracy = _number_of(evaluate(model))
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


def apply_rate(optimizer: Optimizer, rate: float, keep_ratios: bool = True) -> None:
    """Set an optimizer's groups to a rate that a range test found, as the test had set them.

    A group with an `lr_mult` (or timm's `lr_scale`) gets the rate times it. All other groups keep the ratios of their
    rates among themselves, and the largest of them gets `rate`. A group of rate 0 stays there. `initial_lr` is set too,
    as a scheduler that is made afterwards would go on from what an earlier one has left there. timm's own schedulers
    multiply by `lr_scale` themselves: for them make the optimizer with this rate instead.

    Args:
        optimizer: changed in place; a rate that is a tensor stays that tensor.
        rate: above 0.
        keep_ratios: as for `range_test`.

    Raises:
        ValueError: a rate that is no number above 0; an optimizer without rates.

    Warns:
        UserWarning: a scheduler was made for this optimizer before. It goes on from the rates it was made with.
    """
    _check_rates(optimizer)
    number = rate.item() if isinstance(rate, Tensor) and rate.numel() == 1 else rate
    if not (isinstance(number, Real) and not isinstance(number, bool) and 0 < number < math.inf):
        raise ValueError(f"rate must be a number above 0, not {rate!r}")
    set_lr(optimizer, [float(number) * share for share in group_shares(optimizer, keep_ratios)], stacklevel=3)


def check_given(
    model: object,
    optimizer: object,
    loss_fn: object,
    batches: object,
    forward: object,
    evaluate: object,
    validation: object,
) -> None:
    """Refuse what no ramp and no short training can be made with; arguments as for `range_test`.

    Raises:
        ValueError: a line that says what is wrong.
    """
    if not isinstance(model, nn.Module):
        raise ValueError(f"model must be a torch.nn.Module, not {type(model).__name__}")
    group = getattr(model, "process_group", None)  # of DistributedDataParallel and FullyShardedDataParallel
    if group is not None and group.size() > 1:
        raise ValueError(
            f"model is a {type(model).__name__} over {group.size()} processes, each of which would have losses of its "
            "own: let one of them find the rate, with model.module, and send it to the others"
        )
    _check_rates(optimizer)
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
    for name, given in (("batches", batches), ("validation", validation)):
        if isinstance(given, Dataset):
            raise ValueError(
                f"{name} is a Dataset, which gives single samples: pass DataLoader(dataset, batch_size=...), or "
                "batch_size=None where its items are batches"
            )
    if evaluate is not None and validation is not None:
        raise ValueError("evaluate and validation are two ways to the same column: give one of them")
    if evaluate is not None and not callable(evaluate):
        raise ValueError("evaluate must be a function of the model; batches to evaluate on are called validation")
    if isinstance(validation, Iterator):  # `iter` of a DataLoader would draw a random number
        raise ValueError("validation can be gone through only once: pass a DataLoader or a list")


def check_precision(autocast: object, scaler: object) -> None:
    """Refuse what is no type and no scaler, such as True; arguments as for `range_test`.

    Raises:
        ValueError: a line that says what is wrong.
    """
    if autocast and not isinstance(autocast, torch.dtype):
        raise ValueError(f"autocast must be a type such as torch.bfloat16, or None, not {autocast!r}")
    if scaler is not None and not callable(getattr(scaler, "scale", None)):
        raise ValueError(f"scaler must be a torch.amp.GradScaler, or None, not {scaler!r}")


def _check_rates(optimizer: object) -> None:
    if not isinstance(optimizer, Optimizer):
        raise ValueError(f"optimizer must be a torch.optim.Optimizer, not {type(optimizer).__name__}")
    for index, group in enumerate(optimizer.param_groups):
        lr = group.get("lr")
        if not (isinstance(lr, Real) or (isinstance(lr, Tensor) and lr.numel() == 1)):
            has = f"has lr={lr!r}" if "lr" in group else "has no lr"
            raise ValueError(f"the optimizer's group {index} {has}: a range test needs a rate that it can set")
    separate_rates(optimizer)


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


def group_shares(optimizer: Optimizer, keep: bool) -> list[float]:
    """What each group's rate is a multiple of the ramp's, before its `lr_mult`."""
    groups = optimizer.param_groups
    rates = [float(group["lr"]) for group in groups]
    if not max(rates) > 0:  # at the start of a warm-up
        rates = [float(group.get("initial_lr", 0.0)) for group in groups]
    multiplied = ["lr_mult" in group or "lr_scale" in group for group in groups]
    top = max((rate for rate, given in zip(rates, multiplied, strict=True) if not given), default=0.0)
    shares = []
    for group, rate, given in zip(groups, rates, multiplied, strict=True):
        if any(multiplied) and rate == 0 < max(rates):  # frozen
            shares.append(0.0)
        elif given:
            shares.append(group.get("lr_scale", 1.0))
        else:
            shares.append(rate / top if keep and top > 0 else 1.0)
    return shares


def to_device(batch: object, device: torch.device) -> object:
    """A batch on a device, however its tensors are nested."""
    if hasattr(batch, "to"):
        return batch.to(device)
    if isinstance(batch, Mapping):
        return {key: to_device(value, device) for key, value in batch.items()}
    if isinstance(batch, list | tuple):
        parts = [to_device(part, device) for part in batch]
        return type(batch)(*parts) if hasattr(batch, "_fields") else type(batch)(parts)
    return batch


def length(batch: object) -> int:
    """How many samples a batch has, by the first tensor in it; 1 where there is none."""
    if isinstance(batch, Tensor):
        return len(batch) if batch.ndim else 1
    parts = batch.values() if isinstance(batch, Mapping) else batch if isinstance(batch, list | tuple) else ()
    return next((length(part) for part in parts if isinstance(part, Tensor | Mapping | list | tuple)), 1)


def measure_batch(
    model: nn.Module,
    loss_fn: Callable | None,
    forward: Callable | None,
    batch: object,
    device: torch.device,
    autocast: torch.dtype | None,
) -> tuple[Tensor | None, object, object]:
    """Loss, outputs and target of a batch of inputs and a target; the loss alone where there is a `forward`.

    Where the weights are no numbers any more, an error is the divergence's: torch's distributions raise at the first.
    """
    batch = to_device(batch, device)
    try:
        with torch.autocast(device.type, autocast) if autocast else nullcontext():
            return (forward(model, batch), None, None) if forward else _measured(model, loss_fn, batch)
    except (ValueError, RuntimeError):
        weights = [weight for weight in model.parameters() if not is_lazy(weight)]
        if all(weight.isfinite().all() for weight in weights):
            raise
        return torch.tensor(math.nan), None, None


def _measured(model: nn.Module, loss_fn: Callable, batch: object) -> tuple[Tensor, object, object]:
    if not isinstance(batch, list | tuple) or len(batch) < 2:
        what = f"{type(batch).__name__}{' of fewer than two' if isinstance(batch, list | tuple) else ''}"
        such = "model(**batch).loss" if isinstance(batch, Mapping) else "..., the loss of this batch"
        raise ValueError(
            f"a batch is inputs and a target, not a {what}: give a forward, such as forward=lambda model, batch: {such}"
        )
    *inputs, target = batch
    if len(inputs) == 1 and isinstance(inputs[0], Mapping):
        outputs = model(**inputs[0])
    else:
        several = len(inputs) == 1 and isinstance(inputs[0], list | tuple) and not hasattr(inputs[0], "_fields")
        outputs = model(*(inputs[0] if several else inputs))
    return loss_fn(outputs, target), outputs, target


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
        self.__init__()
        return mean


def backward(
    losses: Iterable[Tensor | None], count: int, scaler: torch.amp.GradScaler | None, model: nn.Module
) -> float | None:
    """Accumulate the gradients of the mean of `count` losses, and return the mean of those that there are.

    Where one is not finite, the model's buffers are as they were before: one bad batch would leave running statistics
    that are no numbers, and every evaluation from then on would look diverged.

    Returns:
        NaN as soon as one is not finite; None where there is none.
    """
    total, given = 0.0, 0
    before = [(buffer, buffer.clone()) for buffer in model.buffers()]
    for loss in losses:
        if loss is None:
            continue
        _check_loss(loss)
        if not loss.isfinite():
            with torch.no_grad():
                for buffer, content in before:
                    buffer.copy_(content)
            return math.nan
        mean = loss / count if count > 1 else loss
        (scaler.scale(mean) if scaler else mean).backward()
        total, given = total + mean.item(), given + 1
    return (total if given == count else total * count / given) if given else None


def _check_loss(loss: object) -> None:
    if isinstance(loss, Tensor) and loss.numel() == 1:
        return
    what = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
    hint = ": return its loss" if isinstance(getattr(loss, "loss", None), Tensor) else ""
    raise ValueError(f"the loss must be a tensor of one number, not {what}{hint}")


def optimizer_step(optimizer: Optimizer, scaler: torch.amp.GradScaler | None) -> None:
    if scaler:
        scaler.step(optimizer)
        scaler.update()
    else:
        optimizer.step()


def check_validation(loss: float, when: str) -> None:
    """Refuse a validation whose loss says nothing.

    Args:
        loss: the mean over the validation.
        when: it was measured, for the message.

    Raises:
        AnalysisError: the loss is not finite.
    """
    if not math.isfinite(loss):
        raise AnalysisError(f"validation: the loss is not finite {when}: look at these batches, and at the model")


def ignored_by(loss_fn: object) -> int:
    """The target that a loss leaves out; torch's losses say it, and by default it is -100."""
    ignored = getattr(loss_fn, "ignore_index", None)
    return ignored if isinstance(ignored, int) else -100


def _predicted(outputs: object, target: object) -> Tensor | None:
    """The class that each output is largest for, of the target's shape.

    Torch has the classes in dimension 1. Those of sequences may be the last one, as `[N, length, classes]`.

    Returns:
        None where the targets are no classes, there are no two classes, or both dimensions fit.
    """
    if not (isinstance(outputs, Tensor) and isinstance(target, Tensor)) or target.is_floating_point():
        return None
    if outputs.ndim != target.ndim + 1 or target.ndim < 1:
        return None
    shape = tuple(outputs.shape)
    fit = {dim for dim in (1, outputs.ndim - 1) if shape[:dim] + shape[dim + 1 :] == tuple(target.shape)}
    dim = fit.pop() if len(fit) == 1 else None
    return None if dim is None or shape[dim] < 2 else outputs.argmax(dim)


@torch.no_grad()
def validate(model: nn.Module, validation: Iterable, measure: Callable, ignored: int = -100) -> tuple[float, float]:
    """Mean loss over all samples, and accuracy.

    Args:
        model: put into evaluation mode.
        validation: batches.
        measure: loss, outputs and target of a batch.
        ignored: a target that counts for no class, as do those below 0.

    Returns:
        The accuracy is NaN where the targets are no classes.

    Raises:
        ValueError: no batch, or what is no loss.
    """
    model.eval()
    total, size, right, labels = 0.0, 0, 0, 0
    for batch in validation:
        try:
            loss, outputs, target = measure(batch)
        except RuntimeError as error:
            if "does not require grad" not in str(error):
                raise
            raise ValueError(
                "validation is measured without gradients, and the forward takes one: put what takes it under "
                "torch.enable_grad(), or leave it out where the model is not training"
            ) from error
        if loss is None:
            continue
        try:
            _check_loss(loss)
        except ValueError as error:
            raise ValueError(f"validation, which is measured in evaluation mode: {error}") from None
        count = len(target) if isinstance(target, Tensor) and target.ndim else length(batch)
        total, size = total + count * loss.item(), size + count
        predicted = _predicted(outputs, target)
        if predicted is not None:
            counted = (target >= 0) & (target != ignored)
            right += (counted & (predicted == target)).sum().item()
            labels += counted.sum().item()
    if not size:
        raise ValueError("validation is empty, or no batch of it gave a loss")
    return total / size, right / labels if labels else math.nan


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


def endless(batches: Iterable, needed: int) -> Iterator:
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

    Where a row is not above zero that says nothing. Then it is whether the mean is above the least one by `factor`
    times the range of the rows up to that, if these are five or more.

    Args:
        losses: mean training loss of each row so far.
        factor: above 1.
    """
    if len(losses) < 3:
        return False
    means = np.convolve(losses, np.ones(3) / 3, "valid")
    least = int(means.argmin())
    if min(losses) > 0:
        return bool(means[-1] > factor * means[least])
    before = losses[: least + 3]
    return len(before) >= LEAST_ROWS_OF_A_RANGE and bool(means[-1] - means[least] > factor * np.ptp(before))


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
        raise AnalysisError("there is no finite accuracy here: give range_test a validation, or an evaluate")
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

    A window's sum is put together from sums of 1, 2, 4, ... points, and nothing is subtracted. A running sum would
    forget all small values behind one of 1e20, as where a run diverges.
    """
    there = np.isfinite(values)
    ends = ((window // 2, window - 1 - window // 2), (0, 0))
    sums, counts = (np.pad(part, ends) for part in (np.where(there, values, 0.0), there.astype(float)))
    total = np.zeros((2, *values.shape))
    begin, size = 0, 1
    while size <= window:
        if window & size:
            total += np.stack([part[begin : begin + len(values)] for part in (sums, counts)])
            begin += size
        sums, counts = sums[:-size] + sums[size:], counts[:-size] + counts[size:]
        size *= 2
    return np.where(there, total[0] / np.maximum(total[1], 1), np.nan)


def _means_where_all_are(values: np.ndarray, drawn: Resamples) -> np.ndarray:
    """Means of `values` `[points, runs]` in each resample, NaN only where a run that is in it has none."""
    lost = np.isnan(values)
    means = drawn.means(np.where(lost, 0, values))
    means[drawn.means(lost) > 0] = np.nan
    return means


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
