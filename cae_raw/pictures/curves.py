"""Errors over epochs as a chart, drawn by matplotlib without its global state."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from colorsys import hls_to_rgb
from contextlib import contextmanager
from math import inf, nan
from typing import TYPE_CHECKING, Any

import numpy as np

from cae_raw.figures import psnr
from cae_raw.pictures.layout import INK
from cae_raw.pictures.page import HEIGHT, SMALL, WIDTH, Picture, Range, page
from cae_raw.pictures.view import View, printable

if TYPE_CHECKING:
    from PIL.Image import Image

    from cae_raw.training.trainer import EpochRecord

DPI = 100
# By Masataka Okabe and Kei Ito (2008), told apart by people of any colour vision.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
POINTS = SMALL * 72 / DPI * 1.15  # letters
DARK = "#{:02x}{:02x}{:02x}".format(*INK)
SHORT = 44  # letters of a run's name in a legend of many
DECADE = 10.0  # errors that spread further than this get a logarithmic axis


def curves(view: View) -> Iterator[Picture]:
    """The errors of a run over its epochs."""
    if not view.history:
        return
    best = min(view.history, key=lambda record: record.validation_half_mse)
    lines = [
        "half_mse without penalty; dashed: training, the mean over an epoch while the weights "
        "move; solid: validation",
        f"{view.name}: best validation {best.validation_half_mse:.6f} after epoch {best.epoch}",
    ]
    chart = curves_chart({"": view.history}, (WIDTH, HEIGHT - 250))
    yield Picture(
        name="curves",
        shows=f"training and validation half_mse up to epoch {view.history[-1].epoch}",
        image=page("Error over epochs", lines, chart),
        about="history",
    )


def curves_chart(
    runs: Mapping[str, Sequence[EpochRecord]],
    size: tuple[int, int] = (WIDTH, HEIGHT),
    ranges: Mapping[str, Range] | None = None,
) -> Image:
    """half_mse over epochs of some runs: training dashed, validation solid, a colour for each run.

    Args:
        runs: their histories, by name; without a name, "", a run's two lines are named instead.
        size: (width, height) of the chart in pixels.
        ranges: of values, by name; with them PSNR is drawn in place of half_mse.
    """
    with quiet_matplotlib():
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator
        from PIL import Image

        figure = Figure((size[0] / DPI, size[1] / DPI), DPI, layout="constrained")
        axes = figure.add_subplot()
        errors = []
        for i, (name, history) in enumerate(runs.items()):
            epochs = [record.epoch for record in history]
            for attribute, style in (("train", "--"), ("validation", "-")):
                values = [getattr(record, f"{attribute}_half_mse") for record in history]
                if ranges is not None:
                    values = [_decibels(value, ranges[name]) for value in values]
                named = name if attribute == "validation" else None
                axes.plot(
                    epochs,
                    values,
                    style,
                    color=run_colour(i),
                    label=named if name else attribute,
                    linewidth=3.5,
                    marker="o" if len(epochs) <= 20 else None,
                    markersize=9,
                )
                errors += [value for value in values if 0 < value < inf]
        _dress(axes, errors if ranges is None else None, MaxNLocator(integer=True))
        _legend(figure, axes)
        canvas: Any = FigureCanvasAgg(figure)
        canvas.draw()
        pixels = np.asarray(canvas.buffer_rgba())[..., :3]
        return Image.fromarray(np.ascontiguousarray(pixels))


def run_colour(i: int) -> str:
    """Of the run at a place from 0, as #RRGGBB; beyond the first ones, hues apart from each other.

    A golden section of the circle further on each time, as colours for any number of runs.
    """
    if i < len(COLOURS):
        return COLOURS[i]
    hue, lightness = (i * 0.618034) % 1, (0.35, 0.45)[i % 2]
    return "#{:02X}{:02X}{:02X}".format(*(round(255 * v) for v in hls_to_rgb(hue, lightness, 0.7)))


def logarithmic(errors: Sequence[float]) -> bool:
    """Whether these errors, those above 0, spread so far that their axis should be."""
    found = [value for value in errors if 0 < value < inf]
    return bool(found) and max(found) / min(found) > DECADE


def _decibels(half_mse: float, value_range: Range) -> float:
    """PSNR; NaN, which leaves a gap in a line, where it is not finite."""
    return psnr(2 * half_mse, value_range) if 0 < half_mse < inf else nan


def _dress(axes: Any, errors: Sequence[float] | None, whole_numbers: Any) -> None:
    """Scales, labels and grid for errors, or for PSNR where there are none."""
    if errors is not None and logarithmic(errors):
        axes.set_yscale("log")
    elif errors is not None:
        axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(whole_numbers)
    measure = "PSNR in dB" if errors is None else "half_mse"
    axes.set_xlabel("epoch", fontsize=POINTS * 1.15, color=DARK)
    axes.set_ylabel(measure, fontsize=POINTS * 1.15, color=DARK, labelpad=12)
    axes.tick_params(which="both", labelsize=POINTS, colors=DARK)
    axes.grid(True, which="both", color="#d8dbe0", linewidth=1)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _legend(figure: Any, axes: Any) -> None:
    """Inside the chart while it is short, else under it; of many runs beside it and small."""
    handles, names = axes.get_legend_handles_labels()
    # A dollar sign would begin a formula, and letters that the font lacks a warning.
    shown = [printable(name).replace("$", r"\$") for name in names]
    style = {"frameon": False, "labelcolor": DARK, "handlelength": 3}
    if not shown:
        return
    if len(shown) <= 6 and max(map(len, shown)) <= 40:
        axes.legend(handles, shown, fontsize=POINTS, **style)
    elif len(shown) <= 10:
        figure.legend(handles, shown, loc="outside lower left", fontsize=POINTS * 0.85, **style)
    else:
        shown = [name if len(name) <= SHORT else name[: SHORT - 3] + "..." for name in shown]
        room = figure.get_size_inches()[1] * 72 / (1.5 * len(shown))
        size = min(POINTS * 0.8, room)
        figure.legend(handles, shown, loc="outside right upper", fontsize=size, **style)


@contextmanager
def quiet_matplotlib() -> Iterator[None]:
    """Keep matplotlib from telling about its caches: a folder that cannot be written is no fault.

    It then makes a temporary one, and warns of that and of the time it takes.
    """
    logger = logging.getLogger("matplotlib")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
