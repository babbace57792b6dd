"""What is measured: a model, how it is trained, on how many images of which size."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from cae_raw.models import DEEP_MODELS, Autoencoder, build

DATA_BYTES = 1 << 28  # of images to draw batches from, unless one batch is larger


@dataclass(frozen=True)
class Problem:
    """A model and its training step.

    Args:
        model: a name in `cae_raw.models.MODELS`.
        optimizer: a name in `cae_raw.training.optimizers.OPTIMIZERS`.
        size: height and width of the images.
        batch: images per step, where nothing else is asked for.
        images: in the data set.
        images_per_turn: about as many are timed before the next candidate has its turn.
    """

    model: str
    optimizer: str
    lr: float
    size: int
    batch: int
    images: int
    images_per_turn: int
    channels: int = 3

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return (self.channels, self.size, self.size)

    def sized(self, size: int | None = None, channels: int | None = None) -> Problem:
        """The same for images of another size."""
        return replace(self, size=size or self.size, channels=channels or self.channels)

    def build(self) -> Autoencoder:
        """The model, on the CPU, always with the same weights."""
        options = {"size": self.size} if self.model in DEEP_MODELS else {}
        rng = np.random.default_rng(0)
        return build(self.model, rng, channels=self.channels, **options)

    def draw_images(self, largest_batch: int) -> np.ndarray:
        """Random bytes uint8 (M, C, H, W), at least as many images as the largest batch has."""
        fit = DATA_BYTES // int(np.prod(self.image_shape))
        count = max(largest_batch, min(self.images, fit))
        shape = (count, *self.image_shape)
        return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


PROBLEMS = {
    "single-layer": Problem("single-layer", "adam", 1e-3, 32, 1024, 8192, 1024),
    "deep": Problem("deep", "sgd", 1e-2, 64, 128, 2048, 256),
    "deep-same": Problem("deep-same", "sgd", 1e-2, 64, 128, 2048, 256),
}
