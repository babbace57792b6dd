"""What every layer promises besides right numbers, and what pooling does with ties and NaN."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from layer_cases import CASES, MAXPOOL2D, LayerCase

from cae_raw.backends import NUMPY
from cae_raw.errors import InputError
from cae_raw.gradcheck.cases import run_both_ways
from cae_raw.layers import (
    Conv2d,
    Flatten,
    Layer,
    Linear,
    MaxPool2d,
    MaxUnpool2d,
    MSELoss,
    Pad2d,
    ReLU,
    Sequential,
    Tanh,
    Trace,
    Unflatten,
    initial,
)
from cae_raw.models import build, single_layer
from cae_raw.ops import pool2d

cases = pytest.mark.parametrize("case", CASES, ids=str)


def prepared(case: LayerCase, dtype: Any = np.float32) -> tuple[Sequential, Any, Any]:
    """The layer as a stack, a batch, and a gradient of the output."""
    rng = np.random.default_rng(5)
    stack = case.configuration.build().astype(dtype)
    x = case.configuration.draw(rng).astype(dtype)
    return stack, x, rng.standard_normal(stack.forward(x).shape).astype(dtype)


def assert_equal(a: dict[str, Any], b: dict[str, Any]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


@cases
def test_shapes_and_types(case: LayerCase) -> None:
    stack, x, dy = prepared(case)
    found = run_both_ways(stack, x, dy, {})
    if not any(isinstance(layer, MaxUnpool2d) for layer in stack.stack):
        assert found["output"].shape == (len(x), *stack.output_shape(x.shape[1:]))
    assert found["input"].shape == x.shape
    for name, parameter in stack.params.items():
        assert found[name].shape == parameter.shape
    for name, array in found.items():
        assert array.dtype == np.float32, name
        assert array.flags.c_contiguous, name
        assert np.isfinite(array).all(), name  # the parameters' gradients were NaN before
    assert isinstance(stack.flops(x.shape[1:]), int)


@cases
def test_inputs_stay_and_results_repeat(case: LayerCase) -> None:
    stack, x, dy = prepared(case)
    before = [a.copy() for a in (x, dy, stack.parameters)]
    first = {k: v.copy() for k, v in run_both_ways(stack, x, dy, {}).items()}
    assert_equal(first, run_both_ways(stack, x, dy, {}))
    for old, new in zip(before, (x, dy, stack.parameters), strict=True):
        np.testing.assert_array_equal(old, new)


@cases
def test_two_passes_interleaved(case: LayerCase) -> None:
    """Nothing of a pass stays in the layer: it is all in the trace."""
    stack, x, dy = prepared(case)
    other = np.ascontiguousarray(x[::-1, ..., ::-1])
    expected = run_both_ways(stack, x, dy, {})
    trace: Trace = {}
    gradients: dict[str, Any] = {}
    stack.forward(x, trace)
    stack.forward(other, {})
    dx = stack.backward(dy, trace, gradients)
    assert_equal({k: v for k, v in expected.items() if k != "output"}, {"input": dx, **gradients})


@cases
def test_non_contiguous_arrays(case: LayerCase) -> None:
    stack, x, dy = prepared(case)
    spread = []
    for array in (x, dy):
        wide = np.full((*array.shape[:-1], 2 * array.shape[-1]), np.nan, np.float32)
        wide[..., ::2] = array
        spread.append(wide[..., ::2])
    assert_equal(run_both_ways(stack, x, dy, {}), run_both_ways(stack, *spread, {}))
    turned = [np.asfortranarray(a) for a in (x, dy)]
    assert_equal(run_both_ways(stack, x, dy, {}), run_both_ways(stack, *turned, {}))


@cases
def test_what_is_not_wanted_is_not_computed(case: LayerCase) -> None:
    stack, x, dy = prepared(case)
    expected = run_both_ways(stack, x, dy, {})
    trace: Trace = {}
    stack.forward(x, trace)
    gradients: dict[str, Any] = {}
    assert stack.backward(dy, trace, gradients, need_dx=False) is None
    assert_equal(gradients, {name: expected[name] for name in stack.names})
    np.testing.assert_array_equal(stack.backward(dy, trace), expected["input"])


@pytest.mark.parametrize("first", [Conv2d(4, 3, 3, padding=1), Conv2d(3, 4, 3, padding=1)])
@pytest.mark.parametrize("follower", [Tanh, ReLU])
def test_a_fused_activation_equals_separate_layers(first: Conv2d, follower: type[Layer]) -> None:
    layers = [first, follower(), Flatten(), Linear(first.out_channels * 30, 7), follower()]
    x = np.random.default_rng(0).standard_normal((2, first.in_channels, 5, 6)).astype(np.float32)
    dy = np.random.default_rng(1).standard_normal((2, 7)).astype(np.float32)
    fused = run_both_ways(Sequential(*layers), x, dy, {})
    trace: Trace = {}
    y = x
    for layer in layers:
        y = layer.forward(y, trace)
    expected = {"output": y}
    for i, layer in reversed(list(enumerate(layers))):
        mine: dict[str, Any] = {}
        dy = layer.backward(dy, trace, mine)
        expected.update({f"{i}.{name}": value for name, value in mine.items()})
    assert_equal(fused, {**expected, "input": dy})


def test_until_stops_early_even_between_a_layer_and_its_activation() -> None:
    model = single_layer(2, 3, np.random.default_rng(0))
    x = np.random.default_rng(0).uniform(-1, 1, (2, 2, 4, 5)).astype(np.float32)
    np.testing.assert_array_equal(np.tanh(model.forward(x, until=1)), model.encode(x))
    assert model.encode(x).shape == (2, 3, 6, 7)
    np.testing.assert_array_equal(model(x), model.forward(x, {}))


# --- pooling --------------------------------------------------------------------------------


def pooled_by_hand(x: Any, layer: MaxPool2d) -> tuple[Any, Any]:
    """Window by window, with NumPy's argmax over the part of each window that lies on the map."""
    (kh, kw), (sh, sw), (ph, pw) = layer.kernel_size, layer.stride, layer.padding
    y = np.empty((*x.shape[:2], *layer.output_shape(x.shape[1:])[1:]), x.dtype)
    mask = np.empty(y.shape, np.uint8)
    for n, c, i, j in np.ndindex(y.shape):
        top, left = max(0, i * sh - ph), max(0, j * sw - pw)
        part = x[n, c, top : i * sh - ph + kh, left : j * sw - pw + kw]
        p, q = np.unravel_index(np.argmax(part), part.shape)
        y[n, c, i, j] = part[p, q]
        mask[n, c, i, j] = (top + p - i * sh + ph) * kw + left + q - j * sw + pw
    return y, mask


