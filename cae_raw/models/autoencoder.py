"""What a model is beyond a stack of layers: range of values, code, how to build it again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cae_raw.errors import InputError
from cae_raw.layers import Layer, MaxUnpool2d, Sequential
from cae_raw.layers.base import Array, Trace
from cae_raw.ops.single_layer import SingleLayerCuda
from cae_raw.ops.single_layer_step import SingleLayerStep


class Autoencoder(Sequential):
    """A stack of layers that reconstructs its input.

    A subclass that overrides `forward` must take its `start` and `until`, and gives no fused steps:
    they are used instead of `forward` where they are there.

    Args:
        layers: encoder, then decoder.
        encoder_length: how many of the layers make up the encoder.
        channels: of the images it takes and returns.
        value_range: images are scaled from bytes to these bounds, and back.
        halo: how many rows above or below an output row can influence it; None when a model is
            not fully convolutional and takes one image size only.
        loss: the loss it is trained with by default, a name in `cae_raw.layers.loss.LOSSES`.
        penalised: names of the weights that an L2 penalty goes to: (encoder, decoder).
        fused: for images of a size and a number type, a faster way on the CPU to what `forward`
            and `backward` compute; None where there is none.
        fused_cuda: the same on a GPU, for images of any size, as bytes.
        name, options: with them `cae_raw.models.build` makes the same model again.
    """

    def __init__(
        self,
        *layers: Layer,
        encoder_length: int,
        channels: int,
        value_range: tuple[float, float] = (-1.0, 1.0),
        halo: int | None = None,
        loss: str = "half_mse",
        penalised: tuple[tuple[str, ...], tuple[str, ...]] = ((), ()),
        fused: Callable[[tuple[int, int], Any], SingleLayerStep] | None = None,
        fused_cuda: SingleLayerCuda | None = None,
        name: str = "custom",
        options: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(*layers)
        self.encoder_length = encoder_length
        self.channels = channels
        self.value_range = value_range
        self.halo = halo
        self.loss = loss
        self.penalised = penalised
        self.fused = fused
        self.fused_cuda = fused_cuda
        self.name = name
        self.options = options or {}

    @property
    def image_size(self) -> tuple[int, int] | None:
        """(height, width) of its images, for a model that takes one size only; else None.

        Also None for a model of one size that was built without stating it in its options.
        """
        size = self.options.get("size") if self.halo is None else None
        return None if size is None else (int(size[0]), int(size[1]))

    def encode(self, x: Array, trace: Trace | None = None) -> Array:
        """The code of a batch x (N, C, H, W), scaled to the value range.

        With a trace, the pooling masks that `decode` needs are left in it, among other things.
        """
        return self.forward(x, trace, until=self.encoder_length)

    def decode(self, code: Array, masks: Trace | None = None) -> Array:
        """Images (N, C, H, W), in the value range, of a batch of codes.

        Args:
            code: (N, *shape of a code), on the model's backend.
            masks: for a model that unpools, what its pooling layers chose: a trace that `encode`
                filled, or one of `cae_raw.models.masks`, for as many images as there are codes.

        Raises:
            InputError: if masks are missing, or codes or masks do not fit the model.
        """
        return self.forward(code, self.masks_to_decode(masks), start=self.encoder_length)

    def masks_to_decode(self, masks: Trace | None) -> Trace:
        """Those of `masks` that the decoder reads, in a trace of their own.

        Raises:
            InputError: if one is missing.
        """
        masks = {} if masks is None else masks
        decoder = self.stack[self.encoder_length :]
        pools = [layer.pool for layer in decoder if isinstance(layer, MaxUnpool2d)]
        if not all(pool in masks for pool in pools):
            raise InputError(
                f"a code of the model {self.name} cannot be decoded alone: its decoder needs "
                "pooling masks, see cae_raw.models.masks"
            )
        return {pool: masks[pool] for pool in pools}

    def l2(self, coefficient: float, decoder: bool = False) -> dict[str, float]:
        """The penalty as optimizers take it: on the encoder's weights, the decoder's on request."""
        encoder_names, decoder_names = self.penalised
        names = encoder_names + (decoder_names if decoder else ())
        return dict.fromkeys(names, coefficient)
