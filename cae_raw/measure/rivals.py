"""The rivals that are installed here, and what there is to say about those that are not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from typing import Any

from cae_raw.measure.problem import Problem
from cae_raw.measure.racer import Elsewhere, Racer, Rival
from cae_raw.measure.torch_step import CPU_MODES, CUDA_MODES, has_compiler


class Rivals:
    """PyTorch in its modes and JAX, for one problem.

    Args:
        images: in the data set.
        on_gpu: measure them on a GPU; a library that does not see it is left out.
        threads: of PyTorch on the CPU. JAX takes all processors, and cannot be told otherwise.
        compiling: False leaves out what has to be compiled first.
        skip: modes of PyTorch to leave out, or "jax".

    Attributes:
        facts: versions, and what PyTorch may do in TF32; complete when all racers were made.
        notes: a line for each rival that is not there.
    """

    def __init__(
        self,
        problem: Problem,
        images: int,
        *,
        on_gpu: bool = False,
        threads: int | None = None,
        compiling: bool = True,
        skip: Sequence[str] = (),
    ) -> None:
        self.facts: dict[str, Any] = {}
        self.notes: list[str] = []
        common: dict[str, Any] = {"on_gpu": on_gpu, "threads": threads}
        self.all: list[Rival] = []
        if find_spec("torch") is None:
            self.notes.append("PyTorch is not installed: nothing is measured beside it")
        else:
            for mode in CUDA_MODES if on_gpu else CPU_MODES:
                if mode not in skip and (compiling or "compile" not in mode):
                    self.all.append(Rival("torch", problem, images, mode, **common))
        if any("compile" in rival.mode for rival in self.all) and not has_compiler():
            self.notes.append("torch.compile is left out: there is no C++ compiler")
            self.all = [rival for rival in self.all if "compile" not in rival.mode]
        if find_spec("jax") is None:
            self.notes.append("JAX is not installed: nothing is measured beside it")
        elif "jax" not in skip:
            self.all.append(Rival("jax", problem, images, "jit", **common))

    def racers(self) -> Iterator[Racer]:
        """Start them one by one; one that does not start adds a line to `notes`."""
        for rival in self.all:
            try:
                racer = Elsewhere(rival)
            except RuntimeError as error:
                self.notes.append(f"{rival.name} does not run here: {error}")
                continue
            self.facts.update(racer.facts)
            yield racer
