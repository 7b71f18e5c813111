"""Named data sets as uint8 tensors in memory: decoded once, cached as `.npy`, memory-mapped read-only.

Many worker processes then share one copy of the pixels, and nobody decodes an image twice. The cache is not believed:
it is taken where the files it was made of are as they were, and where its arrays and what it says of them have the
fingerprints that it names.
"""

import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import filelock
import numpy as np

from modules.checks import printable as shown
from modules.checks import short
from modules.data.folders import SPLITS, VALIDATION, ImageFiles
from modules.data.sources import DataError, Source, source

CACHE_VERSION = 4  # another one where files are read into other pixels or labels than before

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
        fingerprint: SHA-256 over shapes, pixels and labels of all parts.
        validation_images, validation_labels: of a folder that has images for validation beside those for testing.
        notes: sentences on what was not read of a folder of images, and on what makes its results doubtful.
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
    validation_images: np.ndarray | None = None
    validation_labels: np.ndarray | None = None
    notes: tuple[str, ...] = ()
    held_out: bool = False

    @property
    def channels(self) -> int:
        return self.train_images.shape[1]

    @property
    def size(self) -> int:
        return self.train_images.shape[2]


def default_data_dir() -> Path:
    """`$CLR_DATA_DIR`, else `data/`."""
    return Path(os.environ.get("CLR_DATA_DIR") or "data")


def cache_dir() -> Path:
    """Where decoded images are kept: `$CLR_CACHE_DIR`, else the project's `data/.cache`; no folder of the user's."""
    return Path(os.environ.get("CLR_CACHE_DIR") or Path(__file__).resolve().parents[2] / "data" / ".cache")


def load(name: str, data_dir: str | Path | None = None) -> Dataset:
    """Load a data set, from its cache where there is one.

    What there is to say of a folder of images (`Dataset.notes`) is printed when it is decoded.

    Args:
        name: one of `sources.SOURCES`. For `images`, `data_dir` holds `train/<class>/*` and `test/<class>/*`, all of
            one size; for `images-64`, of any size: each is resized and cropped to 64 x 64. Without `test/` (or `val/`)
            a fifth of each class is held out.
        data_dir: where the data lie or are downloaded to; by default `default_data_dir()`.

    Raises:
        DataError: an unknown name; `data_dir` that is no path; data missing, truncated or unreadable, with what to do.
    """
    origin = source(name)
    if data_dir is not None and not isinstance(data_dir, str | Path):
        raise DataError(f"data_dir={short(data_dir)}: a path is needed")
    data_dir = Path(data_dir) if data_dir else default_data_dir()
    files = origin.find(data_dir) if origin.find else None
    cache = _cache_of(name, data_dir)
    found = _open_cache(cache, _stamp(origin, data_dir, files))
    decoded = found is None
    if decoded:
        (splits, classes), remarks = files.read() if files else (origin.read(data_dir), [])
        arrays = _arrays(splits)
        _check(arrays, classes, name, data_dir)
        # Anew where there was none: what was missing has been downloaded by now.
        stamp = _stamp(origin, data_dir, files)
        found = _write_cache(cache, stamp, arrays, {"classes": tuple(classes), "remarks": remarks})
    notes = (*(files.notes if files else ()), *(f"{remark[0].upper()}{remark[1:]}." for remark in found.pop("remarks")))
    if decoded:
        for note in notes:
            print(f"{shown(data_dir)}: {note}", file=sys.stderr)  # a design's output is not shown
    label = _label(origin, found["fingerprint"], data_dir, files)
    return Dataset(name, label, **found, notes=notes, held_out=bool(files and files.held_out))


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


def _cache_of(name: str, data_dir: Path) -> Path:
    """The cache's folder: one for each data set and each place it lies in, and for each layout of caches."""
    key = hashlib.sha256(os.fsencode(f"{CACHE_VERSION} {data_dir.resolve()}")).hexdigest()
    return cache_dir() / f"{name}-{key[:16]}"


def _stamp(origin: Source, data_dir: Path, files: ImageFiles | None) -> list | None:
    """What changes when the data do; None where nothing says so."""
    if files:
        return files.stamp
    return origin.stamp(data_dir) if origin.stamp else None


