"""The command line. Each command parses, calls, and prints; the work is done elsewhere.

Heavy modules are imported inside the commands, so that help answers at once.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from cae_raw import __version__
from cae_raw.commands import shell

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help: readable in pipes and logs, and there at once
)


def _path(text: str | Path) -> Path:
    if str(text) == "" or "\0" in str(text):
        raise typer.BadParameter("a path cannot be empty.")
    return Path(text)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"cae-raw {__version__}")
        raise typer.Exit


Json = Annotated[
    bool, typer.Option("--json", help="Print one JSON object to stdout, all else to stderr.")
]
RunsDir = Annotated[Path, typer.Option(parser=_path, metavar="DIR", help="Where runs are kept.")]
DataDir = Annotated[
    Path | None,
    typer.Option(
        parser=_path,
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


@app.callback(invoke_without_command=True)
def cae_raw_command(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Train, inspect and use convolutional autoencoders on images.

    \b
    To begin, without any data at hand:
      cae-raw train --dataset shapes --epochs 5
      cae-raw reconstruct IMAGE.png
    """
    if context.invoked_subcommand is None:
        typer.echo(context.get_help(), err=True)
        raise typer.Exit(2)


@app.command("train")
def train_command(
    dataset: Annotated[
        str,
        typer.Option(metavar="NAME", help="shapes (drawn, no files), mnist, cifar10 or folder."),
    ] = "shapes",
    data_dir: DataDir = None,
    size: Annotated[
        int | None,
        typer.Option(metavar="PIXELS", help="For --dataset folder: images become PIXELS x PIXELS."),
    ] = None,
    model: Annotated[str, typer.Option(metavar="NAME", help="single-layer.")] = "single-layer",
    filters: Annotated[int, typer.Option(metavar="N", help="Filters of the encoder.")] = 32,
    optimizer: Annotated[str, typer.Option(metavar="NAME", help="adam or sgd.")] = "adam",
    lr: Annotated[float, typer.Option(metavar="X", help="Learning rate, as in 1e-5.")] = 1e-3,
    momentum: Annotated[
        float, typer.Option(metavar="X", help="For sgd; at least 0, below 1.")
    ] = 0.0,
    betas: Annotated[
        tuple[float, float],
        typer.Option(metavar="X X", help="For adam; two numbers, as in --betas 0.9 0.999."),
    ] = (0.9, 0.999),
    eps: Annotated[
        float, typer.Option(metavar="X", help="For adam; keeps its divisor above 0.")
    ] = 1e-8,
    batch_size: Annotated[int, typer.Option(metavar="N", help="Images per step.")] = 128,
    epochs: Annotated[
        int,
        typer.Option(
            metavar="N", help="Passes over the training images, counting those already done."
        ),
    ] = 150,
    l2_penalty: Annotated[
        float,
        typer.Option(metavar="X", help="Adds X times the sum of the encoder's squared weights."),
    ] = 0.0,
    l2_decoder: Annotated[
        bool, typer.Option("--l2-decoder", help="The penalty counts the decoder's weights too.")
    ] = False,
    lr_decay_epochs: Annotated[
        int, typer.Option(metavar="N", help="Lower the learning rate every N epochs; 0: never.")
    ] = 0,
    lr_decay_factor: Annotated[
        float, typer.Option(metavar="X", help="What it is then multiplied by.")
    ] = 0.1,
    seed: Annotated[
        int, typer.Option(metavar="N", help="Draws the weights and the order of the images.")
    ] = 0,
    threads: Threads = None,
    device: Device = "auto",
    runs_dir: RunsDir = Path("runs"),
    comment: Annotated[
        str, typer.Option(metavar="TEXT", help="Joins the name of the run's folder.")
    ] = "",
    restart: Annotated[
        bool, typer.Option("--restart", help="Delete what the run holds and begin anew.")
    ] = False,
    limit_train: Annotated[
        int | None, typer.Option(metavar="N", help="Use the first N training images only.")
    ] = None,
    save_every_seconds: Annotated[
        float, typer.Option(metavar="X", help="Time between checkpoints inside an epoch.")
    ] = 60.0,
    as_json: Json = False,
) -> None:
    """Train an autoencoder, or go on with a run that was stopped.

    The run is a folder named by its hyper-parameters. The same command again resumes it, to the
    same weights as if it had never been stopped; a larger --epochs trains a finished run on.

    \b
    Examples:
      cae-raw train --dataset shapes --epochs 5
      cae-raw train --dataset cifar10 --lr 1e-5
      cae-raw train --dataset mnist --lr 1e-5 --batch-size 1024 --l2-penalty 1e-9
      cae-raw train --dataset folder --data-dir photos --size 64
      cae-raw train --optimizer sgd --lr 0.1 --momentum 0.9 --limit-train 1000
    """
    from cae_raw.commands.train import train
    from cae_raw.training.config import TrainConfig

    config = TrainConfig(
        dataset=dataset,
        data_dir=str(data_dir.resolve()) if data_dir and dataset == "folder" else None,
        size=size,
        model=model,
        filters=filters,
        optimizer=optimizer,
        lr=lr,
        momentum=momentum,
        betas=betas,
        eps=eps,
        batch_size=batch_size,
        l2_penalty=l2_penalty,
        l2_decoder=l2_decoder,
        lr_decay_epochs=lr_decay_epochs,
        lr_decay_factor=lr_decay_factor,
        seed=seed,
        limit_train=limit_train,
        comment=comment,
    )
    outcome = train(
        config,
        epochs=epochs,
        data_dir=data_dir,
        runs_dir=runs_dir,
        restart=restart,
        device=device,
        threads=threads,
        save_every_seconds=save_every_seconds,
        out=sys.stderr if as_json else sys.stdout,
    )
    if as_json:
        _print_json(outcome.to_json())
    if outcome.signal is not None:
        raise typer.Exit(128 + outcome.signal)


