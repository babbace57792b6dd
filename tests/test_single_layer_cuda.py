"""The fused kernels of the single-layer model: cuts of images, the engine, whole trainings."""

from __future__ import annotations

from typing import Any

import emulator
import kernel_checks
import numpy as np
import pytest

from cae_raw.backends import NUMPY, Backend, kernel_source, nvrtc
from cae_raw.backends.cuda_backend import CudaBackend
from cae_raw.models import single_layer as make_model
from cae_raw.ops import single_layer
from cae_raw.ops import single_layer_plan as plan
from cae_raw.training.config import TrainConfig
from cae_raw.training.engine import Engine

emulates = pytest.mark.skipif(emulator.available() is not None, reason=str(emulator.available()))

# Kilobytes of shared memory that a block may have.
SHARED_LIMITS = {
    "sm_75": 64, "sm_80": 163, "sm_86": 99, "sm_89": 99, "sm_90": 227, "sm_100": 227, "sm_120": 99,
}  # fmt: skip
SIZES = [(1, 1), (1, 9), (5, 7), (28, 28), (32, 32), (33, 31), (64, 64), (512, 512), (2, 3000)]


# --- cuts -----------------------------------------------------------------------------------


def test_every_architecture_has_a_limit() -> None:
    assert set(SHARED_LIMITS) == set(nvrtc.ARCHITECTURES)


