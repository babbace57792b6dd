"""Pure functions on arrays: formula, NumPy reference and CUDA launcher of each operation."""

from __future__ import annotations

from cae_raw.ops import (
    activation,
    batch,
    conv2d,
    conv2d_pool,
    cross_entropy,
    linear,
    loss,
    optim,
    pad2d,
    pool2d,
    single_layer,
    unpool_conv2d,
)
from cae_raw.ops.registry import OPS, Op, watched

__all__ = [
    "OPS",
    "Op",
    "activation",
    "batch",
    "conv2d",
    "conv2d_pool",
    "cross_entropy",
    "linear",
    "loss",
    "optim",
    "pad2d",
    "pool2d",
    "single_layer",
    "unpool_conv2d",
    "watched",
]
