"""`cae-raw decode`: images from codes, with a stated rule for the pooling masks."""

from __future__ import annotations

import sys
from math import prod
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from cae_raw.backends import choose_backend
from cae_raw.codes_file import CodesFile, model_facts, read_codes
from cae_raw.commands.data import Announcer
from cae_raw.commands.model_choice import choose_model
from cae_raw.commands.options import check_threads
from cae_raw.commands.shell import one_line
from cae_raw.data.image_file import load_image
from cae_raw.data.scaling import to_bytes
from cae_raw.errors import InputError, unknown_name
from cae_raw.fit import fit
from cae_raw.layers import Conv2d
from cae_raw.layers.base import Trace
from cae_raw.models import Autoencoder, inference
from cae_raw.models.masks import RULES, masks_of, pooling_layers, repeat_masks
from cae_raw.pictures import save_png, to_image

DIGITS = 4  # at least, in the names of the pictures
BATCH_BYTES = 32 * 2**20  # for the maps of the codes that are decoded together
LARGEST_BATCH = 64  # codes


def decode(
    codes: Path,
    *,
    out: Path,
    masks: str | None,
    masks_from: Path | None,
    run: Path | None,
    checkpoint: Path | None,
    runs_dir: Path,
    device: str,
    threads: int | None,
    say: TextIO,
) -> dict[str, Any]:
    """Write decoded_0001.png and so on into `out`, telling `say`; returns a report for JSON."""
    from threadpoolctl import threadpool_limits

    check_threads(threads)
    if masks is not None and masks_from is not None:
        raise InputError("--masks and --masks-from both say where masks come from: give one")
    if masks is not None and masks not in RULES:
        raise unknown_name("rule for masks", masks, RULES)
    backend = choose_backend(device)
    found = read_codes(codes)
    model_from, name = choose_model(run, checkpoint, runs_dir, lambda: _channels(codes, found))
    model = model_from.build_model()
    notes = _check_origin(codes, found, model, name)
    shape = _image_shape(codes, found, model)
    if not pooling_layers(model) and (masks or masks_from):
        option = "--masks" if masks else "--masks-from"
        raise InputError(f"{option} has no effect: the model {model.name} decodes without masks")
    model.to(backend)
    print(f"model: {name}", file=say, flush=True)
    with threadpool_limits(threads, user_api="blas"):
        entries, words, more = _masks(model, masks or "centre", masks_from)
        if words is not None:
            print(f"masks: {words}", file=say, flush=True)
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"cannot make the folder {out}: {error.strerror}") from error
        paths = _paths(out, len(found.values))
        if masks_from is not None and any(_same(masks_from, path) for path in paths):
            raise InputError(f"{masks_from} would be replaced by a decoded image: change --out")
        not_finite = _write(model, found, entries, paths, shape)
    notes += more
    if not_finite:
        notes += [f"{not_finite:,} values of the images are not finite numbers"]
    c, h, w = shape
    print(
        f"{len(paths):,} images of {w}x{h}: {one_line(paths[0])} to {one_line(paths[-1].name)}",
        file=say,
    )
    for note in notes:
        print(f"  {note}", file=say)
    return {
        "model": name,
        "codes": str(codes),
        "masks": words,
        "shape": [c, h, w],
        "images": [str(path) for path in paths],
        "not_finite": not_finite,
        "notes": notes,
    }


def _channels(path: Path, found: CodesFile) -> int:
    """Of the model that ships with the package and made the codes."""
    facts = found.model or {}
    if facts.get("name") != "single-layer" or facts.get("channels") not in (1, 3):
        raise InputError(
            f"{path} does not say which model made it: name one with --run or --checkpoint"
        )
    return int(facts["channels"])


def _check_origin(path: Path, found: CodesFile, model: Autoencoder, name: str) -> list[str]:
    """Refuse codes that say they are another model's; a note for other weights of the same."""
    if found.model is None:
        return []
    theirs, mine = dict(found.model), model_facts(model)
    if theirs.pop("pooled", False):
        raise InputError(
            f"{path} holds means of maps, which cannot be decoded: encode without --pooled"
        )
    weights = theirs.pop("weights_sha256", None), mine.pop("weights_sha256")
    if theirs != mine:
        raise InputError(
            f"{path} was made by a model {_described(theirs)}, not by {name}, which is "
            f"{_described(mine)}: name another with --run or --checkpoint"
        )
    if weights[0] != weights[1]:
        return ["these codes were made with other weights of this model"]
    return []


