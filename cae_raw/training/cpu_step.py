"""What a training step on the CPU does with a batch: it goes through in chunks of a few images.

A chunk is small enough that its activation maps stay in the cache. Chunks are numbered; a *stage*
is a method that is called once for every number of a range, by several threads or processes at the
same time, in any order. Several chunks make up a *wave*, for whose results there is room:

    batch    |  wave 0                 |  wave 1                 |
    chunks    |  0  |  1  |  2  |  3    |  0  |  1  |  2  |  3    |
                ^ a stage works on one number, e.g. writes the chunk's gradients into slot 2

The schedule, which is what runs stage after stage and adds up what they left, is run by one thread
alone. It adds in the order of the chunks. The size of a chunk is a function of the model and the
image size, so the result has the same bits whoever computed which chunk.

A step's object exists once in every process that works on it. What is in `arrays` can be memory
that all of them share; whatever else a stage keeps stays in the process that ran it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Any, Protocol

import numpy as np

from cae_raw.data.scaling import to_floats
from cae_raw.layers.loss import MSELoss
from cae_raw.models import Autoencoder
from cae_raw.ops.windows import even_cuts
from cae_raw.training.shared_memory import Layout

Array = Any

CHUNK_BYTES = 2_500_000  # of a chunk's largest map; measured best for 2 MB of second-level cache
LARGEST_CHUNK = 64  # images

IMAGES, ELEMENTS, LAYER, ADD = range(4)  # what the numbers in `frame` say


class Run(Protocol):
    """Runs a stage for every number below `count`; returns when all are done.

    With `own`, the name of a stage, each process runs it for the numbers which it had in that one.
    """

    def __call__(self, stage: str, count: int, own: str = "") -> None: ...


@dataclass(frozen=True)
class Problem:
    """What the steps of a training, or the batches of an evaluation, have in common."""

    model: Autoencoder  # on the CPU
    image_shape: tuple[int, int, int]  # (C, H, W)
    loss: MSELoss
    chunk: int  # images
    chunks: int  # most in a wave
    fused: bool  # use the model's fused step where it has one
    sparsity: float = 0.0  # coefficient of the mean of |code| in the objective


class CpuStep(ABC):
    """Gradients and errors of a model over batches.

    Args:
        problem: what is computed.
        arrays: as `layout` describes them.
    """

    def __init__(self, problem: Problem, arrays: dict[str, Array]) -> None:
        self.problem, self.arrays, self.model = problem, arrays, problem.model
        self.loss, self.dtype = problem.loss, problem.model.parameters.dtype
        self.gradients = arrays["gradients"]
        self.frame = arrays["frame"]
        self.images = arrays["images"]  # of the wave
        self.errors = arrays["errors"]  # the sum of squared errors of each chunk

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.problem, self.arrays)

    @staticmethod
    def layout(problem: Problem) -> Layout:
        """The arrays that all who work on a step have to see."""
        images = problem.chunk * problem.chunks
        return {
            "frame": ((4,), np.int64),
            "errors": ((problem.chunks,), np.float64),
            "images": ((images, *problem.image_shape), np.uint8),
            "gradients": (problem.model.parameters.shape, problem.model.parameters.dtype),
        }

    @staticmethod
    @abstractmethod
    def chunk_size(largest_map: int) -> int:
        """Images in a chunk, given the bytes of an image's largest map."""

    @staticmethod
    @abstractmethod
    def chunks_in_wave(problem: Problem, threads: int) -> int:
        """How many chunks a wave has at most."""

    # --- schedule ---------------------------------------------------------------------------

    def step(self, run: Run, images: Array, indices: np.ndarray) -> Array:
        """Fill `gradients` for the batch images[indices]; returns its squared error, (1,)."""
        self.frame[ELEMENTS] = len(indices) * prod(self.problem.image_shape)
        total = np.zeros(1)
        for i, chunks in enumerate(self._waves(images, indices)):
            self.wave_gradients(run, chunks, first=i == 0)
            for error in self.errors[:chunks]:
                total += error
        return total

    def squared_error(self, run: Run, images: Array) -> float:
        """The sum of squared errors over all images."""
        total = 0.0
        for chunks in self._waves(images, np.arange(len(images))):
            self.wave_errors(run, chunks)
            for error in self.errors[:chunks]:
                total += float(error)
        return total

    def _waves(self, images: Array, indices: np.ndarray) -> Iterator[int]:
        """Puts the images of one wave after the other in place; yields its number of chunks."""
        size = self.problem.chunk
        for wave in even_cuts(max(1, -(-len(indices) // size)), self.problem.chunks):
            chosen = indices[wave.start * size : wave.stop * size]  # an empty batch is one chunk
            self.images[: len(chosen)] = images[chosen]
            self.frame[IMAGES] = len(chosen)
            yield wave.stop - wave.start

    @abstractmethod
    def wave_gradients(self, run: Run, chunks: int, *, first: bool) -> None:
        """Fill `errors` and add to `gradients`; if it is the batch's first wave, overwrite them."""

    @abstractmethod
    def wave_errors(self, run: Run, chunks: int) -> None:
        """Fill `errors`."""

    # --- for stages -------------------------------------------------------------------------

    def rows(self, chunk: int) -> slice:
        """Where a chunk lies among the images of the wave."""
        start = chunk * self.problem.chunk
        return slice(start, min(start + self.problem.chunk, int(self.frame[IMAGES])))

    def load(self, chunk: int) -> Array:
        """A chunk's images, scaled to the model's range of values."""
        x = to_floats(self.images[self.rows(chunk)], self.model.value_range)
        return x if x.dtype == self.dtype else x.astype(self.dtype)  # float64 in checks

    @property
    def elements(self) -> int:
        """Numbers in all images of the batch."""
        return int(self.frame[ELEMENTS])

    @property
    def batch_size(self) -> int:
        """Images in the batch."""
        return self.elements // prod(self.problem.image_shape)
