"""The gradient checker itself: it passes what is right and fails what is wrong, by name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import emulator
import numpy as np
import pytest

from cae_raw import gradcheck
from cae_raw.backends import NumpyBackend, kernel_source
from cae_raw.backends.cuda_backend import CudaBackend
from cae_raw.errors import InputError
from cae_raw.gradcheck import cases, differences, kernels
from cae_raw.gradcheck.cases import LOSS_CASES, Configuration, configurations
from cae_raw.layers import LAYERS, Conv2d, Layer, MaxPool2d, ReLU
from cae_raw.models import MODELS
from cae_raw.ops import OPS, Op

NAMES = [*LAYERS, *MODELS, *LOSS_CASES]


def first_off(result: Any, by: float = 1e-3) -> Any:
    """The same arrays, but the first element of the first one is wrong by `by` of the largest."""
    if isinstance(result, tuple):
        return (first_off(result[0], by), *result[1:])
    result = result.copy()
    result.flat[0] += by * max(np.abs(result).max(), 1e-3)
    return result


# --- gradients ------------------------------------------------------------------------------


def test_everything_passes() -> None:
    checks = gradcheck.run()
    assert [check for check in checks if not check.passed] == []
    assert {check.layer for check in checks} == set(NAMES)
    assert {check.kind for check in checks} == {"gradient"}
    assert all("float64" in check.reason for check in checks)
    for name in ("Conv2d", "Linear"):
        assert {c.what for c in checks if c.layer == name} >= {"input", "weight", "bias"}


@pytest.mark.parametrize("name", NAMES)
def test_one_layer_alone(name: str) -> None:
    assert gradcheck.run(name) == [c for c in gradcheck.run() if c.layer == name]


PLANTED = {
    "conv2d_forward": ("Conv2d", "input"),
    "conv2d_backward_input": ("Conv2d", "input"),
    "conv2d_backward_weight": ("Conv2d", "weight"),
    "conv2d_backward_bias": ("Conv2d", "bias"),
    "linear_backward_input": ("Linear", "input"),
    "linear_backward_weight": ("Linear", "weight"),
    "linear_backward_bias": ("Linear", "bias"),
    "relu_backward": ("ReLU", "input"),
    "tanh_backward": ("Tanh", "input"),
    "pad2d_backward": ("Pad2d", "input"),
    "mask_scatter": ("MaxPool2d", "input"),
    "mask_gather": ("MaxUnpool2d", "input"),
    "squared_error": ("single-layer", "0.weight"),
    "penalty": ("single-layer", "2.weight"),
    "cross_entropy": ("CrossEntropyLoss", "input"),
}


@pytest.mark.parametrize("op", PLANTED)
def test_a_wrong_gradient_fails(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The gradient (or, for two of them, the value) is scaled by 1.001."""
    right = OPS[op].reference

    def wrong(*args: Any, **kwargs: Any) -> Any:
        result = right(*args, **kwargs)
        if op == "conv2d_forward":
            return result + 0.001 * np.square(args[0]).sum()
        if isinstance(result, tuple):
            return result[0], result[1] * 1.001
        result *= 1.001
        return result

    monkeypatch.setattr(OPS[op], "reference", wrong)
    layer, what = PLANTED[op]
    failed = [check for check in gradcheck.run(layer) if not check.passed]
    assert what in {check.what for check in failed}
    assert all(check.error > 1e-5 for check in failed)
    assert "FAIL" in str(failed[0])


