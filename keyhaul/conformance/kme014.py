"""The key manager under test over ETSI GS QKD 014, as up to four SAEs see it; what its answers must hold."""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from keyhaul.conformance.call import Answer, Caller
from keyhaul.conformance.probe import Catalogue, NotApplicable, expect

PREFIX = "/api/v1/keys/"
TRIES, PAUSE = 6, 2.0  # for a KME without keys, seconds

# The wordings that clause 5 fixes.
SIZE = "size shall be a multiple of 8"
UNSUPPORTED = "not all extension_mandatory parameters are supported"
UNHANDLED = "not all extension_optional request options handled"
NOT_FOUND = "one or more keys specified are not found on KME"

INTEGERS = (
    "key_size", "stored_key_count", "max_key_count", "max_key_per_request", "max_key_size", "min_key_size",
    "max_SAE_ID_count",
)  # fmt: skip
STRINGS = ("source_KME_ID", "target_KME_ID", "master_SAE_ID", "slave_SAE_ID")

Keys = dict[str, bytes]
"""Key ids, in lower case, to key bytes."""


@dataclass(slots=True)
class Kme014:
    """Who calls whom. `additional` and `stranger` are optional: probes that need them are not run without.

    The slave may be served by another KME than the master; the URLs are in the callers. `errors` collects
    every refusal on the way, for the rule about error bodies.
    """

    master: Caller
    slave: Caller
    anonymous: Sequence[Caller]
    additional: Caller | None = None
    stranger: Caller | None = None
    errors: list[Answer] = field(default_factory=list)
    status: Mapping[str, Any] | None = None

    async def get(self, caller: Caller, path: str) -> Answer:
        """GET below the prefix."""
        return self._noted(await caller.get(PREFIX + path))

    async def post(self, caller: Caller, path: str, value: object) -> Answer:
        """POST below the prefix; bytes go out as they are."""
        body = value if isinstance(value, bytes) else json.dumps(value, ensure_ascii=False).encode()
        return self._noted(await caller.ask("POST", PREFIX + path, body))

    def _noted(self, answer: Answer) -> Answer:
        if answer.status in (400, 503):
            self.errors.append(answer)
        return answer

    # --- the calls that most probes are made of

    async def order(self, *, to: Caller | None = None, **members: Any) -> Keys:
        """Keys for the master and `to`, by default the slave. Raises Deviation without a 200."""
        for _ in range(TRIES):
            answer = await self.enc(members, to or self.slave)
            if answer.status != 503:  # no rule is broken by a KME that has no keys just now
                break
            await asyncio.sleep(PAUSE)
        expect(answer.status == 200, f"enc_keys: {answer.brief()}")
        return container(answer)

    async def enc(self, value: object, to: Caller | None = None) -> Answer:
        """enc_keys of the master with POST."""
        return await self.post(self.master, f"{segment((to or self.slave).name)}/enc_keys", value)

    async def dec(self, caller: Caller, ids: Iterable[str], master: str | None = None) -> Answer:
        """dec_keys with POST."""
        body = {"key_IDs": [{"key_ID": key_id} for key_id in ids]}
        return await self.post(caller, f"{segment(master or self.master.name)}/dec_keys", body)

    async def deliver(self, caller: Caller, keys: Keys, when: str = "") -> None:
        """The caller fetches exactly these keys. Raises Deviation."""
        answer = await self.dec(caller, keys)
        expect(answer.status == 200, f"{when}dec_keys of {caller.name}: {answer.brief()}")
        expect(container(answer) == keys, f"{when}{caller.name} got other ids or other bits than the master")

    async def limits(self) -> Mapping[str, Any]:
        """The Status of the pair, asked for once."""
        if self.status is None:
            answer = await self.get(self.master, f"{segment(self.slave.name)}/status")
            expect(answer.status == 200, f"status: {answer.brief()}")
            self.status = answer.object()
        return self.status

    async def number(self, name: str) -> int:
        """One number of the Status. Raises Deviation if it is none."""
        value = (await self.limits()).get(name)
        expect(is_integer(value), f"{name} in the status is {value!r}")
        return int(value or 0)

    def other(self) -> Caller:
        """The additional slave. Raises NotApplicable."""
        if self.additional is None:
            raise NotApplicable("needs --additional")
        return self.additional

    def foreign(self) -> Caller:
        """A certificate that the KME believes and that is named nowhere. Raises NotApplicable."""
        if self.stranger is None:
            raise NotApplicable("needs --stranger")
        return self.stranger


CATALOGUE: Catalogue[Kme014] = Catalogue()


def segment(sae: str) -> str:
    """An SAE id as one path segment."""
    return quote(sae, safe="").replace(".", "%2E")


def is_integer(value: object) -> bool:
    """A JSON number without a fraction; `true` is none."""
    return isinstance(value, int) and not isinstance(value, bool)


def container(answer: Answer) -> Keys:
    """The keys of a key container (6.3). Raises Deviation for anything else."""
    value = answer.object()
    keys = value.get("keys")
    expect(isinstance(keys, list), "the answer has no array `keys`")
    found: Keys = {}
    for item in keys if isinstance(keys, list) else []:
        expect(isinstance(item, dict), "an item of `keys` is no object")
        key_id, bits = item.get("key_ID"), item.get("key")
        expect(_is_uuid(key_id), f"key_ID {key_id!r} is no UUID")
        try:
            found[str(key_id).lower()] = base64.b64decode(bits, validate=True)
        except (binascii.Error, TypeError, ValueError):
            expect(False, "a key is not base64 with padding (RFC 4648 table 1)")
    expect(len(found) == len(keys or ()), "a key_ID occurs twice in one container")
    return found


def _is_uuid(value: object) -> bool:
    try:
        return isinstance(value, str) and len(value) == 36 and bool(uuid.UUID(value))
    except ValueError:
        return False


def refusal(answer: Answer, message: str | None = None, status: int = 400) -> str:
    """What was seen, if it is this refusal; `message` is the wording the standard fixes. Raises Deviation."""
    expect(answer.status == status, f"{answer.brief()}, not {status}")
    said = error_message(answer)
    expect(message is None or said == message, f"{answer.status} with the message {said!r}")
    return f"{status} {said}"


def error_message(answer: Answer) -> str:
    """The message of an Error body (6.5). Raises Deviation if the body is none."""
    value = answer.object()
    said, details = value.get("message"), value.get("details", [])
    expect(isinstance(said, str), f"{answer.status} without a text `message`: {answer.brief()}")
    fits = isinstance(details, list) and all(isinstance(item, dict) for item in details)
    expect(fits, f"`details` is not an array of objects: {answer.brief()}")
    return str(said)
