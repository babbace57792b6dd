"""Measuring: counts, calls of a step, races, the report, its tables and its chart."""

from __future__ import annotations

import importlib.util
import io
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cases import CASES
from PIL import Image

from cae_raw.backends import Backend
from cae_raw.commands.bench import bench
from cae_raw.errors import InputError
from cae_raw.measure import clock
from cae_raw.measure import racer as racer_module
from cae_raw.measure.calls import IN_PLACE, calls_of_a_step
from cae_raw.measure.ceilings import Ceilings
from cae_raw.measure.clock import DeviceClock, summary, take_turns
from cae_raw.measure.counts import Amount, amount_of, forward_amount, training_amount
from cae_raw.measure.op_times import OpClock
from cae_raw.measure.ours import Candidate, Ours
from cae_raw.measure.problem import PROBLEMS, Problem
from cae_raw.measure.race import compare, race, verdict
from cae_raw.measure.racer import KEEP_MEMORY, Elsewhere, Here, Racer, Rival
from cae_raw.measure.rivals import Rivals
from cae_raw.measure.run import Effort, Run
from cae_raw.measure.table import tables
from cae_raw.models import MODELS
from cae_raw.models.summary import summarize
from cae_raw.ops import OPS

TINY = Effort(
    rounds=1,
    op_rounds=1,
    turn_ms=0.01,
    pause=0.0,
    warm_up=0.0,
    compiling=False,
    ceilings=(("side", 16), ("copied", 4096), ("runs", 1)),
    flush_bytes=4096,
)
SMALL = replace(PROBLEMS["single-layer"].sized(6), images=8, images_per_turn=4)
DEEP = replace(PROBLEMS["deep"].sized(12), images=8, images_per_turn=4)


