"""A training step whose chunks go through the whole model on their own.

Each chunk's gradients go to a slot of their own, and the slots are added in order: they are small
next to the work, unless a model has linear layers (see `staged`).
"""

from __future__ import annotations

from typing import Any

from cae_raw.training.cpu_step import CHUNK_BYTES, LARGEST_CHUNK, CpuStep, Problem, Run
from cae_raw.training.layerwise import Layerwise, sparsity_scale
from cae_raw.training.shared_memory import Layout

Array = Any

WAVE_BYTES = 1 << 24  # of images and slots
WAVE = 64  # chunks


class ChunkedStep(CpuStep):
    """Every chunk by itself, by the model's fused step where it has one."""

    def __init__(self, problem: Problem, arrays: dict[str, Array]) -> None:
        super().__init__(problem, arrays)
        self.slots = arrays["slots"]
        self._views = [self.model.split(slot) for slot in self.slots]
        make = self.model.fused if problem.fused else None
        self.fused = make(problem.image_shape[1:], self.dtype) if make is not None else None
        self.layerwise = Layerwise(self.model, self.loss, problem.sparsity)
        shapes = self.model.layer_shapes(problem.image_shape)
        self.code_shape = shapes[self.model.encoder_length]

    @staticmethod
    def layout(problem: Problem) -> Layout:
        parameters = problem.model.parameters
        slots = ((problem.chunks, parameters.size), parameters.dtype)
        return {**CpuStep.layout(problem), "slots": slots}

    @staticmethod
    def chunk_size(largest_map: int) -> int:
        return max(1, min(LARGEST_CHUNK, CHUNK_BYTES // largest_map))

    @staticmethod
    def chunks_in_wave(problem: Problem, threads: int) -> int:
        """So many that the wait at a wave's end is short next to it, within bounds of memory."""
        if threads == 1:
            return 1
        _, *images = CpuStep.layout(problem)["images"][0]
        of_chunk = (
            problem.model.parameters.nbytes + problem.chunk * images[0] * images[1] * images[2]
        )
        return max(2 * threads, min(max(WAVE, 8 * threads), WAVE_BYTES // of_chunk))

    # --- schedule ---------------------------------------------------------------------------

    def wave_gradients(self, run: Run, chunks: int, *, first: bool) -> None:
        run("chunk_gradients", chunks)
        for i, slot in enumerate(self.slots[:chunks]):
            if first and i == 0:
                self.gradients[...] = slot
            else:
                self.gradients += slot

    def wave_errors(self, run: Run, chunks: int) -> None:
        run("chunk_error", chunks)

    # --- stages -----------------------------------------------------------------------------

    def chunk_gradients(self, k: int) -> None:
        """Fill slot k, and the error."""
        x, grads = self.load(k), self._views[k]
        if self.fused is not None:
            sparse = sparsity_scale(self.problem.sparsity, self.batch_size, self.code_shape)
            scale = self.loss.gradient_scale(self.elements)
            total = self.fused.gradients(x, self.model.params, grads, scale, sparse)
        else:
            total, _ = self.layerwise.gradients(x, x, self.batch_size, dict(grads))
        self.errors[k] = total[0]

    def chunk_error(self, k: int) -> None:
        """Fill the error."""
        x = self.load(k)
        if self.fused is not None:
            self.errors[k] = self.fused.squared_error(x, self.model.params)[0]
        else:
            self.errors[k] = self.loss.partial(self.model.forward(x), x, 1)[0][0]
