"""What a run is: its validated specification and its name."""

from typing import Annotated, Literal, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from modules.checks import RunError, did_you_mean, short


def _number(value):
    """Refuse what Python would take for a number: True is not a learning rate."""
    if isinstance(value, bool):
        raise ValueError("a number is needed")
    return value


Number = Annotated[float, BeforeValidator(_number)]
Rate = Annotated[Number, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(gt=0, le=10**9, strict=True)]


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

    @model_validator(mode="after")
    def _gamma_is_used(self):
        decays = self.name.startswith("exp_range")
        if decays and self.gamma == 1:
            raise ValueError(f"gamma={self.gamma!r}: {self.name} needs a gamma that is not 1")
        if not decays and self.gamma != 1:
            raise ValueError(f"gamma={self.gamma!r}: {self.name} has no gamma")
        return self


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
        if self.min_lr > self.max_lr:
            raise ValueError(f"min_lr must not exceed max_lr: min_lr={self.min_lr!r}, max_lr={self.max_lr!r}")
        return self


Single = Annotated[Cyclic | CustomCyclic | Fixed | Decay | Exponential, Field(discriminator="name")]


class Phase(_Frozen):
    """One policy for a number of iterations, counted from the phase's start."""

    iterations: Count
    policy: Single


class Phases(_Frozen):
    """Policies one after another (the paper's Table 2)."""

    name: Literal["phases"] = "phases"
    phases: Annotated[tuple[Phase, ...], Field(min_length=2)]


Policy = Annotated[
    Cyclic | CustomCyclic | Fixed | Decay | Exponential | RangeTest | Phases, Field(discriminator="name")
]

_POLICIES = {
    name: kind
    for kind in (Cyclic, CustomCyclic, Fixed, Decay, Exponential, RangeTest, Phases)
    for name in get_args(kind.model_fields["name"].annotation)
}


class Spec(_Frozen):
    """Everything that decides a run's results: same spec, same data, same machine, same bytes.

    Attributes:
        dataset: a name of `datasets.NAMES`.
        model, pooling, init, activation: as in `models.build`.
        pixels: `unit` or `caffe`, as in `batches.Data`.
        augment: `none`, or `flip_crop`, as in `batches.flip_crop`.
        policy: one of the policy classes above, by its `name`.
        variant: what the run is called in tables and in its files' names, where the policy's name does not tell it from
            others; changes no result.
        optimizer: `sgd` or `rmsprop` (with `momentum`), or `adam`.
        weight_decay: L2 penalty.
        bias_lr_mult, multipliers: of parameter groups, as in `models.parameter_groups`.
        batch_size: images an iteration.
        iterations: length of the run.
        evaluate_every: iterations between two rows of the CSV.
        evaluation: what a row says of the test set: `test`, loss and accuracy on all of it, or `none`, nothing.
        seed: of the initial weights and, together with the epoch, of the order of the images.
        precision: of the training step, `float32` or `bfloat16`; evaluation is in float32.
        keep_weights: keep the trained network beside the CSV, as `<name>.weights.pt`.
    """

    dataset: Literal["digits", "mnist", "fashion-mnist", "cifar10", "images"]
    model: Annotated[str, Field(pattern=r"^(cifar10_quick|cifar10_full|lenet|mlp|wide_resnet-\d{1,3}-\d{1,3})$")] = (
        "cifar10_quick"
    )
    pooling: Literal["floor", "caffe"] = "floor"
    init: Literal["torch", "caffe", "he_normal", "he_uniform", "glorot_normal", "glorot_uniform"] = "torch"
    activation: Literal["relu", "elu", "selu", "gelu", "silu", "tanh", "sigmoid"] = "relu"
    pixels: Literal["unit", "caffe"] = "unit"
    augment: Literal["none", "flip_crop"] = "none"
    policy: Policy
    variant: Annotated[str, Field(pattern=r"^[a-z0-9_.]{1,60}$")] | None = None
    optimizer: Literal["sgd", "adam", "rmsprop"] = "sgd"
    momentum: Annotated[Number, Field(ge=0, lt=1)] = 0.9
    weight_decay: Annotated[Number, Field(ge=0, allow_inf_nan=False)] = 0.004
    bias_lr_mult: Rate = 1.0
    multipliers: Literal["none", "caffe"] = "none"
    batch_size: Count = 100
    iterations: Count
    evaluate_every: Count
    evaluation: Literal["test", "none"] = "test"
    seed: Annotated[int, Field(ge=0, lt=2**63, strict=True)]
    precision: Literal["float32", "bfloat16"] = "float32"
    keep_weights: Annotated[bool, Field(strict=True)] = False

    @model_validator(mode="after")
    def _phases_fit(self):
        if self.policy.name == "phases":
            total = sum(phase.iterations for phase in self.policy.phases)
            if total != self.iterations:
                raise ValueError(f"phases last {total} iterations together, the run iterations={self.iterations}")
        return self

    @property
    def kind(self) -> str:
        """What tells this run from others in its folder, beside the seed."""
        return self.variant or self.policy.name

    @property
    def name(self) -> str:
        return f"{self.kind}-seed{self.seed}"


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
    """One wrong setting in words: its name as the user wrote it, its value, and what is wrong with it."""
    if item["type"] == "value_error" and not isinstance(item["input"], (bool, int, float, str)):
        return item["msg"].removeprefix("Value error, ")
    where = [str(part) for part in item["loc"]]
    if item["type"] == "union_tag_invalid":
        return f"unknown policy {short(item['ctx']['tag'])} (choose {item['ctx']['expected_tags']})"
    if item["type"] == "extra_forbidden":
        of, known = "", Spec.model_fields
        policies = [part for part in where if part in _POLICIES]
        if policies and where[0] == "policy":
            of, known = f" of policy name={policies[-1]!r}", _POLICIES[policies[-1]].model_fields
        return f"{where[-1]}={short(item['input'])}: no such setting{of}{did_you_mean(where[-1], known)}"
    message = item["msg"].removeprefix("Value error, ")
    # Behind `policy` comes the policy's own tag, which the user did not write there; a list's index is not a name.
    names = where[:1] + where[2:] if where[0] == "policy" else where
    name = next((part for part in reversed(names) if not part.isdigit()), names[0])
    return f"{name}={short(item['input'])}: {message[0].lower()}{message[1:]}"


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
        if isinstance(value, list) and value and isinstance(value[0], dict):  # phases, which are counted from 1
            value = {str(number): entry for number, entry in enumerate(value, start=1)}
        out.update(_flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value})
    return out
