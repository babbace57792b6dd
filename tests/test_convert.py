"""Images into an LMDB: what is stored, under which keys, and what a failure leaves behind."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import lmdb
import numpy as np
import pytest
from cli_runner import ROOT, picture
from PIL import Image

from cae_raw.data import convert as module
from cae_raw.data import datum
from cae_raw.data.convert import Converted, ConvertOptions, Listed, convert, find_images, record_key
from cae_raw.data.image_file import load_image, load_square
from cae_raw.data.lmdb_datum import DatumReader
from cae_raw.errors import InputError


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Twelve images in two folders, of several sizes."""
    root = tmp_path / "photos"
    for i in range(12):
        picture(root / f"{'ab'[i % 2]}/{i:02}.png", 5 + i, 20 - i, 3, seed=i)
    return root


def run(
    source: Path, out: Path, options: ConvertOptions | None = None, **find: object
) -> Converted:
    images, _ = find_images(source, **find)  # type: ignore[arg-type]
    return convert(source, images, out, options or ConvertOptions(size=8))


def stored(path: Path, **options: object) -> tuple[list[bytes], np.ndarray, list[int]]:
    reader = DatumReader(path, **options)  # type: ignore[arg-type]
    n = len(reader)
    images = np.empty((n, *reader.image_shape), np.uint8)
    reader.read(0, n, images)
    return reader.file.keys(0, n), images, reader.labels(0, n).tolist()


NAMES = [f"a/{i:02}.png" for i in range(0, 12, 2)] + [f"b/{i:02}.png" for i in range(1, 12, 2)]


@pytest.mark.parametrize("crop", [False, True])
@pytest.mark.parametrize("gray", [False, True])
@pytest.mark.parametrize("order", ["bgr", "rgb"])
def test_a_folder(photos: Path, tmp_path: Path, crop: bool, gray: bool, order: str) -> None:
    options = ConvertOptions(size=8, crop=crop, gray=gray, channel_order=order, threads=3)
    result = run(photos, tmp_path / "db", options)
    keys, images, labels = stored(tmp_path / "db", channel_order=order)
    assert keys == [b"%08d_%s" % (i, name.encode()) for i, name in enumerate(NAMES)]
    assert labels == [0] * 6 + [1] * 6
    for name, image in zip(NAMES, images, strict=True):
        expected = load_square(photos / name, 1 if gray else 3, 8, whole=not crop)
        assert np.array_equal(image, expected)
    assert (result.records, result.skipped) == (12, [])
    assert [path.name for path in (tmp_path / "db").iterdir()] == ["data.mdb"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["db", "photos"]


def test_squashing_and_cropping(tmp_path: Path) -> None:
    pixels = np.zeros((8, 24, 3), np.uint8)
    pixels[:, 8:16] = 255
    path = tmp_path / "wide.png"
    Image.fromarray(pixels).save(path)
    assert load_square(path, 1, 8).min() == 255  # the centre is white
    squashed = load_square(path, 1, 24, whole=True)
    assert squashed.shape == (1, 24, 24)
    assert squashed[0, 12, 2] == squashed[0, 12, 21] == 0 and squashed[0, 12, 12] == 255


def test_liblmdb_and_protobuf_read_what_caffe_would(photos: Path, tmp_path: Path) -> None:
    run(photos, tmp_path / "db")
    with lmdb.open(str(tmp_path / "db"), readonly=True) as env, env.begin() as transaction:
        items = list(transaction.cursor())
    assert len(items) == 12
    message = datum.parse(items[1][1])
    assert (message.channels, message.height, message.width, message.label) == (3, 8, 8, 0)
    assert not message.encoded
    blue = np.frombuffer(message.data, np.uint8)[:64].reshape(8, 8)
    assert np.array_equal(blue, load_square(photos / NAMES[1], 3, 8, whole=True)[2])


@pytest.mark.parametrize("gray", [False, True])
def test_encoded(photos: Path, tmp_path: Path, gray: bool) -> None:
    smooth = Image.linear_gradient("L").convert("RGB")
    smooth.save(photos / "a/00.png")
    run(photos, tmp_path / "db", ConvertOptions(size=16, encoded=True, gray=gray))
    _, images, labels = stored(tmp_path / "db")
    assert images.shape == (12, 1 if gray else 3, 16, 16)
    assert labels == [0] * 6 + [1] * 6
    expected = load_square(photos / "a/00.png", 1 if gray else 3, 16, whole=True)
    assert np.abs(images[0].astype(int) - expected).max() < 8
    with pytest.raises(InputError, match="omit it"):
        run(photos, tmp_path / "x", ConvertOptions(encoded=True, channel_order="rgb"))


def test_labels_without_folders(photos: Path, tmp_path: Path) -> None:
    picture(photos / "top.png", 5, 5, 3)
    run(photos, tmp_path / "db")
    assert stored(tmp_path / "db")[2] == [0] * 13


def test_a_list(photos: Path, tmp_path: Path) -> None:
    shutil.copy(photos / "a/00.png", photos / "with two spaces.png")
    lines = "b/03.png 7\n\n  a/02.png\t-1 \r\nwith two spaces.png 2147483647\nb/03.png 0\n"
    (tmp_path / "list.txt").write_text(lines)
    run(photos, tmp_path / "db", list_file=tmp_path / "list.txt")
    keys, images, labels = stored(tmp_path / "db")
    paths = ["b/03.png", "a/02.png", "with two spaces.png", "b/03.png"]
    assert keys == [b"%08d_%s" % (i, path.encode()) for i, path in enumerate(paths)]
    assert labels == [7, -1, 2**31 - 1, 0]
    assert np.array_equal(images[0], images[3])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "lists no images"),
        ("a.png\n", "line 1: give a path and a whole number"),
        ("a.png 1\nb.png x\n", "line 2: give a path and a whole number"),
        ("a.png 1.5\n", "line 1: give a path"),
        ("a.png 4294967296\n", "line 1: the label 4294967296 does not fit 32 bits"),
        ("a\0.png 1\n", "line 1: give a path"),
        ("7\n", "line 1: give a path"),
    ],
)
def test_bad_lists(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "list.txt").write_text(text)
    with pytest.raises(InputError, match=message):
        find_images(tmp_path, tmp_path / "list.txt")


