"""Which images train, which choose, which test."""

import math
from dataclasses import dataclass

import numpy as np

from modules.data.datasets import Dataset
from modules.data.folders import dealt

SPLITS = ("standard", "validation", "folds")
HELD_OUT = 0.1  # of the training images, for validation
FOLDS = 5
COUNTED_AT_ONCE = 256  # images, as 64-bit integers


@dataclass(frozen=True)
class Split:
    """A data set's images by what they are for.

    Attributes:
        images, labels: uint8 `[N, C, H, W]` and int64 `[N]`, what `train` and `validation` point into.
        train, validation: indices; `validation` is empty in the standard split.
        test_images, test_labels: what is read once, at the end.
    """

    images: np.ndarray
    labels: np.ndarray
    train: np.ndarray
    validation: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray

    @property
    def validation_labels(self) -> np.ndarray:
        """int64 `[N]`."""
        return self.labels[self.validation]

    @property
    def sizes(self) -> dict[str, int]:
        """How many images train, choose and test."""
        return {"train": len(self.train), "validation": len(self.validation), "test": len(self.test_labels)}

    def channel_mean(self) -> np.ndarray:
        """Mean of the training pixels scaled to [0, 1], float32 `[C]`; summed in integers, so exact on any machine."""
        sums = self._sum().sum(axis=(1, 2))
        count = 255 * len(self.train) * self.images[0, 0].size
        return np.array([int(total) / count for total in sums], dtype=np.float32)

    def channel_deviation(self) -> np.ndarray:
        """Standard deviation of the training pixels scaled to [0, 1], float32 `[C]`; 1 for a channel without any."""
        pixels, channels = len(self.train) * self.images[0, 0].size, self.images.shape[1]
        total, squares = np.zeros(channels, dtype=np.int64), np.zeros(channels, dtype=np.int64)
        for start in range(0, len(self.train), COUNTED_AT_ONCE):
            some = self.images[self.train[start : start + COUNTED_AT_ONCE]].astype(np.int64)
            total += some.sum(axis=(0, 2, 3))
            squares += (some * some).sum(axis=(0, 2, 3))
        # In Python's integers, which do not overflow, so exact on any machine.
        variances = [pixels * int(square) - int(sum_) ** 2 for sum_, square in zip(total, squares, strict=True)]
        return np.array([math.sqrt(variance) / (255 * pixels) or 1 for variance in variances], dtype=np.float32)

    def mean_image(self) -> np.ndarray:
        """Mean of the training images, 0 to 255, float32 `[C, H, W]`; summed in integers, so exact on any machine."""
        return (self._sum() / len(self.train)).astype(np.float32)

    def _sum(self) -> np.ndarray:
        """The training images' sum, int64 `[C, H, W]`: all less the held out ones, which are fewer to copy."""
        left_out = np.delete(np.arange(len(self.labels)), self.train)
        return self.images.sum(axis=0, dtype=np.int64) - self.images[left_out].sum(axis=0, dtype=np.int64)


def split(dataset: Dataset, name: str, seed: int) -> Split:
    """Divide a data set's images.

    Args:
        dataset: the data set.
        name: `standard`: its own training and test images. `validation`: its own validation images choose where it has
            some, else a tenth of the training images, class by class, is held out for choices; the same tenth always.
            `folds`: all images in five folds, class by class; a run tests on fold `seed mod 5`, and a tenth of the rest
            is held out.
        seed: the run's.
    """
    images, labels = dataset.train_images, dataset.train_labels
    test_images, test_labels = dataset.test_images, dataset.test_labels
    everything = np.arange(len(labels))
    own = [] if dataset.validation_images is None else [(dataset.validation_images, dataset.validation_labels)]
    if name == "standard":
        return Split(images, labels, everything, everything[:0], test_images, test_labels)
    if name == "validation" and own:
        images, labels = _joined((images, labels), *own)
        return Split(images, labels, everything, np.arange(len(everything), len(labels)), test_images, test_labels)
    if name == "folds":
        images, labels = _joined((images, labels), (test_images, test_labels), *own)
        fold = dealt(labels, FOLDS) == seed % FOLDS
        rest, test = np.flatnonzero(~fold), np.flatnonzero(fold)
        test_images, test_labels = images[test], labels[test]
    else:
        rest = everything
    held_out = dealt(labels[rest], round(1 / HELD_OUT)) == 0
    return Split(images, labels, rest[~held_out], rest[held_out], test_images, test_labels)


def _joined(*parts: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels of several parts in one pair of arrays."""
    images, labels = zip(*parts, strict=True)
    return np.concatenate(images), np.concatenate(labels)