@pytest.mark.parametrize("op", ["conv2d_backward_weight", "linear_backward_weight", "mask_scatter"])
def test_one_wrong_element_fails(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    right = OPS[op].reference

    def wrong(*args: Any, out: Any = None, **kwargs: Any) -> Any:
        result = first_off(right(*args, **kwargs))
        if out is not None:
            out[...] = result
        return result if out is None else out

    monkeypatch.setattr(OPS[op], "reference", wrong)
    layer, what = PLANTED[op]
    assert what in {check.what for check in gradcheck.run(layer) if not check.passed}


def test_a_gradient_added_instead_of_written_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    right = OPS["conv2d_backward_bias"].reference

    def adding(dy: Any, *, out: Any = None) -> Any:
        out += right(dy)
        return out

    monkeypatch.setattr(OPS["conv2d_backward_bias"], "reference", adding)
    failed = [check for check in gradcheck.run("Conv2d") if not check.passed]
    assert {check.what for check in failed} == {"bias", "0.bias"}
    assert np.isnan(failed[0].error)


@pytest.mark.parametrize("model", ["single-layer", "deep"])
def test_a_missing_l1_term_fails(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OPS["l1_backward"], "reference", lambda *_, **__: None)
    failed = {check.what for check in gradcheck.run(model) if not check.passed}
    assert {"input", "0.weight", "0.bias"} <= failed


def test_a_missing_penalty_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    right = OPS["sgd_step"].reference
    monkeypatch.setattr(
        OPS["sgd_step"], "reference", lambda *args, l2, **kwargs: right(*args, l2=None, **kwargs)
    )
    failed = {check.what for check in gradcheck.run("single-layer") if not check.passed}
    assert failed == {"0.weight", "2.weight"}


class Constant(Layer):
    """sin^2 + cos^2: 1 but for rounding, of gradient 0; it claims `slope` instead."""

    def __init__(self, slope: float) -> None:
        super().__init__()
        self.slope = slope

    def forward(self, x: Any, trace: Any = None) -> Any:
        return np.sin(x) ** 2 + np.cos(x) ** 2

    def backward(self, dy: Any, trace: Any, grads: Any = None, *, need_dx: bool = True) -> Any:
        return dy * self.slope


@pytest.mark.parametrize("slope", [0, 1e-8, 1e-3, 1])
def test_a_gradient_of_zero_passes_and_cannot_hide_a_wrong_one(slope: float) -> None:
    configuration = Configuration("Constant", lambda rng: Constant(slope), (4, 3, 5, 7))
    [check] = differences.gradient_checks(configuration)
    assert check.passed == (slope == 0)
    if slope == 0:
        assert check.error > 0  # there was rounding to fail on


class AtZero(Configuration):
    def draw(self, rng: np.random.Generator) -> Any:
        return np.zeros(self.shape)


def test_an_input_on_a_kink_fails_instead_of_comparing_nonsense() -> None:
    for make in (lambda rng: ReLU(), lambda rng: MaxPool2d((1, 2))):
        [check] = differences.gradient_checks(AtZero("Custom", make, (1, 2, 3, 4)))
        assert not check.passed
        assert "kink" in check.note


def test_a_direction_across_a_kink_is_drawn_anew() -> None:
    """One element just above zero: about half of all directions push it across."""

    class Near(Configuration):
        def draw(self, rng: np.random.Generator) -> Any:
            return np.array([[differences.STEP / 2, 1.0]])

    [check] = differences.gradient_checks(Near("Custom", lambda rng: ReLU(), (1, 2)))
    assert check.passed


def test_inputs_have_no_ties_and_no_zero() -> None:
    for size in (1, 2, 3, 120, 121):
        x = Configuration("Custom", lambda rng: ReLU(), (1, size)).draw(np.random.default_rng(0))
        assert len(set(x.ravel().astype(np.float32))) == size
        assert np.abs(x).min() > 0 and np.abs(x).max() < 1


# --- names ----------------------------------------------------------------------------------


def test_unknown_names_and_missing_configurations(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        InputError, match=r"unknown layer, model or loss 'Conv3d'.*Conv2d.*single-layer"
    ):
        gradcheck.run("Conv3d")
    monkeypatch.setitem(LAYERS, "New", Conv2d)
    monkeypatch.setitem(MODELS, "new", lambda **_: None)  # type: ignore[arg-type, return-value]
    monkeypatch.setitem(cases.LAYER_CASES, "Tanh", [])
    for name, table in (("New", "LAYER"), ("new", "MODEL"), ("Tanh", "LAYER")):
        with pytest.raises(InputError, match=f"{name} has no configuration.*{table}_CASES"):
            gradcheck.run(name)
    with pytest.raises(InputError, match="no configuration"):
        gradcheck.run()


def test_json() -> None:
    rows = json.loads(json.dumps([c.as_dict() for c in gradcheck.run("Linear")], allow_nan=False))
    assert rows[0]["layer"] == "Linear" and rows[0]["passed"] is True
    assert rows[0]["shape"] == [3, 7] and rows[0]["tolerance"] == 1e-7
    for error in (float("nan"), float("inf")):
        row = gradcheck.Check("L", "c", "kernel", "result", error, 1.0, kernel="k").as_dict()
        assert (row["error"], row["passed"]) == (None, False)
        json.dumps(row, allow_nan=False)


# --- kernels, with NumPy in the place of a device -------------------------------------------


class Device(NumpyBackend):
    """Another backend whose kernels are the float32 references."""

    name = "device"


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[Device]:
    for op in OPS.values():
        monkeypatch.setattr(op, "launcher", op.reference)
    yield Device()


def failures(device: Device) -> list[gradcheck.Check]:
    return [
        check
        for name in NAMES
        for configuration in configurations(name)
        for check in kernels.kernel_checks(configuration, device)
        if not check.passed
    ]


def test_right_kernels_pass_and_every_operation_is_reached(device: Device) -> None:
    checks = gradcheck.run(backend=device)
    assert [check for check in checks if not check.passed] == []
    assert {check.kernel for check in checks} - {""} == set(OPS)
    assert {check.kind for check in checks} == {"gradient", "kernel", "device"}
    for check in checks:
        if check.kind == "kernel" and check.tolerance:
            assert check.tolerance <= 8 * np.finfo(np.float32).eps * np.sqrt(10_000)


def perturbed(op: Op[Any, Any]) -> Callable[..., Any]:
    """The reference with one element of what it returns or writes off by 1e-3 of the largest."""

    def launcher(*args: Any, **kwargs: Any) -> Any:
        result = op.reference(*args, **kwargs)
        if result is None:
            args[0][...] = first_off(args[0])
            return None
        if op.name == "gather_flipped":
            return result ^ (np.arange(result.size) == 0).reshape(result.shape)
        if op.name == "maxpool_forward":
            return result[0], result[1] ^ (np.arange(result[1].size) == 0).reshape(result[1].shape)
        return first_off(result)

    return launcher


@pytest.mark.parametrize("name", OPS)
def test_a_wrong_kernel_is_named(
    name: str, device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(OPS[name], "launcher", perturbed(OPS[name]))
    found = failures(device)
    assert {check.kernel for check in found} == {name}
    assert all(name in str(check) for check in found)


def does_not_compile(*args: Any, **kwargs: Any) -> Any:
    raise RuntimeError("tanh.cu(3): error:\n  expected a ';'")


def writes_to_its_input(x: Any) -> Any:
    y = np.tanh(x)
    x *= 2
    return y


BROKEN: dict[str, tuple[Callable[..., Any], str]] = {
    "raises": (does_not_compile, "RuntimeError: tanh.cu(3): error: expected a ';'"),
    "writes to its input": (writes_to_its_input, "only read"),
    "shape": (lambda x: np.tanh(x)[:1, :1], "shape"),
    "NaN": (lambda x: np.tanh(x) * np.nan, ""),
    "nothing": (lambda x: None, "returns 0 arrays"),
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_kernel_is_named(
    how: str, device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    launcher, note = BROKEN[how]
    monkeypatch.setattr(OPS["tanh_forward"], "launcher", launcher)
    found = [check for check in gradcheck.run("Tanh", device) if not check.passed]
    assert {check.kernel for check in found} == {"tanh_forward"}
    assert all(note in check.note for check in found)


def test_a_gradient_that_a_kernel_leaves_alone_fails(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    op = OPS["linear_backward_bias"]
    monkeypatch.setattr(op, "launcher", lambda dy, *, out=None: dy.sum(axis=0))
    found = [check for check in gradcheck.run("Linear", device) if not check.passed]
    assert {(check.kernel, check.what) for check in found} == {("linear_backward_bias", "out")}


def test_a_wrong_layer_on_the_device_fails_as_a_whole(device: Device) -> None:
    class Inexact(Device):
        def to_numpy(self, array: Any) -> Any:
            return array * np.float32(1.001) if array.dtype == np.float32 else array

    found = [check for check in gradcheck.run("Flatten", Inexact()) if not check.passed]
    assert {(check.kind, check.what) for check in found} == {
        ("device", "output"),
        ("device", "input"),
    }

    class Faulty(Device):
        def asarray(self, host: Any) -> Any:
            raise OSError("no such device")

    [check] = [check for check in gradcheck.run("Flatten", Faulty()) if not check.passed]
    assert check.note == "OSError: no such device"


def test_an_operation_nobody_calls_is_reported(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(OPS, "forgotten", object.__new__(Op))
    OPS["forgotten"].name = "forgotten"
    OPS["forgotten"].reference = OPS["forgotten"].launcher = lambda x: x
    found = [check for check in gradcheck.run(backend=device) if not check.passed]
    assert [check.kernel for check in found] == ["forgotten"]


def test_recording_leaves_the_operations_as_they_were() -> None:
    before = {name: op.reference for name, op in OPS.items()}
    with pytest.raises(KeyError), kernels.recorded() as calls:
        OPS["tanh_forward"](np.ones(3))
        raise KeyError
    assert [call.op.name for call in calls] == ["tanh_forward"]
    assert {name: op.reference for name, op in OPS.items()} == before


# --- the real kernels, emulated -------------------------------------------------------------

emulated = pytest.mark.skipif(emulator.available() is not None, reason=str(emulator.available()))

RELU_KERNELS = {"relu_forward", "relu_backward"}
# file, text in it, a fault in its place, the layer whose check finds it, the kernels it names
BREAKS = [
    ("activation", "1.0f - y[k] * y[k]", "1.0f - y[k]", "Tanh", {"tanh_backward"}),
    ("activation", "tanhf(x[k])", "tanhf(x[k]) * 1.001f", "Tanh", {"tanh_forward"}),
    # A file that does not compile takes all its kernels along.
    ("activation", "y[k] = relu(x[k]);", "y[k] = relu(x[k])", "ReLU", RELU_KERNELS),
]


@emulated
def test_the_emulated_kernels_pass() -> None:
    before = emulator.launch_count()
    checks = gradcheck.run(backend=CudaBackend(emulator.emulated_cupy()))
    assert [str(check) for check in checks if not check.passed] == []
    assert {check.kernel for check in checks} - {""} == set(OPS)
    assert emulator.launch_count() - before >= len({(c.kernel, c.configuration) for c in checks})


@emulated
@pytest.mark.parametrize(("file", "text", "fault", "layer", "named"), BREAKS)
def test_a_broken_kernel_file_is_named(
    file: str, text: str, fault: str, layer: str, named: set[str], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(kernel_source.kernels_dir(), tmp_path / "kernels"))
    source = (folder / f"{file}.cu").read_text()
    assert source.count(text) == 1
    (folder / f"{file}.cu").write_text(source.replace(text, fault))
    backend = CudaBackend(emulator.emulated_cupy(), kernels_dir=folder)
    found = [check for check in gradcheck.run(layer, backend) if not check.passed]
    assert {check.kernel for check in found if check.kind == "kernel"} == named
