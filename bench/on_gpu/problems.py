"""What is timed: every operation of the two models, at the sizes that they give it.

single-layer: images of 3x32x32 (CIFAR-10) and 1x28x28 (MNIST), convolutions C -> 32 -> C of 3x3.
deep: images of 3x64x64, convolutions 3 -> 12 -> 12 -> pool -> 24 -> pool without padding, then
24*14*14 to 1568 and back in every precision, and the mirror with max-unpooling; convolutions also
with their pooling or unpooling in one kernel.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from cae_raw.ops.linear import KERNELS
from cae_raw.ops.single_layer_plan import SPLIT
from cae_raw.ops.windows import output_size

BATCH = 128


@dataclass(frozen=True)
class Problem:
    """One call of the operation `op`; `inputs` become arrays, `keywords` are passed as they are.

    An input is a shape (random float32), or an array. `tolerance` is far above rounding, far below
    any mistake; tests/test_kernels.py has the sharp bound.
    """

    where: str
    op: str
    inputs: tuple[Any, ...]
    keywords: dict[str, Any]
    tolerance: float = 1e-4

    def arguments(self, rng: np.random.Generator) -> list[np.ndarray]:
        return [
            rng.standard_normal(item, np.float32) if isinstance(item, tuple) else item.copy()
            for item in self.inputs
        ]


def problems(tiny: bool = False) -> Iterator[Problem]:
    """All of them; `tiny` shrinks images and batch until they can be emulated."""
    n = 2 if tiny else BATCH
    for where, c, size in (("CIFAR-10", 3, 32), ("MNIST", 1, 28)):
        size = 6 if tiny else size
        yield from _convolution(f"{where} encoder", n, c, 32, size, 2, "tanh")
        yield from _convolution(f"{where} decoder", n, 32, c, size + 2, 0, "tanh")
        # More images than multiprocessors, so that a block takes several, one after the other.
        yield from _single_layer(where, n if tiny else 8 * n, c, size)
    side = 22 if tiny else 64
    for i, (c, o, size, padding) in enumerate(_deep_convolutions(side)):
        where = f"deep convolution {i + 1}"
        yield from _convolution(where, n, c, o, size, padding, "relu")
        if i in (1, 2):
            yield from _pooled_convolution(where, n, c, o, size)
        if i in (3, 4):
            yield from _unpooled_convolution(where, n, c, o, size, padding)
    yield from _pools(n, side)
    code, features = (5, 600) if tiny else (1568, 24 * 14 * 14)  # 600: cut into ranges, too
    yield from _linear("deep encoder", n, features, code)
    yield from _linear("deep decoder", n, code, features)
    yield from _elementwise(n, side)
    yield from _classifier(n, code)
    yield from _optimizer(64 if tiny else 2 * features * code)
    # Too large a window for a tile: the kernels of conv2d_direct.cu.
    n, c, o, window, size = (1, 1, 1, 41, 42) if tiny else (8, 3, 8, 41, 64)
    yield from _convolution("large window", n, c, o, size, 0, None, window)


def _single_layer(where: str, n: int, c: int, size: int) -> Iterator[Problem]:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (8 * n, c, size, size), np.uint8)
    weights = (np.float32(0.1) * rng.standard_normal((32, c, 3, 3), np.float32) for _ in range(2))
    w1, w2 = weights
    inputs = (images, rng.integers(0, 8 * n, n), w1, (32,), w2.reshape(c, 32, 3, 3), (c,))
    scaling = {"scale": 2 / 255, "shift": -1.0}
    for precision in ("float32", *SPLIT):
        named = where if precision == "float32" else f"{where}, {precision}"
        keywords = {**scaling, "precision": precision}
        # A code that differs in its last bit may be rounded to tf32 the other way.
        tolerance = 2.0**-10 if precision == "tf32" else Problem.tolerance
        gradients = {**keywords, "gradient_scale": 1 / n}
        yield Problem(named, "single_layer_gradients", inputs, gradients, tolerance)
        yield Problem(named, "single_layer_forward", inputs, keywords, tolerance)


def _deep_convolutions(side: int) -> Iterator[tuple[int, int, int, int]]:
    """(C, O, size, padding) of the deep model's convolutions."""
    half = (side - 4) // 2  # after two valid 3x3 convolutions and a pooling
    yield from ((3, 12, side, 0), (12, 12, side - 2, 0), (12, 24, half, 0))
    yield from ((24, 12, half - 2, 2), (12, 12, side - 4, 2), (12, 3, side - 2, 2))


def _convolution(
    where: str, n: int, c: int, o: int, size: int, p: int, act: str | None, window: int = 3
) -> Iterator[Problem]:
    out = output_size(size, window, 1, p)
    x, w, y = (n, c, size, size), (o, c, window, window), (n, o, out, out)
    pad = {"padding": (p, p)}
    name = "conv2d"
    yield Problem(where, f"{name}_forward", (x, w, (o,)), {**pad, "activation": act})
    yield Problem(where, f"{name}_backward_input", (y, w), {**pad, "input_size": (size, size)})
    yield Problem(where, f"{name}_backward_weight", (y, x), {**pad, "kernel_size": w[2:]})
    yield Problem(where, f"{name}_backward_bias", (y,), {})


