"""`cae-raw report`: a page in order, small, with everything in it, also opened in a browser."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from base64 import b64decode
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_runner import Here
from html_check import Checked, check_page
from PIL import Image
from report_cases import CPU, FIRST, SECOND, SINGLE, here, read, rewrite, trained

from cae_raw.pictures.figures import FIGURES, pictures
from cae_raw.pictures.view import View
from cae_raw.report import svg
from cae_raw.report.differences import labels
from cae_raw.report.html import Page
from cae_raw.report.inline import exact, fitted
from cae_raw.report.svg import Axis, Series, chart, thinned
from cae_raw.report.table import rows
from cae_raw.training.trainer import EpochRecord

__all__ = ["here", "trained"]  # fixtures
BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)


def made(here: Here, *words: object) -> tuple[str, Checked]:
    """The page that these words make, in order."""
    result = here("report", *words, *CPU)
    assert result.status == 0, result.err
    page = Path("report.html").read_text()
    assert len(page.encode()) < 3_000_000
    return page, check_page(page)


def pixels(uri: str) -> np.ndarray:
    data = b64decode(uri.partition("base64,")[2])
    return np.asarray(Image.open(BytesIO(data)).convert("RGB"))


def test_the_page_of_two_runs(here: Here) -> None:
    page, checked = made(here, SINGLE)
    runs = read(SINGLE)
    for row in rows(runs):
        for name in ("best_validation_half_mse", "final_train_half_mse", "test_psnr", "seconds"):
            assert f'data-value="{row[name]!r}"' in page
        assert f"{row['best_validation_half_mse']:.4g}" in checked.text
        assert row["run"] in checked.text and row["label"] in checked.text
    shown = {html.unescape(attrs["alt"] or "") for tag, attrs in checked.tags if tag == "img"}
    assert {"input 1", "input 8"} <= shown
    for run in runs:
        images = np.zeros((16, *run.data["test"]["shape"]), np.uint8)
        view = View(run.model, images, focus_name="test image 0", history=run.history)
        for picture in pictures(view, [name for name in FIGURES if name != "curves"]):
            first_words = re.escape(picture.shows.partition(",")[0])
            assert any(re.match(first_words, words) for words in shown), picture.shows
    data = json.loads(re.search(r'id="data">(.*?)</script>', page).group(1))  # type: ignore[union-attr]
    for entry, run in zip(data["runs"], runs, strict=True):
        assert entry["epochs"] == [record.epoch for record in run.history]
        wanted = [record.validation_half_mse for record in run.history]
        assert entry["validation"] == pytest.approx(wanted, rel=1e-4)


def test_reconstructions_are_those_of_the_model(here: Here) -> None:
    _, checked = made(here, FIRST)
    by_alt = {attrs["alt"]: attrs["src"] for tag, attrs in checked.tags if tag == "img"}
    inputs = np.stack([pixels(by_alt[f"input {i}"] or "") for i in range(1, 9)])
    view = View(read(FIRST)[0].model, np.ascontiguousarray(inputs.transpose(0, 3, 1, 2)))
    for i, (output, figures) in enumerate(zip(view.outputs, view.figures, strict=True), 1):
        source = by_alt[f"reconstruction {i}, {figures.psnr:.1f}"]
        np.testing.assert_array_equal(pixels(source or ""), output.transpose(1, 2, 0))


def test_runs_of_all_models_and_ranges(here: Here) -> None:
    page, checked = made(here, "runs")
    assert "PSNR in dB over epochs of 3 runs" in page
    assert "half_mse cannot be compared between ranges of values" in checked.text
    assert "pooling masks of layer" in checked.text and 'value="2"' in page


def test_the_newest_run_is_the_default(here: Here) -> None:
    (SECOND / "best.safetensors").touch()
    _, checked = made(here)
    assert f"A run of cae-raw: {SECOND.name}" in checked.text
    report = json.loads(here("report", "--json", "--out", "b.html", *CPU).out)
    assert report["bytes"] == Path("b.html").stat().st_size
    assert [row["run"] for row in report["runs"]] == [str(SECOND)]


def test_without_images_the_weights_are_shown(here: Here) -> None:
    rewrite(FIRST, dataset="folder", data_dir="/nowhere", size=32)
    page, checked = made(here, FIRST)
    assert "no images are shown: --data-dir /nowhere: No such file" in checked.text
    assert "filters of the encoder" in checked.text and "slider-cut" not in page.split("<script")[0]


def test_runs_of_different_images_each_have_their_own(here: Here) -> None:
    from cae_raw.training import checkpoint

    saved = checkpoint.load(SECOND / "best.safetensors")
    saved.config["data"]["test"]["sha256"] = "0" * 64
    checkpoint.save(SECOND / "best.safetensors", saved)
    page, checked = made(here, SINGLE)
    assert "was trained on other images than these of shapes" in checked.text
    assert 'id="strip-0"' in page and 'id="strip-1"' not in page


def test_names_can_hold_anything(here: Here) -> None:
    name = "</script><script>alert(1)</script>&amp;\"'\x1b\n\u4e2d${title}$$\udcff"
    folder = Path(name.replace("/", "\u2215"))
    shutil.copytree(FIRST, folder)
    evil = "</title><img src=x onerror=alert(1)>${style}"
    rewrite(folder, comment="", data_dir=evil)
    page, checked = made(here, folder, FIRST)
    scripts = [tag for tag, _ in checked.tags if tag == "script"]
    assert len(scripts) == 2 and "\x1b" not in page
    assert (
        "<script>alert" not in page
        and "onerror=" not in page.replace("onerror=alert", "", 0)[: page.index("</title>")]
    )
    assert evil in checked.text and "${title}$$\\udcff" in checked.text


def test_a_page_stays_small_with_many_runs(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    from cae_raw.commands import report

    _, checked = made(here, SINGLE)
    everything = sum(tag == "img" for tag, _ in checked.tags)
    monkeypatch.setattr(report, "LARGEST_PAGE", 450_000)
    result = here("report", SINGLE, *CPU)
    assert result.status == 0 and "pictures of 1 run are left out" in result.out
    page = Path("report.html").read_text()
    assert 0 < sum(tag == "img" for tag, _ in check_page(page).tags) < everything
    assert len(page.encode()) < 450_000
    monkeypatch.setattr(report, "LARGEST_PAGE", 60_000)
    result = here("report", SINGLE, *CPU)
    assert result.status == 0 and "reconstructions of lr 0.001 and later runs" in result.out
    page = Path("report.html").read_text()
    assert not any(tag == "img" for tag, _ in check_page(page).tags)
    assert len(page.encode()) < 60_000


def test_odd_histories(here: Here) -> None:
    """One epoch, errors of 0, and errors that are no numbers."""
    (run,) = read(FIRST)
    nan = float("nan")
    for errors in ([(0.5, 0.25)], [(0.0, 0.0)], [(nan, nan)], [(1.0, nan), (1e-9, 0.0), (2, 3)]):
        history = [
            EpochRecord(e, e, 1.0, 1.0, train, validation, 0.1)
            for e, (train, validation) in enumerate(errors, 1)
        ]
        odd = [type(run)(run.path, run.config, run.checkpoint, history, None)]
        page = Page(odd, labels(odd), rows(odd)).html()
        check_page(page)
        assert "nan" not in re.sub(r"<script.*", "", page, flags=re.S).lower()


# --- its parts ------------------------------------------------------------------------------


def test_an_axis_puts_round_numbers_where_they_belong() -> None:
    axis = Axis(0.0, 150.0, 100.0, 400.0)
    assert (axis(0), axis(75), axis(150)) == (100, 250, 400)
    assert axis.ticks() == [0, 20, 40, 60, 80, 100, 120, 140]
    log = Axis(0.001, 10.0, 0.0, 400.0, log=True)
    assert log(0.1) == pytest.approx(200) and log.ticks() == [
        *(0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10)
    ]
    assert Axis(0.0, 0.07, 0.0, 1.0).ticks() == pytest.approx([i * 0.01 for i in range(8)])


def test_lines_go_through_their_values() -> None:
    one = Series("a", "#123456", [1, 2, 3], [0.5, float("nan"), 0.25], [1.0, 0.5, 0.75])
    drawing = chart([one], "half_mse", errors=True)
    x, y = (
        Axis(1, 3, svg.LEFT, svg.WIDTH - svg.RIGHT),
        Axis(0, 1.05, svg.HEIGHT - svg.BOTTOM, svg.TOP),
    )
    solid = "".join(
        f"{'ML'[i > 0]}{x(e):.1f} {y(v):.1f}"
        for i, (e, v) in enumerate(((1, 1.0), (2, 0.5), (3, 0.75)))
    )
    assert f'd="{solid}"' in drawing
    assert f'd="M{x(1):.1f} {y(0.5):.1f}M{x(3):.1f} {y(0.25):.1f}"' in drawing


def test_long_histories_are_thinned_and_keep_their_last_epoch() -> None:
    epochs = list(range(1, 50_001))
    values = [1.0 / e for e in epochs]
    (thin,) = thinned([Series("a", "red", epochs, values, values)])
    assert len(thin.epochs) <= svg.MOST_POINTS // 2 and thin.epochs[-1] == 50_000
    assert thin.train == [1.0 / e for e in thin.epochs]
    short = Series("a", "red", [1, 2], [1, 2], [3, 4])
    assert thinned([short]) == [short]


def test_pictures_become_smaller_until_they_fit() -> None:
    rng = np.random.default_rng(0)
    noise = [Image.fromarray(rng.integers(0, 256, (300, 1600, 3), np.uint8)) for _ in range(2)]
    whole = fitted(noise, 10**9)
    assert whole is not None and [one.width for one in whole] == [1600, 1600]
    cost = sum(len(one.uri) for one in whole)
    less = fitted(noise, cost // 2)
    assert less is not None and less[0].width < 1600
    assert sum(len(one.uri) for one in less) <= cost // 2
    assert fitted(noise, 1000) is None and fitted([], 0) == []


def test_colours_that_mean_numbers_are_not_changed(here: Here) -> None:
    (run,) = read(FIRST)
    (picture,) = pictures(View(run.model, None), ["encoder_filters"])
    packed = fitted([picture.image], 200_000)
    assert packed is not None
    np.testing.assert_array_equal(pixels(packed[0].uri), picture.array())


def test_small_images_keep_every_pixel() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    np.testing.assert_array_equal(pixels(exact(Image.fromarray(noise)).uri), noise)
    large = exact(Image.fromarray(noise).resize((128, 128)))
    assert (large.width, large.height) == (128, 128) and "webp" in large.uri[:20]


# --- in a browser -----------------------------------------------------------------------------

VISITOR = """
<script>
const told = {};
const click = (element) => element.click();
const order = () => [...document.querySelectorAll("#table tbody tr")].map(
  (row) => row.cells[0].dataset.value);
