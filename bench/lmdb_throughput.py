"""Reading and decoding an LMDB in shuffled batches beside a bare cursor scan, in one run.

    python bench/lmdb_throughput.py --json bench/results/lmdb.json

A database of 64x64 RGB records is made in a temporary folder. Our images are compared with those of
liblmdb and protobuf before anything is timed; then all candidates take turns. The bare scan is
liblmdb's cursor over all records, each value copied into a bytes object and nothing else done; once
with the environment just opened, as an epoch over a database larger than memory finds it, and once
again with all of the file still mapped. A batch is a fresh array of uint8 RGB images in an order
that differs in every round. Medians and best rounds are reported, and peak memory of an epoch in a
process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
from provenance import ROOT, provenance

from cae_raw.data import datum
from cae_raw.data.lmdb_stream import LmdbSplit

SHAPE = (3, 64, 64)
SCAN, AGAIN, SHUFFLED = "cursor scan", "cursor scan, still mapped", "shuffled batches"


def make(
    path: Path, records: int, progress: Callable[[int, int], None] = lambda done, total: None
) -> None:
    """Random images under Caffe's keys, a thousand per transaction as its tools write them."""
    images = np.random.default_rng(0).integers(0, 256, (512, *SHAPE), np.uint8)
    values = [datum.serialize(image, i % 100, "bgr") for i, image in enumerate(images)]
    with lmdb.open(str(path), map_size=records * 20_000 + (64 << 20), sync=False) as env:
        for start in range(0, records, 1000):
            with env.begin(write=True) as transaction:
                for i in range(start, min(start + 1000, records)):
                    transaction.put(b"%08d_%d.jpg" % (i, i), values[i % 512], append=True)
            progress(min(start + 1000, records), records)


def check_equal(path: Path, split: LmdbSplit) -> None:
    """Our first images against liblmdb's bytes, parsed by protobuf."""
    first = split.first(300)
    with lmdb.open(str(path), readonly=True, lock=False) as env, env.begin() as transaction:
        for image, (_, value) in zip(first, transaction.cursor(), strict=False):
            stored = np.frombuffer(datum.parse(value).data, np.uint8).reshape(SHAPE)
            assert np.array_equal(image, stored[::-1])


def candidates(path: Path, batch: int, threads: int) -> dict[str, Callable[[int], int]]:
    """Each reads the whole database and returns how many records it met; the round is a seed."""
    split = LmdbSplit(path, threads=threads)
    check_equal(path, split)
    environment: list[Any] = []

    def scan(round_: int) -> int:
        while environment:
            environment.pop().close()
        environment.append(lmdb.open(str(path), readonly=True, lock=False))
        return again(round_)

    def again(round_: int) -> int:
        with environment[0].begin() as transaction:
            return sum(1 for _ in transaction.cursor())

    def one_thread(round_: int) -> int:
        batches = LmdbSplit(path, threads=1).shuffled(0, round_, batch)
        return sum(len(images) for images in batches)

    return {
        SCAN: scan,
        AGAIN: again,
        SHUFFLED: lambda round_: sum(len(b) for b in split.shuffled(0, round_, batch)),
        "shuffled batches, one thread": one_thread,
        "batches in order": lambda round_: sum(len(b) for b in split.in_order(batch)),
    }


def race(work: dict[str, Callable[[int], int]], records: int, rounds: int) -> dict[str, Any]:
    """Records per second of each, taking turns; the first round warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for round_ in range(rounds + 1):
        for name, run in work.items():
            started = time.perf_counter()
            assert run(round_) == records
            if round_:
                seconds[name].append(time.perf_counter() - started)
    return {
        name: {
            "records_per_s": records / float(np.median(times)),
            "best_records_per_s": records / min(times),
        }
        for name, times in seconds.items()
    }


PEAK = """
import re, sys
from pathlib import Path
from cae_raw.data.lmdb_stream import LmdbSplit
def peak():  # of this program; getrusage would report that of the one that started it
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024
split = LmdbSplit(Path(sys.argv[1]), threads=int(sys.argv[3]))
opened = peak()
for images in split.shuffled(0, 0, int(sys.argv[2])):
    pass
print(opened, peak())
"""


def peak_memory_mib(path: Path, batch: int, threads: int) -> dict[str, float]:
    """Of a process that reads one epoch and does nothing else, imports included."""
    command = [sys.executable, "-c", PEAK, str(path), str(batch), str(threads)]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    opened, peak = map(float, done.stdout.split())
    return {"opened": opened, "after_an_epoch": peak}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--records", type=int, default=50_000)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--dir", type=Path, help="where the database is made  [default: temporary]")
    parser.add_argument("--json", type=Path, help="also write the result to this file")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.dir) as folder:
        path = Path(folder) / "records.lmdb"
        make(path, args.records)
        facts = provenance()
        rates = race(candidates(path, args.batch, args.threads), args.records, args.rounds)
        result = {
            **facts,
            "lmdb": lmdb.__version__,
            "load_after": os.getloadavg(),
            "records": args.records,
            "image_shape": SHAPE,
            "batch": args.batch,
            "threads": args.threads,
            "file_mib": (path / "data.mdb").stat().st_size / 2**20,
            "rates": rates,
            "peak_mib": peak_memory_mib(path, args.batch, args.threads),
        }
    for kind in ("records_per_s", "best_records_per_s"):
        ours = rates[SHUFFLED][kind]
        result[f"{kind}_share_of_scan"] = ours / rates[SCAN][kind]
        result[f"{kind}_share_of_mapped_scan"] = ours / rates[AGAIN][kind]
    text = json.dumps(result, indent=2)
    print(text)
    if args.json:
        args.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
