"""Decoding image files by fixed rules, so that what the model sees is never a surprise.

- The EXIF rotation is applied; of an animation the first frame counts.
- Alpha and transparent palette entries are composited over white.
- 16-bit gray is scaled to 8 bit by v / 257, rounded (65535 becomes 255); 32-bit integer gray is
  taken for 16-bit and refused when a value lies outside 0..65535. Pillow itself reduces 16-bit
  colour to its upper 8 bits.
- Float gray is scaled by 255 when all values lie in [0, 1], and refused otherwise.
- 1-bit is gray with 0 and 255; palette, CMYK, YCbCr and HSV become RGB.
- Asked for 1 channel, colour becomes luma (ITU-R 601); asked for 3, gray is repeated.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
from numpy.typing import NDArray

from cae_raw.data.local import looks_like, open_file, reason
from cae_raw.errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_PIXELS = 178_956_970  # where Pillow itself refuses by default; also 512 MiB as RGB

# fmt: off
EXTENSIONS = frozenset((
    ".avif", ".bmp", ".gif", ".jp2", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm",
    ".tga", ".tif", ".tiff", ".webp",
))
# fmt: on

_GRAY_MODES = ("1", "L", "LA", "La", "I", "F")


def load_image(path: Path, channels: int | None = None) -> NDArray[np.uint8]:
    """One image file as uint8 (C, H, W), C-contiguous, by the rules above.

    channels: 1, 3, or None for what the file has (1 for gray modes, else 3).
    Raises InputError, one line with the path, when the file is no image that can be used.
    """
    with quiet_pillow():
        return _load(path, channels, None)


def image_channels(path: Path) -> int:
    """The channels that `load_image` gives by itself, of which the file's beginning tells."""
    from PIL import Image

    with quiet_pillow(), open_file(path) as file:
        try:
            with Image.open(file) as image:
                return 1 if _is_gray(image) else 3
        except Exception as error:  # as in `_decode`
            raise InputError(f"{path} cannot be decoded: {reason(error)}") from None


def load_square(path: Path, channels: int, size: int, whole: bool = False) -> NDArray[np.uint8]:
    """The largest centred square of an image, resized (Lanczos) to uint8 (channels, size, size).

    This is the image with its shorter side resized to `size`, then cropped in the centre; with
    `whole`, nothing is cropped and the image is squashed into the square. Large JPEGs are decoded
    at a fraction of their size, never below twice `size` where they have that.
    For use inside `quiet_pillow`, which is not safe to enter from several threads at once.
    """
    return _load(path, channels, size, whole)


def decode_image(file: BinaryIO, channels: int | None = None) -> NDArray[np.uint8]:
    """`load_image` from an open file; the InputError's line begins with a verb.

    May be used from several threads, after `silence_pillow`.
    """
    return _decode(file, channels, None, False)


@contextmanager
def quiet_pillow() -> Iterator[None]:
    """Pillow's warnings (large image, odd metadata) off; what matters is raised as an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def silence_pillow() -> None:
    """Like `quiet_pillow`, but for good: for images that are decoded in threads."""
    warnings.filterwarnings("ignore", module=r"PIL\.")


def _load(
    path: Path, channels: int | None, size: int | None, whole: bool = False
) -> NDArray[np.uint8]:
    with open_file(path) as file:
        try:
            return _decode(file, channels, size, whole)
        except InputError as error:
            raise InputError(f"{path} {error}") from None


def _decode(
    file: BinaryIO, channels: int | None, size: int | None, whole: bool
) -> NDArray[np.uint8]:
    from PIL import Image, UnidentifiedImageError

    if channels not in (None, 1, 3):
        raise InputError(f"cannot have {channels} channels: images have 1 or 3 here")
    try:
        with Image.open(file) as image:
            if image.width * image.height > MAX_PIXELS:
                raise Image.DecompressionBombError
            if size is not None:
                image.draft(None, (2 * size, 2 * size))
            eight_bit = _to_eight_bit(image, channels)
            if size is not None:
                eight_bit = _square(eight_bit, size, whole)
            pixels = np.asarray(eight_bit)
    except InputError:
        raise
    except Image.DecompressionBombError:
        raise InputError(f"is too large: at most {MAX_PIXELS} pixels are decoded") from None
    except UnidentifiedImageError:
        raise InputError(f"is not an image that Pillow can read{_hint(file)}") from None
    except Exception as error:  # damaged files fail in a dozen ways
        raise InputError(f"cannot be decoded: {reason(error)}") from None
    if pixels.ndim == 2:
        return np.ascontiguousarray(pixels[None])
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _hint(file: BinaryIO) -> str:
    file.seek(0)
    return looks_like(file.read(512))


def _to_eight_bit(image: Image, channels: int | None) -> Image:
    """The image turned upright, in mode L or RGB."""
    from PIL import ImageOps

    image.load()
    with suppress(Exception):  # unreadable EXIF data is no reason to refuse good pixels
        image = ImageOps.exif_transpose(image)
    gray = _is_gray(image)
    if image.mode.startswith("I"):
        image = _scaled(np.asarray(image).astype(np.int64), 65535)
    elif image.mode == "F":
        image = _scaled(np.asarray(image).astype(np.float64), 1.0)
    elif image.has_transparency_data:
        image = _over_white(image.convert("RGBA"))
    if channels is None:
        channels = 1 if gray else 3
    return image.convert("L" if channels == 1 else "RGB")


def _is_gray(image: Image) -> bool:
    return image.mode in _GRAY_MODES or image.mode.startswith("I;16")


def _scaled(values: NDArray[np.int64] | NDArray[np.float64], top: float) -> Image:
    from PIL import Image

    if not bool(np.all((values >= 0) & (values <= top))):  # so written, NaN is refused too
        raise InputError(f"has gray values outside 0..{top:g}, so their scale is unknown")
    return Image.fromarray(np.floor(values * (255 / top) + 0.5).astype(np.uint8))


def _over_white(image: Image) -> Image:
    from PIL import Image

    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image).convert("RGB")


def _square(image: Image, size: int, whole: bool) -> Image:
    from PIL import Image

    width, height = image.size
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    box = None if whole else (left, top, left + side, top + side)
    return image.resize((size, size), Image.Resampling.LANCZOS, box=box)
