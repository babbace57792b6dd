"""MNIST: every place and form the files may have, and every way they can be bad."""

from __future__ import annotations

import gzip
import os
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cae_raw.data import DataOptions, load_dataset, mnist
from cae_raw.errors import InputError

COUNTS = {"train": 30, "t10k": 10}


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">4B{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def files() -> dict[str, bytes]:
    rng = np.random.default_rng(0)
    made = {}
    for part, n in COUNTS.items():
        made[f"{part}-images-idx3-ubyte"] = idx(rng.integers(0, 256, (n, 28, 28), np.uint8))
        made[f"{part}-labels-idx1-ubyte"] = idx(rng.integers(0, 10, n, np.uint8))
    return made


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(mnist, "COUNTS", COUNTS)
    monkeypatch.setattr(mnist, "VALIDATION", 6)
    monkeypatch.setattr(mnist, "REMOTES", dict.fromkeys(mnist.REMOTES, NOWHERE))
    monkeypatch.setenv("CAE_RAW_CACHE", str(tmp_path / "cache"))


NOWHERE = mnist.Remote("nowhere.gz", 1, "md5:0", ("http://127.0.0.1:9/nowhere.gz",))


def write(folder: Path, ending: str = ".gz", dotted: bool = False) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files().items():
        name = name.replace("-idx", ".idx") if dotted else name
        (folder / (name + ending)).write_bytes(gzip.compress(data) if ending else data)
    return folder


def load(data_dir: Path) -> object:
    return load_dataset("mnist", DataOptions(data_dir=data_dir))


@pytest.mark.parametrize("ending", ["", ".gz"])
@pytest.mark.parametrize("dotted", [False, True])
@pytest.mark.parametrize("place", [".", "mnist", "MNIST/raw"])
def test_found_wherever_it_lies(tmp_path: Path, ending: str, dotted: bool, place: str) -> None:
    write(tmp_path / "data" / place, ending, dotted)
    data = load_dataset("mnist", DataOptions(data_dir=tmp_path / "data"))
    assert [len(s) for s in (data.train, data.validation, data.test)] == [24, 6, 10]
    assert data.train.image_shape == (1, 28, 28)
    made = files()
    images = np.frombuffer(made["train-images-idx3-ubyte"][16:], np.uint8).reshape(30, 1, 28, 28)
    labels = np.frombuffer(made["train-labels-idx1-ubyte"][8:], np.uint8)
    assert np.array_equal(data.validation.images, images[:6])
    assert np.array_equal(data.train.images, images[6:])
    assert data.train.labels is not None
    assert data.train.labels.dtype == np.int64
    assert np.array_equal(data.train.labels, labels[6:])


def test_found_in_the_cache(tmp_path: Path) -> None:
    write(tmp_path / "cache" / "mnist", "")
    assert len(load_dataset("mnist").test) == 10


def test_missing_everywhere_names_sources_and_ways_out(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        load(tmp_path)
    message = str(caught.value)
    assert "\n" not in message
    for part in ("http://127.0.0.1:9/", "--data-dir", "--dataset shapes", str(tmp_path)):
        assert part in message


def test_no_such_data_dir(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--data-dir .*nowhere: No such file"):
        load(tmp_path / "nowhere")


def test_published_table_is_complete() -> None:
    assert set(mnist._PUBLISHED) == {f"{name}.gz" for name in files()}


IMAGES = "train-images-idx3-ubyte"
GOOD = files()[IMAGES]
LABELS = files()["train-labels-idx1-ubyte"]


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        (IMAGES, b"<!DOCTYPE html><html>Not found</html>", "web page"),
        (IMAGES, b"", "empty"),
        (IMAGES, GOOD[:-1], "ends after 23519 of its 23520"),
        (IMAGES, GOOD + b"x", "goes on beyond"),
        (IMAGES, GOOD[:10], "ends inside its header"),
        (IMAGES, b"\0\0\x08\x01" + GOOD[4:], "no IDX file of 3-dim"),
        (IMAGES, b"\0\0\x0d\x03" + GOOD[4:], "no IDX file"),
        (IMAGES, idx(np.zeros((30, 28, 27), np.uint8)), r"shape \(30, 28, 27\) instead"),
        (IMAGES, idx(np.zeros((31, 28, 28), np.uint8)), r"shape \(31, 28, 28\) instead"),
        (IMAGES, gzip.compress(GOOD)[:-9], "cannot unpack"),
        (IMAGES, gzip.compress(GOOD)[:-8] + b"\0" * 8, "cannot unpack .*CRC"),
        (IMAGES, b"\x1f\x8b" + b"junk" * 20, "cannot unpack"),
        ("train-labels-idx1-ubyte", LABELS[:-1] + b"\x0a", "label 10"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, name: str, content: bytes, expected: str) -> None:
    write(tmp_path, "")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=expected) as caught:
        load(tmp_path)
    assert str(tmp_path / name) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_folder_in_place_of_a_file(tmp_path: Path) -> None:
    write(tmp_path, "")
    (tmp_path / IMAGES).unlink()
    (tmp_path / IMAGES).mkdir()
    with pytest.raises(InputError, match="is a folder"):
        load(tmp_path)
    (tmp_path / f"{IMAGES}.gz").write_bytes(gzip.compress(GOOD))
    load(tmp_path)  # a file of another accepted name is preferred


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_pipe_is_refused_not_waited_for(tmp_path: Path) -> None:
    write(tmp_path, "")
    (tmp_path / IMAGES).unlink()
    os.mkfifo(tmp_path / IMAGES)
    with pytest.raises(InputError, match="not a regular file"):
        load(tmp_path)


def test_unreadable_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "")
    # As root every mode can be read, so the refusal itself is made.
    original = Path.open

    def refuse(self: Path, *args: object, **kwargs: object) -> object:
        if self.name == IMAGES:
            raise PermissionError(13, "Permission denied", str(self))
        return original(self, *args, **kwargs)  # type: ignore[call-overload]

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(InputError, match=f"{IMAGES}: Permission denied"):
        load(tmp_path)


@given(st.binary(max_size=64), st.booleans())
def test_random_bytes_only_raise_input_error(data: bytes, with_magic: bool) -> None:
    if with_magic:
        data = b"\0\0\x08\x02" + data
    try:
        array = mnist.parse_idx(data, (2, 3), "x")
    except InputError as error:
        assert "\n" not in str(error)
    else:
        assert array.shape == (2, 3)
        assert len(data) == 4 + 8 + 6
