"""The constants of kernels/conv2d_tiles.cuh, and how a map is cut into its tiles.

`constants` depends on the layer alone, so that a layer is compiled once; `Tiling` fits the tile to
the size of the image at launch. Strips, bands and tiles are drawn there.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from cae_raw.errors import InputError
from cae_raw.ops.windows import Pair

WARP = 32
# Half of what a block may have without asking, so that several blocks share a multiprocessor.
SHARED_FLOATS = 24 * 1024 // 4
SHARED_FLOATS_LIMIT = 47 * 1024 // 4
# A strip's column of inputs lives in registers, beside its sums.
COLUMN_LIMIT = 40
# Enough blocks to fill any GPU a few times over. A constant, because the order of a sum follows it.
BLOCKS_OF_A_SUM = 512


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


@dataclass(frozen=True)
class Tiling:
    """`tile_strips` strips of `pixels` outputs in bands of `tile_w` columns over an OH x OW map."""

    size: Pair
    pixels: int
    tile_w: int
    tile_strips: int

    def tiles(self, n: int) -> int:
        """Tiles of n images."""
        strips = ceil_div(self.size[0], self.pixels) * self.tile_w
        return n * ceil_div(self.size[1], self.tile_w) * ceil_div(strips, self.tile_strips)


def region_floats(
    tile_w: int, tile_strips: int, pixels: int, taps: Pair, stride: Pair, strip_rows: int
) -> int:
    """Inputs per channel under the worst-placed tile of a map with `strip_rows` rows of strips."""
    if tile_w % tile_strips == 0:
        touched = 1
    elif tile_strips % tile_w == 0:
        touched = tile_strips // tile_w
    else:  # a tile can begin at the end of a row
        touched = (tile_strips - 2) // tile_w + 2
    touched = min(touched, strip_rows)
    rows = (touched * pixels - 1) * stride[0] + taps[0]
    return rows * ((tile_w - 1) * stride[1] + taps[1])


@functools.lru_cache(maxsize=1024)
def fit(
    size: Pair, pixels: int, strips: int, taps: Pair, stride: Pair, capacity: int, together: int = 1
) -> Tiling:
    """The widest bands, and then the largest tiles, whose region fits `capacity` floats.

    Every band and tile begins at a multiple of `together` columns.
    """
    strip_rows = ceil_div(size[0], pixels)
    for tile_strips in _halves(strips, together):
        for bands in range(ceil_div(size[1], strips), size[1] + 1):
            tile_w = ceil_div(size[1], bands * together) * together
            if tile_w < 8 and tile_w < size[1] and tile_strips > together:
                break  # shorter tiles before narrower bands
            if region_floats(tile_w, tile_strips, pixels, taps, stride, strip_rows) <= capacity:
                return Tiling(size, pixels, tile_w, tile_strips)
    raise AssertionError("the smallest tile always fits")


def _halves(n: int, smallest: int) -> Iterator[int]:
    while n >= smallest:
        yield n
        n //= 2


@functools.lru_cache(maxsize=256)
def constants(c: int, o: int, kernel_size: Pair, stride: Pair) -> dict[str, int] | None:
    """The -D constants of one layer; None if a tile of it does not fit into shared memory."""
    forward = _direction("FWD", c, o, kernel_size, stride)
    # The gradient of the input moves the window by single steps, over a map with gaps.
    backward = _direction("INP", o, c, kernel_size, (1, 1))
    weight = _weight(c, o, kernel_size, stride)
    if forward is None or backward is None or weight is None:
        return None
    (kh, kw), (sh, sw) = kernel_size, stride
    layer = {"C": c, "O": o, "KH": kh, "KW": kw, "SH": sh, "SW": sw}
    return {**layer, **forward, **backward, **weight}


def _region_capacity(strips: int, pixels: int, taps: Pair, stride: Pair) -> int:
    """Room for a tile that is one row of strips, or touches three, or is eight columns wide."""
    return max(
        region_floats(w, strips, pixels, taps, stride, strips) for w in (8, strips // 2 + 2, strips)
    )


def _direction(
    prefix: str, inputs: int, outputs: int, kernel_size: Pair, stride: Pair
) -> dict[str, int] | None:
    taps = kernel_size[0] * kernel_size[1]
    for per_thread in (outputs if outputs <= 12 else 8, min(outputs, 4)):
        # With few output channels take more pixels, so that a shared value is used as often.
        for pixels in (8, 4, 2, 1) if per_thread <= 4 else (4, 2, 1):
            if (pixels - 1) * stride[0] + kernel_size[0] > COLUMN_LIMIT:
                continue
            groups = min(ceil_div(outputs, per_thread), 4)
            for strips in (128, 64, 32) if groups == 1 else (64, 32):
                region = _region_capacity(strips, pixels, kernel_size, stride)
                pitch = groups * ceil_div(per_thread, 4) * 4 + 4
                chunk = SHARED_FLOATS // (region + taps * pitch)
                if chunk == 0 and region + taps * pitch <= SHARED_FLOATS_LIMIT:
                    chunk = 1
                if chunk == 0:
                    continue
                # Chunks of equal size: 12 channels as 6 + 6, not 8 + 4.
                chunk = ceil_div(inputs, ceil_div(inputs, min(chunk, inputs)))
                return {
                    f"{prefix}_THREADS": groups * strips,
                    f"{prefix}_PIXELS": pixels,
                    f"{prefix}_STRIPS": strips,
                    f"{prefix}_PER_THREAD": per_thread,
                    f"{prefix}_GROUPS": groups,
                    f"{prefix}_CHUNK": chunk,
                    f"{prefix}_REGION": region,
                }
    return None


def _weight(c: int, o: int, kernel_size: Pair, stride: Pair) -> dict[str, int] | None:
    # At most nine taps a warp: a 3x3 window at once, a larger one in rows of up to five.
    whole = kernel_size[0] * kernel_size[1] <= 9
    taps_w = kernel_size[1] if whole else min(kernel_size[1], 5)
    taps_h = kernel_size[0] if whole else min(kernel_size[0], 9 // taps_w)
    per_thread = min(o, 4 if taps_h * taps_w > 4 else 8)
    out_warps = min(ceil_div(o, per_thread), 8)
    in_warps = max(1, min(c, 8 // out_warps))
    for pixels in (4, 2, 1):
        if (pixels - 1) * stride[0] + taps_h > COLUMN_LIMIT:
            continue
        for strips in (128, 64, 32):
            region = _region_capacity(strips, pixels, (taps_h, taps_w), stride)
            if in_warps * region <= SHARED_FLOATS or (
                strips == 32 and in_warps * region <= SHARED_FLOATS_LIMIT
            ):
                return {
                    "WGT_THREADS": WARP * out_warps * in_warps,
                    "WGT_PIXELS": pixels,
                    "WGT_STRIPS": strips,
                    "WGT_PER_THREAD": per_thread,
                    "WGT_OUT_WARPS": out_warps,
                    "WGT_IN_WARPS": in_warps,
                    "WGT_TAPS_H": taps_h,
                    "WGT_TAPS_W": taps_w,
                    "WGT_REGION": region,
                }
    return None


def tiles(
    k: Mapping[str, int],
    prefix: str,
    n: int,
    size: Pair,
    taps: Pair,
    stride: Pair,
    together: int = 1,
) -> tuple[int, dict[str, int]]:
    """How many pieces of work n maps of `size` are, and the kernel's arguments about the tile."""
    pixels, strips, inputs = k[f"{prefix}_PIXELS"], k[f"{prefix}_STRIPS"], k[f"{prefix}_REGION"]
    tiling = fit(tuple(size), pixels, strips, taps, stride, inputs, together)
    blocks = 1
    if prefix != "WGT":  # each block has some of the output channels
        outputs = k["O"] if prefix == "FWD" else k["C"]
        blocks = ceil_div(outputs, k[f"{prefix}_GROUPS"] * k[f"{prefix}_PER_THREAD"])
    pieces = tiling.tiles(n) * blocks
    if pieces >= 2**31:
        raise InputError(f"{n} maps of {size} are too many for one launch: use a smaller batch")
    return pieces, {"tile_w": tiling.tile_w, "tile_strips": tiling.tile_strips}


def weight_units(k: Mapping[str, int]) -> int:
    """How many blocks share out the channels and taps of one piece of backward_weight."""
    return (
        ceil_div(k["O"], k["WGT_OUT_WARPS"] * k["WGT_PER_THREAD"])
        * ceil_div(k["C"], k["WGT_IN_WARPS"])
        * ceil_div(k["KH"], k["WGT_TAPS_H"])
        * ceil_div(k["KW"], k["WGT_TAPS_W"])
    )
