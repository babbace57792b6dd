"""The cache of a folder: pixels, splits and weights as from memory; when it is made anew."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_runner import TRAIN, Here, picture
from filelock import FileLock
from lmdb_cases import pixels, write_images
from training_cases import Listener, checkpoint_contents, command_line

from cae_raw.commands.data import CACHES
from cae_raw.data import DataOptions, Dataset, Split, load_dataset
from cae_raw.data.access import in_order
from cae_raw.data.lmdb_stream import LmdbSplit, streaming_order
from cae_raw.errors import InputError
from cae_raw.training.config import TrainConfig
from cae_raw.training.run_dir import RunDir
from cae_raw.training.session import RunSession

SPLITS = ("train", "validation", "test")
FOLDER = ("--dataset", "folder", "--data-dir", "photos", "--size", "8")
EVALUATE = ("evaluate", "--device", "cpu", "--json")


def photos(n: int = 40, root: Path = Path("photos"), seed: int = 0) -> Path:
    """Colour and gray images of several sizes and formats, in two sub-folders."""
    for i in range(n):
        shape = (9 + i % 4, 12) if i % 5 == 0 else (9, 8 + i % 7, 3)
        picture(root / "ab"[i % 2] / f"{i}.{'jpg' if i % 3 else 'png'}", *shape, seed=seed + i)
    return root


def load(root: Path, cache: Path | None, **options: Any) -> Dataset:
    given = {"data_dir": root, "size": 8, "cache_dir": cache, **options}
    return load_dataset("folder", DataOptions(**given))


def database(cache: Path) -> Path:
    (found,) = cache.glob("*/images.lmdb/data.mdb")
    return found


def contents(data: Dataset) -> dict[str, Any]:
    found: dict[str, Any] = {"classes": data.class_names}
    for split in SPLITS:
        parts = list(in_order(getattr(data, split), 16, split))
        labels = [None if part.labels is None else part.labels.tolist() for part in parts]
        images = np.concatenate([part.images for part in parts])
        names = [name for part in parts for name in part.names]
        fingerprint = getattr(data, split).fingerprint()
        found[split] = images.tobytes(), images.shape, names, labels, fingerprint
    return found


@pytest.mark.parametrize("channels", [1, 3])
def test_the_cache_holds_what_memory_would(tmp_path: Path, channels: int) -> None:
    root = photos(60, tmp_path / "photos")
    (root / "a" / "broken.png").write_bytes(b"no image")
    there = load(root, tmp_path / "cache", channels=channels)
    here = load(root, None, channels=channels)
    assert isinstance(there.train, LmdbSplit) and isinstance(here.train, Split)
    assert contents(there) == contents(here)
    assert contents(there)["classes"] == ("a", "b")
    assert there.notes[0] == here.notes[0] == "1 unreadable image left out: a/broken.png"
    assert contents(load(root, tmp_path / "cache", channels=channels)) == contents(here)
    few = there.train.limit(5).fingerprint()
    assert few == here.train.limit(5).fingerprint() != there.train.fingerprint()


def test_images_without_sub_folders_have_no_labels(tmp_path: Path) -> None:
    for i in range(9):
        picture(tmp_path / "photos" / f"{i}.png", 9, 8, 3, seed=i)
    for cache in (None, tmp_path / "cache"):
        data = load(tmp_path / "photos", cache)
        assert data.class_names == ()
        assert [part.labels for part in in_order(data.train, 4, "")] == [None, None]


@pytest.mark.parametrize("n", [1, 63, 64, 65, 5000])
def test_memory_is_shuffled_as_the_database_is(n: int) -> None:
    order = streaming_order(n, 3, 2)
    assert sorted(order.tolist()) == list(range(n))
    assert n == 1 or (order != streaming_order(n, 3, 1)).any()


def test_the_cache_is_kept_until_something_changes(tmp_path: Path) -> None:
    root, cache = photos(20, tmp_path / "photos"), tmp_path / "cache"
    load(root, cache)
    made = database(cache).stat()
    load(root, cache)
    assert database(cache).stat().st_ino == made.st_ino, "it was made again for nothing"

    def remade() -> bool:
        nonlocal made
        before, data = made, contents(load(root, cache))
        made = database(cache).stat()
        assert data == contents(load(root, None))
        return made.st_ino != before.st_ino or made.st_mtime_ns != before.st_mtime_ns

    picture(root / "a" / "new.png", 9, 9, 3)
    assert remade(), "a file was added"
    (root / "a" / "new.png").rename(root / "b" / "new.png")
    assert remade(), "a file was moved"
    (root / "b" / "new.png").unlink()
    assert remade(), "a file was deleted"
    size = (root / "a" / "0.png").stat().st_size
    other = picture(tmp_path / "other.bmp", 9, 12, seed=99).read_bytes()
    (root / "a" / "0.png").write_bytes(other[:size] if len(other) > size else other)
    assert remade(), "a file has other contents"
    os.utime(root / "a" / "2.jpg", ns=(1, 1))
    assert remade(), "a file has another time"
    assert not remade()


def test_shapes_and_seeds_have_caches_of_their_own(tmp_path: Path) -> None:
    root, cache = photos(20, tmp_path / "photos"), tmp_path / "cache"
    for options in ({}, {"size": 6}, {"channels": 1}, {"seed": 1}):
        assert contents(load(root, cache, **options)) == contents(load(root, None, **options))
    names = sorted(path.name.rpartition("-")[0] for path in cache.iterdir())
    assert names == ["photos-6x6x3", "photos-8x8x1", "photos-8x8x3", "photos-8x8x3"]


def damage_end(file: Path) -> None:
    os.truncate(file, file.stat().st_size - 4096)


def damage_beginning(file: Path) -> None:
    with open(file, "r+b") as opened:
        opened.write(b"\0" * 9000)


def another(file: Path) -> None:
    """As many records of the same shape, but other ones."""
    folder = file.parents[3]
    load(photos(20, folder / "others", seed=100), folder / "cache of others")
    shutil.copy(database(folder / "cache of others"), file)


@pytest.mark.parametrize(
    "damage", [Path.unlink, damage_end, damage_beginning, another, lambda f: f.write_bytes(b"")]
)
def test_a_database_that_is_not_sound_is_made_again(tmp_path: Path, damage: Any) -> None:
    root, cache = photos(20, tmp_path / "photos"), tmp_path / "folder" / "cache"
    load(root, cache)
    damage(database(cache))
    assert contents(load(root, cache)) == contents(load(root, None))


@pytest.mark.parametrize("text", ["", "{}", "[1]", "null", '{"files": 1, "checksum": "x"}'])
def test_a_description_that_is_not_sound_is_written_again(tmp_path: Path, text: str) -> None:
    root, cache = photos(20, tmp_path / "photos"), tmp_path / "cache"
    load(root, cache)
    (about,) = cache.glob("*/about.json")
    sound = about.read_text()
    about.write_text(text)
    assert contents(load(root, cache)) == contents(load(root, None))
    assert json.loads(about.read_text()) == json.loads(sound)


def test_too_few_images_leave_no_cache(tmp_path: Path) -> None:
    root = photos(2, tmp_path / "photos")
    (root / "c.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"2 readable images.*left out: c\.png"):
        load(root, tmp_path / "cache")
    assert not list(tmp_path.glob("cache/*/*.*"))


def test_an_interrupt_leaves_nothing_half(tmp_path: Path) -> None:
    root = photos(20, tmp_path / "photos")

    def interrupt(what: str, *_: object) -> None:
        if what.startswith("decoding"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        load(root, tmp_path / "cache", progress=interrupt)
    assert [path.name for path in tmp_path.glob("cache/*/*") if path.name != "lock"] == []


# --- training ---------------------------------------------------------------------------------


CONFIG = TrainConfig(dataset="folder", model="deep", code_size=6, batch_size=7, size=12)


def train(folder: Path, data: Dataset, stop_at: int | None = None) -> dict[str, Any]:
    """The last checkpoint; the errors, whose sums depend on how images come together, rounded."""
    folder.mkdir(exist_ok=True)

    def hear(position: int, _: object) -> None:
        if position == stop_at:
            signal.raise_signal(signal.SIGINT)

    RunSession(CONFIG, data, RunDir(folder), threads=2).train(2, Listener(hear), 1e9)
    last = checkpoint_contents(folder / "last.safetensors")
    for row in last["state"]["history"]:
        row["validation_half_mse"] = round(row["validation_half_mse"], 12)
    last["state"]["best"] = last["state"]["best"] and round(last["state"]["best"], 12)
    return last


def test_stopped_between_memory_and_cache_is_as_never_stopped(tmp_path: Path) -> None:
    root = photos(40, tmp_path / "photos")
    cached, held = (load(root, cache, size=12) for cache in (tmp_path / "cache", None))
    whole = train(tmp_path / "whole", cached)
    assert train(tmp_path / "held", held) == whole
    for stop, data in ((2, cached), (2, held), (1, cached)):
        train(tmp_path / "parts", data, stop)
    assert train(tmp_path / "parts", held) == whole


def test_the_commands_use_one_cache(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    photos()
    assert here(*TRAIN, *FOLDER).status == 0
    made = database(Path("runs", CACHES)).stat()

    def refuse(*_: object) -> None:
        raise AssertionError("decoded again")

    with monkeypatch.context() as patch:
        patch.setattr("cae_raw.data.folder._decode_all", refuse)
        patch.setattr("cae_raw.data.folder_cache.convert", refuse)
        trained = json.loads(here(*TRAIN, *FOLDER, "--epochs", 2, "--json").out)
        figures = json.loads(here(*EVALUATE, trained["run"]).out)
        assert figures["half_mse"] == pytest.approx(trained["test"]["half_mse"], rel=1e-9)
        for command, out in (("reconstruct", "out"), ("encode", "codes.npy")):
            words = ("--dataset", "folder", "--split", "train", "--out", out, "--device", "cpu")
            result = here(command, *words)
            assert result.status == 0, result.err
        assert database(Path("runs", CACHES)).stat().st_ino == made.st_ino
    (everything,) = in_order(load(Path("photos"), None).train, 1000, "")
    assert everything.labels is not None
    pairs = zip(everything.names, everything.labels.tolist(), strict=True)
    lines = Path("codes.names.txt").read_text().splitlines()
    assert lines == [f"{name}\t{label}" for name, label in pairs]


def test_without_a_cache_the_figures_are_the_same(here: Here) -> None:
    photos()
    run = json.loads(here(*TRAIN, *FOLDER, "--json", "--no-cache").out)["run"]
    assert not Path("runs", CACHES).exists()
    in_memory = json.loads(here(*EVALUATE, run).out)
    assert not Path("runs", CACHES).exists(), "only a training makes one"
    again = here(*TRAIN, *FOLDER, "--epochs", 2)
    assert "resuming after 1 epoch" in again.out and "decoded images are kept in" in again.out
    best = json.loads(here(*EVALUATE, run, "--runs-dir", "elsewhere").out)
    shutil.rmtree(Path("runs", CACHES))
    without = json.loads(here(*EVALUATE, run).out)
    assert without["half_mse"] == pytest.approx(best["half_mse"], rel=1e-12)
    assert without["half_mse"] != in_memory["half_mse"]


def test_no_cache_without_a_folder_is_refused(here: Here) -> None:
    result = here(*TRAIN, "--no-cache")
    assert (result.status, result.out) == (2, "")
    assert "--no-cache needs --dataset folder to have an effect" in result.err


def test_a_cache_that_cannot_be_written(here: Here) -> None:
    photos()
    Path("runs").mkdir()
    Path("runs", CACHES).write_text("in the way")
    result = here(*TRAIN, *FOLDER)
    assert result.status == 2
    assert result.err.startswith(f"cae-raw: error: cannot write to runs/{CACHES}/photos-8x8x3-")
    assert result.err.endswith("or keep the images in memory with --no-cache\n")
    assert here(*TRAIN, *FOLDER, "--no-cache").status == 0
    assert here(*EVALUATE).status == 0


def test_evaluate_makes_do_without_a_cache_that_it_cannot_write(here: Here) -> None:
    photos()
    assert here(*TRAIN, *FOLDER).status == 0
    before = json.loads(here(*EVALUATE).out)
    (cache,) = Path("runs", CACHES).iterdir()
    shutil.rmtree(cache)
    cache.write_text("in the way")
    after = json.loads(here(*EVALUATE).out)
    assert after["half_mse"] == pytest.approx(before["half_mse"], rel=1e-12)


def test_a_model_that_does_not_fit_is_refused_before_images_are_decoded(here: Here) -> None:
    photos()
    result = here("train", *FOLDER, "--model", "deep", "--device", "cpu")
    assert result.status == 2
    assert "images of 8x8 are too small for the model deep" in result.err
    assert "the nearest size that fits is 12x12" in result.err
    assert not Path("runs").exists()


# --- processes --------------------------------------------------------------------------------


def start(*arguments: object, cwd: Path) -> subprocess.Popen[str]:
    words = command_line(*TRAIN, *FOLDER, *arguments)
    return subprocess.Popen(
        words, cwd=cwd, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def test_two_processes_share_one_cache(tmp_path: Path) -> None:
    photos(200, tmp_path / "photos")
    both = [start("--comment", name, cwd=tmp_path) for name in ("one", "two")]
    for process in both:
        _, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
    cache = tmp_path / "runs" / CACHES
    assert contents(load(tmp_path / "photos", cache)) == contents(load(tmp_path / "photos", None))
    assert not list(cache.glob("*/.*"))


def test_who_waits_for_another_process_says_so(tmp_path: Path) -> None:
    root, cache = photos(20, tmp_path / "photos"), tmp_path / "cache"
    load(root, cache)
    (about,) = cache.glob("*/about.json")
    about.unlink()
    held, heard, done = threading.Event(), threading.Event(), []

    def hold() -> None:
        with FileLock(about.with_name("lock")):
            held.set()
            heard.wait(60)
            done.append("released")

    def tell(what: str, *_: object) -> None:
        if what == "seconds waited for another process's cache":
            heard.set()
        elif what.startswith("decoding"):
            done.append("decoding")

    thread = threading.Thread(target=hold)
    thread.start()
    assert held.wait(60)
    load(root, cache, progress=tell)
    thread.join()
    assert done[:2] == ["released", "decoding"]


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no kill -9 here")
@pytest.mark.parametrize("what", ["images.lmdb", "about.json"])
def test_a_kill_leaves_nothing_half(tmp_path: Path, what: str) -> None:
    """Killed as soon as the database, or its description, is there or about to be."""
    photos(150, tmp_path / "photos")
    process = start(cwd=tmp_path)
    patterns = (f".{what}*", what) if what == "images.lmdb" else ("images.lmdb",)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        folders = list(tmp_path.glob(f"runs/{CACHES}/*"))
        if any(True for folder in folders for p in patterns for _ in folder.glob(p)):
            break
    assert process.poll() is None, "it was over before it could be killed"
    process.kill()
    process.communicate()
    cache = tmp_path / "runs" / CACHES
    assert contents(load(tmp_path / "photos", cache)) == contents(load(tmp_path / "photos", None))
    assert not list(cache.glob("*/.*")), "what the killed one left is removed"


def test_pixels_of_the_stream_agree_with_the_order(tmp_path: Path) -> None:
    """`streaming_order` and `LmdbSplit.shuffled` are two ways to say the same."""
    images = pixels(200, (3, 5, 4))
    split = LmdbSplit(write_images(tmp_path / "x.lmdb", images)).part(30, 190)
    streamed = np.concatenate(list(split.shuffled(5, 1, 16)))
    np.testing.assert_array_equal(streamed, images[30:190][streaming_order(160, 5, 1)])
