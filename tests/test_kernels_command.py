"""`cae-raw kernels`: every kernel is listed, with figures from its source and from the compiler."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from cae_raw.app import app
from cae_raw.backends import kernel_source, nvrtc
from cae_raw.commands import kernels, shell

needs_nvrtc = pytest.mark.skipif(nvrtc.find_library() is None, reason="no NVRTC library installed")


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["kernels", *arguments])
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture
def without_nvrtc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvrtc, "find_library", lambda: None)


def test_every_kernel_has_a_build() -> None:
    built = {build.kernel.entry for build in kernels.builds([1, 3])}
    assert built == set(kernel_source.all_entries())


def test_every_constant_of_a_block_size_is_there() -> None:
    for build in kernels.builds([1, 3]):
        assert build.kernel.block % 32 == 0, build


def test_channels_choose_the_convolutions() -> None:
    where = {build.where for build in kernels.builds([1, 3])} - {""}
    assert {"1 -> 32 channels, 3x3", "32 -> 1 channels, 3x3", "3 -> 32 channels, 3x3"} <= where
    assert not any(w.startswith(("3 ", "32 -> 3 ")) for b in kernels.builds([1]) for w in [b.where])


@pytest.mark.usefixtures("without_nvrtc")
def test_without_nvrtc_it_says_how_to_get_it() -> None:
    report = json.loads(run("--json"))
    assert (report["nvrtc"], len(report["kernels"])) == (None, len(kernel_source.all_entries()))
    assert "pip install nvidia-cuda-nvrtc" in report["note"]
    assert all(build["resources"] is None for k in report["kernels"] for build in k["builds"])
    text = run()
    assert "pip install nvidia-cuda-nvrtc" in text
    for name, entry in kernel_source.all_entries().items():
        assert f"  {name}: {entry.about['formula']}\n    FLOPs: {entry.about['flops']}\n" in text
        assert f"    bytes: {entry.about['bytes']}\n" in text


@needs_nvrtc
def test_resources_are_those_of_the_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    # The tiled convolutions take seconds; what is asked here does not depend on them.
    chosen = [build for build in kernels.builds([3]) if build.kernel.file in ("loss", "reduce")]
    monkeypatch.setattr(kernels, "builds", lambda _: chosen)
    report = json.loads(run("--json", "--arch", "sm_80"))
    assert report["arch"] == "sm_80" and report["note"] == ""
    (kernel,) = (k for k in report["kernels"] if k["name"] == "squared_error")
    (build,) = kernel["builds"]
    options = [f"-D{name}={value}" for name, value in build["constants"].items()]
    done = nvrtc.compile_to_cubin(kernel_source.expand("loss"), "sm_80", options)
    expected = done.resources["squared_error"]
    assert expected.registers > 0
    assert build["resources"]["registers"] == expected.registers
    assert build["resources"]["static_shared"] == expected.static_shared
    line = f"    {expected.registers} registers, {expected.static_shared} bytes of shared memory"
    assert line in run("--arch", "sm_80")


@needs_nvrtc
def test_an_unknown_architecture_lists_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    assert shell.run(app, ["kernels", "--arch", "sm_11"]) == 2
    message = capsys.readouterr().err
    assert "sm_90" in message and message.count("\n") == 1


@needs_nvrtc
@pytest.mark.parametrize("name", ["conv2d_forward", "conv2d.cu", "loss", "linear_combine"])
def test_the_printed_source_compiles_by_itself(name: str) -> None:
    text = run("--source", name)
    assert "#include" not in text
    done = nvrtc.compile_to_cubin(text, "sm_90")
    assert done.log == ""
    entries = kernel_source.entries(name.removesuffix(".cu")) if "_" not in name else {name: None}
    assert set(entries) <= set(done.resources)


def test_the_printed_source_has_the_constants_of_the_channels() -> None:
    text = run("--source", "conv2d_forward", "--channels", "1")
    assert "#define C 1\n" in text and "#define O 32\n" in text
    assert "for 1 -> 32 channels, 3x3" in text.splitlines()[0]


def test_an_unknown_source_lists_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    assert shell.run(app, ["kernels", "--source", "conv3d"]) == 2
    assert "conv2d_forward" in capsys.readouterr().err


def test_channels_that_no_model_takes(capsys: pytest.CaptureFixture[str]) -> None:
    assert shell.run(app, ["kernels", "--channels", "0"]) == 2
    assert "channels" in capsys.readouterr().err
