"""Every launch of every operation, by itself: milliseconds, GB/s, TFLOP/s.

An operation runs once while its launches are kept, and its result is compared with the NumPy
reference. Then each launch is repeated with the same arguments. FLOPs and bytes come from the
formulas at the top of the kernel's file, filled in with the launch's own constants and arguments.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from cae_raw.backends import kernel_source
from cae_raw.measure.calls import IN_PLACE
from cae_raw.measure.clock import relative_error
from cae_raw.measure.counts import Launch, kept_launches
from cae_raw.ops import OPS
from on_gpu.device import Bench
from on_gpu.problems import Problem, problems
from on_gpu.record import Record


def run(bench: Bench, record: Record) -> None:
    """Time the launches of all problems; a problem that fails is recorded, and the next one runs.

    A kernel with equal constants and sizes is timed once.
    """
    timed: set[Any] = set()
    every = list(problems(tiny=bench.emulated))
    record.put("problems", len(every))
    for number, problem in enumerate(every):
        if bench.seconds_left < 0:
            record.put("left_out", [f"{p.op}, {p.where}" for p in every[number:]])
            raise TimeoutError(f"{len(every) - number} of {len(every)} problems were not timed")
        subject = {"op": problem.op, "where": problem.where}
        try:
            error, launches = compare(bench, problem)
        except Exception as failure:
            record.add("failures", {**subject, "error": f"{type(failure).__name__}: {failure}"})
            continue
        if not error <= problem.tolerance:
            record.add("failures", {**subject, "error": f"differs from the reference by {error}"})
            continue
        for launch in launches:
            sizes = {k: v for k, v in launch.arguments.items() if isinstance(v, (int, float))}
            key = (launch.kernel.key, *sizes.items())
            if key not in timed:
                timed.add(key)
                record.add("launches", {**subject, "relative_error": error, **time(bench, launch)})
    missing = set(kernel_source.all_entries()) - {key[0][0] for key in timed}
    record.put("kernels_not_timed", sorted(missing))
    if record.content.get("failures") or missing:
        raise ArithmeticError("some kernels failed or were not reached: see failures")


def compare(bench: Bench, problem: Problem) -> tuple[float, list[Launch]]:
    """The largest relative error against the reference, and the launches."""
    op = OPS[problem.op]
    host = problem.arguments(np.random.default_rng(0))
    device = [bench.backend.asarray(array) for array in host]
    with kept_launches(bench.backend) as launches:
        found = op.launcher(*device, **problem.keywords)
    expected = op.reference(*host, **problem.keywords)
    pairs = list(zip(_results(expected), _results(found), strict=True))
    pairs += [(host[i], device[i]) for i in IN_PLACE.get(problem.op, ())]
    errors = [relative_error(e, bench.backend.to_numpy(f)) for e, f in pairs]
    return float(np.max(errors)), launches  # NaN stays NaN


def time(bench: Bench, launch: Launch) -> dict[str, Any]:
    """The figures of one launch."""
    backend, kernel = bench.backend, launch.kernel
    found = bench.milliseconds(
        lambda: backend.launch(kernel, launch.grid, launch.arguments, shared=launch.shared)
    )
    flops, moved = launch.amount.flops, launch.amount.bytes
    shapes = {k: list(v.shape) for k, v in launch.arguments.items() if hasattr(v, "shape")}
    return {
        "kernel": kernel.entry,
        "shapes": shapes,
        "constants": dict(kernel.constants),
        "grid": launch.grid,
        "block": kernel.block,
        **found,
        "flops": flops,
        "bytes": moved,
        "gb_per_s": moved / found["ms"] / 1e6,
        "tflop_per_s": flops / found["ms"] / 1e9,
    }


def _results(returned: Any) -> tuple[Any, ...]:
    if returned is None:
        return ()
    return returned if isinstance(returned, tuple) else (returned,)
