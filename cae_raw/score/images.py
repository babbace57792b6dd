"""Scoring what a command names: image files and folders, or a split of a data set."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cae_raw.data.access import in_order
from cae_raw.data.base import Images
from cae_raw.fit import fit
from cae_raw.image_source import Source, batches
from cae_raw.models import Autoencoder
from cae_raw.score.ranking import Score
from cae_raw.score.scorer import Scorer

BATCH = 256  # images of a data set at a time

Tell = Callable[[str, int, "int | None"], None]


class Piece(NamedTuple):
    """Some images of one shape as the model takes them, uint8 (n, C, H, W)."""

    images: NDArray[np.uint8]
    names: list[str]
    labels: list[int] | None


@dataclass
class Extremes:
    """The images with the highest or the lowest errors of those that pass by, at most `count`."""

    count: int
    highest: bool
    kept: list[tuple[float, int, NDArray[np.uint8]]] = field(default_factory=list)

    def add(self, errors: NDArray[np.float64], first: int, images: NDArray[np.uint8]) -> None:
        """`first` is the number of the first of these images."""
        sign = -1 if self.highest else 1
        best = np.argsort(sign * errors, kind="stable")[: self.count]
        self.kept += [(sign * float(errors[i]), first + int(i), images[i].copy()) for i in best]
        self.kept = sorted(self.kept, key=lambda item: item[:2])[: self.count]

    @property
    def images(self) -> list[tuple[int, NDArray[np.uint8]]]:
        """(number, image), the most extreme first."""
        return [(number, image) for _, number, image in self.kept]


@dataclass
class Scored:
    """Scores in the order of the images, the extremes among them, and what was noticed."""

    scores: list[Score]
    highest: Extremes
    lowest: Extremes


def score_pieces(
    scorer: Scorer, pieces: Iterator[Piece], top: int, what: str, total: int, tell: Tell
) -> Scored:
    """Score all images; keep the `top` with the highest and the lowest errors."""
    found = Scored([], Extremes(top, True), Extremes(top, False))
    for images, names, labels in pieces:
        errors = scorer(images)
        for extremes in (found.highest, found.lowest):
            extremes.add(errors, len(found.scores), images)
        marks = labels if labels is not None else [None] * len(names)
        found.scores += [
            Score(name, mark, float(error))
            for name, mark, error in zip(names, marks, errors, strict=True)
        ]
        tell(f"scoring {what}", len(found.scores), total)
    return found


def pieces_of_files(
    model: Autoencoder,
    sources: list[Source],
    notes: Counter[str],
    on_error: Callable[[Source, str], None],
) -> Iterator[Piece]:
    """Image files at their own sizes, or resized to the one size that the model takes."""
    labelled = all(source.label is not None for source in sources)

    def noted(source: Source, note: str) -> None:
        notes[note] += 1

    for images, kept in batches(sources, model.channels, model.image_size, BATCH, noted, on_error):
        labels = [source.label for source in kept if source.label is not None]
        yield Piece(images, [str(source.path) for source in kept], labels if labelled else None)


def pieces_of_split(
    model: Autoencoder, split: Images, prefix: str, notes: Counter[str]
) -> Iterator[Piece]:
    """The images of a data set's split, made to fit the model."""
    channels, height, width = split.image_shape
    fits = channels == model.channels and model.image_size in (None, (height, width))
    for images, names, labels in in_order(split, BATCH, prefix):
        pixels = images
        if not fits:
            fitted = [fit(model, image) for image in images]
            pixels = np.stack([image for image, _ in fitted])
            notes.update(note for _, each in fitted for note in each)
        yield Piece(pixels, names, None if labels is None else labels.tolist())
