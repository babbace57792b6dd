"""What an operation is: one formula, one NumPy reference, one CUDA launcher.

Every operation of the package is an `Op` in the table `OPS`. Calling it looks at where its first
array lives: NumPy arrays go to the reference, device arrays to the launcher. Tests, the gradient
checker and the benchmarks iterate over the table: registering an operation gets it tested.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Generic, ParamSpec, TypeVar

import numpy as np

P = ParamSpec("P")
R = TypeVar("R")

OPS: dict[str, Op[Any, Any]] = {}


class Op(Generic[P, R]):
    """An operation with a NumPy reference and a CUDA launcher of the same signature.

    Args:
        name: `<family>_<what>`, also the name of its kernel.
        reference: the NumPy implementation, for float32 and float64.
        launcher: the same on device arrays, float32 only.

    Raises:
        ValueError: if the name is taken.
    """

    def __init__(self, name: str, reference: Callable[P, R], launcher: Callable[P, R]) -> None:
        if name in OPS:
            raise ValueError(f"operation {name!r} is registered twice")
        self.name = name
        self.reference = reference
        self.launcher = launcher
        self.__doc__ = reference.__doc__
        OPS[name] = self

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        if isinstance(args[0], np.ndarray):
            return self.reference(*args, **kwargs)
        return self.launcher(*args, **kwargs)

    def __repr__(self) -> str:
        return f"Op({self.name})"


Function = Callable[..., Any]


@contextmanager
def watched(wrap: Callable[[Op[Any, Any], Function], Function]) -> Iterator[None]:
    """Inside the block, `wrap(op, function)` runs in place of each op's reference and launcher."""
    before = {name: (op.reference, op.launcher) for name, op in OPS.items()}
    try:
        for op in OPS.values():
            op.reference, op.launcher = wrap(op, op.reference), wrap(op, op.launcher)
        yield
    finally:
        for name, (reference, launcher) in before.items():
            OPS[name].reference, OPS[name].launcher = reference, launcher
