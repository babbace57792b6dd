"""The same training step in PyTorch, in each of its modes; the fastest one is its best mode.

Modes: eager, channels_last, the step recorded in a CUDA graph, torch.compile, and both together.
Each with PyTorch's default, in which cuDNN may use TF32 for convolutions, and with float32 only.
Every candidate gets the indices of a batch from the host, as cae-raw does, and uses fused Adam.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from cae_raw.data.scaling import scale_and_shift
from on_gpu import step as ours
from on_gpu.record import MissingError, Record

# TF32 keeps ten bits of a factor's fraction.
TOLERANCE_TF32 = 5e-3


def run(record: Record, seconds: float, emulated: bool) -> None:
    """Time every mode that works here; one that does not is recorded with its error.

    Raises:
        MissingError: without PyTorch.
    """
    try:
        import torch
    except ImportError as error:
        raise MissingError(str(error)) from error

    deadline = time.monotonic() + seconds
    device = "cpu" if emulated else "cuda"
    record.put("versions", {"torch": torch.__version__, "cuda": torch.version.cuda})
    if not emulated:
        record.put("cudnn", torch.backends.cudnn.version())
        torch.backends.cudnn.benchmark = True
    images = ours.data(emulated)
    sizes = (2,) if emulated else ours.BATCHES
    expected = {size: ours.reference_losses(images, size) for size in sizes}
    modes = EMULATED_MODES if emulated else tuple(MODES)
    # Compiling takes long: modes that do not compile are done first, at every size.
    for mode in modes:
        for size in sizes:
            for tf32 in (True, False):
                subject = {"mode": mode, "tf32": tf32, "batch": size}
                if time.monotonic() > deadline:
                    record.add("left_out", subject)
                    continue
                torch.backends.cudnn.allow_tf32 = tf32
                try:
                    found = _measure(torch, mode, images, size, expected[size], tf32, device)
                except Exception as error:  # no C compiler for torch.compile, say
                    text = f"{type(error).__name__}: {str(error)[:300]}"
                    record.add("failures", {**subject, "error": text})
                    continue
                record.add("steps", {**subject, **found})
                record.put("best", best(record.content["steps"]))
    if record.content.get("left_out"):
        raise TimeoutError("not every mode was timed: see left_out")
    if not record.content.get("steps"):
        raise RuntimeError("no mode of PyTorch worked: see failures")


def best(steps: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The fastest mode per batch size, with TF32 and without."""
    groups: dict[Any, dict[str, Any]] = {}
    for found in steps:
        key = (found["batch"], found["tf32"])
        if key not in groups or found["ms"] < groups[key]["ms"]:
            groups[key] = found
    return [groups[key] for key in sorted(groups)]


def _measure(
    torch: Any,
    mode: str,
    images: np.ndarray,
    size: int,
    expected: list[float],
    tf32: bool,
    device: str,
) -> dict[str, Any]:
    synchronize = torch.cuda.synchronize if device == "cuda" else torch.cpu.synchronize
    torch.compiler.reset()
    step = MODES[mode](torch, images, size, device)
    losses = [float(step(ours.batch(images, size, number))) for number in range(len(expected))]
    difference = ours.worst_difference(losses, expected)
    if difference > (TOLERANCE_TF32 if tf32 else ours.TOLERANCE):
        raise ArithmeticError(f"losses differ from NumPy's by {difference}")
    found = ours.milliseconds(step, images, size, synchronize, device == "cpu")
    return {**found, "worst_loss_difference": difference}


def _parts(torch: Any, images: np.ndarray, device: str, **adam: Any) -> tuple[Any, Any, Any]:
    """The model with cae-raw's weights, its optimizer, and indices -> loss."""
    nn = torch.nn
    net = nn.Sequential(nn.Conv2d(3, 32, 3, padding=2), nn.Tanh(), nn.Conv2d(32, 3, 3), nn.Tanh())
    with torch.no_grad():
        weights = ours.new_model().params
        for name, parameter in net.named_parameters():
            parameter.copy_(torch.from_numpy(weights[name].copy()))
    net.to(device)
    placed = torch.from_numpy(images).to(device)
    scale, shift = scale_and_shift((-1.0, 1.0))
    fused = {"fused": True} if device == "cuda" else {}
    optimizer = torch.optim.Adam(net.parameters(), lr=ours.LR, **fused, **adam)

    def loss_of(indices: Any, layout: Any = torch.contiguous_format) -> Any:
        x = placed.index_select(0, indices).to(torch.float32).mul_(scale).add_(shift)
        x = x.contiguous(memory_format=layout)
        return 0.5 * nn.functional.mse_loss(net(x), x)

    return net, optimizer, loss_of


def _train(torch: Any, optimizer: Any, loss_of: Any, device: str) -> ours.Step:
    def step(indices: np.ndarray) -> Any:
        optimizer.zero_grad(set_to_none=True)
        loss = loss_of(torch.from_numpy(indices).to(device, non_blocking=True))
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def eager(torch: Any, images: np.ndarray, size: int, device: str) -> ours.Step:
    _, optimizer, loss_of = _parts(torch, images, device)
    return _train(torch, optimizer, loss_of, device)


def channels_last(torch: Any, images: np.ndarray, size: int, device: str) -> ours.Step:
    net, optimizer, loss_of = _parts(torch, images, device)
    net.to(memory_format=torch.channels_last)
    return _train(torch, optimizer, lambda i: loss_of(i, torch.channels_last), device)


def compiled(torch: Any, images: np.ndarray, size: int, device: str) -> ours.Step:
    _, optimizer, loss_of = _parts(torch, images, device)
    return _train(torch, optimizer, torch.compile(loss_of), device)


def cuda_graph(
    torch: Any, images: np.ndarray, size: int, device: str, compile_too: bool = False
) -> ours.Step:
    """The whole step recorded once and replayed: no work for the host but to copy the indices."""
    _, optimizer, loss_of = _parts(torch, images, device, capturable=True)
    if compile_too:
        loss_of = torch.compile(loss_of)
    chosen = torch.zeros(size, dtype=torch.int64, device=device)
    saved = [p.detach().clone() for group in optimizer.param_groups for p in group["params"]]

    def once() -> Any:
        optimizer.zero_grad(set_to_none=True)
        loss = loss_of(chosen)
        loss.backward()
        optimizer.step()
        return loss

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            once()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        static = once()
    # The warm-up trained: put weights and optimizer back to where they began.
    with torch.no_grad():
        for parameter, before in zip(optimizer.param_groups[0]["params"], saved, strict=True):
            parameter.copy_(before)
            for value in optimizer.state[parameter].values():
                value.zero_()

    def step(indices: np.ndarray) -> Any:
        chosen.copy_(torch.from_numpy(indices), non_blocking=True)
        graph.replay()
        return static

    return step


def compiled_in_cuda_graph(torch: Any, images: np.ndarray, size: int, device: str) -> ours.Step:
    return cuda_graph(torch, images, size, device, compile_too=True)


MODES: dict[str, Callable[..., ours.Step]] = {
    "eager": eager,
    "channels_last": channels_last,
    "CUDA graph": cuda_graph,
    "torch.compile": compiled,
    "torch.compile in a CUDA graph": compiled_in_cuda_graph,
}
EMULATED_MODES = ("eager", "channels_last")
