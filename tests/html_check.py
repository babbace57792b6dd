"""What must hold of every page: tags balance, ids are unique, nothing is loaded from elsewhere."""

from __future__ import annotations

import re
from html.parser import HTMLParser

VOID = {"br", "col", "hr", "img", "input", "link", "meta"}
DRAWING = {"path", "line", "circle", "rect"}
LOADING = ("src", "href", "srcset", "data", "poster", "action", "xlink:href")


class Checked(HTMLParser):
    """A page and what is wrong with it.

    text: all that is to be read, without scripts and styles.
    """

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.faults: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        if not page.startswith("<!DOCTYPE html>"):
            self.faults.append("no doctype")
        self.feed(page)
        self.close()
        self.faults += [f"<{tag}> is not closed" for tag in self.open]
        self._check_all()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        if len(set(names)) < len(names):
            self.faults.append(f"<{tag}> has an attribute twice: {names}")
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in DRAWING:
            self.faults.append(f"<{tag}/> closes itself")
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.faults.append(f"</{tag}> at line {self.getpos()[0]} closes nothing")

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("script", "style"):
            self.text += data

    def _check_all(self) -> None:
        ids = [attrs["id"] for _, attrs in self.tags if "id" in attrs]
        self.faults += [f"the id {name} is there twice" for name in ids if ids.count(name) > 1]
        for tag, attrs in self.tags:
            if tag == "img" and not attrs.get("alt"):
                self.faults.append("a picture without alt")
            if tag == "input" and not self._is_labelled(attrs):
                self.faults.append(f"an input without a label: {attrs}")
            for name in LOADING:
                value = attrs.get(name) or ""
                if name in attrs and not value.startswith(("data:", "#")):
                    self.faults.append(f"<{tag} {name}={value[:60]}> leaves the page")
                if value.startswith("#") and value[1:] not in ids:
                    self.faults.append(f"the link {value} leads nowhere")
            for name in ("for", "aria-labelledby", "data-inputs"):
                if name in attrs and attrs[name] not in ids:
                    self.faults.append(f"{name}={attrs[name]} names nothing")

    def _is_labelled(self, attrs: dict[str, str | None]) -> bool:
        names = {a.get("for") for tag, a in self.tags if tag == "label"}
        return "aria-label" in attrs or attrs.get("id") in names


def check_page(page: str) -> Checked:
    """Assert that a page is in order, and return it parsed."""
    checked = Checked(page)
    assert not checked.faults, checked.faults[:10]
    for style in re.findall(r"<style>(.*?)</style>", page, re.S):
        assert "url(" not in style and "@import" not in style
    return checked
