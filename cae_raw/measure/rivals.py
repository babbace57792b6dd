"""The rivals that can be imported here, and what there is to say about those that cannot."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from cae_raw.measure.jax_step import JaxStep, import_jax
from cae_raw.measure.ours import Candidate
from cae_raw.measure.problem import Problem
from cae_raw.measure.torch_step import CPU_MODES, CUDA_MODES, TorchStep, has_compiler

Make = Callable[[], Candidate]


class Rivals:
    """PyTorch in its modes and JAX, for one problem.

    Args:
        on_gpu: measure them on a GPU; a library that does not see it is left out.
        threads: of PyTorch on the CPU. JAX takes all processors, and cannot be told otherwise.
        compiling: False leaves out what has to be compiled first.
        skip: modes of PyTorch to leave out, or "jax".

    Attributes:
        facts: versions, and what PyTorch may do in TF32.
        notes: a line for each rival that is not there.
    """

    def __init__(
        self,
        problem: Problem,
        images: np.ndarray,
        *,
        on_gpu: bool = False,
        threads: int | None = None,
        compiling: bool = True,
        skip: Sequence[str] = (),
    ) -> None:
        self.problem, self.images = problem, images
        self.on_gpu, self.threads, self.compiling = on_gpu, threads, compiling
        self.facts: dict[str, Any] = {}
        self.notes: list[str] = []
        self.torch = self._torch()
        self.makes: dict[str, Make] = {}
        if self.torch is not None:
            for mode in self._modes(skip):
                self.makes[f"torch {mode}"] = lambda mode=mode: self._torch_step(mode)  # type: ignore[misc]
        if "jax" not in skip and self._jax():
            self.makes["jax jit"] = lambda: JaxStep(
                problem.build(), images, optimizer=problem.optimizer, lr=problem.lr
            )

    def candidates(self, failed: list[str]) -> Iterator[Candidate]:
        """Make them one by one; one that cannot be made adds a line to `failed`."""
        for name, make in self.makes.items():
            try:
                yield make()
            except Exception as error:  # out of memory, say
                failed.append(f"{name} does not run here: {type(error).__name__}: {error}"[:200])

    def _torch(self) -> Any:
        try:
            import torch
        except ImportError:
            self.notes.append("PyTorch is not installed: nothing is measured beside it")
            return None
        self.facts["torch"] = torch.__version__
        if self.on_gpu:
            if not torch.cuda.is_available():
                self.notes.append(f"PyTorch {torch.__version__} sees no GPU: it is left out")
                return None
            self.facts["torch_tf32"] = {
                "convolutions": bool(torch.backends.cudnn.allow_tf32),
                "products": bool(torch.backends.cuda.matmul.allow_tf32),
            }
            torch.backends.cudnn.benchmark = True
        return torch

    def _modes(self, skip: Sequence[str]) -> list[str]:
        modes = [mode for mode in (CUDA_MODES if self.on_gpu else CPU_MODES) if mode not in skip]
        if not self.compiling:
            return [mode for mode in modes if "compile" not in mode]
        if not has_compiler():
            self.notes.append("torch.compile is left out: there is no C++ compiler")
            return [mode for mode in modes if "compile" not in mode]
        return modes

    def _torch_step(self, mode: str) -> Candidate:
        return TorchStep(
            self.problem.build(),
            self.images,
            optimizer=self.problem.optimizer,
            lr=self.problem.lr,
            mode=mode,
            device="cuda" if self.on_gpu else "cpu",
            threads=self.threads,
        )

    def _jax(self) -> bool:
        try:
            jax = import_jax()
        except ImportError:
            self.notes.append("JAX is not installed: nothing is measured beside it")
            return False
        self.facts["jax"] = jax.__version__
        platform = jax.default_backend()
        if (platform == "gpu") != self.on_gpu:
            self.notes.append(f"JAX {jax.__version__} runs on {platform} here: it is left out")
            return False
        return True
