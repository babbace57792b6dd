"""Pictures to files."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from cae_raw.files import atomic_write

if TYPE_CHECKING:
    from PIL.Image import Image


def png_bytes(picture: Image) -> bytes:
    """A Pillow image as a PNG file's bytes."""
    buffer = BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def save_png(picture: Image, path: Path) -> None:
    """Write a PNG file atomically.

    Raises:
        InputError: if the file cannot be written.
    """
    atomic_write(path, png_bytes(picture))
