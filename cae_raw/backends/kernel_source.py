"""Finds the CUDA sources, makes one text of each, and reads what the text says about its kernels.

A kernel file is the only place that declares a kernel. From its text come the types of the
parameters, the shapes that the trailing comments promise (`// (N, C, H, W)`), and the formula,
FLOPs and bytes in the comment at the top. `CudaBackend.launch` checks arguments against them, so
a comment about a shape cannot be wrong for long.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType

import numpy as np

DTYPES: dict[str, type[np.generic]] = {
    "float": np.float32,
    "double": np.float64,
    "int": np.int32,
    "long long": np.int64,
    "unsigned char": np.uint8,
}

_INCLUDE = re.compile(r'^#include "([\w.]+)"[^\n]*$', re.MULTILINE)
_ENTRY = re.compile(
    r'^extern "C" __global__ void\s+(?:__launch_bounds__\([^\n]*\)\s+)?(\w+)\(\n'
    r"(.*?)\)?(?:[ ]*//[^\n]*)?\n?\{",
    re.MULTILINE | re.DOTALL,
)
_PARAMETER = re.compile(r"(const )?([a-z ]+?)(\*)?(?: __restrict__)? (\w+)")
_ABOUT = re.compile(r"^// (\w+): (.+)((?:\n//   \w+: .+)+)", re.MULTILINE)
_DETAIL = re.compile(r"^//   (\w+): (.+)$", re.MULTILINE)


def kernels_dir() -> Path:
    """The folder with the .cu files: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parent.parent
    for folder in (package / "kernels", package.parent / "kernels"):
        if (folder / "common.cuh").is_file():
            return folder
    raise FileNotFoundError(
        "CUDA sources not found: reinstall cae-raw, or run from a checkout that has kernels/"
    )


def expand(file: str, folder: Path | None = None) -> str:
    """The text of kernels/`file`.cu with its includes replaced by what they include.

    CuPy's cache of compiled kernels knows the text it is given, not the files that text includes.
    """
    folder = kernels_dir() if folder is None else folder
    text = (folder / f"{file}.cu").read_text(encoding="utf-8")
    return _INCLUDE.sub(lambda m: _included(folder / m.group(1)), text)


def _included(path: Path) -> str:
    return (
        f"// --- {path.name} ---\n{path.read_text(encoding='utf-8')}// --- end of {path.name} ---"
    )


@dataclass(frozen=True)
class Parameter:
    """One parameter of a kernel. `shape` is None for a scalar, `limits` for all but integers."""

    name: str
    dtype: np.dtype[np.generic]
    pointer: bool
    written: bool
    optional: bool
    shape: tuple[str, ...] | None
    shape_code: CodeType | None = field(repr=False, compare=False)
    limits: tuple[int, int] | None


@dataclass(frozen=True)
class Entry:
    """A kernel as its source describes it.

    `about` has the keys formula, shapes, constants (where it has any), flops, bytes and bound;
    flops and bytes are Python expressions of the sizes.
    """

    name: str
    file: str
    parameters: tuple[Parameter, ...]
    about: Mapping[str, str]

    @functools.cached_property
    def names(self) -> tuple[str, ...]:
        return tuple(p.name for p in self.parameters)


def files(folder: Path | None = None) -> list[str]:
    """The stems of all kernel files."""
    return sorted(path.stem for path in (folder or kernels_dir()).glob("*.cu"))


@functools.lru_cache(maxsize=64)
def entries(file: str, folder: Path | None = None) -> dict[str, Entry]:
    """The kernels of one file, in its order.

    Raises:
        ValueError: if the comment at the top and the kernels below it do not name the same ones.
    """
    folder = kernels_dir() if folder is None else folder
    text = (folder / f"{file}.cu").read_text(encoding="utf-8")
    head = text[: text.index("#include")]
    about = {
        m.group(1): {"formula": m.group(2), **dict(_DETAIL.findall(m.group(3)))}
        for m in _ABOUT.finditer(head)
    }
    found = {
        m.group(1): Entry(m.group(1), file, _parameters(m.group(2)), about.get(m.group(1), {}))
        for m in _ENTRY.finditer(text)
    }
    declared = len(re.findall(r"__global__", text))
    if set(found) != set(about) or declared != len(found):
        raise ValueError(
            f"kernels/{file}.cu: the head describes {sorted(about)}, "
            f"the file has {declared} kernels, read were {sorted(found)}"
        )
    return found


def all_entries(folder: Path | None = None) -> dict[str, Entry]:
    """Every kernel of every file."""
    return {name: entry for file in files(folder) for name, entry in entries(file, folder).items()}


def _parameters(text: str) -> tuple[Parameter, ...]:
    """Parse a parameter list; a comment behind a pointer gives its shape."""
    result: list[Parameter] = []
    for line in text.splitlines():
        code, _, comment = line.partition("//")
        declarations = [d.strip() for d in code.rstrip(") ").split(",") if d.strip()]
        for declaration in declarations:
            match = _PARAMETER.fullmatch(declaration)
            if match is None or match.group(2) not in DTYPES:
                raise ValueError(f"cannot read the kernel parameter {declaration!r}")
            dtype = DTYPES[match.group(2)]
            shape = _shape(comment) if match.group(3) else None
            # A tuple of expressions such as "N * O, C"; its names are scalars or -D constants.
            source = f"({', '.join(shape)},)" if shape else "()"
            result.append(
                Parameter(
                    name=match.group(4),
                    dtype=np.dtype(dtype),
                    pointer=bool(match.group(3)),
                    written=bool(match.group(3)) and not match.group(1),
                    optional=bool(match.group(3)) and comment.rstrip().endswith("or null"),
                    shape=shape,
                    shape_code=compile(source, declaration, "eval") if shape else None,
                    limits=_limits(dtype) if not match.group(3) else None,
                )
            )
    return tuple(result)


def _limits(dtype: type[np.generic]) -> tuple[int, int] | None:
    if not issubclass(dtype, np.integer):
        return None
    info = np.iinfo(dtype)
    return int(info.min), int(info.max)


def _shape(comment: str) -> tuple[str, ...]:
    match = re.match(r" ?\(([^)]+)\)", comment)
    if match is None:
        raise ValueError(f"a pointer parameter needs its shape in a comment, not {comment!r}")
    return tuple(part.strip() for part in match.group(1).split(","))
