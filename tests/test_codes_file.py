"""Files of codes: what is written is read again, whole or not at all, and nothing else is."""

from __future__ import annotations

import csv
import json
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cae_raw import codes_file
from cae_raw.codes_file import WRITERS, codes_writer, model_facts, names_path, read_codes
from cae_raw.errors import InputError
from cae_raw.models import single_layer

MODEL = {"name": "deep", "size": [16, 12], "weights_sha256": "0" * 64}
ENDINGS = sorted(WRITERS)


def codes(n: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(n).standard_normal((n, *shape), dtype=np.float32)


def write(path: Path, parts: list[np.ndarray], labelled: bool = True) -> list[str]:
    names: list[str] = []
    with codes_writer(path, MODEL, ("cat", "dog")) as writer:
        for part in parts:
            mine = [f"{len(names) + i}, ü.png" for i in range(len(part))]
            writer.write(part, mine, [len(name) for name in mine] if labelled else None)
            names += mine
    return names


@pytest.mark.parametrize("shape", [(5,), (1,), (3, 4, 2)])
@pytest.mark.parametrize("ending", [".npy", ".npz"])
def test_what_is_written_is_read(tmp_path: Path, ending: str, shape: tuple[int, ...]) -> None:
    path = tmp_path / f"codes{ending}"
    parts = [codes(n, *shape) for n in (1, 7, 95)]
    write(path, parts)
    found = read_codes(path)
    assert found.values.dtype == np.float32
    np.testing.assert_array_equal(found.values, np.concatenate(parts))
    np.testing.assert_array_equal(np.concatenate(list(found.batches(10))), found.values)
    assert found.model == (MODEL if ending == ".npz" else None)


def test_npy_has_names_and_labels_beside(tmp_path: Path) -> None:
    names = write(tmp_path / "a.b.npy", [codes(2, 3), codes(1, 3)])
    assert sorted(os.listdir(tmp_path)) == ["a.b.names.txt", "a.b.npy"]
    lines = names_path(tmp_path / "a.b.npy").read_text("utf-8").splitlines()
    assert lines == [f"{name}\t{len(name)}" for name in names]
    write(tmp_path / "a.b.npy", [codes(2, 3)], labelled=False)
    assert names_path(tmp_path / "a.b.npy").read_text("utf-8").splitlines() == names[:2]


def test_npz_holds_everything(tmp_path: Path) -> None:
    names = write(tmp_path / "c.npz", [codes(2, 3), codes(1, 3)])
    assert os.listdir(tmp_path) == ["c.npz"]
    with np.load(tmp_path / "c.npz") as archive:
        assert sorted(archive) == ["classes", "codes", "labels", "model", "names"]
        assert archive["names"].tolist() == names
        assert archive["labels"].tolist() == [len(name) for name in names]
        assert archive["labels"].dtype == np.int64
        assert archive["classes"].tolist() == ["cat", "dog"]
        assert json.loads(str(archive["model"])) == MODEL
    write(tmp_path / "c.npz", [codes(2, 3)], labelled=False)
    with np.load(tmp_path / "c.npz") as archive:
        assert "labels" not in archive


def test_csv_keeps_every_bit(tmp_path: Path) -> None:
    parts = [codes(3, 4) * np.float32(1e-30), codes(2, 4)]
    names = write(tmp_path / "c.csv", parts)
    with open(tmp_path / "c.csv", encoding="utf-8", newline="") as file:
        head, *rows = csv.reader(file)
    assert head == ["name", "label", "c0", "c1", "c2", "c3"]
    assert [row[0] for row in rows] == names
    assert [row[1] for row in rows] == [str(len(name)) for name in names]
    values = np.array([row[2:] for row in rows], np.float64).astype(np.float32)
    np.testing.assert_array_equal(values, np.concatenate(parts))


@pytest.mark.parametrize("ending", ENDINGS)
def test_names_that_are_no_text(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"c{ending}"
    with codes_writer(path, MODEL) as writer:
        writer.write(codes(1, 2), ["\udcff.png"], None)
    assert path.stat().st_size > 0


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("after", [0, 1])
def test_a_failure_keeps_the_old_files(tmp_path: Path, ending: str, after: int) -> None:
    path = tmp_path / f"c{ending}"
    write(path, [codes(4, 3)])
    before = {name: (tmp_path / name).read_bytes() for name in os.listdir(tmp_path)}
    with pytest.raises(KeyboardInterrupt), codes_writer(path, MODEL) as writer:
        for _ in range(after):
            writer.write(codes(2, 3), ["a", "b"], None)
        raise KeyboardInterrupt
    with pytest.raises(InputError, match="no image could be used"), codes_writer(path, MODEL):
        pass
    assert {name: (tmp_path / name).read_bytes() for name in os.listdir(tmp_path)} == before


@pytest.mark.parametrize("ending", ENDINGS)
def test_where_nothing_can_be_written(tmp_path: Path, ending: str) -> None:
    (tmp_path / f"folder{ending}").mkdir()
    for path in (tmp_path / f"folder{ending}", tmp_path / "missing" / f"c{ending}"):
        with pytest.raises(InputError, match="cannot write"):
            write(path, [codes(1, 2)])
    assert os.listdir(tmp_path) == [f"folder{ending}"]


def test_other_endings_and_maps_in_csv(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"ends in \.npy or \.npz or \.csv"):
        write(tmp_path / "codes.txt", [codes(1, 2)])
    with pytest.raises(InputError, match=r"codes of 2x3x3 do not fit a \.csv"):
        write(tmp_path / "codes.csv", [codes(1, 2, 3, 3)])
    assert os.listdir(tmp_path) == []


def test_memory_is_that_of_one_batch(tmp_path: Path) -> None:
    import tracemalloc

    part = codes(256, 128)
    tracemalloc.start()
    try:
        with codes_writer(tmp_path / "c.npy", MODEL) as writer:
            for _ in range(50):
                writer.write(part, ["name"] * len(part), None)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2 * part.nbytes
    assert read_codes(tmp_path / "c.npy").values.shape == (50 * 256, 128)


def test_other_floats_are_read_as_float32(tmp_path: Path) -> None:
    values = np.asfortranarray(codes(6, 4).astype(">f8"))
    np.save(tmp_path / "c.npy", values)
    (batch,) = read_codes(tmp_path / "c.npy").batches(6)
    assert batch.dtype == np.float32 and batch.flags.c_contiguous
    np.testing.assert_array_equal(batch, values.astype(np.float32))


class Attack:
    def __reduce__(self) -> Any:
        return os.mkdir, ("attacked",)


def objects(path: Path) -> None:
    np.save(path, np.array([Attack(), None]), allow_pickle=True)


def pickled(path: Path) -> None:
    path.write_bytes(pickle.dumps(Attack()))


def far_too_long(path: Path) -> None:
    np.save(path, codes(4, 4))
    path.write_bytes(path.read_bytes().replace(b"(4, 4)", b"(9, 9)"))


def array(*values: Any, dtype: Any = None) -> Any:
    return lambda path: np.save(path, np.array(values, dtype))


BAD = {
    "objects": (objects, "is damaged or no .npy file"),
    "pickle": (pickled, "is damaged or no .npy file"),
    "empty": (lambda path: path.touch(), "is damaged or no .npy file"),
    "text": (lambda path: path.write_text("0.1 0.2"), "is damaged or no .npy file"),
    "long": (far_too_long, "is damaged or no .npy file"),
    "whole numbers": (array([1, 2]), "holds int64 values: codes are floats"),
    "complex": (array([1j]), "holds complex128 values"),
    "words": (array(["a"]), "holds <U1 values"),
    "a vector": (array(1.0, 2.0), "has the shape (2,), but codes are (N, ...)"),
    "one number": (lambda path: np.save(path, np.float32(3)), "has the shape ()"),
    "none": (lambda path: np.save(path, np.empty((0, 4))), "has the shape (0, 4)"),
    "not finite": (array([1.0, 2.0], [np.nan, 1.0]), "code 1 (from 0) is not finite in float32"),
    "too large": (array([1e39, 2.0]), "code 0 (from 0) is not finite in float32"),
    "folder": (lambda path: path.mkdir(), "Is a directory"),
    "missing": (lambda path: None, "No such file or directory"),
    "an archive": (lambda path: archive(path, codes=np.ones((2, 2))), "is damaged or no .npy file"),
}


def archive(path: Path, **arrays: np.ndarray) -> None:
    with open(path, "wb") as file:
        np.savez(file, **arrays)


@pytest.mark.parametrize("what", BAD)
def test_what_is_no_npy_file_of_codes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    monkeypatch.chdir(tmp_path)
    make, message = BAD[what]
    make(tmp_path / "c.npy")
    with pytest.raises(InputError) as refused:
        read_codes(tmp_path / "c.npy")
    assert message in str(refused.value) and "\n" not in str(refused.value)
    assert not (tmp_path / "attacked").exists()


def test_what_is_no_npz_file_of_codes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "c.npz"
    archive(path, other=np.ones((2, 2)))
    with pytest.raises(InputError, match="has no array `codes`"):
        read_codes(path)
    for content in (b"", b"PK\x03\x04 no archive", path.read_bytes()[:-30]):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"is damaged or no \.npz file"):
            read_codes(path)
    np.save(tmp_path / "array.npy", np.ones((2, 2)))
    (tmp_path / "array.npy").rename(path)
    with pytest.raises(InputError, match=r"is damaged or no \.npz file"):
        read_codes(path)
    with zipfile.ZipFile(path, "w") as zipped:
        zipped.writestr("codes.npy", pickle.dumps([1.0]))
    with pytest.raises(InputError, match=r"is damaged or no \.npz file"):
        read_codes(path)
    monkeypatch.chdir(tmp_path)
    archive(path, codes=np.array([Attack(), None]))
    with pytest.raises(InputError, match=r"is damaged or no \.npz file"):
        read_codes(path)
    assert not (tmp_path / "attacked").exists()
    archive(path, codes=np.ones((2, 2)), model=np.array("no JSON"))
    with pytest.raises(InputError, match=r"is damaged or no \.npz file"):
        read_codes(path)
    with pytest.raises(InputError, match=r"end in \.npy or \.npz"):
        read_codes(tmp_path / "c.csv")


@given(st.binary(max_size=300), st.booleans())
def test_random_bytes_are_one_line(tmp_path_factory: Any, data: bytes, with_magic: bool) -> None:
    path = tmp_path_factory.mktemp("random") / "c.npy"
    path.write_bytes(b"\x93NUMPY" * with_magic + data)
    with pytest.raises(InputError) as refused:
        read_codes(path)
    assert "\n" not in str(refused.value)


def test_the_facts_tell_models_apart() -> None:
    one, other = single_layer(3, 4, np.random.default_rng(0)), single_layer(3, 4)
    assert model_facts(one) == model_facts(one)
    mine, theirs = model_facts(one), model_facts(other)
    assert mine.pop("weights_sha256") != theirs.pop("weights_sha256")
    assert mine == theirs == {"name": "single-layer", "channels": 3, "filters": 4}


def test_a_header_has_room_for_any_length() -> None:
    """The length is known only at the end, and is then written over the first header."""
    for shape in ((1,), (1568,), (32, 34, 34), (9,) * 7):
        sizes = {len(codes_file._header((n, *shape))) for n in (0, 9, 10**6, 2**62)}
        assert len(sizes) == 1


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    for ending in ENDINGS:
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            with pytest.raises(InputError, match=r"cannot write .*: No space left on device"):
                write(tmp_path / f"c{ending}", [codes(2, 3)])
        assert os.listdir(tmp_path) == []
