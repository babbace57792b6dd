"""The training step and the forward pass in JAX, each jitted as a whole.

JAX is no dependency: it is imported when a step is made.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from cae_raw import layers
from cae_raw.data.scaling import scale_and_shift
from cae_raw.errors import InputError
from cae_raw.layers.loss import LOSSES
from cae_raw.models import Autoencoder

BETA1, BETA2, EPS = 0.9, 0.999, 1e-8


def import_jax() -> Any:
    """The module `jax`, told not to take most of a GPU's memory at once."""
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    import jax

    return jax


def facts(on_gpu: bool) -> dict[str, Any]:
    """JAX's version.

    Raises:
        RuntimeError: where it would not use the kind of device that is wanted.
    """
    jax = import_jax()
    platform = jax.default_backend()
    if (platform == "gpu") != on_gpu:
        raise RuntimeError(f"JAX {jax.__version__} uses a {platform}")
    return {"jax": jax.__version__}


class JaxStep:
    """JAX with the weights of one of cae-raw's models, on JAX's own choice of device.

    Args:
        model: on the CPU; its parameters are copied.
        images: uint8 (M, C, H, W), moved to the device.
        precision: of products: None for JAX's default, "highest" for float32 throughout.

    Raises:
        InputError: for a layer without a twin.
    """

    def __init__(
        self,
        model: Autoencoder,
        images: np.ndarray,
        *,
        optimizer: str = "adam",
        lr: float = 1e-3,
        precision: str | None = None,
    ) -> None:
        self.jax = jax = import_jax()
        jnp = jax.numpy
        self.name = "jax jit" if precision is None else f"jax jit {precision}"
        self.images = jnp.asarray(images)
        self.parameters = {k: jnp.asarray(np.array(v)) for k, v in model.params.items()}
        zeros = {k: jnp.zeros_like(v) for k, v in self.parameters.items()}
        self.state = (zeros, {k: jnp.zeros_like(v) for k, v in zeros.items()}, 0)
        scale, shift = scale_and_shift(model.value_range)
        factor = LOSSES[model.loss]
        network = _network(jax, model, precision)
        update = {"adam": _adam, "sgd": _sgd}[optimizer]

        def loss_of(parameters: Any, data: Any, indices: Any) -> Any:
            x = data[indices].astype(jnp.float32) * scale + shift
            return factor * jnp.mean((network(parameters, x) - x) ** 2)

        def train(parameters: Any, state: Any, data: Any, indices: Any) -> Any:
            loss, gradients = jax.value_and_grad(loss_of)(parameters, data, indices)
            return loss, *update(jax, parameters, state, gradients, lr)

        self._train = jax.jit(train, donate_argnums=(0, 1))
        self._loss = jax.jit(loss_of)
        self._gradients = jax.jit(jax.value_and_grad(loss_of))
        self._last: Any = None

    def loss_and_gradients(self, indices: np.ndarray) -> tuple[float, np.ndarray]:
        loss, gradients = self._gradients(self.parameters, self.images, indices)
        flat = [np.asarray(gradients[name]).ravel() for name in self.parameters]
        return float(loss), np.concatenate(flat)

    def step(self, indices: np.ndarray) -> Any:
        found = self._train(self.parameters, self.state, self.images, indices)
        self._last, self.parameters, self.state = found
        return self._last

    def forward(self, indices: np.ndarray) -> float:
        return float(self._loss(self.parameters, self.images, indices))

    def read(self, result: Any, batch: int) -> float:
        return float(result)

    def wait(self) -> None:
        self.jax.block_until_ready((self._last, self.parameters))

    def close(self) -> None:
        """Let go of what lies on the device, and of compiled code."""
        del self.images, self.parameters, self.state
        self.jax.clear_caches()


def _adam(jax: Any, parameters: Any, state: Any, g: Any, lr: float) -> tuple[Any, Any]:
    m, v, t = state
    t = t + 1
    m = jax.tree.map(lambda m, g: BETA1 * m + (1 - BETA1) * g, m, g)
    v = jax.tree.map(lambda v, g: BETA2 * v + (1 - BETA2) * g * g, v, g)
    rate, correction = lr / (1 - BETA1**t), 1 - BETA2**t

    def moved(p: Any, m: Any, v: Any) -> Any:
        return p - rate * m / (jax.numpy.sqrt(v / correction) + EPS)

    return jax.tree.map(moved, parameters, m, v), (m, v, t)


