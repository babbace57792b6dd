"""The commands of `cae-raw data`: convert and inspect databases of images."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from cae_raw.app_options import Json, Threads, path_of, print_json

app = typer.Typer(help="Make databases of images (LMDB), and look into them.")

ChannelOrder = Annotated[
    str,
    typer.Option(
        metavar="NAME", help="How colours are stored: bgr, as Caffe's tools do it, or rgb."
    ),
]


@app.command("convert", short_help="Make a database of images, as Caffe's convert_imageset does.")
def convert_command(
    source: Annotated[
        Path,
        typer.Argument(parser=path_of, metavar="SRC", help="Folder of the images, with folders."),
    ],
    out: Annotated[
        Path, typer.Argument(parser=path_of, metavar="OUT", help="The database, a new folder.")
    ],
    size: Annotated[
        int, typer.Option(metavar="PIXELS", help="Images become PIXELS x PIXELS.")
    ] = 64,
    crop: Annotated[
        bool,
        typer.Option(
            "--crop", help="Cut out the largest centred square; without it images are squashed."
        ),
    ] = False,
    encoded: Annotated[
        bool, typer.Option("--encoded", help="Store JPEG files (quality 95), which are smaller.")
    ] = False,
    gray: Annotated[bool, typer.Option("--gray", help="Store one channel.")] = False,
    channel_order: ChannelOrder = "bgr",
    list_file: Annotated[
        Path | None,
        typer.Option(
            "--list",
            parser=path_of,
            metavar="FILE",
            help="Lines like cat/1.jpg 3: a path below SRC and a label.  [default: all images "
            "below SRC, labelled by their first-level folders]",
        ),
    ] = None,
    shuffle: Annotated[bool, typer.Option("--shuffle", help="In random order.")] = False,
    seed: Annotated[
        int | None, typer.Option(metavar="N", help="Draws that order.  [default: 0]")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the database OUT if there is one.")
    ] = False,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Make a database of images, as Caffe's convert_imageset does.

    Every image is a Datum record under its number and path. OUT appears when it is complete. Images
    that cannot be decoded are left out and listed in OUT.skipped.txt; the exit status is then 1.

    \b
    Examples:
      cae-raw data convert photos photos.lmdb --size 64 --shuffle
      cae-raw data convert ILSVRC/train train.lmdb --list train.txt --encoded
    """
    from cae_raw.commands.data_tools import convert
    from cae_raw.data.convert import ConvertOptions

    report = convert(
        source,
        out,
        ConvertOptions(size, crop, encoded, gray, channel_order, threads),
        list_file=list_file,
        shuffle=shuffle,
        seed=seed,
        overwrite=overwrite,
        say=sys.stderr if as_json else sys.stdout,
    )
    if as_json:
        print_json(report)
    if report["skipped"]:
        raise typer.Exit(1)


@app.command("inspect", short_help="Say what a database holds, and what is damaged.")
def inspect_command(
    path: Annotated[
        Path, typer.Argument(parser=path_of, metavar="PATH", help="A database's folder or file.")
    ],
    count: Annotated[int, typer.Option(metavar="N", help="Images in the picture.")] = 64,
    out: Annotated[
        Path | None,
        typer.Option(parser=path_of, metavar="FILE", help="Write the first images to this PNG."),
    ] = None,
    channel_order: ChannelOrder = "bgr",
    as_json: Json = False,
) -> None:
    """Say what a database holds: records, shapes, labels, values, and what is damaged.

    All records are decoded. Exits with 1 when a page or a record is damaged.

    \b
    Examples:
      cae-raw data inspect photos.lmdb
      cae-raw data inspect train.lmdb --count 32 --out first.png
    """
    from cae_raw.commands.data_tools import inspect

    report = inspect(
        path,
        count=count,
        grid=out,
        channel_order=channel_order,
        say=sys.stderr if as_json else sys.stdout,
    )
    if as_json:
        print_json(report)
    if report["damaged"]:
        raise typer.Exit(1)
