"""`cae-raw doctor`: what keeps a GPU from being used, and the line that mends it.

A check looks at one thing that often goes wrong between a driver, CUDA's libraries and CuPy. None
needs another one to have passed: what a check cannot find out, it leaves to the check that can.
The last one compiles a kernel of this package, runs it and reads the result back.
"""

from __future__ import annotations

from cae_raw.doctor.checks import CHECKS, Finding, examine, healthy, usable
from cae_raw.doctor.environment import Environment

__all__ = ["CHECKS", "Environment", "Finding", "examine", "healthy", "usable"]
