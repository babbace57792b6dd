"""The figures of runs in rows: for people, JSON and CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from textwrap import wrap
from typing import Any

from cae_raw.report.differences import differing, hyperparameters, labels, words_of
from cae_raw.report.runs import Trained


@dataclass(frozen=True)
class Column:
    """A figure of every run. title: for a heading. write: the number for people."""

    title: str
    write: Callable[[Any], str]
    value: Callable[[Trained], float | None]


def duration(seconds: float) -> str:
    """As in 1:02:03 or 2:03."""
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}:{m:02}:{s:02}" if hours else f"{m}:{s:02}"


def _error(value: float) -> str:
    return f"{value:.4g}"


def _decibels(value: float) -> str:
    return f"{value:.2f}"


def _whole(value: float) -> str:
    return f"{value:,.0f}"


COLUMNS = {
    "best_validation_half_mse": Column(
        "best validation half_mse", _error, lambda run: run.best.validation_half_mse
    ),
    "best_validation_psnr": Column(
        "best validation PSNR, dB", _decibels, lambda run: run.psnr(run.best.validation_half_mse)
    ),
    "best_epoch": Column("best epoch", _whole, lambda run: run.best.epoch),
    "final_train_half_mse": Column(
        "final train half_mse", _error, lambda run: run.final.train_half_mse
    ),
    "final_validation_half_mse": Column(
        "final validation half_mse", _error, lambda run: run.final.validation_half_mse
    ),
    "final_validation_psnr": Column(
        "final validation PSNR, dB", _decibels, lambda run: run.psnr(run.final.validation_half_mse)
    ),
    "test_half_mse": Column(
        "test half_mse", _error, lambda run: run.test.half_mse if run.test else None
    ),
    "test_psnr": Column(
        "test PSNR, dB", _decibels, lambda run: run.test.psnr if run.test else None
    ),
    "epochs": Column("epochs", _whole, lambda run: run.final.epoch),
    "images_per_second": Column("images/s", _whole, lambda run: run.images_per_second),
    "seconds": Column(
        "time, h:mm:ss", duration, lambda run: sum(record.seconds for record in run.history)
    ),
    "parameters": Column("parameters", _whole, lambda run: run.model.parameters.size),
}
TITLE_WIDTH = 11  # letters, in a terminal
IN_A_TERMINAL = (  # what fits beside names
    *("best_validation_half_mse", "best_validation_psnr", "best_epoch", "final_train_half_mse"),
    *("final_validation_half_mse", "test_half_mse", "test_psnr", "images_per_second", "seconds"),
)


def rows(runs: Sequence[Trained]) -> list[dict[str, Any]]:
    """What JSON says of each run; figures that are not finite are None."""
    found = []
    for run, label in zip(runs, labels(runs), strict=True):
        figures = {name: column.value(run) for name, column in COLUMNS.items()}
        found.append(
            {
                "run": str(run.path),
                "label": label,
                "model": run.config.model,
                "dataset": run.data["name"],
                "image_shape": list(run.data["train"]["shape"]),
                "value_range": list(run.value_range),
                **{k: v if v is not None and isfinite(v) else None for k, v in figures.items()},
                "hyperparameters": hyperparameters(run),
            }
        )
    return found


def as_csv(table: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> bytes:
    """One line per run: its figures, and these hyper-parameters."""
    text = io.StringIO()
    leading = ("run", "label", "model", "dataset")
    hyper = [name for name in columns if name not in leading]
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*leading, "image_shape", "value_range", *COLUMNS, *hyper])
    for row in table:
        writer.writerow(
            [
                *(row[name] for name in leading),
                "x".join(map(str, row["image_shape"])),
                " ".join(f"{end:g}" for end in row["value_range"]),
                *("" if row[name] is None else row[name] for name in COLUMNS),
                *(words_of(row["hyperparameters"].get(name)) for name in hyper),
            ]
        )
    return text.getvalue().encode("utf-8", "backslashreplace")


def as_lines(table: Sequence[Mapping[str, Any]]) -> list[str]:
    """For a terminal: names at the left, figures aligned at their ends."""
    cells = [["", *(COLUMNS[name].title for name in IN_A_TERMINAL)]]
    for row in table:
        cells.append([row["label"], *(shown(name, row[name]) for name in IN_A_TERMINAL)])
    heads = [wrap(title, TITLE_WIDTH) for title in cells[0]]
    height = max(map(len, heads))
    heads = [[""] * (height - len(lines)) + lines for lines in heads]
    body = [*map(list, zip(*heads, strict=True)), *cells[1:]]
    widths = [max(len(row[i]) for row in body) for i in range(len(cells[0]))]
    return [
        "  ".join(
            word.rjust(width) if i else word.ljust(width)
            for i, (word, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in body
    ]


def shown(name: str, value: float | None) -> str:
    """A figure of a column for people."""
    return "-" if value is None else COLUMNS[name].write(value)


def notes(runs: Sequence[Trained]) -> list[str]:
    """What keeps the figures of these runs from being compared, a line for each thing."""
    found = []
    if more_than_one_range(runs):
        ranges = ", ".join(
            f"[{low:g}, {high:g}]" for low, high in sorted({run.value_range for run in runs})
        )
        found.append(
            f"half_mse cannot be compared between ranges of values ({ranges}), as it grows with "
            "the square of their width: compare PSNR"
        )
    if len({run.data_key("validation") for run in runs}) > 1:
        names = sorted({run.data["name"] for run in runs})
        kinds = f" ({', '.join(names)})" if len(names) > 1 else ""
        found.append(
            f"these runs were validated on different images{kinds}, which may be easier or harder "
            "to reconstruct"
        )
    losses = differing(runs).get("loss")
    if losses:
        found.append("these runs were trained with different losses; all figures here are alike")
    return found


def more_than_one_range(runs: Sequence[Trained]) -> bool:
    """Whether half_mse means different things for these runs."""
    return len({run.value_range for run in runs}) > 1
