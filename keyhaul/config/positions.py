"""Where things stand in a TOML file: maps the path of every value to its line.

`tomllib` forgets lines, and a message without one sends people hunting. The scanner assumes text that
`tomllib` has accepted, so it need not judge anything: it only walks keys, tables and arrays.
"""

from __future__ import annotations

import json
import re

Path = tuple[str | int, ...]

_TOKEN = re.compile(
    r'"""(?:\\.|[^\\])*?"{3,5}|\'\'\'.*?\'{3,5}|"(?:\\.|[^"\\\n])*"|\'[^\'\n]*\''
    r"|#[^\n]*|\n|[\[\]{},=.]|[^\s\[\]{},=.\"'#]+",
    re.DOTALL,
)


def positions(text: str) -> dict[Path, int]:
    """Lines (from 1) of every key, table header and array element in valid TOML."""
    return _Scanner(text).scan()


class _Scanner:
    def __init__(self, text: str) -> None:
        self._tokens: list[tuple[str, int]] = []
        line, end = 1, 0
        for match in _TOKEN.finditer(text):
            line += text.count("\n", end, match.start())
            end = match.start()
            if not match.group().startswith("#"):
                self._tokens.append((match.group(), line))
        self._at = 0
        self._lines: dict[Path, int] = {}
        self._counts: dict[Path, int] = {}  # tables seen so far in each [[array]]

    def scan(self) -> dict[Path, int]:
        table: Path = ()
        while self._skip_newlines():
            if self._peek() == "[":
                table = self._header()
            else:
                self._pair(table)
        return self._lines

    def _peek(self) -> str:
        return self._tokens[self._at][0] if self._at < len(self._tokens) else ""

    def _take(self) -> tuple[str, int]:
        self._at += 1
        return self._tokens[self._at - 1]

    def _skip_newlines(self) -> bool:
        while self._peek() == "\n":
            self._at += 1
        return self._at < len(self._tokens)

    def _key(self, *ends: str) -> tuple[list[str], int]:
        line = self._tokens[self._at][1]
        names = []
        while self._peek() not in (*ends, ""):
            word, _ = self._take()
            if word != ".":
                names.append(_unquote(word))
        return names, line

    def _header(self) -> Path:
        self._take()
        many = self._peek() == "["
        if many:
            self._take()
        names, line = self._key("]")
        for _ in range(1 + many):
            self._take()
        path = self._resolve(names, many)
        self._lines.setdefault(path, line)
        return path

    def _resolve(self, names: list[str], many: bool) -> Path:
        """A header names the last table of every array on its way; `[[x]]` opens a new one."""
        path: Path = ()
        for position, name in enumerate(names):
            path = (*path, name)
            if many and position == len(names) - 1:
                self._lines.setdefault(path, self._tokens[self._at - 1][1])
                self._counts[path] = self._counts.get(path, 0) + 1
            if path in self._counts:
                path = (*path, self._counts[path] - 1)
        return path

    def _pair(self, table: Path) -> None:
        names, line = self._key("=")
        self._take()
        path = (*table, *names)
        for length in range(len(table) + 1, len(path) + 1):
            self._lines.setdefault(path[:length], line)
        self._value(path)

    def _value(self, path: Path) -> None:
        opening, _ = self._take()
        if opening == "[":
            self._array(path)
        elif opening == "{":
            while self._skip_newlines() and self._peek() != "}":
                self._pair(path)
                if self._peek() == ",":
                    self._take()
            self._take()
        else:
            while self._peek() not in (",", "]", "}", "\n", ""):
                self._take()

    def _array(self, path: Path) -> None:
        index = 0
        while self._skip_newlines() and self._peek() != "]":
            self._lines[(*path, index)] = self._tokens[self._at][1]
            self._value((*path, index))
            index += 1
            self._skip_newlines()
            if self._peek() == ",":
                self._take()
        self._take()


def _unquote(token: str) -> str:
    if token.startswith("'"):
        return token[1:-1]
    if token.startswith('"'):
        try:
            return str(json.loads(token))
        except ValueError:  # an escape that TOML has and JSON has not: the line is only approximate then
            return token[1:-1]
    return token
