"""Optimizers: their state, and one step over all parameters of a model."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from cae_raw.backends import NUMPY
from cae_raw.errors import InputError, unknown_name
from cae_raw.layers import Sequential
from cae_raw.ops import optim as ops
from cae_raw.ops.windows import even_cuts

Array = Any
InOrder = Callable[[Callable[[Any], Any], Iterable[Any]], Iterator[Any]]

BLOCK = 1 << 16  # parameters that go through all passes of a step while they are in the cache
TASK = 1 << 20  # parameters per task


class Optimizer(ABC):
    """Holds the model, a learning rate, a penalty, and vectors as long as the parameters.

    Args:
        model: its flat parameter vector is updated in place.
        lr: learning rate, above 0.
        l2: penalty coefficients by parameter name; the objective gains
            coefficient * sum(parameter^2). Names that are missing are not penalised.

    Raises:
        InputError: for a hyper-parameter out of its range or an unknown parameter name.
    """

    slots: tuple[str, ...] = ()

    def __init__(self, model: Sequential, lr: float, l2: Mapping[str, float] | None = None) -> None:
        _require("lr", lr, 0 < lr < math.inf, "above 0")
        self.model = model
        self.state: dict[str, Array] = {
            slot: np.zeros_like(model.backend.to_numpy(model.parameters)) for slot in self.slots
        }
        self.state["control"] = np.array([lr] + [0.0] * (ops.CONTROL_SIZE - 1))
        self.load_state(self.state)
        self.l2 = self._coefficients(l2 or {})

    def _coefficients(self, l2: Mapping[str, float]) -> Array | None:
        """The penalty as one coefficient per parameter, None where there is none."""
        for name, coefficient in l2.items():
            _require(f"penalty of {name}", coefficient, 0 <= coefficient < math.inf, "at least 0")
            if name not in self.model.names:
                raise unknown_name("parameter", name, self.model.names)
        if not any(l2.values()):
            return None
        flat = np.zeros_like(self.model.backend.to_numpy(self.model.parameters))
        for name, view in self.model.split(flat).items():
            view[...] = l2.get(name, 0)
        return self.model.backend.asarray(flat)

    @property
    def lr(self) -> float:
        return float(self.model.backend.to_numpy(self.state["control"])[ops.LR])

    @lr.setter
    def lr(self, value: float) -> None:
        control = self.model.backend.to_numpy(self.state["control"]).copy()
        control[ops.LR] = value
        self.state["control"][...] = control  # in place: a recorded step reads it there

    def penalty(self) -> float:
        """The value of the penalty term for the parameters as they are."""
        if self.l2 is None:
            return 0.0
        value = ops.penalty(self.model.parameters, self.l2)
        return float(self.model.backend.to_numpy(value)[0])

    def step(self, gradients: Array, in_order: InOrder = map) -> None:
        """Move the parameters; `gradients` is flat, of the parameters' length.

        On the CPU they are moved block by block, each in the cache from the first pass over it to
        the last: for 15 million parameters that is three times as fast. `in_order`, a function like
        `map`, may do several tasks at a time, as `Engine.in_order` does.
        """
        control, size = self.state["control"], self.model.parameters.size
        if self.model.backend is not NUMPY:
            self._update(slice(0, size), gradients, control)
            return

        def update(task: slice) -> None:
            for block in even_cuts(task.stop - task.start, BLOCK):
                here = slice(task.start + block.start, task.start + block.stop)
                self._update(here, gradients, control.copy())

        for _ in in_order(update, even_cuts(size, TASK)):
            pass
        self._update(slice(0, 0), gradients, control)  # this one counts the step

    @abstractmethod
    def _update(self, block: slice, gradients: Array, control: Array) -> None:
        """Move a block of the parameters and advance `control`."""

    def _penalty_of(self, block: slice) -> Array | None:
        return None if self.l2 is None else self.l2[block]

    def state_to_host(self) -> dict[str, np.ndarray]:
        """Copies of all state, for a checkpoint."""
        return {k: self.model.backend.to_numpy(v).copy() for k, v in self.state.items()}

    def load_state(self, state: Mapping[str, np.ndarray]) -> None:
        """Continue from the state of another optimizer of this kind and size.

        Raises:
            InputError: if an entry is missing or has another shape.
        """
        for name, mine in self.state.items():
            if name not in state or state[name].shape != mine.shape:
                raise InputError(f"optimizer state {name!r} is missing or of another size")
        host = {k: state[k].copy() for k in self.state}
        host["control"][ops.READERS :] = 0  # checkpoints of earlier versions kept something there
        self.state = {k: self.model.backend.asarray(v) for k, v in host.items()}


class SGD(Optimizer):
    """Stochastic gradient descent with momentum (0: none), in [0, 1)."""

    slots = ("velocity",)

    def __init__(
        self,
        model: Sequential,
        lr: float = 1e-3,
        momentum: float = 0.0,
        l2: Mapping[str, float] | None = None,
    ) -> None:
        _require("momentum", momentum, 0 <= momentum < 1, "at least 0 and below 1")
        super().__init__(model, lr, l2)
        self.momentum = momentum

    def _update(self, block: slice, gradients: Array, control: Array) -> None:
        ops.sgd_step(
            self.model.parameters[block],
            gradients[block],
            self.state["velocity"][block],
            control,
            momentum=self.momentum,
            l2=self._penalty_of(block),
        )


class Adam(Optimizer):
    """Adam with bias correction; betas in [0, 1), eps above 0."""

    slots = ("m", "v")

    def __init__(
        self,
        model: Sequential,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        l2: Mapping[str, float] | None = None,
    ) -> None:
        for beta in betas:
            _require("betas", beta, 0 <= beta < 1, "at least 0 and below 1")
        _require("eps", eps, 0 < eps < math.inf, "above 0")
        super().__init__(model, lr, l2)
        self.betas, self.eps = betas, eps

    def _update(self, block: slice, gradients: Array, control: Array) -> None:
        ops.adam_step(
            self.model.parameters[block],
            gradients[block],
            self.state["m"][block],
            self.state["v"][block],
            control,
            betas=self.betas,
            eps=self.eps,
            l2=self._penalty_of(block),
        )


OPTIMIZERS: dict[str, type[Optimizer]] = {"adam": Adam, "sgd": SGD}


def _require(name: str, value: float, holds: bool, rule: str) -> None:
    if not holds:
        raise InputError(f"{name} must be {rule}, not {value:g}")
