"""Convolutions and pooling of planes, and the stages made of them, against the layers."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from training_cases import make_images

from cae_raw.layers import (
    Conv2d,
    Flatten,
    Layer,
    Linear,
    MaxPool2d,
    MaxUnpool2d,
    ReLU,
    Tanh,
    Unflatten,
)
from cae_raw.models import Autoencoder, build
from cae_raw.ops import conv2d_reference as reference
from cae_raw.ops import planes as planes_module
from cae_raw.ops import pool2d
from cae_raw.ops.planes import Convolver, Level, Planes
from cae_raw.ops.planes_pool import PlanesPool, put, take
from cae_raw.training import fused_stages
from cae_raw.training.engine import Engine
from cae_raw.training.staged import StagedStep

SIZES = [(3, 4), (9, 16), (20, 17), (64, 5)]
SIZED = [*((size, padding) for size in SIZES for padding in (0, 1, 2)), ((1, 1), 1), ((1, 1), 2)]


def filled(level: Level, maps: np.ndarray) -> Planes:
    planes = Planes(level, *maps.shape[1:])
    planes.content[...] = maps
    return planes


def around_is_zero(planes: Planes) -> bool:
    return np.count_nonzero(planes.memory) == np.count_nonzero(planes.content)


@pytest.mark.parametrize(("size", "padding"), SIZED, ids=str)
@pytest.mark.parametrize(("c", "o"), [(1, 3), (3, 1), (2, 2)])
def test_convolutions(
    c: int,
    o: int,
    size: tuple[int, int],
    padding: int,
    rng: np.random.Generator,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The output and both gradients, in several bands and blocks where the map is large enough."""
    h, w = size
    oh, ow = h + 2 * padding - 2, w + 2 * padding - 2
    monkeypatch.setattr(planes_module, "COPIES_BYTES", 20_000)
    monkeypatch.setattr(planes_module, "SUMMED", 100)
    level = Level(2, max(h, oh), max(w + padding, -(-max(w, ow) // 8) * 8), np.float64)
    by = Convolver(level)
    x, dy = rng.standard_normal((2, c, h, w)), rng.standard_normal((2, o, oh, ow))
    weight, bias = rng.standard_normal((o, c, 3, 3)), rng.standard_normal(o)

    matrix = np.zeros((3, 3 * c + 1, o))
    matrix[:, :-1] = weight.transpose(2, 3, 1, 0).reshape(3, 3 * c, o)
    matrix[0, -1] = bias
    x_planes, y = filled(level, x), Planes(level, o, oh, ow)
    by.correlate(x_planes, matrix.reshape(-1, o), padding, y)
    expected = reference.forward(x, weight, bias, padding=(padding, padding))
    np.testing.assert_allclose(y.content, expected, rtol=1e-12, atol=1e-12)
    assert around_is_zero(y)

    dy_planes = filled(level, dy)
    dw = reference.backward_weight(dy, x, kernel_size=(3, 3), padding=(padding, padding))
    sums = by.outer(x_planes, padding, dy_planes).reshape(3, c, 3, o).transpose(3, 1, 0, 2)
    np.testing.assert_allclose(sums, dw, rtol=1e-11, atol=1e-11)
    turned = by.outer(dy_planes, 2 - padding, x_planes).reshape(3, o, 3, c)[::-1, :, ::-1]
    np.testing.assert_allclose(turned.transpose(1, 3, 0, 2), dw, rtol=1e-11, atol=1e-11)
    np.testing.assert_allclose(dy_planes.sums(), dy.sum(axis=(0, 2, 3)), rtol=1e-12, atol=1e-12)


def test_relu_and_its_gradient(rng: np.random.Generator) -> None:
    level = Level(2, 5, 16, np.float32)
    x = rng.integers(-2, 3, (2, 3, 5, 7)).astype(np.float32)
    dy = rng.standard_normal(x.shape).astype(np.float32)
    y, dx = filled(level, x), filled(level, dy)
    y.relu()
    dx.keep_where_positive(y)
    np.testing.assert_array_equal(y.content, np.maximum(x, 0))
    np.testing.assert_array_equal(dx.content, dy * (x > 0))


@pytest.mark.parametrize("size", [(2, 2), (5, 4), (6, 7), (13, 13)], ids=str)
def test_pooling(size: tuple[int, int], rng: np.random.Generator) -> None:
    """Ties included: the first maximum of a window wins."""
    level = Level(2, size[0] + 1, 16, np.float32)
    x = rng.integers(0, 3, (2, 3, *size)).astype(np.float32)
    expected, mask = pool2d.maxpool_forward(x, kernel_size=(2, 2), stride=(2, 2))
    planes = filled(level, x)
    y, where = np.empty_like(expected), np.empty(expected.shape, np.intp)
    PlanesPool(planes).forward(planes, y, where)
    np.testing.assert_array_equal(y, expected)
    values = rng.standard_normal(y.shape).astype(np.float32)
    window = {"kernel_size": (2, 2), "stride": (2, 2)}
    put(values, where, planes)
    large = pool2d.mask_scatter(values, mask, size=size, **window)
    np.testing.assert_array_equal(planes.content, large)
    assert around_is_zero(planes)
    back = np.empty_like(values)
    take(planes, where, back)
    np.testing.assert_array_equal(back, values)


# --- stages -----------------------------------------------------------------------------------


def custom(
    encoder: list[Layer], decoder: list[Layer], features: tuple[int, ...], channels: int
) -> Autoencoder:
    size = int(np.prod(features))
    layers = [*encoder, Flatten(), Linear(size, 5), Linear(5, size), Unflatten(features), *decoder]
    return Autoencoder(*layers, encoder_length=len(encoder) + 2, channels=channels)


def one_level(rng: np.random.Generator) -> Autoencoder:
    """Three convolutions in a row, with and without ReLU, of every padding."""
    pool = MaxPool2d(2)
    encoder = [Conv2d(2, 4, 3, padding=2, rng=rng), Conv2d(4, 3, 3, rng=rng), ReLU()]
    decoder = [Conv2d(3, 3, 3, padding=1, rng=rng), ReLU(), Conv2d(3, 2, 3, padding=1, rng=rng)]
    return custom([*encoder, pool], [MaxUnpool2d(pool), *decoder], (3, 3, 4), channels=2)


def sized(name: str, channels: int, size: tuple[int, int]) -> Callable[..., Autoencoder]:
    return lambda rng: build(name, rng, channels=channels, size=size, code_size=5)


SERVED = {
    "deep": (sized("deep", 3, (33, 20)), (3, 33, 20)),
    "deep, small": (sized("deep", 1, (12, 13)), (1, 12, 13)),
    "deep-same": (sized("deep-same", 3, (21, 32)), (3, 21, 32)),
    "deep-same, small": (sized("deep-same", 1, (4, 5)), (1, 4, 5)),
    "one level": (one_level, (2, 6, 8)),
}


@pytest.mark.parametrize("name", SERVED)
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-12), (np.float32, 2e-5)])
def test_stages_against_layers(name: str, dtype: type, tolerance: float) -> None:
    make, shape = SERVED[name]
    model = make(np.random.default_rng(5)).astype(dtype)
    images = make_images(11, shape)
    found = []
    for fused in (False, True):
        with Engine(model, shape, threads=1, fused=fused) as engine:
            step = engine._begin()[0]
            assert isinstance(step, StagedStep)
            assert (step.fused is not None) == fused
            engine.step(images, np.arange(6))  # what it leaves behind must not matter
            total = float(engine.step(images, np.arange(11))[0])
            found.append((total, engine.squared_error(images), engine.gradients.copy()))
    layers, stages = found
    assert stages[:2] == pytest.approx(layers[:2], rel=tolerance)
    views = model.split(layers[2])
    for name, view in model.split(stages[2]).items():
        largest = np.abs(views[name]).max()
        assert np.abs(view - views[name]).max() <= tolerance * largest, name


