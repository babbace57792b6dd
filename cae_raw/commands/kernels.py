"""`cae-raw kernels`: what each CUDA kernel computes and needs, and its source as it is compiled."""

from __future__ import annotations

import importlib
import itertools
import pkgutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, TextIO

from cae_raw.backends import kernel_source, nvrtc
from cae_raw.backends.cuda_backend import Kernel
from cae_raw.errors import InputError, unknown_name

if TYPE_CHECKING:
    from cae_raw.layers import Conv2d

DEFAULT_CHANNELS = (3,)
DEFAULT_ARCH = "sm_90"
# What the kernels of a tiled convolution do, and how the names of their constants begin.
TILED = {"forward": "FWD", "backward_input": "INP", "backward_weight": "WGT"}


@dataclass(frozen=True)
class Build:
    """A kernel with one set of constants; `where` says which layers need it, "" for any."""

    kernel: Kernel
    where: str = ""


def builds(channels: Sequence[int] = DEFAULT_CHANNELS) -> list[Build]:
    """Every kernel, as the models for images with these numbers of channels compile it.

    Raises:
        InputError: if no model takes such images.
    """
    found: dict[Any, Build] = {}
    for build in (*_tiled_convolutions(channels), *_fused(channels), *_declared()):
        found.setdefault(build.kernel.key, build)
    order = {name: i for i, name in enumerate(kernel_source.all_entries())}
    return sorted(found.values(), key=lambda build: order[build.kernel.entry])


def _declared() -> Iterator[Build]:
    """The kernels whose constants do not depend on a layer: module constants in cae_raw.ops."""
    from cae_raw import ops

    for module in pkgutil.iter_modules(ops.__path__):
        members = vars(importlib.import_module(f"{ops.__name__}.{module.name}"))
        for value in members.values():
            if isinstance(value, Kernel):
                yield Build(value)


def _fused(channels: Sequence[int]) -> Iterator[Build]:
    """Those of the whole single-layer model, with the filters that it has by default."""
    from cae_raw.models import build as build_model
    from cae_raw.ops import single_layer, single_layer_plan

    for c in channels:
        model = build_model("single-layer", channels=c)
        if model.fused_cuda is None:
            continue
        filters = model.options["filters"]
        where = f"single-layer, {c} channels, {filters} filters"
        for entry in kernel_source.entries("single_layer_step"):
            yield Build(single_layer.kernel(entry, c, filters), where)
            for precision in single_layer_plan.SPLIT:
                kernel = single_layer.kernel(entry, c, filters, precision=precision)
                yield Build(kernel, f"{where}, {precision}")


def _tiled_convolutions(channels: Sequence[int]) -> Iterator[Build]:
    """Those that are compiled once per convolution of a model, or per run of layers around it."""
    from cae_raw.layers import Conv2d
    from cae_raw.layers.fused import ConvBlock, Fused
    from cae_raw.models import MODELS
    from cae_raw.models import build as build_model
    from cae_raw.ops import conv2d_plan

    needed: dict[tuple[Any, ...], None] = {}
    for name in MODELS:
        for c in channels:
            try:
                model = build_model(name, channels=c)
            except InputError:  # a model for another number of channels
                continue
            for layer in model.stack:
                if isinstance(layer, Conv2d):
                    needed.setdefault(("conv2d", *_geometry(layer)))
            for part in Fused(model).parts:
                if isinstance(part, ConvBlock):
                    needed.setdefault((part.kernel_file, *_geometry(part.conv)))
    if not needed:
        raise InputError(f"no model takes images with {list(channels)} channels")
    for file, c, o, size, stride in needed:
        constants = conv2d_plan.constants(c, o, size, stride)
        if constants is None:  # too large for a tile: conv2d_direct.cu does it
            continue
        step = "" if stride == (1, 1) else f", stride {stride[0]}x{stride[1]}"
        for what, prefix in TILED.items():
            kernel = Kernel(file, f"{file}_{what}", constants, threads=f"{prefix}_THREADS")
            yield Build(kernel, f"{c} -> {o} channels, {size[0]}x{size[1]}{step}")


def _geometry(layer: Conv2d) -> tuple[Any, ...]:
    return (layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride)


