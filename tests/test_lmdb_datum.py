"""Datum records: what they mean, and that the quick way of reading them means the same."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lmdb_cases import key, pixels, record, write, write_images
from PIL import Image

from cae_raw.data import datum
from cae_raw.data.lmdb_datum import DatumReader, decode
from cae_raw.errors import InputError

SHAPE = (3, 8, 6)


def read(path: Path, **options: object) -> np.ndarray:
    reader = DatumReader(path, **options)  # type: ignore[arg-type]
    out = np.full((len(reader), *reader.image_shape), 77, np.uint8)
    reader.read(0, len(reader), out)
    return out


def jpeg(image: np.ndarray, kind: str = "PNG") -> bytes:
    buffer = BytesIO()
    rows = image[0] if len(image) == 1 else image.transpose(1, 2, 0)
    Image.fromarray(np.ascontiguousarray(rows)).save(buffer, kind)
    return buffer.getvalue()


# Values inside leaf pages, in one overflow page, in several; odd sizes leave pages unfilled.
@pytest.mark.parametrize(
    "shape",
    [(1, 1, 1), (1, 28, 28), (3, 8, 6), (3, 32, 32), (3, 64, 64), (3, 37, 91), (3, 48, 80)],
    ids=str,
)
@pytest.mark.parametrize("n", [1, 5, 300])
def test_images_come_back_rgb(tmp_path: Path, shape: tuple[int, int, int], n: int) -> None:
    images = pixels(n, shape)
    path = write_images(tmp_path / "db", images)
    assert np.array_equal(read(path), images)
    if shape[0] == 3:
        assert np.array_equal(read(path, channel_order="rgb"), images[:, ::-1])


def test_a_database_in_one_file(tmp_path: Path) -> None:
    images = pixels(20)
    path = write_images(tmp_path / "db.mdb", images, subdir=False)
    assert np.array_equal(read(path), images)


def test_any_keys_in_their_order(tmp_path: Path) -> None:
    images = pixels(5)
    keys = [b"zebra", b"\xff\x00", b"A", b"00000001", b"k" * 511]
    write(tmp_path / "db", [(k, record(i[::-1])) for k, i in zip(keys, images, strict=True)])
    order = sorted(range(5), key=lambda i: keys[i])
    assert np.array_equal(read(tmp_path / "db"), images[order])
    reader = DatumReader(tmp_path / "db")
    assert reader.file.keys(0, 5) == sorted(keys)
    assert reader.names(3, 5) == ["zebra", "\\xff\x00"]


def test_records_written_in_any_order_and_with_deletions(tmp_path: Path) -> None:
    import lmdb

    images = pixels(500)
    order = np.random.default_rng(1).permutation(500).tolist()
    write(tmp_path / "db", [(key(i), record(images[i][::-1])) for i in order])
    with lmdb.open(str(tmp_path / "db"), map_size=1 << 28) as env:
        for i in range(0, 500, 3):  # leaves free pages behind, which later records take
            with env.begin(write=True) as transaction:
                transaction.delete(key(i))
        with env.begin(write=True) as transaction:
            transaction.put(b"9", record(images[0][::-1]))
    kept = [i for i in range(500) if i % 3] + [0]
    assert np.array_equal(read(tmp_path / "db"), images[kept])


def test_read_only_folder_leaves_no_trace(tmp_path: Path) -> None:
    images = pixels(20)
    path = write_images(tmp_path / "db", images)
    (path / "lock.mdb").unlink()
    (path / "data.mdb").chmod(0o444)
    path.chmod(0o555)
    try:
        assert np.array_equal(read(path), images)
        assert [entry.name for entry in path.iterdir()] == ["data.mdb"]
    finally:
        path.chmod(0o755)


def test_twice_in_one_process_and_beside_liblmdb(tmp_path: Path) -> None:
    import lmdb

    images = pixels(20)
    path = write_images(tmp_path / "db", images)
    with lmdb.open(str(path), readonly=True):
        first, second = DatumReader(path), DatumReader(path)
        for reader in (first, second, first):
            out = np.empty_like(images)
            reader.read(0, 20, out)
            assert np.array_equal(out, images)


def test_labels(tmp_path: Path) -> None:
    path = write_images(tmp_path / "db", pixels(30))
    labels = DatumReader(path).labels(0, 30)
    assert labels.dtype == np.int64
    assert labels.tolist() == [i % 7 - 3 for i in range(30)]


def test_float_data(tmp_path: Path) -> None:
    values = np.linspace(0, 255, 144).reshape(SHAPE)
    value = record(np.zeros(SHAPE), data=None, float_data=values.ravel().tolist())
    assert np.array_equal(decode(value, "rgb"), np.floor(values + 0.5).astype(np.uint8))
    for wrong in (-0.5, 255.5, float("nan")):
        bad = values.copy()
        bad[1, 2, 3] = wrong
        value = record(np.zeros(SHAPE), data=None, float_data=bad.ravel().tolist())
        with pytest.raises(InputError, match=r"outside 0\.\.255"):
            decode(value)


def test_encoded_records(tmp_path: Path) -> None:
    images = pixels(6)
    values = [record(i, data=jpeg(i), encoded=True) for i in images[:5]]
    values.append(record(images[5], data=jpeg(images[5], "BMP"), encoded=True))
    path = write(tmp_path / "db", [(key(i), v) for i, v in enumerate(values)])
    for order in ("bgr", "rgb"):  # image files know their own
        assert np.array_equal(read(path, channel_order=order), images)


def test_encoded_channels() -> None:
    gray = pixels(1, (1, 5, 7))[0]
    value = jpeg(gray)
    nothing = dict(channels=None, height=None, width=None)
    assert np.array_equal(decode(record(gray, data=value, encoded=True)), gray)
    for fields in (nothing, dict(channels=3)):
        shown = decode(record(gray, data=value, encoded=True, **fields))
        assert np.array_equal(shown, gray.repeat(3, 0))


def test_raw_and_encoded_records_side_by_side(tmp_path: Path) -> None:
    images = pixels(100, (3, 40, 40))
    items = [
        (key(i), record(image[::-1]) if i % 3 else record(image, data=jpeg(image), encoded=True))
        for i, image in enumerate(images)
    ]
    assert np.array_equal(read(write(tmp_path / "db", items)), images)


def test_other_sizes_are_refused_or_resized(tmp_path: Path) -> None:
    images = pixels(9, (3, 16, 16))
    items = [(key(i), record(image[::-1])) for i, image in enumerate(images)]
    items[5] = (key(5), record(np.full((3, 20, 31), 9, np.uint8)))
    path = write(tmp_path / "db", items)
    with pytest.raises(InputError, match=r"00000005_images/5\.jpg' is 3x20x31.*first.*3x16x16"):
        read(path)
    out = read(path, resize=(16, 16))
    assert np.all(out[5] == 9)
    assert np.array_equal(np.delete(out, 5, 0), np.delete(images, 5, 0))
    assert read(path, resize=(4, 7)).shape == (9, 3, 4, 7)
    expected = Image.fromarray(images[0].transpose(1, 2, 0)).resize(
        (7, 4), Image.Resampling.LANCZOS
    )
    assert np.array_equal(read(path, resize=(4, 7))[0], np.asarray(expected).transpose(2, 0, 1))


def test_other_channels_are_refused(tmp_path: Path) -> None:
    items = [(key(0), record(pixels(1, (3, 4, 4))[0])), (key(1), record(pixels(1, (1, 4, 4))[0]))]
    path = write(tmp_path / "db", items)
    for resize in (None, (4, 4)):
        with pytest.raises(InputError, match=r"1\.jpg' is 1x4x4, but the first one is 3x4x4$"):
            read(path, resize=resize)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(height=7), "has 144 bytes of data, but its size is 3x7x6"),
        (dict(data=b""), "has 0 bytes of data, but its size is 3x8x6"),
        (dict(data=None, float_data=[1.0]), "has 1 floats of data, but its size is 3x8x6"),
        (dict(height=-8, width=-6), "has the size 3x-8x-6, which no image has"),
        (dict(channels=0), "has the size 0x8x6, which no image has"),
        (dict(height=2**31 - 1, width=2**31 - 1), "has 144 bytes of data, but its size is 3x2147"),
        (dict(channels=4, data=bytes(192)), "has 4 channels, but images have 1 or 3 here"),
        (dict(encoded=True), "is not an image that Pillow can read"),
        (dict(encoded=True, data=None), "is marked as encoded, but holds no image"),
        (dict(encoded=True, data=jpeg(pixels(1, (3, 60, 60))[0])[:2000]), "cannot be decoded"),
    ],
    ids=str,
)
@pytest.mark.parametrize("index", [0, 7])
def test_bad_records_are_named(
    tmp_path: Path, fields: dict[str, object], message: str, index: int
) -> None:
    items = [(key(i), record(image)) for i, image in enumerate(pixels(10))]
    items[index] = (key(index), record(pixels(1)[0], **fields))
    path = write(tmp_path / "db", items)
    with pytest.raises(InputError) as caught:
        read(path)
    text = str(caught.value)
    assert text.startswith(f"{path}: record '{key(index).decode()}' {message}")
    assert "\n" not in text


def test_what_is_no_datum(tmp_path: Path) -> None:
    for value in (b"\xff", b"no Datum", b""):
        path = write(tmp_path / f"db{len(value)}", [(b"a\nb", value)])
        with pytest.raises(InputError, match=r"record 'a\\nb' (is not a Datum|has the size 0x0x0)"):
            DatumReader(path)


def test_options_are_checked(tmp_path: Path) -> None:
    path = write_images(tmp_path / "db", pixels(2))
    with pytest.raises(InputError, match="unknown channel order 'gbr': choose one of bgr, rgb"):
        DatumReader(path, "gbr")
    with pytest.raises(InputError, match="cannot be resized to 0x4"):
        DatumReader(path, resize=(0, 4))


@given(st.binary(max_size=200))
def test_random_bytes_raise_input_errors_only(value: bytes) -> None:
    try:
        image = decode(value)
    except InputError as error:
        assert "\n" not in str(error)
    else:
        assert image.dtype == np.uint8 and image.ndim == 3


@given(data=st.data())
def test_mutated_records_mean_the_same_to_both_ways(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The quick way copies without parsing, so it has to see every record that is different."""
    image = pixels(1, (1, 3, 2))[0]
    good = record(image, data.draw(st.sampled_from([0, 1, 127, 128, 99999, -1])))
    value = bytearray(good)
    for _ in range(data.draw(st.integers(0, 3))):
        at = data.draw(st.integers(0, len(value)))
        action = data.draw(st.sampled_from(["set", "insert", "delete", "cut"]))
        new = data.draw(st.sampled_from([0, 1, 6, 8, 0x10, 0x18, 0x22, 0x28, 0x38, 0x80, 255]))
        if action == "insert" or at == len(value):
            value.insert(at, new)
        elif action == "set":
            value[at] = new
        elif action == "delete":
            del value[at]
        else:
            del value[at:]
    path = tmp_path_factory.mktemp("datum") / "db"
    write(path, [(b"0", record(image)), (b"1", bytes(value))])
    reader, out = DatumReader(path), np.zeros((2, 1, 3, 2), np.uint8)
    try:
        expected = decode(bytes(value))
        if expected.shape != (1, 3, 2):
            raise InputError("has another shape")
    except InputError:
        with pytest.raises(InputError, match="record '1'"):
            reader.read(0, 2, out)
    else:
        reader.read(0, 2, out)
        assert np.array_equal(out[1], expected)
    assert np.array_equal(out[0], image)


