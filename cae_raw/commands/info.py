"""`cae-raw info --model NAME`: the layers of a model, and what they cost."""

from __future__ import annotations

from typing import Any

from cae_raw.commands.options import LARGEST
from cae_raw.errors import InputError, unknown_name
from cae_raw.models import DEEP_MODELS, MODELS, build
from cae_raw.models.summary import Summary, summarize

DEFAULT_SIZE = 64
DEFAULT_CHANNELS = 3


def model_info(
    model: str | None,
    size: int | None,
    channels: int | None,
    code_size: int | None,
    filters: int | None,
) -> Summary | None:
    """The summary of the model that the options of `cae-raw info` describe; None without one."""
    given = {
        "size": size,
        "channels": channels,
        "code_size": code_size,
        "filters": filters,
    }
    if model is None:
        for name, value in given.items():
            if value is not None:
                raise _without_effect(name, "--model")
        return None
    if model not in MODELS:
        raise unknown_name("model", model, MODELS)
    deep = model in DEEP_MODELS
    if deep and filters is not None:
        raise _without_effect("filters", "--model single-layer")
    if not deep and code_size is not None:
        raise _without_effect("code_size", "--model deep or deep-same")
    for name, value in given.items():
        if value is not None and name in LARGEST and not 1 <= value <= LARGEST[name]:
            shown = str(value)[:30]
            raise InputError(f"{_option(name)} must be from 1 to {LARGEST[name]}, not {shown}")
    channels = DEFAULT_CHANNELS if channels is None else channels
    if channels not in (1, 3):
        raise InputError(f"--channels must be 1 or 3, not {str(channels)[:30]}")
    side = size or DEFAULT_SIZE
    options = {"size": side, "code_size": code_size} if deep else {"filters": filters}
    stated: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    return summarize(build(model, channels=channels, **stated), (channels, side, side))


def _without_effect(name: str, needed: str) -> InputError:
    option = _option(name)
    return InputError(f"{option} needs {needed} to have an effect: add that, or omit {option}")


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")
