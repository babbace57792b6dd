"""Gradients and errors of a batch in parts: the same as in one piece, with the same bits always."""

from __future__ import annotations

import threading
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from threadpoolctl import threadpool_info
from training_cases import make_images, pooling_model

from cae_raw.data.scaling import to_floats
from cae_raw.errors import InputError
from cae_raw.layers import Conv2d, Layer, MaxPool2d, MaxUnpool2d, MSELoss, Tanh
from cae_raw.models import Autoencoder, build, single_layer
from cae_raw.training import cpu_step
from cae_raw.training.engine import Engine

CHUNK = 4
BATCHES = [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 3 * CHUNK + 2, 9 * CHUNK + 1]
THREADS = [1, 2, 3, 5]


def gray_model(rng: np.random.Generator) -> Autoencoder:
    return single_layer(1, 3, rng)


def pooling_without_code(rng: np.random.Generator) -> Autoencoder:
    """Nothing to fuse and no linear layer: every chunk goes through all layers on its own."""
    pool = MaxPool2d(2)
    return Autoencoder(
        Conv2d(1, 3, 3, padding=1, rng=rng),
        pool,
        Tanh(),
        MaxUnpool2d(pool),
        Conv2d(3, 1, 3, padding=1, rng=rng),
        encoder_length=3,
        channels=1,
    )


MODELS: dict[str, tuple[Callable[[np.random.Generator], Autoencoder], tuple[int, int, int]]] = {
    "single-layer": (gray_model, (1, 6, 5)),
    "pooling": (pooling_model, (1, 6, 4)),
    "pooling without code": (pooling_without_code, (1, 6, 4)),
}


def make_engine(
    name: str, rng: np.random.Generator, dtype: type, threads: int | None = 2
) -> Engine:
    build, shape = MODELS[name]
    engine = Engine(build(rng).astype(dtype), shape, threads=threads)
    engine.chunk = CHUNK
    return engine


def in_one_piece(
    model: Autoencoder, images: np.ndarray
) -> tuple[float, dict[str, np.ndarray], np.ndarray]:
    """Squared error, gradients and output of a batch, without an engine."""
    x = to_floats(images, model.value_range).astype(model.parameters.dtype)
    trace: dict[Any, Any] = {}
    y = model.forward(x, trace)
    _, dy = MSELoss(model.loss)(y, x)
    gradients: dict[str, np.ndarray] = {}
    model.backward(dy, trace, gradients, need_dx=False)
    return float(((y - x) ** 2).sum()), gradients, y


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("batch", BATCHES)
def test_gradient_is_that_of_the_whole_batch(
    name: str, batch: int, rng: np.random.Generator
) -> None:
    engine = make_engine(name, rng, np.float64)
    images = make_images(60, MODELS[name][1])
    indices = rng.permutation(60)[:batch]
    expected_total, expected, _ = in_one_piece(engine.model, images[indices])
    with engine:
        engine.step(images, np.arange(50))  # what a step leaves in the buffers must not matter
        total = engine.step(images, indices)
        gradients = engine.model.split(engine.gradients)
    assert total.shape == (1,)
    assert total[0] == pytest.approx(expected_total, rel=1e-12)
    assert gradients.keys() == expected.keys()
    for key, value in expected.items():
        assert gradients[key].dtype == np.float64
        np.testing.assert_allclose(gradients[key], value, rtol=1e-10, atol=1e-13)
        assert batch == 0 or np.abs(value).max() > 1e-4


@pytest.mark.parametrize("batch", BATCHES)
def test_squared_error_is_the_direct_sum(batch: int, rng: np.random.Generator) -> None:
    engine = make_engine("single-layer", rng, np.float64)
    images = make_images(batch, (1, 6, 5))
    expected, _, _ = in_one_piece(engine.model, images)
    with engine:
        assert engine.squared_error(images) == pytest.approx(expected, rel=1e-12)


def test_reconstruct_is_the_forward_pass(rng: np.random.Generator) -> None:
    engine = make_engine("pooling", rng, np.float64)
    images = make_images(6, (1, 6, 4))
    with engine:
        np.testing.assert_allclose(
            engine.reconstruct(images), in_one_piece(engine.model, images)[2], rtol=1e-12
        )


class Dawdle(Layer):
    """Passes its input on, late where the first pixel is dark; notes when each part came by."""

    def __init__(self) -> None:
        super().__init__()
        self.order: list[float] = []

    def forward(self, x: Any, trace: Any = None) -> Any:
        darkness = float(1 - x[0, 0, 0, 0])
        time.sleep(0.004 * darkness)
        self.order.append(darkness)
        return x

    def backward(self, dy: Any, trace: Any, grads: Any = None, *, need_dx: bool = True) -> Any:
        return dy


