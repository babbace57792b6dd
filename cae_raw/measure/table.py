"""A report as tables for people."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from cae_raw.measure.ours import Ours

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table


def tables(report: Mapping[str, Any]) -> Iterator[RenderableType]:
    """What `Run.measure` returns, as things that a rich console prints."""
    c, h, w = report["image_shape"]
    where = report["gpu"] or f"{report['cpu']}, {report['threads']} threads, {report['blas']}"
    versions = [f"{name} {report[name]}" for name in ("torch", "jax") if name in report]
    yield f"{report['model']}, images of {c}x{h}x{w}, {report['optimizer']}, on {where}"
    for name, ceiling in report["ceilings"].items():
        yield (
            f"ceilings, {name.replace('_', ' ')}: {ceiling['flop_per_s'] / 1e9:,.1f} GFLOP/s, "
            f"{ceiling['bytes_per_s'] / 1e9:,.1f} GB/s ({ceiling['how']})"
        )
    if versions:
        tf32 = report.get("torch_tf32")
        said = f"; PyTorch's TF32: {tf32}" if tf32 else ""
        yield f"beside {', '.join(versions)}{said}"
    yield from report["notes"]
    yield ""
    yield _steps(report)
    for row in report["verdicts"]:
        if row["best_rival"]:
            yield (
                f"{row['what']}, batch {row['batch']}: {row['ratio']:.2f} times as fast as "
                f"{row['best_rival']}"
            )
    yield ""
    yield _ops(report)
    yield (
        "ms are medians; an operation is timed on "
        + ("the GPU alone" if report["gpu"] else "one thread")
        + ", calls as many as a training step makes. Shares above 100 %: data came from the cache."
    )
    if any(not row["in_step"] for row in report["ops"]):
        yield "* a fused step does this work; the path that goes layer by layer calls it"


def _steps(report: Mapping[str, Any]) -> Table:
    table = _table("step", "batch", "by", "ms", "images/s", "GFLOP/s", "GB/s", "FLOP %", "bytes %")
    for row in report["steps"]:
        table.add_row(
            row["what"],
            f"{row['batch']:,}",
            row["candidate"],
            f"{row['ms']:,.3f}",
            f"{row['images_per_s']:,.0f}",
            *_rates(row),
        )
    return table


def _ops(report: Mapping[str, Any]) -> Table:
    theirs = {
        (row["op"], row["arguments"]): row["ms"]
        for row in report["ops"]
        if row["candidate"] != Ours.name
    }
    beside = ("torch ms",) if theirs else ()
    table = _table(
        *("operation", "arguments", "calls", "ms", *beside),
        *("GFLOP/s", "GB/s", "FLOP %", "bytes %"),
    )
    for row in report["ops"]:
        if row["candidate"] != Ours.name:
            continue
        other = theirs.get((row["op"], row["arguments"]))
        table.add_row(
            row["op"] + ("" if row["in_step"] else " *"),
            row["arguments"],
            str(row["calls_per_step"]),
            f"{row['ms']:,.4f}",
            *((f"{other:,.4f}" if other else "",) if theirs else ()),
            *_rates(row),
        )
    return table


def _rates(row: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        f"{row['flop_per_s'] / 1e9:,.2f}",
        f"{row['bytes_per_s'] / 1e9:,.2f}",
        f"{100 * row['share_of_flop_ceiling']:.1f}",
        f"{100 * row['share_of_bytes_ceiling']:.1f}",
    )


def _table(*columns: str) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    words = ("step", "by", "operation", "arguments")
    for name in columns:
        table.add_column(name, justify="left" if name in words else "right", overflow="fold")
    return table
