"""Data sets: shapes, fingerprints, the cache, and data that are missing or broken."""

import gzip
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import filelock
import numpy as np
import pytest
import torch
from PIL import Image
from toys import every, make_images, small

from modules import models
from modules.checks import RunError
from modules.data import datasets, sources
from modules.data.datasets import DataError, load
from modules.data.sources import Source
from modules.runs.training import train


def idx(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape) + array.tobytes()


def write_mnist(folder, count=6, suffix=""):
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for split in ("train", "t10k"):
        for kind, array in (
            ("images-idx3", rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)),
            ("labels-idx1", rng.integers(0, 10, count, dtype=np.uint8)),
        ):
            content = idx(array)
            (folder / f"{split}-{kind}-ubyte{suffix}").write_bytes(gzip.compress(content) if suffix else content)


def test_digits_are_the_same_everywhere():
    digits = load("digits")
    assert digits.train_images.shape == (1297, 1, 32, 32)
    assert digits.test_images.shape == (500, 1, 32, 32)
    assert digits.train_images.dtype == np.uint8
    assert digits.train_labels.dtype == np.int64
    assert digits.fingerprint == "4524980914ceaa5a44f0e9eda753a3a604c8ab3d6fbcfa7f1de8d3d7d9d9d6e6"
    assert digits.train_images.max() == 255
    shares = np.bincount(digits.train_labels) / 1297, np.bincount(digits.test_labels) / 500
    np.testing.assert_allclose(*shares, atol=0.002)


def test_cache_is_memory_mapped_read_only_and_equal(tmp_path):
    first, second = load("digits", tmp_path), load("digits", tmp_path)
    assert isinstance(second.train_images, np.memmap)
    assert not second.train_images.flags.writeable
    assert first.fingerprint == second.fingerprint
    assert second.label == "digits (scikit-learn)"


@pytest.fixture
def offline(monkeypatch):
    """No data set can be downloaded."""
    import torchvision.datasets

    def refused(*arguments, **settings):
        raise OSError("no network")

    monkeypatch.setattr(torchvision.datasets, "FashionMNIST", refused)
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "download", refused)
    monkeypatch.setitem(sources.SOURCES, "fashion-mnist", sources._idx_source("F", "FashionMNIST", "FashionMNIST"))


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache of the test's own, empty."""
    monkeypatch.setenv("CLR_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def in_cache(cache, name):
    (found,) = cache.glob("*/")
    return found / name


def unnoticed(path, content):
    """Other content under the same size and times, in the eyes of a new process."""
    before = path.stat()
    assert len(content) == before.st_size
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    datasets._read_fingerprint.cache_clear()


def zeroed(path):
    content = path.read_bytes()
    unnoticed(path, content[:4096] + bytes(4096) + content[8192:])


def with_label(path, label):
    labels = np.load(path)
    labels[7] = label
    np.save(path, labels)
    datasets._read_fingerprint.cache_clear()


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("train_images.npy", lambda path: path.write_bytes(path.read_bytes()[:100])),
        ("train_images.npy", zeroed),
        ("test_images.npy", Path.unlink),
        ("train_labels.npy", lambda path: with_label(path, 99)),
        ("test_labels.npy", lambda path: with_label(path, 3)),
        ("meta.json", lambda path: path.write_text(path.read_text()[:50])),
        ("meta.json", lambda path: path.write_text("[1]")),
        *(
            ("meta.json", lambda path, old=old, new=new: path.write_text(path.read_text().replace(old, new)))
            for old, new in [
                ('"fingerprint": "', '"fingerprint": "0'),
                ('"1", "2"', '"2", "1"'),
                ('"remarks": []', '"remarks": ["nothing"]'),
                ('"seal"', '"sealed"'),
            ]
        ),
    ],
)
def test_a_damaged_cache_is_noticed_and_made_anew(cache, name, damage):
    whole = load("digits")
    images, labels = np.array(whole.train_images), np.array(whole.train_labels)
    before = in_cache(cache, name).read_bytes()
    damage(in_cache(cache, name))
    assert not in_cache(cache, name).exists() or in_cache(cache, name).read_bytes() != before
    for _ in range(2):
        again = load("digits")
        assert (again.fingerprint, again.classes, again.notes) == (whole.fingerprint, whole.classes, whole.notes)
        np.testing.assert_array_equal(again.train_images, images)
        np.testing.assert_array_equal(again.train_labels, labels)