def _pooled_convolution(where: str, n: int, c: int, o: int, size: int) -> Iterator[Problem]:
    """Convolution, ReLU and pooling in one."""
    x, w, y = (n, c, size, size), (o, c, 3, 3), (n, o, (size - 2) // 2, (size - 2) // 2)
    mask = np.random.default_rng(size).integers(0, 4, y, np.uint8)
    name = "conv2d_pool"
    yield Problem(where, f"{name}_forward", (x, w, (o,)), {"activation": "relu"})
    yield Problem(where, f"{name}_backward_input", (y, mask, w), {"input_size": (size, size)})
    yield Problem(where, f"{name}_backward_weight", (y, mask, x), {"kernel_size": (3, 3)})


def _unpooled_convolution(
    where: str, n: int, c: int, o: int, size: int, p: int
) -> Iterator[Problem]:
    """Unpooling, convolution and ReLU in one."""
    x, w, y = (n, c, size // 2, size // 2), (o, c, 3, 3), (n, o, *2 * (size + 2 * p - 2,))
    mask = np.random.default_rng(size).integers(0, 4, x, np.uint8)
    name, pad = "unpool_conv2d", {"size": (size, size), "padding": (p, p)}
    yield Problem(where, f"{name}_forward", (x, mask, w, (o,)), {**pad, "activation": "relu"})
    yield Problem(where, f"{name}_backward_input", (y, mask, w), pad)
    yield Problem(where, f"{name}_backward_weight", (y, x, mask), {**pad, "kernel_size": (3, 3)})


def _pools(n: int, side: int) -> Iterator[Problem]:
    window = {"kernel_size": (2, 2), "stride": (2, 2)}
    for number, channels, size in ((1, 12, side - 4), (2, 24, (side - 4) // 2 - 2)):
        where = f"deep pooling {number}"
        large, small = (n, channels, size, size), (n, channels, size // 2, size // 2)
        mask = np.random.default_rng(number).integers(0, 4, small, np.uint8)
        yield Problem(where, "maxpool_forward", (large,), window)
        yield Problem(where, "mask_scatter", (small, mask), {**window, "size": (size, size)})
        yield Problem(where, "mask_gather", (large, mask), window)


def _linear(where: str, n: int, i: int, o: int) -> Iterator[Problem]:
    for precision in KERNELS:
        named = where if precision == "float32" else f"{where}, {precision}"
        # With operands rounded to tf32 instead of split it would be 3e-4.
        tolerance = 1e-5 if precision == "tf32x3" else Problem.tolerance
        for name, inputs in (
            ("linear_forward", ((n, i), (o, i), (o,))),
            ("linear_backward_input", ((n, o), (o, i))),
            ("linear_backward_weight", ((n, o), (n, i))),
        ):
            yield Problem(named, name, inputs, {"precision": precision}, tolerance)
    yield Problem(where, "linear_backward_bias", ((n, o),), {})


def _elementwise(n: int, side: int) -> Iterator[Problem]:
    rng = np.random.default_rng(0)
    for where, shape, name in (
        ("CIFAR-10 code", (n, 32, side // 2 + 2, side // 2 + 2), "tanh"),
        ("deep map", (n, 12, side - 2, side - 2), "relu"),
    ):
        yield Problem(where, f"{name}_forward", (shape,), {})
        yield Problem(where, f"{name}_backward", (shape, shape), {})
    image = (3, side, side)
    yield Problem("deep images", "squared_error", ((n, *image), (n, *image)), {"scale": 0.5})
    code = (n, 32, side // 2 + 2, side // 2 + 2)
    yield Problem("CIFAR-10 code", "l1_backward", (code, code), {"scale": 0.5})
    borders = {"borders": (2, 2, 2, 2)}
    yield Problem("deep images", "pad2d_forward", ((n, *image),), borders)
    padded = (n, 3, side + 4, side + 4)
    yield Problem("deep images", "pad2d_backward", (padded,), borders)
    images = rng.integers(0, 256, (8 * n, *image), np.uint8)
    chosen = rng.integers(0, 8 * n, n)
    scaling = {"scale": 2 / 255, "shift": -1.0}
    yield Problem("deep images", "gather", (images, chosen), scaling)
    flips = rng.integers(0, 2, n, np.uint8)
    yield Problem("deep images", "gather_flipped", (images, chosen, flips), {})


def _classifier(n: int, features: int) -> Iterator[Problem]:
    labels = np.random.default_rng(2).integers(0, 10, n)
    yield from _linear("classifier", n, features, 10)
    for given in (labels, labels.astype(np.uint8)):
        yield Problem("classifier", "cross_entropy", ((n, 10), given), {"scale": 1 / n})


def _optimizer(parameters: int) -> Iterator[Problem]:
    vector, where = (parameters,), "deep parameters"
    state = np.abs(np.random.default_rng(1).standard_normal(vector, np.float32))
    l2 = np.full(vector, 2.0**-6, np.float32)
    control = np.array([1e-3, 0.0, 0.0, 0.0])
    yield Problem(where, "sgd_step", (vector, vector, state, control), {"momentum": 0.9})
    adam = {"betas": (0.9, 0.999), "eps": 1e-8}
    yield Problem(where, "adam_step", (vector, vector, vector, state, control), adam)
    yield Problem(where, "penalty", (vector, l2), {})


def elements(problem: Problem) -> int:
    """How many numbers go in."""
    return sum(prod(i) if isinstance(i, tuple) else i.size for i in problem.inputs)
