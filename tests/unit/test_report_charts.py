"""The pictures of a report: well-formed, without script, readable by all, right in their data."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from xml.etree import ElementTree as Xml

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyhaul.testbed.report.axes import Axis, Frame, Scale, number, wrapped
from keyhaul.testbed.report.charts import Bars, Picture, Series, bars, boxes, cdf, heatmap, histogram, lines
from keyhaul.testbed.report.svg import SERIES, Canvas, escape, pixels, text_width

SVG = "{http://www.w3.org/2000/svg}"
HOSTILE = "</title><script>alert('1')</script>\"&\x00\x1b]]>"

CHARTS: dict[str, Callable[[str], Picture]] = {
    "lines": lambda name: lines(
        name,
        [
            Series(name, [(1, 2), (2, 4), (3, 3)], spread=[(1, 3), (3, 5), (2, 4)]),
            Series("b", [(1, 1), (3, 9)], "dots", spread=[(0.5, 2), (8, 10)], spread_as="bars"),
            Series("c", [(2, 2)], "crosses"),
            Series("d", [(1, 5), (2, 6)], "step"),
        ],
        Axis(name),
        Axis(name, log=True),
        marks={name: 4.0},
    ),
    "bars": lambda name: bars(
        name, [name, "two"], [Bars(name, [1, 2], [(0.5, 1.5), (1, 3)]), Bars("b", [3, 4])], Axis(name)
    ),
    "boxes": lambda name: boxes(name, {name: [1, 2, 2, 3, 9], "b": [4.0]}, Axis(name)),
    "histogram": lambda name: histogram(name, {name: [1, 2, 2, 3, 9]}, Axis(name)),
    "cdf": lambda name: cdf(name, {name: [1, 2, 2, 3, 9], "b": [2, 3]}, Axis(name, log=True)),
    "heatmap": lambda name: heatmap(name, [name, "b"], ["c", name], [[1, None], [100, 3]], label=name),
}


def read(picture: Picture) -> Xml.Element:
    return Xml.fromstring(picture.svg)


def words(root: Xml.Element) -> list[str]:
    return [text.text or "" for text in root.iter(f"{SVG}text")]


def shapes(root: Xml.Element, kind: str, classes: str) -> list[Xml.Element]:
    return [each for each in root.iter(f"{SVG}{kind}") if classes in (each.get("class") or "").split()]


@pytest.mark.parametrize("chart", CHARTS)
def test_a_chart_is_an_image_with_title_and_description(chart: str) -> None:
    picture = CHARTS[chart]("delay")
    root = read(picture)
    assert root.tag == f"{SVG}svg"
    assert root.get("role") == "img"
    assert root.get("aria-label") == root.findtext(f"{SVG}title") == picture.title == "delay"
    assert re.search(r"\d", root.findtext(f"{SVG}desc") or ""), "the description holds figures"
    assert Xml.fromstring(picture.file().encode()).tag == root.tag


@pytest.mark.parametrize("chart", CHARTS)
def test_no_name_breaks_out_of_its_place(chart: str) -> None:
    root = read(CHARTS[chart](HOSTILE))
    tags = {element.tag.removeprefix(SVG) for element in root.iter()}
    assert tags <= {"svg", "title", "desc", "style", "rect", "text", "line", "path", "circle"}
    assert "alert('1')" in (root.findtext(f"{SVG}title") or "")
    for element in root.iter():
        assert not [name for name in element.attrib if name.startswith("on") or "href" in name]


@pytest.mark.parametrize("chart", CHARTS)
def test_everything_lies_inside_the_picture(chart: str) -> None:
    root = read(CHARTS[chart]("delay"))
    width, height = (float(root.get(side) or 0) for side in ("width", "height"))
    for element in root.iter():
        for name, limit in (("x", width), ("cx", width), ("x2", width), ("y", height), ("y2", height)):
            place = element.get(name)
            assert place is None or 0 <= float(place) <= limit
    for path in root.iter(f"{SVG}path"):
        numbers = [float(each) for each in re.findall(r"-?[\d.]+", path.get("d") or "")]
        assert all(0 <= x <= width for x in numbers[::2])
        assert all(0 <= y <= height for y in numbers[1::2])


def test_points_lie_where_their_values_are() -> None:
    root = read(lines("t", [Series("a", [(0, 0), (5, 50), (10, 100)], "dots")], Axis("x"), Axis("y")))
    dots = [(float(each.get("cx") or 0), float(each.get("cy") or 0)) for each in shapes(root, "circle", "f0")]
    assert len(dots) == 3
    assert dots[1][0] == pytest.approx((dots[0][0] + dots[2][0]) / 2, abs=0.2)
    assert dots[0][1] > dots[1][1] > dots[2][1], "up is more"


def test_a_logarithmic_axis_gives_each_decade_the_same_room() -> None:
    scale = Scale(Axis("", log=True), [1, 10, 100], 0, 200)
    assert [scale(value) for value in (1, 10, 100)] == pytest.approx([0, 100, 200])
    assert not scale.shows(0)
    assert not scale.shows(-1)
    assert scale.ticks()[0] == 1


def test_what_has_no_place_on_an_axis_leaves_a_gap() -> None:
    points = [(1.0, 1.0), (2.0, 2.0), (3.0, math.nan), (4.0, 0.0), (5.0, 3.0), (6.0, 4.0)]
    root = read(lines("t", [Series("a", points)], Axis("x"), Axis("y", log=True)))
    assert len(shapes(root, "path", "l")) == 2
    assert len(shapes(root, "circle", "f0")) == 4


@pytest.mark.parametrize(
    "picture",
    [
        lines("t", [Series("a", [])], Axis("x"), Axis("y")),
        lines("t", [], Axis("x"), Axis("y", log=True)),
        bars("t", [], [], Axis("y")),
        boxes("t", {"a": []}, Axis("y", log=True)),
        histogram("t", {"a": []}, Axis("x")),
        cdf("t", {"a": [math.inf]}, Axis("x")),
    ],
)
def test_a_chart_without_values_says_so(picture: Picture) -> None:
    assert "no values" in words(read(picture))


def test_bars_begin_at_zero_and_their_heights_are_in_proportion() -> None:
    root = read(bars("t", ["one", "two"], [Bars("a", [100, 50])], Axis("y")))
    high, low = (float(each.get("height") or 0) for each in shapes(root, "rect", "f0"))
    assert high == pytest.approx(2 * low, rel=0.01)
    assert [each.findtext(f"{SVG}title") for each in shapes(root, "rect", "f0")] == [
        "one, a: 100",
        "two, a: 50",
    ]


def test_a_box_tells_its_median_and_how_many_samples_it_has() -> None:
    (box,) = shapes(read(boxes("t", {"a": [1, 2, 3, 4, 100]}, Axis("y"))), "rect", "f1")
    assert box.findtext(f"{SVG}title") == "a: median 3, quartiles 2 and 4, 5 samples"


def test_a_histogram_counts_every_sample_once() -> None:
    root = read(histogram("t", {"a": [0, 1, 1, 2]}, Axis("x"), bins=2))
    told = root.findtext(f"{SVG}desc") or ""
    assert "0 to 2" in told
    drawn = lines(
        "t", [Series("a", [(0, 0), (0, 25), (1, 75), (2, 0)], "step")], Axis("x"), Axis("% of samples", low=0)
    )
    assert shapes(root, "path", "l")[0].get("d") == shapes(read(drawn), "path", "l")[0].get("d")


def test_a_cumulative_distribution_ends_at_all_samples() -> None:
    root = read(cdf("t", {"a": [3, 1, 2]}, Axis("x")))
    d = shapes(root, "path", "l")[0].get("d") or ""
    steps = [float(each) for each in re.findall(r"[\d.]+", d)][1::2]
    assert steps == sorted(steps, reverse=True), "it never falls"
    assert "100" in words(root)


def test_a_heatmap_shows_every_number_and_a_dash_for_none() -> None:
    root = read(
        heatmap("t", ["a", "b"], ["c", "d"], [[1, 2.5], [None, 3000]], show=lambda value: f"{value:g}")
    )
    assert {"1", "2.5", "3000", "–"} <= set(words(root))
    assert len([each for each in root.iter(f"{SVG}rect") if each.get("fill")]) == 3


@pytest.mark.parametrize("value", [-1.0, -0.5, 0.0, 0.5, 1.0])
def test_numbers_on_cells_stand_out_from_them(value: float) -> None:
    root = read(heatmap("t", ["a"], ["b"], [[value]], diverging=True))
    (cell,) = [each for each in root.iter(f"{SVG}rect") if each.get("fill")]
    ink = next(each.get("style") or "" for each in root.iter(f"{SVG}text") if each.get("style"))
    assert contrast(cell.get("fill") or "", ink.removeprefix("fill:")) >= 4.5  # WCAG 2.2, 1.4.3


@pytest.mark.parametrize(("page", "paper"), [("light", "#ffffff"), ("dark", "#16181b")])
def test_series_stand_out_from_the_page(page: str, paper: str) -> None:
    style = read(CHARTS["bars"]("t")).findtext(f"{SVG}style") or ""
    light, dark = style.split("@media(prefers-color-scheme:dark)")
    colours = re.findall(r"--c\d:(#[0-9a-f]{6})", light if page == "light" else dark)
    assert len(set(colours)) == SERIES
    for colour in colours:
        assert contrast(colour, paper) >= 3  # WCAG 2.2, 1.4.11, graphical objects


def contrast(one: str, other: str) -> float:
    """The contrast ratio of WCAG 2.2."""

    def luminance(colour: str) -> float:
        parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        red, green, blue = (
            each / 12.92 if each <= 0.04045 else ((each + 0.055) / 1.055) ** 2.4 for each in parts
        )
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


@given(st.floats(allow_nan=False, allow_infinity=False, width=32), st.floats(1e-3, 1e6), st.booleans())
def test_ticks_are_few_and_inside(low: float, span: float, log: bool) -> None:
    low = abs(low) % 1e9 + 1e-6
    scale = Scale(Axis("", log=log), [low, low + span], 0, 500)
    ticks = scale.ticks()
    assert 1 <= len(ticks) <= 13
    slack = (scale.high - scale.low) * 1e-6 + scale.high * 1e-3 * log + 1e-9
    assert all(scale.low - slack <= tick <= scale.high + slack for tick in ticks)


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0, "0"), (0.00012, "1.2e-04"), (0.5, "0.5"), (12.345, "12.3"), (1234, "1,234"), (12_345, "12.3k"),
     (999_900, "1M"), (2_500_000, "2.5M"), (123_456, "123k"), (3e9, "3G"), (-42, "-42"), (math.nan, "–")],
)  # fmt: skip
def test_numbers_are_short(value: float, shown: str) -> None:
    assert number(value) == shown


def test_long_titles_wrap_and_push_the_chart_down() -> None:
    short, long = Frame("t", ""), Frame("many words " * 30, "")
    assert long.top > short.top
    assert all(text_width(line) <= 200 for line in wrapped("word " * 60, 200))


def test_a_place_that_is_no_number_is_an_error() -> None:
    with pytest.raises(ValueError, match="no place"):
        pixels(math.nan)
    with pytest.raises(ValueError, match="no place"):
        Canvas(10, 10, "t", "").text(math.inf, 0, "here")


@given(st.text())
def test_escaped_text_survives_a_parser(text: str) -> None:
    root = Xml.fromstring(f'<a b="{escape(text)}">{escape(text)}</a>')
    unified = text.replace("\r\n", "\n").replace("\r", "\n")  # as every XML parser does
    forbidden = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
    assert (root.text or "") == forbidden.sub("\ufffd", unified)
