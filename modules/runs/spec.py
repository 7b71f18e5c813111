"""What a run is: its validated specification and its name."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, ValidationError, model_validator

from modules import models
from modules.checks import RunError, complaints
from modules.data import sources
from modules.data.batches import PIXELS
from modules.data.splits import SPLITS
from modules.policies import Count, Frozen, Number, Policy, Rate, Share


def _data_set(name: str) -> str:
    """The name of a data set, when there is one."""
    sources.source(name)
    return name


class Spec(Frozen):
    """Everything that decides a run's results: same spec, same data, same machine, same bytes.

    Attributes:
        dataset: one of `sources.SOURCES`.
        model, pooling, init, activation: as in `models.build`.
        pixels: one of `batches.PIXELS`, as in `batches.Data`.
        augment: `none`, or `flip_crop`, as in `batches.flip_crop`.
        policy: one of `policies.POLICIES`, by its `name`.
        variant: what the run is called in tables and in its files' names, where the policy's name does not tell it from
            others; changes no result.
        optimizer: `sgd` or `rmsprop` (with `momentum`), `adam` or `adamw` (whose `momentum` counts as 0: they have
            none), or `schedulefree`, SGD without a schedule (Defazio et al., arXiv:2405.15682), warmed up over a
            twentieth of the run.
        weight_decay: L2 penalty; of `adamw` decoupled from the gradient (Loshchilov and Hutter, ICLR 2019).
        bias_lr_mult, multipliers: of parameter groups, as in `models.parameter_groups`.
        batch_size: images an iteration.
        iterations: length of the run.
        evaluate_every: iterations between two rows of the CSV.
        split: which images train and which choose, as in `splits.split`.
        evaluation: what the rows' `val_loss` and `val_acc` are of: all `test` images, the `validation` images of the
            split, or `none`, and nothing.
        test_at_end: read the test images once, when the run ends; the result stands in the JSON.
        ema: evaluate, at the end, an exponential moving average of the weights with this decay an iteration, too; the
            result stands in the JSON.
        registration: the checksum of the text that fixed the experiment before it was run; changes no result.
        seed: of the initial weights and, together with the epoch, of the order of the images.
        precision: of the training step, `float32` or `bfloat16`; evaluation is in float32.
        keep_weights: keep the trained network beside the CSV, as `<name>.weights.pt`.
    """

    dataset: Annotated[str, AfterValidator(_data_set)]
    model: Annotated[str, AfterValidator(models.identified)] = "cifar10_quick"
    pooling: Literal["floor", "caffe"] = "floor"
    init: Literal["torch", "caffe", "he_normal", "he_uniform", "glorot_normal", "glorot_uniform"] = "torch"
    activation: Literal["relu", "elu", "selu", "gelu", "silu", "tanh", "sigmoid"] = "relu"
    pixels: Literal[PIXELS] = "unit"
    augment: Literal["none", "flip_crop"] = "none"
    policy: Policy
    variant: Annotated[str, Field(pattern=r"^[a-z0-9_.]{1,60}$")] | None = None
    optimizer: Literal["sgd", "adam", "adamw", "rmsprop", "schedulefree"] = "sgd"
    momentum: Annotated[Number, Field(ge=0, lt=1)] = 0.9
    weight_decay: Annotated[Number, Field(ge=0, allow_inf_nan=False)] = 0.004
    bias_lr_mult: Rate = 1.0
    multipliers: Literal["none", "caffe"] = "none"
    batch_size: Count = 100
    iterations: Count
    evaluate_every: Count
    split: Literal[SPLITS] = "standard"
    evaluation: Literal["test", "validation", "none"] = "test"
    test_at_end: Annotated[bool, Field(strict=True)] = False
    ema: Share | None = None
    registration: Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**63, strict=True)]
    precision: Literal["float32", "bfloat16"] = "float32"
    keep_weights: Annotated[bool, Field(strict=True)] = False

    @model_validator(mode="before")
    @classmethod
    def _adam_has_no_momentum(cls, settings):
        if isinstance(settings, dict) and settings.get("optimizer") in ("adam", "adamw"):
            return {**settings, "momentum": 0.0}
        return settings

    @model_validator(mode="after")
    def _evaluation_has_images(self):
        if self.evaluation == "validation" and self.split == "standard":
            raise ValueError("evaluation='validation' needs a split with validation images: split='validation'")
        return self

    @model_validator(mode="after")
    def _policy_fits(self):
        if self.policy.warm_up and self.policy.warm_up > self.iterations:
            raise ValueError(f"warm_up={self.policy.warm_up} exceeds the run's iterations={self.iterations}")
        if self.policy.name == "phases":
            total = sum(phase.iterations for phase in self.policy.phases)
            if total != self.iterations:
                raise ValueError(f"phases last {total} iterations together, the run iterations={self.iterations}")
        return self

    @property
    def reads_test(self) -> bool:
        """Whether its record has an evaluation on the test images."""
        return self.test_at_end or self.evaluation == "test"

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
        raise RunError(complaints(error, Spec.model_fields)) from None


def rate_label(rate: float) -> str:
    """A rate as runs' names have it, which take no sign: `0.008`; `5em10` where eight decimals do not tell it."""
    text = f"{rate:.8f}".rstrip("0").rstrip(".")
    return text if abs(float(text) - rate) <= 1e-3 * rate else f"{rate:.6g}".replace("e-", "em")


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
