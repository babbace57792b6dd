"""The same training step in JAX, jitted as a whole, in float32 and in what JAX chooses."""

from __future__ import annotations

from cae_raw.measure.jax_step import JaxStep, import_jax
from cae_raw.measure.race import TOLERANCE_TF32
from on_gpu import step as ours
from on_gpu.record import MissingError, Record


def run(record: Record, emulated: bool) -> None:
    """Time the step at each batch size.

    Raises:
        MissingError: without JAX.
        RuntimeError: where JAX does not see the GPU.
    """
    try:
        jax = import_jax()
    except ImportError as error:
        raise MissingError(str(error)) from error

    platform = jax.devices()[0].platform
    record.put("versions", {"jax": jax.__version__, "platform": platform})
    if platform != "gpu" and not emulated:
        raise RuntimeError(f"JAX runs on {platform} here: install its CUDA plugin")
    images = ours.data(emulated)
    for size in (2,) if emulated else ours.BATCHES:
        expected = ours.reference_losses(images, size)
        for precision in (None, "highest"):
            theirs = JaxStep(ours.new_model(), images, lr=ours.LR, precision=precision)
            losses = [
                theirs.read(theirs.step(ours.batch(images, size, n)), size)
                for n in range(len(expected))
            ]
            difference = ours.worst_difference(losses, expected)
            subject = {
                "batch": size,
                "precision": precision or "default",
                "worst_loss_difference": difference,
            }
            if difference > (ours.TOLERANCE if precision else TOLERANCE_TF32):
                record.add("failures", {**subject, "error": "losses differ from NumPy's"})
                continue
            found = ours.milliseconds(theirs.step, images, size, theirs.wait, emulated)
            record.add("steps", {**subject, **found})
    if not record.content.get("steps"):
        raise ArithmeticError("no step of JAX agrees with NumPy: see failures")
