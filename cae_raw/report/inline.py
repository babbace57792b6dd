"""Pictures inside a page: as small as they must be for all of them to fit, and no smaller."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING

from cae_raw.pictures.save import png_bytes

if TYPE_CHECKING:
    from PIL.Image import Image

STEPS = ((1600, 82), (1300, 80), (1100, 72), (900, 65), (720, 55))  # width in pixels, WebP quality
COLOURS = 64  # of a picture with a palette
SMALL = 64  # pixels of an image's longer side, up to which it is kept as it is


@dataclass(frozen=True)
class Inline:
    """A picture as a data URI, with its size in pixels."""

    uri: str
    width: int
    height: int


def fitted(pictures: Sequence[Image], budget: int) -> list[Inline] | None:
    """The pictures as data URIs of at most so many characters together; None where none can be.

    Each step makes all of them smaller, so that their letters keep one size.
    """
    for width, quality in STEPS:
        found = []
        for picture in pictures:
            found.append(_packed(picture, width, quality))
            if sum(len(one.uri) for one in found) > budget:
                break
        else:
            return found
    return None


def exact(image: Image) -> Inline:
    """A small image with every pixel as it is; a larger one nearly so."""
    if max(image.size) <= SMALL:
        return Inline(_uri(png_bytes(image, compress_level=9), "png"), *image.size)
    return Inline(_uri(_webp(image, 90), "webp"), *image.size)


def _packed(picture: Image, width: int, quality: int) -> Inline:
    """In the smaller of two formats: one is good at flat colours, one at photographs."""
    from PIL import Image

    if picture.width > width:
        size = (width, max(1, round(picture.height * width / picture.width)))
        picture = picture.resize(size, Image.Resampling.LANCZOS)
    flat = png_bytes(picture.quantize(COLOURS, dither=Image.Dither.NONE), compress_level=9)
    photo = _webp(picture, quality)
    data, kind = (flat, "png") if len(flat) <= len(photo) else (photo, "webp")
    return Inline(_uri(data, kind), *picture.size)


def _webp(picture: Image, quality: int) -> bytes:
    buffer = BytesIO()
    picture.save(buffer, "WEBP", quality=quality)
    return buffer.getvalue()


def _uri(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{b64encode(data).decode()}"
