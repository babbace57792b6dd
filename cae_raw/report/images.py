"""The same images through several models, and the picture of that."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from cae_raw.errors import InputError
from cae_raw.pictures.layout import below, table, text
from cae_raw.pictures.page import GAP, LABEL, SMALL, WIDTH, Grid, page, scaled
from cae_raw.pictures.view import View, printable
from cae_raw.report.runs import Trained

if TYPE_CHECKING:
    from PIL.Image import Image

MOST = 8  # images that are compared
TALLEST = 2400  # pixels for all rows of a picture, unless its images become smaller than that
SMALLEST = 32  # pixels of an image


def by_images(runs: Sequence[Trained], split: str) -> list[list[Trained]]:
    """The runs in groups that have the same images in a split, in their order."""
    groups: dict[str, list[Trained]] = {}
    for run in runs:
        groups.setdefault(run.data_key(split), []).append(run)
    return list(groups.values())


def reconstructions_picture(labels: Sequence[str], views: Sequence[View], words: str) -> Image:
    """Inputs, and under them a row for each view, with the PSNR of each image.

    Args:
        labels: what to call the runs. views: of all of them, on the same images.
        words: which images these are.

    Raises:
        InputError: if a view has other images.
    """
    images = views[0].images[:MOST]
    if any(view.images.shape != views[0].images.shape for view in views):
        raise InputError("the runs take images of different sizes: compare those of one size")
    count, _, height, width = images.shape
    box = (WIDTH // MOST - GAP, max(SMALLEST, min(WIDTH // MOST, TALLEST // (len(views) + 1))))
    scale = Grid.filling(1, height, width, box).scale
    blocks = [_block("input", table([[scaled(image, scale) for image in images]], (GAP, 0)))]
    for label, view in zip(labels, views, strict=True):
        figures = view.figures[:count]
        outputs = [scaled(image, scale) for image in view.outputs[:count]]
        numbers = [text(decibels(each.psnr), SMALL) for each in figures]
        blocks.append(_block(printable(label), table([outputs, numbers], (GAP, 2))))
    lines = [f"{words}; PSNR in dB under each"]
    return page("The same images by each run", lines, below(blocks, 18, 0))


def _block(title: str, body: Image) -> Image:
    return below([text(title, LABEL), body], 4, 0)


def decibels(psnr: float) -> str:
    """A PSNR in few letters."""
    return "not finite" if psnr != psnr else f"{psnr:.1f}"
