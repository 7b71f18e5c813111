"""A folder of image files as a data set: `train/<class>/*` and `test/<class>/*`, PNG or JPEG."""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

SPLITS = ("train", "test")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")


class DataError(ValueError):
    """Data that is missing, damaged or of the wrong shape; the message is one line for the user."""


@dataclass(frozen=True)
class ImageFiles:
    """Per split, one (path, label) for each image, sorted; `stamp` changes when a file does."""

    files: dict[str, list[tuple[Path, int]]]
    classes: tuple[str, ...]
    stamp: list

    def read(self) -> tuple[list[tuple[np.ndarray, np.ndarray]], tuple[str, ...]]:
        return [self._split(split) for split in SPLITS], self.classes

    def _split(self, split: str) -> tuple[np.ndarray, np.ndarray]:
        from PIL import Image

        images, first = [], self.files[split][0][0]
        for path, _ in self.files[split]:
            try:
                with Image.open(path) as image:
                    pixels = np.asarray(image.convert("L" if image.mode in ("1", "L", "LA", "I;16") else "RGB"))
            except (OSError, SyntaxError) as error:
                raise DataError(f"{path} cannot be read as an image: {str(error).splitlines()[0]}") from error
            if images and pixels.shape != images[0].shape:
                raise DataError(
                    f"{path} has shape {pixels.shape}, but {first} has {images[0].shape}: resize them first"
                )
            images.append(pixels)
        if images[0].shape[0] != images[0].shape[1]:
            raise DataError(f"{first} is {images[0].shape[1]} x {images[0].shape[0]} pixels: the networks need squares")
        return np.stack(images), np.array([label for _, label in self.files[split]])


def find(data_dir: Path) -> ImageFiles:
    for split in SPLITS:
        if not (data_dir / split).is_dir():
            raise DataError(f"no folder {data_dir / split}: data set 'images' needs train/<class>/* and test/<class>/*")
    classes = tuple(sorted(entry.name for entry in os.scandir(data_dir / "train") if entry.is_dir()))
    other = tuple(sorted(entry.name for entry in os.scandir(data_dir / "test") if entry.is_dir()))
    if not classes or classes != other:
        raise DataError(f"{data_dir}: train and test must hold the same class folders, found {classes} and {other}")
    files: dict[str, list[tuple[Path, int]]] = {}
    digest = hashlib.sha256()
    for split in SPLITS:
        files[split] = []
        for label, name in enumerate(classes):
            entries = sorted(os.scandir(data_dir / split / name), key=lambda entry: entry.name)
            entries = [entry for entry in entries if entry.name.lower().endswith(IMAGE_SUFFIXES)]
            if not entries:
                raise DataError(f"no PNG or JPEG image in {data_dir / split / name}")
            for entry in entries:
                status = entry.stat()
                digest.update(f"{split}/{name}/{entry.name} {status.st_size} {status.st_mtime_ns}\n".encode())
                files[split].append((Path(entry.path), label))
    return ImageFiles(files, classes, [digest.hexdigest()])
