"""A trained model's forward passes: the layers' on the CPU but for one, fused on a device."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import inf, nan
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_runner import Here, picture
from deep_cases import random_images, save_model, small_deep
from numpy.testing import assert_allclose, assert_array_equal

from cae_raw.backends import Backend
from cae_raw.backends.cuda_backend import CudaBackend, Kernel
from cae_raw.classify import Classifier
from cae_raw.classify.engine import ClassifierEngine
from cae_raw.classify.examples import Labelled
from cae_raw.classify.training import _images
from cae_raw.data.scaling import to_floats
from cae_raw.encode import Encoder
from cae_raw.errors import InputError
from cae_raw.models import Autoencoder, single_layer
from cae_raw.models.inference import decode, encode, reconstruct
from cae_raw.models.masks import masks_of
from cae_raw.parallel import Parallel
from cae_raw.pictures.view import View
from cae_raw.reconstruct import reconstruct_image, reconstructed_blocks
from cae_raw.score import Scorer
from cae_raw.training.engine import Engine

SINGLE = ["single_layer_forward", "single_layer_reduce"]
LAYERS = ["gather", "conv2d_forward", "conv2d_forward"]  # tanh is computed with a convolution
DEEP_ENCODER = ["gather", "conv2d_forward", *2 * ["conv2d_pool_forward"], "linear_forward"]
DEEP_DECODER = ["linear_forward", *2 * ["unpool_conv2d_forward"], "conv2d_forward"]
# Whole, encoder, decoder: the kernels of each, in their order.
KERNELS = {
    "gray": (SINGLE, SINGLE, ["conv2d_forward"]),
    "colours": (SINGLE, SINGLE, ["conv2d_forward"]),
    "linear": (SINGLE, SINGLE, ["conv2d_forward"]),
    "four channels": (LAYERS, LAYERS[:-1], ["conv2d_forward"]),
    "many filters": (LAYERS, LAYERS[:-1], ["conv2d_forward"]),
    "deep": (DEEP_ENCODER + DEEP_DECODER, DEEP_ENCODER, DEEP_DECODER),
    "deep-same": (DEEP_ENCODER + DEEP_DECODER, DEEP_ENCODER, DEEP_DECODER),
}
FUSED = {"single_layer_forward", "conv2d_pool_forward", "unpool_conv2d_forward"}
TOLERANCE = {"rtol": 0, "atol": 1e-5}


def make(kind: str) -> Autoencoder:
    rng = np.random.default_rng(4)
    models: dict[str, Callable[[], Autoencoder]] = {
        "gray": lambda: single_layer(1, 3, rng, value_range=(-0.5, 0.5)),
        "colours": lambda: single_layer(3, 4, rng),
        "linear": lambda: single_layer(
            3, 4, rng, value_range=(0.0, 4.0), decoder_activation="none"
        ),
        "four channels": lambda: single_layer(4, 3, rng),  # and 33 filters: no kernel is fused
        "many filters": lambda: single_layer(1, 33, rng),
    }
    return models[kind]() if kind in models else small_deep(kind)


def images_for(model: Autoencoder, n: int, size: tuple[int, int] = (7, 9)) -> np.ndarray:
    return random_images(n, model.channels, *(model.image_size or size))


@contextmanager
def launches(backend: Backend) -> Iterator[list[str]]:
    """The entry points of the kernels that are launched meanwhile."""
    assert isinstance(backend, CudaBackend)
    launch, found = backend.launch, list[str]()

    def recorded(kernel: Kernel, *args: Any, **options: Any) -> None:
        found.append(kernel.entry)
        launch(kernel, *args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backend, "launch", recorded)
        yield found


# --- a batch --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KERNELS)
def test_on_the_cpu_it_is_the_layers(kind: str) -> None:
    model = make(kind)
    images = images_for(model, 5)
    x = to_floats(images, model.value_range)
    assert_array_equal(reconstruct(model, images, fused=False), model.forward(x), strict=True)
    code, masks = encode(model, images), masks_of(model, x)
    assert_array_equal(code, model.encode(x), strict=True)
    assert_array_equal(decode(model, code, masks), model.decode(code, masks), strict=True)
    model.astype(np.float64)
    y, expected = reconstruct(model, images), model.forward(x.astype(np.float64))
    assert_allclose(y, expected, rtol=0, atol=1e-14, strict=True)


@pytest.mark.parametrize("kind", KERNELS)
@pytest.mark.parametrize("size", [(1, 1), (5, 7), (150, 90)])
def test_on_the_cpu_the_fused_step_reconstructs(
    kind: str, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a model has one; whole images, and bands of rows of larger ones."""
    model = make(kind)
    if model.fused is None:
        pytest.skip("this model has no fused step on the CPU")
    images = np.random.default_rng(2).integers(0, 256, (3, model.channels, *size), dtype=np.uint8)
    expected = model.forward(to_floats(images, model.value_range))
    assert_allclose(reconstruct(model, images), expected, rtol=0, atol=2e-6, strict=True)
    assert reconstruct(model, images[:0]).shape == (0, *images.shape[1:])

    def layers(*_: Any, **__: Any) -> None:
        raise AssertionError("went layer by layer")

    monkeypatch.setattr(model, "forward", layers)
    reconstruct(model, images)


