"""Runs a model over a batch: in chunks, by all of a CPU's processors, or in one piece on a GPU.

    Engine --- on a GPU ----> WholeBatch                        gradients and errors of a batch
           `-- on the CPU --> ChunkedStep, or StagedStep          the same, in chunks
                              `-- run by a Crew: threads, then processes

On the CPU the results have the same bits for any number of threads, and whether those are threads
or processes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from math import inf, prod
from typing import Any, TypeVar

import numpy as np

from cae_raw.backends import NUMPY
from cae_raw.data.scaling import scale_and_shift
from cae_raw.errors import InputError
from cae_raw.layers.loss import MSELoss
from cae_raw.models import Autoencoder
from cae_raw.models.inference import reconstruct
from cae_raw.training.chunked import ChunkedStep
from cae_raw.training.cpu_step import CpuStep, Problem
from cae_raw.training.crew import Crew
from cae_raw.training.staged import StagedStep
from cae_raw.training.whole_batch import FusedBatch, WholeBatch

Array = Any
T = TypeVar("T")

EVALUATED = 1024  # images, after which other processes may take over


def available_threads() -> int:
    """Processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class Engine:
    """Gradients and errors of a model over images of one shape.

    Use it as a context manager (nesting is fine): on the CPU it owns threads and processes, and
    while it is open the BLAS behind NumPy is held to one thread in each of them.

    Args:
        model: on the backend that does the work.
        image_shape: (C, H, W).
        loss: a name in `cae_raw.layers.loss.LOSSES`; None takes the model's own.
        sparsity: coefficient of the mean of |code|, which joins the objective, but no error.
        threads: how many chunks of a batch are worked on at a time on the CPU; None takes every
            processor this process may use.
        fused: use the model's fused step where it has one, and on a GPU compute runs of layers in
            one pass; False goes layer by layer.

    Attributes:
        gradients: of the last step, flat, of the parameters' length; valid until the next one.

    Raises:
        InputError: if the model cannot take such images or does not return them in their shape.
    """

    def __init__(
        self,
        model: Autoencoder,
        image_shape: tuple[int, int, int],
        *,
        loss: str | None = None,
        sparsity: float = 0.0,
        threads: int | None = None,
        fused: bool = True,
    ) -> None:
        if threads is not None and threads < 1:
            raise InputError(f"threads must be at least 1, not {threads}")
        if not 0 <= sparsity < inf:
            raise InputError(f"sparsity must be at least 0 and finite, not {sparsity}")
        c, h, w = image_shape
        self.model, self.image_shape = model, (c, h, w)
        shapes = model.layer_shapes(self.image_shape)
        if shapes[-1] != self.image_shape:
            raise InputError(
                f"the model makes {shapes[-1]} of {self.image_shape}: "
                "an autoencoder must return images of the input's shape"
            )
        scale_and_shift(model.value_range)  # which has to be one
        self.gradients: Array = None
        self.loss, self.fused = MSELoss(loss or model.loss), fused
        self.sparsity = sparsity
        self.on_cpu = model.backend is NUMPY
        self.threads = (threads or available_threads()) if self.on_cpu else 1
        largest_map = 4 * max(map(prod, shapes))
        self._whole: WholeBatch | None = None
        self._crew: Crew | None = None
        if self.on_cpu:
            self._kind = StagedStep if StagedStep.serves(model) else ChunkedStep
            self.chunk = self._kind.chunk_size(largest_map)  # images
        else:
            kind = FusedBatch if fused and model.fused_cuda is not None else WholeBatch
            self._whole = kind(
                model, self.image_shape, largest_map, self.loss, sparsity, fused=fused
            )
        self._stack, self._depth = ExitStack(), 0

    def __enter__(self) -> Engine:
        self._depth += 1
        if self.on_cpu and self._depth == 1:
            from threadpoolctl import threadpool_limits

            self._stack.enter_context(threadpool_limits(1, user_api="blas"))
            self._crew = Crew(self._kind, self._problem(), self.threads)
            self._stack.callback(self._crew.close)
        return self

    def __exit__(self, *_: object) -> None:
        self._depth -= 1
        if self._depth == 0:
            shared = None if self._crew is None else self._crew.shared_gradients
            if shared is not None and self.gradients is shared:
                self.gradients = shared.copy()  # so that the memory is given back
            self._stack.close()
            self._crew = None

    def step(self, images: Array, indices: np.ndarray) -> Array:
        """Put the gradient of the loss over one batch into `gradients`.

        Args:
            images: uint8 (M, C, H, W) on the model's backend.
            indices: int64 (N,), which of them make up the batch; none of them: all gradients are 0.

        Returns:
            The batch's sum of squared errors, shape (1,), on the model's backend.
        """
        if self._whole is not None:
            total = self._whole.step(images, indices)
            self.gradients = self._whole.gradients
            return total
        step, crew = self._begin()
        total = step.step(crew.run, images, indices)
        self.gradients = step.gradients
        return total

    def squared_error(self, images: Array) -> float:
        """The sum of squared errors over all images (uint8, on the model's backend)."""
        if self._whole is not None:
            return self._whole.squared_error(images)
        size, total = self.chunk * max(1, EVALUATED // self.chunk), 0.0
        for start in range(0, len(images), size):
            step, crew = self._begin()
            total += step.squared_error(crew.run, images[start : start + size])
        return total

    def reconstruct(self, images: np.ndarray) -> np.ndarray:
        """Outputs float32 (N, C, H, W) for a few host images uint8 (N, C, H, W)."""
        return reconstruct(self.model, images, fused=self.fused)

    def in_order(self, function: Callable[[Any], T], items: Iterable[Any]) -> Iterator[T]:
        """`map` on this engine's threads, while it is open; results in the order of the items."""
        return (
            map(function, items)
            if self._crew is None
            else self._crew.threads.in_order(function, items)
        )

    # --- on the CPU -------------------------------------------------------------------------

    def _problem(self) -> Problem:
        """What the steps have in common, with room for as many chunks as go well together."""
        single = Problem(
            self.model, self.image_shape, self.loss, self.chunk, 1, self.fused, self.sparsity
        )
        return replace(single, chunks=self._kind.chunks_in_wave(single, self.threads))

    def _begin(self) -> tuple[CpuStep, Crew]:
        if self._crew is None:
            raise RuntimeError("the engine is not open: use it in a `with` statement")
        return self._crew.begin(), self._crew
