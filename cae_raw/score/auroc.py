"""How well a score tells odd examples from normal ones, over all thresholds.

AUROC, the area under the ROC curve, is the probability that an odd example has a higher score than
a normal one, both drawn at random, a tie counting one half (the Mann-Whitney U statistic divided by
the number of pairs):

    AUROC = (sum of the ranks of the odd - n_odd * (n_odd + 1) / 2) / (n_odd * n_normal)

with ranks from 1 in rising order of score, and equal scores sharing the mean of their ranks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cae_raw.errors import InputError


@dataclass(frozen=True)
class Roc:
    """The curve from (0, 0) to (1, 1), a point per distinct score, and the area under it.

    false_positive_rate, true_positive_rate: (M,), rising; the shares of normal and of odd examples
        whose score is at least the threshold that the point stands for.
    """

    auroc: float
    false_positive_rate: NDArray[np.float64]
    true_positive_rate: NDArray[np.float64]
    odd: int
    normal: int


def roc(scores: NDArray[Any], odd: NDArray[np.bool_]) -> Roc:
    """The curve for scores (N,), infinity allowed, where odd (N,) is true for those to be found.

    Raises:
        InputError: if there are no odd or no normal examples, or a score is NaN.
    """
    n_odd = int(np.count_nonzero(odd))
    n_normal = len(scores) - n_odd
    if not n_odd or not n_normal:
        missing = "odd" if not n_odd else "normal"
        raise InputError(f"there are no {missing} images to compare with: AUROC needs both kinds")
    if np.isnan(scores).any():
        raise InputError("a score is not a number: there is no order to measure")
    values, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)  # the highest rank of each distinct score
    ranks = (last - (counts - 1) / 2)[inverse.reshape(-1)]
    u = float(ranks[odd].sum()) - n_odd * (n_odd + 1) / 2
    odd_counts = np.bincount(inverse.reshape(-1), weights=odd, minlength=len(values))[::-1]
    normal_counts = counts[::-1] - odd_counts
    return Roc(
        u / (n_odd * n_normal),
        np.concatenate([[0.0], np.cumsum(normal_counts) / n_normal]),
        np.concatenate([[0.0], np.cumsum(odd_counts) / n_odd]),
        n_odd,
        n_normal,
    )
