"""Facts about this machine and this installation, for `cae-raw info` and for reports."""

from __future__ import annotations

import platform
import re
import sys
from importlib import metadata
from pathlib import Path

from cae_raw import __version__

PACKAGES = (
    *("numpy", "pillow", "safetensors", "typer"),
    *("lmdb", "protobuf", "matplotlib", "tensorboardX"),
)


def describe(runs_dir: Path) -> dict[str, str]:
    """What `cae-raw info` prints, in order."""
    from cae_raw.data import cache_dir
    from cae_raw.training.engine import available_threads
    from cae_raw.training.run_dir import newest_run

    newest = newest_run(runs_dir)
    return {
        "cae-raw": __version__,
        "python": f"{platform.python_version()} on {platform.platform()}",
        "packages": ", ".join(f"{name} {metadata.version(name)}" for name in PACKAGES),
        "cpu": f"{cpu_name()}, {available_threads()} threads",
        "blas": blas(),
        "gpu": gpu(),
        "data": f"{cache_dir()} (downloads)",
        "runs": f"{runs_dir.resolve()}" + (f", newest {newest.path}" if newest else ", none yet"),
    }


def peak_memory() -> int | None:
    """The most memory, in bytes, that this process has held so far; None where it is not known.

    Parts of files that are mapped into memory count as long as they are.
    """
    try:
        status = Path("/proc/self/status").read_text()
        found = re.search(r"VmHWM:\s+(\d+) kB", status)
        return int(found[1]) * 1024 if found else None
    except OSError:
        pass
    try:
        import resource
    except ImportError:  # not on Windows
        return None
    # On Linux this would be the most of the process that started this one, where that is more.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def cpu_name() -> str:
    """The processor's name as the system gives it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def blas() -> str:
    """The matrix-product library behind NumPy."""
    import numpy  # noqa: F401  loads the library that is to be named
    from threadpoolctl import threadpool_info

    found = [pool for pool in threadpool_info() if pool["user_api"] == "blas"]
    if not found:
        return "not known to threadpoolctl: it may use threads of its own"
    return ", ".join(
        f"{pool['internal_api']} {pool['version']} ({pool.get('architecture', 'any')})"
        for pool in found
    )


def gpu() -> str:
    """The GPU that `--device auto` would take, or why there is none."""
    from cae_raw.backends.probe import describe_gpu

    return describe_gpu()