def constant(value: float) -> Callable[[np.random.Generator, Any], Any]:
    return lambda rng, shape: np.full(shape, value)


POOL_INPUTS: dict[str, Callable[[np.random.Generator, Any], Any]] = {
    "distinct": lambda rng, shape: rng.standard_normal(shape),
    "many ties": lambda rng, shape: rng.integers(-1, 2, shape).astype(float),
    "some NaN": lambda rng, shape: rng.choice([np.nan, -np.inf, 0.0, 1.0, np.inf], shape),
    "all NaN": constant(np.nan),
    "all -inf": constant(-np.inf),
    "negative": lambda rng, shape: -1 - rng.random(shape),  # a zero from the padding would win
    "signed zeros": lambda rng, shape: rng.choice([-0.0, 0.0], shape),
}


@pytest.mark.parametrize("content", POOL_INPUTS)
@pytest.mark.parametrize("row", MAXPOOL2D, ids=str)
def test_pooling_picks_what_argmax_picks(row: tuple[Any, ...], content: str) -> None:
    layer = MaxPool2d(*row[4:])
    x = POOL_INPUTS[content](np.random.default_rng(3), row[:4]).astype(np.float32)
    y, mask = pool2d.maxpool_forward(x, **layer.window)
    expected_y, expected_mask = pooled_by_hand(x, layer)
    np.testing.assert_array_equal(y, expected_y)
    np.testing.assert_array_equal(mask, expected_mask)
    assert mask.dtype == np.uint8
    # A mask that points outside the map would lose its window's share of the gradient.
    counts = pool2d.mask_scatter(np.ones_like(y), mask, size=x.shape[2:], **layer.window)
    assert counts.sum() == y.size


