"""Pages of the site that are made from the code when it is built: commands, metrics, errors, vectors.

They stand in no file, so they cannot be out of date. A name without a description stops the build.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import commands

from keyhaul import errors
from keyhaul.messages import etsi014, problems
from keyhaul.monitor.metrics import Metrics, families

ROOT = Path(__file__).resolve().parent.parent
TREE = re.compile(r"(?:├──|└──|^)\s*([A-Z]\w+(?:, [A-Z]\w+)*)[, ]\s*((?:\d{3}|exit \d)?:?\s.*)$", re.M)


METRICS = """# Metrics

What `/metrics` of the monitoring listener answers ([operations](../operations.md#monitoring)). Labels are
bounded: ports, neighbours, sources and certificates of the configuration, and words of the code. No
application and no key id is in them.

{metrics}
"""
ERRORS = """# Errors

Each says what is wrong and what to do next, in words that hold nothing secret. On the command line it is one
line on stderr; with `--json` an object with `error`, `cause` and `next`. Only there: {here}.

## Classes

The class is what `keyhaul.client` raises, what `keyhaul_refusals_total` counts as `reason`, and what `--json`
calls `error`. What it becomes for an application (014) and for a neighbour (020):

{classes}

## 014: wordings of the standard

An answer is a JSON object with `message`, and `details` where there is more to say. Clause 5 fixes these
messages:

{wordings}

## 020: problem types

`type` starts with `{prefix}`; `details` has the text under the name given here.

{types}
"""
VECTORS = """# Test vectors

For whoever implements [the protocol](../protocol.md). A file has lines `name: value`, the first `expect`,
then an empty line and the bytes in hex. `ok` has to be accepted and to give the values in the file;
`tampered` and `malformed` have to be refused. `tests/vectors/test_vectors.py` holds keyhaul to them, and
`tests/unit/test_protocol_by_hand.py` opens its messages with nothing but the formulae of that page.
"""


def command_page() -> str:
    """Every command with its arguments and options."""
    lines = ["# Commands", "", "Exit codes: 0 it worked, 1 it did not, 2 it was asked wrongly."]
    for each in commands.commands():
        lines += ["", f"## {each.name}", "", _escaped(each.text), "", "```text", each.usage, "```"]
        if each.below:
            links = (f"[{name}](#{f'{each.name} {name}'.replace(' ', '-')})" for name in each.below)
            lines += ["", ", ".join(links)]
        for parameters in (each.arguments, each.options):
            if rows := [(f"`{form}`", _escaped(meaning)) for form, meaning in parameters if form != "--help"]:
                lines += ["", _table(("", ""), rows)]
    return "\n".join(lines) + "\n"


def metric_page() -> str:
    """Every metric with its type and labels."""
    rows = [
        (f"`{name}`", kind, ", ".join(f"`{label}`" for label in labels), _escaped(text))
        for name, kind, labels, text in metrics()
    ]
    return METRICS.format(metrics=_table(("metric", "type", "labels", ""), rows))


def metrics() -> Iterator[tuple[str, str, tuple[str, ...], str]]:
    """Name as it is scraped, type, labels and description of every metric."""
    made = Metrics()
    for each in [*families(_Blank()), *made.registry.collect()]:
        labels = made.seconds._labelnames if each.name == "keyhaul_request_seconds" else _labels(each)
        name = {"counter": f"{each.name}_total", "info": f"{each.name}_info"}.get(each.type, each.name)
        yield name, each.type, labels, each.documentation


def _labels(family: Any) -> tuple[str, ...]:
    return tuple(getattr(family, "_labelnames", ()))


def error_page() -> str:
    """Every error, what it becomes at the ports, and the words that the standards fix."""
    told = meanings()
    classes = list(_below(errors.KeyhaulError))
    if untold := [cls.__name__ for cls in classes if cls.__name__ not in told]:
        raise ValueError(f"keyhaul/errors.py does not say what these are: {', '.join(untold)}")
    at_ports = [cls for cls in classes if not told[cls.__name__].startswith("exit")]
    here = [cls.__name__ for cls in classes if cls not in at_ports]
    rows = [
        (f"`{cls.__name__}`", *_answers(cls), _escaped(told[cls.__name__].lstrip("0123456789 ")))
        for cls in at_ports
    ]
    types = [each for each in vars(problems).values() if isinstance(each, problems._Type)]
    kinds = sorted((f"`{each.slug}`", str(each.status), f"`{each.detail}`") for each in types)
    return ERRORS.format(
        here=", ".join(f"`{name}` ({told[name]})" for name in here),
        classes=_table(("error", "014", "020", "what it is"), rows),
        wordings="\n".join(f"* `{text}`" for text in wordings()),
        prefix=problems.PREFIX,
        types=_table(("type", "status", "details"), kinds),
    )


def meanings() -> dict[str, str]:
    """What the tree at the head of keyhaul/errors.py says about each class."""
    return {
        name: " ".join(text.split())
        for names, text in TREE.findall(errors.__doc__ or "")
        for name in names.split(", ")
    }


def wordings() -> list[str]:
    """The messages of 014, clause 5."""
    known = vars(etsi014).items()
    return [value for name, value in known if name.isupper() and isinstance(value, str) and " " in value]


def _answers(cls: type[errors.KeyhaulError]) -> tuple[str, str]:
    """The HTTP status for an application, and status and problem type for a neighbour."""
    made = cls() if cls is errors.Tampered else cls.__new__(cls)
    if cls is not errors.Tampered:
        errors.KeyhaulError.__init__(made, "…")
    status, body = problems.problem(made, "ext_keys")
    again = f", Retry-After {cls.retry_after} s" if cls.retry_after else ""
    return f"{cls.status}{again}", f"{status} {problems.problem_slug(body)}"


def _below(cls: type[errors.KeyhaulError]) -> Iterator[type[errors.KeyhaulError]]:
    for each in cls.__subclasses__():
        if each.__module__ == errors.__name__:
            yield each
            yield from _below(each)


def vector_page() -> str:
    """Every test vector of the wire protocol, with what it has to give."""
    folder = ROOT / "tests" / "vectors"
    parts = []
    for kind in sorted(each for each in folder.iterdir() if each.is_dir() and any(each.glob("*.txt"))):
        rows = []
        for file in sorted(kind.glob("*.txt")):
            expect = file.read_text().partition("\n")[0].removeprefix("expect:").strip()
            rows.append((f"[{file.stem}](../../{file.relative_to(ROOT)})", expect))
        parts.append(f"\n## {kind.name}\n\n{_table(('file', 'expect'), rows)}\n")
    return VECTORS + "".join(parts)


PAGES: dict[str, Callable[[], str]] = {
    "reference/commands.md": command_page,
    "reference/metrics.md": metric_page,
    "reference/errors.md": error_page,
    "reference/vectors.md": vector_page,
}


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows))


def _escaped(text: str) -> str:
    """Text as Markdown shows it: no table ends, no tag begins."""
    return text.replace("|", "\\|").replace("<", "&lt;").replace("[", "\\[")


class _Blank:
    """A reading of a node without anything: every family of metrics comes from it, none with a sample."""

    def __getitem__(self, name: str) -> _Blank:
        return self

    __getattr__ = __getitem__

    def __iter__(self) -> Iterator[Any]:
        return iter(())

    def __len__(self) -> int:
        return 0

    def __float__(self) -> float:
        return 0.0

    def get(self, name: str, default: Any = 0) -> Any:
        return default

    def items(self) -> Sequence[Any]:
        return ()
