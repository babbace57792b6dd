"""Runs a stack of layers over labelled examples: outputs, and gradients of the cross-entropy.

On the CPU a batch is cut into chunks that threads take in turn. The chunk size is a function of the
layers alone, and the chunks' gradients are added in the order of the chunks, so results have the
same bits for any number of threads. On a GPU a batch is one piece.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np

from cae_raw.layers import CrossEntropyLoss, Sequential, Trace
from cae_raw.layers.base import Shape
from cae_raw.models.inference import layers_of
from cae_raw.parallel import Parallel

Array = Any
Load = Callable[[np.ndarray], Array]  # indices (n,) to a batch of floats, on the stack's backend

CHUNK_BYTES = 24 * 2**20  # for the maps of the examples that go through the stack together
LARGEST_CHUNK = 32  # examples: a usual batch keeps several threads busy
DEVICE_BYTES, LARGEST_ON_DEVICE = 2**28, 1024
VECTORS = 4096  # examples, where all there is is a linear layer


class ClassifierEngine:
    """Gradients and outputs of `stack`, on its backend, for examples of one shape.

    Use it while `workers` is open.
    """

    def __init__(self, stack: Sequential, example_shape: Shape, workers: Parallel) -> None:
        self.stack, self.workers = stack, workers
        self.layers = layers_of(stack)
        self.loss = CrossEntropyLoss()
        shapes = stack.layer_shapes(example_shape)
        self.output_shape = shapes[-1]
        maps = 4 * sum(map(prod, shapes))
        if len(example_shape) == 1:
            self.chunk = VECTORS
        elif workers.on_cpu:
            self.chunk = max(1, min(LARGEST_CHUNK, CHUNK_BYTES // maps))
        else:
            self.chunk = max(1, min(LARGEST_ON_DEVICE, DEVICE_BYTES // maps))
        self.gradients = stack.backend.zeros(stack.parameters.shape, stack.parameters.dtype)

    def step(self, load: Load, labels: np.ndarray, indices: np.ndarray) -> float:
        """Put the gradient of the mean loss over one batch into `gradients`; returns the mean."""
        stack, backend = self.stack, self.stack.backend

        def part(chunk: np.ndarray) -> tuple[Array, Array]:
            flat = backend.empty(stack.parameters.shape, stack.parameters.dtype)
            trace: Trace = {}
            logits = self.layers.forward(load(chunk), trace)
            total, dlogits = self.loss.partial(logits, backend.asarray(labels[chunk]), len(indices))
            self.layers.backward(dlogits, trace, stack.split(flat), need_dx=False)
            return total, flat

        total = 0.0
        chunks = _cut(indices, self.chunk if self.workers.on_cpu else len(indices))
        for start in range(0, len(chunks), self.workers.threads):  # so many gradients at a time
            together = chunks[start : start + self.workers.threads]
            for i, (loss, flat) in enumerate(self.workers.map(part, together)):
                total += float(backend.to_numpy(loss)[0])
                if start + i == 0:
                    self.gradients = flat
                else:
                    self.gradients += flat
        return total / len(indices)

    def outputs(self, load: Load, n: int, until: int | None = None) -> np.ndarray:
        """What the first `until` layers (None: all) make of examples 0 to n - 1, on the host."""
        backend, layers = self.stack.backend, layers_of(self.stack, 0, until)
        parts = _cut(np.arange(n), self.chunk)

        def part(chunk: np.ndarray) -> np.ndarray:
            return backend.to_numpy(layers.forward(load(chunk))).copy()

        return np.concatenate(list(self.workers.map(part, parts)))


def _cut(indices: np.ndarray, size: int) -> list[np.ndarray]:
    return [indices[i : i + size] for i in range(0, len(indices), size)]
