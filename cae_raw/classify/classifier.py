"""The classifier: an encoder, its code pooled where it is maps, and one linear layer.

    encoder -> MaxPool2d -> Flatten -> Linear         logits (N, K); softmax is part of the loss

The code of the single-layer model is maps, 32 x 34 x 34 = 36,992 numbers for an image of CIFAR-10:
7.4 GB for all 50,000. So maps are pooled to GRID x GRID first, as is usual for linear classifiers
on convolutional features; a maximum says that a filter found its pattern somewhere in a window.
A code that is a vector is taken as it is.
"""

from __future__ import annotations

from math import prod

import numpy as np

from cae_raw.errors import InputError
from cae_raw.layers import Flatten, Layer, Linear, MaxPool2d, Sequential
from cae_raw.layers.base import Array, Shape
from cae_raw.models import Autoencoder

GRID = 4
LARGEST_WINDOW = 16  # a pooling mask is a byte


class Classifier(Sequential):
    """Logits (N, K) of images (N, C, H, W) in the encoder's range of values.

    Args:
        model: an autoencoder; its encoder's layers become part of this, so it must not be used on.
        image_shape: (C, H, W).
        classes: their names, at least two.
        grid: maps are pooled to this many values a side, fewer where they are smaller, more where
            windows would exceed 16 x 16; 0 takes the maps as they are.

    The linear layer starts at 0: the problem is convex where the encoder stays as it is, so there
    is nothing to draw.

    Attributes:
        head: the position of the linear layer in the stack; what comes before makes the features.

    Raises:
        InputError: if the model cannot take such images, or there are fewer than two classes.
    """

    def __init__(
        self,
        model: Autoencoder,
        image_shape: tuple[int, int, int],
        classes: tuple[str, ...],
        grid: int = GRID,
    ) -> None:
        if len(classes) < 2:
            raise InputError(f"a classifier needs at least two classes, not {len(classes)}")
        code = model.layer_shapes(image_shape)[model.encoder_length]
        features = [*_pooling(code, grid), Flatten()] if len(code) == 3 else []
        self.image_shape, self.classes, self.grid = image_shape, tuple(classes), grid
        self.value_range = model.value_range
        self.encoder = {"name": model.name, **model.options}
        shape = code
        for layer in features:
            shape = layer.output_shape(shape)
        linear = Linear(prod(shape), len(classes), rng=np.random.default_rng(0))
        for values in linear.params.values():
            values[...] = 0
        super().__init__(*model.stack[: model.encoder_length], *features, linear)
        self.head = len(self.stack) - 1

    @property
    def features(self) -> int:
        """How many numbers the linear layer gets of an image."""
        return self.linear.in_features

    @property
    def linear(self) -> Linear:
        layer = self.stack[-1]
        assert isinstance(layer, Linear)
        return layer

    def set_linear(self, weight: Array, bias: Array) -> None:
        """Replace the linear layer's parameters by host arrays (K, D) and (K,)."""
        flat = self.backend.to_numpy(self.parameters).copy()
        views = self.split(flat)
        views[f"{self.head}.weight"][...] = weight
        views[f"{self.head}.bias"][...] = bias
        self.load_parameters(flat)


def _pooling(shape: Shape, grid: int) -> list[Layer]:
    """What brings maps (C, H, W) to about grid x grid."""
    if grid < 1:
        return []
    (kh, ph), (kw, pw) = (_window(size, grid) for size in shape[1:])
    return [] if (kh, kw) == (1, 1) else [MaxPool2d((kh, kw), padding=(ph, pw))]


def _window(size: int, parts: int) -> tuple[int, int]:
    """The smallest window that cuts an axis into at most so many parts, and the padding.

    More parts where the window would be larger than LARGEST_WINDOW.
    """
    kernel = min(LARGEST_WINDOW, -(-size // parts))
    missing = -size % kernel
    return kernel, (missing + 1) // 2
