"""The staged step: what the layers compute, with the same bits for any number of threads."""

from __future__ import annotations

import threading
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from training_cases import make_images, pooling_model

from cae_raw.data.scaling import to_floats
from cae_raw.layers import (
    Conv2d,
    Flatten,
    Layer,
    Linear,
    MaxPool2d,
    MaxUnpool2d,
    MSELoss,
    ReLU,
    Tanh,
    Unflatten,
)
from cae_raw.models import Autoencoder, build
from cae_raw.training import optimizers, staged
from cae_raw.training.engine import Engine
from cae_raw.training.optimizers import SGD, Adam

CHUNK, GROUP = 4, 12
BATCHES = [0, 1, 2, CHUNK + 1, GROUP - 1, GROUP, GROUP + 1, 3 * GROUP + 5]
THREADS = [1, 2, 3, 5]


def deep(rng: np.random.Generator) -> Autoencoder:
    return build("deep", rng, channels=3, size=(12, 13), code_size=7)


def linear_layers_only(rng: np.random.Generator) -> Autoencoder:
    """Nothing to learn before or behind them, and an activation right behind the last."""
    return Autoencoder(
        Flatten(),
        Linear(24, 5, rng=rng),
        ReLU(),
        Linear(5, 24, rng=rng),
        Tanh(),
        Unflatten((1, 6, 4)),
        encoder_length=2,
        channels=1,
    )


def convolution_between(rng: np.random.Generator) -> Autoencoder:
    """A layer with parameters of another kind stands between the linear ones."""
    pool = MaxPool2d((3, 2))
    return Autoencoder(
        pool,
        Flatten(),
        Linear(4, 12, rng=rng),
        Unflatten((1, 3, 4)),
        Conv2d(1, 2, 3, padding=1, rng=rng),
        Tanh(),
        Flatten(),
        Linear(24, 4, rng=rng),
        Unflatten((1, 2, 2)),
        MaxUnpool2d(pool),
        encoder_length=2,
        channels=1,
    )


MODELS: dict[str, tuple[Callable[[np.random.Generator], Autoencoder], tuple[int, int, int]]] = {
    "deep": (deep, (3, 12, 13)),
    "pooling": (pooling_model, (1, 6, 4)),
    "linear layers only": (linear_layers_only, (1, 6, 4)),
    "a convolution between": (convolution_between, (1, 6, 4)),
}
models = pytest.mark.parametrize("name", MODELS)


@pytest.fixture(autouse=True)
def small_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(staged, "WAVE", GROUP)


def make_engine(name: str, dtype: type, threads: int = 2) -> Engine:
    make, shape = MODELS[name]
    engine = Engine(make(np.random.default_rng(5)).astype(dtype), shape, threads=threads)
    engine.chunk = CHUNK
    return engine


def layer_by_layer(model: Autoencoder, images: np.ndarray) -> tuple[float, np.ndarray]:
    """Squared error and gradients of a batch in one piece, every layer called by hand."""
    x = to_floats(images, model.value_range).astype(model.parameters.dtype)
    trace: dict[Any, Any] = {}
    y = x
    for layer in model.stack:
        y = layer.forward(y, trace)
    _, dy = MSELoss(model.loss)(y, x)
    flat = np.full_like(model.parameters, np.nan)
    views = model.split(flat)
    for i in reversed(range(len(model.stack))):
        grads: dict[str, np.ndarray] = {}
        dy = model.stack[i].backward(dy, trace, grads)
        for key, value in grads.items():
            views[f"{i}.{key}"][...] = value
    return float(((y - x).astype(np.float64) ** 2).sum()), flat


# --- values -----------------------------------------------------------------------------------


@models
@pytest.mark.parametrize("batch", BATCHES)
def test_a_batch_of_any_size(name: str, batch: int, rng: np.random.Generator) -> None:
    engine = make_engine(name, np.float64)
    images = make_images(60, MODELS[name][1])
    indices = rng.permutation(60)[:batch]
    total, expected = layer_by_layer(engine.model, images[indices])
    with engine:
        engine.step(images, np.arange(50))  # what a step leaves behind must not matter
        found = engine.step(images, indices)
        error = engine.squared_error(images[indices])
    assert found.shape == (1,)
    assert found[0] == pytest.approx(total, rel=1e-12)
    assert error == pytest.approx(total, rel=1e-12)
    np.testing.assert_allclose(engine.gradients, expected, rtol=1e-9, atol=1e-14)
    for name, view in engine.model.split(expected).items():
        assert batch == 0 or np.abs(view).max() > 1e-6, name


