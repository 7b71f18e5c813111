"""Learning rate policies of Smith, *Cyclical Learning Rates for Training Neural Networks* (arXiv:1506.01186).

Every cyclical policy is a closed formula of the iteration: it never drifts and can be resumed anywhere. What torch has
already (MultiStepLR, ExponentialLR, OneCycleLR, ...) is used from torch.
"""

import math
from collections.abc import Callable
from contextlib import suppress
from itertools import pairwise
from numbers import Real

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ExponentialLR, LambdaLR, LRScheduler, MultiStepLR

MODES = ("triangular", "triangular2", "exp_range", "exp_range_both")

#: Scale functions that can be asked for by name; a named one survives `state_dict()` whole.
SCALE_FUNCTIONS: dict[str, Callable[[float], float]] = {
    "sinusoidal": lambda cycle: 0.5 * (1 + math.sin(cycle * math.pi / 2)),
    "inverse_power_of_5": lambda t: 1 / 5 ** (t * 1e-4),
}


def _positive(**values: float) -> None:
    for name, value in values.items():
        if not (isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value) and value > 0):
            raise ValueError(f"{name} must be a positive number, not {value!r}")


def _bounds(low: float, high: float, low_name: str = "base_lr", high_name: str = "max_lr") -> None:
    _positive(**{low_name: low, high_name: high})
    if low > high:
        raise ValueError(f"{low_name} must not exceed {high_name}: {low_name}={low!r}, {high_name}={high!r}")


def _write(group: dict, lr: float) -> None:
    """Set a parameter group's rate; a tensor is filled, as compiled and captured optimizers hold on to theirs."""
    if isinstance(group["lr"], Tensor):
        group["lr"].fill_(lr)
    else:
        group["lr"] = lr


def set_lr(optimizer: Optimizer, lr: float) -> None:
    """Set every parameter group, and its initial rate, to `lr` times its `lr_mult` (1 where it has none)."""
    for group in optimizer.param_groups:
        group["initial_lr"] = lr * group.get("lr_mult", 1.0)
        _write(group, group["initial_lr"])


class _PolicyLR(LRScheduler):
    """A learning rate that is one formula of the iteration, `lr_at(t)`, times the `lr_mult` of each parameter group."""

    cycle_start = 0  # the iteration at which the policy started

    def __init__(self, optimizer: Optimizer, last_epoch: int) -> None:
        set_lr(optimizer, self.lr_at(max(last_epoch, 0)))
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float]:
        lr = self.lr_at(self.last_epoch - self.cycle_start)
        return [lr * group.get("lr_mult", 1.0) for group in self.optimizer.param_groups]


