"""The networks of the study: Caffe's two CIFAR-10 networks as coxy1989/clr ported them, and the other projects'.

`build(name, ...)` makes any of them. Logits come out: the loss is cross entropy.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modules.models.wide_resnet import WideResNet

POOLINGS = ("floor", "caffe")
#: Initialisations by Keras's names; biases start at zero.
NAMED_INITS = {
    "he_normal": lambda weight: nn.init.kaiming_normal_(weight, nonlinearity="relu"),
    "he_uniform": lambda weight: nn.init.kaiming_uniform_(weight, nonlinearity="relu"),
    "glorot_normal": nn.init.xavier_normal_,
    "glorot_uniform": nn.init.xavier_uniform_,
}
INITS = ("torch", "caffe", *NAMED_INITS)


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
        name: `cifar10_quick`, `cifar10_full`, `lenet`, `mlp`, or `wide_resnet-<depth>-<width>` (`wide_resnet-28-10`).
        channels: input channels.
        size: input height and width in pixels.
        classes: number of classes.
        pooling: `floor` (torch's and coxy1989/clr's output sizes) or `caffe` (rounded up, 16-8-4 at 32 pixels);
            for the two Caffe networks only.
        init: `torch`'s defaults (coxy1989/clr); `caffe`: the prototxt's Gaussians, zero biases, Caffe networks only; or
            one of `NAMED_INITS` (best_lr).
        activation: of `wide_resnet` only, a name of `wide_resnet.ACTIVATIONS` (best_lr).

    Returns:
        A module from float images `[N, channels, size, size]` to logits `[N, classes]`.

    Raises:
        ValueError: an unknown name or option, or an option the network does not have.
    """
    if pooling not in POOLINGS:
        raise ValueError(f"pooling must be one of {', '.join(POOLINGS)}, not {pooling!r}")
    if init not in INITS:
        raise ValueError(f"init must be one of {', '.join(INITS)}, not {init!r}")
    caffe = name in ("cifar10_quick", "cifar10_full")
    if not caffe and (pooling != "floor" or init == "caffe"):
        raise ValueError(f"caffe pooling and init are options of the Caffe networks, not of model {name!r}")
    if activation != "relu" and not name.startswith("wide_resnet-"):
        raise ValueError(f"activation={activation!r} is an option of wide_resnet, not of model {name!r}")
    if caffe:
        make = cifar10_quick if name == "cifar10_quick" else cifar10_full
        model = make(channels, size, classes, pooling, init)
    elif name == "lenet":
        model = lenet(channels, size, classes)
    elif name == "mlp":
        model = mlp(channels * size * size, classes)
    else:
        parts = name.split("-")
        if len(parts) != 3 or parts[0] != "wide_resnet" or not (parts[1].isdigit() and parts[2].isdigit()):
            raise ValueError(
                f"unknown model {name!r}: choose cifar10_quick, cifar10_full, lenet, mlp or wide_resnet-<depth>-<width>"
            )
        model = WideResNet(int(parts[1]), int(parts[2]), channels, classes, activation)
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

    With `multipliers="none"` and a `bias_lr_mult` of 1 there is a single group, in the module's own order.

    Args:
        model: a network.
        bias_lr_mult: learning rate multiplier of all biases.
        multipliers: `none`, or `caffe`: those of Caffe's network files, rates and decays layer by layer.
        weight_decay: what the decay multipliers multiply.

    Raises:
        ValueError: `caffe` for a network that Caffe has no file of, or together with `bias_lr_mult`.
    """
    named = list(model.named_parameters())
    if multipliers == "caffe":
        exceptions = getattr(model, "caffe_multipliers", None)
        if exceptions is None or bias_lr_mult != 1.0:
            raise ValueError("multipliers='caffe' is for the two Caffe networks, and leaves no place for bias_lr_mult")
        groups: dict[tuple[float, float], list] = {}
        for name, parameter in named:
            default = (2.0, 1.0) if name.endswith("bias") else (1.0, 1.0)
            groups.setdefault(exceptions.get(name, default), []).append(parameter)
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


class _Normalised(torch.autograd.Function):
    """`x s^-3/4` with `s = 1 + alpha mean(x^2)`; autograd would pass over memory twice as often."""

    @staticmethod
    def forward(context, x: Tensor, size: int, alpha: float) -> Tensor:
        s = F.avg_pool2d(x * x, size, stride=1, padding=size // 2).mul_(alpha).add_(1)
        root = s.rsqrt()
        power = root.sqrt().mul_(root)  # s^-3/4; two roots are faster than a power
        context.save_for_backward(x, s, power)
        context.settings = size, alpha
        return x * power

    @staticmethod
    def backward(context, gradient: Tensor) -> tuple[Tensor, None, None]:
        x, s, power = context.saved_tensors
        size, alpha = context.settings
        direct = gradient * power
        # The mean over neighbours is its own transpose: zeros beyond the border count in the divisor.
        shared = F.avg_pool2d((direct * x).div_(s), size, stride=1, padding=size // 2).mul_(x)
        return direct.sub_(shared, alpha=2 * alpha * 0.75), None, None


class LocalResponseNorm(nn.Module):
    """Caffe's local response normalisation within channels: `x / (1 + alpha mean(x^2 over size x size))^0.75`.

    torch's own LocalResponseNorm normalises across channels. Shapes `[N, C, H, W]` in and out.
    """

    def __init__(self, size: int = 3, alpha: float = 5e-5) -> None:
        super().__init__()
        self.size, self.alpha = size, alpha

    def forward(self, x: Tensor) -> Tensor:
        return _Normalised.apply(x, self.size, self.alpha)


def _pooled(size: int, pooling: str) -> int:
    """Output size of a 3/2 pooling: torch rounds down, Caffe up."""
    return (size - 3 + (1 if pooling == "caffe" else 0)) // 2 + 1


def _flat(channels: int, size: int, pooling: str) -> int:
    """Features left after three 3/2 poolings."""
    for _ in range(3):
        size = _pooled(size, pooling)
    if size < 1:
        least = 8 if pooling == "caffe" else 15
        raise ValueError(
            f"size is too small for three poolings: images of at least {least} x {least} pixels are needed"
        )
    return channels * size * size


def _caffe_init(model: nn.Module, deviations: tuple[float, ...]) -> nn.Module:
    layers = [layer for layer in model.modules() if isinstance(layer, (nn.Conv2d, nn.Linear))]
    for layer, deviation in zip(layers, deviations, strict=True):
        nn.init.normal_(layer.weight, std=deviation)
        nn.init.zeros_(layer.bias)
    return model


def cifar10_quick(channels: int, size: int, classes: int, pooling: str = "floor", init: str = "torch") -> nn.Module:
    """Caffe's `cifar10_quick`: three 5x5 convolutions, one max and two average poolings, two linear layers.

    116,906 parameters at 3 x 32 x 32 with floor pooling, 145,578 with Caffe's. Source: coxy1989/clr's port.
    """
    # Caffe clips an average pooling window at the border and divides by what is left; `ceil_mode` does the same.
    ceil = pooling == "caffe"
    model = nn.Sequential(
        nn.Conv2d(channels, 32, 5, padding=2),
        nn.MaxPool2d(3, 2, ceil_mode=ceil),
        nn.ReLU(),
        nn.Conv2d(32, 32, 5, padding=2),
        nn.ReLU(),
        nn.AvgPool2d(3, 2, ceil_mode=ceil),
        nn.Conv2d(32, 64, 5, padding=2),
        nn.ReLU(),
        nn.AvgPool2d(3, 2, ceil_mode=ceil),
        nn.Flatten(),
        nn.Linear(_flat(64, size, pooling), 64),
        nn.Linear(64, classes),
    )
    model.caffe_multipliers = {}  # every bias at twice the rate, and no exceptions
    return _caffe_init(model, (1e-4, 1e-2, 1e-2, 0.1, 0.1)) if init == "caffe" else model


def cifar10_full(channels: int, size: int, classes: int, pooling: str = "floor", init: str = "torch") -> nn.Module:
    """Caffe's `cifar10_full`: as `cifar10_quick` without its hidden linear layer, normalised after two of its blocks.

    85,098 parameters at 3 x 32 x 32 with floor pooling, 89,578 with Caffe's. Source: coxy1989/clr's port.
    """
    ceil = pooling == "caffe"
    model = nn.Sequential(
        nn.Conv2d(channels, 32, 5, padding=2),
        nn.MaxPool2d(3, 2, ceil_mode=ceil),
        nn.ReLU(),
        LocalResponseNorm(),
        nn.Conv2d(32, 32, 5, padding=2),
        nn.ReLU(),
        nn.AvgPool2d(3, 2, ceil_mode=ceil),
        LocalResponseNorm(),
        nn.Conv2d(32, 64, 5, padding=2),
        nn.ReLU(),
        nn.AvgPool2d(3, 2, ceil_mode=ceil),
        nn.Flatten(),
        nn.Linear(_flat(64, size, pooling), classes),
    )
    conv3, ip1 = [str(index) for index, layer in enumerate(model) if isinstance(layer, nn.Conv2d | nn.Linear)][-2:]
    # (learning rate, weight decay) where Caffe's file departs from twice the rate for biases.
    model.caffe_multipliers = {f"{conv3}.bias": (1.0, 1.0), f"{ip1}.weight": (1.0, 250.0), f"{ip1}.bias": (2.0, 0.0)}
    return _caffe_init(model, (1e-4, 1e-2, 1e-2, 1e-2)) if init == "caffe" else model


def lenet(channels: int, size: int, classes: int) -> nn.Module:
    """LeNet in the shape Caffe made common: two 5x5 convolutions with max pooling, 500 hidden units.

    431,080 parameters at 1 x 28 x 28. best_lr calls its MNIST network "LeNet-style" and does not print it.
    """
    side = ((size - 4) // 2 - 4) // 2
    if side < 1:
        raise ValueError("size is too small for lenet: images of at least 16 x 16 pixels are needed")
    return nn.Sequential(
        nn.Conv2d(channels, 20, 5),
        nn.MaxPool2d(2),
        nn.Conv2d(20, 50, 5),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(50 * side * side, 500),
        nn.ReLU(),
        nn.Linear(500, classes),
    )


def mlp(features: int, classes: int) -> nn.Module:
    """Dense 100-50-classes, softmax as hidden activation: the Keras article's network, 84,060 parameters on MNIST."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(features, 100),
        nn.Softmax(dim=1),
        nn.Linear(100, 50),
        nn.Softmax(dim=1),
        nn.Linear(50, classes),
    )
