"""Rounded operands: the rule itself, the kernels' rule, and training with it."""

from __future__ import annotations

from pathlib import Path

import emulator
import numpy as np
import pytest
from deep_cases import random_images, small_deep

from cae_raw.app import app
from cae_raw.backends import NUMPY, Backend
from cae_raw.backends.cuda_backend import CudaBackend
from cae_raw.commands import shell
from cae_raw.errors import InputError
from cae_raw.layers import Linear
from cae_raw.measure.clock import relative_error
from cae_raw.ops.linear import KERNELS, linear_forward
from cae_raw.ops.precision import PRECISIONS, check_precision, rounded
from cae_raw.training.config import TrainConfig
from cae_raw.training.engine import Engine
from cae_raw.training.optimizers import Adam

MANTISSA = {"tf32": 10, "bf16": 7}


def values() -> np.ndarray:
    """float32 of many sizes, ties of both roundings, the largest number, zeros and infinities."""
    rng = np.random.default_rng(0)
    random = rng.standard_normal(4000) * 2.0 ** rng.integers(-60, 60, 4000)
    steps = 1 + np.arange(64) / 64
    ties = np.concatenate([steps + 2.0**-bits * sign for bits in (8, 11) for sign in (1, -1)])
    special = np.array([0, -0.0, 3.4028235e38, -3.4028235e38, np.inf, -np.inf])
    return np.concatenate([random, ties, -ties, special]).astype(np.float32)


@pytest.mark.parametrize("precision", MANTISSA)
def test_rounding_is_to_the_nearest(precision: str) -> None:
    x = values()
    found = rounded(x, precision).astype(np.float64)
    finite = np.isfinite(found)
    _, exponent = np.frexp(x[finite].astype(np.float64))
    unit = 2.0 ** (exponent - 1.0 - MANTISSA[precision])
    scaled = np.abs(x[finite].astype(np.float64)) / unit
    nearest = np.floor(scaled + 0.5) if precision == "tf32" else np.rint(scaled)
    np.testing.assert_array_equal(np.abs(found[finite]), nearest * unit)
    np.testing.assert_array_equal(np.signbit(found), np.signbit(x))
    assert np.isinf(found).sum() == 4  # the largest numbers have nothing above them but infinity
    assert np.isnan(rounded(np.array([np.nan, -np.nan], np.float32), precision)).all()
    np.testing.assert_array_equal(rounded(rounded(x, precision), precision), rounded(x, precision))


def test_names() -> None:
    assert tuple(KERNELS) == PRECISIONS
    x = values()
    assert rounded(x, "float32") is x
    assert rounded(x, "tf32x3") is x
    with pytest.raises(InputError, match="tf32"):
        rounded(x, "fp8")
    with pytest.raises(InputError, match="tf32"):
        TrainConfig(precision="half")


