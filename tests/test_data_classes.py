"""Training on some classes: the same images from memory, a cache or a database."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from cli_runner import TRAIN, Here
from lmdb_cases import key, pixels, record, write, write_images
from test_folder_cache import load, photos
from training_cases import make_images

from cae_raw.data import Dataset, Split
from cae_raw.data.access import SPLITS, find_split, in_order
from cae_raw.data.classes import with_classes
from cae_raw.data.lmdb_stream import LmdbSplit, streaming_order
from cae_raw.errors import InputError


def labelled(n: int, seed: int) -> Split:
    labels = np.arange(n) % 3
    return Split(make_images(n, seed=seed), labels, tuple(f"{i}.png" for i in range(n)))


def dataset() -> Dataset:
    test = labelled(9, 1)
    return Dataset("tiny", labelled(20, 0), test, test, ("cat", "dog", "owl"))


def test_images_labels_and_names_of_the_classes() -> None:
    whole = dataset()
    some = with_classes(whole, ["owl", "cat"])
    wanted = whole.train.labels != 1
    assert isinstance(some.train, Split) and isinstance(whole.train, Split)
    np.testing.assert_array_equal(some.train.images, whole.train.images[wanted])
    np.testing.assert_array_equal(some.train.labels, whole.train.labels[wanted])
    assert some.train.names == tuple(f"{i}.png" for i in np.flatnonzero(wanted))
    assert some.class_names == whole.class_names and some.notes == ("only the classes owl, cat",)
    assert some.test is some.validation and len(some.test) == 6


def test_what_cannot_be_chosen() -> None:
    with pytest.raises(InputError, match="unknown class 'cow': choose one of cat, dog, owl"):
        with_classes(dataset(), ["cat", "cow"])
    bare = Split(make_images(4), None)
    with pytest.raises(InputError, match=r"images of tiny have no labels .*: omit --classes"):
        with_classes(Dataset("tiny", bare, bare, bare), ["cat"])
    few = labelled(1, 2)
    with pytest.raises(InputError, match="the test split of tiny has no image of the classes owl"):
        with_classes(replace(dataset(), test=few), ["owl"])


@pytest.mark.parametrize("order", ["mixed", "sorted", "far apart"])
def test_a_database_hands_out_the_chosen_records(tmp_path: Path, order: str) -> None:
    n = 9000
    images = np.arange(n, dtype=">u4").view(np.uint8).reshape(n, 1, 2, 2)
    labels = np.arange(n) % 5 if order == "mixed" else np.arange(n) // 1800
    if order == "far apart":
        labels = np.where(np.isin(np.arange(n), (3, 700, 8999)), 2, 0)
    path = tmp_path / "db"
    write(path, ((key(i), record(images[i], int(labels[i]))) for i in range(n)))
    whole = LmdbSplit(path)
    names = ["2"] if order == "far apart" else ["2", "4"]
    some = with_classes(Dataset("lmdb", whole, whole, whole), names)
    wanted = np.flatnonzero(np.isin(labels, (2, 4)))
    chosen = some.train
    assert isinstance(chosen, LmdbSplit) and some.test is chosen and len(chosen) == len(wanted)
    np.testing.assert_array_equal(chosen.first(70), images[wanted[:70]])
    np.testing.assert_array_equal(np.concatenate(list(chosen.in_order(77))), images[wanted])
    shuffled = np.concatenate(list(chosen.shuffled(1, 2, 100)))
    np.testing.assert_array_equal(shuffled, images[wanted][streaming_order(len(wanted), 1, 2)])
    later = np.concatenate(list(chosen.shuffled(1, 2, 2, 1)))
    np.testing.assert_array_equal(later, shuffled[2:])
    np.testing.assert_array_equal(chosen.labels(), labels[wanted])
    assert chosen.names(1, 3) == [key(i).decode() for i in wanted[1:3]]
    part = chosen.part(1, 3)
    np.testing.assert_array_equal(part.first(9), images[wanted[1:3]])
    np.testing.assert_array_equal(part.labels(), labels[wanted[1:3]])
    prints = [json.dumps(split.fingerprint()) for split in (whole, chosen, part)]
    assert len(set(prints)) == 3


def test_a_cached_folder_agrees_with_one_in_memory(tmp_path: Path) -> None:
    root = photos(root=tmp_path / "photos")
    cached = with_classes(load(root, tmp_path / "cache"), ["b"])
    kept = with_classes(load(root, None), ["b"])
    for name in SPLITS:
        one, other = (find_split(found, name) for found in (cached, kept))
        assert one.fingerprint() == other.fingerprint()
        (ours,), (theirs,) = (list(in_order(split, 99, "x")) for split in (one, other))
        assert ours.names == theirs.names and set(ours.labels.tolist()) == {1}
        np.testing.assert_array_equal(ours.images, theirs.images)


def test_commands_on_a_run_use_its_classes(here: Here) -> None:
    train = (*TRAIN, "--classes", "rings, circles")
    assert "only the classes circles, rings" in here(*train).out
    (run,) = Path("runs/single-layer").iterdir()
    assert run.name == "shapes_adam_lr=0.001_b=16_f=2_classes=circles,rings"
    report = json.loads(here("evaluate", "--device", "cpu", "--json").out)
    assert report["images"] == 4  # of 20, of 12 classes in turn
    made = here("reconstruct", "--count", "9", "--device", "cpu", "--json")
    assert "only the classes circles, rings, as in training" in made.err
    labels = [image["label"] for image in json.loads(made.out)["images"]]
    assert labels == [0, 3, 0, 3]
    made = here(
        "encode", "--dataset", "shapes", "--pooled", "--out", "c.csv", "--device", "cpu", "--json"
    )
    assert json.loads(made.out)["shape"][0] == 4
    words = ("--split", "test", "--clean-split", "test", "--quantile", "1", "--odd", "noise")
    made = here("score", "--dataset", "shapes", *words, "--device", "cpu", "--json")
    report = json.loads(made.out)
    assert (report["images"], report["clean_images"]) == (20, 4)
    assert "resuming after 1 epoch" in here(*train, "--epochs", "2").out


def test_a_database_is_trained_on_by_its_numbers(here: Here) -> None:
    write_images(Path("photos.lmdb"), pixels(120))  # labels -3 to 3
    words = (*TRAIN, "--dataset", "lmdb", "--data-dir", "photos.lmdb")
    assert here(*words, "--classes", "0,2").status == 0
    found = here(*words, "--classes", "8")
    assert found.status == 2
    assert "the train split of lmdb-photos has no image of the classes 8" in found.err
