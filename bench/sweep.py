"""How the cost of a training step and of a forward pass grows with batch, image size and threads.

    python bench/sweep.py --out bench/results/sweep.json --chart docs/pictures/sweep.png
    python bench/sweep.py --model deep --out deep.json --chart deep.png
    python bench/sweep.py --draw bench/results/sweep.json --chart docs/pictures/sweep.png

Three sweeps: over the batch at the model's usual image size, over the image size at one batch, and
over the threads at the usual size and batch. Each point is a process of its own, in which cae-raw
and, where PyTorch is installed, some of its modes take turns; peak memory is that of further
processes. Points that would not fit the machine's memory are left out and listed. The chart can be
drawn again from the file.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "bench")]

from peak_memory import peak_mib  # noqa: E402
from provenance import provenance  # noqa: E402
from sweep_chart import SWEEPS, draw  # noqa: E402

from cae_raw.backends import choose_backend  # noqa: E402
from cae_raw.errors import InputError  # noqa: E402
from cae_raw.measure.ours import Ours  # noqa: E402
from cae_raw.measure.problem import PROBLEMS, Problem  # noqa: E402
from cae_raw.measure.race import (  # noqa: E402
    TOLERANCE,
    TOLERANCE_TF32,
    WHATS,
    compare,
    race,
)
from cae_raw.measure.racer import Elsewhere, Here, Racer, Rival  # noqa: E402
from cae_raw.measure.torch_step import CPU_MODES, CUDA_MODES  # noqa: E402
from cae_raw.models import build  # noqa: E402
from cae_raw.training.engine import available_threads  # noqa: E402

BATCHES = [2**i for i in range(14)]  # 1 to 8,192
SIZES = [28, 32, 64, 128, 256, 512]
SIZE_BATCH = 16  # images per step in the sweep over image sizes
TORCH_MODES = ["channels_last", "channels_last, memory kept"]
# What goes through a candidate before the next has its turn: about so many pixels, in a few steps.
PIXELS_PER_TURN, STEPS_PER_TURN = 1 << 19, 32
OF_WEIGHTS = 24  # bytes per weight that training and its rival take, gradients and copies included
OF_IMAGES = 250  # bytes per byte of an image that PyTorch's maps take, in each of its modes


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="single-layer", choices=PROBLEMS)
    parser.add_argument("--batches", type=int, nargs="*", default=BATCHES)
    parser.add_argument("--sizes", type=int, nargs="*", default=SIZES)
    parser.add_argument("--size-batch", type=int, default=SIZE_BATCH, help="batch of that sweep")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=available_threads())
    parser.add_argument("--thread-counts", type=int, nargs="*", help="default: 1, 2, 4 ... THREADS")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument(
        "--torch", nargs="*", default=TORCH_MODES, choices=(*CPU_MODES, *CUDA_MODES),
        metavar="MODE", help="modes of PyTorch, or none of them",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, help="the JSON file")
    parser.add_argument("--chart", type=Path, help="the PNG file")
    parser.add_argument("--draw", type=Path, help="measure nothing: draw this JSON file")
    parser.add_argument("--point", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.point:
        print(json.dumps(measure(json.loads(args.point))))
        return
    if args.draw:
        result = json.loads(args.draw.read_text())
    else:
        result = sweep(args)
        if args.out:
            args.out.write_text(json.dumps(result, indent=1) + "\n")
    if args.chart:
        draw(result, args.chart)


def sweep(args: argparse.Namespace) -> dict[str, Any]:
    """All points, with what they were measured on."""
    modes = args.torch if find_spec("torch") else []
    result: dict[str, Any] = {
        **provenance(),
        "model": args.model,
        "device": args.device,
        "threads": args.threads,
        "torch": None,
        "rounds": args.rounds,
        "points": [],
        "left_out": [],
    }
    points = list(_points(args, modes))
    started = time.perf_counter()
    for number, point in enumerate(points):
        subject = ", ".join(f"{name} {point[name]}" for name in SWEEPS)
        print(f"{number + 1}/{len(points)}  {subject}", file=sys.stderr, flush=True)
        try:
            _check_memory(point)
            found = in_a_process(point)
        except (InputError, subprocess.CalledProcessError) as error:
            lines = getattr(error, "stderr", None) or str(error)
            result["left_out"].append({**point, "why": lines.strip().splitlines()[-1]})
            print(f"   left out: {result['left_out'][-1]['why']}", file=sys.stderr)
            continue
        result["torch"] = found.pop("torch", None) or result["torch"]
        result["points"].append({**point, **found})
    result["seconds"] = time.perf_counter() - started
    return result


def _points(args: argparse.Namespace, modes: list[str]) -> Iterator[dict[str, Any]]:
    usual = PROBLEMS[args.model]
    common = {
        "model": args.model,
        "rounds": args.rounds,
        "device": args.device,
        "torch_modes": modes,
        "batch": usual.batch,
        "size": usual.size,
        "threads": args.threads,
    }
    for batch in args.batches:
        yield {**common, "sweep": "batch", "batch": batch}
    for size in args.sizes:
        yield {**common, "sweep": "size", "batch": args.size_batch, "size": size}
    if args.device == "cpu":
        counts = args.thread_counts
        for threads in _doubled(args.threads) if counts is None else counts:
            yield {**common, "sweep": "threads", "threads": threads}


def _doubled(most: int) -> list[int]:
    """1, 2, 4 and so on, and last `most`."""
    return [*(2**k for k in range(most.bit_length()) if 2**k < most), most]


def _problem(point: Mapping[str, Any]) -> Problem:
    problem = PROBLEMS[point["model"]].sized(point["size"])
    turn = min(PIXELS_PER_TURN // point["size"] ** 2, STEPS_PER_TURN * point["batch"])
    return replace(problem, images=max(256, point["batch"]), images_per_turn=turn)


def _check_memory(point: Mapping[str, Any]) -> None:
    """Raise InputError for a point that this machine's memory would not hold."""
    problem = _problem(point)
    if point["model"] == "single-layer":
        weights = 0
    else:  # nearly all of them are in the linear layers, and need not be made to be counted
        small = build(problem.model, channels=problem.channels, size=problem.size, code_size=1)
        weights = small.parameters.size * 1568
    images = point["batch"] * 3 * point["size"] ** 2
    needed = OF_WEIGHTS * weights + OF_IMAGES * images * len(point["torch_modes"])
    there = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if point["device"] == "cpu" and needed > 0.8 * there:
        raise InputError(f"needs about {needed >> 30} GiB of memory, {there >> 30} are free")


