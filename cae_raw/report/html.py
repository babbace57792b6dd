"""The page: sections filled into the template, everything from outside escaped."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from importlib.resources import files
from math import isfinite
from pathlib import Path
from string import Template
from typing import Any

from cae_raw import __version__
from cae_raw.commands.shell import one_line
from cae_raw.pictures.curves import COLOURS, run_colour
from cae_raw.report.differences import PATHS, differing, words_of
from cae_raw.report.images import decibels
from cae_raw.report.inline import Inline
from cae_raw.report.runs import Trained
from cae_raw.report.svg import Series, chart, thinned
from cae_raw.report.table import COLUMNS, more_than_one_range, shown

HIGHER_IS_BETTER = ("best_validation_psnr", "final_validation_psnr", "test_psnr")
LOWER_IS_BETTER = (
    *("best_validation_half_mse", "final_train_half_mse", "final_validation_half_mse"),
    "test_half_mse",
)
ENLARGE = '<p class="faint">A click on a picture makes it large.</p>\n'


@dataclass(frozen=True)
class Strip:
    """Some images in a row, each with a few words under it."""

    images: Sequence[Inline]
    words: Sequence[str]


@dataclass(frozen=True)
class Group:
    """Runs that have the same images, and what each makes of them."""

    words: str  # which images these are
    inputs: Strip
    outputs: dict[int, Strip]  # by the number of the run


@dataclass(frozen=True)
class Figure:
    """A picture of a run, and what it shows."""

    image: Inline
    shows: str


@dataclass
class Page:
    """All that a page says.

    labels: what the runs are called. table: of `cae_raw.report.table.rows`. figures: the pictures
    of each run, by its number.
    """

    runs: Sequence[Trained]
    labels: Sequence[str]
    table: Sequence[Mapping[str, Any]]
    notes: Sequence[str] = ()
    groups: Sequence[Group] = ()
    figures: Mapping[int, Sequence[Figure]] = field(default_factory=dict)

    def html(self) -> str:
        """The whole document."""
        series = self._series()
        sections = {
            "figures": ("Figures", self._figures_section()),
            "curves": ("Curves", self._curves_section(series)),
        }
        if self.groups:
            sections["images"] = ("Reconstructions", self._images_section())
        for i, label in enumerate(self.labels):
            sections[f"run-{i}"] = (label, self._run_section(i))
        if len(self.runs) > 1:
            title = f"{len(self.runs)} runs of cae-raw"
        else:
            title = f"A run of cae-raw: {self.labels[0]}"
        return Template(_text("template.html")).substitute(
            version=said(__version__),
            title=said(title),
            style=_text("page.css").strip(),
            script=_text("page.js").strip(),
            contents="\n".join(
                f'<li><a href="#{name}">{said(words)}</a></li>'
                for name, (words, _) in sections.items()
            ),
            sections="\n".join(
                f'<section id="{name}" aria-labelledby="{name}-title">\n'
                f'<h2 id="{name}-title">{self._swatch(name)}{said(words)}</h2>\n{body}\n</section>'
                for name, (words, body) in sections.items()
            ),
            data=_json(
                {
                    "digits": 2 if more_than_one_range(self.runs) else None,
                    "runs": [
                        {
                            "epochs": one.epochs,
                            "train": [_number(value) for value in one.train],
                            "validation": [_number(value) for value in one.validation],
                        }
                        for one in series
                    ],
                }
            ),
        )

    def _swatch(self, name: str) -> str:
        kind, _, number = name.partition("-")
        return swatch(int(number)) if kind == "run" and len(self.runs) > 1 else ""

    # --- the table ----------------------------------------------------------------------------

    def _figures_section(self) -> str:
        columns = differing(self.runs) if len(self.runs) > 1 else {}
        heads = [("run", "run"), *((name, column.title) for name, column in COLUMNS.items())]
        heads += [(name, name) for name in columns]
        head = "".join(
            f'<th scope="col" data-column="{name}">'
            f'<button type="button" disabled>{said(words)}</button></th>'
            for name, words in heads
        )
        body = []
        for i, (row, label) in enumerate(zip(self.table, self.labels, strict=True)):
            cells = [
                f'<th scope="row" data-value="{said(label)}">{swatch(i)}'
                f'<a href="#run-{i}">{said(label)}</a></th>'
            ]
            cells += [self._cell(name, row) for name in COLUMNS]
            for name, values in columns.items():
                value = "" if values[i] is None else str(values[i])
                words = Path(value).name if name in PATHS and value else words_of(values[i])
                cells.append(f'<td data-value="{said(value)}">{said(words)}</td>')
            body.append(f"<tr>{''.join(cells)}</tr>")
        notes = "".join(f"<li>{said(note)}</li>" for note in self.notes)
        return (
            '<div class="scroll" tabindex="0" role="region" aria-label="Figures of the runs">'
            f'<table id="table">\n<thead><tr>{head}</tr></thead>\n<tbody>\n'
            + "\n".join(body)
            + "\n</tbody>\n</table></div>\n"
            '<p class="faint">half_mse is half of the mean squared error, without any penalty; '
            "training's is the mean over an epoch, while the weights move. PSNR has the width of "
            "the range of values as its peak. images/s is the median over the epochs.</p>"
            + (f'\n<ul class="notes">{notes}</ul>' if notes else "")
        )

    def _cell(self, name: str, row: Mapping[str, Any]) -> str:
        value = row[name]
        best = ' class="best"' if value is not None and self._is_best(name, value) else ""
        return f'<td{best} data-value="{_plain(value)}">{said(shown(name, value))}</td>'

    def _is_best(self, name: str, value: float) -> bool:
        """Whether it reads the same as the best of its column, where runs can be compared by it."""
        values = [row[name] for row in self.table if row[name] is not None]
        if len({run.data_key("validation") for run in self.runs}) > 1:
            return False
        if name in HIGHER_IS_BETTER:
            best = max(values)
        elif name in LOWER_IS_BETTER and not more_than_one_range(self.runs):
            best = min(values)
        else:
            return False
        written = {shown(name, each) for each in values}
        return len(written) > 1 and shown(name, value) == shown(name, best)

    # --- the curves ---------------------------------------------------------------------------

    def _series(self) -> list[Series]:
        found = []
        for i, (run, label) in enumerate(zip(self.runs, self.labels, strict=True)):
            pairs = [(r.train_half_mse, r.validation_half_mse) for r in run.history]
            if more_than_one_range(self.runs):
                pairs = [(run.psnr(train), run.psnr(validation)) for train, validation in pairs]
            epochs = [record.epoch for record in run.history]
            lists = [train for train, _ in pairs], [validation for _, validation in pairs]
            found.append(Series(one_line(label), css_colour(i), epochs, *lists))
        return thinned(found)

    def _curves_section(self, series: Sequence[Series]) -> str:
        decibels = more_than_one_range(self.runs)
        measure = "PSNR in dB" if decibels else "half_mse"
        form = ".2f" if decibels else ".4g"
        rows = []
        for i, one in enumerate(series):
            last = [
                format(v, form) if isfinite(v) else "-" for v in (one.train[-1], one.validation[-1])
            ]
            rows.append(
                f'<tr data-run="{i}"><th scope="row">{swatch(i)}{said(self.labels[i])}</th>'
                f'<td id="train-{i}">{last[0]}</td><td id="validation-{i}">{last[1]}</td></tr>'
            )
        first = min(one.epochs[0] for one in series)
        last_epoch = max(one.epochs[-1] for one in series)
        return (
            '<div class="scroll" tabindex="0" role="region" aria-label="Chart">'
            f"{chart(series, measure, errors=not decibels)}</div>\n"
            '<div class="control scripted-only" id="epoch-control" hidden>'
            '<label for="epoch">Values at epoch <output id="epoch-shown" for="epoch">'
            "(each run's last)</output></label>"
            f'<input type="range" id="epoch" min="{first}" max="{last_epoch}" '
            f'value="{last_epoch}"></div>\n'
            '<div class="scroll" tabindex="0" role="region" aria-label="Values of the curves">'
            f'<table id="legend"><thead><tr><th scope="col">{measure}</th>'
            '<th scope="col">training, dashed</th><th scope="col">validation, solid</th>'
            f"</tr></thead><tbody>\n{chr(10).join(rows)}\n</tbody></table></div>"
        )

    # --- reconstructions ----------------------------------------------------------------------

    def _images_section(self) -> str:
        numbers = sorted(i for group in self.groups for i in group.outputs)
        options = "".join(f'<option value="{i}">{said(self.labels[i])}</option>' for i in numbers)
        parts = [
            '<div id="slider" class="scripted-only" hidden>\n<div class="control">'
            f'<label for="slider-run">Run</label><select id="slider-run">{options}</select></div>\n'
            '<div class="control"><label for="slider-cut">Input | reconstruction</label>'
            '<input type="range" id="slider-cut" min="0" max="100" value="50"></div>\n'
            '<div class="tiles" id="tiles"></div>\n</div>'
        ]
        for g, group in enumerate(self.groups):
            parts.append(f"<h3>{said(group.words)}</h3>")
            parts.append(_strip(group.inputs, f'id="inputs-{g}"', "input"))
            for i, strip in group.outputs.items():
                parts.append(f"<h3>{swatch(i)}{said(self.labels[i])}, PSNR in dB</h3>")
                attributes = f'id="strip-{i}" data-inputs="inputs-{g}"'
                parts.append(_strip(strip, attributes, "reconstruction"))
        return "\n".join(parts)

    # --- one run ------------------------------------------------------------------------------

    def _run_section(self, i: int) -> str:
        run, row = self.runs[i], self.table[i]
        facts = {
            "folder": str(run.path),
            "images": f"{row['dataset']}, {'x'.join(map(str, row['image_shape']))}",
            "range of values": "{:g} to {:g}".format(*row["value_range"]),
            "parameters": f"{row['parameters']:,}",
            **{name: words_of(v) for name, v in row["hyperparameters"].items() if v != ""},
        }
        lines = "".join(
            f'<tr><th scope="row">{said(name)}</th><td class="words">{said(value)}</td></tr>'
            for name, value in facts.items()
        )
        figures = "\n".join(
            f'<figure id="picture-{i}-{k}"><a href="#picture-{i}-{k}">'
            f'<img src="{figure.image.uri}" width="{figure.image.width}" '
            f'height="{figure.image.height}" alt="{said(figure.shows)}"></a>'
            f"<figcaption>{said(figure.shows)}</figcaption></figure>"
            for k, figure in enumerate(self.figures.get(i, ()))
        )
        return (
            "<details><summary>Hyper-parameters</summary>\n"
            '<div class="scroll" tabindex="0" role="region" aria-label="Hyper-parameters">'
            f"<table><tbody>{lines}</tbody></table></div></details>\n"
            + (ENLARGE + f'<div class="figures">\n{figures}\n</div>' if figures else "")
        )


def _strip(strip: Strip, attributes: str, what: str) -> str:
    pieces = []
    for i, (image, words) in enumerate(zip(strip.images, strip.words, strict=True)):
        under = f"<small>{said(words)}</small>" if words else ""
        alt = f"{what} {i + 1}" + (f", {words}" if words else "")
        pieces.append(
            f'<li><img src="{image.uri}" width="{image.width}" height="{image.height}" '
            f'alt="{said(alt)}">{under}</li>'
        )
    return f'<ul class="strip" {attributes}>\n' + "\n".join(pieces) + "\n</ul>"


def said(text: object) -> str:
    """A text from anywhere, for any place in the page: escaped, no control characters."""
    return escape(one_line(text))


def swatch(i: int) -> str:
    """A spot of a run's colour."""
    return f'<span class="swatch" style="background:{css_colour(i)}"></span>'


def css_colour(i: int) -> str:
    """Of a run: as in the charts, but for black, which dark paper would swallow."""
    colour = run_colour(i)
    return "currentColor" if colour == COLOURS[-1] else colour


def psnr_words(values: Sequence[float]) -> list[str]:
    """What stands under reconstructions."""
    return [decibels(value) for value in values]


def _plain(value: float | None) -> str:
    return "" if value is None else repr(value)


def _number(value: float) -> float | None:
    return float(f"{value:.5g}") if isfinite(value) else None


def _json(value: Any) -> str:
    """JSON that cannot end the element it stands in."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _text(name: str) -> str:
    return files(__package__).joinpath(name).read_text("utf-8")
