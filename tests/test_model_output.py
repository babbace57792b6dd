"""The range that images are scaled to, and a decoder without tanh, as options of a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_runner import TRAIN, Here, picture
from deep_cases import SIZE, random_images
from training_cases import assert_gradients_agree, losses, make_dataset

from cae_raw.backends import NUMPY, Backend
from cae_raw.errors import InputError
from cae_raw.layers import Conv2d
from cae_raw.models import Autoencoder, build, single_layer
from cae_raw.training import checkpoint
from cae_raw.training.config import TrainConfig
from cae_raw.training.engine import Engine
from cae_raw.training.loading import load
from cae_raw.training.run_dir import RunDir
from cae_raw.training.session import RunSession

LINEAR = {"decoder_activation": "none", "input_range": (-0.5, 0.5)}


def make(rng: np.random.Generator, **options: Any) -> Autoencoder:
    return single_layer(1, 3, rng, **options)


def test_without_tanh_the_output_is_the_convolution(rng: np.random.Generator) -> None:
    model = make(rng, decoder_activation="none", value_range=(-3, 5))
    assert isinstance(model.stack[-1], Conv2d) and model.value_range == (-3, 5)
    model.parameters *= 50
    y = model.forward(rng.standard_normal((2, 1, 6, 5)).astype(np.float32))
    assert np.abs(y).max() > 1
    again = build(model.name, **model.options)
    assert (again.options, again.value_range) == (model.options, model.value_range)
    assert [repr(a) for a in again.stack] == [repr(a) for a in model.stack]


def test_defaults_leave_no_trace_in_the_options(rng: np.random.Generator) -> None:
    """So that models written before there was a choice are those of today."""
    model = make(rng, decoder_activation="tanh", value_range=(-1, 1))
    assert model.options == {"channels": 1, "filters": 3}
    deep = build("deep", channels=3, size=SIZE, code_size=4, value_range=(0, 1))
    assert set(deep.options) == {"channels", "size", "code_size"}


def test_fused_step_agrees_with_the_layers(rng: np.random.Generator) -> None:
    model = make(rng, decoder_activation="none", value_range=(0.0, 2.0)).astype(np.float64)
    images = random_images(9, 1, 6, 5)
    found = []
    for fused in (True, False):
        with Engine(model, (1, 6, 5), fused=fused, sparsity=0.1) as engine:
            total = engine.step(images, np.arange(9))[0]
            found.append((total, engine.squared_error(images), engine.gradients.copy()))
    (total, error, gradients), (true_total, true_error, true_gradients) = found
    assert total == pytest.approx(true_total) and error == pytest.approx(true_error)
    np.testing.assert_allclose(gradients, true_gradients, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("name", ["single-layer", "deep"])
def test_kernels_agree_with_numpy(backend: Backend, name: str) -> None:
    shape, options = (1, 6, 5), {"filters": 3, **LINEAR}
    if name == "deep":
        shape, options = (3, *SIZE), {"code_size": 7, "input_range": (-1.0, 1.0)}
    config = TrainConfig(model=name, optimizer="sgd", lr=0.05, **options)
    images = random_images(12, *shape)
    mine, gradients, parameters = losses(backend, config, images, 3, batch=5)
    reference, true_gradients, true_parameters = losses(NUMPY, config, images, 3, batch=5)
    assert_gradients_agree(config.make_model(shape), gradients, true_gradients)
    np.testing.assert_allclose(mine, reference, rtol=1e-5)
    np.testing.assert_allclose(parameters, true_parameters, atol=1e-5)


def test_a_run_gives_the_model_back(tmp_path: Path) -> None:
    config = TrainConfig(filters=2, **LINEAR)

    class Silent:
        def begin(self, *_: object) -> None: ...
        def batch(self, *_: object) -> None: ...
        def epoch(self, *_: object) -> None: ...
        def end(self) -> None: ...

    session = RunSession(config, make_dataset(), RunDir(tmp_path))
    session.train(1, Silent())
    model = load(tmp_path)
    assert model.value_range == (-0.5, 0.5) and isinstance(model.stack[-1], Conv2d)
    assert RunSession(config, make_dataset(), RunDir(tmp_path)).resumed
    with pytest.raises(InputError, match="other hyper-parameters"):
        RunSession(TrainConfig(filters=2), make_dataset(), RunDir(tmp_path))


def test_runs_from_before_there_were_options_are_continued(tmp_path: Path) -> None:
    run, younger = RunDir(tmp_path), ("sparsity", "input_range", "decoder_activation", "flip")
    config = TrainConfig(filters=2)
    session = RunSession(config, make_dataset(), run)
    for _ in session.trainer.steps(1):
        pass
    checkpoint.save(run.last, session._checkpoint())
    saved = checkpoint.load(run.last)
    for name in (*younger, "classes"):
        del saved.config["train"][name]
    checkpoint.save(run.last, saved)
    assert RunSession(config, make_dataset(), run).resumed
    with pytest.raises(InputError, match="other hyper-parameters"):
        RunSession(TrainConfig(filters=2, flip=True), make_dataset(), run)


def test_every_command_follows_the_run(here: Here) -> None:
    picture(Path("photo.png"), 12, 10, 3)
    words = ("--decoder-activation", "none", "--input-range", "-0.5", "0.5")
    assert here(*TRAIN, *words).status == 0
    (run,) = Path("runs/single-layer").iterdir()
    assert run.name == "shapes_adam_lr=0.001_b=16_f=2_out=none_range=-0.5,0.5"
    report = json.loads(here("evaluate", "--device", "cpu", "--json").out)
    assert report["peak"] == 1.0
    assert report["psnr"] == pytest.approx(-10 * np.log10(report["mse"]))
    made = here("reconstruct", "photo.png", "--device", "cpu", "--json")
    assert made.status == 0
    assert here("encode", "photo.png", "--out", "codes.npz", "--device", "cpu").status == 0
    assert here("decode", "codes.npz", "--device", "cpu").status == 0
    assert here("show", "--device", "cpu").status == 0
    report = json.loads(made.out)["images"][0]
    assert report["psnr"] == pytest.approx(-10 * np.log10(report["mse"]))
