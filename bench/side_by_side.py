"""The training step and forward pass of a model beside PyTorch on the CPU, in one run.

    python bench/side_by_side.py --batch 1024 --out bench/results/cpu.json
    python bench/side_by_side.py --model deep --batch 128 --out bench/results/cpu_deep.json

All candidates do the same work from the same uint8 images and weights: gather a shuffled batch,
scale it to the model's range, forward, its loss, all gradients, one step of its optimizer (or the
forward pass alone). Losses and gradients are compared before anything is timed. Candidates take
turns, step by step, so that a change in the machine's speed hits all of them alike; warm-up is
outside; medians are reported.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from bench.pytorch_twin import pytorch_twin
from cae_raw.data.scaling import scale_and_shift
from cae_raw.layers.loss import LOSSES
from cae_raw.machine import blas, cpu_name
from cae_raw.models import Autoencoder, build
from cae_raw.training.engine import Engine, available_threads
from cae_raw.training.optimizers import OPTIMIZERS

ROOT = Path(__file__).resolve().parent.parent
WARM_UP = 2.0  # seconds


@dataclass(frozen=True)
class Problem:
    """What is measured: a model, how it is trained, on how many images of which size."""

    model: str
    optimizer: str  # a name in OPTIMIZERS
    lr: float
    size: int
    batch: int
    images: int  # in the data set
    images_per_turn: int

    def build(self, channels: int, size: int) -> Autoencoder:
        sized = {} if self.model == "single-layer" else {"size": size}
        return build(self.model, np.random.default_rng(0), channels=channels, **sized)


PROBLEMS = {
    "single-layer": Problem("single-layer", "adam", 1e-3, 32, 1024, 8192, 1024),
    "deep": Problem("deep", "sgd", 1e-2, 64, 128, 2048, 256),
    "deep-same": Problem("deep-same", "sgd", 1e-2, 64, 128, 2048, 256),
}


class Ours:
    """cae-raw, on all processors."""

    name = "cae-raw"

    def __init__(self, problem: Problem, images: np.ndarray, threads: int) -> None:
        self.images = images
        self.model = problem.build(*images.shape[1:3])
        self.optimizer = OPTIMIZERS[problem.optimizer](self.model, lr=problem.lr)
        self.engine = Engine(self.model, images.shape[1:], threads=threads).__enter__()

    def loss_and_gradients(self, indices: np.ndarray) -> tuple[float, np.ndarray]:
        total = self.engine.step(self.images, indices)
        factor = LOSSES[self.model.loss] / (len(indices) * self.images[0].size)
        return float(total[0]) * factor, self.engine.gradients.copy()

    def step(self, indices: np.ndarray) -> None:
        self.engine.step(self.images, indices)
        self.optimizer.step(self.engine.gradients, self.engine.in_order)

    def forward(self, indices: np.ndarray) -> None:
        self.engine.squared_error(self.images[indices])


class Torch:
    """PyTorch in one of its modes, with cae-raw's initial weights."""

    def __init__(self, problem: Problem, images: np.ndarray, threads: int, mode: str) -> None:
        import torch

        torch.set_num_threads(threads)
        self.torch, self.name = torch, f"torch {mode}"
        self.images = torch.from_numpy(images)
        ours = problem.build(*images.shape[1:3])
        self.scale, self.shift = scale_and_shift(ours.value_range)
        self.factor = LOSSES[ours.loss]
        self.model = pytorch_twin(ours)
        self.format = torch.contiguous_format
        if "channels_last" in mode:
            self.format = torch.channels_last
            self.model = self.model.to(memory_format=torch.channels_last)
        optimizer = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}[problem.optimizer]
        self.optimizer = optimizer(self.model.parameters(), lr=problem.lr)
        self.run = torch.compile(self.model) if "compile" in mode else self.model

    def _batch(self, indices: np.ndarray) -> Any:
        x = self.images[self.torch.from_numpy(indices)].float().mul_(self.scale).add_(self.shift)
        return x.contiguous(memory_format=self.format)

    def _loss(self, indices: np.ndarray) -> Any:
        x = self._batch(indices)
        return (self.run(x) - x).square().mean() * self.factor

    def loss_and_gradients(self, indices: np.ndarray) -> tuple[float, np.ndarray]:
        self.optimizer.zero_grad()
        loss = self._loss(indices)
        loss.backward()
        gradients = [p.grad.contiguous().numpy().ravel() for p in self.model.parameters()]
        return float(loss.detach()), np.concatenate(gradients)

    def step(self, indices: np.ndarray) -> None:
        self.optimizer.zero_grad()
        self._loss(indices).backward()
        self.optimizer.step()

    def forward(self, indices: np.ndarray) -> None:
        with self.torch.no_grad():
            self._loss(indices)


TORCH_MODES = ("eager", "channels_last", "compile", "compile channels_last")


def candidates(problem: Problem, images: np.ndarray, threads: int, skip: list[str]) -> list[Any]:
    """Ours first, then each mode of PyTorch that is installed and not skipped."""
    found: list[Any] = [Ours(problem, images, threads)]
    try:
        import torch  # noqa: F401
    except ImportError:
        print("PyTorch is not installed: measuring cae-raw alone", file=sys.stderr)
        return found
    modes = [mode for mode in TORCH_MODES if mode not in skip]
    return found + [Torch(problem, images, threads, mode) for mode in modes]


