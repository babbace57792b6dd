"""The single-layer autoencoder's loss and gradients in one go, a few images at a time, on the CPU.

    h = tanh(W1 * x + b1)      y = tanh(W2 * h + b2)      total = sum of (y - x)^2

with the first convolution fully padded and the second not padded, as in `models.single_layer`. It
computes what the layers compute, to rounding; it exists because it is faster. What lives where, for
each image, with T = C * K * K taps and L = (H + K-1) * (W + K-1) positions:

    padded_x (C, ...)  --shift-->  copies_x (T + 1, L)    last row: ones
             code (F, L)        =  tanh([W1 b1] copies_x)
    contributions (T, L)        =  W2' code               --shift back, add-->  y (C, H, W)
    padded_dy (C, ...) --shift-->  copies_dy (T, L)       in the memory of the contributions
             dW2'^T (F, T)      =  code copies_dy^T
             dcode (F, L)       =  W2'^T copies_dy * (1 - code^2)
         [dW1 db1] (F, T + 1)   =  dcode copies_x^T

The floor for an image of CIFAR-10 is 9.3 million operations, 55 us at the 170 GFLOP/s that large
products reach on one core of a Xeon (Sapphire Rapids), and 9 us of tanh. It takes 105 to 115 us, of
which the products are 60; without the points with a star it takes 1.4 to 1.5 times as long, in the
same run. Each point is measured alone, on one thread (on an EPYC, Zen 5, all that is 77 us):

- One buffer of shifted copies serves a forward product and the weight gradient that goes with it,
  and a row of ones under it makes both yield the bias as well.
- Products stay under a million multiply-adds, where OpenBLAS computes small matrices without
  packing them first: 15 us instead of 23 us for the encoder's product.
- * Training keeps the code position by position, (L, F): both weight gradients are then sums of
  outer products, 12 us each instead of 21. The decoder's product would lose that, 22 us instead of
  13, but for 32 rows of it, the last of them zeros, it takes 15. Evaluation keeps the code (F, L),
  and does without those rows.
- * Weights are handed over transposed: 13 us instead of 15 for each product with them.
- * Rows of a map follow each other with the zeros between them there once, so that a shift is one
  long copy, and the way back one long addition, instead of one per row of pixels: 15 us less.
- * Two images at a time, which stay in 2 MB of second-level cache, instead of eight: 12 us less.
  One at a time takes 8 us more, which are calls of NumPy.
- * Arrays begin with a cache line: 7 us less.
- * Passes over x, y and dy run over the borders, too, because NumPy may copy shorter runs through a
  buffer, see `scratch.BUFFER`: 3 us less where that has its usual size.

Images whose copies would not fit the cache go through in bands of rows. A band of the output needs
K-1 more rows of the code than it has; the band below computes these again. Gradients through them
are the next band's, too, which therefore gets the last K-1 rows of dy from the one above.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from cae_raw.errors import InputError
from cae_raw.ops import activation as act
from cae_raw.ops.scratch import aligned

Array = Any
WeightShape = tuple[int, int, int, int]

SMALL_PRODUCT = 1_000_000  # multiply-adds; OpenBLAS's limit for its small-matrix kernels
PASS_BYTES = 1_300_000  # of buffers per pass of several images
BAND_BYTES = 700_000  # of shifted copies of a band; measured, from 64 to 512 pixels


class SingleLayerStep:
    """Loss and gradients for images of one shape.

    Args:
        weight_shape: of the encoder, (F, C, K, K); the decoder's is (C, F, K, K).
        size: (H, W) of the images.
        dtype: float32, or float64 for checks.
        decoder_activation: "tanh", or None for the output W2 * h + b2 itself.

    One object serves any number of threads; each gets buffers of its own.

    Raises:
        InputError: for another activation.
    """

    def __init__(
        self,
        weight_shape: WeightShape,
        size: tuple[int, int],
        dtype: Any,
        *,
        decoder_activation: str | None = "tanh",
    ) -> None:
        if decoder_activation not in (None, "tanh"):
            raise InputError(f"decoder_activation is 'tanh' or None, not {decoder_activation!r}")
        self.weight_shape, self.size, self.dtype = weight_shape, size, np.dtype(dtype)
        self.decoder_activation = decoder_activation
        f, edge = weight_shape[0], weight_shape[2] - 1
        of_row = (size[1] + edge) * self.dtype.itemsize  # of one map
        rows = _decoder_rows(weight_shape)
        of_image = (2 * f + 2 * rows) * of_row * (size[0] + edge)
        self.images_per_pass = max(1, PASS_BYTES // of_image)
        self.band = min(size[0], max(1, BAND_BYTES // (rows * of_row) - edge))
        self._of_thread = threading.local()

    def squared_error(self, x: Array, params: Mapping[str, Array]) -> Array:
        """The sum of squared errors over x (N, C, H, W), float64 of shape (1,)."""
        total = 0.0
        for buffers, part in self._parts(x, params, 1.0):
            total += buffers.forward(part, buffers.evaluating)
        return np.array([total])

    def reconstruct(self, x: Array, params: Mapping[str, Array]) -> Array:
        """y for x (N, C, H, W), of the same shape."""
        y = np.empty_like(x)
        for buffers, part in self._parts(x, params, 1.0):
            buffers.forward(part, buffers.evaluating)
            y[part.which, :, part.top : part.bottom] = buffers.inner_y
        return y

    def gradients(
        self,
        x: Array,
        params: Mapping[str, Array],
        grads: Mapping[str, Array],
        scale: float,
        sparsity_scale: float = 0.0,
    ) -> Array:
        """The same, and a gradient written into `grads`.

        It is that of scale / 2 * (sum of squared errors) + sparsity_scale * (sum of |code|), with 0
        as the gradient of |0|. A mean over a batch's code has 1 / (its elements in all) as scale.

        params and grads: "0.weight", "0.bias", "2.weight", "2.bias", as the model names them.
        """
        total, sums = 0.0, _Sums(self.weight_shape, self.dtype)
        for buffers, part in self._parts(x, params, scale):
            total += buffers.forward(part, buffers.training)
            buffers.backward(part, sums, sparsity_scale)
        sums.store(grads, scale)
        return np.array([total])

    def _parts(
        self, x: Array, params: Mapping[str, Array], scale: float
    ) -> Iterator[tuple[_Buffers, _Part]]:
        """x in parts, from top to bottom of each image, each with this thread's buffers for it."""
        made: dict[Any, _Buffers] = self._of_thread.__dict__
        loaded: set[tuple[int, int]] = set()
        height = self.size[0]
        together = self.images_per_pass if self.band == height else 1
        for start in range(0, len(x), together):
            which = slice(start, min(start + together, len(x)))
            images = x[which]
            for top in range(0, height, self.band):
                part = _Part(which, images, top, min(top + self.band, height))
                key = len(images), part.bottom - top
                if key not in made:
                    made[key] = _Buffers(self, *key)
                if key not in loaded:
                    made[key].load(params, scale)
                    loaded.add(key)
                yield made[key], part


