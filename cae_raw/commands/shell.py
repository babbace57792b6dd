"""What the shell sees of a command: one line per error, on stderr, and the exit status.

0: done. 1: some of the files could not be used, the others were; or a check failed. 2: an input or
an option is at fault. 130, 143: stopped by Ctrl-C, by SIGTERM.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import typer

from cae_raw.errors import InputError

_UsageError: Any = typer.BadParameter.__mro__[1]  # Typer itself exports no name for it


def run(app: typer.Typer, arguments: Sequence[str] | None = None) -> int:
    """Run the command line (None: this process's) and return the exit status."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a file's name need not fit the terminal's encoding
            stream.reconfigure(errors="backslashreplace")
    try:
        status = app(arguments, prog_name="cae-raw", standalone_mode=False)
        sys.stdout.flush()
        return int(status or 0)
    except InputError as error:
        say_error(str(error))
    except _UsageError as error:
        command = error.ctx.command_path if error.ctx else "cae-raw"
        say_error(f"{error.format_message().rstrip('.')}; see `{command} --help`")
    except (KeyboardInterrupt, typer.Abort):  # some releases of Typer return 130 themselves
        return 130
    except BrokenPipeError:  # whoever read the output has seen enough
        _discard_output()
        return 1
    except OSError as error:
        place = f"{error.filename}: " if error.filename else "cannot write the output: "
        say_error(f"{place}{error.strerror or error}")
        _discard_output()
    except MemoryError:
        say_error("out of memory: use smaller images, fewer --filters or fewer --threads")
    return 2


def say_error(message: str) -> None:
    """One line on stderr, whatever a file's name in the message holds."""
    print(f"cae-raw: error: {one_line(message)}", file=sys.stderr, flush=True)


def one_line(text: object) -> str:
    """The text with line breaks and other control characters spelled out."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(text))


def _discard_output() -> None:
    """Keep Python from failing once more when it flushes a broken stdout on its way out."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
