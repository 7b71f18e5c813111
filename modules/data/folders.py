"""A folder of images: which of its folders are parts of the data set, which are classes, and which files are images."""

import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from stat import S_ISREG

import numpy as np

from modules.checks import printable as shown
from modules.checks import short
from modules.data import names
from modules.data.names import VALIDATION
from modules.data.pictures import RESIZED, SHOWN, DataError, read_pictures, refuse

#: Images `[N, H, W]` or `[N, H, W, 3]` and labels `[N]` of each part; the classes' names.
Read = tuple[list[tuple[np.ndarray, np.ndarray]], tuple[str, ...]]

SPLITS = ("train", "test")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
#: What systems add, in any case: copies of every file.
SHADOWS = {
    *("__macosx", "@eadir", "#recycle", "@recycle", "$recycle.bin", "recycler", "lost+found", "lost.dir", "thumbs"),
    *("~snapshot", "#snapshot", "system volume information"),
}
SPOKEN_OF = 10  # a note is written where one file of so many gives reason for it
HANDS = 5  # without images for testing one of five images of each class is held out
DARK = 32  # of 255
KNOWN = {"MNIST": "mnist", "FashionMNIST": "fashion-mnist", "cifar-10-batches-py": "cifar10"}

_Id = tuple[int, int]


@dataclass(frozen=True)
class ImageFiles:
    """The image files of a folder, by what they are for.

    Attributes:
        folder: the folder.
        files: per part (`train`, `test`, and perhaps `validation`), one (path, label) for each image, sorted.
        classes: the classes' names, in label order.
        held_out: the folder has no test images of its own: a part of its images was held out for them.
        size: what every image is resized and cropped to, in pixels; None for images that are all of one size.
        stamp: changes when a file does.
        notes: sentences on what was not read.
    """

    folder: Path
    files: dict[str, list[tuple[Path, int]]]
    classes: tuple[str, ...]
    held_out: bool
    size: int | None
    stamp: list
    notes: tuple[str, ...]

    def read(self) -> tuple[Read, list[str]]:
        """All images, in colour where one is, and what there is to say of them.

        Raises:
            DataError: some cannot be read, are of another shape than the rest, or all are the same picture.
        """
        paths = [path for files in self.files.values() for path, _ in files]
        images, said = read_pictures(paths, self.size)
        (shape, _), *_ = Counter(image.shape[:2] for image in images).most_common(1)
        other = [
            (path, f"has shape {image.shape[:2]}, others {shape}")
            for path, image in zip(paths, images, strict=True)
            if image.shape[:2] != shape
        ]
        refuse(other, "images are of other sizes than the rest", RESIZED)
        if any(image.ndim == 3 for image in images):
            images = [np.stack([image] * 3, axis=-1) if image.ndim == 2 else image for image in images]
        parts, start = [], 0
        for files in self.files.values():
            stop = start + len(files)
            parts.append((np.stack(images[start:stop]), np.array([label for _, label in files])))
            start = stop
        return (parts, self.classes), [said] * bool(said) + self._remarks(images)

    def _remarks(self, images: Sequence[np.ndarray]) -> list[str]:
        """What makes a result doubtful: pictures of one colour, the same picture twice, in two parts or two classes.

        Raises:
            DataError: all are the same picture.
        """
        of = [
            (part, label, shown(path.relative_to(self.folder)))
            for part, files in self.files.items()
            for path, label in files
        ]
        alike: dict[bytes, list[tuple[str, int, str]]] = {}
        plain, darkest, brightest, brightness = [], 255, 0, 0.0
        for which, image in zip(of, images, strict=True):
            alike.setdefault(hashlib.sha256(image.tobytes()).digest(), []).append(which)
            darkest, brightest = min(darkest, int(image.min())), max(brightest, int(image.max()))
            brightness += float(image.mean()) / len(images)
            if (image == image[:1, :1]).all():
                plain.append(which[-1])
        if len(alike) == 1:
            raise DataError(f"{shown(self.folder)}: all {len(of)} images are the same picture, nothing can be learnt")
        said = []
        if plain:
            said.append(f"{len(plain):,} of {len(of):,} images are of one colour each, such as {plain[0]}")
        if brightest < DARK or brightness < DARK / 10:
            said.append(
                f"the images are nearly black: of 255 the largest value is {brightest}, the mean {brightness:.1f}"
            )
        elif brightest - darkest < DARK:
            said.append(f"the images have hardly any contrast: of 255 their values lie from {darkest} to {brightest}")
        twice, leaks, torn = [], [], []
        for group in alike.values():
            first = group[0]
            twice += [(first, other) for other in group[1:]]
            leaks += [(first, other) for other in group[1:] if other[0] != first[0]]
            torn += [(first, other) for other in group[1:] if other[1] != first[1]]
        for pairs, what in (
            (twice, "images have the same pixels as another"),
            (leaks, "images have the same pixels as one of another part (train, validation, test)"),
            (torn, "images have the same pixels as one of another class"),
        ):
            if pairs:
                (*_, one), (*_, other) = pairs[0]
                said.append(f"{len(pairs):,} {what}, such as {other} and {one}")
        return said


