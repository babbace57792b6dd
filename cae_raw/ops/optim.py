"""One step of an optimizer over all parameters of a model at once.

All parameters of a model are one flat vector p, their gradients one flat vector g, so a step is one
pass over memory. l2, when there is one, holds a penalty coefficient per parameter; the penalty
sum(l2 * p^2) adds 2 * l2 * p to the gradient.

    sgd   v = momentum * v + g                                          p = p - lr * v
    adam  m = beta1 * m + (1 - beta1) * g     v = beta2 * v + (1 - beta2) * g^2
          p = p - lr / (1 - beta1^t) * m / (sqrt(v / (1 - beta2^t)) + eps)

Adam: Kingma and Ba, 2015 (arXiv:1412.6980), algorithm 1. Momentum without dampening, as in
PyTorch's SGD. The learning rate and the step count t live in `control`, a float64 vector (lr, t,
and two that are 0 between steps) beside the parameters, and each step advances t itself: a recorded
sequence of launches can then be replayed without a word from the host.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from cae_raw.backends.cuda_backend import Kernel, backend_of
from cae_raw.ops import reduce
from cae_raw.ops.registry import Op

Array = Any

LR, STEP, READERS = range(3)
CONTROL_SIZE = 4

# --- NumPy reference ------------------------------------------------------------------------


def _sgd_step(
    p: Array, g: Array, v: Array, control: Array, *, momentum: float, l2: Array | None = None
) -> None:
    """Advance p and v (all of shape (P,)) by one step of SGD, in place; g is left as it is."""
    control[STEP] += 1
    if momentum:
        v *= momentum
        v += g
    else:
        v[...] = g
    if l2 is not None:
        v += 2 * l2 * p
    p -= p.dtype.type(control[LR]) * v


def _adam_step(
    p: Array,
    g: Array,
    m: Array,
    v: Array,
    control: Array,
    *,
    betas: tuple[float, float],
    eps: float,
    l2: Array | None = None,
) -> None:
    """Advance p, m and v (all of shape (P,)) by one step of Adam, in place; g is left as it is."""
    beta1, beta2 = betas
    control[STEP] += 1
    correction1 = 1 - beta1 ** control[STEP]
    correction2 = 1 - beta2 ** control[STEP]
    number = p.dtype.type
    if l2 is not None:
        g = g + 2 * l2 * p
    m *= number(beta1)
    m += number(1 - beta1) * g
    v *= number(beta2)
    v += number(1 - beta2) * (g * g)
    denominator = np.sqrt(v)
    denominator *= number(1 / np.sqrt(correction2))
    denominator += number(eps)
    p -= number(control[LR] / correction1) * m / denominator


def _penalty(p: Array, l2: Array) -> Array:
    """sum(l2 * p^2) in float64 as an array of shape (1,); p and l2 of shape (P,)."""
    wide = p.astype(np.float64)
    return np.dot(l2.astype(np.float64) * wide, wide).reshape(1)


# --- CUDA launcher --------------------------------------------------------------------------

CONSTANTS = {"THREADS": 256, "PIECE": reduce.PIECE}
SGD_STEP = Kernel("optim", "sgd_step", CONSTANTS)
ADAM_STEP = Kernel("optim", "adam_step", CONSTANTS)
PENALTY = Kernel("optim", "penalty", CONSTANTS)
BLOCKS = 5 * 132  # of 256 threads with 48 registers, as many as an H200 holds at once


def _grid(p: Array) -> int:
    """Blocks for a step over p, four elements to a thread; one at least, because it counts."""
    return max(1, min(-(-p.size // (4 * CONSTANTS["THREADS"])), BLOCKS))


def _sgd_step_cuda(
    p: Array, g: Array, v: Array, control: Array, *, momentum: float, l2: Array | None = None
) -> None:
    arguments = {
        "p": p, "g": g, "v": v, "l2": l2, "control": control, "P": p.size, "momentum": momentum,
    }  # fmt: skip
    backend_of(p).launch(SGD_STEP, _grid(p), arguments)


def _adam_step_cuda(
    p: Array,
    g: Array,
    m: Array,
    v: Array,
    control: Array,
    *,
    betas: tuple[float, float],
    eps: float,
    l2: Array | None = None,
) -> None:
    arguments = {
        "p": p, "g": g, "m": m, "v": v, "l2": l2, "control": control, "P": p.size,
        "beta1": betas[0], "beta2": betas[1], "eps": eps,
    }  # fmt: skip
    backend_of(p).launch(ADAM_STEP, _grid(p), arguments)


def _penalty_cuda(p: Array, l2: Array) -> Array:
    backend = backend_of(p)
    pieces = -(-p.size // reduce.PIECE)
    partial = backend.empty((pieces,), np.float64)
    arguments = {"p": p, "l2": l2, "partial": partial, "P": p.size, "R": pieces}
    backend.launch(PENALTY, pieces, arguments)
    return reduce.add_all(backend, partial)


sgd_step = Op("sgd_step", _sgd_step, _sgd_step_cuda)
adam_step = Op("adam_step", _adam_step, _adam_step_cuda)
penalty = Op("penalty", _penalty, _penalty_cuda)
