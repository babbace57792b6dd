"""Scored images in the order of their errors, and the threshold above which one is suspicious."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cae_raw.errors import InputError
from cae_raw.figures import psnr

COLUMNS = ("rank", "name", "label", "class", "mse", "half_mse", "psnr", "flagged", "odd")


@dataclass(frozen=True)
class Score:
    """One image: what it is called, its class if it has one, its error, infinite at worst."""

    name: str
    label: int | None
    mse: float


@dataclass(frozen=True)
class Ranking:
    """Scores, highest first, equal ones in the order in which they came.

    threshold: a higher mse than this is flagged; None where there is no clean set.
    odd: the classes that are to be found; None where nobody said.
    """

    scores: tuple[Score, ...]
    value_range: tuple[float, float]
    classes: tuple[str, ...] = ()
    threshold: float | None = None
    odd: frozenset[int] | None = None

    @classmethod
    def of(cls, scores: Sequence[Score], value_range: tuple[float, float], **rest: Any) -> Ranking:
        return cls(tuple(sorted(scores, key=lambda score: -score.mse)), value_range, **rest)

    @property
    def errors(self) -> NDArray[np.float64]:
        return np.array([score.mse for score in self.scores])

    @property
    def is_odd(self) -> NDArray[np.bool_]:
        """For each score whether its class is one of the odd ones; (N,)."""
        odd = self.odd or frozenset()
        return np.array([score.label in odd for score in self.scores], bool)

    @property
    def flagged(self) -> int:
        """How many errors are above the threshold; they are the first ones."""
        return 0 if self.threshold is None else int(np.sum(self.errors > self.threshold))

    def class_name(self, label: int | None) -> str | None:
        if label is None:
            return None
        return self.classes[label] if 0 <= label < len(self.classes) else str(label)

    def rows(self) -> list[dict[str, Any]]:
        """A row per image in plain values; what is not finite or not known is None."""
        above = self.flagged
        return [
            {
                "rank": i + 1,
                "name": score.name,
                "label": score.label,
                "class": self.class_name(score.label),
                "mse": _finite(score.mse),
                "half_mse": _finite(score.mse / 2),
                "psnr": _finite(psnr(score.mse, self.value_range)),
                "flagged": None if self.threshold is None else i < above,
                "odd": None if self.odd is None else score.label in self.odd,
            }
            for i, score in enumerate(self.scores)
        ]

    def to_csv(self) -> str:
        """The same as text, with a header; what is None is empty, true and false are 1 and 0."""
        text = io.StringIO()
        table = csv.writer(text, lineterminator="\n")
        table.writerow(COLUMNS)
        for row in self.rows():
            table.writerow([_cell(row[name]) for name in COLUMNS])
        return text.getvalue()


def threshold_of(errors: NDArray[np.float64], quantile: float) -> float:
    """The smallest error of a clean set that at least this share of the set does not exceed.

    It is an error of the set itself, not one between two of them, so no more than 1 - quantile of
    the clean images lie above it.

    Raises:
        InputError: if the set is empty.
    """
    if not len(errors):
        raise InputError("the clean set is empty: there is nothing to take a threshold from")
    at = max(1, int(np.ceil(quantile * len(errors) - 1e-9)))
    return float(np.sort(errors)[at - 1])


def _finite(value: float) -> float | None:
    return value if isfinite(value) else None


def _cell(value: Any) -> Any:
    if value is None:
        return ""
    if isinstance(value, bool):
        return int(value)
    return f"{value:.9g}" if isinstance(value, float) else value
