"""Curves as SVG inside a page: the page's own letters and colours, values read by its script."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from math import ceil, floor, isfinite, log10

from cae_raw.pictures.curves import logarithmic

WIDTH, HEIGHT = 960, 420  # of the drawing, in its own units
LEFT, RIGHT, TOP, BOTTOM = 84, 16, 14, 50  # around the lines
MOST_POINTS = 20_000  # in all lines together
DASHES = {"train": ' stroke-dasharray="7 4"', "validation": ""}


@dataclass(frozen=True)
class Series:
    """The curves of a run. colour: anything that CSS takes."""

    label: str
    colour: str
    epochs: list[int]
    train: list[float]
    validation: list[float]


@dataclass(frozen=True)
class Axis:
    """Which numbers stand where, from `start` to `stop` in the drawing."""

    low: float
    high: float
    start: float
    stop: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high, value = (log10(v) if self.log else v for v in (self.low, self.high, value))
        return self.start + (value - low) / (high - low) * (self.stop - self.start)

    def ticks(self) -> list[float]:
        """Round numbers between the ends, some five to ten of them."""
        if self.log:
            decades = range(floor(log10(self.low)), ceil(log10(self.high)) + 1)
            spread = log10(self.high / self.low)
            steps = (1,) if spread > 5 else (1, 3) if spread > 3 else (1, 2, 5)
            wanted = [float(f"{step}e{power}") for power in decades for step in steps]
            return [value for value in wanted if self.low <= value <= self.high]
        rough = (self.high - self.low) / 8
        power = 10.0 ** floor(log10(rough))
        step = next(s * power for s in (1, 2, 5, 10) if s * power >= rough)
        first, last = ceil(self.low / step - 1e-9), floor(self.high / step + 1e-9)
        return [i * step for i in range(first, last + 1)]


def thinned(series: Sequence[Series]) -> list[Series]:
    """With every second epoch only, or fewer, where there are very many; the last one stays."""
    most = max(20, MOST_POINTS // max(1, 2 * len(series)))
    found = []
    for one in series:
        stride = -(-len(one.epochs) // most)
        last = len(one.epochs) - 1
        kept = [i for i in range(last + 1) if i % stride == last % stride]
        epochs = [one.epochs[i] for i in kept]
        train, validation = ([values[i] for i in kept] for values in (one.train, one.validation))
        found.append(Series(one.label, one.colour, epochs, train, validation))
    return found


def chart(series: Sequence[Series], measure: str, *, errors: bool) -> str:
    """The drawing of some runs: training dashed, validation solid.

    Args:
        measure: what the numbers are, for the axis.
        errors: their axis begins at 0, or is logarithmic where they spread far; else it is linear
            and begins where they do.
    """
    values = [v for one in series for v in (*one.train, *one.validation) if isfinite(v)]
    epochs = [epoch for one in series for epoch in one.epochs]
    x = Axis(min(epochs), max(max(epochs), min(epochs) + 1), LEFT, WIDTH - RIGHT)
    y = _value_axis(values, errors)
    parts = [_grid(x, y, measure)]
    for i, one in enumerate(series):
        for name, numbers in (("train", one.train), ("validation", one.validation)):
            parts.append(
                f'<g fill="none" stroke="{escape(one.colour)}" stroke-width="2.2"'
                f'{DASHES[name]} data-run="{i}"><title>{escape(one.label)}, {name}</title>'
                f"{_line(one.epochs, numbers, x, y, one.colour)}</g>"
            )
    title = f"{measure} over epochs of {len(series)} run{'s' * (len(series) > 1)}"
    return (
        f'<svg id="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-labelledby="chart-title" '
        f'data-first="{x.low}" data-last="{x.high}" data-left="{LEFT}" '
        f'data-right="{WIDTH - RIGHT}"><title id="chart-title">{escape(title)}</title>'
        + "\n".join(parts)
        + f'<line id="marker" x1="0" x2="0" y1="{TOP}" y2="{HEIGHT - BOTTOM}" '
        'stroke="currentColor" visibility="hidden"/></svg>'
    )


def _value_axis(values: Sequence[float], errors: bool) -> Axis:
    ends = (HEIGHT - BOTTOM, TOP)
    if not values:
        return Axis(0.0, 1.0, *ends)
    low, high = min(values), max(values)
    if errors and logarithmic(values):
        low = min(value for value in values if value > 0)
        return Axis(low / 1.15, high * 1.15, *ends, log=True)
    if errors:
        return Axis(0.0, high * 1.05 or 1.0, *ends)
    margin = (high - low) * 0.05 or 1.0
    return Axis(low - margin, high + margin, *ends)


def _grid(x: Axis, y: Axis, measure: str) -> str:
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
    rules, words = [], []
    for value in y.ticks():
        at = f"{y(value):.1f}"
        rules.append(f"M{LEFT} {at}H{right}")
        words.append(f'<text x="{LEFT - 8}" y="{at}" dy=".35em" class="end">{value:g}</text>')
    for value in x.ticks():
        if value != int(value):
            continue
        at = f"{x(value):.1f}"
        rules.append(f"M{at} {TOP}V{bottom}")
        words.append(f'<text x="{at}" y="{bottom + 20}" class="middle">{value:g}</text>')
    middle = (TOP + bottom) / 2
    return (
        f'<path d="{"".join(rules)}" class="grid"/>{"".join(words)}'
        f'<text x="{(LEFT + right) / 2}" y="{HEIGHT - 8}" class="middle">epoch</text>'
        f'<text transform="translate(16 {middle}) rotate(-90)" class="middle">'
        f"{escape(measure)}</text>"
    )


def _line(epochs: Sequence[int], numbers: Sequence[float], x: Axis, y: Axis, colour: str) -> str:
    """A line through the numbers that the axis can hold, broken at the others."""
    path, dots, pen = [], [], "M"
    for epoch, number in zip(epochs, numbers, strict=True):
        if not isfinite(number) or (y.log and number <= 0):
            pen = "M"
            continue
        at = f"{x(epoch):.1f} {y(number):.1f}"
        path.append(pen + at)
        if len(epochs) <= 20:
            cx, cy = at.split()
            dots.append(f'<circle cx="{cx}" cy="{cy}" r="3" fill="{escape(colour)}"/>')
        pen = "L"
    return f'<path d="{"".join(path) or "M0 0"}"/>{"".join(dots)}'
