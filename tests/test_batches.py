"""Augmentation: what it does to a pixel, and that a resume replays nothing."""

import numpy as np
import torch

from modules.data.batches import flip_crop


def test_every_image_is_a_crop_of_the_padded_one_perhaps_mirrored():
    images = torch.arange(1, 1 + 40 * 2 * 5 * 5).remainder(250).reshape(40, 2, 5, 5).to(torch.uint8)
    got = flip_crop(images, seed=3, iteration=7)
    assert got.shape == images.shape
    assert got.dtype == torch.uint8
    padded = np.pad(images.numpy(), ((0, 0), (0, 0), (4, 4), (4, 4)))
    mirrored = 0
    for before, after in zip(padded, got.numpy(), strict=True):
        crops = [before[:, y : y + 5, x : x + 5] for y in range(9) for x in range(9)]
        plain = any((after == crop).all() for crop in crops)
        flipped = any((after == crop[:, :, ::-1]).all() for crop in crops)
        assert plain or flipped
        mirrored += flipped and not plain
    assert 8 <= mirrored <= 32


def test_offsets_and_mirroring_are_spread_evenly():
    marked = torch.zeros(1, 1, 9, 9, dtype=torch.uint8)
    marked[0, 0, 4, 4] = 1
    found = [flip_crop(marked, 0, iteration)[0, 0].nonzero() for iteration in range(1620)]
    places = torch.cat(found)  # the mark stays in sight with every crop: its row is 8 minus the offset
    assert len(places) == 1620
    counts = torch.bincount(places[:, 0] * 9 + places[:, 1], minlength=81)
    assert counts.min() > 4
    assert counts.max() < 45


def test_draws_depend_on_seed_and_iteration_alone():
    images = torch.randint(0, 256, (8, 3, 16, 16), dtype=torch.uint8)
    assert (flip_crop(images, 1, 5) == flip_crop(images, 1, 5)).all()
    assert not (flip_crop(images, 1, 5) == flip_crop(images, 1, 6)).all()
    assert not (flip_crop(images, 1, 5) == flip_crop(images, 2, 5)).all()
