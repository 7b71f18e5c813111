"""Folders of images: what is a part, what is a class, which files are read, and what is said of them."""

import os
import re
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image
from toys import every, make_images

from modules.data.datasets import load
from modules.data.folders import SHADOWS, find_images
from modules.data.names import MASKS, PART_NAMES, SAYS_NOTHING, same_but_for_spelling
from modules.data.pictures import DataError

CLASSES = ("cat", "dog")
COUNT = 6


def touched(folder, *files):
    """Empty files of these names."""
    for file in files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).touch()
    return folder


def tree(folder, *places, count=COUNT):
    """Empty files that are called images, in each of these places."""
    return touched(folder, *(f"{place}/{number}.png" for place in places for number in range(count)))


def parts(folder, *names, classes=CLASSES):
    """A folder whose folders hold the same class folders."""
    return tree(folder, *(f"{name}/{each}" for name in names for each in classes))


def counts(folder):
    return {part: len(files) for part, files in find_images(folder).files.items()}


def outcome(folder):
    """What a folder is taken for: its parts and classes, or the one line that refuses it."""
    try:
        found = find_images(folder)
    except DataError as error:
        return str(error)
    return sorted(found.files), found.classes, found.held_out


@every(
    ("names", "expected"),
    [
        (("train", "test"), ["train", "test"]),
        (("Training_set", "testing_images"), ["train", "test"]),
        (("train_data", "valid"), ["train", "test"]),
        (("images-train", "images-dev"), ["train", "test"]),
        (("trainset", "TestSet"), ["train", "test"]),
        (("1. trainval", "2. test"), ["train", "test"]),
        (("train2017", "val2017"), ["train", "test"]),
        (("train_32x32", "test_32x32"), ["train", "test"]),
        (("TRAIN DATA", "held-out"), ["train", "test"]),
        (("train", "val", "test"), ["train", "test", "validation"]),
        (("Training", "dev set", "Testing"), ["train", "test", "validation"]),
    ],
)
def test_folders_are_parts_by_many_names(tmp_path, names, expected):
    found = find_images(parts(tmp_path, *names))
    assert list(found.files) == expected
    assert found.classes == CLASSES
    assert not found.held_out


def spelled(words):
    """Names of a part as people write them: with words that say nothing, in any case, with any sign between."""
    plain = st.sampled_from([word.replace("?", "") for word in SAYS_NOTHING.split("|")])
    word = st.sampled_from(words.split("|"))
    sign = st.sampled_from(["", "_", "-", " ", "."])
    case = st.sampled_from([str.lower, str.upper, str.title])
    joined = st.one_of(
        word,
        st.builds("{}{}{}".format, word, sign, plain),
        st.builds("{}{}{}".format, plain, sign, word),
        st.builds("{}{}{}".format, word, st.sampled_from(["_", "-", ""]), st.integers(0, 2048)),
    )
    return st.builds(lambda name, how: how(name), joined, case)


@given(train=spelled(PART_NAMES["train"]), test=spelled(PART_NAMES["test"]), val=spelled(PART_NAMES["validation"]))
@settings(max_examples=40)
def test_however_parts_are_spelled_they_are_parts(train, test, val):
    with tempfile.TemporaryDirectory() as place:
        folder = parts(Path(place), train, test, val)
        assert counts(folder) == {"train": 12, "test": 12, "validation": 12}
        shutil.rmtree(folder / train)
        assert "if they are classes, put all class folders into" in outcome(folder)


FOLDER_NAMES = st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=12)


@given(held=st.dictionaries(FOLDER_NAMES, st.sets(st.sampled_from(CLASSES), min_size=1), min_size=2, max_size=6))
@settings(max_examples=60)
def test_folders_that_hold_the_same_folders_are_never_classes_whatever_they_are_called(held):
    """And where each holds folders of its own, what was read as one class is said."""
    held = {name: inner for name, inner in held.items() if name.strip(".") and not name.startswith(".")}
    assume(2 <= len({name.casefold() for name in held}) == len(held))
    with tempfile.TemporaryDirectory() as place:
        try:
            found = find_images(
                tree(Path(place), *(f"{name}/{each}" for name, inner in held.items() for each in inner))
            )
        except DataError as error:
            assert "\n" not in str(error)  # noqa: PT017
            return
        shared = sum(map(len, held.values())) > len(set().union(*held.values()))
        assert found.classes == CLASSES or (not shared and "count for that class" in found.notes[0])


