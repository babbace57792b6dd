"""Images drawn on the fly: shapes, gradients, textures, noise. No files, no network.

The data set is the same bit by bit on every machine: random numbers come from raw Philox words,
and pixels from float32 operations that IEEE 754 rounds exactly (+ - * / sqrt floor min max) on
whole arrays, with no sum whose order could vary and no sine: a parabola stands in for the sine,
and directions come from the rational parametrisation of the circle.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cae_raw.data.base import DataOptions, Dataset, Split
from cae_raw.data.order import SHAPES_STREAM, random_words, uniform

SIDE = 32
COUNTS = {"train": 5_000, "validation": 1_000, "test": 1_000}

_PARAMETER_WORDS = 96  # random numbers for colours, places and sizes
_WORDS = _PARAMETER_WORDS + 3 * SIDE * SIDE // 8  # and one byte per value, for noise
_MAX_SHAPES = 3  # per image

Array = NDArray[np.floating[Any]]  # always float32; NumPy annotates its operators less narrowly


def load_shapes(options: DataOptions) -> Dataset:
    """5,000 training, 1,000 validation and 1,000 test images, (3, 32, 32); labels are kinds."""
    train, validation, test = (Split(*draw(split, n, options.seed)) for split, n in COUNTS.items())
    return Dataset("shapes", train, validation, test, tuple(KINDS))


def draw(split: str, n: int, seed: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """The first n images, uint8 (n, 3, 32, 32), and labels (n,) of a split.

    Image i depends on (seed, split, i) only; its kind is i modulo the number of kinds.
    """
    words = random_words(SHAPES_STREAM, seed, list(COUNTS).index(split), n * _WORDS)
    words = words.reshape(n, _WORDS)
    labels = np.arange(n, dtype=np.int64) % len(KINDS)
    images = np.empty((n, 3, SIDE, SIDE), np.uint8)
    for label, render in enumerate(KINDS.values()):
        rgb = render(_Draws(words[label :: len(KINDS)]))
        images[label :: len(KINDS)] = np.clip(rgb * 255 + 0.5, 0, 255).astype(np.uint8)
    return images, labels


class _Draws:
    """Random parameters of a batch of images, one column of words after the other."""

    def __init__(self, words: NDArray[np.uint64]) -> None:
        self._columns = uniform(words[:, :_PARAMETER_WORDS]).astype(np.float32)
        self._bytes = words[:, _PARAMETER_WORDS:]
        self._next = 0

    def uniform(self, low: float, high: float) -> Array:
        """One number per image, (n, 1, 1); the cast to float32 may round up to `high`."""
        column = self._columns[:, self._next]
        self._next += 1
        return (low + (high - low) * column)[:, None, None]

    def colour(self, low: float = 0.15) -> Array:
        """A colour per image, (n, 3, 1, 1): any hue, rarely gray; brightness at least `low`."""
        hue, saturation = self.uniform(0, 6), self.uniform(0.15, 1)
        value = self.uniform(low, 1)
        ramps = [_clip(np.abs((hue + shift) % 6 - 3) - 1) for shift in (0, 4, 2)]
        pure = np.stack(ramps, axis=1)  # hue 0..6 around the colour circle
        return value[:, None] * (1 - saturation[:, None] * (1 - pure))

    def direction(self) -> tuple[Array, Array]:
        """A unit vector per image, close to evenly spread: ((1-t^2)/(1+t^2), 2t/(1+t^2))."""
        t = self.uniform(-1, 1)
        norm = 1 + t * t
        sign = np.where(self.uniform(0, 1) < 0.5, np.float32(-1), np.float32(1))
        return sign * ((1 - t * t) / norm), sign * (2 * t / norm)

    def noise(self, channels: int, side: int) -> Array:
        """Independent values in [0, 1], (n, channels, side, side)."""
        count = channels * side * side
        octets = self._bytes[:, : -(-count // 8)].astype("<u8").view(np.uint8)
        return (octets[:, :count].astype(np.float32) / 255).reshape(-1, channels, side, side)


# Pixel centres relative to the image centre, (1, 32) and (32, 1).
_X = (np.arange(SIDE, dtype=np.float32) - (SIDE - 1) / 2)[None, :]
_Y = _X.reshape(SIDE, 1)


def _clip(x: Array) -> Array:
    return np.clip(x, 0, 1)


def _mix(a: Array, b: Array, weight: Array) -> Array:
    """a where weight is 0, b where it is 1; colours (n, 3, 1, 1), weight (n, 32, 32)."""
    return a + (b - a) * weight[:, None]


def _along(d: _Draws) -> Array:
    """Pixel coordinate along a random direction, (n, 32, 32), about -22..22."""
    cos, sin = d.direction()
    along: Array = cos * _X + sin * _Y
    return along


def _smooth_wave(t: Array) -> Array:
    """Period 1, values -1..1: two parabolas, within 0.06 of -sin(2 pi t)."""
    u: Array = t - np.floor(t) - 0.5
    return 16 * u * (0.5 - np.abs(u))


# ---- filled shapes: signed distance to the edge in pixels, negative inside -------------------


def _circle(u: Array, v: Array, size: Array, _: Array) -> Array:
    return np.sqrt(u * u + v * v) - size


def _rectangle(u: Array, v: Array, size: Array, aspect: Array) -> Array:
    return np.maximum(np.abs(u) - size, np.abs(v) - size * aspect)


def _triangle(u: Array, v: Array, size: Array, aspect: Array) -> Array:
    sides: Array = np.maximum(0.8660254 * np.abs(u) / (0.5 + 0.5 * aspect) + 0.5 * v, -v)
    return sides - 0.6 * size


def _ring(u: Array, v: Array, size: Array, aspect: Array) -> Array:
    return np.abs(np.sqrt(u * u + v * v) - size) - size * (0.1 + 0.25 * aspect)


def _cross(u: Array, v: Array, size: Array, aspect: Array) -> Array:
    thin = 0.15 + 0.3 * aspect
    return np.minimum(_rectangle(u, v, size, thin), _rectangle(v, u, size, thin))


Distance = Callable[[Array, Array, Array, Array], Array]


def _shapes(distance: Distance) -> Callable[[_Draws], Array]:
    """A renderer of one to three antialiased shapes of one kind over a gentle gradient."""

    def render(d: _Draws) -> Array:
        rgb = _mix(d.colour(), d.colour(), _clip(_along(d) / SIDE + 0.5))
        count = d.uniform(0, _MAX_SHAPES)
        for i in range(_MAX_SHAPES):
            cos, sin = d.direction()
            x, y = _X - d.uniform(-11, 11), _Y - d.uniform(-11, 11)
            edge = distance(
                cos * x + sin * y, cos * y - sin * x, d.uniform(3.5, 11), d.uniform(0.3, 1)
            )
            cover = _clip(0.5 - edge) * (count >= i)
            rgb = _mix(rgb, _mix(d.colour(0), d.colour(0), _clip(0.5 + y / SIDE)), cover)
        return rgb

    return render


# ---- gradients ------------------------------------------------------------------------------


def _three_colours(d: _Draws, t: Array) -> Array:
    """The first colour at t <= 0, the second at 1/2, the third at t >= 1."""
    first = _mix(d.colour(), d.colour(), _clip(2 * t))
    return _mix(first, d.colour(), _clip(2 * t - 1))


def _linear(d: _Draws) -> Array:
    return _three_colours(d, _along(d) / d.uniform(24, 48) + 0.5)


def _radial(d: _Draws) -> Array:
    x, y = _X - d.uniform(-14, 14), _Y - d.uniform(-14, 14)
    squeeze = d.uniform(0.6, 1.6)
    return _three_colours(d, np.sqrt(x * x + squeeze * y * y) / d.uniform(14, 34))


# ---- textures -------------------------------------------------------------------------------


def _stripes(d: _Draws) -> Array:
    period, filled = d.uniform(4, 14), d.uniform(0.3, 0.7)
    t = _along(d) / period + d.uniform(0, 1)
    to_middle = np.abs(t - np.floor(t) - 0.5)
    return _mix(d.colour(), d.colour(), _clip((filled / 2 - to_middle) * period + 0.5))


def _checks(d: _Draws) -> Array:
    period = d.uniform(6, 18)
    cos, sin = d.direction()
    sides = []
    for axis in (cos * _X + sin * _Y, cos * _Y - sin * _X):
        t = axis / period + d.uniform(0, 1)
        edge = (0.25 - np.abs(t - np.floor(t) - 0.5)) * period
        sides.append(np.clip(2 * edge, -1, 1))
    return _mix(d.colour(), d.colour(), 0.5 + 0.5 * sides[0] * sides[1])


def _waves(d: _Draws) -> Array:
    plane = _smooth_wave(_along(d) / d.uniform(6, 20) + d.uniform(0, 1))
    x, y = _X - d.uniform(-16, 16), _Y - d.uniform(-16, 16)
    ripple = _smooth_wave(np.sqrt(x * x + y * y) / d.uniform(5, 16) + d.uniform(0, 1))
    share = d.uniform(0, 1)
    return _mix(d.colour(), d.colour(), 0.5 + 0.5 * (share * plane + (1 - share) * ripple))


def _clouds(d: _Draws) -> Array:
    """Value noise: two octaves of random lattices, smoothly interpolated, through a palette."""
    lattice = d.noise(1, 18)[:, 0]
    cells = d.uniform(2, 8)  # per side of the image, in the coarse octave
    value = 0.65 * _interpolate(lattice, cells) + 0.35 * _interpolate(lattice, 2 * cells)
    return _three_colours(d, 1.6 * value - 0.3)


def _interpolate(lattice: Array, cells: Array) -> Array:
    """Lattices (n, g, g) with g >= cells + 2 seen at `cells` (n, 1, 1) per side: (n, 32, 32)."""
    t = cells * (np.arange(SIDE, dtype=np.float32) / SIDE)  # (n, 1, 32)
    corner = np.floor(t)
    f = t - corner
    f = f * f * (3 - 2 * f)
    i = corner.astype(np.intp)
    n = np.arange(len(lattice))[:, None, None]
    row, column = i.transpose(0, 2, 1), i
    fy = f.transpose(0, 2, 1)
    upper = lattice[n, row, column] * (1 - f) + lattice[n, row, column + 1] * f
    lower = lattice[n, row + 1, column] * (1 - f) + lattice[n, row + 1, column + 1] * f
    return upper * (1 - fy) + lower * fy


def _grain(d: _Draws) -> Array:
    """Independent noise per value, gray in about half of the images, over a gradient."""
    rgb = _mix(d.colour(), d.colour(), _clip(_along(d) / SIDE + 0.5))
    noise = d.noise(3, SIDE) - 0.5
    gray = (d.uniform(0, 1) < 0.5)[:, None]
    return rgb + d.uniform(0.1, 0.8)[:, None] * np.where(gray, noise[:, :1], noise)


KINDS: dict[str, Callable[[_Draws], Array]] = {
    "circles": _shapes(_circle),
    "rectangles": _shapes(_rectangle),
    "triangles": _shapes(_triangle),
    "rings": _shapes(_ring),
    "crosses": _shapes(_cross),
    "linear gradient": _linear,
    "radial gradient": _radial,
    "stripes": _stripes,
    "checks": _checks,
    "waves": _waves,
    "clouds": _clouds,
    "noise": _grain,
}
