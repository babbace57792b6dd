"""The checks catch wrong kernels: each fault here is an edit of a copy of the kernel files.

A test that cannot fail proves nothing. Every fault is one that people make: a tail without its
guard, a barrier left out, an index computed from the wrong size, height and width exchanged.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import emulator
import kernel_checks
import pytest
from cases import CASES, Case

from cae_raw.backends.kernel_source import kernels_dir

pytestmark = pytest.mark.skipif(emulator.available() is not None, reason=str(emulator.available()))


@dataclass(frozen=True)
class Fault:
    """Replace `old`, which stands once in kernels/`file`, by `new`; the case `case` shows it."""

    name: str
    file: str
    old: str
    new: str
    op: str
    case: str


FAULTS = [
    # Tails without their guard. What they write lands in the red zones, so these cases are small.
    Fault("barrier-after-a-block-sum", "common.cuh",
          "__syncthreads();  // before the next call overwrites of_warp", "",
          "squared_error", "prime"),
    Fault("barrier-before-the-next-tile", "conv2d_tiles.cuh",
          "__syncthreads();  // before the next tile overwrites what is staged", "",
          "conv2d_backward_weight", "encoder"),
    Fault("barrier-before-adding-columns", "common.cuh",
          "of_warp[warp][column] = sum;\n    __syncthreads();", "of_warp[warp][column] = sum;",
          "linear_backward_bias", "primes"),
    Fault("tail-elements", "common.cuh", "k < (n);", "k < (n) + 1;", "relu_forward", "prime"),
    Fault("tail-columns", "common.cuh", "if (warp == 0 && m < M)", "if (warp == 0)",
          "linear_backward_bias", "primes"),
    Fault("tail-rows-of-a-product", "linear.cu", "if (row < M && column < N)", "if (column < N)",
          "linear_forward", "small"),
    Fault("tail-k", "operand.cuh", "row < rows ? k_end - (k + 4 * h) : 0", "row < rows ? 4 : 0",
          "linear_forward", "primes"),
    Fault("tail-rows-of-a-strip", "conv2d_tiles.cuh", "if (row + k < height) {", "{",
          "conv2d_forward", "encoder"),
    Fault("tail-columns-of-a-band", "conv2d_tiles.cuh", "if (!inside || column >= width) return;",
          "if (!inside) return;", "conv2d_forward", "encoder-wide"),
    Fault("tail-of-the-weight-gradient", "conv2d_tiles.cuh", "o0 + t < O && i < OH && j < OW",
          "o0 + t < O && j < OW", "conv2d_backward_weight", "encoder"),
    Fault("tail-rows-of-the-pooled", "conv2d_tiles.cuh", "inside && i < height && j < width",
          "inside && j < width", "conv2d_pool_forward", "deep-12-12"),
    Fault("tail-columns-of-the-pooled", "conv2d_tiles.cuh", "inside && i < height && j < width",
          "inside && i < height", "conv2d_pool_forward", "several-bands"),
    Fault("tail-rows-of-the-selected", "conv2d_tiles.cuh", "if (i >= height) break;", "",
          "unpool_conv2d_backward_input", "deep-12-12-odd"),
    Fault("tail-columns-of-the-selected", "conv2d_tiles.cuh", "if (!inside || j >= width) return;",
          "if (!inside) return;", "unpool_conv2d_backward_input", "three-bands"),
    Fault("tail-of-four", "common.cuh", "if (count > 2) to[2] = v.z;", "to[2] = v.z;",
          "sgd_step", "257-parameters"),
    Fault("wide-writes-in-the-tail", "common.cuh", "if (wide && count >= 4) {", "if (wide) {",
          "adam_step", "257-parameters-after-41"),
    Fault("tail-piece", "optim.cu", "end = min(begin + PIECE, P)", "end = begin + PIECE",
          "penalty", "10007-parameters"),
    # Barriers left out.
    Fault("barrier-of-a-step-in-float32", "linear.cu",
          "past the last barrier.\n      __syncthreads();", "", "linear_forward", "primes"),
    Fault("one-buffer-for-two-in-float32", "linear.cu", "buffer ^= 1;", "", "linear_forward",
          "primes"),
    Fault("barrier-after-staging", "conv2d_tiles.cuh",
          "__syncthreads();\n      for (int c = 0; c < channels", "for (int c = 0; c < channels",
          "conv2d_forward", "encoder"),
    Fault("barrier-before-the-next-chunk", "conv2d_tiles.cuh",
          "__syncthreads();  // before the next chunk overwrites what is staged", "",
          "conv2d_forward", "decoder"),
    Fault("barrier-after-staging-x", "conv2d_tiles.cuh", "__syncthreads();\n      if (c < C)",
          "if (c < C)", "conv2d_backward_weight", "encoder"),
    Fault("barrier-in-a-block-sum", "common.cuh",
          "= v;\n  __syncthreads();\n  T sum", "= v;\n  T sum", "squared_error", "prime"),
    Fault("barrier-before-the-next-columns", "common.cuh",
          "__syncthreads();  // before the next piece overwrites of_warp", "",
          "linear_backward_bias", "primes"),
    Fault("barrier-before-shared-scalars", "optim.cu",
          "  __syncthreads();\n  const float keep1", "  const float keep1",
          "adam_step", "257-parameters-after-41"),
    Fault("barrier-of-a-step", "linear_mma.cu",
          "past the last barrier.\n      __syncthreads();", "",
          "linear_forward", "tf32-primes"),
    Fault("one-buffer-for-two", "linear_mma.cu", "buffer ^= 1;", "", "linear_forward",
          "tf32-primes"),
    # Tails of the products on tensor cores.
    Fault("tail-k-of-a-row", "operand.cuh", "row < rows ? k_end - (k + 4 * h) : 0",
          "row < rows ? 4 : 0", "linear_forward", "bf16-primes"),
    Fault("tail-k-of-a-column", "operand.cuh", "k + h < k_end ?", "true ?",
          "linear_backward_weight", "bf16-primes"),
    Fault("tail-columns-of-rounded-products", "linear_mma.cu", "if (m >= M || n >= N) continue;",
          "if (m >= M) continue;", "linear_forward", "tf32-small"),
    Fault("tail-of-a-pair", "linear_mma.cu", "if (both) to[1] = v.y;", "to[1] = v.y;",
          "linear_forward", "tf32-small"),
    Fault("wide-reads-of-any-address", "operand.cuh", "wide(pitch_ % 4 == 0 && ", "wide(",
          "linear_forward", "tf32-primes"),
    # Wrong indices.
    Fault("first-split-only-on-tensor-cores", "linear_mma.cu", "split * k_per_split, k_end",
          "0, k_end", "linear_forward", "tf32-long-input"),
    Fault("halves-of-a-word-exchanged", "linear_mma.cu", "{kept(a.x, a.y), kept(a.z, a.w)",
          "{kept(a.y, a.x), kept(a.w, a.z)", "linear_backward_input", "bf16-several-tiles"),
    Fault("bf16-cut-off", "mma.cuh", "bits + 0x7fffu + (bits >> 16 & 1)", "bits",
          "linear_forward", "bf16-several-tiles"),
    Fault("tf32-cut-off", "mma.cuh", "(bits + 0x1000u)", "bits", "linear_forward",
          "tf32-several-tiles"),
    # A product of split operands: each part left out, or put in the place of another.
    Fault("small-of-the-left-forgotten", "mma.cuh", "mma(d, a.small, b.big);", "",
          "linear_forward", "tf32x3-primes"),
    Fault("small-of-the-right-forgotten", "mma.cuh", "mma(d, a.big, b.small);", "",
          "linear_backward_input", "tf32x3-several-tiles"),
    Fault("big-alone", "mma.cuh", "v - __uint_as_float(big[i])", "0.0f",
          "linear_backward_weight", "tf32x3-several-tiles"),
    Fault("small-of-another-word", "mma.cuh", "v - __uint_as_float(big[i])",
          "v - __uint_as_float(big[0])", "linear_forward", "tf32x3-small"),
    Fault("rounded-before-it-is-split", "linear_mma.cu",
          "SPLIT ? __float_as_uint(v) : word(v, next)", "word(v, next)",
          "linear_forward", "tf32x3-primes"),
    Fault("last-product-only", "mma.cuh", "sum[i] += product[i]", "sum[i] = product[i]",
          "linear_forward", "tf32x3-primes"),
    Fault("tap-number", "pool2d.cu", "winner = p * KW + q;\n        }",
          "winner = p * KH + q;\n        }", "maxpool_forward", "rows-not-columns"),
    Fault("last-maximum-wins", "pool2d.cu", "!(candidate <= best)", "!(candidate < best)",
          "maxpool_forward", "halves-ties"),
    Fault("nan-loses", "pool2d.cu", "!(candidate <= best) && best == best", "candidate > best",
          "maxpool_forward", "halves-ties"),
    Fault("mask-followed-off-the-map", "pool2d.cu", "p < KH && h >= 0 && h < H", "p < KH && h >= 0",
          "mask_gather", "rows-not-columns"),
    Fault("window-not-turned", "conv2d_tiles.cuh", "(KH * KW - 1 - tap)", "tap",
          "conv2d_backward_input", "deep-12-12"),
    Fault("channels-exchanged", "conv2d_tiles.cuh", "((long long)in * C + out)",
          "((long long)out * O + in)", "conv2d_backward_input", "deep-12-24"),
    Fault("group-forgotten", "conv2d_tiles.cuh", "* PITCH + group * SLOT", "* PITCH",
          "conv2d_forward", "encoder"),
    Fault("columns-of-a-window-exchanged", "conv2d_tiles.cuh", "const bool right = column % 2;",
          "const bool right = column % 2 == 0;", "conv2d_pool_forward", "deep-12-12"),
    Fault("last-maximum-of-a-fused-window", "conv2d_tiles.cuh", "!(taps[tap] <= best)",
          "!(taps[tap] < best)", "conv2d_pool_forward", "equal-values"),
    Fault("nan-loses-in-a-fused-window", "conv2d_tiles.cuh", "!(taps[tap] <= best) && best == best",
          "taps[tap] > best", "conv2d_pool_forward", "equal-values"),
    Fault("gate-forgotten", "conv2d_tiles.cuh", "if (gate) v *= *of_gate > 0.0f ? 1.0f : 0.0f;", "",
          "conv2d_pool_backward_input", "deep-12-12-odd"),
    Fault("gate-of-the-selected-forgotten", "conv2d_tiles.cuh",
          "if (gate) v *= gate[at] > 0.0f ? 1.0f : 0.0f;", "",
          "unpool_conv2d_backward_input", "deep-12-12-odd"),
    Fault("mask-that-names-no-place", "conv2d_tiles.cuh", "if (winner > 3) v = 0.0f;", "",
          "unpool_conv2d_backward_input", "deep-12-12-odd"),
    Fault("first-split-only", "linear.cu", "split * k_per_split, k_end", "0, k_end",
          "linear_forward", "long-input"),
    Fault("image-forgotten", "batch.cu", "data[image * L + at]", "data[at]",
          "gather", "signed-5x3x7x5"),
    Fault("fused-multiply-add", "batch.cu",
          "__fadd_rn(__fmul_rn((float)data[image * L + at], scale), shift)",
          "fmaf((float)data[image * L + at], scale, shift)", "gather", "signed-13x3x32x32"),
    Fault("mirrored-upside-down", "batch.cu", "at + W - 1 - 2 * (at % W)", "L - 1 - at",
          "gather_flipped", "5x3x7x5"),
    Fault("sign-of-zero", "loss.cu", "x[k] < 0.0f ? -1.0f : x[k]", "-1.0f",
          "l1_backward", "prime"),
    # Height and width exchanged.
    Fault("stage-height-width", "conv2d_tiles.cuh",
          "h < source.height && v < source.width", "h < source.width && v < source.height",
          "conv2d_forward", "deep-3-12"),
    Fault("unpooled-height-width", "conv2d_tiles.cuh", "h % 2 * 2 + v % 2", "v % 2 * 2 + h % 2",
          "unpool_conv2d_forward", "deep-12-12"),
    Fault("unpooled-pitch", "conv2d_tiles.cuh", "(h / 2) * columns", "(h / 2) * rows",
          "conv2d_pool_backward_weight", "rows-not-columns"),
    Fault("strides-exchanged", "conv2d_tiles.cuh",
          "tiling.template tile<KH, KW, V::stride_h, V::stride_w>",
          "tiling.template tile<KH, KW, V::stride_w, V::stride_h>",
          "conv2d_forward", "stride-above-kernel"),
    Fault("direct-height-width", "conv2d_direct.cu",
          "divide(divide(divide(k, OW, j), OH, i), O, o)",
          "divide(divide(divide(k, OH, i), OW, j), O, o)",
          "conv2d_forward", "window-beyond-a-tile"),
    Fault("pool-height-width", "pool2d.cu", "long long at = (plane * OH + i) * OW + j;",
          "long long at = (plane * OW + i) * OH + j;", "mask_scatter", "rows-not-columns"),
    Fault("pad-top-left", "pad2d.cu", "int h = i - top, w = j - left;",
          "int h = i - left, w = j - top;", "pad2d_forward", "four-different-5x8"),
    Fault("crop-top-left", "pad2d.cu", "h + top) * PW + w + left", "h + left) * PW + w + top",
          "pad2d_backward", "four-different-5x8"),
    # The fused step. Several images, so that a block takes more than one.
    Fault("barrier-before-the-unit", "single_layer_step.cu",
          "__syncthreads();  // the unit is there\n      load_image<true>", "load_image<true>",
          "single_layer_gradients", "gray-odd"),
    Fault("barrier-before-encoding", "single_layer_step.cu",
          "__syncthreads();  // x and the weights are there\n      encode(s, u, nullptr",
          "encode(s, u, nullptr", "single_layer_gradients", "gray-odd"),
    Fault("barrier-before-decoding", "single_layer_step.cu",
          "__syncthreads();  // the code is there\n      decode<true>", "decode<true>",
          "single_layer_gradients", "gray-odd"),
    Fault("barrier-before-the-backward-pass", "single_layer_step.cu",
          "__syncthreads();  // dy is there", "", "single_layer_gradients", "gray-odd"),
    Fault("barrier-before-the-next-image", "single_layer_step.cu",
          "__syncthreads();  // before the next image overwrites x and dy", "",
          "single_layer_gradients", "gray-odd"),
    Fault("barrier-before-the-next-warp-adds", "single_layer_step.cu",
          "__syncthreads();  // before the next warp adds", "",
          "single_layer_gradients", "gray-odd"),
    Fault("barrier-in-the-forward-twin", "single_layer_step.cu",
          "__syncthreads();  // before the next image overwrites x\n", "",
          "single_layer_forward", "gray-odd"),
    Fault("tail-of-a-forward-tile", "single_layer_step.cu",
          "if (tile >= tiles || i >= u.height || j >= u.width) continue;",
          "if (tile >= tiles) continue;", "single_layer_gradients", "gray-odd"),
    Fault("tail-of-a-backward-tile", "single_layer_step.cu",
          "d[i][j] = i < rows && j < cols ? d[i][j] * (1.0f - value * value) : 0.0f;",
          "d[i][j] = d[i][j] * (1.0f - value * value);", "single_layer_gradients", "color-wide"),
    Fault("halo-counted-twice", "single_layer.cuh",
          "bool own = i >= u.own_i && j >= u.own_j;", "bool own = true;",
          "single_layer_gradients", "color-wide"),
    Fault("lanes-exchanged", "single_layer_step.cu", "bool upper = lane & half;",
          "bool upper = !(lane & half);", "single_layer_gradients", "gray-odd"),
    Fault("sign-forgotten", "single_layer_step.cu", "copysignf(sparsity, value)", "sparsity",
          "single_layer_gradients", "sparse"),
    # The fused step on tensor cores.
    Fault("barrier-before-backward-products", "single_layer_step_mma.cu",
          "__syncthreads();  // dy is there", "", "single_layer_gradients", "tf32x3-gray-odd"),
    Fault("strips-read-too-early", "single_layer_step_mma.cu",
          "__syncwarp();  // the strip is there", "", "single_layer_forward", "tf32x3-gray-odd"),
    Fault("order-along-k", "single_layer_step_mma.cu", "h[m].set(2 * e + half, value);",
          "h[m].set(2 * half + e, value);", "single_layer_gradients", "tf32x3-gray-odd"),
    Fault("small-terms-left-out", "mma.cuh", "if (SPLIT) {\n    mma(d, a.small, b.big);",
          "if (false) {\n    mma(d, a.small, b.big);", "single_layer_gradients", "tf32x3-gray-odd"),
    Fault("tail-of-a-group", "single_layer_step_mma.cu", "const float one = inside ? 1.0f : 0.0f;",
          "const float one = 1.0f;", "single_layer_gradients", "tf32x3-gray-odd"),
    Fault("taps-beyond-the-last", "single_layer_step_mma.cu",
          "tap < PLANES ? from[turn ? turned(tap) : tap][f] : 0.0f",
          "from[turn ? turned(tap) : tap][f]", "single_layer_gradients", "tf32x3-gray-odd"),
    Fault("chunks-without-overlap", "single_layer_step_mma.cu", "strip < min(end + 1, strips)",
          "strip < end", "single_layer_forward", "tf32x3-gray-odd"),
    Fault("taps-not-turned", "single_layer_step_mma.cu", "to.decoder[turned(tap)][f]",
          "to.decoder[tap][f]", "single_layer_gradients", "tf32x3-gray-odd"),
    # Arithmetic.
    Fault("momentum-on-the-gradient", "optim.cu", "momentum * velocity + gradient",
          "velocity + momentum * gradient", "sgd_step", "257-parameters"),
    Fault("step-counted-by-every-block", "optim.cu",
          "atomicAdd(readers, 1u) == gridDim.x - 1", "true",
          "adam_step", "10007-parameters-after-41"),
    Fault("readers-not-set-back", "optim.cu", "*readers = 0;", "", "sgd_step", "257-parameters"),
    Fault("penalty-not-doubled", "optim.cu", "gradient += 2.0f * penalty", "gradient += penalty",
          "adam_step", "257-parameters-penalised-after-41"),
    Fault("maximum-not-subtracted", "cross_entropy.cu", "top = warp_max_everywhere(top);",
          "top = 0.0f;", "cross_entropy", "large-logits"),
    Fault("maximum-of-each-lane", "cross_entropy.cu", "top = warp_max_everywhere(top);", "",
          "cross_entropy", "digits-int64"),
    Fault("sum-of-each-lane", "cross_entropy.cu", "sum = warp_sum_everywhere(sum);", "",
          "cross_entropy", "more-than-a-warp-uint8"),
    Fault("target-forgotten", "cross_entropy.cu", "(k == label ? 1.0f : 0.0f)", "0.0f",
          "cross_entropy", "digits-uint8"),
    Fault("tail-rows-of-logits", "cross_entropy.cu", "end = min(begin + ROWS, N)",
          "end = begin + ROWS", "cross_entropy", "pieces-int64"),
    Fault("a-wrong-label-passes", "cross_entropy.cu",
          "if (!known) sum = 0.0f * __int_as_float(0x7f800000);  // NaN", "",
          "cross_entropy", "labels-outside-int64"),
    Fault("every-lane-adds-its-loss", "cross_entropy.cu", "if (lane == 0) total +=", "total +=",
          "cross_entropy", "many-classes-int64"),
    Fault("an-input-is-changed", "activation.cu", "dx[k] = dy[k] * (1.0f - y[k] * y[k]);",
          "{ dx[k] = dy[k] * (1.0f - y[k] * y[k]); ((float*)y)[k] = 0; }",
          "tanh_backward", "prime"),
]  # fmt: skip


def the_case(fault: Fault) -> Case:
    return next(c for c in CASES[fault.op] if c.name == fault.case)


def copy_of_the_kernels(folder: Path) -> Path:
    return Path(shutil.copytree(kernels_dir(), folder / "kernels"))


@pytest.mark.parametrize("fault", FAULTS, ids=lambda f: f.name)
def test_fault_is_caught(fault: Fault, tmp_path: Path) -> None:
    folder = copy_of_the_kernels(tmp_path)
    path = folder / fault.file
    text = path.read_text()
    assert text.count(fault.old) == 1, "the edit must change the text in one place"
    path.write_text(text.replace(fault.old, fault.new))
    backends = [kernel_checks.emulated(seed, folder) for seed in (0, 1)]
    with pytest.raises((kernel_checks.Mismatch, emulator.EmulatorError)) as caught:
        kernel_checks.check(the_case(fault), backends)
    # It must fail because it is wrong, not because the edit does not compile.
    assert not isinstance(caught.value, emulator.CompileError), caught.value


def test_a_copy_without_a_fault_passes(tmp_path: Path) -> None:
    folder = copy_of_the_kernels(tmp_path)
    backends = [kernel_checks.emulated(seed, folder) for seed in (0, 1)]
    for case in {str(the_case(f)): the_case(f) for f in FAULTS}.values():
        kernel_checks.check(case, backends)
