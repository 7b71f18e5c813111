"""Small networks of other projects, and plain dense ones."""

from torch import nn


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


def mlp(channels: int, size: int, classes: int) -> nn.Module:
    """Dense 100-50-classes, softmax as hidden activation: the Keras article's network, 84,060 parameters on MNIST."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(channels * size * size, 100),
        nn.Softmax(dim=1),
        nn.Linear(100, 50),
        nn.Softmax(dim=1),
        nn.Linear(50, classes),
    )


def dense(channels: int, size: int, classes: int, *widths: int) -> nn.Module:
    """Dense layers of the given widths with ReLU between them; `dense-64-64-64` has 13,066 parameters at 8 x 8."""
    layers: list[nn.Module] = [nn.Flatten()]
    features = channels * size * size
    for width in widths:
        if width < 1:
            raise ValueError(f"a dense layer needs a unit at least, not {width}")
        layers += [nn.Linear(features, width), nn.ReLU()]
        features = width
    return nn.Sequential(*layers, nn.Linear(features, classes))
