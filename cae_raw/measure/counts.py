"""How many FLOPs and bytes an operation takes, by the formulas at the top of its kernel's file.

The formulas are in the sizes that a launch is given, and only an operation's launcher knows which
kernels it launches with which sizes. So the launcher is run: on a GPU its launches are kept, and
elsewhere it gets sketches, arrays that have a shape and no contents, and starts nothing.

A byte counts once for each array that it belongs to and that the operation has to read or write.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np

from cae_raw.backends import kernel_source
from cae_raw.backends.base import Shape
from cae_raw.backends.cuda_backend import CudaBackend, Kernel
from cae_raw.models import Autoencoder
from cae_raw.models.summary import FLOAT_BYTES, summarize
from cae_raw.ops import OPS, Op


@dataclass(frozen=True)
class Amount:
    """Work to be done: multiplications and additions, and bytes read or written."""

    flops: float
    bytes: float


@dataclass(frozen=True)
class Launch:
    """One launch of a kernel, with its arguments by name."""

    kernel: Kernel
    grid: int
    arguments: Mapping[str, Any]
    shared: int = 0  # bytes of dynamic shared memory

    @property
    def amount(self) -> Amount:
        """The formulas of the kernel's file, filled in with this launch's sizes."""
        about = kernel_source.all_entries()[self.kernel.entry].about
        names = {**self.kernel.constants, **self.arguments}
        sizes = {k: int(v) for k, v in names.items() if isinstance(v, (int, np.integer))}
        flops, moved = (
            float(eval(about[what], {"__builtins__": {}}, sizes)) for what in ("flops", "bytes")
        )
        return Amount(flops, moved)


@contextmanager
def kept_launches(backend: Any) -> Iterator[list[Launch]]:
    """The launches that are made inside the block."""
    launches: list[Launch] = []
    launch = backend.launch

    def keep(kernel: Kernel, grid: int, arguments: Mapping[str, Any], *, shared: int = 0) -> None:
        launches.append(Launch(kernel, grid, arguments, shared))
        launch(kernel, grid, arguments, shared=shared)

    backend.launch = keep
    try:
        yield launches
    finally:
        del backend.launch


class Sketch:
    """An array of a shape and a dtype without contents: what launchers look at, and views."""

    device = SimpleNamespace(id=0)

    def __init__(self, untouched: np.ndarray) -> None:
        self._untouched = untouched  # memory that the system never has to provide

    @classmethod
    def of(cls, array: Any) -> Sketch:
        """One of the shape and dtype of an array on any backend."""
        return cls(np.empty(array.shape, array.dtype))

    def __getattr__(self, name: str) -> Any:
        if name in ("shape", "dtype", "size", "ndim", "nbytes", "itemsize", "flags"):
            return getattr(self._untouched, name)
        raise AttributeError(f"a sketch of an array has no {name}")

    def __len__(self) -> int:
        return len(self._untouched)

    def __getitem__(self, key: Any) -> Sketch:
        return Sketch(self._untouched[key])

    def reshape(self, *shape: Any) -> Sketch:
        return Sketch(self._untouched.reshape(*shape))


class _Sketching(CudaBackend):
    """A device on which nothing runs; kernels that are cut to fit one are cut for an H200."""

    multiprocessors = 132
    shared_limit = 227 << 10

    def __init__(self) -> None:
        runtime = SimpleNamespace(getDevice=lambda: 0)
        cuda = SimpleNamespace(Device=lambda _: nullcontext(), runtime=runtime)
        super().__init__(SimpleNamespace(ndarray=Sketch, cuda=cuda))

    def empty(self, shape: Shape, dtype: Any = np.float32) -> Sketch:
        return Sketch(np.empty(shape, dtype))

    zeros = empty

    def launch(
        self, kernel: Kernel, grid: int, arguments: Mapping[str, Any], *, shared: int = 0
    ) -> None:
        """Nothing is started; `kept_launches` sees it."""


def amount_of(op: Op[Any, Any], *args: Any, **kwargs: Any) -> Amount:
    """What a call of an operation takes; of array arguments only shapes and dtypes are used."""

    def sketched(value: Any) -> Any:
        return Sketch.of(value) if hasattr(value, "dtype") and hasattr(value, "shape") else value

    with kept_launches(_Sketching()) as launches:
        op.launcher(*map(sketched, args), **{k: sketched(v) for k, v in kwargs.items()})
    amounts = [launch.amount for launch in launches]
    return Amount(sum(a.flops for a in amounts), sum(a.bytes for a in amounts))


def forward_amount(model: Autoencoder, image_shape: tuple[int, int, int], batch: int) -> Amount:
    """The least that the loss of a batch takes: its layers, its bytes and the parameters once."""
    summary = summarize(model, image_shape)
    images = int(np.prod(image_shape)) * batch
    return Amount(batch * summary.flops, images + FLOAT_BYTES * summary.parameters)


def training_amount(
    model: Autoencoder, image_shape: tuple[int, int, int], batch: int, optimizer: str
) -> Amount:
    """The least that a training step takes: layers both ways, its bytes, and the optimizer.

    Activation maps need not be moved at all, so they do not count.
    """
    vector, control = np.empty(model.parameters.shape, np.float32), np.empty(4)
    if optimizer == "adam":
        step = amount_of(OPS["adam_step"], *[vector] * 4, control, betas=(0.9, 0.999), eps=1e-8)
    else:
        step = amount_of(OPS["sgd_step"], *[vector] * 3, control, momentum=0.0)
    images = int(np.prod(image_shape)) * batch
    flops = batch * summarize(model, image_shape).training_flops
    return Amount(flops + step.flops, images + step.bytes)
