"""The L1 term on the code: its gradient on every way that a training step can take."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from deep_cases import SIZE, random_images
from test_engine import pooling_without_code
from test_staged import convolution_between, linear_layers_only
from training_cases import assert_gradients_agree, losses, make_dataset, pooling_model

from cae_raw.backends import NUMPY, Backend
from cae_raw.data.scaling import to_floats
from cae_raw.errors import InputError
from cae_raw.layers import Conv2d, Flatten, Linear, Tanh, Trace, Unflatten
from cae_raw.models import Autoencoder, build, single_layer
from cae_raw.training import staged
from cae_raw.training.config import TrainConfig
from cae_raw.training.engine import Engine
from cae_raw.training.optimizers import SGD
from cae_raw.training.run_dir import RunDir
from cae_raw.training.session import RunSession
from cae_raw.training.trainer import Trainer

SPARSITY = 0.3
Make = Callable[[np.random.Generator], Autoencoder]


def deep(rng: np.random.Generator) -> Autoencoder:
    return build("deep-same", rng, channels=1, size=(6, 4), code_size=5)


def code_behind_linear_layers(rng: np.random.Generator) -> Autoencoder:
    """Linear layers in the encoder only."""
    return Autoencoder(
        Flatten(),
        Linear(24, 24, rng=rng),
        Unflatten((1, 6, 4)),
        Tanh(),
        Conv2d(1, 1, 3, padding=1, rng=rng),
        encoder_length=4,
        channels=1,
    )


# Model, whether by its fused step, whether in stages.
WAYS: dict[str, tuple[Make, bool, bool]] = {
    "fused": (lambda rng: single_layer(1, 3, rng), True, False),
    "layered": (lambda rng: single_layer(1, 3, rng), False, False),
    "pooling": (pooling_without_code, False, False),
    "far from linear layers": (code_behind_linear_layers, False, False),
    "staged, deep": (deep, False, True),
    "staged, before an activation": (pooling_model, False, True),
    "staged, two linear layers": (linear_layers_only, False, True),
    "staged, into the first linear layer": (convolution_between, False, True),
}


@pytest.mark.parametrize("way", WAYS)
def test_gradient_is_that_of_the_objective(way: str, rng: np.random.Generator) -> None:
    """Central differences in float64 along random directions; several chunks and waves."""
    make, fused, in_stages = WAYS[way]
    model = make(rng).astype(np.float64)
    assert staged.StagedStep.serves(model) == in_stages
    images = rng.integers(0, 256, (11, 1, 6, 4), np.uint8)
    x = to_floats(images, model.value_range).astype(np.float64)

    def objective() -> float:
        trace: Trace = {}
        code = model.encode(x, trace)
        y = model.forward(code, trace, start=model.encoder_length)
        error = np.mean((y - x) ** 2) * (0.5 if model.loss == "half_mse" else 1)
        return float(error + SPARSITY * np.mean(np.abs(code)))

    engine = Engine(model, (1, 6, 4), sparsity=SPARSITY, threads=2, fused=fused)
    engine.chunk = 2
    with pytest.MonkeyPatch.context() as patch, engine:
        patch.setattr(staged, "WAVE", 6)
        total = engine.step(images, np.arange(11))
        gradient = engine.gradients.copy()
    assert total[0] == pytest.approx(np.sum((model.forward(x) - x) ** 2), rel=1e-10)
    start = model.parameters.copy()
    for _ in range(5):
        direction = rng.standard_normal(start.shape)
        direction *= 1e-6 / np.linalg.norm(direction)
        model.parameters[...] = start + direction
        above = objective()
        model.parameters[...] = start - direction
        difference = (above - objective()) / 2e-6
        assert np.dot(gradient, direction) / 1e-6 == pytest.approx(difference, rel=1e-5, abs=1e-8)


def test_zero_has_no_gradient(rng: np.random.Generator) -> None:
    model = single_layer(1, 3, rng)
    model.parameters[...] = 0
    images = rng.integers(0, 256, (4, 1, 6, 5), np.uint8)
    for fused in (True, False):
        with Engine(model, (1, 6, 5), sparsity=1.0, fused=fused) as engine:
            engine.step(images, np.arange(4))
            assert not model.split(engine.gradients)["0.bias"].any()


@pytest.mark.parametrize("name", ["single-layer", "deep"])
def test_kernels_agree_with_numpy(backend: Backend, name: str) -> None:
    shape = (1, 6, 5) if name == "single-layer" else (3, *SIZE)
    small = {"filters": 3} if name == "single-layer" else {"code_size": 7}
    config = TrainConfig(model=name, optimizer="sgd", lr=0.05, sparsity=SPARSITY, **small)
    images = random_images(12, *shape)
    mine, gradients, parameters = losses(backend, config, images, 3, batch=5)
    reference, true_gradients, true_parameters = losses(NUMPY, config, images, 3, batch=5)
    assert_gradients_agree(config.make_model(shape), gradients, true_gradients)
    np.testing.assert_allclose(mine, reference, rtol=1e-5)
    np.testing.assert_allclose(parameters, true_parameters, atol=1e-5)


def test_codes_become_smaller_and_errors_stay_errors(rng: np.random.Generator) -> None:
    dataset = make_dataset()
    x = to_floats(dataset.validation.first(99), (-1, 1))
    sizes = {}
    for sparsity in (0.0, 1.0):
        model = single_layer(1, 3, np.random.default_rng(1))
        trainer = Trainer(model, dataset, SGD(model, lr=0.5), sparsity=sparsity)
        trainer.fit(20)
        sizes[sparsity] = float(np.abs(model.encode(x)).mean())
        error = np.mean((model.forward(x) - x) ** 2, dtype=np.float64) / 2
        assert trainer.state.history[-1].validation_half_mse == pytest.approx(error, rel=1e-5)
    assert sizes[1.0] < 0.5 * sizes[0.0]


def test_a_run_trains_with_its_sparsity(tmp_path: Path) -> None:
    config = TrainConfig(filters=2, sparsity=0.25)
    assert "sparse=0.25" in config.run_name().name
    session = RunSession(config, make_dataset(), RunDir(tmp_path))
    assert session.trainer.engine.sparsity == 0.25


@pytest.mark.parametrize("sparsity", [-1.0, np.inf, np.nan])
def test_bad_coefficients_are_refused(sparsity: float) -> None:
    with pytest.raises(InputError, match="sparsity must be at least 0"):
        Engine(single_layer(1, 2), (1, 6, 5), sparsity=sparsity)
