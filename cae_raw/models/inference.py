"""A batch through a trained model, as fast as the model's backend can: what the commands call.

    reconstruct   bytes -> output        encode   bytes -> code        decode   code -> output

On a GPU the single-layer model goes through one kernel, from bytes, and its maps are never in
device memory; other models go through theirs in as few passes as there are kernels for (`Fused`).
Images are uploaded as bytes, a quarter of their floats, and scaled there. On the CPU the fused step
of the single-layer model reconstructs in half of the layers' time; whatever else there is to do
goes layer by layer, and so does everything with `fused=False`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cae_raw.backends import NUMPY, Backend
from cae_raw.data.scaling import Floats, scale_and_shift, to_floats
from cae_raw.errors import InputError
from cae_raw.layers import Sequential
from cae_raw.layers.base import Array, Trace
from cae_raw.layers.fused import Fused, SingleLayers
from cae_raw.models.autoencoder import Autoencoder
from cae_raw.ops.batch import gather
from cae_raw.ops.conv2d import conv2d_backward_bias


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
        InputError: if these are no bytes, or a layer cannot take such images.
    """
    return model.backend.to_numpy(_forward(model, images, len(model.stack), fused))


def encode(
    model: Autoencoder, images: NDArray[np.uint8], *, pooled: bool = False, fused: bool = True
) -> Floats:
    """Codes (N, *shape of a code) of images uint8 (N, C, H, W); otherwise as `reconstruct`.

    Args:
        pooled: give the mean of each map of the code instead, (N, F).

    Raises:
        InputError: also if means are asked for and the code has no maps.
    """
    backend = model.backend
    if pooled and len(model.layer_shapes(images.shape[1:])[model.encoder_length]) != 3:
        raise InputError(f"codes of the model {model.name} have no maps to pool")
    code = _forward(model, images, model.encoder_length, fused)
    with np.errstate(all="ignore"):
        if not pooled:
            return backend.to_numpy(code)
        if backend is NUMPY:
            return code.mean(axis=(2, 3), dtype=np.float64).astype(code.dtype)
        # A mean is a thousandth of its map to copy, so maps are summed where they are.
        n, f, h, w = code.shape
        sums = conv2d_backward_bias(code.reshape(1, n * f, h, w))
        return backend.to_numpy(sums).reshape(n, f) / np.float32(h * w)


def decode(
    model: Autoencoder, codes: Floats, masks: Trace | None = None, *, fused: bool = True
) -> Floats:
    """Images (N, C, H, W), in the model's range of values, of codes (N, *shape of a code).

    Args:
        masks: as for `Autoencoder.decode`, on the model's backend.

    Raises:
        InputError: if masks are missing, or codes or masks do not fit the model.
    """
    trace = model.masks_to_decode(masks)
    decoder = layers_of(model, model.encoder_length, fused=fused)
    with np.errstate(all="ignore"):
        return model.backend.to_numpy(decoder.forward(model.backend.asarray(codes), trace))


def _forward(model: Autoencoder, images: NDArray[np.uint8], until: int, fused: bool) -> Array:
    """What the encoder or the whole model makes of images, on its backend."""
    backend = model.backend
    if images.dtype != np.uint8:
        raise InputError(f"images must be uint8, 0 to 255, not {images.dtype}")
    with np.errstate(all="ignore"):
        if fused and backend is not NUMPY and model.fused_cuda is not None:
            made = backend.empty((len(images), *model.layer_shapes(images.shape[1:])[until]))
            # A code comes with an output that nobody sees: two fifths of the kernel's time, which
            # is a hundredth of what copying the code to the host takes.
            kept = {"code" if until == model.encoder_length else "y": made}
            model.fused_cuda.squared_error(*_placed(backend, images), model.params, **kept)
            return made
        x = scaled(backend, images, model.value_range)
        if backend is NUMPY:
            x = x.astype(model.parameters.dtype, copy=False)
            if fused and model.fused is not None and until == len(model.stack):
                model.layer_shapes(x.shape[1:])  # which has to be possible
                return model.fused(x.shape[2:], x.dtype).reconstruct(x, model.params)
        return layers_of(model, 0, until, fused=fused).forward(x)


def _placed(backend: Backend, images: NDArray[np.uint8]) -> tuple[Array, Array]:
    """The images, and the numbers of all of them."""
    return backend.asarray(images), backend.asarray(np.arange(len(images)))
