"""Options that several commands share, and how their results are printed.

Nothing heavy is imported here, so that help answers at once.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer


def path_of(text: str | Path) -> Path:
    """A path as it was typed; an empty one is a mistake in a script."""
    if str(text) == "" or "\0" in str(text):
        raise typer.BadParameter("a path cannot be empty.")
    return Path(text)


Json = Annotated[
    bool, typer.Option("--json", help="Print one JSON object to stdout, all else to stderr.")
]
RunsDir = Annotated[Path, typer.Option(parser=path_of, metavar="DIR", help="Where runs are kept.")]
DataDir = Annotated[
    Path | None,
    typer.Option(
        parser=path_of,
        metavar="DIR",
        help="Folder of the data set's files; for folder: of the images.  "
        "[default: the download cache, see cae-raw info]",
    ),
]
Device = Annotated[
    str,
    typer.Option(
        metavar="DEVICE", help="auto (a GPU if one works, else the CPU), cpu, cuda or cuda:N."
    ),
]
Threads = Annotated[
    int | None,
    typer.Option(
        metavar="N", help="Worker threads on the CPU; results do not depend on it.  [default: all]"
    ),
]
Run = Annotated[
    Path | None,
    typer.Option(parser=path_of, metavar="DIR", help="A run's folder: use its best checkpoint."),
]
CheckpointFile = Annotated[
    Path | None,
    typer.Option("--checkpoint", parser=path_of, metavar="FILE", help="A checkpoint file."),
]
Split = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Of the data set: train, validation or test.  [default: test]",
    ),
]


def print_json(value: Any) -> None:
    """One JSON object to stdout."""
    typer.echo(json.dumps(value, indent=2, allow_nan=False))
