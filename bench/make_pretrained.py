"""Turn finished runs into the two small models that ship with the package.

    cae-raw train --dataset cifar10 --epochs 30 --lr-decay-epochs 12
    cae-raw train --dataset mnist --epochs 30 --lr-decay-epochs 12
    python bench/make_pretrained.py RUN_ON_CIFAR10 RUN_ON_MNIST

Each file keeps the weights of the run's best checkpoint, its configuration, and in its state the
command that made it and the figures it reached; the optimizer's state is left out.
"""

from __future__ import annotations

import sys
from dataclasses import fields
from pathlib import Path

from cae_raw.training import checkpoint
from cae_raw.training.checkpoint import Checkpoint
from cae_raw.training.config import TrainConfig
from cae_raw.training.loading import PRETRAINED
from cae_raw.training.run_dir import RunDir

FOLDER = Path(__file__).resolve().parent.parent / "cae_raw" / "pretrained"


def command(config: TrainConfig, epochs: int) -> str:
    """The command line that trains such a run."""
    parts = ["cae-raw train", f"--epochs {epochs}"]
    default = TrainConfig()
    for field in fields(config):
        value = getattr(config, field.name)
        if value != getattr(default, field.name) and field.name != "data_dir":
            parts.append(f"--{field.name.replace('_', '-')} {value}")
    return " ".join(parts)


def figures(run: RunDir, split: str) -> dict[str, float]:
    """What `<split>_results.txt` says."""
    lines = (run.path / f"{split}_results.txt").read_text().splitlines()
    return {name: float(value) for name, value in (line.split(": ") for line in lines)}


def main() -> None:
    for path in map(Path, sys.argv[1:]):
        run = RunDir(path)
        best = checkpoint.load(run.best)
        config = TrainConfig.from_json(best.config["train"])
        state = {
            "command": command(config, len(run.metrics.read_text().splitlines()) - 1),
            "validation": figures(run, "validation"),
            "test": figures(run, "test"),
        }
        target = FOLDER / PRETRAINED[best.config["model"]["channels"]]
        FOLDER.mkdir(exist_ok=True)
        checkpoint.save(target, Checkpoint(best.parameters, {}, best.config, state))
        print(f"{target.name}: {target.stat().st_size:,} bytes; {state}")


if __name__ == "__main__":
    main()