def test_overlapping_windows_add_up() -> None:
    x = np.zeros((1, 1, 3, 3), np.float32)
    x[0, 0, 1, 1] = 5
    trace: Trace = {}
    pool = MaxPool2d(2, stride=1)
    pool.forward(x, trace)
    dx = pool.backward(np.array([[[[1, 2], [4, 8]]]], np.float32), trace)
    np.testing.assert_array_equal(dx, x * 3)  # 1 + 2 + 4 + 8 = 15 at the one maximum


def test_unpooling_by_hand() -> None:
    """The mask stays the pooling layer's own; the last column belongs to no window."""
    x = np.array([[[[1, 9, 2, 3, 7], [4, 5, 8, 6, 7]]]], np.float32)
    pool = MaxPool2d(2)
    unpool, trace = MaxUnpool2d(pool), {}
    np.testing.assert_array_equal(pool.forward(x, trace), [[[[9, 8]]]])
    y = unpool.forward(np.array([[[[10, 20]]]], np.float32), trace)
    np.testing.assert_array_equal(y, [[[[0, 10, 0, 0, 0], [0, 0, 20, 0, 0]]]])
    np.testing.assert_array_equal(unpool.backward(x, trace), [[[[9, 8]]]])
    assert unpool.output_shape((1, 1, 2)) == (1, 2, 4)  # the smallest size that pools to it


# --- the flat parameter vector --------------------------------------------------------------


def test_parameters_share_one_vector() -> None:
    first, second = Conv2d(2, 3, (2, 1)), Linear(5, 4)
    values = [p.copy() for layer in (first, second) for p in layer.params.values()]
    model = Sequential(first, ReLU(), Sequential(Tanh(), second))
    assert model.names == ["0.weight", "0.bias", "3.weight", "3.bias"]
    np.testing.assert_array_equal(model.parameters, np.concatenate([v.ravel() for v in values]))
    model.parameters[:] = np.arange(model.parameters.size)
    np.testing.assert_array_equal(first.weight, np.arange(12).reshape(3, 2, 2, 1))
    np.testing.assert_array_equal(second.bias, np.arange(35, 39))
    second.weight[0, 0] = -1
    assert model.parameters[15] == -1
    assert model.split(model.parameters)["3.weight"][0, 0] == -1


@pytest.mark.parametrize("how", ["astype", "load_parameters", "to"])
def test_layers_follow_when_the_vector_is_replaced(how: str) -> None:
    model = Sequential(Conv2d(2, 3, 2), Tanh(), Conv2d(3, 1, 1))
    old = model.parameters.copy()
    if how == "astype":
        assert model.astype(np.float64) is model
        assert model.stack[0].params["weight"].dtype == np.float64
    elif how == "load_parameters":
        given = old + 1
        model.load_parameters(given)
        given[:] = 0  # the model has a copy
        old += 1
    else:
        assert model.to(NUMPY) is model
    np.testing.assert_array_equal(model.parameters, old)
    for layer in (model.stack[0], model.stack[2]):
        for array in layer.params.values():
            assert np.shares_memory(array, model.parameters)