class _Part(NamedTuple):
    """Which images, their pixels (N, C, H, W), and the rows of the output that a pass is about."""

    which: slice
    images: Array
    top: int
    bottom: int


class _Decoding(NamedTuple):
    """How the code is kept, and the product that decodes it: contributions = weights code."""

    code: Array  # (N, blocks, F, width)
    weights: Array  # (rows, F)
    contributions: Array  # (N, blocks, rows, width)


class _Sums:
    """Gradients summed over passes, in the arrangement of the products, still without scale."""

    def __init__(self, weight_shape: WeightShape, dtype: np.dtype) -> None:
        f, c, k, _ = weight_shape
        self.taps = c * k * k
        self.weights = np.zeros((2, f, _rows(weight_shape)), dtype)  # encoder, decoder
        self.decoder_bias = np.zeros(c, dtype)
        self.dy_above: Array = 0  # the last rows of dy of the band above

    def store(self, grads: Mapping[str, Array], scale: float) -> None:
        """Write the sums in the arrangement of the parameters."""
        dw1, dw2 = grads["0.weight"], grads["2.weight"]
        encoder, decoder = self.weights
        c, f, k, _ = dw2.shape
        dw1[...] = encoder[:, : self.taps].reshape(dw1.shape)
        grads["0.bias"][...] = encoder[:, self.taps]
        decoder *= scale
        dw2[...] = decoder[:, : self.taps].reshape(f, c, k, k).swapaxes(0, 1)
        np.multiply(self.decoder_bias, scale, out=grads["2.bias"])


