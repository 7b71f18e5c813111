"""Named data sets as uint8 tensors in memory: decoded once, cached as `.npy`, memory-mapped read-only.

Many worker processes then share one copy of the pixels, and nobody decodes an image twice.
"""

import gzip
import hashlib
import json
import os
import shutil
import socket
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from modules.checks import short
from modules.data import image_files
from modules.data.image_files import SPLITS, DataError

NAMES = ("digits", "mnist", "fashion-mnist", "cifar10", "images")
DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
CACHE_VERSION = 1

#: What is written on tables and figures, by name; a folder of images is labelled by its pixels, or by its own name.
LABELS = {"digits": "digits (scikit-learn)", "mnist": "MNIST", "fashion-mnist": "Fashion-MNIST", "cifar10": "CIFAR-10"}
KNOWN_IMAGES = {"f103e41073cc568513074a83398ed490d1f69502a0d7c4e4cb9c59ce87c78e51": "CIFAR-10 (JPEG copy)"}


@dataclass(frozen=True)
class Dataset:
    """Images and labels of one data set.

    Attributes:
        name: one of `NAMES`.
        label: what tables and captions call it.
        train_images, test_images: uint8 arrays `[N, C, H, W]`, read-only.
        train_labels, test_labels: int64 arrays `[N]`.
        classes: class names, in label order.
        fingerprint: SHA-256 over shapes, pixels and labels of both splits.
    """

    name: str
    label: str
    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    classes: tuple[str, ...]
    fingerprint: str

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
        name: `digits`, `mnist`, `fashion-mnist`, `cifar10`, or `images` (`data_dir` then holds `train/<class>/*` and
            `test/<class>/*`, PNG or JPEG, all of one size).
        data_dir: where the data lie or are downloaded to, and where the cache goes; by default `default_data_dir()`.

    Raises:
        DataError: an unknown name; `data_dir` that is no path; data missing, truncated or unreadable, with what to do.
    """
    if name not in NAMES:
        raise DataError(f"unknown dataset {name!r}: choose one of {', '.join(NAMES)}")
    if data_dir is not None and not isinstance(data_dir, str | Path):
        raise DataError(f"data_dir={short(data_dir)}: a path is needed")
    data_dir = Path(data_dir) if data_dir else default_data_dir()
    source = image_files.find(data_dir) if name == "images" else None
    key = [CACHE_VERSION, *(source.stamp if source else [])]
    cache = data_dir / ".cache" / name
    found = _open_cache(cache, name, key)
    if found:
        return found
    splits, classes = source.read() if source else _READERS[name](data_dir)
    arrays = _arrays(*splits)
    _check(arrays, classes, name, data_dir)
    return _write_cache(cache, name, key, arrays, classes, data_dir)


Arrays = dict[str, np.ndarray]
Splits = list[tuple[np.ndarray, np.ndarray]]


def _fingerprint(arrays: Arrays) -> str:
    digest = hashlib.sha256()
    for key in sorted(arrays):
        digest.update(f"{key} {arrays[key].dtype.str} {arrays[key].shape} ".encode())
        digest.update(np.ascontiguousarray(arrays[key]).data)
    return digest.hexdigest()


def _label(name: str, fingerprint: str, data_dir: Path) -> str:
    return LABELS.get(name) or KNOWN_IMAGES.get(fingerprint) or f"{data_dir.resolve().name} (folder of images)"


def _open_cache(cache: Path, name: str, key: list) -> Dataset | None:
    try:
        meta = json.loads((cache / "meta.json").read_text())
        if meta["key"] != key:
            return None
        arrays = {part: np.load(cache / f"{part}.npy", mmap_mode="r") for part in meta["parts"]}
    except (OSError, ValueError, KeyError, EOFError):
        return None
    label = _label(name, meta["fingerprint"], cache.parent.parent)
    return Dataset(name, label, **arrays, classes=tuple(meta["classes"]), fingerprint=meta["fingerprint"])


def _write_cache(
    cache: Path, name: str, key: list, arrays: Arrays, classes: tuple[str, ...], data_dir: Path
) -> Dataset:
    fingerprint = _fingerprint(arrays)
    meta = {"key": key, "fingerprint": fingerprint, "classes": classes, "parts": sorted(arrays)}
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        new = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=cache.parent))
    except OSError:  # a read-only data directory: work from memory
        return Dataset(name, _label(name, fingerprint, data_dir), **arrays, classes=classes, fingerprint=fingerprint)
    try:
        for part, array in arrays.items():
            np.save(new / f"{part}.npy", array)
        (new / "meta.json").write_text(json.dumps(meta))
        shutil.rmtree(cache, ignore_errors=True)
        with suppress(OSError):  # another process was first, with the same bytes
            new.rename(cache)
    finally:
        shutil.rmtree(new, ignore_errors=True)
    return _open_cache(cache, name, key) or Dataset(
        name, _label(name, fingerprint, data_dir), **arrays, classes=classes, fingerprint=fingerprint
    )


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


def _read_digits(data_dir: Path) -> tuple[Splits, tuple[str, ...]]:
    """scikit-learn's 1,797 handwritten digits, enlarged from 8x8 to 32x32; 1,297 to train, 500 to test, stratified."""
    from PIL import Image
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    small = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    images = np.stack(
        [np.asarray(Image.fromarray(image).resize((32, 32), Image.Resampling.BILINEAR)) for image in small]
    )
    train, test = train_test_split(np.arange(len(images)), test_size=500, stratify=digits.target, random_state=0)
    split = [(images[index], digits.target[index]) for index in (np.sort(train), np.sort(test))]
    return split, tuple(str(name) for name in digits.target_names)


