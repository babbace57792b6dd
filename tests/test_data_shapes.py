"""The shapes data set: reproducible bit by bit, varied, fast enough to draw at each start."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from cae_raw.data import DataOptions, load_dataset, shapes


@pytest.mark.parametrize(
    ("split", "seed", "expected"),
    [
        ("train", 0, "c2576ba27d7272ed"),
        ("validation", 0, "256fa392817b1ea1"),
        ("test", 7, "90b03ffc5ff84110"),
    ],
)
def test_pixels_are_pinned(split: str, seed: int, expected: str) -> None:
    """The same bytes with every NumPy version and on every machine; figures rest on them."""
    images, _ = shapes.draw(split, 120, seed)
    assert hashlib.sha256(images.tobytes()).hexdigest()[:16] == expected


def test_load_gives_three_splits() -> None:
    data = load_dataset("shapes")
    assert [len(s) for s in (data.train, data.validation, data.test)] == [5000, 1000, 1000]
    assert data.train.image_shape == (3, 32, 32)
    assert data.train.images.dtype == np.uint8
    assert data.train.labels is not None
    counts = np.bincount(data.train.labels)
    assert len(counts) == len(data.class_names) == len(shapes.KINDS)
    assert counts.max() - counts.min() <= 1


def test_an_image_depends_on_seed_split_and_index_only() -> None:
    long, labels = shapes.draw("train", 100, seed=4)
    short, _ = shapes.draw("train", 31, seed=4)
    assert np.array_equal(long[:31], short)
    assert np.array_equal(labels[:31], np.arange(31) % len(shapes.KINDS))
    for split, seed in (("test", 4), ("validation", 4), ("train", 5)):
        other, _ = shapes.draw(split, 31, seed)
        assert not any(np.array_equal(a, b) for a, b in zip(short, other, strict=True))


def test_no_two_images_are_equal_and_most_have_contrast() -> None:
    images, _ = shapes.draw("train", 600, seed=0)
    assert len({image.tobytes() for image in images}) == 600
    spread = images.reshape(600, -1).std(axis=1)
    assert np.mean(spread > 10) > 0.95
    assert images.min() < 10
    assert images.max() > 245


def test_seed_option_draws_other_images() -> None:
    one = load_dataset("shapes", DataOptions(seed=1))
    two = load_dataset("shapes", DataOptions(seed=2))
    assert not np.array_equal(one.test.images, two.test.images)


def test_parameters_fit_the_words_drawn() -> None:
    """Running past the parameter words would read the noise bytes' neighbours or fail."""
    words = shapes.random_words(shapes.SHAPES_STREAM, 0, 0, shapes._WORDS).reshape(1, -1)
    for render in shapes.KINDS.values():
        draws = shapes._Draws(words)
        rgb = render(draws)
        assert draws._next <= shapes._PARAMETER_WORDS
        assert rgb.dtype == np.float32
        assert rgb.shape == (1, 3, 32, 32)


def test_smooth_wave_is_near_a_sine() -> None:
    t = np.linspace(-2, 2, 401, dtype=np.float32)
    error = np.abs(shapes._smooth_wave(t) + np.sin(2 * np.pi * t))
    assert error.max() < 0.06
