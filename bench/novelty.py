"""How well does the reconstruction error find a digit that the model has not seen?

    python bench/novelty.py --data-dir DIR --out bench/results/novelty.json

For each digit a model is trained on MNIST without it, and the AUROC of the error over the test
images says how well it tells that digit from the others: 0.5 is chance, 1 is perfect. Beside it
stands the AUROC of a model that was trained on all ten: digits differ in how hard they are to
reconstruct, and only what is above that comes from not having seen one.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from cae_raw.data import DataOptions, Dataset, Split, load_dataset
from cae_raw.files import atomic_write
from cae_raw.machine import cpu_name
from cae_raw.models import Autoencoder, build
from cae_raw.score import Scorer, roc
from cae_raw.training.optimizers import Adam
from cae_raw.training.trainer import Trainer

MODELS: dict[str, dict[str, Any]] = {
    "deep": {"size": [28, 28]},
    "deep-same": {"size": [28, 28]},
    "single-layer": {},
}


def without(split: Split, digit: int | None, limit: int) -> Split:
    """The first `limit` images of all digits but one; None: of all."""
    assert split.labels is not None
    keep = np.flatnonzero(split.labels != digit)[:limit]
    return Split(np.ascontiguousarray(split.images[keep]), split.labels[keep])


def trained(model: Autoencoder, data: Dataset, epochs: int, threads: int | None) -> Autoencoder:
    Trainer(model, data, Adam(model, lr=1e-3), threads=threads).fit(epochs)
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--model", nargs="+", choices=MODELS, default=["deep", "single-layer"])
    parser.add_argument("--code-size", type=int, default=16, help="of the deep models")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--images", type=int, default=10_000, help="to train on")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    data = load_dataset("mnist", DataOptions(data_dir=options.data_dir))
    test = data.test
    assert isinstance(test, Split) and isinstance(data.train, Split)
    assert isinstance(data.validation, Split) and test.labels is not None
    report: dict[str, Any] = {
        "machine": f"{cpu_name()}, {platform.system()}",
        "options": {k: str(v) for k, v in vars(options).items() if k not in ("data_dir", "out")},
        "auroc": {},
    }
    started = time.perf_counter()
    for name in options.model:
        given = {**MODELS[name], "channels": 1}
        if name != "single-layer":
            given["code_size"] = options.code_size
        errors = {}
        for digit in (None, *range(10)):
            part = replace(
                data,
                train=without(data.train, digit, options.images),
                validation=without(data.validation, digit, 500),
            )
            model = build(name, np.random.default_rng(options.seed), **given)
            trained(model, part, options.epochs, options.threads)
            with Scorer(model, options.threads) as scorer:
                errors[digit] = scorer(test.images)
            print(f"{name} without {digit}: {time.perf_counter() - started:.0f} s", flush=True)
        rows = [
            {
                "digit": digit,
                "left_out": roc(errors[digit], test.labels == digit).auroc,
                "trained_on_all": roc(errors[None], test.labels == digit).auroc,
            }
            for digit in range(10)
        ]
        report["auroc"][name] = rows
        print(f"\n{name}\n| digit | left out | trained on all |\n| --- | --- | --- |")
        for row in rows:
            print(f"| {row['digit']} | {row['left_out']:.3f} | {row['trained_on_all']:.3f} |")
        means = [np.mean([row[k] for row in rows]) for k in ("left_out", "trained_on_all")]
        print(f"| mean | {means[0]:.3f} | {means[1]:.3f} |\n", flush=True)
        if options.out is not None:  # after each model: they take a while
            atomic_write(options.out, (json.dumps(report, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