@contextmanager
def _download_errors(what: str, data_dir: Path, ways: str) -> Iterator[None]:
    """Turn a failed download into one line, and do not let a silent network hang for long."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(20)
    try:
        yield
    except DataError:
        raise
    except Exception as error:
        raise DataError(
            f"{what} is not in {data_dir} and could not be downloaded or read ({type(error).__name__}). {ways}"
        ) from error
    finally:
        socket.setdefaulttimeout(before)


def _read_cifar10(data_dir: Path) -> tuple[Splits, tuple[str, ...]]:
    from torchvision.datasets import CIFAR10

    ways = (
        "Ways to supply it: put cifar-10-python.tar.gz (or its folder cifar-10-batches-py) there, point "
        "CLR_DATA_DIR or data_dir at a folder that has it, or use image files: -p dataset images -p data_dir <folder>."
    )
    with _download_errors("CIFAR-10", data_dir, ways):
        splits = [CIFAR10(data_dir, train=train, download=True) for train in (True, False)]
    return [(np.asarray(split.data), np.asarray(split.targets)) for split in splits], tuple(splits[0].classes)


def _idx(path: Path) -> np.ndarray:
    """An IDX file of unsigned bytes (LeCun's format), gzipped or not."""
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rb") as file:
            content = file.read()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    if len(content) < 4 or content[:3] != b"\0\0\x08":
        raise DataError(f"{path} is not an IDX file of bytes")
    start = 4 + 4 * content[3]
    if len(content) < start:
        raise DataError(f"{path} is truncated: {len(content)} bytes, not even its shape")
    shape = tuple(np.frombuffer(content[4:start], dtype=">u4").astype(int))
    if len(content) != start + int(np.prod(shape)):
        raise DataError(f"{path} is truncated: {len(content)} bytes, {start + int(np.prod(shape))} expected")
    return np.frombuffer(content, dtype=np.uint8, offset=start).reshape(shape)


def _idx_reader(what: str, folder: str, torchvision_name: str, system: Path | None = None) -> Callable:
    """A reader of MNIST-like data: from `data_dir`, else from the system's package, else through torchvision."""
    files = [f"{split}-{kind}" for split in ("train", "t10k") for kind in ("images-idx3-ubyte", "labels-idx1-ubyte")]

    def find(data_dir: Path) -> list[Path] | None:
        for place in filter(None, (data_dir / folder / "raw", system)):
            for suffix in ("", ".gz"):
                paths = [place / (name + suffix) for name in files]
                if all(path.is_file() for path in paths):
                    return paths
        return None

    def read(data_dir: Path) -> tuple[Splits, tuple[str, ...]]:
        import torchvision.datasets

        kind = getattr(torchvision.datasets, torchvision_name)
        paths = find(data_dir)
        if paths is None:
            ways = f"Ways to supply it: put the four *-ubyte files in {data_dir / folder / 'raw'}, or set CLR_DATA_DIR."
            with _download_errors(what, data_dir, ways):
                kind(data_dir, download=True)
            paths = find(data_dir)
        train_images, train_labels, test_images, test_labels = map(_idx, paths)
        for split, images, labels in (("train", train_images, train_labels), ("t10k", test_images, test_labels)):
            if images.ndim != 3 or labels.ndim != 1 or len(images) != len(labels) or not len(images):
                raise DataError(f"{what}: the {split} images {images.shape} and labels {labels.shape} do not match")
        return [(train_images, train_labels), (test_images, test_labels)], tuple(map(str, kind.classes))

    return read


_READERS = {
    "digits": _read_digits,
    "cifar10": _read_cifar10,
    "mnist": _idx_reader("MNIST", "MNIST", "MNIST"),
    "fashion-mnist": _idx_reader("Fashion-MNIST", "FashionMNIST", "FashionMNIST", DEBIAN_FASHION_MNIST),
}
