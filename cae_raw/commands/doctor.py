"""`cae-raw doctor`: the findings as text or JSON."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, TextIO

from cae_raw.doctor import CHECKS, Environment, Finding, examine, healthy, usable


def doctor(say: TextIO, environment: Environment | None = None) -> dict[str, Any]:
    """Examine this machine, telling `say` of each check as it is done.

    Returns:
        `usable`: a kernel ran; `healthy`: nothing needs mending; `checks`: the findings.
    """
    width = max(map(len, CHECKS))
    findings: list[Finding] = []
    for finding in examine(environment):
        findings.append(finding)
        print(f"{finding.name:{width}}  {finding.verdict:7}  {finding.found}", file=say, flush=True)
        if finding.remedy:
            print(f"{'':{width}}  {'':7}  -> {finding.remedy}", file=say, flush=True)
    print(f"\n{_verdict(findings)}", file=say)
    return {
        "usable": usable(findings),
        "healthy": healthy(findings),
        "checks": [asdict(finding) for finding in findings],
    }


def _verdict(findings: list[Finding]) -> str:
    problems = sum(finding.verdict == "problem" for finding in findings)
    if usable(findings):
        works = "the GPU works: --device auto uses it"
    else:
        works = "--device auto uses the CPU"
    if not problems:
        return works
    return (
        f"{problems} problem{'s' * (problems > 1)} found, the arrows say how to mend them; {works}"
    )