def check_equal(all_of_them: list[Any], batch: int) -> dict[str, dict[str, float]]:
    """Relative differences of loss and gradients from ours; refuses to go on above 1e-4."""
    indices = np.arange(batch)
    loss, gradients = all_of_them[0].loss_and_gradients(indices)
    differences = {}
    for other in all_of_them[1:]:
        their_loss, theirs = other.loss_and_gradients(indices)
        difference = {
            "loss": abs(their_loss - loss) / abs(loss),
            "gradients": float(np.abs(theirs - gradients).max() / np.abs(gradients).max()),
        }
        if max(difference.values()) > 1e-4:
            raise SystemExit(f"{other.name} computes something else: {difference}")
        differences[other.name] = difference
    return differences


def warm_up(step: Callable[[], Any]) -> None:
    """Two seconds of work, after which whoever starts processes or compiles has done so."""
    end = time.perf_counter() + WARM_UP
    step()
    while time.perf_counter() < end:
        step()


def race(
    problem: Problem, all_of_them: list[Any], what: str, batch: int, rounds: int
) -> dict[str, Any]:
    """Median seconds per candidate; they take turns, on fresh indices each round.

    A turn is about `images_per_turn` images. The pause before it lets the threads of the one
    before go to sleep: OpenMP's spin for a while after their work is done.
    """
    rng = np.random.default_rng(0)
    seconds: dict[str, list[float]] = {c.name: [] for c in all_of_them}
    steps = max(1, problem.images_per_turn // batch)
    for candidate in all_of_them:
        warm_up(lambda c=candidate: getattr(c, what)(np.arange(batch)))
    for turn in range(-1, rounds):  # the first does not count
        batches = [rng.permutation(problem.images)[:batch] for _ in range(steps)]
        for candidate in all_of_them:
            time.sleep(0.1)
            started = time.perf_counter()
            for indices in batches:
                getattr(candidate, what)(indices)
            if turn >= 0:
                seconds[candidate.name].append((time.perf_counter() - started) / steps)
    medians = {name: float(np.median(times)) for name, times in seconds.items()}
    rows = {
        name: {"ms": 1e3 * median, "images_per_s": batch / median}
        for name, median in medians.items()
    }
    rivals = {name: median for name, median in medians.items() if name != Ours.name}
    if rivals:
        best = min(rivals, key=rivals.__getitem__)
        print(f"{what}, batch {batch}: {rivals[best] / medians[Ours.name]:.2f} times {best}")
        return {"rows": rows, "best_rival": best, "ratio": rivals[best] / medians[Ours.name]}
    return {"rows": rows}


def peak_memory_mib(
    problem: Problem, images_shape: tuple[int, ...], batch: int, threads: int
) -> float:
    """Peak resident memory of a process that trains for a while, less its data set and imports.

    What its worker processes have for themselves is added.
    """
    code = f"""
import re, numpy as np
from pathlib import Path
from bench.side_by_side import PROBLEMS, Ours, warm_up
def kib(pid, field):  # of this program; getrusage would report that of the one that started it
    return int(re.search(field + r":\\s+(\\d+)", Path(f"/proc/{{pid}}/status").read_text())[1])
images = np.zeros({images_shape}, np.uint8); images += 1
before = kib("self", "VmHWM")
ours = Ours(PROBLEMS[{problem.model!r}], images, {threads})
warm_up(lambda: ours.step(np.arange({batch}) % len(images)))
children = [file.read_text().split() for file in Path("/proc/self/task").glob("*/children")]
own = sum(kib(pid, "RssAnon") for pids in children for pid in pids)
print((kib("self", "VmHWM") - before + own) / 1024)
"""
    command = [sys.executable, "-c", code]
    return float(subprocess.run(command, cwd=ROOT, check=True, capture_output=True).stdout)


def commit() -> str:
    """The checkout's commit, with a mark where it has changes."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    return done.stdout.strip() or "unknown"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="single-layer", choices=PROBLEMS)
    parser.add_argument("--batch", type=int, nargs="+", help="default: the model's usual one")
    parser.add_argument("--channels", type=int, default=3, choices=(1, 3))
    parser.add_argument("--size", type=int, help="default: the model's usual one")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=available_threads())
    parser.add_argument("--skip", nargs="*", default=[], help="modes of PyTorch to leave out")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    problem = PROBLEMS[args.model]
    size = args.size or problem.size
    shape = (problem.images, args.channels, size, size)
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    everyone = candidates(problem, images, args.threads, args.skip)
    result: dict[str, Any] = {
        "when": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": commit(),
        "model": problem.model,
        "optimizer": problem.optimizer,
        "cpu": cpu_name(),
        "threads": args.threads,
        "blas": blas(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "torch": sys.modules["torch"].__version__ if "torch" in sys.modules else None,
        "load_before": os.getloadavg(),
        "image_shape": shape[1:],
        "differences": check_equal(everyone, 64),
        "races": [],
    }
    for batch in args.batch or [problem.batch]:
        for what in ("step", "forward"):
            outcome = race(problem, everyone, what, batch, args.rounds)
            result["races"].append({"what": what, "batch": batch, **outcome})
        result["races"][-2]["peak_mib"] = peak_memory_mib(problem, shape, batch, args.threads)
    text = json.dumps(result, indent=2)
    print(text)
    if args.out:
        args.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