def test_a_cache_is_read_whole_once_a_process(cache, monkeypatch):
    load("digits")
    monkeypatch.setattr(datasets, "_fingerprint", None)
    assert load("digits").train_images.shape == (1297, 1, 32, 32)


KILLED = """
import os, sys
import numpy as np
from modules.data import datasets
datasets.np.save = lambda file, array: os.kill(os.getpid(), 9)
datasets.load("digits")
"""


def test_what_a_killed_writer_leaves_is_swept_by_the_next(cache):
    assert subprocess.run([sys.executable, "-c", KILLED], check=False).returncode == -9
    assert list(cache.glob("*.tmp"))
    load("digits")
    assert [path.name for path in cache.iterdir() if path.is_dir()] == [in_cache(cache, "meta.json").parent.name]


def test_data_are_read_where_the_cache_cannot_be_written_or_another_writes_it(cache):
    cache.write_text("a file, not a folder")
    assert load("digits").train_images.shape == (1297, 1, 32, 32)
    cache.unlink()
    with filelock.FileLock(f"{datasets._cache_of('digits', datasets.default_data_dir())}.lock"):
        assert load("digits").train_images.shape == (1297, 1, 32, 32)
        assert not list(cache.glob("*/"))
    assert isinstance(load("digits").train_images, np.memmap)


def test_a_source_that_cannot_tell_when_it_changes_is_read_anew(cache, monkeypatch):
    arrays = [np.zeros((4, 8, 8), dtype=np.uint8), np.arange(4) % 2]
    monkeypatch.setitem(sources.SOURCES, "squares", Source("squares", lambda folder: ([arrays, arrays], ("a", "b"))))
    before = load("squares").fingerprint
    arrays[0] = arrays[0] + np.uint8(1)
    assert load("squares").fingerprint != before


def test_nothing_is_written_into_a_folder_of_images(cache, tmp_path):
    from torchvision.datasets import ImageFolder

    folder = make_images(tmp_path / "pets")
    before = sorted(folder.rglob("*"))
    load("images", folder), load("images-8", folder)
    assert sorted(folder.rglob("*")) == before
    assert ImageFolder(folder / "train").classes == ["cat", "dog"]
    assert len(list(cache.glob("*/meta.json"))) == 2


def test_folders_of_two_places_have_caches_of_their_own(cache, tmp_path):
    one, other = make_images(tmp_path / "one"), make_images(tmp_path / "other", count=5)
    fingerprints = [load("images", folder).fingerprint for folder in (one, other, one, other)]
    assert fingerprints[:2] == fingerprints[2:]
    assert len(set(fingerprints)) == 2
    assert len(list(cache.glob("*/meta.json"))) == 2


def exchanged(one, other):
    one.rename(aside := one.with_name("aside"))
    other.rename(one)
    aside.rename(other)


def as_before(path, content):
    before = path.stat()
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize(
    "change",
    [
        lambda train: exchanged(train / "cat", train / "dog"),
        lambda train: exchanged(train / "cat" / "0.png", train / "dog" / "0.png"),
        lambda train: as_before(train / "cat" / "0.png", (train / "dog" / "0.png").read_bytes()),
        lambda train: (train / "cat" / "0.png").rename(train / "dog" / "9.png"),
    ],
)
def test_files_that_change_under_equal_sizes_and_times_are_noticed(tmp_path, change):
    folder = make_images(tmp_path / "pets")
    for path in folder.rglob("*.png"):
        Image.open(path).save(path.with_suffix(".bmp"))  # of one size
        path.unlink()
        path.with_suffix(".bmp").rename(path)
        os.utime(path, (0, 0))
    before = load("images", folder).fingerprint
    change(folder / "train")
    assert load("images", folder).fingerprint != before


def test_replaced_files_of_mnist_are_noticed(tmp_path):
    folder = tmp_path / "MNIST" / "raw"
    write_mnist(folder)
    before = load("mnist", tmp_path).fingerprint
    path = folder / "t10k-labels-idx1-ubyte"
    as_before(path, path.read_bytes()[:-1] + b"\1")
    assert load("mnist", tmp_path).fingerprint != before


def test_images_folder_and_its_changes(tmp_path):
    folder = make_images(tmp_path / "pets")
    before = load("images", folder)
    assert before.train_images.shape == (8, 3, 16, 16)
    assert before.classes == ("cat", "dog")
    assert list(before.test_labels) == [0] * 4 + [1] * 4
    assert before.label == "pets (folder of images)"
    pixels = np.asarray(Image.open(folder / "train" / "dog" / "2.png"))
    np.testing.assert_array_equal(before.train_images[6], pixels.transpose(2, 0, 1))
    Image.fromarray(255 - pixels).save(folder / "train" / "dog" / "2.png")
    assert load("images", folder).fingerprint != before.fingerprint