def with_layers(first: list[Layer], pool: MaxPool2d, last: list[Layer]) -> Autoencoder:
    return custom([*first, pool], [MaxUnpool2d(pool), *last], (1, 4, 4), channels=1)


def conv(kernel: int = 3, **options: int) -> Conv2d:
    return Conv2d(1, 1, kernel, padding=options.get("padding", 1), stride=options.get("stride", 1))


OTHERS: dict[str, tuple[Callable[[], Autoencoder], tuple[int, int, int]]] = {
    "another activation": (
        lambda: with_layers([conv(), Tanh()], MaxPool2d(2), [conv()]),
        (1, 8, 8),
    ),
    "another kernel": (
        lambda: with_layers([conv(5, padding=2)], MaxPool2d(2), [conv()]),
        (1, 8, 8),
    ),
    "another padding": (
        lambda: with_layers([conv(padding=3)], MaxPool2d(2), [conv(padding=0), conv(padding=0)]),
        (1, 4, 4),
    ),
    "another pooling": (lambda: with_layers([conv()], MaxPool2d(3), [conv()]), (1, 12, 12)),
    "ReLU at the end": (
        lambda: with_layers([conv()], MaxPool2d(2), [conv(), ReLU()]),
        (1, 8, 8),
    ),
    "ReLU alone": (lambda: with_layers([conv()], MaxPool2d(2), [ReLU(), conv()]), (1, 8, 8)),
    "no convolution": (lambda: with_layers([], MaxPool2d(2), []), (1, 8, 8)),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_models_go_layer_by_layer(name: str) -> None:
    make, shape = OTHERS[name]
    model = make()
    first, end = (
        next(i for i, layer in enumerate(model.stack) if isinstance(layer, Linear)),
        1 + max(i for i, layer in enumerate(model.stack) if isinstance(layer, Linear)),
    )
    assert fused_stages.plan(model, shape, first, end) is None
    with Engine(model, shape, threads=1) as engine:
        engine.step(make_images(3, shape), np.arange(3))


@pytest.mark.parametrize(("size", "images"), [(16, 4), (64, 4), (96, 1), (200, 1)])
def test_fewer_images_per_pass_where_they_are_large(size: int, images: int) -> None:
    model = build("deep", np.random.default_rng(0), channels=3, size=size, code_size=2)
    planned = fused_stages.plan(model, (3, size, size), 9, 11)
    assert planned is not None
    assert planned.images == images
