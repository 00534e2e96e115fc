"""A report as one HTML file that needs nothing else: no script, no font, no request to anywhere.

All text is escaped here; pictures are embedded as they are, because only `svg.Canvas` makes them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from keyhaul.config.write import write
from keyhaul.testbed.report.svg import Picture, escape


@dataclass(frozen=True, slots=True)
class Heading:
    """A section begins."""

    text: str


@dataclass(frozen=True, slots=True)
class Words:
    """A paragraph."""

    text: str


@dataclass(frozen=True, slots=True)
class Table:
    """Rows under heads. Cells that read like numbers are set to the right; `note` goes below."""

    caption: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


@dataclass(frozen=True, slots=True)
class Figure:
    """A picture with its caption; `small` ones stand side by side where there is room."""

    picture: Picture
    caption: str
    small: bool = False


@dataclass(frozen=True, slots=True)
class Goal:
    """What was to be reached and what was found; `met` None: not measured in this run."""

    goal: str
    found: str
    met: bool | None


@dataclass(frozen=True, slots=True)
class Goals:
    """All goals of a benchmark, met or not."""

    goals: Sequence[Goal]


Block = Heading | Words | Table | Figure | Goals


@dataclass(slots=True)
class Page:
    """A whole report. `facts` are what the figures depend on: machine, versions, load, samples."""

    title: str
    command: str
    lead: str = ""
    facts: Mapping[str, object] = field(default_factory=dict)
    blocks: list[Block] = field(default_factory=list)

    def add(self, *blocks: Block) -> None:
        """Append."""
        self.blocks += blocks

    def html(self) -> str:
        """The file."""
        # `default-src 'none'`: even if something slipped through, a browser would run and fetch nothing.
        policy = "default-src 'none'; style-src 'unsafe-inline'"
        return (
            '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"/>'
            f'<meta http-equiv="Content-Security-Policy" content="{policy}"/>'
            '<meta name="viewport" content="width=device-width, initial-scale=1"/>'
            '<meta name="color-scheme" content="light dark"/>'
            f"<title>{escape(self.title)}</title><style>{_STYLE}</style></head><body><main>\n"
            f"<h1>{escape(self.title)}</h1>\n"
            + (f'<p class="lead">{escape(self.lead)}</p>\n' if self.lead else "")
            + f"<p>To repeat it: <code>{escape(self.command)}</code></p>\n"
            + self._facts()
            + "\n".join(_drawn(block) for block in self.blocks)
            + "\n</main></body></html>\n"
        )

    def save(self, file: Path) -> None:
        """Write the file, whole or not at all."""
        write(file, self.html(), 0o644)

    def _facts(self) -> str:
        if not self.facts:
            return ""
        pairs = "".join(
            f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>"
            for name, value in self.facts.items()
        )
        return f'<dl aria-label="What the figures depend on">{pairs}</dl>\n'


def _drawn(block: Block) -> str:
    match block:
        case Heading(text):
            return f"<h2>{escape(text)}</h2>"
        case Words(text):
            return f"<p>{escape(text)}</p>"
        case Figure(picture, caption, small):
            kind = ' class="small"' if small else ""
            return f"<figure{kind}>{picture.svg}<figcaption>{escape(caption)}</figcaption></figure>"
        case Table():
            return _table(block)
        case Goals(goals):
            return _goals(goals)


def _table(table: Table) -> str:
    heads = "".join(f'<th scope="col">{escape(head)}</th>' for head in table.heads)
    rows = "".join("<tr>" + "".join(map(_cell, row)) + "</tr>" for row in table.rows)
    note = f'<p class="note">{escape(table.note)}</p>' if table.note else ""
    return (
        f'<div class="wide"><table><caption>{escape(table.caption)}</caption>'
        f"<thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table></div>{note}"
    )


def _cell(text: str) -> str:
    number = text[:1].isdigit() or (text[:1] in "-−±.<>" and any(letter.isdigit() for letter in text[:3]))
    kind = ' class="n"' if number else ""
    return f"<td{kind}>{escape(text)}</td>"


_VERDICTS = {True: ("yes", "✓ met"), False: ("no", "✗ not met"), None: ("open", "– not measured")}


def _goals(goals: Sequence[Goal]) -> str:
    rows = []
    for each in goals:
        kind, verdict = _VERDICTS[each.met]
        rows.append(
            f"<tr><td>{escape(each.goal)}</td><td>{escape(each.found)}</td>"
            f'<td class="{kind}">{verdict}</td></tr>'
        )
    heads = "".join(f'<th scope="col">{head}</th>' for head in ("goal", "found", "verdict"))
    return (
        '<div class="wide"><table><caption>Goals</caption>'
        f"<thead><tr>{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


_STYLE = (
    ":root{color-scheme:light dark}"
    "body{margin:0;font:16px/1.5 system-ui,sans-serif;background:#fff;color:#1a1a1a}"
    "main{max-width:960px;margin:0 auto;padding:1.5rem}"
    "h1{font-size:1.7rem;margin:0 0 .5rem}"
    "h2{font-size:1.25rem;margin:2rem 0 .5rem;border-bottom:1px solid #8886}"
    ".lead{font-size:1.05rem}.note,figcaption,dt{color:#5a5a5a;font-size:.87rem}"
    "code{background:#8882;padding:.15rem .4rem;border-radius:4px;overflow-wrap:anywhere}"
    "dl{display:flex;flex-wrap:wrap;gap:.3rem 1.4rem;margin:1rem 0}dl div{min-width:7rem}dd{margin:0}"
    "figure{margin:1.2rem 0}figure svg{max-width:100%;height:auto;border:1px solid #8883;border-radius:4px}"
    "figure.small{display:inline-block;width:calc(50% - .6rem);vertical-align:top;margin:.4rem .2rem}"
    ".wide{overflow-x:auto}table{border-collapse:collapse;margin:.8rem 0;font-size:.9rem}"
    "caption{text-align:left;font-weight:600;padding:.3rem 0}"
    "th,td{padding:.25rem .6rem;border-bottom:1px solid #8884;text-align:left;vertical-align:top}"
    "td.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}"
    ".yes{color:#00694d;font-weight:600}.no{color:#b34700;font-weight:600}.open{color:#6b6b6b}"
    "@media(max-width:700px){figure.small{display:block;width:auto}}"
    "@media(prefers-color-scheme:dark){body{background:#16181b;color:#ececec}"
    ".note,figcaption,dt,.open{color:#a8a8a8}.yes{color:#2fd0a2}.no{color:#ff8f47}}"
    "@media print{figure,table{break-inside:avoid}}"
)
