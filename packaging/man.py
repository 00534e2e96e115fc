"""Writes the man pages (`make man`): one for keyhaul and one for each command, from the commands."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "docs"))
import commands

from keyhaul import __version__


def pages() -> dict[str, str]:
    """Each page in roff by its file name, such as keyhaul-testbed-up.1."""
    everything = commands.commands()
    names = [each.name for each in everything]
    return {f"{each.name.replace(' ', '-')}.1": page(each, names) for each in everything}


def page(each: commands.Command, names: list[str]) -> str:
    """One page; man(7) says what the requests mean."""
    title = each.name.replace(" ", "-")
    lines = [
        f'.TH {title.upper()} 1 "" "keyhaul {__version__}" "keyhaul"',
        ".SH NAME",
        rf"{_text(title)} \- {_text(each.text.rstrip('.'))}",
        ".SH SYNOPSIS",
        rf"\fB{_text(each.name)}\fR {_text(each.usage.removeprefix(each.name).strip())}",
    ]
    for heading, parameters in (("ARGUMENTS", each.arguments), ("OPTIONS", each.options)):
        if parameters:
            lines.append(f".SH {heading}")
        for form, meaning in parameters:
            lines += [".TP", rf"\fB{_text(form)}\fR", _text(meaning)]
    lines += [".SH EXIT STATUS", "0 it worked, 1 it did not, 2 it was asked wrongly."]
    if related := [name for name in names if name != each.name and _near(name, each)]:
        lines += [".SH SEE ALSO", ", ".join(rf"\fB{_text(name.replace(' ', '-'))}\fR(1)" for name in related)]
    return "\n".join(lines) + "\n"


def _near(name: str, each: commands.Command) -> bool:
    """The commands of a group for the group, and the group for its commands."""
    return name == each.name.rpartition(" ")[0] or name.rpartition(" ")[0] == each.name


def _text(text: str) -> str:
    """Text that roff does not take for a request or an escape."""
    safe = text.replace("\\", r"\e").replace("-", r"\-")
    safe = "".join(letter if letter.isascii() else rf"\[u{ord(letter):04X}]" for letter in safe)
    return rf"\&{safe}" if safe.startswith((".", "'")) else safe


def main() -> None:
    """Write all pages into a directory."""
    options = argparse.ArgumentParser(description="Write the man pages.")
    options.add_argument("out", type=Path, help="directory for them, such as …/share/man/man1")
    out = options.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    for name, text in pages().items():
        (out / name).write_text(text)
    sys.stdout.write(f"{out}: {len(pages())} pages\n")


if __name__ == "__main__":
    main()
