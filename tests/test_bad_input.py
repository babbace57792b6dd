"""Bad input: one line says what is wrong, the exit status is right, nothing on disk is lost."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from bad_input_cases import MORE, RUN, TABLE, Row, rows
from cli_runner import ROOT, TRAIN, Here, command, heed_ctrl_c, isolate, picture, spawn
from lmdb_cases import key, pixels, record, write

from cae_raw.app import main
from cae_raw.errors import InputError
from cae_raw.training import checkpoint
from cae_raw.training.run_dir import RunDir

ON_A_DEVICE = (
    *("evaluate", "show", "compare", "report", "reconstruct", "encode", "decode"),
    *("classify", "score"),
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of one epoch in runs/, and an image, photo.png."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        isolate(patch, folder)
        with pytest.raises(SystemExit) as end:
            main(TRAIN)
        assert end.value.code == 0
    picture(folder / "photo.png", 12, 10, 3)
    return folder


@pytest.fixture
def here(here: Here, trained: Path) -> Here:
    shutil.copytree(trained, Path("."), dirs_exist_ok=True)
    return here


def complete(words: str) -> list[str]:
    """The words of a row, with what makes it small and keeps it on the CPU."""
    first, *rest = shlex.split(words) or [""]
    if first == "train":  # later options win, so the row's own come last
        few = TRAIN.index("--filters")
        small = TRAIN if "--model deep" not in words else TRAIN[:few] + TRAIN[few + 2 :]
        return [*small, *rest]
    if first in ON_A_DEVICE and "--threads" not in words:
        return [first, "--device", "cpu", *rest]
    return [first, *rest]


def matches(line: str, printed: str) -> bool:
    pattern = ".*".join(re.escape(part) for part in line.split("..."))
    return re.fullmatch(pattern, printed) is not None


def contents(folder: Path) -> dict[str, bytes | None]:
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
        if path.name != "lock"
    }


@pytest.mark.parametrize(
    ("row", "as_json"),
    [*((row, False) for row in (*TABLE, *MORE)), *((row, True) for row in TABLE)],
    ids=lambda value: value.words[:60] if isinstance(value, Row) else "json" * value,
)
def test_one_line_and_nothing_lost(here: Here, row: Row, as_json: bool) -> None:
    row.prepare()
    before = contents(Path("."))
    result = here(*complete(row.words), *(["--json"] if as_json else []))
    errors = [line for line in result.err.splitlines() if line.startswith("cae-raw: error: ")]
    assert len(errors) == 1, result.err
    printed = errors[0].removeprefix("cae-raw: error: ")
    assert matches(row.line, printed), printed
    assert result.status == row.status
    assert "Traceback" not in result.err and "Warning" not in result.err
    after = contents(Path("."))
    assert {name: after.get(name) for name in before} == before, "something on disk changed"
    if row.status == 2 and as_json:
        assert result.out == ""
    if row.status == 2 and row.words.startswith("train"):
        assert set(after) <= set(before), "something was left behind"


def test_good_files_are_done_before_and_after_a_broken_one(here: Here) -> None:
    Path("broken.png").write_text("no")
    picture(Path("gray.png"), 5, 7)
    result = here("reconstruct", "--device", "cpu", "photo.png", "broken.png", "gray.png")
    assert result.status == 1
    assert "1 of 3 files could not be used" in result.err
    assert Path("photo.comparison.png").exists() and Path("gray.comparison.png").exists()
    assert "broken" not in result.out


def test_every_cut_and_many_flips_of_a_checkpoint_are_refused(here: Here, tmp_path: Path) -> None:
    path = tmp_path / "damaged.safetensors"
    data = Path(RUN, "best.safetensors").read_bytes()
    for length in [*range(0, 40), *range(40, len(data), 97)]:
        path.write_bytes(data[:length])
        with pytest.raises(InputError, match="damaged"):
            checkpoint.load(path)
    for place in range(0, len(data), 11):
        damaged = bytearray(data)
        damaged[place] ^= 1 << place % 8
        path.write_bytes(damaged)
        with pytest.raises(InputError) as refused:
            checkpoint.load(path)
        assert "\n" not in str(refused.value)


def test_names_of_any_kind_are_shown_on_one_line(here: Here) -> None:
    name = "a\nb \x1b[31m \udcff ü.png"
    shutil.copy("photo.png", name)
    shutil.copy("photo.png", "-dash.png")
    result = here("reconstruct", "--device", "cpu", "--out", "out\n1", name, "--", "-dash.png")
    assert result.status == 0, result.err
    assert "\x1b" not in result.out
    assert len(result.out.splitlines()) == 1 + 2 * 3
    assert sorted(os.listdir("out\n1")) == sorted(
        stem + ending
        for stem in ("-dash", name[:-4])
        for ending in (".comparison.png", ".reconstruction.png")
    )
    missing = here("reconstruct", "--device", "cpu", "no\nsuch\x1b[0m.png")
    assert missing.status == 1
    assert (
        missing.err
        == "cae-raw: error: cannot read no\\nsuch\\x1b[0m.png: No such file or directory\n"
    )


def test_names_beyond_the_terminals_encoding(trained: Path, tmp_path: Path) -> None:
    name = os.fsencode(tmp_path) + b"/\xff\xc3\xbc.png"
    shutil.copy(os.fsencode(trained / "photo.png"), name)
    env = {"PYTHONIOENCODING": "ascii"}
    words = ("reconstruct", "--device", "cpu", os.fsdecode(name), "--runs-dir", trained / "runs")
    result = spawn(*words, cwd=tmp_path, env=env)
    assert result.returncode == 0, result.stderr
    assert "\\udcff" in result.stdout


def test_a_second_process_on_a_run_is_refused(here: Here) -> None:
    with RunDir(Path(RUN)).locked():
        result = here(*TRAIN)
    assert result.status == 2
    assert result.err == (
        f"cae-raw: error: {RUN} is in use by another process: wait for it, or give this run "
        "another name with --comment\n"
    )


def test_a_bad_record_among_good_ones(here: Here) -> None:
    records = [record(image) for image in pixels(40, (3, 9, 8))]
    for i in (17, 39):  # one to train on, one to validate on
        bad = [b"hello" if j == i else r for j, r in enumerate(records)]
        write(Path(f"{i}.lmdb"), ((key(j), r) for j, r in enumerate(bad)))
        result = here(*TRAIN, "--dataset", "lmdb", "--data-dir", f"{i}.lmdb")
        assert result.status == 2
        assert result.err == (
            f"cae-raw: error: {i}.lmdb: record '{i:08}_images/{i}.jpg' is not a Datum\n"
        )


def test_a_training_that_diverges_says_so(here: Here) -> None:
    words = (*TRAIN, "--optimizer", "sgd", "--lr", "1e20", "--l2-penalty", "1e20")
    result = here(*words, "--epochs", "3", "--comment", "wild")
    assert result.status == 2
    assert matches("cae-raw: error: training diverged: ...; try a smaller --lr...\n", result.err)


@contextmanager
def files_limited_to(size: int) -> Iterator[None]:
    """No file can grow beyond `size` bytes: a disk that is full, as far as writers can tell."""
    resource = pytest.importorskip("resource", reason="limits on file sizes are a POSIX matter")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("size", [0, 500, 2000, 4000])
def test_a_full_disk_loses_nothing(here: Here, size: int) -> None:
    words = (*TRAIN, "--epochs", "2")
    assert max(file.stat().st_size for file in Path(RUN).iterdir()) > size
    with files_limited_to(size):
        full = here(*words)
    assert full.status == 2
    assert matches("cae-raw: error: cannot write ...: File too large...\n", full.err)
    assert full.err.count("\n") == 1
    assert not list(Path(RUN).glob(".*")), "temporary files are left"

    assert here(*words).status == 0
    assert here(*words, "--runs-dir", "other").status == 0
    resumed = checkpoint.load(Path(RUN, "last.safetensors"))
    never_stopped = checkpoint.load(Path("other", *Path(RUN).parts[1:], "last.safetensors"))
    assert all(
        np.array_equal(value, never_stopped.parameters[name])
        for name, value in resumed.parameters.items()
    )


def test_a_full_disk_during_reconstruction(here: Here) -> None:
    before = contents(Path("."))
    with files_limited_to(100):
        full = here("reconstruct", "photo.png", "--device", "cpu", "--json")
    assert full.status == 1
    assert full.err.splitlines()[-1] == (
        "cae-raw: error: photo.png: cannot write photo.reconstruction.png: File too large"
    )
    assert json.loads(full.out)["images"][0]["error"] is not None
    assert contents(Path(".")) == before


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_output_that_cannot_be_written(here: Here) -> None:
    with open("/dev/full", "w") as full:
        result = subprocess.run(
            command("--version"), stdout=full, stderr=subprocess.PIPE, text=True, timeout=60
        )
    assert result.returncode == 2
    assert result.stderr == "cae-raw: error: cannot write the output: No space left on device\n"


def test_a_reader_that_leaves_is_no_error(here: Here) -> None:
    script = f"{shlex.join(command('train', '--help'))} | head -c 1"
    result = subprocess.run(script, shell=True, capture_output=True, text=True, timeout=60)
    assert result.stderr == ""


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="needs permissions as POSIX has them")
def test_without_permission(trained: Path, here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root may read and write anything, so root becomes another user for a while."""
    folder = Path(tempfile.mkdtemp())
    user = os.geteuid()
    shutil.copytree(trained, folder, dirs_exist_ok=True)
    train = (*TRAIN, "--runs-dir", "locked/runs")
    reconstruct = ("reconstruct", "--device", "cpu", "photo.png")
    assert (here(*train).status, here(*reconstruct).status) == (0, 0)  # loads every module
    try:
        monkeypatch.chdir(folder)
        shutil.copy("photo.png", "secret.png")
        Path("secret.png").chmod(0o000)
        Path("locked").mkdir()
        for path in (Path("locked"), folder):
            path.chmod(0o555)
        if user == 0:
            os.seteuid(65534)
        unreadable = here("reconstruct", "--device", "cpu", "secret.png")
        beside = here(*reconstruct)
        read_only = here(*train)
    finally:
        os.seteuid(user)
        for path in (folder, folder / "locked"):
            path.chmod(0o755)
        shutil.rmtree(folder)
    denied = "Permission denied\n"
    assert (unreadable.status, beside.status, read_only.status) == (1, 1, 2)
    assert unreadable.err == f"cae-raw: error: cannot read secret.png: {denied}"
    assert beside.err == (
        f"cae-raw: error: photo.png: cannot write photo.reconstruction.png: {denied}"
    )
    assert matches(f"cae-raw: error: cannot write to locked/runs/...: {denied}", read_only.err)


def test_ctrl_c_during_a_download(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        proxy = f"http://127.0.0.1:{silent.getsockname()[1]}"
        env = {"https_proxy": proxy, "no_proxy": "", "CAE_RAW_CACHE": str(tmp_path / "cache")}
        process = subprocess.Popen(
            command("train", "--dataset", "mnist", "--device", "cpu"),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **env},
            cwd=tmp_path,
            preexec_fn=heed_ctrl_c,
        )
        silent.settimeout(60)
        connection, _ = silent.accept()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
        connection.close()
    assert (process.returncode, out, err) == (130, "", "")
    assert not (tmp_path / "runs").exists()


def test_the_readme_has_this_table() -> None:
    readme = (ROOT / "README.md").read_text()
    missing = [row for row in rows() if row not in readme]
    assert not missing, "paste what `python tests/bad_input_cases.py` prints"
