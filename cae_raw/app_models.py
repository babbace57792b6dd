"""The commands that use a model: reconstruct, encode, decode; and info, which describes one."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from cae_raw.app_options import (
    CheckpointFile,
    DataDir,
    Device,
    Json,
    Run,
    RunsDir,
    Split,
    Threads,
    path_of,
    print_json,
)
from cae_raw.errors import InputError


def show_command(
    run: Annotated[
        Path | None,
        typer.Argument(parser=path_of, metavar="RUN", help="A run's folder.  [default: newest]"),
    ] = None,
    checkpoint: CheckpointFile = None,
    image: Annotated[
        Path | None,
        typer.Option(
            parser=path_of, metavar="FILE", help="Show what becomes of this image; needs no data."
        ),
    ] = None,
    index: Annotated[
        int | None,
        typer.Option(metavar="N", help="Of the split, counted from 0.  [default: 0]"),
    ] = None,
    class_name: Annotated[
        str | None,
        typer.Option("--class", metavar="NAME", help="Count only images of this class."),
    ] = None,
    split: Split = None,
    data_dir: DataDir = None,
    only: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Only this picture; may be given again."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            parser=path_of, metavar="DIR", help="Folder for the pictures.  [default: RUN/pictures]"
        ),
    ] = None,
    runs_dir: RunsDir = Path("runs"),
    device: Device = "auto",
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Draw what a trained model has learned, and what it does to an image.

    Writes PNG files for a slide: reconstructions, encoder_filters, decoder_filters, encoder_maps,
    decoder_maps, code, masks, output (maps and output before and after their activation), errors
    and curves. Models have those of them that they have layers for.

    With --checkpoint alone, the pictures go to the folder pictures.

    \b
    Examples:
      cae-raw show
      cae-raw show runs/single-layer/cifar10_adam_lr=0.001_b=128 --class airplane
      cae-raw show --image photo.jpg --out pictures
      cae-raw show --only encoder_filters --only curves
    """
    from cae_raw.commands.show import show

    report = show(
        run,
        checkpoint=checkpoint,
        image=image,
        index=index,
        class_name=class_name,
        split=split,
        data_dir=data_dir,
        only=only or [],
        out=out,
        runs_dir=runs_dir,
        device=device,
        threads=threads,
        say=sys.stderr if as_json else sys.stdout,
    )
    if as_json:
        print_json(report)


