"""Training steps and forward passes, cae-raw beside its rivals: compared, then timed in turns.

All candidates do the same work from the same uint8 images and weights. A training step gathers a
shuffled batch, scales it to the model's range, and does the forward pass, the loss, all gradients
and one step of the optimizer; `forward` stops at the loss, of consecutive images.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from cae_raw.measure.clock import summary, take_turns
from cae_raw.measure.ours import Ours
from cae_raw.measure.problem import Problem
from cae_raw.measure.racer import Racer

WHATS = ("training", "forward")
WARM_UP = 2.0  # seconds
TOLERANCE = 1e-4  # relative, of loss and gradients, in float32
TOLERANCE_TF32 = 5e-3  # where a rival may use TF32, which keeps ten bits of a factor's fraction
PAUSE = 0.1  # seconds before a turn
# A candidate so slow that its turns would take more seconds in all gets fewer, but not too few.
PATIENCE, FEWEST = 15.0, 3


def compare(
    racers: Sequence[Racer], batch: int, tolerance: float = TOLERANCE
) -> tuple[list[Racer], dict[str, dict[str, float]], list[str]]:
    """Keep the first, and those of the others that agree with it on one batch.

    Loss and gradients are compared, and the losses of the first training steps, which also show
    that the optimizers agree. All must still have the weights they began with. Those that are not
    kept are closed.

    Returns:
        (kept, differences by name, a line for each that was left out).
    """
    indices = np.arange(batch)
    loss, gradients, losses = racers[0].results(indices)
    kept, differences, notes = [racers[0]], {}, []
    for other in racers[1:]:
        try:
            their_loss, theirs, their_losses = other.results(indices)
        except RuntimeError as error:
            notes.append(f"{other.name} does not run here: {error}")
            other.close()
            continue
        found = {
            "loss": abs(their_loss - loss) / abs(loss),
            "gradients": float(np.abs(theirs - gradients).max() / np.abs(gradients).max()),
            "losses_of_steps": float(np.abs(their_losses / losses - 1).max()),
        }
        differences[other.name] = found
        if max(found.values()) <= tolerance:  # False for NaN
            kept.append(other)
        else:
            notes.append(f"{other.name} is not timed, it computes something else: {found}")
            other.close()
    return kept, differences, notes


def race(
    problem: Problem,
    racers: Sequence[Racer],
    images: int,
    what: str,
    batch: int,
    rounds: int,
    *,
    pause: float = PAUSE,
    warm_up: float = WARM_UP,
) -> dict[str, dict[str, Any]]:
    """Per racer, of one training step or forward pass: `ms`, `ms_quartiles`, `images_per_s`.

    Batches are drawn from so many `images`. They take turns of about
    `problem.images_per_turn` images and a batch before that, which differ in every round.
    """
    steps = max(1, problem.images_per_turn // batch)
    rng = np.random.default_rng(0)
    batches: list[np.ndarray] = []
    turns = {}
    for racer in racers:
        seconds = (1 + steps) * racer.warm(what, batch, warm_up)
        turns[racer.name] = max(min(FEWEST, rounds), min(rounds, int(PATIENCE / seconds)))
    times: dict[str, list[float]] = {racer.name: [] for racer in racers}
    for _ in range(rounds):
        batches[:] = [_draw(rng, what, images, batch) for _ in range(1 + steps)]
        racing = {
            racer.name: partial(racer.turn, what, batches)
            for racer in racers
            if len(times[racer.name]) < turns[racer.name]
        }
        for name, found in take_turns(racing, 1, lambda turn: turn(), pause=pause).items():
            times[name].append(found[0] / steps)
    return {
        name: {**summary(found), "images_per_s": 1e3 * batch / summary(found)["ms"]}
        for name, found in times.items()
    }


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