@every(
    ("places", "message"),
    [
        (["train_cats", "train_dogs", "test_cats", "test_dogs"], "look like parts of a data set: name them train and"),
        (["trainA", "trainB", "testA", "testB"], "testA, trainA look like parts"),
        (["seg_train/a", "seg_train/b", "seg_test/a", "seg_test/b"], "look like parts of a data set"),
        (["entrenamiento/a", "entrenamiento/b", "prueba/a", "prueba/b"], r"hold the same folders \(a, b\)"),
        (["amazon/images/a", "amazon/images/b", "dslr/images/a", "dslr/images/b"], "hold the same folders"),
        (["fold1/a", "fold1/b", "fold1/c", "fold2/a", "fold2/b"], "fold1, fold2 look like parts of a data set"),
        (["images_001/images", "images_002/images"], "images_001, images_002 look like parts of a data set"),
        (["HAM10000_images_part_1", "HAM10000_images_part_2"], "look like parts of a data set: name them train"),
        (["batch 1", "batch 2", "batch 3"], "look like parts of a data set: name them train"),
        (["cat", "dog", "cat_test", "dog_test"], "cat, cat_test look like parts of a data set: name them train"),
        (["validation cat", "cat", "dog"], "cat, validation cat look like parts of a data set"),
        (["entrenamiento/a", "entrenamiento/b", "prueba/a"], r"hold the same folders \(a\)"),
        (["site1/a", "site1/b", "site2/a"], r"\(a\), .*; if they are classes, take these folders away and leave their"),
        (["site1/a", "site1/b", "site1", "site2/a", "site2/b"], r"hold the same folders \(a, b\)"),
        (["train/fold1/a", "train/fold1/b", "train/fold2/b"], r"fold1, fold2 hold the same folders \(b\)"),
        (
            ["a/Train", "a/test", "b/train"],
            r"a holds folders that look like parts of a data set \(Train, test\): parts",
        ),
        (
            ["train/a/x_train", "train/a/x_val", "train/b"],
            r"data set \(x_train, x_val\): parts are not looked for below",
        ),
        (
            ["pets/train/a", "pets/train/b", "pets/val/a", "pets/val/b", "more"],
            "name .*pets as the folder if the class",
        ),
        (["train/a", "train/b", "train/a/b"], "train/a holds a folder b, which is another class's name: move it there"),
        (["a", "b", "c/pets/A"], "c holds a folder A, which is another class's name"),
        (["a cat", "A_cat", "dog"], "'A_cat' and 'a cat' are one name in two spellings: put the images of one class"),
        (["train/caf\u00e9", "train/cafe\u0301"], "are one name in two spellings"),
        (
            ["train/a", "train/b", "train/Unlabelled"],
            "Unlabelled is called like images without a class: move them away",
        ),
        (
            ["train/a", "train/b", "test/a", "test/b", "test"],
            r"test holds 6 images beside its class folders \(0.png\): is",
        ),
        (["a", "b", "."], "6 images beside its class folders"),
        (["train/a", "train/b", "train"], r"train holds 6 images beside its class folders \(0.png\): is it a class"),
        (["train/train/a", "train/train/b", "train/val/a", "train/val/b"], "hold the same folders"),
        (["train/a", "train/b", "train2/a", "train2/b"], "train, train2 are all named as train images: keep one"),
        (["train/a", "train/b", "Test/a", "Test/b", "testing/a"], "are all named as test images: keep one"),
        (["images", "masks"], "images and masks look like pictures and what belongs to each of them"),
        (["JPEGImages", "SegmentationClass"], "look like pictures and what belongs"),
        (["train/img", "train/ground_truth"], "look like pictures and what belongs"),
        (["input", "target"], "look like pictures and what belongs"),
        (["rgb", "depth"], "look like pictures and what belongs"),
        (["train_and_val/a", "test/a"], "no folder .*train: data set 'images' needs"),
        (["exam", "test"], "needs train/<class>/. beside test/; if they are classes, put all class folders into"),
        (["valid", "invalid"], "beside valid/; if they are classes, put all class folders into"),
        (["bus", "train"], "train must hold a folder .* and 6 images: if it is a class itself, put all class folders"),
        (["train/a", "train/b", "test"], "test holds no class folders, and .*train has a, b"),
        (["MNIST/raw", "cats"], "holds MNIST, which is the data set mnist: .* name the folder of your images"),
    ],
)
def test_folders_that_are_no_classes_are_refused_with_what_to_do(tmp_path, places, message):
    with pytest.raises(DataError, match=message) as error:
        find_images(tree(tmp_path, *places))
    assert "\n" not in str(error.value)


