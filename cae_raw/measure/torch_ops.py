"""The operations of a training step in PyTorch: one function each, for a call's own arguments.

A twin takes the module `torch` and the operation's arguments with tensors for arrays, prepares what
PyTorch wants in another form, and returns the work that is timed. That returns the tensors which
correspond to the arrays that the operation makes or changes, in their order; where a form cannot be
compared (PyTorch's pooling indices), the list ends before it. What an operation would be given to
write its result into is left out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Tensor = Any
Torch = Any
Pair = tuple[int, int]
Twin = Callable[..., Callable[[], list[Tensor]]]


def conv2d_forward(
    torch: Torch,
    x: Tensor,
    w: Tensor,
    b: Tensor,
    *,
    stride: Pair = (1, 1),
    padding: Pair = (0, 0),
    activation: str | None = None,
) -> Callable[[], list[Tensor]]:
    return lambda: [_act(torch.conv2d(x, w, b, stride, padding), activation)]


def conv2d_backward_input(
    torch: Torch,
    dy: Tensor,
    w: Tensor,
    *,
    input_size: Pair,
    stride: Pair = (1, 1),
    padding: Pair = (0, 0),
) -> Callable[[], list[Tensor]]:
    shape = (dy.shape[0], w.shape[1], *input_size)
    return lambda: [torch.nn.grad.conv2d_input(shape, w, dy, stride, padding)]


def conv2d_backward_weight(
    torch: Torch,
    dy: Tensor,
    x: Tensor,
    *,
    kernel_size: Pair,
    stride: Pair = (1, 1),
    padding: Pair = (0, 0),
    out: Tensor = None,
) -> Callable[[], list[Tensor]]:
    shape = (dy.shape[1], x.shape[1], *kernel_size)
    return lambda: [torch.nn.grad.conv2d_weight(x, shape, dy, stride, padding)]


def conv2d_backward_bias(
    torch: Torch, dy: Tensor, *, out: Tensor = None
) -> Callable[[], list[Tensor]]:
    return lambda: [dy.sum((0, 2, 3))]


def linear_forward(
    torch: Torch, x: Tensor, w: Tensor, b: Tensor, *, activation: str | None = None
) -> Callable[[], list[Tensor]]:
    return lambda: [_act(torch.nn.functional.linear(x, w, b), activation)]


def linear_backward_input(torch: Torch, dy: Tensor, w: Tensor) -> Callable[[], list[Tensor]]:
    return lambda: [dy @ w]


def linear_backward_weight(
    torch: Torch, dy: Tensor, x: Tensor, *, out: Tensor = None
) -> Callable[[], list[Tensor]]:
    return lambda: [dy.T @ x]


def linear_backward_bias(
    torch: Torch, dy: Tensor, *, out: Tensor = None
) -> Callable[[], list[Tensor]]:
    return lambda: [dy.sum(0)]


def relu_forward(torch: Torch, x: Tensor) -> Callable[[], list[Tensor]]:
    return lambda: [torch.relu(x)]


def relu_backward(torch: Torch, dy: Tensor, y: Tensor) -> Callable[[], list[Tensor]]:
    return lambda: [torch.ops.aten.threshold_backward(dy, y, 0)]


def tanh_forward(torch: Torch, x: Tensor) -> Callable[[], list[Tensor]]:
    return lambda: [torch.tanh(x)]


def tanh_backward(torch: Torch, dy: Tensor, y: Tensor) -> Callable[[], list[Tensor]]:
    return lambda: [torch.ops.aten.tanh_backward(dy, y)]


def maxpool_forward(
    torch: Torch, x: Tensor, *, kernel_size: Pair, stride: Pair, padding: Pair = (0, 0)
) -> Callable[[], list[Tensor]]:
    pool = torch.nn.functional.max_pool2d
    return lambda: list(pool(x, kernel_size, stride, padding, return_indices=True)[:1])


def mask_scatter(
    torch: Torch,
    small: Tensor,
    mask: Tensor,
    *,
    size: Pair,
    kernel_size: Pair,
    stride: Pair,
    padding: Pair = (0, 0),
) -> Callable[[], list[Tensor]]:
    indices = _indices(torch, mask, size, kernel_size, stride, padding)
    unpool = torch.nn.functional.max_unpool2d
    return lambda: [unpool(small, indices, kernel_size, stride, padding, output_size=size)]


def mask_gather(
    torch: Torch,
    large: Tensor,
    mask: Tensor,
    *,
    kernel_size: Pair,
    stride: Pair,
    padding: Pair = (0, 0),
) -> Callable[[], list[Tensor]]:
    indices = _indices(torch, mask, large.shape[2:], kernel_size, stride, padding).flatten(2)
    return lambda: [large.flatten(2).gather(2, indices).view(mask.shape)]


def squared_error(
    torch: Torch, y: Tensor, target: Tensor, *, scale: float
) -> Callable[[], list[Tensor]]:
    def work() -> list[Tensor]:
        dy = y - target
        total = dy.square().sum(dtype=torch.float64).reshape(1)
        return [total, dy.mul_(scale)]

    return work


def gather(
    torch: Torch, data: Tensor, indices: Tensor, *, scale: float, shift: float
) -> Callable[[], list[Tensor]]:
    return lambda: [data[indices].float().mul_(scale).add_(shift)]


def adam_step(
    torch: Torch,
    p: Tensor,
    g: Tensor,
    m: Tensor,
    v: Tensor,
    control: Tensor,
    *,
    betas: tuple[float, float],
    eps: float,
    l2: Tensor = None,
) -> Callable[[], list[Tensor]]:
    p.grad = g
    optimizer = torch.optim.Adam([p], lr=float(control[0]), betas=betas, eps=eps, fused=True)
    step = torch.tensor(float(control[1]), device=p.device)
    optimizer.state[p] = {"step": step, "exp_avg": m, "exp_avg_sq": v}

    def work() -> list[Tensor]:
        optimizer.step()
        return [p, m, v]

    return work


def sgd_step(
    torch: Torch,
    p: Tensor,
    g: Tensor,
    v: Tensor,
    control: Tensor,
    *,
    momentum: float,
    l2: Tensor = None,
) -> Callable[[], list[Tensor]]:
    """Without momentum PyTorch keeps no velocity, and only the parameters can be compared."""
    p.grad = g
    optimizer = torch.optim.SGD([p], lr=float(control[0]), momentum=momentum, fused=True)
    if momentum:
        optimizer.state[p] = {"momentum_buffer": v}

    def work() -> list[Tensor]:
        optimizer.step()
        return [p, v] if momentum else [p]

    return work


def _act(y: Tensor, activation: str | None) -> Tensor:
    return y if activation is None else y.relu_() if activation == "relu" else y.tanh_()


def _indices(
    torch: Torch, mask: Tensor, size: Pair, kernel_size: Pair, stride: Pair, padding: Pair
) -> Tensor:
    """A mask as PyTorch has it: where in its flattened map each maximum lies."""
    tap = mask.long()
    row = torch.arange(mask.shape[2], device=mask.device)[:, None] * stride[0] - padding[0]
    column = torch.arange(mask.shape[3], device=mask.device) * stride[1] - padding[1]
    h, w = row + tap // kernel_size[1], column + tap % kernel_size[1]
    return h * size[1] + w


TWINS: dict[str, Twin] = {
    twin.__name__: twin
    for twin in (
        *(conv2d_forward, conv2d_backward_input, conv2d_backward_weight, conv2d_backward_bias),
        *(linear_forward, linear_backward_input, linear_backward_weight, linear_backward_bias),
        *(relu_forward, relu_backward, tanh_forward, tanh_backward),
        *(maxpool_forward, mask_scatter, mask_gather),
        *(squared_error, gather, adam_step, sgd_step),
    )
}
