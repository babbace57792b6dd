"""What the operands of a matrix product are rounded to; its sums are float32 in any case.

    float32   not rounded: 23 bits of mantissa
    tf32      10 bits of mantissa, ties away from zero; the range of float32
    tf32x3    each is the sum of two in tf32, and a product three products: not rounded
    bf16      bfloat16: 7 bits of mantissa, ties to even; the range of float32

tf32 and bf16 are what tensor cores take, from compute capability 8.0 on. An operand is then wrong
by at most 2^-11 (tf32) or 2^-8 (bf16) of itself; weights, gradients and the optimizer stay float32.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from cae_raw.errors import InputError, unknown_name

Array = Any

PRECISIONS = ("float32", "tf32", "tf32x3", "bf16")
CAPABILITY = (8, 0)  # of a GPU whose tensor cores take tf32 and bf16


def rounded(a: Array, precision: str) -> Array:
    """The NumPy array a, float32 or float64, with its values rounded to a precision."""
    if precision in ("float32", "tf32x3"):
        return a
    bits = a.astype(np.float32).view(np.uint32)
    if precision == "tf32":
        bits = (bits + np.uint32(0x1000)) & np.uint32(0xFFFFE000)
    elif precision == "bf16":
        bits = (bits + np.uint32(0x7FFF) + (bits >> 16 & 1)) & np.uint32(0xFFFF0000)
    else:
        raise unknown_name("precision", precision, PRECISIONS)
    return np.where(np.isnan(a), a, bits.view(np.float32)).astype(a.dtype)


def check_precision(precision: str, backend: Any) -> None:
    """Refuse what a backend gains nothing by.

    Raises:
        InputError: for all but float32 on the CPU, or on a GPU before compute capability 8.0.
    """
    if precision == "float32":
        return
    capability = getattr(backend, "compute_capability", None)
    if capability is None:
        raise InputError(
            f"--precision {precision} is for the tensor cores of a GPU and {backend.name} has "
            "none: use --device cuda, or omit --precision"
        )
    if capability < CAPABILITY:
        have, need = (".".join(map(str, version)) for version in (capability, CAPABILITY))
        raise InputError(
            f"--precision {precision} needs a GPU of compute capability {need} or above and "
            f"{backend.name} has {have}: omit --precision"
        )