@pytest.mark.parametrize("n", [0, 1, 5])
@pytest.mark.parametrize("kind", KERNELS)
def test_on_a_device_it_is_the_fused_kernels(backend: Backend, kind: str, n: int) -> None:
    here, there = make(kind), make(kind).to(backend)
    images = images_for(here, n)
    x = to_floats(images, here.value_range)
    codes, masks = here.encode(x), masks_of(here, x)
    placed = masks_of(there, backend.asarray(x))
    outputs = here.decode(codes, masks)
    calls: list[tuple[Callable[[], np.ndarray], np.ndarray]] = [
        (lambda: reconstruct(there, images), here.forward(x)),
        (lambda: encode(there, images), codes),
        (lambda: decode(there, codes, placed), outputs),
    ]
    for (function, expected), kernels in zip(calls, KERNELS[kind], strict=True):
        with launches(backend) as found:
            y = function()
        assert found == kernels
        assert (y.shape, y.dtype) == (expected.shape, np.float32)
        assert_allclose(y, expected, **TOLERANCE)
    if codes.ndim == 4:
        means = encode(there, images, pooled=True)
        assert means.dtype == np.float32
        assert_allclose(means, codes.mean(axis=(2, 3)), **TOLERANCE)


@pytest.mark.parametrize("kind", ["colours", "deep"])
def test_the_layers_one_by_one_on_request(backend: Backend, kind: str) -> None:
    here, there = make(kind), make(kind).to(backend)
    images = images_for(here, 3)
    x = to_floats(images, here.value_range)
    masks = masks_of(there, backend.asarray(x))
    with launches(backend) as found:
        assert_allclose(reconstruct(there, images, fused=False), here.forward(x), **TOLERANCE)
        codes = encode(there, images, fused=False)
        assert_allclose(decode(there, codes, masks, fused=False), here.forward(x), **TOLERANCE)
    assert found and FUSED.isdisjoint(found)
    with launches(backend) as found, Engine(there, images.shape[1:], fused=False) as engine:
        engine.reconstruct(images)
    assert found and FUSED.isdisjoint(found)