def find_images(data_dir: Path, size: int | None = None) -> ImageFiles:
    """The image files of a folder, without reading them; links are followed, hidden names left out.

    A class's images may lie in folders below its own. Where no folder is named as one for testing or validation, a
    fifth of each class is held out, always the same for the same files; the class folders may then lie in `data_dir`.

    Args:
        data_dir: the folder.
        size: what the images are to be resized to, in pixels.

    Raises:
        DataError: folders are missing, empty, differ between the parts, or cannot be told from parts.
    """
    try:
        return _listed(data_dir, size)
    except OSError as error:
        raise DataError(f"{shown(error.filename or data_dir)} cannot be read: {error.strerror}") from error


def _listed(data_dir: Path, size: int | None) -> ImageFiles:
    if not data_dir.is_dir():
        raise DataError(f"no folder {shown(data_dir)}: data set 'images' needs one with a folder for each class")
    places, unread = _places(data_dir)
    classes = _classes(data_dir, places)
    above = (data_dir, *data_dir.resolve().parents)
    roots = {_id(path) for place in places.values() for path in (*above, place, *(place / name for name in classes))}
    files, others, again, digest, below, left_out = {}, Counter(), 0, hashlib.sha256(), {}, []
    for part, place in places.items():
        files[part] = []
        for label, name in enumerate(classes):
            found = _images_below(place / name, roots)
            others += found.others
            again += found.again
            left_out += found.left_out
            files[part] += [(path, label) for path, _ in found.images]
            below[part, name] = [path.relative_to(place / name) for path, _ in found.images]
            for path, status in found.images:
                # Time of change and inode too: files that are exchanged keep size and time of their content.
                numbers = status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino
                digest.update(os.fsencode(f"{part} {label} {str(path).removeprefix(str(data_dir))} {numbers}\n"))
        _check_below(place, {name: below[part, name] for name in classes}, place == data_dir)
    notes = _notes({(places[part] / name).relative_to(data_dir): paths for (part, name), paths in below.items()})
    trained = {name: below["train", name] for name in classes}
    if said := _like_masks(trained):
        notes.append(said)
    elif name := _in_every_class(list(trained.values())):
        notes.append(
            f"Every class holds files of the same names, such as {name}: do they belong together, as masks do?"
        )
    held_out = "test" not in files
    if held_out:
        spoken = Counter(names.mentioned(path.stem) for name in classes for path in below["train", name])
        spoken = [part for part in names.PART_NAMES if spoken[part] * SPOKEN_OF >= spoken.total()]
        if len(spoken) > 1:
            notes.append(
                f"Names of files speak of {' and '.join(spoken)}, and a fifth of all files is held out: to keep such "
                "parts apart, put them into folders of these names, with the class folders in each."
            )
        _hold_out(files, classes, places["train"])
    if loose := [] if places["train"] == data_dir else _loose(data_dir):
        unread = [f"{len(loose)} images", *unread]
    hidden = [place / name for place in dict.fromkeys((data_dir, *places.values())) for name in _left_out(place)]
    if hidden := [path.relative_to(data_dir) for path in (*hidden, *left_out)]:
        notes.append(f"Not read, as hidden or added by the system: {_some(hidden)}.")
    if unread:
        notes.append(f"Not read: {_some(unread)} beside {shown(places['train'].name)}.")
    if others:
        notes.append(f"{others.total():,} files with other endings were passed over: {_endings(others)}.")
    if again:
        notes.append(f"{again:,} files are there under a second name, and count once.")
    order = [part for part in (*SPLITS, VALIDATION) if part in files]
    return ImageFiles(
        data_dir,
        {part: files[part] for part in order},
        tuple(map(shown, classes)),
        held_out,
        size,
        [size, sorted(order), digest.hexdigest()],
        tuple(notes),
    )


