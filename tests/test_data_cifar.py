"""CIFAR-10: both versions, packed and unpacked, and pickles that must not be run."""

from __future__ import annotations

import codecs
import gzip
import io
import os
import pickle
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cae_raw.data import DataOptions, cifar, load_dataset
from cae_raw.data.base import Dataset
from cae_raw.errors import InputError

COUNT = 4
RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (6, COUNT, 3072), np.uint8)
LABELS = RNG.integers(0, 10, (6, COUNT))


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(cifar, "BATCH_COUNT", COUNT)
    remote = cifar.Remote("cifar-10-binary.tar.gz", 1, "md5:0", ("http://127.0.0.1:9/x.tar.gz",))
    monkeypatch.setattr(cifar, "REMOTE", remote)
    monkeypatch.setenv("CAE_RAW_CACHE", str(tmp_path / "cache"))


def python_batch(i: int, protocol: int = 2, text_keys: bool = False) -> bytes:
    batch: dict[Any, Any] = {b"data": PIXELS[i], b"labels": LABELS[i].tolist()}
    if text_keys:
        batch = {key.decode(): value for key, value in batch.items()}
    return pickle.dumps(batch, protocol)


def members(version: str) -> dict[str, bytes]:
    if version == "python":
        return {name: python_batch(i) for i, name in enumerate(cifar.BATCHES)}
    return {
        f"{name}.bin": np.concatenate([LABELS[i][:, None], PIXELS[i]], 1).astype(np.uint8).tobytes()
        for i, name in enumerate(cifar.BATCHES)
    }


