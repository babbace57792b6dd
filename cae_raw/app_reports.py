"""The commands that put runs beside each other: compare and report."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from cae_raw.app_options import DataDir, Device, Json, RunsDir, Split, Threads, path_of, print_json

Index = Annotated[
    int | None,
    typer.Option(metavar="N", help="The first image, counted from 0 in its split.  [default: 0]"),
]
ClassName = Annotated[
    str | None, typer.Option("--class", metavar="NAME", help="Count only images of this class.")
]


def compare_command(
    runs: Annotated[
        list[Path],
        typer.Argument(
            parser=path_of, metavar="RUN...", help="Folders of runs, or folders that hold some."
        ),
    ],
    index: Index = None,
    class_name: ClassName = None,
    split: Split = None,
    data_dir: DataDir = None,
    csv_file: Annotated[
        Path | None,
        typer.Option("--csv", parser=path_of, metavar="FILE", help="Write the table here, too."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            parser=path_of, metavar="DIR", help="Folder for the pictures.  [default: comparison]"
        ),
    ] = None,
    device: Device = "auto",
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Compare runs: figures in a table, curves in a chart, the same images by each.

    Prints the table and writes curves.png and reconstructions.png. Runs are called by what differs
    between them.

    \b
    Examples:
      cae-raw compare runs
      cae-raw compare runs/single-layer/mnist_adam_lr=0.001_b=128 runs/single-layer/mnist_sgd_*
      cae-raw compare runs/single-layer --csv runs.csv
    """
    from cae_raw.commands.compare import compare
    from cae_raw.commands.run_images import Choice

    report = compare(
        runs,
        choice=Choice(index, class_name, split or "test", data_dir),
        out=out,
        csv_file=csv_file,
        device=device,
        threads=threads,
        say=sys.stderr if as_json else sys.stdout,
    )
    if as_json:
        print_json(report)


def report_command(
    runs: Annotated[
        list[Path] | None,
        typer.Argument(
            parser=path_of,
            metavar="[RUN...]",
            help="Folders of runs, or folders that hold some.  [default: the newest run]",
        ),
    ] = None,
    index: Index = None,
    class_name: ClassName = None,
    split: Split = None,
    data_dir: DataDir = None,
    out: Annotated[Path, typer.Option(parser=path_of, metavar="FILE", help="The page.")] = Path(
        "report.html"
    ),
    runs_dir: RunsDir = Path("runs"),
    device: Device = "auto",
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Write all about some runs to one HTML page, which needs nothing beside it.

    It has the table and the curves of `compare`, reconstructions under a slider, and for each run
    the pictures of `show`.

    \b
    Examples:
      cae-raw report
      cae-raw report runs/single-layer --out single-layer.html
      cae-raw report runs/single-layer/cifar10_adam_lr=1e-05_b=1024 --class airplane
    """
    from cae_raw.commands.report import report
    from cae_raw.commands.run_images import Choice

    made = report(
        runs or [],
        choice=Choice(index, class_name, split or "test", data_dir),
        out=out,
        runs_dir=runs_dir,
        device=device,
        threads=threads,
        say=sys.stderr if as_json else sys.stdout,
    )
    if as_json:
        print_json(made)
