"""`cae-raw encode`: codes of image files, folders or a data set, into a file."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import inf, prod
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import numpy as np
from numpy.typing import NDArray

from cae_raw.backends import choose_backend
from cae_raw.codes_file import WRITERS, codes_writer, model_facts, names_path
from cae_raw.commands.data import Announcer, cache_near
from cae_raw.commands.model_choice import choose_model, likely_channels
from cae_raw.commands.options import check_threads
from cae_raw.commands.shell import one_line, say_error
from cae_raw.commands.split_choice import check_split_options, choose_dataset
from cae_raw.data.access import find_split, in_order
from cae_raw.data.base import Images
from cae_raw.encode import Codes, Encoder
from cae_raw.errors import InputError
from cae_raw.fit import fit
from cae_raw.image_source import Source, batches, find_sources
from cae_raw.models import Autoencoder

BATCH_BYTES = 32 * 2**20  # of the codes that are made together
LARGEST_BATCH = 1024  # images


class Piece(NamedTuple):
    """Some images to encode, with names on one line each; labels are there for all or for none."""

    images: NDArray[np.uint8]
    names: list[str]
    labels: list[int] | None


@dataclass
class Input:
    """Where the images come from, and what is noticed on the way."""

    what: str
    total: int
    labelled: bool
    classes: tuple[str, ...] = ()
    notes: Counter[str] = field(default_factory=Counter)  # how many images each is true of
    failed: int = 0


def encode(
    sources: list[Path],
    *,
    out: Path,
    dataset: str | None,
    split: str | None,
    data_dir: Path | None,
    size: int | None,
    pooled: bool,
    run: Path | None,
    checkpoint: Path | None,
    runs_dir: Path,
    device: str,
    threads: int | None,
    say: TextIO,
) -> tuple[dict[str, Any], bool]:
    """Write the codes to `out`, telling `say`: a report for JSON, and whether any file failed."""
    check_threads(threads)
    if bool(sources) == (dataset is not None):
        raise InputError("name image files or folders, or else a data set with --dataset")
    for option, value in (("--split", split), ("--data-dir", data_dir)):
        if value is not None and dataset is None:
            raise InputError(f"{option} needs --dataset to have an effect: add that, or omit it")
    check_split_options(dataset, split or "test", size)
    if out.suffix not in WRITERS:
        raise InputError(f"--out {out}: give it a name that ends in {', '.join(WRITERS)}")
    backend = choose_backend(device)
    found, classes = find_sources(sources)
    model_from, name = choose_model(
        run,
        checkpoint,
        runs_dir,
        lambda: likely_channels((s.path for s in found), dataset, data_dir),
    )
    model = model_from.build_model()
    model.to(backend)
    with Encoder(model, pooled=pooled, threads=threads) as encoder:
        if dataset is None:
            given = Input("image files", len(found), bool(classes), classes)
            pieces = _from_files(model, encoder, found, _image_size(model, size), given)
        else:
            part = split or "test"
            cache_dir = cache_near(runs_dir, run, checkpoint)
            chosen, _ = choose_dataset(
                dataset, data_dir, size, model_from, model, sys.stderr, cache_dir
            )
            images = find_split(chosen, part)
            given = Input(f"{chosen.name}, {part}", len(images), True, chosen.class_names)
            pieces = _from_split(model, encoder, images, f"{chosen.name}/{part}", given)
        print(f"model: {name}", file=say, flush=True)
        facts = {**model_facts(model), "pooled": pooled}
        seen = _write(out, facts, encoder, pieces, given)
    report = {"model": name, "out": str(out), "from": given.what, "pooled": pooled, **seen}
    _tell(report, say)
    return report, bool(given.failed)


def _image_size(model: Autoencoder, size: int | None) -> tuple[int, int] | None:
    """What image files are resized to."""
    own = model.image_size
    if own is not None and size is not None and own != (size, size):
        raise InputError(
            f"--size {size}: the model {model.name} takes images of {own[1]}x{own[0]} pixels, to "
            "which they are resized without being asked: omit --size"
        )
    return own or (None if size is None else (size, size))


def _from_files(
    model: Autoencoder,
    encoder: Encoder,
    sources: list[Source],
    size: tuple[int, int] | None,
    given: Input,
) -> Iterator[Piece]:
    def failed(source: Source, message: str) -> None:
        given.failed += 1
        say_error(message)

    def noted(source: Source, note: str) -> None:
        given.notes[note] += 1

    largest = LARGEST_BATCH
    if size is not None:
        largest = _batch_size(encoder, (model.channels, *size))
    first: Source | None = None
    shape: tuple[int, ...] = ()
    for images, kept in batches(sources, model.channels, size, largest, noted, failed):
        if first is None:
            first, shape = kept[0], images.shape[1:]
        elif not encoder.pooled and images.shape[1:] != shape:
            (_, h, w), (_, height, width) = images.shape[1:], shape
            raise InputError(
                f"{kept[0].path} has {w}x{h} pixels, {first.path} {width}x{height}: codes of "
                "different sizes do not fit one array; add --pooled or --size PIXELS"
            )
        names = [one_line(source.path) for source in kept]
        labels = [source.label for source in kept if source.label is not None]
        yield Piece(images, names, labels if given.labelled else None)


def _from_split(
    model: Autoencoder, encoder: Encoder, split: Images, prefix: str, given: Input
) -> Iterator[Piece]:
    c, h, w = split.image_shape
    fits = c == model.channels and model.image_size in (None, (h, w))
    shape = (model.channels, *(model.image_size or (h, w)))
    for images, names, labels in in_order(split, _batch_size(encoder, shape), prefix):
        pixels = images
        if not fits:
            fitted = [fit(model, image) for image in images]
            pixels = np.stack([image for image, _ in fitted])
            given.notes.update(note for _, notes in fitted for note in notes)
        given.labelled = labels is not None
        yield Piece(
            pixels, [one_line(n) for n in names], None if labels is None else labels.tolist()
        )


def _batch_size(encoder: Encoder, image_shape: tuple[int, ...]) -> int:
    """Images whose codes take about BATCH_BYTES."""
    code = 4 * prod(encoder.code_shape(image_shape))
    return max(1, min(LARGEST_BATCH, BATCH_BYTES // code))


def _write(
    out: Path, facts: dict[str, Any], encoder: Encoder, pieces: Iterator[Piece], given: Input
) -> dict[str, Any]:
    """Write the file and say what it holds."""
    progress = Announcer(sys.stderr)
    seen = _Range()
    with codes_writer(out, facts, given.classes) as writer:
        for piece in pieces:
            try:
                codes = encoder(piece.images)
            except InputError as error:
                raise InputError(f"{piece.names[0]}: {error}") from None
            writer.write(codes, piece.names, piece.labels)
            seen.add(codes)
            progress.tell(f"encoding {given.what}", seen.count + given.failed, given.total)
    return {
        "names": str(names_path(out)) if out.suffix == ".npy" else None,
        "shape": [seen.count, *seen.shape],
        "labelled": given.labelled,
        "classes": list(given.classes) if given.labelled else [],
        "bytes": out.stat().st_size,
        **seen.to_json(),
        "notes": [f"{count:,} of {given.total:,}: {note}" for note, count in given.notes.items()],
        "failed": given.failed,
    }


class _Range:
    """Number, shape and range of the codes that pass by."""

    def __init__(self) -> None:
        self.count, self.shape = 0, tuple[int, ...]()
        self.low, self.high, self.total, self.elements, self.not_finite = inf, -inf, 0.0, 0, 0

    def add(self, codes: Codes) -> None:
        self.count, self.shape = self.count + len(codes), codes.shape[1:]
        finite = codes if np.isfinite(codes).all() else codes[np.isfinite(codes)]
        self.not_finite += codes.size - finite.size
        self.elements += finite.size
        if finite.size:
            self.low = min(self.low, float(finite.min()))
            self.high = max(self.high, float(finite.max()))
            self.total += float(finite.sum(dtype=np.float64))

    def to_json(self) -> dict[str, Any]:
        any_finite = self.elements > 0
        return {
            "min": self.low if any_finite else None,
            "max": self.high if any_finite else None,
            "mean": self.total / self.elements if any_finite else None,
            "not_finite": self.not_finite,
        }


def _tell(report: dict[str, Any], say: TextIO) -> None:
    n, *shape = report["shape"]
    each = "x".join(map(str, shape))
    print(f"{one_line(report['out'])}: {n:,} codes of {each}, float32", file=say)
    if report["min"] is not None:
        print(
            f"  from {report['min']:.4g} to {report['max']:.4g}, mean {report['mean']:.4g}",
            file=say,
        )
    if report["not_finite"]:
        print(
            f"  {report['not_finite']:,} values are not finite numbers: did training diverge?",
            file=say,
        )
    if report["names"]:
        what = "names and labels" if report["labelled"] else "names"
        print(f"  {what}: {one_line(report['names'])}", file=say)
    for note in report["notes"]:
        print(f"  {note}", file=say)
    if report["failed"]:
        print(
            f"{report['failed']} of {n + report['failed']} files could not be used", file=sys.stderr
        )