def test_known_pixels_get_their_label(tmp_path, monkeypatch):
    folder = make_images(tmp_path)
    fingerprint = load("images", folder).fingerprint
    monkeypatch.setitem(datasets.KNOWN_IMAGES, fingerprint, "Pets (JPEG copy)")
    assert load("images", folder).label == "Pets (JPEG copy)"


def test_grey_images_have_one_channel(tmp_path):
    folder = make_images(tmp_path)
    for path in folder.rglob("*.png"):
        Image.open(path).convert("L").save(path)
    assert load("images", folder).channels == 1


@pytest.mark.parametrize("split", ["train", "test"])
def test_grey_images_among_coloured_ones_become_coloured(tmp_path, split):
    folder = make_images(tmp_path / "images")
    first = sorted((folder / split).rglob("*.png"))[0]
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    Image.fromarray(grey).save(first)
    data = load("images", folder)
    assert data.train_images.shape[1] == data.test_images.shape[1] == 3
    assert (np.asarray(getattr(data, f"{split}_images"))[0] == grey).all()


def test_splits_of_different_sizes_are_refused(tmp_path):
    folder = make_images(tmp_path)
    for path in (folder / "test").rglob("*.png"):
        Image.new("RGB", (20, 20)).save(path)
    with pytest.raises(
        DataError, match=r"8 images are of other sizes .*test/cat/0.png has shape \(20, 20\), others \(16"
    ):
        load("images", folder)


def test_not_square_images_are_refused(tmp_path):
    folder = make_images(tmp_path)
    for path in folder.rglob("*.png"):
        Image.open(path).crop((0, 0, 16, 12)).save(path)
    with pytest.raises(DataError, match="16 x 12"):
        load("images", folder)


def photographs(folder, **counts):
    """A folder of pictures of many sizes and kinds, `counts` of each class."""
    rng = np.random.default_rng(0)
    for shade, (name, count) in enumerate(counts.items(), start=1):
        for index in range(count):
            place = folder / name / ("holiday" if index % 2 else "")
            place.mkdir(parents=True, exist_ok=True)
            height, width = rng.integers(40, 300, 2)
            mode, suffix = (("RGB", "jpg"), ("L", "JPEG"), ("RGBA", "png"), ("P", "png"))[index % 4]
            Image.new("RGB", (width, height), (60 * shade,) * 3).convert(mode).save(place / f"{index}.{suffix}")
    return folder


def test_photographs_of_any_size_are_resized_and_a_fifth_is_held_out(tmp_path):
    folder = photographs(tmp_path / "pets", cat=20, dog=10)
    data = load("images-32", folder)
    assert data.train_images.shape == (24, 3, 32, 32)
    assert (np.bincount(data.train_labels) == [16, 8]).all()
    assert (np.bincount(data.test_labels) == [4, 2]).all()
    assert data.held_out
    assert data.label == "pets (folder of images, a fifth held out)"
    assert abs(data.train_images[data.train_labels == 1].mean() - 120) < 2
    assert load("images-32", folder).fingerprint == data.fingerprint  # from the cache
    assert load("images-16", folder).size == 16


def test_photographs_are_cropped_to_their_middle_and_turned_upright(tmp_path):
    folder = photographs(tmp_path / "pets", cat=5, dog=5)
    pixels = np.zeros((300, 100, 3), dtype=np.uint8)
    pixels[:80] = 255  # the sky
    for place in ("train", "valid"):
        for name in ("cat", "dog"):
            (folder / place / name).mkdir(parents=True)
            lying = Image.fromarray(np.rot90(pixels))  # a camera held upright that says so
            exif = Image.Exif()
            exif[0x0112] = 6
            lying.save(folder / place / name / "1.jpg", exif=exif)
            Image.fromarray(np.where(pixels, pixels, 10)).resize((1500, 4500)).save(folder / place / name / "2.jpg")
    data = load("images-8", folder)
    assert not data.held_out
    assert (data.train_images < 20).all()
    one = load("images-24", folder).train_images  # the middle third of the picture has no sky
    assert (one < 20).all()


def test_a_cameras_jpeg_with_a_preview_is_its_photograph(tmp_path):
    folder = photographs(tmp_path / "pets", cat=5, dog=5)
    red, preview = (Image.new("RGB", (50, 50), colour) for colour in ("red", "blue"))
    red.save(folder / "cat" / "0.jpg", format="MPO", save_all=True, append_images=[preview])
    data = load("images-8", folder)
    assert any((abs(image[0].astype(int) - 254) < 3).all() for image in [*data.train_images, *data.test_images])


