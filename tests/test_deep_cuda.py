"""Training, encoding, decoding and tiling through the kernels, on the emulator and on a GPU."""

from __future__ import annotations

import numpy as np
import pytest
from deep_cases import CODE, SIZE, random_images, small_deep
from training_cases import assert_gradients_agree, losses

from cae_raw.backends import NUMPY, Backend
from cae_raw.encode import Encoder
from cae_raw.models import DEEP_MODELS
from cae_raw.models.masks import centre_masks, masks_of, repeat_masks
from cae_raw.tiles import tiled_blocks
from cae_raw.training.config import TrainConfig


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", DEEP_MODELS)
def test_ten_losses_and_all_gradients_agree_with_numpy(
    backend: Backend, name: str, channels: int
) -> None:
    """The whole model made small; an odd batch, so that no last block of a kernel is full."""
    config = TrainConfig(model=name, code_size=CODE, optimizer="sgd", lr=0.05, momentum=0.9)
    images = random_images(12, channels, *SIZE) // 4  # dark ones: there is something to learn
    mine, gradients, parameters = losses(backend, config, images, 10, batch=5)
    reference, true_gradients, true_parameters = losses(NUMPY, config, images, 10, batch=5)
    assert_gradients_agree(small_deep(name, channels), gradients, true_gradients)
    np.testing.assert_allclose(mine, reference, rtol=1e-5)
    assert reference[-1] < 0.8 * reference[0], "nothing was learned"
    np.testing.assert_allclose(parameters, true_parameters, atol=1e-5)


@pytest.mark.parametrize("name", DEEP_MODELS)
def test_codes_and_images_agree_with_numpy(backend: Backend, name: str) -> None:
    here, there = small_deep(name), small_deep(name).to(backend)
    images = random_images(3, 3, *(here.image_size or ()))
    with Encoder(here) as encoder:
        codes = encoder(images)
    with Encoder(there) as encoder:
        np.testing.assert_allclose(encoder(images), codes, rtol=0, atol=1e-5)
    x = images[:1].astype(np.float32) / 255
    for mine, theirs in (
        (centre_masks(here, 3), centre_masks(there, 3)),
        (
            repeat_masks(here, masks_of(here, x), 3),
            repeat_masks(there, masks_of(there, backend.asarray(x)), 3),
        ),
    ):
        found = backend.to_numpy(there.decode(backend.asarray(codes), theirs))
        np.testing.assert_allclose(found, here.decode(codes, mine), rtol=0, atol=1e-5)


def test_tiles_agree_with_numpy(backend: Backend) -> None:
    here, there = small_deep(), small_deep().to(backend)
    (image,) = random_images(1, 3, 20, 17)
    blocks = zip(tiled_blocks(here, image), tiled_blocks(there, image), strict=True)
    for (where, _, expected), (same, _, found) in blocks:
        assert where == same
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