@every(
    "classes",
    [
        ("exam", "test"),
        ("bus", "train"),
        ("valid", "invalid"),
        ("testA", "trainB"),
        ("masks", "no_masks"),
        ("beaker", "test_tube"),
        ("A", "a"),
        ("A", "A+"),
        ("with_mask", "without_mask"),
        ("image1", "image2"),
    ],
)
def test_classes_may_be_called_anything_within_a_training_folder(tmp_path, classes):
    assert outcome(tree(tmp_path, *(f"train/{name}" for name in classes)))[1] == tuple(sorted(classes))


PLACES = st.lists(st.integers(0, 99).map(str), min_size=2, max_size=4)


@given(
    one=PLACES, other=PLACES, sign=st.sampled_from("_- "), between=st.sampled_from("_- "), word=st.sampled_from("v ")
)
def test_names_of_numbers_are_one_when_the_numbers_are_whatever_stands_between(one, other, sign, between, word):
    names = {f"{word}{sign.join(one)}".strip(), f"{word}{between.join(other)}".strip()}
    assert bool(same_but_for_spelling(names)) == (one == other and len(names) == 2)


@every(
    ("one", "other", "same"),
    [
        ("golden-retriever", "golden_retriever", True),
        ("golden\u2011retriever", "Golden Retriever", True),
        ("cat", "cat\u200b", True),
        ("\ufeffcat", "cat", True),
        ("user1", "user_1", True),
        ("v1_0", "v10", False),
        ("A", "A-", False),
        ("at -5", "at 5", False),
    ],
)
def test_what_stands_between_words_is_spelling_and_what_tells_numbers_apart_is_not(one, other, same):
    assert bool(same_but_for_spelling([one, other])) == same


@every("word", ["labeled", "labelled", "sorted", "tagged", "annotated"])
@every("prefix", ["un", "Non-"])
def test_a_class_without_a_label_is_one_beside_its_opposite_alone(tmp_path, word, prefix):
    name = f"{prefix}{word}"
    found = outcome(tree(tmp_path, "cat", "dog", name))
    assert f"{name} is called like images without a class: move them away, or rename the folder" in found
    assert name in outcome(tree(tmp_path, word.replace("ll", "l")))[1]


@every("classes", [("beaker", "test_tube"), ("train_cats", "train_dogs"), ("dev_board", "phone"), ("class1", "class2")])
def test_one_name_that_mentions_a_part_is_a_class(tmp_path, classes):
    assert outcome(tree(tmp_path, *classes))[1] == tuple(sorted(classes))


MASK_WORDS = st.sampled_from([word.replace("?", "") for word in MASKS.split("|")] + ["ground_truth", "GroundTruth"])
CASES = st.sampled_from([str.lower, str.upper, str.title, str])


@given(
    word=st.builds(lambda word, case: case(word), MASK_WORDS, CASES),
    sign=st.sampled_from(["_", "-", " ", "."]),
    pair=st.sampled_from(
        [
            ("{stem}.png", "{stem}{sign}{word}.png"),
            ("{stem}.png", "{stem}{sign}{word}{sign}1.png"),
            ("{stem}.jpg", "{word}{sign}{stem}.png"),
            ("{stem}{sign}image.jpg", "{stem}{sign}{word}.png"),
            ("{stem}.png", "{word}/{stem}.png"),
            ("images/{stem}.png", "{word}/{stem}.png"),
            ("images/{stem}.png", "{word}/other{stem}.png"),
            ("patient{stem}/image.png", "patient{stem}/{word}.png"),
        ]
    ),
    part=st.sampled_from(["train", "test"]),
)
@settings(max_examples=60)
def test_masks_among_the_images_of_a_class_are_refused_and_pictures_or_masks_alone_are_taken(word, sign, pair, part):
    pictures, masks = ([name.format(stem=stem, sign=sign, word=word) for stem in (17, 18, 19)] for name in pair)
    with tempfile.TemporaryDirectory() as place:
        for files in (pictures, masks):
            folder = parts(Path(place) / files[0].replace("/", "-"), "train", "test")
            touched(folder / part / "cat", *files)
            assert counts(folder)[part] == 15
        touched(folder / part / "cat", *pictures)
        assert re.search(f"{part}/cat: .* look like pictures and what belongs to each of them", outcome(folder))


