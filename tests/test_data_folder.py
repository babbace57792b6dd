"""A directory of images as a data set: splits, labels, broken files, refusals."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cae_raw.data import DataOptions, load_dataset
from cae_raw.data.base import Dataset
from cae_raw.data.folder import hash_position, split_bounds
from cae_raw.errors import InputError


def make(root: Path, names: list[str]) -> Path:
    for i, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (6 + i % 3, 5), (i % 256, 0, 255 - i % 256)).save(path)
    return root


def load(root: Path, seed: int = 0, size: int = 4, channels: int | None = None) -> Dataset:
    options = DataOptions(data_dir=root, size=size, seed=seed, channels=channels)
    return load_dataset("folder", options)


def places(data: Dataset) -> dict[str, str]:
    splits = {"train": data.train, "validation": data.validation, "test": data.test}
    return {name: split for split, part in splits.items() for name in part.names or ()}


def test_images_land_in_their_splits(tmp_path: Path) -> None:
    names = [f"{i:03}.png" for i in range(100)]
    data = load(make(tmp_path, names))
    assert sorted(places(data)) == names
    for part in (data.train, data.validation, data.test):
        assert part.image_shape == (3, 4, 4)
        assert part.names is not None
        for name, image in zip(part.names, part.images, strict=True):
            assert image[0, 0, 0] == int(name[:3])  # the image belongs to its name
    assert 70 <= len(data.train) <= 90
    assert data.train.labels is None
    assert data.notes == ()
    for name, split in places(data).items():
        position = hash_position(name, 0)
        expected = "train" if position < 0.8 else "validation" if position < 0.9 else "test"
        assert split == expected


def test_hash_is_pinned() -> None:
    """Changing it would move everybody's images between the splits."""
    assert round(hash_position("a/b.png", 0), 6) == 0.534103
    assert round(hash_position("a/b.png", 1), 6) == 0.439001


def test_adding_files_moves_none(tmp_path: Path) -> None:
    before = places(load(make(tmp_path, [f"{i}.png" for i in range(60)])))
    after = places(load(make(tmp_path, [f"more/{i}.png" for i in range(40)])))
    assert before.items() <= after.items()
    assert len(after) == 100


def test_the_seed_splits_differently(tmp_path: Path) -> None:
    make(tmp_path, [f"{i}.png" for i in range(60)])
    assert places(load(tmp_path, seed=0)) != places(load(tmp_path, seed=1))


@pytest.mark.parametrize("n", [3, 4, 5, 9, 14])
def test_every_split_of_a_tiny_folder_has_an_image(tmp_path: Path, n: int) -> None:
    make(tmp_path, [f"{i}.png" for i in range(n)])
    for seed in range(5):
        data = load(tmp_path, seed)
        sizes = [len(data.train), len(data.validation), len(data.test)]
        assert sum(sizes) == n
        assert min(sizes) >= 1
        assert max(sizes) == sizes[0]


def test_split_bounds() -> None:
    assert split_bounds([0.1, 0.79, 0.8, 0.89, 0.9]) == (2, 4)
    assert split_bounds([0.1, 0.2, 0.3]) == (1, 2)
    assert split_bounds([0.95, 0.96, 0.97]) == (1, 2)
    assert split_bounds([i / 50 * 0.8 for i in range(50)]) == (40, 45)


def test_labels_are_the_first_level_folders(tmp_path: Path) -> None:
    names = [f"{kind}/{deep}{i}.png" for kind in ("dog", "cat") for deep in ("", "x/") for i in
             range(5)]  # fmt: skip
    data = load(make(tmp_path, names))
    assert data.class_names == ("cat", "dog")
    for part in (data.train, data.validation, data.test):
        assert part.labels is not None
        assert part.labels.dtype == np.int64
        assert part.names is not None
        assert [data.class_names[label] for label in part.labels] == [n[:3] for n in part.names]


def test_no_labels_when_some_images_lie_outside(tmp_path: Path) -> None:
    data = load(make(tmp_path, ["a.png", "dog/b.png", "dog/c.png"]))
    assert data.class_names == ()
    assert data.train.labels is None


def test_gray_on_request(tmp_path: Path) -> None:
    make(tmp_path, ["a.png", "b.png", "c.png"])
    assert load(tmp_path, channels=1).train.image_shape == (1, 4, 4)
    with pytest.raises(InputError, match="1 or 3 channels"):
        load(tmp_path, channels=2)


def test_other_and_hidden_files_are_left_alone(tmp_path: Path) -> None:
    make(tmp_path, ["a.png", "b.JPG", "c.tiff", ".hidden.png", ".git/d.png"])
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "folder.png").mkdir()
    assert sorted(places(load(tmp_path))) == ["a.png", "b.JPG", "c.tiff"]


def test_broken_images_are_left_out_and_named(tmp_path: Path) -> None:
    names = [f"{i:03}.png" for i in range(30)]
    make(tmp_path, names)
    whole = places(load(tmp_path))
    for name in names[3:8]:
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:50])
    data = load(tmp_path)
    assert sorted(places(data)) == names[:3] + names[8:]
    for part in (data.train, data.validation, data.test):
        for name, image in zip(part.names or (), part.images, strict=True):
            assert image[0, 0, 0] == int(name[:3])
    assert all(whole[name] == split for name, split in places(data).items())
    (note,) = data.notes
    assert note.startswith("5 unreadable images left out: ")
    assert note.endswith("and 2 more")
    assert all(name in names[3:8] for name in note[30:-11].split(", "))


def test_one_broken_image(tmp_path: Path) -> None:
    make(tmp_path, ["a.png", "b.png", "c.png"])
    (tmp_path / "d.png").write_bytes(b"")
    assert load(tmp_path).notes == ("1 unreadable image left out: d.png",)


def test_progress_counts_to_the_end(tmp_path: Path) -> None:
    make(tmp_path, ["a.png", "b.png", "c.png"])
    seen: list[tuple[str, int, int | None]] = []
    options = DataOptions(tmp_path, 4, progress=lambda *args: seen.append(args))
    load_dataset("folder", options)
    assert seen == [
        ("looking for images", 3, None),
        *(("decoding images", i, 3) for i in (1, 2, 3)),
    ]


def test_an_interrupt_stops_decoding(tmp_path: Path) -> None:
    make(tmp_path, ["a.png", "b.png", "c.png"])

    def interrupt(*args: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        load_dataset("folder", DataOptions(tmp_path, 4, progress=interrupt))


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="needs --data-dir"):
        load_dataset("folder")
    with pytest.raises(InputError, match="no images below"):
        load(tmp_path)
    with pytest.raises(InputError, match="No such file"):
        load(tmp_path / "none")
    (tmp_path / "file.png").write_bytes(b"")
    with pytest.raises(InputError, match="Not a directory"):
        load(tmp_path / "file.png")
    with pytest.raises(InputError, match=r"0 readable images.*left out: file\.png"):
        load(tmp_path)
    make(tmp_path, ["a.png", "b.png"])
    with pytest.raises(InputError, match="2 readable images, but three splits"):
        load(tmp_path)
    with pytest.raises(InputError, match="needs --size"):
        load_dataset("folder", DataOptions(data_dir=tmp_path))
    with pytest.raises(InputError, match="needs --size"):
        load(tmp_path, size=0)
    with pytest.raises(InputError, match="use a smaller --size"):
        load(tmp_path, size=10**8)
