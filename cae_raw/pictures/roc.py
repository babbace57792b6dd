"""How well errors tell odd images from normal ones: the ROC curve, and both kinds' errors."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cae_raw.pictures.plot import figure_png, new_figure
from cae_raw.score.auroc import Roc

MOST_POINTS = 2000  # of the curve that are drawn
BINS = 40


def roc_png(
    curve: Roc, errors: NDArray[Any], odd: NDArray[np.bool_], threshold: float | None, words: str
) -> bytes:
    """A PNG: the curve with its area on the left, the errors of both kinds on the right.

    Args:
        errors, odd: (N,), as for `cae_raw.score.auroc.roc`.
        threshold: drawn as a line, and as a point of the curve; None: not drawn.
        words: names the odd class or classes.
    """
    figure = new_figure(9, 4.2)
    left, right = figure.subplots(1, 2)
    shown = np.unique(np.linspace(0, len(curve.false_positive_rate) - 1, MOST_POINTS).astype(int))
    left.plot(curve.false_positive_rate[shown], curve.true_positive_rate[shown], color="C0")
    left.plot([0, 1], [0, 1], color="0.7", linestyle="--", linewidth=1)
    left.set_title(f"ROC, AUROC {curve.auroc:.4f}")
    left.set_xlabel("share of normal images flagged")
    left.set_ylabel("share of odd images flagged")
    left.set_aspect("equal")
    finite = np.isfinite(errors) & (errors > 0)
    if finite.any():
        low, high = np.log10(errors[finite].min()), np.log10(errors[finite].max())
        edges = np.logspace(low, max(high, low + 1e-3), BINS + 1)
        for kind, label, colour in (
            (~odd, f"normal ({curve.normal:,})", "C0"),
            (odd, f"odd: {words} ({curve.odd:,})", "C3"),
        ):
            chosen = errors[finite & kind]
            weights = np.full(len(chosen), 100 / max(1, int(kind.sum())))
            right.hist(chosen, edges, weights=weights, alpha=0.6, color=colour, label=label)
        right.set_xscale("log")
    if threshold is not None:
        over = errors > threshold
        left.plot(over[~odd].mean(), over[odd].mean(), "o", color="black", label="threshold")
        left.legend(loc="lower right")
        if threshold > 0:
            right.axvline(
                threshold, color="black", linestyle=":", label=f"threshold {threshold:.3g}"
            )
    right.set_xlabel("mse")
    right.set_ylabel("% of the images of a kind")
    legend = right.legend()
    for text in legend.get_texts():
        text.set_parse_math(False)
    return figure_png(figure)
