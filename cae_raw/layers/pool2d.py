"""Max-pooling and its inverse, which share a mask."""

from __future__ import annotations

from cae_raw.errors import InputError
from cae_raw.layers.base import (
    Array,
    Gradients,
    Layer,
    Shape,
    Trace,
    check_gradient,
    count_windows,
    image_shape,
    pair,
)
from cae_raw.ops import pool2d as ops

MAX_TAPS = 256  # what the one-byte mask can tell apart


class MaxPool2d(Layer):
    """The maximum of each window: (N, C, H, W) to (N, C, OH, OW).

    Args:
        kernel_size: int or (height, width), at most 256 taps.
        stride: the kernel size when None.
        padding: at most half the kernel size; never chosen as a maximum.

    Raises:
        InputError: for sizes outside these bounds.
    """

    def __init__(
        self,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] | None = None,
        padding: int | tuple[int, int] = 0,
    ) -> None:
        super().__init__()
        self.kernel_size = pair(kernel_size, "kernel_size")
        self.stride = self.kernel_size if stride is None else pair(stride, "stride")
        self.padding = pair(padding, "padding", at_least=0)
        if self.kernel_size[0] * self.kernel_size[1] > MAX_TAPS:
            raise InputError(f"kernel_size {kernel_size} has more than {MAX_TAPS} taps")
        if any(2 * p > k for p, k in zip(self.padding, self.kernel_size, strict=True)):
            raise InputError(f"padding {padding} is more than half of kernel_size {kernel_size}")

    @property
    def window(self) -> dict[str, tuple[int, int]]:
        """The geometry, as the operations take it."""
        return {
            "kernel_size": self.kernel_size,
            "stride": self.stride,
            "padding": self.padding,
        }

    def output_shape(self, shape: Shape) -> Shape:
        c, h, w = image_shape(self, shape)
        oh, ow = count_windows(self, (h, w), **self.window)
        return (c, oh, ow)

    def forward(self, x: Array, trace: Trace | None = None) -> Array:
        self.output_shape(x.shape[1:])
        y, mask = ops.maxpool_forward(x, **self.window)
        if trace is not None:
            trace[self] = (mask, x.shape)
        return y

    def backward(
        self, dy: Array, trace: Trace, grads: Gradients | None = None, *, need_dx: bool = True
    ) -> Array | None:
        mask, shape = trace[self]
        check_gradient(self, dy, mask.shape)
        return ops.mask_scatter(dy, mask, size=shape[2:], **self.window) if need_dx else None

    def flops(self, shape: Shape) -> int:
        c, oh, ow = self.output_shape(shape)
        return int(c * oh * ow * self.kernel_size[0] * self.kernel_size[1])

    def __repr__(self) -> str:
        return f"MaxPool2d({self.kernel_size}, stride={self.stride}, padding={self.padding})"


class MaxUnpool2d(Layer):
    """Puts each value where `pool` found its maximum: (N, C, OH, OW) to (N, C, H, W).

    Everywhere else the output is 0.

    It takes its mask and its output size from the pooling layer's entry in the trace, so the two
    cannot disagree; a trace is therefore always needed.

    Args:
        pool: the layer whose choice is undone. Its stride must equal its kernel size: two values
            for one place would have no meaning.

    Raises:
        InputError: if `pool` is no MaxPool2d or has another stride.
    """

    def __init__(self, pool: MaxPool2d) -> None:
        super().__init__()
        if not isinstance(pool, MaxPool2d):
            raise InputError(f"MaxUnpool2d takes a MaxPool2d layer, not {pool!r}")
        if pool.stride != pool.kernel_size:
            raise InputError(
                f"unpooling needs stride == kernel_size, so that no windows overlap, not {pool}"
            )
        self.pool = pool

    def output_shape(self, shape: Shape) -> Shape:
        """The smallest size that pools to `shape`; the real one is that of the pooled input."""
        c, h, w = image_shape(self, shape)
        (kh, kw), (ph, pw) = self.pool.kernel_size, self.pool.padding
        return (c, max(1, h * kh - 2 * ph), max(1, w * kw - 2 * pw))

    def restored_shape(self, shape: Shape, pooled: Shape) -> Shape:
        """The shape of the output for inputs of `shape`, where `pool` took inputs of `pooled`.

        Raises:
            InputError: if the pooling layer makes something else than `shape` of that.
        """
        made = self.pool.output_shape(pooled)
        if tuple(shape) != tuple(made):
            raise InputError(f"{self} takes the shape that its pooling made, {made}, not {shape}")
        return pooled

    def selection(self, x: Array, trace: Trace | None) -> tuple[Array, tuple[int, int, int, int]]:
        """The mask for a batch x, and the shape of the output for it.

        Raises:
            InputError: if they are not in the trace, or are those of another batch.
        """
        if trace is None or self.pool not in trace:
            raise InputError(f"{self} needs the trace that its pooling layer wrote to")
        mask, shape = trace[self.pool]
        if tuple(x.shape) != tuple(mask.shape):
            raise InputError(f"{self} got {tuple(x.shape)}, its mask is {tuple(mask.shape)}")
        return mask, shape

    def forward(self, x: Array, trace: Trace | None = None) -> Array:
        mask, shape = self.selection(x, trace)
        return ops.mask_scatter(x, mask, size=shape[2:], **self.pool.window)

    def backward(
        self, dy: Array, trace: Trace, grads: Gradients | None = None, *, need_dx: bool = True
    ) -> Array | None:
        mask, shape = trace[self.pool]
        check_gradient(self, dy, shape)
        return ops.mask_gather(dy, mask, **self.pool.window) if need_dx else None

    def __repr__(self) -> str:
        return f"MaxUnpool2d({self.pool.kernel_size})"