def _folders(folder: Path) -> tuple[str, ...]:
    entries = list(os.scandir(folder))
    if lost := sorted(each.name for each in entries if not _is_image(each.name) and _leads_nowhere(Path(each.path))):
        raise DataError(f"{shown(folder / lost[0])} is a link to what is not there: mend it, or take it away")
    return tuple(sorted(entry.name for entry in entries if entry.is_dir() and not _hidden(entry.name)))


def _hidden(name: str) -> bool:
    return name.startswith(".") or name.lower() in SHADOWS


def _left_out(folder: Path) -> list[str]:
    """Names of hidden images and hidden folders of images in a folder, but for what systems add under odd names."""
    return sorted(
        entry.name
        for entry in os.scandir(folder)
        if _may_be_meant(entry.name)
        and (_is_image(entry.name.lstrip(".")) or (entry.is_dir() and _holds_images(Path(entry.path))))
    )


def _may_be_meant(name: str) -> bool:
    """Whether a name is hidden, and a person may have chosen it; macOS adds `._1.png` to `1.png`."""
    return name.lower() == "thumbs" or (name.startswith(".") and not name.startswith("._"))


def _holds_images(folder: Path) -> bool:
    return any(_is_image(name) for _, _, there in os.walk(folder) for name in there)


def _loose(folder: Path) -> list[str]:
    """The images in a folder itself."""
    return sorted(entry.name for entry in os.scandir(folder) if _is_image(entry.name))


def _some(those: Sequence[object]) -> str:
    more = f" and {len(those) - SHOWN} more" if len(those) > SHOWN else ""
    return ", ".join(shown(each) for each in those[:SHOWN]) + more


def _endings(others: Counter) -> str:
    most = sorted(others.items(), key=lambda item: (-item[1], item[0]))[: 2 * SHOWN]
    more = ", ..." if len(others) > len(most) else ""
    return ", ".join(f"{count:,} {ending}" for ending, count in most) + more


def _places(data_dir: Path) -> tuple[dict[str, Path], list[str]]:
    """The folder of each part, and the names beside them that are none; `data_dir` itself trains where there are none.

    Raises:
        DataError: two folders of one part; none to train; folders that are parts by what they hold or are called, and
            cannot be told apart.
    """
    there = _folders(data_dir)
    parts = {part: [name for name in there if names.part(name) == part] for part in names.PART_NAMES}
    as_classes = f"if they are classes, put all class folders into {shown(data_dir / 'train')}"
    for part, named in parts.items():
        if len(named) > 1:
            raise DataError(f"{shown(data_dir)}: {_some(named)} are all named as {part} images: keep one; {as_classes}")
    found = {part: data_dir / named[0] for part, named in parts.items() if named}
    if "train" in found:
        if found.keys() == {"train", VALIDATION}:
            found["test"] = found.pop(VALIDATION)
        return found, [name for name in there if data_dir / name not in found.values()]
    if found:
        name = shown(next(iter(found.values())).name)
        raise DataError(
            f"no folder {shown(data_dir / 'train')}: data set 'images' needs train/<class>/* beside {name}/; "
            f"{as_classes}"
        )
    if own := [name for name in there if name in KNOWN]:
        raise DataError(
            f"{shown(data_dir)} holds {own[0]}, which is the data set {KNOWN[own[0]]}: for the data set 'images' name "
            "the folder of your images with data_dir"
        )
    if those := names.look_like_parts(there):
        raise DataError(
            f"{shown(data_dir)}: {_some(those)} look like parts of a data set: name them train and test (or val), with "
            f"the class folders in each; {as_classes}"
        )
    return {"train": data_dir}, []


