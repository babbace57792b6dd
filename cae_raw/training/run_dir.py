"""A run's folder: where its files are, who may write to it, which run is the newest."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, get_type_hints

from cae_raw.errors import InputError
from cae_raw.figures import Figures
from cae_raw.files import atomic_write
from cae_raw.training.event_file import delete_events
from cae_raw.training.trainer import EpochRecord


class RunDir:
    """The files of one run, by name."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.json"
        self.metrics = path / "metrics.csv"
        self.last = path / "last.safetensors"
        self.best = path / "best.safetensors"
        self.reconstructions = path / "reconstructions.png"
        self.pictures = path / "pictures"  # of `cae-raw show`
        self.event_folders = (path / "train", path / "validation")  # of TensorBoard

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the run: make its folder and keep other processes out.

        The operating system drops the lock with the process, however it dies.

        Raises:
            InputError: if another process holds it, or the folder cannot be made.
        """
        from filelock import FileLock, Timeout

        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.path / "lock", timeout=0)
            lock.acquire()
        except Timeout as error:
            raise InputError(
                f"{self.path} is in use by another process: wait for it, or give this run another "
                "name with --comment"
            ) from error
        except OSError as error:
            raise InputError(f"cannot write to {self.path}: {error.strerror or error}") from error
        try:
            yield
        finally:
            lock.release()

    def clear(self) -> None:
        """Delete what a training wrote and nothing else; call it with the lock held.

        `last` goes first: without it the run begins anew, whatever a kill leaves of the rest.
        """
        results = self.path.glob("*_results.txt")
        written = (self.last, self.best, self.metrics, self.config, self.reconstructions)
        for file in (*written, *results):
            file.unlink(missing_ok=True)
        for folder in self.event_folders:
            delete_events(folder)

    def write_config(self, config: dict[str, Any]) -> None:
        text = json.dumps(config, indent=2, sort_keys=True) + "\n"
        atomic_write(self.config, text.encode())

    def write_metrics(self, history: list[EpochRecord]) -> None:
        """The whole table at once: a kill leaves the old one or the new one."""
        text = io.StringIO()
        columns = [f.name for f in fields(EpochRecord)]
        table = csv.DictWriter(text, columns, lineterminator="\n")
        table.writeheader()
        for record in history:
            seconds, rate = f"{record.seconds:.3f}", f"{record.images_per_second:.0f}"
            table.writerow({**vars(record), "seconds": seconds, "images_per_second": rate})
        atomic_write(self.metrics, text.getvalue().encode())

    def read_metrics(self) -> list[EpochRecord]:
        """The table that `write_metrics` wrote; empty where there is none.

        Raises:
            InputError: if it is damaged.
        """
        try:
            text = self.metrics.read_text()
        except FileNotFoundError:
            return []
        except (OSError, ValueError) as error:
            raise InputError(f"cannot read {self.metrics}: {error}") from error
        kinds = get_type_hints(EpochRecord)
        try:
            return [
                EpochRecord(**{name: kinds[name](value) for name, value in row.items()})
                for row in csv.DictReader(io.StringIO(text))
            ]
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"{self.metrics} is damaged: delete it, the run itself does not need it"
            ) from error

    def write_results(self, split: str, figures: Figures, epoch: int) -> None:
        """`<split>_results.txt`: the figures of the best checkpoint."""
        lines = [f"{name}: {value:.8g}" for name, value in asdict(figures).items()]
        text = "\n".join([*lines, f"epoch: {epoch}", ""])
        atomic_write(self.path / f"{split}_results.txt", text.encode())

    def read_results(self, split: str) -> tuple[Figures, int] | None:
        """What `write_results` wrote, (figures, epoch); None where there is none.

        Raises:
            InputError: if it is damaged.
        """
        path = self.path / f"{split}_results.txt"
        try:
            pairs = [line.split(": ") for line in path.read_text().splitlines()]
            values = {name: float(value) for name, value in pairs}
            return Figures(values["half_mse"], values["mse"], values["psnr"]), int(values["epoch"])
        except FileNotFoundError:
            return None
        except OSError as error:
            raise InputError(f"cannot read {path}: {error.strerror or error}") from error
        except (KeyError, ValueError) as error:
            raise InputError(
                f"{path} is damaged: delete it, the run itself does not need it"
            ) from error


def newest_run(runs_dir: Path) -> RunDir | None:
    """The run whose best checkpoint was written last; None when there is none."""
    found = [path for path in runs_dir.glob("*/*/best.safetensors") if path.is_file()]
    if not found:
        return None
    return RunDir(max(found, key=lambda path: path.stat().st_mtime).parent)
