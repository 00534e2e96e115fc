"""Says of each row of a trace whether its node signed the receipt, and takes the signature out of sight."""

from __future__ import annotations

import base64
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from keyhaul.errors import KeyhaulError


def signed(rows: Sequence[dict[str, Any]], anchors: Path | None) -> None:
    """Put `receipt` into each row: `signed`, `false signature`, `not signed`, `not checked` or `none`.

    `anchors` is a PEM file with the CAs of nodes; without it nothing is checked.
    """
    from keyhaul.identity import Anchors
    from keyhaul.receipts import check

    known = Anchors.load(anchors.read_bytes()) if anchors else None
    for row in rows:
        seal = row.get("seal")
        if not row.get("took") and not row.get("passed"):
            row["receipt"] = "none"
        elif seal is None:
            row["receipt"] = "not signed"
        elif known is None:
            row["receipt"] = "not checked"
        else:
            try:
                number, _ = check(row, base64.b64decode(seal), known, time.time())
            except (KeyhaulError, ValueError):
                row["receipt"] = "false signature"
            else:
                row["receipt"] = f"signed ({number})"