@every(
    ("classes", "word"),
    [
        ("photos heatmaps tables charts", "heatmaps"),
        ("photo label form letter", "label"),
        ("original overlay", "overlay"),
        ("source target", "target"),
        ("input output", "output"),
        ("cat cat_masks", "cat_masks"),
        ("fotos masken", "masken"),
        ("fotos mascaras", "mascaras"),
    ],
)
@every("missing", [0, 1])
def test_two_classes_are_called_pictures_and_masks_where_their_files_pair_up_and_else_that_is_said(
    tmp_path, classes, word, missing
):
    classes = classes.split()
    plain = classes[0] in ("photos", "photo", "original", "source", "input")
    for place, same in (("same", True), ("other", False)):
        for number, name in enumerate(classes):
            other = 0 if same and name in (classes[0], word) else 100 * (number + 1)
            touched(tmp_path / place / name, *(f"{other + each}.png" for each in range(COUNT)))
    for number in range(missing):
        (tmp_path / "same" / word / f"{number}.png").unlink()
    note = f"The classes {classes[0]} and {word} are called like pictures and their masks: if they are, move the masks"
    if plain:
        assert "such as masks: a folder for each class is needed; if they are classes, rename" in outcome(
            tmp_path / "same"
        )
        assert note in find_images(tmp_path / "other").notes[0]
    else:
        assert note in find_images(tmp_path / "same").notes[0]
        assert find_images(tmp_path / "other").notes == ()


def test_numbers_that_every_class_has_do_not_pair_two_of_them_up(tmp_path):
    found = find_images(tree(tmp_path, "photo", "label", "form", "letter"))
    assert found.classes == ("form", "label", "letter", "photo")
    assert "The classes photo and label are called like" in found.notes[0]


@every(
    ("pair", "files", "refused"),
    [
        (("mustang_{}", "mustang_gt_{}"), 6, False),
        (("{}", "output{}"), 6, False),
        (("bottle{}", "bottle{}_label"), 6, False),
        (("{}", "{}_mask"), 24, True),
        (("{}", "{}_mask"), 25, False),
    ],
)
def test_a_few_files_that_are_called_like_masks_are_said_and_no_reason_to_refuse_a_folder(
    tmp_path, pair, files, refused
):
    pairs = 3 if files > 6 else 1
    folder = tree(tmp_path, "dog")
    touched(folder / "cat", *(f"x{number}.png" for number in range(files)))
    touched(folder / "cat", *(f"{name.format(900 + number)}.png" for number in range(pairs) for name in pair))
    if refused:
        assert "leave only the pictures there, or rename them if they are" in outcome(folder)
    else:
        mask, picture = (name.format(900) for name in (pair[1], pair[0]))
        assert f"cat/{mask}.png is called like a mask of {picture}.png: is it one?" in find_images(folder).notes


