"""NumPy layers: their definitions, central differences, adjoints, and examples worked by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from layer_cases import CASES, CONV2D, LayerCase

from cae_raw.gradcheck import Check
from cae_raw.gradcheck.differences import gradient_checks
from cae_raw.layers import LAYERS, Flatten, Unflatten
from cae_raw.ops import activation, conv2d, linear, pad2d, pool2d


@pytest.mark.parametrize("case", CASES, ids=str)
def test_gradients_are_derivatives(case: LayerCase) -> None:
    checks = list(gradient_checks(case.configuration))
    assert {check.what for check in checks} >= {"input"}
    assert [check for check in checks if not check.passed] == []
    if case.shape[0] and case.name in ("Conv2d", "Linear"):
        assert len(checks) == 3


def test_every_layer_has_cases_and_one_of_them_an_empty_batch() -> None:
    assert {case.name for case in CASES if case.shape[0] == 0} == set(LAYERS)


# Two rows of two windows: y[0,0] = 1*1 + 2*2 + 3*4 + 4*5 = 37, and with the bias 10 it is 47.
X = np.array([[1, 2, 3], [4, 5, 6], [7, 8, 9]], np.float64)[None, None]
W = np.array([[1, 2], [3, 4]], np.float64)[None, None]
Y = np.array([[47, 57], [77, 87]], np.float64)[None, None]
DY = np.array([[1, -1], [2, 0]], np.float64)[None, None]
DX = np.array([[1, 1, -2], [5, 5, -4], [6, 8, 0]], np.float64)[None, None]
DW = np.array([[7, 9], [13, 15]], np.float64)[None, None]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("swap", [False, True], ids=["as is", "transposed"])
def test_a_convolution_worked_by_hand(dtype: type, swap: bool) -> None:
    x, w, y, dy, dx, dw = (
        (a.swapaxes(2, 3) if swap else a).astype(dtype) for a in (X, W, Y, DY, DX, DW)
    )
    b = np.array([10], dtype)
    np.testing.assert_array_equal(conv2d.conv2d_forward(x, w, b), y)
    np.testing.assert_array_equal(conv2d.conv2d_backward_input(dy, w, input_size=(3, 3)), dx)
    np.testing.assert_array_equal(conv2d.conv2d_backward_weight(dy, x, kernel_size=(2, 2)), dw)
    np.testing.assert_array_equal(conv2d.conv2d_backward_bias(dy), [2])


def test_channels_and_stride_worked_by_hand() -> None:
    """Two channels in, three out, 1x2 windows two columns apart over a map padded to 6 columns."""
    x = np.array([[[1, 2, 3, 4]], [[10, 20, 30, 40]]], np.float64)[None]
    w = np.array([[[1, 2]], [[0, 1]]], np.float64)[None]  # y = x0[j] + 2 x0[j+1] + x1[j+1]
    w = np.concatenate([w, 2 * w, -w])
    y = conv2d.conv2d_forward(x, w, np.zeros(3), stride=(1, 2), padding=(0, 1))
    # windows at columns -1, 1 and 3: 2*1+10, 2+2*3+30, 4+0
    np.testing.assert_array_equal(y[0, :, 0], [[12, 38, 4], [24, 76, 8], [-12, -38, -4]])


@pytest.mark.parametrize("row", CONV2D, ids=str)
def test_conv2d_by_its_definition(row: tuple[Any, ...]) -> None:
    """Window by window over the padded map."""
    n, c, h, w, o = row[:5]
    (kh, kw), (sh, sw), (ph, pw) = (a if isinstance(a, tuple) else (a, a) for a in row[5:])
    rng = np.random.default_rng(0)
    x, weight, b = (rng.standard_normal(s) for s in ((n, c, h, w), (o, c, kh, kw), (o,)))
    y = conv2d.conv2d_forward(x, weight, b, stride=(sh, sw), padding=(ph, pw))
    assert y.shape == (n, o, (h + 2 * ph - kh) // sh + 1, (w + 2 * pw - kw) // sw + 1)
    padded = np.zeros((n, c, h + 2 * ph, w + 2 * pw))
    padded[:, :, ph : ph + h, pw : pw + w] = x
    expected = np.empty_like(y)
    for i, j in np.ndindex(y.shape[2:]):
        window = padded[:, :, i * sh : i * sh + kh, j * sw : j * sw + kw]
        expected[:, :, i, j] = np.einsum("ncpq,ocpq->no", window, weight) + b
    np.testing.assert_allclose(y, expected, rtol=1e-12, atol=1e-13)


def test_the_other_layers_by_their_definitions() -> None:
    x = np.array([[1, -2, 0.5], [0, 3, -1]])
    w, b = np.array([[1, 2, 4], [0, -1, 2]]), np.array([10.0, 20])
    np.testing.assert_array_equal(linear.linear_forward(x, w, b), [[9, 23], [12, 15]])
    np.testing.assert_array_equal(activation.relu_forward(x), [[1, 0, 0.5], [0, 3, 0]])
    np.testing.assert_array_equal(activation.tanh_forward(x), np.tanh(x))
    y = np.array([0.0, -0.0, 1e-30, np.nan, 2.0])  # at a kink the gradient is 0
    slopes = activation.relu_backward(np.array([5.0, 5, 5, 5, np.nan]), y)
    np.testing.assert_array_equal(slopes, [0, 0, 5, 0, np.nan])
    image = np.array([[[[1, 2, 3]]]])
    padded = [[0, 0, 0, 0, 0, 0, 0], [0, 0, 0, 1, 2, 3, 0], [0] * 7, [0] * 7]
    np.testing.assert_array_equal(pad2d.pad2d_forward(image, borders=(1, 2, 3, 1))[0, 0], padded)
    maps = np.arange(24).reshape(2, 2, 3, 2)
    flat = Flatten().forward(maps)
    np.testing.assert_array_equal(flat, np.arange(24).reshape(2, 12))
    np.testing.assert_array_equal(Unflatten((2, 3, 2)).forward(flat), maps)


def axis() -> st.SearchStrategy[tuple[int, int, int, int]]:
    """(size, kernel, stride, padding) of one axis, in which at least one window fits."""
    numbers = st.tuples(*(st.integers(a, b) for a, b in ((1, 9), (1, 5), (1, 4), (0, 5))))
    return numbers.filter(lambda t: t[0] + 2 * t[3] >= t[1])


def pool_axis() -> st.SearchStrategy[tuple[int, int, int, int]]:
    """The same with a padding of at most half the kernel, as pooling asks for."""
    return axis().filter(lambda t: 2 * t[3] <= t[1])


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    st.tuples(st.integers(0, 3), st.integers(1, 5), st.integers(1, 5)),
    axis(),
    axis(),
    st.integers(0, 2**32 - 1),
)
def test_conv2d_backward_passes_are_its_adjoints(
    counts: tuple[int, int, int], height: tuple[int, ...], width: tuple[int, ...], seed: int
) -> None:
    """<conv(x, w), dy> = <x, backward_input(dy)> = <w, backward_weight(dy)>."""
    (n, c, o), rng = counts, np.random.default_rng(seed)
    (h, w_), kernel, stride, padding = zip(height, width, strict=True)
    x, w = rng.standard_normal((n, c, h, w_)), rng.standard_normal((o, c, *kernel))
    window = {"stride": stride, "padding": padding}
    y = conv2d.conv2d_forward(x, w, np.zeros(o), **window)
    dy = rng.standard_normal(y.shape)
    dx = conv2d.conv2d_backward_input(dy, w, input_size=(h, w_), **window)
    dw = conv2d.conv2d_backward_weight(dy, x, kernel_size=kernel, **window)
    size = np.linalg.norm(x) * np.linalg.norm(w) * np.linalg.norm(dy)
    assert abs(np.sum(y * dy) - np.sum(x * dx)) <= 1e-13 * size
    assert abs(np.sum(y * dy) - np.sum(w * dw)) <= 1e-13 * size
    np.testing.assert_allclose(conv2d.conv2d_backward_bias(dy), dy.sum((0, 2, 3)), atol=1e-12)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(pool_axis(), pool_axis(), st.integers(0, 2**32 - 1))
def test_scatter_and_gather_are_adjoints(
    height: tuple[int, ...], width: tuple[int, ...], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    size, kernel, stride, padding = zip(height, width, strict=True)
    window = {"kernel_size": kernel, "stride": stride, "padding": padding}
    x = rng.standard_normal((2, 3, *size))
    y, mask = pool2d.maxpool_forward(x, **window)
    np.testing.assert_array_equal(pool2d.mask_gather(x, mask, **window), y)
    small = rng.standard_normal(y.shape)
    large = pool2d.mask_scatter(small, mask, size=size, **window)
    np.testing.assert_allclose(np.sum(large * x), np.sum(small * y), rtol=1e-12, atol=1e-12)


def test_a_check_of_nan_fails() -> None:
    check = Check("L", "c", "gradient", "input", error=float("nan"), tolerance=1.0)
    assert not check.passed