def in_a_process(point: Mapping[str, Any]) -> dict[str, Any]:
    """What `measure` finds, and peak memory."""
    command = [sys.executable, __file__, "--point", json.dumps(point)]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    problem, device = _problem(point), point["device"]
    modes = {_rival(point, mode).name: mode for mode in point["torch_modes"]}
    for name, row in found["candidates"].items():
        row["peak_mib"] = peak_mib(
            problem, point["batch"], point["threads"], device=device, torch_mode=modes.get(name)
        )
    return found


def _rival(point: Mapping[str, Any], mode: str) -> Rival:
    on_gpu = point["device"] != "cpu"
    threads = None if on_gpu else point["threads"]
    return Rival("torch", _problem(point), point["batch"], mode, on_gpu, threads)


def measure(point: Mapping[str, Any]) -> dict[str, Any]:
    """Times of one point, per candidate: `training` and `forward`, each with ms and images/s."""
    problem = _problem(point)
    images = problem.draw_images(point["batch"])
    on_gpu = point["device"] != "cpu"
    ours = Ours(problem, images, backend=choose_backend(point["device"]), threads=point["threads"])
    racers: list[Racer] = [Here(ours)]
    facts: dict[str, Any] = {}
    for mode in point["torch_modes"]:
        rival = Elsewhere(_rival(point, mode))
        racers.append(rival)
        facts = rival.facts
    tolerance = TOLERANCE_TF32 if on_gpu else TOLERANCE
    racers, differences, notes = compare(racers, point["batch"], tolerance)
    found: dict[str, Any] = {racer.name: {} for racer in racers}
    for what in WHATS:
        rows = race(problem, racers, len(images), what, point["batch"], point["rounds"])
        for name, row in rows.items():
            found[name][what] = {**row, "ms_per_image": row["ms"] / point["batch"]}
    for racer in racers:
        racer.close()
    return {"candidates": found, "differences": differences, "notes": notes, **facts}


if __name__ == "__main__":
    main()