def _classes(data_dir: Path, places: dict[str, Path]) -> tuple[str, ...]:
    """The names of the class folders, the same in every part.

    Raises:
        DataError: they are not, or are no classes.
    """
    train = places["train"]
    classes = _folders(train)
    loose = {place: _loose(place) for place in places.values()}
    if len(classes) < 2:
        hint = ""
        if loose[train]:
            hint = f" and {len(loose[train])} images"
            if train != data_dir:
                hint += f": if it is a class itself, put all class folders into {shown(data_dir / 'train')}"
        raise DataError(
            f"{shown(train)} must hold a folder for each of two classes or more, found {short(list(classes))}{hint}"
        )
    for part, place in places.items():
        other = _folders(place)
        if not other:
            raise DataError(
                f"{shown(place)} holds no class folders, and {shown(train)} has {_some(classes)}: images without a "
                "class can neither test nor choose; move them away, or sort them"
            )
        if part != "train" and classes != other:
            only = [
                f"{shown(name)!r} is only in {shown(where)}"
                for where, mine, theirs in ((train.name, classes, other), (place.name, other, classes))
                for name in mine
                if name not in theirs
            ]
            raise DataError(
                f"{shown(data_dir)}: {shown(train.name)} and {shown(place.name)} must hold the same class folders, but "
                f"{', '.join(only[:5])}"
            )
        if loose[place]:
            raise DataError(
                f"{shown(place)} holds {len(loose[place])} images beside its class folders ({shown(loose[place][0])}): "
                "is it a class itself? Otherwise sort them into these folders, or move them away"
            )
    _check_names(train, classes)
    return classes


def _check_names(train: Path, classes: Sequence[str]) -> None:
    """Raise DataError when folders are called like images without a class, or like one class twice."""
    if pair := names.same_but_for_spelling(classes):
        raise DataError(
            f"{shown(train)}: {shown(pair[0])!r} and {shown(pair[1])!r} are one name in two spellings: put the images "
            "of one class into one folder, or give each class a name of its own"
        )
    if unsorted := names.unsorted(classes):
        raise DataError(
            f"{shown(train / unsorted)} is called like images without a class: move them away, or rename the folder"
        )


