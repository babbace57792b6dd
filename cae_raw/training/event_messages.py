"""What event files need of tensorboardX, without PyTorch, which it loads where it finds it."""

from __future__ import annotations

import functools
import sys
from importlib import import_module
from types import ModuleType


@functools.cache
def event() -> ModuleType:
    """`Event` and `SessionLog`."""
    return _module("proto.event_pb2")


@functools.cache
def summary() -> ModuleType:
    """`Summary` and `HistogramProto`."""
    return _module("proto.summary_pb2")


@functools.cache
def checksum() -> ModuleType:
    """`crc32c`."""
    return _module("crc32c")


def _module(name: str) -> ModuleType:
    """tensorboardX.<name>.

    Loading the package loads PyTorch where that is installed, which takes two seconds: None among
    the loaded modules makes it look as if it were not.
    """
    hidden = "torch" not in sys.modules and "tensorboardX" not in sys.modules
    if hidden:
        sys.modules["torch"] = None  # type: ignore[assignment]
    try:
        return import_module(f"tensorboardX.{name}")
    finally:
        if hidden:
            del sys.modules["torch"]
