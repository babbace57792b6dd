"""The models, by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from cae_raw.errors import InputError, unknown_name
from cae_raw.models.autoencoder import Autoencoder
from cae_raw.models.deep import deep, deep_same
from cae_raw.models.single_layer import single_layer

MODELS: dict[str, Callable[..., Autoencoder]] = {
    "single-layer": single_layer,
    "deep": deep,
    "deep-same": deep_same,
}

DEEP_MODELS = ("deep", "deep-same")  # those with a code of a chosen size, for one image size

__all__ = ["DEEP_MODELS", "MODELS", "Autoencoder", "build", "deep", "deep_same", "single_layer"]


def build(name: str, rng: np.random.Generator | None = None, **options: Any) -> Autoencoder:
    """The named model.

    Raises:
        InputError: for a name or an option that does not exist.
    """
    if name not in MODELS:
        raise unknown_name("model", name, MODELS)
    try:
        return MODELS[name](**options, rng=rng)
    except TypeError as error:
        raise InputError(f"model {name!r} cannot be built from {options}: {error}") from error
