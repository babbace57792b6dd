"""Every kernel against its reference on every case, emulated. On a GPU: test_kernels_on_gpu.py."""

from __future__ import annotations

import functools

import emulator
import kernel_checks
import numpy as np
import pytest
from cases import CASES, Case, distinct, normal, weights
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from cae_raw.ops import OPS, reduce
from cae_raw.ops import conv2d_plan as plan

needs_emulator = pytest.mark.skipif(
    emulator.available() is not None, reason=str(emulator.available())
)
ALL = [case for cases in CASES.values() for case in cases]


@functools.cache
def _emulated() -> list[kernel_checks.PoisonedBackend]:
    return [kernel_checks.emulated(order_seed=seed) for seed in (0, 1)]


def test_every_operation_has_cases() -> None:
    assert set(CASES) == set(OPS)


@needs_emulator
@pytest.mark.parametrize("case", ALL, ids=str)
def test_emulated(case: Case) -> None:
    kernel_checks.check(case, _emulated())


@needs_emulator
@pytest.mark.parametrize("blocks", [3, 6, 12, 15])
def test_pieces_of_a_sum_take_several_tiles(blocks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Six tiles in one, two, four and five pieces: even and uneven shares."""
    case = next(c for c in CASES["conv2d_backward_weight"] if c.name == "encoder")
    monkeypatch.setattr(plan, "BLOCKS_OF_A_SUM", blocks)
    kernel_checks.check(case, _emulated())


@needs_emulator
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (7, 33), (37, 45), (300, 64), (0, 5)])
def test_partial_sums_are_added(rows: int, columns: int) -> None:
    backend = _emulated()[0]
    partial = normal(np.random.default_rng(0), rows, columns)
    for _ in kernel_checks.grids(backend):
        out = backend.empty((columns,))
        reduce.add_rows(backend, backend.asarray(partial), rows, out)
        expected = partial.sum(axis=0, dtype=np.float64)
        np.testing.assert_allclose(backend.to_numpy(out), expected, rtol=0, atol=1e-5)
        wide = partial.ravel().astype(np.float64)
        total = reduce.add_all(backend, backend.asarray(wide))
        assert backend.to_numpy(total)[0] == pytest.approx(wide.sum(), rel=0, abs=1e-11)


@needs_emulator
@pytest.mark.parametrize("op", ["sgd_step", "adam_step"])
def test_optimizer_steps_over_views_at_any_address(op: str) -> None:
    """A view need not begin at a multiple of 16 bytes; and the step count goes on."""
    backend = _emulated()[0]
    (case, *_) = [c for c in CASES[op] if c.name.startswith("257-parameters-penalised")]
    args, kwargs = case.make(np.random.default_rng(0))
    *vectors, control = args
    reference = [v[1:] for v in vectors]
    device, l2 = [backend.asarray(v)[1:] for v in vectors], backend.asarray(kwargs["l2"])[1:]
    device_control = backend.asarray(control)
    for _ in range(3):
        OPS[op](*reference, control, **{**kwargs, "l2": kwargs["l2"][1:]})
        OPS[op](*device, device_control, **{**kwargs, "l2": l2})
    np.testing.assert_array_equal(backend.to_numpy(device_control), control)
    for found, expected in zip(device, reference, strict=True):
        np.testing.assert_allclose(backend.to_numpy(found), expected, rtol=1e-5, atol=1e-7)


@needs_emulator
@given(
    size=st.tuples(st.integers(1, 40), st.integers(1, 80)),
    padding=st.tuples(st.integers(0, 4), st.integers(0, 4)),
    n=st.integers(0, 2),
    layer=st.sampled_from([(3, 32), (12, 12), (12, 3)]),
    seed=st.integers(0, 2**16),
)
@settings(max_examples=25, deadline=None, derandomize=True)
def test_convolutions_of_any_size(
    size: tuple[int, int], padding: tuple[int, int], n: int, layer: tuple[int, int], seed: int
) -> None:
    """Sizes that nobody chose, for layers that are compiled anyway."""
    assume(all(s + 2 * p >= 3 for s, p in zip(size, padding, strict=True)))
    c, o = layer
    out = (size[0] + 2 * padding[0] - 2, size[1] + 2 * padding[1] - 2)
    x, w, dy = (n, c, *size), (o, c, 3, 3), (n, o, *out)
    window = {"padding": padding}
    cases = [
        Case(
            "conv2d_forward",
            "any",
            lambda rng: ((normal(rng, *x), weights(rng, *w), normal(rng, o)), window),
            9 * c,
        ),
        Case(
            "conv2d_backward_input",
            "any",
            lambda rng: ((normal(rng, *dy), normal(rng, *w)), {**window, "input_size": size}),
            9 * o,
        ),
        Case(
            "conv2d_backward_weight",
            "any",
            lambda rng: ((normal(rng, *dy), normal(rng, *x)), {**window, "kernel_size": (3, 3)}),
            max(n * out[0] * out[1], 1),
        ),
    ]
    backend = _emulated()[0]
    for case in cases:
        got = kernel_checks.run(case, backend, seed)
        kernel_checks.compare(case, got, kernel_checks.reference(case, seed))


@needs_emulator
@given(
    n=st.integers(0, 70), i=st.integers(1, 300), o=st.integers(1, 140), seed=st.integers(0, 2**16)
)
@settings(max_examples=25, deadline=None, derandomize=True)
def test_products_of_any_size(n: int, i: int, o: int, seed: int) -> None:
    cases = [
        Case(
            "linear_forward",
            "any",
            lambda rng: ((normal(rng, n, i), weights(rng, o, i), normal(rng, o)), {}),
            i,
        ),
        Case(
            "linear_backward_input",
            "any",
            lambda rng: ((normal(rng, n, o), normal(rng, o, i)), {}),
            o,
        ),
        Case(
            "linear_backward_weight",
            "any",
            lambda rng: ((normal(rng, n, o), normal(rng, n, i)), {}),
            max(n, 1),
        ),
    ]
    backend = _emulated()[0]
    for case in cases:
        got = kernel_checks.run(case, backend, seed)
        kernel_checks.compare(case, got, kernel_checks.reference(case, seed))


@needs_emulator
@given(
    size=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    kernel=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    stride=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    halves=st.tuples(st.booleans(), st.booleans()),
    seed=st.integers(0, 2**16),
)
@settings(max_examples=40, deadline=None, derandomize=True)
def test_pools_of_any_size(
    size: tuple[int, int],
    kernel: tuple[int, int],
    stride: tuple[int, int],
    halves: tuple[bool, bool],
    seed: int,
) -> None:
    padding = tuple(k // 2 * half for k, half in zip(kernel, halves, strict=True))
    assume(all(s + 2 * p >= k for s, p, k in zip(size, padding, kernel, strict=True)))
    out = [
        (s + 2 * p - k) // t + 1 for s, p, k, t in zip(size, padding, kernel, stride, strict=True)
    ]
    window = {"kernel_size": kernel, "stride": stride, "padding": padding}

    def mask(rng: np.random.Generator) -> np.ndarray:
        return rng.integers(0, kernel[0] * kernel[1], (2, 1, *out)).astype(np.uint8)

    cases = [
        Case("maxpool_forward", "any", lambda rng: ((distinct(rng, 2, 1, *size),), window)),
        Case(
            "mask_scatter",
            "any",
            lambda rng: ((normal(rng, 2, 1, *out), mask(rng)), {**window, "size": size}),
            kernel[0] * kernel[1],
        ),
        Case("mask_gather", "any", lambda rng: ((normal(rng, 2, 1, *size), mask(rng)), window)),
    ]
    backend = _emulated()[0]
    for case in cases:
        got = kernel_checks.run(case, backend, seed)
        kernel_checks.compare(case, got, kernel_checks.reference(case, seed))
