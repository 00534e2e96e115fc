"""Distributions side by side: the density of the samples of each name, with quartiles and median."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from keyhaul.testbed.report.axes import HEIGHT, WIDTH, Axis, Frame, Scale, finished, number, told
from keyhaul.testbed.report.svg import Canvas, Picture, Point

_OUTLINE = 48  # points of a density
_MOST_FOR_DENSITY = 400  # samples; more are thinned out in order


def boxes(
    title: str,
    samples: Mapping[str, Sequence[float]],
    y: Axis,
    *,
    x_label: str = "",
    description: str = "",
    size: Point = (WIDTH, HEIGHT),
) -> Picture:
    """For each name the density of its samples, 5 to 95 % as a line, the quartiles as a box, the median."""
    words = description or told("distributions", y, [(name, list(each)) for name, each in samples.items()])
    frame = Frame(title, words, (), *size)
    down = frame.y_axis(y, [value for each in samples.values() for value in each])
    places = frame.groups(list(samples), x_label)
    for (name, values), (middle, room) in zip(samples.items(), places, strict=True):
        ordered = sorted(value for value in values if down.shows(value))
        if ordered:
            _box(frame.canvas, name, ordered, (middle, room), down)
    return finished(frame, any(down.shows(value) for each in samples.values() for value in each))


def _box(canvas: Canvas, name: str, ordered: Sequence[float], place: Point, down: Scale) -> None:
    middle, room = place
    outline = _density(ordered, down)
    widest = max((width for _, width in outline), default=0.0)
    if widest > 0:
        half = min(60.0, room * 0.42) / widest
        right = [(middle + width * half, y) for y, width in outline]
        left = [(middle - width * half, y) for y, width in reversed(outline)]
        canvas.path(right + left, "v f0 s0", close=True)
    low, first, median, third, high = (
        down(_quantile(ordered, share)) for share in (0.05, 0.25, 0.5, 0.75, 0.95)
    )
    told = (
        f"{name}: median {number(_quantile(ordered, 0.5))}, quartiles {number(_quantile(ordered, 0.25))} and "
        f"{number(_quantile(ordered, 0.75))}, {len(ordered)} samples"
    )
    canvas.line((middle, low), (middle, high), "x")
    width = min(22.0, room * 0.3)
    canvas.add(
        "rect", "v f1 s1", told, x=middle - width / 2, y=third, width=width, height=max(1.0, first - third)
    )
    canvas.line((middle - width / 2, median), (middle + width / 2, median), "m s1")


def _density(ordered: Sequence[float], down: Scale) -> list[Point]:
    """Pixels down and the density there, smoothed with Silverman's width, from first to last sample."""
    thin = ordered[:: max(1, len(ordered) // _MOST_FOR_DENSITY)]
    places = [down(value) for value in thin]
    mean = sum(places) / len(places)
    deviation = math.sqrt(sum((place - mean) ** 2 for place in places) / len(places))
    spread = max(1.5, 0.9 * deviation * len(places) ** -0.2)
    top, bottom = min(places), max(places)
    steps = [top + (bottom - top) * index / (_OUTLINE - 1) for index in range(_OUTLINE)]
    return [(y, sum(math.exp(-(((y - place) / spread) ** 2) / 2) for place in places)) for y in steps]


def _quantile(ordered: Sequence[float], share: float) -> float:
    """Nearest rank."""
    return ordered[min(len(ordered) - 1, max(0, math.ceil(share * len(ordered)) - 1))]
