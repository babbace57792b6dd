"""What tells runs apart: the hyper-parameters that differ, and names made of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cae_raw.models import DEEP_MODELS
from cae_raw.report.runs import Trained

SELF_EXPLAINING = ("model", "dataset", "optimizer")  # their values need no name beside them
PATHS = ("data_dir", "val")
LONG = 70  # letters, beyond which a name says no more than it must


def hyperparameters(run: Trained) -> dict[str, Any]:
    """By name; those that the run has no use for are left out."""
    config = run.config
    values = config.to_json()
    values["loss"] = config.loss or run.model.loss
    used = {
        "filters": config.model not in DEEP_MODELS,
        "code_size": config.model in DEEP_MODELS,
        "momentum": config.optimizer == "sgd",
        "betas": config.optimizer == "adam",
        "eps": config.optimizer == "adam",
        "l2_decoder": config.l2_penalty > 0,
        "lr_decay_factor": config.lr_decay_epochs > 0,
        "channel_order": config.dataset == "lmdb",
        "resize": config.dataset == "lmdb",
    }
    return {name: value for name, value in values.items() if used.get(name, True)}


def differing(runs: Sequence[Trained]) -> dict[str, list[Any]]:
    """The hyper-parameters that have more than one value: name to the value of each run.

    None stands for one that is not set, or that a run has no use for.
    """
    values = [hyperparameters(run) for run in runs]
    found = {}
    for name in {name: None for row in values for name in row}:
        if len({str(row[name]) for row in values if name in row}) > 1:
            found[name] = [row.get(name) for row in values]
    return found


def words_of(value: Any) -> str:
    """A hyper-parameter's value for people."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(words_of, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def labels(runs: Sequence[Trained]) -> list[str]:
    """A name for each run that says how it differs from the others; no two are alike."""
    if len(runs) == 1:
        return [runs[0].name]
    columns = differing(runs)
    columns = {name: columns[name] for name in sorted(columns, key=_rank)}
    found = _joined(runs, columns)
    if max(map(len, found)) > LONG:
        found = _joined(runs, _telling(columns))
    times = Counter(found)
    return [
        words if times[words] == 1 else f"{words} ({run.path})"
        for words, run in zip(found, runs, strict=True)
    ]


def _rank(name: str) -> tuple[bool, bool]:
    """What explains itself comes first, the seed last."""
    return name not in SELF_EXPLAINING, name == "seed"


def _telling(columns: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
    """Without the numbers that an earlier column decides, as the model does the loss."""
    kept: dict[str, list[Any]] = {}
    for name, values in columns.items():
        always = name in (*SELF_EXPLAINING, *PATHS)
        if always or not any(_decides(other, values) for other in kept.values()):
            kept[name] = values
    return kept


def _decides(these: Sequence[Any], those: Sequence[Any]) -> bool:
    """Whether equal values of the first always have equal values of the second."""
    return len(set(map(str, these))) == len(set(map(str, zip(these, those, strict=True))))


def _joined(runs: Sequence[Trained], columns: Mapping[str, list[Any]]) -> list[str]:
    found = []
    for i, run in enumerate(runs):
        parts = [_part(name, values[i]) for name, values in columns.items()]
        found.append(", ".join(filter(None, parts)) or run.name)
    return found


def _part(name: str, value: Any) -> str:
    if value is None or value == "":
        return ""
    if name in PATHS:
        return Path(value).name
    alone = name in SELF_EXPLAINING or name == "comment"
    return words_of(value) if alone else f"{name} {words_of(value)}"
