"""Bytes to a model's range of values, and back.

    x = byte * scale + shift        with scale = (high - low) / 255 and shift = low
    byte = round((x - shift) / scale), cut off at 0 and 255

Arrays of any shape; the first line is what `cae_raw.ops.batch.gather` computes.
"""

from __future__ import annotations

from math import isfinite
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cae_raw.errors import InputError

Floats = NDArray[np.floating[Any]]


def scale_and_shift(
    value_range: tuple[float, float], name: str = "a value range"
) -> tuple[float, float]:
    """(scale, shift) for a range (low, high).

    Raises:
        InputError: unless low < high and both are finite.
    """
    low, high = value_range
    if not (isfinite(low) and isfinite(high) and low < high):
        raise InputError(f"{name} needs two finite bounds, low before high: {value_range}")
    return (high - low) / 255, low


def to_floats(images: NDArray[np.uint8], value_range: tuple[float, float]) -> NDArray[np.float32]:
    """Bytes as float32 in [low, high]."""
    scale, shift = scale_and_shift(value_range)
    x = images.astype(np.float32)
    x *= np.float32(scale)
    x += np.float32(shift)
    return x


def to_bytes(x: Floats, value_range: tuple[float, float]) -> NDArray[np.uint8]:
    """The nearest bytes. Values outside the range are cut off at its ends, NaN becomes 0.

    A model that diverged still gives a picture; who shows it says how many values were not finite.
    """
    scale, shift = scale_and_shift(value_range)
    with np.errstate(over="ignore"):
        levels = (x - x.dtype.type(shift)) / x.dtype.type(scale)
    np.clip(levels, 0, 255, out=levels)
    np.rint(levels, out=levels)
    levels[np.isnan(levels)] = 0
    images: NDArray[np.uint8] = levels.astype(np.uint8)
    return images
