"""The first images of a data set through a model, into numbered pairs of pictures.

input_0001.png holds what the model was given, output_0001.png what it made of it, and so on.
Pictures of earlier calls are replaced.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cae_raw.data.access import in_order
from cae_raw.data.base import Images
from cae_raw.errors import InputError
from cae_raw.figures import Figures
from cae_raw.fit import fit, with_channels
from cae_raw.models import Autoencoder
from cae_raw.pictures import save_png, to_image
from cae_raw.reconstruct import reconstruct_image

DIGITS = 4  # at least, in the names of the pictures
BATCH = 64  # images that are fetched together


@dataclass(frozen=True)
class PairResult:
    """One image of a data set: where its pictures are, and how far they are apart."""

    number: int  # from 1
    name: str
    label: int | None
    input: Path
    output: Path
    width: int
    height: int
    figures: Figures
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain values; figures that are not finite are None."""
        values = {name: value for name, value in vars(self).items() if name != "figures"}
        values |= {"input": str(self.input), "output": str(self.output), "notes": list(self.notes)}
        return {**values, **self.figures.to_json()}


def reconstruct_split(
    model: Autoencoder,
    split: Images,
    count: int,
    out_dir: Path,
    prefix: str = "image",
    on_result: Callable[[PairResult], None] = lambda result: None,
    *,
    tile: bool = False,
) -> list[PairResult]:
    """Reconstruct the first `count` images of a split, or all where there are fewer.

    Args:
        model: on the backend that does the work.
        out_dir: where the pictures go, made when missing.
        prefix: what the names of nameless images begin with.
        on_result: called after each image.
        tile: for a model of one size: reconstruct at the images' own size, in tiles.

    Raises:
        InputError: if there is no image, or a picture cannot be written.
    """
    if count < 1:
        raise InputError(f"--count must be at least 1, not {count}")
    part = split.limit(count)
    if not len(part):
        raise InputError("the split is empty: there is nothing to reconstruct")
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make the folder {out_dir}: {error.strerror}") from error
    digits = max(DIGITS, len(str(len(part))))
    results: list[PairResult] = []
    for images, names, labels in in_order(part, min(BATCH, len(part)), prefix):
        for i, name in enumerate(names):
            number = f"{len(results) + 1:0{digits}}"
            given = images[i]
            image, notes = with_channels(given, model.channels) if tile else fit(model, given)
            made = reconstruct_image(model, image, tile=tile)
            if made.not_finite:
                share = f"{made.not_finite} of {image.size} values of the reconstruction"
                notes += (f"{share} are not finite numbers: did training diverge?",)
            paths = out_dir / f"input_{number}.png", out_dir / f"output_{number}.png"
            for path, pixels in zip(paths, (made.image, made.output), strict=True):
                save_png(to_image(pixels), path)
            label = None if labels is None else int(labels[i])
            _, height, width = image.shape
            result = PairResult(
                len(results) + 1, name, label, *paths, width, height, made.figures, notes
            )
            results.append(result)
            on_result(result)
    return results


def overall(results: list[PairResult], model: Autoencoder) -> Figures:
    """The figures over all images together, each value counting the same."""
    sizes = [model.channels * result.width * result.height for result in results]
    total = sum(r.figures.mse * size for r, size in zip(results, sizes, strict=True))
    return Figures.from_squared_error(total, sum(sizes), model.value_range)
