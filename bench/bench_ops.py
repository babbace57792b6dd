"""Every operation at the sizes that the two models give it, on one thread of the CPU.

pytest bench/bench_ops.py --benchmark-only
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import cycle
from typing import Any

import numpy as np
import pytest
from on_gpu.problems import Problem, problems
from threadpoolctl import threadpool_limits

from cae_raw.measure.counts import amount_of
from cae_raw.ops import OPS, scratch

COPIES = 2  # of the arguments, in turn


def parameters(tiny: bool) -> dict[str, Any]:
    every = list(problems(tiny))
    return {"problem": (every, [f"{p.op}-{p.where.replace(' ', '-')}" for p in every])}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with threadpool_limits(1, user_api="blas"), scratch.reusing():
        yield


def test_every_operation_is_here(tiny: bool) -> None:
    assert {problem.op for problem in problems(tiny)} == set(OPS)


def test_operation(benchmark: Callable[..., Any], problem: Problem) -> None:
    op, rng = OPS[problem.op], np.random.default_rng(0)
    benchmark.group = problem.op
    amount = amount_of(op, *problem.arguments(rng), **problem.keywords)
    benchmark.extra_info.update(flops=amount.flops, bytes=amount.bytes)
    copies = cycle([problem.arguments(rng) for _ in range(COPIES)])
    result = benchmark(lambda: op(*next(copies), **problem.keywords))
    arrays = result if isinstance(result, tuple) else () if result is None else (result,)
    assert all(np.isfinite(array).all() for array in arrays)
