"""An SVG picture: well-formed, without script, told to screen readers, fit for light and dark pages."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

Value = str | float
Point = tuple[float, float]

SERIES: Final = 8
"""Series that can be told apart; more than that begin again with the first colour."""

# The palette of Okabe and Ito, which people with any colour vision can tell apart; on dark pages its darker
# half is lightened. Yellow is left out: on white it does not show.
_LIGHT = ("#0072b2", "#d55e00", "#009e73", "#aa4499", "#b8860b", "#3399cc", "#555555", "#882255")
_DARK = ("#56a9e8", "#ff8f47", "#2fd0a2", "#e59bd6", "#e6b422", "#8fd3ff", "#bbbbbb", "#ff8fb0")
DASHES: Final = ("", "7 3", "2 3", "9 3 2 3", "12 4", "4 4", "1 3", "6 2 1 2")

_BASE = (
    ".kh{--ink:#1a1a1a;--faint:#6b6b6b;--grid:#d9d9d9;--paper:#ffffff;font:12px system-ui,sans-serif}"
    ".kh text{fill:var(--ink)}.kh .t{font-size:14px;font-weight:600}.kh .a{fill:var(--faint)}"
    ".kh .g{stroke:var(--grid);stroke-width:1}.kh .x{stroke:var(--faint);stroke-width:1}"
    ".kh .p{fill:var(--paper)}.kh .l{fill:none;stroke-width:2;stroke-linejoin:round}"
    ".kh .b{fill-opacity:.18;stroke:none}.kh .e{fill:none;stroke-width:1.3}"
    ".kh .v{fill-opacity:.25;stroke-width:1.2}.kh .m{stroke-width:2.4;fill:none}"
    ".kh .r{stroke:var(--faint);stroke-dasharray:5 4;stroke-width:1.3;fill:none}"
)


def _colours(palette: tuple[str, ...]) -> str:
    return "".join(f"--c{index}:{colour};" for index, colour in enumerate(palette))


STYLE: Final = (
    _BASE
    + ".kh{"
    + _colours(_LIGHT)
    + "}"
    + "".join(
        f".kh .f{index}{{fill:var(--c{index})}}.kh .s{index}{{stroke:var(--c{index})}}"
        for index in range(SERIES)
    )
    + "@media(prefers-color-scheme:dark){.kh{--ink:#ececec;--faint:#a8a8a8;--grid:#3a3a3a;--paper:#16181b;"
    + _colours(_DARK)
    + "}}"
)
"""Colours and strokes of all pictures; the same text in each, so that a picture also stands alone."""


@dataclass(frozen=True, slots=True)
class Picture:
    """A finished SVG element as text. Only this package makes them, so a page may embed them unread."""

    svg: str
    title: str

    def file(self) -> str:
        """The picture as a file of its own."""
        return f'<?xml version="1.0" encoding="UTF-8"?>\n{self.svg}\n'


def escape(value: object) -> str:
    """Text for XML or HTML, in content and in quoted attributes; what XML forbids becomes U+FFFD."""
    clean = "".join(letter if _allowed(ord(letter)) else "\ufffd" for letter in str(value))
    for sign, name in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ('"', "&quot;"), ("'", "&#39;")):
        clean = clean.replace(sign, name)
    return clean


def _allowed(code: int) -> bool:
    return (
        code in (9, 10, 13)
        or 0x20 <= code <= 0xD7FF
        or 0xE000 <= code <= 0xFFFD
        or 0x10000 <= code <= 0x10FFFF
    )


def text_width(text: str, size: float = 12.0) -> float:
    """About how wide a text becomes, in pixels: no font is at hand to ask."""
    return sum(0.9 if letter in "mwMW@%" else 0.3 if letter in "il.,:;|' " else 0.6 for letter in text) * size


def pixels(value: float) -> str:
    """A coordinate with a tenth of a pixel."""
    if not math.isfinite(value):
        raise ValueError(f"{value} is no place in a picture")
    return f"{value:.1f}".removesuffix(".0")


class Canvas:
    """A picture in the making, `width` by `height` pixels."""

    def __init__(self, width: float, height: float, title: str, description: str) -> None:
        self.width, self.height, self.title = width, height, title
        self._description = description
        self._parts: list[str] = []

    def add(self, tag: str, classes: str = "", hint: str = "", **attributes: Value) -> None:
        """One shape; `hint` is shown while the pointer rests on it. `_` in names becomes `-`."""
        inside = f"<title>{escape(hint)}</title>" if hint else ""
        self._parts.append(_element(tag, {"class": classes, **attributes}, inside))

    def text(self, x: float, y: float, words: str, classes: str = "", **attributes: Value) -> None:
        """One line of text; `y` is its base line."""
        self._parts.append(_element("text", {"class": classes, "x": x, "y": y, **attributes}, escape(words)))

    def line(self, start: Point, end: Point, classes: str) -> None:
        """A straight line."""
        self.add("line", classes, x1=start[0], y1=start[1], x2=end[0], y2=end[1])

    def path(self, points: list[Point], classes: str, dash: str = "", close: bool = False) -> None:
        """A line through all points; `dash` as in `stroke-dasharray`."""
        if not points:
            return
        drawn = "M" + "L".join(f"{pixels(x)} {pixels(y)}" for x, y in points) + ("Z" if close else "")
        self.add("path", classes, d=drawn, stroke_dasharray=dash)

    def picture(self) -> Picture:
        """All of it."""
        view = f"0 0 {pixels(self.width)} {pixels(self.height)}"
        described = f"<desc>{escape(self._description)}</desc>" if self._description else ""
        return Picture(
            f'<svg xmlns="http://www.w3.org/2000/svg" class="kh" role="img" viewBox="{view}" '
            f'width="{pixels(self.width)}" height="{pixels(self.height)}" aria-label="{escape(self.title)}">'
            f"<title>{escape(self.title)}</title>{described}<style>{STYLE}</style>"
            f'<rect class="p" width="100%" height="100%"/>{"".join(self._parts)}</svg>',
            self.title,
        )


def _element(tag: str, attributes: dict[str, Value], inside: str) -> str:
    given = "".join(
        f' {name.replace("_", "-")}="{pixels(value) if isinstance(value, float | int) else escape(value)}"'
        for name, value in attributes.items()
        if value != ""
    )
    return f"<{tag}{given}>{inside}</{tag}>" if inside else f"<{tag}{given}/>"
