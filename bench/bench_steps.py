"""The training step and the forward pass of every model, on the CPU, at several batch sizes.

pytest bench/bench_steps.py --benchmark-only
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from cae_raw.measure.counts import training_amount
from cae_raw.measure.ours import Ours
from cae_raw.measure.problem import PROBLEMS
from cae_raw.models import MODELS

BATCHES = {"single-layer": (1, 32, 1024), "deep": (1, 128), "deep-same": (128,)}
TINY_SIZE = 12


def parameters(tiny: bool) -> dict[str, Any]:
    cases = [(name, n) for name in MODELS for n in ((3,) if tiny else BATCHES[name])]
    return {"case": (cases, [f"{name}-{n}" for name, n in cases])}


@pytest.fixture
def ours(case: tuple[str, int], tiny: bool) -> Any:
    name, batch = case
    problem = PROBLEMS[name].sized(TINY_SIZE if tiny else None)
    candidate = Ours(problem, problem.draw_images(batch)[: max(batch, 256)], threads=None)
    yield candidate
    candidate.close()


def test_training(benchmark: Callable[..., Any], ours: Ours, case: tuple[str, int]) -> None:
    batch = case[1]
    benchmark.group = f"training, {case[0]}"
    shape = tuple(ours.images.shape[1:])
    optimizer = PROBLEMS[case[0]].optimizer
    benchmark.extra_info["flops"] = training_amount(ours.model, shape, batch, optimizer).flops
    rng = np.random.default_rng(0)
    total = benchmark(lambda: ours.step(rng.permutation(len(ours.images))[:batch]))
    assert ours.read(total, batch) > 0


def test_forward(benchmark: Callable[..., Any], ours: Ours, case: tuple[str, int]) -> None:
    benchmark.group = f"forward, {case[0]}"
    assert benchmark(lambda: ours.forward(np.arange(case[1]))) > 0
