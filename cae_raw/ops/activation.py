"""Activations, elementwise, on arrays of any shape.

    relu: y = max(x, 0)        dx = dy * (y > 0)
    tanh: y = tanh(x)          dx = dy * (1 - y^2)

Both gradients need only the output y, so the input is never kept. At x = 0 the gradient of relu is
taken as 0. NaN goes through both.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from cae_raw.backends.cuda_backend import Kernel, backend_of
from cae_raw.errors import unknown_name
from cae_raw.ops import scratch
from cae_raw.ops.registry import Op

Array = Any

ACTIVATIONS = ("relu", "tanh")

BLOCK = 1 << 14  # elements per pass on the CPU


def apply_in_place(x: Array, kind: str | None) -> Array:
    """Apply the activation to the NumPy array x where it stands; None leaves it as it is."""
    if kind is None:
        return x
    if kind == "relu":
        return np.maximum(x, 0, out=x)
    if kind == "tanh":
        return np.tanh(x, out=x)
    raise unknown_name("activation", kind, ACTIVATIONS)


# --- NumPy reference ------------------------------------------------------------------------


def _relu_forward(x: Array) -> Array:
    """max(x, 0), same shape as x."""
    return np.maximum(x, 0, out=scratch.empty(x.shape, x.dtype))


def _relu_backward(dy: Array, y: Array) -> Array:
    """dy * (y > 0), so that NaN in dy shows; dy and y of one shape."""
    active = np.greater(y, 0, out=scratch.empty(y.shape, bool))
    return np.multiply(dy, active, out=scratch.empty(y.shape, y.dtype))


def _tanh_forward(x: Array) -> Array:
    """tanh(x), same shape as x."""
    return np.tanh(x, out=scratch.empty(x.shape, x.dtype))


def _tanh_backward(dy: Array, y: Array) -> Array:
    """dy * (1 - y^2), y being tanh's output; dy and y of one shape."""
    dx = scratch.empty(y.shape, y.dtype)
    flat_dx, flat_dy, flat_y = dx.reshape(-1), dy.reshape(-1), y.reshape(-1)
    # In blocks that stay in the first-level cache, because there are three passes over them.
    for start in range(0, y.size, BLOCK):
        block = slice(start, start + BLOCK)
        part, part_y = flat_dx[block], flat_y[block]
        np.multiply(part_y, part_y, out=part)
        np.subtract(1, part, out=part)
        np.multiply(part, flat_dy[block], out=part)
    return dx


# --- CUDA launcher --------------------------------------------------------------------------

CONSTANTS = {"THREADS": 256}
RELU_FORWARD = Kernel("activation", "relu_forward", CONSTANTS)
RELU_BACKWARD = Kernel("activation", "relu_backward", CONSTANTS)
TANH_FORWARD = Kernel("activation", "tanh_forward", CONSTANTS)
TANH_BACKWARD = Kernel("activation", "tanh_backward", CONSTANTS)

# How kernels with a fused activation call it: enum Activation in common.cuh.
CODES: dict[str | None, int] = {None: 0, "relu": 1, "tanh": 2}


def code_of(kind: str | None) -> int:
    """The number by which kernels know an activation."""
    if kind not in CODES:
        raise unknown_name("activation", str(kind), ACTIVATIONS)
    return CODES[kind]


def _launch_forward(kernel: Kernel, x: Array) -> Array:
    backend = backend_of(x)
    y = backend.empty(x.shape)
    backend.launch(kernel, backend.blocks(kernel, x.size), {"x": x, "y": y, "n": x.size})
    return y


def _launch_backward(kernel: Kernel, dy: Array, y: Array) -> Array:
    backend = backend_of(dy)
    dx = backend.empty(dy.shape)
    arguments = {"dy": dy, "y": y, "dx": dx, "n": dy.size}
    backend.launch(kernel, backend.blocks(kernel, dy.size), arguments)
    return dx


def _relu_forward_cuda(x: Array) -> Array:
    return _launch_forward(RELU_FORWARD, x)


def _relu_backward_cuda(dy: Array, y: Array) -> Array:
    return _launch_backward(RELU_BACKWARD, dy, y)


def _tanh_forward_cuda(x: Array) -> Array:
    return _launch_forward(TANH_FORWARD, x)


def _tanh_backward_cuda(dy: Array, y: Array) -> Array:
    return _launch_backward(TANH_BACKWARD, dy, y)


relu_forward = Op("relu_forward", _relu_forward, _relu_forward_cuda)
relu_backward = Op("relu_backward", _relu_backward, _relu_backward_cuda)
tanh_forward = Op("tanh_forward", _tanh_forward, _tanh_forward_cuda)
tanh_backward = Op("tanh_backward", _tanh_backward, _tanh_backward_cuda)
