"""Memory that is used again: never while anything still refers to it."""

from __future__ import annotations

import gc
import threading
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cae_raw.models import single_layer
from cae_raw.ops import scratch

LARGE = (4, scratch.SMALLEST)  # float32, well above what is pooled


def address(array: Any) -> int:
    return int(array.__array_interface__["data"][0])


def test_off_by_default() -> None:
    a = scratch.empty(LARGE)
    assert a.flags.owndata and a.flags.c_contiguous and a.dtype == np.float32


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.uint8])
def test_shape_type_and_layout(dtype: type) -> None:
    with scratch.reusing():
        for shape in [(), (0,), (3, 0, 2), (7,), (300, 301), (2, 3, 100, 200)]:
            a = scratch.empty(shape, dtype)
            assert a.shape == shape and a.dtype == dtype
            assert a.flags.c_contiguous and a.flags.writeable and a.flags.aligned
            a.fill(1)
            assert (scratch.zeros(shape, dtype) == 0).all()
            assert (a == 1).all()


def test_dropped_memory_is_used_again() -> None:
    with scratch.reusing():
        a = scratch.empty(LARGE)
        place = address(a)
        del a
        elsewhere = np.empty(LARGE, np.float32)  # the allocator does not have it back
        assert address(elsewhere) != place
        b = scratch.empty((LARGE[0] // 2, LARGE[1]), np.float64)  # other type, as many bytes
        assert address(b) == place


def test_zeros_are_zeros_in_dirty_memory() -> None:
    with scratch.reusing():
        a = scratch.empty(LARGE)
        place = address(a)
        a.fill(7)
        del a
        b = scratch.zeros(LARGE)
        assert address(b) == place
        assert not b.any()


@pytest.mark.parametrize(
    "view",
    [
        lambda a: a[1:],
        lambda a: a.T,
        lambda a: a.reshape(-1)[5:6],
        lambda a: a.view(np.uint8),
        lambda a: a[None, ::2, ::-1],
        lambda a: np.broadcast_to(a, (3, *a.shape)),
        lambda a: memoryview(a),
        lambda a: np.lib.stride_tricks.sliding_window_view(a, (2, 2)),
    ],
)
def test_a_view_keeps_the_memory(view: Any) -> None:
    with scratch.reusing():
        a = scratch.empty(LARGE)
        place, held = address(a), view(a)
        del a
        others = [scratch.empty(LARGE) for _ in range(3)]
        assert place not in {address(other) for other in others}
        del held, others
        gc.collect()
        assert place in {address(x) for x in [scratch.empty(LARGE) for _ in range(4)]}


def test_small_arrays_are_left_to_the_allocator() -> None:
    with scratch.reusing():
        assert scratch.empty((scratch.SMALLEST - 1,), np.uint8).flags.owndata
        assert not scratch.empty((scratch.SMALLEST,), np.uint8).flags.owndata


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.uint8])
@pytest.mark.parametrize("pooled", [False, True])
def test_rows_lie_an_odd_number_of_cache_lines_apart(dtype: type, pooled: bool) -> None:
    assert scratch.rows((0, 9), dtype).shape == (0, 9)
    assert scratch.rows((3, 0), dtype).shape == (3, 0)
    for shape in [(3, 5, 4096), (2, 7), (100, 3968), (4, 16 * 249)]:
        with scratch.reusing() if pooled else nullcontext():
            a = scratch.rows(shape, dtype)
        assert a.shape == shape and a.dtype == dtype and a.strides[-1] == a.itemsize
        lines, rest = divmod(a.strides[-2], scratch.LINE)
        assert rest == 0 and lines % 2 == 1 and a.strides[-2] >= shape[-1] * a.itemsize
        a.fill(1)