class CyclicLR(_PolicyLR):
    """Cycle the learning rate between two bounds; call `step()` once an iteration, after `optimizer.step()`.

    With `cycle = floor(1 + t / (2 step_size))`, `x = |t / step_size - 2 cycle + 1|` and `h = max(0, 1 - x)`:

    * `triangular`: `base_lr + (max_lr - base_lr) h`
    * `triangular2`: the amplitude halves with each cycle, `... h / 2^(cycle - 1)`
    * `exp_range`: the amplitude decays, `... h gamma^t` (as in bckenstler/CLR and torch)
    * `exp_range_both`: both bounds decay, `(base_lr + ...) gamma^t` (the paper's wording, coxy1989/clr)
    * `scale_fn` given: `... h scale_fn(cycle)` or `... h scale_fn(t)`; `mode` is then ignored (bckenstler/CLR)

    The first three modes equal `torch.optim.lr_scheduler.CyclicLR` with `cycle_momentum=False`.

    Args:
        optimizer: any torch optimizer. A group's `lr_mult`, where there is one, multiplies its rate (Caffe's
            multipliers). The optimizer's own rate is replaced by `base_lr` at once.
        base_lr: lower bound of the cycle, the rate at iteration 0.
        max_lr: upper bound of the cycle, reached after `step_size` iterations.
        step_size: iterations in half a cycle; the paper (3.2) advises 2 to 10 epochs.
        mode: one of `triangular`, `triangular2`, `exp_range`, `exp_range_both`.
        gamma: decay per iteration for the `exp_range` modes.
        scale_fn: function of one number giving a factor in [0, 1], or the name of one in `SCALE_FUNCTIONS`.
        scale_mode: what `scale_fn` is called with: `cycle` (1, 2, ...) or `iterations` (since the last `reset`).
        last_epoch: as in torch; -1 starts afresh, k goes on as if at iteration k + 1.

    Raises:
        ValueError: for a bound, step size, gamma, mode or scale function that makes no sense; the message shows it.

    Source: the paper, section 3; bckenstler/CLR for the arguments, `reset` and `history`.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        base_lr: float = 0.001,
        max_lr: float = 0.006,
        step_size: float = 2000,
        mode: str = "triangular",
        gamma: float = 1.0,
        scale_fn: Callable[[float], float] | str | None = None,
        scale_mode: str = "cycle",
        last_epoch: int = -1,
    ) -> None:
        _bounds(base_lr, max_lr)
        _positive(step_size=step_size, gamma=gamma)
        if mode not in MODES:
            raise ValueError(f"mode must be one of {', '.join(MODES)}, not {mode!r}")
        if scale_mode not in ("cycle", "iterations"):
            raise ValueError(f"scale_mode must be cycle or iterations, not {scale_mode!r}")
        if isinstance(scale_fn, str) and scale_fn not in SCALE_FUNCTIONS:
            raise ValueError(f"scale_fn must be a function or one of {', '.join(SCALE_FUNCTIONS)}, not {scale_fn!r}")
        self.base_lr, self.max_lr, self.step_size = float(base_lr), float(max_lr), float(step_size)
        self.mode, self.gamma, self.scale_mode = mode, float(gamma), scale_mode
        self._use_scale_fn(scale_fn)
        self.history: dict[str, list] = {"iteration": [], "lr": []}
        super().__init__(optimizer, last_epoch)

    def _use_scale_fn(self, scale_fn: Callable[[float], float] | str | None) -> None:
        named = scale_fn is None or isinstance(scale_fn, str)
        # The colon tells a function of yours from one of SCALE_FUNCTIONS, should it have the same name.
        own = getattr(scale_fn, "__qualname__", type(scale_fn).__qualname__)
        self._scale_name = scale_fn if named else f"custom:{own}"
        self._scale_fn = SCALE_FUNCTIONS.get(scale_fn) if named else scale_fn

    def _scale_values(self) -> list[float]:
        """The scale function at a few places, as all lambdas have one name; empty where it is not defined there."""
        with suppress(Exception):  # nine digits: another machine's sine may differ in the last
            return [float(f"{self._scale_fn(x):.9g}") for x in (1, 2, 3, 10)]
        return []

    def lr_at(self, t: float) -> float:
        """Learning rate `t` iterations after the start of the cycles (after the last reset), before any `lr_mult`."""
        cycle = math.floor(1 + t / (2 * self.step_size))
        x = abs(t / self.step_size - 2 * cycle + 1)
        height = (self.max_lr - self.base_lr) * max(0.0, 1 - x)
        if self._scale_fn is not None:
            return self.base_lr + height * self._scale_fn(cycle if self.scale_mode == "cycle" else t)
        if self.mode == "triangular2":
            return self.base_lr + math.ldexp(height, 1 - cycle)
        if self.mode == "exp_range":
            return self.base_lr + height * self.gamma**t
        if self.mode == "exp_range_both":
            return (self.base_lr + height) * self.gamma**t
        return self.base_lr + height

    def step(self, epoch: int | None = None, *, metrics: dict[str, float] | None = None) -> None:
        """Move to the next iteration's rate, and write the one just finished into `history`.

        Args:
            epoch: as in torch, deprecated there; leave it out.
            metrics: numbers measured in the iteration just finished, e.g. `{"loss": 1.2}`; kept as floats in `history`,
                where an iteration that did not report a metric holds None.

        Raises:
            ValueError: a metric is called `iteration` or `lr`, which `history` has already.
        """
        if self._step_count > 0 and self.last_epoch >= 0:  # an iteration is done, and it was this scheduler's
            row = {"iteration": self.last_epoch, "lr": self.lr_at(self.last_epoch - self.cycle_start)}
            if taken := row.keys() & (metrics or {}).keys():
                raise ValueError(f"metrics: history has {', '.join(sorted(taken))} already, give it another name")
            row |= {key: float(x.item() if isinstance(x, Tensor) else x) for key, x in (metrics or {}).items()}
            done = len(self.history["iteration"])
            for key in row.keys() | self.history.keys():
                self.history.setdefault(key, [None] * done).append(row.get(key))
        super().step(epoch)

    def reset(self, base_lr: float | None = None, max_lr: float | None = None, step_size: float | None = None) -> None:
        """Start a new first cycle now, with new bounds or step size where given. `history` runs on.

        Raises:
            ValueError: for bounds or a step size that make no sense; the scheduler then stays as it was.
        """
        base_lr = self.base_lr if base_lr is None else base_lr
        max_lr = self.max_lr if max_lr is None else max_lr
        step_size = self.step_size if step_size is None else step_size
        _bounds(base_lr, max_lr)
        _positive(step_size=step_size)
        self.base_lr, self.max_lr, self.step_size = float(base_lr), float(max_lr), float(step_size)
        self.cycle_start = max(self.last_epoch, 0)
        if self.last_epoch >= 0:  # else its turn in a SequentialLR is still to come
            self._apply()

    def _apply(self) -> None:
        """Write the current iteration's rates into the optimizer."""
        self._last_lr = self.get_lr()
        self._write_all(self._last_lr)

    def _write_all(self, rates: list[float]) -> None:
        for group, lr in zip(self.optimizer.param_groups, rates, strict=True):
            _write(group, lr)

    def _optimizer_rates(self) -> list[float]:
        return [float(group["lr"]) for group in self.optimizer.param_groups]

    _SETTINGS = ("base_lr", "max_lr", "step_size", "mode", "gamma", "scale_mode")
    _STATE = (*_SETTINGS, "cycle_start", "last_epoch", "_step_count")

    def state_dict(self) -> dict:
        """Everything needed to go on, in plain numbers, strings and lists: safe for `torch.load(weights_only=True)`.

        Of a custom `scale_fn` the name and a few values are stored, to know it again. The optimizer's rates are stored
        as they are: in a `SequentialLR` or a `ChainedScheduler` they may be another scheduler's.
        """
        state = {key: getattr(self, key) for key in self._STATE}
        state["last_lr"] = [float(lr) for lr in self._last_lr]
        state["optimizer_lr"] = self._optimizer_rates()
        state["scale_fn"] = self._scale_name
        state["scale_values"] = self._scale_values()
        state["history"] = {key: list(values) for key, values in self.history.items()}
        return state

    def load_state_dict(self, state_dict: dict) -> None:
        """Restore every parameter and the optimizer's rates; training goes on bit for bit.

        The optimizer's own state may be loaded before or after.

        Raises:
            ValueError: the state was saved with a custom `scale_fn`, and this one's has another name or other values.
        """
        name = state_dict["scale_fn"]
        if name is None or name in SCALE_FUNCTIONS:
            self._use_scale_fn(name)
        elif name != self._scale_name:
            raise ValueError(f"the state's scale_fn is {name.removeprefix('custom:')!r}: give it to CyclicLR first")
        elif state_dict["scale_values"] != self._scale_values():
            raise ValueError(f"the saved scheduler's scale function gave other values than this one's {name!r}")
        # A state saved before it held the optimizer's rates: they are ours to write while nobody else has set them.
        in_charge = self._optimizer_rates() == [float(lr) for lr in self._last_lr]
        self.__dict__.update({key: state_dict[key] for key in self._STATE})
        self.history = {key: list(values) for key, values in state_dict["history"].items()}
        rates = state_dict.get("optimizer_lr")
        if rates is not None and len(rates) == len(self.optimizer.param_groups):
            self._last_lr = list(state_dict["last_lr"])
            self._write_all(rates)
        elif in_charge and self.last_epoch >= 0:
            self._apply()


