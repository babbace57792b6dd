"""Awkward inputs for every operation: one element, none, odd, prime, larger than a tile.

`CASES` maps each name in OPS to its cases. A case makes its arguments from a random generator, as
NumPy arrays, and says how many terms its longest sum has; tests run it on the reference and on the
kernels. Shapes share compile-time constants where they can, because each set is compiled anew.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from cae_raw.ops.precision import PRECISIONS
from cae_raw.ops.windows import Pair, output_size

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True)
class Case:
    """`terms` is the length of the longest sum behind one output element, R of the tolerance.

    `slack` is a share of the largest element that the tolerance has beside that.
    """

    op: str
    name: str
    make: Callable[[np.random.Generator], Arguments]
    terms: int = 1
    slack: float = 0.0

    def __str__(self) -> str:
        return f"{self.op}-{self.name}"


CASES: dict[str, list[Case]] = {}


def add(
    op: str,
    name: str,
    make: Callable[[np.random.Generator], Arguments],
    terms: int = 1,
    slack: float = 0.0,
) -> None:
    cases = CASES.setdefault(op, [])
    assert name not in [c.name for c in cases], f"{op}: two cases are called {name}"
    cases.append(Case(op, name, make, max(terms, 1), slack))


def normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape, dtype=np.float32)


def distinct(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """No two values are equal, so that the place of a maximum is beyond doubt."""
    n = math.prod(shape)
    return rng.permutation(np.linspace(-1, 1, n, dtype=np.float32)).reshape(shape)


def weights(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Scaled so that outputs are about 1: what tanh then does to an error is of the same size."""
    return normal(rng, *shape) / np.float32(math.sqrt(math.prod(shape[1:])))


# --- conv2d ---------------------------------------------------------------------------------

# name: N, (C, O), (H, W), kernel size, stride, padding
CONVOLUTIONS: dict[str, tuple[int, Pair, Pair, Pair, Pair, Pair]] = {
    "encoder": (2, (3, 32), (36, 36), (3, 3), (1, 1), (0, 0)),
    "encoder-narrow": (1, (3, 32), (70, 4), (3, 3), (1, 1), (1, 1)),
    "encoder-wide": (1, (3, 32), (3, 132), (3, 3), (1, 1), (0, 0)),
    "encoder-one-output": (1, (3, 32), (3, 3), (3, 3), (1, 1), (0, 0)),
    "encoder-empty": (0, (3, 32), (5, 4), (3, 3), (1, 1), (1, 1)),
    "decoder": (2, (32, 3), (13, 34), (3, 3), (1, 1), (0, 0)),
    "gray-encoder": (1, (1, 32), (11, 9), (3, 3), (1, 1), (0, 0)),
    "gray-decoder": (2, (32, 1), (10, 7), (3, 3), (1, 1), (0, 0)),
    "deep-3-12": (1, (3, 12), (9, 16), (3, 3), (1, 1), (1, 1)),
    "deep-12-12": (2, (12, 12), (8, 8), (3, 3), (1, 1), (1, 1)),
    "deep-12-12-padded": (1, (12, 12), (5, 7), (3, 3), (1, 1), (2, 2)),
    "deep-12-24": (1, (12, 24), (7, 6), (3, 3), (1, 1), (1, 1)),
    "deep-24-12": (1, (24, 12), (7, 6), (3, 3), (1, 1), (1, 1)),
    "deep-12-3": (1, (12, 3), (6, 13), (3, 3), (1, 1), (1, 1)),
    "rows-not-columns": (2, (2, 5), (11, 9), (5, 3), (1, 1), (2, 1)),
    "padding-beyond-the-window": (1, (2, 5), (4, 3), (5, 3), (1, 1), (6, 5)),
    "one-by-one": (3, (13, 7), (5, 6), (1, 1), (1, 1), (0, 0)),
    "one-by-one-padded": (1, (13, 7), (4, 4), (1, 1), (1, 1), (1, 2)),
    "single-value": (1, (1, 1), (1, 1), (1, 1), (1, 1), (0, 0)),
    "stride-above-kernel": (2, (2, 3), (17, 23), (3, 2), (4, 5), (1, 0)),
    "strides": (2, (3, 4), (13, 18), (4, 4), (2, 3), (1, 2)),
    "many-channels": (1, (5, 40), (6, 5), (3, 3), (1, 1), (1, 1)),
    "window-beyond-a-tile": (2, (2, 3), (10, 6), (48, 3), (1, 2), (20, 1)),
}