def _check_below(place: Path, below: dict[str, list[Path]], top: bool) -> None:
    """Raise DataError when what lies in the class folders says that they are no classes, or hold other pictures too.

    Args:
        place: where the class folders lie.
        below: of each, its images' paths.
        top: no folder beside them is named as one for training, testing or validation.
    """
    if (pair := names.masks_among(below)) and _belong_together(*pair, below):
        raise DataError(
            f"{shown(place)}: {shown(pair[0])} and {shown(pair[1])} look like pictures and what belongs to each of "
            "them, such as masks: a folder for each class is needed; if they are classes, rename their files"
        )
    inner = {name: {each for path in paths for each in path.parts[:-1]} for name, paths in below.items()}
    for name, folders in inner.items():
        where = shown(place / name)
        if len(parts := names.parts_among(folders)) > 1:
            raise DataError(
                f"{where} holds folders that look like parts of a data set ({_some(sorted(parts.values()))}): parts "
                f"are not looked for below a class; name {where} as the folder if the classes lie in these, else sort "
                "the images into train/<class>/ and test/<class>/"
            )
        others = {each.casefold() for each in below if each != name}
        if other := sorted(each for each in folders if each.casefold() in others):
            raise DataError(
                f"{where} holds a folder {shown(other[0])}, which is another class's name: move it there, or call it "
                "something else"
            )
        pairs = names.pictures_and_masks(below[name])
        pair = names.masks_among(folders) or (names.many(len(pairs), len(below[name])) and pairs[0])
        if pair:
            raise DataError(
                f"{where}: {shown(pair[0])} and {shown(pair[1])} look like pictures and what belongs to each of them, "
                "such as masks: leave only the pictures there, or rename them if they are"
            )
    # A part holds folders and no images of its own; a class may hold both, and then a folder that others hold too.
    bare = [inner[name] for name, paths in below.items() if all(len(path.parts) > 1 for path in paths)]
    shared = _shared(bare) or (several if len(several := _shared(inner.values())) > 1 else [])
    named_as_parts = len({names.mentioned(name) for name in below} - {None}) > 1 or names.numbered_alike(below)
    if shared and (top or named_as_parts):
        advice = (
            "take these folders away and leave their images" if named_as_parts else f"put them into {place / 'train'}"
        )
        raise DataError(
            f"{shown(place)}: its folders {_some(list(below))} hold the same folders ({_some(shared)}), like parts of "
            f"a data set: name them train and test (or val); if they are classes, {shown(advice)}"
        )


def _belong_together(one: str, other: str, below: dict[str, list[Path]]) -> bool:
    """Whether the files of two classes are called like each other, and not as those of every other class are too."""

    def alike(a: str, b: str) -> bool:
        pairs = {path.stem for path in below[a]} & {path.stem for path in below[b]}
        return names.many(len(pairs), min(len(below[a]), len(below[b])))

    both = [Path(called) / path for called, name in (("images", one), ("masks", other)) for path in below[name]]
    fewer = min(len(below[one]), len(below[other]))
    return names.many(len(names.pictures_and_masks(both)), fewer) and not any(
        alike(one, name) for name in below if not (names.of_masks(name) or names.says_nothing(name))
    )


def _shared(folders: Iterable[set[str]]) -> list[str]:
    """Names in more than one of these sets, but for those that say nothing."""
    counts = Counter(each for some in folders for each in some if not names.says_nothing(each))
    return sorted(name for name, count in counts.items() if count > 1)


def _notes(below: dict[Path, list[Path]]) -> list[str]:
    """What the names below class folders leave in doubt, in sentences.

    Args:
        below: of each class folder, its images' paths.
    """
    said = []
    inner = {place / path.parts[0]: None for place, paths in below.items() for path in paths if len(path.parts) > 1}
    if folders := [folder for folder in inner if not names.says_nothing(folder.name)]:
        said.append(f"Images in folders below a class count for that class: {_some(sorted(folders))}.")
    for place, paths in below.items():
        if pairs := names.pictures_and_masks(paths):  # too few to refuse them
            picture, mask = pairs[0]
            said.append(f"{shown(place / mask)} is called like a mask of {shown(picture.name)}: is it one?")
    after = [(place / a, place / b) for place, paths in below.items() for a, b in names.named_after_another(paths)]
    if after and len(after) * SPOKEN_OF >= sum(map(len, below.values())):
        said.append(
            f"{len(after):,} images are named after another, such as {shown(after[0][0])} after "
            f"{shown(after[0][1].name)}: do they belong together, as masks or changed copies do?"
        )
    return said


def _like_masks(below: dict[str, list[Path]]) -> str | None:
    """What the names of classes and their files say of masks; None where they say nothing.

    Args:
        below: of each class, its images' paths.
    """
    stems = {name: {path.stem for path in paths} for name, paths in below.items()}
    masks = [name for name in below if names.of_masks(name)]
    pairs = [(a, b) for a in below if a not in masks for b in masks if stems[b] <= stems[a]]
    if pair := names.masks_among(below) or next(iter(pairs), None):
        return (
            f"The classes {shown(pair[0])} and {shown(pair[1])} are called like pictures and their masks: if they are, "
            "move the masks away."
        )
    return None


