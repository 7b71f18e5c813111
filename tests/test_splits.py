"""Which images train, which choose, which test."""

import numpy as np
import pytest
from toys import make_images

from modules.data.datasets import load
from modules.data.splits import FOLDS, Split, split


@pytest.fixture(scope="module")
def digits():
    return load("digits")


def test_the_standard_split_is_the_data_sets_own(digits):
    found = split(digits, "standard", 1)
    assert found.train.tolist() == list(range(1297))
    assert len(found.validation) == 0
    np.testing.assert_array_equal(found.test_labels, digits.test_labels)


def test_validation_is_a_tenth_of_the_training_images_class_by_class_and_always_the_same(digits):
    found, other = split(digits, "validation", 1), split(digits, "validation", 2)
    np.testing.assert_array_equal(found.validation, other.validation)
    assert sorted([*found.train, *found.validation]) == list(range(1297))
    shares = np.bincount(found.labels[found.validation]) / np.bincount(found.labels)
    np.testing.assert_allclose(shares, 0.1, atol=0.008)
    np.testing.assert_array_equal(found.test_images, digits.test_images)


def test_five_folds_test_every_image_once(digits):
    folds = [split(digits, "folds", seed) for seed in range(FOLDS)]
    assert sum(len(fold.test_labels) for fold in folds) == 1797
    everything = np.concatenate([digits.train_images, digits.test_images])
    tested = np.concatenate([fold.test_images for fold in folds])
    assert tested.sum(dtype=np.int64) == everything.sum(dtype=np.int64)
    for fold in folds:
        assert len(fold.train) + len(fold.validation) + len(fold.test_labels) == 1797
        assert not set(fold.train) & set(fold.validation)


def test_seeds_that_share_a_fold_test_the_same_images(digits):
    a, b = split(digits, "folds", 3), split(digits, "folds", 8)
    np.testing.assert_array_equal(a.test_images, b.test_images)


@pytest.mark.parametrize("name", ["standard", "validation", "folds"])
def test_means_are_those_of_the_training_images_alone(tmp_path, name):
    found = split(load("images", make_images(tmp_path, count=10)), name, 1)
    train = found.images[found.train]
    np.testing.assert_allclose(found.channel_mean(), (train / 255).mean(axis=(0, 2, 3)), rtol=1e-6)
    np.testing.assert_allclose(found.mean_image(), train.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(found.channel_deviation(), (train / 255).std(axis=(0, 2, 3)), rtol=1e-6)


def test_a_channel_that_is_the_same_everywhere_has_a_deviation_that_divides():
    images = np.zeros((4, 2, 8, 8), dtype=np.uint8)
    images[:2, 1] = 255
    found = Split(images, np.arange(4), np.arange(4), np.arange(0), images, np.arange(4))
    assert found.channel_deviation().tolist() == [1, 0.5]


@pytest.fixture
def three_parts(tmp_path):
    folder = make_images(tmp_path, count=10)
    (folder / "val").mkdir()
    for name in ("cat", "dog"):
        (folder / "val" / name).mkdir()
        for number in range(4):  # pictures of their own
            (folder / "test" / name / f"{number}.png").rename(folder / "val" / name / f"{number}.png")
    return load("images", folder)


def test_a_folder_for_validation_chooses_where_there_is_one_for_testing_too(three_parts):
    found = split(three_parts, "validation", 1)
    assert found.sizes == {"train": 20, "validation": 8, "test": 12}
    np.testing.assert_array_equal(found.images[found.validation], three_parts.validation_images)
    np.testing.assert_array_equal(found.validation_labels, [0] * 4 + [1] * 4)
    np.testing.assert_array_equal(found.images[found.train], three_parts.train_images)
    np.testing.assert_array_equal(found.test_images, three_parts.test_images)
    train = three_parts.train_images / 255
    np.testing.assert_allclose(found.channel_mean(), train.mean(axis=(0, 2, 3)), rtol=1e-6)
    assert split(three_parts, "standard", 1).sizes == {"train": 20, "validation": 0, "test": 12}


def test_images_of_all_three_folders_are_in_the_folds(three_parts):
    folds = [split(three_parts, "folds", seed) for seed in range(FOLDS)]
    assert sum(len(fold.test_labels) for fold in folds) == 40
    assert {sum(fold.sizes.values()) for fold in folds} == {40}
