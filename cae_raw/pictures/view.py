"""A model and some images, with everything on the way through the layers computed once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cae_raw.data.scaling import Floats, to_bytes, to_floats
from cae_raw.errors import InputError
from cae_raw.figures import Figures, error_levels
from cae_raw.layers import Conv2d, Layer, MaxPool2d
from cae_raw.layers.activation import Activation
from cae_raw.models import Autoencoder
from cae_raw.models.inference import reconstruct

LONGEST_NAME = 90  # letters of a run's name under a title


def printable(name: str) -> str:
    """A name as the pictures' font can write it, on one line."""
    plain = "".join(c if c.isprintable() else " " for c in name)
    plain = plain.encode("ascii", "replace").decode()
    return plain if len(plain) <= LONGEST_NAME else plain[: LONGEST_NAME - 3] + "..."


@dataclass(frozen=True)
class Stage:
    """A convolution, and the activation behind it where there is one.

    side: "encoder" or "decoder". key: the same, or "encoder_2" where it has several. title: in
    words.
    """

    side: str
    key: str
    title: str
    index: int  # of the convolution in the stack
    conv: Conv2d
    activation: Activation | None
    is_output: bool


class View:
    """What the figures are drawn from.

    Args:
        model: on the backend that does the work.
        images: uint8 (N, C, H, W) that the model can take, N at least 1; None serves for those
            figures that show weights or history.
        focus: number of the one whose maps are shown; focus_name: what to call it.
        name: of the run or the model, for headings.
        history: what each epoch achieved; see `cae_raw.training.trainer.EpochRecord`.
        epoch: that the weights are of, if it is known.

    Raises:
        InputError: if there are no images, or they do not fit the model; with None, when an image
            is asked for.
    """

    def __init__(
        self,
        model: Autoencoder,
        images: NDArray[np.uint8] | None,
        *,
        focus: int = 0,
        focus_name: str = "one image",
        name: str = "",
        history: Sequence[Any] = (),
        epoch: int | None = None,
    ) -> None:
        if images is not None:
            self._check(model, images)
        self.model, self._images = model, images
        self.focus, self.focus_name = focus, printable(focus_name)
        self.name = printable(name or model.name)
        self.history, self.epoch = list(history), epoch

    @staticmethod
    def _check(model: Autoencoder, images: NDArray[np.uint8]) -> None:
        if not len(images):
            raise InputError("no images to show: give at least one")
        if tuple(model.output_shape(images.shape[1:])) != images.shape[1:]:
            raise InputError(
                f"images of shape {images.shape[1:]} do not fit the model {model.name}"
            )

    @property
    def images(self) -> NDArray[np.uint8]:
        """uint8 (N, C, H, W)."""
        if self._images is None:
            raise InputError("no images to show: give at least one")
        return self._images

    @property
    def has_images(self) -> bool:
        return self._images is not None

    @property
    def heading(self) -> str:
        """Which model this is, for the line under a title."""
        return self.name + (f", epoch {self.epoch}" if self.epoch else "")

    # --- all images -------------------------------------------------------------------------

    @cached_property
    def x(self) -> NDArray[np.float32]:
        """The images as the model takes them."""
        return to_floats(self.images, self.model.value_range)

    @cached_property
    def y(self) -> Floats:
        """What the model makes of them."""
        return reconstruct(self.model, self.images)

    @cached_property
    def outputs(self) -> NDArray[np.uint8]:
        return to_bytes(self.y, self.model.value_range)

    @cached_property
    def errors(self) -> NDArray[np.float32]:
        """How far each pixel is off, in gray levels of 255: (N, H, W)."""
        pairs = zip(self.y, self.x, strict=True)
        return np.stack([error_levels(y, x, self.model.value_range) for y, x in pairs])

    @cached_property
    def figures(self) -> list[Figures]:
        """Of each image."""
        with np.errstate(over="ignore"):
            totals = np.sum(np.square(self.y - self.x, dtype=np.float64), axis=(1, 2, 3))
        size, peak = self.x[0].size, self.model.value_range
        return [Figures.from_squared_error(float(total), size, peak) for total in totals]

    # --- one image --------------------------------------------------------------------------

    @cached_property
    def _passed(self) -> tuple[list[NDArray[np.float32]], dict[Layer, Any]]:
        """The outputs of all layers for the image in focus, and the trace of that."""
        backend, trace = self.model.backend, dict[Layer, Any]()
        x = backend.asarray(self.x[self.focus][None])
        found = []
        with np.errstate(all="ignore"):
            for i in range(len(self.model.stack)):  # one by one, so that no activation is fused
                x = self.model.forward(x, trace, start=i, until=i + 1)
                found.append(backend.to_numpy(x)[0])
        return found, trace

    def output_of(self, index: int) -> NDArray[np.float32]:
        """What layer `index` makes of the image in focus, without the batch axis."""
        return self._passed[0][index]

    def mask_of(self, pool: MaxPool2d) -> NDArray[np.uint8]:
        """The places (C, OH, OW) that a pooling layer chose for it: row * KW + column."""
        mask: NDArray[np.uint8] = self.model.backend.to_numpy(self._passed[1][pool][0])[0]
        return mask

    # --- layers -----------------------------------------------------------------------------

    def weights(self, index: int) -> NDArray[np.float32]:
        """Of the layer at a place in the stack, on the host."""
        layer = self.model.stack[index]
        found: NDArray[np.float32] = self.model.backend.to_numpy(layer.params["weight"])
        return found

    @cached_property
    def stages(self) -> list[Stage]:
        """The convolutions, in their order."""
        stack, cut = self.model.stack, self.model.encoder_length
        convs = {i: layer for i, layer in enumerate(stack) if isinstance(layer, Conv2d)}
        found = []
        for side in ("encoder", "decoder"):
            mine = [i for i in convs if (i < cut) == (side == "encoder")]
            for number, i in enumerate(mine, 1):
                follower = stack[i + 1] if i + 1 < len(stack) else None
                activation = follower if isinstance(follower, Activation) else None
                many = len(mine) > 1
                found.append(
                    Stage(
                        side=side,
                        key=f"{side}_{number}" if many else side,
                        title=f"{side}'s convolution {number} of {len(mine)}" if many else side,
                        index=i,
                        conv=convs[i],
                        activation=activation,
                        is_output=i + 1 + (activation is not None) == len(stack),
                    )
                )
        return found
