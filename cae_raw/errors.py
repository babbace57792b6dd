"""The one exception that means "the input is at fault, and here is what to do about it"."""

from __future__ import annotations


class InputError(ValueError):
    """Something handed to cae-raw cannot be used.

    The message is one line: what is wrong, and what to do. The command line prints it
    without a traceback and exits with status 2.
    """


def unknown_name(kind: str, name: str, known: object) -> InputError:
    """The error for a name that a registry does not hold; lists the names it does hold."""
    names = ", ".join(sorted(str(k) for k in known))  # type: ignore[attr-defined]
    return InputError(f"unknown {kind} {name!r}: choose one of {names}")
