"""A checkpoint comes back exactly, or not at all."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save as to_bytes

import cae_raw
from cae_raw.errors import InputError
from cae_raw.models import single_layer
from cae_raw.training import checkpoint
from cae_raw.training.checkpoint import Checkpoint


def make_checkpoint(filters: int = 1) -> Checkpoint:
    rng = np.random.default_rng(8)
    model = single_layer(1, filters, rng)
    return Checkpoint(
        parameters=model.split(model.parameters),
        optimizer={
            "m": rng.standard_normal(len(model.parameters)).astype(np.float32),
            "control": np.array([1e-3, 17, 1 / 3, np.nextafter(1, 2)]),
        },
        config={"model": {"name": "single-layer", "channels": 1, "filters": filters}, "é": "ß\n"},
        state={"epoch": 3, "best": 0.1 + 0.2, "history": [{"lr": 1e-5}], "none": None},
    )


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "a.safetensors"
    checkpoint.save(path, make_checkpoint())
    return path


def assert_refused(path: Path, match: str = "") -> None:
    with pytest.raises(InputError, match=match) as caught:
        checkpoint.load(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_round_trip_is_exact(tmp_path: Path) -> None:
    original = make_checkpoint(filters=5)
    odd = original.parameters["0.weight"]
    odd.flat[:5] = [np.inf, -0.0, np.nan, 1e-45, np.float32(3.4e38)]
    path = tmp_path / "a.safetensors"
    checkpoint.save(path, original)
    back = checkpoint.load(path)
    assert back.config == original.config and back.state == original.state and back.path == path
    for mine, theirs in (
        (original.parameters, back.parameters),
        (original.optimizer, back.optimizer),
    ):
        assert mine.keys() == theirs.keys()
        for name, value in mine.items():
            assert theirs[name].dtype == value.dtype and theirs[name].shape == value.shape
            assert theirs[name].tobytes() == value.tobytes()
    again = tmp_path / "b.safetensors"
    checkpoint.save(again, back)
    assert checkpoint.load(again).parameters["0.weight"].tobytes() == odd.tobytes()


def test_the_model_is_built_again(saved: Path) -> None:
    model = checkpoint.load(saved).build_model()
    expected = make_checkpoint().parameters
    assert model.parameters.flags.writeable
    for name, value in model.params.items():
        assert np.array_equal(value, expected[name])
    assert np.array_equal(cae_raw.load(saved).parameters, model.parameters)


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    wrong = make_checkpoint()
    wrong.config["model"]["filters"] = 2
    path = tmp_path / "a.safetensors"
    checkpoint.save(path, wrong)
    with pytest.raises(InputError, match="weights do not fit the model"):
        checkpoint.load(path).build_model()


def test_views_are_saved_as_they_look(tmp_path: Path) -> None:
    original = make_checkpoint()
    original.optimizer["m"] = np.arange(20, dtype=np.float32)[::-2]
    original.optimizer["t"] = np.arange(6, dtype=np.float32).reshape(2, 3).T
    checkpoint.save(tmp_path / "a", original)
    back = checkpoint.load(tmp_path / "a").optimizer
    assert back["m"].tolist() == list(range(19, 0, -2))
    assert back["t"].tolist() == [[0, 3], [1, 4], [2, 5]]


def test_every_flipped_bit_is_refused(saved: Path, tmp_path: Path) -> None:
    whole = saved.read_bytes()
    damaged = tmp_path / "damaged.safetensors"
    descriptor = os.open(damaged, os.O_RDWR | os.O_CREAT)
    try:
        os.write(descriptor, whole)
        accepted = []
        for position, byte in enumerate(whole):
            for bit in range(8):
                os.pwrite(descriptor, bytes([byte ^ 1 << bit]), position)
                try:
                    checkpoint.load(damaged)
                except InputError:
                    continue
                accepted.append((position, bit))
            os.pwrite(descriptor, bytes([byte]), position)
    finally:
        os.close(descriptor)
    assert accepted == []
    assert len(whole) > 900
    assert checkpoint.load(damaged).state == make_checkpoint().state  # the loop put it all back


def test_every_truncation_is_refused(saved: Path, tmp_path: Path) -> None:
    whole = saved.read_bytes()
    path = tmp_path / "short"
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        assert_refused(path, "is damaged")


@pytest.mark.parametrize("tail", [b"\0", b"\n", b"x" * 5000])
def test_an_extended_file_is_refused(saved: Path, tail: bytes) -> None:
    saved.write_bytes(saved.read_bytes() + tail)
    assert_refused(saved, "is damaged")


def test_swapped_and_zeroed_blocks_are_refused(saved: Path) -> None:
    whole = bytearray(saved.read_bytes())
    zeroed = bytearray(whole)
    zeroed[-64:] = bytes(64)
    swapped = bytearray(whole)
    swapped[-64:-32], swapped[-32:] = whole[-32:], whole[-64:-32]
    for damaged in (zeroed, swapped):
        assert damaged != whole
        saved.write_bytes(damaged)
        assert_refused(saved, "checksum")


OTHER_FILES = {
    "empty": b"",
    "html": b"<!DOCTYPE html><html><body>404</body></html>",
    "zeros": bytes(4096),
    "ones": b"\xff" * 4096,
    "zip": b"PK\x03\x04" + bytes(100),
    "no metadata": to_bytes({"a": np.zeros(3, np.float32)}),
    "other metadata": to_bytes({"a": np.zeros(3, np.float32)}, {"format": "pt"}),
    "no tensors": to_bytes({}),
    "null metadata": (29).to_bytes(8, "little") + b'{"__metadata__":null         }',
    "bfloat16": (62).to_bytes(8, "little")
    + b'{"a":{"dtype":"BF16","shape":[1],"data_offsets":[0,2]}        }'[:62]
    + b"\0\0",
    "a list": (8).to_bytes(8, "little") + b"[1,2,3] ",
}


@pytest.mark.parametrize("name", OTHER_FILES)
def test_other_files_are_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    path.write_bytes(OTHER_FILES[name])
    assert_refused(path, "no checkpoint of cae-raw")


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    assert_refused(tmp_path / "nothing", "cannot read the checkpoint .*No such file")
    assert_refused(tmp_path, "cannot read the checkpoint")


def test_a_newer_format_names_its_number(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "VERSION", 2)
    checkpoint.save(saved, make_checkpoint())
    monkeypatch.undo()
    assert_refused(saved, "has checkpoint format 2, this cae-raw reads 1: install")


@pytest.mark.parametrize("missing", ["sha256", "config", "state"])
def test_metadata_cannot_be_left_out(saved: Path, missing: str) -> None:
    raw = saved.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    del header["__metadata__"][missing]
    text = json.dumps(header).encode()
    saved.write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + length :])
    assert_refused(saved, "checksum")


def test_a_tensor_under_another_name_is_refused(saved: Path) -> None:
    raw = saved.read_bytes()
    renamed = raw.replace(b'"model/0.bias"', b'"model/2.bios"')
    assert renamed != raw
    saved.write_bytes(renamed)
    assert_refused(saved, "checksum")


@pytest.mark.skipif(os.name == "nt", reason="modes are POSIX")
def test_ordinary_file_mode(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        checkpoint.save(tmp_path / "a", make_checkpoint())
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o640


def test_a_failing_write_leaves_the_old_file(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    before = saved.read_bytes()
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match=r"cannot write .*: No space left on device$"):
        checkpoint.save(saved, make_checkpoint(filters=3))
    assert saved.read_bytes() == before
    assert os.listdir(saved.parent) == [saved.name]


LIMITED = """
import resource, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_checkpoint import make_checkpoint
from cae_raw.errors import InputError
from cae_raw.training import checkpoint

resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    checkpoint.save(Path(sys.argv[1]), make_checkpoint(filters=300))
except InputError as error:
    print(error)
"""


@pytest.mark.skipif(os.name == "nt", reason="limits are POSIX")
def test_a_write_cut_short_leaves_the_old_file(saved: Path) -> None:
    """The system itself stops the write in the middle, as on a full disk."""
    before = saved.read_bytes()
    result: Any = subprocess.run(
        [sys.executable, "-c", LIMITED, str(saved), str(Path(__file__).parent)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.stderr == ""
    assert result.stdout == f"cannot write {saved}: File too large\n"
    assert saved.read_bytes() == before
    assert os.listdir(saved.parent) == [saved.name]
