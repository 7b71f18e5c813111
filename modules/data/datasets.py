"""Named data sets as uint8 tensors in memory: decoded once, cached as `.npy`, memory-mapped read-only.

Many worker processes then share one copy of the pixels, and nobody decodes an image twice.
"""

import hashlib
import json
import os
import shutil
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from modules.checks import short
from modules.data.sources import SPLITS, DataError, ImageFiles, Source, source

CACHE_VERSION = 1

#: Labels of image folders whose pixels are known, by their fingerprint.
KNOWN_IMAGES = {"f103e41073cc568513074a83398ed490d1f69502a0d7c4e4cb9c59ce87c78e51": "CIFAR-10 (JPEG copy)"}


@dataclass(frozen=True)
class Dataset:
    """Images and labels of one data set.

    Attributes:
        name: one of `sources.SOURCES`.
        label: what tables and captions call it.
        train_images, test_images: uint8 arrays `[N, C, H, W]`, read-only.
        train_labels, test_labels: int64 arrays `[N]`.
        classes: class names, in label order.
        fingerprint: SHA-256 over shapes, pixels and labels of both splits.
        passed_over: how many files of a folder of images were not taken for images.
        held_out: the test images are a part of the training images of a folder that has none for testing.
    """

    name: str
    label: str
    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    classes: tuple[str, ...]
    fingerprint: str
    held_out: bool = False
    passed_over: int = 0

    @property
    def channels(self) -> int:
        return self.train_images.shape[1]

    @property
    def size(self) -> int:
        return self.train_images.shape[2]


def default_data_dir() -> Path:
    """`$CLR_DATA_DIR`, else `data/`."""
    return Path(os.environ.get("CLR_DATA_DIR") or "data")


def load(name: str, data_dir: str | Path | None = None) -> Dataset:
    """Load a data set, from its cache where there is one.

    Args:
        name: one of `sources.SOURCES`. For `images`, `data_dir` holds `train/<class>/*` and `test/<class>/*`, all of
            one size; for `images-64`, of any size: each is resized and cropped to 64 x 64. Without `test/` (or `val/`)
            a fifth of each class is held out.
        data_dir: where the data lie or are downloaded to, and where the cache goes; by default `default_data_dir()`.

    Raises:
        DataError: an unknown name; `data_dir` that is no path; data missing, truncated or unreadable, with what to do.
    """
    origin = source(name)
    if data_dir is not None and not isinstance(data_dir, str | Path):
        raise DataError(f"data_dir={short(data_dir)}: a path is needed")
    data_dir = Path(data_dir) if data_dir else default_data_dir()
    files = origin.find(data_dir) if origin.find else None
    key = [CACHE_VERSION, *(files.stamp if files else [])]
    cache = data_dir / ".cache" / name
    about = {"held_out": files.held_out, "passed_over": files.passed_over} if files else {}
    found = _open_cache(cache, key)
    if found is None:
        splits, classes = files.read() if files else origin.read(data_dir)
        arrays = _arrays(*splits)
        _check(arrays, classes, name, data_dir)
        found = _write_cache(cache, key, arrays, classes)
    return Dataset(name, _label(origin, found["fingerprint"], data_dir, files), **found, **about)


Arrays = dict[str, np.ndarray]


def _fingerprint(arrays: Arrays) -> str:
    digest = hashlib.sha256()
    for key in sorted(arrays):
        digest.update(f"{key} {arrays[key].dtype.str} {arrays[key].shape} ".encode())
        digest.update(np.ascontiguousarray(arrays[key]).data)
    return digest.hexdigest()


def _label(origin: Source, fingerprint: str, data_dir: Path, files: ImageFiles | None) -> str:
    held_out = ", a fifth held out" if files and files.held_out else ""
    folder = f"{data_dir.resolve().name} (folder of images{held_out})"
    return origin.label or KNOWN_IMAGES.get(fingerprint) or folder


def _open_cache(cache: Path, key: list) -> dict | None:
    """The cached parts of a `Dataset`; None where there are none of this key."""
    try:
        meta = json.loads((cache / "meta.json").read_text(encoding="utf-8"))
        if meta["key"] != key:
            return None
        arrays = {part: np.load(cache / f"{part}.npy", mmap_mode="r") for part in meta["parts"]}
    except (OSError, ValueError, KeyError, EOFError):
        return None
    return {**arrays, "classes": tuple(meta["classes"]), "fingerprint": meta["fingerprint"]}


def _write_cache(cache: Path, key: list, arrays: Arrays, classes: tuple[str, ...]) -> dict:
    """Put the parts of a `Dataset` into the cache, and give them back from there where that is possible."""
    fingerprint = _fingerprint(arrays)
    found = {**arrays, "classes": classes, "fingerprint": fingerprint}
    meta = {"key": key, "fingerprint": fingerprint, "classes": classes, "parts": sorted(arrays)}
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        new = Path(tempfile.mkdtemp(prefix=f"{cache.name}-", dir=cache.parent))
    except OSError:  # a read-only data directory: work from memory
        return found
    try:
        for part, array in arrays.items():
            np.save(new / f"{part}.npy", array)
        (new / "meta.json").write_text(json.dumps(meta), encoding="utf-8")
        shutil.rmtree(cache, ignore_errors=True)
        with suppress(OSError):  # another process was first, with the same bytes
            new.rename(cache)
    finally:
        shutil.rmtree(new, ignore_errors=True)
    return _open_cache(cache, key) or found


def _arrays(train: tuple[np.ndarray, np.ndarray], test: tuple[np.ndarray, np.ndarray]) -> Arrays:
    """Name the four arrays; grey images `[N, H, W]` get their channel, colour ones `[N, H, W, C]` go channels first."""
    named = {}
    for split, (images, labels) in zip(SPLITS, (train, test), strict=True):
        images = images[:, None] if images.ndim == 3 else images.transpose(0, 3, 1, 2)
        named[f"{split}_images"] = np.ascontiguousarray(images, dtype=np.uint8)
        named[f"{split}_labels"] = np.ascontiguousarray(labels, dtype=np.int64)
    return named


def _check(arrays: Arrays, classes: tuple[str, ...], name: str, data_dir: Path) -> None:
    """Raise DataError when no network could be trained on one split and tested on the other."""
    train, test = (arrays[f"{split}_images"].shape for split in SPLITS)
    if train[1:] != test[1:]:
        raise DataError(
            f"{name} in {data_dir}: images of the two splits differ, [C, H, W] is {list(train[1:])} in train and "
            f"{list(test[1:])} in test: resize or convert them first"
        )
    if train[2] != train[3]:
        raise DataError(f"{name} in {data_dir}: images are {train[3]} x {train[2]} pixels, the networks need squares")
    for split in SPLITS:
        labels = arrays[f"{split}_labels"]
        if not 0 <= labels.min() <= labels.max() < len(classes):
            raise DataError(f"{name} in {data_dir}: labels in {split} go to {labels.max()}, of {len(classes)} classes")
