"""Images to codes, many at a time: on a thread pool on the CPU, chunk by chunk on a GPU.

The chunks are a function of the model and the image size alone, and each is computed by one thread,
so codes have the same bits for any number of threads.
"""

from __future__ import annotations

from math import prod

import numpy as np
from numpy.typing import NDArray

from cae_raw.errors import InputError
from cae_raw.models import Autoencoder
from cae_raw.models.inference import encode
from cae_raw.parallel import Parallel

CHUNK_BYTES = 24 * 2**20  # for the maps of the images that go through the encoder together
LARGEST_CHUNK = 64  # images
LARGEST_MAPS = 4 * 2**30  # bytes for one image, all maps counted; 16 megapixels for 32 filters

Codes = NDArray[np.float32]


class Encoder:
    """Codes of images; a context manager, because it owns a thread pool.

    Args:
        model: on the backend that does the work.
        pooled: give the mean of each map of the code, (N, F), instead of the maps.
        threads: workers on the CPU; None takes every processor this process may use.

    Raises:
        InputError: if the code has no maps whose means could be taken.
    """

    def __init__(
        self, model: Autoencoder, *, pooled: bool = False, threads: int | None = None
    ) -> None:
        if pooled and model.image_size is not None:
            raise InputError(
                f"the code of the model {model.name} is a vector already: omit --pooled"
            )
        self.model, self.pooled = model, pooled
        self._workers = Parallel(model.backend, threads)

    def __enter__(self) -> Encoder:
        self._workers.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._workers.__exit__()

    def code_shape(self, image_shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the code of an image (C, H, W), without a batch axis.

        Raises:
            InputError: if the model cannot take such an image, or its maps would be too large.
        """
        shape = self.model.layer_shapes(image_shape)[self.model.encoder_length]
        return shape[:1] if self.pooled else shape

    def __call__(self, images: NDArray[np.uint8]) -> Codes:
        """Codes float32 (N, *code_shape) of images uint8 (N, C, H, W).

        Raises:
            InputError: if the model cannot take such images.
        """
        codes = np.empty((len(images), *self.code_shape(images.shape[1:])), np.float32)
        size = self._chunk(images.shape[1:])
        starts = range(0, len(images), size)

        def part(start: int) -> None:
            rows = slice(start, start + size)
            codes[rows] = encode(self.model, images[rows], pooled=self.pooled)

        for _ in self._workers.map(part, starts):
            pass
        return codes

    def _chunk(self, image_shape: tuple[int, ...]) -> int:
        shapes = self.model.layer_shapes(image_shape)[: self.model.encoder_length + 1]
        maps = 4 * sum(map(prod, shapes))
        if maps > LARGEST_MAPS:
            _, height, width = image_shape
            raise InputError(
                f"the maps of an image of {width}x{height} pixels take {maps / 2**30:.1f} GiB: "
                "use --size, or smaller images"
            )
        return max(1, min(LARGEST_CHUNK, CHUNK_BYTES // maps))
