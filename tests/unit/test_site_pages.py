"""The documentation as a site: links lead to where it has their targets; none is dead, nothing is foreign."""

from __future__ import annotations

import importlib.util
import posixpath
from pathlib import Path
from types import ModuleType

import pytest
import yaml

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def pages() -> ModuleType:
    spec = importlib.util.spec_from_file_location("keyhaul_docs_pages", ROOT / "docs" / "pages.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("page", "link", "there"),
    [
        ("index.md", "docs/flow.md", "flow.md"),
        ("index.md", "docs/adr/", "adr/index.md"),
        ("index.md", "LICENSE", "source/LICENSE.md"),
        ("index.md", "CONTRIBUTING.md", "contributing.md"),
        ("bench.md", "../docs/benchmarks.md", "benchmarks.md"),
        ("benchmarks.md", "../bench/README.md", "bench.md"),
        ("configuration.md", "operations.md#admission", "operations.md#admission"),
        ("conformance.md", "openapi/", "openapi/index.md"),
        ("flow.md", "lifecycle.svg", "lifecycle.svg"),
        ("reliability.md", "../keyhaul/errors.py", "source/keyhaul/errors.py.md"),
        ("reliability.md", "draw_lifecycle.py", "source/docs/draw_lifecycle.py.md"),
        ("adr/0001-one-lifecycle-table.md", "0002-seal-before-accepting.md", "0002-seal-before-accepting.md"),
        ("adr/0001-one-lifecycle-table.md", "../flow.md", "../flow.md"),
        ("adr/0001-one-lifecycle-table.md", "../../keyhaul/keys.py", "../source/keyhaul/keys.py.md"),
        ("flow.md", "https://example.org/a.md", "https://example.org/a.md"),
    ],
)
def test_links_lead_where_the_site_has_their_targets(
    pages: ModuleType, page: str, link: str, there: str
) -> None:
    assert pages.rewritten(f"see [this]({link}), and [that](#here)", page) == (
        f"see [this]({there}), and [that](#here)"
    )


def test_each_page_of_the_navigation_is_there_and_each_page_is_in_it(pages: ModuleType) -> None:
    settings = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    named = [place for entry in settings["nav"] for place in _places(entry)]
    assert len(named) == len(set(named))
    made = pages._reference().keys()
    assert made <= {*named}
    for place in named:
        path = pages.repository_path(place)
        assert place in made or (ROOT / path).is_file() or (ROOT / posixpath.dirname(path)).is_dir()
    written = {file.name for file in (ROOT / "docs").glob("*.md")} | set(pages.BESIDE.values())
    assert written <= set(named)


def _places(entry: object) -> list[str]:
    """The pages of one entry of the navigation, however deep."""
    if isinstance(entry, str):
        return [entry]
    assert isinstance(entry, dict)
    (inner,) = entry.values()
    return [inner] if isinstance(inner, str) else [place for part in inner for place in _places(part)]


def test_a_directory_is_shown_as_a_list_with_titles(pages: ModuleType) -> None:
    text = pages.shown("docs/adr")
    files = sorted(file.name for file in (ROOT / "docs" / "adr").iterdir())
    assert [line.rpartition("(")[2].rstrip(")") for line in text.splitlines()[2:]] == files
    assert "* [16. Receipts of relays](0016-receipts-of-relays.md)" in text


def test_a_file_is_shown_whole_even_one_with_fences_in_it(
    pages: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = (ROOT / "keyhaul" / "errors.py").read_text().rstrip()
    assert f"```python\n{source}\n```\n" in pages.shown("keyhaul/errors.py")
    (tmp_path / "odd.sh").write_text("cat <<E\n````\nE\n")
    monkeypatch.setattr(pages, "ROOT", tmp_path)
    assert "`````sh\ncat <<E\n````\nE\n`````\n" in pages.shown("odd.sh")


GOOD = {
    "index.html": '<h1 id="top">a</h1><a href="#top"></a><a href="sub/b.html#two"></a><a href="sub/"></a>'
    '<link href="a.css"><a href="https://example.org/">elsewhere</a>',
    "sub/index.html": '<a href="../index.html"></a><img src="/p%20q.png"><a href="/"></a>',
    "sub/b.html": '<h2 id="two">b</h2>',
    "p q.png": "",
    "a.css": "p { background: url(data:image/png;base64,) }",
}


@pytest.mark.parametrize(
    ("where", "what", "told"),
    [
        ("index.html", '<a href="gone.html">', "index.html: gone.html is not there"),
        ("sub/index.html", '<a href="../c/">', "sub/index.html: ../c/ is not there"),
        ("index.html", '<a href="sub/b.html#three">', "index.html: sub/b.html#three has no such heading"),
        ("index.html", '<a href="#nowhere">', "index.html: #nowhere has no such heading"),
        ("index.html", '<script src="https://x.example/a.js">', "https://x.example/a.js is loaded from"),
        ("index.html", '<script src="//x.example/a.js">', "//x.example/a.js is loaded from elsewhere"),
        ("index.html", '<link href="https://x.example/a.css">', "https://x.example/a.css is loaded from"),
        ("sub/b.html", '<img src="http://x.example/a.png">', "http://x.example/a.png is loaded from"),
        ("a.css", '@import "https://x.example/f.css";', "https://x.example/f.css is loaded from elsewhere"),
        ("a.css", "a { b: url(//x.example/f.woff) }", "//x.example/f.woff is loaded from elsewhere"),
    ],
)
def test_what_is_dead_or_foreign_is_told(
    pages: ModuleType, tmp_path: Path, where: str, what: str, told: str
) -> None:
    for name, text in GOOD.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert pages.dead_or_foreign(tmp_path) == []
    (tmp_path / where).write_text(GOOD[where] + what)
    (found,) = pages.dead_or_foreign(tmp_path)
    assert told in found
