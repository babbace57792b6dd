"""Options of `cae-raw train` that no training could use, refused before anything is touched."""

from __future__ import annotations

from math import inf

from cae_raw.errors import InputError
from cae_raw.models import DEEP_MODELS
from cae_raw.training.config import TrainConfig

# Far beyond what is useful, but below what exhausts a machine before it can say so.
LARGEST = {
    "size": 2048,
    "filters": 65536,
    "code_size": 65536,
    "batch_size": 2**31 - 1,
    "epochs": 2**31 - 1,
    "images_every": 2**31 - 1,
    "lr_decay_epochs": 2**31 - 1,
    "seed": 2**63 - 1,
    "limit_train": 2**31 - 1,
    "threads": 1024,
    "lr": 1e30,  # float32 ends at 3.4e38
    "eps": 1e30,
    "l2_penalty": 1e30,
    "sparsity": 1e30,
}
MAX_DIGITS = 30  # of a refused value that are shown
LONGEST_NAME = 200  # bytes in a run's name; file systems allow 255


def check_options(config: TrainConfig, epochs: int, threads: int | None, save_every: float) -> None:
    """Raise InputError for values out of range and for options without effect."""
    _require("epochs", epochs, epochs >= 1, "at least 1")
    check_threads(threads)
    _require("save_every_seconds", save_every, 0 <= save_every < inf, "at least 0")
    _require("lr", config.lr, 0 < config.lr < inf, "above 0 and finite")
    _require("eps", config.eps, 0 < config.eps < inf, "above 0 and finite")
    for name, values in (("momentum", (config.momentum,)), ("betas", config.betas)):
        for value in values:
            _require(name, value, 0 <= value < 1, "at least 0 and below 1")
    for name, value in {**vars(config), "epochs": epochs}.items():
        if name in LARGEST and value is not None:
            _require(name, value, value <= LARGEST[name], f"at most {LARGEST[name]}")
    _refuse_without_effect(config)
    config.check_precision()
    if len(config.run_name().name.encode()) > LONGEST_NAME:
        raise InputError(
            f"the run's name is longer than {LONGEST_NAME} bytes: use a shorter --comment or a "
            "shorter name of the image folder"
        )


def check_images_every(images_every: int | None, tensorboard: bool) -> None:
    """Raise InputError unless pictures can go to event files so often."""
    if images_every is not None:
        _require("images_every", images_every, images_every >= 0, "at least 0")
        most = LARGEST["images_every"]
        _require("images_every", images_every, images_every <= most, f"at most {most}")
        if not tensorboard:
            raise InputError("--images-every has no effect with --no-tensorboard: omit one of them")


def check_threads(threads: int | None) -> None:
    """Raise InputError unless `threads` is a number of threads that can be started."""
    if threads is not None:
        _require("threads", threads, threads >= 1, "at least 1")
        _require("threads", threads, threads <= LARGEST["threads"], f"at most {LARGEST['threads']}")


def _refuse_without_effect(config: TrainConfig) -> None:
    """An option that would change nothing but the run's name is a misunderstanding."""
    default = TrainConfig()
    needs = {
        "size": (
            config.dataset == "folder" or (config.dataset == "lmdb" and config.resize),
            "--dataset folder (or lmdb --resize)",
        ),
        "val": (config.dataset == "lmdb", "--dataset lmdb"),
        "channel_order": (config.dataset == "lmdb", "--dataset lmdb"),
        "resize": (config.dataset == "lmdb" and config.size is not None, "--dataset lmdb --size"),
        "filters": (config.model == "single-layer", "--model single-layer"),
        "decoder_activation": (config.model == "single-layer", "--model single-layer"),
        "code_size": (config.model in DEEP_MODELS, "--model deep or deep-same"),
        "momentum": (config.optimizer == "sgd", "--optimizer sgd"),
        "betas": (config.optimizer == "adam", "--optimizer adam"),
        "eps": (config.optimizer == "adam", "--optimizer adam"),
        "l2_decoder": (config.l2_penalty > 0, "--l2-penalty"),
        "lr_decay_factor": (config.lr_decay_epochs > 0, "--lr-decay-epochs"),
    }
    for name, (given, needed) in needs.items():
        if not given and getattr(config, name) != getattr(default, name):
            option = _option(name)
            raise InputError(
                f"{option} needs {needed} to have an effect: add that, or omit {option}"
            )


def _require(name: str, value: float, holds: bool, rule: str) -> None:
    if not holds:
        shown = str(value)[:MAX_DIGITS] + "..." * (len(str(value)) > MAX_DIGITS)
        raise InputError(f"{_option(name)} must be {rule}, not {shown}")


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")
