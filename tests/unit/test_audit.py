"""The audit log: every way to falsify it is found, and a disk that takes no more stops what must stop."""

from __future__ import annotations

import asyncio
import json
import os
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from keyhaul.audit import chain, log
from keyhaul.audit.chain import Head
from keyhaul.audit.delivery import AuditedDelivery
from keyhaul.audit.log import AuditLog
from keyhaul.audit.verify import files_of, verify
from keyhaul.errors import KeyhaulError, Refused, SealError, Tampered, Unavailable
from keyhaul.messages.etsi014 import Order
from tests.northbound import MASTER, SLAVE, Kernel

ORDER = Order(MASTER, (SLAVE,), 2, 256)


class Pen:
    """A node's signature, as fast as tests want it."""

    name = "vigo"

    def __init__(self) -> None:
        self._key = Ed25519PrivateKey.generate()

    def sign(self, message: bytes) -> bytes:
        return self._key.sign(message)

    def check(self, node: str, signature: bytes, message: bytes) -> None:
        try:
            self._key.public_key().verify(signature, message)
        except InvalidSignature:
            raise Tampered from None


PEN = Pen()


async def written(file: Path, number: int, *, checkpoint: bool = True) -> Head:
    """A log with `number` lines of events, after the one that begins it."""
    audit = AuditLog(file, PEN)
    await audit.open()
    for at in range(number):
        await audit.record("delivery", to="sae-a", keys=[f"id-{at}"])
    if checkpoint:
        await audit.checkpoint()
    await audit.close()
    return audit.head


def test_a_whole_log_is_found_whole_and_says_what_happened(tmp_path: Path) -> None:
    file = tmp_path / "audit.log"
    head = asyncio.run(written(file, 5))
    report = verify([file], [head], PEN.check)
    assert (report.first, report.head, report.checkpoints, report.uncovered) == (1, head, 1, 0)
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [line["event"] for line in lines] == ["begin", *["delivery"] * 5, "checkpoint"]
    assert lines[3]["keys"] == ["id-2"]
    assert file.stat().st_mode & 0o777 == 0o600


