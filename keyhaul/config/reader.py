"""Reads typed values out of one TOML file and collects every mistake, with its line, instead of stopping."""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from keyhaul.config import positions
from keyhaul.errors import ConfigError

_REQUIRED: Any = object()


@dataclass(frozen=True, slots=True, order=True)
class Mistake:
    """One thing to correct. `line` counts from 1; 0 means the file as a whole."""

    file: Path
    line: int
    cause: str
    remedy: str
    warning: bool = False

    def __str__(self) -> str:
        level = "warning: " if self.warning else ""
        return f"{self.file}:{self.line}: {level}{self.cause}; {self.remedy}"


class Mistakes(ConfigError):
    """All mistakes of a configuration at once, one a line."""

    def __init__(self, mistakes: Sequence[Mistake]) -> None:
        self.mistakes = tuple(sorted(mistakes))
        super().__init__("\n".join(map(str, self.mistakes)))


class Source:
    """One file: its text, the lines of its values and the list all its sections report to."""

    def __init__(self, file: Path, mistakes: list[Mistake]) -> None:
        self.file = file
        self.mistakes = mistakes
        self._lines: dict[positions.Path, int] = {}

    def read(self) -> Section | None:
        """The root table; None if the file cannot be read at all (reported)."""
        try:
            text = self.file.read_bytes().decode()
            table = tomllib.loads(text)
        except OSError as error:
            self.report((), f"cannot be read ({error.strerror})", "check the path and its permissions")
        except UnicodeDecodeError:
            self.report((), "is not UTF-8 text", "save it as UTF-8")
        except tomllib.TOMLDecodeError as error:
            found = re.search(r"line (\d+)", str(error))
            line = int(found.group(1)) if found else text.count("\n") + 1  # "at end of document"
            self._add(line, f"not valid TOML: {error}", "correct the syntax (https://toml.io)")
        except (ValueError, RecursionError):  # a number of thousands of digits, thousands of brackets
            self._add(0, "is no TOML that a person wrote", "take out numbers and brackets without end")
        else:
            self._lines = positions.positions(text)
            return Section(self, table, ())
        return None

    def report(self, path: positions.Path, cause: str, remedy: str, *, warning: bool = False) -> None:
        """Add a mistake at the line of `path`, or of the nearest table around it."""
        while path and path not in self._lines:
            path = path[:-1]
        self._add(self._lines.get(path, 0), cause, remedy, warning=warning)

    def _add(self, line: int, cause: str, remedy: str, *, warning: bool = False) -> None:
        self.mistakes.append(Mistake(self.file, line, cause, remedy, warning))


