"""Left-right flips in training: the same ones however the images are stored and wherever a run
was stopped."""

from __future__ import annotations

import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from lmdb_cases import pixels, write_images
from test_session import CONFIG, EVENTS, stop_after, train
from training_cases import make_dataset, make_images, run_contents

from cae_raw.backends import NUMPY, Backend
from cae_raw.data import Split, epoch_order
from cae_raw.data.lmdb_stream import LmdbSplit
from cae_raw.data.order import epoch_flips
from cae_raw.models import single_layer
from cae_raw.training.feed import Feed
from cae_raw.training.optimizers import SGD
from cae_raw.training.trainer import Trainer

FLIPPED = replace(CONFIG, flip=True)


def epoch_of(
    feed: Feed, split: Split | LmdbSplit, epoch: int = 1, size: int = 10, start: int = 0
) -> np.ndarray:
    """All images of an epoch, in order, as the engine takes them."""
    batches = feed.shuffled(split, 7, epoch, size, start, flip=True)
    found = [feed.backend.to_numpy(images)[indices] for images, indices in batches]
    return np.concatenate(found)


def test_the_flips_never_change() -> None:
    assert epoch_flips(16, 0, 0).tolist() == [1, 1, 0, 1, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 0, 1]
    flips = epoch_flips(10_000, 3, 5)
    assert flips.dtype == np.uint8 and set(flips.tolist()) == {0, 1}
    assert 0.48 < flips.mean() < 0.52
    np.testing.assert_array_equal(flips[:100], epoch_flips(100, 3, 5))
    for other in (epoch_flips(10_000, 4, 5), epoch_flips(10_000, 3, 6)):
        assert 0.48 < np.mean(flips != other) < 0.52


def test_chosen_images_are_mirrored(backend: Backend) -> None:
    images = make_images(37, (3, 4, 5))
    order, flips = epoch_order(37, 7, 1), epoch_flips(37, 7, 1)
    expected = [images[i][..., ::-1] if f else images[i] for i, f in zip(order, flips, strict=True)]
    for where in (NUMPY, backend):
        np.testing.assert_array_equal(epoch_of(Feed(where), Split(images, None)), expected)
    later = epoch_of(Feed(NUMPY), Split(images, None), start=2)
    np.testing.assert_array_equal(later, expected[20:])
    assert 5 < flips.sum() < 32


def test_streamed_images_are_flipped_like_those_in_memory(tmp_path: Path) -> None:
    images = pixels(150)
    streamed = LmdbSplit(write_images(tmp_path / "db", images))
    kept = Split(images, None, in_blocks=True)
    for start in (0, 4):
        np.testing.assert_array_equal(
            epoch_of(Feed(NUMPY), streamed, start=start), epoch_of(Feed(NUMPY), kept, start=start)
        )


@pytest.mark.parametrize("k", [1, 6, EVENTS - 1])
def test_resumed_anywhere_with_the_same_bits(tmp_path: Path, k: int) -> None:
    whole, parts, plain = tmp_path / "whole", tmp_path / "parts", tmp_path / "plain"
    train(whole, FLIPPED, threads=1)
    assert train(parts, FLIPPED, hear=stop_after(k)).signal == signal.SIGINT
    train(parts, FLIPPED)
    train(plain)
    assert run_contents(parts) == run_contents(whole)
    assert run_contents(plain)["last"]["parameters"] != run_contents(whole)["last"]["parameters"]


def test_only_training_images_are_flipped(rng: np.random.Generator) -> None:
    dataset, model = make_dataset(), single_layer(1, 2, rng)
    still = 1e-30  # a learning rate that moves no weight
    trainer = Trainer(model, dataset, SGD(model, lr=still), flip=True)
    plain = Trainer(model, dataset, SGD(model, lr=still))
    a, b = trainer.fit(1)[0], plain.fit(1)[0]
    assert a.validation_half_mse == b.validation_half_mse
    assert a.train_half_mse != b.train_half_mse
