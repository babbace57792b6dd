"""The one place that starts kernels: what it refuses, what it casts, what it keeps."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import emulator
import numpy as np
import pytest

from cae_raw.backends import kernel_source
from cae_raw.backends.cuda_backend import CudaBackend, Kernel, backend_of
from cae_raw.errors import InputError
from cae_raw.ops import OPS, activation, conv2d, linear, loss, pool2d
from cae_raw.ops import conv2d_plan as plan

emulates = pytest.mark.skipif(emulator.available() is not None, reason=str(emulator.available()))

RELU = activation.RELU_FORWARD


@pytest.fixture
def backend() -> CudaBackend:
    return CudaBackend(emulator.emulated_cupy(devices=2))


def arguments(backend: CudaBackend, **changes: Any) -> dict[str, Any]:
    x = backend.asarray(np.array([-1, 2, -3], np.float32))
    return {"x": x, "y": backend.empty((3,)), "n": 3, **changes}


@emulates
def test_a_launch_does_the_work(backend: CudaBackend) -> None:
    given = arguments(backend)
    backend.launch(RELU, 1, given)
    assert backend.to_numpy(given["y"]).tolist() == [0, 2, 0]


def _strided(backend: CudaBackend) -> Any:
    return backend.zeros((3, 2))[:, 0]


@emulates
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda b: {"x": np.zeros(3, np.float32)}, TypeError, "ndarray, not an array on cuda:0"),
        (lambda b: {"x": [1, 2, 3]}, TypeError, "x is a list"),
        (lambda b: {"x": None}, TypeError, "x is a NoneType"),
        (lambda b: {"x": b.zeros((3,), np.float64)}, TypeError, "dtype float64"),
        (lambda b: {"y": b.zeros((3,), np.int32)}, TypeError, "y has dtype int32"),
        (lambda b: {"x": _strided(b)}, TypeError, "not C-contiguous"),
        (lambda b: {"y": b.empty((4,))}, ValueError, r"y has shape \(4,\).* \(n\) = \(3,\)"),
        (lambda b: {"n": 4}, ValueError, "x has shape"),
        (lambda b: {"n": 3.0}, TypeError, "n must be an integer"),
        (lambda b: {"n": True}, TypeError, "n must be an integer"),
        (lambda b: {"m": 1}, TypeError, "arguments"),
    ],
)
def test_wrong_arguments_are_refused(
    backend: CudaBackend, change: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        backend.launch(RELU, 1, arguments(backend, **change(backend)))


@emulates
def test_arguments_in_another_order_are_refused(backend: CudaBackend) -> None:
    given = arguments(backend)
    exchanged = {"y": given["y"], "x": given["x"], "n": 3}
    with pytest.raises(TypeError, match="it takes"):
        backend.launch(RELU, 1, exchanged)


@emulates
def test_an_array_of_another_device_is_refused(backend: CudaBackend) -> None:
    other = CudaBackend(backend.cupy, device=1)
    with pytest.raises(TypeError, match="on device 1, not on cuda:0"):
        backend.launch(RELU, 1, arguments(backend, x=other.zeros((3,))))
    assert backend_of(other.zeros((3,))) is other
    assert backend_of(backend.zeros((3,))) is backend


@emulates
def test_scalars_are_cast_to_the_declared_types(
    backend: CudaBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    function, entry = backend._function(loss.SQUARED_ERROR)
    monkeypatch.setitem(
        backend._functions, loss.SQUARED_ERROR.key, (lambda *a: seen.append(a), entry)
    )
    x = backend.zeros((2, 3))
    loss.squared_error(x, x, scale=0.5)
    (grid, block, values), *_ = seen
    assert (grid, block) == ((1,), (loss.SQUARED_ERROR.constants["THREADS"],))
    assert [type(v) for v in values[4:]] == [np.int64, np.int64, np.float32]
    assert function is not None


@emulates
def test_an_integer_that_does_not_fit_is_refused(backend: CudaBackend) -> None:
    given = {"dy": backend.zeros((1, 1)), "db": backend.zeros((1,)), "N": 2**31, "O": 1}
    with pytest.raises(ValueError, match="N = 2147483648 does not fit int32"):
        backend.launch(linear.BACKWARD_BIAS, 1, given)


@emulates
def test_grids(backend: CudaBackend) -> None:
    given = arguments(backend)
    before = emulator.launch_count()
    backend.launch(RELU, 0, given)
    assert emulator.launch_count() == before
    for grid in (-1, 2**31):
        with pytest.raises(ValueError, match="a grid of"):
            backend.launch(RELU, grid, given)
    backend.forced_grid = 5
    backend.launch(RELU, 0, given)
    assert emulator.launch_count() == before
    backend.launch(RELU, 1, given)
    assert emulator.launch_count() == before + 1


@emulates
def test_nothing_is_launched_for_no_elements(backend: CudaBackend) -> None:
    before = emulator.launch_count()
    assert OPS["relu_forward"](backend.empty((0, 3))).shape == (0, 3)
    assert emulator.launch_count() == before


@emulates
def test_one_module_serves_all_its_kernels(backend: CudaBackend) -> None:
    used: list[str] = []
    backend.first_use = used.append
    x = backend.zeros((1, 2, 5, 5))
    w, b = backend.zeros((3, 2, 3, 3)), backend.zeros((3,))
    for activation_name in (None, "relu", "tanh"):
        y = conv2d.conv2d_forward(x, w, b, activation=activation_name)
    conv2d.conv2d_forward(backend.zeros((2, 2, 9, 4)), w, b, padding=(1, 1))
    conv2d.conv2d_backward_input(y, w, input_size=(5, 5))
    conv2d.conv2d_backward_weight(y, x, kernel_size=(3, 3))
    assert used == ["conv2d"]
    conv2d.conv2d_forward(x, backend.zeros((4, 2, 3, 3)), backend.zeros((4,)))
    assert used == ["conv2d", "conv2d"]


def test_options_have_a_fixed_order() -> None:
    kernel = Kernel("f", "e", {"B": 2, "A": 1, "THREADS": 64})
    other = Kernel("f", "e", {"THREADS": 64, "A": 1, "B": 2})
    assert kernel.options == ("-std=c++17", "-DA=1", "-DB=2", "-DTHREADS=64")
    assert kernel.options == other.options
    assert kernel.key == other.key
    assert kernel.block == 64
    with pytest.raises(dataclasses.FrozenInstanceError):
        kernel.file = "g"  # type: ignore[misc]


@emulates
def test_shapes_that_do_not_belong_together_are_refused(backend: CudaBackend) -> None:
    x, b = backend.zeros((1, 2, 4, 4)), backend.zeros((3,))
    with pytest.raises(ValueError, match="conv2d_forward: x has shape"):
        conv2d.conv2d_forward(x, backend.zeros((3, 5, 3, 3)), b)
    with pytest.raises(ValueError, match="conv2d_forward: b has shape"):
        conv2d.conv2d_forward(x, backend.zeros((3, 2, 3, 3)), backend.zeros((4,)))
    with pytest.raises(ValueError, match="linear_forward: w has shape"):
        linear.linear_forward(backend.zeros((2, 3)), backend.zeros((4, 5)), backend.zeros((4,)))
    with pytest.raises(ValueError, match="relu_backward: y has shape"):
        activation.relu_backward(backend.zeros((2, 3)), backend.zeros((2, 2)))
    with pytest.raises(InputError, match="does not fit"):
        conv2d.conv2d_forward(x, backend.zeros((3, 2, 5, 5)), b)
    with pytest.raises(InputError, match="at most half"):
        pool2d.maxpool_forward(x, kernel_size=(2, 2), stride=(2, 2), padding=(2, 0))
    with pytest.raises(InputError, match="unknown activation"):
        conv2d.conv2d_forward(x, backend.zeros((3, 2, 3, 3)), b, activation="gelu")


def test_an_array_of_nobody_has_no_backend() -> None:
    with pytest.raises(TypeError, match="not an array of a CUDA backend"):
        backend_of(object())


@emulates
def test_arrays_go_there_and_back(backend: CudaBackend) -> None:
    host = np.arange(6, dtype=np.float32).reshape(2, 3)
    array = backend.asarray(host.T)
    assert backend.asarray(array) is array
    assert backend.to_numpy(array).tolist() == host.T.tolist()
    assert backend.to_numpy(backend.zeros((2,), np.uint8)).tolist() == [0, 0]
    backend.synchronize()


def test_includes_are_expanded() -> None:
    for file in kernel_source.files():
        text = kernel_source.expand(file)
        assert "#include" not in text
        assert text.count("#define FOR_EACH(") == 1


def test_every_kernel_says_what_it_costs() -> None:
    names = "N C F O H W OH OW KH KW K R M I L n P PH PW splits"
    sizes = dict.fromkeys(names.split(), 2)
    for entry in kernel_source.all_entries().values():
        assert set(entry.about) >= {"formula", "shapes", "flops", "bytes", "bound"}, entry.name
        for what in ("flops", "bytes"):
            value = eval(entry.about[what], {"__builtins__": {}}, sizes)
            assert value >= 0, (entry.name, what)
        assert any(p.written for p in entry.parameters), entry.name


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("// relu_forward: y", "// relu_forwards: y", "the head describes"),
        ("const float* __restrict__ x,  // (n)", "const float* __restrict__ x,", "its shape"),
        ("long long n)", "size_t n)", "cannot read"),
    ],
)
def test_a_source_that_does_not_describe_itself_is_refused(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    folder = Path(shutil.copytree(kernel_source.kernels_dir(), tmp_path / "kernels"))
    path = folder / "activation.cu"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(ValueError, match=message):
        kernel_source.entries("activation", folder)


def test_kernels_are_found_or_missed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (kernel_source.kernels_dir() / "conv2d.cu").is_file()
    monkeypatch.setattr(kernel_source, "__file__", str(tmp_path / "a" / "b" / "c.py"))
    with pytest.raises(FileNotFoundError, match="reinstall"):
        kernel_source.kernels_dir()


def test_a_tiling_covers_its_map_and_fits() -> None:
    """Over many sizes: all strips belong to a tile, and the region stays within its room."""
    rng = np.random.default_rng(0)
    for _ in range(2000):
        size = (int(rng.integers(1, 300)), int(rng.integers(1, 300)))
        kernel = (int(rng.integers(1, 8)), int(rng.integers(1, 8)))
        stride = (int(rng.integers(1, 4)), int(rng.integers(1, 4)))
        k = plan.constants(int(rng.integers(1, 40)), int(rng.integers(1, 40)), kernel, stride)
        assert k is not None
        for prefix, step in (("FWD", stride), ("INP", (1, 1))):
            pixels, room = k[f"{prefix}_PIXELS"], k[f"{prefix}_REGION"]
            tiling = plan.fit(size, pixels, k[f"{prefix}_STRIPS"], kernel, step, room)
            assert 1 <= tiling.tile_strips <= k[f"{prefix}_STRIPS"]
            rows = -(-size[0] // pixels)
            strips = rows * tiling.tile_w
            for first in range(0, strips, tiling.tile_strips):
                last = min(first + tiling.tile_strips, strips) - 1
                touched = last // tiling.tile_w - first // tiling.tile_w + 1
                height = (touched * pixels - 1) * step[0] + kernel[0]
                assert height * ((tiling.tile_w - 1) * step[1] + kernel[1]) <= room
            bands = -(-size[1] // tiling.tile_w)
            assert tiling.tiles(3) == 3 * bands * -(-strips // tiling.tile_strips)


def test_a_batch_beyond_one_launch_is_refused() -> None:
    k = plan.constants(3, 32, (3, 3), (1, 1))
    assert k is not None
    with pytest.raises(InputError, match="too many for one launch"):
        plan.tiles(k, "FWD", 2**31, (8, 8), (3, 3), (1, 1))


def test_constants_of_every_layer_fit_or_are_refused() -> None:
    assert plan.constants(3, 32, (3, 3), (1, 1)) is not None
    assert plan.constants(2, 3, (48, 3), (1, 2)) is None
    for c in (1, 3, 12, 33, 512):
        for o in (1, 3, 12, 33, 512):
            for kernel in ((1, 1), (3, 3), (5, 3), (7, 7), (11, 11)):
                for stride in ((1, 1), (2, 2), (4, 4)):
                    k = plan.constants(c, o, kernel, stride)
                    if k is None:
                        continue
                    taps = kernel[0] * kernel[1]
                    for p in ("FWD", "INP"):
                        slots = k[f"{p}_GROUPS"] * -(-k[f"{p}_PER_THREAD"] // 4) * 4 + 4
                        floats = k[f"{p}_CHUNK"] * (k[f"{p}_REGION"] + taps * slots)
                        assert 4 * floats <= 48 * 1024
                        assert 32 <= k[f"{p}_THREADS"] <= 256
                    assert 4 * k["WGT_IN_WARPS"] * k["WGT_REGION"] <= 48 * 1024
                    assert k["WGT_THREADS"] <= 256
