"""A data set as batches on a device: order, pixels, augmentation."""

import warnings
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from modules.data.datasets import Dataset

PADDING = 4


class Data:
    """A data set on a device, ready to be cut into batches.

    Args:
        dataset: the data set.
        device: where batches are wanted; on the CPU the uint8 images stay memory-mapped and shared.
        pixels: `unit`: 0 to 1 minus the training set's channel means; `caffe`: 0 to 255 minus its mean image.
    """

    def __init__(self, dataset: Dataset, device: torch.device, pixels: str = "unit") -> None:
        self.scale = 255 if pixels == "unit" else 1
        mean = dataset.channel_mean()[:, None, None] if pixels == "unit" else dataset.mean_image()
        self.mean = torch.from_numpy(mean)[None].to(device)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the arrays are read-only, and nothing here writes to them
            self.train_images, self.train_labels, self.test_images, self.test_labels = (
                torch.from_numpy(array).to(device)
                for array in (dataset.train_images, dataset.train_labels, dataset.test_images, dataset.test_labels)
            )

    def pixels(self, images: Tensor) -> Tensor:
        """uint8 `[B, C, H, W]` to scaled and centred float32, channels_last."""
        # Rearranged last, as floats: twice as fast as rearranging bytes on the way.
        return images.to(torch.float32).div_(self.scale).sub_(self.mean).contiguous(memory_format=torch.channels_last)


def batches(count: int, batch_size: int, seed: int, start: int = 0) -> Iterator[np.ndarray]:
    """Endless indices of training images, `[batch_size]` each, from iteration `start`.

    Every epoch is a new permutation drawn from (seed, epoch) alone, so a resumed run replays nothing. The images left
    over when `batch_size` does not divide `count` sit that epoch out.
    """
    per_epoch = count // batch_size
    epoch, first = divmod(start, per_epoch)
    while True:
        order = np.random.default_rng((seed, epoch)).permutation(count)
        for index in range(first, per_epoch):
            yield order[index * batch_size : (index + 1) * batch_size]
        epoch, first = epoch + 1, 0


def flip_crop(images: Tensor, seed: int, iteration: int) -> Tensor:
    """The usual CIFAR augmentation: padded by four black pixels and cropped at random, half of them mirrored.

    What is drawn depends on the run's seed and the iteration alone, so a resumed run replays nothing.

    Args:
        images: `[B, C, H, W]`.
        seed: the run's.
        iteration: counted from the run's start.
    """
    count, channels, height, width = images.shape
    draw = np.random.default_rng((seed, iteration, 1))
    down, right = draw.integers(0, 2 * PADDING + 1, (2, count))
    columns = right[:, None] + np.arange(width)
    mirrored = draw.random(count) < 0.5
    columns[mirrored] = columns[mirrored, ::-1]
    rows, columns = (
        torch.from_numpy(index).to(images.device) for index in (down[:, None] + np.arange(height), columns)
    )
    padded = F.pad(images, (PADDING,) * 4)
    which, channel = (torch.arange(n, device=images.device) for n in (count, channels))
    return padded[which[:, None, None, None], channel[:, None, None], rows[:, None, :, None], columns[:, None, None]]
