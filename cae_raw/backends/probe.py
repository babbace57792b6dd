"""Finding out whether there is a GPU that works.

CuPy imports without a GPU, and a driver may count devices that cannot run what its compiler makes.
So a device counts as usable when a kernel of this package was compiled for it, ran, and its result
was read back.
"""

from __future__ import annotations

import numpy as np

from cae_raw.backends import cuda_backend
from cae_raw.backends.cuda_backend import CudaBackend
from cae_raw.backends.first_use import Announcer
from cae_raw.errors import InputError

_opened: dict[int, CudaBackend] = {}


def open_cuda(index: int = 0) -> CudaBackend:
    """The backend of GPU `index`, after a kernel ran on it.

    Raises:
        InputError: if CuPy, a driver or the device is missing, or the kernel did not run.
    """
    if index not in _opened:
        _opened[index] = _open(index)
    return _opened[index]


def _open(index: int) -> CudaBackend:
    try:
        cupy = cuda_backend.import_cupy()
    except ImportError as error:
        raise InputError(
            'CUDA needs CuPy, which is not installed: pip install "cae-raw[cuda13]" (or [cuda12] '
            "for an older driver), or use --device cpu"
        ) from error
    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as error:
        raise InputError(f"no usable GPU ({error}): `cae-raw doctor` explains") from error
    if index >= count:
        raise InputError(f"there is no cuda:{index}: this machine has {count} GPU(s), from cuda:0")
    try:
        backend = CudaBackend(cupy, index)
        backend.first_use = Announcer(backend)
        check_kernel(backend)
    except InputError:
        raise
    except Exception as error:  # whatever the driver, the compiler or the loader says
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise InputError(
            f"cuda:{index} cannot run a kernel ({reason[0]}): `cae-raw doctor` explains"
        ) from error
    return backend


def check_kernel(backend: CudaBackend) -> None:
    """Run one kernel and compare what it wrote.

    Raises:
        InputError: if the result is wrong.
    """
    from cae_raw.ops.activation import relu_forward

    x = np.linspace(-1, 1, 1001, dtype=np.float32)
    y = backend.to_numpy(relu_forward(backend.asarray(x)))
    if not np.array_equal(y, np.maximum(x, 0)):
        raise InputError(f"{backend.name} computes wrong results: `cae-raw doctor` explains")


def describe_gpu() -> str:
    """The first GPU in words, or why there is none."""
    try:
        backend = open_cuda(0)
    except InputError as error:
        return f"none: {error}"
    properties = backend.cupy.cuda.runtime.getDeviceProperties(0)
    name = properties["name"]
    memory = properties["totalGlobalMem"] / 2**30
    return f"{name.decode() if isinstance(name, bytes) else name}, {memory:.0f} GiB"
