"""Where data sets come from. A data set is one entry of `SOURCES`; specifications and messages find it there."""

import gzip
import hashlib
import re
import socket
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import numpy as np

from modules.checks import short
from modules.data.folders import ImageFiles, Read, find_images
from modules.data.pictures import MAX_SIDE, DataError

MIN_SIDE = 8  # pixels
WINDOW = 8  # a text is cut into squares of so many by so many characters
DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
CIFAR10_FILES = (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch", "batches.meta")
AGAIN = "delete it, and the same command gets it again"


@dataclass(frozen=True)
class Source:
    """Where a data set comes from.

    Attributes:
        label: what tables and captions call it; None: by its pixels, or by its folder's name.
        read: decodes it, called with `data_dir`.
        stamp: of what `read` would read now, called with `data_dir`: anything JSON holds that changes when the data do;
            None where they have to be read to know. A data set without it is not cached.
        find: for folders of images: which files there are, and what reads them.
    """

    label: str | None
    read: Callable[[Path], Read] | None = None
    stamp: Callable[[Path], list | None] | None = None
    find: Callable[[Path], ImageFiles] | None = None


def _stamp(paths: Sequence[Path]) -> list | None:
    """What changes when one of these files does, without reading them; None where one is missing."""
    try:
        found = [(path, path.stat()) for path in paths]
    except OSError:
        return None
    return [[str(path), s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_ino] for path, s in found]


def _digits_stamp(data_dir: Path) -> list:
    return ["scikit-learn", version("scikit-learn")]


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


def _torch_stamp(data_dir: Path) -> list:
    return ["torch", version("torch")]


def _read_text(data_dir: Path) -> Read:
    """The documentation in torch's own source: 64 characters each, as numbers of characters, and the one that follows.

    The first eight tenths of the text train, the next tenth validates, the last tests. Windows overlap, but not from
    one part to another.
    """
    package = find_spec("torch")  # not loaded, but found
    text = (Path(package.origin).parent / "_torch_docs.py").read_bytes()
    characters, codes = np.unique(np.frombuffer(text, dtype=np.uint8), return_inverse=True)
    length, ends = WINDOW**2, [0, *(len(codes) * tenths // 10 for tenths in (8, 9, 10))]
    train, validation, test = (
        np.lib.stride_tricks.sliding_window_view(codes[start:end], length + 1)[::WINDOW].astype(np.uint8)
        for start, end in pairwise(ends)
    )
    parts = [(part[:, :length].reshape(-1, WINDOW, WINDOW), part[:, length]) for part in (train, test, validation)]
    return parts, tuple(chr(character) for character in characters)


@contextmanager
def _download_errors(what: str, data_dir: Path, folder: Path, ways: str) -> Iterator[None]:
    """Turn a failed download into one line, and do not let a silent network hang for long.

    Args:
        what: the data set's label.
        data_dir, folder: where it was looked for, and where it is downloaded to: taken away where it is left empty.
        ways: how else to get it.
    """
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
        with suppress(OSError):  # there is something in it, or it never was
            while folder != data_dir:
                folder.rmdir()
                folder = folder.parent


def _cifar10_stamp(data_dir: Path) -> list | None:
    return _stamp([data_dir / "cifar-10-batches-py" / name for name in CIFAR10_FILES])


def _read_cifar10(data_dir: Path) -> Read:
    """CIFAR-10's own files and no others: their MD5 sums are those that torchvision knows.

    Raises:
        DataError: they are not there and cannot be downloaded, or one of them is another file.
    """
    from torchvision.datasets import CIFAR10

    folder = data_dir / CIFAR10.base_folder
    sums = dict((*CIFAR10.train_list, *CIFAR10.test_list, (CIFAR10.meta["filename"], CIFAR10.meta["md5"])))
    missing = [name for name in sums if not (folder / name).is_file()]
    for name in (name for name in sums if name not in missing):
        with (folder / name).open("rb") as file:
            found = hashlib.file_digest(file, "md5").hexdigest()
        if found != sums[name]:
            raise DataError(f"{folder / name} is not CIFAR-10's own file (MD5 {found}, not {sums[name]}): {AGAIN}")
    ways = (
        f"{_lacks(folder, missing)}Ways to supply it: put cifar-10-python.tar.gz (or its folder cifar-10-batches-py) "
        "there, point CLR_DATA_DIR or data_dir at a folder that has it, or use image files: -p dataset images -p "
        "data_dir <folder>."
    )
    with _download_errors("CIFAR-10", data_dir, folder, ways):
        splits = [CIFAR10(data_dir, train=train, download=True) for train in (True, False)]
    return [(np.asarray(split.data), np.asarray(split.targets)) for split in splits], tuple(splits[0].classes)


def _lacks(folder: Path, missing: Sequence[str]) -> str:
    """What a folder that is there lacks, as a sentence for a message: a download may have failed half way."""
    return f"{folder} is there and lacks {', '.join(missing)}. " if folder.is_dir() else ""


def _idx(path: Path) -> np.ndarray:
    """An IDX file of unsigned bytes (LeCun's format), gzipped or not."""
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rb") as file:
            content = file.read()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read ({error}): {AGAIN}") from error
    if len(content) < 4 or content[:3] != b"\0\0\x08":
        raise DataError(f"{path} is not an IDX file of bytes")
    start = 4 + 4 * content[3]
    if len(content) < start:
        raise DataError(f"{path} is truncated: {len(content)} bytes, not even its shape: {AGAIN}")
    shape = tuple(np.frombuffer(content[4:start], dtype=">u4").astype(int))
    if len(content) != start + int(np.prod(shape)):
        raise DataError(f"{path} is truncated: {len(content)} bytes, {start + int(np.prod(shape))} expected: {AGAIN}")
    return np.frombuffer(content, dtype=np.uint8, offset=start).reshape(shape)


def _idx_source(label: str, folder: str, torchvision_name: str, system: Path | None = None) -> Source:
    """MNIST-like data: from `data_dir`, else from the system's package, else through torchvision.

    Args:
        label: what tables call it.
        folder: where in `data_dir` torchvision puts it.
        torchvision_name: its class there.
        system: a folder of the system's that may have it.
    """
    files = [f"{split}-{kind}" for split in ("train", "t10k") for kind in ("images-idx3-ubyte", "labels-idx1-ubyte")]

    def there(place: Path, name: str) -> Path | None:
        return next((path for path in (place / name, place / f"{name}.gz") if path.is_file()), None)

    def find(data_dir: Path) -> list[Path]:
        for place in filter(None, (data_dir / folder / "raw", system)):
            paths = [path for name in files if (path := there(place, name))]
            if len(paths) == len(files):
                return paths
        return []

    def stamp(data_dir: Path) -> list | None:
        return _stamp(find(data_dir)) or None

    def read(data_dir: Path) -> Read:
        import torchvision.datasets

        kind = getattr(torchvision.datasets, torchvision_name)
        paths, place = find(data_dir), data_dir / folder / "raw"
        if not paths:
            lacks = _lacks(place, [name for name in files if not there(place, name)])
            ways = f"{lacks}Ways to supply it: put the four *-ubyte files in {place}, or set CLR_DATA_DIR."
            with _download_errors(label, data_dir, place, ways):
                kind(data_dir, download=True)
            paths = find(data_dir)
        train_images, train_labels, test_images, test_labels = map(_idx, paths)
        for split, images, labels in (("train", train_images, train_labels), ("t10k", test_images, test_labels)):
            if images.ndim != 3 or labels.ndim != 1 or len(images) != len(labels) or not len(images):
                raise DataError(f"{label}: the {split} images {images.shape} and labels {labels.shape} do not match")
        return [(train_images, train_labels), (test_images, test_labels)], tuple(map(str, kind.classes))

    return Source(label, read, stamp)


def _some_classes(whole: Source, first: int, last: int) -> Source:
    """The images of the classes from `first` to `last`, which are counted from 0 again."""

    def read(data_dir: Path) -> Read:
        parts, classes = whole.read(data_dir)
        inside = [(first <= labels) & (labels <= last) for _, labels in parts]
        found = [
            (images[kept], labels[kept].astype(int) - first)
            for (images, labels), kept in zip(parts, inside, strict=True)
        ]
        return found, classes[first : last + 1]

    return Source(f"{whole.label}, classes {first} to {last}", read, whole.stamp)


#: By the name that specifications give it.
SOURCES = {
    "digits": Source("digits (scikit-learn)", _read_digits, _digits_stamp),
    "digits-8x8": Source("digits (scikit-learn, 8 x 8)", _read_small_digits, _digits_stamp),
    "mnist": _idx_source("MNIST", "MNIST", "MNIST"),
    "fashion-mnist": _idx_source("Fashion-MNIST", "FashionMNIST", "FashionMNIST", DEBIAN_FASHION_MNIST),
    "cifar10": Source("CIFAR-10", _read_cifar10, _cifar10_stamp),
    "text": Source("text (the documentation in torch)", _read_text, _torch_stamp),
    "<any of these>-<first class>-<last class>": Source(None),
    "images": Source(None, find=find_images),
    "images-<pixels>": Source(None, find=find_images),
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
        return Source(None, find=partial(find_images, size=size))
    part = re.fullmatch(r"(.+)-(\d)-(\d)", name, re.ASCII)
    if part and (whole := SOURCES.get(part[1])) and whole.read:
        first, last = int(part[2]), int(part[3])
        if first >= last:
            raise DataError(f"dataset {name}: two classes at least are needed")
        return _some_classes(whole, first, last)
    if name not in SOURCES or "<" in name:
        raise DataError(f"unknown dataset {short(name)}: choose one of {', '.join(SOURCES)}")
    return SOURCES[name]