class _Buffers:
    """Everything one thread needs for n images or a band of one, with the views it uses.

    Maps are stored with W + K-1 places to a row, so that the zeros at the right of one row are
    those at the left of the next, and a shift by rows and columns is one by a number of places.
    """

    def __init__(self, step: SingleLayerStep, n: int, h: int) -> None:
        f, c, k, _ = step.weight_shape
        dtype, w, rows = step.dtype, step.size[1], _rows(step.weight_shape)
        self.edge, self.taps, self.height = k - 1, c * k * k, step.size[0]
        edge, taps, item = self.edge, self.taps, dtype.itemsize
        self.decoder_activation, self.one = step.decoder_activation, dtype.type(1)

        pitch = w + edge
        length = (h + edge) * pitch
        blocks = -(-f * rows * length // SMALL_PRODUCT)
        width = -(-length // blocks)
        stored = blocks * width  # a few places more than positions: zeros there add nothing
        first = edge * pitch + edge  # the place of the first pixel
        plane = first + stored
        valid = h * pitch - edge  # places from the first pixel to the last
        self.owned = h * pitch  # positions, unless a band is the last: those belong to the next

        padded_x, padded_y, padded_dy = (aligned((n, c, plane), dtype) for _ in range(3))
        for padded in (padded_x, padded_y, padded_dy):
            padded.fill(0)
        self.padded_x, self.padded_y, self.padded_dy = padded_x, padded_y, padded_dy
        self.slope = aligned((n, c, plane), dtype)
        of_map, of_image, of_row = plane * item, c * plane * item, pitch * item

        def view(of: Array, place: int, height: int, columns: int) -> Array:
            strides = (of_image, of_map, of_row, item)
            return np.ndarray((n, c, height, columns), dtype, of, place * item, strides)

        self.x_rows = view(padded_x, edge, h + 2 * edge, w)  # from `edge` rows above the band on
        self.inner_x = self.x_rows[:, :, edge : edge + h]
        self.dy_above, self.last_dy, self.dy_below = (
            view(padded_dy, row * pitch, edge, pitch) for row in (0, h, h + edge)
        )
        self.between_rows = view(padded_dy, first + w, h, edge)
        self.y = padded_y[:, :, first : first + valid]
        self.inner_y = view(padded_y, first, h, w)

        self.all_copies_x = aligned((n, rows, stored), dtype)
        self.all_copies_x.fill(0)
        self.ones = self.all_copies_x[:, taps, :length]
        self.ones.fill(1)
        self.contributions = aligned((n, _decoder_rows(step.weight_shape), stored), dtype)
        self.all_copies_dy = self.contributions[:, :rows]
        grid = (n, c, k, k, stored)
        # Tap (p, q) of position (i, j) reads x at (i + p, j + q) and dy at (i + edge - p, ...).
        self.shifted_x = np.ndarray(
            grid, dtype, padded_x, 0, (of_image, of_map, of_row, item, item)
        )
        self.shifted_dy = np.ndarray(
            grid, dtype, padded_dy, first * item, (of_image, of_map, -of_row, -item, item)
        )
        self.copies_x_grid, self.copies_dy_grid = (
            copies[:, :taps].reshape(grid) for copies in (self.all_copies_x, self.all_copies_dy)
        )
        of_images, of_tap, _ = self.contributions.strides
        self.shares = np.ndarray(  # contribution (p, q) of position (i + p, j + q)
            (n, c, k, k, valid),
            dtype,
            self.contributions,
            0,
            (of_images, k * k * of_tap, k * of_tap + of_row, of_tap + item, item),
        )

        def blocked(maps: Array) -> Array:
            return maps.reshape(n, -1, blocks, width).swapaxes(1, 2)

        self.copies_x, self.copies_dy = blocked(self.all_copies_x), blocked(self.all_copies_dy)
        self.blocked_contributions = blocked(self.contributions)
        code = aligned((n, blocks, width, f), dtype)
        self.code_by_position = code.swapaxes(2, 3)
        self.code_by_filter = code.reshape(n, blocks, f, width)
        self.dcode, self.sign = (aligned((n, width, f), dtype) for _ in range(2))
        self.wide_error = np.empty((n, c, plane))  # float64: a sum keeps the digits it changes by

        self.encoder = np.zeros((rows, f), dtype)  # [W1 b1]^T
        self.decoder = np.zeros((f, self.contributions.shape[1]), dtype)  # W2'^T
        shares = self.blocked_contributions
        self.training = _Decoding(self.code_by_position, self.decoder.T, shares)
        self.evaluating = _Decoding(
            self.code_by_filter, self.decoder[:, :taps].T, shares[:, :, :taps]
        )
        self.scaled_decoder = np.zeros((rows, f), dtype)
        padded_bias = np.zeros((n, c, plane), dtype)  # zero where y has to stay zero
        self.padded_bias, self.bias = padded_bias, padded_bias[:, :, first : first + valid]
        self.products = np.empty((2, n, blocks, f, rows), dtype)
        self.summands = self.products.reshape(2, n * blocks, f, rows)
        self.product_sums = np.empty((2, f, rows), dtype)
        self.blocks = [
            (self.copies_dy[:, b], code[:, b], self.copies_x[:, b], self.products[0, :, b])
            for b in range(blocks)
        ]

    def load(self, params: Mapping[str, Array], scale: float) -> None:
        """Bring the parameters into the arrangement of the products."""
        w1, w2 = params["0.weight"], params["2.weight"]
        f, taps = len(w1), self.taps
        self.encoder[:taps] = w1.reshape(f, -1).T
        self.encoder[taps] = params["0.bias"]
        self.decoder[:, :taps] = w2.swapaxes(0, 1).reshape(f, -1)
        np.multiply(self.decoder[:, :taps].T, scale, out=self.scaled_decoder[:taps])
        self.bias[...] = params["2.bias"][:, None]

    def forward(self, part: _Part, decoding: _Decoding) -> float:
        """Fill code, y and dy (with y - x) for a part; returns the sum of squared errors."""
        code, weights, contributions = decoding
        whole = part.bottom - part.top == self.height
        if whole:
            np.copyto(self.inner_x, part.images)
        else:
            self._take(part)
        np.copyto(self.copies_x_grid, self.shifted_x)
        np.matmul(self.encoder.T, self.copies_x, out=code)
        np.tanh(code, out=code)
        np.matmul(weights, code, out=contributions)
        np.add.reduce(self.shares, axis=(2, 3), out=self.y)
        y = self.padded_y
        y += self.padded_bias
        act.apply_in_place(y, self.decoder_activation)
        np.subtract(y, self.padded_x, out=self.padded_dy)
        self.between_rows[...] = 0
        if not whole:  # y is 0 there, x is what the bands next to this one have
            self.dy_above[...] = 0
            self.dy_below[...] = 0
        np.copyto(self.wide_error, self.padded_dy)
        error = self.wide_error.reshape(-1)
        return float(np.dot(error, error))

    def _take(self, part: _Part) -> None:
        """Put the part's pixels, and those around it, into padded_x."""
        _, images, top, bottom = part
        low, high = max(0, top - self.edge), min(self.height, bottom + self.edge)
        start = self.edge - top  # the place of the image's first row
        np.copyto(self.x_rows[:, :, start + low : start + high], images[:, :, low:high])
        self.x_rows[:, :, : start + low] = 0
        self.x_rows[:, :, start + high :] = 0
        self.ones.fill(1)

    def backward(self, part: _Part, sums: _Sums, sparsity_scale: float) -> None:
        """Add the gradients of the part that `forward` was called for."""
        y, dy, one = self.padded_y, self.padded_dy, self.one
        if self.decoder_activation == "tanh":
            slope = np.multiply(y, y, out=self.slope)
            np.subtract(one, slope, out=slope)
            np.multiply(dy, slope, out=dy)
        sums.decoder_bias += np.add.reduce(dy, axis=(0, 2))
        self._spread(part, sums)
        np.matmul(self.code_by_position, self.copies_dy.swapaxes(2, 3), out=self.products[1])
        dcode = self.dcode
        for copies_dy, code, copies_x, product in self.blocks:
            np.matmul(self.scaled_decoder.T, copies_dy, out=dcode.swapaxes(1, 2))
            if sparsity_scale:
                np.sign(code, out=self.sign)
                self.sign *= sparsity_scale
                dcode += self.sign
            np.multiply(code, code, out=code)
            np.subtract(one, code, out=code)
            np.multiply(dcode, code, out=dcode)
            np.matmul(dcode.swapaxes(1, 2), copies_x.swapaxes(1, 2), out=product)
        np.add.reduce(self.summands, axis=1, out=self.product_sums)
        sums.weights += self.product_sums

    def _spread(self, part: _Part, sums: _Sums) -> None:
        """Make the copies of dy, for the positions of the code that belong to the part."""
        if part.bottom - part.top == self.height:
            np.copyto(self.copies_dy_grid, self.shifted_dy)
            return
        self.dy_above[...] = 0 if part.top == 0 else sums.dy_above
        np.copyto(self.copies_dy_grid, self.shifted_dy)
        sums.dy_above = self.last_dy.copy()
        if part.bottom < self.height:
            self.all_copies_dy[..., self.owned :] = 0
            self.all_copies_x[..., self.owned :] = 0


def _rows(weight_shape: WeightShape) -> int:
    """Taps and a row of ones, made a multiple of four."""
    _, c, k, _ = weight_shape
    return -(-(c * k * k + 1) // 4) * 4


def _decoder_rows(weight_shape: WeightShape) -> int:
    """The same, made a multiple of 32 above 16."""
    rows = _rows(weight_shape)
    return rows if rows <= 16 else -(-rows // 32) * 32
