"""TensorBoard's event files: written record by record, and cut back to where a training resumes.

An event file is a row of records: the length of the data (8 bytes, little-endian), a checksum of
the length, the data, a checksum of the data (4 bytes each, masked CRC-32C). The data are `Event`
messages, the first of which states the file's version. tensorboardX brings the messages; its own
writer hands them to a thread that keeps errors to itself, so they are written here.
"""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from cae_raw.errors import InputError
from cae_raw.files import atomic_write, remove_leftovers

PATTERN = "events.out.tfevents.*"
Event = Any


class EventFile:
    """An event file of a folder, made when the first event comes.

    Args:
        folder: of the file; made when missing.
        first_step: the step that the training goes on with. A TensorBoard that is open while a
            killed training is resumed drops what it has already read of this step and later ones.

    Raises:
        InputError: from every method, if the file cannot be written.
    """

    def __init__(self, folder: Path, first_step: int = 0) -> None:
        self.folder, self.first_step = folder, first_step
        self.path: Path | None = None
        self._file: BinaryIO | None = None

    def add(self, step: int, **value: Any) -> None:
        """Write one value: the fields of a `Summary.Value`, and the step that it belongs to."""
        from tensorboardX.proto import summary_pb2

        summary = summary_pb2.Summary(value=[summary_pb2.Summary.Value(**value)])
        self._write(step=step, summary=summary)

    def flush(self) -> None:
        """Hand everything that was added to the operating system, which keeps it after a kill.

        It is not forced onto the disk: after a power failure the last events may be missing.
        """
        if self._file is not None:
            with _readable_errors(self._file.name):
                self._file.flush()

    def close(self) -> None:
        """Flush and close; afterwards nothing is left open, whatever happens."""
        file, self._file = self._file, None
        if file is not None:
            try:
                with _readable_errors(file.name):
                    file.flush()
            finally:
                with suppress(OSError):
                    file.close()

    def _write(self, **fields: Any) -> None:
        with _readable_errors(self.path or self.folder):
            if self._file is None:
                self._open()
            assert self._file is not None
            self._file.write(_record(_event(wall_time=time.time(), **fields)))

    def _open(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        # TensorBoard reads the files of a folder in the order of their names.
        self.path = self.folder / f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}"
        self._file = self.path.open("xb")
        now = time.time()
        self._file.write(_record(_event(wall_time=now, file_version="brain.Event:2")))
        if self.first_step > 0:
            self._file.write(_record(_restart(now, self.first_step)))


class _readable_errors:
    """Turns an OSError into one line for whoever trains."""

    def __init__(self, path: object) -> None:
        self.path = path

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, _: object) -> None:
        if isinstance(error, OSError):
            raise InputError(
                f"cannot write {self.path}: {error.strerror or error}; make room for event files, "
                "or train with --no-tensorboard"
            ) from error


def cut_back(folder: Path, keep: Callable[[Event], bool]) -> None:
    """Keep only some events of the files in a folder, as if the others had never been written.

    What a kill left half-written at a file's end goes too. Files without any event are deleted.

    Raises:
        InputError: if a file cannot be read or written.
    """
    if not folder.is_dir():
        return
    remove_leftovers(folder)
    for path in sorted(folder.glob(PATTERN)):
        with _readable_errors(path):
            data = path.read_bytes()
        chosen, values = [], 0
        for record in _records(data):
            event = _parsed(record)
            if event is None or (event.HasField("summary") and not keep(event)):
                continue
            chosen.append(record)
            values += event.HasField("summary")
        if not values:
            with _readable_errors(path):
                path.unlink()
        elif sum(map(len, chosen)) != len(data):
            atomic_write(path, b"".join(chosen))


def delete_events(folder: Path) -> None:
    """Delete a folder's event files, and the folder where nothing else is in it."""
    for path in folder.glob(PATTERN):
        path.unlink(missing_ok=True)
    with suppress(OSError):
        folder.rmdir()


def _records(data: bytes) -> Iterator[bytes]:
    """The whole records of a file, each with its length and checksums."""
    start = 0
    while start + 16 <= len(data):
        header = data[start : start + 8]
        (length,) = struct.unpack("<Q", header)
        end = start + 16 + length
        if struct.unpack("<I", data[start + 8 : start + 12])[0] != _checksum(header):
            return
        if end > len(data):
            return
        yield data[start:end]
        start = end


def _parsed(record: bytes) -> Event | None:
    """The event of a record, None if it is none."""
    from google.protobuf.message import DecodeError
    from tensorboardX.proto import event_pb2

    try:
        return event_pb2.Event.FromString(record[12:-4])
    except DecodeError:
        return None


def _record(event: Event) -> bytes:
    data = event.SerializeToString()
    header = struct.pack("<Q", len(data))
    checks = (struct.pack("<I", _checksum(part)) for part in (header, data))
    return header + next(checks) + data + next(checks)


def _checksum(data: bytes) -> int:
    """CRC-32C, rotated and shifted, as the format wants it."""
    from tensorboardX.crc32c import crc32c

    crc = crc32c(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _event(**fields: Any) -> Event:
    from tensorboardX.proto import event_pb2

    return event_pb2.Event(**fields)


def _restart(now: float, step: int) -> Event:
    """Says that earlier events of this step and later ones do not count any more."""
    from tensorboardX.proto import event_pb2

    log = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
    return _event(wall_time=now, step=step, session_log=log)
