"""A training step on a GPU, recorded once as a CUDA graph and then replayed.

A step of the deep model is 52 launches, and each costs the host about 20 us: a small batch is done
before the next launch is there. A graph starts all of them at once. What differs from step to step
is in device memory: the batch's indices, the learning rate and the number of the step.

    host     indices -> pinned slot k          wait for slot k+1, indices -> slot k+1
    device   ... copy k | graph: gather .. optimizer | error -> errors[k] | copy k+1 | graph ...

Nothing makes the host wait but a slot that is still to be copied, so it is at most `SLOTS` steps
ahead, and `errors`, which reads the errors of all steps since the last time.
"""

from __future__ import annotations

import sys
from contextlib import suppress
from typing import Any

import numpy as np

from cae_raw.backends.cuda_backend import CudaBackend
from cae_raw.training.engine import Engine
from cae_raw.training.optimizers import Optimizer

Array = Any

SLOTS = 8  # of indices in pinned memory
ERRORS = 1 << 14  # steps after which the errors have to be read


class DeviceStep:
    """Steps of one training on a GPU; with full batches from a graph where that is possible.

    The first step with some arrays is launched kernel by kernel, which compiles and loads what it
    needs; the second one is recorded, and replayed from then on. The last, smaller batch of an
    epoch is launched kernel by kernel too. A graph holds the addresses of the arrays it was
    recorded with, and these stay valid: the data set, the parameters and the optimizer's state are
    kept in `_arrays` and compared before each replay, so that new ones are recorded anew; gradients
    are the engine's as long as it lives, indices and errors this object's own; and all that was
    allocated during the recording is kept in `_held`, where no memory pool hands it out again.

    Args:
        engine: on a GPU; with the model's fused step or layer by layer.
        optimizer: of the engine's model.
        batch_size: images of a full batch.
        streamed: each batch comes in an array of its own, because it is read from a database or
            flipped. It is copied to where the graph reads it: 3 MB for 1,024 images of 32x32.
    """

    def __init__(
        self, engine: Engine, optimizer: Optimizer, batch_size: int, *, streamed: bool = False
    ) -> None:
        backend = engine.model.backend
        assert isinstance(backend, CudaBackend)
        self.engine, self.optimizer, self.batch_size = engine, optimizer, batch_size
        self._backend, self._cupy = backend, backend.cupy
        self._device = backend.cupy.cuda.Device(backend.device)
        self._errors = backend.empty((ERRORS,), np.float64)
        self._done = 0  # steps whose errors are there
        self._indices = _Indices(backend, batch_size)
        self._images: Array = None
        if streamed:
            self._images = backend.empty((batch_size, *engine.image_shape), np.uint8)
        self._arrays: tuple[Any, ...] = ()
        self._graph: Any = None
        self._total: Array = None  # where the graph leaves the error
        self._held: list[Any] = []
        self._possible = True

    @property
    def full(self) -> bool:
        """The errors have to be read before the next step."""
        return self._done == ERRORS

    def __call__(self, images: Array, indices: np.ndarray) -> None:
        """Train on the batch images[indices]; arguments as for `Engine.step`."""
        with self._device:
            if len(indices) != self.batch_size or not self._possible:
                self._note(self._launch(images, indices))
                return
            images = self._placed(images)
            place = self._indices.put(indices)
            if not self._is_known(images):
                self._note(self._launch(images, place))
                return
            if self._graph is None:
                self._record(images, place)
            if self._graph is None:
                self._note(self._launch(images, place))
            else:
                self._graph.launch()
                self._note(self._total)

    def errors(self) -> list[float]:
        """The sum of squared errors of each batch since the last call, in order; waits for them."""
        done, self._done = self._done, 0
        found: list[float] = self._backend.to_numpy(self._errors[:done]).tolist()
        return found

    def _launch(self, images: Array, indices: Array) -> Array:
        total = self.engine.step(images, indices)
        self.optimizer.step(self.engine.gradients)
        return total

    def _note(self, total: Array) -> None:
        """Keep a step's error on the device."""
        place = self._errors[self._done : self._done + 1]
        place.data.copy_from_device_async(total.data, place.nbytes)
        self._done += 1

    def _placed(self, images: Array) -> Array:
        if self._images is None:
            return images
        self._images.data.copy_from_device_async(images.data, self._images.nbytes)
        return self._images

    def _is_known(self, images: Array) -> bool:
        """Whether the last full batch was made from the same arrays and settings as this one."""
        optimizer = self.optimizer
        arrays = (
            images, self.engine.model.parameters,
            *vars(optimizer).values(), *optimizer.state.values(),
        )  # fmt: skip
        same = len(arrays) == len(self._arrays) and all(map(_is, arrays, self._arrays))
        if not same:
            self._graph, self._total, self._held = None, None, []
        self._arrays = arrays
        return same

    def _record(self, images: Array, indices: Array) -> None:
        """Make the graph, or say that it is not possible; nothing is computed meanwhile."""
        cuda = self._cupy.cuda
        refusals = (
            cuda.runtime.CUDARuntimeError,
            cuda.driver.CUDADriverError,
            cuda.memory.OutOfMemoryError,
        )
        held: list[Any] = []
        pool = cuda.MemoryPool()

        def reserve(size: int) -> Any:
            held.append(pool.malloc(size))
            return held[-1]

        # What the first step used is free now, and recording takes the same once more.
        self._cupy.get_default_memory_pool().free_all_blocks()
        stream = cuda.Stream(non_blocking=True)
        try:
            with stream, cuda.using_allocator(reserve):
                stream.begin_capture()
                try:
                    total = self._launch(images, indices)
                except BaseException:
                    with suppress(*refusals):
                        stream.end_capture()
                    raise
                graph = stream.end_capture()
        except refusals as error:
            self._possible = False
            print(
                f"note: training steps are launched kernel by kernel, because {self._backend.name} "
                f"cannot record them: {error}",
                file=sys.stderr,
            )
            return
        self._graph, self._total, self._held = graph, total, held


class _Indices:
    """One place on the device for a batch's indices, filled from pinned memory in turns."""

    def __init__(self, backend: CudaBackend, size: int) -> None:
        cuda = backend.cupy.cuda
        self.device = backend.empty((size,), np.int64)
        with cuda.Device(backend.device):
            self._pinned = [cuda.alloc_pinned_memory(8 * size) for _ in range(SLOTS)]
            self._copied = [cuda.Event(disable_timing=True) for _ in range(SLOTS)]
        self._host = [np.frombuffer(memory, np.int64, size) for memory in self._pinned]
        self._turn = 0

    def put(self, indices: np.ndarray) -> Array:
        slot, self._turn = self._turn, (self._turn + 1) % SLOTS
        self._copied[slot].synchronize()  # the copy that read this slot last is over
        self._host[slot][:] = indices
        self.device.data.copy_from_host_async(self._pinned[slot].ptr, self.device.nbytes)
        self._copied[slot].record()
        return self.device


def _is(a: object, b: object) -> bool:
    return a is b