@pytest.mark.parametrize("kind", ["colours", "four channels", "deep"])
def test_images_are_uploaded_as_bytes(
    backend: Backend, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make(kind).to(backend)
    asarray, dtypes = backend.asarray, set[str]()

    def recorded(host: Any) -> Any:
        dtypes.add(np.asarray(host).dtype.name)
        return asarray(host)

    monkeypatch.setattr(backend, "asarray", recorded)
    images = images_for(model, 2)
    reconstruct(model, images)
    encode(model, images)
    assert dtypes == {"uint8", "int64"}


@pytest.mark.parametrize("kind", ["colours", "deep"])
def test_images_that_do_not_fit(backend: Backend, kind: str) -> None:
    model = make(kind).to(backend)
    for function in (reconstruct, encode):
        with pytest.raises(InputError):
            function(model, random_images(2, 1, 14, 12))
    with pytest.raises(InputError):
        decode(model, np.zeros((2, 5), np.float32))


def test_what_is_no_image_and_has_no_maps() -> None:
    model = make("deep")
    images = images_for(model, 2)
    for function in (reconstruct, encode):
        with pytest.raises(InputError, match="uint8"):
            function(model, images / np.float32(255))
    with pytest.raises(InputError, match="no maps"):
        encode(model, images, pooled=True)
    maps = make("colours")
    assert encode(maps, images_for(maps, 2), pooled=True).dtype == np.float32


# --- what the commands are made of ----------------------------------------------------------


@pytest.mark.parametrize("kind", ["colours", "linear", "deep"])
def test_codes_scores_and_pictures(
    backend: Backend, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cae_raw import encode as encode_module
    from cae_raw.score import scorer as scorer_module

    monkeypatch.setattr(encode_module, "LARGEST_CHUNK", 2)
    monkeypatch.setattr(scorer_module, "LARGEST_CHUNK", 2)
    here, there = make(kind), make(kind).to(backend)
    images, (whole, encoder, _) = images_for(here, 5), KERNELS[kind]

    def both(function: Callable[[Autoencoder], Any], kernels: list[str], **tolerance: Any) -> None:
        with launches(backend) as found:
            y = function(there)
        assert found == kernels
        assert_allclose(y, function(here), **(tolerance or TOLERANCE))

    def codes(model: Autoencoder, pooled: bool = False) -> np.ndarray:
        with Encoder(model, pooled=pooled) as encoder:
            return encoder(images)

    def errors(model: Autoencoder) -> np.ndarray:
        with Scorer(model) as scorer:
            return scorer(images)

    def engine(model: Autoencoder) -> np.ndarray:
        with Engine(model, images.shape[1:]) as engine:
            return engine.reconstruct(images)

    both(codes, 3 * encoder)
    if here.image_size is None:
        both(lambda model: codes(model, True), 3 * [*encoder, "conv2d_backward_bias"])
    both(errors, 3 * whole, rtol=1e-5)
    both(lambda model: View(model, images).y, whole)
    both(engine, whole)
    both(lambda model: reconstruct_image(model, images[0]).figures.mse, whole, rtol=1e-5)


def test_blocks_and_tiles(backend: Backend) -> None:
    """A large image: blocks with the surroundings they need; tiles where a model has one size."""
    (image,) = random_images(1, 3, 67, 41)
    here, there = make("colours"), make("colours").to(backend)
    with launches(backend) as found:
        blocks = list(reconstructed_blocks(there, image, block_bytes=1))
    assert found == len(blocks) * SINGLE and len(blocks) == 6
    expected = reconstructed_blocks(here, image, block_bytes=1)
    for (where, _, y), (same, _, reference) in zip(blocks, expected, strict=True):
        assert where == same
        assert_allclose(y, reference, **TOLERANCE)
    here, there = make("deep"), make("deep").to(backend)
    image = image[:, :20, :20]
    with launches(backend) as found:
        tiled = reconstruct_image(there, image, tile=True)
    assert found == 2 * KERNELS["deep"][0], "a batch of tiles for each row of them"
    assert tiled.figures.mse == pytest.approx(
        reconstruct_image(here, image, tile=True).figures.mse, rel=1e-5
    )


@pytest.mark.parametrize("kind", ["colours", "deep"])
def test_features_of_a_classifier(backend: Backend, kind: str) -> None:
    found = {}
    for place in ("cpu", "device"):
        model = make(kind)
        images = images_for(model, 3, (8, 8))
        given = Labelled(images, np.arange(3))
        classifier = Classifier(model, images.shape[1:], ("a", "b", "c"), 5)
        if place == "device":
            classifier.to(backend)
        with Parallel(classifier.backend) as workers, launches(backend) as kernels:
            engine = ClassifierEngine(classifier, images.shape[1:], workers)
            load = _images(classifier, given)
            found[place] = engine.outputs(load, 3, classifier.head)
    # Windows of 2x2 side by side are pooled with the convolution: one map less in memory.
    pooled = ["gather", "conv2d_pool_forward"]
    assert kernels == (KERNELS["deep"][1] if kind == "deep" else pooled)
    assert_allclose(found["device"], found["cpu"], **TOLERANCE)


@pytest.mark.parametrize("kind", ["gray", "deep"])
def test_a_diverged_model(backend: Backend, kind: str) -> None:
    """It is reported, not warned about: warnings are errors here."""
    model = make(kind)
    model.load_parameters(np.full_like(model.parameters, nan))
    model.to(backend)
    images = images_for(model, 2)
    with Encoder(model) as encoder, Scorer(model) as scorer:
        assert np.isnan(encoder(images)).all()
        assert scorer(images).tolist() == [inf, inf]
        assert scorer(images[:0]).shape == (0,)
    made = reconstruct_image(model, images[0])
    assert made.not_finite == made.image.size


def test_encode_and_decode_on_a_device(backend: Backend, here: Here) -> None:
    save_model(Path("deep.safetensors"), small_deep())
    for i in range(3):
        picture(Path(f"photos/{i}.png"), 14, 12, 3, seed=i)
    deep = ("--checkpoint", "deep.safetensors", "--device")
    for device in ("cpu", "cuda"):
        with launches(backend) as encoded:
            made = here("encode", "photos", "--out", f"{device}.npy", *deep, device)
        assert made.status == 0, made.err
        with launches(backend) as decoded:
            masks = ("--masks-from", "photos/0.png", "--out", device)
            made = here("decode", f"{device}.npy", *masks, *deep, device)
        assert made.status == 0, made.err
    assert encoded == DEEP_ENCODER
    assert decoded == DEEP_ENCODER + DEEP_DECODER
    assert_allclose(np.load("cuda.npy"), np.load("cpu.npy"), **TOLERANCE)
    from PIL import Image

    for path in sorted(Path("cpu").iterdir()):
        pair = (np.asarray(Image.open(where), int) for where in (path, Path("cuda") / path.name))
        assert np.abs(np.subtract(*pair)).max() <= 1
