"""Which images train, which choose, which test."""

import numpy as np
import pytest
from toys import make_images

from modules.data.datasets import load
from modules.data.splits import FOLDS, split


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