@pytest.mark.parametrize("arch", SHARED_LIMITS)
@pytest.mark.parametrize("gradients", [True, False])
@pytest.mark.parametrize("precision", ["float32", "tf32x3"])
def test_every_cut_fits_the_shared_memory(arch: str, gradients: bool, precision: str) -> None:
    limit = SHARED_LIMITS[arch] * 1024
    for size in SIZES:
        for channels in (1, 2, 3):
            for n in (0, 1, 32, 1024):
                cut = plan.cut(n, channels, size, gradients, 100, limit, 32, precision)
                assert cut.shared + plan.STATIC_SHARED <= limit
                halo = plan.BORDER if gradients else 0
                sides = [-(-(s + halo) // t) for s, t in zip(size, cut.tile, strict=True)]
                assert cut.tiles == sides[0] * sides[1]
                if precision == "float32":
                    assert cut.tile[1] % 2 == 0 or sides[1] == 1, "loads of two floats"
                    assert cut.pitch % 4 == 0
                else:
                    assert (cut.pitch % 32, cut.code["plane"] % 32) == (10, 31), "bank conflicts"


def test_cuts_are_what_the_hardware_asks_for() -> None:
    def tile(
        n: int, size: tuple[int, int], processors: int, kilobytes: int, precision: str = "float32"
    ) -> tuple[int, int]:
        limits = processors, kilobytes * 1024
        return plan.cut(n, 3, size, True, *limits, precision=precision).tile

    assert tile(1024, (32, 32), 132, 227) == (34, 34), "whole images where they fit"
    assert tile(32, (32, 32), 132, 227)[0] < 34, "parts where there are few images"
    assert tile(1024, (32, 32), 40, 64) != (34, 34), "parts where they do not fit"
    for precision in plan.SPLIT:
        assert tile(1024, (32, 32), 132, 227, precision) == (34, 34)
        assert tile(32, (32, 32), 132, 227, precision) != (34, 34)


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_no_two_lanes_read_from_one_bank(channels: int) -> None:
    """The reads of x, dy and the code for operands on tensor cores, as the kernel numbers lanes."""
    cut = plan.make_mma_cut((32, 32), (34, 34), channels, True, 32, "tf32")
    row, column = np.divmod(np.arange(32), 4)

    def conflicts(addresses: np.ndarray) -> int:
        _, per_bank = np.unique(np.unique(addresses) % 32, return_counts=True)
        return int(per_bank.max()) - 1

    def under(tap: np.ndarray) -> np.ndarray:
        tap = np.minimum(tap, 9 * channels - 1)
        return tap // 9 * cut.code["plane"] + tap % 9 // 3 * cut.pitch + tap % 3

    taps = range(0, 9 * channels, 4)
    assert sum(conflicts(under(first + column) + row) for first in taps) == 0
    taps = range(0, 9 * channels, 8)
    assert sum(conflicts(under(first + row) + 2 * column) for first in taps) == 0
    code = 32 + 4
    assert conflicts(row * code + column) == conflicts(2 * column * code + row) == 0
    assert conflicts(row * (cut.pitch + 1) + 2 * column) > 0, "the count can fail"


@pytest.mark.parametrize("cols", [1, 2, 3, 7, 33, 34, 1023, 3002])
def test_positions_are_counted_exactly(cols: int) -> None:
    """`Positions` of kernels/single_layer_step_mma.cu: k / cols as the high half of a product."""
    reciprocal = (0x80000000 + cols - 1) // cols
    k = np.arange(1 << 15, dtype=np.uint64)
    np.testing.assert_array_equal((2 * k * np.uint64(reciprocal)) >> np.uint64(32), k // cols)
    text = kernel_source.expand("single_layer_step_mma")
    assert "(0x80000000u + cols_ - 1) / cols_" in text and "__umulhi(2 * k, reciprocal)" in text


def test_models_beyond_the_kernels_go_layer_by_layer() -> None:
    assert plan.serves((32, 3, 3, 3)) and plan.serves((1, 1, 3, 3))
    for shape in ((33, 3, 3, 3), (32, 4, 3, 3), (32, 3, 5, 3)):
        assert not plan.serves(shape)
    assert make_model(3, 32).fused_cuda is not None
    assert make_model(4, 8).fused_cuda is None
    assert make_model(3, 40).fused_cuda is None


# --- the kernels with other cuts ------------------------------------------------------------


def problem(n: int, c: int, f: int, size: tuple[int, int], seed: int = 0) -> tuple[Any, ...]:
    rng = np.random.default_rng(seed)
    w1, w2 = (rng.standard_normal(s).astype(np.float32) / 6 for s in ((f, c, 3, 3), (c, f, 3, 3)))
    b1, b2 = (rng.standard_normal(k).astype(np.float32) / 6 for k in (f, c))
    images = rng.integers(0, 256, (5, c, *size), dtype=np.uint8)
    return images, rng.integers(0, 5, n), w1, b1, w2, b2


SCALING = {"scale": 2 / 255, "shift": -1.0}


def split(flat: np.ndarray, arguments: tuple[Any, ...]) -> list[np.ndarray]:
    ends = np.cumsum([a.size for a in arguments[2:]])
    return np.split(flat, ends[:-1])


@emulates
@pytest.mark.parametrize("precision", ["float32", "tf32x3"])
@pytest.mark.parametrize(
    ("n", "size", "capability", "processors"),
    [
        (1, (26, 30), "75", 7),  # bands
        (1, (14, 90), "75", 60),  # tiles in both directions, some of them narrow
        (3, (6, 5), "90", 2),  # several images per piece
        (3, (1, 5), "90", 64),
        (2, (9, 1), "90", 3),
    ],
)
def test_any_cut_gives_the_same_result(
    n: int, size: tuple[int, int], capability: str, processors: int, precision: str
) -> None:
    """Per parameter, within rounding; and bit for bit for every grid."""
    arguments = problem(n, 3, 32, size)
    wide = (*arguments[:2], *(a.astype(np.float64) for a in arguments[2:]))
    reference = single_layer.single_layer_gradients.reference
    total, expected = reference(*wide, **SCALING, gradient_scale=0.5)
    cupy = emulator.emulated_cupy(
        write_check=True, compute_capability=capability, multiprocessors=processors
    )
    backend = kernel_checks.PoisonedBackend(cupy)
    placed = [backend.asarray(a) for a in arguments]
    cut = single_layer._cut(backend, placed[0], n, True, precision=precision)
    options: dict[str, Any] = {**SCALING, "precision": precision}
    assert cut.tiles > 1 or n > 1
    bits = set()
    for _ in kernel_checks.grids(backend):
        totals, found = single_layer.single_layer_gradients(*placed, **options, gradient_scale=0.5)
        found = backend.to_numpy(found)
        bits.add(found.tobytes() + backend.to_numpy(totals).tobytes())
        assert backend.to_numpy(totals)[0] == pytest.approx(total[0], rel=1e-6)
        for e, g in zip(split(expected, arguments), split(found, arguments), strict=True):
            np.testing.assert_allclose(g, e, rtol=0, atol=4e-6 * np.abs(e).max())
        error = single_layer.single_layer_forward(*placed, **options)
        assert backend.to_numpy(error)[0] == pytest.approx(total[0], rel=1e-6)
    assert len(bits) == 1


@emulates
@pytest.mark.parametrize("precision", ["float32", "tf32", "tf32x3"])
@pytest.mark.parametrize("index", [-1, 5])
def test_an_image_that_is_not_there_is_nan(index: int, precision: str) -> None:
    arguments = list(problem(2, 3, 32, (4, 4)))
    arguments[1] = np.array([2, index])
    backend = kernel_checks.emulated()
    placed = [backend.asarray(a) for a in arguments]
    y = backend.empty((2, 3, 4, 4))
    options: dict[str, Any] = {**SCALING, "precision": precision}
    error = single_layer.single_layer_forward(*placed, None, y, **options)
    _, gradients = single_layer.single_layer_gradients(*placed, **options, gradient_scale=1.0)
    assert np.isnan(backend.to_numpy(error)[0])
    assert np.isnan(backend.to_numpy(gradients)).all()
    assert np.isnan(backend.to_numpy(y)[1]).all() and np.isfinite(backend.to_numpy(y)[0]).all()


@emulates
def test_more_shared_memory_than_the_device_has_is_refused() -> None:
    backend = CudaBackend(emulator.emulated_cupy(compute_capability="86"))
    assert backend.shared_limit == 99 * 1024
    placed = [backend.asarray(a) for a in problem(1, 1, 3, (4, 4))]
    cut = plan.make_cut((400, 400), (100, 100), 1, False)
    totals = backend.empty((1, 2), np.float64)
    given = dict(zip(("images", "indices", "w1", "b1", "w2", "b2"), placed, strict=True))
    given |= {"code": None, "y": None, "totals": totals}
    given |= {**single_layer._sizes(placed[0], placed[1], cut, 1), **SCALING}
    kernel = single_layer.kernel("single_layer_forward", 1, 3)
    with pytest.raises(ValueError, match=r"bytes of shared memory, \d+ are there"):
        backend.launch(kernel, 1, given, shared=cut.shared)


def test_tanh_is_as_exact_as_its_comment_says() -> None:
    """The same arithmetic in NumPy's float32, with the hardware's 2^-22 on the exponential."""
    v = np.linspace(-12, 12, 200_001, dtype=np.float32)
    for wrong in (-(2.0**-22), 0, 2.0**-22):
        power = (np.exp2(np.float32(2.88539008) * v) * np.float32(1 + wrong)).astype(np.float32)
        found = np.float32(1) - np.float32(2) / (power + np.float32(1))
        assert np.abs(found - np.tanh(v.astype(np.float64))).max() < 3e-7
    text = kernel_source.expand("single_layer_step")
    assert "exp2f(2.88539008f * v)" in text and "below 3e-7" in text


# --- the engine -----------------------------------------------------------------------------


def train(
    backend: Backend, images: np.ndarray, fused: bool, precision: str = "float32", filters: int = 8
) -> tuple[list[float], np.ndarray]:
    """The losses of twenty steps, and the gradients of the first."""
    config = TrainConfig(filters=filters, precision=precision)
    model = config.make_model(images.shape[1:]).to(backend)
    optimizer = TrainConfig().make_optimizer(model)
    rng = np.random.default_rng(3)
    found, first = [], np.empty(0)
    with Engine(model, images.shape[1:], fused=fused) as engine:
        placed = backend.asarray(images)
        for _ in range(20):
            total = engine.step(placed, rng.permutation(len(images))[:4])
            if not found:
                first = backend.to_numpy(engine.gradients).copy()
            optimizer.step(engine.gradients)
            found.append(float(backend.to_numpy(total)[0]))
        found.append(engine.squared_error(placed))
        found.append(float(np.square(engine.reconstruct(images[:3])).sum()))
    return found, first


def test_twenty_losses_agree_with_the_layers(backend: Backend) -> None:
    images = np.random.default_rng(0).integers(0, 256, (9, 3, 7, 10), dtype=np.uint8)
    fused, gradients = train(backend, images, True)
    layered, expected = train(backend, images, False)
    np.testing.assert_allclose(fused, layered, rtol=1e-5)
    assert fused[0] != fused[19], "nothing was learned"
    assert not np.array_equal(gradients, expected), "the same code ran twice"
    np.testing.assert_allclose(gradients, expected, atol=3e-6 * np.abs(expected).max())
    assert train(backend, images, True)[0] == fused, "a repeated training has other bits"


def test_twenty_losses_on_tensor_cores_agree_with_numpy(backend: Backend) -> None:
    images = np.random.default_rng(0).integers(0, 256, (9, 3, 7, 10), dtype=np.uint8)
    found, gradients = train(backend, images, True, "tf32x3", 32)
    expected, reference = train(NUMPY, images, True, "float32", 32)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert found[0] != found[19], "nothing was learned"
    np.testing.assert_allclose(gradients, reference, atol=3e-6 * np.abs(reference).max())
    assert train(backend, images, True, "tf32x3", 32)[0] == found, "repeated, it has other bits"
    rounded, _ = train(backend, images, True, "tf32", 32)
    np.testing.assert_allclose(rounded, expected, rtol=1e-2)
    assert rounded != found


def test_tf32_rounds_the_operands_that_the_reference_rounds(backend: Backend) -> None:
    """Few results are off by more than float32 is, which one forgotten rounding would change."""
    arguments = problem(3, 3, 32, (7, 9))
    wide = (*arguments[:2], *(a.astype(np.float64) for a in arguments[2:]))
    forward, step = single_layer.single_layer_forward, single_layer.single_layer_gradients

    def reference(precision: str) -> list[np.ndarray]:
        y, options = np.empty((3, 3, 7, 9)), {**SCALING, "precision": precision}
        forward.reference(*wide, None, y, **options)
        return [y, step.reference(*wide, **options, gradient_scale=0.5)[1]]

    placed, y = [backend.asarray(a) for a in arguments], backend.empty((3, 3, 7, 9))
    options: dict[str, Any] = {**SCALING, "precision": "tf32"}
    forward(*placed, None, y, **options)
    found = [y, step(*placed, **options, gradient_scale=0.5)[1]]
    for f, same, other in zip(found, reference("tf32"), reference("float32"), strict=True):
        error, distance = (np.abs(backend.to_numpy(f) - e) for e in (same, other))
        assert np.square(error).mean() < np.square(distance).mean() / 64
        assert np.median(error) < np.median(distance) / 64


def test_an_empty_batch_has_no_gradient(backend: Backend) -> None:
    images = np.zeros((2, 1, 4, 4), np.uint8)
    model = make_model(1, 3).to(backend)
    with Engine(model, (1, 4, 4)) as engine:
        total = engine.step(backend.asarray(images), np.arange(0))
        assert backend.to_numpy(total)[0] == 0
        assert not backend.to_numpy(engine.gradients).any()
