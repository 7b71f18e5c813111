"""A folder of image files as a data set: `train/<class>/*` and `test/<class>/*`, PNG or JPEG."""

import hashlib
import os
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np

SPLITS = ("train", "test")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")
MAX_SIDE = 1024


class DataError(ValueError):
    """Data that is missing, damaged or of the wrong shape; the message is one line for the user."""


@dataclass(frozen=True)
class ImageFiles:
    """Per split, one (path, label) for each image, sorted; `stamp` changes when a file does."""

    files: dict[str, list[tuple[Path, int]]]
    classes: tuple[str, ...]
    stamp: list

    def read(self) -> tuple[list[tuple[np.ndarray, np.ndarray]], tuple[str, ...]]:
        """Of each split images `[N, H, W]`, or all `[N, H, W, 3]` where one is in colour, and labels `[N]`."""
        splits = [self._split(split) for split in SPLITS]
        if any(image.ndim == 3 for images, _ in splits for image in images):
            for images, _ in splits:
                images[:] = [np.stack([image] * 3, axis=-1) if image.ndim == 2 else image for image in images]
        return [(np.stack(images), labels) for images, labels in splits], self.classes

    def _split(self, split: str) -> tuple[list[np.ndarray], np.ndarray]:
        images, first = [], self.files[split][0][0]
        for path, _ in self.files[split]:
            pixels = _read(path)
            if images and pixels.shape[:2] != images[0].shape[:2]:
                raise DataError(
                    f"{path} has shape {pixels.shape}, but {first} has {images[0].shape}: resize them first"
                )
            images.append(pixels)
        return images, np.array([label for _, label in self.files[split]])


def _read(path: Path) -> np.ndarray:
    """Pixels of one file, uint8 `[H, W]` or `[H, W, 3]`."""
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of large pictures, which are refused below
            image = Image.open(path)
        with image:
            if max(image.size) > MAX_SIDE:
                raise DataError(f"{path} is {image.width} x {image.height} pixels, more than {MAX_SIDE}: resize it")
            if getattr(image, "n_frames", 1) > 1:
                raise DataError(f"{path} is animated: one picture a file is needed")
            if image.mode.startswith(("I", "F")):
                # Pillow would cut off what exceeds 255.
                return (np.asarray(image, dtype=np.float64) / 257).round().clip(0, 255).astype(np.uint8)
            return np.asarray(image.convert("L" if image.mode in ("1", "L", "LA") else "RGB"))
    except DataError:
        raise
    except Exception as error:  # decoders raise whatever the damage leads to
        why = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{path} cannot be read as an image: {why}") from error


def _folders(folder: Path) -> tuple[str, ...]:
    return tuple(sorted(e.name for e in os.scandir(folder) if e.is_dir() and not e.name.startswith(".")))


def find(data_dir: Path) -> ImageFiles:
    """The image files of a folder, without reading them; links are followed, hidden names left out.

    Raises:
        DataError: folders are missing, empty, differ between the splits, or hold what is no file.
    """
    try:
        return _find(data_dir)
    except OSError as error:
        raise DataError(f"{error.filename or data_dir} cannot be read: {error.strerror}") from error


def _find(data_dir: Path) -> ImageFiles:
    for split in SPLITS:
        if not (data_dir / split).is_dir():
            raise DataError(f"no folder {data_dir / split}: data set 'images' needs train/<class>/* and test/<class>/*")
    classes, other = (_folders(data_dir / split) for split in SPLITS)
    if not classes:
        raise DataError(f"{data_dir}: train and test must hold a folder for each class, found none")
    if classes != other:
        only = [
            f"{name!r} is only in {split}"
            for split, mine, theirs in zip(SPLITS, (classes, other), (other, classes), strict=True)
            for name in mine
            if name not in theirs
        ]
        raise DataError(f"{data_dir}: train and test must hold the same class folders, but {', '.join(only[:5])}")
    files: dict[str, list[tuple[Path, int]]] = {}
    digest = hashlib.sha256()
    for split in SPLITS:
        files[split] = []
        for label, name in enumerate(classes):
            entries = sorted(os.scandir(data_dir / split / name), key=lambda entry: entry.name)
            entries = [e for e in entries if e.name.lower().endswith(IMAGE_SUFFIXES) and not e.name.startswith(".")]
            if not entries:
                raise DataError(f"no PNG or JPEG image in {data_dir / split / name}")
            for entry in entries:
                status = entry.stat()
                if not entry.is_file():
                    raise DataError(f"{entry.path} is not a file")
                line = f"{split}/{name}/{entry.name} {status.st_size} {status.st_mtime_ns}\n"
                digest.update(os.fsencode(line))
                files[split].append((Path(entry.path), label))
    return ImageFiles(files, classes, [digest.hexdigest()])
