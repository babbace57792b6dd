"""Convolutional autoencoders for images, down to the kernel, without a deep-learning framework.

Names are loaded when first used, so that `import cae_raw` and `cae-raw --help` cost nearly nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "cae_raw.layers": (
        "Conv2d",
        "CrossEntropyLoss",
        "Flatten",
        "Linear",
        "MSELoss",
        "MaxPool2d",
        "MaxUnpool2d",
        "Pad2d",
        "ReLU",
        "Sequential",
        "Tanh",
        "Unflatten",
    ),
    "cae_raw.models": ("MODELS", "Autoencoder", "build", "single_layer"),
    "cae_raw.training.optimizers": ("SGD", "Adam"),
    "cae_raw.training.trainer": ("Trainer",),
    "cae_raw.training.loading": ("load",),
    "cae_raw.data": ("DATASETS", "DataOptions", "Dataset", "Split", "load_dataset"),
    "cae_raw.errors": ("InputError",),
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}

__all__ = ["__version__", *sorted(_MODULE_OF)]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'cae_raw' has no attribute {name!r}")
    return getattr(import_module(_MODULE_OF[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULE_OF})
