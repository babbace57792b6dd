"""The chart of a sweep: milliseconds per image and peak memory, over batch and over image size."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cae_raw.measure.chart import OURS, RIVALS, save_figure
from cae_raw.measure.ours import Ours

STYLES = {"training": "-", "forward": "--"}


def draw(result: Mapping[str, Any], path: Path) -> None:
    """Write the chart of what `sweep.sweep` returns."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.5, 6.4), layout="constrained")
    kinds = [k for k in ("batch", "size") if any(p["sweep"] == k for p in result["points"])]
    panels = figure.subplots(2, len(kinds), squeeze=False)
    for column, kind in enumerate(kinds):
        points = [p for p in result["points"] if p["sweep"] == kind]
        time, memory = panels[0][column], panels[1][column]
        _draw_time(time, points, kind)
        _draw_memory(memory, points, kind)
        fixed = points[0]
        other = f"{fixed['size']}x{fixed['size']}" if kind == "batch" else f"batch {fixed['batch']}"
        words = "number of images in a batch" if kind == "batch" else "side of the images"
        time.set_title(f"Over the {words} ({other})", fontsize=10)
        memory.set_xlabel("images per batch" if kind == "batch" else "height and width in pixels")
    panels[0][0].set_ylabel("ms per image")
    panels[1][0].set_ylabel("peak memory of training, MiB")
    panels[0][0].legend(frameon=False, fontsize=8)
    torch = f", PyTorch {result['torch']}" if result["torch"] else ""
    where = result["cpu"] if result["device"] == "cpu" else result["device"]
    figure.suptitle(
        f"{result['model']}: the cost of an image on {where}, {result['threads']} threads{torch}",
        fontsize=11,
    )
    save_figure(figure, path)


def _draw_time(axes: Any, points: list[dict[str, Any]], kind: str) -> None:
    for name, what in ((n, w) for n in _names(points) for w in STYLES):
        x, y = zip(
            *((p[kind], p["candidates"][name][what]["ms_per_image"]) for p in _of(points, name)),
            strict=True,
        )
        axes.plot(x, y, STYLES[what], color=_color(name), marker="o", ms=3, label=f"{name}, {what}")
    _scales(axes, points, kind)


def _draw_memory(axes: Any, points: list[dict[str, Any]], kind: str) -> None:
    for name in _names(points):
        x, y = zip(
            *((p[kind], p["candidates"][name]["peak_mib"]) for p in _of(points, name)),
            strict=True,
        )
        axes.plot(x, [max(v, 1.0) for v in y], color=_color(name), marker="o", ms=3)
        axes.annotate(
            name, (x[-1], max(y[-1], 1.0)), (-4, 6), textcoords="offset points", ha="right",
            fontsize=8, color=_color(name),
        )  # fmt: skip
    _scales(axes, points, kind)


def _scales(axes: Any, points: list[dict[str, Any]], kind: str) -> None:
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    every = sorted({p[kind] for p in points})
    shown = every[:: 2 if len(every) > 8 else 1]
    axes.set_xticks(shown, [f"{v:,}" for v in shown], fontsize=8)
    axes.xaxis.set_minor_locator(_no_ticks())
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.4g}")
    axes.grid(True, which="major", color="0.9")
    axes.spines[["top", "right"]].set_visible(False)


def _no_ticks() -> Any:
    from matplotlib.ticker import NullLocator

    return NullLocator()


def _names(points: list[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(name for point in points for name in point["candidates"]))


def _of(points: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    return [point for point in points if name in point["candidates"]]


def _color(name: str) -> str:
    return OURS if name == Ours.name else RIVALS[3]
