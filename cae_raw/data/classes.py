"""Classes of a data set as people type them: names or numbers, with commas between them."""

from __future__ import annotations

from collections.abc import Sequence

from cae_raw.errors import InputError, unknown_name


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
