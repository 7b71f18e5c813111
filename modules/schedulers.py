"""Learning rate policies of Smith, *Cyclical Learning Rates for Training Neural Networks* (arXiv:1506.01186).

Every cyclical policy is a closed formula of the iteration: it never drifts and can be resumed anywhere. What torch has
already (MultiStepLR, ExponentialLR, OneCycleLR, ...) is used from torch.
"""

import copy
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import pairwise
from numbers import Integral, Real
from types import FunctionType, MethodType

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import EPOCH_DEPRECATION_WARNING, ExponentialLR, LambdaLR, LRScheduler, MultiStepLR

#: A number, or one for each parameter group; tensors and arrays will do.
PerGroup = float | Tensor | Sequence[float]

MODES = ("triangular", "triangular2", "exp_range", "exp_range_both")

#: Scale functions that can be asked for by name; a named one survives `state_dict()` whole.
SCALE_FUNCTIONS: dict[str, Callable[[float], float]] = {
    "sinusoidal": lambda cycle: 0.5 * (1 + math.sin(cycle * math.pi / 2)),
    "inverse_power_of_5": lambda t: 1 / 5 ** (t * 1e-4),
}


_STEP_SIZE = 2000  # bckenstler/CLR's default

_STEPPED_FIRST = (
    "Detected call of `lr_scheduler.step()` before `optimizer.step()`. Call `optimizer.step()` first: otherwise the "
    "schedule's first rate is never used."
)


def _plain(value):
    """A number or numbers of torch or numpy as Python's own."""
    return value.tolist() if hasattr(value, "tolist") else value


def _number(name: str, value: float | Tensor, zero: bool = False) -> float:
    """`value` as a plain number; ValueError unless it is positive and finite, or 0 where that is allowed."""
    value = _plain(value)
    real = isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    if not (real and (value > 0 or (zero and value == 0))):
        raise ValueError(f"{name} must be a positive number{' or 0' if zero else ''}, not {value!r}")
    return value


def _per_group(name: str, value: PerGroup, groups: int, zero: bool = False) -> float | list[float]:
    value = _plain(value)
    if not isinstance(value, list | tuple):
        return float(_number(name, value, zero))
    _check_length(name, value, groups)
    return [float(_number(name, each, zero)) for each in value]


def _check_length(name: str, value: float | Sequence[float], groups: int) -> None:
    if isinstance(value, list | tuple) and len(value) != groups:
        raise ValueError(f"{name} has {len(value)} values, the optimizer has {groups} parameter groups")


def _spread(value: float | list[float], groups: int) -> list[float]:
    return value if isinstance(value, list) else [value] * groups


def _ordered(low: float, high: float, low_name: str = "base_lr", high_name: str = "max_lr") -> None:
    if low > high:
        raise ValueError(f"{low_name} must not exceed {high_name}: {low_name}={low!r}, {high_name}={high!r}")


def _check_optimizer(optimizer: Optimizer) -> None:
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"optimizer must be a torch optimizer, not {type(optimizer).__name__}")
    separate_rates(optimizer)


def separate_rates(optimizer: Optimizer) -> None:
    """Give each group a rate of its own, where torch's constructor put one tensor into several.

    Filled for one group, it would change the others' rates, too.

    Raises:
        ValueError: a rate is a tensor of whole numbers, into which no rate fits; an `lr_mult` or `lr_scale` is no
            number from 0 on. Nothing is changed then.
    """
    for index, group in enumerate(optimizer.param_groups):
        if isinstance(group.get("lr"), Tensor) and not group["lr"].is_floating_point():
            raise ValueError(f"the optimizer's group {index} has lr={group['lr']!r}: a tensor of floats is needed")
        for name in ("lr_mult", "lr_scale"):
            _number(f"{name} of the optimizer's group {index}", group.get(name, 1.0), zero=True)
    seen = set()
    for group in optimizer.param_groups:
        if isinstance(group.get("lr"), Tensor):
            if id(group["lr"]) in seen:
                group["lr"] = group["lr"].clone()
            seen.add(id(group["lr"]))


def filled(old: float | Tensor, value: float | Tensor) -> float | Tensor:
    """The new value; a tensor is filled, as compiled and captured optimizers hold on to theirs."""
    if not isinstance(old, Tensor):
        return value
    return old.fill_(value.reshape(()) if isinstance(value, Tensor) else value)


def multiplier(group: dict) -> float:
    """What a parameter group's rate is multiplied by: its `lr_mult` (Caffe) times its `lr_scale` (timm)."""
    return group.get("lr_mult", 1.0) * group.get("lr_scale", 1.0)


def _attributes(function: Callable | None) -> dict:
    """The attributes of a function that is an object, or an object's method; an empty dictionary for any other."""
    owner = function.__self__ if isinstance(function, MethodType) else function
    return {} if isinstance(owner, FunctionType | type) else getattr(owner, "__dict__", {})


