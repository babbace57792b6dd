"""cae-raw itself, as one of the candidates of a race."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from cae_raw.backends import NUMPY, Backend
from cae_raw.layers.loss import LOSSES
from cae_raw.measure.problem import Problem
from cae_raw.training.engine import Engine
from cae_raw.training.optimizers import OPTIMIZERS


class Candidate(Protocol):
    """Something that trains the model of a problem: from the same weights, on the same images."""

    name: str

    def loss_and_gradients(self, indices: np.ndarray) -> tuple[float, np.ndarray]:
        """The loss of a batch and its gradients, flat, in the order of cae-raw's parameters."""

    def step(self, indices: np.ndarray) -> Any:
        """One training step; returns something that `read` takes, and need not have ended."""

    def forward(self, indices: np.ndarray) -> float:
        """The loss of a batch of consecutive images."""

    def read(self, result: Any, batch: int) -> float:
        """The loss behind what `step` returned for a batch of so many images."""

    def wait(self) -> None:
        """Until all work that was handed out is done."""

    def close(self) -> None:
        """Give back threads and memory."""


class Ours:
    """The engine and an optimizer, as training runs them."""

    name = "cae-raw"

    def __init__(
        self,
        problem: Problem,
        images: np.ndarray,
        *,
        backend: Backend = NUMPY,
        threads: int | None = None,
    ) -> None:
        self.backend = backend
        self.images = backend.asarray(images)
        self.model = problem.build().to(backend)
        self.optimizer = OPTIMIZERS[problem.optimizer](self.model, lr=problem.lr)
        self.engine = Engine(self.model, problem.image_shape, threads=threads)
        self.engine.__enter__()
        self._factor = LOSSES[self.model.loss] / int(np.prod(problem.image_shape))

    def loss_and_gradients(self, indices: np.ndarray) -> tuple[float, np.ndarray]:
        total = self.engine.step(self.images, indices)
        gradients = self.backend.to_numpy(self.engine.gradients).copy()
        return self.read(total, len(indices)), gradients

    def step(self, indices: np.ndarray) -> Any:
        total = self.engine.step(self.images, indices)
        self.optimizer.step(self.engine.gradients, self.engine.in_order)
        return total

    def forward(self, indices: np.ndarray) -> float:
        images = self.images[int(indices[0]) : int(indices[0]) + len(indices)]
        return self.engine.squared_error(images) * self._factor / len(indices)

    def read(self, result: Any, batch: int) -> float:
        return float(self.backend.to_numpy(result)[0]) * self._factor / batch

    def wait(self) -> None:
        self.backend.synchronize()

    def close(self) -> None:
        self.engine.__exit__(None, None, None)
