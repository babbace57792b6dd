"""What a check found out."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from math import isfinite
from typing import Any


@dataclass(frozen=True)
class Check:
    """One comparison and its outcome; it passed when `error` <= `tolerance`.

    Args:
        layer: name of the layer or model.
        configuration: how it was built, and the shape of its input.
        kind: "gradient" (NumPy against central differences), "kernel" (one operation on the device
            against its reference) or "device" (the whole layer on the device against NumPy).
        what: which array: "input", "output", a parameter's name, or what an operation returned.
        shape: of that array.
        error: relative error; NaN when there was nothing to compare.
        tolerance, reason: the bound, and where it comes from.
        kernel: name of the operation, for the kind "kernel".
        note: what else went wrong.
    """

    layer: str
    configuration: str
    kind: str
    what: str
    error: float
    tolerance: float = 0.0
    reason: str = "compared exactly"
    shape: tuple[int, ...] = ()
    kernel: str = ""
    note: str = ""

    @property
    def passed(self) -> bool:
        return self.error <= self.tolerance  # False for NaN

    def as_dict(self) -> dict[str, Any]:
        """For JSON: the fields and `passed`; an error that is no finite number becomes None."""
        error = self.error if isfinite(self.error) else None
        return {**asdict(self), "shape": list(self.shape), "error": error, "passed": self.passed}

    def __str__(self) -> str:
        subject = (
            f"kernel {self.kernel}, {self.what}" if self.kernel else f"{self.kind} {self.what}"
        )
        verdict, sign = ("ok", "<=") if self.passed else ("FAIL", "not <=")
        line = f"{verdict:4} {self.layer}: {subject} {self.shape}: error {self.error:.1e} {sign} "
        line += f"{self.tolerance:.1e} ({self.configuration})"
        return f"{line}: {self.note}" if self.note else line
