"""The confusion matrix as a picture: which classes are taken for which."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from cae_raw.pictures.plot import figure_png, new_figure

NUMBERED = 20  # classes; with more of them numbers would not be readable
NAMED = 60
LONGEST = 16  # characters of a class's name


def confusion_png(confusion: NDArray[np.int64], classes: Sequence[str], title: str) -> bytes:
    """A PNG: a row per true class, a column per predicted one.

    Colours are shares of the row, so that classes of any size can be compared; the numbers in the
    cells are counts, and per cent below them on the diagonal. Numbers are left out above 20 classes
    and names above 60.

    Args:
        confusion: counts (K, K).
        classes: K names; long ones are cut.
        title: stands above.
    """
    k = len(classes)
    totals = confusion.sum(axis=1, keepdims=True)
    shares = confusion / np.maximum(totals, 1)
    side = min(14.0, max(4.5, 0.55 * k + 1.5))
    figure = new_figure(side + 0.8, side)
    axes = figure.add_subplot()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set_title(title, parse_math=False)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    figure.colorbar(image, ax=axes, fraction=0.046, label="share of the true class")
    if k <= NAMED:
        names = [
            n if len(n) <= LONGEST else n[: LONGEST - 1] + "\N{HORIZONTAL ELLIPSIS}"
            for n in classes
        ]
        rotation = 0 if max(map(len, names)) <= 3 else 45
        axes.set_xticks(
            range(k), names, rotation=rotation, ha="right" if rotation else "center",
            rotation_mode="anchor", parse_math=False,
        )  # fmt: skip
        axes.set_yticks(range(k), names, parse_math=False)
    if k <= NUMBERED:
        for i in range(k):
            for j in range(k):
                words = f"{confusion[i, j]}"
                if i == j and totals[i, 0]:
                    words += f"\n{shares[i, j]:.1%}"
                axes.text(
                    j, i, words, ha="center", va="center", fontsize=8,
                    color="white" if shares[i, j] > 0.5 else "black",
                )  # fmt: skip
    return figure_png(figure)
