"""What is read from devices, random sources, files and other programs, as functions of bytes.

They keep to the rules of `targets.py`, which lists them.
"""

from __future__ import annotations

import asyncio
import os
import ssl
import tempfile
from pathlib import Path
from typing import Any, cast

import msgspec

from keyhaul import backups, doctor
from keyhaul.audit import chain, verify
from keyhaul.config.reader import Mistakes
from keyhaul.consumers import channel, settings
from keyhaul.entropy import sources
from keyhaul.errors import KeyhaulError, Malformed, Refused
from keyhaul.keys import Secret
from keyhaul.links import devicehttp
from keyhaul.links.devicehttp import Reply
from keyhaul.links.etsi014 import Device
from keyhaul.stores.sealing import keyfile
from keyhaul.stores.sealing.credential import Credential
from keyhaul.unanswered import seconds_until

ID = "00000000-0000-0000-0000-000000000001"
ROOT = Secret(bytes(range(32)))
_SHM = Path("/dev/shm")
_FOLDER = Path(tempfile.mkdtemp(prefix="keyhaul-fuzz-", dir=_SHM if os.access(_SHM, os.W_OK) else None))
_LOOP = asyncio.new_event_loop()


class _Answering:
    """A device whose every answer is the same."""

    def __init__(self, body: bytes) -> None:
        self._body = body

    async def send(self, method: str, path: str, body: bytes | None = None) -> Reply:
        return Reply(200, self._body, None)


def _device(body: bytes, **limits: int) -> Device:
    tls = cast(ssl.SSLContext, None)  # nothing is sent
    device = Device("https://qkd.example", tls, peer_sae="b", limits=limits)
    device._exchange = cast(Any, _Answering(body))
    return device


KNOWN = {"max_key_per_request": 2, "key_size": 256, "min_key_size": 64, "max_key_size": 4096}


async def _asked(body: bytes) -> int:
    """How many of the three calls of 014 take the body for an answer."""
    taken = 0
    try:
        status = await _device(body).status()
        assert msgspec.convert(msgspec.to_builtins(status), type(status)) == status
        assert status.limits().max_key_per_request >= 1
        taken += 1
        await _device(body).enc_keys(1, 256)  # under whatever limits it announced
    except KeyhaulError:
        pass
    for call in (_device(body, **KNOWN).enc_keys(1, 256), _device(body, **KNOWN).dec_keys([ID])):
        try:
            (key,) = await call
            assert key.key_id
            taken += 1
        except KeyhaulError:
            continue
    return taken


def device_answer(data: bytes) -> None:
    """What a device answers with any status; its words in an error are short and can be printed."""
    header = seconds_until(data[:64].decode("latin-1"))
    assert header is None or header >= 0
    for status in (400, 401, 404, 408, 410, 429, 500, 503, 302):
        for operation in ("status", "enc_keys", "dec_keys"):
            error = devicehttp.refusal(Reply(status, data, header), operation)
            assert error.cause.isprintable()
            assert len(error.cause) < 400
    if not _LOOP.run_until_complete(_asked(data)):
        raise Malformed("no call takes it")


def entropy_answer(data: bytes) -> None:
    """What a random source answers over HTTP, in each encoding and at some places."""
    taken = 0
    for encoding in ("hex", "base64", "uint8"):
        for path in ("data", "data.0", "$", "result.random.data", "data.-1"):
            try:
                assert isinstance(sources.decode(data, path, encoding), bytes)
                taken += 1
            except Malformed:
                continue
    if not taken:
        raise Malformed("no encoding takes it")


def _believing(node: str, signature: bytes, message: bytes) -> None:
    """Any signature will do."""


