"""Softmax cross-entropy: worked by hand, in parts, at the ends of the number range."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from cae_raw import CrossEntropyLoss
from cae_raw.errors import InputError

LOG = np.log


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("labels_as", [np.int64, np.uint8])
def test_worked_by_hand(dtype: Any, labels_as: Any) -> None:
    """softmax of (log 1, log 2, log 5) is (1, 2, 5) / 8, of equal logits 1/3 each."""
    logits = np.array([[LOG(1), LOG(2), LOG(5)], [7, 7, 7]]).astype(dtype)
    value, dlogits = CrossEntropyLoss()(logits, np.array([1, 2], labels_as))
    assert value == pytest.approx((LOG(8 / 2) + LOG(3)) / 2, rel=1e-6)
    expected = np.array([[1 / 8, 2 / 8 - 1, 5 / 8], [1 / 3, 1 / 3, 1 / 3 - 1]]) / 2
    np.testing.assert_allclose(dlogits, expected, rtol=1e-6)
    assert dlogits.dtype == dtype


def test_adding_a_number_to_a_row_changes_nothing() -> None:
    rng = np.random.default_rng(0)
    logits, labels = rng.integers(-9, 9, (5, 4)).astype(np.float32), rng.integers(0, 4, 5)
    near, far = (CrossEntropyLoss()(logits + s, labels) for s in np.float32([0, 2**17]))
    assert near[0] == far[0]
    np.testing.assert_array_equal(near[1], far[1])


def test_logits_beyond_what_exp_can_hold() -> None:
    logits = np.array([[0, 1e4], [-1e38, 1e38]], np.float32)
    value, dlogits = CrossEntropyLoss()(logits, np.array([0, 1]))
    assert value == pytest.approx(5e3)
    np.testing.assert_allclose(dlogits, [[-0.5, 0.5], [0, 0]])


def test_parts_add_up_to_the_whole() -> None:
    rng = np.random.default_rng(1)
    logits, labels = rng.standard_normal((23, 6)), rng.integers(0, 6, 23)
    loss = CrossEntropyLoss()
    whole, dlogits = loss(logits, labels)
    totals, parts = zip(
        *(loss.partial(logits[i : i + 5], labels[i : i + 5], 23) for i in range(0, 23, 5)),
        strict=True,
    )
    assert sum(float(t[0]) for t in totals) / 23 == pytest.approx(whole, rel=1e-12)
    np.testing.assert_allclose(np.concatenate(parts), dlogits, rtol=1e-12)


def test_an_empty_batch() -> None:
    value, dlogits = CrossEntropyLoss()(np.empty((0, 3), np.float32), np.empty(0, np.int64))
    assert value == 0 and dlogits.shape == (0, 3)


@pytest.mark.parametrize("label", [-1, 3])
def test_a_label_that_is_no_class_shows_as_nan(label: int) -> None:
    value, dlogits = CrossEntropyLoss()(np.zeros((2, 3)), np.array([0, label]))
    assert np.isnan(value)
    assert np.isfinite(dlogits[0]).all() and np.isnan(dlogits[1]).all()


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_what_is_not_a_number_shows(wrong: float) -> None:
    logits = np.zeros((2, 3))
    logits[1, 0] = wrong
    value, dlogits = CrossEntropyLoss()(logits, np.array([0, 1]))
    assert np.isnan(value) and np.isfinite(dlogits[0]).all() and np.isnan(dlogits[1]).all()


@pytest.mark.parametrize(
    ("logits", "labels", "words"),
    [
        (np.zeros(3), np.zeros(3, np.int64), "logits are"),
        (np.zeros((2, 0)), np.zeros(2, np.int64), "K at least 1"),
        (np.zeros((2, 3)), np.zeros(3, np.int64), "2 rows of logits and labels"),
        (np.zeros((2, 3)), np.zeros((2, 3), np.int64), "2 rows of logits and labels"),
        (np.zeros((2, 3)), np.zeros(2, np.float32), "int64 or uint8, not float32"),
    ],
)
def test_other_shapes_and_types_are_refused(logits: Any, labels: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        CrossEntropyLoss()(logits, labels)
