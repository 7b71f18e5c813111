"""The learning rate policies of the study. A policy is one class: its settings, its scheduler, its name in legends.

To add one, write a class and put it into `POLICIES`: specifications, notebooks, figures and messages find it there.
"""

from itertools import accumulate
from typing import Annotated, Any, ClassVar, Literal, get_args

import torch
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SerializeAsAny, ValidationError, model_validator
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingWarmRestarts, LambdaLR, LRScheduler, OneCycleLR, SequentialLR

from modules import schedulers
from modules.checks import complaints, did_you_mean, short


def _number(value):
    """Refuse what Python would take for a number: True is not a learning rate."""
    if isinstance(value, bool):
        raise ValueError("a number is needed")
    return value


Number = Annotated[float, BeforeValidator(_number)]
Rate = Annotated[Number, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(gt=0, le=10**9, strict=True)]
Share = Annotated[Number, Field(gt=0, lt=1)]


class Frozen(BaseModel):
    """Settings that cannot change, and no others."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class PolicyBase(Frozen):
    """What all policies share.

    Attributes:
        name: the policy's, in specifications.
        warm_up: the first iterations, in which the rate is also multiplied by a straight line from
            `schedulers.WARM_UP_FROM` to 1; None for no such start. The policy counts from the run's first iteration,
            whether the rate climbs or not.
        anneal: the last part of the run in which the rate is also multiplied by a straight line from 1 to 0; None for
            no such end. A constant rate with a climb and such an end is warm-up, stable, decay (WSD).
        any_length: whether the rate of an iteration, but for the anneal, is the same however long the run is.
    """

    any_length: ClassVar[bool] = False

    name: str
    warm_up: Count | None = None
    anneal: Share | None = None

    @property
    def label(self) -> str:
        """The policy's name in legends."""
        return self.name.replace("_", " ")

    def anneal_start(self, iterations: int) -> int:
        """The iteration from which a run of that length is annealed; its end, where it is not."""
        return iterations - round((self.anneal or 0) * iterations)

    def scheduler(self, optimizer: Optimizer, iterations: int) -> LRScheduler:
        """The policy on an optimizer, whose groups may have an `lr_mult`.

        Args:
            optimizer: its rates are set at once.
            iterations: length of the run.
        """
        found = self.unannealed(optimizer, iterations)
        if self.warm_up:
            found = schedulers.WarmedUp(found, self.warm_up)
        return schedulers.Annealed(found, self.anneal_start(iterations), iterations) if self.anneal else found

    def unannealed(self, optimizer: Optimizer, iterations: int) -> LRScheduler:
        """The policy without its `warm_up` and its `anneal`; arguments as for `scheduler`."""
        raise NotImplementedError

    def rates(self, iterations: int) -> list[float]:
        """The learning rate of each iteration of a run, `[iterations]`."""
        optimizer = SGD([torch.zeros(1)], lr=1.0)
        scheduler, rates = self.scheduler(optimizer, iterations), []
        optimizer.step()  # once, or torch warns
        for _ in range(iterations):
            rates.append(scheduler.get_last_lr()[0])
            scheduler.step()
        return rates

    def settings(self) -> dict[str, Any]:
        """The policy's own settings, by name."""
        return self.model_dump(exclude={"name", "warm_up", "anneal"})


class _Bounded(PolicyBase):
    base_lr: Rate
    max_lr: Rate

    @model_validator(mode="after")
    def _ordered(self):
        if self.base_lr > self.max_lr:
            raise ValueError(f"base_lr must not exceed max_lr: base_lr={self.base_lr!r}, max_lr={self.max_lr!r}")
        return self


