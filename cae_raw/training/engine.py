"""Runs a model over a batch: in parts on a thread pool on the CPU, in one piece on a GPU.

On the CPU a batch is cut into chunks small enough that their activation maps stay in the cache, and
the chunks are spread over threads (NumPy releases the interpreter's lock while it computes). The
chunk size is a function of the model and the image size alone, and the chunks' gradients are added
in the order of the chunks, so the result has the same bits for any number of threads.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from functools import partial
from math import prod
from typing import Any, TypeVar

import numpy as np

from cae_raw.backends import NUMPY
from cae_raw.data.scaling import scale_and_shift
from cae_raw.errors import InputError
from cae_raw.layers.loss import MSELoss
from cae_raw.models import Autoencoder
from cae_raw.ops import scratch
from cae_raw.ops.batch import gather
from cae_raw.ops.single_layer_step import SingleLayerStep
from cae_raw.training.staged import GROUP, StagedStep

Array = Any
T = TypeVar("T")

CHUNK_BYTES = 2_500_000  # of a chunk's largest map; measured best for 2 MB of second-level cache
EVALUATION_BATCH = 1024  # images at a time on a GPU, where there are no chunks,
EVALUATION_BYTES = 1 << 28  # unless their largest map takes more than this


def available_threads() -> int:
    """Processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class Engine:
    """Gradients and errors of a model over images of one shape.

    Use it as a context manager (nesting is fine): it owns a thread pool, and while it is open the
    BLAS behind NumPy is held to one thread per worker.

    Args:
        model: on the backend that does the work.
        image_shape: (C, H, W).
        loss: a name in `cae_raw.layers.loss.LOSSES`; None takes the model's own.
        threads: workers on the CPU; None takes every processor this process may use.
        fused: use the model's fused step where it has one; False goes layer by layer.

    Raises:
        InputError: if the model cannot take such images or does not return them in their shape.
    """

    def __init__(
        self,
        model: Autoencoder,
        image_shape: tuple[int, int, int],
        *,
        loss: str | None = None,
        threads: int | None = None,
        fused: bool = True,
    ) -> None:
        if threads is not None and threads < 1:
            raise InputError(f"threads must be at least 1, not {threads}")
        self.model, self.image_shape = model, tuple(image_shape)
        if model.output_shape(self.image_shape) != self.image_shape:
            raise InputError(
                f"the model makes {model.output_shape(self.image_shape)} of {self.image_shape}: "
                "an autoencoder must return images of the input's shape"
            )
        self.loss = MSELoss(loss or model.loss)
        self.scale, self.shift = scale_and_shift(model.value_range)
        self.on_cpu = model.backend is NUMPY
        self.threads = (threads or available_threads()) if self.on_cpu else 1
        self.chunk = self._chunk_size() if self.on_cpu else None
        self._fused: SingleLayerStep | None = None
        if fused and self.on_cpu and model.fused is not None:
            self._fused = model.fused(image_shape[1:], model.parameters.dtype)
        # More tasks than threads are in flight, so that none waits for the one that adds.
        self.in_flight = self.threads + 2 if self.on_cpu else 1
        self._staged: StagedStep | None = None
        if self.on_cpu and StagedStep.serves(model):
            self._staged = StagedStep(model, self.loss, self.in_order)
            self.gradients = self._staged.gradients
        else:
            self._buffers = [self._new_gradients() for _ in range(self.in_flight)]
            # Only chunks are summed, and on a GPU a batch is one piece.
            self._sum = self._new_gradients()[0] if self.on_cpu else self._buffers[0][0]
            self.gradients = self._sum
        self._stack, self._depth = ExitStack(), 0

    def _chunk_size(self) -> int:
        """Images whose largest map fits CHUNK_BYTES, between 1 and 64.

        A staged step waits several times for all threads; a power of two gives each of them as many
        chunks of a usual batch as the others have. It is rounded upwards: two threads lose more to
        each other, calling NumPy more often, than either loses by leaving its cache.
        """
        size = self._images_within(CHUNK_BYTES, 64)
        return 1 << (size - 1).bit_length() if StagedStep.serves(self.model) else size

    def _images_within(self, limit: int, most: int) -> int:
        """Images whose largest map fits `limit` bytes, between 1 and `most`."""
        largest = max(prod(shape) for shape in self.model.layer_shapes(self.image_shape))
        return max(1, min(most, limit // (4 * largest)))

    def _new_gradients(self) -> tuple[Array, dict[str, Array]]:
        parameters = self.model.parameters
        flat = self.model.backend.empty(parameters.shape, parameters.dtype)
        return flat, self.model.split(flat)

    def __enter__(self) -> Engine:
        self._depth += 1
        if self.on_cpu and self._depth == 1:
            from threadpoolctl import threadpool_limits

            self._stack.enter_context(threadpool_limits(1, user_api="blas"))
            self._pool = self._stack.enter_context(
                ThreadPoolExecutor(self.threads, initializer=scratch.reuse_in_this_thread)
            )
        return self

    def __exit__(self, *_: object) -> None:
        self._depth -= 1
        if self._depth == 0:
            self._stack.close()

    # --- training ---------------------------------------------------------------------------

    def step(self, images: Array, indices: np.ndarray) -> Array:
        """Put the gradient of the loss over one batch into `gradients`.

        Args:
            images: uint8 (M, C, H, W) on the model's backend.
            indices: int64 (N,), which of them make up the batch; none of them: all gradients are 0.

        Returns:
            The batch's sum of squared errors, shape (1,), on the model's backend.
        """
        elements = len(indices) * prod(self.image_shape)
        if self._staged is not None:
            load = partial(self._batch, images)
            return self._staged.step(self._groups(indices), load, elements)

        def part(chunk: np.ndarray, slot: int) -> Array:
            x, grads = self._batch(images, chunk), self._buffers[slot][1]
            if self._fused is not None:
                scale = self.loss.gradient_scale(elements)
                return self._fused.gradients(x, self.model.params, grads, scale)
            trace: dict[Any, Any] = {}
            y = self.model.forward(x, trace)
            total, dy = self.loss.partial(y, x, elements)
            self.model.backward(dy, trace, dict(grads), need_dx=False)
            return total

        chunks = self._chunks(indices)
        total = None
        for i, error in enumerate(self._ordered(part, chunks)):
            flat = self._buffers[i % self.in_flight][0]
            if total is None:
                total = error
                if len(chunks) == 1:
                    self.gradients = flat  # valid until the next step, as it always is
                else:
                    self.gradients = self._sum
                    self.gradients[...] = flat
            else:
                total += error
                self.gradients += flat
        return total

    # --- evaluation -------------------------------------------------------------------------

    def squared_error(self, images: Array) -> float:
        """The sum of squared errors over all images (uint8, on the model's backend)."""

        def part(chunk: np.ndarray, slot: int) -> Array:
            x = self._batch(images, chunk)
            if self._fused is not None:
                return self._fused.squared_error(x, self.model.params)
            return self.loss.partial(self.model.forward(x), x, 1)[0]

        indices = np.arange(len(images))
        if self._staged is not None:
            return self._staged.squared_error(self._groups(indices), partial(self._batch, images))
        size = self.chunk or self._images_within(EVALUATION_BYTES, EVALUATION_BATCH)
        totals = self._ordered(part, self._chunks(indices, size))
        return sum(float(self.model.backend.to_numpy(t)[0]) for t in totals)

    def reconstruct(self, images: np.ndarray) -> np.ndarray:
        """Outputs float32 (N, C, H, W) for a few host images uint8 (N, C, H, W)."""
        x = self._batch(self.model.backend.asarray(images), np.arange(len(images)))
        return self.model.backend.to_numpy(self.model.forward(x))

    # --- how the work is cut up --------------------------------------------------------------

    def _batch(self, images: Array, indices: np.ndarray) -> Array:
        indices = self.model.backend.asarray(indices)
        x = gather(images, indices, scale=self.scale, shift=self.shift)
        dtype = self.model.parameters.dtype
        return x if x.dtype == dtype else x.astype(dtype)  # float64 in checks on the CPU

    def _chunks(self, indices: np.ndarray, size: int | None = None) -> list[np.ndarray]:
        length = max(1, len(indices))  # an empty batch is one empty chunk
        size = size or self.chunk or length
        return [indices[i : i + size] for i in range(0, length, size)]

    def _groups(self, indices: np.ndarray) -> list[list[np.ndarray]]:
        """The chunks of a batch, as many together as a staged step takes at a time."""
        chunks = self._chunks(indices)
        count = max(1, GROUP // len(chunks[0]) if len(chunks[0]) else 1)
        return [chunks[i : i + count] for i in range(0, len(chunks), count)]

    def in_order(self, function: Callable[[Any], T], items: Iterable[Any]) -> Iterator[T]:
        """`map` on this engine's threads, while it is open; results in the order of the items."""
        return self._ordered(lambda item, _: function(item), items)

    def _ordered(self, part: Callable[[Any, int], T], chunks: Iterable[Any]) -> Iterator[T]:
        """Run `part(chunk, slot)` for every chunk; results in order of the chunks.

        A slot is reused only after the result that it belongs to has been taken. An exception in a
        part is raised here, once no other part is running any more.
        """
        if not self.on_cpu:
            for chunk in chunks:
                yield part(chunk, 0)
            return
        waiting: deque[Future[T]] = deque()
        try:
            for i, chunk in enumerate(chunks):
                if len(waiting) == self.in_flight:
                    yield waiting.popleft().result()
                waiting.append(self._pool.submit(_quietly, part, chunk, i % self.in_flight))
            while waiting:
                yield waiting.popleft().result()
        finally:
            wait([future for future in waiting if not future.cancel()])


def _quietly(part: Callable[[Any, int], T], chunk: Any, slot: int) -> T:
    """Without warnings about numbers that overflow: whoever gets the result looks at it."""
    with np.errstate(over="ignore", invalid="ignore"):
        return part(chunk, slot)
