"""A batch in one piece: what a GPU does, layer by layer or with the model's fused kernels."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from cae_raw.data.scaling import scale_and_shift
from cae_raw.layers.loss import MSELoss
from cae_raw.models import Autoencoder
from cae_raw.models.inference import layers_of
from cae_raw.ops.batch import gather
from cae_raw.ops.single_layer import SingleLayerCuda
from cae_raw.training.layerwise import Layerwise, sparsity_scale

Array = Any

EVALUATION_BATCH = 1024  # images at a time,
EVALUATION_BYTES = 1 << 28  # unless their largest map takes more than this


class WholeBatch:
    """Gradients and errors of a model over images of one shape, on the model's backend.

    Args:
        model, image_shape, loss, sparsity, fused: as `Engine` takes them.
        largest_map: of the model, bytes per image.
    """

    def __init__(
        self,
        model: Autoencoder,
        image_shape: tuple[int, ...],
        largest_map: int,
        loss: MSELoss,
        sparsity: float = 0.0,
        *,
        fused: bool = True,
    ) -> None:
        self.model, self.loss, self.sparsity = model, loss, sparsity
        self.image_shape = image_shape
        self.layers = layers_of(model, fused=fused)
        self.layerwise = Layerwise(model, loss, sparsity, fused=fused)
        self.images_at_a_time = max(1, min(EVALUATION_BATCH, EVALUATION_BYTES // largest_map))
        self.scale, self.shift = scale_and_shift(model.value_range)
        self.gradients = model.backend.empty(model.parameters.shape, model.parameters.dtype)

    def step(self, images: Array, indices: np.ndarray) -> Array:
        """Fill `gradients` for the batch images[indices]; returns its squared error, (1,)."""
        x, grads = self._load(images, indices), self.model.split(self.gradients)
        return self.layerwise.gradients(x, x, len(indices), grads)[0]

    def squared_error(self, images: Array) -> float:
        """The sum of squared errors over all images."""
        total, size = 0.0, self.images_at_a_time
        for start in range(0, len(images), size):
            x = self._load(images, np.arange(start, min(start + size, len(images))))
            error = self.loss.partial(self.layers.forward(x), x, 1)[0]
            total += float(self.model.backend.to_numpy(error)[0])
        return total

    def _load(self, images: Array, indices: np.ndarray) -> Array:
        place = self.model.backend.asarray(indices)
        return gather(images, place, scale=self.scale, shift=self.shift)


class FusedBatch(WholeBatch):
    """The same for a model with `fused_cuda`: no activation map is ever in device memory."""

    def step(self, images: Array, indices: np.ndarray) -> Array:
        model, n = self.model, len(indices)
        code_shape = model.layer_shapes(self.image_shape)[model.encoder_length]
        return self._fused.gradients(
            images,
            model.backend.asarray(indices),
            model.params,
            self.gradients,
            self.loss.gradient_scale(n * prod(self.image_shape)),
            sparsity_scale(self.sparsity, n, code_shape),
        )

    def squared_error(self, images: Array) -> float:
        backend = self.model.backend
        every = backend.asarray(np.arange(len(images)))
        total = self._fused.squared_error(images, every, self.model.params)
        return float(backend.to_numpy(total)[0])

    @property
    def _fused(self) -> SingleLayerCuda:
        assert self.model.fused_cuda is not None
        return self.model.fused_cuda
