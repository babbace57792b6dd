"""Peak memory of a training on a database that is larger than what the training may hold.

    python bench/large_lmdb.py --json bench/results/large_lmdb.json
    python bench/large_lmdb.py --model deep --records 20000

A database of 200,000 64x64 RGB records (2.4 GB of pixels, 3.3 GB on disk) is made in a temporary
folder, unless --dir names one to keep it in, and `cae-raw train` goes through it for an epoch.
VmHWM is the system's own count of the most that the process ever held. It includes the pages of
the database that happen to be mapped, which the system takes back when it needs them; so its parts
are stated apart, as they were seen every 50 ms: anonymous memory, which is what the program has
allocated, and mapped files. The bound is 1 GB plus the model: weights, gradients and the state of
the optimizer. Exits with 1 when VmHWM is above it.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import subprocess
import sys
import tempfile
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
from lmdb_throughput import SHAPE, make
from provenance import ROOT, commit

from cae_raw.machine import cpu_name
from cae_raw.models import MODELS
from cae_raw.training.engine import available_threads
from cae_raw.training.loading import load

BOUND = 10**9  # bytes, beside the model
ARRAYS = 4  # of the model's size: weights, gradients, Adam's two moments
PAUSE = 0.05  # seconds between two looks
PARTS = ("VmHWM", "VmRSS", "RssAnon", "RssFile")


class Progress:
    """Tells on stderr how far the making of the database is."""

    def __init__(self) -> None:
        self.started = self.spoke = time.perf_counter()

    def __call__(self, done: int, total: int) -> None:
        now = time.perf_counter()
        if now - self.spoke < 2 and done < total:
            return
        self.spoke = now
        rate = done / (now - self.started)
        print(
            f"records: {done:,} of {total:,}, {rate:,.0f}/s, {(total - done) / rate:.0f} s left",
            file=sys.stderr,
        )


def memory(pid: int) -> dict[str, int]:
    """What the system says of a process's memory, in bytes; nothing once it has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return {}
    found = re.findall(rf"^({'|'.join(PARTS)}):\s+(\d+) kB", status, re.MULTILINE)
    return {name: int(kib) * 1024 for name, kib in found}


def train(command: list[str]) -> tuple[dict[str, Any], dict[str, int]]:
    """Run a training; what it reports, and the most that was seen of each part of its memory."""
    most = dict.fromkeys(PARTS, 0)
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        while process.poll() is None:
            for name, value in memory(process.pid).items():
                most[name] = max(most[name], value)
            time.sleep(PAUSE)
        assert process.stdout is not None
        out = process.stdout.read()
    if process.returncode:
        raise SystemExit(process.returncode)
    return json.loads(out), most


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--records", type=int, default=200_000)
    parser.add_argument("--model", choices=list(MODELS), default="single-layer")
    parser.add_argument("--filters", type=int, help="of single-layer  [default: 32]")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--threads", type=int, default=available_threads())
    parser.add_argument("--dir", type=Path, help="keep the database here, and use it when there")
    parser.add_argument("--json", type=Path, help="also write the result to this file")
    args = parser.parse_args()
    version = commit()
    with tempfile.TemporaryDirectory() as folder:
        path = (args.dir or Path(folder)) / f"{args.records}.lmdb"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            unfinished = path.with_name(path.name + ".unfinished")
            make(unfinished, args.records, Progress())
            unfinished.rename(path)
        # fmt: off
        command = [
            sys.executable, "-m", "cae_raw", "train", "--dataset", "lmdb", "--data-dir", str(path),
            "--model", args.model, "--batch-size", str(args.batch), "--epochs", "1", "--json",
            "--threads", str(args.threads), "--device", "cpu", "--runs-dir", str(Path(folder, "r")),
        ]
        # fmt: on
        command += ["--filters", str(args.filters)] if args.filters else []
        outcome, most = train(command)
        model_bytes = ARRAYS * load(outcome["run"]).parameters.nbytes
        result = {
            "when": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "commit": version,
            "cpu": cpu_name(),
            "cores": available_threads(),
            "python": platform.python_version(),
            "numpy": np.__version__,
            "lmdb": lmdb.__version__,
            "records": args.records,
            "image_shape": SHAPE,
            "file_bytes": (path / "data.mdb").stat().st_size,
            "model": args.model,
            "filters": args.filters,
            "batch": args.batch,
            "threads": args.threads,
            "peak_memory_bytes": outcome["peak_memory_bytes"],
            "most_anonymous_bytes": most["RssAnon"],
            "most_mapped_file_bytes": most["RssFile"],
            "model_bytes": model_bytes,
            "bound_bytes": BOUND + model_bytes,
        }
    result["within_the_bound"] = result["peak_memory_bytes"] <= result["bound_bytes"]
    text = json.dumps(result, indent=2)
    print(text)
    if args.json:
        args.json.write_text(text + "\n")
    if not result["within_the_bound"]:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