def _is_plain(value) -> bool:
    """Whether `torch.load(weights_only=True)` would read it."""
    if isinstance(value, dict):
        return all(map(_is_plain, (*value, *value.values())))
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or type(value) in (bool, int, float, str, Tensor)


def set_lr(optimizer: Optimizer, lr: PerGroup, stacklevel: int = 2) -> None:
    """Set every parameter group, and its initial rate, to `lr` times its multipliers, `lr_mult` and `lr_scale`.

    Args:
        optimizer: changed in place.
        lr: one rate, or one for each group; 0 or more.
        stacklevel: as of `warnings.warn`; 0 for no warning.

    Raises:
        TypeError: `optimizer` is none of torch's.
        ValueError: a rate is negative or no number, or there are not as many as groups. Nothing is changed then.

    Warns:
        UserWarning: a scheduler was made for this optimizer before, and goes on from the rates it was made with; one
            rate was given, and groups without a multiplier had several.
    """
    _check_optimizer(optimizer)
    groups = optimizer.param_groups
    given = _per_group("lr", lr, len(groups), zero=True)
    if stacklevel:
        _tell_of_one_rate(optimizer, given, stacklevel + 1)
    rates = [rate * multiplier(group) for rate, group in zip(_spread(given, len(groups)), groups, strict=True)]
    for group, rate in zip(groups, rates, strict=True):
        group["initial_lr"] = rate
        group["lr"] = filled(group["lr"], rate)
    optimizer._initial_lr_set = rates if _has_scheduler(optimizer) else None
    if stacklevel and _has_scheduler(optimizer):
        warnings.warn(
            "a scheduler that was made before goes on from its own rates: make it anew for the rate set now",
            stacklevel=stacklevel,
        )


def _tell_of_one_rate(optimizer: Optimizer, lr: float | list[float], stacklevel: int) -> None:
    """Warn where groups had several rates and get one now; an `lr_mult` or `lr_scale` is no rate of its own."""
    own = [float(group["lr"]) for group in optimizer.param_groups if not {"lr_mult", "lr_scale"} & group.keys()]
    if len(had := dict.fromkeys(own)) > 1 and not isinstance(lr, list):
        warnings.warn(
            f"all parameter groups get one rate now, where they had {', '.join(f'{rate:g}' for rate in had)}: to keep "
            "their ratios, give a rate for each, or the groups an lr_mult",
            stacklevel=stacklevel,
        )


def _has_scheduler(optimizer: Optimizer) -> bool:
    """Whether a scheduler was ever made for it: torch's constructor wraps `step`."""
    return hasattr(optimizer.step, "_wrapped_by_lr_sched")


@contextmanager
def _starting_at(optimizer: Optimizer, lr: float | list[float], stacklevel: int = 5) -> Iterator[None]:
    """Set rates and initial rates for the scheduler that is made meanwhile; `stacklevel` is of who makes it.

    `SequentialLR` has its first scheduler start from the initial rates, and torch's `OneCycleLR`, which leaves a
    `min_lr` in its groups, reads them in each step. So they are put back where a scheduler made before starts from
    them. One that climbs to them, such as a `LinearLR`, has set rates below: it shall climb to `lr`.
    """
    _check_optimizer(optimizer)
    _tell_of_one_rate(optimizer, lr, stacklevel)
    groups = optimizer.param_groups
    before = [group.get("initial_lr") for group in groups]
    # What set_lr, or one of ours, has set belongs to nobody else: ours keep what they start from.
    another = _has_scheduler(optimizer) and before != getattr(optimizer, "_initial_lr_set", None)
    kept = [another and ("min_lr" in group or group["lr"] == group.get("initial_lr")) for group in groups]
    set_lr(optimizer, lr, stacklevel=0)
    optimizer._initial_lr_set = [group["initial_lr"] for group in groups]
    yield
    for group, initial_lr, keep in zip(groups, before, kept, strict=True):
        if keep:
            group["initial_lr"] = initial_lr


class _PolicyLR(LRScheduler):
    """A learning rate that is one formula of the iteration, `lr_at(t)`, times each parameter group's multipliers."""

    def __init__(self, optimizer: Optimizer, last_epoch: int, initial_lr: float | list[float]) -> None:
        _check_optimizer(optimizer)
        if not (isinstance(last_epoch, Integral) and not isinstance(last_epoch, bool) and last_epoch >= -1):
            raise ValueError(f"last_epoch must be a whole number from -1 on, not {last_epoch!r}")
        with _starting_at(optimizer, initial_lr, stacklevel=6):
            super().__init__(optimizer, last_epoch)

    def lr_at(self, t: float) -> float:
        """Learning rate at iteration `t`, before any `lr_mult`."""
        raise NotImplementedError

    def get_lr(self) -> list[float]:
        lr = self.lr_at(self.last_epoch)
        return [lr * multiplier(group) for group in self.optimizer.param_groups]


