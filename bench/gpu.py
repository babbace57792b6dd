"""Everything that only a GPU can answer, in one run and one JSON file.

    python bench/gpu.py --out bench/results/gpu.json

Kernel tests, gradcheck, ceilings (a device copy, a loop of multiply-adds), every kernel, the
training step, the same step in PyTorch and JAX where they are installed, compute-sanitizer. Needs a
checkout, and of this project's dependencies only NumPy, CuPy, Pillow, Typer and pytest.

Each section is a process of its own with a share of the time budget: what fails or takes too long
is recorded, and the next section runs. `--emulated` runs it all on a CPU at tiny sizes, to test
this program; its figures say nothing about a GPU and are refused under bench/results/.

Exit status: 0 when all sections that check something passed, 1 when not (a missing sanitizer is
not a pass), 2 when there is no GPU.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "bench")]

from on_gpu import machine, process  # noqa: E402
from on_gpu.record import MissingError, Record, write  # noqa: E402

# In this order, with these shares of the time that is left. What is at the end may be cut off.
SHARES = {
    "tests": 60,
    "gradcheck": 40,
    "ceilings": 15,
    "kernels": 80,
    "step": 40,
    "pytorch": 140,
    "jax": 40,
    "sanitizer": 120,
}
MUST_PASS = ("tests", "gradcheck", "ceilings", "kernels", "step", "sanitizer")
BUDGET_SECONDS = 525.0


def main() -> int:
    options = _options()
    if options.section:
        return run_section(options)
    if options.emulated and (ROOT / "bench" / "results") in options.out.resolve().parents:
        print("gpu.py: error: emulated figures do not belong under bench/results/", file=sys.stderr)
        return 2
    if not options.emulated and (reason := machine.no_gpu()) is not None:
        print(f"gpu.py: error: {reason}", file=sys.stderr)
        return 2
    started = time.monotonic()
    report: dict[str, Any] = {
        "schema": 1,
        "emulated": options.emulated,
        "note": "emulated: no figure says anything about a GPU" if options.emulated else "",
        "budget_seconds": options.budget_seconds,
        "environment": machine.describe(options.emulated, options.commit),
        "sections": {},
    }
    write(options.out, report)
    left = {name: share for name, share in SHARES.items() if name in options.sections}
    for name in list(left):
        remaining = options.budget_seconds - (time.monotonic() - started)
        limit = remaining * left[name] / sum(left.values())
        del left[name]
        report["sections"][name] = found = supervise(name, limit, options)
        add_shares(report["sections"])
        report["seconds"] = time.monotonic() - started
        write(options.out, report)
        why = f": {found['error']}" if found["error"] else ""
        print(f"{name:10} {found['status']:10} {found['seconds']:6.1f} s{why}", flush=True)
    print(f"written to {options.out}")
    chosen = [report["sections"][name] for name in MUST_PASS if name in report["sections"]]
    return 0 if all(found["status"] == "ok" for found in chosen) else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("gpu.json"))
    parser.add_argument("--budget-seconds", type=float, default=BUDGET_SECONDS)
    parser.add_argument("--sections", nargs="+", choices=SHARES, default=list(SHARES))
    parser.add_argument("--commit", help="for a copy of the checkout without .git")
    parser.add_argument("--emulated", action="store_true", help="on the CPU, at tiny sizes")
    parser.add_argument("--section", choices=SHARES, help=argparse.SUPPRESS)
    return parser.parse_args()


def supervise(name: str, limit: float, options: argparse.Namespace) -> dict[str, Any]:
    """Run a section in a process of its own; what it had found by then is kept in any case."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "section.json"
        command = [sys.executable, str(Path(__file__).resolve()), "--section", name]
        command += ["--out", str(out), "--budget-seconds", str(max(limit - 5, limit / 2))]
        command += ["--emulated"] * options.emulated
        started = time.monotonic()
        ended = process.run(command, limit, ROOT)
        data = json.loads(out.read_text()) if out.exists() else {}
    outcome = data.pop("outcome", None) or {
        "status": "timeout" if ended.status is None else "failed",
        "error": f"killed after {limit:.0f} s"
        if ended.status is None
        else f"ended with status {ended.status}",
    }
    result = {**outcome, "seconds": time.monotonic() - started, "limit_seconds": limit, **data}
    if outcome["status"] != "ok":
        result["stderr"] = ended.stderr[-4000:]
    return result


def run_section(options: argparse.Namespace) -> int:
    """What the process of a section does."""
    record = Record(options.out)
    status, error = "ok", ""
    try:
        _section(options.section, record, options.budget_seconds, options.emulated)
    except TimeoutError as late:
        status, error = "incomplete", str(late)
    except MissingError as missing:
        status, error = "missing", str(missing)
    except Exception as failure:  # whatever it is, the other sections still run
        traceback.print_exc()
        status, error = "failed", f"{type(failure).__name__}: {failure}"
    record.put("outcome", {"status": status, "error": error})
    return 0


def _section(name: str, record: Record, seconds: float, emulated: bool) -> None:
    if name == "tests":
        from on_gpu.checks import run_tests

        run_tests(record, seconds, emulated)
    elif name == "sanitizer":
        from on_gpu.checks import run_sanitizer

        run_sanitizer(record, seconds)
    elif name == "pytorch":
        from on_gpu import pytorch

        pytorch.run(record, seconds, emulated)
    elif name == "jax":
        from on_gpu import jax_step

        jax_step.run(record, emulated)
    else:
        from on_gpu import ceilings, checks, kernels, step
        from on_gpu.device import open_bench

        run = {
            "gradcheck": checks.run_gradcheck,
            "ceilings": ceilings.run,
            "kernels": kernels.run,
            "step": step.run,
        }[name]
        run(open_bench(emulated, seconds), record)


def add_shares(sections: dict[str, Any]) -> None:
    """Each kernel's share of the measured ceilings, as soon as both are there."""
    ceilings = sections.get("ceilings", {})
    if "copy" not in ceilings or "multiply_add" not in ceilings:
        return
    for launch in sections.get("kernels", {}).get("launches", []):
        launch["share_of_copy"] = launch["gb_per_s"] / ceilings["copy"]["gb_per_s"]
        flops = launch["tflop_per_s"] / ceilings["multiply_add"]["tflop_per_s"]
        launch["share_of_multiply_add"] = flops


if __name__ == "__main__":
    sys.exit(main())