class Cyclic(_Bounded):
    """`schedulers.CyclicLR` in one of its modes."""

    any_length: ClassVar[bool] = True

    name: Literal[schedulers.MODES] = "triangular"
    step_size: Count
    gamma: Rate = 1.0

    @property
    def label(self) -> str:
        return f"CLR ({self.name})"

    @model_validator(mode="after")
    def _gamma_is_used(self):
        decays = self.name.startswith("exp_range")
        if decays and self.gamma == 1:
            raise ValueError(f"gamma={self.gamma!r}: {self.name} needs a gamma that is not 1")
        if not decays and self.gamma != 1:
            raise ValueError(f"gamma={self.gamma!r}: {self.name} has no gamma")
        return self

    def unannealed(self, optimizer: Optimizer, iterations: int) -> LRScheduler:
        return schedulers.CyclicLR(optimizer, mode=self.name, **self.settings())


class CustomCyclic(_Bounded):
    """`schedulers.CyclicLR` with a named scale function."""

    any_length: ClassVar[bool] = True

    name: Literal["custom"] = "custom"
    step_size: Count
    scale_fn: Literal[tuple(schedulers.SCALE_FUNCTIONS)]
    scale_mode: Literal["cycle", "iterations"] = "cycle"

    @property
    def label(self) -> str:
        return f"CLR ({self.scale_fn})"

    def unannealed(self, optimizer: Optimizer, iterations: int) -> LRScheduler:
        return schedulers.CyclicLR(optimizer, **self.settings())


class Fixed(PolicyBase):
    """`schedulers.fixed`: a rate with its cuts; without `milestones` a constant one."""

    any_length: ClassVar[bool] = True

    name: Literal["fixed"] = "fixed"
    lr: Rate = 0.001
    milestones: tuple[Count, ...] = (60_000, 65_000)
    gamma: Rate = 0.1

    @model_validator(mode="after")
    def _increasing(self):
        if list(self.milestones) != sorted(set(self.milestones)):
            raise ValueError(f"milestones must be increasing iterations: milestones={list(self.milestones)!r}")
        return self

    def unannealed(self, optimizer: Optimizer, iterations: int) -> LRScheduler:
        return schedulers.fixed(optimizer, **self.settings())


class Decay(_Bounded):
    """`schedulers.decay`: from `max_lr` to `base_lr` over `step_size` iterations, then `base_lr`."""

    any_length: ClassVar[bool] = True

    name: Literal["decay"] = "decay"
    step_size: Count

    def unannealed(self, optimizer: Optimizer, iterations: int) -> LRScheduler:
        return schedulers.decay(optimizer, **self.settings())


class Exponential(PolicyBase):
    """`schedulers.exponential`."""

    any_length: ClassVar[bool] = True

    name: Literal["exp"] = "exp"
    lr: Rate
    gamma: Rate

    def unannealed(self, optimizer: Optimizer, iterations: int) -> LRScheduler:
        return schedulers.exponential(optimizer, **self.settings())


class Linear(PolicyBase):
    """From `lr` in a straight line to zero at the end of the run (Li, Yumer and Ramanan, ICLR 2020)."""

    name: Literal["linear"] = "linear"
    lr: Rate

    @property
    def label(self) -> str:
        return "linear to zero"

    def unannealed(self, optimizer: Optimizer, iterations: int) -> LRScheduler:
        schedulers.set_lr(optimizer, self.lr)
        return LambdaLR(optimizer, lambda t: max(0.0, 1 - t / iterations))


class CosineRestarts(PolicyBase):
    """Half a cosine from `lr` to zero, again and again: SGDR (Loshchilov and Hutter, ICLR 2017), torch's scheduler.

    Attributes:
        lr: where each period starts.
        period: iterations from one restart to the next.
    """

    any_length: ClassVar[bool] = True

    name: Literal["cosine_restarts"] = "cosine_restarts"
    lr: Rate
    period: Count

    @property
    def label(self) -> str:
        return "cosine with restarts (SGDR)"

    def unannealed(self, optimizer: Optimizer, iterations: int) -> LRScheduler:
        schedulers.set_lr(optimizer, self.lr)
        return CosineAnnealingWarmRestarts(optimizer, self.period)