@app.command("evaluate")
def evaluate_command(
    run: Annotated[
        Path | None,
        typer.Argument(parser=_path, metavar="RUN", help="A run's folder.  [default: newest]"),
    ] = None,
    split: Annotated[str, typer.Option(metavar="NAME", help="validation or test.")] = "test",
    data_dir: DataDir = None,
    runs_dir: RunsDir = Path("runs"),
    device: Device = "auto",
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Measure the best checkpoint of a run.

    Prints half_mse, mse and PSNR over a split, without any penalty.

    \b
    Examples:
      cae-raw evaluate
      cae-raw evaluate runs/single-layer/shapes_adam_lr=0.001_b=128 --split validation
    """
    from cae_raw.commands.evaluate import evaluate, report_lines

    figures = evaluate(
        run, split, data_dir=data_dir, runs_dir=runs_dir, device=device, threads=threads
    )
    if as_json:
        _print_json(figures)
        return
    for line in report_lines(figures):
        typer.echo(line)


@app.command("reconstruct")
def reconstruct_command(
    images: Annotated[
        list[Path],
        typer.Argument(
            parser=_path, metavar="IMAGE", help="Image files, or folders with image files."
        ),
    ],
    run: Annotated[
        Path | None,
        typer.Option(parser=_path, metavar="DIR", help="A run's folder: use its best checkpoint."),
    ] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(parser=_path, metavar="FILE", help="A checkpoint file.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            parser=_path,
            metavar="DIR",
            help="Folder for the pictures.  [default: beside each image]",
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

    \b
    Examples:
      cae-raw reconstruct photo.jpg
      cae-raw reconstruct *.png --out reconstructions
      cae-raw reconstruct photo.jpg --run runs/single-layer/shapes_adam_lr=0.001_b=128
    """
    from cae_raw.commands.reconstruct import reconstruct

    results, failed = reconstruct(
        images,
        run=run,
        checkpoint=checkpoint,
        out=out,
        runs_dir=runs_dir,
        device=device,
        threads=threads,
        say=sys.stderr if as_json else sys.stdout,
    )
    if as_json:
        _print_json(results)
    if failed:
        raise typer.Exit(1)


@app.command("info")
def info_command(runs_dir: RunsDir = Path("runs"), as_json: Json = False) -> None:
    """Show versions, threads, GPU, and where things lie."""
    from cae_raw.machine import describe

    facts = describe(runs_dir)
    if as_json:
        _print_json(facts)
        return
    for name, value in facts.items():
        typer.echo(f"{name:10} {value}")


@app.command("doctor", short_help="Find what keeps a GPU from being used.")
def doctor_command(as_json: Json = False) -> None:
    """Find what keeps a GPU from being used, and the line that mends it.

    The last check compiles a kernel, runs it and reads the result back. Exits with 1 when something
    needs mending. A machine without an NVIDIA GPU is in order: 0, and --json says usable: false.
    """
    from cae_raw.commands.doctor import doctor

    report = doctor(sys.stderr if as_json else sys.stdout)
    if as_json:
        _print_json(report)
    if not report["healthy"]:
        raise typer.Exit(1)


@app.command("kernels", short_help="List the CUDA kernels and what they cost.")
def kernels_command(
    source: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Print this kernel or file, its defines and includes put in."
        ),
    ] = None,
    channels: Annotated[
        list[int] | None,
        typer.Option(metavar="N", help="Of the images; may be given again.  [default: 3]", min=1),
    ] = None,
    arch: Annotated[
        str, typer.Option(metavar="SM", help="The GPU architecture of the figures.")
    ] = "sm_90",
    as_json: Json = False,
) -> None:
    """List the CUDA kernels: formula, FLOPs, bytes, and registers where NVRTC is installed."""
    from cae_raw.commands import kernels

    chosen = channels or list(kernels.DEFAULT_CHANNELS)
    if source is not None:
        typer.echo(kernels.source(source, chosen), nl=False)
        return
    report = kernels.describe(chosen, arch, None if as_json else sys.stdout)
    if as_json:
        _print_json(report)


@app.command("gradcheck", short_help="Check gradients, and kernels on a GPU.")
def gradcheck_command(
    layer: Annotated[
        str | None, typer.Option(metavar="NAME", help="Only this layer or model.  [default: all]")
    ] = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Check every gradient, and every CUDA kernel where there is a GPU.

    In float64, central differences against the NumPy gradient of each parameter and input; on a GPU
    each kernel against NumPy. Exits with 1 when a check fails.
    """
    from cae_raw.commands.gradcheck import gradcheck

    report = gradcheck(layer, device, sys.stderr if as_json else sys.stdout)
    if as_json:
        _print_json(report)
    if not report["passed"]:
        raise typer.Exit(1)


def _print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=2, allow_nan=False))


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Entry point of the `cae-raw` command."""
    sys.exit(shell.run(app, arguments))
