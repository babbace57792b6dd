"""Images of any size through a model of one size, in tiles: nothing shows where they meet."""

from __future__ import annotations

import tracemalloc
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from deep_cases import SIZE, random_images, small_deep

from cae_raw import tiles
from cae_raw.data.scaling import to_bytes, to_floats
from cae_raw.errors import InputError
from cae_raw.models import Autoencoder, single_layer
from cae_raw.reconstruct import reconstruct_image
from cae_raw.tiles import _starts, _weights, tiled_blocks

SIDES = [(1, 1), (1, 40), (14, 12), (15, 12), (14, 13), (13, 50), (31, 9), (57, 61)]


class Stub(Autoencoder):
    """Any function of a batch of tiles, in the place of a trained model."""

    def __init__(self, function: Any, size: tuple[int, int] = SIZE, channels: int = 3) -> None:
        super().__init__(
            encoder_length=0, channels=channels, value_range=(0, 1), options={"size": list(size)}
        )
        self.function, self.batches = function, list[int]()

    def forward(self, x: Any, *args: Any, **options: Any) -> Any:
        assert x.shape[1:] == (self.channels, *self.image_size)
        self.batches.append(len(x))
        return self.function(x)


def whole(model: Autoencoder, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Input and output in floats, with every pixel covered exactly once."""
    x, y = np.full((2, *image.shape), np.nan, np.float32)
    covered = np.zeros(image.shape[1:], int)
    for (rows, columns), part, made in tiled_blocks(model, image):
        x[:, rows, columns], y[:, rows, columns] = part, made
        covered[rows, columns] += 1
    assert (covered == 1).all()
    return x, y


@pytest.mark.parametrize("side", SIDES)
def test_a_model_that_returns_its_input_reconstructs_exactly(side: tuple[int, int]) -> None:
    (image,) = random_images(1, 3, *side)
    x, y = whole(Stub(np.copy), image)
    np.testing.assert_array_equal(x, to_floats(image, (0, 1)))
    np.testing.assert_array_equal(y, x)
    result = reconstruct_image(Stub(np.copy), image, tile=True)
    np.testing.assert_array_equal(result.output, image)
    assert result.figures.mse == 0 and not result.error.any()


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("value", [0, 77, 255])
def test_constant_images_stay_constant(side: tuple[int, int], value: int) -> None:
    """Also where the model gets the value wrong, by the same in every tile."""
    image = np.full((3, *side), value, np.uint8)
    made = 0.7 * value / 255 + 0.21
    _, y = whole(Stub(lambda x: np.float32(0.7) * x + np.float32(0.21)), image)
    np.testing.assert_allclose(y, made, rtol=0, atol=5e-7)
    assert len(np.unique(to_bytes(y, (0, 1)))) == 1


@pytest.mark.parametrize("side", SIDES)
def test_a_pointwise_model_shows_no_seams(side: tuple[int, int]) -> None:
    (image,) = random_images(1, 3, *side)
    x, y = whole(Stub(lambda x: x * x), image)
    np.testing.assert_allclose(y, x * x, rtol=0, atol=5e-7)


def test_what_is_wrong_at_the_border_of_tiles_hardly_counts() -> None:
    """A model that fails in the outermost pixels, as padding with zeros makes it do."""

    def framed(x: np.ndarray) -> np.ndarray:
        y = x.copy()
        y[:, :, [0, -1]] = 0
        y[:, :, :, [0, -1]] = 0
        return y

    image = np.full((1, 160, 160), 255, np.uint8)
    _, y = whole(Stub(framed, (32, 32), 1), image)
    assert 1 - y[0, 1:-1, 1:-1].min() < 0.01, "no seam inside"
    assert y[0, 0].max() == 0, "the image's own border is nobody else's"


def test_neighbouring_pixels_do_not_jump_where_tiles_disagree() -> None:
    """Tiles with values of their own: the blend moves from one to the next in small steps."""
    values = np.random.default_rng(0)

    def own(x: np.ndarray) -> np.ndarray:
        level = values.random((len(x), 1, 1, 1), dtype=np.float32)
        return np.broadcast_to(level, x.shape).astype(np.float32)

    _, y = whole(Stub(own, (32, 32), 1), np.zeros((1, 150, 170), np.uint8))
    steps = [np.abs(np.diff(y[0], axis=axis)).max() for axis in (0, 1)]
    assert max(steps) < 2 * np.pi / 32
    assert y.min() >= 0 and y.max() <= 1


@pytest.mark.parametrize("tile", [1, 2, 5, 14, 64])
@pytest.mark.parametrize("extra", [0, 1, 2, 7, 31, 32, 33, 100])
def test_weights_sum_to_one(tile: int, extra: int) -> None:
    size = tile + extra
    starts = _starts(size, tile)
    assert starts[0] == 0 and starts[-1] == size - tile
    assert all(0 < b - a <= max(1, tile // 2) for a, b in pairwise(starts))
    total = np.zeros(size)
    for start, weights in zip(starts, _weights(starts, tile, size), strict=True):
        assert (weights > 0).all()
        total[start : start + tile] += weights
    np.testing.assert_allclose(total, 1, rtol=0, atol=3e-7)


@pytest.mark.parametrize("name", ["deep", "deep-same"])
def test_a_deep_model(name: str) -> None:
    model = small_deep(name)
    (image,) = random_images(1, 3, *SIZE)
    one = reconstruct_image(model, image)
    tiled = reconstruct_image(model, image, tile=True)
    np.testing.assert_allclose(tiled.figures.mse, one.figures.mse, rtol=1e-5)
    assert np.abs(tiled.output.astype(int) - one.output).max() <= 1
    (large,) = random_images(1, 3, 40, 33)
    first, again = (reconstruct_image(model, large, tile=True) for _ in range(2))
    np.testing.assert_array_equal(first.output, again.output)
    assert first.output.shape == large.shape


def test_small_images_are_continued_by_their_mirror_image() -> None:
    seen = []
    (image,) = random_images(1, 1, 3, 5)
    model = Stub(lambda x: (seen.append(x.copy()), x)[1], (8, 6), 1)
    whole(model, image)
    (tile,) = seen[0][:, 0]
    levels = np.rint(tile * 255)
    np.testing.assert_array_equal(levels[:3, :5], image[0])
    np.testing.assert_array_equal(levels[3:6, :5], image[0, ::-1])
    np.testing.assert_array_equal(levels[:3, 5], image[0, :, 4])


def test_memory_is_that_of_a_strip(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "BATCH_BYTES", 0)
    (image,) = random_images(1, 3, 4000, 120)
    model = Stub(lambda x: x * x)
    tracemalloc.start()
    try:
        result = reconstruct_image(model, image, tile=True)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < result.output.nbytes + result.error.nbytes + 1_000_000
    assert set(model.batches) == {1}


def test_a_diverged_model_is_counted() -> None:
    (image,) = random_images(1, 3, 30, 30)
    result = reconstruct_image(Stub(lambda x: x / 0 - x), image, tile=True)
    assert result.not_finite == image.size


def test_what_cannot_be_tiled() -> None:
    (image,) = random_images(1, 3, 30, 30)
    with pytest.raises(InputError, match="nothing to tile for"):
        list(tiled_blocks(single_layer(3, 2), image))
    with pytest.raises(InputError, match="3 channels, the image has 1"):
        list(tiled_blocks(small_deep(), image[:1]))
