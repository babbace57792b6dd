"""`cae-raw score`: rank images by how badly a model reconstructs them."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from cae_raw.backends import choose_backend
from cae_raw.commands.data import Announcer, cache_near
from cae_raw.commands.model_choice import choose_model, likely_channels
from cae_raw.commands.options import check_threads
from cae_raw.commands.shell import one_line, say_error
from cae_raw.commands.split_choice import (
    check_split_options,
    choose_dataset,
    trained_classes,
)
from cae_raw.data.access import SPLITS, find_split
from cae_raw.data.base import Dataset, Images, Split
from cae_raw.data.classes import find_classes, with_classes
from cae_raw.errors import InputError, unknown_name
from cae_raw.files import atomic_write
from cae_raw.image_source import Source, find_sources
from cae_raw.models import Autoencoder
from cae_raw.pictures import comparison, save_png
from cae_raw.pictures.ranking import Entry, ranking_picture
from cae_raw.pictures.roc import roc_png
from cae_raw.reconstruct import reconstruct_image
from cae_raw.score import Ranking, Roc, Scorer, roc, threshold_of
from cae_raw.score.images import Scored, pieces_of_files, pieces_of_split, score_pieces

DEFAULT_OUT = Path("scores")
DEFAULT_QUANTILE, DEFAULT_TOP = 0.99, 10
MOST_TOP = 100
WRITTEN = ("scores.csv", "ranking.png", "roc.png")
TOLD = 10  # images named on the terminal


@dataclass
class Told:
    """What is noticed on the way."""

    notes: Counter[str] = field(default_factory=Counter)
    failed: int = 0

    def failure(self, source: Source, message: str) -> None:
        self.failed += 1
        say_error(message)


def score(
    images: list[Path],
    *,
    dataset: str | None,
    split: str | None,
    data_dir: Path | None,
    size: int | None,
    run: Path | None,
    checkpoint: Path | None,
    runs_dir: Path,
    clean: list[Path],
    clean_split: str | None,
    quantile: float | None,
    odd: str | None,
    top: int | None,
    out: Path | None,
    csv: Path | None,
    device: str,
    threads: int | None,
    say: TextIO,
) -> tuple[dict[str, Any], bool]:
    """Score, rank, write; tells `say`. A report for JSON, and whether any file failed."""
    check_threads(threads)
    _check_choice(images, dataset, split, data_dir, size, clean, clean_split, quantile)
    check_split_options(dataset, split or "test", size)
    top = DEFAULT_TOP if top is None else top
    if not 0 <= top <= MOST_TOP:
        raise InputError(f"--top must be from 0 to {MOST_TOP}, not {str(top)[:30]}")
    backend = choose_backend(device)
    sources, classes = find_sources(images)
    clean_sources, _ = find_sources(clean)
    folder = out or DEFAULT_OUT
    checkpoint_used, name = choose_model(
        run,
        checkpoint,
        runs_dir,
        lambda: likely_channels((s.path for s in sources), dataset, data_dir),
    )
    model = checkpoint_used.build_model()
    chosen: Dataset | None = None
    kept_away = [path for path in (*images, *clean) if path.is_dir()]
    if dataset is not None:
        chosen, lies_in = choose_dataset(
            dataset, data_dir, size, checkpoint_used, model, sys.stderr,
            cache_near(runs_dir, run, checkpoint), all_classes=True,
        )  # fmt: skip
        classes = chosen.class_names
        kept_away += [lies_in] if lies_in is not None else []
    part = None if chosen is None else split or "test"
    if odd is not None:
        _require_labels(
            None if chosen is None or part is None else find_split(chosen, part), sources
        )
    odd_classes = None if odd is None else frozenset(find_classes(odd, classes, "--odd"))
    _keep_inputs(folder, csv, kept_away, [*sources, *clean_sources])
    _make_folder(folder)
    model.to(backend)
    print(f"model: {name}", file=say, flush=True)
    announcer, told = Announcer(sys.stderr), Told()

    def scored(
        of: Dataset | None, split_name: str | None, files: list[Source], keep: int
    ) -> Scored:
        if of is not None and split_name is not None:
            images_of_it = find_split(of, split_name)
            what, total = f"{of.name}, {split_name}", len(images_of_it)
            prefix = f"{of.name}/{split_name}"
            pieces = pieces_of_split(model, images_of_it, prefix, told.notes)
        else:
            what, total = "image files", len(files)
            pieces = pieces_of_files(model, files, told.notes, told.failure)
        return score_pieces(scorer, pieces, keep, what, total, announcer.tell)

    with Scorer(model, threads) as scorer:
        threshold, clean_count = None, 0
        if clean or clean_split is not None:
            seen = None if dataset is None else trained_classes(dataset, checkpoint_used)
            clean_of = chosen
            if chosen is not None and clean_split is not None and seen is not None:
                clean_of = with_classes(chosen, seen, announcer.tell)
            clean_errors = [s.mse for s in scored(clean_of, clean_split, clean_sources, 0).scores]
            clean_count = len(clean_errors)
            threshold = threshold_of(np.array(clean_errors), quantile or DEFAULT_QUANTILE)
        found = scored(chosen, part, sources, top)
        ranking = Ranking.of(
            found.scores, model.value_range, classes=classes, threshold=threshold, odd=odd_classes
        )
        curve = None if odd is None else roc(ranking.errors, ranking.is_odd)
        written = _write(folder, csv, ranking, curve, odd or "", found, model)
    report = {
        "model": name,
        "images": len(ranking.scores),
        "failed": told.failed,
        "quantile": None if threshold is None else quantile or DEFAULT_QUANTILE,
        "clean_images": clean_count,
        **_figures(ranking, curve),
        "notes": [f"{count:,} images: {note}" for note, count in told.notes.items()],
        "files": [str(path) for path in written],
        "scores": ranking.rows(),
    }
    _tell(report, say)
    return report, bool(told.failed)


def _figures(ranking: Ranking, curve: Roc | None) -> dict[str, Any]:
    """What all scores together say, in plain values; None for what was not asked."""
    judged = ranking.threshold is not None
    mean = float(np.mean(ranking.errors)) if ranking.scores else inf
    odd_flagged = int(np.sum(ranking.is_odd[: ranking.flagged]))
    return {
        "mean_mse": _plain(mean),
        "threshold": None if ranking.threshold is None else _plain(ranking.threshold),
        "flagged": ranking.flagged if judged else None,
        "odd": None
        if ranking.odd is None
        else [ranking.class_name(c) for c in sorted(ranking.odd)],
        "auroc": None if curve is None else curve.auroc,
        "odd_images": None if curve is None else curve.odd,
        "odd_flagged": None if curve is None or not judged else odd_flagged,
    }


def _require_labels(chosen: Images | None, sources: list[Source]) -> None:
    """AUROC is about classes, so every image has to have one."""
    known = all(source.label is not None for source in sources)
    if chosen is not None:
        known = (chosen.labels if isinstance(chosen, Split) else chosen.labels()) is not None
    if not known:
        raise InputError(
            "--odd needs images with classes: a data set with labels, or one folder with a "
            "sub-folder per class"
        )


def _check_choice(
    images: list[Path],
    dataset: str | None,
    split: str | None,
    data_dir: Path | None,
    size: int | None,
    clean: list[Path],
    clean_split: str | None,
    quantile: float | None,
) -> None:
    if bool(images) == (dataset is not None):
        raise InputError("name image files or folders, or else a data set with --dataset")
    options = {
        "--split": split, "--data-dir": data_dir, "--size": size, "--clean-split": clean_split,
    }  # fmt: skip
    for option, value in options.items():
        if value is not None and dataset is None:
            raise InputError(f"{option} needs --dataset to have an effect: add that, or omit it")
    if clean and clean_split is not None:
        raise InputError("--clean and --clean-split both name a clean set: give one of them")
    if clean_split is not None and clean_split not in SPLITS:
        raise unknown_name("split", clean_split, SPLITS)
    if quantile is not None:
        if not clean and clean_split is None:
            raise InputError("--quantile needs a clean set: add --clean or --clean-split")
        if not 0 < quantile <= 1:
            raise InputError(f"--quantile must be above 0 and at most 1, not {quantile}")


def _keep_inputs(
    folder: Path, csv: Path | None, folders: Iterable[Path], sources: list[Source]
) -> None:
    """What is written may not lie among the inputs: the next call would take it for one."""
    for inputs in folders:
        if folder.resolve().is_relative_to(inputs.resolve()):
            raise InputError(f"{folder} lies in the folder {inputs}: give another --out")
    ours = {os.path.realpath(folder / name) for name in WRITTEN}
    if csv is not None:
        ours.add(os.path.realpath(csv))
    for source in sources:
        real = os.path.realpath(source.path)
        mine = real in ours or Path(real).parent == folder.resolve()
        if mine:
            raise InputError(f"{source.path} could be overwritten: give another --out or --csv")


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make the folder {folder}: {error.strerror or error}") from error


def _write(
    folder: Path,
    csv: Path | None,
    ranking: Ranking,
    curve: Roc | None,
    odd: str,
    found: Scored,
    model: Autoencoder,
) -> list[Path]:
    """The table, the picture of both ends, the heat maps of the highest, the ROC curve.

    Nothing where no image could be used.
    """
    if not ranking.scores:
        return []
    table = csv or folder / "scores.csv"
    atomic_write(table, ranking.to_csv().encode("utf-8", "backslashreplace"))
    written = [table]
    ends = []
    for extremes in (found.highest, found.lowest):
        entries = []
        for place, (number, image) in enumerate(extremes.images):
            made = reconstruct_image(model, image)
            entries.append(Entry(made, _caption(ranking, found, number)))
            if extremes is found.highest:
                path = folder / f"highest_{place + 1:04}.png"
                picture = comparison(made.image, made.output, made.error, made.figures)
                save_png(picture, path)
                written.append(path)
        ends.append(entries)
    if ends[0]:
        save_png(ranking_picture(ends[0], ends[1], _title(ranking)), folder / "ranking.png")
        written.append(folder / "ranking.png")
    if curve is not None:
        picture_bytes = roc_png(curve, ranking.errors, ranking.is_odd, ranking.threshold, odd)
        atomic_write(folder / "roc.png", picture_bytes)
        written.append(folder / "roc.png")
    return written


def _caption(ranking: Ranking, found: Scored, number: int) -> tuple[str, ...]:
    score = found.scores[number]
    kind = ranking.class_name(score.label)
    lines = (f"mse {score.mse:#.3g}", Path(score.name).name if kind is None else f"class {kind}")
    above = ranking.threshold is not None and score.mse > ranking.threshold
    return (*lines, "flagged") if above else lines


def _title(ranking: Ranking) -> str:
    words = f"{len(ranking.scores):,} images"
    if ranking.threshold is not None:
        words += f", {ranking.flagged:,} above the threshold {ranking.threshold:.3g}"
    return words


def _plain(value: float) -> float | None:
    return value if np.isfinite(value) else None


def _tell(report: dict[str, Any], say: TextIO) -> None:
    for row in report["scores"][:TOLD]:
        mse = "not finite" if row["mse"] is None else f"{row['mse']:.6f}"
        kind = "" if row["class"] is None else f", class {one_line(row['class'])}"
        flag = ", flagged" if row["flagged"] else ""
        print(f"{row['rank']:>4}  mse {mse}  {one_line(row['name'])}{kind}{flag}", file=say)
    if report["images"] > TOLD:
        print(f"      and {report['images'] - TOLD:,} more with lower errors", file=say)
    if report["threshold"] is not None:
        print(
            f"threshold {report['threshold']:.6f}: quantile {report['quantile']:g} of "
            f"{report['clean_images']:,} clean images; {report['flagged']:,} of "
            f"{report['images']:,} are above it",
            file=say,
        )
    if report["auroc"] is not None:
        found = report["odd_flagged"]
        caught = "" if found is None else f", {found:,} of them flagged"
        print(
            f"AUROC {report['auroc']:.4f} for {one_line(', '.join(report['odd']))}: "
            f"{report['odd_images']:,} of {report['images']:,} images{caught}",
            file=say,
        )
    for note in report["notes"]:
        print(note, file=say)
    shown = [path for path in report["files"] if "highest_" not in Path(path).name]
    if shown:
        print(f"written: {one_line(', '.join(shown))}", file=say)
    if report["failed"]:
        total = report["failed"] + report["images"]
        print(f"{report['failed']} of {total} files could not be used", file=sys.stderr)