class Section:
    """One table. Each reader returns a value of its type in any case; mistakes surface at the end."""

    def __init__(self, source: Source, table: Mapping[str, Any], path: positions.Path) -> None:
        self.source = source
        self._table = table
        self._path = path
        self._known: set[str] = set()

    @property
    def title(self) -> str:
        """How messages name this table."""
        return f"[{'.'.join(str(part) for part in self._path)}]" if self._path else "the file"

    def __contains__(self, name: str) -> bool:
        return name in self._table

    def is_text(self, name: str) -> bool:
        """Whether a string stands there, for settings that may be one."""
        return isinstance(self._table.get(name), str)

    def report(self, name: str | None, cause: str, remedy: str, *, warning: bool = False) -> None:
        """A mistake in the value `name`, or in the table as a whole."""
        path = self._path if name is None else (*self._path, name)
        self.source.report(path, cause, remedy, warning=warning)

    def text(self, name: str, default: str = _REQUIRED, *, pattern: str = "", shape: str = "") -> str:
        """A string; `pattern` is a regular expression it must match whole and `shape` says so in words."""
        value: str = self._value(name, str, default, "")
        if name in self._table and (not value or (pattern and not re.fullmatch(pattern, value))):
            self.report(name, f"{name} = {value!r} is not {shape or 'a filled string'}", "correct the value")
        return value

    def choice(self, name: str, choices: Sequence[str], default: str = _REQUIRED) -> str:
        """One of a few words."""
        value: str = self._value(name, str, default, choices[0])
        if value in choices:
            return value
        near = difflib.get_close_matches(value, choices, 1)
        guess = f"; did you mean {near[0]!r}?" if near else ""
        self.report(name, f"{name} = {value!r} is not known", f"use one of {', '.join(choices)}{guess}")
        return choices[0]

    def integer(self, name: str, default: int = _REQUIRED, *, low: int = 0, high: int = 2**31) -> int:
        """A whole number from `low` to `high`."""
        value: int = self._bounded(name, self._value(name, int, default, low), low, high)
        return value

    def number(self, name: str, default: float = _REQUIRED, *, low: float = 0.0, high: float = 1e12) -> float:
        """A number from `low` to `high`; whole ones are fine."""
        value = self._value(name, (int, float), default, low)
        return float(self._bounded(name, value, low, high))

    def flag(self, name: str, default: bool = _REQUIRED) -> bool:
        """true or false."""
        value: bool = self._value(name, bool, default, False)
        return value

    def file(self, name: str, default: str = _REQUIRED) -> Path:
        """A path; relative ones start at the directory of the configuration file."""
        return self.source.file.parent / self.text(name, default)

    def optional_file(self, name: str) -> Path | None:
        """As `file`, or None where it is left out."""
        return self.file(name) if name in self else None

    def url(self, name: str) -> str:
        """An https URL with a host and nothing after its path; no slash at the end."""
        value = self.text(name)
        try:
            parts = urlsplit(value)
            fine = parts.scheme == "https" and bool(parts.hostname) and (parts.port is None or parts.port > 0)
        except ValueError:
            fine, parts = False, urlsplit("")
        if value and (not fine or parts.query or parts.fragment or parts.username):
            self.report(name, f"{name} = {value!r} is not an https URL", "write https://HOST:PORT")
        return value.rstrip("/")

    def texts(self, name: str, default: Sequence[str] = ()) -> tuple[str, ...]:
        """An array of filled strings."""
        value = self._value(name, list, list(default), [])
        if all(isinstance(item, str) and item for item in value):
            return tuple(value)
        self.report(name, f"{name} holds something that is not a filled string", 'write ["…", "…"]')
        return tuple(default)

    def section(self, name: str, *, required: bool = True) -> Section:
        """The table `name`; an empty one where it is missing."""
        value = self._value(name, dict, _REQUIRED if required else {}, {})
        return Section(self.source, value, (*self._path, name))

    def sections(self, name: str) -> Iterator[Section]:
        """The tables of the array `name`."""
        for index, item in enumerate(self._value(name, list, [], [])):
            if isinstance(item, dict):
                yield Section(self.source, item, (*self._path, name, index))
            else:
                self.report(name, f"{name} holds something that is not a table", f"write [[{name}]] tables")

    def tree(self, name: str) -> dict[str, Any]:
        """The table `name` as it stands, for what another program reads."""
        value: dict[str, Any] = self._value(name, dict, _REQUIRED, {})
        return value

    def names(self) -> list[str]:
        """All keys of a table whose keys are names rather than settings."""
        self._known.update(self._table)
        return list(self._table)

    def done(self) -> None:
        """Report the keys that nobody asked for, with what was probably meant."""
        for name in self._table.keys() - self._known:
            near = difflib.get_close_matches(name, sorted(self._known), 1)
            remedy = f"did you mean {near[0]!r}?" if near else f"known here: {', '.join(sorted(self._known))}"
            self.report(name, f"{name!r} is not a setting of {self.title}", remedy)

    def _value(self, name: str, kind: type | tuple[type, ...], default: Any, neutral: Any) -> Any:
        self._known.add(name)
        if name not in self._table:
            if default is _REQUIRED:
                self.report(None, f"{name} is missing in {self.title}", f"add {name} = …")
                return neutral
            return default
        value = self._table[name]
        kinds = kind if isinstance(kind, tuple) else (kind,)
        if isinstance(value, kinds) and (bool in kinds or not isinstance(value, bool)):
            return value
        wanted = " or ".join(_WORDS[item] for item in kinds)
        self.report(name, f"{name} is {_WORDS.get(type(value), 'a date')}, not {wanted}", f"write {wanted}")
        return neutral if default is _REQUIRED else default

    def _bounded(self, name: str, value: Any, low: float, high: float) -> Any:
        if name not in self._table or low <= value <= high:
            return value
        self.report(name, f"{name} = {value} is out of range", f"use a value from {low:g} to {high:g}")
        return low


_WORDS: dict[type, str] = {
    str: "a string",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    list: "an array",
    dict: "a table",
}
