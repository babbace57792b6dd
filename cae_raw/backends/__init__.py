"""Where arrays live and who runs the work: NumPy on the CPU, CuPy on a GPU."""

from __future__ import annotations

import re

from cae_raw.backends.base import Backend
from cae_raw.backends.numpy_backend import NUMPY, NumpyBackend
from cae_raw.errors import InputError

__all__ = ["NUMPY", "Backend", "NumpyBackend", "choose_backend"]


def choose_backend(device: str = "auto") -> Backend:
    """The backend that `--device` names.

    Args:
        device: "cpu"; "cuda" or "cuda:N"; "auto" takes the first GPU on which a kernel really ran,
            else the CPU.

    Raises:
        InputError: for another name, or when a GPU is asked for and cannot be used.
    """
    if device == "cpu":
        return NUMPY
    if device != "auto" and not re.fullmatch(r"cuda(:\d+)?", device):
        raise InputError(f"unknown device {device!r}: choose auto, cpu, cuda or cuda:N")
    from cae_raw.backends.probe import open_cuda

    index = int(device.partition(":")[2] or 0)
    try:
        return open_cuda(index)
    except InputError:
        if device == "auto":
            return NUMPY
        raise
