"""Pictures to files."""

from __future__ import annotations

from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from cae_raw.files import atomic_write

if TYPE_CHECKING:
    from PIL.Image import Image


def png_bytes(
    picture: Image, words: Mapping[str, str] | None = None, *, compress_level: int = 6
) -> bytes:
    """A Pillow image as a PNG file's bytes, with text by keyword in it.

    Level 3 takes two thirds of the time of level 6 and an eighth more bytes.
    """
    from PIL.PngImagePlugin import PngInfo

    buffer, info = BytesIO(), PngInfo()
    for keyword, value in (words or {}).items():
        info.add_text(keyword, value)
    picture.save(buffer, "PNG", pnginfo=info, compress_level=compress_level)
    return buffer.getvalue()


def save_png(picture: Image, path: Path, words: Mapping[str, str] | None = None) -> None:
    """Write a PNG file atomically, with text by keyword in it.

    Raises:
        InputError: if the file cannot be written.
    """
    atomic_write(path, png_bytes(picture, words))