@models
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-12), (np.float32, 1e-5)])
def test_ten_losses_in_a_row(name: str, dtype: type, tolerance: float) -> None:
    engine = make_engine(name, dtype)
    plain = MODELS[name][0](np.random.default_rng(5)).astype(dtype)
    images = make_images(30, MODELS[name][1])
    optimizer, by_hand = SGD(engine.model, lr=0.5), SGD(plain, lr=0.5)
    losses, expected = [], []
    with engine:
        for _ in range(10):
            losses.append(float(engine.step(images, np.arange(30))[0]))
            optimizer.step(engine.gradients, engine.in_order)
            total, gradients = layer_by_layer(plain, images)
            by_hand.step(gradients)
            expected.append(total)
    np.testing.assert_allclose(losses, expected, rtol=tolerance)
    assert losses[-1] < 0.99 * losses[0]


@models
def test_same_bits_for_any_number_of_threads(name: str) -> None:
    images = make_images(60, MODELS[name][1])
    results = set()
    for threads in (*THREADS, *THREADS):
        rng = np.random.default_rng(2)
        engine = make_engine(name, np.float32, threads)
        optimizer = Adam(engine.model)
        bits = b""
        with engine:
            for batch in BATCHES[1:]:
                total = engine.step(images, rng.permutation(60)[:batch])
                optimizer.step(engine.gradients, engine.in_order)
                bits += engine.gradients.tobytes() + total.tobytes()
            results.add((bits, engine.model.parameters.tobytes(), engine.squared_error(images)))
    assert len(results) == 1


# --- threads ----------------------------------------------------------------------------------


class Probe(Layer):
    """Passes values on; dawdles over dark images, notes their order, may fail, counts who is in."""

    def __init__(self, fails_in: str = "") -> None:
        super().__init__()
        self.fails_in, self.dawdles = fails_in, False
        self.order: list[tuple[str, float]] = []
        self.inside, self.lock = 0, threading.Lock()

    def _visit(self, what: str, x: Any, darkness: float) -> Any:
        with self.lock:
            self.inside += 1
        try:
            if self.fails_in == what and darkness == 1:
                raise ZeroDivisionError("a black pixel")
            time.sleep(0.004 * darkness if self.dawdles else 0.002)
            self.order.append((what, darkness))
            return x
        finally:
            with self.lock:
                self.inside -= 1

    def forward(self, x: Any, trace: Any = None) -> Any:
        darkness = float(1 - x.reshape(len(x), -1)[0, 0])
        if trace is not None:
            trace[self] = darkness
        return self._visit("forward", x, darkness)

    def backward(self, dy: Any, trace: Any, grads: Any = None, *, need_dx: bool = True) -> Any:
        return self._visit("backward", dy, trace[self])


def probed(encoder: Layer | None = None, decoder: Layer | None = None) -> Autoencoder:
    rng = np.random.default_rng(3)
    linear = Linear(24, 24, rng=rng)
    linear.params["weight"][...] = np.eye(24)  # so that the decoder, too, can tell dark images
    linear.params["bias"][...] = 0
    return Autoencoder(
        Conv2d(1, 1, 1, rng=rng),
        *([encoder] if encoder else []),
        Flatten(),
        linear,
        Unflatten((1, 6, 4)),
        *([decoder] if decoder else []),
        Conv2d(1, 1, 3, padding=1, rng=rng),
        encoder_length=2,
        channels=1,
    )


def with_identity(model: Autoencoder) -> Autoencoder:
    """The first layer passes images on."""
    model.params["0.weight"][...] = 1
    model.params["0.bias"][...] = 0
    return model


@pytest.mark.parametrize("where", ["encoder", "decoder"])
def test_parts_are_added_in_order_whichever_is_done_first(where: str) -> None:
    results, orders = set(), set()
    for threads in (1, 4):
        probe = Probe()
        probe.dawdles = True
        model = with_identity(probed(**{where: probe}))
        engine = Engine(model, (1, 6, 4), threads=threads)
        engine.chunk = 1
        with engine:
            total = engine.step(make_images(24, (1, 6, 4)), np.arange(24))
            results.add((engine.gradients.tobytes(), total.tobytes()))
        orders.add(tuple(probe.order))
    assert len(orders) == 2
    assert len(results) == 1