def reconstruct_command(
    images: Annotated[
        list[Path] | None,
        typer.Argument(
            parser=path_of, metavar="IMAGE", help="Image files, or folders with image files."
        ),
    ] = None,
    dataset: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Images of this data set.  [default: the run's own]"),
    ] = None,
    count: Annotated[
        int | None, typer.Option(metavar="N", help="The first N of the data set.  [default: 16]")
    ] = None,
    split: Split = None,
    data_dir: DataDir = None,
    size: Annotated[
        int | None,
        typer.Option(
            metavar="PIXELS", help="For --dataset folder or lmdb: images become PIXELS x PIXELS."
        ),
    ] = None,
    tile: Annotated[
        bool,
        typer.Option(
            "--tile",
            help="For models of one image size: keep the image's own size, in blended tiles.",
        ),
    ] = False,
    run: Run = None,
    checkpoint: CheckpointFile = None,
    out: Annotated[
        Path | None,
        typer.Option(
            parser=path_of,
            metavar="DIR",
            help="Folder for the pictures.  [default: beside each image; for a data set: "
            "reconstructions]",
        ),
    ] = None,
    runs_dir: RunsDir = Path("runs"),
    device: Device = "auto",
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Reconstruct images with a trained model.

    Writes NAME.reconstruction.png and NAME.comparison.png (input, reconstruction, error as a heat
    map). The model is that of --checkpoint, of --run, of the newest run, or the one that ships
    with the package. A file that cannot be used is named and left out; the exit status is then 1.

    For a model that takes one size only, images are resized to it, or go through it in overlapping
    tiles with --tile. Of a data set, the first N images become numbered pairs input_0001.png and
    output_0001.png.

    \b
    Examples:
      cae-raw reconstruct photo.jpg
      cae-raw reconstruct *.png --out reconstructions
      cae-raw reconstruct photo.jpg --run runs/single-layer/shapes_adam_lr=0.001_b=128
      cae-raw reconstruct --count 20
    """
    if not images and dataset is None and count is None:
        raise InputError("name image files, or take those of a data set with --dataset or --count")
    from cae_raw.commands.reconstruct import reconstruct

    results, failed = reconstruct(
        images or [],
        dataset=dataset,
        count=count,
        split=split,
        data_dir=data_dir,
        size=size,
        tile=tile,
        run=run,
        checkpoint=checkpoint,
        out=out,
        runs_dir=runs_dir,
        device=device,
        threads=threads,
        say=sys.stderr if as_json else sys.stdout,
    )
    if as_json:
        print_json(results)
    if failed:
        raise typer.Exit(1)


def encode_command(
    out: Annotated[
        Path,
        typer.Option(
            parser=path_of, metavar="FILE", help="Where the codes go: a .npy, .npz or .csv file."
        ),
    ],
    sources: Annotated[
        list[Path] | None,
        typer.Argument(
            parser=path_of, metavar="SRC", help="Image files, or folders: all images below them."
        ),
    ] = None,
    dataset: Annotated[
        str | None, typer.Option(metavar="NAME", help="Images of this data set instead of SRC.")
    ] = None,
    split: Split = None,
    data_dir: DataDir = None,
    size: Annotated[
        int | None,
        typer.Option(metavar="PIXELS", help="Images become PIXELS x PIXELS."),
    ] = None,
    pooled: Annotated[
        bool,
        typer.Option("--pooled", help="For single-layer: the mean of each map, not the maps."),
    ] = False,
    run: Run = None,
    checkpoint: CheckpointFile = None,
    runs_dir: RunsDir = Path("runs"),
    device: Device = "auto",
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Turn images into codes with the encoder of a trained model.

    Codes are float32: (N, code size) for the deep models; for single-layer the activation maps
    (N, F, H+2, W+2), or with --pooled their means (N, F). Images of different sizes need --pooled
    or --size there; the deep models' images are resized to the one size that they take.

    A .npy file holds the codes, and NAME.names.txt beside it a line per code: its name, and after a
    tab its label where there are labels. A .npz file holds codes, names, labels, and which model
    made them. A .csv file has the columns name, label, c0, c1 and so on.

    Images of one folder are labelled by its sub-folders. A file that cannot be used is named and
    left out; the exit status is then 1. The model is chosen as for reconstruct.

    \b
    Examples:
      cae-raw encode photos --size 64 --out codes.npz
      cae-raw encode --dataset shapes --split train --pooled --out means.csv
    """
    from cae_raw.commands.encode import encode

    report, failed = encode(
        sources or [],
        out=out,
        dataset=dataset,
        split=split,
        data_dir=data_dir,
        size=size,
        pooled=pooled,
        run=run,
        checkpoint=checkpoint,
        runs_dir=runs_dir,
        device=device,
        threads=threads,
        say=sys.stderr if as_json else sys.stdout,
    )
    if as_json:
        print_json(report)
    if failed:
        raise typer.Exit(1)


def decode_command(
    codes: Annotated[
        Path,
        typer.Argument(parser=path_of, metavar="CODES", help="A .npy or .npz file of encode."),
    ],
    out: Annotated[
        Path, typer.Option(parser=path_of, metavar="DIR", help="Folder for the images.")
    ] = Path("decoded"),
    masks: Annotated[
        str | None,
        typer.Option(
            metavar="RULE",
            help="For the deep models: centre, the same place in every window.  [default: centre]",
        ),
    ] = None,
    masks_from: Annotated[
        Path | None,
        typer.Option(
            parser=path_of,
            metavar="IMAGE",
            help="For the deep models: the masks that the encoder chooses for this image.",
        ),
    ] = None,
    run: Run = None,
    checkpoint: CheckpointFile = None,
    runs_dir: RunsDir = Path("runs"),
    device: Device = "auto",
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Turn codes back into images with a trained model.

    Writes decoded_0001.png and so on, in the order of the codes. The model is chosen as for
    reconstruct, and has to be the one that made the codes.

    The deep models' decoder also needs the pooling masks, which a code does not hold: where in its
    window each value was. They come from --masks-from, or every value goes to the place (K/2, K/2)
    of its window, counted from 0 and rounded down: the lower right one of a 2x2 window. So an image
    decoded from its code alone is not the reconstruction that the whole model makes of it.

    \b
    Examples:
      cae-raw decode codes.npz
      cae-raw decode codes.npy --masks-from photo.png --out decoded
    """
    from cae_raw.commands.decode import decode

    report = decode(
        codes,
        out=out,
        masks=masks,
        masks_from=masks_from,
        run=run,
        checkpoint=checkpoint,
        runs_dir=runs_dir,
        device=device,
        threads=threads,
        say=sys.stderr if as_json else sys.stdout,
    )
    if as_json:
        print_json(report)


def info_command(
    model: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Show this model's layers instead: single-layer, deep or deep-same.",
        ),
    ] = None,
    size: Annotated[
        int | None, typer.Option(metavar="PIXELS", help="Side of its images.  [default: 64]")
    ] = None,
    channels: Annotated[
        int | None, typer.Option(metavar="N", help="Of its images: 1 or 3.  [default: 3]")
    ] = None,
    code_size: Annotated[
        int | None,
        typer.Option(metavar="N", help="Of deep and deep-same.  [default: 1568]"),
    ] = None,
    filters: Annotated[
        int | None, typer.Option(metavar="N", help="Of single-layer.  [default: 32]")
    ] = None,
    runs_dir: RunsDir = Path("runs"),
    as_json: Json = False,
) -> None:
    """Show this machine's facts, or a model's layers.

    Versions, threads, GPU, and where things lie. With --model: each layer's output shape,
    parameters, FLOPs per image (of the forward pass and of a training step), and the bytes per
    image that a training step keeps.
    """
    from cae_raw.commands.info import model_info

    summary = model_info(model, size, channels, code_size, filters)
    if summary is not None:
        if as_json:
            print_json(summary.to_json())
        else:
            typer.echo("\n".join(summary.lines()))
        return
    from cae_raw.machine import describe

    facts = describe(runs_dir)
    if as_json:
        print_json(facts)
        return
    for name, value in facts.items():
        typer.echo(f"{name:10} {value}")
