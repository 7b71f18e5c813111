"""What a ramp and a race share: a user's own model, optimizer, loss and batches, checked, trained and measured."""

import copy
import inspect
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager, nullcontext
from dataclasses import fields, is_dataclass
from numbers import Real

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer
from torch.utils.data import Dataset

from .. import snapshot
from ..schedulers import separate_rates, set_lr
from ..statistics import AnalysisError

LARGEST_RATE = 1e36  # beyond it a rate does not fit into float32, whatever the optimizer divides it by
ENOUGH_SAMPLES, LEAST_SAMPLES = 256, 16  # of which batch normalisation takes statistics
MOST_LAST = 8  # batches, each another forward pass at every evaluation


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
    if any(group.get("maximize") for group in optimizer.param_groups):
        raise ValueError("the optimizer has maximize=True: give minus the objective as the loss, and maximize=False")
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


def group_shares(optimizer: Optimizer, keep: bool) -> list[float]:
    """What each group's rate is a multiple of the ramp's, before its `lr_mult` and `lr_scale`."""
    groups = optimizer.param_groups
    rates = [float(group["lr"]) for group in groups]
    if not max(rates) > 0:  # at the start of a warm-up
        rates = [float(group.get("initial_lr", 0.0)) for group in groups]
    multiplied = ["lr_mult" in group or "lr_scale" in group for group in groups]
    top = max((rate for rate, given in zip(rates, multiplied, strict=True) if not given), default=0.0)
    shares = []
    for rate, given in zip(rates, multiplied, strict=True):
        if any(multiplied) and rate == 0 < max(rates):  # frozen
            shares.append(0.0)
        elif given:
            shares.append(1.0)
        else:
            shares.append(rate / top if keep and top > 0 else 1.0)
    return shares


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


def to_device(batch: object, device: torch.device) -> object:
    """A batch on a device, however its tensors are nested."""
    if not isinstance(batch, dict) and hasattr(batch, "to"):  # the attributes of some dictionaries are their keys
        return batch.to(device)
    if isinstance(batch, Mapping):
        moved = {key: to_device(value, device) for key, value in batch.items()}
        if type(batch) is dict or not isinstance(batch, MutableMapping):
            return moved
        same = copy.copy(batch)  # a class of its own, such as a dictionary with attributes
        same.update(moved)
        return same
    if isinstance(batch, list | tuple):
        parts = [to_device(part, device) for part in batch]
        return type(batch)(*parts) if hasattr(batch, "_fields") else type(batch)(parts)
    return batch


def length(batch: object) -> int:
    """How many samples a batch has, by the first tensor in it, however nested; 1 where there is none."""
    return next((len(tensor) if tensor.ndim else 1 for tensor in _tensors(batch)), 1)


def _tensors(batch: object) -> Iterator[Tensor]:
    if isinstance(batch, Tensor):
        yield batch
    elif isinstance(batch, Mapping):
        batch = list(batch.values())
    elif is_dataclass(batch):
        batch = [getattr(batch, field.name) for field in fields(batch)]
    if isinstance(batch, list | tuple):
        for part in batch:
            yield from _tensors(part)


def measure_batch(
    model: nn.Module,
    loss_fn: Callable | None,
    forward: Callable | None,
    batch: object,
    device: torch.device,
    autocast: torch.dtype | None,
) -> tuple[Tensor | None, object, object]:
    """Loss, outputs and target of a batch of inputs and a target; the loss alone where there is a `forward`.

    Where weights that are trained are no numbers any more, an error is the divergence's: torch's distributions raise at
    the first.
    """
    batch = to_device(batch, device)
    try:
        with torch.autocast(device.type, autocast) if autocast else nullcontext():
            return (forward(model, batch), None, None) if forward else _measured(model, loss_fn, batch)
    except (ValueError, RuntimeError) as error:
        weights = [weight for weight in model.parameters() if weight.requires_grad and not is_lazy(weight)]
        if isinstance(error, torch.OutOfMemoryError) or all(weight.isfinite().all() for weight in weights):
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
        # A fused optimizer would do it within its step, and a hook that clips before that step would clip scaled ones.
        scaler.unscale_(optimizer)
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


class LastBatches:
    """The last training batches, for what batch normalisation has to know of the weights as they are now.

    Its running statistics are those of earlier weights. Where the rate climbs they lag, and a network evaluated with
    them looks ruined at a rate several times below the one that ruins it. Those of a validation batch would depend on
    which samples share a batch: sorted by class, as a folder for each class is read, they know the answer.

    Args:
        model: the network; nothing is kept where no layer asks for it.
        measure: a batch's forward pass.
    """

    def __init__(self, model: nn.Module, measure: Callable) -> None:
        self.model, self.measure = model, measure
        self.batches: deque = deque(maxlen=MOST_LAST)

    def _norms(self) -> list[_BatchNorm]:
        """The layers that keep statistics and are not frozen."""
        norms = (norm for norm in self.model.modules() if isinstance(norm, _BatchNorm))
        return [norm for norm in norms if norm.training and norm.running_mean is not None]

    def add(self, batches: Iterable) -> None:
        """Take the batches of an iteration with a finite loss, and forget what is more than enough."""
        if self._norms():
            self.batches += batches
            while sum(map(length, self.batches)) - length(self.batches[0]) >= ENOUGH_SAMPLES:
                self.batches.popleft()

    @contextmanager
    def statistics(self) -> Iterator[None]:
        """Layers have the statistics of these batches, averaged, in place of their running ones; then their own again.

        Of fewer than `LEAST_SAMPLES` in all they would be noise, and the running ones stay.
        """
        norms = self._norms() if sum(map(length, self.batches)) >= LEAST_SAMPLES else []
        kept = [(norm, norm.momentum, [buffer.clone() for buffer in norm.buffers()]) for norm in norms]
        modes = snapshot.modes(self.model)
        try:
            if norms:
                self.model.eval()
                for norm in norms:
                    norm.train().reset_running_stats()
                    norm.momentum = None  # an average in which all batches count the same
                for batch in self.batches:
                    self.measure(batch)  # not under no_grad: a user's forward may take a gradient
                snapshot.set_modes(modes)
            yield
        finally:
            for norm, momentum, buffers in kept:
                norm.momentum = momentum
                for buffer, before in zip(norm.buffers(), buffers, strict=True):
                    buffer.copy_(before)


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