def _convolutions() -> None:
    activations = (None, "relu", "tanh")
    for number, (name, conv) in enumerate(CONVOLUTIONS.items()):
        n, (c, o), size, kernel, stride, padding = conv
        oh, ow = (output_size(*a) for a in zip(size, kernel, stride, padding, strict=True))
        x, w, dy = (n, c, *size), (o, c, *kernel), (n, o, oh, ow)
        window = {"stride": stride, "padding": padding}
        activation = activations[number % 3]
        taps = kernel[0] * kernel[1]

        add(
            "conv2d_forward",
            name,
            lambda rng, x=x, w=w, o=o, window=window, activation=activation: (
                (normal(rng, *x), weights(rng, *w), normal(rng, o)),
                {**window, "activation": activation},
            ),
            c * taps + 1,
        )
        add(
            "conv2d_backward_input",
            name,
            lambda rng, dy=dy, w=w, size=size, window=window: (
                (normal(rng, *dy), normal(rng, *w)),
                {**window, "input_size": size},
            ),
            o * taps,
        )
        add(
            "conv2d_backward_weight",
            name,
            lambda rng, dy=dy, x=x, kernel=kernel, window=window: (
                (normal(rng, *dy), normal(rng, *x)),
                {**window, "kernel_size": kernel},
            ),
            n * oh * ow,
        )
        if name in ("deep-12-12", "strides", "window-beyond-a-tile"):
            add(
                "conv2d_backward_input",
                name + "-gated",
                lambda rng, dy=dy, w=w, x=x, window=window: (
                    (normal(rng, *dy), normal(rng, *w)),
                    {**window, "input_size": x[2:], "gate": normal(rng, *x)},
                ),
                o * taps,
            )
        if name in ("encoder", "encoder-empty", "single-value", "strides"):
            add(
                "conv2d_backward_bias",
                name,
                lambda rng, dy=dy: ((normal(rng, *dy),), {}),
                n * oh * ow,
            )
    for activation in activations:
        add(
            "conv2d_forward",
            f"activation-{activation}",
            lambda rng, activation=activation: (
                (normal(rng, 1, 3, 4, 5), weights(rng, 32, 3, 3, 3), normal(rng, 32)),
                {"activation": activation},
            ),
            28,
        )
    add(
        "conv2d_backward_bias",
        "several-pieces",
        lambda rng: ((normal(rng, 3, 2, 61, 67),), {}),
        3 * 61 * 67,
    )
    for op, out in (("conv2d_backward_weight", (32, 3, 3, 3)), ("conv2d_backward_bias", (32,))):
        inputs = ((2, 32, 5, 4), (2, 3, 7, 6)) if len(out) == 4 else ((2, 32, 5, 4),)
        kwargs: dict[str, Any] = {"kernel_size": (3, 3)} if len(out) == 4 else {}
        add(
            op,
            "into-out",
            lambda rng, out=out, inputs=inputs, kwargs=kwargs: (
                tuple(normal(rng, *s) for s in inputs),
                {**kwargs, "out": np.full(out, np.nan, np.float32)},
            ),
            40,
        )


# --- conv2d_pool and unpool_conv2d ----------------------------------------------------------

