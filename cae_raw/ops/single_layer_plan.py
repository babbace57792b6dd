"""The constants of kernels/single_layer_step.cu, and how images are cut into its units of work.

A unit is a tile of an image whose code a block keeps in shared memory; a whole image where that
fits and there are enough images to keep the GPU busy. The cut depends on the shapes and on two
numbers of the device, so on one kind of GPU a sum always has the same order.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from cae_raw.errors import InputError
from cae_raw.ops.windows import Pair

WARP = 32
MAX_CHANNELS = 3  # a lane keeps 27 * C weights and sums in its 255 registers
MAX_FILTERS = WARP  # a lane is a filter
THREADS = 256
WARPS = THREADS // WARP
ROWS, COLS = 2, 4  # positions of a forward tile, of which a warp makes four at a time
BACK_ROWS, BACK_COLS = 3, 6  # positions of a backward tile, one at a time
BORDER = 2
STATIC_SHARED = 2048  # what the kernels declare themselves is below this
WEIGHT_FLOATS = WARP  # and 18 * C * WARP: Weights of the kernel

# Instructions of a warp per tile or per element, read in the machine code for sm_90 with C = 3.
# Only their ratios matter here: they choose between cuts.
ENCODE_COST, DECODE_COST, BACKWARD_COST = 1118, 1101, 1770
LOAD_COST = 55  # per value of the padded image and thread
UNIT_COST = 1500  # waiting: four barriers and the first loads of an image
FEW = 16  # cuts of a side that are all tried; beyond that, tiles of some widths
WIDTHS = (8, 12, 16, 24, 32, 48, 64)


def constants(channels: int, filters: int, *, decoder_tanh: bool, sparse: bool) -> dict[str, int]:
    """The -D constants. `sparse` compiles what the sparsity term needs."""
    return {
        "C": channels, "F": filters, "THREADS": THREADS,
        "BACK_ROWS": BACK_ROWS, "BACK_COLS": BACK_COLS,
        "DECODER_TANH": int(decoder_tanh), "SPARSE": int(sparse),
    }  # fmt: skip


def serves(weight_shape: tuple[int, ...]) -> bool:
    """Whether the kernels are made for an encoder of this shape (F, C, KH, KW)."""
    f, c, *kernel_size = weight_shape
    return kernel_size == [3, 3] and 1 <= c <= MAX_CHANNELS and 1 <= f <= MAX_FILTERS


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def round_up(a: int, b: int) -> int:
    return ceil_div(a, b) * b


@dataclass(frozen=True)
class Cut:
    """Tiles of `tile` positions, and the buffers in shared memory that the largest one needs.

    Args:
        tile: (height, width).
        tiles: per image.
        rows, pitch: of a plane of x, and of dy.
        code_pitch: positions in a row of the code.
        shared: bytes of dynamic shared memory.
        cost: instructions of a warp for one unit, see above.
    """

    tile: Pair
    tiles: int
    rows: int
    pitch: int
    code_pitch: int
    shared: int
    cost: int


def make_cut(size: Pair, tile: Pair, channels: int, gradients: bool) -> Cut:
    """What it takes to cut images of `size` (H, W) into such tiles."""
    halo = BORDER if gradients else 0
    height, width = (min(t + halo, s) for t, s in zip(tile, size, strict=True))  # of y
    own = [min(t, s + halo) for t, s in zip(tile, size, strict=True)]
    before = [halo if t < s + halo else 0 for t, s in zip(tile, size, strict=True)]
    code_rows, code_cols = round_up(height + 2, ROWS), round_up(width + 2, COLS)
    rows, pitch = code_rows + 2, code_cols + 2
    if gradients:
        rows = max(rows, before[0] + round_up(own[0], BACK_ROWS) + 2)
        pitch = max(pitch, before[1] + round_up(own[1], BACK_COLS) + 2)
    pitch = round_up(pitch, 4)  # what lies behind it stays aligned for loads of four floats
    code_pitch = max(code_cols, round_up(width, COLS) + 2)
    planes = channels * rows * pitch
    weights = 18 * channels * WARP + WEIGHT_FLOATS
    floats = weights + planes * (2 if gradients else 1) + code_rows * code_pitch * WARP

    forward = 4 * WARPS
    cost = UNIT_COST + LOAD_COST * ceil_div(planes, THREADS)
    cost += ENCODE_COST * ceil_div(code_rows // ROWS * (code_cols // COLS), forward)
    cost += DECODE_COST * ceil_div(ceil_div(height, ROWS) * ceil_div(width, COLS), forward)
    if gradients:
        tiles = ceil_div(own[0], BACK_ROWS) * ceil_div(own[1], BACK_COLS)
        cost += BACKWARD_COST * ceil_div(tiles, WARPS)
    count = ceil_div(size[0] + halo, tile[0]) * ceil_div(size[1] + halo, tile[1])
    return Cut(tile, count, rows, pitch, code_pitch, 4 * floats, cost)


def cuts(size: Pair, channels: int, gradients: bool) -> Iterator[Cut]:
    """The whole image, and smaller tiles; widths are even unless there is one."""
    sides = [s + (BORDER if gradients else 0) for s in size]
    heights, widths = (
        {ceil_div(side, count) for count in range(1, FEW + 1)} | {w for w in WIDTHS if w < side}
        for side in sides
    )
    widths = {w if w == sides[1] else round_up(w, 2) for w in widths}
    for tile in itertools.product(sorted(heights, reverse=True), sorted(widths, reverse=True)):
        yield make_cut(size, tile, channels, gradients)


@functools.lru_cache(maxsize=256)
def cut(
    n: int, channels: int, size: Pair, gradients: bool, multiprocessors: int, shared_limit: int
) -> Cut:
    """The cut with which n images are expected to take the shortest time.

    Args:
        n: images; the units of all of them share the device's multiprocessors.
        size: (H, W).
        gradients: for `single_layer_step`; False for `single_layer_forward`.
        multiprocessors, shared_limit: of the device; bytes that one block may have.

    Raises:
        InputError: if the images are too many for one launch.
    """
    room = shared_limit - STATIC_SHARED
    fitting = [c for c in cuts(size, channels, gradients) if c.shared <= room]  # 8x8 always fits
    best = min(fitting, key=lambda c: ceil_div(n * c.tiles, multiprocessors) * c.cost)
    if n * best.tiles >= 1 << 31:
        raise InputError(f"{n} images are too many for one launch: use a smaller batch")
    return best
