"""Scores, thresholds and AUROC, each against a way to compute it that is plainly right."""

from __future__ import annotations

from math import inf, nan

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from training_cases import make_images, pooling_model

from cae_raw.data.classes import find_classes
from cae_raw.errors import InputError
from cae_raw.models import Autoencoder, single_layer
from cae_raw.reconstruct import reconstruct_image
from cae_raw.score import Ranking, Score, Scorer, roc, scorer, threshold_of
from cae_raw.score.images import Extremes

# --- AUROC ----------------------------------------------------------------------------------


def counted(scores: np.ndarray, odd: np.ndarray) -> float:
    """The share of pairs (odd, normal) in which the odd score is higher; ties count one half."""
    pairs = [(a, b) for a in scores[odd] for b in scores[~odd]]
    return sum(1.0 if a > b else 0.5 if a == b else 0.0 for a, b in pairs) / len(pairs)


@given(
    st.lists(st.tuples(st.sampled_from([0.0, 0.5, 1.0, 1.5, 7.0, inf]), st.booleans()), min_size=2)
)
@settings(max_examples=200, deadline=None, derandomize=True)
def test_auroc_is_the_share_of_pairs_in_the_right_order(examples: list[tuple[float, bool]]) -> None:
    """Few distinct values, so that there are ties of every kind."""
    scores = np.array([score for score, _ in examples])
    odd = np.array([is_odd for _, is_odd in examples])
    if odd.all() or not odd.any():
        with pytest.raises(InputError, match="AUROC needs both kinds"):
            roc(scores, odd)
        return
    curve = roc(scores, odd)
    assert curve.auroc == pytest.approx(counted(scores, odd), abs=1e-12)
    # The area under the curve's straight lines is the same number, found another way.
    x, y = curve.false_positive_rate, curve.true_positive_rate
    assert np.sum(np.diff(x) * (y[1:] + y[:-1]) / 2) == pytest.approx(curve.auroc, abs=1e-12)
    assert (x[0], y[0], x[-1], y[-1]) == (0, 0, 1, 1)
    assert (curve.odd, curve.normal) == (odd.sum(), (~odd).sum())


def test_points_of_the_curve_are_rates_at_thresholds() -> None:
    scores, odd = np.array([3.0, 1.0, 2.0, 2.0]), np.array([True, False, True, False])
    curve = roc(scores, odd)
    assert curve.false_positive_rate.tolist() == [0, 0, 0.5, 1]  # at 3, at 2, at 1
    assert curve.true_positive_rate.tolist() == [0, 0.5, 1, 1]
    assert curve.auroc == (1 + 1 + 1 + 0.5) / 4


def test_nan_has_no_rank() -> None:
    with pytest.raises(InputError, match="not a number"):
        roc(np.array([nan, 1.0]), np.array([True, False]))


# --- thresholds and rankings ----------------------------------------------------------------


@pytest.mark.parametrize("quantile", [0.01, 0.5, 0.9, 0.95, 0.99, 1.0])
@pytest.mark.parametrize("n", [1, 2, 10, 100, 101])
def test_no_more_clean_images_than_stated_lie_above(n: int, quantile: float) -> None:
    errors = np.random.default_rng(0).permutation(np.arange(n, dtype=float))
    threshold = threshold_of(errors, quantile)
    assert threshold in errors
    assert np.mean(errors <= threshold) >= quantile - 1e-12
    assert np.mean(errors < threshold) < quantile, "a lower one would do"


def test_a_clean_set_without_images() -> None:
    with pytest.raises(InputError, match="clean set is empty"):
        threshold_of(np.empty(0), 0.9)


