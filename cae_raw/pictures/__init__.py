"""What people look at: grids, heat maps, comparisons. Bytes in, Pillow images out."""

from __future__ import annotations

from cae_raw.pictures.comparison import comparison
from cae_raw.pictures.grid import grid, reconstructions_grid
from cae_raw.pictures.heatmap import colorize, colour_bar, scale_top
from cae_raw.pictures.layout import to_image
from cae_raw.pictures.save import png_bytes, save_png

__all__ = [
    "colorize",
    "colour_bar",
    "comparison",
    "grid",
    "png_bytes",
    "reconstructions_grid",
    "save_png",
    "scale_top",
    "to_image",
]
