"""The page of a report: one file, well-formed, everything escaped, nothing that runs or is fetched."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree as Xml

import pytest

from keyhaul.testbed.report.charts import Axis, Series, lines
from keyhaul.testbed.report.page import Figure, Goal, Goals, Heading, Page, Table, Words

HOSTILE = "<script>alert(1)</script>\"'&<img src=x onerror=y>"
SVG = "{http://www.w3.org/2000/svg}"


def page(text: str) -> Page:
    made = Page(text, f"keyhaul bench {text}", text, {text: text, "cores": 2})
    picture = lines(text, [Series(text, [(1, 1), (2, 3)])], Axis(text), Axis(text))
    made.add(Heading(text), Words(text), Figure(picture, text, small=True))
    made.add(Table(text, [text, "b"], [[text, "12.5"], ["c", "−3 ms"]], text))
    made.add(Goals([Goal(text, text, True), Goal("g", "f", False), Goal("g", "f", None)]))
    return made


def read(made: Page) -> Xml.Element:
    return Xml.fromstring(made.html())


def test_a_page_is_well_formed_and_names_its_command() -> None:
    root = read(page("delay"))
    assert root.findtext("head/title") == root.findtext("body/main/h1") == "delay"
    assert root.find("body/main/p/code") is not None
    assert root.findtext("body/main/p/code") == "keyhaul bench delay"
    assert [each.text for each in root.iter("h2")] == ["delay"]
    assert [each.text for each in root.iter("figcaption")] == ["delay"]
    assert len(list(root.iter(f"{SVG}svg"))) == 1


def test_facts_stand_beside_each_other() -> None:
    root = read(page("delay"))
    facts = {pair.findtext("dt"): pair.findtext("dd") for pair in root.findall("body/main/dl/div")}
    assert facts == {"delay": "delay", "cores": "2"}


def test_a_page_without_facts_has_no_empty_list() -> None:
    assert read(Page("t", "c")).find("body/main/dl") is None


def test_everything_is_escaped_wherever_it_stands() -> None:
    root = read(page(HOSTILE))
    tags = {element.tag.removeprefix(SVG) for element in root.iter()}
    assert not tags & {"script", "img", "iframe", "object", "link", "form", "a"}
    for element in root.iter():
        assert not [name for name in element.attrib if name.startswith("on") or name in ("src", "href")]
    # once in each place: h1, lead, h2, words, caption of table and figure, head, cell, note, goal, found …
    assert sum((element.text or "") == HOSTILE for element in root.iter()) >= 12


def test_a_page_fetches_and_runs_nothing() -> None:
    text = page("delay").html()
    assert "default-src 'none'" in text
    assert not re.search(r"url\(|@import|http-equiv=.refresh|https?://(?!www\.w3\.org/)", text)


@pytest.mark.parametrize(
    ("met", "verdict"), [(True, "✓ met"), (False, "✗ not met"), (None, "– not measured")]
)
def test_a_goal_says_whether_it_is_met(met: bool | None, verdict: str) -> None:
    made = Page("t", "c")
    made.add(Goals([Goal("fast", "very", met)]))
    assert [cell.text for cell in read(made).iter("td")] == ["fast", "very", verdict]


def test_numbers_in_tables_are_set_to_the_right() -> None:
    made = Page("t", "c")
    made.add(Table("t", ["a"], [["12.5 ms"], ["name"], ["-3"], ["−3"], ["-"], [""]]))
    assert [cell.get("class") for cell in read(made).iter("td")] == ["n", None, "n", "n", None, None]


def test_a_page_is_written_whole(tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    made = page("delay")
    made.save(file)
    assert file.read_text() == made.html()
    assert [each.name for each in tmp_path.iterdir()] == ["report.html"]
