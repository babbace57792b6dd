"""Peak memory of training, less the data set and the imports.

    python bench/peak_memory.py --model single-layer --batch 1024 [--device cuda] [--torch eager]

A process of its own trains for two seconds, after which all processes have begun that will. On the
CPU it is resident memory, and what several processes share counts once; on a GPU it is what the
library holds of the device's memory.
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

from cae_raw.backends import choose_backend  # noqa: E402
from cae_raw.measure.ours import Candidate, Ours  # noqa: E402
from cae_raw.measure.problem import PROBLEMS, Problem  # noqa: E402
from cae_raw.measure.race import WARM_UP  # noqa: E402
from cae_raw.measure.racer import Here  # noqa: E402
from cae_raw.measure.torch_step import TorchStep  # noqa: E402
from cae_raw.training.engine import available_threads  # noqa: E402


def peak_mib(
    problem: Problem,
    batch: int,
    threads: int,
    *,
    device: str = "cpu",
    torch_mode: str | None = None,
) -> float:
    """In MiB, measured in a process of its own; of PyTorch where one of its modes is named."""
    command = [sys.executable, __file__, "--model", problem.model, "--batch", str(batch)]
    command += ["--channels", str(problem.channels), "--size", str(problem.size)]
    command += ["--threads", str(threads), "--device", device]
    command += ["--torch", torch_mode] if torch_mode else []
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


def candidate(
    problem: Problem, images: np.ndarray, threads: int, device: str, torch_mode: str | None
) -> Candidate:
    """cae-raw, or PyTorch in one of its modes."""
    if torch_mode is None:
        return Ours(problem, images, backend=choose_backend(device), threads=threads)
    return TorchStep(
        problem.build(),
        images,
        optimizer=problem.optimizer,
        lr=problem.lr,
        mode=torch_mode,
        device=device,
        threads=threads,
    )


def on_device(torch_mode: str | None) -> int:
    """Bytes that the library has taken of a GPU's memory."""
    if torch_mode is not None:
        import torch

        return int(torch.cuda.max_memory_reserved())
    import cupy

    return int(cupy.get_default_memory_pool().total_bytes())


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="single-layer", choices=PROBLEMS)
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--channels", type=int, default=3)
    parser.add_argument("--size", type=int)
    parser.add_argument("--threads", type=int, default=available_threads())
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--torch", metavar="MODE", help="measure PyTorch instead")
    args = parser.parse_args()
    problem = PROBLEMS[args.model].sized(args.size, args.channels)
    if args.torch:
        import torch  # noqa: F401  imports do not count
    # One batch of images, touched, so that they are in memory before.
    images = np.zeros((args.batch, *problem.image_shape), np.uint8)
    images += 1
    before, _ = resident()
    trained = candidate(problem, images, args.threads, args.device, args.torch)
    Here(trained).warm("training", args.batch, WARM_UP)
    if args.device == "cpu":
        peak = (resident()[1] - before) / 1024
    else:
        peak = (on_device(args.torch) - images.nbytes) / 2**20
    trained.close()
    print(json.dumps({"peak_mib": peak}))


if __name__ == "__main__":
    main()