def test_a_stack_without_parameters_or_layers() -> None:
    x = np.ones((2, 3), np.float32)
    for model in (Sequential(), Sequential(ReLU())):
        assert model.parameters.size == 0
        assert_equal(run_both_ways(model, x, x, {}), {"output": x, "input": x})
    assert Sequential().output_shape((3,)) == (3,)


def test_initial_weights() -> None:
    same = [Conv2d(3, 32, 3, rng=np.random.default_rng(1)).weight for _ in range(2)]
    np.testing.assert_array_equal(*same)
    for shape, fan_in in (((64, 8, 3, 3), 72), ((300, 50), 50)):
        weight, bias = initial.values("uniform", shape, np.random.default_rng(0))
        assert 0.97 <= np.abs(weight).max() * np.sqrt(fan_in) <= 1 + 1e-6
        assert weight.std() == pytest.approx(1 / np.sqrt(3 * fan_in), rel=0.05)
        assert 0 < np.abs(bias).max() * np.sqrt(fan_in) <= 1 + 1e-6
        weight, bias = initial.values("truncated_normal", shape, np.random.default_rng(0))
        deviations = weight / np.sqrt(2.6 / fan_in)
        assert 1.97 <= np.abs(deviations).max() <= 2 + 1e-6
        assert deviations.std() == pytest.approx(0.8796, rel=0.03)  # of a normal cut at +-2
        assert not bias.any()


def test_losses() -> None:
    y, target = np.array([[1, 2, 3]], np.float32), np.array([[0, 2, 7]], np.float32)
    for kind, value, slope in (("mse", 17 / 3, 2 / 3), ("half_mse", 17 / 6, 1 / 3)):
        found, dy = MSELoss(kind)(y, target)
        assert found == pytest.approx(value, rel=1e-7)
        np.testing.assert_allclose(dy, np.array([[1, 0, -4]]) * slope, rtol=1e-6)
        total, part = MSELoss(kind).partial(y, target, 30)
        assert total[0] == 17
        np.testing.assert_allclose(part, dy / 10, rtol=1e-6)
    empty = np.zeros((0, 3), np.float32)
    assert MSELoss()(empty, empty)[0] == 0


# --- bad input ------------------------------------------------------------------------------

IMAGES = np.zeros((2, 3, 4, 5), np.float32)
POOL = MaxPool2d(2)

