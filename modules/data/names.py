"""What the names of folders and files say: which are parts of a data set, which are masks or copies of others."""

import re
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import PurePath

VALIDATION = "validation"  # the part that a folder has where it holds images of both kinds beside the training images

#: What folders of a part are called, together with words that say nothing: `Training_set`, `testing_images`, `valid`.
PART_NAMES = {
    "train": "training|trainings|train|trn|trainval",
    VALIDATION: "validation|validate|valid|val|development|devel|dev|eval|evaluation",
    "test": "testing|tests|test|tst|holdout|heldout",
}
PART_OF = {word: part for part, words in PART_NAMES.items() for word in words.split("|")}
SAYS_NOTHING = "datasets?|data|sets?|images?|imgs?|pictures?|pics?|photos?|samples?|examples?|splits?|parts?|files?|dir"
MASKS = (
    "masks?|masken?|mascaras?|masques?|labels?|annotations?|annots?|segmentations?|segm?|groundtruths?|gts?|truths?|"
    "targets?|outputs?|depths?|trimaps?|rois?|overlays?|heatmaps?"
)
FEWEST, ONE_OF = 3, 10  # so many pairs of picture and mask are refused, where they are one of so many files
PLAIN = f"{SAYS_NOTHING}|inputs?|originals?|sources?|raw|jpegs?|jpgs?|pngs?|rgb|sat"
UNSORTED = r"(?:un|non?)[\W_]*(labell?ed|annotated|tagged|sorted)"


def part(name: str) -> str | None:
    """The part that a folder's name says it is, and nothing else; None where it says something else too."""
    letters = re.sub(r"[\W\d_]+x?[\W\d_]*", "", name.lower())
    for which, words in PART_NAMES.items():
        # Possessive: a long name of such words would be taken apart in every way there is.
        if re.fullmatch(f"(?:{SAYS_NOTHING})*+(?:{words})(?:{SAYS_NOTHING})*+", letters):
            return which
    return None


def mentioned(name: str) -> str | None:
    """The part that one of a name's words stands for: `cats_train`, `trainB`."""
    said = {PART_OF.get(word) for word in _words(name)}
    return next((which for which in PART_NAMES if which in said), None)


def parts_among(names: Iterable[str]) -> dict[str, str]:
    """The first name that is a part's or speaks of it, by the part."""
    return {which: name for name in sorted(names, reverse=True) if (which := part(name) or mentioned(name))}


def look_like_parts(names: Iterable[str]) -> list[str]:
    """Names that are hardly those of classes; empty where they may be.

    They speak of two parts of a data set (`train_a`, `test_b`), of one beside the same name without it (`cat`,
    `cat_test`), or are a number each of what is no class (`images_001`, `images_002`).
    """
    names = sorted(names)
    if len(parts := parts_among(names)) > 1:
        return sorted(parts.values())
    bare = {tuple(_words(name)): name for name in names}
    for name in names:
        rest = tuple(word for word in _words(name) if word not in PART_OF)
        if mentioned(name) and rest and rest in bare:
            return [bare[rest], name]
    pieces = f"{SAYS_NOTHING}|folds?|batch|batches|chunks?|shards?|folders?"
    of_nothing = numbered_alike(names) and any(re.fullmatch(pieces, word) for word in _words(names[0]))
    return names if len(names) > 1 and of_nothing else []


def says_nothing(name: str) -> bool:
    """Whether a folder is called by what every folder of pictures holds: `images`, `raw`."""
    words = _words(name)
    return bool(words) and all(re.fullmatch(PLAIN, word) for word in words)


def masks_among(names: Iterable[str]) -> tuple[str, str] | None:
    """Two folders of which one is called pictures and one what belongs to each of them: `images` and `masks`."""
    names = sorted(names)
    plain = [name for name in names if says_nothing(name)]
    masks = [name for name in names if name not in plain and of_masks(name)]
    return (plain[0], masks[0]) if plain and masks else None


def of_masks(name: str) -> bool:
    """Whether one of a name's words is one for masks: `masks`, `cat_masks`."""
    return any(re.fullmatch(MASKS, word) for word in _words(name))


def many(pairs: int, files: int) -> bool:
    """Whether so many pairs of names among so many files are no chance."""
    return pairs >= FEWEST and pairs * ONE_OF >= files


