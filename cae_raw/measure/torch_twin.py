"""Any of this package's models as a PyTorch module with the same weights, to compare with.

PyTorch is no dependency: it is imported when a twin is made.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from cae_raw import layers
from cae_raw.layers import Sequential


def pytorch_twin(model: Sequential) -> Any:
    """A torch.nn.Module that computes what `model` (on the CPU) does; parameters in its order."""
    import torch
    from torch import nn

    def module(layer: layers.Layer) -> Any:
        if isinstance(layer, layers.Conv2d):
            return nn.Conv2d(
                layer.in_channels,
                layer.out_channels,
                layer.kernel_size,
                layer.stride,
                layer.padding,
            )
        if isinstance(layer, layers.Linear):
            return nn.Linear(layer.in_features, layer.out_features)
        if isinstance(layer, layers.MaxPool2d):
            return nn.MaxPool2d(**layer.window, return_indices=True)
        if isinstance(layer, layers.MaxUnpool2d):
            return nn.MaxUnpool2d(**layer.pool.window)
        if isinstance(layer, layers.Unflatten):
            return nn.Unflatten(1, layer.shape)
        simple = {layers.ReLU: nn.ReLU, layers.Tanh: nn.Tanh, layers.Flatten: nn.Flatten}
        return simple[type(layer)]()

    position = {layer: i for i, layer in enumerate(model.stack)}

    class Twin(nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.steps = nn.ModuleList(module(layer) for layer in model.stack)
            self.pool_of = {
                i: position[layer.pool]
                for layer, i in position.items()
                if isinstance(layer, layers.MaxUnpool2d)
            }

        def forward(self, x: Any) -> Any:
            chosen: dict[int, Any] = {}
            for i, step in enumerate(self.steps):
                if isinstance(step, nn.MaxPool2d):
                    size = x.shape[2:]
                    x, indices = step(x)
                    chosen[i] = indices, size
                elif i in self.pool_of:
                    indices, size = chosen[self.pool_of[i]]
                    x = step(x, indices, output_size=size)
                else:
                    x = step(x)
            return x

    twin = Twin().to(torch.from_numpy(model.parameters[:0]).dtype)
    with torch.no_grad():
        for theirs, ours in zip(twin.parameters(), model.params.values(), strict=True):
            theirs.copy_(torch.from_numpy(np.array(ours)))
    return twin