@pytest.mark.parametrize("name", MODELS)
def test_same_bits_for_any_number_of_threads(name: str) -> None:
    images = make_images(60, MODELS[name][1])
    results = set()
    for threads in (*THREADS, *THREADS):
        rng = np.random.default_rng(2)
        engine = make_engine(name, rng, np.float32, threads)
        with engine:
            bits = b""
            for batch in BATCHES[1:]:
                total = engine.step(images, rng.permutation(60)[:batch])
                bits += engine.gradients.tobytes() + total.tobytes()
            results.add((bits, engine.squared_error(images)))
    assert len(results) == 1


def test_parts_are_added_in_order_whichever_is_done_first() -> None:
    results, orders = set(), set()
    for threads in (1, 4):
        rng = np.random.default_rng(3)
        dawdle = Dawdle()
        model = Autoencoder(
            dawdle,
            Conv2d(1, 2, 3, padding=1, rng=rng),
            Tanh(),
            Conv2d(2, 1, 3, padding=1, rng=rng),
            encoder_length=3,
            channels=1,
        )
        engine = Engine(model, (1, 6, 5), threads=threads)
        engine.chunk = 1
        with engine:
            total = engine.step(make_images(24), np.arange(24))
            results.add((engine.gradients.tobytes(), total.tobytes()))
        orders.add(tuple(dawdle.order))
    assert len(orders) == 2  # four threads did finish the parts in another order
    assert len(results) == 1


def test_indices_may_repeat_and_images_stay_as_they_are(rng: np.random.Generator) -> None:
    engine = make_engine("single-layer", rng, np.float64)
    images = make_images(9)
    before = images.copy()
    images.flags.writeable = False
    indices = np.array([3, 3, 8, 0, 3, 8])
    expected, gradients, _ = in_one_piece(engine.model, images[indices])
    with engine:
        assert engine.step(images, indices)[0] == pytest.approx(expected, rel=1e-12)
    np.testing.assert_allclose(
        engine.model.split(engine.gradients)["0.weight"], gradients["0.weight"], rtol=1e-10
    )
    assert np.array_equal(images, before)


# --- errors -----------------------------------------------------------------------------------


class Fragile(Layer):
    """Fails on a part whose first pixel is black; counts the parts that are inside the model."""

    def __init__(self) -> None:
        super().__init__()
        self.inside = 0
        self.lock = threading.Lock()

    def _count(self, by: int) -> None:
        with self.lock:
            self.inside += by

    def forward(self, x: Any, trace: Any = None) -> Any:
        self._count(1)
        try:
            if x[0, 0, 0, 0] == -1:
                raise ZeroDivisionError("a black pixel")
            time.sleep(0.02)
            return x
        finally:
            self._count(-1)

    def backward(self, dy: Any, trace: Any, grads: Any = None, *, need_dx: bool = True) -> Any:
        return dy


def test_an_exception_in_a_worker_leaves_the_engine_usable(rng: np.random.Generator) -> None:
    fragile = Fragile()
    model = Autoencoder(Conv2d(1, 1, 3, padding=1, rng=rng), encoder_length=1, channels=1)
    with_fault = Autoencoder(fragile, *model.stack, encoder_length=1, channels=1)
    images = np.maximum(make_images(16), 1)
    good = np.arange(1, 16)
    images[0] = 0
    engine = Engine(with_fault, (1, 6, 5), threads=3)
    engine.chunk = 1
    with engine:
        for bad in (0, 2, 15):  # the faulty part first, in the middle, last
            batch = np.insert(good, min(bad, 15), 0)
            for work in (
                lambda batch=batch: engine.step(images, batch),
                lambda batch=batch: engine.squared_error(images[batch]),
            ):
                with pytest.raises(ZeroDivisionError, match="a black pixel"):
                    work()
                assert fragile.inside == 0  # nobody still writes into the buffers
        total = engine.step(images, good)
    expected, gradients, _ = in_one_piece(with_fault, images[good])
    assert total[0] == pytest.approx(expected, rel=1e-5)
    np.testing.assert_allclose(
        with_fault.split(engine.gradients)["1.weight"], gradients["1.weight"], rtol=1e-4, atol=1e-6
    )


