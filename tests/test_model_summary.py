"""The table of a model's layers: what it counts agrees with what really happens."""

from __future__ import annotations

import json
import re
from math import prod
from typing import Any

import numpy as np
import pytest
from cli_runner import Here

from cae_raw.errors import InputError
from cae_raw.layers import Conv2d, Linear, MaxPool2d, MaxUnpool2d, Pad2d, ReLU, Tanh
from cae_raw.models import DEEP_MODELS, MODELS, Autoencoder, build, deep, single_layer
from cae_raw.models.deep import check_size
from cae_raw.models.summary import Summary, summarize


def padded(rng: np.random.Generator) -> Autoencoder:
    """Layers before the first weights, an activation behind a pooling layer, pooling twice."""
    first, second = MaxPool2d(2), MaxPool2d(2)
    layers = [Pad2d(2), Conv2d(3, 4, 3, rng=rng), first, Tanh(), second, MaxUnpool2d(second)]
    layers += [MaxUnpool2d(first), Conv2d(4, 3, 3, rng=rng)]
    return Autoencoder(*layers, encoder_length=5, channels=3)


CASES = [
    ("single-layer", (3, 9, 7)),
    ("deep", (3, 15, 13)),
    ("deep-same", (1, 9, 6)),
    ("padded", (3, 10, 14)),
]


def make(name: str, shape: tuple[int, int, int]) -> Autoencoder:
    rng = np.random.default_rng(0)
    if name == "padded":
        return padded(rng)
    options: dict[str, Any] = {"channels": shape[0]}
    if name != "single-layer":
        options |= {"size": shape[1:], "code_size": 5}
    return build(name, rng, **options)


def test_every_model_is_covered() -> None:
    assert set(MODELS) <= {name for name, _ in CASES}


def test_the_totals_of_the_two_articles_models() -> None:
    found = summarize(deep(rng=np.random.default_rng(0)), (3, 64, 64))
    assert found.parameters == 14_766_515
    assert round(found.flops / 1e6, 2) == 62.96
    assert found.code_shape == (1568,)
    small = summarize(single_layer(rng=np.random.default_rng(0)), (3, 32, 32))
    assert small.parameters == 1_763
    assert small.code_shape == (32, 34, 34)


@pytest.mark.parametrize(("name", "shape"), CASES)
def test_bytes_are_what_a_forward_pass_keeps(name: str, shape: tuple[int, int, int]) -> None:
    model = make(name, shape)
    x = np.random.default_rng(1).random((1, *shape), dtype=np.float32)
    trace: dict[Any, Any] = {}
    kept = [x, model.forward(x, trace)]
    for entry in trace.values():
        parts = entry if isinstance(entry, tuple) else (entry,)
        kept += [part for part in parts if isinstance(part, np.ndarray)]
    places = {array.__array_interface__["data"][0]: array.nbytes for array in kept}
    assert summarize(model, shape).bytes == sum(places.values())


@pytest.mark.parametrize(("name", "shape"), CASES)
def test_rows_and_totals(name: str, shape: tuple[int, int, int]) -> None:
    model = make(name, shape)
    found = summarize(model, shape)
    x = np.zeros((1, *shape), np.float32)
    assert found.parameters == model.parameters.size
    assert found.flops == model.flops(shape) == sum(row.flops for row in found.layers)
    for row in found.layers:
        assert model.forward(x, until=row.index + 1).shape[1:] == row.output_shape
    assert found.code_shape == model.encode(x).shape[1:]


def test_training_flops_of_layers_with_weights() -> None:
    """By hand: each product with the weights once per pass, and no gradient of the image."""
    found = summarize(make("deep", (3, 15, 13)), (3, 15, 13))
    first, last = found.layers[0], found.layers[-1]
    pixels = 13 * 11
    assert first.flops == 2 * 12 * 3 * 9 * pixels
    assert first.training_flops == 2 * first.flops
    assert last.training_flops == 3 * last.flops == 3 * 2 * 3 * 12 * 9 * 15 * 13
    linear = next(row for row in found.layers if row.layer.startswith(Linear.__name__))
    assert linear.training_flops == 3 * 2 * prod(found.code_shape) * 24 * 1 * 1
    relu = next(row for row in found.layers if row.layer.startswith(ReLU.__name__))
    assert relu.training_flops == 2 * relu.flops == 2 * 12 * pixels
    assert summarize(make("padded", (3, 6, 6)), (3, 6, 6)).layers[0].training_flops == 0


