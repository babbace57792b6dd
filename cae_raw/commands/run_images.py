"""Images for `cae-raw compare` and `cae-raw report`: those that some runs have in common."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cae_raw.backends import Backend
from cae_raw.commands.data import cache_near, load_data
from cae_raw.commands.show import Shown, check_index, choose_images
from cae_raw.commands.split_choice import check_split_options
from cae_raw.errors import InputError
from cae_raw.pictures.view import View
from cae_raw.report.runs import Trained
from cae_raw.training.session import check_same_data


@dataclass(frozen=True)
class Choice:
    """Which images are shown: the first ones of a split, or one of them before the others."""

    index: int | None = None
    class_name: str | None = None
    split: str = "test"
    data_dir: Path | None = None

    def check(self) -> None:
        """Raise InputError for what is out of range, before anything is loaded."""
        check_split_options(None, self.split, None)
        check_index(self.index)

    def of(self, runs: Sequence[Trained], *, alone: bool) -> Shown | str:
        """The images of runs that have the same ones, or why they cannot be read.

        Args:
            alone: these are all runs there are, so that --data-dir is meant for them.

        Raises:
            InputError: if --data-dir is wrong, or there is no such image.
        """
        first = runs[0]
        recorded = first.config.data_dir is not None or first.config.dataset == "shapes"
        data_dir = self.data_dir if alone or not recorded else None
        try:
            dataset = load_data(
                first.config, data_dir, sys.stderr, cache_near(first.path.parent, first.path)
            )
            check_same_data(first.data, dataset, first.path)
        except InputError as error:
            if data_dir is not None:
                raise
            return str(error)
        return choose_images(first.model, dataset, self.index or 0, self.class_name, self.split)


def view_of(run: Trained, label: str, shown: Shown | None, backend: Backend) -> View:
    """What pictures of a run are drawn from."""
    run.model.to(backend)
    return View(
        run.model,
        shown.images if shown else None,
        focus_name=shown.name if shown else "no image",
        name=label,
        history=run.history,
        epoch=run.best.epoch,
    )
