"""The wide residual network of best_lr (Zagoruyko and Komodakis, arXiv:1605.07146)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

#: Activations by Keras's names.
ACTIVATIONS = {
    "relu": torch.relu,
    "elu": F.elu,
    "selu": torch.selu,
    "gelu": F.gelu,
    "silu": F.silu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
}


class _WideBlock(nn.Module):
    """Pre-activation basic block of two 3x3 convolutions, no dropout. Shapes `[N, C, H, W]`, halved by `stride`."""

    def __init__(self, inputs: int, outputs: int, stride: int, activation: str) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[activation]
        self.bn1, self.conv1 = nn.BatchNorm2d(inputs), nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn2, self.conv2 = nn.BatchNorm2d(outputs), nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if inputs != outputs or stride > 1 else None

    def forward(self, x: Tensor) -> Tensor:
        out = self.activation(self.bn1(x))
        # The shortcut of a block that changes shape starts from the activated input, as in the published network.
        residual = x if self.shortcut is None else self.shortcut(out)
        return residual + self.conv2(self.activation(self.bn2(self.conv1(out))))


class WideResNet(nn.Module):
    """WRN-depth-width (arXiv:1605.07146); WRN-28-10 (best_lr) has 36.5 million parameters.

    Args:
        channels: input channels.
        size: of the images; any will do.
        classes: number of classes.
        depth: layers, 6 n + 4.
        width: multiplier of the 16-32-64 channels.
        activation: a name of `ACTIVATIONS`.

    Raises:
        ValueError: a depth that is not 6 n + 4, a width below 1.
    """

    def __init__(self, channels: int, size: int, classes: int, depth: int, width: int, activation: str) -> None:
        super().__init__()
        if depth < 10 or depth % 6 != 4 or width < 1:
            raise ValueError(
                f"wide_resnet needs a depth of 10, 16, 22, 28, ... and a width above 0, not {depth}-{width}"
            )
        layers: list[nn.Module] = [nn.Conv2d(channels, 16, 3, padding=1, bias=False)]
        inputs = 16
        for outputs, stride in ((16 * width, 1), (32 * width, 2), (64 * width, 2)):
            for block in range((depth - 4) // 6):
                layers.append(_WideBlock(inputs, outputs, stride if block == 0 else 1, activation))
                inputs = outputs
        self.blocks, self.norm = nn.Sequential(*layers), nn.BatchNorm2d(inputs)
        self.activation = ACTIVATIONS[activation]
        self.classifier = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.activation(self.norm(self.blocks(x))).mean((2, 3)))
