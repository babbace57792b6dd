"""The same training step in PyTorch, in each of its modes; the fastest one is its best mode.

Each mode with PyTorch's default, in which cuDNN may use TF32 for convolutions, and without TF32.
Every candidate gets the indices of a batch from the host, as cae-raw does, and uses fused Adam.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from cae_raw.measure.race import TOLERANCE_TF32
from cae_raw.measure.torch_step import CUDA_MODES, TorchStep
from on_gpu import step as ours
from on_gpu.record import MissingError, Record

EMULATED_MODES = ("eager", "channels_last")


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
    modes = EMULATED_MODES if emulated else CUDA_MODES
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
    torch.compiler.reset()
    theirs = TorchStep(ours.new_model(), images, lr=ours.LR, mode=mode, device=device)
    try:
        losses = [
            theirs.read(theirs.step(ours.batch(images, size, number)), size)
            for number in range(len(expected))
        ]
        difference = ours.worst_difference(losses, expected)
        if difference > (TOLERANCE_TF32 if tf32 else ours.TOLERANCE):
            raise ArithmeticError(f"losses differ from NumPy's by {difference}")
        found = ours.milliseconds(theirs.step, images, size, theirs.wait, device == "cpu")
    finally:
        theirs.close()
    return {**found, "worst_loss_difference": difference}
