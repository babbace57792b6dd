"""What the machine can do at most: FLOP/s of a large product, bytes/s of a large copy, measured."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cae_raw.measure.clock import DeviceClock, host_milliseconds
from cae_raw.measure.counts import Amount
from cae_raw.ops.linear import linear_forward
from cae_raw.ops.windows import even_cuts

LEAST_COPY, MOST_COPY = 1 << 28, 1 << 30  # bytes of each of the two arrays


@dataclass(frozen=True)
class Ceilings:
    """The best of several runs, because a ceiling is what is possible.

    Attributes:
        flop_per_s: of the product of two square float32 matrices.
        bytes_per_s: read and written by a copy of an array much larger than the caches.
        how: what was run, in words.
    """

    flop_per_s: float
    bytes_per_s: float
    how: str

    def shares(self, amount: Amount, seconds: float) -> dict[str, float]:
        """FLOP/s and bytes/s of some work, and their shares of the ceilings."""
        flop_per_s, bytes_per_s = amount.flops / seconds, amount.bytes / seconds
        return {
            "flops": amount.flops,
            "bytes": amount.bytes,
            "flop_per_s": flop_per_s,
            "bytes_per_s": bytes_per_s,
            "share_of_flop_ceiling": flop_per_s / self.flop_per_s,
            "share_of_bytes_ceiling": bytes_per_s / self.bytes_per_s,
        }

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def on_cpu(threads: int, *, side: int = 2048, copied: int | None = None, runs: int = 5) -> Ceilings:
    """With so many threads, by NumPy's BLAS and by memory copies side by side.

    Args:
        side: of the matrices.
        copied: bytes of each array of the copy; None picks twice the last-level cache, within
            bounds.
    """
    from threadpoolctl import threadpool_limits

    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal((side, side), np.float32) for _ in range(2))
    product = np.empty_like(a)
    with threadpool_limits(threads, user_api="blas"):
        ms = [host_milliseconds(lambda: np.matmul(a, b, out=product)) for _ in range(runs + 1)]
    flop_per_s = 2e3 * side**3 / min(ms)

    size = copied or _copy_bytes()
    source, target = np.ones(size, np.uint8), np.zeros(size, np.uint8)
    cuts = list(even_cuts(size, -(-size // threads)))
    with ThreadPoolExecutor(threads) as pool:

        def copy() -> None:
            list(pool.map(lambda cut: np.copyto(target[cut], source[cut]), cuts))

        ms = [host_milliseconds(copy) for _ in range(runs + 1)]
    how = f"product of {side}x{side}, copy of {size >> 20} MiB, {threads} threads"
    return Ceilings(flop_per_s, 2e3 * size / min(ms), how)


def on_cuda(
    backend: Any, clock: DeviceClock, *, side: int = 8192, copied: int = MOST_COPY, runs: int = 5
) -> Ceilings:
    """By this package's own product, and by a copy from one place of the device to another."""
    rng = np.random.default_rng(0)
    x, w = (backend.asarray(rng.standard_normal((side, side), np.float32)) for _ in range(2))
    b = backend.zeros((side,))
    product = [clock.milliseconds(lambda: linear_forward(x, w, b)) for _ in range(runs + 1)]
    source, target = (backend.zeros((copied,), np.uint8) for _ in range(2))
    copyto = backend.cupy.copyto
    copies = [
        clock.milliseconds(lambda: copyto(target, source), flush=False) for _ in range(runs + 1)
    ]
    how = f"product of {side}x{side}, copy of {copied >> 20} MiB on the device"
    return Ceilings(2e3 * side**3 / min(product), 2e3 * copied / min(copies), how)


def _copy_bytes() -> int:
    """Twice the last-level cache, where the system says how large that is."""
    sizes = [LEAST_COPY // 2]
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = path.read_text().strip()
        if text.endswith("K") and text[:-1].isdigit():
            sizes.append(int(text[:-1]) << 10)
    return max(LEAST_COPY, min(MOST_COPY, 2 * max(sizes)))
