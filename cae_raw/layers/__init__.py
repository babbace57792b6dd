"""Parameters and shape rules. The maths is in `cae_raw.ops`."""

from __future__ import annotations

from cae_raw.layers.activation import ReLU, Tanh
from cae_raw.layers.base import Gradients, Layer, Trace
from cae_raw.layers.conv2d import Conv2d
from cae_raw.layers.cross_entropy import CrossEntropyLoss
from cae_raw.layers.linear import Linear
from cae_raw.layers.loss import MSELoss
from cae_raw.layers.pool2d import MaxPool2d, MaxUnpool2d
from cae_raw.layers.sequential import Sequential
from cae_raw.layers.shape import Flatten, Pad2d, Unflatten

LAYERS: dict[str, type[Layer]] = {
    "Conv2d": Conv2d,
    "MaxPool2d": MaxPool2d,
    "MaxUnpool2d": MaxUnpool2d,
    "Linear": Linear,
    "ReLU": ReLU,
    "Tanh": Tanh,
    "Flatten": Flatten,
    "Unflatten": Unflatten,
    "Pad2d": Pad2d,
}

__all__ = [
    "LAYERS",
    "Conv2d",
    "CrossEntropyLoss",
    "Flatten",
    "Gradients",
    "Layer",
    "Linear",
    "MSELoss",
    "MaxPool2d",
    "MaxUnpool2d",
    "Pad2d",
    "ReLU",
    "Sequential",
    "Tanh",
    "Trace",
    "Unflatten",
]
