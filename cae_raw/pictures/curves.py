"""Errors over epochs as a chart, drawn by matplotlib without its global state."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from cae_raw.pictures.layout import INK
from cae_raw.pictures.page import HEIGHT, SMALL, WIDTH, Picture, page
from cae_raw.pictures.view import View

if TYPE_CHECKING:
    from PIL.Image import Image

    from cae_raw.training.trainer import EpochRecord

DPI = 100
# By Masataka Okabe and Kei Ito (2008), told apart by people of any colour vision.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
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
    runs: Mapping[str, Sequence[EpochRecord]], size: tuple[int, int] = (WIDTH, HEIGHT)
) -> Image:
    """half_mse over epochs of some runs: training dashed, validation solid, a colour for each run.

    Args:
        runs: their histories, by name; the name "" is left out of the legend.
        size: (width, height) of the chart in pixels.
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
                label = f"{name}, {attribute}" if name else attribute
                colour = COLOURS[i % len(COLOURS)]
                axes.plot(
                    epochs,
                    values,
                    style,
                    color=colour,
                    label=label,
                    linewidth=3.5,
                    marker="o" if len(epochs) <= 20 else None,
                    markersize=9,
                )
                errors += [value for value in values if value > 0]
        _dress(axes, errors, MaxNLocator(integer=True))
        canvas: Any = FigureCanvasAgg(figure)
        canvas.draw()
        pixels = np.asarray(canvas.buffer_rgba())[..., :3]
        return Image.fromarray(np.ascontiguousarray(pixels))


def _dress(axes: Any, errors: list[float], whole_numbers: Any) -> None:
    """Scales, labels, grid and legend."""
    points = SMALL * 72 / DPI * 1.15
    ink = "#{:02x}{:02x}{:02x}".format(*INK)
    if errors and max(errors) / min(errors) > DECADE:
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(whole_numbers)
    axes.set_xlabel("epoch", fontsize=points * 1.15, color=ink)
    axes.set_ylabel("half_mse", fontsize=points * 1.15, color=ink, labelpad=12)
    axes.tick_params(which="both", labelsize=points, colors=ink)
    axes.grid(True, which="both", color="#d8dbe0", linewidth=1)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    if axes.lines:
        axes.legend(fontsize=points, frameon=False, labelcolor=ink, handlelength=3)


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
