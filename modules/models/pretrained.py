"""Networks to fine-tune: Caffe's `cifar10_quick`, trained on half of Fashion-MNIST's classes, with a new last layer.

The weights lie beside this file. `PRETRAINING` is the run that they are of, with `keep_weights`.
"""

from pathlib import Path

import torch
from torch import nn

from modules.models import caffe

WEIGHTS = Path(__file__).with_name("quick_fashion_0_4.pt")
PRETRAINING = dict(
    dataset="fashion-mnist-0-4",
    model="cifar10_quick",
    pixels="standard",
    policy=dict(name="linear", lr=0.02),
    weight_decay=0.0005,
    batch_size=64,
    iterations=2000,
    evaluate_every=500,
    seed=1,
)


def whole(channels: int, size: int, classes: int) -> nn.Module:
    """The network with a freshly drawn last layer for `classes`; all of it trains."""
    if (channels, size) != (1, 28):
        raise ValueError("a pretrained network needs grey images of 28 x 28 pixels, as it was trained on")
    network = caffe.cifar10_quick(channels, size, 5)
    if not next(network.parameters()).is_meta:
        network.load_state_dict(torch.load(WEIGHTS, weights_only=True))
    network[-1] = nn.Linear(network[-1].in_features, classes)
    return network


def head(channels: int, size: int, classes: int) -> nn.Module:
    """The same; only the last layer trains."""
    network = whole(channels, size, classes)
    for layer in list(network)[:-1]:
        layer.requires_grad_(False)
    return network
