"""Caffe's CIFAR-10 networks, two of them as coxy1989/clr ported them; layers have the names of Caffe's files."""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

POOLINGS = ("floor", "caffe")
PLANES = 32, 32, 64  # of the three convolutions


class Filled(NamedTuple):
    """What Caffe's network file says of a layer.

    Attributes:
        std: standard deviation of its weights' Gaussian; None for weights that start at one.
        bias: what its biases start at.
        lr_mult, decay_mult: multipliers of rate and weight decay, of its weight and of its bias.
    """

    std: float | None
    lr_mult: tuple[float, float] = (1.0, 2.0)
    decay_mult: tuple[float, float] = (1.0, 1.0)
    bias: float = 0.0


#: Source: Caffe's `examples/cifar10/cifar10_quick_train_test.prototxt`.
QUICK = {
    "conv1": Filled(1e-4),
    "conv2": Filled(1e-2),
    "conv3": Filled(1e-2),
    "ip1": Filled(0.1),
    "ip2": Filled(0.1),
}
#: Source: Caffe's `examples/cifar10/cifar10_full_train_test.prototxt`.
FULL = {
    "conv1": Filled(1e-4),
    "conv2": Filled(1e-2),
    "conv3": Filled(1e-2, lr_mult=(1.0, 1.0)),
    "ip1": Filled(1e-2, decay_mult=(250.0, 0.0)),
}
#: Source: Caffe's `examples/cifar10/cifar10_full_sigmoid_train_test_bn.prototxt`, whose 1.00001 is taken for 1.
_BN = Filled(None, lr_mult=(1.0, 1.0), decay_mult=(0.0, 0.0), bias=1e-3)
SIGMOID_BN = {
    "conv1": Filled(1e-4),
    "bn1": _BN,
    "conv2": Filled(1e-2),
    "bn2": _BN,
    "conv3": Filled(1e-2, lr_mult=(1.0, 1.0)),
    "bn3": _BN,
    "ip1": Filled(1e-2, lr_mult=(1.0, 0.2), decay_mult=(250.0, 0.0)),
}


class CaffeNet(nn.Sequential):
    """A chain of layers with names. In `state_dict` they stay numbered, as in every checkpoint before they had names.

    Args:
        layers: the layers, by Caffe's names.
        filled: what Caffe's file says of those that have weights.
        init: `caffe` for the file's initialisation, else torch's is left.
    """

    def __init__(self, layers: dict[str, nn.Module], filled: dict[str, Filled], init: str) -> None:
        super().__init__(*layers.values())
        self.filled = {str(number): filled[name] for number, name in enumerate(layers) if name in filled}
        if init == "caffe":
            for number, layer in self.filled.items():
                if layer.std is not None:
                    nn.init.normal_(self[int(number)].weight, std=layer.std)
                nn.init.constant_(self[int(number)].bias, layer.bias)

    def multipliers(self, parameter: str) -> tuple[float, float]:
        """Multipliers of rate and weight decay of a parameter, by its name in `named_parameters`."""
        number, _, kind = parameter.partition(".")
        which = ("weight", "bias").index(kind)
        return self.filled[number].lr_mult[which], self.filled[number].decay_mult[which]


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


def _flat(size: int, pooling: str) -> int:
    """Features left of an image after three 3/2 poolings: torch rounds their sizes down, Caffe up."""
    for _ in range(3):
        size = (size - 3 + (pooling == "caffe")) // 2 + 1
    if size < 1:
        least = 8 if pooling == "caffe" else 15
        raise ValueError(
            f"size is too small for three poolings: images of at least {least} x {least} pixels are needed"
        )
    return PLANES[-1] * size * size


def _blocks(order: str, channels: int, pooling: str) -> dict[str, nn.Module]:
    """The layers of three blocks, in the order of their names: what a layer is, and the number of its block."""
    planes = (channels, *PLANES)
    made = {
        "conv": lambda block: nn.Conv2d(planes[block - 1], planes[block], 5, padding=2),
        # Caffe clips an average pooling window at the border and divides by what is left; `ceil_mode` does the same.
        "pool": lambda block: (nn.MaxPool2d if block == 1 else nn.AvgPool2d)(3, 2, ceil_mode=pooling == "caffe"),
        "relu": lambda block: nn.ReLU(),
        "sigmoid": lambda block: nn.Sigmoid(),
        "norm": lambda block: LocalResponseNorm(),
        "bn": lambda block: nn.BatchNorm2d(planes[block]),
    }
    return {name: made[name[:-1]](int(name[-1])) for name in order.split()}


def cifar10_quick(channels: int, size: int, classes: int, pooling: str = "floor", init: str = "torch") -> CaffeNet:
    """Caffe's `cifar10_quick`: three 5x5 convolutions, one max and two average poolings, two linear layers.

    116,906 parameters at 3 x 32 x 32 with floor pooling, 145,578 with Caffe's. Source: coxy1989/clr's port.
    """
    layers = _blocks("conv1 pool1 relu1 conv2 relu2 pool2 conv3 relu3 pool3", channels, pooling)
    layers |= {"flat": nn.Flatten(), "ip1": nn.Linear(_flat(size, pooling), 64), "ip2": nn.Linear(64, classes)}
    return CaffeNet(layers, QUICK, init)


def cifar10_full(channels: int, size: int, classes: int, pooling: str = "floor", init: str = "torch") -> CaffeNet:
    """Caffe's `cifar10_full`: as `cifar10_quick` without its hidden linear layer, normalised after two of its blocks.

    85,098 parameters at 3 x 32 x 32 with floor pooling, 89,578 with Caffe's. Source: coxy1989/clr's port.
    """
    layers = _blocks("conv1 pool1 relu1 norm1 conv2 relu2 pool2 norm2 conv3 relu3 pool3", channels, pooling)
    layers |= {"flat": nn.Flatten(), "ip1": nn.Linear(_flat(size, pooling), classes)}
    return CaffeNet(layers, FULL, init)


def cifar10_full_sigmoid_bn(
    channels: int, size: int, classes: int, pooling: str = "floor", init: str = "torch"
) -> CaffeNet:
    """Caffe's `cifar10_full` with sigmoids, normalised by batches: the network of the paper's 4.1.1 and Figure 6.

    85,354 parameters at 3 x 32 x 32 with floor pooling, 89,834 with Caffe's. Source: as `SIGMOID_BN`. torch's
    `BatchNorm2d` evaluates with running statistics.
    """
    order = "conv1 pool1 bn1 sigmoid1 conv2 bn2 sigmoid2 pool2 conv3 bn3 sigmoid3 pool3"
    layers = _blocks(order, channels, pooling)
    layers |= {"flat": nn.Flatten(), "ip1": nn.Linear(_flat(size, pooling), classes)}
    return CaffeNet(layers, SIGMOID_BN, init)