class OneCycle(PolicyBase):
    """torch's OneCycleLR over the whole run, its momentum left alone (Smith and Topin, arXiv:1708.07120)."""

    name: Literal["one_cycle"] = "one_cycle"
    max_lr: Rate

    @property
    def label(self) -> str:
        return "1cycle"

    def unannealed(self, optimizer: Optimizer, iterations: int) -> LRScheduler:
        tops = [self.max_lr * schedulers.multiplier(group) for group in optimizer.param_groups]
        return OneCycleLR(optimizer, tops, total_steps=iterations, cycle_momentum=False)


class RangeTest(PolicyBase):
    """`schedulers.RangeTestLR` over the whole run.

    With a `stop_factor` the run ends, as diverged, once the training loss of three rows exceeds that many times the
    least of three before (best_lr's sweep goes far beyond the useful rates).
    """

    name: Literal["range_test"] = "range_test"
    min_lr: Rate
    max_lr: Rate
    ramp: Literal["linear", "exponential"] = "linear"
    stop_factor: Annotated[Number, Field(gt=1, allow_inf_nan=False)] | None = None

    @model_validator(mode="after")
    def _ordered(self):
        if self.min_lr >= self.max_lr:
            raise ValueError(f"min_lr must be below max_lr: min_lr={self.min_lr!r}, max_lr={self.max_lr!r}")
        return self

    def unannealed(self, optimizer: Optimizer, iterations: int) -> LRScheduler:
        return schedulers.RangeTestLR(optimizer, self.min_lr, self.max_lr, iterations, self.ramp)


def kinds() -> dict[str, type[PolicyBase]]:
    """The classes of `POLICIES` by the names they go by."""
    return {name: kind for kind in POLICIES for name in get_args(kind.model_fields["name"].annotation)}


def _parsed(value: object) -> object:
    """A policy from its settings, by its `name`; what is wrong is said in the words of the user's settings."""
    if isinstance(value, PolicyBase):
        return value
    if not isinstance(value, dict):
        raise ValueError(f"policy={short(value)}: settings with a name are needed")
    known, name = kinds(), value.get("name")
    if not isinstance(name, str) or name not in known:
        hint = did_you_mean(name, known) if isinstance(name, str) else ""
        raise ValueError(f"unknown policy {short(name)} (choose {', '.join(known)}{hint})")
    try:
        return known[name](**value)
    except ValidationError as error:
        raise ValueError(complaints(error, known[name].model_fields, f" of policy name={name!r}")) from None


#: A policy, or its settings with its `name`.
Policy = Annotated[SerializeAsAny[PolicyBase], BeforeValidator(_parsed)]


class Phase(Frozen):
    """One policy for a number of iterations, counted from the phase's start."""

    iterations: Count
    policy: Policy

    @model_validator(mode="after")
    def _is_a_part(self):
        if self.policy.name in ("phases", "range_test") or self.policy.anneal or self.policy.warm_up:
            raise ValueError(f"a phase can be no {self.policy.name}, and has no anneal and no warm_up of its own")
        return self


class Phases(PolicyBase):
    """Policies one after another (the paper's Table 2)."""

    name: Literal["phases"] = "phases"
    phases: Annotated[tuple[Phase, ...], Field(min_length=2)]

    def unannealed(self, optimizer: Optimizer, iterations: int) -> LRScheduler:
        parts = [phase.policy.scheduler(optimizer, phase.iterations) for phase in self.phases]
        # Each policy set the optimizer's rates to its own; SequentialLR starts from these.
        for group, lr in zip(optimizer.param_groups, parts[0].base_lrs, strict=True):
            group["initial_lr"] = lr
        ends = list(accumulate(phase.iterations for phase in self.phases))
        return SequentialLR(optimizer, parts, milestones=ends[:-1])


#: Every policy there is.
POLICIES: tuple[type[PolicyBase], ...] = (
    Cyclic,
    CustomCyclic,
    Fixed,
    Decay,
    Exponential,
    Linear,
    CosineRestarts,
    OneCycle,
    RangeTest,
    Phases,
)


def label(name: str) -> str:
    """What a policy, or a run's variant, is called in legends.

    A variant is called by its own name.
    """
    kind = kinds().get(name)
    return kind.model_construct(name=name).label if kind and kind is not CustomCyclic else name
