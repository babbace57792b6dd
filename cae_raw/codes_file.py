"""Files of codes: .npy, .npz and .csv to write, .npy and .npz to read again.

    .npy    the codes, float32 (N, ...); beside it NAME.names.txt, a line per code: its name, and
            after a tab its label where there are labels
    .npz    `codes`; `names` (N,), text; `labels` int64 (N,) and `classes`, text, where there are
            some; `model`, JSON that tells which model made them
    .csv    name, label (empty where there is none), c0, c1, ...; for codes that are vectors

Codes are written as they come, in no more memory than one batch of them takes, into temporary files
that get their names at the end: a kill leaves the old files or the new ones.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from cae_raw.errors import InputError
from cae_raw.files import atomic_file
from cae_raw.models import Autoencoder

Codes = NDArray[np.float32]
Shape = tuple[int, ...]


class Writer(Protocol):
    """Takes batches of codes of one shape."""

    def write(self, codes: Codes, names: Sequence[str], labels: Sequence[int] | None) -> None:
        """Codes (n, ...), with a name each, without line breaks; labels: all or none have one."""


@contextmanager
def codes_writer(
    path: Path, model: dict[str, Any], classes: Sequence[str] = ()
) -> Iterator[Writer]:
    """A writer for the format that the path's name ends in; all files are there at the end.

    Args:
        model: tells which model makes the codes, in plain values.
        classes: names of the labels, if they have any.

    Raises:
        InputError: for another ending, or if a file cannot be written; nothing is left then.
    """
    if path.suffix not in WRITERS:
        raise InputError(f"{path}: give codes a name that ends in {' or '.join(WRITERS)}")
    if path.is_dir():
        raise InputError(f"cannot write {path}: it is a folder")
    with WRITERS[path.suffix](path, model, classes) as writer:
        yield writer


def model_facts(model: Autoencoder) -> dict[str, Any]:
    """What is written beside codes to tell which model made them: what it is, and its weights."""
    weights = np.ascontiguousarray(model.backend.to_numpy(model.parameters), "<f4")
    digest = hashlib.sha256(weights.data).hexdigest()
    return {"name": model.name, **model.options, "weights_sha256": digest}


def names_path(path: Path) -> Path:
    """Where the names of the codes in an .npy file are."""
    return path.with_suffix(".names.txt")


class _Array:
    """An .npy file that grows; its header is written again at the end, with the final length."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.length = file, 0
        self.shape: Shape | None = None

    def append(self, codes: Codes) -> None:
        if self.shape is None:
            self.shape = codes.shape[1:]
            self.file.write(_header((0, *self.shape)))
        if codes.shape[1:] != self.shape:
            raise ValueError(f"codes of {codes.shape[1:]} after codes of {self.shape}")
        self.file.write(np.ascontiguousarray(codes, "<f4").data)
        self.length += len(codes)

    def finish(self) -> None:
        if self.shape is None:
            raise InputError("no codes to write: no image could be used")
        before, after = _header((0, *self.shape)), _header((self.length, *self.shape))
        assert len(before) == len(after), "NumPy leaves room for the first axis to grow"
        self.file.seek(0)
        self.file.write(after)


def _header(shape: Shape) -> bytes:
    header = io.BytesIO()
    facts = {"descr": "<f4", "fortran_order": False, "shape": shape}
    npy.write_array_header_1_0(header, facts)
    return header.getvalue()


class _NpyWriter:
    def __init__(self, codes: BinaryIO, names: BinaryIO) -> None:
        self.array, self.names = _Array(codes), names

    def write(self, codes: Codes, names: Sequence[str], labels: Sequence[int] | None) -> None:
        self.array.append(codes)
        ends = [""] * len(names) if labels is None else [f"\t{label}" for label in labels]
        lines = "".join(f"{name}{end}\n" for name, end in zip(names, ends, strict=True))
        self.names.write(_encoded(lines))


@contextmanager
def _npy(path: Path, model: dict[str, Any], classes: Sequence[str]) -> Iterator[Writer]:
    # The names get theirs first: whoever finds the codes finds them too.
    with atomic_file(path) as codes, atomic_file(names_path(path)) as names:
        writer = _NpyWriter(codes, names)
        yield writer
        writer.array.finish()


class _NpzWriter:
    def __init__(self, codes: BinaryIO) -> None:
        self.array = _Array(codes)
        self.names: list[str] = []
        self.labels: list[int] = []

    def write(self, codes: Codes, names: Sequence[str], labels: Sequence[int] | None) -> None:
        self.array.append(codes)
        self.names += names
        self.labels += labels if labels is not None else ()


