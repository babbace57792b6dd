"""Training steps and forward passes, cae-raw beside its rivals: compared, then timed in turns.

All candidates do the same work from the same uint8 images and weights. A training step gathers a
shuffled batch, scales it to the model's range, and does the forward pass, the loss, all gradients
and one step of the optimizer; `forward` stops at the loss, of consecutive images.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from cae_raw.measure.clock import summary, take_turns
from cae_raw.measure.ours import Candidate, Ours
from cae_raw.measure.problem import Problem

WHATS = ("training", "forward")
COMPARED_STEPS = 3
WARM_UP = 2.0  # seconds
TOLERANCE = 1e-4  # relative, of loss and gradients, in float32
TOLERANCE_TF32 = 5e-3  # where a rival may use TF32, which keeps ten bits of a factor's fraction
PAUSE = 0.1  # seconds before a turn
# A candidate so slow that its turns would take more seconds in all gets fewer, but not too few.
PATIENCE, FEWEST = 15.0, 3


def compare(
    candidates: Sequence[Candidate], batch: int, tolerance: float = TOLERANCE
) -> tuple[list[Candidate], dict[str, dict[str, float]], list[str]]:
    """Keep the first candidate, and those of the others that agree with it on one batch.

    Loss and gradients are compared, and the losses of the first training steps, which also show
    that the optimizers agree. All candidates must still have the weights they began with.

    Returns:
        (kept, differences by name, a line for each that was left out).
    """
    indices = np.arange(batch)
    loss, gradients = candidates[0].loss_and_gradients(indices)
    losses = _first_losses(candidates[0], indices)
    kept, differences, notes = [candidates[0]], {}, []
    for other in candidates[1:]:
        try:
            their_loss, theirs = other.loss_and_gradients(indices)
            found = {
                "loss": abs(their_loss - loss) / abs(loss),
                "gradients": float(np.abs(theirs - gradients).max() / np.abs(gradients).max()),
                "losses_of_steps": float(np.abs(_first_losses(other, indices) / losses - 1).max()),
            }
        except Exception as error:  # whatever a rival cannot do on this machine
            notes.append(f"{other.name} does not run here: {_first_line(error)}")
            other.close()
            continue
        differences[other.name] = found
        if max(found.values()) <= tolerance:  # False for NaN
            kept.append(other)
        else:
            notes.append(f"{other.name} is not timed, it computes something else: {found}")
            other.close()
    return kept, differences, notes


def _first_losses(candidate: Candidate, indices: np.ndarray) -> np.ndarray:
    n = len(indices)
    return np.array([candidate.read(candidate.step(indices), n) for _ in range(COMPARED_STEPS)])


def _first_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:200]}" if text else type(error).__name__


def race(
    problem: Problem,
    candidates: Sequence[Candidate],
    images: int,
    what: str,
    batch: int,
    rounds: int,
    *,
    pause: float = PAUSE,
    warm_up: float = WARM_UP,
) -> dict[str, dict[str, Any]]:
    """Per candidate, of one training step or forward pass: `ms`, `ms_quartiles`, `images_per_s`.

    Batches are drawn from so many `images`. Candidates take turns of about
    `problem.images_per_turn` images, on batches that differ in every round.
    """
    steps = max(1, problem.images_per_turn // batch)
    rng = np.random.default_rng(0)
    batches: list[np.ndarray] = []

    def turn(work: Callable[[np.ndarray], Any], wait: Callable[[], None]) -> None:
        for indices in batches:
            work(indices)
        wait()

    works: dict[str, Callable[[], None]] = {}
    turns: dict[str, int] = {}
    for c in candidates:
        work = c.step if what == "training" else c.forward
        seconds = steps * warm(partial(work, np.arange(batch)), c.wait, warm_up)
        works[c.name] = partial(turn, work, c.wait)
        turns[c.name] = max(min(FEWEST, rounds), min(rounds, int(PATIENCE / seconds)))
    times: dict[str, list[float]] = {c.name: [] for c in candidates}
    for _ in range(rounds):
        batches[:] = [_draw(rng, what, images, batch) for _ in range(steps)]
        racing = {name: work for name, work in works.items() if len(times[name]) < turns[name]}
        for name, found in take_turns(racing, 1, pause=pause).items():
            times[name].append(found[0] / steps)
    return {
        name: {**summary(found), "images_per_s": 1e3 * batch / summary(found)["ms"]}
        for name, found in times.items()
    }


def warm(step: Callable[[], Any], wait: Callable[[], None], seconds: float = WARM_UP) -> float:
    """Steps for so long, after which whoever starts processes or compiles has done so.

    Returns:
        Seconds of the fastest of them.
    """
    end, fastest = time.perf_counter() + seconds, float("inf")
    while fastest == float("inf") or time.perf_counter() < end:
        started = time.perf_counter()
        step()
        wait()
        fastest = min(fastest, time.perf_counter() - started)
    return fastest


def _draw(rng: np.random.Generator, what: str, images: int, batch: int) -> np.ndarray:
    if what == "training":
        return rng.permutation(images)[:batch]
    return int(rng.integers(0, images - batch + 1)) + np.arange(batch)


def verdict(rows: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The fastest rival and how many times as long it takes; both None without rivals."""
    rivals = {name: row["ms"] for name, row in rows.items() if name != Ours.name}
    if not rivals:
        return {"best_rival": None, "ratio": None}
    best = min(rivals, key=rivals.__getitem__)
    return {"best_rival": best, "ratio": rivals[best] / rows[Ours.name]["ms"]}
