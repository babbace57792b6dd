"""How a kernel is compared with its reference: one set of checks for the CPU emulator and a GPU.

A check raises `Mismatch` (or the emulator's own error); `tests/test_planted_faults.py` shows that
the same checks catch kernels that are wrong.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import emulator
import numpy as np
from cases import Case

from cae_raw.backends.cuda_backend import CudaBackend
from cae_raw.ops import OPS

# A float32 sum of R terms in any order has an error that grows like sqrt(R) roundings, each half an
# eps of a partial sum, and partial sums are of the size of the result. 4 leaves room for the
# fused or unfused product, the activation behind the sum and an unlucky order.
TOLERANCE_FACTOR = 4.0
EPS32 = float(np.finfo(np.float32).eps)

# What only moves or selects values, or rounds in a prescribed way, has no error at all.
EXACT = {
    "relu_forward", "relu_backward", "pad2d_forward", "pad2d_backward", "maxpool_forward",
    "mask_gather", "gather", "gather_flipped", "l1_backward",
}  # fmt: skip
# The arguments an operation may write to, by position.
WRITES = {
    "l1_backward": (0,), "sgd_step": (0, 2, 3), "adam_step": (0, 2, 3, 4),
    "single_layer_forward": (6, 7),
}  # fmt: skip

MANY_BLOCKS = 37


@dataclass
class Tally:
    """What has been run, for the line at the end of a test session."""

    cases: set[str] = field(default_factory=set)
    worst: float = 0.0
    worst_case: str = "none"


EMULATED, ON_GPU = Tally(), Tally()


class Mismatch(AssertionError):
    """A kernel gave something else than its reference."""


class PoisonedBackend(CudaBackend):
    """Every new array is full of NaN (255 as bytes), so that what a kernel leaves out shows."""

    def empty(self, shape: Any, dtype: Any = np.float32) -> Any:
        array = super().empty(shape, dtype)
        if array.size:
            array.view(np.uint8).fill(0xFF)
        return array


def emulated(order_seed: int = 0, kernels_dir: Path | None = None) -> PoisonedBackend:
    """A backend on the CPU that runs threads and blocks in the order of the seed."""
    cupy = emulator.emulated_cupy(order_seed, write_check=True)
    return PoisonedBackend(cupy, kernels_dir=kernels_dir)


@functools.cache
def gpu() -> PoisonedBackend | str:
    """A backend on the real GPU, or why there is none. Finding CuPy is not finding a GPU."""
    try:
        import cupy
    except ImportError:
        return "CuPy is not installed"
    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as error:
        return f"no GPU: {error}"
    if not count:
        return "no GPU"
    backend = PoisonedBackend(cupy)  # from here on an error is a failure, no reason to skip
    x = backend.asarray(np.array([-1, 2], np.float32))
    works = backend.to_numpy(OPS["relu_forward"](x)).tolist() == [0, 2]
    assert works, "the GPU gives a wrong result for relu"
    return backend


def _map_arrays(function: Any, arguments: Any) -> Any:
    args, kwargs = arguments
    convert = lambda a: function(a) if isinstance(a, np.ndarray) else a  # noqa: E731
    return tuple(map(convert, args)), {k: convert(v) for k, v in kwargs.items()}


def _results(op: str, returned: Any, args: tuple[Any, ...]) -> list[Any]:
    """All that an operation gives back: its return value and what it changes in place."""
    values = returned if isinstance(returned, tuple) else () if returned is None else (returned,)
    return [*values, *(args[i] for i in WRITES.get(op, ()))]


def reference(case: Case, seed: int = 0) -> list[np.ndarray]:
    """The reference's results, computed in float64; in float32 where a kernel must be exact."""
    arguments = case.make(np.random.default_rng(seed))
    wide = np.float32 if case.op in EXACT else np.float64
    args, kwargs = _map_arrays(
        lambda a: a.astype(wide) if a.dtype == np.float32 else a.copy(), arguments
    )
    with np.errstate(invalid="ignore"):
        return _results(case.op, OPS[case.op].reference(*args, **kwargs), args)


def run(case: Case, backend: CudaBackend, seed: int = 0) -> list[np.ndarray]:
    """The kernels' results. Raises Mismatch if an input was changed."""
    backend.register()
    host = case.make(np.random.default_rng(seed))
    args, kwargs = _map_arrays(backend.asarray, host)
    results = _results(case.op, OPS[case.op](*args, **kwargs), args)
    written = {id(args[i]) for i in WRITES.get(case.op, ())} | {id(kwargs.get("out"))}
    for before, after in zip((*host[0], *host[1].values()), (*args, *kwargs.values()), strict=True):
        if not isinstance(before, np.ndarray) or id(after) in written:
            continue
        if backend.to_numpy(after).tobytes() != before.tobytes():
            raise Mismatch(f"{case}: an input was changed")
    if kwargs.get("out") is not None and results[0] is not kwargs["out"]:
        raise Mismatch(f"{case}: the result is not the array given as out")
    return [backend.to_numpy(r) for r in results]


def compare(case: Case, got: list[np.ndarray], expected: list[np.ndarray]) -> float:
    """The largest error, as a share of the tolerance. Raises Mismatch where it is above 1."""
    worst = 0.0
    for number, (g, e) in enumerate(zip(got, expected, strict=True)):
        what = f"{case}, result {number}"
        if g.shape != e.shape:
            raise Mismatch(f"{what}: shape {g.shape}, expected {e.shape}")
        if case.op in EXACT:
            if g.dtype != e.dtype or not np.array_equal(g, e, equal_nan=g.dtype.kind == "f"):
                raise Mismatch(f"{what}: not equal to the reference")
            continue
        if not g.size:
            continue
        finite = np.isfinite(e)
        if not np.array_equal(g[~finite], e[~finite], equal_nan=True):
            raise Mismatch(f"{what}: NaN or infinity in other places than in the reference")
        if not finite.any():
            continue
        size = np.abs(e[finite]).max()
        tolerance = (TOLERANCE_FACTOR * EPS32 * np.sqrt(case.terms) + case.slack) * size
        error = np.abs(g[finite].astype(np.float64) - e[finite]).max()
        if not error <= tolerance:  # a NaN error must not pass
            raise Mismatch(f"{what}: error {error:.3g} with a tolerance of {tolerance:.3g}")
        worst = max(worst, float(error / tolerance) if tolerance else 0.0)
    return worst


def grids(backend: CudaBackend) -> Iterator[int | None]:
    """Set the launcher's own grid, one block, and more blocks than most cases can use."""
    for grid in (None, 1, MANY_BLOCKS):
        backend.forced_grid = grid
        yield grid
    backend.forced_grid = None


def check(case: Case, backends: list[CudaBackend]) -> float:
    """Run a case with every grid on every backend given; all runs must agree bit for bit.

    The backends differ in the order of threads, or are one real device used twice. Returns the
    largest error as a share of the tolerance.
    """
    tally = ON_GPU if isinstance(gpu(), CudaBackend) and backends[0] is gpu() else EMULATED
    expected = reference(case)
    first: list[bytes] | None = None
    worst = 0.0
    for number, backend in enumerate(backends):
        for grid in grids(backend):
            if number and grid is not None:
                continue
            got = run(case, backend)
            worst = max(worst, compare(case, got, expected))
            bits = [g.tobytes() for g in got]
            if first is not None and bits != first:
                raise Mismatch(f"{case}: another grid or order gives other bits")
            first = bits
    tally.cases.add(str(case))
    if worst >= tally.worst:
        tally.worst, tally.worst_case = worst, str(case)
    return worst
