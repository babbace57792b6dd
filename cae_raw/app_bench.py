"""The command that measures speed: bench."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from cae_raw.app_options import Device, Json, Threads, path_of, print_json


def bench_command(
    model: Annotated[
        str, typer.Option(metavar="NAME", help="single-layer, deep or deep-same.")
    ] = "single-layer",
    size: Annotated[
        int | None,
        typer.Option(
            metavar="PIXELS", help="Side of its images.  [default: single-layer 32, deep 64]"
        ),
    ] = None,
    channels: Annotated[
        int | None, typer.Option(metavar="N", help="Of its images: 1 or 3.  [default: 3]")
    ] = None,
    batch: Annotated[
        list[int] | None,
        typer.Option(
            metavar="N",
            help="Images per step; may be given again.  [default: single-layer 1024, deep 128]",
        ),
    ] = None,
    device: Device = "auto",
    threads: Threads = None,
    quick: Annotated[
        bool,
        typer.Option("--quick", help="A few rounds, at most 128 images, nothing to be compiled."),
    ] = False,
    out: Annotated[
        Path | None, typer.Option(parser=path_of, metavar="FILE", help="Draw a chart, a .png file.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure how fast a model trains here, beside PyTorch and JAX where they are installed.

    Per training step, per forward pass and per operation: milliseconds, images/s, FLOP/s, bytes/s,
    and shares of what this machine reaches in a large product and a large copy, measured in the
    same run. Results are compared before anything is timed, and candidates take turns.

    \b
    Examples:
      cae-raw bench --quick
      cae-raw bench --batch 32 --batch 1024 --out speed.png
      cae-raw bench --model deep --device cuda --json > deep.json
    """
    from cae_raw.commands.bench import bench

    report = bench(
        model,
        size=size,
        channels=channels,
        batches=batch or [],
        device=device,
        threads=threads,
        quick=quick,
        out=out,
        say=sys.stderr if as_json else sys.stdout,
    )
    if as_json:
        print_json(report)
