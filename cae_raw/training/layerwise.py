"""Gradients of a batch, or a part of it, layer by layer.

    objective = loss + sparsity * mean of |code|, over all elements of the batch's code

The gradient of the second term, sparsity / elements * sign(code), joins where the decoder's
backward pass hands over to the encoder's. The mean is over the batch, so parts of it add up.
"""

from __future__ import annotations

from math import prod
from typing import Any

from cae_raw.layers import Gradients, Trace
from cae_raw.layers.fused import Fused, SingleLayers
from cae_raw.layers.loss import MSELoss
from cae_raw.models import Autoencoder
from cae_raw.ops.loss import l1_backward

Array = Any


def sparsity_scale(sparsity: float, images: int, code_shape: tuple[int, ...]) -> float:
    """What sign(code) is multiplied by, in a batch of so many images, codes of `code_shape`."""
    return sparsity / max(1, images * prod(code_shape))


class Layerwise:
    """A model, layer by layer, for an objective.

    Args:
        sparsity: coefficient of the mean of |code|.
        fused: runs of layers in one pass, see `cae_raw.layers.fused`.
    """

    def __init__(
        self, model: Autoencoder, loss: MSELoss, sparsity: float = 0.0, *, fused: bool = False
    ) -> None:
        self.loss, self.sparsity = loss, sparsity
        middle, end = model.encoder_length, len(model.stack)
        # Without the L1 term there is nothing to stop for in the middle.
        ranges = [(0, middle), (middle, end)] if sparsity else [(0, end)]
        kind = Fused if fused else SingleLayers
        self.parts = [kind(model, *part) for part in ranges]

    def gradients(
        self, x: Array, target: Array, images: int, grads: Gradients, *, need_dx: bool = False
    ) -> tuple[Array, Array | None]:
        """The sum of squared errors, shape (1,), and with `need_dx` the gradient of x.

        Args:
            x, target: (n, C, H, W), part of a batch of `images` images.
            grads: receives the gradients of the parameters, by their names.
        """
        trace, elements = Trace(), images * prod(x.shape[1:])
        *encoder, rest = self.parts
        code = encoder[0].forward(x, trace) if encoder else x
        total, dy = self.loss.partial(rest.forward(code, trace), target, elements)
        if not encoder:
            return total, rest.backward(dy, trace, grads, need_dx=need_dx)
        dcode = rest.backward(dy, trace, grads, need_dx=True)
        l1_backward(dcode, code, scale=sparsity_scale(self.sparsity, images, code.shape[1:]))
        return total, encoder[0].backward(dcode, trace, grads, need_dx=need_dx)
