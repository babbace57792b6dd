"""What the host does in a training whose steps take no time at all.

    python bench/host_share.py --data-dir DATA --epochs 150 --out bench/results/host_share.json

`cae-raw train` on CIFAR-10, with an engine and an optimizer that do nothing: reading the images,
shuffling, checkpoints, metrics, event files and pictures are as always; the pictures' few images go
through the model on the CPU. A run on a GPU takes so long, and in addition as long as its launches
and the GPU do.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from provenance import ROOT, provenance

sys.path.insert(0, str(ROOT))

from cae_raw.app import main as cae_raw
from cae_raw.training.engine import Engine
from cae_raw.training.optimizers import Adam
from cae_raw.training.session import RunSession


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--dataset", default="cifar10")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--epochs", type=int, default=150)
    parser.add_argument("--batch-size", type=int, default=1024)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    words = ["train", "--dataset", args.dataset, "--batch-size", str(args.batch_size)]
    words += ["--epochs", str(args.epochs), "--device", "cpu"]
    words += ["--data-dir", str(args.data_dir)] if args.data_dir else []
    result: dict[str, Any] = {**provenance(), "dataset": args.dataset, "epochs": args.epochs}
    with tempfile.TemporaryDirectory() as folder, idle_steps(), training_time() as training:
        started = time.perf_counter()
        try:
            cae_raw([*words, "--runs-dir", folder])
        except SystemExit as ended:
            if ended.code:
                raise
        result["seconds"] = time.perf_counter() - started
    result["ms_per_epoch"] = 1e3 * training[0] / args.epochs
    text = json.dumps(result, indent=1)
    print(text)
    if args.out:
        args.out.write_text(text + "\n")


@contextmanager
def idle_steps() -> Iterator[None]:
    """Engine and optimizer do nothing; errors fall, so that each epoch is the best so far."""
    errors = (1 + 1 / n for n in itertools.count(1))

    def step(self: Engine, images: Any, indices: np.ndarray) -> Any:
        self.gradients = self.model.parameters
        return np.array([next(errors) * len(indices)])

    def squared_error(self: Engine, images: Any) -> float:
        return next(errors) * len(images)

    def leave_alone(self: Adam, *_: Any) -> None:
        pass

    with (
        patch.object(Engine, "step", step),
        patch.object(Engine, "squared_error", squared_error),
        patch.object(Adam, "step", leave_alone),
    ):
        yield


@contextmanager
def training_time() -> Iterator[list[float]]:
    """A list that receives the seconds of the training, final figures included."""
    train, seconds = RunSession.train, []

    def timed(self: RunSession, *arguments: Any, **named: Any) -> Any:
        started = time.perf_counter()
        outcome = train(self, *arguments, **named)
        seconds.append(time.perf_counter() - started)
        return outcome

    with patch.object(RunSession, "train", timed):
        yield seconds


if __name__ == "__main__":
    main()
