"""The constants of the fused single-layer kernels, and how images are cut into their units of work.

The kernels are those of single_layer_step.cu, and for the precisions on tensor cores those of
single_layer_step_mma.cu.

A unit is a tile of an image whose code a block keeps in shared memory; a whole image where that
fits and there are enough images to keep the GPU busy. The cut depends on the shapes and on two
numbers of the device, so on one kind of GPU a sum always has the same order.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from cae_raw.errors import InputError, unknown_name
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

# The kernels on tensor cores: groups of 8 positions, and in stage 2 four rows x 8 columns of y.
SPLIT = {"tf32": 0, "tf32x3": 1}
FEATURE_TILE = 16  # features in a product's rows
GROUP, BAND = 8, 4
PITCH, PLANE = 10, 31  # of x and dy, modulo 32 floats: no two lanes read from one bank

# Per group, strip of a band and group. With tf32 it is the instructions, in the same machine code;
# with tf32x3 the tensor cores take longer than that, 6.7 cycles of a scheduler per product.
MMA_COSTS = {"tf32": (118, 402, 229), "tf32x3": (160, 960, 480)}

FEW = 16  # cuts of a side that are all tried; beyond that, tiles of some widths
WIDTHS = (8, 12, 16, 24, 32, 48, 64)


def file_and_constants(
    channels: int, filters: int, *, decoder_tanh: bool, sparse: bool, precision: str
) -> tuple[str, dict[str, int]]:
    """The kernels' file and its -D constants. `sparse` compiles what the sparsity term needs.

    Raises:
        InputError: for a precision that the kernels do not have.
    """
    both = {
        "C": channels, "F": filters, "THREADS": THREADS,
        "DECODER_TANH": int(decoder_tanh), "SPARSE": int(sparse),
    }  # fmt: skip
    if precision == "float32":
        return "single_layer_step", {**both, "BACK_ROWS": BACK_ROWS, "BACK_COLS": BACK_COLS}
    if precision not in SPLIT:
        raise unknown_name("precision", precision, ("float32", *SPLIT))
    return "single_layer_step_mma", {**both, "SPLIT": SPLIT[precision], "BF16": 0}


def serves(weight_shape: tuple[int, ...]) -> bool:
    """Whether the kernels are made for an encoder of this shape (F, C, KH, KW)."""
    f, c, *kernel_size = weight_shape
    return kernel_size == [3, 3] and 1 <= c <= MAX_CHANNELS and 1 <= f <= MAX_FILTERS


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def round_up(a: int, b: int) -> int:
    return ceil_div(a, b) * b


def round_up_to(a: int, remainder: int) -> int:
    """The least number from a on that is `remainder` modulo 32."""
    return a + (remainder - a) % WARP


@dataclass(frozen=True)
class Cut:
    """Tiles of `tile` positions, and the buffers in shared memory that the largest one needs.

    Args:
        tile: (height, width).
        tiles: per image.
        rows, pitch: of a plane of x, and of dy.
        code: by the name that the kernels have for it, how the rest is laid out: `code_pitch`, the
            positions in a row of the code; or `plane`, the floats of a plane of x, and
            `positions` of the code.
        shared: bytes of dynamic shared memory.
        cost: instructions of a warp for one unit, see above.
    """

    tile: Pair
    tiles: int
    rows: int
    pitch: int
    code: dict[str, int]
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
    return Cut(tile, count, rows, pitch, {"code_pitch": code_pitch}, 4 * floats, cost)


def make_mma_cut(
    size: Pair, tile: Pair, channels: int, gradients: bool, filters: int, precision: str
) -> Cut:
    """The same for the kernels on tensor cores."""
    halo = BORDER if gradients else 0
    height, width = (min(t + halo, s) for t, s in zip(tile, size, strict=True))  # of y
    own = [min(t, s + halo) for t, s in zip(tile, size, strict=True)]
    code_rows, code_cols = height + BORDER, width + BORDER
    rows, pitch = code_rows + 2, round_up_to(code_cols + 2, PITCH)
    plane = round_up_to(rows * pitch, PLANE)
    planes = channels * (2 if gradients else 1) * plane
    positions = round_up(code_rows * code_cols, GROUP)
    features = round_up(filters, FEATURE_TILE)
    strips = WARPS * 2 * BAND * 3 * channels * GROUP
    weights = (18 * channels + 1) * (WARP + 4)
    floats = round_up(weights + planes, 4) + positions * (features + 4) + strips

    encode, decode, backward = MMA_COSTS[precision]
    cost = UNIT_COST + LOAD_COST * ceil_div(channels * rows * pitch, THREADS)
    cost += encode * ceil_div(positions // GROUP, WARPS)
    bands, along = ceil_div(height, BAND), ceil_div(code_cols, GROUP)
    chunks = max(1, min(along, WARPS // bands))  # as in the kernel
    longest = ceil_div(along, chunks) + (chunks > 1)
    cost += decode * ceil_div(bands * chunks, WARPS) * longest
    if gradients:
        cost += backward * ceil_div(ceil_div(own[0] * own[1], GROUP), WARPS)
    count = ceil_div(size[0] + halo, tile[0]) * ceil_div(size[1] + halo, tile[1])
    code = {"plane": plane, "positions": positions}
    return Cut(tile, count, rows, pitch, code, 4 * floats, cost)


def cuts(size: Pair, channels: int, gradients: bool, filters: int, precision: str) -> Iterator[Cut]:
    """The whole image, and smaller tiles; widths are even unless there is one."""
    sides = [s + (BORDER if gradients else 0) for s in size]
    heights, widths = (
        {ceil_div(side, count) for count in range(1, FEW + 1)} | {w for w in WIDTHS if w < side}
        for side in sides
    )
    widths = {w if w == sides[1] else round_up(w, 2) for w in widths}
    for tile in itertools.product(sorted(heights, reverse=True), sorted(widths, reverse=True)):
        if precision == "float32":
            yield make_cut(size, tile, channels, gradients)
        else:
            yield make_mma_cut(size, tile, channels, gradients, filters, precision)


@functools.lru_cache(maxsize=256)
def cut(
    n: int,
    channels: int,
    size: Pair,
    gradients: bool,
    multiprocessors: int,
    shared_limit: int,
    filters: int = MAX_FILTERS,
    precision: str = "float32",
) -> Cut:
    """The cut with which n images are expected to take the shortest time.

    Args:
        n: images; the units of all of them share the device's multiprocessors.
        size: (H, W).
        gradients: for `single_layer_step`; False for `single_layer_forward`.
        multiprocessors, shared_limit: of the device; bytes that one block may have.
        filters, precision: what the kernels on tensor cores need to know.

    Raises:
        InputError: if the images are too many for one launch.
    """
    room = shared_limit - STATIC_SHARED
    every = cuts(size, channels, gradients, filters, precision)
    fitting = [c for c in every if c.shared <= room]  # 8x8 always fits
    best = min(fitting, key=lambda c: ceil_div(n * c.tiles, multiprocessors) * c.cost)
    if n * best.tiles >= 1 << 31:
        raise InputError(f"{n} images are too many for one launch: use a smaller batch")
    return best