@every(
    ("files", "note"),
    [
        (
            ["{}/1.png", "{}/1_flip.png"],
            "4 images are named after another, such as train/a/1_flip.png after 1.png: do",
        ),
        (["{}/1.png", "{}/aug_1.png"], "such as train/a/aug_1.png after 1.png"),
        (["{}/1.png", "{}/1.jpg"], "such as train/a/1.png after 1.jpg"),
        (["{}/1.png", "{}/1_2.png", "{}/1 (3).png"], None),
        (
            ["{}/1.png", "{}/x/1_flip.png"],
            "in folders below a class count for that class: train/a/x, train/b/x.",
        ),
        (["{}/images/1.png", "{}/images/2.png"], None),
        (["{}/train_1.png", "{}/train_2.png", "{}/test_1.png"], "Names of files speak of train and test, and a fifth"),
        (["{}/train_1.png", "{}/train_2.png"], None),
    ],
)
def test_names_that_leave_something_in_doubt_are_said(tmp_path, files, note):
    for name in ("a", "b"):
        touched(tmp_path / "train", *(file.format(name) for file in files), f"{name}/{name}.png")
        touched(tmp_path / "train", *(file.format(name).replace("1", "7") for file in files), f"{name}/0{name}.png")
    found = find_images(tmp_path).notes
    assert any(note in each for each in found) if note else found == ()


def test_images_beside_the_parts_are_said_and_what_systems_add_is_not_read(tmp_path):
    folder = tree(parts(tmp_path, "train", "test"), ".", "extra")
    for place in (".", "train", "train/cat"):
        for shadow in {*SHADOWS, "@Recycle", "$Recycle.Bin", "LOST.DIR", "System Volume Information"} - {"thumbs"}:
            tree(folder / place, shadow)
        touched(folder / place, "._0.png", ".DS_Store", ".git/config")
    assert counts(folder) == {"train": 12, "test": 12}
    assert find_images(folder).notes == ("Not read: 6 images, extra beside train.",)


@every("hidden", [".NET/0.png", ".NET/beach/0.png", ".0.png", "Thumbs/0.png"])
@every("place", [".", "train", "train/cat", "train/cat/beach"])
def test_hidden_images_that_a_person_may_have_meant_are_not_read_and_that_is_said(tmp_path, place, hidden):
    touched(parts(tmp_path, "train", "test") / place, hidden)
    assert counts(tmp_path) == {"train": 12, "test": 12}
    where = Path(place, hidden.split("/")[0])
    assert find_images(tmp_path).notes == (f"Not read, as hidden or added by the system: {where}.",)


def test_a_long_name_takes_no_time(tmp_path):
    assert outcome(tree(tmp_path, "dataset" * 36, "other"))[1] == ("dataset" * 36, "other")


@every("places", [["cat/images", "dog/images", "dog/beach"], ["cat", "cat/beach", "dog", "dog/beach"]])
def test_classes_may_hold_folders_of_their_own(tmp_path, places):
    found = outcome(tree(tmp_path, *places))
    assert found == (["test", "train"], CLASSES, True)


@every(("names", "said"), [("abcdefg", True), ("1234567", False)])
@every("places", [["train", "test"], ["."]])
def test_files_of_the_same_names_in_every_class_are_said_unless_they_are_numbered(tmp_path, names, said, places):
    for place in places:
        for kind in ("photo", "drawing"):
            touched(tmp_path / place / kind, *(f"{name}.png" for name in names))
    note = "Every class holds files of the same names, such as a: do they belong together, as masks do?"
    assert find_images(tmp_path).notes == ((note,) if said else ())


def test_folders_beside_the_parts_are_named_as_not_read(tmp_path):
    folder = parts(tmp_path, "train", "test", "extra")
    assert find_images(folder).notes == ("Not read: extra beside train.",)


def test_endings_that_are_not_taken_are_named(tmp_path):
    folder = tree(tmp_path, *CLASSES)
    touched(folder / "cat", "a.heic", "b.HEIC", "notes", "c.txt", ".hidden")
    note = "4 files with other endings were passed over: 2 .heic, 1 .txt, 1 without an ending."
    assert find_images(folder).notes == (note,)
    for path in (folder / "dog").iterdir():
        path.rename(path.with_suffix(".tiff"))
    with pytest.raises(DataError, match=r"no image in .*dog: files that end in .* are taken \(6 .tiff there\)"):
        find_images(folder)


@every("target", [".", "..", "../..", "../../test", "../dog", "../../test/cat", "itself"])
def test_links_back_into_the_data_set_add_no_image(tmp_path, target):
    folder = parts(tmp_path / "data", "train", "test")
    for name in ("one", "two"):
        link = folder / "train" / "cat" / name
        link.symlink_to(folder / "train" / "cat" / name if target == "itself" else target)
    assert counts(folder) == {"train": 12, "test": 12}


