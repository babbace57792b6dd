"""Says that kernels are being compiled, where that takes long enough for someone to wonder."""

from __future__ import annotations

import sys
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cae_raw.backends.cuda_backend import CudaBackend

PATIENCE = 0.4  # seconds; a kernel from CuPy's cache is there in milliseconds


class Announcer:
    """What `CudaBackend.first_use` calls before a kernel file is compiled or loaded.

    Whether the file is in CuPy's cache is not known before it is tried. So a timer looks later, and
    if the same file is still being compiled then, one line goes to stderr, once for all files.
    """

    def __init__(self, backend: CudaBackend, patience: float = PATIENCE) -> None:
        self.backend = backend
        self.patience = patience
        self._uses = 0
        self._said = False

    def __call__(self, file: str) -> None:
        if self._said:
            return
        self._uses += 1
        timer = threading.Timer(self.patience, self._look, [self._uses])
        timer.daemon = True
        timer.start()

    def _look(self, use: int) -> None:
        if use != self._uses or self._said or not self.backend.compiling:
            return
        self._said = True
        device = self.backend.name
        line = f"compiling the CUDA kernels for {device} (first run; cached afterwards) ..."
        print(line, file=sys.stderr, flush=True)
