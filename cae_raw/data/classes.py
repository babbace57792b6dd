"""Classes of a data set as people type them: names or numbers, with commas between them; and
a data set with only some of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from cae_raw.data.access import SPLITS, find_split
from cae_raw.data.base import Dataset, Images, Progress, Split
from cae_raw.errors import InputError, unknown_name

STEP = 4096  # records whose labels are read together

Labels = NDArray[np.int64]


def find_classes(text: str, classes: Sequence[str], option: str) -> list[int]:
    """The numbers of the classes that `text` names, as in "airplane,ship" or "0,8"; each once.

    Args:
        classes: their names; without any, `text` holds numbers from 0.
        option: what the user typed before it, for the message.

    Raises:
        InputError: if a name is unknown, or none is given.
    """
    wanted = [part.strip() for part in text.split(",") if part.strip()]
    if not wanted:
        raise InputError(f"{option} names no class: give one or more, with commas between them")
    return list(dict.fromkeys(_find(name, classes) for name in wanted))


def _find(name: str, classes: Sequence[str]) -> int:
    if name in classes:
        return list(classes).index(name)
    number = int(name) if name.isascii() and name.isdigit() and len(name) < 10 else None
    if number is not None and (not classes or number < len(classes)):
        return number
    if not classes:
        raise InputError(f"class {name!r}: these classes have no names, give a number from 0")
    raise unknown_name("class", name, classes)


def with_classes(
    dataset: Dataset, classes: Sequence[str], progress: Progress | None = None
) -> Dataset:
    """The images of the named classes, in all three splits; labels and class names stay.

    A data set whose classes have no names goes by the numbers in its labels. Of a database all
    labels are read for that.

    Raises:
        InputError: if there are no labels, a name is unknown, or a split would be empty.
    """
    labels: dict[int, Labels] = {}
    for name in SPLITS:
        split = find_split(dataset, name)
        if id(split) not in labels:
            found = _labels(split, f"reading the labels of {dataset.name}", progress)
            if found is None:
                raise InputError(
                    f"the images of {dataset.name} have no labels to choose classes by: "
                    "omit --classes"
                )
            labels[id(split)] = found
    wanted = find_classes(",".join(classes), dataset.class_names, "--classes")
    chosen: dict[int, Images] = {}
    for name in SPLITS:
        split = find_split(dataset, name)
        if id(split) in chosen:
            continue
        positions = np.flatnonzero(np.isin(labels[id(split)], wanted))
        if not len(positions):
            raise InputError(
                f"the {name} split of {dataset.name} has no image of the classes "
                f"{', '.join(classes)}: choose others"
            )
        if isinstance(split, Split):
            chosen[id(split)] = split.choose(positions)
        else:
            chosen[id(split)] = split.choose(positions, labels[id(split)][positions])
    train, validation, test = (chosen[id(find_split(dataset, name))] for name in SPLITS)
    notes = (*dataset.notes, f"only the classes {', '.join(classes)}")
    return replace(dataset, train=train, validation=validation, test=test, notes=notes)


def _labels(split: Images, what: str, progress: Progress | None) -> Labels | None:
    if isinstance(split, Split):
        return split.labels
    parts = [np.empty(0, np.int64)]
    for start in range(0, len(split), STEP):
        stop = min(start + STEP, len(split))
        part = split.part(start, stop).labels()
        if part is None:
            return None
        parts.append(part)
        if progress is not None:
            progress(what, stop, len(split))
    return np.concatenate(parts)
