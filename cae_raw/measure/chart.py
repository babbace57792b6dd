"""The chart of a report: images/s beside the rivals, and how near to the machine's ceilings."""

from __future__ import annotations

from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cae_raw.measure.ours import Ours
from cae_raw.pictures.save import save_png

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

OURS, RIVALS = "#b8442c", ("#8fa8bf", "#6f8fad", "#4f769b", "#335f88", "#93a58d", "#718a69")
FLOPS, BYTES = "#3f6fa5", "#d39a3b"
DPI, COLORS = 110, 96


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, atomically, with a palette: a third of the size, and no other look.

    Raises:
        InputError: if the file cannot be written.
    """
    from PIL import Image

    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI)
    with Image.open(buffer) as image:
        save_png(image.convert("RGB").quantize(COLORS), path)


def draw(report: Mapping[str, Any]) -> Figure:
    """The chart of what `Run.measure` returns; nothing is shown on a screen."""
    from matplotlib.figure import Figure

    rows = _shares(report)
    figure = Figure(figsize=(12, 1.9 + max(3.2, 0.42 * len(rows))), layout="constrained")
    speed, shares = figure.subplots(1, 2, width_ratios=(1, 1.1))
    _draw_speed(speed, report)
    _draw_shares(shares, rows)
    c, h, w = report["image_shape"]
    where = report["gpu"] or f"{report['cpu']}, {report['threads']} threads"
    figure.suptitle(f"{report['model']}, images of {c}x{h}x{w}, on {where}", fontsize=12)
    return figure


def _draw_speed(axes: Axes, report: Mapping[str, Any]) -> None:
    groups = [(v["what"], v["batch"]) for v in report["verdicts"]]
    names = list(dict.fromkeys(row["candidate"] for row in report["steps"]))
    rates = {(r["what"], r["batch"], r["candidate"]): r["images_per_s"] for r in report["steps"]}
    height = 0.8 / len(names)
    for k, name in enumerate(names):
        color = OURS if name == Ours.name else RIVALS[(k - 1) % len(RIVALS)]
        places = [i - 0.4 + height * (k + 0.5) for i in range(len(groups))]
        values = [rates.get((*group, name), 0.0) for group in groups]
        bars = axes.barh(places, values, height * 0.92, color=color, label=name)
        axes.bar_label(bars, [_short(v) if v else "" for v in values], padding=3, fontsize=8)
    axes.set_yticks(range(len(groups)), [f"{what}\nbatch {batch}" for what, batch in groups])
    axes.invert_yaxis()
    axes.margins(x=0.14)
    axes.set_xlabel("images per second (longer is faster)")
    axes.set_title("Steps, beside the rivals")
    axes.legend(loc="upper center", bbox_to_anchor=(0.45, -0.12), ncols=3, frameon=False)
    _plain(axes)


def _draw_shares(axes: Axes, rows: list[tuple[str, float, float]]) -> None:
    for offset, column, color, what in (
        (-0.2, 1, FLOPS, "of the FLOP/s of a large product"),
        (0.2, 2, BYTES, "of the bytes/s of a large copy"),
    ):
        values = [100 * row[column] for row in rows]
        places = [i + offset for i in range(len(rows))]
        bars = axes.barh(places, values, 0.38, color=color, label=what)
        axes.bar_label(bars, [f"{v:.1f}" for v in values], padding=3, fontsize=8)
    axes.set_yticks(range(len(rows)), [row[0] for row in rows], fontsize=9)
    axes.invert_yaxis()
    axes.axvline(100, color="0.6", linewidth=1)
    axes.set_xlim(0, max(110.0, 112 * max(max(row[1:]) for row in rows)))
    axes.set_xlabel("percent of the ceiling (bytes above 100 came from the cache)")
    axes.set_title(f"{Ours.name} and what the machine can do")
    axes.legend(loc="upper center", bbox_to_anchor=(0.4, -0.12), ncols=2, frameon=False)
    _plain(axes)


def _shares(report: Mapping[str, Any]) -> list[tuple[str, float, float]]:
    """(label, share of FLOP/s, share of bytes/s) of steps, then of operations, longest first."""
    kinds = ("share_of_flop_ceiling", "share_of_bytes_ceiling")
    steps = [
        (f"{r['what']}, batch {r['batch']}", *(r[kind] for kind in kinds))
        for r in report["steps"]
        if r["candidate"] == Ours.name
    ]
    times: dict[str, float] = {}
    sums: dict[str, list[float]] = {}
    for row in report["ops"]:
        if row["candidate"] == Ours.name:
            name, ms = row["op"], row["ms_per_step"]
            times[name] = times.get(name, 0.0) + ms
            total = sums.setdefault(name, [0.0, 0.0])
            for i, kind in enumerate(kinds):
                total[i] += row[kind] * ms
    ops = [
        (f"{name}, {ms:.3g} ms", sums[name][0] / ms, sums[name][1] / ms)
        for name, ms in sorted(times.items(), key=lambda item: -item[1])
    ]
    return steps + ops


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def _plain(axes: Axes) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.spines[["top", "right"]].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.tick_params(axis="y", length=0)
