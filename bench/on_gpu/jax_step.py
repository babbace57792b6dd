"""The same training step in JAX, jitted as a whole, in float32 and in what JAX chooses."""

from __future__ import annotations

from typing import Any

import numpy as np

from cae_raw.data.scaling import scale_and_shift
from on_gpu import step as ours
from on_gpu.record import MissingError, Record

TOLERANCE_DEFAULT = 5e-3  # JAX may use TF32 unless told otherwise


def run(record: Record, emulated: bool) -> None:
    """Time the step at each batch size.

    Raises:
        MissingError: without JAX.
        RuntimeError: where JAX does not see the GPU.
    """
    try:
        import jax
    except ImportError as error:
        raise MissingError(str(error)) from error

    platform = jax.devices()[0].platform
    record.put("versions", {"jax": jax.__version__, "platform": platform})
    if platform != "gpu" and not emulated:
        raise RuntimeError(f"JAX runs on {platform} here: install its CUDA plugin")
    images = ours.data(emulated)
    for size in (2,) if emulated else ours.BATCHES:
        expected = ours.reference_losses(images, size)
        for precision in ("default", "highest"):
            last: list[Any] = []
            step = make(jax, images, precision)

            def keep(indices: np.ndarray, step: Any = step, last: list[Any] = last) -> Any:
                last[:] = [step(indices)]
                return last[0]

            losses = [float(keep(ours.batch(images, size, n))) for n in range(len(expected))]
            difference = ours.worst_difference(losses, expected)
            subject = {"batch": size, "precision": precision, "worst_loss_difference": difference}
            if difference > (ours.TOLERANCE if precision == "highest" else TOLERANCE_DEFAULT):
                record.add("failures", {**subject, "error": "losses differ from NumPy's"})
                continue

            def wait(last: list[Any] = last) -> None:
                jax.block_until_ready(last)

            found = ours.milliseconds(keep, images, size, wait, emulated)
            record.add("steps", {**subject, **found})
    if not record.content.get("steps"):
        raise ArithmeticError("no step of JAX agrees with NumPy: see failures")


def make(jax: Any, images: np.ndarray, precision: str) -> ours.Step:
    """indices -> half_mse; weights and Adam's state stay on the device."""
    jnp = jax.numpy
    scale, shift = scale_and_shift((-1.0, 1.0))
    beta1, beta2, eps = 0.9, 0.999, 1e-8
    placed = jnp.asarray(images)
    parameters = {k: jnp.asarray(v) for k, v in ours.new_model().params.items()}
    zeros = {k: jnp.zeros_like(v) for k, v in parameters.items()}
    state = [parameters, zeros, {k: jnp.zeros_like(v) for k, v in parameters.items()}, 0]

    def convolution(x: Any, w: Any, b: Any, padding: int) -> Any:
        y = jax.lax.conv_general_dilated(
            x, w, (1, 1), [(padding, padding)] * 2, precision=precision
        )
        return jnp.tanh(y + b[:, None, None])

    def loss_of(p: Any, x: Any) -> Any:
        code = convolution(x, p["0.weight"], p["0.bias"], 2)
        y = convolution(code, p["2.weight"], p["2.bias"], 0)
        return 0.5 * jnp.mean((y - x) ** 2)

    def update(p: Any, m: Any, v: Any, t: Any, data: Any, indices: Any) -> Any:
        x = data[indices].astype(jnp.float32) * scale + shift
        loss, g = jax.value_and_grad(loss_of)(p, x)
        t = t + 1
        m = jax.tree.map(lambda m, g: beta1 * m + (1 - beta1) * g, m, g)
        v = jax.tree.map(lambda v, g: beta2 * v + (1 - beta2) * g * g, v, g)
        rate = ours.LR / (1 - beta1**t)
        p = jax.tree.map(
            lambda p, m, v: p - rate * m / (jnp.sqrt(v / (1 - beta2**t)) + eps), p, m, v
        )
        return loss, p, m, v, t

    compiled = jax.jit(update, donate_argnums=(0, 1, 2))

    def step(indices: np.ndarray) -> Any:
        loss, *state[:] = compiled(*state, placed, indices)
        return loss

    return step