def test_overflow_is_no_warning(rng: np.random.Generator) -> None:
    """Warnings are errors here; the trainer looks at the number itself."""
    engine = make_engine("single-layer", rng, np.float32)
    engine.model.parameters[:] = np.float32(3e38)
    engine.model.parameters[::2] *= -1
    with engine:
        assert (
            not np.isfinite(engine.step(make_images(9), np.arange(9))[0])
            or not np.isfinite(engine.gradients).all()
        )


@pytest.mark.parametrize("threads", [0, -1])
def test_threads_are_checked(threads: int, model: Autoencoder) -> None:
    with pytest.raises(InputError, match="threads must be at least 1"):
        Engine(model, (1, 6, 5), threads=threads)


def test_a_model_that_changes_the_shape_is_refused(rng: np.random.Generator) -> None:
    model = Autoencoder(Conv2d(1, 1, 2, rng=rng), encoder_length=1, channels=1)
    with pytest.raises(InputError, match=r"makes \(1, 5, 4\) of \(1, 6, 5\)"):
        Engine(model, (1, 6, 5))


def test_unknown_loss_is_refused(model: Autoencoder) -> None:
    with pytest.raises(InputError, match="unknown loss 'l1': choose one of half_mse, mse"):
        Engine(model, (1, 6, 5), loss="l1")


# --- threads, BLAS, memory ---------------------------------------------------------------------


def blas_threads() -> list[int]:
    return [lib["num_threads"] for lib in threadpool_info() if lib["user_api"] == "blas"]


def test_nesting_and_opening_again(rng: np.random.Generator) -> None:
    engine = make_engine("single-layer", rng, np.float32)
    images, before = make_images(20), threading.active_count()
    blas = blas_threads()
    assert blas
    for _ in range(2):
        with engine:
            with engine:
                engine.step(images, np.arange(20))
            first = engine.gradients.copy()
            engine.step(images, np.arange(20))  # still open
            assert np.array_equal(first, engine.gradients)
            assert set(blas_threads()) == {1}
            assert threading.active_count() > before
        assert threading.active_count() == before
        assert blas_threads() == blas


def test_chunk_size_follows_the_largest_map(model: Autoencoder) -> None:
    rgb = single_layer(3, 32, np.random.default_rng(0))
    engine = Engine(rgb, (3, 32, 32))
    assert engine.chunk is not None
    largest_map = 4 * 32 * 34 * 34
    assert engine.chunk * largest_map <= cpu_step.CHUNK_BYTES
    assert (engine.chunk + 1) * largest_map > cpu_step.CHUNK_BYTES
    assert Engine(model, (1, 6, 5)).chunk == 64
    assert Engine(rgb, (3, 500, 500)).chunk == 1


def test_chunks_of_a_model_with_linear_layers_are_powers_of_two() -> None:
    for size in (20, 24, 48, 64):
        model = build("deep", np.random.default_rng(0), channels=3, size=size, code_size=3)
        chunk = Engine(model, (3, size, size)).chunk
        assert chunk in (1, 2, 4, 8, 16, 32, 64)
        largest_map = 4 * 12 * (size - 2) ** 2
        assert chunk == 64 or chunk * largest_map > cpu_step.CHUNK_BYTES / 2
        assert chunk * largest_map < 2 * cpu_step.CHUNK_BYTES


def test_peak_memory_does_not_depend_on_the_batch(rng: np.random.Generator) -> None:
    """With one thread, because which of several gets how many parts is chance."""
    shape, peaks = (3, 32, 32), []
    images = make_images(2048, shape)
    for batch in (128, 2048):
        engine = Engine(single_layer(3, 8, rng), shape, threads=1)
        tracemalloc.start()
        try:
            with engine:
                engine.step(images, np.arange(batch))
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
    assert engine.chunk is not None
    one_map = 4 * 8 * 34 * 34 * engine.chunk
    assert one_map < peaks[0]  # the measurement sees the maps at all
    assert peaks[1] < 1.05 * peaks[0]


def test_memory_does_not_grow_over_steps(rng: np.random.Generator) -> None:
    shape = (3, 32, 32)
    images = make_images(200, shape)
    engine = Engine(single_layer(3, 8, rng), shape, threads=1)
    tracemalloc.start()
    try:
        with engine:
            sizes = []
            for _ in range(8):
                for batch in (200, 137):  # two sizes of the last chunk
                    engine.step(images, np.arange(batch))
                engine.squared_error(images)
                sizes.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    assert max(sizes[2:]) - min(sizes[2:]) < 50_000
