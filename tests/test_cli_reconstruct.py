"""`cae-raw reconstruct`: which model it takes, which images it understands, what it leaves."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from cli_runner import TRAIN, Here, isolate, picture
from PIL import Image

from cae_raw.app import main
from cae_raw.data.image_file import load_image
from cae_raw.reconstruct import reconstruct_image
from cae_raw.training.loading import load, pretrained

RUN = Path("runs/single-layer/shapes_adam_lr=0.001_b=16_f=2")
RECONSTRUCT = ("reconstruct", "--device", "cpu")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "here"
    folder.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        isolate(patch, folder)
        with pytest.raises(SystemExit) as end:
            main(TRAIN)
        assert end.value.code == 0
    return folder


@pytest.fixture
def here(here: Here, trained: Path) -> Here:
    shutil.copytree(trained, Path("."), dirs_exist_ok=True)
    picture(Path("photo.png"), 12, 10, 3)
    return here


def test_what_is_written_and_said(here: Here) -> None:
    before = Path("photo.png").read_bytes()
    result = here(*RECONSTRUCT, "photo.png")
    assert (result.status, result.err) == (0, "")
    expected = reconstruct_image(load(RUN), load_image(Path("photo.png")))
    made = load_image(Path("photo.reconstruction.png"))
    assert np.array_equal(made, expected.output)
    assert result.out.splitlines() == [
        f"model: {RUN}",
        f"photo.png: 10x12, {expected.figures}",
        "  photo.reconstruction.png",
        "  photo.comparison.png",
    ]
    with Image.open("photo.comparison.png") as comparison:
        assert comparison.width >= 3 * 10, "it shows three pictures side by side"
    assert Path("photo.png").read_bytes() == before


def test_json(here: Here) -> None:
    picture(Path("gray.png"), 6, 7)
    result = here(*RECONSTRUCT, "photo.png", "gray.png", "--out", "made/here", "--json")
    report = json.loads(result.out)
    assert result.status == 0
    assert report["model"] == str(RUN)
    first, second = report["images"]
    assert first["path"] == "photo.png" and first["error"] is None and first["notes"] == []
    assert (first["width"], first["height"]) == (10, 12)
    assert first["mse"] == 2 * first["half_mse"]
    assert Path(first["comparison"]).is_file()
    assert second["reconstruction"] == "made/here/gray.reconstruction.png"
    assert len(second["notes"]) == 1


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ((), RUN),
        (("--run", RUN), RUN),
        (("--checkpoint", RUN / "last.safetensors"), RUN / "last.safetensors"),
        (("--checkpoint", RUN), RUN),
    ],
)
def test_the_model_that_is_asked_for(here: Here, options: tuple[object, ...], named: Path) -> None:
    result = here(*RECONSTRUCT, "photo.png", *options, "--json")
    assert json.loads(result.out)["model"] == str(named)


@pytest.mark.parametrize(("channels", "kind"), [(1, "gray"), (3, "RGB")])
def test_without_a_run_the_pretrained_models(here: Here, channels: int, kind: str) -> None:
    picture(Path("image.png"), 16, 18, *([3] if channels == 3 else []))
    result = here(*RECONSTRUCT, "image.png", "--runs-dir", "none", "--json")
    assert result.status == 0, result.err
    report = json.loads(result.out)
    assert report["model"] == f"the single-layer model for {kind} images that ships with cae-raw"
    # A folder of them, and the data set that it is.
    for i in range(9):
        picture(Path(f"folder/{i}.png"), *((8, 9, 3) if channels == 3 and i else (8, 9)), seed=i)
    words = ("--dataset", "folder", "--data-dir", "folder", "--size", "8")
    for more in (("folder", "--out", "f"), (*words, "--out", "d")):
        result = here(*RECONSTRUCT, *more, "--runs-dir", "none", "--json")
        assert json.loads(result.out)["model"] == report["model"], result.err
    assert report["images"][0]["notes"] == []


def test_the_pretrained_models_are_small_and_good() -> None:
    """Good on what they were trained on: bright strokes on black, and coloured images."""
    rows, columns = np.mgrid[0:48, 0:40]
    waves = np.sin(rows / 7) * np.cos(columns / 9)
    strokes = np.where(abs(waves) < 0.2, 255, 0).astype(np.uint8)
    colours = np.stack([128 + 100 * waves, 90 - 80 * waves, 60 + 50 * abs(waves)]).astype(np.uint8)
    for channels, image in ((1, strokes[None]), (3, colours)):
        saved = pretrained(channels)
        assert saved.path is not None and saved.path.stat().st_size < 50_000
        model = saved.build_model()
        assert model.channels == channels
        assert reconstruct_image(model, image).figures.psnr > 25


def save(name: str, mode: str, **options: object) -> Path:
    rng = np.random.default_rng(0)
    pixels = Image.fromarray(rng.integers(0, 256, (9, 14, 3), np.uint8))
    if mode == "I;16":
        image = Image.fromarray(rng.integers(0, 65536, (9, 14), np.uint16))
    elif mode in ("RGBA", "LA"):
        image = pixels.convert(mode)
        image.putalpha(Image.fromarray(rng.integers(0, 256, (9, 14), np.uint8)))
    else:
        image = pixels.convert(mode)
    image.save(name, **options)
    return Path(name)


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        ("sixteen.png", "I;16"),
        ("palette.png", "P"),
        ("palette.gif", "P"),
        ("alpha.png", "RGBA"),
        ("alpha.webp", "RGBA"),
        ("gray-alpha.png", "LA"),
        ("two.png", "1"),
        ("print.jpg", "CMYK"),
        ("print.tif", "CMYK"),
        ("picture.bmp", "RGB"),
        ("picture.PPM", "RGB"),
    ],
)
def test_every_kind_of_image(here: Here, name: str, mode: str) -> None:
    save(name, mode)
    result = here(*RECONSTRUCT, name, "--json")
    assert result.status == 0, result.err
    (image,) = json.loads(result.out)["images"]
    assert (image["width"], image["height"]) == (14, 9)
    with Image.open(image["reconstruction"]) as made:
        assert (made.size, made.mode) == ((14, 9), "RGB")


def test_rotation_animation_and_one_pixel(here: Here) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    save("turned.jpg", "RGB", exif=exif)
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "green", "blue")]
    frames[0].save("film.gif", save_all=True, append_images=frames[1:])
    picture(Path("dot.png"), 1, 1, 3)
    picture(Path("line.png"), 1, 300, 3)
    result = here(*RECONSTRUCT, "turned.jpg", "film.gif", "dot.png", "line.png", "--json")
    assert result.status == 0, result.err
    sizes = [(i["width"], i["height"]) for i in json.loads(result.out)["images"]]
    assert sizes == [(9, 14), (8, 8), (1, 1), (300, 1)]
    first_frame = reconstruct_image(load(RUN), load_image(Path("film.gif")))
    assert first_frame.image[0].mean() > 200 > first_frame.image[2].mean()


def test_inputs_are_never_overwritten(here: Here) -> None:
    """Also when an input has the very name that a result would get, or two inputs share one."""
    names = ["photo.png", "photo.reconstruction.png", "photo.comparison.png", "photo.jpg"]
    for i, name in enumerate(names[1:]):
        picture(Path(name), 8, 8, 3, seed=i)
    before = {name: Path(name).read_bytes() for name in names}
    result = here(*RECONSTRUCT, *names, "--json")
    assert result.status == 0, result.err
    assert {name: Path(name).read_bytes() for name in names} == before
    images = json.loads(result.out)["images"]
    made = [image[key] for image in images for key in ("reconstruction", "comparison")]
    assert len(set(made)) == len(made) == 8
    assert not set(made) & set(names)


def test_a_folder_of_images(here: Here) -> None:
    for name in ("b.png", "a.png"):
        picture(Path("photos", name), 5, 5, 3)
    Path("photos/notes.txt").write_text("no image")
    first = json.loads(here(*RECONSTRUCT, "photos", "--json").out)
    assert [image["path"] for image in first["images"]] == ["photos/a.png", "photos/b.png"]
    second = json.loads(here(*RECONSTRUCT, "photos", "--json").out)
    assert first == second, "results of the first call were taken for images"