def audit_log(data: bytes) -> None:
    """An audit log as it lies there, and the same with its chain made good: the rules behind it count."""
    head, _, rest = data.partition(b"\n")
    anchors = []
    try:
        anchors.append(chain.Head.parse(head.decode("utf-8", "replace")))
        assert chain.Head.parse(anchors[0].text()) == anchors[0]
    except Malformed:
        rest = data
    file = _FOLDER / "audit.log"
    taken = 0
    for text in (rest, _chained(rest)):
        file.write_bytes(text)
        try:
            report = verify.verify([file], anchors, _believing)
        except Refused:
            continue
        assert report.head.n >= 0
        assert report.missing >= 0
        taken += 1
    if not taken:
        raise Refused("neither is whole")


def _chained(text: bytes) -> bytes:
    """The lines with numbers and hashes that follow each other; the first keeps what it says."""
    lines: list[bytes] = []
    number, prev = 0, ""
    for line in text.splitlines():
        try:
            values = chain.read(line)
        except Malformed:
            lines.append(line)
            continue
        if prev:
            values |= {"n": number + 1, "prev": prev}
            line = msgspec.json.encode(values)
        lines.append(line)
        number, prev = values["n"], chain.digest(line)
    return b"".join(line + b"\n" for line in lines)


def root_slots(data: bytes) -> None:
    """A key-slot file, its check value, and the data of a slot that a credential opens."""
    file, handed = _FOLDER / "root.slots", _FOLDER / "credential"
    file.write_bytes(data)
    if not handed.exists():
        handed.write_bytes(bytes(64))
    found = keyfile.read(file)
    found.is_confirmed_by(ROOT)
    for record in found.records:
        try:
            Credential(handed).unwrap(record.data)
        except KeyhaulError:
            continue
    file.unlink()
    keyfile.write_new(file, found.records, ROOT)
    again = keyfile.read(file)
    assert again.is_confirmed_by(ROOT)
    # NaN is not equal to itself, so what was read is compared as it is written
    assert repr(again.records) == repr(found.records)


def agent_configuration(data: bytes) -> None:
    """An agent's TOML file: settings, or mistakes that each name a line and a remedy."""
    file = _FOLDER / "agent.toml"
    file.write_bytes(data)
    try:
        assert settings.load(file).max_age > 0
    except Mistakes as found:
        if not all(each.cause and each.remedy and each.line >= 0 for each in found.mistakes):
            raise AssertionError("a mistake lacks its line, cause or remedy") from found
        raise


def backup_manifest(data: bytes) -> None:
    """The manifest of a backup whose files are there, empty."""
    folder = _FOLDER / "backup"
    folder.mkdir(exist_ok=True)
    for name in (backups.STORE, backups.SLOTS, backups.CONFIG):
        (folder / name).touch()
    (folder / backups.MANIFEST).write_bytes(data)
    assert backups._checked(folder)["version"] == 1


def network_file(data: bytes) -> None:
    """The configuration in a backup, of which only the place of the network's file is read."""
    file = _FOLDER / "node.toml"
    file.write_bytes(data)
    if backups._network_file(file) is None:
        raise Malformed("it names none")


def agent_refusal(data: bytes) -> None:
    """Why the other agent refuses; a status without a reason is one, too."""
    assert channel._error(400, data).cause
    if not data.startswith(b"{"):
        raise Malformed("no reason given")


async def _read(data: bytes) -> tuple[dict[str, str], bytes]:
    reader = asyncio.StreamReader()
    reader.feed_data(data)
    reader.feed_eof()
    return await doctor._answer(reader)


def doctor_answer(data: bytes) -> None:
    """What a neighbour answers when `keyhaul doctor` asks for its versions."""
    try:
        start, body = _LOOP.run_until_complete(_read(data))
    except (OSError, EOFError, ValueError) as error:  # those that its caller tells as a finding
        raise Malformed("no answer over HTTP") from error
    assert "status" in start
    doctor._clock("peer", start.get("date", ""))
    if doctor._spoken(body) is None:
        raise Malformed("no versions")


TARGETS = (
    device_answer,
    entropy_answer,
    audit_log,
    root_slots,
    agent_configuration,
    backup_manifest,
    network_file,
    agent_refusal,
    doctor_answer,
)