def resources(kernel: Kernel, arch: str) -> nvrtc.Resources:
    """Registers, shared memory and spills of one build, by NVRTC.

    Raises:
        nvrtc.NvrtcNotFoundError: where there is no NVRTC.
    """
    key = (kernel.module_key, arch)
    if key not in _compiled:
        text = kernel_source.expand(kernel.file)
        _compiled[key] = nvrtc.compile_to_cubin(text, arch, kernel.options, f"{kernel.file}.cu")
    return _compiled[key].resources[kernel.entry]


_compiled: dict[Any, nvrtc.Compiled] = {}


def describe(
    channels: Sequence[int] = DEFAULT_CHANNELS, arch: str = DEFAULT_ARCH, say: TextIO | None = None
) -> dict[str, Any]:
    """All kernels: `arch`, `nvrtc` (None where it is missing, then with a `note`), `kernels`.

    Tells `say` of each kernel as it is done; compiling them all takes seconds.

    Raises:
        InputError: for channels that no model takes, or an architecture that NVRTC does not know.
    """
    note, version = "", None
    try:
        version = nvrtc.version()
        if arch not in nvrtc.supported_architectures():
            raise unknown_name("architecture", arch, nvrtc.supported_architectures())
    except nvrtc.NvrtcNotFoundError as error:
        note = f"registers, shared memory and spills are not shown: {error}"
    entries, described, file = kernel_source.all_entries(), [], ""
    for name, group in itertools.groupby(builds(channels), lambda build: build.kernel.entry):
        entry = entries[name]
        described.append({"name": name, "file": f"{entry.file}.cu", **entry.about})
        described[-1]["builds"] = [
            {
                "where": build.where,
                "constants": dict(build.kernel.constants),
                "resources": asdict(resources(build.kernel, arch)) if version else None,
            }
            for build in group
        ]
        if say is not None:
            if entry.file != file:
                print(f"\nkernels/{entry.file}.cu", file=say)
            _show(described[-1], say)
        file = entry.file
    compiler = f"{version[0]}.{version[1]}" if version else None
    if say is not None:
        told = f"resources on {arch}, compiled by NVRTC {compiler}" if compiler else note
        print(f"\n{told}\n--source NAME prints a kernel as it is compiled", file=say)
    return {"arch": arch, "nvrtc": compiler, "note": note, "kernels": described}


def _show(kernel: Mapping[str, Any], say: TextIO) -> None:
    print(f"  {kernel['name']}: {kernel['formula']}", file=say)
    print(f"    FLOPs: {kernel['flops']}", file=say)
    print(f"    bytes: {kernel['bytes']}", file=say)
    print(f"    bound: {kernel['bound']}", file=say)
    for build in kernel["builds"]:
        if build["resources"]:
            where = f"{build['where']}: " if build["where"] else ""
            print(f"    {where}{_in_words(build['resources'])}", file=say, flush=True)


def _in_words(found: Mapping[str, int]) -> str:
    spilled = found["spill_stores"] + found["spill_loads"]
    return (
        f"{found['registers']} registers, {found['static_shared']:,} bytes of shared memory, "
        + (f"{spilled} bytes spilled" if spilled else "nothing spilled")
    )


def source(name: str, channels: Sequence[int]) -> str:
    """The text of a kernel file as it is compiled: its constants as #define, its includes put in.

    Args:
        name: a kernel, or a file of kernels/ with or without ".cu".
        channels: as in `builds`; the first build with this name is taken.

    Raises:
        InputError: for an unknown name.
    """
    stem = name.removesuffix(".cu")
    for build in builds(channels):
        kernel = build.kernel
        if stem in (kernel.entry, kernel.file):
            what = f"kernels/{kernel.file}.cu" + (f" for {build.where}" if build.where else "")
            defines = [f"#define {key} {value}" for key, value in sorted(kernel.constants.items())]
            text = kernel_source.expand(kernel.file)
            return "\n".join(
                [f"// {what}; in the program these are -D options:", *defines, "", text]
            )
    known = {*kernel_source.files(), *kernel_source.all_entries()}
    raise unknown_name("kernel", name, known)
