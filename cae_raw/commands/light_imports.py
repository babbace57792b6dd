"""Imports that would load far more than they are asked for."""

from __future__ import annotations

import sys
from importlib import import_module


def load_tensorboardx() -> None:
    """Load tensorboardX without PyTorch, which it imports where that is installed: two seconds.

    None among the loaded modules makes PyTorch look as if it were not installed. For a program
    whose other threads do not load PyTorch: an import of it would fail meanwhile.
    """
    if "torch" in sys.modules or "tensorboardX" in sys.modules:
        return
    sys.modules["torch"] = None  # type: ignore[assignment]
    try:
        import_module("tensorboardX")
    finally:
        del sys.modules["torch"]