@pytest.mark.parametrize(
    ("counts", "name", "message"),
    [
        (dict(cat=9, dog=4), "images-32", "dog has 4 images: 5 are needed, as there is no test/"),
        (dict(cat=9), "images-32", r"a folder for each of two classes or more, found \['cat'\]"),
        (dict(cat=9, dog=9), "images", "with image_size=64, or as the data set images-64, every image"),
        (dict(cat=9, dog=9), "images-7", "dataset images-7: from 8 to 1024 pixels are possible"),
        (dict(cat=9, dog=9), "images-<pixels>", "unknown dataset 'images-<pixels>': choose one of"),
    ],
)
def test_folders_of_photographs_that_cannot_be_used_are_named(tmp_path, counts, name, message):
    with pytest.raises(DataError, match=message) as error:
        load(name, photographs(tmp_path, **counts))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("name", "place"), [("mnist", "MNIST/raw"), ("fashion-mnist", "FashionMNIST/raw")])
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_idx_files_are_read(tmp_path, name, place, suffix):
    write_mnist(tmp_path / place, suffix=suffix)
    data = load(name, tmp_path)
    assert data.train_images.shape == (6, 1, 28, 28)
    assert len(data.classes) == 10


def test_fashion_mnist_is_found_where_debian_puts_it(tmp_path, monkeypatch):
    write_mnist(tmp_path / "system", suffix=".gz")
    found = sources._idx_source("Fashion-MNIST", "FashionMNIST", "FashionMNIST", tmp_path / "system")
    monkeypatch.setitem(sources.SOURCES, "fashion-mnist", found)
    assert load("fashion-mnist", tmp_path / "data").train_images.shape == (6, 1, 28, 28)


def test_files_of_another_data_set_are_not_taken_for_it(tmp_path, offline):
    """MNIST's and Fashion-MNIST's files have the same names."""
    write_mnist(tmp_path)
    write_mnist(tmp_path / "MNIST" / "raw")
    with pytest.raises(DataError, match="could not be downloaded"):
        load("fashion-mnist", tmp_path)


@every(
    ("name", "damaged", "message"),
    [
        ("t10k-labels-idx1-ubyte", lambda whole: idx(np.full(6, 77, dtype=np.uint8)), "labels in test go to 77, of 10"),
        ("t10k-labels-idx1-ubyte", lambda whole: idx(np.zeros(3, dtype=np.uint8)), "the t10k images .* do not match"),
        ("train-images-idx3-ubyte", lambda whole: whole[:-5], "train-images-idx3-ubyte is truncated"),
        ("train-images-idx3-ubyte", lambda whole: whole[:7], "train-images-idx3-ubyte is truncated"),
    ],
)
def test_idx_files_that_are_damaged_or_do_not_match_are_named(tmp_path, name, damaged, message):
    path = tmp_path / "MNIST" / "raw" / name
    write_mnist(path.parent)
    path.write_bytes(damaged(path.read_bytes()))
    with pytest.raises(DataError, match=message):
        load("mnist", tmp_path)


def test_data_that_cannot_be_downloaded_are_named_with_ways_to_supply_them(tmp_path, offline):
    with pytest.raises(DataError, match=r"CIFAR-10 is not in .*cifar-10-python.tar.gz") as error:
        load("cifar10", tmp_path)
    assert "\n" not in str(error.value)


def test_a_download_that_stopped_half_way_is_said_with_what_is_missing(tmp_path, offline):
    raw = tmp_path / "FashionMNIST" / "raw"
    write_mnist(raw)
    (raw / "train-labels-idx1-ubyte").unlink()
    with pytest.raises(DataError, match="raw is there and lacks train-labels-idx1-ubyte. Ways to supply it: put the"):
        load("fashion-mnist", tmp_path)
    (tmp_path / "cifar-10-batches-py").mkdir()
    with pytest.raises(DataError, match="py is there and lacks data_batch_1, .*, batches.meta. Ways to supply it"):
        load("cifar10", tmp_path)


def test_a_failed_download_leaves_no_folder_that_looks_like_data(tmp_path, monkeypatch):
    import torchvision.datasets

    def offline(folder, download):
        (folder / "MNIST" / "raw").mkdir(parents=True)
        raise OSError("no network")

    monkeypatch.setattr(torchvision.datasets, "MNIST", offline)
    with pytest.raises(DataError, match="MNIST is not in .* and could not be downloaded or read"):
        load("mnist", tmp_path / "data")
    assert list((tmp_path / "data").iterdir()) == []


