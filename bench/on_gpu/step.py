"""The training step of the single-layer model on images of CIFAR-10's size.

Gather, forward, loss, backward and Adam. Losses of the first steps are compared with NumPy's
before anything is timed.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from cae_raw.models import Autoencoder, build
from cae_raw.ops.precision import CAPABILITY
from cae_raw.training.device_step import DeviceStep
from cae_raw.training.engine import Engine
from cae_raw.training.optimizers import Adam
from on_gpu.device import Bench
from on_gpu.record import Record

BATCHES = (32, 128, 1024)
IMAGE = (3, 32, 32)
IMAGES = 4096
LR = 1e-3
COMPARED_STEPS, TOLERANCE = 5, 1e-4
# Of the products, side by side; each is compared with NumPy's float32.
PRECISIONS = {"float32": TOLERANCE, "tf32": 1e-2, "tf32x3": TOLERANCE}
Step = Callable[[np.ndarray], Any]


def data(tiny: bool) -> np.ndarray:
    """Random bytes (M, 3, H, W): a step costs the same on every image."""
    shape = (8, 3, 6, 6) if tiny else (IMAGES, *IMAGE)
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def new_model(filters: int = 32) -> Autoencoder:
    """The same weights every time."""
    return build("single-layer", np.random.default_rng(1), channels=3, filters=filters)


def batch(images: np.ndarray, size: int, number: int) -> np.ndarray:
    """The indices of batch `number`."""
    return np.random.default_rng([2, number]).integers(0, len(images), size)


def our_step(
    images: np.ndarray, backend: Any, size: int, *, recorded: bool, precision: str = "float32"
) -> tuple[Step, Step]:
    """A step of cae-raw, and one that returns the batch's sum of squared errors.

    Recorded as a CUDA graph, which is what a training does, or launched kernel by kernel.
    """
    model = new_model()
    model.to(backend)
    assert model.fused_cuda is not None
    model.fused_cuda.precision = precision
    placed = backend.asarray(images)
    engine = Engine(model, images.shape[1:], threads=1)
    optimizer = Adam(model, lr=LR)
    device_step = DeviceStep(engine, optimizer, size)

    def launch(indices: np.ndarray) -> Any:
        total = engine.step(placed, indices)
        optimizer.step(engine.gradients)
        return total

    def replay(indices: np.ndarray) -> None:
        if device_step.full:
            device_step.errors()
        device_step(placed, indices)

    def replay_and_read(indices: np.ndarray) -> float:
        replay(indices)
        return device_step.errors()[-1]

    if recorded:
        return replay, replay_and_read
    return launch, lambda indices: float(backend.to_numpy(launch(indices))[0])


def reference_losses(images: np.ndarray, size: int) -> list[float]:
    """half_mse of the first steps in NumPy, by the operations themselves."""
    from cae_raw.data.scaling import scale_and_shift
    from cae_raw.layers.loss import MSELoss
    from cae_raw.ops.batch import gather

    model = new_model()
    optimizer, loss = Adam(model, lr=LR), MSELoss("half_mse")
    scale, shift = scale_and_shift(model.value_range)
    losses = []
    for number in range(COMPARED_STEPS):
        x = gather(images, batch(images, size, number), scale=scale, shift=shift)
        trace: dict[Any, Any] = {}
        value, dy = loss(model.forward(x, trace), x)
        flat = np.empty_like(model.parameters)
        model.backward(dy, trace, model.split(flat), need_dx=False)
        optimizer.step(flat)
        losses.append(float(value))
    return losses


def worst_difference(losses: list[float], expected: list[float]) -> float:
    """The largest relative difference; NaN counts as infinite."""
    worst = max(abs(a - b) / abs(b) for a, b in zip(losses, expected, strict=True))
    return worst if worst == worst else float("inf")


def milliseconds(
    step: Step, images: np.ndarray, size: int, synchronize: Callable[[], Any], tiny: bool
) -> dict[str, Any]:
    """Wall-clock time of a step among many, as in training: medians of runs of some steps."""
    steps, runs = (1, 2) if tiny else (50, 7)
    indices = [batch(images, size, number) for number in range(steps)]
    for each in indices[: 1 if tiny else 20]:
        step(each)
    synchronize()
    times = []
    for _ in range(runs):
        started = time.perf_counter()
        for each in indices:
            step(each)
        synchronize()
        times.append((time.perf_counter() - started) / steps * 1e3)
    ms = statistics.median(times)
    return {"ms": ms, "ms_range": [min(times), max(times)], "images_per_s": 1e3 * size / ms}


def run(bench: Bench, record: Record) -> None:
    """Time the step at each batch size, with and without reading the loss after every step."""
    images, tiny, wait = data(bench.emulated), bench.emulated, bench.backend.synchronize
    for size in (2,) if tiny else BATCHES:
        expected = reference_losses(images, size)
        elements = size * images[0].size
        for precision, recorded in itertools.product(PRECISIONS, (False, True)):
            if precision != "float32" and bench.backend.compute_capability < CAPABILITY:
                continue
            step, with_loss = our_step(
                images, bench.backend, size, recorded=recorded, precision=precision
            )
            losses = [
                with_loss(batch(images, size, number)) / (2 * elements)
                for number in range(COMPARED_STEPS)
            ]
            difference = worst_difference(losses, expected)
            subject = {
                "batch": size, "precision": precision, "recorded": recorded,
                "worst_loss_difference": difference,
            }  # fmt: skip
            if difference > PRECISIONS[precision]:
                record.add("failures", subject)
                continue
            for reads_loss, timed in ((False, step), (True, with_loss)):
                found = milliseconds(timed, images, size, wait, tiny)
                record.add("steps", {**subject, "reads_loss": reads_loss, **found})
    if record.content.get("failures"):
        raise ArithmeticError("some losses differ from NumPy's: see failures")
