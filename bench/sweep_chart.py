"""The chart of a sweep: milliseconds per image and peak memory, over batch, image size, threads."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from cae_raw.measure.chart import OURS, RIVALS, save_figure
from cae_raw.measure.ours import Ours

STYLES = {"training": "-", "forward": "--"}


class Sweep(NamedTuple):
    """What a column of the chart is about."""

    title: str
    axis: str


SWEEPS = {
    "batch": Sweep("Over the batch ({size}x{size})", "images per batch"),
    "size": Sweep("Over the side of the images (batch {batch:,})", "height and width in pixels"),
    "threads": Sweep("Over the threads ({size}x{size}, batch {batch:,})", "threads"),
}


def draw(result: Mapping[str, Any], path: Path) -> None:
    """Write the chart of what `sweep.sweep` returns."""
    from matplotlib.figure import Figure

    kinds = [k for k in SWEEPS if any(p["sweep"] == k for p in result["points"])]
    figure = Figure(figsize=(0.8 + 4.4 * len(kinds), 6.6), layout="constrained")
    panels = figure.subplots(2, len(kinds), squeeze=False)
    colors = _colors(result["points"])
    for column, kind in enumerate(kinds):
        points = [p for p in result["points"] if p["sweep"] == kind]
        time, memory = panels[:, column]
        _draw_time(time, points, kind, colors)
        _draw_memory(memory, points, kind, colors)
        time.set_title(SWEEPS[kind].title.format(**points[0]), fontsize=10)
        memory.set_xlabel(SWEEPS[kind].axis)
    panels[0][0].set_ylabel("ms per image")
    panels[1][0].set_ylabel("peak memory of training, MiB")
    lines, labels = panels[0][0].get_legend_handles_labels()
    columns = len(_names(result["points"]))
    figure.legend(
        lines, labels, loc="outside lower center", ncols=columns, frameon=False, handlelength=3.5
    )
    torch = f", PyTorch {result['torch']}" if result["torch"] else ""
    where = (
        f"{result['cpu']}, {result['threads']} threads"
        if result["device"] == "cpu"
        else result["device"]
    )
    figure.suptitle(f"{result['model']}: the cost of an image on {where}{torch}", fontsize=11)
    save_figure(figure, path)


def _draw_time(
    axes: Any, points: list[dict[str, Any]], kind: str, colors: Mapping[str, str]
) -> None:
    for name, what in ((n, w) for n in _names(points) for w in STYLES):
        x, y = zip(
            *((p[kind], p["candidates"][name][what]["ms_per_image"]) for p in _of(points, name)),
            strict=True,
        )
        label = f"{name}: {what}"
        axes.plot(x, y, STYLES[what], color=colors[name], marker="o", ms=3, label=label)
    _scales(axes, points, kind)


def _draw_memory(
    axes: Any, points: list[dict[str, Any]], kind: str, colors: Mapping[str, str]
) -> None:
    for name in _names(points):
        x, y = zip(
            *((p[kind], p["candidates"][name]["peak_mib"]) for p in _of(points, name)),
            strict=True,
        )
        at_least = [max(v, 1.0) for v in y]
        axes.plot(x, at_least, color=colors[name], marker="o", ms=3)
    _scales(axes, points, kind)


def _scales(axes: Any, points: list[dict[str, Any]], kind: str) -> None:
    from matplotlib.ticker import LogLocator, NullLocator

    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    every = sorted({p[kind] for p in points})
    shown = every[:: 2 if len(every) > 8 else 1]
    axes.set_xticks(shown, [f"{v:,}" for v in shown], fontsize=8)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.4g}")
    axes.grid(True, which="major", color="0.9")
    axes.spines[["top", "right"]].set_visible(False)


def _names(points: list[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(name for point in points for name in point["candidates"]))


def _of(points: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    return [point for point in points if name in point["candidates"]]


def _colors(points: list[dict[str, Any]]) -> dict[str, str]:
    rivals = [name for name in _names(points) if name != Ours.name]
    chosen = itertools.cycle(RIVALS[i] for i in (3, 4, 0, 5))  # far apart
    return {Ours.name: OURS, **dict(zip(rivals, chosen, strict=False))}
