"""Every kernel with every set of constants that the models use, compiled for every architecture.

No message from the compiler, no spilled register, and the same resources as in kernel_ledger.json.
After a change of the kernels, or with another NVRTC, write the ledger anew and read its diff:

    python tests/test_kernel_ledger.py --write
"""

from __future__ import annotations

import functools
import json
import sys
from dataclasses import astuple
from pathlib import Path

import pytest

from cae_raw.backends import kernel_source, nvrtc
from cae_raw.backends.cuda_backend import Kernel
from cae_raw.ops import (
    activation,
    batch,
    conv2d,
    cross_entropy,
    linear,
    loss,
    optim,
    pad2d,
    pool2d,
    reduce,
    single_layer,
)
from cae_raw.ops import conv2d_plan as plan
from cae_raw.ops.precision import PRECISIONS

LEDGER = Path(__file__).with_name("kernel_ledger.json")
MAX_STATIC_SHARED = 48 * 1024
# The registers that ptxas gives to one text may differ a little between its releases.
COLUMNS = ("registers", "static_shared", "stack", "spill_stores", "spill_loads")

# C -> O of the single-layer models (grey and colour) and of the deep ones, all 3x3 with stride 1.
MODEL_CONVOLUTIONS = (
    (1, 32), (32, 1), (3, 32), (32, 3), (3, 12), (12, 12), (12, 24), (24, 12), (12, 3),
)  # fmt: skip
# Those of the deep models that have pooling behind them, and unpooling in front.
MODEL_POOLED = ((12, 12), (12, 24))
MODEL_UNPOOLED = ((12, 12), (24, 12))

needs_nvrtc = pytest.mark.skipif(
    nvrtc.find_library() is None, reason="NVRTC is not installed: pip install nvidia-cuda-nvrtc"
)


def modules() -> dict[str, Kernel]:
    """One kernel of each module that the models compile, by a name for its constants."""
    result = {
        k.file: k
        for k in (
            activation.RELU_FORWARD, batch.GATHER, conv2d.BIAS, cross_entropy.CROSS_ENTROPY,
            linear.FORWARD, loss.SQUARED_ERROR, optim.ADAM_STEP, pad2d.FORWARD,
            pool2d.MAXPOOL_FORWARD, reduce.ROWS,
        )
    }  # fmt: skip
    for precision in PRECISIONS[1:]:
        result[f"linear_mma {precision}"] = linear.KERNELS[precision][0]
    for file, layers in (
        ("conv2d", MODEL_CONVOLUTIONS),
        ("conv2d_pool", MODEL_POOLED),
        ("unpool_conv2d", MODEL_UNPOOLED),
    ):
        for c, o in layers:
            constants = plan.constants(c, o, (3, 3), (1, 1))
            assert constants is not None
            result[f"{file} {c}->{o}"] = Kernel(file, f"{file}_forward", constants, "FWD_THREADS")
    for name, channels, sparse, precision in (
        ("1", 1, False, "float32"),
        ("3", 3, False, "float32"),
        ("3 sparse", 3, True, "float32"),
        ("3 tf32", 3, False, "tf32"),
        ("3 sparse tf32x3", 3, True, "tf32x3"),
    ):
        kernel = single_layer.kernel(
            "single_layer_step", channels, 32, sparse=sparse, precision=precision
        )
        result[f"single-layer {name}"] = kernel
    return result


@functools.cache
def compiled(name: str, arch: str) -> nvrtc.Compiled:
    kernel = modules()[name]
    source = kernel_source.expand(kernel.file)
    return nvrtc.compile_to_cubin(source, arch, kernel.options, f"{kernel.file}.cu")


def measured(arch: str) -> dict[str, list[int]]:
    """Resources by "module/kernel", in the order of COLUMNS."""
    return {
        f"{name}/{entry}": list(astuple(resources))
        for name in modules()
        for entry, resources in sorted(compiled(name, arch).resources.items())
    }


def table(arch: str, rows: dict[str, list[int]]) -> str:
    width = max(map(len, rows))
    head = " ".join(f"{c:>13}" for c in COLUMNS)
    lines = [f"{arch:<{width}} {head}"]
    lines += [f"{n:<{width}} " + " ".join(f"{v:>13}" for v in row) for n, row in rows.items()]
    return "\n".join(lines)


def ledger_version() -> str:
    return ".".join(map(str, nvrtc.version()))


def test_every_file_and_every_kernel_is_measured() -> None:
    assert {k.file for k in modules().values()} == set(kernel_source.files())
    known = json.loads(LEDGER.read_text())["resources"]
    assert set(known) == set(nvrtc.ARCHITECTURES)
    for rows in known.values():
        assert {name.split("/")[1] for name in rows} >= set(kernel_source.all_entries())


@needs_nvrtc
@pytest.mark.parametrize("arch", nvrtc.ARCHITECTURES)
def test_compiles_without_a_word(arch: str) -> None:
    if arch not in nvrtc.supported_architectures():
        pytest.skip(f"NVRTC {ledger_version()} does not compile for {arch}")
    assert {name: compiled(name, arch).log for name in modules()} == dict.fromkeys(modules(), "")


@needs_nvrtc
@pytest.mark.parametrize("arch", nvrtc.ARCHITECTURES)
def test_resources(arch: str) -> None:
    if arch not in nvrtc.supported_architectures():
        pytest.skip(f"NVRTC {ledger_version()} does not compile for {arch}")
    rows = measured(arch)
    print(table(arch, rows))
    for name, (registers, shared, _, *spills) in rows.items():
        if arch == "sm_75" and "single-layer" in name and "tf32" in name:
            continue  # the twin of a tensor core, where `check_precision` lets nobody launch it
        assert spills == [0, 0], f"{name} spills registers on {arch}"
        assert shared <= MAX_STATIC_SHARED, name
        if name.startswith("single-layer"):  # beside the dynamic shared memory of its plan
            assert shared <= single_layer.plan.STATIC_SHARED, name
        kernel = modules()[name.split("/")[0]]
        assert registers * max(v for k, v in kernel.constants.items() if "THREADS" in k) <= 65536
    known = json.loads(LEDGER.read_text())
    if known["nvrtc"] != ledger_version():
        pytest.skip(f"the ledger is NVRTC {known['nvrtc']}'s, this is {ledger_version()}")
    assert rows == known["resources"][arch], "run `python tests/test_kernel_ledger.py --write`"


def write() -> None:
    resources = {arch: measured(arch) for arch in nvrtc.ARCHITECTURES}
    for arch, rows in resources.items():
        print(table(arch, rows), end="\n\n")
    # One kernel per line, so that a diff can be read.
    text = json.dumps({"nvrtc": ledger_version(), "columns": COLUMNS, "resources": resources})
    text = text.replace("], ", "],\n  ").replace('": {"', '": {\n  "').replace("}, ", "},\n ")
    LEDGER.write_text(text + "\n")


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit("usage: python tests/test_kernel_ledger.py --write")
    write()