@pytest.mark.parametrize("precision", MANTISSA)
def test_a_kernel_rounds_its_operands_by_the_same_rule(backend: Backend, precision: str) -> None:
    """Times the unit matrix, a product is its operand, rounded."""
    x = values()
    x = x[np.isfinite(rounded(x, precision))]
    x = x[: len(x) // 12 * 12].reshape(-1, 12)
    unit, zeros = np.eye(12, dtype=np.float32), np.zeros(12, np.float32)
    for first, second in ((x, unit), (np.eye(len(x), dtype=np.float32), x.T.copy())):
        b = np.zeros(len(second), np.float32)
        y = linear_forward(*map(backend.asarray, (first, second, b)), precision=precision)
        np.testing.assert_array_equal(backend.to_numpy(y), rounded(x, precision))
    broken = np.where(x == x[2, 3], np.float32(np.nan), x)
    y = linear_forward(*map(backend.asarray, (broken, unit, zeros)), precision=precision)
    np.testing.assert_array_equal(np.isnan(backend.to_numpy(y)).any(1), np.isnan(broken).any(1))


def times_the_unit_matrix(backend: Backend, x: np.ndarray, precision: str) -> np.ndarray:
    unit, zeros = np.eye(x.shape[1], dtype=np.float32), np.zeros(x.shape[1], np.float32)
    y = linear_forward(*map(backend.asarray, (x, unit, zeros)), precision=precision)
    return backend.to_numpy(y)


def test_two_numbers_in_tf32_hold_a_float32(backend: Backend) -> None:
    x = values()
    x = x[np.isfinite(rounded(x, "tf32"))]
    x = x[: len(x) // 12 * 12].reshape(-1, 12)
    # Half of it is the last bit; tensor cores may cut off another when they add.
    wide, bound = x.astype(np.float64), np.abs(x) * 2.0**-22
    for y in (
        times_the_unit_matrix(backend, x, "tf32x3"),
        times_the_unit_matrix(backend, np.ascontiguousarray(x.T), "tf32x3").T,
    ):
        assert (np.abs(y - wide) <= bound).all()
    assert (np.abs(times_the_unit_matrix(backend, x, "tf32") - wide) > 500 * bound).any()
    # As an operand of a sum, not only of a product with 1: what is no number must not get lost.
    for broken in (np.nan, -np.nan, np.inf):
        x[2, 3] = broken
        y = times_the_unit_matrix(backend, x, "tf32x3")
        np.testing.assert_array_equal(np.isnan(y).all(1), np.arange(len(x)) == 2)


def test_split_operands_are_as_accurate_as_float32(backend: Backend) -> None:
    """Long sums of numbers of one sign, where the error of rounded operands does not cancel."""
    rng = np.random.default_rng(0)
    # All a little above a number in tf32, by less than half of its last bit.
    x, w = (
        rounded(1 + rng.random((size, 600), np.float32), "tf32") * np.float32(1 + 0.9 * 2.0**-12)
        for size in (5, 9)
    )
    exact = x.astype(np.float64) @ w.astype(np.float64).T
    arguments = [backend.asarray(a) for a in (x, w, np.zeros(9, np.float32))]
    error = {}
    for precision in ("float32", "tf32", "tf32x3"):
        y = backend.to_numpy(linear_forward(*arguments, precision=precision))
        error[precision] = float(np.max(np.abs(y - exact) / exact))
    bound = 4 * 2.0**-23 * np.sqrt(600)  # as tests/kernel_checks.py has it
    assert error["float32"] < bound
    assert error["tf32x3"] < bound
    assert error["tf32"] > 20 * bound, error


def trained(
    backend: Backend, precision: str, steps: int = 5
) -> tuple[list[float], dict[str, np.ndarray]]:
    """The loss of each step, and the gradients of the last one by name."""
    images = random_images(4, 3, 14, 12)
    model = small_deep()
    for layer in model.stack:
        if isinstance(layer, Linear):
            layer.precision = precision
    model.to(backend)
    optimizer = Adam(model, lr=1e-3)
    found = []
    with Engine(model, images.shape[1:]) as engine:
        placed = backend.asarray(images)
        for _ in range(steps):
            total = engine.step(placed, np.arange(4))
            optimizer.step(engine.gradients)
            found.append(float(backend.to_numpy(total)[0]))
        return found, model.split(backend.to_numpy(engine.gradients).copy())


@pytest.mark.parametrize("precision", MANTISSA)
def test_training_agrees_with_numpy(backend: Backend, precision: str) -> None:
    mine, reference = (trained(b, precision)[0] for b in (backend, NUMPY))
    # A sum that differs in its last bit may be rounded the other way by the next layer.
    np.testing.assert_allclose(mine, reference, rtol=2.0 ** -MANTISSA[precision] / 4)
    assert mine != trained(backend, "float32")[0]
    assert mine == trained(backend, precision)[0]


def test_training_with_split_operands_is_training_in_float32(backend: Backend) -> None:
    np.testing.assert_allclose(
        trained(backend, "tf32x3")[0], trained(NUMPY, "float32")[0], rtol=1e-5
    )
    # The losses of so small a model hardly feel a rounding; the gradients of its layers do.
    expected = trained(NUMPY, "float32", 1)[1]
    split, once = (
        max(relative_error(e, found[name]) for name, e in expected.items())
        for found in (trained(backend, precision, 1)[1] for precision in ("tf32x3", "tf32"))
    )
    assert split < 5e-6
    assert once > 1e-4


def test_the_configuration_reaches_the_layers() -> None:
    model = TrainConfig(model="deep", precision="bf16", code_size=4).make_model((3, 12, 12))
    assert {layer.precision for layer in model.stack if isinstance(layer, Linear)} == {"bf16"}
    assert "_prec=tf32" in TrainConfig(precision="tf32").run_name().name
    for precision in ("float32", "tf32", "tf32x3"):
        fused = TrainConfig(precision=precision, filters=2).make_model((3, 8, 8)).fused_cuda
        assert fused is not None and fused.precision == precision
    with pytest.raises(InputError, match="at most 3 channels and 32 filters"):
        TrainConfig(precision="tf32").make_model((4, 8, 8))


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert shell.run(app, ["train", *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_what_cannot_be_used_is_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    deep = ("--model", "deep", "--device", "cpu", "--precision")
    assert "use --device cuda, or omit --precision" in refusal(capsys, *deep, "tf32")
    assert "choose one of bf16, float32, tf32, tf32x3" in refusal(capsys, *deep, "fp16")
    single = ("--precision", "bf16")
    assert "is for the linear layers of --model deep or deep-same" in refusal(capsys, *single)
    single = ("--device", "cpu", "--precision")
    for precision in ("tf32", "tf32x3"):
        assert "use --device cuda, or omit" in refusal(capsys, *single, precision)
    wide = ("--filters", "33", *single, "tf32")
    assert "at most 3 channels and 32 filters: omit --precision" in refusal(capsys, *wide)
    assert list(tmp_path.iterdir()) == []
    check_precision("float32", NUMPY)


@pytest.mark.skipif(emulator.available() is not None, reason=str(emulator.available()))
def test_a_gpu_without_such_tensor_cores_is_refused() -> None:
    old = CudaBackend(emulator.emulated_cupy(compute_capability="75"))
    with pytest.raises(InputError, match=r"capability 8\.0 or above and cuda:0 has 7\.5") as caught:
        check_precision("tf32", old)
    assert "\n" not in str(caught.value)
    check_precision("float32", old)
    new = CudaBackend(emulator.emulated_cupy(compute_capability="120"))
    assert new.compute_capability == (12, 0)
    check_precision("bf16", new)
