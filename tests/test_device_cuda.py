"""The whole of `--device cuda`: training, evaluating and reconstructing, through the real launches.

On the emulator everywhere, and on the GPU as well where there is one.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from training_cases import assert_gradients_agree, losses

from cae_raw.app import app
from cae_raw.backends import NUMPY, Backend, choose_backend, probe
from cae_raw.commands import shell
from cae_raw.data import DataOptions, load_dataset
from cae_raw.models import build
from cae_raw.training.config import TrainConfig


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    """Drawn images; real ones of CIFAR-10 where CAE_RAW_DATA_DIR says where they are."""
    folder = os.environ.get("CAE_RAW_DATA_DIR")
    if folder is None:
        return load_dataset("shapes").train.images[:200]
    return load_dataset("cifar10", DataOptions(data_dir=Path(folder))).train.images[:200]


@pytest.mark.parametrize(
    "config",
    [
        TrainConfig(),
        TrainConfig(optimizer="sgd", lr=0.1, momentum=0.9, l2_penalty=1e-3, l2_decoder=True),
    ],
    ids=["adam", "sgd with momentum and a penalty"],
)
def test_twenty_losses_and_all_gradients_agree_with_numpy(
    backend: Backend, config: TrainConfig, images: np.ndarray
) -> None:
    mine, gradients, parameters = losses(backend, config, images, 20)
    reference, true_gradients, true_parameters = losses(NUMPY, config, images, 20)
    np.testing.assert_allclose(mine, reference, rtol=1e-5)
    assert mine[-1] < 0.8 * mine[0], "nothing was learned"
    assert_gradients_agree(build("single-layer"), gradients, true_gradients)
    np.testing.assert_allclose(parameters, true_parameters, atol=2e-4)


def test_repeated_training_is_bit_identical(backend: Backend, images: np.ndarray) -> None:
    one = losses(backend, TrainConfig(seed=5), images, 3)
    two = losses(backend, TrainConfig(seed=5), images, 3)
    assert one[0] == two[0]
    np.testing.assert_array_equal(one[2], two[2])


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, Any, str]:
    status = shell.run(app, [*arguments, "--json"])
    captured = capsys.readouterr()
    return status, json.loads(captured.out) if captured.out else None, captured.err


def test_the_commands(
    backend: Backend,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for i in range(12):
        pixels = rng.integers(0, 256, (9, 9, 3), dtype=np.uint8)
        (tmp_path / "photos").mkdir(exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{i}.png")

    def train(device: str, epochs: int) -> tuple[int, Any, str]:
        data = ["--dataset", "folder", "--data-dir", "photos", "--size", "8"]
        sizes = ["--filters", "4", "--batch-size", "4", "--epochs", str(epochs)]
        return run(capsys, "train", *data, *sizes, "--device", device, "--comment", device)

    status, on_gpu, text = train("cuda", 2)
    assert status == 0 and "on cuda:0" in text
    status, on_cpu, _ = train("cpu", 2)
    assert status == 0
    assert on_gpu["test"]["half_mse"] == pytest.approx(on_cpu["test"]["half_mse"], rel=1e-5)

    status, figures, _ = run(capsys, "evaluate", on_gpu["run"], "--device", "cuda")
    assert status == 0 and figures["half_mse"] == pytest.approx(on_gpu["test"]["half_mse"])

    status, report, _ = run(
        capsys, "reconstruct", "photos/1.png", "--run", on_gpu["run"], "--out", "a", "--device",
        "cuda",
    )  # fmt: skip
    assert status == 0
    status, same, _ = run(
        capsys, "reconstruct", "photos/1.png", "--run", on_gpu["run"], "--out", "b", "--device",
        "cpu",
    )  # fmt: skip
    assert report["images"][0]["mse"] == pytest.approx(same["images"][0]["mse"], rel=1e-5)
    pictures = [Image.open(tmp_path / d / "1.reconstruction.png") for d in "ab"]
    difference = np.asarray(pictures[0], int) - np.asarray(pictures[1], int)
    assert np.abs(difference).max() <= 1

    status, resumed, text = train("cuda", 3)
    assert (status, resumed["epochs"]) == (0, 3) and "resuming after 2 epochs" in text


def test_auto_takes_the_gpu_that_works_and_the_cpu_otherwise(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert choose_backend("auto").name == "cuda:0"
    monkeypatch.setattr(probe, "_opened", {})

    def broken(_: Any) -> None:
        raise RuntimeError("device lost")

    monkeypatch.setattr(probe, "check_kernel", broken)
    assert choose_backend("auto") is NUMPY
