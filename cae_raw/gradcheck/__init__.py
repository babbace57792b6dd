"""Proof that the gradients are right: the engine of `cae-raw gradcheck`.

Two questions are asked of every layer in `LAYERS`, every model in `MODELS` and every loss of
labels.

Is the NumPy gradient the derivative? See `differences`: float64, central differences.

Does every kernel compute what its NumPy reference computes? See `kernels`: each operation that a
layer calls runs once more on the device and is compared, which names the kernel that is wrong.

The configurations are the tables in `cases`. A registered layer, model or operation that they do
not reach is an error, so that nothing passes by not being looked at.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import nan

from cae_raw.backends import NUMPY, Backend
from cae_raw.errors import unknown_name
from cae_raw.gradcheck.cases import LOSS_CASES, configurations
from cae_raw.gradcheck.check import Check
from cae_raw.gradcheck.differences import gradient_checks
from cae_raw.gradcheck.kernels import kernel_checks
from cae_raw.layers import LAYERS
from cae_raw.models import MODELS
from cae_raw.ops import OPS

__all__ = ["Check", "checks", "run"]


def run(name: str | None = None, backend: Backend = NUMPY) -> list[Check]:
    """All checks as a list; see `checks`."""
    return list(checks(name, backend))


def checks(name: str | None = None, backend: Backend = NUMPY) -> Iterator[Check]:
    """The checks of one layer, model or loss, or of all, one by one as they are done.

    Args:
        name: in `LAYERS`, `MODELS` or `LOSS_CASES`; None for all of them.
        backend: the gradients are always checked in NumPy; another backend than the CPU has its
            kernels compared with NumPy as well.

    Raises:
        InputError: for an unknown name, or a registered one that has no configuration.
    """
    known = [*LAYERS, *MODELS, *LOSS_CASES]
    if name is not None and name not in known:
        raise unknown_name("layer, model or loss", name, known)
    called: set[str] = set()
    for each in known if name is None else [name]:
        for configuration in configurations(each):
            yield from gradient_checks(configuration)
            if backend is not NUMPY:
                for check in kernel_checks(configuration, backend):
                    called.add(check.kernel)
                    yield check
    if name is None and backend is not NUMPY:
        for op in sorted(set(OPS) - called):
            yield Check(
                layer="none",
                configuration="none",
                kind="kernel",
                what="result",
                kernel=op,
                error=nan,
                note="no configuration of gradcheck calls this operation",
            )
