"""The classifier on codes: its layers, its gradients, its training, what it gets right."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from training_cases import make_images, pooling_model

from cae_raw.backends import Backend
from cae_raw.classify import (
    Classifier,
    Labelled,
    Results,
    TrainingOptions,
    labelled_splits,
    load_classifier,
    save_classifier,
    train_classifier,
)
from cae_raw.classify import classifier as classifier_module
from cae_raw.classify.engine import ClassifierEngine
from cae_raw.classify.examples import Splits
from cae_raw.classify.training import EpochRecord, Trained, _images, _moments
from cae_raw.data import Dataset, Split
from cae_raw.errors import InputError
from cae_raw.layers import CrossEntropyLoss, MaxPool2d, Trace
from cae_raw.models import Autoencoder, single_layer
from cae_raw.parallel import Parallel
from cae_raw.pictures.confusion import confusion_png

CLASSES = ("dark", "bright", "stripes")


def examples(n: int, seed: int, shape: tuple[int, int, int] = (1, 6, 5)) -> Labelled:
    """Images that a linear classifier on any sensible features tells apart."""
    images = make_images(n, shape, seed) // 3
    labels = np.arange(n, dtype=np.int64) % 3
    images[labels == 1] += 150
    images[labels == 2, :, ::2] += 150
    return Labelled(images, labels)


def splits(train: int = 61, shape: tuple[int, int, int] = (1, 6, 5)) -> Splits:
    parts = (examples(n, seed, shape) for seed, n in enumerate((train, 31, 43)))
    return Splits(*parts, CLASSES)


def make_classifier(grid: int = 4, shape: tuple[int, int, int] = (1, 6, 5)) -> Classifier:
    return Classifier(single_layer(1, 4, np.random.default_rng(0)), shape, CLASSES, grid)


# --- the layers -----------------------------------------------------------------------------


@pytest.mark.parametrize("grid", [1, 2, 3, 4, 7, 100])
@pytest.mark.parametrize("size", [(6, 5), (28, 28), (32, 32), (1, 9), (17, 70)])
def test_pooling_sees_every_value_and_makes_no_more_than_was_asked(
    grid: int, size: tuple[int, int]
) -> None:
    classifier = make_classifier(grid, (1, *size))
    shapes = classifier.layer_shapes((1, *size))
    before, after = shapes[2], shapes[-3]  # the code; what is flattened
    assert before == (4, size[0] + 2, size[1] + 2)
    for length, made in zip(before[1:], after[1:], strict=True):
        least = -(-length // classifier_module.LARGEST_WINDOW)
        assert made <= max(min(grid, length), least)
    assert classifier.features == np.prod(after)
    code = np.full((1, *before), -1.0, np.float32)
    for row in range(before[1]):
        code[...] = -1
        code[:, :, row, row % before[2]] = 1
        assert classifier.forward(code, start=2, until=len(shapes) - 3).max() == 1


def test_without_pooling_and_with_a_vector_as_code(rng: np.random.Generator) -> None:
    assert make_classifier(0).features == 4 * 8 * 7
    vector = Classifier(pooling_model(rng), (1, 6, 4), CLASSES)
    assert vector.features == 7 and vector.head == len(vector.stack) - 1
    assert [type(layer) for layer in vector.stack].count(MaxPool2d) == 1, "the encoder's own"


def test_one_class_is_nothing_to_classify(model: Autoencoder) -> None:
    with pytest.raises(InputError, match="at least two classes, not 1"):
        Classifier(model, (1, 6, 5), ("all",))


# --- gradients ------------------------------------------------------------------------------


def randomised(classifier: Classifier, seed: int = 1) -> Classifier:
    values = np.random.default_rng(seed).standard_normal(classifier.parameters.shape) / 4
    classifier.load_parameters(values.astype(np.float32))
    return classifier


def test_chunks_give_the_gradient_of_the_batch_whatever_the_threads() -> None:
    given = examples(75, 0)
    indices = np.random.default_rng(2).permutation(75)[:70]
    bits = set()
    for threads in (1, 2, 3):
        classifier = randomised(make_classifier())
        with Parallel(classifier.backend, threads) as workers:
            engine = ClassifierEngine(classifier, (1, 6, 5), workers)
            loss = engine.step(_images(classifier, given), given.labels, indices)
            outputs = engine.outputs(_images(classifier, given), 75)
        bits.add((loss, engine.gradients.tobytes(), outputs.tobytes()))
    assert len(bits) == 1
    assert engine.chunk < 70, "it takes several chunks"
    trace: Trace = {}
    logits = classifier.forward(_images(classifier, given)(indices), trace)
    value, dlogits = CrossEntropyLoss()(logits, given.labels[indices])
    flat = np.full_like(classifier.parameters, np.nan)
    classifier.backward(dlogits, trace, classifier.split(flat), need_dx=False)
    assert loss == pytest.approx(value, rel=1e-6)
    np.testing.assert_allclose(engine.gradients, flat, rtol=0, atol=1e-6 * np.abs(flat).max())


def test_the_device_makes_the_same_gradient(backend: Backend) -> None:
    given, found = examples(9, 0), []
    for where in (None, backend):
        classifier = randomised(make_classifier())
        if where is not None:
            classifier.to(where)
        with Parallel(classifier.backend) as workers:
            engine = ClassifierEngine(classifier, (1, 6, 5), workers)
            loss = engine.step(_images(classifier, given), given.labels, np.arange(9))
        found.append((loss, classifier.backend.to_numpy(engine.gradients)))
    (loss, gradients), (device_loss, device_gradients) = found
    assert device_loss == pytest.approx(loss, rel=1e-5)
    scale = np.abs(gradients).max()
    np.testing.assert_allclose(device_gradients, gradients, rtol=0, atol=1e-5 * scale)


def test_training_on_the_device_ends_where_it_ends_on_the_cpu(backend: Backend) -> None:
    options = TrainingOptions(epochs=2, fine_tune_epochs=1, batch_size=16, lr=0.05)
    found = []
    for where in (None, backend):
        classifier = make_classifier()
        if where is not None:
            classifier.to(where)
        trained = train_classifier(classifier, splits(33), options)
        found.append([record.loss for record in trained.history])
    np.testing.assert_allclose(found[1], found[0], rtol=1e-3)


# --- training -------------------------------------------------------------------------------

OPTIONS = TrainingOptions(epochs=6, lr=0.03, batch_size=16)


def test_what_can_be_told_apart_is_told_apart() -> None:
    heard: list[EpochRecord] = []
    trained = train_classifier(make_classifier(), splits(), OPTIONS, on_epoch=heard.append)
    assert trained.history == heard and len(heard) == 6
    assert heard[-1].loss < 0.3 * heard[0].loss
    assert trained.test.accuracy > 0.9
    assert trained.best in heard
    assert not any(record.better_than(trained.best) for record in heard)
    assert trained.validation.accuracy == trained.best.validation_accuracy


def test_threads_change_nothing_and_seeds_do() -> None:
    def parameters(threads: int, seed: int) -> bytes:
        classifier = make_classifier()
        options = replace(OPTIONS, epochs=2, fine_tune_epochs=1, seed=seed)
        train_classifier(classifier, splits(), options, threads=threads)
        return classifier.parameters.tobytes()

    assert parameters(1, 0) == parameters(3, 0) != parameters(1, 1)


def test_the_encoder_moves_only_when_fine_tuned() -> None:
    before = make_classifier().params["0.weight"].copy()
    for tuning in (0, 2):
        classifier = make_classifier()
        options = replace(OPTIONS, epochs=1, lr=1e-5, fine_tune_epochs=tuning, fine_tune_lr=0.03)
        trained = train_classifier(classifier, splits(), options)
        kept = trained.best.stage == "linear layer"
        assert np.array_equal(classifier.params["0.weight"], before) == kept
        stages = [record.stage for record in trained.history]
        assert stages == ["linear layer"] + ["all layers"] * tuning
    assert not kept, "the linear layer alone was hardly trained"


def test_fine_tuning_that_only_spoils_is_not_kept() -> None:
    options = replace(OPTIONS, fine_tune_epochs=1, fine_tune_lr=3e3, batch_size=61)
    trained = train_classifier(make_classifier(), splits(), options)
    assert trained.best.better_than(trained.history[-1])
    assert trained.best.stage == "linear layer"
    assert trained.validation.accuracy == trained.best.validation_accuracy


def test_a_penalty_makes_weights_smaller() -> None:
    norms = []
    for penalty in (0.0, 0.1):
        classifier = make_classifier()
        train_classifier(classifier, splits(), replace(OPTIONS, l2_penalty=penalty))
        norms.append(np.linalg.norm(classifier.linear.weight))
    assert norms[1] < 0.7 * norms[0]


def test_a_loss_that_is_no_number_is_an_error() -> None:
    classifier = make_classifier()
    classifier.load_parameters(np.full_like(classifier.parameters, np.nan))
    with pytest.raises(InputError, match="codes that are not finite"):
        train_classifier(classifier, splits(), OPTIONS)
    with pytest.raises(InputError, match=r"training diverged.*smaller --lr than 1e\+30"):
        train_classifier(make_classifier(), splits(), replace(OPTIONS, lr=1e30, l2_penalty=1e30))


def test_features_beyond_memory_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cae_raw.classify.training.LARGEST", 1000)
    with pytest.raises(InputError, match=r"64 features of 92 images .*--limit-train or"):
        train_classifier(make_classifier(), splits(), OPTIONS)


def test_moments_and_a_feature_that_never_changes() -> None:
    rng = np.random.default_rng(0)
    features = (3 + 5 * rng.standard_normal((9000, 3))).astype(np.float32)
    features[:, 1] = 2
    mean, deviation = _moments(features)
    np.testing.assert_allclose(mean, features.mean(axis=0, dtype=np.float64), rtol=1e-6)
    floor = 0.01 * features.var(axis=0, dtype=np.float64).mean()
    expected = np.sqrt(features.var(axis=0, dtype=np.float64) + floor)
    np.testing.assert_allclose(deviation, expected, rtol=1e-6)
    assert deviation[1] > 0
    assert _moments(np.ones((4, 2), np.float32))[1].tolist() == [1, 1]


# --- examples -------------------------------------------------------------------------------


def dataset(
    train: int = 30, shared: bool = False, labels: bool = True, classes: int = 3
) -> Dataset:
    def split(n: int, seed: int) -> Split:
        marks = np.arange(n, dtype=np.int64) % classes
        return Split(make_images(n, (1, 6, 5), seed), marks if labels else None)

    test = split(7, 1)
    return Dataset("tiny", split(train, 0), test if shared else split(5, 2), test)


def read(data: Dataset, model: Autoencoder, limit: int | None = None) -> Splits:
    return labelled_splits(data, model, limit, lambda *_: None)


def test_own_validation_images_are_used(model: Autoencoder) -> None:
    found = read(dataset(), model)
    assert [len(s) for s in (found.train, found.validation, found.test)] == [30, 5, 7]
    assert found.classes == ("0", "1", "2") and found.notes == ()
    assert np.array_equal(found.train.images, dataset().train.images)


def test_the_epoch_is_not_chosen_by_the_images_that_are_reported(model: Autoencoder) -> None:
    data = dataset(shared=True)
    found = read(data, model)
    assert [len(s) for s in (found.train, found.validation, found.test)] == [27, 3, 7]
    assert np.array_equal(found.validation.images, data.train.images[27:])
    assert np.array_equal(found.test.images, data.test.images)
    assert "the last 3 training images choose" in found.notes[0]
    with pytest.raises(InputError, match="too few to hold some back"):
        read(dataset(1, shared=True), model)


def test_images_are_made_to_fit(rng: np.random.Generator) -> None:
    model = pooling_model(rng)
    model.options = {"size": [6, 4]}
    found = read(dataset(), model, limit=9)
    assert found.train.images.shape == (9, 1, 6, 4)
    assert "resized from 5x6 to 4x6" in found.notes[0]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (dataset(labels=False), "the images of tiny have no labels"),
        (dataset(classes=1), "all training images of tiny have one label"),
        (dataset(0), "the train split of tiny is empty"),
    ],
)
def test_what_cannot_be_classified(data: Dataset, words: str, model: Autoencoder) -> None:
    with pytest.raises(InputError, match=words):
        read(data, model)


def test_labels_that_are_no_class_numbers(model: Autoencoder) -> None:
    for wrong in (-1, 4096):
        data = dataset()
        assert isinstance(data.test, Split) and data.test.labels is not None
        data.test.labels[3] = wrong
        with pytest.raises(InputError, match=f"tiny has labels from .*{wrong}"):
            read(data, model)


# --- results --------------------------------------------------------------------------------


def test_results_counted_by_hand() -> None:
    logits = np.array([[2, 1, 0], [0, 3, 3], [1, 0, 0], [0, 0, 9], [5, 6, 7]], np.float32)
    found = Results.of(logits, np.array([0, 1, 1, 2, 0]), ("a", "b", "c,"))
    assert found.confusion.tolist() == [[1, 0, 1], [1, 1, 0], [0, 0, 1]]
    assert found.accuracy == 3 / 5 and found.images == 5
    assert found.per_class == [0.5, 0.5, 1.0]
    assert found.worst_mistakes(5) == [("a", "c,", 1), ("b", "a", 1)]
    assert found.to_csv().splitlines() == [
        'true class,a,b,"c,",accuracy',
        "a,1,0,1,0.500000",
        "b,1,1,0,0.500000",
        '"c,",0,0,1,1.000000',
    ]


def test_a_class_without_images_has_no_accuracy() -> None:
    found = Results.of(np.eye(2, 3), np.array([0, 1]), ("a", "b", "c"))
    assert found.per_class == [1.0, 1.0, None]
    assert found.to_csv().splitlines()[-1] == "c,0,0,0,"


@pytest.mark.parametrize("k", [2, 10, 21, 61])
def test_pictures_of_any_number_of_classes(k: int) -> None:
    names = [f"class $ number {i} \N{SNOWMAN} \N{CJK UNIFIED IDEOGRAPH-732B}" for i in range(k)]
    confusion = np.random.default_rng(0).integers(0, 50, (k, k))
    confusion[0] = 0
    picture = confusion_png(confusion, names, "$ title")
    assert picture.startswith(b"\x89PNG") and len(picture) > 5000
    assert picture == confusion_png(confusion, names, "$ title"), "the same every time"


# --- the folder -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained() -> tuple[Classifier, Trained]:
    classifier = make_classifier()
    return classifier, train_classifier(classifier, splits(), replace(OPTIONS, epochs=1))


def test_a_saved_classifier_comes_back(trained: tuple[Classifier, Trained], tmp_path: Path) -> None:
    classifier, outcome = trained
    save_classifier(tmp_path, classifier, {"seed": 0}, outcome)
    assert {p.name for p in tmp_path.iterdir()} == {
        "classifier.safetensors", "results.json", "confusion.csv", "confusion.png",
    }  # fmt: skip
    again = load_classifier(tmp_path)
    assert again.classes == CLASSES and again.image_shape == (1, 6, 5)
    given = splits().test
    logits = again.forward(_images(again, given)(np.arange(len(given))))
    assert Results.of(logits, given.labels, CLASSES).accuracy == outcome.test.accuracy


def test_other_files_are_refused(trained: tuple[Classifier, Trained], tmp_path: Path) -> None:
    save_classifier(tmp_path, trained[0], {}, trained[1])
    path = tmp_path / "classifier.safetensors"
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    with pytest.raises(InputError, match="damaged"):
        load_classifier(path)
    with pytest.raises(InputError, match="cannot read"):
        load_classifier(tmp_path / "none")
    from cae_raw.training.loading import pretrained

    packaged = pretrained(1).path
    assert packaged is not None
    with pytest.raises(InputError, match="holds no classifier"):
        load_classifier(packaged)
