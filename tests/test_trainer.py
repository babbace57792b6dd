"""The training loop, against the definition of each thing that it does."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from training_cases import make_dataset, make_images, pooling_model

import cae_raw
from cae_raw.data import Dataset, Split, epoch_order
from cae_raw.data.scaling import to_floats
from cae_raw.errors import InputError
from cae_raw.layers import Conv2d, Tanh
from cae_raw.models import Autoencoder, single_layer
from cae_raw.training.config import TrainConfig
from cae_raw.training.optimizers import SGD, Adam
from cae_raw.training.trainer import BatchDone, EpochDone, Trainer, TrainState


def half_mse(model: Autoencoder, images: np.ndarray) -> float:
    x = to_floats(images, model.value_range).astype(np.float64)
    y = model.forward(x.astype(np.float32)).astype(np.float64)
    return float(np.mean((y - x) ** 2) / 2)


def used_indices(trainer: Trainer, monkeypatch: pytest.MonkeyPatch) -> list[np.ndarray]:
    """The indices of every batch that the trainer will take."""
    used: list[np.ndarray] = []
    step = trainer.engine.step

    def spy(images: Any, indices: np.ndarray) -> Any:
        assert images is trainer.dataset.train.images
        used.append(indices.copy())
        return step(images, indices)

    monkeypatch.setattr(trainer.engine, "step", spy)
    return used


@pytest.mark.parametrize(
    ("batch_size", "sizes"), [(8, [8, 8, 8, 8, 5]), (37, [37]), (100, [37]), (36, [36, 1])]
)
def test_each_example_once_an_epoch(
    batch_size: int,
    sizes: list[int],
    dataset: Dataset,
    model: Autoencoder,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trainer = Trainer(model, dataset, Adam(model), batch_size=batch_size, seed=4)
    used = used_indices(trainer, monkeypatch)
    trainer.fit(3)
    assert [len(u) for u in used] == 3 * sizes
    assert trainer.batches_per_epoch == len(sizes)
    epochs = [np.concatenate(used[i : i + len(sizes)]) for i in range(0, len(used), len(sizes))]
    for epoch, order in enumerate(epochs):
        assert np.array_equal(np.sort(order), np.arange(37))
        assert np.array_equal(order, epoch_order(37, seed=4, epoch=epoch))
    assert len({order.tobytes() for order in epochs}) == 3


def test_seed_decides_the_order(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    orders = []
    for seed in (0, 1, 0):
        model = single_layer(1, 2, np.random.default_rng(0))
        trainer = Trainer(model, dataset, Adam(model), batch_size=8, seed=seed)
        used = used_indices(trainer, monkeypatch)
        trainer.fit(1)
        orders.append(np.concatenate(used).tolist())
    assert orders[0] == orders[2] != orders[1]


def test_follows_a_loop_written_out(dataset: Dataset) -> None:
    """Plain gradient descent on whole batches, in float64: weights, losses, validation errors."""
    rng = np.random.default_rng(6)
    theirs = single_layer(1, 2, rng).astype(np.float64)
    mine = single_layer(1, 2).astype(np.float64)
    mine.load_parameters(theirs.parameters.copy())
    trainer = Trainer(
        theirs, dataset, SGD(theirs, lr=0.5, momentum=0.5), batch_size=10, seed=3, threads=2
    )
    events = list(trainer.steps(2))
    velocity = np.zeros_like(mine.parameters)
    losses, validations = [], []
    for epoch in range(2):
        order = epoch_order(37, 3, epoch)
        for start in range(0, 37, 10):
            images = dataset.train.images[order[start : start + 10]]
            x = to_floats(images, (-1.0, 1.0)).astype(np.float64)
            trace: dict[Any, Any] = {}
            y = mine.forward(x, trace)
            losses.append(np.mean((y - x) ** 2) / 2)
            gradients: dict[str, np.ndarray] = {}
            mine.backward((y - x) / x.size, trace, gradients)
            velocity *= 0.5
            velocity += np.concatenate([gradients[n].ravel() for n in mine.names])
            mine.parameters -= 0.5 * velocity
        x = to_floats(dataset.validation.images, (-1.0, 1.0)).astype(np.float64)
        validations.append(np.mean((mine.forward(x) - x) ** 2) / 2)
    np.testing.assert_allclose(theirs.parameters, mine.parameters, rtol=1e-9, atol=1e-12)
    batches = [e for e in events if isinstance(e, BatchDone)]
    epochs = [e.record for e in events if isinstance(e, EpochDone)]
    assert [b.images for b in batches] == [10, 10, 10, 7] * 2
    np.testing.assert_allclose([b.half_mse for b in batches], losses, rtol=1e-10)
    np.testing.assert_allclose([r.validation_half_mse for r in epochs], validations, rtol=1e-10)
    for i, record in enumerate(epochs):
        mean = np.average(losses[4 * i : 4 * i + 4], weights=[10, 10, 10, 7])
        assert record.train_half_mse == pytest.approx(mean, rel=1e-10)
        assert (record.epoch, record.step, record.lr) == (i + 1, 4 * (i + 1), 0.5)
        assert record.seconds > 0 and record.images_per_second > 0


@pytest.mark.parametrize("penalty", [0.0, 10.0])
def test_validation_after_each_epoch_is_without_the_penalty(
    penalty: float, dataset: Dataset, model: Autoencoder
) -> None:
    optimizer = SGD(model, lr=0.01, l2=model.l2(penalty))
    trainer = Trainer(model, dataset, optimizer, batch_size=8)
    seen = 0
    for done in trainer.steps(3):
        if isinstance(done, EpochDone):
            direct = half_mse(model, dataset.validation.images)
            assert done.record.validation_half_mse == pytest.approx(direct, rel=1e-5)
            assert (optimizer.penalty() > 1e-3) == (penalty > 0)
            seen += 1
    assert seen == 3


def test_best_is_the_lowest_validation_error(
    dataset: Dataset, model: Autoencoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = Trainer(model, dataset, SGD(model, lr=0.01), batch_size=37)
    errors = iter([5.0, 3.0, 3.0, 4.0, 2.0])
    monkeypatch.setattr(trainer.engine, "squared_error", lambda _: next(errors))
    best = [
        (d.is_best, trainer.state.best_epoch) for d in trainer.steps(5) if isinstance(d, EpochDone)
    ]
    assert best == [(True, 1), (True, 2), (False, 2), (False, 2), (True, 5)]
    assert trainer.state.best == 2.0 / (2 * dataset.validation.images.size)


def test_learning_rate_decays(
    dataset: Dataset, model: Autoencoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    optimizer = SGD(model, lr=0.25)
    trainer = Trainer(
        model, dataset, optimizer, batch_size=20, lr_decay_epochs=2, lr_decay_factor=0.5
    )
    moved = []
    step = optimizer.step

    def spy(gradients: np.ndarray, *rest: Any) -> None:
        before = model.parameters.copy()
        step(gradients, *rest)
        i = int(np.argmax(np.abs(gradients)))
        moved.append((before[i] - model.parameters[i]) / gradients[i])

    monkeypatch.setattr(optimizer, "step", spy)
    records = trainer.fit(5)
    expected = [0.25, 0.25, 0.125, 0.125, 0.0625]
    assert [record.lr for record in records] == expected
    assert moved == pytest.approx(np.repeat(expected, 2).tolist(), rel=1e-3)


@pytest.mark.parametrize("threads", [1, 3])
def test_weights_do_not_depend_on_threads(threads: int, dataset: Dataset) -> None:
    def train(threads: int) -> bytes:
        model = single_layer(1, 2, np.random.default_rng(0))
        trainer = Trainer(model, dataset, Adam(model), batch_size=15, threads=threads)
        trainer.engine.chunk = 4
        trainer.fit(2)
        return bytes(model.parameters.tobytes())

    assert train(threads) == train(2)


def test_fit_counts_epochs_in_all(dataset: Dataset, model: Autoencoder) -> None:
    trainer = Trainer(model, dataset, Adam(model), batch_size=8)
    assert len(trainer.fit(2)) == 2
    weights = model.parameters.copy()
    assert len(trainer.fit(2)) == 2
    assert np.array_equal(weights, model.parameters)
    assert [record.epoch for record in trainer.fit(3)] == [1, 2, 3]
    assert not np.array_equal(weights, model.parameters)


@pytest.mark.parametrize("steps", range(1, 15))
def test_another_trainer_takes_over_after_any_step(steps: int, dataset: Dataset) -> None:
    def start() -> tuple[Autoencoder, Trainer]:
        model = single_layer(1, 2, np.random.default_rng(1))
        options: dict[str, Any] = {"lr_decay_epochs": 1, "lr_decay_factor": 0.7}
        return model, Trainer(model, dataset, Adam(model, lr=0.01), batch_size=10, **options)

    model, trainer = start()
    trainer.fit(3)
    first, one = start()
    events: Iterator[Any] = one.steps(3)
    for _ in range(steps):
        next(events)
    state = TrainState.from_json(one.state.to_json())
    optimizer = one.optimizer.state_to_host()
    second, other = start()
    second.load_parameters(first.parameters)
    other.optimizer.load_state(optimizer)
    other.state = state
    next(events)  # what the first one still does must not reach the second
    other.fit(3)
    assert np.array_equal(second.parameters, model.parameters)
    for slot, value in trainer.optimizer.state.items():
        assert np.array_equal(other.optimizer.state[slot], value)
    assert [r.validation_half_mse for r in other.state.history] == [
        r.validation_half_mse for r in trainer.state.history
    ]


# --- penalty ----------------------------------------------------------------------------------


@pytest.mark.parametrize("decoder", [False, True])
def test_penalty_moves_the_weights_it_is_meant_for(decoder: bool) -> None:
    config = TrainConfig(optimizer="sgd", lr=0.125, l2_penalty=0.5, l2_decoder=decoder, filters=2)
    model = config.make_model((1, 6, 5))
    model.parameters[:] = np.linspace(0.5, 1.5, len(model.parameters))  # biases too
    before = {name: value.copy() for name, value in model.params.items()}
    optimizer = config.make_optimizer(model)
    shrunk = {"0.weight", "2.weight"} if decoder else {"0.weight"}
    assert optimizer.penalty() == pytest.approx(
        sum(0.5 * float((before[name].astype(np.float64) ** 2).sum()) for name in shrunk)
    )
    optimizer.step(np.zeros_like(model.parameters))
    for name, value in model.params.items():
        factor = 1 - 2 * 0.125 * 0.5 if name in shrunk else 1
        np.testing.assert_allclose(value, factor * before[name], rtol=1e-6)


def test_penalty_reaches_training(dataset: Dataset) -> None:
    norms = []
    for penalty in (0.0, 0.1):
        config = TrainConfig(lr=0.01, l2_penalty=penalty, filters=2)
        model = config.make_model((1, 6, 5))
        Trainer(model, dataset, config.make_optimizer(model), batch_size=8).fit(3)
        norms.append(float((model.params["0.weight"] ** 2).sum()))
    assert norms[1] < 0.9 * norms[0]


# --- divergence and bad input ------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [8, 37])
def test_divergence_is_one_line_with_epoch_and_lr(
    batch_size: int, dataset: Dataset, rng: np.random.Generator
) -> None:
    """With one batch an epoch only the validation sees it; warnings are errors here."""
    model = Autoencoder(
        Conv2d(1, 2, 3, padding=1, rng=rng),
        Conv2d(2, 1, 3, padding=1, rng=rng),
        encoder_length=1,
        channels=1,
    )
    trainer = Trainer(model, dataset, SGD(model, lr=1e30), batch_size=batch_size)
    with pytest.raises(InputError, match=r"diverged: .* in epoch 1 after step 1; .*than 1e\+30$"):
        trainer.fit(2)
    assert not trainer.state.history


def test_divergence_later_names_that_epoch(
    dataset: Dataset, model: Autoencoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = Trainer(model, dataset, Adam(model, lr=0.01), batch_size=8)
    trainer.fit(2)
    model.parameters[0] = np.nan
    with pytest.raises(
        InputError, match=r"half_mse is nan in epoch 3 after step 10; .*than 0\.01$"
    ):
        trainer.fit(3)


def test_splits_and_sizes_are_checked(model: Autoencoder) -> None:
    def make(dataset: Dataset, **options: Any) -> Trainer:
        return Trainer(model, dataset, Adam(model), **options)

    with pytest.raises(InputError, match="batch_size must be at least 1, not 0"):
        make(make_dataset(), batch_size=0)
    with pytest.raises(InputError, match="the training split of tiny is empty"):
        make(make_dataset(train=0))
    with pytest.raises(InputError, match="the validation split of tiny is empty"):
        make(make_dataset(validation=0))
    with pytest.raises(InputError, match="takes 1 channels, tiny has 3"):
        make(make_dataset(shape=(3, 6, 5)))


# --- as a library ------------------------------------------------------------------------------


def test_a_custom_model_learns() -> None:
    rng = np.random.default_rng(0)
    flat = np.repeat(rng.integers(60, 196, (160, 1, 1, 1), dtype=np.uint8), 64, axis=2)
    images = flat.reshape(160, 1, 8, 8)
    dataset = Dataset("gray", *(Split(images[i : i + 80], None) for i in (0, 60, 80)))
    model = cae_raw.Autoencoder(
        cae_raw.Conv2d(1, 4, (3, 5), padding=(1, 2), rng=rng),
        Tanh(),
        cae_raw.Conv2d(4, 1, 3, padding=1, rng=rng),
        encoder_length=2,
        channels=1,
        value_range=(0.0, 1.0),
    )
    trainer = cae_raw.Trainer(model, dataset, cae_raw.Adam(model, lr=0.02), batch_size=16)
    history = trainer.fit(epochs=12)
    assert history[-1].validation_half_mse < 0.1 * history[0].validation_half_mse
    assert trainer.evaluate(dataset.test).half_mse == pytest.approx(
        half_mse(model, dataset.test.images), rel=1e-4
    )


def test_pooling_model_trains(rng: np.random.Generator) -> None:
    model = pooling_model(rng)
    dataset = make_dataset(shape=(1, 6, 4))
    optimizer = Adam(model, lr=0.01, l2=model.l2(1e-4, decoder=True))
    history = Trainer(model, dataset, optimizer, batch_size=8).fit(8)
    assert history[-1].train_half_mse < 0.8 * history[0].train_half_mse


def test_evaluate_never_mixes_up_splits(dataset: Dataset, model: Autoencoder) -> None:
    """Also where one split has the memory, and the id, that another one had before."""
    trainer = Trainer(model, dataset, Adam(model))
    for seed in range(20):
        images = make_images(5, seed=seed)
        measured = trainer.evaluate(Split(images, None)).half_mse
        assert measured == pytest.approx(half_mse(model, images), rel=1e-5)


def test_state_survives_json() -> None:
    import json

    state = TrainState(2, 3, 13, 0.1 + 0.2, 1 / 3, 1e-300, 1)
    assert TrainState.from_json(json.loads(json.dumps(state.to_json()))) == state