def pictures_and_masks(paths: Sequence[PurePath]) -> list[tuple[PurePath, PurePath]]:
    """Pictures and masks among files: `1.png` and `1_mask.png`, `images/1.png` and `masks/1.png`.

    Args:
        paths: below the folder of one class, or of two.
    """
    if not re.search(f"ground.?truth|{MASKS}", "\n".join(map(str, paths)), re.IGNORECASE):
        return []  # a look at all names at once: a folder may hold a hundred thousand
    masks, pictures = {}, {}
    for path in paths:
        tokens = _tokens(str(path.with_suffix("")))
        of_mask = [bool(re.fullmatch(MASKS, token)) for token in tokens]
        key = tuple(token for token in tokens if not re.fullmatch(f"{MASKS}|{PLAIN}", token))
        if not any(of_mask):
            pictures.setdefault(key, path)
            continue
        masks.setdefault(key, path)
        at = of_mask.index(True) + 1
        if tokens[at : at + 1] and tokens[at].isdecimal():  # the second mask of a picture
            rest = tokens[:at] + tokens[at + 1 :]
            masks.setdefault(tuple(token for token in rest if not re.fullmatch(f"{MASKS}|{PLAIN}", token)), path)
    found = {path: pictures[key] for key, path in masks.items() if key and key in pictures}
    return [(picture, mask) for mask, picture in found.items()]


def named_after_another(paths: Sequence[PurePath]) -> list[tuple[PurePath, PurePath]]:
    """Files that are called like another in their folder with a word more or another ending, and that other.

    `1_flip.png` is called after `1.png`, `1_2.png` is not: numbers tell pictures apart.
    """
    found, first = [], {}
    for path in paths:
        if (other := first.setdefault((path.parent, path.stem), path)) != path:
            found.append((path, other))
    for (folder, stem), path in first.items():
        for mark in re.finditer(r"[\W_]+", stem):
            before, after = stem[: mark.start()], stem[mark.end() :]
            for rest, more in ((before, after), (after, before)):
                if (folder, rest) in first and re.search(r"[^\W\d_]", more):
                    found.append((path, first[folder, rest]))
    return list({path: (path, other) for path, other in found}.values())


def same_but_for_spelling(names: Iterable[str]) -> tuple[str, str] | None:
    """Two names that differ only in capitals, what stands between words, signs of no width or how accents are stored.

    Single letters do not. What stands between two digits counts, as in `2021_1_11` and `2021_11_1`, but not which sign
    it is; and so does a hyphen that is not between two words, as in `A-` or `at -5`.
    """
    seen: dict[str, str] = {}
    for name in names:
        plain = unicodedata.normalize("NFKC", name).casefold()
        plain = "".join(sign for sign in plain if unicodedata.category(sign) != "Cf")  # of no width
        plain = re.sub(r"(?<=[^\W_])[-\u2010-\u2015](?=[^\W_])", "_", plain)
        plain = re.sub(r"(?<=\d)[\s_]+(?=\d)", "\0", plain)
        plain = re.sub(r"[\s_]+", "", plain)
        other = seen.setdefault(plain if len(name) > 1 else name, name)
        if other != name:
            return other, name
    return None


def unsorted(names: Iterable[str]) -> str | None:
    """A name for images without a class, `unlabelled`, where no other is its opposite, as `labeled` is."""
    names = sorted(names)
    said = {name.lower().replace("ll", "l") for name in names}
    found = ((name, re.fullmatch(UNSORTED, name.lower())) for name in names)
    return next((name for name, match in found if match and match[1].replace("ll", "l") not in said), None)


def numbered_alike(names: Iterable[str]) -> bool:
    """Whether names are one word and a number each: `fold1`, `fold2`."""
    bare = {re.sub(r"\d+", "0", name) for name in names}
    return len(bare) == 1 and bool(re.search(r"[^\W\d_]", min(bare))) and "0" in min(bare)


def _words(name: str) -> list[str]:
    return [token for token in _tokens(name) if not token.isdecimal()]


def _tokens(name: str) -> list[str]:
    """The words and numbers of a name, in small letters: of `IMG_12maskRaw` img, 12, mask, raw."""
    name = re.sub(r"(?i)ground[\W_]*truths?", "_groundtruth", name)
    return [token.lower() for token in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[^\W\d_A-Z]+|\d+", name)]
