"""Makes the site of these pages (`make site`): no link in it is dead, and it loads nothing from elsewhere.

A hook of mkdocs. The pages link as they lie in the repository, `../keyhaul/errors.py` for instance, so that
they can be read there as well. In the site, pages from beside `docs/` get a place of their own, and every
other file or directory that a page links to is added as a page that shows it. `docs/reference.py` makes pages
from the code.
"""

from __future__ import annotations

import posixpath
import re
import sys
from collections.abc import Callable, Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
BESIDE = {  # pages that are not below docs/, and where the site has them
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "CHANGELOG.md": "changelog.md",
    "bench/README.md": "bench.md",
}
LINK = re.compile(r"(\]\()([^)#\s]+)((?:#[^)\s]*)?\))")
FOREIGN = re.compile(r"(?:url\(|@import )\s*[\"']?((?:https?:)?//[^)\"';\s]+)")
LANGUAGES = {".py": "python", ".c": "c", ".toml": "toml", ".yaml": "yaml", ".sh": "sh"}
LOADS = {("script", "src"), ("img", "src"), ("link", "href"), ("iframe", "src"), ("source", "src")}


def repository_path(page: str) -> str:
    """Where the site's page `page` lies in the repository."""
    return next((path for path, place in BESIDE.items() if place == page), f"docs/{page}")


def place(path: str) -> str:
    """Where the site has the file or directory `path` of the repository."""
    if path in BESIDE:
        return BESIDE[path]
    inside = path.removeprefix("docs/")
    if (ROOT / path).is_dir():
        return f"{inside}/index.md"
    return inside if path.startswith("docs/") and not path.endswith(".py") else f"source/{path}.md"


def linked(text: str, page: str) -> set[str]:
    """The repository paths that the site's page `page` links to."""
    return {_target(page, found[1]) for found in LINK.findall(text) if "://" not in found[1]}


def rewritten(text: str, page: str) -> str:
    """`text` with links that lead where the site has their targets."""

    def moved(match: re.Match[str]) -> str:
        before, link, after = match.groups()
        if "://" in link:
            return match.group()
        return before + posixpath.relpath(place(_target(page, link)), posixpath.dirname(page) or ".") + after

    return LINK.sub(moved, text)


def shown(path: str) -> str:
    """A page with the repository's file, or the list of the directory, `path`."""
    there = ROOT / path
    if there.is_dir():
        files = sorted(file for file in there.iterdir() if file.is_file())
        return f"# {path}\n\n" + "\n".join(f"* [{_title(file)}]({file.name})" for file in files) + "\n"
    text = there.read_text()
    fence = "`" * (1 + max(map(len, ["``", *re.findall("`+", text)])))
    language = LANGUAGES.get(there.suffix, "text")
    return f"---\nsearch:\n  exclude: true\n---\n# {path}\n\n{fence}{language}\n{text.rstrip()}\n{fence}\n"


def dead_or_foreign(site: Path) -> list[str]:
    """One line for each link of a built site that leads nowhere, and each thing it loads from elsewhere."""
    pages = {file: _Links.of(file) for file in sorted(site.rglob("*.html"))}
    wrong = []
    for file, page in pages.items():
        for tag, name, link in page.links:
            if urlsplit(link).scheme or urlsplit(link).netloc:
                trouble = "is loaded from elsewhere" if (tag, name) in LOADS else ""
            else:
                trouble = _dead(link, file, site, pages)
            if trouble:
                wrong.append(f"{file.relative_to(site)}: {link} {trouble}")
    for file in sorted(site.rglob("*.css")):
        found = FOREIGN.findall(file.read_text())
        wrong += [f"{file.relative_to(site)}: {link} is loaded from elsewhere" for link in found]
    return wrong


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add what lies beside `docs/`, and then whatever a page links to that the site would not have."""
    from mkdocs.structure.files import File

    for path, where in BESIDE.items():
        files.append(File.generated(config, where, content=(ROOT / path).read_text()))
    for where, make in _reference().items():
        files.append(File.generated(config, where, content=make()))
    wanted = {
        path for page in files.documentation_pages() for path in linked(page.content_string, page.src_uri)
    }
    for path in sorted(wanted):
        if files.get_file_from_path(place(path)) is None:
            files.append(File.generated(config, place(path), content=shown(path)))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Links as the site has them; pages made here have them already."""
    uri = page.file.src_uri
    made = page.file.generated_by and uri not in BESIDE.values() and not uri.startswith("reference/")
    return markdown if made else rewritten(markdown, uri)


def on_post_build(config: MkDocsConfig) -> None:
    """Refuse a site with a dead link, or one that is not whole without a network."""
    from mkdocs.exceptions import PluginError

    if wrong := dead_or_foreign(Path(config.site_dir)):
        raise PluginError("\n".join(wrong))


def _reference() -> Mapping[str, Callable[[], str]]:
    """What makes the pages from the code, by their place; imported late, since only a build needs it."""
    sys.path.insert(0, str(Path(__file__).parent))
    import reference

    return reference.PAGES


def _dead(link: str, file: Path, site: Path, pages: Mapping[Path, _Links]) -> str:
    """What is wrong with a `link` within the site, on the page `file`; empty if nothing is."""
    parts = urlsplit(link)
    start = site if parts.path.startswith("/") else file.parent
    target = start / unquote(parts.path).lstrip("/") if parts.path else file
    target = Path(posixpath.normpath(target / "index.html" if target.is_dir() else target))
    if not target.exists():
        return "is not there"
    heading = unquote(parts.fragment)
    return "has no such heading" if heading and target in pages and heading not in pages[target].ids else ""


def _target(page: str, link: str) -> str:
    """The repository path that `link` on the site's page `page` means."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(repository_path(page)), link))


def _title(file: Path) -> str:
    """The first heading of a page, the name of any other file."""
    heading = re.search(r"^# (.+)$", file.read_text(), re.M) if file.suffix == ".md" else None
    return heading.group(1) if heading else file.name


class _Links(HTMLParser):
    """Every link of one HTML page with the tag and attribute it is in, and every id a link can name."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[tuple[str, str, str]] = []
        self.ids: set[str] = set()

    @classmethod
    def of(cls, file: Path) -> _Links:
        found = cls()
        found.feed(file.read_text())
        return found

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("href", "src") and value:
                self.links.append((tag, name, value))
            elif name in ("id", "name") and value:
                self.ids.add(value)
