"""The fused step computes what the layers compute, for every shape and split of a batch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from cae_raw.errors import InputError
from cae_raw.layers import MSELoss, Trace
from cae_raw.models import Autoencoder, single_layer
from cae_raw.ops import single_layer_step
from cae_raw.ops.single_layer_step import SingleLayerStep
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
SMALL_PRODUCT, BAND_BYTES = single_layer_step.SMALL_PRODUCT, single_layer_step.BAND_BYTES
TOLERANCE = {np.float64: 1e-13, np.float32: 2e-6}


def prepared(case: Any, dtype: Any) -> tuple[Autoencoder, np.ndarray]:
    channels, filters, size, n = case
    rng = np.random.default_rng(1)
    model = single_layer(channels, filters, rng).astype(dtype)
    model.parameters += rng.normal(0, 0.05, model.parameters.shape).astype(dtype)
    return model, rng.uniform(-1, 1, (n, channels, *size)).astype(dtype)


def parameters(rng: np.random.Generator, shape: tuple[int, int, int, int]) -> dict[str, Any]:
    """Those of a single-layer model with encoder weights of that shape, float64."""
    f, c, k, _ = shape
    shapes = {"0.weight": shape, "0.bias": (f,), "2.weight": (c, f, k, k), "2.bias": (c,)}
    return {name: rng.normal(0, 0.3, s) for name, s in shapes.items()}


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


@pytest.mark.parametrize("height", [1, 2, 3, 10])
@pytest.mark.parametrize("images", [1, 3])
def test_bands_do_not_show(height: int, images: int) -> None:
    """Whole images and bands give the same; so do sizes of which the last band is shorter."""
    for kernel, size in ((3, (11, 9)), (5, (13, 6)), (2, (10, 3)), (1, (5, 4))):
        rng = np.random.default_rng(3)
        shape = (4, 2, kernel, kernel)
        x = rng.uniform(-1, 1, (images, 2, *size))
        params = parameters(rng, shape)
        found = []
        for band in (size[0], height):
            step = SingleLayerStep(shape, size, np.float64)
            step.band = min(band, size[0])
            for _ in range(2):
                grads = {name: np.full_like(p, np.nan) for name, p in params.items()}
                total = step.gradients(x, params, grads, 0.3, 0.01)
            np.testing.assert_allclose(step.squared_error(x, params), total, rtol=1e-13)
            found.append(np.concatenate([total, *(g.ravel() for g in grads.values())]))
        np.testing.assert_allclose(found[1], found[0], rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("decoder_activation", ["tanh", None])
@pytest.mark.parametrize("sparsity_scale", [0.0, 0.07])
@pytest.mark.parametrize("band", [2, 9])
def test_a_linear_output_and_a_sparse_code(
    decoder_activation: str | None, sparsity_scale: float, band: int
) -> None:
    """As the layers compute it, the penalty's gradient added between them."""
    rng = np.random.default_rng(4)
    x = rng.uniform(-1, 1, (3, 2, 9, 7))
    model = single_layer(2, 5, rng).astype(np.float64)
    model.params["0.weight"][1] = 0  # a code of nothing but zeros: the sign of 0 is 0
    model.params["0.bias"][0] += 0.3
    model.params["2.bias"] += 0.2
    conv1, tanh1, conv2, tanh2 = model.stack
    trace: Trace = {}
    code = tanh1.forward(conv1.forward(x, trace), trace)
    y = conv2.forward(code, trace)
    y = tanh2.forward(y, trace) if decoder_activation else y
    dy = 0.3 * (y - x)
    expected = np.empty_like(model.parameters)
    views = model.split(expected)
    first = {name: views[f"0.{name}"] for name in ("weight", "bias")}
    second = {name: views[f"2.{name}"] for name in ("weight", "bias")}
    dy = tanh2.backward(dy, trace) if decoder_activation else dy
    dcode = conv2.backward(dy, trace, second) + sparsity_scale * np.sign(code)
    conv1.backward(tanh1.backward(dcode, trace), trace, first, need_dx=False)

    step = SingleLayerStep((5, 2, 3, 3), (9, 7), np.float64, decoder_activation=decoder_activation)
    step.band = band
    found = np.full_like(expected, np.nan)
    total = step.gradients(x, model.params, model.split(found), 0.3, sparsity_scale)
    np.testing.assert_allclose(found, expected, rtol=1e-11, atol=1e-12)
    np.testing.assert_allclose(total, ((y - x) ** 2).sum(), rtol=1e-13)
    np.testing.assert_allclose(step.squared_error(x, model.params), total, rtol=1e-13)


def test_the_penalty_is_that_of_central_differences() -> None:
    rng = np.random.default_rng(5)
    shape, scale, sparsity = (3, 2, 3, 3), 0.2, 0.4
    x, params = rng.uniform(-1, 1, (2, 2, 6, 5)), parameters(rng, shape)
    step = SingleLayerStep(shape, (6, 5), np.float64, decoder_activation=None)
    grads = {name: np.empty_like(p) for name, p in params.items()}
    step.gradients(x, params, grads, scale, sparsity)

    def objective() -> float:
        model = single_layer(2, 3).astype(np.float64)
        for name, p in params.items():
            model.params[name][...] = p
        code = np.abs(model.forward(x, until=2)).sum()
        return scale / 2 * float(step.squared_error(x, params)[0]) + sparsity * float(code)

    for name, p in params.items():
        direction = rng.standard_normal(p.shape)
        values = []
        for sign in (1, -1):
            p += sign * 1e-6 * direction
            values.append(objective())
            p -= sign * 1e-6 * direction
        slope = (values[0] - values[1]) / 2e-6
        assert slope == pytest.approx(float((grads[name] * direction).sum()), rel=1e-6), name


def test_no_other_decoder_activation() -> None:
    with pytest.raises(InputError, match="'tanh' or None, not 'relu'"):
        SingleLayerStep((4, 3, 3, 3), (8, 8), np.float32, decoder_activation="relu")


@pytest.mark.parametrize("size", [(1, 1), (28, 28), (32, 32), (200, 90), (512, 512)])
@pytest.mark.parametrize("shape", [(32, 3, 3, 3), (32, 1, 3, 3), (40, 3, 5, 5)], ids=str)
def test_buffers_fit_the_cache_and_products_are_small(size: Any, shape: Any) -> None:
    step = SingleLayerStep(shape, size, np.float32)
    assert 1 <= step.band <= size[0]
    buffers = single_layer_step._Buffers(step, 1, step.band)
    assert buffers.all_copies_x.nbytes <= buffers.contributions.nbytes
    assert buffers.contributions.nbytes <= (1.1 * BAND_BYTES if step.band > 1 else 2**20)
    (_, blocks, rows, width), f = buffers.copies_x.shape, shape[0]
    assert f * rows * width <= SMALL_PRODUCT + f * rows
    positions = (step.band + shape[2] - 1) * (size[1] + shape[2] - 1)
    assert positions <= blocks * width < positions + blocks


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
