"""Caffe's Datum, the protocol-buffer message that one record of its LMDBs is.

The message is described here at run time, in a pool of its own, so that nothing has to be
generated and a process that also loads Caffe's own description has no conflict.

From a record to pixels:
- `data` holds uint8 values, channel by channel (C, H, W); 1 or 3 channels can be used.
- Where `data` is empty, `float_data` counts. Values in 0..255 are rounded (halves up); anything
  else is refused, because its scale is unknown.
- With `encoded`, `data` is an image file, which knows its own size and order of channels. The
  result has 1 channel if the record says so (`channels` = 1), else 3.
- Caffe stores colours as OpenCV decodes them: blue, green, red. Results are always RGB.
"""

from __future__ import annotations

from functools import cache
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cae_raw.errors import InputError, unknown_name

CHANNEL_ORDERS = ("bgr", "rgb")
Pixels = NDArray[np.uint8]
Shape = tuple[int, int, int]

_FIELDS = (  # number, name, type in descriptor.proto, repeated
    (1, "channels", 5, False),
    (2, "height", 5, False),
    (3, "width", 5, False),
    (4, "data", 12, False),
    (5, "label", 5, False),
    (6, "float_data", 2, True),
    (7, "encoded", 8, False),
)


@cache
def datum_class() -> Any:
    """The message class `caffe.Datum`."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    file = descriptor_pb2.FileDescriptorProto(name="datum.proto", package="caffe", syntax="proto2")
    message = file.message_type.add(name="Datum")
    for number, name, kind, repeated in _FIELDS:
        message.field.add(number=number, name=name, type=kind, label=3 if repeated else 1)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("caffe.Datum"))


def parse(value: bytes) -> Any:
    """A record as a message. Raises InputError when it is none."""
    from google.protobuf.message import DecodeError

    try:
        return datum_class().FromString(value)
    except (DecodeError, ValueError):
        raise InputError("is not a Datum") from None


def serialize(pixels: Pixels, label: int, channel_order: str) -> bytes:
    """A Datum of uint8 RGB or gray pixels (C, H, W), stored in this order of channels."""
    c, h, w = pixels.shape
    stored = reordered(pixels, channel_order)
    message = datum_class()(channels=c, height=h, width=w, data=stored.tobytes(), label=label)
    return message.SerializeToString(deterministic=True)


def serialize_encoded(file: bytes, shape: Shape, label: int) -> bytes:
    """A Datum that holds an image file; `shape` is (C, H, W) of its pixels."""
    c, h, w = shape
    message = datum_class()(channels=c, height=h, width=w, data=file, label=label, encoded=True)
    return message.SerializeToString(deterministic=True)


def to_pixels(message: Any, channel_order: str) -> Pixels:
    """A message's pixels as uint8 RGB or gray (C, H, W).

    Raises:
        InputError: if they cannot be made; the line begins with a verb.
    """
    if message.encoded:
        return _decoded(message)
    c, h, w = message.channels, message.height, message.width
    if min(c, h, w) < 1:
        raise InputError(f"has the size {c}x{h}x{w}, which no image has")
    if c not in (1, 3):
        raise InputError(f"has {c} channels, but images have 1 or 3 here")
    count = len(message.data) or len(message.float_data)
    if count != c * h * w:
        what = "bytes" if message.data or not message.float_data else "floats"
        raise InputError(f"has {count} {what} of data, but its size is {c}x{h}x{w}")
    if message.data:
        pixels = np.frombuffer(message.data, np.uint8)
    else:
        pixels = _rounded(np.array(message.float_data, np.float64))
    return np.ascontiguousarray(reordered(pixels.reshape(c, h, w), channel_order))


def reordered(pixels: Pixels, channel_order: str) -> Pixels:
    """(..., C, H, W) between RGB and `channel_order`, as a view; gray stays as it is."""
    return pixels[..., ::-1, :, :] if channel_order == "bgr" else pixels


def check_channel_order(channel_order: str) -> None:
    if channel_order not in CHANNEL_ORDERS:
        raise unknown_name("channel order", channel_order, CHANNEL_ORDERS)


def _rounded(values: NDArray[np.float64]) -> Pixels:
    if not bool(np.all((values >= 0) & (values <= 255))):  # so written, NaN is refused too
        raise InputError("has float values outside 0..255, so their scale is unknown")
    return np.floor(values + 0.5).astype(np.uint8)


def _decoded(message: Any) -> Pixels:
    from cae_raw.data.image_file import decode_image

    if not message.data:
        raise InputError("is marked as encoded, but holds no image")
    return decode_image(BytesIO(message.data), 1 if message.channels == 1 else 3)


def plain_prefix(shape: Shape) -> bytes:
    """The bytes before the pixels in a record of this shape, as all common writers write it."""
    c, h, w = shape
    return (
        b"\x08" + _varint(c) + b"\x10" + _varint(h) + b"\x18" + _varint(w)
        + b"\x22" + _varint(c * h * w)
    )  # fmt: skip


def plain_tails(words: NDArray[np.uint64], sizes: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether the bytes after the pixels are at most a label, then `encoded` = false.

    Then the record, behind `plain_prefix` and the pixels, means the same as the message parsed.

    Args:
        words: the first eight of these bytes, little-endian.
        sizes: how many there are, 0..8.
    """
    found = np.zeros(len(words), np.bool_)
    for masks, values in _TAILS:
        found |= (words & masks[sizes]) == values[sizes]
    return found


def _tail_patterns() -> list[tuple[NDArray[np.uint64], NDArray[np.uint64]]]:
    """Two patterns per size, as masks and the values under them: with `encoded`, and without.

    A label is the byte 0x28 and a varint, whose bytes but the last one have their upper bit set. A
    label below zero takes ten bytes, so its record is not among the plain ones.
    """
    patterns = []
    for end in (b"", b"\x38\x00"):
        masks, values = np.zeros(9, np.uint64), np.ones(9, np.uint64)  # 0 is never 1
        for size in range(len(end), 9):
            label = size - len(end)
            if label == 1 or label > 6:
                continue
            bits = b"\xff" + b"\x80" * (label - 1) if label else b""
            value = b"\x28" + b"\x80" * (label - 2) + b"\x00" if label else b""
            masks[size] = int.from_bytes(bits + b"\xff" * len(end), "little")
            values[size] = int.from_bytes(value + end, "little")
        patterns.append((masks, values))
    return patterns


_TAILS = _tail_patterns()


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)
