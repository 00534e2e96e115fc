"""Whether a node can serve applications, and in words why not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

LONGEST_LAG = 5.0  # seconds


def reasons(reading: Mapping[str, Any], now: float) -> list[str]:
    """Why no application should be sent here now; empty: ready. `now` in Unix seconds."""
    found = []
    if reading["draining"]:
        found.append("the node is stopping: requests in progress are finished, new ones go elsewhere")
    if reading["engine"]["broken"]:
        found.append("the store cannot save: check its disk")
    if reading["entropy"]["state"] == "closed":
        found.append("no entropy source can serve, and the policy is fail-closed: check the sources")
    audit = reading["audit"] or {}
    if audit.get("required") and audit.get("trouble"):
        found.append(f"the audit log cannot be written ({audit['trouble']}): free its disk")
    for use, moment in reading["expiry"].items():
        if use in ("sae", "node") and moment <= now:
            found.append(f"the certificate of the {use} port has expired: renew it")
    if (workers := reading["workers"]) is not None and not workers["running"]:
        found.append("no worker of the SAE port runs: see the log, why they end")
    if reading["lag"] > LONGEST_LAG:
        found.append(f"the node is {reading['lag']:.0f} s behind: it has more to do than it can")
    return found


def warnings(reading: Mapping[str, Any], now: float) -> list[str]:
    """What is wrong, and stops nothing yet."""
    found = [f"neighbour {peer} does not answer: {cause}" for peer, cause in reading["silent"].items()]
    found += [
        f"the link to {peer} is not refilled: {supplies['trouble']}"
        for peer, supplies in reading["supplies"].items()
        if supplies["trouble"]
    ]
    for link in reading["links"]:
        if trouble := (link["device"] or {}).get("trouble"):
            found.append(f"the device towards {link['peer']} cannot be used: {trouble}")
        if link["unopened"]:
            found.append(f"{link['peer']} cannot open {link['unopened']} messages: the devices may disagree")
    if reading["entropy"]["state"] in ("reduced", "degraded"):
        found.append(f"entropy is {reading['entropy']['state']}")
    for use, moment in reading["expiry"].items():
        if 0 < moment - now < 14 * 86_400:
            found.append(f"the certificate for {use} ends in {(moment - now) / 86_400:.0f} days")
    if (audit := reading["audit"] or {}).get("trouble") and not audit["required"]:
        found.append(f"the audit log cannot be written ({audit['trouble']})")
    return found
