"""Where end keys come from: the node's own generator, never a QKD device (paper B §4.1)."""

from __future__ import annotations

import os

from keyhaul.keys import Secret


class SystemEntropy:
    """The operating system's generator."""

    def read(self, length: int) -> Secret:
        """`length` bytes."""
        return Secret(os.urandom(length))
