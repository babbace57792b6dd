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
    Split,
    Threads,
    path_of,
    print_json,
)

Size = Annotated[
    int | None,
    typer.Option(
        metavar="PIXELS", help="For --dataset folder or lmdb: images become PIXELS x PIXELS."
    ),
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
            "--random-encoder",
            help="Draw the encoder's weights anew, to see what its training brought.",
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


def score_command(
    images: Annotated[
        list[Path] | None,
        typer.Argument(
            parser=path_of, metavar="IMAGE", help="Image files, or folders: all images below them."
        ),
    ] = None,
    dataset: Annotated[
        str | None, typer.Option(metavar="NAME", help="Images of this data set instead.")
    ] = None,
    split: Split = None,
    data_dir: DataDir = None,
    size: Size = None,
    run: Run = None,
    checkpoint: CheckpointFile = None,
    clean: Annotated[
        list[Path] | None,
        typer.Option(
            parser=path_of,
            metavar="SRC",
            help="Images without anything odd, a file or folder; may be given again.",
        ),
    ] = None,
    clean_split: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="The same: a split of the data set, as in validation."),
    ] = None,
    quantile: Annotated[
        float | None,
        typer.Option(
            metavar="X",
            help="Share of the clean images that the threshold lets pass.  [default: 0.99]",
        ),
    ] = None,
    odd: Annotated[
        str | None,
        typer.Option(
            metavar="CLASS,CLASS", help="Classes to be found: measures how well errors do that."
        ),
    ] = None,
    top: Annotated[
        int | None,
        typer.Option(metavar="N", help="Images shown of each end, 0 to 100.  [default: 10]"),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            parser=path_of, metavar="DIR", help="Folder for what is written.  [default: scores]"
        ),
    ] = None,
    csv: Annotated[
        Path | None,
        typer.Option(
            parser=path_of, metavar="FILE", help="The table.  [default: scores.csv in that folder]"
        ),
    ] = None,
    runs_dir: RunsDir = Path("runs"),
    device: Device = "auto",
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Rank images by reconstruction error: what a model has not seen comes first.

    Writes a table of every image's mse, half_mse and PSNR, a picture of both ends of the ranking,
    and heat maps of the highest errors (highest_0001.png and so on). With a clean set, images
    above the stated quantile of its errors are flagged. With --odd, the AUROC says how well errors
    tell those classes from the others: 0.5 is chance, 1 perfect; the ROC curve is a picture.

    Classes are names or numbers of the data set, or sub-folders of a single folder of images. The
    model is chosen as for reconstruct. A file that cannot be used is named and left out; the exit
    status is then 1.

    \b
    Examples:
      cae-raw score photos --clean good-photos
      cae-raw score --dataset mnist --clean-split validation --quantile 0.99
      cae-raw score --dataset mnist --odd 4 --run RUN_WITHOUT_FOURS
    """
    from cae_raw.commands.score import score

    report, failed = score(
        images or [],
        dataset=dataset,
        split=split,
        data_dir=data_dir,
        size=size,
        run=run,
        checkpoint=checkpoint,
        runs_dir=runs_dir,
        clean=clean or [],
        clean_split=clean_split,
        quantile=quantile,
        odd=odd,
        top=top,
        out=out,
        csv=csv,
        device=device,
        threads=threads,
        say=sys.stderr if as_json else sys.stdout,
    )
    if as_json:
        print_json(report)
    if failed:
        raise typer.Exit(1)
