"""Charts by matplotlib, without its global state: no display, no pyplot, nothing to close."""

from __future__ import annotations

import warnings
from io import BytesIO
from typing import TYPE_CHECKING

from cae_raw.pictures.curves import quiet_matplotlib

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of this size in inches, laid out so that nothing overlaps."""
    with quiet_matplotlib():
        from matplotlib.figure import Figure

        return Figure(figsize=(width, height), layout="constrained")


def figure_png(figure: Figure, dpi: int = 100) -> bytes:
    """The figure as a PNG file's bytes, the same for the same figure."""
    buffer = BytesIO()
    with quiet_matplotlib(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph", UserWarning)  # a name that the font cannot write
        figure.savefig(
            buffer, format="png", dpi=dpi, bbox_inches="tight", metadata={"Software": None}
        )
    return buffer.getvalue()
