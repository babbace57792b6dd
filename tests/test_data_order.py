"""The order of examples and the contract of Split."""

from __future__ import annotations

import numpy as np
import pytest

from cae_raw.data import DATASETS, Split, epoch_order, load_dataset
from cae_raw.data.order import random_words, uniform
from cae_raw.errors import InputError


@pytest.mark.parametrize("n", [0, 1, 2, 7, 1000])
def test_order_is_a_permutation(n: int) -> None:
    order = epoch_order(n, seed=3, epoch=5)
    assert order.dtype == np.int64
    assert np.array_equal(np.sort(order), np.arange(n))


def test_order_is_pinned() -> None:
    """These values must never change: runs resume by them, on any machine."""
    assert epoch_order(8, seed=0, epoch=0).tolist() == [7, 4, 2, 6, 5, 0, 1, 3]
    assert epoch_order(8, seed=1, epoch=2).tolist() == [4, 5, 6, 7, 1, 0, 2, 3]


def test_order_depends_on_seed_and_epoch_only() -> None:
    base = epoch_order(100, seed=1, epoch=2)
    np.random.seed(0)
    assert np.array_equal(base, epoch_order(100, seed=1, epoch=2))
    for seed, epoch in ((2, 2), (1, 3), (2, 1), (-1, 2)):
        assert not np.array_equal(base, epoch_order(100, seed, epoch))


def test_order_places_every_example_everywhere() -> None:
    """Over many epochs each example comes at each position about equally often."""
    seen = np.zeros((4, 4), int)
    for epoch in range(2000):
        seen[np.arange(4), epoch_order(4, seed=0, epoch=epoch)] += 1
    assert np.all(np.abs(seen - 500) < 100)  # five standard deviations


def test_longer_draws_begin_with_shorter_ones() -> None:
    assert np.array_equal(random_words(1, 2, 3, 50)[:20], random_words(1, 2, 3, 20))
    assert not np.array_equal(random_words(1, 2, 3, 20), random_words(2, 2, 3, 20))


def test_uniform_covers_the_half_open_interval() -> None:
    ends = uniform(np.array([0, 2**64 - 1], np.uint64))
    assert ends[0] == 0.0
    assert ends[1] == 1.0 - 2.0**-53


def make_split(n: int = 4) -> Split:
    images = np.arange(n * 6, dtype=np.uint8).reshape(n, 1, 2, 3)
    return Split(images, np.arange(n, dtype=np.int64), tuple("abcdefgh"[:n]))


def test_limit_takes_the_first() -> None:
    split = make_split()
    assert len(split) == 4
    assert split.image_shape == (1, 2, 3)
    two = split.limit(2)
    assert len(two) == 2
    assert np.shares_memory(two.images, split.images)
    assert two.labels is not None
    assert two.labels.tolist() == [0, 1]
    assert two.names == ("a", "b")
    assert len(split.limit(99)) == 4
    with pytest.raises(InputError, match="1 or more"):
        split.limit(0)


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((2, 3, 4), np.uint8),
        np.zeros((2, 1, 3, 4), np.float32),
        np.zeros((2, 3, 4, 1), np.uint8).transpose(0, 3, 1, 2)[:, :, ::2],
    ],
)
def test_split_refuses_other_arrays(images: np.ndarray) -> None:
    with pytest.raises(ValueError, match="images must be"):
        Split(images, None)


def test_split_refuses_labels_and_names_of_other_length() -> None:
    images = np.zeros((2, 1, 1, 1), np.uint8)
    with pytest.raises(ValueError, match="labels"):
        Split(images, np.zeros(3, np.int64))
    with pytest.raises(ValueError, match="names"):
        Split(images, None, ("a",))


def test_unknown_data_set_lists_the_known_ones() -> None:
    with pytest.raises(InputError) as caught:
        load_dataset("imagenet")
    assert all(name in str(caught.value) for name in ("imagenet", *DATASETS))
