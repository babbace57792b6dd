"""The real TensorBoard, on two runs, asked over HTTP what it shows of them."""

from __future__ import annotations

import importlib.util
import io
import json
import queue
import re
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import numpy as np
import pytest
from PIL import Image
from training_cases import Listener, make_dataset, metrics_without_times

from cae_raw.training.config import TrainConfig
from cae_raw.training.events import EventRecorder
from cae_raw.training.run_dir import RunDir
from cae_raw.training.session import RunSession

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("tensorboard") is None,
    reason="TensorBoard is not installed: pip install cae-raw[test]",
)

PATIENCE = 60.0  # seconds
Get = Callable[..., bytes]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs of two epochs, of 4 steps each."""
    folder = tmp_path_factory.mktemp("runs")
    for filters in (1, 2):
        config = TrainConfig(filters=filters, batch_size=10)
        path = folder / "single-layer" / f"f={filters}"
        path.mkdir(parents=True)
        session = RunSession(config, make_dataset(), RunDir(path), threads=1)
        session.train(2, Listener(), 60, EventRecorder(session.run, 1))
    return folder


@pytest.fixture(params=["true", "false"], ids=["fast loader", "slow loader"])
def get(runs: Path, request: pytest.FixtureRequest) -> Iterator[Get]:
    """Asks a TensorBoard on a free port of this machine, which is stopped afterwards."""
    if request.param == "true" and importlib.util.find_spec("tensorboard_data_server") is None:
        pytest.skip("TensorBoard's fast loader is not installed on this machine")
    words = ["--logdir", str(runs), "--host", "127.0.0.1", "--port", "0"]
    process = subprocess.Popen(
        [sys.executable, "-m", "tensorboard.main", *words, f"--load_fast={request.param}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    lines: queue.Queue[str] = queue.Queue()

    def listen() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            lines.put(line)

    listener = threading.Thread(target=listen)
    listener.start()
    try:
        address = _address(lines)
        # No proxy stands between this process and itself.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

        def ask(page: str, **values: object) -> bytes:
            url = f"{address}/data/plugin/{page}?{urlencode(values)}"
            with opener.open(url, timeout=PATIENCE) as answer:
                found: bytes = answer.read()
                return found

        yield ask
    finally:
        process.terminate()
        process.wait(PATIENCE)
        listener.join()
        assert process.stdout is not None
        process.stdout.close()


def _address(lines: queue.Queue[str]) -> str:
    """Where TensorBoard says that it can be reached."""
    heard = []
    while True:
        try:
            heard.append(lines.get(timeout=PATIENCE))
        except queue.Empty:
            pytest.fail("TensorBoard did not start: " + "".join(heard))
        found = re.search(r"http://127\.0\.0\.1:\d+", heard[-1])
        if found:
            return found.group()


def loaded(get: Get, page: str, runs: int) -> dict[str, Any]:
    """The tags by run, as soon as TensorBoard has read all files to their ends."""
    until, before = time.monotonic() + PATIENCE, ""
    while time.monotonic() < until:
        tags: dict[str, Any] = json.loads(get(page))
        now = json.dumps(tags, sort_keys=True)
        if len(tags) == runs and now == before:
            return tags
        before = now
        time.sleep(0.3)
    pytest.fail(f"TensorBoard found no more than {before}")


def test_scalars_and_images_over_http(get: Get, runs: Path) -> None:
    scalars, images = loaded(get, "scalars/tags", 4), loaded(get, "images/tags", 4)
    names = {f"single-layer/f={i}/{part}" for i in (1, 2) for part in ("train", "validation")}
    assert set(scalars) == set(images) == names, "runs side by side"
    for i in (1, 2):
        rows = metrics_without_times(runs / "single-layer" / f"f={i}" / "metrics.csv")
        for part in ("train", "validation"):
            run = f"single-layer/f={i}/{part}"
            got = json.loads(get("scalars/scalars", run=run, tag="half_mse"))
            assert [step for _, step, _ in got] == [4, 8]
            expected = [float(row[f"{part}_half_mse"]) for row in rows]
            np.testing.assert_allclose([value for _, _, value in got], expected, rtol=1e-6)
    assert {"penalty", "lr", "images_per_second", "gradient_norm/all"} <= set(
        scalars["single-layer/f=1/train"]
    )
    histograms = loaded(get, "histograms/tags", 2)
    assert "parameters/0.weight" in histograms["single-layer/f=1/train"]
    assert set(images["single-layer/f=2/train"]) == {"encoder_filters", "decoder_filters"}
    shown = set(images["single-layer/f=2/validation"])
    assert shown == {"reconstructions", "encoder_maps", "output", "errors"}
    for tag in shown:
        run = "single-layer/f=2/validation"
        found = json.loads(get("images/images", run=run, tag=tag, sample=0))
        assert [entry["step"] for entry in found] == [4, 8]
        key = found[-1]["query"].partition("=")[2]
        picture = Image.open(io.BytesIO(get("images/individualImage", blob_key=key)))
        assert picture.format == "PNG" and picture.width > 500
