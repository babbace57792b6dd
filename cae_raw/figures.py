"""The figures that are reported about reconstructions, all without any penalty."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from math import inf, isfinite, log10

import numpy as np

from cae_raw.data.scaling import Floats, scale_and_shift
from cae_raw.errors import InputError


@dataclass(frozen=True)
class Figures:
    """Reconstruction error over some images.

    mse: mean of (y - x)^2 over all elements, in the square of the model's range of values.
    half_mse: half of that, the article's measure.
    psnr: peak signal-to-noise ratio in dB, the peak being the width of the range of values;
        infinite for a perfect reconstruction.
    """

    half_mse: float
    mse: float
    psnr: float

    @classmethod
    def from_squared_error(
        cls, total: float, elements: int, value_range: tuple[float, float]
    ) -> Figures:
        """From the sum of squared errors over so many elements.

        Raises:
            InputError: if there are no elements.
        """
        if elements < 1:
            raise InputError("no images to measure the error of: give at least one")
        mse = float(total) / elements
        return cls(mse / 2, mse, psnr(mse, value_range))

    def to_json(self) -> dict[str, float | None]:
        """The figures by name; None where one is infinite or not a number, which JSON lacks."""
        return {name: v if isfinite(v) else None for name, v in asdict(self).items()}

    def __str__(self) -> str:
        """For people, as in "MSE 0.00213, PSNR 32.74 dB"."""
        if not isfinite(self.mse):
            return "MSE not a finite number"
        if self.mse == 0:
            return "MSE 0, PSNR infinite"
        return f"MSE {self.mse:.3g}, PSNR {self.psnr:.2f} dB"


def psnr(mse: float, value_range: tuple[float, float]) -> float:
    """10 * log10((high - low)^2 / mse), in dB; infinite where mse is 0, NaN where it is NaN."""
    scale, _ = scale_and_shift(value_range)
    if mse == 0:
        return inf
    return 20 * log10(scale * 255) - 10 * log10(mse)


def error_levels(y: Floats, x: Floats, value_range: tuple[float, float]) -> Floats:
    """How far each pixel of y is from x, in gray levels of 255: (C, H, W) twice to (H, W).

    It is the root of the mean over channels of the squared difference, so the mean of its square
    over an image is the image's MSE in levels. y may lie outside the range of values.
    """
    scale, _ = scale_and_shift(value_range)
    with np.errstate(over="ignore"):
        difference = y - x
        squares = np.mean(difference * difference, axis=0)
    levels: Floats = np.sqrt(squares) / x.dtype.type(scale)
    return levels
