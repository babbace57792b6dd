"""Checkpoints: everything a training is, in one safetensors file that is either whole or refused.

Tensors: `model/<parameter>` for each parameter, `optimizer/<slot>` for each vector of the
optimizer's state. Metadata: format, version, config, state (both JSON) and a SHA-256 over all of
that and every tensor, because safetensors itself loads a flipped bit without a word.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cae_raw.errors import InputError
from cae_raw.files import atomic_write
from cae_raw.models import Autoencoder, build

FORMAT = "cae-raw checkpoint"
VERSION = 1


@dataclass(frozen=True)
class Checkpoint:
    """The contents of a checkpoint file, on the host."""

    parameters: dict[str, np.ndarray]
    optimizer: dict[str, np.ndarray]
    config: dict[str, Any]  # has "model": {"name": ..., **options}
    state: dict[str, Any]
    path: Path | None = None

    def build_model(self) -> Autoencoder:
        """The model, on the CPU, with the checkpoint's weights.

        Raises:
            InputError: if weights and model do not belong together.
        """
        options = dict(self.config["model"])
        model = build(options.pop("name"), **options)
        shapes = dict(zip(model.names, model.shapes, strict=True))
        if shapes != {name: value.shape for name, value in self.parameters.items()}:
            raise InputError(f"{self.path}: the weights do not fit the model it names")
        model.load_parameters(np.concatenate([self.parameters[n].ravel() for n in model.names]))
        return model


def save(path: Path, checkpoint: Checkpoint) -> None:
    """Write atomically: a kill at any moment leaves the old file or the new one, whole."""
    from safetensors.numpy import save as to_bytes

    tensors = {f"model/{k}": np.ascontiguousarray(v) for k, v in checkpoint.parameters.items()}
    tensors |= {f"optimizer/{k}": np.ascontiguousarray(v) for k, v in checkpoint.optimizer.items()}
    metadata = {
        "format": FORMAT,
        "version": str(VERSION),
        "config": json.dumps(checkpoint.config, sort_keys=True),
        "state": json.dumps(checkpoint.state, sort_keys=True),
    }
    metadata["sha256"] = _digest(tensors, metadata)
    atomic_write(path, to_bytes(tensors, metadata))


def load(path: Path) -> Checkpoint:
    """Read and verify a checkpoint.

    Raises:
        InputError: if the file is missing, is no checkpoint, is damaged, or is of a newer format.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load as from_bytes

    try:
        raw = path.read_bytes()
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"cannot read the checkpoint {path}: {reason}") from error
    try:
        tensors = from_bytes(raw)
        length = int.from_bytes(raw[:8], "little")
        metadata = json.loads(raw[8 : 8 + length]).get("__metadata__") or {}
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path} is damaged or no checkpoint of cae-raw: use another, or --restart the run"
        ) from error
    if metadata.get("format") != FORMAT:
        raise InputError(f"{path} is no checkpoint of cae-raw")
    if metadata.get("version") != str(VERSION):
        raise InputError(
            f"{path} has checkpoint format {metadata.get('version')}, this cae-raw reads "
            f"{VERSION}: install the version that wrote it"
        )
    if metadata.pop("sha256", None) != _digest(tensors, metadata):
        raise InputError(
            f"{path} is damaged (its checksum differs): use another, or --restart the run"
        )
    return Checkpoint(
        parameters=_under("model/", tensors),
        optimizer=_under("optimizer/", tensors),
        config=json.loads(metadata["config"]),
        state=json.loads(metadata["state"]),
        path=path,
    )


def _under(prefix: str, tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def _digest(tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> str:
    """SHA-256 over the metadata and each tensor's name, type, shape and bytes, by name."""
    sha = hashlib.sha256(json.dumps(dict(metadata), sort_keys=True).encode())
    for name in sorted(tensors):
        value = tensors[name]
        sha.update(json.dumps([name, value.dtype.str, value.shape]).encode())
        sha.update(np.ascontiguousarray(value).data)
    return sha.hexdigest()