def test_a_folder_outside_that_links_to_itself_is_entered_once(tmp_path):
    outside = tree(tmp_path, "elsewhere", count=3) / "elsewhere"
    (outside / "again").symlink_to(outside)
    folder = parts(tmp_path / "data", "train", "test")
    for name in ("one", "two"):
        (folder / "train" / "cat" / name).symlink_to(outside)
    assert counts(folder) == {"train": 15, "test": 12}


def test_a_file_with_two_names_counts_once_and_that_is_said(tmp_path):
    folder = parts(tmp_path, "train", "test")
    first = folder / "train" / "cat" / "0.png"
    (folder / "train" / "cat" / "link.png").symlink_to(first)
    os.link(first, folder / "train" / "cat" / "hard.png")
    assert counts(folder) == {"train": 12, "test": 12}
    assert find_images(folder).notes == ("2 files are there under a second name, and count once.",)


def test_names_that_are_no_file_are_named_together(tmp_path):
    folder = tree(tmp_path, *CLASSES)
    for number in range(5):
        (folder / "cat" / f"{number}.png").unlink()
        (folder / "cat" / f"{number}.png").symlink_to("nowhere")
    with pytest.raises(DataError, match="5 images cannot be used: .*0.png cannot be read: .*2.png .*; and 2 more"):
        find_images(folder)


def notes(folder):
    return " ".join(load("images", folder).notes)


def test_pictures_that_make_a_result_doubtful_are_counted_with_an_example(tmp_path):
    folder = make_images(tmp_path / "pets")
    assert notes(folder) == ""
    train, test = folder / "train", folder / "test"
    shutil.copy(train / "cat" / "0.png", train / "cat" / "1.png")
    assert notes(folder) == "1 images have the same pixels as another, such as train/cat/1.png and train/cat/0.png."
    shutil.copy(train / "cat" / "0.png", test / "cat" / "3.png")
    assert "2 images have the same pixels as another, such" in notes(folder)
    assert "1 images have the same pixels as one of another part" in notes(folder)
    assert "such as test/cat/3.png and train/cat/0.png." in notes(folder)
    shutil.copy(train / "cat" / "2.png", train / "dog" / "2.png")
    assert "1 images have the same pixels as one of another class, such as train/dog/2.png and" in notes(folder)
    Image.new("RGB", (16, 16), "red").save(test / "dog" / "0.png")
    assert "1 of 16 images are of one colour each, such as test/dog/0.png." in notes(folder)


def test_notes_are_printed_when_images_are_decoded_and_kept_with_the_cache(tmp_path, capsys):
    folder = make_images(tmp_path / "pets")
    shutil.copy(folder / "train" / "cat" / "0.png", folder / "train" / "cat" / "1.png")
    first = load("images", folder)
    assert "pets: 1 images have the same pixels as another" in capsys.readouterr().err
    assert load("images", folder).notes == first.notes
    assert capsys.readouterr().err == ""


def test_images_that_are_all_the_same_are_refused_and_those_that_are_dark_or_without_contrast_are_said(tmp_path):
    folder = make_images(tmp_path / "pets")
    for path in folder.rglob("*.png"):
        pixels = np.asarray(Image.open(path)) // 16
        Image.fromarray(pixels).save(path)
    assert "the images are nearly black: of 255 the largest value is 15, the mean 7." in notes(folder).replace(
        "The", "the"
    )
    for path in folder.rglob("*.png"):
        Image.fromarray(np.asarray(Image.open(path)) + np.uint8(100)).save(path)
    assert "images have hardly any contrast: of 255 their values lie from 100 to 115." in notes(folder)
    for path in folder.rglob("*.png"):
        Image.new("RGB", (16, 16)).save(path)
    with pytest.raises(DataError, match="pets: all 16 images are the same picture, nothing can be learnt"):
        load("images", folder)


@every("place", [("train/birds",), ("test",), ("train/cat/more",)])
def test_a_link_to_what_is_not_there_is_refused_by_name(tmp_path, place):
    parts(tmp_path, "train")
    (tmp_path / place[0]).symlink_to(tmp_path / "nowhere")
    with pytest.raises(DataError, match=f"{place[0]}.* is a link to what is not there"):
        find_images(tmp_path)