def no_rivals(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine without PyTorch and JAX."""
    import sys

    for name in ("torch", "jax"):
        monkeypatch.setitem(sys.modules, name, None)


# --- counts ---------------------------------------------------------------------------------


def test_amounts_worked_out_by_hand() -> None:
    x, w, b = (np.zeros(shape, np.float32) for shape in ((2, 3, 7, 5), (4, 3, 3, 2), (4,)))
    found = amount_of(OPS["conv2d_forward"], x, w, b)
    outputs = 2 * 4 * 5 * 4
    assert found.flops == 2 * outputs * 3 * 3 * 2
    assert found.bytes == 4 * (x.size + w.size + b.size + outputs)
    data, indices = np.empty((9, 3, 4, 4), np.uint8), np.arange(5)
    moved = amount_of(OPS["gather"], data, indices, scale=1.0, shift=0.0).bytes
    assert 5 * 48 * 5 <= moved <= 5 * 48 * 5 + 8 * 5  # five images read and written, and indices


@pytest.mark.parametrize("name", OPS)
def test_every_operation_has_an_amount(name: str, rng: np.random.Generator) -> None:
    case = max(CASES[name], key=lambda case: sum(a.size for a in _arrays(case.make(rng)[0])))
    args, kwargs = case.make(rng)
    found = amount_of(OPS[name], *args, **kwargs)
    if name == "single_layer_forward":
        args = args[:6]  # the others are outputs on request, which the formula leaves out
    # Of what comes in, padding may be left unread, and so may images that are not chosen.
    assert found.bytes >= sum(a.nbytes for a in _arrays(args) if a.dtype != np.uint8) / 2
    moves = ("gather_flipped", "mask_gather", "pad2d_forward", "pad2d_backward")
    assert found.flops > 0 or name in moves


def _arrays(args: tuple[Any, ...]) -> list[np.ndarray]:
    return [a for a in args if isinstance(a, np.ndarray)]


@pytest.mark.parametrize("name", MODELS)
def test_amounts_of_a_step(name: str) -> None:
    problem = PROBLEMS[name].sized(12)
    model, shape, p = problem.build(), problem.image_shape, problem.build().parameters.size
    layers = summarize(model, shape)
    forward = forward_amount(model, shape, 5)
    assert forward == Amount(5 * layers.flops, 5 * 3 * 12 * 12 + 4 * p)
    for optimizer, flops, moved in (("adam", 13, 28), ("sgd", 4, 20)):
        step = training_amount(model, shape, 5, optimizer)
        assert step.flops == pytest.approx(5 * layers.training_flops + flops * p, rel=1e-4)
        assert step.bytes == pytest.approx(5 * 3 * 12 * 12 + moved * p, abs=64)


def test_shares_of_a_ceiling() -> None:
    found = Ceilings(100.0, 10.0, "").shares(Amount(50.0, 20.0), 2.0)
    assert (found["flop_per_s"], found["bytes_per_s"]) == (25.0, 10.0)
    assert (found["share_of_flop_ceiling"], found["share_of_bytes_ceiling"]) == (0.25, 1.0)


# --- calls ----------------------------------------------------------------------------------


def test_the_calls_of_a_training_step() -> None:
    """Each operation once with its shapes; the counts add up to what the layers cost."""
    images, batch = DEEP.draw_images(8), 7
    calls = calls_of_a_step(DEEP, images, batch)
    names = {call.op.name for call in calls}
    assert {"squared_error", "sgd_step", "conv2d_backward_weight"} <= names
    assert {"maxpool_forward", "mask_scatter", "mask_gather", "linear_forward"} <= names
    products = ("conv2d_forward", "conv2d_backward_input", "conv2d_backward_weight", "linear")
    affine = [c for c in calls if c.op.name.startswith(products) and "bias" not in c.op.name]
    counted = sum(call.per_step * call.amount.flops for call in affine)
    layers = summarize(DEEP.build(), DEEP.image_shape).layers
    expected = batch * sum(r.training_flops for r in layers if r.parameters)
    assert counted == pytest.approx(expected, rel=0.05)


def test_a_fused_step_is_told_from_the_layers() -> None:
    calls = calls_of_a_step(SMALL, SMALL.draw_images(4), 4)
    assert {c.in_step for c in calls if c.op.name.startswith("conv2d")} == {False}
    assert {c.in_step for c in calls if c.op.name == "adam_step"} == {True}


def test_recorded_arguments_are_from_before_the_call() -> None:
    (step,) = [
        c for c in calls_of_a_step(SMALL, SMALL.draw_images(4), 4) if c.op.name == "adam_step"
    ]
    assert np.array_equal(step.args[0], SMALL.build().parameters)
    before = step.args[0].copy()
    changed = step.run()[0]
    assert changed is step.args[IN_PLACE["adam_step"][0]]
    assert not np.array_equal(changed, before)


# --- races ----------------------------------------------------------------------------------


def test_candidates_take_turns() -> None:
    order: list[str] = []
    times = take_turns({n: lambda n=n: order.append(n) for n in "ab"}, 3)
    assert order == list("ababab")
    assert {name: len(found) for name, found in times.items()} == {"a": 3, "b": 3}
    assert summary([3.0, 1.0, 2.0])["ms"] == 2.0


class Wrong(Ours):
    """A rival whose gradients are a little off."""

    name = "wrong"

    def loss_and_gradients(self, indices: np.ndarray) -> tuple[float, np.ndarray]:
        loss, gradients = super().loss_and_gradients(indices)
        return loss, gradients + 1e-3 * np.abs(gradients).max()


class Broken(Ours):
    name = "broken"

    def step(self, indices: np.ndarray) -> Any:
        raise RuntimeError("no compiler\nand more")


class Same(Ours):
    name = "same"


def test_who_computes_something_else_is_not_timed() -> None:
    images = SMALL.draw_images(8)
    everyone: list[Racer] = [Here(kind(SMALL, images, threads=1)) for kind in (Ours, Wrong, Same)]
    kept, differences, notes = compare(everyone, 4)
    assert [racer.name for racer in kept] == ["cae-raw", "same"]
    assert differences["same"] == {"loss": 0.0, "gradients": 0.0, "losses_of_steps": 0.0}
    assert differences["wrong"]["gradients"] == pytest.approx(1e-3, rel=1e-3)
    assert notes[0].startswith("wrong is not timed, it computes something else")
    for what in ("training", "forward"):
        rows = race(SMALL, kept, len(images), what, 3, 2, pause=0.0, warm_up=0.0)
        assert {name: row["runs"] for name, row in rows.items()} == {"cae-raw": 2, "same": 2}
        assert rows["same"]["images_per_s"] == pytest.approx(3e3 / rows["same"]["ms"])
    for racer in kept:
        racer.close()


class Mirror(Rival):
    """cae-raw in a process of its own; or, as its mode, something that fails there."""

    def make(self) -> tuple[Candidate, dict[str, Any]]:
        images = self.problem.draw_images(self.images)
        kind = {"same": Same, "broken": Broken}[self.mode]
        print("noise that is no answer")
        kept = os.environ.get("MALLOC_TRIM_THRESHOLD_")
        return kind(self.problem, images, threads=1), {"kept": kept}

    @property
    def environment(self) -> Mapping[str, str]:
        return KEEP_MEMORY


def test_rivals_in_processes_of_their_own() -> None:
    images = SMALL.draw_images(8)
    ours = Here(Ours(SMALL, images, threads=1))
    rivals = [Elsewhere(Mirror("mirror", SMALL, 8, mode)) for mode in ("same", "broken")]
    assert rivals[0].facts == {"kept": KEEP_MEMORY["MALLOC_TRIM_THRESHOLD_"]}
    kept, differences, notes = compare([ours, *rivals], 4)
    assert differences == {"mirror same": {"loss": 0.0, "gradients": 0.0, "losses_of_steps": 0.0}}
    assert notes == ["mirror broken does not run here: RuntimeError: no compiler"]
    rows = race(SMALL, kept, len(images), "training", 3, 2, pause=0.0, warm_up=0.0)
    assert rows["mirror same"]["runs"] == 2
    for racer in kept:
        racer.close()
    assert rivals[0]._process.returncode is not None


def test_a_turn_begins_with_steps_that_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that goes on by a second with every step: the lead-in takes two of them here."""
    ours, done = Ours(SMALL, SMALL.draw_images(8), threads=1), list[int]()
    monkeypatch.setattr(ours, "step", lambda indices: done.append(int(indices[0])))
    monkeypatch.setattr(clock.time, "perf_counter", lambda: float(len(done)))
    monkeypatch.setattr(racer_module, "LEAD_IN", 1.5)
    batches = [np.array([k]) for k in range(4)]
    assert Here(ours).turn("training", batches) == 3e3
    assert done == [0, 0, 1, 2, 3]
    ours.close()


def test_a_rival_that_cannot_be_made_or_is_gone() -> None:
    with pytest.raises(RuntimeError, match="KeyError"):
        Elsewhere(Mirror("mirror", SMALL, 8, "absent"))
    rival = Elsewhere(Mirror("mirror", SMALL, 8, "same"))
    rival._process.kill()
    with pytest.raises(RuntimeError, match="mirror same ended with"):
        rival.turn("training", [np.arange(2)])
    rival.close()


def test_verdict() -> None:
    rows = {"cae-raw": {"ms": 2.0}, "a": {"ms": 5.0}, "b": {"ms": 3.0}}
    assert verdict(rows) == {"best_rival": "b", "ratio": 1.5}
    assert verdict({"cae-raw": {"ms": 2.0}}) == {"best_rival": None, "ratio": None}


# --- operations -----------------------------------------------------------------------------


def test_an_operation_that_differs_from_its_reference_is_not_timed(backend: Backend) -> None:
    calls = calls_of_a_step(SMALL, SMALL.draw_images(2), 2, backend)
    (call,) = [c for c in calls if c.op.name == "gather"]

    def off(*args: Any, **kwargs: Any) -> Any:
        return call.op.launcher(*args, **{**kwargs, "shift": kwargs["shift"] + 0.1})

    timer = OpClock(backend, rounds=1, clock=DeviceClock(backend, 4096))
    right = timer.time(call)
    assert set(right.rows) == {"cae-raw"} and not right.notes
    call.function = off
    wrong = timer.time(call)
    assert not wrong.rows
    assert "gather" in wrong.notes[0] and "is not timed" in wrong.notes[0]


# --- the report -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    told: list[tuple[str, float, float]] = []
    with pytest.MonkeyPatch.context() as patch:
        no_rivals(patch)
        found = Run(SMALL, [2, 4], threads=1, effort=TINY, tell=lambda *a: told.append(a)).measure()
    assert all(0 <= done <= total for _, done, total in told)
    assert [done for _, done, _ in told] == sorted(done for _, done, _ in told)
    return found


def test_the_report(report: dict[str, Any]) -> None:
    assert report["notes"] == [
        "PyTorch is not installed: nothing is measured beside it",
        "JAX is not installed: nothing is measured beside it",
    ]
    assert [(r["what"], r["batch"]) for r in report["steps"]] == [
        *(("training", 2), ("forward", 2)),
        *(("training", 4), ("forward", 4)),
    ]
    assert set(report["ceilings"]) == {"all_threads", "one_thread"}
    assert {row["op"] for row in report["ops"]} >= {"conv2d_forward", "adam_step"}
    for row in (*report["steps"], *report["ops"]):
        assert row["ms"] > 0 and row["images_per_s"] > 0
        assert row["flop_per_s"] == pytest.approx(1e3 * row["flops"] / row["ms"])
        assert row["share_of_bytes_ceiling"] > 0


def test_the_tables(report: dict[str, Any]) -> None:
    from rich.console import Console

    out = io.StringIO()
    console = Console(file=out, width=150)
    for part in tables(report):
        console.print(part, markup=False)
    text = out.getvalue()
    assert "single-layer, images of 3x6x6" in text
    assert "conv2d_backward_weight *" in text and "adam_step *" not in text


def test_the_chart(report: dict[str, Any], tmp_path: Path) -> None:
    from cae_raw.measure.chart import draw, save_figure

    figure = draw(report)
    words = [text.get_text() for axes in figure.axes for text in axes.get_yticklabels()]
    assert "training\nbatch 4" in words and any(w.startswith("conv2d_forward") for w in words)
    save_figure(figure, tmp_path / "chart.png")
    with Image.open(tmp_path / "chart.png") as image:
        assert image.format == "PNG" and image.width > 1000
    assert [path.name for path in tmp_path.iterdir()] == ["chart.png"]


def test_on_a_device(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    no_rivals(monkeypatch)
    found = Run(SMALL, [2], backend=backend, effort=TINY).measure()
    assert set(found["ceilings"]) == {"device"}
    assert {row["op"] for row in found["ops"]} >= {"gather", "adam_step"}
    assert not [note for note in found["notes"] if "not timed" in note]


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    no_rivals(monkeypatch)
    out, chart = io.StringIO(), tmp_path / "chart.png"
    found = bench(
        "deep",
        size=12,
        channels=1,
        batches=[3, 3],
        device="cpu",
        threads=1,
        quick=True,
        out=chart,
        say=out,
        effort=TINY,
    )
    assert found["image_shape"] == [1, 12, 12] and found["chart"] == str(chart)
    assert [row["batch"] for row in found["steps"]] == [3, 3]
    assert f"chart: {chart}" in out.getvalue()
    assert chart.is_file()


def test_images_too_small_for_the_model() -> None:
    with pytest.raises(InputError, match="too small"):
        DEEP.sized(8).build()


# --- rivals ---------------------------------------------------------------------------------


@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="PyTorch is not installed")
@pytest.mark.parametrize("problem", [SMALL, DEEP], ids=["single-layer", "deep"])
def test_pytorch_computes_the_same(problem: Problem) -> None:
    import torch

    from cae_raw.measure.torch_ops import TWINS

    images = problem.draw_images(8)
    rivals = Rivals(problem, 8, threads=1, compiling=False, skip=["jax"])
    everyone = [Here(Ours(problem, images, threads=1)), *rivals.racers()]
    kept, differences, left_out = compare(everyone, 4)
    assert set(differences) == {
        "torch eager", "torch channels_last", "torch channels_last, memory kept",
    }  # fmt: skip
    assert len(kept) == len(everyone) == 4 and not left_out
    assert rivals.facts == {"torch": torch.__version__}
    for racer in kept:
        racer.close()
    with OpClock(torch=torch, rounds=1, turn_ms=0.01) as timer:
        for call in calls_of_a_step(problem, images, 4):
            assert call.op.name in TWINS
            times = timer.time(call)
            assert set(times.rows) == {"cae-raw", "torch"}, times.notes


@pytest.mark.skipif(importlib.util.find_spec("jax") is None, reason="JAX is not installed")
@pytest.mark.parametrize("problem", [SMALL, DEEP, replace(DEEP, optimizer="adam")], ids=str)
def test_jax_computes_the_same(problem: Problem) -> None:
    images = problem.draw_images(8)
    theirs = Elsewhere(Rival("jax", problem, 8, "jit"))
    kept, _, left_out = compare([Here(Ours(problem, images, threads=1)), theirs], 4)
    assert len(kept) == 2 and not left_out
    for racer in kept:
        racer.close()


def test_every_model_has_a_problem() -> None:
    assert set(PROBLEMS) == set(MODELS)