def test_shuffling_is_a_matter_of_the_seed(photos: Path) -> None:
    def order(seed: int) -> list[str]:
        return [image.path for image in find_images(photos, shuffle=True, seed=seed)[0]]

    assert sorted(order(0)) == NAMES
    assert order(0) == order(0) != order(1)
    assert order(0) != NAMES
    images, classes = find_images(photos, shuffle=True)
    assert classes == ("a", "b")
    assert all(image.label == (image.path[0] == "b") for image in images)


def test_broken_images_are_left_out_and_named(photos: Path, tmp_path: Path) -> None:
    (photos / "a/02.png").write_bytes(b"no image")
    (photos / "b/11.png").write_bytes((photos / "b/11.png").read_bytes()[:60])
    result = run(photos, tmp_path / "db")
    keys, images, labels = stored(tmp_path / "db")
    kept = [i for i, name in enumerate(NAMES) if name not in ("a/02.png", "b/11.png")]
    assert [int(key[:8]) for key in keys] == kept  # numbers are those of the list
    assert labels == [0] * 5 + [1] * 5
    assert result.records == 10
    assert [line.partition(" ")[0] for line in result.skipped] == [
        str(photos / "a/02.png"),
        str(photos / "b/11.png"),
    ]
    assert np.array_equal(images[0], load_square(photos / "a/00.png", 3, 8, whole=True))


