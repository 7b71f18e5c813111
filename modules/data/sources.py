"""Where data sets come from. A data set is one entry of `SOURCES`; specifications and messages find it there."""

import gzip
import hashlib
import os
import re
import socket
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from stat import S_ISREG
from typing import TYPE_CHECKING

import numpy as np

from modules.checks import short

if TYPE_CHECKING:
    from PIL.Image import Image

SPLITS = ("train", "test")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
MIN_SIDE, MAX_SIDE = 8, 1024  # pixels
TRAIN_FOLDERS = ("train", "training")  # in capitals too; the first that is there
HELD_OUT_FOLDERS = ("test", "testing", "val", "valid", "validation")
NOT_A_CLASS = "__MACOSX"  # what macOS adds to archives: a shadow of every file
RESIZED = "with image_size=64, or as the data set images-64, every image is resized and cropped"
HANDS = 5  # without such a folder one of five images of each class is held out
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
    """The image files of a folder, by what they are for.

    Attributes:
        files: per split, one (path, label) for each image, sorted.
        classes: the classes' names, in label order.
        held_out: the folder has no test images of its own: a part of its images was held out for them.
        passed_over: how many files have endings that are not taken, such as `.heic`.
        size: what every image is resized and cropped to, in pixels; None for images that are all of one size.
        stamp: changes when a file does.
    """

    files: dict[str, list[tuple[Path, int]]]
    classes: tuple[str, ...]
    held_out: bool
    passed_over: int
    size: int | None
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
            pixels = _pixels(path, self.size)
            if images and pixels.shape[:2] != images[0].shape[:2]:
                raise DataError(f"{path} has shape {pixels.shape}, but {first} has {images[0].shape}: {RESIZED}")
            images.append(pixels)
        return images, np.array([label for _, label in self.files[split]])


def _pixels(path: Path, size: int | None) -> np.ndarray:
    """Pixels of one file, upright, uint8 `[H, W]` or `[H, W, 3]`; resized and cropped to a square where asked for."""
    from PIL import Image, ImageOps

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of large pictures; those that are not resized are refused below
            image = Image.open(path)
        with image:
            if size is None and max(image.size) > MAX_SIDE:
                raise DataError(f"{path} is {image.width} x {image.height} pixels, more than {MAX_SIDE}: {RESIZED}")
            # Cameras write JPEGs that hold a preview as a second picture (MPO): the first is the photograph.
            if getattr(image, "n_frames", 1) > 1 and image.format != "MPO":
                raise DataError(f"{path} is animated: one picture a file is needed")
            if size is not None:
                image.draft(None, (2 * size, 2 * size))  # a JPEG is decoded no larger than needed
            upright = ImageOps.exif_transpose(image)
            if upright.mode.startswith(("I", "F")):
                # Pillow would cut off what exceeds 255.
                levels = (np.asarray(upright, dtype=np.float64) / 257).round().clip(0, 255).astype(np.uint8)
                upright = Image.fromarray(levels)
            upright = upright.convert("L" if upright.mode in ("1", "L", "LA") else "RGB")
            return np.asarray(upright if size is None else _square(upright, size))
    except DataError:
        raise
    except Exception as error:  # decoders raise whatever the damage leads to
        why = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{path} cannot be read as an image: {why}") from error


def _square(image: "Image", size: int) -> "Image":
    """The middle of an image whose shorter side is made `size` pixels long, as torchvision does it."""
    from torchvision.transforms.v2 import functional

    return functional.center_crop(functional.resize(image, [size], antialias=True), [size, size])


def _folders(folder: Path) -> tuple[str, ...]:
    names = (entry.name for entry in os.scandir(folder) if entry.is_dir())
    return tuple(sorted(name for name in names if not name.startswith(".") and name != NOT_A_CLASS))


def _split_folder(data_dir: Path, names: tuple[str, ...]) -> Path | None:
    """The folder that has the first of these names, in small letters or capitals."""
    found = {name.lower(): data_dir / name for name in reversed(_folders(data_dir))}
    return next((found[name] for name in names if name in found), None)


def _find_images(data_dir: Path, size: int | None = None) -> ImageFiles:
    """The image files of a folder, without reading them; links are followed, hidden names left out.

    A class's images may lie in folders below its own. Where there is none of `HELD_OUT_FOLDERS`, a fifth of each
    class is held out, always the same for the same files; the class folders may then lie in `data_dir` itself.

    Raises:
        DataError: folders are missing, empty, or differ between the splits.
    """
    try:
        return _listed(data_dir, size)
    except OSError as error:
        raise DataError(f"{error.filename or data_dir} cannot be read: {error.strerror}") from error


