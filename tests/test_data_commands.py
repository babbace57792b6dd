"""`cae-raw data convert` and `inspect`: what they print, write, and refuse."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from cli_runner import Here, picture
from lmdb_cases import key, pixels, record, write, write_images
from PIL import Image

from cae_raw.data.inspect_lmdb import inspect
from cae_raw.data.lmdb_stream import LmdbSplit
from cae_raw.errors import InputError


@pytest.fixture
def photos(here: Here) -> Path:
    for i in range(6):
        picture(Path(f"photos/{'ab'[i % 2]}/{i}.png"), 9, 7, 3, seed=i)
    return Path("photos")


def test_convert_then_inspect(here: Here, photos: Path) -> None:
    result = here("data", "convert", photos, "out.lmdb", "--size", 8)
    assert (result.status, result.err) == (0, "")
    lines = result.out.splitlines()
    assert lines[0].startswith("out.lmdb: 6 records of 3x8x8, 0.0 MiB, in ")
    assert lines[1:] == ["labels: 0 a, 1 b"]
    result = here("data", "inspect", "out.lmdb", "--out", "grid.png", "--count", 5)
    assert (result.status, result.err) == (0, "")
    images = LmdbSplit(Path("out.lmdb")).first(6)
    assert result.out.splitlines() == [
        "records   6, none of them encoded",
        "shapes    3x8x8 (6)",
        "labels    0 (3), 1 (3)",
        f"values    {images.min()} to {images.max()} (all records)",
        "damage    none",
        "the first 5 images: grid.png",
    ]
    with Image.open("grid.png") as grid:
        corner = np.asarray(grid)[16:24, 16:24]  # inside the margin; 14 pixels for one
        assert grid.mode == "RGB" and grid.width > 5 * 8 * 14
    assert np.all(corner == images[0, :, 0, 0])


def test_json(here: Here, photos: Path) -> None:
    Path("photos/a/broken.png").write_text("no")
    result = here("data", "convert", photos, "out.lmdb", "--size", 8, "--gray", "--json")
    report = json.loads(result.out)
    seconds, size = report.pop("seconds"), report.pop("bytes")
    assert seconds > 0 and size == Path("out.lmdb/data.mdb").stat().st_size
    assert report == {
        "path": "out.lmdb",
        "records": 6,
        "image_shape": [1, 8, 8],
        "labels": {"a": 0, "b": 1},
        "skipped": 1,
        "skipped_list": "out.lmdb.skipped.txt",
    }
    assert result.status == 1
    result = here("data", "inspect", "out.lmdb", "--json")
    report = json.loads(result.out)
    assert result.status == 0
    assert report["records"] == 6 and report["shapes"] == {"1x8x8": 6}
    assert report["labels"] == {"0": 3, "1": 3} and report["damage"] == []
    assert "grid" not in report


def test_left_out_images_are_listed_beside_the_database(here: Here, photos: Path) -> None:
    for i in range(8):
        Path(f"photos/a/broken{i}\n.png").write_text("no")
    result = here("data", "convert", photos, "out.lmdb", "--size", 8)
    assert result.status == 1
    assert result.out.count("left out: photos/a/broken") == 5
    assert "8 of 14 images were left out: see out.lmdb.skipped.txt" in result.out
    listed = Path("out.lmdb.skipped.txt").read_text().splitlines()
    assert len(listed) == 8
    assert listed[0].startswith(r"photos/a/broken0\n.png is not an image that Pillow can read")
    for path in photos.glob("a/broken*"):
        path.unlink()
    assert here("data", "convert", photos, "out.lmdb", "--size", 8, "--overwrite").status == 0
    assert not Path("out.lmdb.skipped.txt").exists()


def test_all_options_reach_the_conversion(here: Here, photos: Path) -> None:
    Path("list.txt").write_text("".join(f"a/{i}.png {i}\n" for i in (0, 2, 4)))
    words = ("--list", "list.txt", "--shuffle", "--seed", 5, "--crop", "--threads", 2)
    assert here("data", "convert", photos, "a", "--size", 6, *words).status == 0
    assert here("data", "convert", photos, "b", "--size", 6, *words[:5]).status == 0
    a, b = LmdbSplit(Path("a")), LmdbSplit(Path("b"))
    assert sorted(a.labels().tolist()) == [0, 2, 4]
    assert a.names(0, 3) == b.names(0, 3)
    assert not np.array_equal(a.first(3), b.first(3))  # cropped, and squashed
    rgb = here("data", "convert", photos, "c", "--size", 6, "--channel-order", "rgb")
    assert rgb.status == 0
    assert np.array_equal(
        LmdbSplit(Path("c"), "rgb").first(6), LmdbSplit(Path("c")).first(6)[:, ::-1]
    )
    assert here("data", "convert", photos, "d", "--encoded").status == 0
    result = here("data", "inspect", "d")
    assert "records   6, 6 of them encoded" in result.out and "3x64x64 (6)" in result.out


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("convert photos out --size 0", "--size must be at least 1 and at most 2048, not 0"),
        ("convert photos out --threads 0", "--threads must be at least 1, not 0"),
        ("convert photos out --seed 1", "--seed needs --shuffle to have an effect"),
        ("convert photos out --channel-order gbr", "unknown channel order 'gbr'"),
        ("convert none out", "the source none: No such file or directory"),
        ("convert photos photos", "photos exists: name another one, or add --overwrite"),
        ("convert photos photos --overwrite", "photos holds a, which no LMDB does"),
        ("convert photos out --list none.txt", "cannot read none.txt: No such file"),
        ('convert photos ""', "Invalid value for 'OUT': a path cannot be empty"),
        ("convert photos", "Missing argument 'OUT'"),
        ("inspect none", "there is no none"),
        ("inspect photos", "photos is a folder without data.mdb"),
        ("inspect photos/a/0.png", "photos/a/0.png is not an LMDB"),
        ("inspect empty", "empty is an LMDB without records"),
        ("inspect good --count 0", "--count must be at least 1"),
        ("inspect good --channel-order x", "unknown channel order 'x'"),
        ("inspect good --out none/grid.png", "cannot write none/grid.png: No such file"),
        ("inspect bad --out grid.png", "no image of bad can be shown"),
    ],
)
def test_one_line_for_bad_input(here: Here, photos: Path, words: str, line: str) -> None:
    write(Path("empty"), [])
    write_images(Path("good"), pixels(3))
    write(Path("bad"), [(b"a", b"\xff")])
    before = sorted(str(path) for path in Path(".").rglob("*"))
    result = here("data", *(word.strip('"') for word in words.split()))
    assert result.status == 2
    errors = [text for text in result.err.splitlines() if text.startswith("cae-raw: error: ")]
    assert len(errors) == 1 and result.err.strip() == errors[0]
    assert errors[0].startswith(f"cae-raw: error: {line}"), errors[0]
    assert sorted(str(path) for path in Path(".").rglob("*")) == before


def test_damaged_records_are_named_and_counted(here: Here) -> None:
    items = [(key(i), record(image[::-1], 5)) for i, image in enumerate(pixels(20))]
    items[3] = (key(3), b"\xff")
    items[4] = (key(4), record(pixels(1)[0], height=99))
    items[5] = (b"00000005\n", record(pixels(1)[0], encoded=True))
    items[6] = (key(6), record(pixels(1, (1, 30, 20))[0], 7))
    write(Path("db"), items)
    result = here("data", "inspect", "db", "--out", "grid.png")
    assert result.status == 1
    assert "shapes    3x8x6 (16), 1x30x20 (1)" in result.out
    assert "labels    0 (2), 5 (16), 7 (1)" in result.out
    damage = [line for line in result.out.splitlines() if line.startswith("damage")]
    assert len(damage) == 3
    assert "record '00000003_images/3.jpg' is not a Datum" in damage[0]
    assert "record '00000004_images/4.jpg' has 144 bytes of data" in damage[1]
    assert r"record '00000005\n' is not an image" in damage[2]
    assert Path("grid.png").exists()


def test_much_damage_is_summed_up(here: Here) -> None:
    write(Path("db"), [(key(i), b"\xff") for i in range(150)])
    result = here("data", "inspect", "db")
    assert result.status == 1
    assert result.out.count("damage ") == 6 and "damage    and 145 more" in result.out
    report = json.loads(here("data", "inspect", "db", "--json").out)
    assert report["damaged"] == 150 and len(report["damage"]) == 100
    assert report["value_range"] is None


def test_damaged_pages_are_reported_and_the_rest_is_shown(here: Here) -> None:
    path = write_images(Path("db"), pixels(500)) / "data.mdb"
    whole = inspect(Path("db"))
    assert (whole.records, whole.damaged) == (500, 0)
    data = bytearray(path.read_bytes())
    kinds = np.frombuffer(data, "<u2").reshape(-1, 2048)[:, 5]
    leaf = int(np.flatnonzero(kinds == 2)[10])
    data[leaf * 4096 : leaf * 4096 + 64] = bytes(64)
    path.write_bytes(data)
    result = here("data", "inspect", "db")
    assert result.status == 1
    assert f"page {leaf} is not what it should be" in result.out
    assert "500 records are announced" in result.out
    assert 400 < inspect(Path("db")).records < 500
    with pytest.raises(InputError, match=f"page {leaf} is not what it should be"):
        LmdbSplit(Path("db"))


def test_a_lost_overflow_page_is_damage_of_one_record(here: Here) -> None:
    path = write_images(Path("db"), pixels(9, (3, 40, 40))) / "data.mdb"
    data = bytearray(path.read_bytes())
    kinds = np.frombuffer(data, "<u2").reshape(-1, 2048)[:, 5]
    page = int(np.flatnonzero(kinds == 4)[0])
    data[page * 4096] ^= 1
    path.write_bytes(data)
    found = inspect(Path("db"))
    assert (found.records, found.damaged, sum(found.shapes.values())) == (9, 1, 8)
    assert f"page {page}" in found.damage[0] and "record '" in found.damage[0]


def test_help_says_what_the_defaults_are(here: Here) -> None:
    out = here("data", "convert", "--help").out
    assert "squashed" in out and "bgr" in out and "[default: 64]" in out
    assert "convert" in here("data", "--help").out
