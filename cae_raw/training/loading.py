"""Getting a trained model back: from a file, a run, the newest run, or the package itself."""

from __future__ import annotations

from pathlib import Path

from cae_raw.errors import InputError
from cae_raw.models import Autoencoder
from cae_raw.training import checkpoint
from cae_raw.training.checkpoint import Checkpoint
from cae_raw.training.run_dir import RunDir, newest_run

PRETRAINED = {1: "single-layer-gray.safetensors", 3: "single-layer-rgb.safetensors"}


def load(path: str | Path) -> Autoencoder:
    """The model in a checkpoint file, or in the best checkpoint of a run's folder, on the CPU.

    Raises:
        InputError: if there is none, or it is damaged.
    """
    return load_checkpoint(Path(path)).build_model()


def load_checkpoint(path: Path) -> Checkpoint:
    """The checkpoint in a file, or the best one of a run's folder."""
    if path.is_dir():
        best = RunDir(path).best
        if not best.is_file():
            newest = newest_run(path)
            if newest is not None:
                raise InputError(f"{path} is no run but holds some: name one, as {newest.path}")
            raise InputError(f"{path} holds no best.safetensors: train it for an epoch at least")
        return checkpoint.load(best)
    return checkpoint.load(path)


def find_run(run: Path | None, runs_dir: Path) -> RunDir:
    """The named run, else the newest under `runs_dir`.

    Raises:
        InputError: if there is no such run.
    """
    if run is not None:
        if run.is_file():
            raise InputError(f"{run} is a file: name the folder of a run, such as {run.parent}")
        if not run.is_dir():
            raise InputError(f"there is no run {run}: train one, or name the folder of another")
        return RunDir(run)
    newest = newest_run(runs_dir)
    if newest is None:
        raise InputError(f"no run under {runs_dir}: train one with `cae-raw train`, or name one")
    return newest


def pretrained(channels: int) -> Checkpoint:
    """The small single-layer model that ships with the package: gray (1) or RGB (3) images."""
    folder = Path(__file__).resolve().parent.parent / "pretrained"
    return checkpoint.load(folder / PRETRAINED[channels])
