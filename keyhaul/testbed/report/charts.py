"""The charts of a report, each one function from data to a picture that needs no library to be seen.

Every chart says in its description what it shows, for those who do not see it. Values that have no place on
an axis (not a number, or not positive on a logarithmic one) leave a gap. A chart without any value says so.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from keyhaul.testbed.report.axes import HEIGHT, WIDTH, Axis, Frame, Scale, finished, number, told
from keyhaul.testbed.report.boxes import boxes
from keyhaul.testbed.report.heatmap import heatmap
from keyhaul.testbed.report.svg import DASHES, SERIES, Canvas, Picture, Point

__all__ = ["Axis", "Bars", "Picture", "Series", "bars", "boxes", "cdf", "heatmap", "histogram", "lines"]


@dataclass(frozen=True, slots=True)
class Series:
    """One series of a line chart: `points` are (x, y); `spread` is (low, high) at each point, if given."""

    name: str
    points: Sequence[Point]
    draw: Literal["line", "step", "dots", "crosses"] = "line"
    spread: Sequence[Point] = ()
    spread_as: Literal["band", "bars"] = "band"


@dataclass(frozen=True, slots=True)
class Bars:
    """One series of a bar chart: a value for each group, and (low, high) of its error bar, if given."""

    name: str
    values: Sequence[float]
    errors: Sequence[Point] = ()


def lines(
    title: str,
    series: Sequence[Series],
    x: Axis,
    y: Axis,
    *,
    description: str = "",
    marks: Mapping[str, float] | None = None,
    size: Point = (WIDTH, HEIGHT),
) -> Picture:
    """Lines, steps or dots over two axes. `marks` are dashed level lines, by name."""
    words = description or told(
        "lines", y, [(one.name, [value for _, value in one.points]) for one in series]
    )
    frame = Frame(title, words, [one.name for one in series], *size)
    levels = dict(marks or {})
    ys = [value for one in series for _, value in one.points]
    ys += [end for one in series for pair in one.spread for end in pair] + list(levels.values())
    across, down = frame.scales(x, [place for one in series for place, _ in one.points], y, ys)
    for index, one in enumerate(series):
        _spread(frame.canvas, one, index, across, down)
        _DRAWN[one.draw](frame.canvas, one, index, across, down)
    for name, level in levels.items():
        if down.shows(level):
            frame.canvas.line((frame.left, down(level)), (frame.right, down(level)), "r")
            frame.canvas.text(frame.right - 4, down(level) - 4, name, "a", text_anchor="end")
    return finished(frame, any(down.shows(value) for value in ys))


def bars(
    title: str,
    groups: Sequence[str],
    series: Sequence[Bars],
    y: Axis,
    *,
    x_label: str = "",
    description: str = "",
    size: Point = (WIDTH, HEIGHT),
) -> Picture:
    """Bars side by side in each group; a linear axis begins at zero."""
    values = [value for one in series for value in one.values]
    values += [end for one in series for pair in one.errors for end in pair]
    words = description or told("bars", y, [(one.name, list(one.values)) for one in series])
    frame = Frame(title, words, [one.name for one in series], *size)
    down = frame.y_axis(_from_zero(y, values), values)
    for at, (middle, room) in enumerate(frame.groups(groups, x_label)):
        each = room * 0.8 / max(1, len(series))
        for index, one in enumerate(series):
            value = one.values[at]
            if not down.shows(value):
                continue
            left = middle - room * 0.4 + each * index
            top, zero = down(value), down(max(0.0, down.low) if not down.log else down.low)
            frame.canvas.add(
                "rect", f"f{index % SERIES}", f"{groups[at]}, {one.name}: {number(value)}", x=left + 1,
                y=min(top, zero), width=max(1.0, each - 2), height=max(1.0, abs(zero - top)),
            )  # fmt: skip
            if one.errors:
                _error_bar(frame.canvas, left + each / 2, one.errors[at], down, "x")
    return finished(frame, any(down.shows(value) for value in values))


def histogram(
    title: str,
    samples: Mapping[str, Sequence[float]],
    x: Axis,
    *,
    bins: int = 40,
    description: str = "",
    size: Point = (WIDTH, HEIGHT),
) -> Picture:
    """How often, in per cent of a series, a value falls into each of `bins` equal steps of the axis."""
    values = [value for each in samples.values() for value in each]
    edges = Scale(x, values, 0, 1)
    steps = edges.grid(bins + 1)
    drawn = []
    for name, each in samples.items():
        counts = [0] * bins
        usable = [value for value in each if edges.shows(value)]
        for value in usable:
            counts[min(bins - 1, int(edges(value) * bins))] += 1
        shares = [100 * count / max(1, len(usable)) for count in counts]
        outline = [(steps[0], 0.0), *zip(steps, [*shares, 0.0], strict=True)] if usable else []
        drawn.append(Series(name, outline, "step"))
    words = description or told("histogram", x, [(name, list(each)) for name, each in samples.items()])
    fixed = Axis(x.label, x.log, edges.low, edges.high)
    return lines(title, drawn, fixed, Axis("% of samples", low=0.0), description=words, size=size)


def cdf(
    title: str,
    samples: Mapping[str, Sequence[float]],
    x: Axis,
    *,
    description: str = "",
    size: Point = (WIDTH, HEIGHT),
) -> Picture:
    """The share of samples that are at most x."""
    drawn = []
    for name, each in samples.items():
        ordered = sorted(value for value in each if math.isfinite(value))
        points = [(value, 100 * (index + 1) / len(ordered)) for index, value in enumerate(ordered)]
        drawn.append(Series(name, points, "step"))
    words = description or told(
        "cumulative distribution", x, [(name, list(each)) for name, each in samples.items()]
    )
    return lines(
        title, drawn, x, Axis("% of samples at most x", low=0.0, high=100.0), description=words, size=size
    )


def _from_zero(axis: Axis, values: Sequence[float]) -> Axis:
    if axis.log or axis.low is not None:
        return axis
    lowest = min((value for value in values if math.isfinite(value)), default=0.0)
    return Axis(axis.label, low=min(0.0, lowest), high=axis.high)


def _runs(points: Sequence[Point], across: Scale, down: Scale) -> list[list[Point]]:
    """The points in pixels, in pieces without gaps."""
    pieces: list[list[Point]] = [[]]
    for x, y in points:
        if across.shows(x) and down.shows(y):
            pieces[-1].append((across(x), down(y)))
        elif pieces[-1]:
            pieces.append([])
    return [piece for piece in pieces if piece]


def _line(canvas: Canvas, one: Series, index: int, across: Scale, down: Scale) -> None:
    for piece in _runs(one.points, across, down):
        canvas.path(piece, f"l s{index % SERIES}", DASHES[index % SERIES])
        if len(one.points) <= 30:
            for x, y in piece:
                canvas.add("circle", f"f{index % SERIES}", cx=x, cy=y, r=3)


def _step(canvas: Canvas, one: Series, index: int, across: Scale, down: Scale) -> None:
    for piece in _runs(one.points, across, down):
        stairs = [piece[0]]
        for before, after in itertools.pairwise(piece):
            stairs += [(after[0], before[1]), after]
        canvas.path(stairs, f"l s{index % SERIES}", DASHES[index % SERIES])


def _dots(canvas: Canvas, one: Series, index: int, across: Scale, down: Scale) -> None:
    for piece in _runs(one.points, across, down):
        for x, y in piece:
            canvas.add("circle", f"f{index % SERIES}", cx=x, cy=y, r=2.4)


def _crosses(canvas: Canvas, one: Series, index: int, across: Scale, down: Scale) -> None:
    for piece in _runs(one.points, across, down):
        for x, y in piece:
            canvas.line((x - 4, y - 4), (x + 4, y + 4), f"m s{index % SERIES}")
            canvas.line((x - 4, y + 4), (x + 4, y - 4), f"m s{index % SERIES}")


_DRAWN: dict[str, Callable[[Canvas, Series, int, Scale, Scale], None]] = {
    "line": _line,
    "step": _step,
    "dots": _dots,
    "crosses": _crosses,
}


def _spread(canvas: Canvas, one: Series, index: int, across: Scale, down: Scale) -> None:
    pairs = [
        (across(x), spread)
        for (x, _), spread in zip(one.points, one.spread, strict=False)
        if across.shows(x) and all(map(math.isfinite, spread))
    ]
    if not pairs:
        return
    if one.spread_as == "bars":
        for x, spread in pairs:
            _error_bar(canvas, x, spread, down, f"e s{index % SERIES}")
        return
    over = [(x, down(high)) for x, (_, high) in pairs]
    under = [(x, down(low)) for x, (low, _) in reversed(pairs)]
    canvas.path(over + under, f"b f{index % SERIES}", close=True)


def _error_bar(canvas: Canvas, x: float, spread: Point, down: Scale, classes: str) -> None:
    if not all(map(math.isfinite, spread)):
        return
    low, high = (down(value) for value in spread)
    canvas.line((x, low), (x, high), classes)
    for end in (low, high):
        canvas.line((x - 4, end), (x + 4, end), classes)