# name: N, (C, O), (H, W) that the convolution reads, kernel size, stride, padding
POOLED: dict[str, tuple[int, Pair, Pair, Pair, Pair, Pair]] = {
    "deep-12-12": (2, (12, 12), (9, 12), (3, 3), (1, 1), (0, 0)),
    "deep-12-12-odd": (1, (12, 12), (7, 9), (3, 3), (1, 1), (1, 1)),
    "several-bands": (1, (12, 12), (5, 135), (3, 3), (1, 1), (1, 1)),
    "several-tiles": (1, (12, 12), (23, 27), (3, 3), (1, 1), (2, 2)),
    "one-window": (1, (12, 12), (4, 4), (3, 3), (1, 1), (0, 0)),
    "none": (0, (12, 12), (5, 6), (3, 3), (1, 1), (1, 1)),
    "rows-not-columns": (2, (2, 5), (11, 14), (5, 3), (1, 1), (2, 1)),
    "strides": (1, (3, 4), (13, 18), (4, 4), (2, 3), (1, 2)),
    "window-beyond-a-tile": (1, (2, 3), (10, 6), (48, 3), (1, 2), (20, 1)),
}
POOLED_ONLY = {"deep-12-24": (2, (12, 24), (7, 8), (3, 3), (1, 1), (1, 1))}
UNPOOLED_ONLY = {
    "deep-24-12": (2, (24, 12), (8, 7), (3, 3), (1, 1), (1, 1)),
    "three-bands": (1, (24, 12), (2, 131), (3, 3), (1, 1), (1, 1)),
}


def any_mask(rng: np.random.Generator, shape: tuple[int, ...], highest: int = 4) -> np.ndarray:
    return rng.integers(0, highest, shape).astype(np.uint8)


