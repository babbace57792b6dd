"""The training step and forward pass of a model beside PyTorch and JAX on the CPU, in one run.

    python bench/side_by_side.py --batch 1024 --out bench/results/cpu.json
    python bench/side_by_side.py --model deep --batch 128 --out bench/results/cpu_deep.json

What `cae-raw bench` does for steps, with a choice of PyTorch's modes, the checkout's commit and the
peak memory of training, for results that are kept.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "bench")]

from peak_memory import peak_mib  # noqa: E402
from provenance import provenance  # noqa: E402

from cae_raw.measure.ours import Ours  # noqa: E402
from cae_raw.measure.problem import PROBLEMS  # noqa: E402
from cae_raw.measure.race import WHATS, compare, race, verdict  # noqa: E402
from cae_raw.measure.racer import Here, Racer  # noqa: E402
from cae_raw.measure.rivals import Rivals  # noqa: E402
from cae_raw.training.engine import available_threads  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="single-layer", choices=PROBLEMS)
    parser.add_argument("--batch", type=int, nargs="+", help="default: the model's usual one")
    parser.add_argument("--channels", type=int, default=3, choices=(1, 3))
    parser.add_argument("--size", type=int, help="default: the model's usual one")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=available_threads())
    parser.add_argument(
        "--skip", nargs="*", default=[], help="modes of PyTorch to leave out, or jax"
    )
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    problem = PROBLEMS[args.model].sized(args.size, args.channels)
    batches = args.batch or [problem.batch]
    images = problem.draw_images(max(batches))
    rivals = Rivals(problem, max(batches), threads=args.threads, skip=args.skip)
    racers: list[Racer] = [Here(Ours(problem, images, threads=args.threads))]
    racers += rivals.racers()
    racers, differences, left_out = compare(racers, batches[0])
    result: dict[str, Any] = {
        **provenance(),
        "model": problem.model,
        "optimizer": problem.optimizer,
        "threads": args.threads,
        **rivals.facts,
        "image_shape": problem.image_shape,
        "notes": rivals.notes + left_out,
        "differences": differences,
        "races": [],
    }
    for line in result["notes"]:
        print(line, file=sys.stderr)
    for batch in batches:
        for what in WHATS:
            rows = race(problem, racers, len(images), what, batch, args.rounds)
            found = verdict(rows)
            if found["best_rival"]:
                print(f"{what}, batch {batch}: {found['ratio']:.2f} times {found['best_rival']}")
            result["races"].append({"what": what, "batch": batch, "rows": rows, **found})
        result["races"][-2]["peak_mib"] = peak_mib(problem, batch, args.threads)
    for racer in racers:
        racer.close()
    text = json.dumps(result, indent=2)
    print(text)
    if args.out:
        args.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