def _in_every_class(below: Sequence[Sequence[Path]]) -> str | None:
    """One of the names that the files of every class have; None where they have others, or are only numbered."""
    first, *others = ({path.stem for path in paths} for paths in below)
    numbers = sorted(int(name) for name in first if name.isdecimal())
    numbered = len(numbers) == len(first) and numbers[-1] - numbers[0] == len(first) - 1
    return None if numbered or any(other != first for other in others) else shown(min(first))


def _is_image(name: str) -> bool:
    return name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith(".")


def _leads_nowhere(path: Path) -> bool:
    """Whether it is a link to what is not there; one that leads to itself adds nothing and lacks nothing."""
    try:
        path.stat()
    except FileNotFoundError:
        return path.is_symlink()
    except OSError:
        return False
    return False


def _id(path: Path) -> _Id:
    status = path.stat()
    return status.st_dev, status.st_ino


@dataclass
class _Below:
    """What lies below a class folder: images, other files by their endings, files of a second name, hidden images."""

    images: list[tuple[Path, os.stat_result]]
    others: Counter
    again: int
    left_out: list[Path]


def _images_below(folder: Path, roots: set[_Id]) -> _Below:
    """The images in a class's folder and in the folders below it.

    Links are followed, each folder is entered once, and none of `roots`, the class folders and all that lie above them:
    a link up would make every image one of this class.

    Raises:
        DataError: there is none, or a name of an image is no file.
    """

    def stop(error: OSError) -> None:
        raise error

    found, problems = _Below([], Counter(), 0, []), []
    seen: set[_Id] = set()
    for place, below, there in os.walk(folder, onerror=stop, followlinks=True):
        for path in (Path(place, name) for name in sorted(there + below) if _is_image(name)):
            try:
                status = path.stat()
            except OSError as error:
                problems.append((path, f"cannot be read: {error.strerror}"))
                continue
            identity = status.st_dev, status.st_ino
            if not S_ISREG(status.st_mode):
                problems.append((path, "is not a file"))
            elif identity in seen:
                found.again += 1
            else:
                seen.add(identity)
                found.images.append((path, status))
        for name in there:
            if not _is_image(name) and _leads_nowhere(Path(place, name)):
                problems.append((Path(place, name), "is a link to what is not there"))
            elif not (_is_image(name) or name.startswith(".")):
                found.others[shown(Path(name).suffix.lower()) or "without an ending"] += 1
        if any(map(_may_be_meant, there + below)):
            found.left_out += [Path(place, name) for name in _left_out(Path(place))]
        enter = []
        for name in sorted(name for name in below if not (_hidden(name) or _is_image(name))):
            identity = _id(Path(place, name))
            if identity not in roots | seen:
                seen.add(identity)
                enter.append(name)
        below[:] = enter
    refuse(problems)
    if not found.images:
        there = f" ({_endings(found.others)} there)" if found.others else ""
        raise DataError(f"no image in {shown(folder)}: files that end in {', '.join(IMAGE_SUFFIXES)} are taken{there}")
    return found


def _hold_out(files: dict[str, list[tuple[Path, int]]], classes: Sequence[str], train: Path) -> None:
    """Move a fifth of each class from the training images to the test images, always the same.

    Raises:
        DataError: a class has too few.
    """
    labels = np.array([label for _, label in files["train"]])
    counts = np.bincount(labels)
    if counts.min() < HANDS:
        raise DataError(
            f"{shown(train / classes[counts.argmin()])} has {counts.min()} images: {HANDS} are needed, as there is no "
            "test/, and a fifth of each class is held out"
        )
    hand = dealt(labels, HANDS)
    files["test"] = [file for file, mine in zip(files["train"], hand, strict=True) if mine == 0]
    files["train"] = [file for file, mine in zip(files["train"], hand, strict=True) if mine != 0]


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
