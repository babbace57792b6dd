"""Images to codes, and image files to batches, without the command line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from cli_runner import picture
from deep_cases import SIZE, random_images, small_deep

from cae_raw import encode, image_source
from cae_raw.backends import NumpyBackend
from cae_raw.data.access import SPLITS, find_split, in_order
from cae_raw.data.base import Dataset, Split
from cae_raw.data.datum import serialize
from cae_raw.data.image_file import load_image
from cae_raw.data.lmdb_stream import LmdbSplit
from cae_raw.data.scaling import to_floats
from cae_raw.encode import Encoder
from cae_raw.errors import InputError
from cae_raw.fit import GRAY_REPEATED, TURNED_TO_GRAY, fit, with_size
from cae_raw.image_source import Source, batches, find_sources
from cae_raw.models import Autoencoder, single_layer


def narrow(channels: int = 3) -> Autoencoder:
    return single_layer(channels, 4, np.random.default_rng(0))


# --- codes ----------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [1, 4, 64])
def test_codes_are_those_of_the_model(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(encode, "LARGEST_CHUNK", chunk)
    images = random_images(9, 3, *SIZE)
    for model in (small_deep(), narrow()):
        expected = model.encode(to_floats(images, model.value_range))
        with Encoder(model, threads=2) as encoder:
            codes = encoder(images)
        assert codes.dtype == np.float32 and codes.shape == expected.shape
        assert codes.shape[1:] == encoder.code_shape((3, *SIZE))
        np.testing.assert_allclose(codes, expected, rtol=0, atol=1e-6)


def test_pooled_codes_are_means_of_maps() -> None:
    model, images = narrow(), random_images(5, 3, 9, 7)
    with Encoder(model) as encoder, Encoder(model, pooled=True) as pooled:
        maps, means = encoder(images), pooled(images)
    assert maps.shape == (5, 4, 11, 9) and means.shape == (5, 4)
    assert means.dtype == np.float32
    np.testing.assert_allclose(means, maps.mean(axis=(2, 3)), rtol=1e-5)


def test_codes_do_not_depend_on_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encode, "LARGEST_CHUNK", 3)
    images = random_images(20, 3, *SIZE)
    for model in (small_deep(), narrow()):
        found = []
        for threads in (1, 2, 5):
            with Encoder(model, threads=threads) as encoder:
                found.append(encoder(images))
        np.testing.assert_array_equal(found[0], found[1])
        np.testing.assert_array_equal(found[0], found[2])


def test_the_work_is_done_on_the_models_backend() -> None:
    class Elsewhere(NumpyBackend):
        here = 0

        def to_numpy(self, array: np.ndarray) -> np.ndarray:
            self.here += 1
            return super().to_numpy(array)

    model, images, backend = small_deep(), random_images(6, 3, *SIZE), Elsewhere()
    with Encoder(model) as encoder:
        expected = encoder(images)
    model.to(backend)
    backend.here = 0
    with Encoder(model) as encoder:
        np.testing.assert_array_equal(encoder(images), expected)
    assert backend.here == 1


def test_what_cannot_be_encoded(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="a vector already"):
        Encoder(small_deep(), pooled=True)
    with Encoder(small_deep()) as encoder, pytest.raises(InputError):
        encoder(random_images(2, 3, 20, 20))
    monkeypatch.setattr(encode, "LARGEST_MAPS", 1000)
    with Encoder(narrow()) as encoder, pytest.raises(InputError, match="30x20 pixels take"):
        encoder(random_images(1, 3, 20, 30))


# --- making images fit ----------------------------------------------------------------------


def test_fitting_says_what_it_did() -> None:
    (image,) = random_images(1, 1, 20, 30)
    fitted, notes = fit(small_deep(), image)
    assert fitted.shape == (3, *SIZE) and fitted.flags.c_contiguous
    assert (fitted[0] == fitted[1]).all()
    assert notes == (
        GRAY_REPEATED,
        "resized from 30x20 to 12x14 pixels (Lanczos, the whole picture, which squashes it)",
    )
    same, nothing = fit(small_deep(), random_images(1, 3, *SIZE)[0])
    assert same.shape == (3, *SIZE) and nothing == ()
    _, (note,) = with_size(image, (40, 60))
    assert note.endswith("(Lanczos, the whole picture)")
    assert fit(narrow(), random_images(1, 3, 5, 6)[0])[1] == ()


def test_gray_is_the_luma_that_files_get(tmp_path: Path) -> None:
    path = picture(tmp_path / "a.png", 8, 9, 3)
    fitted, notes = fit(narrow(1), load_image(path))
    np.testing.assert_array_equal(fitted, load_image(path, 1))
    assert notes == (TURNED_TO_GRAY,)


# --- image files ----------------------------------------------------------------------------


def test_sources_and_labels(tmp_path: Path) -> None:
    for name in ("b/2.png", "a/1.png", "b/deep/3.png", "a/.hidden.png"):
        picture(tmp_path / "tree" / name, 4, 4)
    (tmp_path / "tree" / "notes.txt").write_text("no image")
    tree = tmp_path / "tree"
    found, classes = find_sources([tree])
    assert classes == ("a", "b")
    assert found == [
        Source(tree / "a/1.png", 0),
        Source(tree / "b/2.png", 1),
        Source(tree / "b/deep/3.png", 1),
    ]
    twice, none = find_sources([tree / "b/2.png", tree, tree])
    assert [source.path.name for source in twice] == ["2.png", "1.png", "3.png"]
    assert none == () and all(source.label is None for source in twice)
    picture(tree / "top.png", 4, 4)
    mixed, none = find_sources([tree])
    assert len(mixed) == 4 and none == () and all(source.label is None for source in mixed)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no images below the folder"):
        find_sources([tmp_path / "empty"])


def test_batches_hold_one_shape_each_and_keep_the_order(tmp_path: Path) -> None:
    sides = [(4, 4)] * 5 + [(6, 3)] + [(4, 4)] * 2
    paths = [picture(tmp_path / f"{i}.png", *s, 3, seed=i) for i, s in enumerate(sides)]
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no")
    paths.insert(2, broken)
    notes: list[str] = []
    errors: list[str] = []
    found = list(
        batches(
            map(Source, paths),
            1,
            None,
            3,
            lambda source, note: notes.append(note),
            lambda source, message: errors.append(message),
        )
    )
    assert [len(batch.images) for batch in found] == [3, 2, 1, 2]
    assert [s.path for batch in found for s in batch.sources] == [p for p in paths if p != broken]
    assert errors == [f"{broken} is not an image that Pillow can read"]
    assert notes == [TURNED_TO_GRAY] * 8
    for batch in found:
        for image, source in zip(batch.images, batch.sources, strict=True):
            np.testing.assert_array_equal(image, load_image(source.path, 1))


def test_batches_are_bounded_in_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_source, "BATCH_BYTES", 2 * 4 * 4)
    paths = [picture(tmp_path / f"{i}.png", 4, 4, seed=i) for i in range(5)]
    found = list(batches(map(Source, paths), 1, None, 100, print, print))
    assert [len(batch.images) for batch in found] == [2, 2, 1]


def test_files_are_resized(tmp_path: Path) -> None:
    paths = [picture(tmp_path / f"{i}.png", 4 + i, 9, 3, seed=i) for i in range(3)]
    notes: list[str] = []
    (batch,) = batches(map(Source, paths), 3, (5, 9), 9, lambda s, n: notes.append(n), print)
    assert batch.images.shape == (3, 3, 5, 9)
    assert len(notes) == 2, "one of them had that size"


# --- splits ---------------------------------------------------------------------------------


def test_a_split_in_order() -> None:
    images, labels = random_images(7, 1, 2, 2), np.arange(7)
    parts = list(in_order(Split(images, labels), 3, "set/test"))
    assert [len(part.images) for part in parts] == [3, 3, 1]
    np.testing.assert_array_equal(np.concatenate([p.images for p in parts]), images)
    assert [name for part in parts for name in part.names][:2] == ["set/test/0", "set/test/1"]
    assert np.concatenate([p.labels for p in parts if p.labels is not None]).tolist() == [*range(7)]
    (named,) = in_order(Split(images, None, tuple("abcdefg")), 9, "")
    assert named.names == list("abcdefg") and named.labels is None


def test_a_database_in_order(tmp_path: Path) -> None:
    lmdb = pytest.importorskip("lmdb")
    images = random_images(9, 3, 4, 5)
    with (
        lmdb.open(str(tmp_path / "db"), map_size=1 << 20) as environment,
        environment.begin(write=True) as transaction,
    ):
        for i, image in enumerate(images):
            transaction.put(f"{i:08}_x.png".encode(), serialize(image, 7 - i, "bgr"))
    parts = list(in_order(LmdbSplit(tmp_path / "db"), 4, "unused"))
    np.testing.assert_array_equal(np.concatenate([part.images for part in parts]), images)
    assert [name for part in parts for name in part.names] == [f"{i:08}_x.png" for i in range(9)]
    assert [label for part in parts for label in part.labels] == [7 - i for i in range(9)]


def test_splits_by_name(dataset: Dataset) -> None:
    assert [find_split(dataset, name) for name in SPLITS] == [
        dataset.train,
        dataset.validation,
        dataset.test,
    ]
    with pytest.raises(InputError, match="unknown split 'all'"):
        find_split(dataset, "all")
