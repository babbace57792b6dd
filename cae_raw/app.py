"""The command line. Each command parses, calls, and prints; the work is done elsewhere.

Heavy modules are imported inside the commands, so that help answers at once.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from cae_raw import __version__, app_bench, app_data, app_models, app_reports, app_use
from cae_raw.app_options import DataDir, Device, Json, RunsDir, Threads, path_of, print_json
from cae_raw.commands import shell

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help: readable in pipes and logs, and there at once
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"cae-raw {__version__}")
        raise typer.Exit


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
        typer.Option(metavar="NAME", help="shapes (drawn), mnist, cifar10, folder or lmdb."),
    ] = "shapes",
    data_dir: DataDir = None,
    size: Annotated[
        int | None,
        typer.Option(
            metavar="PIXELS",
            help="For --dataset folder, and for lmdb with --resize: images become PIXELS x PIXELS.",
        ),
    ] = None,
    val: Annotated[
        Path | None,
        typer.Option(
            parser=path_of,
            metavar="DIR",
            help="For --dataset lmdb: another one to validate on.  [default: the last tenth]",
        ),
    ] = None,
    channel_order: Annotated[
        str,
        typer.Option(
            metavar="ORDER", help="For --dataset lmdb: bgr, as Caffe stores colours, or rgb."
        ),
    ] = "bgr",
    resize: Annotated[
        bool,
        typer.Option(
            "--resize", help="For --dataset lmdb: bring records of another size to --size."
        ),
    ] = False,
    classes: Annotated[
        str | None,
        typer.Option(
            metavar="NAMES",
            help="Only the images of these classes, as in airplane,ship or 3,7.  [default: all]",
        ),
    ] = None,
    flip: Annotated[
        bool,
        typer.Option(
            "--flip",
            help="In each epoch, mirror half of the training images left to right.",
        ),
    ] = False,
    model: Annotated[
        str, typer.Option(metavar="NAME", help="single-layer, deep or deep-same.")
    ] = "single-layer",
    filters: Annotated[
        int, typer.Option(metavar="N", help="For single-layer: filters of the encoder.")
    ] = 32,
    code_size: Annotated[
        int, typer.Option(metavar="N", help="For deep and deep-same: numbers in the code.")
    ] = 1568,
    input_range: Annotated[
        tuple[float, float] | None,
        typer.Option(
            metavar="LOW HIGH",
            help="What images are scaled to.  [default: single-layer -1 1, deep 0 1]",
        ),
    ] = None,
    decoder_activation: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="For single-layer: tanh, or none for a linear output.  [default: tanh]",
        ),
    ] = None,
    loss: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="mse or half-mse.  [default: the model's own: single-layer half-mse, deep mse]",
        ),
    ] = None,
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
    precision: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="On a GPU: float32, or its tensor cores with operands rounded to tf32 or (deep "
            "models only) bf16, or with float32's accuracy, tf32x3. Deep models use them for their "
            "linear layers, single-layer for all of its products.",
        ),
    ] = "float32",
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
    sparsity: Annotated[
        float,
        typer.Option(metavar="X", help="Adds X times the mean of |code|, over all of its values."),
    ] = 0.0,
    lr_decay_epochs: Annotated[
        int, typer.Option(metavar="N", help="Lower the learning rate every N epochs; 0: never.")
    ] = 0,
    lr_decay_factor: Annotated[
        float, typer.Option(metavar="X", help="What it is then multiplied by.")
    ] = 0.1,
    seed: Annotated[
        int,
        typer.Option(metavar="N", help="Draws weights, order of the images and flips."),
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
    no_cache: Annotated[
        bool,
        typer.Option(
            "--no-cache",
            help="For --dataset folder: decode all images into memory, at every start.  "
            "[default: decode them once, into a database beside the runs]",
        ),
    ] = False,
    save_every_seconds: Annotated[
        float,
        typer.Option(
            metavar="X",
            help="Time between checkpoints inside an epoch, 0 for one after every batch; finished "
            "epochs are saved by themselves.",
        ),
    ] = 60.0,
    tensorboard: Annotated[
        bool,
        typer.Option(
            "--tensorboard/--no-tensorboard", help="Write event files into the run's folder."
        ),
    ] = True,
    images_every: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="Epochs between pictures in the event files; 0: none.  [default: 10]"
        ),
    ] = None,
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
      cae-raw train --model deep --dataset folder --data-dir photos --size 64
      cae-raw train --model deep --dataset lmdb --data-dir train.lmdb --val val.lmdb
      cae-raw train --optimizer sgd --lr 0.1 --momentum 0.9 --limit-train 1000
    """
    from cae_raw.commands.train import train
    from cae_raw.training.config import TrainConfig

    config = TrainConfig(
        dataset=dataset,
        data_dir=str(data_dir.resolve()) if data_dir and dataset in ("folder", "lmdb") else None,
        size=size,
        val=str(val.resolve()) if val else None,
        channel_order=channel_order,
        resize=resize,
        classes=None if classes is None else tuple(classes.split(",")),
        model=model,
        filters=filters,
        code_size=code_size,
        precision=precision,
        input_range=input_range,
        decoder_activation=decoder_activation,
        loss=loss.replace("-", "_") if loss else None,
        optimizer=optimizer,
        lr=lr,
        momentum=momentum,
        betas=betas,
        eps=eps,
        batch_size=batch_size,
        l2_penalty=l2_penalty,
        l2_decoder=l2_decoder,
        sparsity=sparsity,
        lr_decay_epochs=lr_decay_epochs,
        lr_decay_factor=lr_decay_factor,
        flip=flip,
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
        cache=not no_cache,
        tensorboard=tensorboard,
        images_every=images_every,
        out=sys.stderr if as_json else sys.stdout,
    )
    if as_json:
        print_json(outcome.to_json())
    if outcome.signal is not None:
        raise typer.Exit(128 + outcome.signal)


