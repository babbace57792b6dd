"""The deep autoencoder of the article on training autoencoders on ImageNet with Torch.

    Conv2d C -> 12, ReLU, Conv2d 12 -> 12, ReLU, MaxPool2d 2,     two blocks of 3x3 convolutions
    Conv2d 12 -> 24, ReLU, MaxPool2d 2,
    Flatten, Linear -> code                                       1568 numbers by default
    Linear back, Unflatten,
    MaxUnpool2d, Conv2d 24 -> 12, ReLU,                           the encoder's mirror image
    MaxUnpool2d, Conv2d 12 -> 12, ReLU, Conv2d 12 -> C            no output activation

Images are scaled to [0, 1]; the loss is `mse`. Weights and biases start uniform in
+-1/sqrt(fan_in), Torch's default. As printed, the article's decoder does not fit together (12x12
maps meet 14x14 masks), and its author's later code lets a mask of 24 channels meet 12 channels; so
here unpooling comes first in each mirrored block, as the article's figure has it.

Two paddings: `deep`, the article's, convolves without padding in the encoder and with 2 in the
decoder (64x64 images: 24 maps of 14x14); `deep_same`, that of the author's code, pads by 1
everywhere (24 maps of 16x16).

The decoder needs the encoder's pooling masks: they carry information around the code. A code alone
says how strong each feature is in each window, the mask where in the window it was.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from cae_raw.data.scaling import scale_and_shift
from cae_raw.errors import InputError
from cae_raw.layers import (
    Conv2d,
    Flatten,
    Linear,
    MaxPool2d,
    MaxUnpool2d,
    ReLU,
    Unflatten,
)
from cae_raw.models.autoencoder import Autoencoder

Size = int | tuple[int, int]

VALUE_RANGE = (0.0, 1.0)

LARGEST = 2**29  # weights in the two linear layers: 2 GiB, and training keeps that several times


def deep(
    channels: int = 3,
    size: Size = 64,
    code_size: int = 1568,
    rng: np.random.Generator | None = None,
    *,
    value_range: tuple[float, float] = VALUE_RANGE,
) -> Autoencoder:
    """Build it for images of `size` (int or (height, width)), convolutions without padding.

    Bytes are scaled to `value_range`, (low, high).

    Raises:
        InputError: see `check_size`; or the range is none.
    """
    return _build("deep", channels, size, code_size, rng, value_range, encoder_padding=0)


def deep_same(
    channels: int = 3,
    size: Size = 64,
    code_size: int = 1568,
    rng: np.random.Generator | None = None,
    *,
    value_range: tuple[float, float] = VALUE_RANGE,
) -> Autoencoder:
    """The same with convolutions that keep the size of their maps."""
    return _build("deep-same", channels, size, code_size, rng, value_range, encoder_padding=1)


def check_size(name: str, height: int, width: int, code_size: int) -> None:
    """Refuse what the model of this name cannot be built for, before anything is built.

    Raises:
        InputError: if images are too small for two poolings, the code is empty, or both are so
            large that the weights would not fit a common machine. The nearest size that fits is
            named; all between the smallest and the largest do.
    """
    if code_size < 1:
        raise InputError(f"the code must have at least 1 number, not {code_size}")
    smallest = 12 if name == "deep" else 4
    if min(height, width) < smallest:
        raise InputError(
            f"images of {height}x{width} are too small for the model {name}, which pools them "
            f"twice: the nearest size that fits is {max(height, smallest)}x{max(width, smallest)}"
        )
    weights = _linear_weights(name, height, width, code_size)
    if weights > LARGEST:
        raise InputError(
            f"a code of {code_size} numbers for images of {height}x{width} takes {weights:,} "
            f"weights, of which {LARGEST:,} are allowed: use "
            f"{_advice(name, height, width, code_size, smallest)}"
        )


def _advice(name: str, height: int, width: int, code_size: int, smallest: int) -> str:
    """What to do about too many weights: the largest images, and the longest code, that fit."""
    longest = LARGEST // _linear_weights(name, height, width, 1)
    ways = [f"a code of {longest}"] if longest else []
    for side in range(max(height, width), 0, -1):  # of the same shape, as nearly as pixels allow
        h, w = (max(smallest, length * side // max(height, width)) for length in (height, width))
        if _linear_weights(name, h, w, code_size) <= LARGEST:
            ways.append(f"images of {h}x{w}")
            break
    return " or ".join(ways) + ", the nearest that fit"


def _linear_weights(name: str, height: int, width: int, code_size: int) -> int:
    """Weights of the two linear layers."""
    lost = 2 if name == "deep" else 0  # pixels per convolution

    def pooled(length: int) -> int:
        return ((length - 2 * lost) // 2 - lost) // 2

    return 2 * 24 * pooled(height) * pooled(width) * code_size


def _build(
    name: str,
    channels: int,
    size: Size,
    code_size: int,
    rng: np.random.Generator | None,
    value_range: tuple[float, float],
    encoder_padding: int,
) -> Autoencoder:
    height, width = (size, size) if isinstance(size, int) else size
    check_size(name, height, width, code_size)
    low, high = value_range
    scale_and_shift((low, high))
    rng = np.random.default_rng() if rng is None else rng
    decoder_padding = 2 - encoder_padding

    def conv(c: int, o: int, padding: int) -> Conv2d:
        return Conv2d(c, o, 3, padding=padding, rng=rng)

    pool1, pool2 = MaxPool2d(2), MaxPool2d(2)
    encoder = [
        conv(channels, 12, encoder_padding),
        ReLU(),
        conv(12, 12, encoder_padding),
        ReLU(),
        pool1,
        conv(12, 24, encoder_padding),
        ReLU(),
        pool2,
    ]
    shape: tuple[int, ...] = (channels, height, width)
    for layer in encoder:
        shape = layer.output_shape(shape)
    features = int(np.prod(shape))
    encoder += [Flatten(), Linear(features, code_size, rng=rng)]
    decoder = [
        Linear(code_size, features, rng=rng),
        Unflatten(shape),
        MaxUnpool2d(pool2),
        conv(24, 12, decoder_padding),
        ReLU(),
        MaxUnpool2d(pool1),
        conv(12, 12, decoder_padding),
        ReLU(),
        conv(12, channels, decoder_padding),
    ]
    layers = [*encoder, *decoder]
    weights = [
        [
            f"{i}.weight"
            for i, layer in enumerate(layers)
            if layer.params and (i < len(encoder)) == e
        ]
        for e in (True, False)
    ]
    options: dict[str, Any] = {
        "channels": channels,
        "size": [height, width],
        "code_size": code_size,
    }
    if (low, high) != VALUE_RANGE:
        options["value_range"] = [low, high]
    return Autoencoder(
        *layers,
        encoder_length=len(encoder),
        channels=channels,
        value_range=(low, high),
        loss="mse",
        penalised=(tuple(weights[0]), tuple(weights[1])),
        name=name,
        options=options,
    )