class CyclicLR(_PolicyLR):
    """Cycle the learning rate between two bounds; call `step()` once an iteration, after `optimizer.step()`.

    With `cycle = floor(1 + t / (2 step_size))`, `x = |t / step_size - 2 cycle + 1|` and `h = max(0, 1 - x)`:

    * `triangular`: `base_lr + (max_lr - base_lr) h`
    * `triangular2`: the amplitude halves with each cycle, `... h / 2^(cycle - 1)`
    * `exp_range`: the amplitude decays, `... h gamma^t` (as in bckenstler/CLR and torch)
    * `exp_range_both`: both bounds decay, `(base_lr + ...) gamma^t` (the paper's wording, coxy1989/clr)
    * `scale_fn` given: `... h scale_fn(cycle)` or `... h scale_fn(t)`; `mode` is then ignored, whatever it says
      (bckenstler/CLR and torch)

    The first three modes equal `torch.optim.lr_scheduler.CyclicLR`; momentum is cycled only if you ask for it.

    In torch's `SequentialLR` and `ChainedScheduler` it goes before, after and beside others. Made, it sets the
    optimizer's rate to `base_lr`, and the initial rate, too: a `LinearLR` before it warms up to `base_lr`. The initial
    rate stays where a scheduler that was made before starts from it, such as a `MultiStepLR` or a `OneCycleLR`.

    A parameter group added later takes part from the next `step()`; where bounds are lists, give `reset` longer ones.

    `history` is a dictionary of lists with one entry an iteration: `iteration`, counted from 0, `lr`, the cycle's rate
    (of the first group, before its multipliers and what another scheduler makes of it), and the metrics that `step` was
    given. bckenstler/CLR counts `iterations` from 1 and keeps the rate of the iteration to come: its `lr[i]` is
    `lr[i + 1]` here.

    Args:
        optimizer: any torch optimizer. A group's `lr_mult` (Caffe's multipliers) or `lr_scale` (timm's), where there is
            one, multiplies its rate. The optimizer's own rate is replaced by `base_lr` at once.
        base_lr: lower bound of the cycle, the rate at iteration 0; may be 0. One number, or one for each group.
        max_lr: upper bound of the cycle, reached after `step_size` iterations. One number, or one for each group.
        step_size: iterations in half a cycle; the paper (3.2) advises 2 to 10 epochs.
        mode: one of `triangular`, `triangular2`, `exp_range`, `exp_range_both`; anything where there is a `scale_fn`.
        gamma: decay per iteration for the `exp_range` modes.
        scale_fn: function of one number giving a factor in [0, 1], or the name of one in `SCALE_FUNCTIONS`. Called once
            an iteration; an object may remember something from call to call.
        scale_mode: what `scale_fn` is called with: `cycle` (1, 2, ...) or `iterations` (since the last `reset`).
        last_epoch: as in torch; -1 starts afresh, k goes on as if at iteration k + 1.
        step_size_up: torch's name for `step_size`.
        step_size_down: iterations from `max_lr` back to `base_lr`, where they are not as many as up.
        cycle_momentum: move the momentum against the rate, from `max_momentum` at `base_lr` to `base_momentum` at
            `max_lr`; of Adam and its like the first of the `betas`.
        base_momentum, max_momentum: in [0, 1); one number, or one for each group.
        history_size: how many iterations `history` keeps, the last ones. None keeps all, as bckenstler/CLR does, and a
            state holds them: 14 MB in a checkpoint after a million iterations, 9 more for each metric. 0 keeps nothing.

    Raises:
        TypeError: `optimizer` is none of torch's.
        ValueError: for a bound, step size, gamma, mode or scale function that makes no sense; the message shows it.

    Warns:
        UserWarning: bounds are single numbers, and parameter groups without a multiplier had different rates.

    Source: the paper, section 3; bckenstler/CLR for the arguments, `reset` and `history`; torch for those by name only.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        base_lr: PerGroup = 0.001,
        max_lr: PerGroup = 0.006,
        step_size: float = _STEP_SIZE,
        mode: str = "triangular",
        gamma: float = 1.0,
        scale_fn: Callable[[float], float] | str | None = None,
        scale_mode: str = "cycle",
        last_epoch: int = -1,
        *,
        step_size_up: float | None = None,
        step_size_down: float | None = None,
        cycle_momentum: bool = False,
        base_momentum: PerGroup = 0.8,
        max_momentum: PerGroup = 0.9,
        history_size: int | None = None,
    ) -> None:
        _check_optimizer(optimizer)
        self.optimizer = optimizer
        if step_size_up is not None:
            if step_size not in (_STEP_SIZE, step_size_up):
                raise ValueError(f"step_size={step_size!r} and step_size_up={step_size_up!r} are one thing: give one")
            step_size = step_size_up
        if scale_fn is None and mode not in MODES:
            raise ValueError(f"mode must be one of {', '.join(MODES)}, not {mode!r}")
        if scale_mode not in ("cycle", "iterations"):
            raise ValueError(f"scale_mode must be cycle or iterations, not {scale_mode!r}")
        known = scale_fn in SCALE_FUNCTIONS if isinstance(scale_fn, str) else scale_fn is None or callable(scale_fn)
        if not known:
            raise ValueError(f"scale_fn must be a function or one of {', '.join(SCALE_FUNCTIONS)}, not {scale_fn!r}")
        if history_size is not None and not (type(history_size) is int and history_size >= 0):
            raise ValueError(f"history_size must be a count or None, not {history_size!r}")
        if cycle_momentum:
            self._check_momentum()
        self.mode, self.gamma, self.scale_mode = mode, float(_number("gamma", gamma)), scale_mode
        self.cycle_momentum, self.history_size = bool(cycle_momentum), history_size
        cycle = dict(base_lr=base_lr, max_lr=max_lr, step_size=step_size, step_size_down=step_size_down)
        cycle |= dict(base_momentum=base_momentum, max_momentum=max_momentum)
        self.__dict__.update(self._checked(cycle))
        self._use_scale_fn(scale_fn)
        self.cycle_start = 0  # the iteration at which the first cycle started
        self.history: dict[str, list] = {"iteration": [], "lr": []}
        several = isinstance(self.max_lr, list)
        super().__init__(optimizer, last_epoch, _spread(self.base_lr, len(self.max_lr)) if several else self.base_lr)

    def _checked(self, cycle: dict) -> dict:
        """A cycle's bounds and steps as plain numbers; ValueError where they make no sense."""
        groups, new = len(self.optimizer.param_groups), {}
        for low, high in (("base_lr", "max_lr"), ("base_momentum", "max_momentum")):
            new[low] = _per_group(low, cycle[low], groups, zero=True)
            new[high] = _per_group(high, cycle[high], groups, zero=high == "max_momentum")
            for pair in zip(_spread(new[low], groups), _spread(new[high], groups), strict=True):
                _ordered(*pair, low, high)
        if (top := max(_spread(new["max_momentum"], groups))) >= 1:
            raise ValueError(f"max_momentum must be below 1, not {top!r}")
        new["step_size"] = float(_number("step_size", cycle["step_size"]))
        down = cycle["step_size_down"]
        new["step_size_down"] = None if down is None else float(_number("step_size_down", down))
        return new

    @property
    def base_lrs(self) -> list[float]:
        """`base_lr` of each parameter group, times its multipliers; also after `reset` and loading."""
        groups = self.optimizer.param_groups
        _check_length("base_lr", self.base_lr, len(groups))
        rates = zip(_spread(self.base_lr, len(groups)), groups, strict=True)
        return [base_lr * multiplier(group) for base_lr, group in rates]

    @base_lrs.setter
    def base_lrs(self, _: list) -> None:
        """torch's constructor sets them; what `base_lr` says holds."""

    def _check_momentum(self) -> None:
        if not all("momentum" in group or "betas" in group for group in self.optimizer.param_groups):
            raise ValueError(f"cycle_momentum: {type(self.optimizer).__name__} has neither momentum nor betas")

    def _use_scale_fn(self, scale_fn: Callable[[float], float] | str | None) -> None:
        named = scale_fn is None or isinstance(scale_fn, str)
        # The colon tells a function of yours from one of SCALE_FUNCTIONS, should it have the same name.
        own = getattr(scale_fn, "__qualname__", type(scale_fn).__qualname__)
        self._scale_name = scale_fn if named else f"custom:{own}"
        self._scale_fn = SCALE_FUNCTIONS.get(scale_fn) if named else scale_fn

    def _scale_values(self, memory: dict) -> list[float]:
        """The scale function at a few places, as all lambdas have one name; empty where it is not defined there.

        A copy of it is asked, as one that is an object may remember that it was.
        """
        with suppress(Exception):  # nine digits: another machine's sine may differ in the last
            scale_fn = copy.deepcopy(self._scale_fn)
            _attributes(scale_fn).update(copy.deepcopy(memory))
            return [float(f"{scale_fn(x):.9g}") for x in (1, 2, 3, 10)]
        return []

    def _shape(self, t: float) -> tuple[float, float]:
        """How far up the cycle iteration `t` is, in [0, 1], and the factor of its scale function."""
        if self.step_size_down is None:
            cycle = math.floor(1 + t / (2 * self.step_size))
            height = max(0.0, 1 - abs(t / self.step_size - 2 * cycle + 1))
        else:
            whole = self.step_size + self.step_size_down
            cycle = math.floor(1 + t / whole)
            done = t - (cycle - 1) * whole
            height = max(0.0, min(done / self.step_size, (whole - done) / self.step_size_down))
        if self._scale_fn is not None:
            scale = _plain(self._scale_fn(at := cycle if self.scale_mode == "cycle" else t))
            if not (isinstance(scale, Real) and math.isfinite(scale)):
                raise ValueError(f"scale_fn must give a finite number, not {scale!r} for {at!r}")
            return height, scale
        if self.mode == "triangular2":
            return height, math.ldexp(1.0, 1 - cycle)
        return height, self.gamma**t if self.mode.startswith("exp_range") else 1.0

    def _rate(self, shape: tuple[float, float], group: int) -> float:
        height, scale = shape
        base_lr, max_lr = (x[group] if isinstance(x, list) else x for x in (self.base_lr, self.max_lr))
        height = (max_lr - base_lr) * height
        if self.mode == "exp_range_both" and self._scale_fn is None:
            return (base_lr + height) * scale
        if (rate := base_lr + height * scale) < -1e-9 * max_lr:  # by more than rounding
            raise ValueError(f"scale_fn must not make a rate negative: {scale!r} gives {rate:g}, which climbs the loss")
        return rate

    def lr_at(self, t: float, group: int = 0) -> float:
        """Learning rate `t` iterations after the start of the cycles (after the last reset), before any `lr_mult`.

        Args:
            t: iterations.
            group: index of the parameter group, where bounds are lists.
        """
        return self._rate(self._shape(t), group)

    def get_lr(self) -> list[float]:
        """The current iteration's rates; writes its momentum into the optimizer, as torch's `CyclicLR` does here."""
        groups = self.optimizer.param_groups
        for name in ("base_lr", "max_lr", "base_momentum", "max_momentum"):
            _check_length(name, getattr(self, name), len(groups))
        height, scale = shape = self._shape(self.last_epoch - self.cycle_start)
        if self.cycle_momentum:
            bounds = (_spread(bound, len(groups)) for bound in (self.base_momentum, self.max_momentum))
            self._write_momentum([high - (high - low) * height * scale for low, high in zip(*bounds, strict=True)])
        self._lr = self._rate(shape, 0)
        return [self._rate(shape, index) * multiplier(group) for index, group in enumerate(groups)]

    def step(self, epoch: int | None = None, *, metrics: dict[str, float] | None = None) -> None:
        """Move to the next iteration's rate, and write the one just finished into `history`.

        Args:
            epoch: as in torch, deprecated there; leave it out.
            metrics: numbers measured in the iteration just finished, e.g. `{"loss": 1.2}`; kept as floats in `history`,
                where an iteration that did not report a metric holds None.

        Raises:
            ValueError: a metric is called `iteration` or `lr`, which `history` has already; bounds are lists, and a
                parameter group was added; `epoch` is no whole number; `scale_fn` makes a rate negative.
        """
        if not (epoch is None or isinstance(epoch, Integral)):
            raise ValueError(f"epoch must be a whole number, not {epoch!r}; metrics are given by name: metrics={{...}}")
        # torch's step would warn of our line instead of the one that called it.
        if self._step_count == 1 and not getattr(self.optimizer, "_opt_called", False):
            warnings.warn(_STEPPED_FIRST, UserWarning, stacklevel=2)
        if epoch is not None:
            warnings.warn(EPOCH_DEPRECATION_WARNING, UserWarning, stacklevel=2)
        if self._step_count > 0 and self.last_epoch >= 0:  # an iteration is done, and it was this scheduler's
            self._remember(metrics or {})
        self._step_count += 1
        self.last_epoch = self.last_epoch + 1 if epoch is None else epoch
        self._apply()

    def _remember(self, metrics: dict[str, float]) -> None:
        if taken := {"iteration", "lr"} & metrics.keys():
            raise ValueError(f"metrics: history has {', '.join(sorted(taken))} already, give it another name")
        row = {"iteration": self.last_epoch, "lr": self._lr}
        row |= {key: float(x.item() if isinstance(x, Tensor) else x) for key, x in metrics.items()}
        done = len(self.history["iteration"])
        for key in row.keys() | self.history.keys():
            self.history.setdefault(key, [None] * done).append(row.get(key))
        self._cut_history()

    def _cut_history(self) -> None:
        if self.history_size is not None:
            for values in self.history.values():
                del values[: max(0, len(values) - self.history_size)]

    def reset(
        self,
        base_lr: PerGroup | None = None,
        max_lr: PerGroup | None = None,
        step_size: float | None = None,
        *,
        step_size_down: float | None = None,
        base_momentum: PerGroup | None = None,
        max_momentum: PerGroup | None = None,
    ) -> None:
        """Start a new first cycle now; what is left out stays as it was. `history` runs on.

        Raises:
            ValueError: for bounds or a step size that make no sense; the scheduler then stays as it was.
        """
        new = dict(base_lr=base_lr, max_lr=max_lr, step_size=step_size, step_size_down=step_size_down)
        new |= dict(base_momentum=base_momentum, max_momentum=max_momentum)
        cycle = {key: getattr(self, key) if value is None else value for key, value in new.items()}
        self.__dict__.update(self._checked(cycle))
        self.cycle_start = max(self.last_epoch, 0)
        if self.last_epoch >= 0:  # else its turn in a SequentialLR is still to come
            self._apply()

    def _apply(self) -> None:
        """Write the current iteration's rates into the optimizer."""
        rates = self.get_lr()
        self._write_rates(rates)
        self._keep_last(rates)

    def _keep_last(self, rates: list[float]) -> None:
        """What `get_last_lr` gives: tensors where the optimizer's rates are, but never these."""
        olds = [group["lr"] for group in self.optimizer.param_groups]
        olds = [old.clone() if isinstance(old, Tensor) else old for old in olds]
        self._last_lr = [filled(old, lr) for old, lr in zip(olds, rates, strict=True)]

    def _write_rates(self, rates: list[float]) -> None:
        for group, lr in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = filled(group["lr"], lr)

    def _write_momentum(self, momenta: list[float]) -> None:
        for group, momentum in zip(self.optimizer.param_groups, momenta, strict=True):
            if "betas" in group:
                first, *others = group["betas"]
                group["betas"] = (filled(first, momentum), *others)
            else:
                group["momentum"] = momentum

    def _optimizer_momenta(self) -> list[float]:
        groups = self.optimizer.param_groups
        return [float(group["betas"][0] if "betas" in group else group["momentum"]) for group in groups]

    _CYCLE = ("base_lr", "max_lr", "step_size", "step_size_down", "base_momentum", "max_momentum")
    _SETTINGS = ("mode", "gamma", "scale_mode", "cycle_momentum", "cycle_start", "last_epoch", "_step_count")

    def state_dict(self) -> dict:
        """Everything needed to go on, in plain numbers, strings and lists: safe for `torch.load(weights_only=True)`.

        Of a custom `scale_fn` the name and a few values are stored, to know it again; of one that is an object also the
        attributes that are numbers, strings, tensors, lists and dictionaries, to restore them. The optimizer's rates
        and momenta are stored as they are: in a `SequentialLR` or a `ChainedScheduler` they may be another scheduler's.
        `history_size` is not stored.
        """
        memory = {key: x for key, x in _attributes(self._scale_fn).items() if not key.startswith("__") and _is_plain(x)}
        state = {key: copy.copy(getattr(self, key)) for key in (*self._CYCLE, *self._SETTINGS)}
        state["lr"] = self._lr
        state["last_lr"] = [float(lr) for lr in self._last_lr]
        state["optimizer_lr"] = [float(group["lr"]) for group in self.optimizer.param_groups]
        state["optimizer_momentum"] = self._optimizer_momenta() if self.cycle_momentum else None
        state["scale_fn"] = self._scale_name
        state["scale_memory"] = copy.deepcopy(memory)
        state["scale_values"] = self._scale_values(memory)
        state["history"] = {key: list(values) for key, values in self.history.items()}
        return state

    def load_state_dict(self, state_dict: dict) -> None:
        """Restore every parameter and the optimizer's rates; training goes on bit for bit.

        The optimizer's own state may be loaded before or after.

        Raises:
            ValueError: the state is not of this class; or of an optimizer with other groups, where bounds are lists; or
                it was saved with a custom `scale_fn`, and this one's has another name or other values. Nothing is
                changed then.
        """
        if self.state_dict().keys() - state_dict.keys():
            whose = "torch's own CyclicLR" if "total_size" in state_dict else "another scheduler"
            done = state_dict.get("last_epoch")
            hint = f": CyclicLR(..., last_epoch={done - 1}) goes on where it stopped" if isinstance(done, int) else ""
            raise ValueError(f"the state is of {whose}{hint}")
        if state_dict["cycle_momentum"]:
            self._check_momentum()
        try:
            cycle = self._checked(state_dict)
        except ValueError as error:
            raise ValueError(f"the state's {error}") from None
        self._load_scale_fn(state_dict["scale_fn"], state_dict["scale_memory"], state_dict["scale_values"])
        self.__dict__.update(cycle | {key: state_dict[key] for key in self._SETTINGS})
        self.history = {key: list(values) for key, values in state_dict["history"].items()}
        self._cut_history()
        rates = state_dict["optimizer_lr"]
        if len(rates) == len(self.optimizer.param_groups):
            self._lr = state_dict["lr"]
            self._write_rates(rates)
            self._keep_last(state_dict["last_lr"])
            if self.cycle_momentum:
                self._write_momentum(state_dict["optimizer_momentum"])
        elif self.last_epoch >= 0 and rates == state_dict["last_lr"]:  # else they are another scheduler's
            self._apply()

    def _load_scale_fn(self, name: str | None, memory: dict, values: list[float]) -> None:
        if name is None or name in SCALE_FUNCTIONS:
            self._use_scale_fn(name)
        elif name != self._scale_name:
            raise ValueError(f"the state's scale_fn is {name.removeprefix('custom:')!r}: give it to CyclicLR first")
        elif values != self._scale_values(memory):
            raise ValueError(f"the saved scheduler's scale function gave other values than this one's {name!r}")
        else:
            _attributes(self._scale_fn).update(copy.deepcopy(memory))