@app.command("evaluate")
def evaluate_command(
    run: Annotated[
        Path | None,
        typer.Argument(parser=path_of, metavar="RUN", help="A run's folder.  [default: newest]"),
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
        print_json(figures)
        return
    for line in report_lines(figures):
        typer.echo(line)


app.command("show", short_help="Draw what a model has learned.")(app_models.show_command)
app.command("compare", short_help="Put runs beside each other.")(app_reports.compare_command)
app.command("report", short_help="Write a page of HTML about some runs.")(
    app_reports.report_command
)
app.command("reconstruct")(app_models.reconstruct_command)
app.command("encode")(app_models.encode_command)
app.command("decode")(app_models.decode_command)
app.command("classify")(app_use.classify_command)
app.command("score", short_help="Rank images by reconstruction error.")(app_use.score_command)
app.command("info")(app_models.info_command)
app.add_typer(app_data.app, name="data")
app.command("bench", short_help="Measure speed, beside PyTorch and JAX.")(app_bench.bench_command)


@app.command("doctor", short_help="Find what keeps a GPU from being used.")
def doctor_command(as_json: Json = False) -> None:
    """Find what keeps a GPU from being used, and the line that mends it.

    The last check compiles a kernel, runs it and reads the result back. Exits with 1 when something
    needs mending. A machine without an NVIDIA GPU is in order: 0, and --json says usable: false.
    """
    from cae_raw.commands.doctor import doctor

    report = doctor(sys.stderr if as_json else sys.stdout)
    if as_json:
        print_json(report)
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
        print_json(report)


@app.command("gradcheck", short_help="Check gradients, and kernels on a GPU.")
def gradcheck_command(
    layer: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Only this layer, model or loss.  [default: all]"),
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
        print_json(report)
    if not report["passed"]:
        raise typer.Exit(1)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Entry point of the `cae-raw` command."""
    sys.exit(shell.run(app, arguments))
