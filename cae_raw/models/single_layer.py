"""The single-layer autoencoder of the article on convolutional autoencoders in TensorFlow.

    zero-pad 2 -> Conv2d C -> F, 3x3 -> tanh         the code: (N, F, H+2, W+2)
               -> Conv2d F -> C, 3x3 -> tanh         the reconstruction: (N, C, H, W)

Images are scaled to [-1, 1]. The objective is half_mse + l2 * sum(encoder weights^2); the article's
formula names the decoder's weights as well, its code leaves them alone, so they join on request.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from cae_raw.data.scaling import scale_and_shift
from cae_raw.layers import Conv2d, Tanh
from cae_raw.models.autoencoder import Autoencoder
from cae_raw.ops.single_layer import SingleLayerCuda, serves
from cae_raw.ops.single_layer_step import SingleLayerStep

VALUE_RANGE = (-1.0, 1.0)


def single_layer(
    channels: int = 3, filters: int = 32, rng: np.random.Generator | None = None
) -> Autoencoder:
    """Build it for images of any size with `channels` channels.

    Weights are drawn from `rng` (None: from the operating system) by the truncated-normal rule.
    """
    shape = (filters, channels, 3, 3)
    return Autoencoder(
        Conv2d(channels, filters, 3, padding=2, rng=rng, init="truncated_normal"),
        Tanh(),
        Conv2d(filters, channels, 3, rng=rng, init="truncated_normal"),
        Tanh(),
        encoder_length=2,
        channels=channels,
        value_range=VALUE_RANGE,
        halo=2,
        loss="half_mse",
        penalised=(("0.weight",), ("2.weight",)),
        fused=partial(SingleLayerStep, shape),
        fused_cuda=SingleLayerCuda(*scale_and_shift(VALUE_RANGE)) if serves(shape) else None,
        name="single-layer",
        options={"channels": channels, "filters": filters},
    )
