"""The networks of the study. A network is one entry of `NETWORKS`; specifications and messages find it there.

`build(name, ...)` makes any of them. Logits come out: the loss is cross entropy.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import nn

from modules.checks import short
from modules.models import caffe, others, own, pretrained, transformer, wide_resnet
from modules.models.caffe import POOLINGS, CaffeNet

#: Initialisations by Keras's names; biases start at zero.
NAMED_INITS = {
    "he_normal": lambda weight: nn.init.kaiming_normal_(weight, nonlinearity="relu"),
    "he_uniform": lambda weight: nn.init.kaiming_uniform_(weight, nonlinearity="relu"),
    "glorot_normal": nn.init.xavier_normal_,
    "glorot_uniform": nn.init.xavier_uniform_,
}
INITS = ("torch", "caffe", *NAMED_INITS)
ACTIVATIONS = tuple(wide_resnet.ACTIVATIONS)


@dataclass(frozen=True)
class Network:
    """How a network is made.

    Attributes:
        make: called with channels, size, classes, the numbers in the name, and the `options` by keyword.
        pattern: regular expression of its names; the numbers in a name follow dashes.
        options: those of `build`'s `pooling`, `init` and `activation` that `make` takes. `init` is needed for `caffe`
            only: `NAMED_INITS` suit every network.
    """

    make: Callable[..., nn.Module]
    pattern: str
    options: tuple[str, ...] = ()


#: By the name that messages give it.
NETWORKS = {
    "cifar10_quick": Network(caffe.cifar10_quick, "cifar10_quick", ("pooling", "init")),
    "cifar10_full": Network(caffe.cifar10_full, "cifar10_full", ("pooling", "init")),
    "cifar10_full_sigmoid_bn": Network(caffe.cifar10_full_sigmoid_bn, "cifar10_full_sigmoid_bn", ("pooling", "init")),
    "lenet": Network(others.lenet, "lenet"),
    "mlp": Network(others.mlp, "mlp"),
    "dense-<width>-<width>...": Network(others.dense, r"dense(-\d{1,4}){1,5}"),
    "pretrained": Network(pretrained.whole, "pretrained"),
    "pretrained_head": Network(pretrained.head, "pretrained_head"),
    "transformer": Network(transformer.transformer, "transformer"),
    "wide_resnet-<depth>-<width>": Network(wide_resnet.WideResNet, r"wide_resnet-\d{1,3}-\d{1,3}", ("activation",)),
}


def find(name: str) -> tuple[Network, list[int]]:
    """A network and the numbers in its name.

    Raises:
        ValueError: there is no such network.
    """
    if own.is_own(name):
        return Network(partial(own.make, name), own.PATTERN.pattern), []
    for network in NETWORKS.values():
        if re.fullmatch(network.pattern, name, re.ASCII):
            return network, [int(number) for number in name.split("-")[1:]]
    raise ValueError(f"unknown model {short(name)}: choose one of {', '.join(NETWORKS)}, or path/to/file.py:function")


def identified(name: str) -> str:
    """The name of a network as specifications have it: of one in a user's file, with the file's checksum.

    Raises:
        ValueError: there is no such network.
    """
    find(name)
    return own.identified(name) if own.is_own(name) else name


def label(name: str) -> str:
    """What titles call a network: of one in a user's file, the function."""
    return own.PATTERN.fullmatch(name)["function"] if own.is_own(name) else name


def build(
    name: str,
    channels: int = 3,
    size: int = 32,
    classes: int = 10,
    pooling: str = "floor",
    init: str = "torch",
    activation: str = "relu",
) -> nn.Module:
    """Make a network with freshly drawn weights (torch's global random generator).

    Args:
        name: one of `NETWORKS`, e.g. `cifar10_quick` or `wide_resnet-28-10`, or a function of your own (`own`).
        channels: input channels.
        size: input height and width in pixels.
        classes: number of classes.
        pooling: `floor` (torch's and coxy1989/clr's output sizes) or `caffe` (rounded up, 16-8-4 at 32 pixels);
            for Caffe's networks only.
        init: `torch`'s defaults (coxy1989/clr); `caffe`: the prototxt's Gaussians, zero biases, Caffe networks only; or
            one of `NAMED_INITS` (best_lr).
        activation: of `wide_resnet` only, a name of `wide_resnet.ACTIVATIONS` (best_lr).

    Returns:
        A module from float images `[N, channels, size, size]` to logits `[N, classes]`.

    Raises:
        ValueError: an unknown name or option, or an option the network does not have.
    """
    network, numbers = find(name)
    asked = {
        "pooling": (pooling, "floor", POOLINGS),
        "init": (init, "torch", INITS),
        "activation": (activation, "relu", ACTIVATIONS),
    }
    for option, (value, default, known) in asked.items():
        if value not in known:
            raise ValueError(f"{option} must be one of {', '.join(known)}, not {value!r}")
        if option not in network.options and value != default and value not in NAMED_INITS:
            having = ", ".join(other for other in NETWORKS if option in NETWORKS[other].options)
            raise ValueError(f"{option}={value!r} is an option of {having}, not of model {name!r}")
    options = {option: asked[option][0] for option in network.options}
    model = network.make(channels, size, classes, *numbers, **options)
    if init in NAMED_INITS:
        for layer in model.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                NAMED_INITS[init](layer.weight)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
    return model


def parameter_groups(
    model: nn.Module, bias_lr_mult: float = 1.0, multipliers: str = "none", weight_decay: float = 0.0
) -> list[dict]:
    """Parameter groups for an optimizer; every policy multiplies a group's rate by its `lr_mult`.

    With `multipliers="none"` and a `bias_lr_mult` of 1 there is a single group, in the module's own order. A module may
    have a method `parameter_groups()` that gives others, such as a head at ten times the rate of the rest.

    Args:
        model: a network.
        bias_lr_mult: learning rate multiplier of all biases.
        multipliers: `none`, or `caffe`: those of Caffe's network files, rates and decays layer by layer.
        weight_decay: what the decay multipliers multiply.

    Raises:
        ValueError: `caffe` for a network that Caffe has no file of, or together with `bias_lr_mult`; a module's groups
            that are no groups of its parameters, or together with these.
    """
    if callable(given := getattr(model, "parameter_groups", None)):
        if multipliers != "none" or bias_lr_mult != 1.0:
            raise ValueError("the network has parameter_groups of its own: leave multipliers and bias_lr_mult out")
        return own.groups(model, given())
    named = list(model.named_parameters())
    if multipliers == "caffe":
        if not isinstance(model, CaffeNet) or bias_lr_mult != 1.0:
            raise ValueError("multipliers='caffe' is for Caffe's networks, and leaves no place for bias_lr_mult")
        groups: dict[tuple[float, float], list] = {}
        for name, parameter in named:
            groups.setdefault(model.multipliers(name), []).append(parameter)
        return [
            {"params": parameters, "lr_mult": rate, "weight_decay": weight_decay * decay}
            for (rate, decay), parameters in groups.items()
        ]
    if bias_lr_mult == 1.0:
        return [{"params": list(model.parameters())}]
    return [
        {"params": [p for name, p in named if not name.endswith("bias")], "lr_mult": 1.0},
        {"params": [p for name, p in named if name.endswith("bias")], "lr_mult": bias_lr_mult},
    ]