def test_a_file_that_is_not_cifar10s_own_is_named(tmp_path):
    file = tmp_path / "cifar-10-batches-py" / "data_batch_3"
    file.parent.mkdir()
    file.write_bytes(b"not a batch")
    with pytest.raises(DataError, match=r"data_batch_3 is not CIFAR-10's own file \(MD5 .*: delete it, and the same"):
        load("cifar10", tmp_path)


DATA = Path(datasets.__file__).resolve().parents[2] / "data"


@pytest.mark.skipif(not (DATA / "cifar-10-batches-py").is_dir(), reason="needs CIFAR-10 in data/")
def test_cifar10_is_the_official_one_and_has_the_published_fingerprint():
    from torchvision.datasets import CIFAR10

    official = [*CIFAR10.train_list, *CIFAR10.test_list, (CIFAR10.meta["filename"], CIFAR10.meta["md5"])]
    assert len(official) == 7
    for name, md5 in official:
        assert hashlib.md5((DATA / CIFAR10.base_folder / name).read_bytes()).hexdigest() == md5, name
    splits, classes = sources.source("cifar10").read(DATA)
    assert datasets._fingerprint(datasets._arrays(splits)) == (
        "cfcbc44e16f8855d45b47f5b60a07d7563b36ac9a083f0f1a78b551832d08ed7"
    )
    assert classes[:2] == ("airplane", "automobile")


def test_unknown_name():
    with pytest.raises(DataError, match="'cifar100'.*digits, digits-8x8, mnist"):
        load("cifar100")


def test_a_data_set_and_a_network_are_one_entry_each(tmp_path, monkeypatch):
    """And are then trained by name like those there are."""
    images = np.random.default_rng(0).integers(0, 256, (20, 8, 8), dtype=np.uint8)
    labels = np.arange(20) % 2
    toy = Source("toy squares", lambda data_dir: ([(images, labels), (images, labels)], ("a", "b")))

    def bare(channels, size, classes, power):
        return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(channels * size**2, classes))

    asked = dict(dataset="squares", model="bare-2", batch_size=5)
    with pytest.raises(RunError, match="unknown dataset 'squares': choose one of digits, .*; unknown model 'bare-2'"):
        small(**asked)
    monkeypatch.setitem(sources.SOURCES, "squares", toy)
    monkeypatch.setitem(models.NETWORKS, "bare-<power>", models.Network(bare, r"bare-\d"))
    path = train(small(**asked), tmp_path)
    assert json.loads(path.with_suffix(".json").read_text())["data"]["label"] == "toy squares"


def test_small_digits_are_the_same_images_in_the_same_split():
    small_ones, large = load("digits-8x8"), load("digits")
    assert small_ones.train_images.shape == (1297, 1, 8, 8)
    np.testing.assert_array_equal(small_ones.test_labels, large.test_labels)
    assert np.corrcoef(small_ones.train_images.mean((1, 2, 3)), large.train_images.mean((1, 2, 3)))[0, 1] > 0.99


def test_a_text_is_windows_and_what_follows_them_and_no_window_reaches_into_another_part():
    found = load("text")
    text = (Path(torch.__file__).parent / "_torch_docs.py").read_bytes().decode("latin-1")
    parts = {"train": (0, 8), "validation": (8, 9), "test": (9, 10)}
    for part, (first, last) in parts.items():
        images, labels = getattr(found, f"{part}_images"), getattr(found, f"{part}_labels")
        its = text[len(text) * first // 10 : len(text) * last // 10]
        for number in (0, 1, len(labels) - 1):
            window = "".join(found.classes[code] for code in images[number].flatten())
            assert its[8 * number : 8 * number + 65] == window + found.classes[labels[number]]


def test_some_classes_of_a_data_set_are_its_images_counted_anew(tmp_path, monkeypatch):
    whole, some = load("digits"), load("digits-3-5")
    kept = (whole.train_labels >= 3) & (whole.train_labels <= 5)
    assert (some.train_images == whole.train_images[kept]).all()
    assert (some.train_labels == whole.train_labels[kept] - 3).all()
    assert some.classes == ("3", "4", "5")
    assert some.label == "digits (scikit-learn), classes 3 to 5"
    for name in ("digits-5-3", "nothing-0-4", "images-0-4"):
        with pytest.raises(DataError):
            load(name, tmp_path)
