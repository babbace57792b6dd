"""Pictures inside a page: as small as they must be for all of them to fit, and no smaller."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING, Any

from cae_raw.pictures.save import png_bytes

if TYPE_CHECKING:
    from PIL.Image import Image

STEPS = ((1600, 82), (1300, 80), (1100, 72), (900, 65), (720, 55))  # width in pixels, WebP quality
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
    return Inline(_uri(_webp(image, quality=90), "webp"), *image.size)


def _packed(picture: Image, width: int, quality: int) -> Inline:
    """Without loss, which flat colours need little for, or with, where photographs make it less.

    Colours that mean numbers stay what they are; a palette would change them.
    """
    from PIL import Image

    if picture.width > width:
        size = (width, max(1, round(picture.height * width / picture.width)))
        picture = picture.resize(size, Image.Resampling.LANCZOS)
    lossless = _webp(picture, lossless=True, quality=50, method=2)
    lossy = _webp(picture, quality=quality)
    return Inline(_uri(min(lossless, lossy, key=len), "webp"), *picture.size)


def _webp(picture: Image, **options: Any) -> bytes:
    buffer = BytesIO()
    picture.save(buffer, "WEBP", **options)
    return buffer.getvalue()


def _uri(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{b64encode(data).decode()}"