def write_folder(folder: Path, content: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in content.items():
        (folder / name).write_bytes(data)
    return folder


def write_tar(path: Path, content: dict[str, bytes], prefix: str = "cifar-10-batches-x/") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz" if path.name.endswith("gz") else "w") as tar:
        for name, data in content.items():
            info = tarfile.TarInfo(prefix + name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def load(data_dir: Path) -> Dataset:
    return load_dataset("cifar10", DataOptions(data_dir=data_dir))


def check(data: Dataset) -> None:
    assert np.array_equal(data.train.images, PIXELS[:5].reshape(-1, 3, 32, 32))
    assert np.array_equal(data.test.images, PIXELS[5].reshape(-1, 3, 32, 32))
    assert data.train.labels is not None
    assert np.array_equal(data.train.labels, LABELS[:5].ravel())
    assert data.validation is data.test
    assert data.class_names[3] == "cat"


@pytest.mark.parametrize("place", [".", "cifar-10-batches-bin", "cifar-10/cifar-10-batches-py"])
@pytest.mark.parametrize("version", ["binary", "python"])
def test_unpacked(tmp_path: Path, place: str, version: str) -> None:
    write_folder(tmp_path / place, members(version) | {"readme.html": b"<html>"})
    check(load(tmp_path))


@pytest.mark.parametrize("place", [".", "cifar-10", "cifar10"])
@pytest.mark.parametrize("ending", ["tar.gz", "tgz", "tar"])
@pytest.mark.parametrize("version", ["binary", "python"])
def test_archives(tmp_path: Path, place: str, ending: str, version: str) -> None:
    content = {"batches.meta": b"x"} | dict(reversed(members(version).items()))
    write_tar(tmp_path / place / f"cifar-10-{version}.{ending}", content)
    check(load(tmp_path))


def test_nothing_is_written(tmp_path: Path) -> None:
    write_tar(tmp_path / "a" / "cifar-10-binary.tar.gz", members("binary"), "../../escape/")
    check(load(tmp_path / "a"))
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a", "cifar-10-binary.tar.gz"]


def test_missing_names_the_ways_out(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"127\.0\.0\.1:9.*--data-dir.*--dataset shapes"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda c: c.pop("data_batch_3.bin"), "lacks data_batch_3"),
        (lambda c: c.update({"test_batch.bin": c["test_batch.bin"][:-1]}), "has 12291 bytes, not"),
        (lambda c: c.update({"test_batch.bin": c["test_batch.bin"] + b"x"}), "longer than 12292"),
        (lambda c: c.update({"test_batch.bin": b"<html>no</html>"}), "web page"),
        (lambda c: c.update({"test_batch.bin": b"\x0a" + c["test_batch.bin"][1:]}), "label 10"),
        (lambda c: c.update({"test_batch.bin": b""}), "empty"),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_bad_batches(tmp_path: Path, change: Any, expected: str, packed: bool) -> None:
    content = members("binary")
    change(content)
    if packed:
        write_tar(tmp_path / "cifar-10-binary.tar.gz", content)
    else:
        write_folder(tmp_path / "cifar-10-batches-bin", content)
    with pytest.raises(InputError, match=expected) as caught:
        load(tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def damaged(kind: str, good: bytes) -> bytes:
    middle = len(good) // 2
    return {
        "html": b"<!doctype html><p>Service unavailable",
        "empty": b"",
        "truncated": good[:middle],
        "flipped": good[:middle] + bytes([good[middle] ^ 1]) + good[middle + 1 :],
        "checksum": good[:-8] + bytes(4) + good[-4:],
        "no tar": gzip.compress(b"junk" * 1000),
    }[kind]


@pytest.mark.parametrize("kind", ["html", "empty", "truncated", "flipped", "checksum", "no tar"])
def test_damaged_archives(tmp_path: Path, kind: str) -> None:
    path = write_tar(tmp_path / "cifar-10-binary.tar.gz", members("binary"))
    path.write_bytes(damaged(kind, path.read_bytes()))
    with pytest.raises(InputError, match=r"cifar-10-binary\.tar\.gz") as caught:
        load(tmp_path)
    assert "\n" not in str(caught.value)


def test_the_checksum_is_compared_beyond_the_end_of_the_tar(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x.tar", members("binary"))
    packed = gzip.compress(path.read_bytes() + bytes(1 << 20))
    (tmp_path / "cifar-10-binary.tar.gz").write_bytes(packed)
    check(load(tmp_path))
    (tmp_path / "cifar-10-binary.tar.gz").write_bytes(packed[:-8] + bytes(4) + packed[-4:])
    with pytest.raises(InputError, match="CRC"):
        load(tmp_path)


def test_archive_that_is_a_folder(tmp_path: Path) -> None:
    (tmp_path / "cifar-10-binary.tar.gz").mkdir()
    with pytest.raises(InputError, match="lacks data_batch_1"):
        load(tmp_path)


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE])
def test_links_and_devices_in_an_archive_are_refused(tmp_path: Path, kind: bytes) -> None:
    with tarfile.open(tmp_path / "cifar-10-binary.tar.gz", "w:gz") as tar:
        info = tarfile.TarInfo("data_batch_1.bin")
        info.type = kind
        info.linkname = "/etc/passwd"
        tar.addfile(info)
    with pytest.raises(InputError, match="not a regular file"):
        load(tmp_path)


def test_a_batch_twice_is_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "cifar-10-binary.tar", "w") as tar:
        for _ in range(2):
            data = members("binary")["data_batch_1.bin"]
            info = tarfile.TarInfo("data_batch_1.bin")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    with pytest.raises(InputError, match="there twice"):
        load(tmp_path)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("text_keys", [False, True])
def test_pickles_of_every_protocol(protocol: int, text_keys: bool) -> None:
    data = python_batch(2, protocol, text_keys)
    pixels, labels = cifar.parse_pickle(data, COUNT, "x")
    assert np.array_equal(pixels, PIXELS[2])
    assert np.array_equal(labels, LABELS[2])


@pytest.mark.parametrize("module", [b"numpy.core.multiarray", b"numpy._core.multiarray"])
def test_arrays_of_numpy_1_and_2(module: bytes) -> None:
    data = python_batch(0)
    own = np.empty(0).__reduce__()[0].__module__.encode()
    pixels, _ = cifar.parse_pickle(data.replace(own, module), COUNT, "x")
    assert np.array_equal(pixels, PIXELS[0])


class Call:
    """Pickles as a call of the given function."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.call = (function, args)

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize(
    "evil",
    [
        Call(os.mkdir, "made_by_pickle"),
        Call(eval, "1"),
        Call(getattr, b"", "join"),
        Call(np.save, "made_by_pickle", 1),
        Call(codecs.decode, b"", "bz2"),
        Call(codecs.encode, b"", "bz2"),
    ],
)
def test_a_pickle_that_calls_functions_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, evil: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    for protocol in (0, 2, 4):
        with pytest.raises(InputError, match="which no CIFAR-10 file needs"):
            cifar.parse_pickle(pickle.dumps({b"data": evil}, protocol), COUNT, "x")
    assert not any("made_by_pickle" in path.name for path in tmp_path.iterdir())


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (pickle.dumps([1]), "holds list"),
        (pickle.dumps({}), "no uint8 array"),
        (pickle.dumps({b"data": PIXELS[0].astype(float)}), "no uint8 array"),
        (pickle.dumps({b"data": PIXELS[0][:3], b"labels": [0] * 4}), r"shape \(3, 3072\)"),
        (pickle.dumps({b"data": PIXELS[0], b"labels": None}), "no list of integers"),
        (pickle.dumps({b"data": PIXELS[0], b"labels": [0, 1, 2, 3.0]}), "no list of integers"),
        (pickle.dumps({b"data": PIXELS[0], b"labels": [0] * 3}), "needs 4 labels"),
        (pickle.dumps({b"data": PIXELS[0], b"labels": [0, 1, 2, -1]}), "needs 4 labels"),
        (pickle.dumps({b"data": PIXELS[0], b"labels": [0, 1, 2, 10]}), "label 10"),
        (python_batch(0)[:-100], "no CIFAR-10 pickle"),
        (pickle.dumps(Call(np.dtype, b"long" * 9999)), "no CIFAR-10 pickle"),
        (b"<html>no such file</html>", "web page"),
        (b"", "empty"),
    ],
)
def test_bad_pickles(content: bytes, expected: str) -> None:
    with pytest.raises(InputError, match=expected) as caught:
        cifar.parse_pickle(content, COUNT, "batch")
    assert str(caught.value).startswith("batch ")
    assert len(str(caught.value)) < 400
    assert "\n" not in str(caught.value)


@given(st.binary(max_size=200), st.sampled_from([0, 3073, 2 * 3073]))
def test_random_bytes_only_raise_input_error(data: bytes, pad: int) -> None:
    data = data.ljust(pad, b"\0")
    try:
        pixels, labels = cifar.parse_binary(data, 1, "x")
    except InputError as error:
        assert "\n" not in str(error)
    else:
        assert len(data) == 3073
        assert pixels.shape == (1, 3072)
        assert labels[0] < 10