def _listed(data_dir: Path, size: int | None) -> ImageFiles:
    if not data_dir.is_dir():
        raise DataError(f"no folder {data_dir}: data set 'images' needs one with a folder for each class")
    held_out = _split_folder(data_dir, HELD_OUT_FOLDERS)
    train = _split_folder(data_dir, TRAIN_FOLDERS)
    if train is None:
        if held_out is not None:
            raise DataError(
                f"no folder {data_dir / 'train'}: data set 'images' needs train/<class>/* beside {held_out.name}/"
            )
        train = data_dir
    classes = _folders(train)
    if len(classes) < 2:
        raise DataError(f"{train} must hold a folder for each of two classes or more, found {short(list(classes))}")
    if held_out is not None and classes != (other := _folders(held_out)):
        only = [
            f"{name!r} is only in {split}"
            for split, mine, theirs in ((train.name, classes, other), (held_out.name, other, classes))
            for name in mine
            if name not in theirs
        ]
        raise DataError(
            f"{data_dir}: {train.name} and {held_out.name} must hold the same class folders, but {', '.join(only[:5])}"
        )
    if loose := [entry.name for entry in os.scandir(train) if _is_image(entry.name)]:
        raise DataError(
            f"{train} holds {len(loose)} images beside its class folders ({loose[0]}): is it a class itself?"
        )
    training, passed_over = _labelled(train, classes)
    files = {"train": training, "test": []}
    if held_out is not None:
        files["test"], others = _labelled(held_out, classes)
        passed_over += others
    else:
        labels = np.array([label for _, label in files["train"]])
        counts = np.bincount(labels)
        if counts.min() < HANDS:
            few = classes[counts.argmin()]
            raise DataError(
                f"{train / few} has {counts.min()} images: {HANDS} are needed, as there is no test/, and a fifth of "
                "each class is held out"
            )
        hand = dealt(labels, HANDS)
        files["test"] = [file for file, mine in zip(files["train"], hand, strict=True) if mine == 0]
        files["train"] = [file for file, mine in zip(files["train"], hand, strict=True) if mine != 0]
    digest = hashlib.sha256()
    for split in SPLITS:
        for path, label in files[split]:
            status = path.stat()
            line = f"{split}/{classes[label]}/{path.name} {status.st_size} {status.st_mtime_ns}\n"
            digest.update(os.fsencode(line))
    return ImageFiles(files, classes, held_out is None, passed_over, size, [digest.hexdigest()])


def _is_image(name: str) -> bool:
    return name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith(".")


def _labelled(folder: Path, classes: tuple[str, ...]) -> tuple[list[tuple[Path, int]], int]:
    """(path, label) of the images of each class, those in folders below its own too; and how many files are none.

    Raises:
        DataError: a class without images, or a name of an image that is no file.
    """

    def stop(error: OSError) -> None:
        raise error

    found, passed_over = [], 0
    for label, name in enumerate(classes):
        paths = []
        for place, below, names in os.walk(folder / name, onerror=stop, followlinks=True):
            paths += [Path(place, each) for each in sorted(names + below) if _is_image(each)]
            passed_over += sum(not (_is_image(each) or each.startswith(".")) for each in names)
            below[:] = sorted(inner for inner in below if not inner.startswith("."))
        if not paths:
            raise DataError(f"no image in {folder / name}: files that end in {', '.join(IMAGE_SUFFIXES)} are taken")
        for path in paths:
            if not S_ISREG(path.stat().st_mode):
                raise DataError(f"{path} is not a file")
        found += [(path, label) for path in paths]
    return found, passed_over


def dealt(labels: np.ndarray, hands: int) -> np.ndarray:
    """Images dealt out at random, class by class, into as many hands: `[N]`, always the same.

    Args:
        labels: of the images, `[N]`.
        hands: how many.
    """
    order = np.random.default_rng(0).permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    hand = np.empty(len(labels), dtype=np.int64)
    hand[order] = np.arange(len(labels)) % hands
    return hand


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
    "images-<pixels>": Source(None, find=_find_images),
}


def source(name: str) -> Source:
    """The source of a data set.

    Raises:
        DataError: there is none of that name.
    """
    if sized := re.fullmatch(r"images-([1-9]\d{0,3})", name, re.ASCII):
        size = int(sized[1])
        if not MIN_SIDE <= size <= MAX_SIDE:
            raise DataError(f"dataset {name}: from {MIN_SIDE} to {MAX_SIDE} pixels are possible")
        return Source(None, find=partial(_find_images, size=size))
    if name not in SOURCES or "<" in name:
        raise DataError(f"unknown dataset {short(name)}: choose one of {', '.join(SOURCES)}")
    return SOURCES[name]