def _described(facts: dict[str, Any]) -> str:
    options = [f"{key} {value}" for key, value in facts.items() if key != "name"]
    return f"{facts.get('name')} ({', '.join(options)})"


def _image_shape(path: Path, found: CodesFile, model: Autoencoder) -> tuple[int, int, int]:
    """(C, H, W) of the images that the codes become.

    Raises:
        InputError: if codes of this shape are none of the model's.
    """
    shape = found.values.shape[1:]
    if model.image_size is not None:
        image = (model.channels, *model.image_size)
        expected: tuple[Any, ...] = model.layer_shapes(image)[model.encoder_length]
        if shape != expected:
            raise _other_shape(path, shape, model, expected)
        return image
    first = model.stack[model.encoder_length]
    filters = first.in_channels if isinstance(first, Conv2d) else "F"
    expected = (filters, "H", "W")
    if len(shape) == 1 and shape[0] == filters:
        raise InputError(
            f"{path} holds {shape[0]} numbers per image, as means of maps are, which cannot be "
            "decoded: encode without --pooled"
        )
    try:
        for layer in model.stack[model.encoder_length :]:
            shape = layer.output_shape(shape)
    except InputError as error:
        raise _other_shape(path, found.values.shape[1:], model, expected) from error
    c, h, w = shape
    return c, h, w


def _other_shape(
    path: Path, shape: tuple[int, ...], model: Autoencoder, expected: tuple[Any, ...]
) -> InputError:
    return InputError(
        f"{path} holds codes of {'x'.join(map(str, shape))}, but those of the model {model.name} "
        f"are {'x'.join(map(str, expected))}: name the model that made them with --run or "
        "--checkpoint"
    )


def _masks(
    model: Autoencoder, rule: str, image_path: Path | None
) -> tuple[Trace, str | None, list[str]]:
    """Masks for one code, what they are in words (None: there are none), and notes."""
    pools = pooling_layers(model)
    if not pools:
        return {}, None, []
    if image_path is None:
        taps = dict.fromkeys(
            f"row {kh // 2}, column {kw // 2} (from 0) of each {kh}x{kw} window"
            for kh, kw in (pool.kernel_size for pool in pools)
        )
        return RULES[rule](model, 1), f"{rule}, {' and '.join(taps)}", []
    image, notes = fit(model, load_image(image_path))
    x = inference.scaled(model.backend, image[None], model.value_range)
    words = f"those that the encoder chooses for {one_line(image_path)}"
    return masks_of(model, x), words, [f"{one_line(image_path)}: {note}" for note in notes]


def _paths(out: Path, n: int) -> list[Path]:
    digits = max(DIGITS, len(str(n)))
    return [out / f"decoded_{i + 1:0{digits}}.png" for i in range(n)]


def _same(a: Path, b: Path) -> bool:
    try:
        return a.samefile(b)
    except OSError:
        return False


def _write(
    model: Autoencoder,
    found: CodesFile,
    entries: Trace,
    paths: list[Path],
    shape: tuple[int, int, int],
) -> int:
    """Decode and write all images; how many of their values were not finite."""
    progress, done, not_finite = Announcer(sys.stderr), 0, 0
    maps = 4 * (prod(shape) + prod(found.values.shape[1:]))
    size = max(1, min(LARGEST_BATCH, BATCH_BYTES // (16 * maps)))
    for batch in found.batches(size):
        masks = repeat_masks(model, entries, len(batch))
        y = inference.decode(model, batch, masks)  # wild codes are reported, not warned about
        not_finite += int(np.count_nonzero(~np.isfinite(y)))
        for image in to_bytes(y, model.value_range):
            save_png(to_image(image), paths[done])
            done += 1
        progress.tell("decoding", done, len(paths))
    return not_finite
