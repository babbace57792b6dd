"""What a model is made of and what it costs: a table of its layers for images of one shape.

Per layer, and per image:
- `flops`: multiplications and additions of the forward pass, as `Layer.flops` counts them.
- `training_flops`: of a training step. The backward pass of a layer with weights costs as much as
  its forward pass for the gradient of the weights, and as much again for that of its input, which
  the first of them is spared. Other layers cost the same both ways. The loss and the optimizer,
  whose work is per step and not per image, are left out.
- `bytes`: of its output, what the forward pass of a training step keeps for the backward pass.
  Maps are float32; a pooling layer adds one byte per window for its mask. An activation keeps its
  output, a layer with weights its input, and the loss the last output. Nothing is kept of a layer
  with weights that an activation follows, because the activation is computed in the same pass.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from math import prod
from typing import Any

from cae_raw.layers import Flatten, MaxPool2d, Unflatten
from cae_raw.layers.activation import Activation
from cae_raw.layers.base import AffineLayer, Layer, Shape
from cae_raw.models.autoencoder import Autoencoder

FLOAT_BYTES = 4
HEADINGS = ("", "layer", "output", "parameters", "FLOPs", "training FLOPs", "bytes")


@dataclass(frozen=True)
class LayerSummary:
    """One layer of a model; shapes are without the batch axis."""

    index: int
    layer: str
    output_shape: Shape
    parameters: int
    flops: int
    training_flops: int
    bytes: int


@dataclass(frozen=True)
class Summary:
    """A model's layers for images of `image_shape` (C, H, W), and their totals."""

    model: str
    image_shape: Shape
    code_shape: Shape
    value_range: tuple[float, float]
    loss: str
    encoder_length: int
    layers: tuple[LayerSummary, ...]

    @property
    def parameters(self) -> int:
        return sum(row.parameters for row in self.layers)

    @property
    def flops(self) -> int:
        return sum(row.flops for row in self.layers)

    @property
    def training_flops(self) -> int:
        return sum(row.training_flops for row in self.layers)

    @property
    def input_bytes(self) -> int:
        return FLOAT_BYTES * prod(self.image_shape)

    @property
    def bytes(self) -> int:
        """Kept per image, the image itself included."""
        return self.input_bytes + sum(row.bytes for row in self.layers)

    def to_json(self) -> dict[str, Any]:
        """Plain values: what the model is, `layers` as a list of rows, and `total`."""
        return {
            "model": self.model,
            "image_shape": list(self.image_shape),
            "code_shape": list(self.code_shape),
            "value_range": list(self.value_range),
            "loss": self.loss,
            "encoder_length": self.encoder_length,
            "input_bytes": self.input_bytes,
            "layers": [
                {**asdict(row), "output_shape": list(row.output_shape)} for row in self.layers
            ],
            "total": {
                "parameters": self.parameters,
                "flops": self.flops,
                "training_flops": self.training_flops,
                "bytes": self.bytes,
            },
        }

    def lines(self) -> list[str]:
        """The table for people, in plain text."""
        low, high = self.value_range
        cells: list[tuple[Any, ...]] = [HEADINGS]
        cells.append(("", "image", _text(self.image_shape), "", "", "", self.input_bytes))
        for row in self.layers:
            output = _text(row.output_shape)
            if row.index == self.encoder_length - 1:
                output += " = code"
            numbers = (row.parameters, row.flops, row.training_flops, row.bytes)
            cells.append((row.index, _short(row.layer), output, *(n or "" for n in numbers)))
        totals = (self.parameters, self.flops, self.training_flops, self.bytes)
        cells.append(("", "total", "", *totals))
        return [
            f"{self.model} for images of {_text(self.image_shape)} in [{low:g}, {high:g}], "
            f"loss {self.loss}",
            *_aligned(cells),
            f"per image {self.flops / 1e6:.2f} MFLOP forward, {self.training_flops / 1e6:.2f} "
            f"MFLOP in training, {self.bytes / 2**20:.2f} MiB of maps; "
            f"parameters {FLOAT_BYTES * self.parameters / 2**20:.2f} MiB",
        ]


def summarize(model: Autoencoder, image_shape: tuple[int, int, int]) -> Summary:
    """The table for a model and images (C, H, W).

    Raises:
        InputError: if the model cannot take such images.
    """
    shapes = model.layer_shapes(image_shape)
    first = next((i for i, layer in enumerate(model.stack) if layer.params), len(model.stack))
    rows = []
    for i, layer in enumerate(model.stack):
        flops = layer.flops(shapes[i])
        passes = 1 + (i > first) + bool(layer.params)
        rows.append(
            LayerSummary(
                index=i,
                layer=repr(layer),
                output_shape=shapes[i + 1],
                parameters=sum(prod(p.shape) for p in layer.params.values()),
                flops=flops,
                training_flops=passes * flops,
                bytes=_kept(model.stack, i, prod(shapes[i + 1])),
            )
        )
    return Summary(
        model=model.name,
        image_shape=tuple(image_shape),
        code_shape=shapes[model.encoder_length],
        value_range=model.value_range,
        loss=model.loss,
        encoder_length=model.encoder_length,
        layers=tuple(rows),
    )


def _kept(stack: list[Layer], i: int, size: int) -> int:
    """Bytes of the output of layer i, `size` values, that stay until the backward pass."""
    layer = stack[i]
    if isinstance(layer, (Flatten, Unflatten)):  # the memory is that of the layer before
        return 0
    mask = size if isinstance(layer, MaxPool2d) else 0
    readers = [other for other in stack[i + 1 :] if not isinstance(other, (Flatten, Unflatten))]
    if isinstance(layer, Activation) or not readers or isinstance(readers[0], AffineLayer):
        return mask + FLOAT_BYTES * size
    return mask


def _text(shape: Shape) -> str:
    return "x".join(map(str, shape))


def _short(layer: str) -> str:
    """Without what is the default, and (3, 3) as 3: Conv2d(3, 12, kernel_size=3)."""
    layer = re.sub(r"(?<=[=(])\((\d+), \1\)", r"\1", layer)
    return layer.replace(", stride=1", "").replace(", padding=0", "")


def _aligned(rows: list[tuple[Any, ...]]) -> list[str]:
    """Columns of text to the left, numbers (and the index) to the right."""
    cells = [[f"{c:,}" if isinstance(c, int) else str(c) for c in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if i in (1, 2) else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    ]
