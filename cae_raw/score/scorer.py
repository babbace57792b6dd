"""The reconstruction error of each image: many small ones at a time, a large one in blocks."""

from __future__ import annotations

from math import inf, isnan, prod

import numpy as np
from numpy.typing import NDArray

from cae_raw.data.scaling import to_floats
from cae_raw.models import Autoencoder
from cae_raw.models.inference import reconstruct
from cae_raw.parallel import Parallel
from cae_raw.reconstruct import reconstruct_image

CHUNK_BYTES = 24 * 2**20  # for the maps of the images that go through the model together
LARGEST_CHUNK = 64


class Scorer:
    """Mean squared errors of images, in the square of the model's range of values.

    A context manager, because it owns threads on the CPU; results do not depend on their number.

    Args:
        model: on the backend that does the work.
        threads: workers on the CPU; None takes every processor this process may use.
    """

    def __init__(self, model: Autoencoder, threads: int | None = None) -> None:
        self.model = model
        self._workers = Parallel(model.backend, threads)

    def __enter__(self) -> Scorer:
        self._workers.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._workers.__exit__()

    def __call__(self, images: NDArray[np.uint8]) -> NDArray[np.float64]:
        """The mse of each of the images (N, C, H, W); infinite where the output is not finite.

        Raises:
            InputError: if the model cannot take images of this shape.
        """
        shape = images.shape[1:]
        maps = 4 * sum(map(prod, self.model.layer_shapes(shape)))
        if maps > CHUNK_BYTES:
            found = [reconstruct_image(self.model, image).figures.mse for image in images]
            return np.array([inf if isnan(mse) else mse for mse in found], np.float64)
        size = min(LARGEST_CHUNK, CHUNK_BYTES // maps)
        parts = [images[i : i + size] for i in range(0, len(images), size)]
        return np.concatenate([np.empty(0), *self._workers.map(self._errors, parts)])

    def _errors(self, images: NDArray[np.uint8]) -> NDArray[np.float64]:
        difference = reconstruct(self.model, images) - to_floats(images, self.model.value_range)
        difference = difference.reshape(len(images), -1).astype(np.float64)
        errors: NDArray[np.float64] = np.mean(np.square(difference), axis=1)
        errors[np.isnan(errors)] = inf
        return errors