class RangeTestLR(_PolicyLR):
    """Learning rate range test: one ramp from `min_lr` to `max_lr`, then `max_lr`.

    Args:
        optimizer: any torch optimizer; groups may have an `lr_mult`.
        min_lr, max_lr: rates at iteration 0, and at iteration `iterations` and after. A linear ramp may start at 0.
        iterations: length of the ramp.
        ramp: `linear` (the paper 3.3, coxy1989/clr) or `exponential` (best_lr).
        last_epoch: as in torch.

    Raises:
        TypeError: `optimizer` is none of torch's.
        ValueError: `min_lr` not below `max_lr`, a number that is not positive, an unknown ramp.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        min_lr: float,
        max_lr: float,
        iterations: int,
        ramp: str = "linear",
        last_epoch: int = -1,
    ) -> None:
        if ramp not in ("linear", "exponential"):
            raise ValueError(f"ramp must be linear or exponential, not {ramp!r}")
        self.min_lr = float(_number("min_lr", min_lr, zero=True))
        self.max_lr = float(_number("max_lr", max_lr))
        if self.min_lr >= self.max_lr:
            raise ValueError(f"min_lr must be below max_lr: min_lr={min_lr!r}, max_lr={max_lr!r}")
        if ramp == "exponential" and self.min_lr == 0:
            raise ValueError(f"min_lr={min_lr!r}: an exponential ramp cannot start at 0, a linear one can")
        self.iterations, self.ramp = _number("iterations", iterations), ramp
        super().__init__(optimizer, last_epoch, self.min_lr)

    def lr_at(self, t: float) -> float:
        """Learning rate at iteration `t`, before any `lr_mult`."""
        part = min(t / self.iterations, 1.0)
        if self.ramp == "linear":
            return self.min_lr + (self.max_lr - self.min_lr) * part
        return self.min_lr * (self.max_lr / self.min_lr) ** part

    def load_state_dict(self, state_dict: dict) -> None:
        """Restore the ramp and where it is.

        Raises:
            ValueError: the state is of another scheduler. Nothing is changed then.
        """
        if missing := {"min_lr", "max_lr", "iterations", "ramp", "last_epoch"} - state_dict.keys():
            raise ValueError(f"the state is of another scheduler: it has no {', '.join(sorted(missing))}")
        super().load_state_dict(state_dict)


def decay(optimizer: Optimizer, base_lr: float, max_lr: float, step_size: float) -> LambdaLR:
    """`max_lr` falling linearly to `base_lr` over `step_size` iterations, then `base_lr` (the paper's 4.1.1 control).

    `base_lr` may be 0. Parameter groups cannot be added later: torch's LambdaLR counts them once.

    Raises:
        TypeError: `optimizer` is none of torch's.
        ValueError: bounds or a step size that make no sense.
    """
    base_lr, max_lr = float(_number("base_lr", base_lr, zero=True)), float(_number("max_lr", max_lr))
    _ordered(base_lr, max_lr)
    step_size = _number("step_size", step_size)
    with _starting_at(optimizer, max_lr):
        return LambdaLR(optimizer, lambda t: 1 - (1 - base_lr / max_lr) * min(t / step_size, 1.0))


class _FromOwnRate:
    """A torch scheduler that starts from its own rate; torch's start from the rate that the last one made has set."""

    def get_lr(self) -> list[float | Tensor]:
        return list(self.base_lrs) if self.last_epoch == 0 else super().get_lr()


class _OwnExponentialLR(_FromOwnRate, ExponentialLR):
    pass


class _OwnMultiStepLR(_FromOwnRate, MultiStepLR):
    pass


def exponential(optimizer: Optimizer, lr: float, gamma: float) -> ExponentialLR:
    """`lr gamma^t` (the paper's `exp` policy), torch's ExponentialLR stepped once an iteration.

    Raises:
        TypeError: `optimizer` is none of torch's.
        ValueError: `lr` or `gamma` not positive.
    """
    lr, gamma = float(_number("lr", lr)), float(_number("gamma", gamma))
    with _starting_at(optimizer, lr):
        return _OwnExponentialLR(optimizer, gamma)


def fixed(
    optimizer: Optimizer, lr: float = 0.001, milestones: tuple[int, ...] = (60_000, 65_000), gamma: float = 0.1
) -> MultiStepLR:
    """`lr`, multiplied by `gamma` at each milestone: Caffe's solver for `cifar10_full`, coxy1989/clr's baseline.

    Raises:
        TypeError: `optimizer` is none of torch's.
        ValueError: `lr` or `gamma` not positive, milestones not increasing.
    """
    lr, gamma = float(_number("lr", lr)), float(_number("gamma", gamma))
    if any(a >= b for a, b in pairwise(milestones)) or any(m < 1 for m in milestones):
        raise ValueError(f"milestones must be increasing iterations, not {milestones!r}")
    with _starting_at(optimizer, lr):
        return _OwnMultiStepLR(optimizer, list(milestones), gamma)


#: What a warm-up starts from, of the policy's own rate: a cycle with `base_lr = max_lr / 4` climbs from there, too.
WARM_UP_FROM = 0.25


class _Multiplied(LRScheduler):
    """Another scheduler's rates, each multiplied by a factor that depends on the iteration alone.

    It goes around others, a `SequentialLR` among them, and not into torch's `SequentialLR`.

    Args:
        scheduler: any torch scheduler that counts its steps, fresh; it is stepped by this one.

    Raises:
        TypeError: it is none, or a `ChainedScheduler`, which counts none.
    """

    def __init__(self, scheduler: LRScheduler) -> None:
        if not isinstance(getattr(scheduler, "last_epoch", None), int):
            raise TypeError(f"scheduler must be a torch scheduler with a last_epoch, not {type(scheduler).__name__}")
        self.scheduler = scheduler
        self.optimizer, self.base_lrs = scheduler.optimizer, getattr(scheduler, "base_lrs", None)
        self._apply()

    @property
    def last_epoch(self) -> int:
        return self.scheduler.last_epoch

    def factor(self, t: int) -> float:
        """What the rate of iteration `t` is multiplied by."""
        raise NotImplementedError

    def step(self, **given: object) -> None:
        """Move to the next iteration's rate.

        Args:
            given: what the scheduler within takes, such as the `metrics` of `CyclicLR` or `ReduceLROnPlateau`.

        Raises:
            ValueError: a parameter group was added since the scheduler was made.
        """
        made, now = len(self.scheduler.get_last_lr()), len(self.optimizer.param_groups)
        if made != now:
            raise ValueError(
                f"the optimizer has {now} parameter groups, and had {made} when {type(self).__name__} was made: make "
                "the scheduler anew"
            )
        # Some schedulers compute a rate from the one they find: let it be their own.
        for group, lr in zip(self.optimizer.param_groups, self.scheduler.get_last_lr(), strict=True):
            group["lr"] = filled(group["lr"], lr)
        self.scheduler.step(**given)
        self._apply()

    def _apply(self) -> None:
        factor = self.factor(self.last_epoch)
        self._last_lr = [lr * factor for lr in self.scheduler.get_last_lr()]
        for group, lr in zip(self.optimizer.param_groups, self._last_lr, strict=True):
            group["lr"] = filled(group["lr"], lr)

    @staticmethod
    def state_of(scheduler_state: dict) -> dict:
        """The state of such a scheduler from the state of the one within."""
        return {"scheduler": scheduler_state}

    def state_dict(self) -> dict:
        """The state of the scheduler within; the factor belongs to the run."""
        return self.state_of(self.scheduler.state_dict())

    def load_state_dict(self, state_dict: dict) -> None:
        """Go on from a state, also from one that `state_of` made of the inner scheduler's own.

        Raises:
            ValueError: the state is of another scheduler. Nothing is changed then.
        """
        if not isinstance(state_dict.get("scheduler"), dict):
            raise ValueError("the state is of another scheduler: it has none of a scheduler within")
        self.scheduler.load_state_dict(state_dict["scheduler"])
        self._apply()


class Annealed(_Multiplied):
    """Another scheduler's rates, multiplied from iteration `start` on by a straight line from 1 to 0 at `end`.

    Args:
        scheduler: any torch scheduler that counts its steps, fresh; it is stepped by this one.
        start, end: iterations, `start < end`.

    Raises:
        ValueError: `start` is not before `end`.
    """

    def __init__(self, scheduler: LRScheduler, start: int, end: int) -> None:
        if not 0 <= start < end:
            raise ValueError(f"start must be before end: start={start!r}, end={end!r}")
        self.start, self.end = start, end
        super().__init__(scheduler)

    def factor(self, t: int) -> float:
        return min(1.0, max(0.0, (self.end - t) / (self.end - self.start)))


class WarmedUp(_Multiplied):
    """Another scheduler's rates, multiplied by a straight line from `start` at iteration 0 to 1 at `iterations`.

    The scheduler within counts from iteration 0 as well: the climb takes nothing off its length.

    Args:
        scheduler: any torch scheduler that counts its steps, fresh; it is stepped by this one.
        iterations: length of the climb, above 0.
        start: the first factor, from 0 to 1.

    Raises:
        ValueError: a length or a start that makes no sense.
    """

    def __init__(self, scheduler: LRScheduler, iterations: int, start: float = WARM_UP_FROM) -> None:
        self.iterations, self.start = _number("iterations", iterations), float(_number("start", start, zero=True))
        _ordered(self.start, 1.0, "start", "the last factor")
        super().__init__(scheduler)

    def factor(self, t: int) -> float:
        return min(1.0, self.start + (1 - self.start) * t / self.iterations)
