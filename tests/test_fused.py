"""Runs of layers in one pass give what the layers give one by one, on every backend."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from deep_cases import random_images, small_deep

from cae_raw.backends import NUMPY, Backend
from cae_raw.layers import Conv2d, Layer, MaxPool2d, MaxUnpool2d, ReLU, Sequential, Tanh
from cae_raw.layers.fused import ConvBlock, Fused
from cae_raw.models import DEEP_MODELS, single_layer
from cae_raw.training.engine import Engine
from cae_raw.training.optimizers import Adam

RNG = np.random.default_rng


def describe(fused: Fused) -> list[str]:
    """The layers of each part, a * where it takes the derivative of the ReLU before it."""
    return [
        " ".join(type(layer).__name__ for layer in part.layers)
        + ("*" if isinstance(part, ConvBlock) and part.takes_derivative else "")
        for part in fused.parts
    ]


def stack(kind: str) -> Sequential:
    """Stacks of all sorts for images of 2x9x10."""

    def conv(c: int, o: int, padding: int = 1) -> Conv2d:
        return Conv2d(c, o, 3, padding=padding, rng=RNG([c, o]))

    pool, wide, other = MaxPool2d(2), MaxPool2d(3), MaxPool2d(2, padding=1)
    layers: dict[str, list[Layer]] = {
        "without ReLU": [conv(2, 4), pool, MaxUnpool2d(pool), conv(4, 2)],
        "ReLU last": [conv(2, 4), ReLU(), pool, conv(4, 2), ReLU()],
        "Tanh": [
            *(conv(2, 4), Tanh(), pool, MaxUnpool2d(pool), conv(4, 2), Tanh()),
            *(conv(2, 3), Tanh(), conv(3, 2), ReLU(), conv(2, 2)),
        ],
        "other poolings": [conv(2, 4), ReLU(), other, conv(4, 3), wide, MaxUnpool2d(wide)],
        "pooling first": [pool, ReLU(), conv(2, 3), ReLU(), conv(3, 2, 0)],
        "unpooled twice": [pool, MaxUnpool2d(pool), conv(2, 2), ReLU(), MaxPool2d(2)],
        "nothing to fuse": [ReLU(), MaxPool2d(2), Tanh()],
    }
    return Sequential(*layers[kind])


PARTS = {
    "without ReLU": ["Conv2d MaxPool2d", "MaxUnpool2d Conv2d"],
    "ReLU last": ["Conv2d ReLU MaxPool2d", "Conv2d ReLU*"],
    "Tanh": [
        *("Conv2d Tanh MaxPool2d", "MaxUnpool2d Conv2d Tanh"),
        *("Conv2d Tanh", "Conv2d ReLU", "Conv2d*"),
    ],
    "other poolings": ["Conv2d ReLU", "MaxPool2d", "Conv2d", "MaxPool2d MaxUnpool2d"],
    "pooling first": ["MaxPool2d ReLU", "Conv2d ReLU", "Conv2d*"],
    "unpooled twice": ["MaxPool2d", "MaxUnpool2d Conv2d ReLU", "MaxPool2d"],
    "nothing to fuse": ["ReLU MaxPool2d Tanh"],
}


@pytest.mark.parametrize("kind", PARTS)
def test_parts(kind: str) -> None:
    fused = Fused(stack(kind))
    assert describe(fused) == PARTS[kind]
    assert fused.fuses == (kind not in ("nothing to fuse", "other poolings"))


def test_parts_of_the_deep_model() -> None:
    model = small_deep()
    assert describe(Fused(model)) == [
        "Conv2d ReLU",
        "Conv2d ReLU MaxPool2d*",
        "Conv2d ReLU MaxPool2d*",
        "Flatten Linear Linear Unflatten",
        "MaxUnpool2d Conv2d ReLU",
        "MaxUnpool2d Conv2d ReLU*",
        "Conv2d*",
    ]
    # A range begins and ends where it is told to.
    assert describe(Fused(model, 2, 6)) == ["Conv2d ReLU MaxPool2d", "Conv2d*"]
    assert describe(Fused(model, 6, 8)) == ["ReLU MaxPool2d"]


def both_ways(
    model: Sequential, layers: Sequential | Fused, x: np.ndarray, backend: Backend, need_dx: bool
) -> dict[str, np.ndarray]:
    trace: dict[Layer, object] = {}
    y = layers.forward(backend.asarray(x), trace)
    dy = RNG(8).standard_normal(y.shape).astype(x.dtype)
    grads = model.split(backend.asarray(np.full(model.parameters.shape, np.nan, x.dtype)))
    dx = layers.backward(backend.asarray(dy), trace, grads, need_dx=need_dx)
    assert (dx is not None) == need_dx
    return {
        "y": backend.to_numpy(y),
        **({"dx": backend.to_numpy(dx)} if need_dx else {}),
        **{name: backend.to_numpy(g) for name, g in grads.items()},
    }


def check(
    make: Callable[[], Sequential],
    x: np.ndarray,
    backend: Backend = NUMPY,
    tolerance: float = 1e-12,
) -> None:
    for need_dx in (True, False):
        model = make() if backend is NUMPY else make().to(backend)
        if x.dtype == np.float64:
            model.astype(np.float64)
        expected = both_ways(model, model, x, backend, need_dx)
        found = both_ways(model, Fused(model), x, backend, need_dx)
        assert found.keys() == expected.keys()
        for name, array in expected.items():
            bound = tolerance * max(1.0, np.abs(array).max(initial=0))
            np.testing.assert_allclose(found[name], array, rtol=0, atol=bound, err_msg=name)


@pytest.mark.parametrize("kind", PARTS)
def test_stacks_in_numpy(kind: str) -> None:
    check(lambda: stack(kind), RNG(3).standard_normal((3, 2, 9, 10)))


@pytest.mark.parametrize("size", [(12, 12), (14, 13), (15, 18), (17, 21)])
@pytest.mark.parametrize("name", DEEP_MODELS)
def test_deep_models_in_numpy(name: str, size: tuple[int, int]) -> None:
    check(lambda: small_deep(name, size=size), RNG(3).standard_normal((2, 3, *size)))


@pytest.mark.parametrize("kind", ["without ReLU", "ReLU last", "Tanh", "pooling first"])
def test_stacks_on_a_device(backend: Backend, kind: str) -> None:
    x = RNG(3).standard_normal((2, 2, 9, 10), dtype=np.float32)
    check(lambda: stack(kind), x, backend, 1e-5)


@pytest.mark.parametrize("name", DEEP_MODELS)
def test_deep_models_on_a_device(backend: Backend, name: str) -> None:
    """Output and all gradients; the engine takes the fused layers on a device by itself."""
    images = random_images(3, 3, 14, 13)
    x = images.astype(np.float32) / 255
    check(lambda: small_deep(name, size=(14, 13)), x, backend, 1e-5)
    with Engine(small_deep(name, size=(14, 13)).to(backend), images.shape[1:]) as engine:
        assert engine._whole is not None and isinstance(engine._whole.layers, Fused)


def losses(backend: Backend, fused: bool, images: np.ndarray) -> tuple[list[float], np.ndarray]:
    """Ten losses of a training, and the reconstruction behind them."""
    model = small_deep(size=(12, 13)).to(backend)
    optimizer = Adam(model, lr=1e-3)
    found = []
    with Engine(model, images.shape[1:], fused=fused) as engine:
        placed = backend.asarray(images)
        for step in range(10):
            total = engine.step(placed, (np.arange(3) + step) % len(images))
            optimizer.step(engine.gradients)
            found.append(float(backend.to_numpy(total)[0]))
        found.append(engine.squared_error(placed))
        return found, engine.reconstruct(images[:2])


def test_ten_losses_agree_and_repeat(backend: Backend) -> None:
    images = random_images(4, 3, 12, 13)
    fused, layered = losses(backend, True, images), losses(backend, False, images)
    reference = losses(NUMPY, True, images)
    for one in (fused, layered):
        np.testing.assert_allclose(one[0], reference[0], rtol=1e-5)
        np.testing.assert_allclose(one[1], reference[1], rtol=0, atol=1e-4)
    again = losses(backend, True, images)
    assert again[0] == fused[0]
    np.testing.assert_array_equal(again[1], fused[1])


def test_the_layers_stay_as_they_are_on_the_cpu() -> None:
    for model in (small_deep(), single_layer(1, 2)):
        with Engine(model, (model.channels, 14, 12)) as engine:
            assert engine._whole is None
