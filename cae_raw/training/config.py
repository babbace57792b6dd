"""The hyper-parameters of a run, and the folder name made of them."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, fields
from math import inf
from pathlib import Path
from typing import Any

import numpy as np

from cae_raw.data import DATASETS
from cae_raw.data.scaling import scale_and_shift
from cae_raw.errors import InputError, unknown_name
from cae_raw.files import plain_name
from cae_raw.layers import Linear
from cae_raw.layers.loss import LOSSES
from cae_raw.models import DEEP_MODELS, MODELS, Autoencoder, build
from cae_raw.models.deep import VALUE_RANGE as DEEP_RANGE
from cae_raw.models.deep import check_size
from cae_raw.models.single_layer import VALUE_RANGE, check_output
from cae_raw.ops.precision import PRECISIONS
from cae_raw.ops.single_layer_plan import MAX_CHANNELS, MAX_FILTERS, SPLIT, serves
from cae_raw.training.optimizers import OPTIMIZERS, SGD, Adam, Optimizer

LARGEST_INPUT = 1000  # far beyond what is useful, but float32 still tells 256 levels apart


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides which weights a training ends with, except for how long it goes on.

    Raises:
        InputError: on construction, if a value is out of its range.
    """

    dataset: str = "shapes"
    data_dir: str | None = None  # kept for `folder` and `lmdb`, whose images it decides
    size: int | None = None
    val: str | None = None  # of `lmdb`: the database to validate on
    channel_order: str = "bgr"  # of `lmdb`
    resize: bool = False  # of `lmdb`: records of other sizes become `size` x `size`
    classes: tuple[str, ...] | None = None  # None: all
    model: str = "single-layer"
    filters: int = 32  # of single-layer
    decoder_activation: str | None = None  # of single-layer; None: its own, tanh
    input_range: tuple[float, float] | None = None  # None: the model's own
    code_size: int = 1568  # of the deep models
    precision: str = "float32"  # of the products in linear layers, or in all of single-layer
    loss: str | None = None  # None: the model's own
    optimizer: str = "adam"
    lr: float = 1e-3
    momentum: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    batch_size: int = 128
    l2_penalty: float = 0.0
    l2_decoder: bool = False
    sparsity: float = 0.0
    lr_decay_epochs: int = 0
    lr_decay_factor: float = 0.1
    flip: bool = False
    seed: int = 0
    limit_train: int | None = None
    comment: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "betas", tuple(self.betas))
        if self.input_range is not None:
            object.__setattr__(self, "input_range", tuple(self.input_range))
        if self.dataset not in DATASETS:
            raise unknown_name("data set", self.dataset, DATASETS)
        if self.model not in MODELS:
            raise unknown_name("model", self.model, MODELS)
        if self.classes is not None:
            if not (self.classes and all(name.strip() for name in self.classes)):
                raise InputError(
                    "--classes names no class: give one or more, with commas between them"
                )
            names = sorted({name.strip() for name in self.classes})
            object.__setattr__(self, "classes", tuple(names))
        self._check_output()
        if self.optimizer not in OPTIMIZERS:
            raise unknown_name("optimizer", self.optimizer, OPTIMIZERS)
        if self.loss is not None and self.loss not in LOSSES:
            raise unknown_name("loss", self.loss, LOSSES)
        if self.precision not in PRECISIONS:
            raise unknown_name("precision", self.precision, PRECISIONS)
        at_least_1 = ("filters", "code_size", "batch_size", "limit_train", "size")
        for name in at_least_1:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"--{name.replace('_', '-')} must be at least 1, not {value}")
        for name in ("l2_penalty", "sparsity", "lr_decay_epochs", "seed"):
            value = getattr(self, name)
            if not 0 <= value < inf:  # so written, NaN and integers of any size are told apart
                raise InputError(f"--{name.replace('_', '-')} must be at least 0, not {value}")
        if not 0 < self.lr_decay_factor <= 1:
            raise InputError(
                f"--lr-decay-factor must be above 0 and at most 1, not {self.lr_decay_factor}"
            )
        if not re.fullmatch(r"[\w.,+=-]*", self.comment) or self.comment.startswith("."):
            raise InputError(
                f"--comment {self.comment!r} becomes part of a folder's name: use letters, digits "
                "and _ . , + = - only"
            )

    def _check_output(self) -> None:
        """Refuse a range or an activation that does not fit the model; its own become None."""
        own = DEEP_RANGE if self.model in DEEP_MODELS else VALUE_RANGE
        if self.input_range is not None:
            scale_and_shift(self.input_range, "--input-range")
            if max(map(abs, self.input_range)) > LARGEST_INPUT:
                raise InputError(
                    f"--input-range must lie within -{LARGEST_INPUT} to {LARGEST_INPUT}, not "
                    f"{self.input_range}"
                )
        if self.model not in DEEP_MODELS:
            activation = self.decoder_activation or "tanh"
            check_output(self.input_range or own, activation)
            if activation == "tanh":
                object.__setattr__(self, "decoder_activation", None)
        if self.input_range == own:
            object.__setattr__(self, "input_range", None)

    def to_json(self) -> dict[str, Any]:
        values = asdict(self)
        return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> TrainConfig:
        known = {f.name for f in fields(cls)}
        return cls(**{k: v for k, v in values.items() if k in known})

    def check_images(self, height: int, width: int) -> None:
        """Raise InputError where the model cannot be made for images of this size."""
        if self.model in DEEP_MODELS:
            check_size(self.model, height, width, self.code_size)

    def check_precision(self, channels: int = 1) -> None:
        """Raise InputError where the model for images of so many channels has no such kernels."""
        if self.precision == "float32" or self.model in DEEP_MODELS:
            return
        if self.precision not in SPLIT:
            raise InputError(
                f"--precision {self.precision} is for the linear layers of --model deep or "
                f"deep-same: choose {' or '.join(SPLIT)}, or omit --precision"
            )
        if not serves((self.filters, channels, 3, 3)):
            raise InputError(
                f"--precision {self.precision} is for models with at most {MAX_CHANNELS} channels "
                f"and {MAX_FILTERS} filters: omit --precision"
            )

    def make_model(self, image_shape: tuple[int, int, int]) -> Autoencoder:
        """The model for images (C, H, W) with its initial weights, a function of the seed."""
        channels, height, width = image_shape
        self.check_precision(channels)
        options: dict[str, Any] = {"channels": channels}
        if self.model in DEEP_MODELS:
            options |= {"size": (height, width), "code_size": self.code_size}
        else:
            options |= {"filters": self.filters}
            if self.decoder_activation is not None:
                options["decoder_activation"] = self.decoder_activation
        if self.input_range is not None:
            options["value_range"] = self.input_range
        model = build(self.model, np.random.default_rng(self.seed), **options)
        for layer in model.stack:
            if isinstance(layer, Linear):
                layer.precision = self.precision
        if model.fused_cuda is not None:
            model.fused_cuda.precision = self.precision
        return model

    def make_optimizer(self, model: Autoencoder) -> Optimizer:
        l2 = model.l2(self.l2_penalty, self.l2_decoder)
        if self.optimizer == "sgd":
            return SGD(model, self.lr, self.momentum, l2)
        return Adam(model, self.lr, self.betas, self.eps, l2)

    def run_name(self) -> Path:
        """`<model>/<dataset>_<optimizer>_lr=..._b=...`, then all that differs from the defaults."""
        dataset = self.dataset
        if self.data_dir is not None:
            dataset += "-" + plain_name(self.data_dir)
        parts = [dataset, self.optimizer, f"lr={self.lr:g}", f"b={self.batch_size}"]
        default = TrainConfig()
        for name, short in _SHORT.items():
            value = getattr(self, name)
            if name == "val" and value is not None:
                value = plain_name(value)
            if name == "classes" and value is not None:
                value = ",".join(map(plain_name, value))
            if value != getattr(default, name):
                parts.append(f"{short}={_text(value)}")
        if self.comment:
            parts.append(self.comment)
        return Path(self.model) / "_".join(parts)


# Order and spelling of what joins a run's name when it is not the default.
_SHORT = {
    "l2_penalty": "l2",
    "l2_decoder": "l2dec",
    "sparsity": "sparse",
    "filters": "f",
    "code_size": "code",
    "precision": "prec",
    "decoder_activation": "out",
    "input_range": "range",
    "loss": "loss",
    "size": "size",
    "val": "val",
    "channel_order": "order",
    "resize": "resize",
    "classes": "classes",
    "momentum": "mom",
    "betas": "betas",
    "eps": "eps",
    "lr_decay_epochs": "decay",
    "lr_decay_factor": "factor",
    "flip": "flip",
    "seed": "seed",
    "limit_train": "n",
}


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, tuple):
        return ",".join(f"{v:g}" for v in value)
    return str(int(value)) if isinstance(value, (bool, int)) else f"{value:g}"