def test_a_ranking() -> None:
    scores = [Score("a", 0, 0.5), Score("b", 1, inf), Score("c", None, 0.5), Score("d,", 7, 0.0)]
    ranking = Ranking.of(scores, (-1.0, 1.0), classes=("x", "y"), threshold=0.1, odd=frozenset({1}))
    rows = ranking.rows()
    assert [row["name"] for row in rows] == ["b", "a", "c", "d,"]
    assert [row["rank"] for row in rows] == [1, 2, 3, 4]
    assert [row["class"] for row in rows] == ["y", "x", None, "7"]
    assert [row["mse"] for row in rows] == [None, 0.5, 0.5, 0.0]
    assert [row["half_mse"] for row in rows] == [None, 0.25, 0.25, 0.0]
    assert rows[1]["psnr"] == pytest.approx(10 * np.log10(4 / 0.5))
    assert rows[3]["psnr"] is None, "infinite"
    assert [row["flagged"] for row in rows] == [True, True, True, False]
    assert [row["odd"] for row in rows] == [True, False, False, False]
    assert ranking.flagged == 3
    lines = ranking.to_csv().splitlines()
    assert lines[0] == "rank,name,label,class,mse,half_mse,psnr,flagged,odd"
    assert lines[1] == "1,b,1,y,,,,1,1"
    assert lines[4] == '4,"d,",7,7,0,0,,0,0'


def test_the_threshold_itself_is_not_flagged() -> None:
    ranking = Ranking.of([Score("a", None, 0.2)], (0.0, 1.0), threshold=0.2)
    assert ranking.flagged == 0
    assert Ranking.of([Score("a", None, 0.2)], (0.0, 1.0)).rows()[0]["flagged"] is None


@pytest.mark.parametrize("highest", [True, False])
def test_the_extremes_of_many_batches(highest: bool) -> None:
    rng = np.random.default_rng(3)
    errors = rng.integers(0, 12, 40).astype(float)
    images = np.arange(40, dtype=np.uint8).reshape(40, 1, 1, 1)
    extremes = Extremes(7, highest)
    for start in range(0, 40, 9):
        part = slice(start, start + 9)
        extremes.add(errors[part], start, images[part])
    order = np.argsort(-errors if highest else errors, kind="stable")[:7]
    assert [number for number, _ in extremes.images] == order.tolist()
    assert [int(image[0, 0, 0]) for _, image in extremes.images] == order.tolist()


# --- the errors -----------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [1, 6000, 24 * 2**20], ids=["blocks", "chunks", "one chunk"])
@pytest.mark.parametrize("kind", ["single-layer", "pooling"])
def test_errors_are_those_of_reconstruct(
    kind: str, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scorer, "CHUNK_BYTES", limit)
    rng = np.random.default_rng(0)
    model = single_layer(1, 4, rng) if kind == "single-layer" else pooling_model(rng)
    images = make_images(70, (1, 6, 4))
    expected = [reconstruct_image(model, image).figures.mse for image in images]
    with Scorer(model, threads=3) as score:
        found = score(images)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_errors_do_not_depend_on_threads(model: Autoencoder) -> None:
    images = make_images(150, (1, 9, 7))
    found = []
    for threads in (1, 2, 5):
        with Scorer(model, threads) as score:
            found.append(score(images).tobytes())
    assert len(set(found)) == 1


def test_a_diverged_model_scores_infinity(model: Autoencoder) -> None:
    model.load_parameters(np.full_like(model.parameters, nan))
    with Scorer(model) as score:
        assert score(make_images(2)).tolist() == [inf, inf]
        assert score(make_images(0)).shape == (0,)


# --- classes --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "classes", "found"),
    [
        ("cat,dog", ("cat", "dog"), [0, 1]),
        (" dog , dog,", ("cat", "dog"), [1]),
        ("1,cat", ("cat", "dog"), [1, 0]),
        ("4", tuple("9876543210"), [5]),  # a name comes before a number
        ("3", (), [3]),
    ],
)
def test_classes_by_name_or_number(text: str, classes: tuple[str, ...], found: list[int]) -> None:
    assert find_classes(text, classes, "--odd") == found


@pytest.mark.parametrize(
    ("text", "classes", "words"),
    [
        ("bird", ("cat", "dog"), "unknown class 'bird': choose one of cat, dog"),
        ("2", ("cat", "dog"), "unknown class '2'"),
        ("-1", ("cat",), "unknown class '-1'"),
        ("9" * 5000, ("cat",), "unknown class"),
        ("x", (), "have no names, give a number"),
        (" ,", ("cat",), "--odd names no class"),
    ],
)
def test_unknown_classes(text: str, classes: tuple[str, ...], words: str) -> None:
    with pytest.raises(InputError, match=words):
        find_classes(text, classes, "--odd")
