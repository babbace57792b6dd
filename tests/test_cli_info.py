"""`cae-raw info`, `--version`, and help that a newcomer can follow."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from cli_runner import TRAIN, Here, picture

from cae_raw import __version__
from cae_raw.app import app

COMMANDS = [str(command.name) for command in app.registered_commands]


def test_facts(here: Here) -> None:
    before = json.loads(here("info", "--json").out)
    assert list(before) == ["cae-raw", "python", "packages", "cpu", "blas", "gpu", "data", "runs"]
    assert before["cae-raw"] == __version__
    assert f"numpy {np.__version__}" in before["packages"]
    assert re.search(r"[1-9]\d* threads$", before["cpu"])
    assert before["runs"] == f"{Path('runs').resolve()}, none yet"
    assert str(Path("..").resolve() / "cache") in before["data"]
    here(*TRAIN)
    result = here("info")
    assert (result.status, result.err) == (0, "")
    lines = dict(line.split(maxsplit=1) for line in result.out.splitlines())
    assert list(lines) == list(before)
    assert lines["runs"].endswith("newest runs/single-layer/shapes_adam_lr=0.001_b=16_f=2")


def test_info_makes_nothing(here: Here) -> None:
    here("info")
    assert list(Path(".").iterdir()) == []


def test_version(here: Here) -> None:
    result = here("--version")
    assert (result.status, result.out, result.err) == (0, f"cae-raw {__version__}\n", "")


def test_without_a_command_help_and_failure(here: Here) -> None:
    result = here()
    assert (result.status, result.out) == (2, "")
    assert result.err.rstrip("\n") == here("--help").out.rstrip("\n")


def test_help_names_every_command_in_whole_sentences(here: Here) -> None:
    shown = here("--help").out
    for name in COMMANDS:
        line = re.search(rf"^  {name} +(.+)$", shown, re.MULTILINE)
        assert line is not None, name
        assert line[1].endswith(".") and not line[1].endswith("..."), line[1]


@pytest.mark.parametrize("name", COMMANDS)
def test_help_explains_every_option(here: Here, name: str) -> None:
    result = here(name, "--help")
    assert (result.status, result.err) == (0, "")
    options = re.findall(r"^  (--[a-z0-9-]+)(.*(?:\n {6,}.*)*)", result.out, re.MULTILINE)
    assert options
    for option, text in options:
        assert re.search(r"[a-z]{3,}.*\.", text, re.DOTALL), f"{option} is not explained"


def test_examples_in_the_help_work(here: Here) -> None:
    """Every example is accepted as written; those that need no downloads run."""
    for i in range(12):
        picture(Path(f"photos/{i}.png"), 8, 8, 3, seed=i)
    picture(Path("photo.jpg"), 8, 8, 3)
    for name in ("train", "val"):
        made = here("data", "convert", "photos", f"{name}.lmdb", "--size", "16")
        assert made.status == 0, made.err
    quick = ["--device", "cpu"]
    assert here("train", "--epochs", "1", *quick).status == 0  # the run that examples name
    for name in ("train", "evaluate", "reconstruct"):
        examples = re.findall(r"^    cae-raw (.+)$", here(name, "--help").out, re.MULTILINE)
        assert len(examples) >= 2
        for example in examples:
            words = shlex.split(example.replace("*.png", "photos/1.png"))
            small = ["--epochs", "1"] if name == "train" else []
            result = here(*words, *quick, *small)
            if "mnist" in example or "cifar10" in example:
                assert "cannot download" in result.err, result.err
            else:
                assert result.status == 0, (example, result.err)