@pytest.mark.parametrize("where", ["encoder", "decoder"])
@pytest.mark.parametrize("what", ["forward", "backward"])
def test_an_exception_in_any_stage_leaves_the_engine_usable(where: str, what: str) -> None:
    probe = Probe(what)
    model = with_identity(probed(**{where: probe}))
    images = np.maximum(make_images(16, (1, 6, 4)), 1)
    images[0] = 0
    model.value_range = (0.0, 1.0)
    engine = Engine(model, (1, 6, 4), threads=3)
    engine.chunk = 1
    good = np.arange(1, 16)
    with engine:
        for position in (0, 2, 15):
            with pytest.raises(ZeroDivisionError, match="a black pixel"):
                engine.step(images, np.insert(good, position, 0))
            assert probe.inside == 0  # nobody still writes into the buffers
        if what == "forward":
            with pytest.raises(ZeroDivisionError, match="a black pixel"):
                engine.squared_error(images)
            assert probe.inside == 0
        total = engine.step(images, good)
    expected, gradients = layer_by_layer(model, images[good])
    assert total[0] == pytest.approx(expected, rel=1e-5)
    np.testing.assert_allclose(engine.gradients, gradients, rtol=1e-3, atol=1e-6)


def test_overflow_is_no_warning() -> None:
    """Warnings are errors here; the trainer looks at the number itself."""
    engine = make_engine("deep", np.float32)
    engine.model.parameters[:] = np.float32(1e30)
    engine.model.parameters[::2] *= -1
    with engine, np.errstate(over="ignore", invalid="ignore"):
        total = engine.step(make_images(9, (3, 12, 13)), np.arange(9))
    assert not np.isfinite(total[0])


@pytest.mark.parametrize("make", [SGD, Adam])
@pytest.mark.parametrize("l2", [None, {"4.weight": 0.25}], ids=["no penalty", "penalty"])
def test_an_optimizer_in_blocks_is_one_in_one_piece(
    make: Any, l2: Any, monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator
) -> None:
    engine = make_engine("pooling", np.float32, 3)
    plain = make_engine("pooling", np.float32).model
    first, second = make(engine.model, l2=l2), make(plain, l2=l2)
    for _ in range(3):
        gradients = rng.standard_normal(plain.parameters.shape).astype(np.float32)
        second.step(gradients)
        with engine, monkeypatch.context() as patch:
            patch.setattr(optimizers, "BLOCK", 7)
            patch.setattr(optimizers, "TASK", 31)
            first.step(gradients, engine.in_order)
    np.testing.assert_array_equal(engine.model.parameters, plain.parameters)
    for name, value in second.state.items():
        np.testing.assert_array_equal(first.state[name], value)


# --- memory -----------------------------------------------------------------------------------


def wide(code_size: int) -> Autoencoder:
    return build("deep", np.random.default_rng(0), channels=1, size=24, code_size=code_size)


def peak(batch: int, code_size: int = 3200) -> int:
    """Of two steps: bytes allocated after the model and the engine were made."""
    images = make_images(batch, (1, 24, 24))
    engine = Engine(wide(code_size), (1, 24, 24), threads=1)
    engine.chunk = CHUNK
    tracemalloc.start()
    try:
        with engine:
            engine.step(images, np.arange(batch))
            engine.step(images, np.arange(batch))
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_peak_memory_does_not_depend_on_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """With one thread, because which of several gets how many parts is chance."""
    monkeypatch.setattr(staged, "WAVE", 32)
    peaks = [peak(batch) for batch in (64, 512)]
    assert peaks[1] < 1.05 * peaks[0]


def test_only_the_maps_of_the_encoder_wait_for_the_backward_pass(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(staged, "WAVE", 128)
    model = wide(code_size=8)
    maps = [4 * int(np.prod(s)) for s in model.layer_shapes((1, 24, 24))]
    fused = {i for i, layer in enumerate(model.stack) if isinstance(layer, ReLU)}
    encoder = sum(size for i, size in enumerate(maps[:8]) if i not in fused)
    grown = (peak(128, 8) - peak(64, 8)) / 64
    # Maps with zeros around them, and masks of eight bytes; the decoder's would be as much again.
    assert 0.9 * encoder < grown < 1.6 * encoder


def test_no_part_has_gradients_of_the_linear_layers_of_its_own() -> None:
    """Everything that a step of three chunks allocates is less than the gradients twice."""
    assert peak(3 * CHUNK) < 2 * wide(code_size=3200).parameters.nbytes
