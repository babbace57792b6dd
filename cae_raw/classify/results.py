"""What a classifier gets right: accuracy, per class, and which classes it takes for which."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Results:
    """confusion[i, j]: how many images of class i were taken for class j; int64 (K, K)."""

    confusion: NDArray[np.int64]
    classes: tuple[str, ...]

    @classmethod
    def of(
        cls, logits: NDArray[Any], labels: NDArray[np.int64], classes: tuple[str, ...]
    ) -> Results:
        """From logits (N, K), of which the largest decides, and true classes (N,)."""
        k = len(classes)
        pairs = labels * k + logits.argmax(axis=1)
        return cls(np.bincount(pairs, minlength=k * k).reshape(k, k), classes)

    @property
    def images(self) -> int:
        return int(self.confusion.sum())

    @property
    def accuracy(self) -> float:
        """The share of images that were taken for what they are."""
        return float(np.trace(self.confusion) / max(1, self.images))

    @property
    def per_class(self) -> list[float | None]:
        """The same for the images of each class; None for a class without images."""
        counts = self.confusion.sum(axis=1)
        return [
            float(right / n) if n else None
            for right, n in zip(np.diag(self.confusion), counts, strict=True)
        ]

    def worst_mistakes(self, count: int = 3) -> list[tuple[str, str, int]]:
        """(class, what it was taken for, how often), most frequent first."""
        wrong = self.confusion.copy()
        np.fill_diagonal(wrong, 0)
        order = np.argsort(-wrong, axis=None, kind="stable")[:count]
        rows, columns = np.unravel_index(order, wrong.shape)
        return [
            (self.classes[i], self.classes[j], int(wrong[i, j]))
            for i, j in zip(rows, columns, strict=True)
            if wrong[i, j]
        ]

    def to_json(self) -> dict[str, Any]:
        return {
            "images": self.images,
            "accuracy": self.accuracy,
            "per_class": dict(zip(self.classes, self.per_class, strict=True)),
            "classes": list(self.classes),
            "confusion": self.confusion.tolist(),
        }

    def to_csv(self) -> str:
        """A line per true class: its name, how often it was taken for each class, its accuracy."""
        text = io.StringIO()
        table = csv.writer(text, lineterminator="\n")
        table.writerow(["true class", *self.classes, "accuracy"])
        for name, row, share in zip(self.classes, self.confusion, self.per_class, strict=True):
            table.writerow([name, *row.tolist(), "" if share is None else f"{share:.6f}"])
        return text.getvalue()
