"""What happened to keys, seen from outside: a list of events that any harness can write and check.

A history holds who asked, who got what and when, and what nodes, devices and the wire did. Key bits are
never in it: bits become digests under a key that lives as long as the history, so two digests can be
compared by whoever holds the history and mean nothing to anyone else. `keyhaul.testbed.invariants`
checks it, `tell` prints it as a dialogue.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path

import msgspec

DIGEST_BYTES = 16

SAE_VERBS = frozenset({"asked", "got", "fetching", "fetched", "refused", "cut", "voided"})
NODE_VERBS = frozenset({"minted", "stored", "relayed", "dropped", "expired", "used", "held", "size"})
WORLD_VERBS = frozenset({"account", "fault", "healed", "sent", "answered", "restored", "home"})
VERBS = SAE_VERBS | NODE_VERBS | WORLD_VERBS


class Event(msgspec.Struct, frozen=True, omit_defaults=True):
    """One thing that happened at `at` (seconds on the harness's clock) to or by `who`.

    An application (or a foreign key manager) `who`:

    * `asked` (`request`, `to`: the slaves): a request for keys left; `got` (`request`, `key_id`, `digest`,
      `to`): a key of it arrived;
    * `fetching` (`request`, `key_id`): a request for a key by id left; `fetched` (`digest`): it arrived;
    * `refused` (`request`, `status`): the request of either kind ended with this HTTP status, and
      nothing was handed out; `cut` (`request`): the answer never came, what became of it is unknown;
    * `voided` (`key_id`): it was told that the key is void.

    A node `who`:

    * `minted`, `stored`, `relayed`, `dropped` (voided or failed), `expired` (`key_id`);
    * `used` (`text`: link, `name`: one device key or one-time key, `request` unused, `to`: the message);
    * `held` (`digest`, `text`: where): these key bits were seen in the clear in this place of this node;
    * `size` (`name`, `value`, `limit`): how much of something it keeps, and how much it may.

    The world: `account` (`who`: an end of a device pair, `name`: a counter, `value`: bits or keys; counters
    `in…` must add up to counters `out…`), `fault`, `healed` (`value`: seconds more that recovery may take),
    `restored` (`who` came back from a backup), `sent` and `answered` (`to`, `text`) for the dialogue, `home`
    (`who`: a node, `to`: SAEs it serves).
    """

    at: float
    who: str
    verb: str
    request: int = 0
    key_id: str = ""
    digest: str = ""
    to: tuple[str, ...] = ()
    status: int = 0
    name: str = ""
    value: float = 0.0
    limit: float = 0.0
    text: str = ""


_line = msgspec.json.Encoder().encode
_read = msgspec.json.Decoder(Event).decode


class History:
    """Events in the order in which they were noted. `now` gives the harness's time in seconds."""

    def __init__(self, now: Callable[[], float], salt: bytes | None = None) -> None:
        self.events: list[Event] = []
        self._now = now
        self._salt = os.urandom(32) if salt is None else salt
        self._requests = 0

    def __iter__(self) -> Iterator[Event]:
        return iter(self.events)

    def __len__(self) -> int:
        return len(self.events)

    def digest(self, bits: bytes) -> str:
        """What stands for key bits in this history."""
        return hmac.digest(self._salt, bits, "sha256")[:DIGEST_BYTES].hex()

    def request(self) -> int:
        """A number for one more request."""
        self._requests += 1
        return self._requests

    def note(
        self,
        who: str,
        verb: str,
        *,
        request: int = 0,
        key_id: object = "",
        digest: str = "",
        to: Iterable[str] = (),
        status: int = 0,
        name: str = "",
        value: float = 0.0,
        limit: float = 0.0,
        text: str = "",
    ) -> None:
        """Add one event that happens now. Raises ValueError for a verb nobody checks."""
        if verb not in VERBS:
            raise ValueError(f"{verb!r} is not a verb of a history; choose one of {', '.join(sorted(VERBS))}")
        self.events.append(
            Event(
                self._now(),
                who,
                verb,
                request,
                str(key_id),
                digest,
                tuple(to),
                status,
                name,
                value,
                limit,
                text,
            )
        )

    def trace(self) -> str:
        """One hash over everything that happened, in order: equal for equal runs."""
        total = hashlib.sha256()
        for event in self.events:
            total.update(_line(event))
        return total.hexdigest()

    def save(self, path: Path) -> None:
        """Write it as JSON lines; the salt stays here."""
        path.write_bytes(b"".join(_line(event) + b"\n" for event in self.events))


def load(path: Path) -> list[Event]:
    """The events that `History.save` wrote. Raises msgspec.ValidationError for a line that is no event."""
    return [_read(line) for line in path.read_bytes().splitlines()]


def tell(events: Iterable[Event], about: Collection[str] = ()) -> str:
    """The events as a dialogue, one a line.

    With `about` (key ids, `#request`, names) only what concerns them, and the faults around it.
    """
    wanted = set(about)
    lines = [
        f"{event.at:12.3f}  {event.who:<10} {_said(event)}"
        for event in events
        if not wanted or event.verb in ("fault", "healed", "restored") or _concerns(event, wanted)
    ]
    return "\n".join(lines)


def _concerns(event: Event, wanted: set[str]) -> bool:
    return (
        event.key_id in wanted
        or f"#{event.request}" in wanted
        or event.name in wanted
        or f"{event.who} {event.name}" in wanted
        or any(key_id in event.text for key_id in wanted)
        or (event.verb == "account" and event.who in wanted)
    )


_SAID = {
    "asked": "asks{number} for keys shared with {to}",
    "got": "gets{number} key {event.key_id} = {short}… shared with {to}",
    "fetching": "asks{number} for key {event.key_id}",
    "fetched": "gets{number} key {event.key_id} = {short}…",
    "refused": "is refused{number}: {event.status} {event.text}",
    "cut": "never hears the answer to{number} {event.text}",
    "used": "uses {event.name} of {event.text} for message {to}",
    "held": "holds bits {short}… in the clear in {event.text}",
    "size": "keeps {event.value:g} {event.name}, may keep {event.limit:g}",
    "account": "counts {event.name} = {event.value:g}",
    "sent": "→ {to:<9} {event.text}",
    "answered": "⇠ {to:<9} {event.text}",
    "home": "serves {to}",
    "fault": "suffers: {event.text}",
    "healed": "is healed",
    "restored": "comes back from a backup {event.text}",
}


def _said(event: Event) -> str:
    form = _SAID.get(event.verb, "{event.verb} key {event.key_id} {event.text}")
    number = f" #{event.request}" if event.request else ""
    return form.format(event=event, number=number, to=", ".join(event.to), short=event.digest[:8]).rstrip()
