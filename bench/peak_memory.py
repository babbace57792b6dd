"""Peak memory of training, less the data set and the imports.

    python bench/peak_memory.py --model single-layer --batch 1024

A process of its own trains three steps. Memory that several processes share counts once.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402

from cae_raw.measure.ours import Ours  # noqa: E402
from cae_raw.measure.problem import PROBLEMS, Problem  # noqa: E402
from cae_raw.training.engine import available_threads  # noqa: E402

STEPS = 3


def peak_mib(problem: Problem, batch: int, threads: int) -> float:
    """Measured in a process of its own, in MiB."""
    command = [sys.executable, __file__, "--model", problem.model, "--batch", str(batch)]
    command += ["--channels", str(problem.channels), "--size", str(problem.size)]
    command += ["--threads", str(threads)]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    return float(json.loads(done.stdout)["peak_mib"])


def resident() -> tuple[int, int]:
    """(now, at most so far) of this process and those it started, in KiB.

    A page that several of them map counts in parts. What each process had at most and has no more
    is added as if all had had it at the same time.
    """
    now = at_most = 0
    for pid in _family():
        try:
            rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
            status = Path(f"/proc/{pid}/status").read_text()
        except OSError:  # it has ended
            continue
        share = _kib(rollup, "Pss")
        now += share
        at_most += share + _kib(status, "VmHWM") - _kib(status, "VmRSS")
    return now, at_most


def _family() -> list[str]:
    """This process, and all below it."""
    found, fresh = [], ["self"]
    while fresh:
        found += fresh
        fresh = [
            child
            for pid in fresh
            for tasks in Path(f"/proc/{pid}/task").glob("*/children")
            for child in _words(tasks)
        ]
    return found


def _words(path: Path) -> list[str]:
    try:
        return path.read_text().split()
    except OSError:
        return []


def _kib(text: str, name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+)", text, re.MULTILINE)
    return int(found[1]) if found else 0


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="single-layer", choices=PROBLEMS)
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--channels", type=int, default=3)
    parser.add_argument("--size", type=int)
    parser.add_argument("--threads", type=int, default=available_threads())
    args = parser.parse_args()
    problem = PROBLEMS[args.model].sized(args.size, args.channels)
    # One batch of images, touched, so that they are in memory before.
    images = np.zeros((args.batch, *problem.image_shape), np.uint8)
    images += 1
    before, _ = resident()
    ours = Ours(problem, images, threads=args.threads)
    for _ in range(STEPS):
        ours.step(np.arange(args.batch))
    _, peak = resident()
    ours.close()
    print(json.dumps({"peak_mib": (peak - before) / 1024}))


if __name__ == "__main__":
    main()
