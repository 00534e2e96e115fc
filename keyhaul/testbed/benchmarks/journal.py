"""What a long run has measured so far, a line of JSON each: an interrupted run goes on where it stopped.

The first line says which run it is; another run's file is refused. A line that a crash cut off is dropped.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from keyhaul.errors import ConfigError


class Journal(Mapping[str, Any]):
    """The lines of `file` for the run `what`. Raises ConfigError if the file is of another run."""

    def __init__(self, file: Path, what: Mapping[str, Any]) -> None:
        self.file = file
        self._found: dict[str, Any] = {}
        text = file.read_text() if file.exists() else ""
        if text:
            self._read(text, dict(what))
        else:
            file.write_text(json.dumps(dict(what)) + "\n")

    def _read(self, text: str, what: dict[str, Any]) -> None:
        head, *lines = text.splitlines()
        if _value(head) != what:
            raise ConfigError(
                f"{self.file} is not of this run", "remove it to begin anew, or repeat the run it is of"
            )
        kept = f"{head}\n"
        for line in lines:
            entry = _value(line)
            if isinstance(entry, dict) and "unit" in entry:
                self._found[entry["unit"]] = entry["value"]
                kept += f"{line}\n"
        if kept != text:  # else the next line would be written behind half a one
            self.file.write_text(kept)

    def __contains__(self, unit: object) -> bool:
        return unit in self._found

    def __len__(self) -> int:
        return len(self._found)

    def __iter__(self) -> Iterator[str]:
        return iter(self._found)

    def __getitem__(self, unit: str) -> Any:
        return self._found[unit]

    def note(self, unit: str, value: Any) -> None:
        """Write down what one unit gave."""
        self._found[unit] = value
        with self.file.open("a") as lines:
            lines.write(json.dumps({"unit": unit, "value": value}) + "\n")

    def close(self) -> None:
        """The run is complete: its report holds everything."""
        self.file.unlink(missing_ok=True)


def _value(line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return None
