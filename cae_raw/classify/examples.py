"""Images with labels: from any data set that has them, made to fit the encoder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cae_raw.data.access import in_order
from cae_raw.data.base import Dataset, Images
from cae_raw.errors import InputError
from cae_raw.fit import fit
from cae_raw.models import Autoencoder

HELD_BACK, MOST_HELD_BACK = 0.1, 5000
LARGEST = 4 * 2**30  # bytes of images, or of features, that are kept
MOST_CLASSES = 4096
BATCH = 256

Tell = Callable[[str, int, "int | None"], None]


@dataclass(frozen=True)
class Labelled:
    """Images uint8 (N, C, H, W) as the encoder takes them, and their classes, int64 (N,)."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.images)

    def part(self, start: int, stop: int) -> Labelled:
        return Labelled(self.images[start:stop], self.labels[start:stop])


@dataclass(frozen=True)
class Splits:
    """What a classifier is trained on, chosen by and measured on; `notes` are for the user."""

    train: Labelled
    validation: Labelled
    test: Labelled
    classes: tuple[str, ...]
    notes: tuple[str, ...] = ()

    @property
    def image_shape(self) -> tuple[int, int, int]:
        _, c, h, w = self.train.images.shape
        return c, h, w


def labelled_splits(
    dataset: Dataset, model: Autoencoder, limit_train: int | None, tell: Tell
) -> Splits:
    """The data set's splits in memory.

    Where its validation images are its test images, the last tenth of the training images, at most
    5,000, validates instead: the epoch must not be chosen by the images that are reported.

    Args:
        model: whose channels and image size the images are brought to.
        limit_train: use the first so many training images only.
        tell: hears how many images have been read.

    Raises:
        InputError: without labels, with fewer than two classes, or for more images than fit.
    """
    train = dataset.train if limit_train is None else dataset.train.limit(limit_train)
    shared = dataset.test is dataset.validation
    loaded = {
        name: _load(split, model, f"{dataset.name}, {name}", tell)
        for name, split in (("train", train), ("validation", dataset.validation))
    }
    if shared:
        loaded["test"] = loaded["validation"]
    else:
        loaded["test"] = _load(dataset.test, model, f"{dataset.name}, test", tell)
    notes: tuple[str, ...] = ()
    if shared:
        whole = loaded["train"]
        kept = min(MOST_HELD_BACK, round(HELD_BACK * len(whole)))
        if not 0 < kept < len(whole):
            raise InputError(
                f"{len(whole)} training images are too few to hold some back: use more"
            )
        cut = len(whole) - kept
        loaded |= {"train": whole.part(0, cut), "validation": whole.part(cut, len(whole))}
        notes = (
            f"{dataset.name} validates on its test images: the last {kept:,} training images "
            "choose the epoch here",
        )
    if len(dataset.train):
        notes += fit(model, dataset.train.first(1)[0])[1]
    for name, split in loaded.items():
        if not len(split):
            raise InputError(f"the {name} split of {dataset.name} is empty")
    classes = _classes(dataset, list(loaded.values()))
    return Splits(loaded["train"], loaded["validation"], loaded["test"], classes, notes)


def _load(split: Images, model: Autoencoder, what: str, tell: Tell) -> Labelled:
    channels, height, width = split.image_shape
    size = model.image_size or (height, width)
    needed = len(split) * model.channels * size[0] * size[1]
    if needed > LARGEST:
        raise InputError(
            f"{what}: {len(split):,} images take {needed / 2**30:.1f} GiB of memory, more than "
            f"{LARGEST / 2**30:.0f}: use --limit-train, or smaller images"
        )
    fits = channels == model.channels and size == (height, width)
    images = np.empty((len(split), model.channels, *size), np.uint8)
    labels, start = np.empty(len(split), np.int64), 0
    for pixels, _, classes in in_order(split, BATCH, what):
        if classes is None:
            raise InputError(
                f"the images of {what.partition(',')[0]} have no labels: a classifier needs a data "
                "set with classes, such as mnist, cifar10, or a folder with a sub-folder per class"
            )
        stop = start + len(pixels)
        images[start:stop] = pixels if fits else [fit(model, image)[0] for image in pixels]
        labels[start:stop] = classes
        start = stop
        tell(f"reading {what}", stop, len(split))
    return Labelled(images, labels)


def _classes(dataset: Dataset, splits: list[Labelled]) -> tuple[str, ...]:
    """The names of the classes, their numbers where the data set has no names."""
    low = min(int(split.labels.min()) for split in splits)
    high = max(int(split.labels.max()) for split in splits)
    if low < 0 or high >= MOST_CLASSES:
        raise InputError(
            f"{dataset.name} has labels from {low} to {high}: a classifier takes 0 to "
            f"{MOST_CLASSES - 1}"
        )
    names = dataset.class_names or tuple(str(i) for i in range(high + 1))
    if len(np.unique(splits[0].labels)) < 2:
        raise InputError(
            f"all training images of {dataset.name} have one label: there is nothing to tell apart"
        )
    return names