def is_plain(tail: bytes) -> bool:
    words = np.frombuffer((tail + b"\xff" * 8)[:8], "<u8")  # what lies behind must not matter
    return bool(datum.plain_tails(words, np.array([len(tail)]))[0])


@given(
    st.binary(max_size=8)
    | st.lists(st.sampled_from([0, 1, 0x28, 0x38, 0x7F, 0x80, 0xFF]), max_size=8).map(bytes)
)
def test_plain_tails_change_nothing_but_the_label(tail: bytes) -> None:
    if is_plain(tail):
        message = datum.parse(datum.plain_prefix((1, 1, 1)) + b"x" + tail)
        assert (message.encoded, message.data, message.float_data) == (False, b"x", [])
        assert (message.channels, message.height, message.width) == (1, 1, 1)


@pytest.mark.parametrize("label", [0, 1, 127, 128, 999, 2**21, 2**31 - 1, None])
def test_usual_tails_are_plain(label: int | None) -> None:
    for fields in ({}, {"encoded": False}):
        value = record(pixels(1, (1, 1, 1))[0], label, **fields)
        tail = value[len(datum.plain_prefix((1, 1, 1))) + 1 :]
        assert is_plain(tail)
        assert not is_plain(tail[:7] + b"\x28") and not is_plain(b"\x38\x01" + tail[:6])


def test_serialized_records_are_read_back(tmp_path: Path) -> None:
    image = pixels(1)[0]
    for order in ("bgr", "rgb"):
        value = datum.serialize(image, 5, order)
        assert np.array_equal(decode(value, order), image)
        assert value == record(image[::-1] if order == "bgr" else image, 5)
        assert value.startswith(datum.plain_prefix(SHAPE))
