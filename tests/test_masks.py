"""Decoding codes: with the masks of the encoder, of another image, and with the stated rule."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from deep_cases import CODE, SIZE, random_images, small_deep

from cae_raw.data.scaling import to_floats
from cae_raw.errors import InputError
from cae_raw.layers import Conv2d, MaxPool2d, MaxUnpool2d
from cae_raw.models import DEEP_MODELS, Autoencoder, single_layer
from cae_raw.models.masks import RULES, centre_masks, masks_of, pooling_layers, repeat_masks


def images(model: Autoencoder, n: int = 5) -> np.ndarray:
    return to_floats(random_images(n, model.channels, *SIZE), model.value_range)


def pooling_model(kernel: Any, padding: Any = 0) -> Autoencoder:
    pool = MaxPool2d(kernel, padding=padding)
    rng = np.random.default_rng(0)
    layers = Conv2d(1, 2, 1, rng=rng), pool, MaxUnpool2d(pool), Conv2d(2, 1, 1, rng=rng)
    return Autoencoder(*layers, encoder_length=2, channels=1, halo=1)


@pytest.mark.parametrize("name", DEEP_MODELS)
def test_with_the_true_masks_it_is_the_reconstruction(name: str) -> None:
    model = small_deep(name)
    x = images(model)
    trace: dict[Any, Any] = {}
    code = model.encode(x, trace)
    assert code.shape == (5, CODE)
    expected = model.forward(x)
    for masks in (trace, masks_of(model, x)):
        np.testing.assert_allclose(model.decode(code, masks), expected, rtol=0, atol=1e-6)


def test_a_model_without_unpooling_needs_no_masks() -> None:
    model = single_layer(3, 4, np.random.default_rng(0))
    x = images(model)
    decoded = model.decode(model.encode(x))
    np.testing.assert_allclose(decoded, model.forward(x), rtol=0, atol=1e-6)
    assert centre_masks(model, 5) == {} == masks_of(model, x)


def test_masks_of_one_image_serve_many_codes() -> None:
    model = small_deep()
    x = images(model)
    code, masks = model.encode(x), repeat_masks(model, masks_of(model, x[2:3]), 5)
    decoded = model.decode(code, masks)
    np.testing.assert_allclose(decoded[2], model.forward(x[2:3])[0], rtol=0, atol=1e-6)
    assert np.abs(decoded[0] - model.forward(x[:1])[0]).max() > 1e-3, "masks carry information"


@pytest.mark.parametrize("name", DEEP_MODELS)
def test_the_centre_of_a_2x2_window_is_its_lower_right_value(name: str) -> None:
    model = small_deep(name)
    masks = centre_masks(model, 3)
    assert list(masks) == pooling_layers(model) and len(masks) == 2
    for pool, (mask, shape) in masks.items():
        assert mask.dtype == np.uint8 and (mask == 3).all()
        assert mask.shape[1:] == pool.output_shape(shape[1:]) and shape[0] == 3
    true = masks_of(model, images(model, 3))
    for pool in masks:
        assert masks[pool][0].shape == true[pool][0].shape
        assert tuple(masks[pool][1]) == tuple(true[pool][1])
    assert model.decode(model.encode(images(model, 3)), masks).shape == (3, 3, *SIZE)


def test_where_centre_masks_put_the_values() -> None:
    """On paper: a 3x3 window has a middle; a window of 2x4 has (1, 2)."""
    for kernel, taps in ((3, [(1, 1), (1, 4), (4, 1), (4, 4)]), ((2, 4), [(1, 2), (3, 2), (5, 2)])):
        model = pooling_model(kernel)
        (pool,) = pooling_layers(model)
        masks = centre_masks(model, 1, (7, 7))
        mask, _ = masks[pool]
        unpool = MaxUnpool2d(pool)
        placed = unpool.forward(np.ones(mask.shape, np.float32), masks)
        assert list(zip(*np.nonzero(placed[0, 0]), strict=True)) == taps


@pytest.mark.parametrize("size", [(1, 1), (2, 5), (6, 7)])
@pytest.mark.parametrize(("kernel", "padding"), [(2, 1), (3, 1), ((4, 2), (2, 1)), (5, 2)])
def test_centre_masks_stay_on_the_map(kernel: Any, padding: Any, size: tuple[int, int]) -> None:
    """No value may be lost in the padding, at whichever side that is."""
    model = pooling_model(kernel, padding)
    (pool,) = pooling_layers(model)
    masks = centre_masks(model, 2, size)
    mask, _ = masks[pool]
    placed = MaxUnpool2d(pool).forward(np.ones(mask.shape, np.float32), masks)
    assert placed.sum() == mask.size and placed.shape[2:] == size


def test_what_is_refused() -> None:
    model = small_deep()
    code = model.encode(images(model))
    with pytest.raises(InputError, match="cannot be decoded alone"):
        model.decode(code)
    with pytest.raises(InputError):
        model.decode(code[:, :-1], centre_masks(model, 5))
    with pytest.raises(InputError):
        model.decode(code, centre_masks(model, 4))
    with pytest.raises(InputError, match="state it"):
        centre_masks(pooling_model(2), 1)


def test_every_rule_gives_masks_for_any_number_of_codes() -> None:
    model = small_deep()
    for rule in RULES.values():
        for n in (1, 3):
            assert [len(mask) for mask, _ in rule(model, n).values()] == [n, n]


def test_the_size_of_a_models_images() -> None:
    assert small_deep().image_size == SIZE
    assert single_layer(1, 2).image_size is None
