"""Hyper-parameters and the folder name made of them."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from math import inf, nan
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cae_raw.errors import InputError
from cae_raw.training.config import TrainConfig
from cae_raw.training.optimizers import SGD, Adam


def test_the_name_of_a_run() -> None:
    config = TrainConfig(dataset="mnist", lr=1e-5, batch_size=1024, l2_penalty=1e-9)
    assert config.run_name() == Path("single-layer/mnist_adam_lr=1e-05_b=1024_l2=1e-09")
    assert TrainConfig().run_name() == Path("single-layer/shapes_adam_lr=0.001_b=128")


def test_everything_in_the_name_of_a_run() -> None:
    config = TrainConfig(
        dataset="folder",
        data_dir="/some where/my: images",
        size=48,
        filters=16,
        optimizer="sgd",
        lr=0.5,
        momentum=0.9,
        betas=(0.8, 0.99),
        eps=1e-6,
        batch_size=7,
        l2_penalty=0.25,
        l2_decoder=True,
        lr_decay_epochs=3,
        lr_decay_factor=0.5,
        seed=11,
        limit_train=100,
        comment="try=2",
    )
    assert config.run_name() == Path(
        "single-layer/folder-my--images_sgd_lr=0.5_b=7_l2=0.25_l2dec=1_f=16_size=48_mom=0.9_"
        "betas=0.8,0.99_eps=1e-06_decay=3_factor=0.5_seed=11_n=100_try=2"
    )


OTHER: dict[str, Any] = {
    "dataset": "mnist",
    "data_dir": "pictures",
    "size": 16,
    "val": "others.lmdb",
    "channel_order": "rgb",
    "resize": True,
    "classes": ("a", "b"),
    "filters": 8,
    "code_size": 9,
    "precision": "tf32",
    "decoder_activation": "none",
    "input_range": (-0.5, 0.5),
    "loss": "mse",
    "optimizer": "sgd",
    "lr": 2e-3,
    "momentum": 0.5,
    "betas": (0.9, 0.99),
    "eps": 1e-7,
    "batch_size": 64,
    "l2_penalty": 1e-6,
    "l2_decoder": True,
    "sparsity": 1e-3,
    "lr_decay_epochs": 4,
    "lr_decay_factor": 0.2,
    "flip": True,
    "seed": 1,
    "limit_train": 10,
    "comment": "b",
}


def test_every_parameter_changes_the_name() -> None:
    in_the_name = {f.name for f in fields(TrainConfig)} - {"model"}  # that is the folder above
    assert set(OTHER) == in_the_name
    names = {TrainConfig().run_name()}
    for name, value in OTHER.items():
        names.add(replace(TrainConfig(), **{name: value}).run_name())
    assert len(names) == 1 + len(OTHER)


def test_json_keeps_every_digit() -> None:
    config = replace(TrainConfig(), **{**OTHER, "lr": 0.1 + 0.2, "betas": (1 / 3, 0.999)})
    text = json.dumps(config.to_json())
    assert TrainConfig.from_json(json.loads(text)) == config
    assert TrainConfig.from_json({**json.loads(text), "of a later version": 1}) == config


@pytest.mark.parametrize(
    "comment",
    [
        "..",
        ".",
        ".hidden",
        "a/b",
        "../../x",
        "/tmp/x",
        "a\\b",
        "a\0b",
        "a\nb",
        "ab\n",
        "a b",
        "a:b",
        "a*",
        "~",
        "$HOME",
        "\udcff",
        "a\u202eb",
        "a\u2028b",
    ],
)
def test_comments_that_are_no_file_names_are_refused(comment: str) -> None:
    with pytest.raises(InputError, match="becomes part of a folder's name") as caught:
        TrainConfig(comment=comment)
    assert len(str(caught.value).splitlines()) == 1
    str(caught.value).encode()  # can be printed


@pytest.mark.parametrize("comment", ["", "a", "a..b", "lr=3,b=4", "2024-01-01_a+b.c", "größer"])
def test_comments_that_are_fine(comment: str) -> None:
    name = TrainConfig(comment=comment).run_name()
    assert name.parent == Path("single-layer")
    assert name.name == "shapes_adam_lr=0.001_b=128" + ("_" + comment if comment else "")


@pytest.mark.parametrize(
    "data_dir", ["/", ".", "..", "../..", "a/..", "a\nb", "a\0b", "a\\..\\b", "..hidden"]
)
def test_an_image_folder_cannot_lead_out_of_the_runs(data_dir: str) -> None:
    name = TrainConfig(dataset="folder", data_dir=data_dir).run_name()
    assert len(name.parts) == 2 and name.parts[0] == "single-layer"
    assert name.parts[1].startswith("folder-") and name.parts[1].isprintable()
    assert "\\" not in name.parts[1]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"dataset": "../../x"}, "unknown data set '../../x': choose one of cifar10,"),
        ({"model": "../x"}, "unknown model '../x': choose one of .*single-layer"),
        ({"optimizer": "rprop"}, "unknown optimizer 'rprop': choose one of adam, sgd"),
        ({"filters": 0}, "--filters must be at least 1, not 0"),
        ({"batch_size": 0}, "--batch-size must be at least 1, not 0"),
        ({"limit_train": 0}, "--limit-train must be at least 1, not 0"),
        ({"size": -3}, "--size must be at least 1, not -3"),
        ({"l2_penalty": -1e-9}, "--l2-penalty must be at least 0"),
        ({"l2_penalty": inf}, "--l2-penalty must be at least 0"),
        ({"l2_penalty": nan}, "--l2-penalty must be at least 0"),
        ({"sparsity": -1e-9}, "--sparsity must be at least 0"),
        ({"sparsity": nan}, "--sparsity must be at least 0"),
        ({"input_range": (1.0, 0.0)}, "--input-range needs two finite bounds, low before high"),
        ({"input_range": (0.0, inf)}, "--input-range needs two finite bounds"),
        ({"input_range": (nan, 1.0)}, "--input-range needs two finite bounds"),
        ({"model": "deep", "input_range": (0, 1e9)}, "--input-range must lie within -1000 to 1000"),
        ({"input_range": (-2.0, 2.0)}, "tanh cannot reach all of -2 to 2: choose"),
        ({"model": "deep", "input_range": (3.0, 3.0)}, "--input-range needs two finite bounds"),
        (
            {"decoder_activation": "relu"},
            "unknown decoder activation 'relu': choose one of",
        ),
        ({"classes": ()}, "--classes names no class"),
        ({"classes": ("a", " ")}, "--classes names no class"),
        ({"lr_decay_epochs": -1}, "--lr-decay-epochs must be at least 0"),
        ({"seed": -1}, "--seed must be at least 0"),
        ({"lr_decay_factor": 0.0}, "--lr-decay-factor must be above 0"),
        ({"lr_decay_factor": 1.5}, "--lr-decay-factor must be above 0"),
        ({"lr_decay_factor": nan}, "--lr-decay-factor must be above 0"),
    ],
)
def test_values_out_of_range(values: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        TrainConfig(**values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"lr": 0.0}, "lr must be above 0"),
        ({"lr": -1.0}, "lr must be above 0"),
        ({"lr": inf}, "lr must be above 0"),
        ({"lr": nan}, "lr must be above 0"),
        ({"betas": (1.0, 0.9)}, "betas must be at least 0 and below 1"),
        ({"betas": (0.9, nan)}, "betas must be at least 0 and below 1"),
        ({"eps": 0.0}, "eps must be above 0"),
        ({"optimizer": "sgd", "momentum": 1.0}, "momentum must be at least 0 and below 1"),
    ],
)
def test_optimizers_check_theirs(values: dict[str, Any], message: str) -> None:
    config = TrainConfig(**values)
    with pytest.raises(InputError, match=message):
        config.make_optimizer(config.make_model((1, 6, 5)))


def test_seed_decides_the_first_weights() -> None:
    def weights(seed: int) -> np.ndarray:
        return TrainConfig(seed=seed, filters=2).make_model((3, 6, 5)).parameters

    assert np.array_equal(weights(1), weights(1))
    assert not np.array_equal(weights(1), weights(2))
    assert len(weights(2**70)) == len(weights(0))


def test_optimizers_get_their_settings() -> None:
    model = TrainConfig(filters=2).make_model((1, 6, 5))
    adam = TrainConfig(lr=0.5, betas=(0.1, 0.2), eps=0.3).make_optimizer(model)
    assert isinstance(adam, Adam)
    assert (adam.lr, adam.betas, adam.eps, adam.l2) == (0.5, (0.1, 0.2), 0.3, None)
    sgd = TrainConfig(optimizer="sgd", lr=0.25, momentum=0.75).make_optimizer(model)
    assert isinstance(sgd, SGD)
    assert (sgd.lr, sgd.momentum) == (0.25, 0.75)
