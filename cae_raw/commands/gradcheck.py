"""`cae-raw gradcheck`: the checks as a table, configuration by configuration."""

from __future__ import annotations

import re
from typing import Any, TextIO

from cae_raw import gradcheck as engine
from cae_raw.backends import choose_backend
from cae_raw.gradcheck import Check


def gradcheck(layer: str | None, device: str, say: TextIO) -> dict[str, Any]:
    """Check one layer or model, or all (None), telling `say` of each check as it is done.

    Returns:
        `device`, `passed` and `checks`, one object per check.

    Raises:
        InputError: for an unknown layer, or a device that is not there.
    """
    backend = choose_backend(device)
    done: list[Check] = []
    for check in engine.checks(layer, backend):
        if not done or (check.layer, check.configuration) != (
            done[-1].layer,
            done[-1].configuration,
        ):
            print(f"{check.layer}: {check.configuration}", file=say)
        print(_row(check), file=say, flush=True)
        done.append(check)
    _sum_up(done, backend.name, say)
    failed = sum(not check.passed for check in done)
    return {
        "device": backend.name,
        "passed": not failed,
        "failed": failed,
        "checks": [check.as_dict() for check in done],
    }


def _row(check: Check) -> str:
    subject = f"{check.kernel} {check.what}" if check.kernel else check.what
    verdict, sign = ("ok", "<=") if check.passed else ("FAIL", "> ")
    row = f"  {verdict:4}  {check.kind:8}  {subject:34}  {check.shape!s:16}"
    row += f"  {check.error:7.1e} {sign} {check.tolerance:7.1e}"
    return f"{row}  {check.note}" if check.note else row


def _sum_up(checks: list[Check], device: str, say: TextIO) -> None:
    print("\nErrors are relative. Where their tolerances come from:", file=say)
    # What differs from check to check is the length of the sum.
    reasons = {(c.kind, re.sub(r"\bR = \d+", "R is the number of", c.reason)): c for c in checks}
    for kind, reason in reasons:
        print(f"  {kind:8}  {reason}", file=say)
    failed = [check for check in checks if not check.passed]
    named = {
        f"kernel {c.kernel}" if c.kernel else f"{c.kind} {c.what} of {c.layer}" for c in failed
    }
    kernels = len({c.kernel for c in checks} - {""})
    with_kernels = f", {kernels} kernels on {device}" if kernels else ", no kernels without a GPU"
    verdict = f"{len(failed)} FAILED: {', '.join(sorted(named))}" if failed else "all passed"
    print(f"{len(checks)} checks{with_kernels}: {verdict}", file=say)
