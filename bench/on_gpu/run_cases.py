"""The operations on the tests' awkward cases: the program that compute-sanitizer watches.

CuPy's memory pool is switched off, so that every array is an allocation of its own; in the pool's
large blocks a read past the end of an array would be a read of something else.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "bench")]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--tool", required=True)
    parser.add_argument("--emulated", action="store_true")
    options = parser.parse_args()
    deadline = time.monotonic() + options.seconds

    import kernel_checks
    from cases import CASES

    from cae_raw.backends.cuda_backend import CudaBackend
    from on_gpu.device import open_bench

    bench = open_bench(options.emulated, options.seconds)
    if not options.emulated:
        bench.cupy.cuda.set_allocator(None)
    # initcheck looks for reads of memory that nobody wrote; poison would be something written.
    kind = CudaBackend if options.tool == "initcheck" else kernel_checks.PoisonedBackend
    backend = kind(bench.cupy)
    # One case of every operation, then the second of every one: time may end before the cases do.
    rounds = itertools.zip_longest(*CASES.values())
    cases = [case for one_of_each in rounds for case in one_of_each if case is not None]
    # On two multiprocessors a block of the fused step takes several units, one after the other.
    few = kind(bench.cupy)
    few.multiprocessors = 2
    fused = [case for name, own in CASES.items() if name.startswith("single_layer") for case in own]
    work = [*((case, backend) for case in cases), *((case, few) for case in fused)]
    done = 0
    for case, on in work:
        if time.monotonic() > deadline:
            break
        got = kernel_checks.run(case, on)
        kernel_checks.compare(case, got, kernel_checks.reference(case))
        done += 1
    print(f"ran {done} of {len(work)} cases", flush=True)


if __name__ == "__main__":
    main()
