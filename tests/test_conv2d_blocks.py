"""Convolution and pooling in NumPy take maps apart; no cut may show in the result."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from cae_raw.ops import conv2d, conv2d_reference, pool2d, windows

# channels in and out, (H, W), kernel, stride, padding
CASES = [
    (12, 12, (13, 11), (3, 3), (1, 1), (2, 2)),
    (3, 12, (13, 11), (3, 3), (1, 1), (0, 0)),
    (12, 3, (9, 14), (3, 3), (1, 1), (2, 2)),
    (12, 24, (7, 7), (3, 3), (1, 1), (1, 1)),
    (5, 4, (12, 9), (4, 2), (2, 1), (1, 0)),
    (4, 5, (12, 9), (1, 3), (1, 2), (0, 1)),
    (4, 4, (6, 7), (3, 3), (1, 1), (4, 3)),
]
# bytes of copies at a time, multiply-adds per product
CUTS = [(1, 1), (2000, 50), (3000, 5000), (20_000, 2000), (100_000_000, 3_000_000)]


def everything(case: Any) -> list[np.ndarray]:
    """Output and all gradients for three images, float64."""
    c, o, size, kernel, stride, padding = case
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((3, c, *size)), rng.standard_normal((o, c, *kernel))
    window = {"stride": stride, "padding": padding}
    y = conv2d.conv2d_forward(x, w, rng.standard_normal(o), activation="tanh", **window)
    dy = rng.standard_normal(y.shape)
    dx = conv2d.conv2d_backward_input(dy, w, input_size=size, **window)
    return [y, dx, conv2d.conv2d_backward_weight(dy, x, kernel_size=kernel, **window)]


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_cuts_do_not_show(case: Any, cut: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    expected = everything(case)
    monkeypatch.setattr(windows, "BLOCK_BYTES", cut[0])
    monkeypatch.setattr(conv2d_reference, "SMALL_PRODUCT", cut[1])
    monkeypatch.setattr(conv2d_reference, "FEWEST_COLUMNS", 7)
    for found, whole in zip(everything(case), expected, strict=True):
        np.testing.assert_allclose(found, whole, rtol=1e-12, atol=1e-12)


def test_either_map_is_copied_for_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one with fewer numbers to copy, whichever it is."""
    copied = []
    products = conv2d_reference._products_with_copies

    def noted(a: Any, *rest: Any) -> Any:
        copied.append(a)
        return products(a, *rest)

    monkeypatch.setattr(conv2d_reference, "_products_with_copies", noted)
    x = np.ones((1, 4, 8, 8))
    for o, size, narrower in (
        (4, 6, "x"),
        (4, 10, "dy"),
        (3, 8, "dy"),
        (5, 8, "x"),
        (2, 6, "dy"),
        (3, 6, "x"),
    ):
        dy = np.ones((1, o, size, size))
        padding = ((size - 6) // 2,) * 2
        conv2d.conv2d_backward_weight(dy, x, kernel_size=(3, 3), padding=padding)
        assert copied.pop() is (dy if narrower == "dy" else x)


def test_even_cuts() -> None:
    for length, largest in ((10, 3), (9, 3), (1, 5), (7, 1), (0, 4)):
        cuts = windows.even_cuts(length, largest)
        assert [i for cut in cuts for i in range(cut.start, cut.stop)] == list(range(length))
        sizes = [cut.stop - cut.start for cut in cuts]
        assert not sizes or (max(sizes) <= largest and max(sizes) - min(sizes) <= 1)
        assert len(cuts) == -(-length // largest)


def test_products_are_small_ones() -> None:
    for size, length in ((36 * 36, 3720), (864, 1156), (1, 1), (5_000_000, 700), (2592, 784)):
        columns = conv2d_reference._columns(size, length)
        covered = [i for part, _ in columns for i in range(part.start, part.stop)]
        assert covered == list(range(length))
        for part, count in columns:
            width, rest = divmod(part.stop - part.start, count)
            assert rest == 0
            assert size * width <= conv2d_reference.SMALL_PRODUCT or width <= 256


# --- pooling ----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(2, 2), (6, 4), (7, 5), (3, 8), (2, 9)])
@pytest.mark.parametrize("content", ["ties", "zeros", "NaN", "infinite", "signed zeros"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_pooling_of_pairs_is_pooling(
    size: tuple[int, int], content: str, dtype: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(1)
    x = rng.integers(0, 3, (2, 3, *size)).astype(dtype)
    special = {"zeros": [0], "NaN": [np.nan, 2], "infinite": [np.inf, -np.inf]}
    special |= {"signed zeros": [0.0, -0.0]}
    for value in special.get(content, []):
        x[rng.random(x.shape) < (1.0 if content == "zeros" else 0.3)] = value
    window = {"kernel_size": (2, 2), "stride": (2, 2)}
    y, mask = pool2d.maxpool_forward(x, **window)
    monkeypatch.setattr(pool2d, "_maxpool_of_pairs", lambda x: (np.array([np.nan]), None))
    expected, expected_mask = pool2d.maxpool_forward(x, **window)
    np.testing.assert_array_equal(y, expected)
    np.testing.assert_array_equal(mask, expected_mask)
    assert (y.dtype, mask.dtype) == (dtype, np.uint8)


@pytest.mark.parametrize(
    "window",
    [
        {"kernel_size": (2, 2), "stride": (2, 2), "padding": (0, 0)},
        {"kernel_size": (2, 3), "stride": (4, 3), "padding": (1, 1)},
        {"kernel_size": (3, 2), "stride": (1, 2), "padding": (1, 0)},
    ],
    ids=str,
)
@pytest.mark.parametrize("stray", [False, True], ids=["mask of a pooling", "any mask"])
def test_scatter_and_gather_follow_the_mask(window: Any, stray: bool) -> None:
    """Element by element, for windows side by side, apart, and overlapping."""
    rng = np.random.default_rng(2)
    large = rng.standard_normal((2, 3, 9, 10))
    y, mask = pool2d.maxpool_forward(large, **window)
    values = rng.standard_normal(y.shape)
    values[0, 0, 0, 0] = np.inf
    if stray:  # neither among the taps nor, where there is padding, always on the map
        mask[...] = rng.integers(0, 256, mask.shape)
    expected, gathered = np.zeros_like(large), np.empty_like(y)
    for n, c, i, j in np.ndindex(y.shape):
        p, q = divmod(int(mask[n, c, i, j]), window["kernel_size"][1])
        h = i * window["stride"][0] - window["padding"][0] + p
        w = j * window["stride"][1] - window["padding"][1] + q
        inside = p < window["kernel_size"][0] and 0 <= h < 9 and 0 <= w < 10
        gathered[n, c, i, j] = large[n, c, h, w] if inside else 0
        if inside:
            expected[n, c, h, w] += values[n, c, i, j]
    np.testing.assert_array_equal(pool2d.mask_gather(large, mask, **window), gathered)
    np.testing.assert_allclose(
        pool2d.mask_scatter(values, mask, size=(9, 10), **window), expected, rtol=1e-15
    )
