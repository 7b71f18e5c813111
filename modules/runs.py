"""What a run is: its validated specification and its name."""

import os
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(gt=0)]


class RunError(ValueError):
    """A specification or a results folder that cannot be used; the message is one line for the user."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`, did you mean 'x'?` for the nearest known name, or nothing when none is near."""
    near = get_close_matches(name, list(known), 1)
    return f", did you mean {near[0]!r}?" if near else ""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class _Bounded(_Frozen):
    base_lr: Rate
    max_lr: Rate

    @model_validator(mode="after")
    def _ordered(self):
        if self.base_lr > self.max_lr:
            raise ValueError(f"base_lr must not exceed max_lr: base_lr={self.base_lr!r}, max_lr={self.max_lr!r}")
        return self


class Cyclic(_Bounded):
    """`schedulers.CyclicLR` in one of its modes."""

    name: Literal["triangular", "triangular2", "exp_range", "exp_range_both"] = "triangular"
    step_size: Count
    gamma: Rate = 1.0


class CustomCyclic(_Bounded):
    """`schedulers.CyclicLR` with a named scale function."""

    name: Literal["custom"] = "custom"
    step_size: Count
    scale_fn: Literal["sinusoidal", "inverse_power_of_5"]
    scale_mode: Literal["cycle", "iterations"] = "cycle"


class Fixed(_Frozen):
    """`schedulers.fixed`: a rate with its cuts."""

    name: Literal["fixed"] = "fixed"
    lr: Rate = 0.001
    milestones: tuple[Count, ...] = (60_000, 65_000)
    gamma: Rate = 0.1

    @model_validator(mode="after")
    def _increasing(self):
        if list(self.milestones) != sorted(set(self.milestones)):
            raise ValueError(f"milestones must be increasing iterations: milestones={list(self.milestones)!r}")
        return self


class Decay(_Bounded):
    """`schedulers.decay`."""

    name: Literal["decay"] = "decay"
    step_size: Count


class Exponential(_Frozen):
    """`schedulers.exponential`."""

    name: Literal["exp"] = "exp"
    lr: Rate
    gamma: Rate


class RangeTest(_Frozen):
    """`schedulers.RangeTestLR` over the whole run."""

    name: Literal["range_test"] = "range_test"
    min_lr: Rate
    max_lr: Rate
    ramp: Literal["linear", "exponential"] = "linear"

    @model_validator(mode="after")
    def _ordered(self):
        if self.min_lr > self.max_lr:
            raise ValueError(f"min_lr must not exceed max_lr: min_lr={self.min_lr!r}, max_lr={self.max_lr!r}")
        return self


Policy = Annotated[Cyclic | CustomCyclic | Fixed | Decay | Exponential | RangeTest, Field(discriminator="name")]


class Spec(_Frozen):
    """Everything that decides a run's results: same spec, same data, same machine, same bytes.

    Attributes:
        dataset: a name of `datasets.NAMES`.
        model, pooling, init: as in `models.build`.
        policy: one of the policy classes above, by its `name`.
        optimizer: `sgd` (with `momentum`), `adam` or `rmsprop`.
        weight_decay: L2 penalty.
        bias_lr_mult: learning rate multiplier of the biases.
        batch_size: images an iteration.
        iterations: length of the run.
        evaluate_every: iterations between evaluations on the whole test set.
        seed: of the initial weights and, together with the epoch, of the order of the images.
        precision: of the training step, `float32` or `bfloat16`; evaluation is in float32.
    """

    dataset: Literal["digits", "mnist", "fashion-mnist", "cifar10", "images"]
    model: Annotated[str, Field(pattern=r"^(cifar10_quick|cifar10_full|lenet|mlp|wide_resnet-\d+-\d+)$")] = (
        "cifar10_quick"
    )
    pooling: Literal["floor", "caffe"] = "floor"
    init: Literal["torch", "caffe"] = "torch"
    policy: Policy
    optimizer: Literal["sgd", "adam", "rmsprop"] = "sgd"
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.004
    bias_lr_mult: Rate = 1.0
    batch_size: Count = 100
    iterations: Count
    evaluate_every: Count
    seed: Annotated[int, Field(ge=0)]
    precision: Literal["float32", "bfloat16"] = "float32"

    @property
    def name(self) -> str:
        return f"{self.policy.name}-seed{self.seed}"


def spec(**settings) -> Spec:
    """Validate settings into a `Spec`.

    Raises:
        RunError: one line that names each wrong setting and its value.
    """
    try:
        return Spec(**settings)
    except ValidationError as error:
        raise RunError("; ".join(_complaint(item) for item in error.errors())) from None


def _complaint(item: dict) -> str:
    where = ".".join(str(part) for part in item["loc"])
    if item["type"] == "value_error":
        return item["msg"].removeprefix("Value error, ")
    if item["type"] == "union_tag_invalid":
        return f"unknown policy {item['ctx']['tag']!r}: choose {item['ctx']['expected_tags']}"
    # Only the last part of the location is a name that the user wrote; a policy's own tag precedes it.
    name = where.rpartition(".")[2] if where.startswith("policy.") else where
    return f"{name}={item['input']!r}: {item['msg'][0].lower()}{item['msg'][1:]}"


def seeds(runs: int) -> range:
    """Seeds 1 to `runs`.

    Raises:
        RunError: `runs` is not a positive whole number.
    """
    if not isinstance(runs, int) or isinstance(runs, bool) or runs < 1:
        raise RunError(f"runs={runs!r}: a whole number of at least 1 is needed")
    return range(1, runs + 1)


def differences(a: Spec, b: Spec) -> list[str]:
    """The settings in which two specs differ, each as `name: a's value, not b's`."""
    flat_a, flat_b = _flat(a.model_dump(mode="json")), _flat(b.model_dump(mode="json"))
    keys = sorted(flat_a.keys() | flat_b.keys())
    return [
        f"{key}: {flat_a.get(key)!r}, not {flat_b.get(key)!r}" for key in keys if flat_a.get(key) != flat_b.get(key)
    ]


def _flat(nested: dict, prefix: str = "") -> dict:
    out = {}
    for key, value in nested.items():
        out.update(_flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value})
    return out


def at_root() -> None:
    """Make the project's folder the working directory, so that a notebook's relative paths mean the same anywhere."""
    os.chdir(Path(__file__).resolve().parents[1])