@contextmanager
def _npz(path: Path, model: dict[str, Any], classes: Sequence[str]) -> Iterator[Writer]:
    from tempfile import TemporaryFile

    with ExitStack() as stack:
        try:
            codes = stack.enter_context(TemporaryFile(dir=path.parent))
        except OSError as error:
            raise InputError(f"cannot write {path}: {error.strerror or error}") from error
        archive = stack.enter_context(atomic_file(path))
        writer = _NpzWriter(codes)
        yield writer
        writer.array.finish()
        arrays = {"names": np.array(writer.names), "model": np.array(json.dumps(model))}
        if writer.labels:
            arrays["labels"] = np.array(writer.labels, np.int64)
        if classes:
            arrays["classes"] = np.array(classes)
        with zipfile.ZipFile(archive, "w") as into:
            codes.seek(0)
            with into.open("codes.npy", "w", force_zip64=True) as member:
                while block := codes.read(2**20):
                    member.write(block)
            for name, array in arrays.items():
                with into.open(f"{name}.npy", "w") as member:
                    npy.write_array(member, array, allow_pickle=False)


class _CsvWriter:
    def __init__(self, file: BinaryIO) -> None:
        self.file, self.width = file, 0

    def write(self, codes: Codes, names: Sequence[str], labels: Sequence[int] | None) -> None:
        if codes.ndim != 2:
            shape = "x".join(map(str, codes.shape[1:]))
            raise InputError(f"codes of {shape} do not fit a .csv: add --pooled, or write .npy")
        text = io.StringIO()
        table = csv.writer(text, lineterminator="\n")
        if not self.width:
            self.width = codes.shape[1]
            table.writerow(["name", "label", *(f"c{i}" for i in range(self.width))])
        marks: Sequence[object] = [""] * len(names) if labels is None else labels
        for name, label, row in zip(names, marks, codes.tolist(), strict=True):
            table.writerow([name, label, *(f"{value:.9g}" for value in row)])
        self.file.write(_encoded(text.getvalue()))


@contextmanager
def _csv(path: Path, model: dict[str, Any], classes: Sequence[str]) -> Iterator[Writer]:
    with atomic_file(path) as file:
        writer = _CsvWriter(file)
        yield writer
        if not writer.width:
            raise InputError("no codes to write: no image could be used")


WRITERS: dict[str, Callable[[Path, dict[str, Any], Sequence[str]], Any]] = {
    ".npy": _npy,
    ".npz": _npz,
    ".csv": _csv,
}


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "backslashreplace")  # names of files need not be valid text


@dataclass(frozen=True)
class CodesFile:
    """Codes that were read. `model` is what `codes_writer` was told, or None where it is unknown.

    values: floats of any width (N, ...), N at least 1; of an .npy file they stay on the disk.
    """

    values: NDArray[np.floating[Any]]
    model: dict[str, Any] | None

    def batches(self, size: int) -> Iterator[Codes]:
        """The codes as float32, `size` at a time."""
        for start in range(0, len(self.values), size):
            with np.errstate(over="ignore"):
                yield np.ascontiguousarray(self.values[start : start + size], np.float32)


def read_codes(path: Path) -> CodesFile:
    """The codes in an .npy file, or under `codes` in an .npz file.

    Raises:
        InputError: if there are none, or something else than finite floats.
    """
    if path.suffix not in (".npy", ".npz"):
        raise InputError(f"{path}: codes are read from files that end in .npy or .npz")
    try:
        values, model = _read(path)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    except InputError:
        raise
    except MemoryError:
        raise InputError(f"{path}: not enough memory; codes in .npy are read bit by bit") from None
    except Exception as error:  # damaged files fail in a dozen ways
        raise InputError(
            f"{path} is damaged or no {path.suffix} file of numbers: make it again with "
            "`cae-raw encode`"
        ) from error
    if not np.issubdtype(values.dtype, np.floating):
        raise InputError(f"{path} holds {values.dtype} values: codes are floats")
    if values.ndim < 2 or not values.size:
        raise InputError(f"{path} has the shape {values.shape}, but codes are (N, ...), N >= 1")
    found = CodesFile(values, model)
    rows = max(1, 2**22 // max(1, values[0].size))
    for i, batch in enumerate(found.batches(rows)):
        finite = np.isfinite(batch).reshape(len(batch), -1).all(axis=1)
        if not finite.all():
            number = i * rows + int(finite.argmin())
            raise InputError(f"{path}: code {number} (from 0) is not finite in float32")
    return found


def _read(path: Path) -> tuple[NDArray[Any], dict[str, Any] | None]:
    with open(path, "rb") as file:
        if path.suffix == ".npy":
            values: Any = npy.open_memmap(path, mode="r")
            model: Any = None
        else:
            with np.load(file, allow_pickle=False) as archive:
                if "codes" not in archive:
                    raise InputError(f"{path} has no array `codes`: make it with `cae-raw encode`")
                values = archive["codes"]
                model = json.loads(str(archive["model"])) if "model" in archive else None
    if not isinstance(values, np.ndarray):
        raise TypeError("something else under the name of an array")
    return values, model if isinstance(model, dict) else None