@given(st.data())
def test_every_falsification_is_found(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    file = tmp_path_factory.mktemp("log") / "audit.log"
    head = asyncio.run(written(file, 6))
    lines = file.read_bytes().splitlines(keepends=True)
    at = data.draw(st.integers(0, len(lines) - 1))
    other = data.draw(st.integers(0, len(lines) - 1).filter(lambda number: number != at))
    change = data.draw(st.sampled_from(["remove", "swap", "repeat", "edit", "insert", "cut", "cut in line"]))
    if change == "remove":
        del lines[at]
    elif change == "swap":
        lines[at], lines[other] = lines[other], lines[at]
    elif change == "repeat":
        lines.insert(other, lines[at])
    elif change == "edit":
        byte = data.draw(st.integers(0, len(lines[at]) - 2))
        flipped = bytes([lines[at][byte] ^ data.draw(st.sampled_from([1, 2, 4, 32]))])
        lines[at] = lines[at][:byte] + flipped + lines[at][byte + 1 :]
    elif change == "insert":
        lines.insert(at, chain.make(Head(at, "a" * 64), 0.0, "delivery", {})[0])
    elif change == "cut":
        del lines[at:]
    else:
        lines[-1] = lines[-1][: data.draw(st.integers(1, len(lines[-1]) - 1))]
    file.write_bytes(b"".join(lines))
    with pytest.raises(Refused):
        verify([file], [head], PEN.check)


def test_a_log_that_another_key_signed_anew_is_found(tmp_path: Path) -> None:
    file = tmp_path / "audit.log"
    head = asyncio.run(written(file, 3))
    with pytest.raises(Refused, match="not signed by vigo"):
        verify([file], [head], Pen().check)
    file.unlink()
    asyncio.run(written(file, 3))
    with pytest.raises(Refused, match="written anew"):
        verify([file], [head], PEN.check)


def test_what_was_cut_off_after_the_last_checkpoint_is_named_uncovered(tmp_path: Path) -> None:
    file = tmp_path / "audit.log"

    async def story() -> None:
        audit = AuditLog(file, PEN)
        await audit.open()
        await audit.record("one")
        await audit.checkpoint()
        await audit.record("two")
        await audit.record("three")
        await audit.close()

    asyncio.run(story())
    assert verify([file], [], PEN.check).uncovered == 2
    anchor = Head.parse((tmp_path / "audit.log.head").read_text().strip())
    assert verify([file], [anchor]).head.n == anchor.n + 2


def test_a_node_refuses_a_log_that_is_shorter_than_its_store_remembers(tmp_path: Path) -> None:
    file = tmp_path / "audit.log"
    head = asyncio.run(written(file, 5))
    lines = file.read_bytes().splitlines(keepends=True)

    async def opened(expected: Head) -> AuditLog:
        audit = AuditLog(file, PEN)
        await audit.open(expected)
        await audit.close()
        return audit

    assert asyncio.run(opened(head)).head == head
    file.write_bytes(b"".join(lines[:-2]))
    with pytest.raises(SealError, match="ends with line 5, but line 7 was written"):
        asyncio.run(opened(head))
    file.unlink()
    assert asyncio.run(opened(head)).head.n == head.n + 1
    assert verify([file]).first == head.n + 1, "a log that was moved away goes on counting"
    file.write_text("not a log\n")
    with pytest.raises(SealError, match="no audit log"):
        asyncio.run(opened(head))


def test_half_a_line_left_by_a_crash_goes_and_the_chain_goes_on(tmp_path: Path) -> None:
    file = tmp_path / "audit.log"
    asyncio.run(written(file, 3))
    with file.open("ab") as stream:
        stream.write(b'{"n":6,"at":"20')
    asyncio.run(written(file, 2))
    assert verify([file], [], PEN.check).head.n == 8


def test_many_lines_at_once_share_their_flushes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushes = []
    monkeypatch.setattr(log.os, "fsync", flushes.append)

    async def story() -> None:
        audit = AuditLog(tmp_path / "audit.log", PEN)
        await audit.open()
        await asyncio.gather(*(audit.record("event", number=number) for number in range(500)))
        assert audit.lines == 501
        await audit.close()

    asyncio.run(story())
    assert len(flushes) < 20
    assert verify([tmp_path / "audit.log"]).head.n == 501


def test_rotated_files_are_one_chain_and_a_missing_one_is_found(tmp_path: Path) -> None:
    file = tmp_path / "audit.log"

    async def story() -> Head:
        audit = AuditLog(file, PEN, rotate_bytes=4096)
        await audit.open()
        for number in range(200):
            await audit.record("delivery", number=number)
        await audit.checkpoint()
        await audit.close()
        return audit.head

    head = asyncio.run(story())
    files = files_of(file)
    assert len(files) > 3
    report = verify(files, [head], PEN.check)
    assert report.first == 1
    assert report.head == head
    assert verify(files[1:], [head], PEN.check).first > 1, "the oldest may be stored elsewhere"
    with pytest.raises(Refused, match="removed"):
        verify([files[0], *files[2:]], [head], PEN.check)


@contextmanager
def full_disk(size: int) -> Iterator[None]:
    """No file grows beyond `size` bytes: to writers it looks like a full disk (EFBIG for ENOSPC)."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def with_log(tmp_path: Path, tell: Callable[[AuditLog], object], *, required: bool) -> AuditLog:
    async def story() -> AuditLog:
        audit = AuditLog(tmp_path / "audit.log", PEN, required=required)
        await audit.open()
        await audit.record("before")
        result = tell(audit)
        assert asyncio.iscoroutine(result)
        await result
        await audit.close()
        return audit

    return asyncio.run(story())


def test_fail_closed_no_key_leaves_while_the_disk_is_full_and_it_goes_on_by_itself(tmp_path: Path) -> None:
    kernel = Kernel()

    async def story(audit: AuditLog) -> None:
        delivery = AuditedDelivery(kernel, audit)
        keys = await delivery.request(ORDER)
        with full_disk((tmp_path / "audit.log").stat().st_size + 10):
            with pytest.raises(Unavailable, match="audit log cannot be written"):
                await delivery.request(ORDER)
            with pytest.raises(Unavailable, match="audit log cannot be written"):
                await delivery.fetch(SLAVE, MASTER, [key.key_id for key in keys])
            assert len(kernel.orders) == 2, "the log was known to be broken, and keys were touched"
            assert audit.trouble
            assert audit.failures >= 2
        got = await delivery.fetch(SLAVE, MASTER, [key.key_id for key in keys])
        assert [key.key_id for key in got] == [key.key_id for key in keys]
        assert audit.trouble == ""

    with_log(tmp_path, story, required=True)
    report = verify([tmp_path / "audit.log"])
    events = [json.loads(line)["event"] for line in (tmp_path / "audit.log").read_text().splitlines()]
    assert report.missing == 0
    assert events == ["begin", "before", "request", "delivery", "request", "delivery", "delivery"]


def test_fail_open_keys_go_on_and_lost_lines_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log, "MOST_WAITING", 10)

    async def story(audit: AuditLog) -> None:
        delivery = AuditedDelivery(Kernel(), audit)
        with full_disk((tmp_path / "audit.log").stat().st_size + 10):
            for _ in range(8):
                assert len(await delivery.request(ORDER)) == 2
        assert audit.dropped == 6
        await audit.record("after")

    audit = with_log(tmp_path, story, required=False)
    assert verify([tmp_path / "audit.log"]).missing == audit.dropped > 0


def test_a_device_that_never_takes_anything_is_reported_and_not_waited_for(tmp_path: Path) -> None:
    async def story() -> None:
        for required in (True, False):
            audit = AuditLog(Path("/dev/full"), PEN, required=required)
            await audit.open()
            if required:
                with pytest.raises(Unavailable, match="No space left"):
                    await audit.record("event")
            else:
                await audit.record("event")
            assert audit.summary()["trouble"] == "No space left on device"
            await audit.close()

    asyncio.run(story())


def test_keys_are_wiped_when_their_line_could_not_be_written() -> None:
    kernel = Kernel()
    taken = []

    class Watched(Kernel):
        async def request(self, order: Order) -> list[object]:  # type: ignore[override]
            taken.extend(await kernel.request(order))
            return taken

    async def story() -> None:
        audit = AuditLog(Path("/dev/full"), PEN, required=True)
        await audit.open()
        await asyncio.sleep(0)
        audit.trouble = ""  # as if it began to fail between the check and the line
        with pytest.raises(Unavailable):
            await AuditedDelivery(Watched(), audit).request(ORDER)  # type: ignore[arg-type]
        assert [len(key.bits) for key in taken] == [0, 0]
        await audit.close()

    asyncio.run(story())


def test_names_of_the_chain_are_its_own_and_heads_are_checked() -> None:
    with pytest.raises(ValueError, match="prev"):
        chain.make(Head(), 0.0, "event", {"prev": "x"})
    for text in ("", "1", "x:" + "a" * 64, "1:" + "g" * 64, "1:aa", str(uuid4())):
        with pytest.raises(KeyhaulError):
            Head.parse(text)
    head = Head(7, os.urandom(32).hex())
    assert Head.parse(head.text()) == head
