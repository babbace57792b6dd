"""A batch through a trained model, as fast as the model's backend can: what the commands call.

    reconstruct   bytes -> output        encode   bytes -> code        decode   code -> output

On a GPU the single-layer model goes through one kernel, from bytes, and its maps are never in
device memory; other models go through theirs in as few passes as there are kernels for (`Fused`).
Images are uploaded as bytes, a quarter of their floats, and scaled there. On the CPU, and with
`fused=False`, every model goes layer by layer.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cae_raw.backends import NUMPY, Backend
from cae_raw.data.scaling import Floats, scale_and_shift, to_floats
from cae_raw.layers import Sequential
from cae_raw.layers.base import Array, Trace
from cae_raw.layers.fused import Fused, SingleLayers
from cae_raw.models.autoencoder import Autoencoder
from cae_raw.ops.batch import gather
from cae_raw.ops.single_layer import SingleLayerCuda


def layers_of(
    stack: Sequential, start: int = 0, until: int | None = None, *, fused: bool = True
) -> Fused | SingleLayers:
    """The layers from start to until (not included), to go through as the backend does it best."""
    end = len(stack.stack) if until is None else until
    kind = Fused if fused and stack.backend is not NUMPY else SingleLayers
    return kind(stack, start, end)


def scaled(backend: Backend, images: NDArray[np.uint8], value_range: tuple[float, float]) -> Array:
    """Images uint8 as float32 in the range, on `backend`."""
    if backend is NUMPY:
        return to_floats(images, value_range)
    scale, shift = scale_and_shift(value_range)
    return gather(*_placed(backend, images), scale=scale, shift=shift)


def reconstruct(model: Autoencoder, images: NDArray[np.uint8], *, fused: bool = True) -> Floats:
    """What the model makes of images uint8 (N, C, H, W): the same shape, in its range of values.

    Values that are not finite, as a diverged model has them, give no warning.

    Raises:
        InputError: if a layer cannot take such images.
    """
    kernel = _kernel(model, fused)
    if kernel is None:
        return _through(model, images, layers_of(model, fused=fused))
    y = model.backend.empty((len(images), *model.output_shape(images.shape[1:])))
    kernel.squared_error(*_placed(model.backend, images), model.params, y=y)
    return model.backend.to_numpy(y)


def encode(model: Autoencoder, images: NDArray[np.uint8], *, fused: bool = True) -> Floats:
    """Codes (N, *shape of a code) of images uint8 (N, C, H, W); otherwise as `reconstruct`."""
    kernel = _kernel(model, fused)
    if kernel is None:
        encoder = layers_of(model, 0, model.encoder_length, fused=fused)
        return _through(model, images, encoder)
    shape = model.layer_shapes(images.shape[1:])[model.encoder_length]
    code = model.backend.empty((len(images), *shape))
    kernel.squared_error(*_placed(model.backend, images), model.params, code=code)
    return model.backend.to_numpy(code)


def decode(
    model: Autoencoder, codes: Floats, masks: Trace | None = None, *, fused: bool = True
) -> Floats:
    """Images (N, C, H, W), in the model's range of values, of codes (N, *shape of a code).

    Args:
        masks: as for `Autoencoder.decode`.

    Raises:
        InputError: if masks are missing, or codes or masks do not fit the model.
    """
    trace = model.masks_to_decode(masks)
    decoder = layers_of(model, model.encoder_length, fused=fused)
    with np.errstate(all="ignore"):
        y = decoder.forward(model.backend.asarray(codes), trace)
    return model.backend.to_numpy(y)


def _kernel(model: Autoencoder, fused: bool) -> SingleLayerCuda | None:
    """What takes a batch of this model from bytes to outputs on its GPU, if anything does."""
    return model.fused_cuda if fused and model.backend is not NUMPY else None


def _placed(backend: Backend, images: NDArray[np.uint8]) -> tuple[Any, Any]:
    """The images, and the numbers of all of them."""
    return backend.asarray(images), backend.asarray(np.arange(len(images)))


def _through(model: Autoencoder, images: NDArray[np.uint8], layers: Fused | SingleLayers) -> Floats:
    x = scaled(model.backend, images, model.value_range)
    if model.backend is NUMPY:
        x = x.astype(model.parameters.dtype, copy=False)
    with np.errstate(all="ignore"):
        y = layers.forward(x)
    return model.backend.to_numpy(y)