FAULTS: dict[str, tuple[Callable[[], Any], str]] = {
    "channels": (lambda: Conv2d(2, 4, 3).forward(IMAGES), r"Conv2d\(2.* 2 channels.* has 3"),
    "no batch axis": (lambda: Conv2d(3, 4, 3).forward(IMAGES[0]), r"Conv2d\(3.*\(C, H, W\)"),
    "window too large": (lambda: Conv2d(3, 4, 6).forward(IMAGES), r"Conv2d\(3.*window of 6"),
    "no pixels": (lambda: Conv2d(3, 4, 1).forward(IMAGES[:, :, :0]), "Conv2d.*one pixel"),
    "pool of no pixels": (lambda: POOL.forward(IMAGES[..., :0]), "MaxPool2d.*one pixel"),
    "pool too large": (lambda: MaxPool2d((5, 1)).forward(IMAGES), r"MaxPool2d\(.*window of 5"),
    "pool of vectors": (lambda: POOL.forward(IMAGES[..., 0, 0]), "MaxPool2d"),
    "unpool alone": (lambda: MaxUnpool2d(POOL).forward(IMAGES, {}), "MaxUnpool2d.*trace"),
    "unpool without trace": (lambda: MaxUnpool2d(POOL).forward(IMAGES), "MaxUnpool2d.*trace"),
    "unpool of another shape": (
        lambda: Sequential(POOL, Conv2d(3, 2, 1), MaxUnpool2d(POOL)).forward(IMAGES),
        r"MaxUnpool2d.*\(2, 2, 2, 2\).*\(2, 3, 2, 2\)",
    ),
    "images into Linear": (lambda: Linear(60, 2).forward(IMAGES), r"Linear\(60, 2\).*Flatten"),
    "Linear's width": (lambda: Linear(7, 2).forward(IMAGES[:, 0, 0]), r"Linear\(7, 2\)"),
    "Unflatten's size": (lambda: Unflatten((3, 4)).forward(IMAGES[:, 0, 0]), "Unflatten"),
    "pad of vectors": (lambda: Pad2d(1).forward(IMAGES[:, 0, 0]), "Pad2d"),
    "loss of two shapes": (lambda: MSELoss()(IMAGES, IMAGES[:1]), "differ"),
    "inside a stack": (
        lambda: Sequential(Flatten(), Linear(61, 2)).forward(IMAGES),
        r"Linear\(61, 2\)",
    ),
    "kernel_size 0": (lambda: Conv2d(3, 4, 0), "kernel_size must be at least 1"),
    "kernel_size 1.5": (lambda: Conv2d(3, 4, 1.5), "kernel_size must be a whole number"),  # type: ignore[arg-type]
    "kernel_size None": (lambda: MaxPool2d(None), "kernel_size must be a whole number"),  # type: ignore[arg-type]
    "three strides": (lambda: Conv2d(3, 4, 3, (1, 2, 3)), "stride must be"),  # type: ignore[arg-type]
    "stride 0": (lambda: MaxPool2d(2, (1, 0)), "stride must be at least 1"),
    "negative padding": (lambda: Conv2d(3, 4, 3, padding=-1), "padding must be at least 0"),
    "no channels": (lambda: Conv2d(0, 4, 3), "channels must be at least 1"),
    "no features": (lambda: Linear(4, 0), "features must be at least 1"),
    "pool padding": (lambda: MaxPool2d(3, padding=2), "more than half"),
    "taps": (lambda: MaxPool2d((16, 17)), "more than 256 taps"),
    "unpool of no pool": (lambda: MaxUnpool2d(Tanh()), "takes a MaxPool2d"),  # type: ignore[arg-type]
    "overlap": (lambda: MaxUnpool2d(MaxPool2d(3, 2)), r"overlap.*MaxPool2d\(\(3, 3\)"),
    "pad of two": (lambda: Pad2d((1, 2)), "one number or four"),  # type: ignore[arg-type]
    "pad of 1.5": (lambda: Pad2d(1.5), "one number or four"),  # type: ignore[arg-type]
    "negative pad": (lambda: Pad2d((0, 0, -1, 0)), "none negative"),
    "twice": (lambda: Sequential(POOL, Sequential(ReLU(), POOL)), "only once"),
    "parameters": (
        lambda: Sequential(Linear(2, 2)).load_parameters(np.zeros(5, np.float32)),
        "5 parameters for a model of 6",
    ),
    "activation": (
        lambda: Conv2d(3, 4, 3).forward(IMAGES, activation="gelu"),
        "unknown activation 'gelu'.*relu, tanh",
    ),
    "initializer": (lambda: Linear(2, 2, init="x"), "unknown initializer 'x'.*uniform"),
    "loss": (lambda: MSELoss("l1"), "unknown loss 'l1'.*half_mse, mse"),
    "model": (lambda: build("vgg"), "unknown model 'vgg'.*single-layer"),
    "model option": (lambda: build("single-layer", depth=3), "single-layer.*depth"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_bad_input_is_one_line_that_says_where(fault: str) -> None:
    call, pattern = FAULTS[fault]
    with pytest.raises(InputError, match=pattern) as caught:
        call()
    assert "\n" not in str(caught.value)


@cases
def test_an_output_gradient_of_another_shape_is_refused(case: LayerCase) -> None:
    stack, x, dy = prepared(case)
    trace: Trace = {}
    stack.forward(x, trace)
    for wrong in (np.concatenate([dy, dy[:1]]) if len(dy) else dy[None], dy[..., :-1]):
        with pytest.raises(InputError, match="the output's gradient has shape"):
            stack.backward(wrong, trace)
