"""Writes configurations: nested dicts become TOML that people can go on editing."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def toml(tables: Mapping[str, Any], head: str = "") -> str:
    """TOML text of strings, numbers, booleans, paths, lists and tables; None is left out.

    `head` is put on top as comment lines.
    """
    lines = [f"# {line}".rstrip() for line in head.splitlines()]
    _table(lines, (), tables)
    return "\n".join(lines).strip() + "\n"


def write(path: Path, text: str, mode: int = 0o600) -> None:
    """Put a file in place whole: a reader sees the old content or the new one, never with a wider mode."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.unlink(missing_ok=True)
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
    draft.replace(path)


def _table(lines: list[str], path: tuple[str, ...], table: Mapping[str, Any]) -> None:
    plain = {name: value for name, value in table.items() if not _nested(value) and value is not None}
    lines += [f"{_key(name)} = {_value(value)}" for name, value in plain.items()]
    for name, value in table.items():
        inner = (*path, _key(name))
        if isinstance(value, Mapping):
            lines += ["", f"[{'.'.join(inner)}]"]
            _table(lines, inner, value)
        elif _nested(value):
            for item in value:
                lines += ["", f"[[{'.'.join(inner)}]]"]
                _table(lines, inner, item)


def _nested(value: Any) -> bool:
    tables = isinstance(value, (list, tuple)) and value and all(isinstance(item, Mapping) for item in value)
    return isinstance(value, Mapping) or bool(tables)


def _key(name: str) -> str:
    bare = name.isascii() and name.replace("-", "").replace("_", "").isalnum()
    return name if bare else _value(name)


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_value, value))}]"
    return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")