def _sgd(jax: Any, parameters: Any, state: Any, g: Any, lr: float) -> tuple[Any, Any]:
    return jax.tree.map(lambda p, g: p - lr * g, parameters, g), state


def _network(jax: Any, model: Autoencoder, precision: str | None) -> Any:
    """A function (parameters, x) -> y that computes what the model does."""
    lax, jnp = jax.lax, jax.numpy
    for layer in model.stack:
        if type(layer) not in _TWINS or not _side_by_side(layer):
            raise InputError(f"{layer!r} has no twin in JAX")

    def network(parameters: Any, x: Any) -> Any:
        chosen: dict[layers.Layer, Any] = {}  # of each pooling: masks, and the size before it
        for i, layer in enumerate(model.stack):
            mine = {name: parameters[f"{i}.{name}"] for name in layer.params}
            if isinstance(layer, layers.Conv2d):
                x = lax.conv_general_dilated(
                    x,
                    mine["weight"],
                    layer.stride,
                    [(p, p) for p in layer.padding],
                    precision=precision,
                )
                x = x + mine["bias"][:, None, None]
            elif isinstance(layer, layers.Linear):
                x = jnp.dot(x, mine["weight"].T, precision=precision) + mine["bias"]
            elif isinstance(layer, layers.MaxPool2d):
                size = x.shape[2:]
                x, mask = _pool(jnp, x, layer.kernel_size)
                chosen[layer] = mask, size, layer.kernel_size
            elif isinstance(layer, layers.MaxUnpool2d):
                x = _unpool(jnp, x, *chosen[layer.pool])
            elif isinstance(layer, layers.Tanh):
                x = jnp.tanh(x)
            elif isinstance(layer, layers.ReLU):
                x = jax.nn.relu(x)
            elif isinstance(layer, layers.Unflatten):
                x = x.reshape(x.shape[0], *layer.shape)
            else:
                x = x.reshape(x.shape[0], -1)
        return x

    return network


_TWINS = (
    *(layers.Conv2d, layers.Linear, layers.MaxPool2d, layers.MaxUnpool2d),
    *(layers.Tanh, layers.ReLU, layers.Flatten, layers.Unflatten),
)


def _side_by_side(layer: layers.Layer) -> bool:
    """False for a pooling whose windows overlap, leave gaps or begin outside."""
    if not isinstance(layer, layers.MaxPool2d):
        return True
    return layer.stride == layer.kernel_size and layer.padding == (0, 0)


def _pool(jnp: Any, x: Any, kernel: tuple[int, int]) -> tuple[Any, Any]:
    """Maxima of windows side by side, and which tap of each window is its first maximum."""
    n, c, h, w = x.shape
    kh, kw = kernel
    oh, ow = h // kh, w // kw
    windows = x[:, :, : oh * kh, : ow * kw].reshape(n, c, oh, kh, ow, kw)
    windows = windows.transpose(0, 1, 2, 4, 3, 5).reshape(n, c, oh, ow, kh * kw)
    mask = jnp.argmax(windows, axis=-1, keepdims=True)
    return jnp.take_along_axis(windows, mask, axis=-1)[..., 0], mask


def _unpool(jnp: Any, y: Any, mask: Any, size: tuple[int, int], kernel: tuple[int, int]) -> Any:
    """Every value at its tap, zeros elsewhere."""
    n, c, oh, ow = y.shape
    kh, kw = kernel
    windows = jnp.where(jnp.arange(kh * kw) == mask, y[..., None], 0.0)
    x = windows.reshape(n, c, oh, ow, kh, kw).transpose(0, 1, 2, 4, 3, 5)
    x = x.reshape(n, c, oh * kh, ow * kw)
    rest = [(0, 0), (0, 0), (0, size[0] - oh * kh), (0, size[1] - ow * kw)]
    return jnp.pad(x, rest)
