"""The README's example runs as printed, and its commands exist."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

README = (Path(__file__).resolve().parent.parent / "README.md").read_text(encoding="utf-8")


def test_the_library_example_trains() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    names: dict[str, Any] = {}
    exec(code, names)
    first = names["images"][:64] / np.float32(255)
    untrained = float(np.mean((first - first.mean()) ** 2))
    assert names["value"] < untrained * 0.7


def test_every_command_that_the_readme_shows_exists() -> None:
    from cae_raw.app import app

    known = {command.name for command in app.registered_commands}
    known |= {group.name for group in app.registered_groups}
    shown = set(re.findall(r"^    cae-raw ([a-z]+)", README, re.MULTILINE))
    assert shown and shown <= known
    assert known <= set(re.findall(r"`?cae-raw ([a-z]+)", README)), "a command is missing"


def test_every_file_that_the_readme_links_exists() -> None:
    root = Path(__file__).resolve().parent.parent
    links = re.findall(r"\]\(([^)#:]+)\)", README)
    assert links
    for link in links:
        assert (root / link).exists(), link
