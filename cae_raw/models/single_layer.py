"""The single-layer autoencoder of the article on convolutional autoencoders in TensorFlow.

    zero-pad 2 -> Conv2d C -> F, 3x3 -> tanh         the code: (N, F, H+2, W+2)
               -> Conv2d F -> C, 3x3 -> tanh         the reconstruction: (N, C, H, W)

Images are scaled to [-1, 1]. The objective is half_mse + l2 * sum(encoder weights^2); the article's
formula names the decoder's weights as well, its code leaves them alone, so they join on request.
Another range and a decoder without tanh are options: the article's code had them at times.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from cae_raw.data.scaling import scale_and_shift
from cae_raw.errors import InputError, unknown_name
from cae_raw.layers import Conv2d, Layer, Tanh
from cae_raw.models.autoencoder import Autoencoder
from cae_raw.ops.single_layer import SingleLayerCuda, serves
from cae_raw.ops.single_layer_step import SingleLayerStep

DECODER_ACTIVATIONS = ("tanh", "none")
VALUE_RANGE = (-1.0, 1.0)


def single_layer(
    channels: int = 3,
    filters: int = 32,
    rng: np.random.Generator | None = None,
    *,
    value_range: tuple[float, float] = VALUE_RANGE,
    decoder_activation: str = "tanh",
) -> Autoencoder:
    """Build it for images of any size with `channels` channels.

    Weights are drawn from `rng` (None: from the operating system) by the truncated-normal rule.

    Args:
        value_range: what bytes are scaled to, (low, high).
        decoder_activation: "tanh", or "none" for the decoder's convolution alone.

    Raises:
        InputError: see `check_output`.
    """
    low, high = value_range
    check_output((low, high), decoder_activation)
    shape = (filters, channels, 3, 3)
    options: dict[str, Any] = {"channels": channels, "filters": filters}
    if (low, high) != VALUE_RANGE:
        options["value_range"] = [low, high]
    output: tuple[Layer, ...] = (Tanh(),)
    if decoder_activation == "none":
        options["decoder_activation"], output = decoder_activation, ()
    scaling = scale_and_shift((low, high))
    return Autoencoder(
        Conv2d(channels, filters, 3, padding=2, rng=rng, init="truncated_normal"),
        Tanh(),
        Conv2d(filters, channels, 3, rng=rng, init="truncated_normal"),
        *output,
        encoder_length=2,
        channels=channels,
        value_range=(low, high),
        halo=2,
        loss="half_mse",
        penalised=(("0.weight",), ("2.weight",)),
        fused=partial(SingleLayerStep, shape, decoder_activation="tanh" if output else None),
        fused_cuda=SingleLayerCuda(*scaling, bool(output)) if serves(shape) else None,
        name="single-layer",
        options=options,
    )


def check_output(value_range: tuple[float, float], decoder_activation: str) -> None:
    """Refuse a range that is none, or that the output cannot reach.

    Raises:
        InputError: also for another activation.
    """
    if decoder_activation not in DECODER_ACTIVATIONS:
        raise unknown_name("decoder activation", decoder_activation, DECODER_ACTIVATIONS)
    low, high = value_range
    scale_and_shift((low, high))
    if decoder_activation == "tanh" and not -1 <= low < high <= 1:
        raise InputError(
            f"the decoder's tanh cannot reach all of {low:g} to {high:g}: choose an input range "
            "within -1 to 1, or the decoder activation none"
        )
