"""Scales with round ticks, and the frame of a chart: title, legend, grid, axes, and where data goes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from keyhaul.testbed.report.svg import DASHES, SERIES, Canvas, Picture, text_width

WIDTH, HEIGHT = 720.0, 380.0
_PAD = 14.0
_LINE = 18.0  # pixels from one line of text to the next


@dataclass(frozen=True, slots=True)
class Axis:
    """What an axis shows. `low` and `high` widen or fix it; a logarithmic one leaves out values <= 0."""

    label: str
    log: bool = False
    low: float | None = None
    high: float | None = None


class Scale:
    """Values to pixels. `values` decide the range where the axis does not; ticks lie on round numbers."""

    def __init__(self, axis: Axis, values: Iterable[float], start: float, end: float) -> None:
        self.log = axis.log
        usable = [value for value in values if self.shows(value)]
        low = axis.low if axis.low is not None else min(usable, default=1.0 if axis.log else 0.0)
        high = axis.high if axis.high is not None else max(usable, default=low + 1)
        if axis.log:
            low = max(low, 1e-12)
        if high <= low:  # one value only: some room on both sides of it
            span = abs(low) * 0.1 or 1.0
            low, high = (low / 2, low * 2) if axis.log else (low - span, low + span)
        self.low, self.high, self._start, self._end = low, high, start, end

    def shows(self, value: float) -> bool:
        """Whether a value has a place on this kind of axis."""
        return math.isfinite(value) and (value > 0 or not self.log)

    def __call__(self, value: float) -> float:
        """Where a value lies; values beyond the ends lie on the end."""
        share = (self._to(value) - self._to(self.low)) / (self._to(self.high) - self._to(self.low))
        return self._start + min(1.0, max(0.0, share)) * (self._end - self._start)

    def ticks(self) -> list[float]:
        """Round values between the ends, about five."""
        return _log_ticks(self.low, self.high) if self.log else _ticks(self.low, self.high)

    def grid(self, number: int) -> list[float]:
        """`number` values evenly spread over the axis as it is drawn."""
        low, high = self._to(self.low), self._to(self.high)
        steps = (low + (high - low) * index / (number - 1) for index in range(number))
        return [10**step if self.log else step for step in steps]

    def _to(self, value: float) -> float:
        return math.log10(max(value, 1e-12)) if self.log else value


def _ticks(low: float, high: float) -> list[float]:
    raw = (high - low) / 5
    power = 10 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(step * index, 12) for index in range(first, math.floor(high / step + 1e-9) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    decades = last - first
    factors = (1,) if decades > 3 else (1, 2, 5)
    every = max(1, decades // 8)
    found = [factor * 10.0**power for power in range(first, last + 1, every) for factor in factors]
    return [value for value in found if low * 0.999 <= value <= high * 1.001] or [low, high]


def number(value: float) -> str:
    """A number as people read it: three digits, thousands as k, M, G."""
    if value == 0 or not math.isfinite(value):
        return "0" if value == 0 else "–"
    for limit, sign in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= limit * 0.9995:
            unit = 1e3 if sign == "k" else limit
            return f"{value / unit:.3g}{sign}" if abs(value) < 999.5 * unit else f"{value / unit:.0f}{sign}"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) >= 1e-3 else f"{value:.1e}"


class Frame:
    """A chart before its data: a canvas with title and legend, and the rectangle that is left below them."""

    def __init__(
        self,
        title: str,
        description: str,
        legend: Sequence[str] = (),
        width: float = WIDTH,
        height: float = HEIGHT,
    ) -> None:
        self.canvas = Canvas(width, height, title, description)
        self.top = self._title(title)
        if len(legend) > 1 or any(legend):
            self.top = self._legend(legend, self.top)
        self.left, self.right, self.bottom = 60.0, width - _PAD, height - 46.0

    def scales(self, x: Axis, xs: Iterable[float], y: Axis, ys: Iterable[float]) -> tuple[Scale, Scale]:
        """Draw both axes and give their scales."""
        down = self.y_axis(y, ys)
        across = Scale(x, xs, self.left, self.right)
        ticks = across.ticks()
        room = (self.right - self.left) / max(1, len(ticks))
        every = math.ceil(max((text_width(number(tick)) for tick in ticks), default=1) / room * 1.1)
        for tick in ticks[:: max(1, every)]:
            place = across(tick)
            self.canvas.line((place, self.top), (place, self.bottom), "g")
            self.canvas.text(place, self.bottom + 16, number(tick), "a", text_anchor="middle")
        self._x_label(x.label)
        self._edges()
        return across, down

    def y_axis(self, y: Axis, values: Iterable[float]) -> Scale:
        """Draw the y axis; the left edge moves to make room for its numbers."""
        down = Scale(y, values, self.bottom, self.top)
        ticks = down.ticks()
        self.left = 30 + max((text_width(number(tick)) for tick in ticks), default=20)
        for tick in ticks:
            place = down(tick)
            self.canvas.line((self.left, place), (self.right, place), "g")
            self.canvas.text(self.left - 6, place + 4, number(tick), "a", text_anchor="end")
        middle = (self.top + self.bottom) / 2
        turned = f"rotate(-90 14 {middle:.0f})"
        self.canvas.text(14, middle, y.label, "a", text_anchor="middle", transform=turned)
        return down

    def groups(self, names: Sequence[str], label: str = "") -> list[tuple[float, float]]:
        """Draw an x axis of names; gives the middle of each and the room it has, in pixels."""
        room = (self.right - self.left) / max(1, len(names))
        middles = [self.left + room * (index + 0.5) for index in range(len(names))]
        letters = max(3, int(room / 6.6))
        for middle, name in zip(middles, names, strict=True):
            shown = name if len(name) <= letters else name[: letters - 1] + "…"
            self.canvas.text(middle, self.bottom + 16, shown, "a", text_anchor="middle")
        self._x_label(label)
        self._edges()
        return [(middle, room) for middle in middles]

    def _edges(self) -> None:
        self.canvas.line((self.left, self.bottom), (self.right, self.bottom), "x")
        self.canvas.line((self.left, self.top), (self.left, self.bottom), "x")

    def _x_label(self, label: str) -> None:
        if label:
            middle = (self.left + self.right) / 2
            self.canvas.text(middle, self.bottom + 36, label, "a", text_anchor="middle")

    def _title(self, title: str) -> float:
        top = _PAD
        for words in wrapped(title, self.canvas.width - 2 * _PAD, 14.0):
            top += _LINE
            self.canvas.text(_PAD, top - 4, words, "t")
        return top + 8

    def _legend(self, names: Sequence[str], top: float) -> float:
        """Name and sign of each series; gives where the next thing may begin."""
        x = _PAD
        for index, name in enumerate(names):
            width = 30 + text_width(name) + 14
            if x + width > self.canvas.width - _PAD and x > _PAD:
                x, top = _PAD, top + _LINE
            self.canvas.path(
                [(x, top + 4), (x + 22, top + 4)], f"m s{index % SERIES}", DASHES[index % SERIES]
            )
            self.canvas.text(x + 28, top + 8, name)
            x += width
        return top + _LINE + 6


def wrapped(text: str, width: float, size: float = 12.0) -> list[str]:
    """The text in lines that are about `width` pixels wide at most."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if text_width(longer, size) > width and lines[-1]:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def told(kind: str, axis: Axis, data: Sequence[tuple[str, Sequence[float]]]) -> str:
    """What a chart shows, in words: range and middle of each series."""
    parts = []
    for name, values in data[:24]:
        ordered = sorted(value for value in values if math.isfinite(value))
        if ordered:
            ends = f"{number(ordered[0])} to {number(ordered[-1])}"
            parts.append(f"{name or 'values'}: {ends}, median {number(ordered[len(ordered) // 2])}")
    return f"Chart ({kind}) of {axis.label or 'values'}. " + "; ".join(parts) + "."


def finished(frame: Frame, anything: bool) -> Picture:
    """The picture; one without any value says so."""
    if not anything:
        middle = ((frame.left + frame.right) / 2, (frame.top + frame.bottom) / 2)
        frame.canvas.text(*middle, "no values", "a", text_anchor="middle")
    return frame.canvas.picture()
