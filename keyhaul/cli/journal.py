"""The log's way out: a full disk or a closed pipe costs lines, and never the work that wanted to log them."""

from __future__ import annotations

import json
import os


class Journal:
    """Writes lines to a descriptor, unbuffered.

    Those that could not be written are counted, and the count goes ahead of the next line that can be.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self.lost = 0  # lines since the last that went out

    def write(self, text: str) -> int:
        """Always succeeds. `text` is one line, or several."""
        head = ""
        if self.lost:
            said = {"event": "log lines were lost", "level": "error", "lines": self.lost}
            head = json.dumps(said) + "\n"
        left = memoryview((head + text).encode(errors="backslashreplace"))
        try:
            while left:
                left = left[os.write(self._descriptor, left) :]
        except OSError:
            self.lost += 1
        else:
            self.lost = 0
        return len(text)

    def flush(self) -> None:
        """Nothing is held back."""
