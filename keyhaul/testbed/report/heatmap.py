"""A table whose cells are coloured by their value and legible on every colour."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from keyhaul.testbed.report.axes import WIDTH, Axis, Frame, Scale, number, told
from keyhaul.testbed.report.svg import Canvas, Picture, Point, text_width


def heatmap(
    title: str,
    rows: Sequence[str],
    columns: Sequence[str],
    values: Sequence[Sequence[float | None]],
    *,
    label: str = "",
    log: bool = False,
    diverging: bool = False,
    show: Callable[[float], str] = number,
    description: str = "",
) -> Picture:
    """A table whose cells are coloured by value; `diverging` means from -1 through 0 to 1. None: no value."""
    side = max((text_width(name) for name in rows), default=20) + 20
    cell = max(46.0, min(92.0, (WIDTH - side - 14) / max(1, len(columns))))
    width = max(320.0, side + cell * len(columns) + 14)
    known = [value for row in values for value in row if value is not None and math.isfinite(value)]
    words = description or told(
        "table",
        Axis(label),
        [
            (name, [value for value in row if value is not None])
            for name, row in zip(rows, values, strict=True)
        ],
    )
    frame = Frame(title, words, (), width, 0)
    top = frame.top + 34
    frame.canvas.height = top + 30 * len(rows) + 12
    frame.canvas.text(side, frame.top + 8, label, "a")
    scale = Scale(Axis("", log, *((-1.0, 1.0) if diverging else (None, None))), known, 0, 1)
    for at, name in enumerate(columns):
        middle = side + cell * (at + 0.5)
        frame.canvas.text(middle, top - 6, _shortened(name, cell), "a", text_anchor="middle")
    for down, (name, row) in enumerate(zip(rows, values, strict=True)):
        frame.canvas.text(side - 8, top + 30 * down + 19, name, "a", text_anchor="end")
        for at, value in enumerate(row):
            place = (side + cell * at, top + 30 * down)
            hint = f"{name}, {columns[at]}"
            _cell(frame.canvas, place, cell, value, scale, show, hint, diverging)
    return frame.canvas.picture()


def _shortened(name: str, room: float) -> str:
    letters = max(3, int(room / 6.6))
    return name if len(name) <= letters else name[: letters - 1] + "…"


def _cell(
    canvas: Canvas,
    place: Point,
    width: float,
    value: float | None,
    scale: Scale,
    show: Callable[[float], str],
    hint: str,
    diverging: bool,
) -> None:
    x, y = place
    if value is None or not math.isfinite(value):
        canvas.text(x + width / 2, y + 19, "–", "a", text_anchor="middle")
        return
    red, green, blue = _mixed(
        _DIVERGING if diverging else _RISING, scale(value) if scale.shows(value) else 0.0
    )
    fill = f"#{red:02x}{green:02x}{blue:02x}"
    canvas.add("rect", "", f"{hint}: {show(value)}", x=x, y=y, width=width - 2, height=28, fill=fill)
    # What is legible on a cell depends on the cell, not on the page.
    ink = "#000000" if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else "#ffffff"
    canvas.text(x + width / 2 - 1, y + 19, show(value), "", text_anchor="middle", style=f"fill:{ink}")


Colour = tuple[int, int, int]

_RISING: tuple[Colour, ...] = ((239, 243, 250), (158, 196, 226), (66, 140, 190), (8, 62, 120))
_DIVERGING: tuple[Colour, ...] = (
    (178, 74, 0),
    (240, 190, 140),
    (245, 245, 245),
    (146, 190, 225),
    (0, 80, 150),
)


def _mixed(ramp: Sequence[Colour], share: float) -> Colour:
    place = min(1.0, max(0.0, share)) * (len(ramp) - 1)
    at = min(len(ramp) - 2, int(place))
    red, green, blue = (
        round(low + (high - low) * (place - at)) for low, high in zip(ramp[at], ramp[at + 1], strict=True)
    )
    return red, green, blue