def _small_numbers(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Sums of their products are exact, so that many are equal; and one NaN."""
    x = rng.integers(-2, 3, shape).astype(np.float32)
    x.flat[-1] = np.nan
    return x


def _pooled_convolutions() -> None:
    for number, (name, conv) in enumerate({**POOLED, **POOLED_ONLY}.items()):
        n, (c, o), size, kernel, stride, padding = conv
        large = [output_size(*a) for a in zip(size, kernel, stride, padding, strict=True)]
        x, w, dy = (n, c, *size), (o, c, *kernel), (n, o, large[0] // 2, large[1] // 2)
        window = {"stride": stride, "padding": padding}
        taps = kernel[0] * kernel[1]
        highest, gated = (256, True) if number % 2 else (4, False)
        activation = ("relu", None, "tanh")[number % 3]
        add(
            "conv2d_pool_forward",
            name,
            lambda rng, x=x, w=w, o=o, window=window, activation=activation: (
                (normal(rng, *x), weights(rng, *w), normal(rng, o)),
                {**window, "activation": activation},
            ),
            c * taps + 1,
        )
        add(
            "conv2d_pool_backward_input",
            name,
            lambda rng, x=x, w=w, dy=dy, window=window, highest=highest, gated=gated: (
                (normal(rng, *dy), any_mask(rng, dy, highest), normal(rng, *w)),
                {**window, "input_size": x[2:], "gate": normal(rng, *x) if gated else None},
            ),
            o * taps,
        )
        add(
            "conv2d_pool_backward_weight",
            name,
            lambda rng, x=x, w=w, dy=dy, window=window, highest=highest, gated=gated: (
                (normal(rng, *dy), any_mask(rng, dy, highest), normal(rng, *x)),
                {
                    **window,
                    "kernel_size": w[2:],
                    "out": np.full(w, np.nan, np.float32) if gated else None,
                },
            ),
            math.prod(dy) // o,
        )
    add(
        "conv2d_pool_forward",
        "equal-values",
        lambda rng: (
            (
                _small_numbers(rng, 2, 12, 7, 9),
                rng.integers(-1, 2, (12, 12, 3, 3)).astype(np.float32),
                np.zeros(12, np.float32),
            ),
            {"activation": "relu", "padding": (1, 1)},
        ),
        109,
    )


def _convolutions_of_unpooled() -> None:
    for number, (name, conv) in enumerate({**POOLED, **UNPOOLED_ONLY}.items()):
        n, (c, o), size, kernel, stride, padding = conv
        oh, ow = (output_size(*a) for a in zip(size, kernel, stride, padding, strict=True))
        x, w, dy = (n, c, size[0] // 2, size[1] // 2), (o, c, *kernel), (n, o, oh, ow)
        window = {"stride": stride, "padding": padding, "size": size}
        taps = kernel[0] * kernel[1]
        highest, gated = (256, True) if number % 2 else (4, False)
        activation = ("relu", None, "tanh")[number % 3]
        add(
            "unpool_conv2d_forward",
            name,
            lambda rng, x=x, w=w, o=o, window=window, act=activation, highest=highest: (
                (normal(rng, *x), any_mask(rng, x, highest), weights(rng, *w), normal(rng, o)),
                {**window, "activation": act},
            ),
            c * taps + 1,
        )
        add(
            "unpool_conv2d_backward_input",
            name,
            lambda rng, x=x, w=w, dy=dy, window=window, highest=highest, gated=gated: (
                (normal(rng, *dy), any_mask(rng, x, highest), normal(rng, *w)),
                {**window, "gate": normal(rng, *x) if gated else None},
            ),
            o * taps,
        )
        add(
            "unpool_conv2d_backward_weight",
            name,
            lambda rng, x=x, w=w, dy=dy, window=window, highest=highest, gated=gated: (
                (normal(rng, *dy), normal(rng, *x), any_mask(rng, x, highest)),
                {
                    **window,
                    "kernel_size": w[2:],
                    "out": np.full(w, np.nan, np.float32) if gated else None,
                },
            ),
            n * oh * ow,
        )


# --- pool2d ---------------------------------------------------------------------------------

# name: N, C, (H, W), kernel size, stride, padding
POOLS: dict[str, tuple[int, int, Pair, Pair, Pair, Pair]] = {
    "halves": (2, 3, (8, 6), (2, 2), (2, 2), (0, 0)),
    "odd": (1, 5, (7, 9), (2, 2), (2, 2), (0, 0)),
    "overlapping": (2, 2, (7, 5), (3, 3), (1, 1), (1, 1)),
    "rows-not-columns": (1, 3, (9, 11), (2, 4), (3, 2), (1, 2)),
    "stride-above-kernel": (2, 1, (10, 13), (2, 1), (3, 4), (0, 0)),
    "one-value": (1, 1, (1, 1), (1, 1), (1, 1), (0, 0)),
    "full-byte": (1, 2, (17, 19), (16, 16), (1, 2), (0, 1)),
    "empty": (0, 3, (4, 4), (2, 2), (2, 2), (0, 0)),
    "many": (3, 7, (20, 22), (2, 2), (2, 2), (0, 0)),
}


def _with_ties(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Equal values, both zeros, infinities and NaN."""
    values = np.array([0, -0.0, 1, 1, 2, np.nan, np.inf, -np.inf], np.float32)
    return rng.choice(values, shape)


def _pools() -> None:
    for name, (n, c, size, kernel, stride, padding) in POOLS.items():
        oh, ow = (output_size(*a) for a in zip(size, kernel, stride, padding, strict=True))
        large, small = (n, c, *size), (n, c, oh, ow)
        window = {"kernel_size": kernel, "stride": stride, "padding": padding}
        taps = kernel[0] * kernel[1]
        for suffix, values in (("", distinct), ("-ties", _with_ties)):
            add(
                "maxpool_forward",
                name + suffix,
                lambda rng, large=large, window=window, values=values: (
                    (values(rng, *large),),
                    window,
                ),
            )
        # Any byte may come in as a mask, also one that points outside its window or the map.
        for suffix, highest in (("", taps), ("-wild", 256)):
            add(
                "mask_scatter",
                name + suffix,
                lambda rng, small=small, size=size, window=window, highest=highest: (
                    (normal(rng, *small), rng.integers(0, highest, small).astype(np.uint8)),
                    {**window, "size": size},
                ),
                taps,
            )
            add(
                "mask_gather",
                name + suffix,
                lambda rng, large=large, small=small, window=window, highest=highest: (
                    (normal(rng, *large), rng.integers(0, highest, small).astype(np.uint8)),
                    window,
                ),
            )


# --- linear ---------------------------------------------------------------------------------

# name: N, I, O
PRODUCTS: dict[str, tuple[int, int, int]] = {
    "one": (1, 1, 1),
    "small": (3, 5, 7),
    "tile": (64, 64, 64),
    "primes": (67, 37, 71),
    "several-tiles": (70, 90, 150),
    "long-input": (5, 700, 9),
    "long-output": (6, 11, 1031),
    "long-batch": (519, 3, 70),
    "no-examples": (0, 5, 3),
}


def _products() -> None:
    activations = (None, "relu", "tanh")
    for number, (name, (n, i, o)) in enumerate(PRODUCTS.items()):
        activation = activations[number % 3]
        add(
            "linear_forward",
            name,
            lambda rng, n=n, i=i, o=o, activation=activation: (
                (normal(rng, n, i), weights(rng, o, i), normal(rng, o)),
                {"activation": activation},
            ),
            i + 1,
        )
        add(
            "linear_backward_input",
            name,
            lambda rng, n=n, i=i, o=o: ((normal(rng, n, o), normal(rng, o, i)), {}),
            o,
        )
        for suffix in ("", "-into-out"):
            add(
                "linear_backward_weight",
                name + suffix,
                lambda rng, n=n, i=i, o=o, suffix=suffix: (
                    (normal(rng, n, o), normal(rng, n, i)),
                    {"out": np.full((o, i), np.nan, np.float32)} if suffix else {},
                ),
                n,
            )
            add(
                "linear_backward_bias",
                name + suffix,
                lambda rng, n=n, o=o, suffix=suffix: (
                    (normal(rng, n, o),),
                    {"out": np.full((o,), np.nan, np.float32)} if suffix else {},
                ),
                n,
            )


ROUNDED: dict[str, tuple[int, int, int]] = {
    "small": (3, 5, 7),
    "primes": (67, 37, 139),
    "several-tiles": (68, 44, 132),
    "long-input": (5, 700, 10),
    "no-examples": (0, 5, 3),
}


def _rounded_products() -> None:
    """The same on tensor cores. Where sizes are multiples of four, reads are 16 bytes wide."""
    for precision in PRECISIONS[1:]:
        for number, (name, (n, i, o)) in enumerate(ROUNDED.items()):
            options: dict[str, Any] = {"precision": precision}
            activation = ("relu", None, "tanh")[number % 3]
            add(
                "linear_forward",
                f"{precision}-{name}",
                lambda rng, n=n, i=i, o=o, options=options, activation=activation: (
                    (normal(rng, n, i), weights(rng, o, i), normal(rng, o)),
                    {"activation": activation, **options},
                ),
                i + 1,
            )
            add(
                "linear_backward_input",
                f"{precision}-{name}",
                lambda rng, n=n, i=i, o=o, options=options: (
                    (normal(rng, n, o), normal(rng, o, i)),
                    options,
                ),
                o,
            )
            add(
                "linear_backward_weight",
                f"{precision}-{name}",
                lambda rng, n=n, i=i, o=o, options=options, number=number: (
                    (normal(rng, n, o), normal(rng, n, i)),
                    {**options, "out": np.full((o, i), np.nan, np.float32) if number else None},
                ),
                n,
            )


# --- elementwise ----------------------------------------------------------------------------

SIZES = {"empty": (0, 3), "one": (1,), "prime": (10007,), "image": (2, 3, 5, 7), "block": (256,)}
BORDERS = {
    "article": (2, 2, 2, 2),
    "none": (0, 0, 0, 0),
    "four-different": (1, 2, 3, 4),
    "one-side": (0, 0, 0, 5),
}


def _elementwise() -> None:
    for name, shape in SIZES.items():
        for op in ("relu", "tanh"):
            add(f"{op}_forward", name, lambda rng, s=shape: ((3 * normal(rng, *s),), {}))
            add(
                f"{op}_backward",
                name,
                lambda rng, s=shape: ((normal(rng, *s), np.tanh(normal(rng, *s))), {}),
            )
    add("relu_forward", "specials", lambda rng: ((_with_ties(rng, 300),), {}))
    add("tanh_forward", "specials", lambda rng: ((_with_ties(rng, 300),), {}))
    add(
        "relu_backward",
        "specials",
        lambda rng: ((np.abs(normal(rng, 300)), _with_ties(rng, 300)), {}),
    )
    for name, borders in BORDERS.items():
        top, bottom, left, right = borders
        for size in ((5, 8), (1, 1)):
            padded = (size[0] + top + bottom, size[1] + left + right)
            full = f"{name}-{size[0]}x{size[1]}"
            add(
                "pad2d_forward",
                full,
                lambda rng, s=size, b=borders: ((normal(rng, 2, 3, *s),), {"borders": b}),
            )
            add(
                "pad2d_backward",
                full,
                lambda rng, s=padded, b=borders: ((normal(rng, 2, 3, *s),), {"borders": b}),
            )
    add(
        "pad2d_forward",
        "empty",
        lambda rng: ((normal(rng, 0, 3, 4, 4),), {"borders": (1, 1, 1, 1)}),
    )
    add(
        "pad2d_backward",
        "empty",
        lambda rng: ((normal(rng, 0, 3, 4, 4),), {"borders": (1, 1, 1, 1)}),
    )


# --- loss, optim, batch ---------------------------------------------------------------------


def _vector(rng: np.random.Generator, p: int) -> np.ndarray:
    return (0.1 * normal(rng, p)).astype(np.float32)


def _with_zeros(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Both zeros among other values, where there is room."""
    x = normal(rng, *shape)
    x.reshape(-1)[1::5] = 0.0
    x.reshape(-1)[2::5] = -0.0
    return x


def _control(lr: float, t: int) -> np.ndarray:
    return np.array([lr, t, 0, 0], np.float64)


# name: rows, classes
LOGITS: dict[str, Pair] = {
    "one": (1, 1),
    "digits": (5, 10),
    "pieces": (131, 7),
    "more-than-a-warp": (3, 37),
    "many-classes": (9, 1000),
    "none": (0, 4),
}


def _classes() -> None:
    """Logits so large that e^x overflows, labels of both types, and what has no finite answer."""
    for name, (n, k) in LOGITS.items():
        for dtype in (np.int64, np.uint8):
            add(
                "cross_entropy",
                f"{name}-{np.dtype(dtype).name}",
                lambda rng, n=n, k=k, dtype=dtype: (
                    (3 * normal(rng, n, k), rng.integers(0, min(k, 256), n).astype(dtype)),
                    {"scale": 0.37},
                ),
                n * k,
            )
    add(
        "cross_entropy",
        "large-logits",
        lambda rng: (
            (normal(rng, 6, 10) + np.float32([[200], [-200], [90], [0], [1e4], [-1e4]]),
             rng.integers(0, 10, 6).astype(np.int64)),
            {"scale": 1.0},
        ),
        60,
    )  # fmt: skip

    def wild(rng: np.random.Generator) -> Arguments:
        x = normal(rng, 70, 5)
        x[3, 2], x[10, 0], x[64, 4], x[69] = np.nan, np.inf, -np.inf, -np.inf
        return (x, rng.integers(0, 5, 70).astype(np.int64)), {"scale": 0.5}

    add("cross_entropy", "specials", wild, 350)
    for name, labels in (("int64", np.int64([0, -1, 3, 2])), ("uint8", np.uint8([0, 255, 3, 2]))):
        add(
            "cross_entropy",
            f"labels-outside-{name}",
            lambda rng, labels=labels: ((normal(rng, 4, 3), labels), {"scale": 0.5}),
            12,
        )


def _training() -> None:
    for name, shape in {**SIZES, "piece": (4096,), "piece-and-one": (4097,)}.items():
        add(
            "squared_error",
            name,
            lambda rng, s=shape: ((normal(rng, *s), normal(rng, *s)), {"scale": 0.37}),
            math.prod(shape),
        )
        add(
            "l1_backward",
            name,
            lambda rng, s=shape: ((normal(rng, *s), _with_zeros(rng, *s)), {"scale": 0.37}),
        )
    _classes()
    for p in (0, 1, 257, 10007):
        for penalised in (False, True):
            name = f"{p}-parameters" + ("-penalised" if penalised else "")

            def l2(rng: np.random.Generator, p: int = p, on: bool = penalised) -> Any:
                return np.abs(_vector(rng, p)) * (rng.random(p) < 0.5) if on else None

            def f32(a: Any) -> Any:
                return None if a is None else a.astype(np.float32)

            add(
                "sgd_step",
                name,
                lambda rng, p=p, l2=l2: (
                    (_vector(rng, p), _vector(rng, p), _vector(rng, p), _control(0.05, 3)),
                    {"momentum": 0.9, "l2": f32(l2(rng))},
                ),
            )
            for t in (0, 41):
                add(
                    "adam_step",
                    f"{name}-after-{t}",
                    lambda rng, p=p, t=t, l2=l2: (
                        (
                            _vector(rng, p),
                            _vector(rng, p),
                            _vector(rng, p),
                            np.square(_vector(rng, p)),
                            _control(1e-3, t),
                        ),
                        {"betas": (0.9, 0.999), "eps": 1e-8, "l2": f32(l2(rng))},
                    ),
                )
        add(
            "penalty",
            f"{p}-parameters",
            lambda rng, p=p: ((_vector(rng, p), np.abs(_vector(rng, p))), {}),
            p,
        )
    add(  # an eps that is not lost beside sqrt(v): where it stands must be right
        "adam_step",
        "large-eps",
        lambda rng: (
            (
                _vector(rng, 257),
                _vector(rng, 257),
                _vector(rng, 257),
                np.square(_vector(rng, 257)),
                _control(1e-2, 5),
            ),
            {"betas": (0.9, 0.999), "eps": 0.1, "l2": None},
        ),
    )
    scalings = {
        "signed": {"scale": 2 / 255, "shift": -1.0},
        "unit": {"scale": 1 / 255, "shift": 0.0},
    }
    for n, image in ((5, (3, 7, 5)), (1, (1, 1, 1)), (0, (1, 4, 4)), (13, (3, 8, 32)), (4, (2, 3))):
        add(
            "gather_flipped",
            f"{n}x{'x'.join(map(str, image))}",
            lambda rng, n=n, image=image: (
                (
                    rng.integers(0, 256, (9, *image)).astype(np.uint8),
                    rng.integers(0, 9, n).astype(np.int64),
                    (np.arange(n) % 3 != 1).astype(np.uint8),
                ),
                {},
            ),
        )
    for name, scaling in scalings.items():
        for n, image in ((5, (3, 7, 5)), (1, (1, 1, 1)), (0, (1, 4, 4)), (13, (3, 32, 32))):
            add(
                "gather",
                f"{name}-{n}x{'x'.join(map(str, image))}",
                lambda rng, n=n, image=image, scaling=scaling: (
                    (
                        rng.integers(0, 256, (9, *image)).astype(np.uint8),
                        rng.integers(0, 9, n).astype(np.int64),
                    ),
                    scaling,
                ),
            )


# --- single-layer ---------------------------------------------------------------------------

# name: N, C, F, (H, W), and what is not as usual
SINGLE_LAYERS: dict[str, tuple[int, int, int, Pair, dict[str, Any]]] = {
    "color": (1, 3, 32, (32, 32), {}),
    "color-several": (7, 3, 32, (5, 7), {}),
    "color-wide": (1, 3, 32, (5, 53), {}),
    "color-none": (0, 3, 32, (4, 5), {}),
    "gray": (1, 1, 32, (28, 28), {}),
    "gray-odd": (5, 1, 4, (5, 7), {}),
    "gray-one-value": (5, 1, 1, (1, 1), {}),
    "few-filters": (3, 2, 5, (9, 6), {"decoder_tanh": False}),
    "sparse": (2, 3, 5, (7, 10), {"sparsity": 0.03}),
    "tf32-color-several": (3, 3, 32, (5, 7), {"precision": "tf32"}),
    "tf32-color-wide": (1, 3, 32, (3, 37), {"precision": "tf32"}),
    "tf32-one-value": (2, 3, 32, (1, 1), {"precision": "tf32"}),
    "tf32x3-color": (1, 3, 32, (32, 32), {"precision": "tf32x3"}),
    "tf32x3-color-several": (7, 3, 32, (5, 7), {"precision": "tf32x3"}),
    "tf32x3-color-wide": (1, 3, 32, (5, 53), {"precision": "tf32x3"}),
    "tf32x3-color-none": (0, 3, 32, (4, 5), {"precision": "tf32x3"}),
    "tf32x3-sparse": (2, 3, 32, (7, 10), {"precision": "tf32x3", "sparsity": 0.03}),
    "tf32x3-few-filters": (3, 2, 5, (9, 6), {"precision": "tf32x3", "decoder_tanh": False}),
    "tf32x3-gray-odd": (5, 1, 1, (5, 7), {"precision": "tf32x3"}),
    "tf32x3-gray-one-value": (5, 1, 1, (1, 1), {"precision": "tf32x3"}),
}
# A code that differs in its last bit may be rounded to tf32 the other way.
TF32_SLACK = 2.0**-12


def _single_layers() -> None:
    for name, (n, c, f, size, more) in SINGLE_LAYERS.items():

        def make(rng: np.random.Generator, n=n, c=c, f=f, size=size) -> tuple[Any, ...]:  # type: ignore[no-untyped-def]
            images = rng.integers(0, 256, (4, c, *size)).astype(np.uint8)
            indices = rng.integers(0, 4, n).astype(np.int64)
            w1, w2 = weights(rng, f, c, 3, 3), weights(rng, c, f, 3, 3)
            return images, indices, w1, _vector(rng, f), w2, _vector(rng, c)

        def outputs(n=n, c=c, f=f, size=size) -> tuple[np.ndarray, np.ndarray]:  # type: ignore[no-untyped-def]
            code, y = (n, f, size[0] + 2, size[1] + 2), (n, c, *size)
            return np.full(code, np.nan, np.float32), np.full(y, np.nan, np.float32)

        scaling = {"scale": 2 / 255, "shift": -1.0}
        terms = max(n * (size[0] + 2) * (size[1] + 2), 9 * c * f)
        slack = TF32_SLACK if more.get("precision") == "tf32" else 0.0
        keywords = {**scaling, "gradient_scale": 0.01, **more}
        add(
            "single_layer_gradients",
            name,
            lambda rng, make=make, keywords=keywords: (make(rng), keywords),
            terms,
            slack,
        )
        forward = {k: v for k, v in {**scaling, **more}.items() if k != "sparsity"}
        add(
            "single_layer_forward",
            name,
            lambda rng, make=make, outputs=outputs, forward=forward: (
                (*make(rng), *outputs()),
                forward,
            ),
            terms,
            slack,
        )


_convolutions()
_pooled_convolutions()
_convolutions_of_unpooled()
_pools()
_products()
_rounded_products()
_elementwise()
_training()
_single_layers()
