"""A data set as batches on a device: order, pixels, augmentation."""

import warnings
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from modules.data.splits import Split

PADDING = 4
PIXELS = ("unit", "standard", "caffe", "codes")


class Data:
    """A data set on a device, ready to be cut into batches.

    Args:
        split: its images by what they are for.
        device: where batches are wanted; on the CPU the uint8 images stay memory-mapped and shared.
        pixels: one of `PIXELS`. `unit`: 0 to 1 minus the training images' channel means; `standard`: the same, divided
            by their channels' standard deviation; `caffe`: 0 to 255 minus their mean image; `codes`: as they are, for
            a text.

    Attributes:
        images, labels: what indices of training images point into, uint8 `[N, C, H, W]` and int64 `[N]`.
    """

    def __init__(self, split: Split, device: torch.device, pixels: str = "unit") -> None:
        self.split, self.device = split, device
        self.scale = 1 if pixels in ("caffe", "codes") else 255
        mean = split.mean_image() if pixels == "caffe" else split.channel_mean()[:, None, None]
        self.mean = torch.from_numpy(mean * (pixels != "codes"))[None].to(device)
        self.deviation = None
        if pixels == "standard":
            self.deviation = torch.from_numpy(split.channel_deviation()[:, None, None])[None].to(device)
        self.images, self.labels = self._on_device(split.images), self._on_device(split.labels)
        self._parts: dict[str, tuple[Tensor, Tensor]] = {}

    def _on_device(self, array: np.ndarray) -> Tensor:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the arrays are read-only, and nothing here writes to them
            return torch.from_numpy(array).to(self.device)

    def part(self, name: str) -> tuple[Tensor, Tensor]:
        """Images and labels of a part for evaluation, `test` or `validation`; kept on the device once asked for."""
        if name not in self._parts:
            held = self.split.validation
            images, labels = (
                (self.split.test_images, self.split.test_labels)
                if name == "test"
                else (self.split.images[held], self.split.labels[held])
            )
            self._parts[name] = self._on_device(images), self._on_device(labels)
        return self._parts[name]

    def batch(self, which: np.ndarray) -> tuple[Tensor, Tensor]:
        """The training images and labels `[B]` with these numbers among the split's training images."""
        index = torch.from_numpy(self.split.train[which]).to(self.device)
        # `index_select` copies whole images; indexing with brackets copies pixel by pixel, ten times slower.
        return self.images.index_select(0, index), self.labels[index]

    def pixels(self, images: Tensor) -> Tensor:
        """uint8 `[B, C, H, W]` to scaled and centred float32, channels_last."""
        floats = scaled(images, self.scale, self.mean, self.deviation)
        # Rearranged last, as floats: twice as fast as rearranging bytes on the way.
        return floats.contiguous(memory_format=torch.channels_last)


def scaled(images: Tensor, scale: int, mean: Tensor, deviation: Tensor | None) -> Tensor:
    """uint8 images as float32, divided by the scale, less the mean, divided by the deviation where there is one."""
    floats = images.to(torch.float32).div_(scale).sub_(mean)
    return floats if deviation is None else floats.div_(deviation)


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
