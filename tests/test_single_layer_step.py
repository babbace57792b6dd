"""The fused step computes what the layers compute, for every shape and split of a batch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from cae_raw.layers import MSELoss, Trace
from cae_raw.models import Autoencoder, single_layer
from cae_raw.ops import single_layer_step
from cae_raw.training.engine import Engine

# channels, filters, (height, width), images
CASES = [
    (3, 32, (32, 32), 5),
    (1, 32, (28, 28), 3),
    (3, 4, (5, 7), 6),
    (1, 1, (1, 1), 1),
    (2, 3, (1, 9), 2),
    (3, 40, (37, 31), 2),  # products that have to be cut
    (3, 32, (32, 32), 0),
]
TOLERANCE = {np.float64: 1e-13, np.float32: 2e-6}


def prepared(case: Any, dtype: Any) -> tuple[Autoencoder, np.ndarray]:
    channels, filters, size, n = case
    rng = np.random.default_rng(1)
    model = single_layer(channels, filters, rng).astype(dtype)
    model.parameters += rng.normal(0, 0.05, model.parameters.shape).astype(dtype)
    return model, rng.uniform(-1, 1, (n, channels, *size)).astype(dtype)


def layered(model: Autoencoder, x: np.ndarray, elements: int) -> tuple[np.ndarray, np.ndarray]:
    trace: Trace = {}
    total, dy = MSELoss("half_mse").partial(model.forward(x, trace), x, elements)
    flat = np.empty_like(model.parameters)
    model.backward(dy, trace, model.split(flat), need_dx=False)
    return total, flat


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("images_per_pass", [1, 2, 100])
def test_it_equals_the_layers(case: Any, dtype: Any, images_per_pass: int) -> None:
    model, x = prepared(case, dtype)
    assert model.fused is not None
    fused = model.fused(x.shape[2:], dtype)
    fused.images_per_pass = images_per_pass
    elements = max(1, x.size)
    total, expected = layered(model, x, elements)
    before = x.copy(), model.parameters.copy()
    for _ in range(2):  # the buffers of the first time serve the second
        found = np.full_like(expected, np.nan)
        error = fused.gradients(x, model.params, model.split(found), 1 / elements)
        np.testing.assert_allclose(error, total, rtol=TOLERANCE[dtype])
        scale = max(float(np.abs(expected).max()), 1e-30)
        np.testing.assert_allclose(found, expected, atol=TOLERANCE[dtype] * scale, rtol=0)
        np.testing.assert_allclose(fused.squared_error(x, model.params), total, rtol=1e-5)
    np.testing.assert_array_equal(before[0], x)
    np.testing.assert_array_equal(before[1], model.parameters)


def test_a_wrong_gradient_would_show() -> None:
    model, x = prepared(CASES[0], np.float64)
    _, expected = layered(model, x, x.size)
    assert model.fused is not None
    fused = model.fused(x.shape[2:], np.float64)
    model.params["2.weight"][0, 0, 0, 1] += 1e-6  # two taps of one filter are not one tap
    found = np.empty_like(expected)
    fused.gradients(x, model.params, model.split(found), 1 / x.size)
    assert np.abs(found - expected).max() > 1e-10 * np.abs(expected).max()


def test_products_are_cut_into_small_ones() -> None:
    blocks = single_layer_step._column_blocks(32 * 28, 34 * 34)
    assert [b.stop - b.start for b in blocks] == [578, 578]
    for size, length in ((864, 1156), (40 * 28, 39 * 33), (1, 1), (5_000_000, 7)):
        blocks = single_layer_step._column_blocks(size, length)
        assert [b.start for b in blocks] == [0, *(b.stop for b in blocks[:-1])]
        assert blocks[-1].stop == length
        widest = max(b.stop - b.start for b in blocks)
        assert size * widest <= single_layer_step.SMALL_PRODUCT * 1.5 or widest == 1


def test_the_engine_uses_it_and_agrees_with_the_layers() -> None:
    model = single_layer(3, 8, np.random.default_rng(0))
    images = np.random.default_rng(1).integers(0, 256, (70, 3, 9, 11), dtype=np.uint8)
    found = {}
    for fused in (True, False):
        with Engine(model, (3, 9, 11), threads=2, fused=fused) as engine:
            total = engine.step(images, np.arange(70))
            figures = engine.squared_error(images)
            found[fused] = total[0], engine.gradients.copy(), figures
    np.testing.assert_allclose(found[True][0], found[False][0], rtol=1e-6)
    np.testing.assert_allclose(found[True][2], found[False][2], rtol=1e-6)
    assert not np.array_equal(found[True][1], found[False][1]), "the same code ran twice"
    scale = np.abs(found[False][1]).max()
    np.testing.assert_allclose(found[True][1], found[False][1], atol=1e-5 * scale)