def test_the_table_is_aligned_and_says_it_all() -> None:
    found = summarize(make("deep", (3, 15, 13)), (3, 15, 13))
    title, heading, image, *rows, total, last = found.lines()
    assert title == "deep for images of 3x15x13 in [0, 1], loss mse"
    assert len(rows) == len(found.layers)
    for line, row in zip(rows, found.layers, strict=True):
        assert line.split()[0] == str(row.index)
        assert line[heading.index("output") :].startswith("x".join(map(str, row.output_shape)))
        for name in ("parameters", "FLOPs", "bytes"):
            end = heading.index(name) + len(name)
            value = {"parameters": row.parameters, "FLOPs": row.flops, "bytes": row.bytes}[name]
            assert line[:end].endswith(f"{value:,}" if value else " ") or not line[end - 1 :]
    assert sum(" = code" in line for line in rows) == 1
    assert f"{found.parameters:,}" in total and total.endswith(f"{found.bytes:,}")
    assert image.split()[:2] == ["image", "3x15x13"]
    assert "MFLOP forward" in last
    assert "Conv2d(3, 12, kernel_size=3) " in rows[0]


def test_a_square_linear_layer_keeps_both_numbers() -> None:
    model = build("deep", channels=1, size=12, code_size=24)
    assert any("Linear(24, 24)" in line for line in summarize(model, (1, 12, 12)).lines())


def test_an_image_that_does_not_fit() -> None:
    with pytest.raises(InputError):
        summarize(make("deep", (3, 15, 13)), (3, 16, 13))


@pytest.mark.parametrize("name", DEEP_MODELS)
@pytest.mark.parametrize(
    ("height", "width", "code_size"),
    [(3, 100, 10), (3, 3, 1), (2000, 1500, 1568), (64, 64, 65536), (300, 2000, 9000)],
)
def test_the_nearest_size_is_one_that_fits(
    name: str, height: int, width: int, code_size: int
) -> None:
    """And the next one towards what was asked for is not, nor is a longer code."""
    with pytest.raises(InputError) as refused:
        check_size(name, height, width, code_size)
    message = str(refused.value)
    assert "\n" not in message
    *_, (h, w) = ((int(h), int(w)) for h, w in re.findall(r"(\d+)x(\d+)", message))
    check_size(name, h, w, code_size)
    larger = (h, w) if h >= height and w >= width else (h + h // w + 4, w + w // h + 4)
    if larger != (h, w):
        with pytest.raises(InputError, match="weights"):
            check_size(name, *larger, code_size)
    for code in map(int, re.findall(r"use a code of (\d+)", message)):
        check_size(name, height, width, code)
        with pytest.raises(InputError, match="weights"):
            check_size(name, height, width, code + 1)


# --- the command ----------------------------------------------------------------------------


def as_json(summary: Summary) -> Any:
    return json.loads(json.dumps(summary.to_json(), allow_nan=False))


def test_info_prints_the_table(here: Here) -> None:
    words = ("info", "--model", "deep", "--size", 16, "--channels", 1, "--code-size", 7)
    expected = summarize(build("deep", channels=1, size=16, code_size=7), (1, 16, 16))
    result = here(*words)
    assert (result.status, result.err) == (0, "")
    assert result.out.splitlines() == expected.lines()
    assert json.loads(here(*words, "--json").out) == as_json(expected)


def test_the_defaults_are_the_articles(here: Here) -> None:
    report = json.loads(here("info", "--model", "deep", "--json").out)
    assert report["total"]["parameters"] == 14_766_515
    assert report["image_shape"] == [3, 64, 64]
    assert [row["index"] for row in report["layers"]] == list(range(19))
    single = json.loads(here("info", "--model", "single-layer", "--filters", 4, "--json").out)
    assert single["code_shape"] == [4, 66, 66]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--size 16", "--size needs --model to have an effect: add that, or omit --size"),
        ("--model deepest", "unknown model 'deepest': choose one of "),
        ("--model deep --filters 3", "--filters needs --model single-layer"),
        ("--model single-layer --code-size 3", "--code-size needs --model deep"),
        ("--model deep --size 8", "images of 8x8 are too small for the model deep"),
        ("--model deep --size 0", "--size must be from 1 to"),
        ("--model deep --code-size 0", "--code-size must be from 1 to"),
        ("--model deep --channels 2", "--channels must be 1 or 3, not 2"),
        ("--model deep --size 2048", "images of 347x347, the nearest that fit"),
    ],
)
def test_what_no_model_can_be(here: Here, words: str, message: str) -> None:
    result = here("info", *words.split())
    assert (result.status, result.out) == (2, "")
    assert message in result.err and len(result.err.splitlines()) == 1
