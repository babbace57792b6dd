"""Initial weights, drawn on the host so that every backend starts from the same numbers."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from cae_raw.errors import unknown_name

Values = tuple[np.ndarray, np.ndarray]


def _uniform(shape: tuple[int, ...], rng: np.random.Generator) -> Values:
    """Weights and biases uniform in +-1/sqrt(fan_in), the default of Torch's layers."""
    bound = 1 / np.sqrt(_fan_in(shape))
    weight = rng.uniform(-bound, bound, shape).astype(np.float32)
    return weight, rng.uniform(-bound, bound, shape[0]).astype(np.float32)


def _truncated_normal(shape: tuple[int, ...], rng: np.random.Generator) -> Values:
    """Weights normal with std sqrt(1.3 * 2 / fan_in), redrawn beyond two of them; biases 0.

    The scale is the variance-scaling rule with factor 1.3 that Lasagne and TensorFlow's
    contrib.layers recommend for tanh, as the article on single-layer autoencoders has it.
    """
    weight = rng.standard_normal(shape)
    while (outside := np.abs(weight) > 2).any():
        weight[outside] = rng.standard_normal(int(outside.sum()))
    weight *= np.sqrt(1.3 * 2 / _fan_in(shape))
    return weight.astype(np.float32), np.zeros(shape[0], np.float32)


def _fan_in(shape: tuple[int, ...]) -> int:
    """Inputs per output of a weight (O, I) or (O, C, KH, KW)."""
    return max(1, int(np.prod(shape[1:])))


INITIALIZERS: dict[str, Callable[[tuple[int, ...], np.random.Generator], Values]] = {
    "uniform": _uniform,
    "truncated_normal": _truncated_normal,
}


def values(init: str, weight_shape: tuple[int, ...], rng: np.random.Generator) -> Values:
    """A weight of `weight_shape` and a bias of its first axis, float32, by the named rule."""
    if init not in INITIALIZERS:
        raise unknown_name("initializer", init, INITIALIZERS)
    return INITIALIZERS[init](weight_shape, rng)