def test_arrays_begin_with_a_cache_line() -> None:
    for shape in [(1,), (3, 5), (1000, 100)]:
        a = scratch.aligned(shape, np.float64)
        assert a.shape == shape and a.flags.c_contiguous and a.flags.writeable
        assert address(a) % scratch.LINE == 0
    with scratch.reusing():
        assert address(scratch.empty(LARGE)) % scratch.LINE == 0


def test_the_buffer_of_numpy_is_small_meanwhile() -> None:
    before = np.getbufsize()
    assert before != scratch.BUFFER
    with scratch.reusing():
        with scratch.reusing():
            assert np.getbufsize() == scratch.BUFFER
        assert np.getbufsize() == scratch.BUFFER
    assert np.getbufsize() == before
    found: list[int] = []

    def work() -> None:
        scratch.reuse_in_this_thread()
        with np.errstate(over="ignore"):
            found.append(np.getbufsize())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [scratch.BUFFER] and np.getbufsize() == before


def test_each_thread_has_its_own_memory() -> None:
    places: list[int] = []

    def work() -> None:
        scratch.reuse_in_this_thread()
        a = scratch.empty(LARGE)
        places.append(address(a))
        handed_over.append(a)
        del a
        got.set()
        back.wait(10)
        places.append(address(scratch.empty(LARGE)))

    handed_over: list[Any] = []
    got, back = threading.Event(), threading.Event()
    thread = threading.Thread(target=work)
    with scratch.reusing():
        thread.start()
        assert got.wait(10)
        a = scratch.empty(LARGE)
        assert address(a) != places[0]  # the other thread still uses that
        place = address(a)
        del a
        handed_over.clear()  # dropped here, it goes back to the thread that it came from
        b = scratch.empty(LARGE)
        assert address(b) == place != places[0]
        back.set()
        thread.join()
    assert places[0] == places[1]
    assert scratch.empty(LARGE).flags.owndata


def test_nested_contexts_share_and_the_outer_one_ends_it() -> None:
    with scratch.reusing():
        a = scratch.empty(LARGE)
        place = address(a)
        with scratch.reusing():
            del a
            b = scratch.empty(LARGE)
            assert address(b) == place
        del b
        c = scratch.empty(LARGE)
        assert address(c) == place
    c.fill(3)  # outlives the context unharmed
    assert scratch.empty(LARGE).flags.owndata
    assert (c == 3).all()


def test_an_error_switches_it_off_again() -> None:
    with pytest.raises(ZeroDivisionError), scratch.reusing():
        raise ZeroDivisionError
    assert scratch.empty(LARGE).flags.owndata


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(["new", "zeros", "view", "drop"]), st.integers(0, 7)),
        max_size=40,
    )
)
def test_no_array_is_ever_written_to_by_another(actions: list[tuple[str, int]]) -> None:
    """Every live array keeps the number that it was filled with, whatever comes and goes."""
    live: list[tuple[Any, int]] = []
    with scratch.reusing():
        for number, (action, choice) in enumerate(actions):
            if action in ("new", "zeros"):
                make = scratch.empty if action == "new" else scratch.zeros
                a = make((scratch.SMALLEST // 4 * (1 + choice % 2),))
                assert action == "new" or not a.any()
                a.fill(number)
                live.append((a, number))
                del a
            elif live:
                a, filled = live.pop(choice % len(live))
                if action == "view":
                    live.append((a[choice:], filled))
                del a
            assert all((array == filled).all() for array, filled in live)


def test_a_training_step_settles_on_a_fixed_stock(rng: np.random.Generator) -> None:
    model = single_layer(3, 8, rng)
    x = rng.standard_normal((16, 3, 32, 32)).astype(np.float32)
    stocks = []
    with scratch.reusing():
        for _ in range(5):
            trace: dict[Any, Any] = {}
            y = model.forward(x, trace)
            model.backward(y, trace, {})
            del y, trace
            free = scratch._pool.free
            assert free is not None
            stocks.append({size: len(blocks) for size, blocks in free.items()})
    assert stocks[0] and all(stock == stocks[1] for stock in stocks[1:])
