"""The networks of the study: Caffe's two CIFAR-10 networks as coxy1989/clr ported them, and the other projects'.

`build(name, ...)` makes any of them. Logits come out: the loss is cross entropy.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

POOLINGS = ("floor", "caffe")
INITS = ("torch", "caffe")


def build(
    name: str,
    channels: int = 3,
    size: int = 32,
    classes: int = 10,
    pooling: str = "floor",
    init: str = "torch",
) -> nn.Module:
    """Make a network with freshly drawn weights (torch's global random generator).

    Args:
        name: `cifar10_quick`, `cifar10_full`, `lenet`, `mlp`, or `wide_resnet-<depth>-<width>` (`wide_resnet-28-10`).
        channels: input channels.
        size: input height and width in pixels.
        classes: number of classes.
        pooling: `floor` (torch's and coxy1989/clr's output sizes) or `caffe` (rounded up, 16-8-4 at 32 pixels);
            for the two Caffe networks only.
        init: `torch`'s defaults (coxy1989/clr) or `caffe`: the prototxt's Gaussians, zero biases; Caffe networks only.

    Returns:
        A module from float images `[N, channels, size, size]` to logits `[N, classes]`.

    Raises:
        ValueError: an unknown name or option, or an option the network does not have.
    """
    if pooling not in POOLINGS:
        raise ValueError(f"pooling must be one of {', '.join(POOLINGS)}, not {pooling!r}")
    if init not in INITS:
        raise ValueError(f"init must be one of {', '.join(INITS)}, not {init!r}")
    if name in ("cifar10_quick", "cifar10_full"):
        make = cifar10_quick if name == "cifar10_quick" else cifar10_full
        return make(channels, size, classes, pooling, init)
    if (pooling, init) != ("floor", "torch"):
        raise ValueError(f"pooling and init are options of the Caffe networks, not of model {name!r}")
    if name == "lenet":
        return lenet(channels, size, classes)
    if name == "mlp":
        return mlp(channels * size * size, classes)
    if name.startswith("wide_resnet-"):
        parts = name.split("-")[1:]
        if len(parts) == 2 and all(part.isdigit() for part in parts):
            return WideResNet(int(parts[0]), int(parts[1]), channels, classes)
    raise ValueError(
        f"unknown model {name!r}: choose cifar10_quick, cifar10_full, lenet, mlp or wide_resnet-<depth>-<width>"
    )


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


class LocalResponseNorm(nn.Module):
    """Caffe's local response normalisation within channels: `x / (1 + alpha mean(x^2 over size x size))^beta`.

    torch's own LocalResponseNorm normalises across channels. Shapes `[N, C, H, W]` in and out.
    """

    def __init__(self, size: int = 3, alpha: float = 5e-5, beta: float = 0.75) -> None:
        super().__init__()
        self.size, self.alpha, self.beta = size, alpha, beta

    def forward(self, x: Tensor) -> Tensor:
        mean = F.avg_pool2d(x * x, self.size, stride=1, padding=self.size // 2)
        return x * (1 + self.alpha * mean) ** -self.beta


def _pooled(size: int, pooling: str) -> int:
    """Output size of a 3/2 pooling: torch rounds down, Caffe up."""
    return (size - 3 + (1 if pooling == "caffe" else 0)) // 2 + 1


def _flat(channels: int, size: int, pooling: str) -> int:
    """Features left after three 3/2 poolings."""
    for _ in range(3):
        size = _pooled(size, pooling)
    if size < 1:
        raise ValueError("size is too small for three poolings: images of at least 15 x 15 pixels are needed")
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


class _WideBlock(nn.Module):
    """Pre-activation basic block of two 3x3 convolutions, no dropout. Shapes `[N, C, H, W]`, halved by `stride`."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(inputs), nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn2, self.conv2 = nn.BatchNorm2d(outputs), nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if inputs != outputs or stride > 1 else None

    def forward(self, x: Tensor) -> Tensor:
        out = torch.relu(self.bn1(x))
        # The shortcut of a block that changes shape starts from the activated input, as in the published network.
        residual = x if self.shortcut is None else self.shortcut(out)
        return residual + self.conv2(torch.relu(self.bn2(self.conv1(out))))


class WideResNet(nn.Module):
    """WRN-depth-width (arXiv:1605.07146), He initialisation; WRN-28-10 (best_lr) has 36.5 million parameters.

    Args:
        depth: layers, 6 n + 4.
        width: multiplier of the 16-32-64 channels.
        channels: input channels.
        classes: number of classes.

    Raises:
        ValueError: a depth that is not 6 n + 4, or a width below 1.
    """

    def __init__(self, depth: int, width: int, channels: int = 3, classes: int = 10) -> None:
        super().__init__()
        if depth < 10 or depth % 6 != 4 or width < 1:
            raise ValueError(
                f"wide_resnet needs a depth of 10, 16, 22, 28, ... and a width above 0, not {depth}-{width}"
            )
        layers: list[nn.Module] = [nn.Conv2d(channels, 16, 3, padding=1, bias=False)]
        inputs = 16
        for outputs, stride in ((16 * width, 1), (32 * width, 2), (64 * width, 2)):
            for block in range((depth - 4) // 6):
                layers.append(_WideBlock(inputs, outputs, stride if block == 0 else 1))
                inputs = outputs
        self.features = nn.Sequential(*layers, nn.BatchNorm2d(inputs), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.classifier = nn.Linear(inputs, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x))
