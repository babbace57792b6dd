"""The check of pages finds what it is for."""

from __future__ import annotations

import pytest
from html_check import Checked, check_page

START = "<!DOCTYPE html><html><head><title>a</title></head><body>"
END = "</body></html>"


def test_a_page_in_order_passes() -> None:
    body = (
        '<h1 id="top">b &lt; c</h1><a href="#top">up</a><img src="data:image/png;base64," alt="x">'
    )
    assert "b < c" in check_page(START + body + END).text


@pytest.mark.parametrize(
    "body",
    [
        "<p>",
        "</p>",
        "<b><i></b></i>",
        "<p/>",
        '<p id="a"></p><p id="a"></p>',
        '<p class="a" class="b"></p>',
        '<img src="data:,">',
        '<img src="data:," alt="">',
        '<img src="photo.png" alt="x">',
        '<script src="https://example.org/a.js"></script>',
        '<a href="//example.org">x</a>',
        '<a href="#nowhere">x</a>',
        '<input type="range">',
        '<label for="a">x</label>',
    ],
)
def test_a_fault_is_found(body: str) -> None:
    assert Checked(START + body + END).faults
