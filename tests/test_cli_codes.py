"""`cae-raw encode` and `cae-raw decode`: what they write, what they say, what they refuse."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_runner import TRAIN, Here, picture
from deep_cases import CODE, SIZE, save_model, small_deep
from lmdb_cases import pixels, write_images

from cae_raw import encode as encode_library
from cae_raw.codes_file import codes_writer
from cae_raw.commands import decode as decode_command
from cae_raw.commands import encode as encode_command
from cae_raw.data import load_dataset
from cae_raw.data.image_file import load_image
from cae_raw.data.scaling import to_bytes, to_floats
from cae_raw.fit import fit
from cae_raw.models import Autoencoder, single_layer
from cae_raw.models.masks import centre_masks, masks_of, repeat_masks
from cae_raw.training.loading import load, pretrained

ENCODE = ("encode", "--device", "cpu")
DECODE = ("decode", "--device", "cpu")
DEEP = ("--checkpoint", "deep.safetensors")
NARROW = ("--checkpoint", "narrow.safetensors")


@pytest.fixture
def here(here: Here) -> Here:
    save_model(Path("deep.safetensors"), small_deep())
    save_model(Path("narrow.safetensors"), narrow())
    for i in range(4):
        picture(Path(f"photos/{'ab'[i % 2]}/{i}.png"), 20, 16 + i, 3, seed=i)
    picture(Path("photo.png"), *SIZE, 3)
    return here


def narrow() -> Autoencoder:
    return single_layer(3, 4, np.random.default_rng(0))


def floats(model: Autoencoder, *paths: Path) -> np.ndarray:
    images = [fit(model, load_image(path))[0] for path in paths]
    return to_floats(np.stack(images), model.value_range)


def photos() -> list[Path]:
    return sorted(Path("photos").rglob("*.png"))


def read_json(here: Here, *words: object, status: int = 0) -> Any:
    result = here(*words, "--json")
    assert result.status == status, result.err
    return json.loads(result.out)


# --- encode ---------------------------------------------------------------------------------


def test_a_folder_with_a_deep_model(here: Here) -> None:
    result = here(*ENCODE, "photos", "--out", "codes.npy", *DEEP)
    assert (result.status, result.err) == (0, "")
    codes = np.load("codes.npy")
    assert codes.shape == (4, CODE) and codes.dtype == np.float32
    model = small_deep()
    np.testing.assert_allclose(codes, model.encode(floats(model, *photos())), rtol=0, atol=1e-6)
    names = Path("codes.names.txt").read_text().splitlines()
    assert names == [f"{path}\t{i // 2}" for i, path in enumerate(photos())]
    lines = result.out.splitlines()
    assert lines[:2] == ["model: deep.safetensors", "codes.npy: 4 codes of 8, float32"]
    assert lines[2] == (
        f"  from {codes.min():.4g} to {codes.max():.4g}, mean {codes.mean(dtype=float):.4g}"
    )
    assert lines[3] == "  names and labels: codes.names.txt"
    assert sum("resized from" in line for line in lines) == 4


def test_json(here: Here) -> None:
    report = read_json(here, *ENCODE, "photos", "photo.png", "--out", "codes.npz", *DEEP)
    with np.load("codes.npz") as archive:
        codes, names = archive["codes"], archive["names"].tolist()
        facts = json.loads(str(archive["model"]))
    assert names == [*map(str, photos()), "photo.png"]
    assert facts["name"] == "deep" and facts["size"] == list(SIZE)
    assert report == {
        "model": "deep.safetensors",
        "out": "codes.npz",
        "from": "image files",
        "pooled": False,
        "names": None,
        "shape": [5, CODE],
        "labelled": False,
        "classes": [],
        "bytes": os.path.getsize("codes.npz"),
        "min": float(codes.min()),
        "max": float(codes.max()),
        "mean": pytest.approx(codes.mean(dtype=float)),
        "not_finite": 0,
        "notes": report["notes"],
        "failed": 0,
    }
    assert len(report["notes"]) == 4 and report["notes"][0].startswith("1 of 5: resized from")


def test_labels_are_the_folders(here: Here) -> None:
    report = read_json(here, *ENCODE, "photos", "--out", "codes.npz", *DEEP)
    assert report["labelled"] and report["classes"] == ["a", "b"]
    with np.load("codes.npz") as archive:
        assert archive["labels"].tolist() == [0, 0, 1, 1]
        assert archive["classes"].tolist() == ["a", "b"]


@pytest.mark.parametrize("batch", [1, 7, 1024])
def test_a_data_set(here: Here, monkeypatch: pytest.MonkeyPatch, batch: int) -> None:
    monkeypatch.setattr(encode_command, "LARGEST_BATCH", batch)
    words = (*ENCODE, "--dataset", "shapes", "--split", "train", "--out", "c.npz", *NARROW)
    report = read_json(here, *words)
    split = load_dataset("shapes").train
    assert report["from"] == "shapes, train" and report["shape"] == [40, 4, 34, 34]
    with np.load("c.npz") as archive:
        codes = archive["codes"]
        assert archive["labels"].tolist() == split.labels.tolist()
        assert archive["names"][39] == "shapes/train/39"
        assert len(archive["classes"]) == 12
    expected = narrow().encode(to_floats(split.images, (-1, 1)))
    np.testing.assert_allclose(codes, expected, rtol=0, atol=1e-6)
    read_json(here, *words, "--pooled")
    with np.load("c.npz") as archive:
        np.testing.assert_allclose(archive["codes"], expected.mean(axis=(2, 3)), rtol=0, atol=1e-6)


def test_a_data_set_that_does_not_fit(here: Here) -> None:
    report = read_json(here, *ENCODE, "--dataset", "shapes", "--out", "c.npy", *DEEP)
    assert report["shape"] == [20, CODE]
    (note,) = report["notes"]
    assert note.startswith("20 of 20: resized from 32x32 to 12x14 pixels")


def test_images_of_different_sizes(here: Here) -> None:
    refused = here(*ENCODE, "photos", "--out", "c.npy", *NARROW)
    assert refused.status == 2
    assert refused.err == (
        "cae-raw: error: photos/a/2.png has 18x20 pixels, photos/a/0.png 16x20: codes of different "
        "sizes do not fit one array; add --pooled or --size PIXELS\n"
    )
    assert not Path("c.npy").exists() and not list(Path().glob(".*"))
    pooled = read_json(here, *ENCODE, "photos", "--out", "c.csv", *NARROW, "--pooled")
    assert pooled["shape"] == [4, 4]
    with open("c.csv", newline="") as file:
        head, *rows = csv.reader(file)
    assert head == ["name", "label", "c0", "c1", "c2", "c3"]
    model = narrow()
    for path, row in zip(photos(), rows, strict=True):
        expected = model.encode(floats(model, path)).mean(axis=(2, 3))[0]
        np.testing.assert_allclose(np.array(row[2:], float), expected, rtol=0, atol=1e-6)
    sized = read_json(here, *ENCODE, "photos", "--out", "c.npy", *NARROW, "--size", 10)
    assert sized["shape"] == [4, 4, 12, 12]


def test_a_broken_file_is_left_out(here: Here) -> None:
    Path("photos/a/broken.png").write_text("no")
    result = here(*ENCODE, "photos", "--out", "c.npy", *DEEP)
    assert result.status == 1
    assert result.err.splitlines() == [
        "cae-raw: error: photos/a/broken.png is not an image that Pillow can read",
        "1 of 5 files could not be used",
    ]
    assert len(np.load("c.npy")) == 4
    assert "broken" not in Path("c.names.txt").read_text()
    nothing = here(*ENCODE, "photos/a/broken.png", "--out", "d.npy", *DEEP)
    assert nothing.status == 2
    assert nothing.err.splitlines()[-1] == (
        "cae-raw: error: no codes to write: no image could be used"
    )
    assert not Path("d.npy").exists()


def test_without_a_run_the_pretrained_model(here: Here) -> None:
    report = read_json(here, *ENCODE, "photo.png", "--out", "c.npz", "--runs-dir", "none")
    assert report["model"].startswith("the single-layer model for RGB images")
    assert report["shape"] == [1, 32, 16, 14]
    picture(Path("gray.png"), 6, 7)
    gray = read_json(here, *ENCODE, "gray.png", "--out", "g.npz", "--runs-dir", "none")
    assert gray["model"].startswith("the single-layer model for gray images")
    for name, image in (("c", "photo.png"), ("g", "gray.png")):
        read_json(here, *DECODE, f"{name}.npz", "--out", name, "--runs-dir", "none")
        model = pretrained(1 if name == "g" else 3).build_model()
        x = floats(model, Path(image))
        made = load_image(Path(name, "decoded_0001.png"), model.channels)
        expected = to_bytes(model.forward(x), model.value_range)[0].astype(int)
        assert np.abs(made - expected).max() <= 1


def test_the_newest_run_and_a_named_one(here: Here) -> None:
    assert here(*TRAIN).status == 0
    run = "runs/single-layer/shapes_adam_lr=0.001_b=16_f=2"
    words = (*ENCODE, "photo.png", "--pooled", "--out")
    newest, named = read_json(here, *words, "a.npy"), read_json(here, *words, "b.npy", "--run", run)
    assert newest["model"] == named["model"] == run
    model = load(run)
    expected = model.encode(floats(model, Path("photo.png"))).mean(axis=(2, 3))
    for name in ("a.npy", "b.npy"):
        np.testing.assert_allclose(np.load(name), expected, rtol=0, atol=1e-6)


def test_a_diverged_model_is_reported(here: Here) -> None:
    model = small_deep()
    model.params["9.bias"][0] = np.nan
    save_model(Path("wild.safetensors"), model)
    words = (*ENCODE, "photos", "--out", "c.npy", "--checkpoint", "wild.safetensors")
    assert read_json(here, *words)["not_finite"] == 4
    assert "4 values are not finite numbers" in here(*words).out
    refused = here(*DECODE, "c.npy", "--checkpoint", "wild.safetensors")
    assert refused.status == 2 and "code 0 (from 0) is not finite" in refused.err


def test_an_image_whose_maps_are_too_large(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encode_library, "LARGEST_MAPS", 5000)
    result = here(*ENCODE, "photo.png", "--out", "c.npy", *NARROW)
    assert result.status == 2
    assert "photo.png: the maps of an image of 12x14 pixels take" in result.err


def test_names_on_one_line(here: Here) -> None:
    name = "a\nb\t\udcff.png"
    shutil.copy("photo.png", name)
    for ending in (".npy", ".csv", ".npz"):
        assert here(*ENCODE, name, "--out", f"c{ending}", *DEEP).status == 0
    assert Path("c.names.txt").read_text() == "a\\nb\\t\\udcff.png\n"


def test_examples_in_the_help_work(here: Here) -> None:
    """The last one is about masks, so it is given the deep model and codes of that."""
    assert here(*TRAIN).status == 0
    examples = [
        example
        for name in ("encode", "decode")
        for example in re.findall(r"^    cae-raw (.+)$", here(name, "--help").out, re.MULTILINE)
    ]
    assert len(examples) == 4
    for example in examples:
        options: tuple[str, ...] = ()
        if "--masks-from" in example:
            assert here(*ENCODE, "photos", "--out", "codes.npy", *DEEP).status == 0
            options = DEEP
        result = here(*example.split(), "--device", "cpu", *options)
        assert result.status == 0, (example, result.err)


# --- decode ---------------------------------------------------------------------------------


def decoded(folder: str, n: int) -> np.ndarray:
    paths = [Path(folder, f"decoded_{i + 1:04}.png") for i in range(n)]
    assert sorted(Path(folder).iterdir()) == paths
    return np.stack([load_image(path) for path in paths])


@pytest.mark.parametrize("batch", [1, 3, 64])
def test_centre_masks(here: Here, monkeypatch: pytest.MonkeyPatch, batch: int) -> None:
    monkeypatch.setattr(decode_command, "LARGEST_BATCH", batch)
    here(*ENCODE, "photos", "--out", "codes.npy", *DEEP)
    result = here(*DECODE, "codes.npy", "--out", "made", *DEEP)
    assert (result.status, result.err) == (0, "")
    assert result.out.splitlines() == [
        "model: deep.safetensors",
        "masks: centre, row 1, column 1 (from 0) of each 2x2 window",
        "4 images of 12x14: made/decoded_0001.png to decoded_0004.png",
    ]
    model = small_deep()
    y = model.decode(np.load("codes.npy"), centre_masks(model, 4))
    difference = decoded("made", 4).astype(int) - to_bytes(y, (0, 1))
    assert np.abs(difference).max() <= 1
    stated = here(*DECODE, "codes.npy", "--out", "again", "--masks", "centre", *DEEP)
    assert stated.status == 0
    np.testing.assert_array_equal(decoded("again", 4), decoded("made", 4))


def test_masks_of_an_image(here: Here) -> None:
    here(*ENCODE, "photo.png", "photos", "--out", "codes.npz", *DEEP)
    words = (*DECODE, "codes.npz", "--out", "made", "--masks-from", "photo.png", *DEEP)
    report = read_json(here, *words)
    assert report["masks"] == "those that the encoder chooses for photo.png"
    assert report["shape"] == [3, *SIZE] and report["notes"] == []
    assert [Path(path).name for path in report["images"]][-1] == "decoded_0005.png"
    model = small_deep()
    x = floats(model, Path("photo.png"), *photos())
    masks = repeat_masks(model, masks_of(model, x[:1]), 5)
    expected = to_bytes(model.decode(model.encode(x), masks), (0, 1)).astype(int)
    assert np.abs(decoded("made", 5) - expected).max() <= 1
    own = to_bytes(model.forward(x[:1]), (0, 1))[0].astype(int)
    assert np.abs(decoded("made", 5)[0] - own).max() <= 1, "its own masks: the reconstruction"


def test_the_image_of_the_masks_is_made_to_fit(here: Here) -> None:
    here(*ENCODE, "photo.png", "--out", "codes.npz", *DEEP)
    words = (*DECODE, "codes.npz", *DEEP, "--masks-from", "photos/a/0.png")
    report = read_json(here, *words)
    assert report["notes"][0].startswith("photos/a/0.png: resized from 16x20 to 12x14")
    assert Path("decoded/decoded_0001.png").exists()
    image = Path("decoded/decoded_0001.png")
    before = image.read_bytes()
    refused = here(*DECODE, "codes.npz", *DEEP, "--masks-from", image)
    assert refused.status == 2 and "would be replaced by a decoded image" in refused.err
    assert image.read_bytes() == before


def test_single_layer_codes_need_no_masks(here: Here) -> None:
    here(*ENCODE, "photo.png", "--out", "codes.npy", *NARROW)
    result = here(*DECODE, "codes.npy", *NARROW)
    assert (result.status, result.err) == (0, "")
    assert "masks" not in result.out
    model = narrow()
    expected = to_bytes(model.forward(floats(model, Path("photo.png"))), (-1, 1)).astype(int)
    assert np.abs(decoded("decoded", 1) - expected).max() <= 1
    for option in (("--masks", "centre"), ("--masks-from", "photo.png")):
        refused = here(*DECODE, "codes.npy", *NARROW, *option)
        assert refused.status == 2
        assert f"{option[0]} has no effect: the model single-layer decodes without" in refused.err


def test_codes_made_elsewhere_are_decoded(here: Here) -> None:
    """Codes need not come from an encoder; wild ones are counted."""
    np.save("c.npy", np.random.default_rng(0).standard_normal((3, CODE)).astype(np.float16))
    assert read_json(here, *DECODE, "c.npy", *DEEP)["not_finite"] == 0
    np.save("c.npy", np.full((2, CODE), 3e38))
    report = read_json(here, *DECODE, "c.npy", "--out", "wild", *DEEP)
    assert report["not_finite"] > 0
    assert "are not finite numbers" in report["notes"][0]


def test_codes_of_another_model(here: Here) -> None:
    here(*ENCODE, "photo.png", "--out", "deep.npz", *DEEP)
    here(*ENCODE, "photo.png", "--out", "narrow.npy", *NARROW)
    here(*ENCODE, "photo.png", "--out", "means.npy", *NARROW, "--pooled")
    here(*ENCODE, "photo.png", "--out", "means.npz", *NARROW, "--pooled")
    save_model(Path("same.safetensors"), small_deep("deep-same"))
    save_model(Path("retrained.safetensors"), small_deep(seed=1))
    for words, message in [
        (("deep.npz", *NARROW), "deep.npz was made by a model deep (channels 3, "),
        (("deep.npz", "--checkpoint", "same.safetensors"), "name another with --run or "),
        (("narrow.npy", *DEEP), "narrow.npy holds codes of 4x16x14, but those of the model deep "),
        (("means.npy", *NARROW), "means.npy holds 4 numbers per image, as means of maps are"),
        (("means.npz", *NARROW), "means.npz holds means of maps, which cannot be decoded"),
        (("narrow.npy", "--runs-dir", "none"), "narrow.npy does not say which model made it"),
    ]:
        result = here(*DECODE, *words)
        assert result.status == 2 and message in result.err, result.err
        assert len(result.err.splitlines()) == 1
    assert not Path("decoded").exists()
    note = here(*DECODE, "deep.npz", "--checkpoint", "retrained.safetensors")
    assert note.status == 0
    assert "these codes were made with other weights of this model" in note.out


def test_maps_that_are_too_small(here: Here) -> None:
    np.save("c.npy", np.zeros((1, 4, 2, 2), np.float32))
    result = here(*DECODE, "c.npy", *NARROW)
    assert result.status == 2
    assert "holds codes of 4x2x2, but those of the model single-layer are 4xHxW" in result.err


REFUSED = [
    ("encode --out c.npy", "name image files or folders, or else a data set with --dataset"),
    ("encode photo.png --dataset shapes --out c.npy", "name image files or folders, or else"),
    ("encode photo.png", "Missing option '--out'"),
    ("encode photo.png --out c.txt", "--out c.txt: give it a name that ends in .npy, .npz, .csv"),
    ("encode photo.png --out no/c.npy", "cannot write no/c.npy: No such file or directory"),
    ("encode photo.png --out photos", "--out photos: give it a name that ends in"),
    ("encode photo.png --out c.npy --split test", "--split needs --dataset to have an effect"),
    ("encode photo.png --out c.npy --data-dir .", "--data-dir needs --dataset to have an effect"),
    ("encode photo.png --out c.npy --size 0", "--size must be from 1 to 2048, not 0"),
    ("encode photo.png --out c.npy --size 9", "--size 9: the model deep takes images of 12x14"),
    ("encode photo.png --out c.npy --pooled", "a vector already: omit --pooled"),
    ("encode --dataset no --out c.npy", "unknown data set 'no': choose one of "),
    ("encode --dataset shapes --split no --out c.npy", "unknown split 'no': choose one of test"),
    (
        "encode --dataset shapes --size 9 --out c.npy",
        "--size needs --dataset folder or lmdb ",
    ),
    ("encode photos/none --out c.npy", "cannot read photos/none: No such file or directory"),
    ("decode c.txt", "c.txt: codes are read from files that end in .npy or .npz"),
    ("decode no.npy", "cannot read no.npy: No such file or directory"),
    ("decode photo.npy", "photo.npy is damaged or no .npy file of numbers: make it again with"),
    ("decode one.npy --masks edge", "unknown rule for masks 'edge': choose one of centre"),
    ("decode one.npy --masks centre --masks-from photo.png", "--masks and --masks-from both say"),
    ("decode one.npy --masks-from no.png", "cannot read no.png: No such file or directory"),
    ("decode one.npy --out photo.png", "cannot make the folder photo.png: File exists"),
    ("decode short.npy", "short.npy holds codes of 7, but those of the model deep are 8: name"),
]


@pytest.mark.parametrize(("words", "message"), REFUSED, ids=[words for words, _ in REFUSED])
def test_what_is_refused(here: Here, words: str, message: str) -> None:
    shutil.copy("photo.png", "photo.npy")
    np.save("one.npy", np.zeros((1, CODE), np.float32))
    np.save("short.npy", np.zeros((1, CODE - 1), np.float32))
    before = sorted(Path().rglob("*"))
    command, *rest = words.split()
    result = here(command, "--device", "cpu", *rest, *DEEP)
    assert result.status == 2
    errors = [line for line in result.err.splitlines() if line.startswith("cae-raw: error: ")]
    assert message in "\n".join(errors) and "Traceback" not in result.err, result.err
    assert sorted(Path().rglob("*")) == before


def test_an_image_file_under_the_name_of_codes(here: Here) -> None:
    """A file of another kind of codes: `names` is text, not numbers."""
    with codes_writer(Path("c.npz"), {}) as writer:
        writer.write(np.zeros((1, CODE), np.float32), ["a"], None)
    with np.load("c.npz") as archive:
        np.save("names.npy", archive["names"])
    result = here(*DECODE, "names.npy", *DEEP)
    assert result.status == 2 and "holds <U1 values: codes are floats" in result.err


@pytest.mark.parametrize(("channels", "kind"), [(1, "gray"), (3, "RGB")])
def test_the_pretrained_model_for_a_database(here: Here, channels: int, kind: str) -> None:
    write_images(Path("x.lmdb"), pixels(12, (channels, 9, 8)))
    words = (*ENCODE, "--dataset", "lmdb", "--data-dir", "x.lmdb", "--runs-dir", "none")
    report = read_json(here, *words, "--out", "c.npz")
    assert report["model"].startswith(f"the single-layer model for {kind} images")
    assert report["shape"] == [1, 32, 11, 10], "of the tenth that is kept for testing"
    assert read_json(here, *words, "--size", 6, "--out", "c.npz")["shape"] == [1, 32, 8, 8]