def _open_cache(cache: Path, stamp: list | None) -> dict | None:
    """The cached parts of a `Dataset`, and its remarks; None where there are none of these data."""
    if stamp is None:
        return None
    try:
        meta = json.loads((cache / "meta.json").read_text(encoding="utf-8"))
        if meta["stamp"] != stamp:
            return None
        whole = meta.pop("seal") == _seal(meta)
        paths = {part: cache / f"{part}.npy" for part in meta["parts"]}
        as_read = tuple((s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for s in (p.stat() for p in paths.values()))
        if not whole or _read_fingerprint(tuple(paths.items()), as_read) != meta["fingerprint"]:
            print(f"the cache {shown(cache)} is not as it was written: the images are decoded again")
            return None
        found = {part: np.load(path, mmap_mode="r") for part, path in paths.items()}
        return found | {"classes": tuple(meta["classes"]), **{key: meta[key] for key in ("fingerprint", "remarks")}}
    except (OSError, ValueError, KeyError, TypeError, EOFError):
        return None


def _seal(meta: dict) -> str:
    """The fingerprint of what a cache says of its arrays."""
    return hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()


@lru_cache(maxsize=32)
def _read_fingerprint(paths: Sequence[tuple[str, Path]], as_read: tuple) -> str:
    """The fingerprint of cached arrays; taken once a process, as long as their files stay `as_read`."""
    return _fingerprint({part: np.load(path, mmap_mode="r") for part, path in paths})


def _write_cache(cache: Path, stamp: list | None, arrays: Arrays, about: dict) -> dict:
    """Put the parts of a `Dataset` into the cache, and give them back from there where that is possible.

    Args:
        cache, stamp: where, and of which data.
        arrays: its arrays, by name.
        about: its `classes` and `remarks`.
    """
    about = {"fingerprint": _fingerprint(arrays), **about}
    if stamp is None:
        return arrays | about
    meta = {"stamp": stamp, "parts": sorted(arrays), **about}
    # A cache that cannot be written, or that another process writes just now: work from memory.
    with suppress(OSError), _writing(cache) as new:
        for part, array in arrays.items():
            with (new / f"{part}.npy").open("wb") as file:
                np.save(file, array)
                _to_disk(file)
        with (new / "meta.json").open("w", encoding="utf-8") as file:
            json.dump(meta | {"seal": _seal(meta)}, file)
            _to_disk(file)
    return _open_cache(cache, stamp) or arrays | about


def _to_disk(file) -> None:
    file.flush()
    os.fsync(file.fileno())  # else the folder's name may reach the disk before its content does


@contextmanager
def _writing(cache: Path) -> Iterator[Path]:
    """A new folder that takes the cache's place when all is written; what killed writers left behind is deleted.

    Raises:
        OSError: the cache cannot be written, or another process writes it.
    """
    cache.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(f"{cache}.lock", timeout=0):
        for stale in cache.parent.glob(f"{cache.name}.*.tmp"):
            shutil.rmtree(stale)
        new, old = (Path(tempfile.mkdtemp(".tmp", f"{cache.name}.", cache.parent)) for _ in range(2))
        try:
            yield new
            with suppress(FileNotFoundError):
                cache.rename(old)
            new.rename(cache)
        finally:
            for folder in (new, old):
                shutil.rmtree(folder, ignore_errors=True)


def _arrays(splits: Sequence[tuple[np.ndarray, np.ndarray]]) -> Arrays:
    """Name the arrays; grey images `[N, H, W]` get their channel, colour ones `[N, H, W, C]` go channels first."""
    named = {}
    for split, (images, labels) in zip((*SPLITS, VALIDATION), splits, strict=False):
        images = images[:, None] if images.ndim == 3 else images.transpose(0, 3, 1, 2)
        named[f"{split}_images"] = np.ascontiguousarray(images, dtype=np.uint8)
        named[f"{split}_labels"] = np.ascontiguousarray(labels, dtype=np.int64)
    return named


def _check(arrays: Arrays, classes: Sequence[str], name: str, data_dir: Path) -> None:
    """Raise DataError when no network could be trained on one split and tested on the other."""
    shapes = {part.removesuffix("_images"): array.shape for part, array in arrays.items() if part.endswith("_images")}
    train = shapes["train"]
    for split, shape in shapes.items():
        if train[1:] != shape[1:]:
            raise DataError(
                f"{name} in {data_dir}: images of the two splits differ, [C, H, W] is {list(train[1:])} in train and "
                f"{list(shape[1:])} in {split}: resize or convert them first"
            )
    if train[2] != train[3]:
        raise DataError(f"{name} in {data_dir}: images are {train[3]} x {train[2]} pixels, the networks need squares")
    for split in shapes:
        labels = arrays[f"{split}_labels"]
        if not 0 <= labels.min() <= labels.max() < len(classes):
            raise DataError(f"{name} in {data_dir}: labels in {split} go to {labels.max()}, of {len(classes)} classes")