const set = (id, value, event) => {
  const element = document.getElementById(id);
  element.value = value;
  element.dispatchEvent(new Event(event, { bubbles: true }));
};
told.opened = order();
const header = document.querySelector("th[data-column='seconds']");
click(header.querySelector("button"));
told.ascending = [order(), header.getAttribute("aria-sort")];
click(header.querySelector("button"));
told.descending = [order(), header.getAttribute("aria-sort")];
told.sorted = document.querySelectorAll("th[aria-sort]").length;
set("epoch", 2, "input");
told.epoch = document.getElementById("epoch-shown").textContent;
told.values = [0, 1].map((i) => document.getElementById(`validation-${i}`).textContent);
set("slider-cut", 20, "input");
told.cut = getComputedStyle(document.querySelector(".tile img + img")).clipPath;
const second = () => document.querySelector(".tile img + img").src;
const before = second();
set("slider-run", 1, "change");
told.tiles = document.querySelectorAll(".tile").length;
told.changed = before !== second()
  && second() === document.querySelector("#strip-1 img").src;
const paper = () => getComputedStyle(document.body).backgroundColor;
told.system = paper();
click(document.getElementById("theme"));
told.toggled = paper();
click(document.getElementById("theme"));
told.again = paper();
told.drawn = [...document.images].every((image) => image.complete && image.naturalWidth > 0);
told.wide = document.documentElement.scrollWidth - document.documentElement.clientWidth;
document.documentElement.dataset.told = JSON.stringify(told);
</script>
</body>"""


def browse(folder: Path, address: str, *words: str) -> str:
    """What headless Chromium prints."""
    assert BROWSER is not None
    result = subprocess.run(
        [
            *(BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"),
            f"--user-data-dir={folder / 'profile'}",
            *words,
            f"file://{folder.resolve()}/{address}",
        ],
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    return result.stdout


@pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome is installed to open the page")
def test_in_a_browser(here: Here, tmp_path: Path) -> None:
    page, _ = made(here, SINGLE)
    (tmp_path / "visited.html").write_text(page.replace("</body>", VISITOR))
    light, dark = ((f"--blink-settings=preferredColorScheme={i}",) for i in (1, 0))
    for scheme, colours in ((light, (255, 20)), (dark, (20, 255))):
        dom = browse(
            tmp_path, "visited.html#sort=-lr", "--dump-dom", "--window-size=400,800", *scheme
        )
        root = re.search(r"<html[^>]*>", dom)
        assert root is not None and 'data-ready="true"' in root[0] and "data-error" not in root[0]
        told: dict[str, Any] = json.loads(
            html.unescape(re.search(r'data-told="([^"]*)"', root[0]).group(1))  # type: ignore[union-attr]
        )
        runs = read(SINGLE)
        names = labels(runs)
        assert names == ["lr 0.001", "lr 0.01"] and told["opened"] == names[::-1]
        seconds = [sum(record.seconds for record in run.history) for run in runs]
        by_time = [name for _, name in sorted(zip(seconds, names, strict=True))]
        assert told["ascending"] == [by_time, "ascending"]
        assert told["descending"] == [by_time[::-1], "descending"]
        assert told["sorted"] == 1
        (found,) = (float(value) for value in told["values"][1:])
        wanted = runs[1].history[1].validation_half_mse
        assert told["values"][0] == "-" and found == pytest.approx(wanted, rel=1e-3)
        assert told["epoch"] == "2"
        assert told["cut"] == "inset(0px 0px 0px 20%)" and told["tiles"] == 8 and told["changed"]
        shades = [int(re.findall(r"\d+", told[k])[0]) for k in ("system", "toggled", "again")]
        assert shades == [colours[0], colours[1], colours[0]]
        assert told["drawn"] and told["wide"] == 0, "wider than a narrow window"


@pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome is installed to open the page")
def test_how_it_looks_in_a_browser(here: Here, tmp_path: Path) -> None:
    page, _ = made(here, SINGLE)
    (tmp_path / "page.html").write_text(page)
    for scheme, (low, high) in ((1, (230, 255)), (0, (0, 60))):
        picture = tmp_path / f"{scheme}.png"
        words = (f"--screenshot={picture}", "--window-size=1000,900")
        browse(tmp_path, "page.html", *words, f"--blink-settings=preferredColorScheme={scheme}")
        shown = np.asarray(Image.open(picture).convert("RGB"))
        assert shown.shape == (900, 1000, 3)
        assert low <= np.median(shown) <= high
        for colour in ((0, 114, 178), (213, 94, 0)):  # the curves
            assert (shown == colour).all(-1).sum() > 50


def test_a_browsers_checks_see_an_error(tmp_path: Path) -> None:
    """An error in the page's script is recorded where the test looks for it."""
    if BROWSER is None:
        pytest.skip("no Chromium or Chrome is installed to open the page")
    script = (Path(svg.__file__).parent / "page.js").read_text()
    broken = script.replace("themes();\nsortable();", "undefinedFunction();")
    assert broken != script
    (tmp_path / "b.html").write_text(f"<!DOCTYPE html><title>x</title><script>{broken}</script>")
    dom = browse(tmp_path, "b.html", "--dump-dom")
    assert "undefinedFunction is not defined" in dom and "data-ready" not in dom
