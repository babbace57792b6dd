"""A JSON file that is complete after every entry, so that a killed process leaves what it had."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any


def plain(value: Any) -> Any:
    """The value as JSON holds it: no NaN, no infinity, no NumPy number."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def write(path: Path, value: Any) -> None:
    """Replace the file in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(plain(value), indent=1, allow_nan=False) + "\n")
    os.replace(partial, path)


class MissingError(Exception):
    """What a section needs is not installed, so that it did not do anything."""


class Record:
    """What one section has found so far."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.content: dict[str, Any] = {}

    def put(self, key: str, value: Any) -> None:
        self.content[key] = value
        write(self.path, self.content)

    def add(self, key: str, value: Any) -> None:
        self.content.setdefault(key, []).append(value)
        write(self.path, self.content)
