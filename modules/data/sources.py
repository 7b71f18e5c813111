"""Where data sets come from. A data set is one entry of `SOURCES`; specifications and messages find it there."""

import gzip
import hashlib
import os
import socket
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from modules.checks import short

SPLITS = ("train", "test")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")
MAX_SIDE = 1024
DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")

#: Images `[N, H, W]` or `[N, H, W, 3]` and labels `[N]` of the training and of the test split; the classes' names.
Read = tuple[list[tuple[np.ndarray, np.ndarray]], tuple[str, ...]]


class DataError(ValueError):
    """Data that is missing, damaged or of the wrong shape; the message is one line for the user."""


@dataclass(frozen=True)
class Source:
    """Where a data set comes from.

    Attributes:
        label: what tables and captions call it; None: by its pixels, or by its folder's name.
        read: decodes it, called with `data_dir`.
        find: looks at the files in `data_dir` without reading them, where they are the user's own and may change: gives
            a stamp that changes when a file does, and what reads them.
    """

    label: str | None
    read: Callable[[Path], Read] | None = None
    find: Callable[[Path], "ImageFiles"] | None = None


def _read_digits(data_dir: Path) -> Read:
    """scikit-learn's 1,797 handwritten digits, enlarged from 8x8 to 32x32; 1,297 to train, 500 to test, stratified."""
    from PIL import Image

    (train, test), classes = _read_small_digits(data_dir)

    def enlarged(images: np.ndarray) -> np.ndarray:
        large = (Image.fromarray(image).resize((32, 32), Image.Resampling.BILINEAR) for image in images)
        return np.stack([np.asarray(image) for image in large])

    return [(enlarged(images), labels) for images, labels in (train, test)], classes


def _read_small_digits(data_dir: Path) -> Read:
    """scikit-learn's 1,797 handwritten digits, 8x8; 1,297 to train, 500 to test, stratified."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)
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


def _read_cifar10(data_dir: Path) -> Read:
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

    def read(data_dir: Path) -> Read:
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


@dataclass(frozen=True)
class ImageFiles:
    """Per split, one (path, label) for each image, sorted; `stamp` changes when a file does."""

    files: dict[str, list[tuple[Path, int]]]
    classes: tuple[str, ...]
    stamp: list

    def read(self) -> Read:
        """Of each split images `[N, H, W]`, or all `[N, H, W, 3]` where one is in colour, and labels `[N]`."""
        splits = [self._split(split) for split in SPLITS]
        if any(image.ndim == 3 for images, _ in splits for image in images):
            for images, _ in splits:
                images[:] = [np.stack([image] * 3, axis=-1) if image.ndim == 2 else image for image in images]
        return [(np.stack(images), labels) for images, labels in splits], self.classes

    def _split(self, split: str) -> tuple[list[np.ndarray], np.ndarray]:
        images, first = [], self.files[split][0][0]
        for path, _ in self.files[split]:
            pixels = _pixels(path)
            if images and pixels.shape[:2] != images[0].shape[:2]:
                raise DataError(
                    f"{path} has shape {pixels.shape}, but {first} has {images[0].shape}: resize them first"
                )
            images.append(pixels)
        return images, np.array([label for _, label in self.files[split]])


def _pixels(path: Path) -> np.ndarray:
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


def _find_images(data_dir: Path) -> ImageFiles:
    """The image files of a folder, without reading them; links are followed, hidden names left out.

    Raises:
        DataError: folders are missing, empty, differ between the splits, or hold what is no file.
    """
    try:
        return _listed(data_dir)
    except OSError as error:
        raise DataError(f"{error.filename or data_dir} cannot be read: {error.strerror}") from error


def _listed(data_dir: Path) -> ImageFiles:
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


#: By the name that specifications give it.
SOURCES = {
    "digits": Source("digits (scikit-learn)", _read_digits),
    "digits-8x8": Source("digits (scikit-learn, 8 x 8)", _read_small_digits),
    "mnist": Source("MNIST", _idx_reader("MNIST", "MNIST", "MNIST")),
    "fashion-mnist": Source(
        "Fashion-MNIST", _idx_reader("Fashion-MNIST", "FashionMNIST", "FashionMNIST", DEBIAN_FASHION_MNIST)
    ),
    "cifar10": Source("CIFAR-10", _read_cifar10),
    "images": Source(None, find=_find_images),
}


def source(name: str) -> Source:
    """The source of a data set.

    Raises:
        DataError: there is none of that name.
    """
    if name not in SOURCES:
        raise DataError(f"unknown dataset {short(name)}: choose one of {', '.join(SOURCES)}")
    return SOURCES[name]
