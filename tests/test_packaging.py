"""The wheel and the source distribution, built from the checkout, hold what they should."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from cli_runner import ROOT

from cae_raw import __version__
from cae_raw.training.loading import PRETRAINED

BUILD = "import sys, hatchling.build as b; getattr(b, 'build_' + sys.argv[1])(sys.argv[2])"


@pytest.fixture(scope="module")
def backend(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment in which Python finds hatchling, fetched from the package index if need be.

    Without an index the tests are skipped, except on a continuous-integration machine.
    """
    if importlib.util.find_spec("hatchling"):
        return dict(os.environ)
    folder = tmp_path_factory.mktemp("hatchling")
    (wanted,) = re.findall(r'requires = \["(hatchling.*)"\]', (ROOT / "pyproject.toml").read_text())
    fetched = subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(folder), wanted],
        capture_output=True,
        text=True,
    )
    if fetched.returncode and not os.environ.get("CI"):
        pytest.skip("hatchling is not installed and the package index cannot be reached")
    assert fetched.returncode == 0, fetched.stderr
    return {**os.environ, "PYTHONPATH": str(folder)}


def build(kind: str, source: Path, out: Path, environment: dict[str, str]) -> Path:
    out.mkdir(exist_ok=True)
    subprocess.run(
        [sys.executable, "-c", BUILD, kind, str(out)], cwd=source, env=environment, check=True
    )
    (made,) = out.iterdir()
    return made


@pytest.fixture(scope="module")
def wheel(backend: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("wheel", ROOT, tmp_path_factory.mktemp("wheel"), backend)


@pytest.fixture(scope="module")
def sdist(backend: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("sdist", ROOT, tmp_path_factory.mktemp("sdist"), backend)


def contents(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_the_wheel_installs_one_package_and_nothing_else(wheel: Path) -> None:
    names = contents(wheel)
    tops = {name.partition("/")[0] for name in names}
    assert tops == {"cae_raw", f"cae_raw-{__version__}.dist-info"}
    assert wheel.name == f"cae_raw-{__version__}-py3-none-any.whl"
    strays = [
        name for name in names if re.search(r"(^|/)(tests|bench)/|__pycache__|\.pyc|/\.", name)
    ]
    assert not strays


def test_the_wheel_holds_every_source_kernel_and_model(wheel: Path) -> None:
    held = contents(wheel)
    kernels = sorted((ROOT / "kernels").glob("*.cu*"))
    assert "common.cuh" in {path.name for path in kernels} and len(kernels) > 5
    for path in kernels:
        assert held[f"cae_raw/kernels/{path.name}"] == path.read_bytes()
    for path in (ROOT / "cae_raw").rglob("*.py"):
        assert held[path.relative_to(ROOT).as_posix()] == path.read_bytes()
    assert "cae_raw/py.typed" in held
    for name in ("template.html", "page.css", "page.js"):
        path = ROOT / "cae_raw/report" / name
        assert held[f"cae_raw/report/{name}"] == path.read_bytes()
    for name in PRETRAINED.values():
        assert len(held[f"cae_raw/pretrained/{name}"]) > 1000
    entry_points = held[f"cae_raw-{__version__}.dist-info/entry_points.txt"].decode()
    assert "cae-raw = cae_raw.app:main" in entry_points
    assert f"cae_raw-{__version__}.dist-info/licenses/LICENSE" in held


def test_the_source_distribution_builds_the_same_wheel(
    sdist: Path, wheel: Path, backend: dict[str, str], tmp_path: Path
) -> None:
    with tarfile.open(sdist) as archive:
        names = archive.getnames()
        archive.extractall(tmp_path, filter="data")
    root = f"cae_raw-{__version__}"
    tops = {name.split("/")[1] for name in names if "/" in name}
    assert {"cae_raw", "kernels", "tests", "cli.py", "pyproject.toml", "README.md"} <= tops
    assert tops <= {
        *("cae_raw", "kernels", "tests", "bench", "docs", "cli.py"),
        *("pyproject.toml", "README.md", "LICENSE", "PKG-INFO", ".gitignore"),
    }
    again = build("wheel", tmp_path / root, tmp_path / "wheel", backend)
    assert contents(again) == contents(wheel)


def test_the_wheel_runs_by_itself(wheel: Path, tmp_path: Path) -> None:
    """Unpacked anywhere, it needs nothing of the checkout and finds its kernels and models."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    code = (
        "import cae_raw; from cae_raw.backends.kernel_source import kernels_dir\n"
        "from cae_raw.training.loading import pretrained\n"
        "print(cae_raw.__file__, kernels_dir()); pretrained(1); pretrained(3)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "site")},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert all(str(tmp_path / "site") in word for word in result.stdout.split())


@pytest.mark.parametrize("words", [("cli.py",), ("-m", "cae_raw")], ids=" ".join)
def test_without_installing_from_a_checkout(words: tuple[str, ...]) -> None:
    result = subprocess.run(
        [sys.executable, *words, "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert result.stdout.startswith("Usage: cae-raw [OPTIONS] COMMAND")
