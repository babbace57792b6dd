"""The commands that put a trained encoder or autoencoder to use: classify and score."""

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
    Threads,
    path_of,
    print_json,
)

Size = Annotated[
    int | None,
    typer.Option(metavar="PIXELS", help="For --dataset folder: images become PIXELS x PIXELS."),
]


def classify_command(
    dataset: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Labelled images.  [default: the run's own]"),
    ] = None,
    data_dir: DataDir = None,
    size: Size = None,
    run: Run = None,
    checkpoint: CheckpointFile = None,
    epochs: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="Passes over the training images.  [default: 20; with --fine-tune 5]"
        ),
    ] = None,
    lr: Annotated[float, typer.Option(metavar="X", help="Learning rate of Adam.")] = 1e-3,
    batch_size: Annotated[int, typer.Option(metavar="N", help="Images per step.")] = 128,
    l2_penalty: Annotated[
        float, typer.Option(metavar="X", help="Adds X times the sum of squared weights.")
    ] = 0.0,
    seed: Annotated[int, typer.Option(metavar="N", help="Draws the order of the images.")] = 0,
    limit_train: Annotated[
        int | None, typer.Option(metavar="N", help="Use the first N training images only.")
    ] = None,
    pool: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="For single-layer: maxima of each map over NxN windows; 0: the whole maps.  "
            "[default: 4]",
        ),
    ] = None,
    fine_tune: Annotated[
        bool,
        typer.Option("--fine-tune", help="Then train the encoder too, from where it is."),
    ] = False,
    random_encoder: Annotated[
        bool,
        typer.Option(
            "--random-encoder", help="Draw the encoder's weights: what did its training bring?"
        ),
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            parser=path_of,
            metavar="DIR",
            help="Where the classifier goes.  [default: classifier-DATASET in the run's folder]",
        ),
    ] = None,
    runs_dir: RunsDir = Path("runs"),
    device: Device = "auto",
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Train a linear classifier on the codes of a trained encoder.

    The decoder is removed. A linear layer with softmax is trained on the standardised codes, the
    epoch chosen by the validation images, and the test accuracy reported, with each class's and the
    confusion matrix as a picture. Maps are pooled to 4x4 maxima first: whole, those of 50,000
    images would take gigabytes. With --fine-tune the encoder is trained too, after that.

    Where validation and test images are the same ones (cifar10, lmdb), the last tenth of the
    training images, at most 5,000, chooses the epoch. The model is chosen as for reconstruct.

    \b
    Examples:
      cae-raw classify --dataset mnist
      cae-raw classify --run runs/single-layer/cifar10_adam_lr=0.001_b=128 --fine-tune
      cae-raw classify --dataset mnist --random-encoder
    """
    from cae_raw.commands.classify import classify

    report = classify(
        dataset=dataset,
        data_dir=data_dir,
        size=size,
        run=run,
        checkpoint=checkpoint,
        runs_dir=runs_dir,
        epochs=epochs,
        lr=lr,
        batch_size=batch_size,
        l2_penalty=l2_penalty,
        seed=seed,
        limit_train=limit_train,
        pool=pool,
        fine_tune=fine_tune,
        random_encoder=random_encoder,
        out=out,
        device=device,
        threads=threads,
        say=sys.stderr if as_json else sys.stdout,
    )
    if as_json:
        print_json(report)