class RangeTestLR(_PolicyLR):
    """Learning rate range test: one ramp from `min_lr` to `max_lr`, then `max_lr`.

    Args:
        optimizer: any torch optimizer; groups may have an `lr_mult`.
        min_lr, max_lr: rates at iteration 0, and at iteration `iterations` and after.
        iterations: length of the ramp.
        ramp: `linear` (the paper 3.3, coxy1989/clr) or `exponential` (best_lr).
        last_epoch: as in torch.

    Raises:
        ValueError: `min_lr` above `max_lr`, a number that is not positive, an unknown ramp.
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
        _bounds(min_lr, max_lr, "min_lr", "max_lr")
        _positive(iterations=iterations)
        if ramp not in ("linear", "exponential"):
            raise ValueError(f"ramp must be linear or exponential, not {ramp!r}")
        self.min_lr, self.max_lr, self.iterations, self.ramp = float(min_lr), float(max_lr), iterations, ramp
        super().__init__(optimizer, last_epoch)

    def lr_at(self, t: float) -> float:
        """Learning rate at iteration `t`, before any `lr_mult`."""
        part = min(t / self.iterations, 1.0)
        if self.ramp == "linear":
            return self.min_lr + (self.max_lr - self.min_lr) * part
        return self.min_lr * (self.max_lr / self.min_lr) ** part


def decay(optimizer: Optimizer, base_lr: float, max_lr: float, step_size: float) -> LambdaLR:
    """`max_lr` falling linearly to `base_lr` over `step_size` iterations, then `base_lr` (the paper's 4.1.1 control).

    Raises:
        ValueError: bounds or a step size that make no sense.
    """
    _bounds(base_lr, max_lr)
    _positive(step_size=step_size)
    set_lr(optimizer, max_lr)
    return LambdaLR(optimizer, lambda t: 1 - (1 - base_lr / max_lr) * min(t / step_size, 1.0))


def exponential(optimizer: Optimizer, lr: float, gamma: float) -> ExponentialLR:
    """`lr gamma^t` (the paper's `exp` policy), torch's ExponentialLR stepped once an iteration.

    Raises:
        ValueError: `lr` or `gamma` not positive.
    """
    _positive(lr=lr, gamma=gamma)
    set_lr(optimizer, lr)
    return ExponentialLR(optimizer, gamma)


def fixed(
    optimizer: Optimizer, lr: float = 0.001, milestones: tuple[int, ...] = (60_000, 65_000), gamma: float = 0.1
) -> MultiStepLR:
    """`lr`, multiplied by `gamma` at each milestone: Caffe's solver for `cifar10_full`, coxy1989/clr's baseline.

    Raises:
        ValueError: `lr` or `gamma` not positive, milestones not increasing.
    """
    _positive(lr=lr, gamma=gamma)
    if any(a >= b for a, b in pairwise(milestones)) or any(m < 1 for m in milestones):
        raise ValueError(f"milestones must be increasing iterations, not {milestones!r}")
    set_lr(optimizer, lr)
    return MultiStepLR(optimizer, list(milestones), gamma)


class Annealed(LRScheduler):
    """Another scheduler's rates, multiplied from iteration `start` on by a straight line from 1 to 0 at `end`.

    Args:
        scheduler: any torch scheduler, fresh; it is stepped by this one.
        start, end: iterations, `start < end`.

    Raises:
        ValueError: `start` is not before `end`.
    """

    def __init__(self, scheduler: LRScheduler, start: int, end: int) -> None:
        if not 0 <= start < end:
            raise ValueError(f"start must be before end: start={start!r}, end={end!r}")
        self.scheduler, self.start, self.end = scheduler, start, end
        self.optimizer, self.base_lrs = scheduler.optimizer, getattr(scheduler, "base_lrs", None)
        self._apply()

    @property
    def last_epoch(self) -> int:
        return self.scheduler.last_epoch

    def factor(self, t: int) -> float:
        """What the rate of iteration `t` is multiplied by."""
        return min(1.0, max(0.0, (self.end - t) / (self.end - self.start)))

    def step(self) -> None:
        """Move to the next iteration's rate."""
        # Some schedulers compute a rate from the one they find: let it be their own.
        for group, lr in zip(self.optimizer.param_groups, self.scheduler.get_last_lr(), strict=True):
            _write(group, lr)
        self.scheduler.step()
        self._apply()

    def _apply(self) -> None:
        factor = self.factor(self.last_epoch)
        self._last_lr = [lr * factor for lr in self.scheduler.get_last_lr()]
        for group, lr in zip(self.optimizer.param_groups, self._last_lr, strict=True):
            _write(group, lr)

    @staticmethod
    def state_of(scheduler_state: dict) -> dict:
        """The state of an `Annealed` scheduler that has not begun to anneal, from the state of the one within."""
        return {"scheduler": scheduler_state}

    def state_dict(self) -> dict:
        """The state of the scheduler within; `start` and `end` belong to the run."""
        return self.state_of(self.scheduler.state_dict())

    def load_state_dict(self, state_dict: dict) -> None:
        """Go on from a state, also from one that `state_of` made of the inner scheduler's own."""
        self.scheduler.load_state_dict(state_dict["scheduler"])
        self._apply()