def test_nothing_is_left_where_nothing_can_be_decoded(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.png").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"none of 1 images could be converted: .*a\.png is not"):
        run(tmp_path / "in", tmp_path / "db")
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_the_map_grows_by_itself(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FIRST_MAP", 64 << 10)
    monkeypatch.setattr(module, "COMMIT_RECORDS", 5)
    result = run(photos, tmp_path / "db", ConvertOptions(size=200))
    assert result.records == 12
    _, images, _ = stored(tmp_path / "db")
    for name, image in zip(NAMES, images, strict=True):
        assert np.array_equal(image, load_square(photos / name, 3, 200, whole=True))


def test_long_paths(tmp_path: Path) -> None:
    folder = "/".join(["x" * 100] * 6)
    picture(tmp_path / "in" / folder / "ä 1.png", 5, 5, 3)
    run(tmp_path / "in", tmp_path / "db")
    (key,) = stored(tmp_path / "db")[0]
    assert len(key) == 511
    assert key.startswith(b"00000000_...xxx") and key.endswith("/ä 1.png".encode())
    assert record_key(7, "y" * 502) == b"00000007_" + b"y" * 502
    assert record_key(7, "y" * 503) == b"00000007_..." + b"y" * 499


def test_an_existing_name_is_not_touched(photos: Path, tmp_path: Path) -> None:
    run(photos, tmp_path / "db")
    before = (tmp_path / "db/data.mdb").read_bytes()
    with pytest.raises(InputError, match="exists: name another one, or add --overwrite"):
        run(photos, tmp_path / "db", ConvertOptions(size=4))
    assert (tmp_path / "db/data.mdb").read_bytes() == before


def test_overwriting_replaces_databases_only(photos: Path, tmp_path: Path) -> None:
    images, _ = find_images(photos)

    def again(out: Path) -> None:
        convert(photos, images, out, ConvertOptions(size=4), overwrite=True)

    run(photos, tmp_path / "db")
    again(tmp_path / "db")
    assert stored(tmp_path / "db")[1].shape == (12, 3, 4, 4)
    again(tmp_path / "new")
    with pytest.raises(InputError, match="holds a, which no LMDB does: it is not overwritten"):
        again(photos)
    (tmp_path / "file").write_text("precious")
    (tmp_path / "link").symlink_to(tmp_path / "db")
    for name in ("file", "link"):
        with pytest.raises(InputError, match="is not the folder of an LMDB: it is not overwritten"):
            again(tmp_path / name)
    assert (tmp_path / "file").read_text() == "precious"
    assert len(list(photos.rglob("*.png"))) == 12
    assert sorted(p.name for p in tmp_path.iterdir()) == ["db", "file", "link", "new", "photos"]


def test_places_that_cannot_be_written(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such file or directory"):
        run(photos, tmp_path / "none/db")
    with pytest.raises(InputError, match="is no name for a new database"):
        run(photos, Path(".."))
    with pytest.raises(InputError, match="--size must be at least 1"):
        run(photos, tmp_path / "db", ConvertOptions(size=0))
    with pytest.raises(InputError, match=r"the source .*: No such file"):
        find_images(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no images below"):
        find_images(tmp_path / "empty")


def test_an_interrupt_leaves_nothing(photos: Path, tmp_path: Path) -> None:
    def interrupt(*args: object) -> None:
        raise KeyboardInterrupt

    images, _ = find_images(photos)
    with pytest.raises(KeyboardInterrupt):
        convert(photos, images, tmp_path / "db", ConvertOptions(size=8), progress=interrupt)
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]


LIMITED = """
import resource, sys
from pathlib import Path
from cae_raw.data.convert import ConvertOptions, convert, find_images
from cae_raw.errors import InputError
resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
source, out = map(Path, sys.argv[1:])
try:
    convert(source, find_images(source)[0], out, ConvertOptions(size=200))
except InputError as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits the size of files")
def test_a_full_disk_is_one_line_and_leaves_nothing(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "db"
    command = [sys.executable, "-c", LIMITED, str(photos), str(out)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout == f"cannot write {out}: Input/output error (is the disk full?)\n"
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]


SLOW = """
import sys, time
from pathlib import Path
from cae_raw.data import convert as module
module.COMMIT_RECORDS = 1
def wait(*args):
    print("one", flush=True)
    time.sleep(60)
source, out = map(Path, sys.argv[1:])
images = module.find_images(source)[0]
module.convert(source, images, out, module.ConvertOptions(size=8), progress=wait)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_a_kill_leaves_no_half_database(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "db*[1]"  # signs that a pattern would take for its own
    command = [sys.executable, "-c", SLOW, str(photos), str(out)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "one\n"
        (temporary,) = (path for path in tmp_path.iterdir() if path.name != "photos")
        with pytest.raises(InputError, match="is being written by cae-raw data convert"):
            DatumReader(temporary)
        with pytest.raises(InputError, match="has not finished it"):
            DatumReader(out)
        run(photos, tmp_path / "other")  # leaves the live one alone
        run(photos, out)  # and so does a conversion to the same name
        assert temporary.is_dir()
        shutil.rmtree(out)
        process.send_signal(signal.SIGKILL)
    assert temporary.is_dir() and not out.exists()
    deadline = time.monotonic() + 5
    while temporary.is_dir() and time.monotonic() < deadline:
        shutil.rmtree(out, ignore_errors=True)
        run(photos, out)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["db*[1]", "other", "photos"]
    assert len(stored(out)[0]) == 12


def test_many_commits_are_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "COMMIT_RECORDS", 7)
    picture(tmp_path / "in/a.png", 4, 4, 3)
    seen: list[tuple[str, int, int | None]] = []
    result = convert(
        tmp_path / "in",
        [Listed("a.png", i) for i in range(100)],
        tmp_path / "db",
        ConvertOptions(size=4),
        progress=lambda *args: seen.append(args),
    )
    assert result.records == 100
    _, images, labels = stored(tmp_path / "db")
    assert labels == list(range(100))
    assert np.array_equal(images[99], load_image(tmp_path / "in/a.png"))
    assert seen[0] == ("converting images", 7, 100) and seen[-1] == ("converting images", 100, 100)


def test_no_lock_is_left_for_readers(photos: Path, tmp_path: Path) -> None:
    run(photos, tmp_path / "db")
    assert os.listdir(tmp_path / "db") == ["data.mdb"]
    mode = (tmp_path / "db/data.mdb").stat().st_mode & 0o777
    umask = os.umask(0)
    os.umask(umask)
    assert mode == 0o666 & ~umask
