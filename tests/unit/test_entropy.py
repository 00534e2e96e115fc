"""Sources are tested, conditioned, read ahead and XORed; a broken one is out, and what follows is policy."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import math
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from keyhaul.entropy import BlockingSource, FileSource, MixedEntropy, OnFailure, Source, SystemEntropy
from keyhaul.entropy.feed import CHUNK
from keyhaul.errors import Unavailable
from tests.pump import pumped, stuck, until

BUFFER = 4096  # bytes
RAW_BLOCK = math.ceil(576 / 7.0)  # bytes at 7 bits each that condition to 64 of full entropy


class Tape:
    """A generator that remembers what it gave, and can break."""

    def __init__(self, make: Callable[[int], bytes] = os.urandom) -> None:
        self.make = make
        self.given = b""

    def __call__(self, length: int) -> bytes:
        chunk = self.make(length)
        self.given += chunk
        return chunk


def source(make: Callable[[int], bytes] = os.urandom, name: str = "lab") -> BlockingSource:
    return BlockingSource(name, "file", 7.0, make)


def unplugged(_: int) -> bytes:
    raise Unavailable("the cable is out")


@contextlib.asynccontextmanager
async def mixing(
    *sources: Source, on_failure: OnFailure = "fail-closed", settled: bool = True
) -> AsyncIterator[MixedEntropy]:
    entropy = MixedEntropy()
    entropy.start(sources, on_failure, BUFFER)
    try:
        if settled:
            await until(
                lambda: all(each["bytes_ready"] >= BUFFER for each in entropy.status()["sources"][1:])
            )
        yield entropy
    finally:
        await entropy.close()


def state(entropy: MixedEntropy, at: int = 1) -> str:
    return str(entropy.status()["sources"][at]["state"])


def test_without_sources_the_operating_system_serves() -> None:
    async def story() -> None:
        async with mixing() as entropy:
            assert len(entropy.read(32)) == 32
            assert not entropy.read(32).same_as(entropy.read(32))
            assert entropy.status()["state"] == "good"
            assert [each["name"] for each in entropy.status()["sources"]] == ["os"]
            assert len(entropy.read(0)) == 0

    asyncio.run(story())
    assert len(SystemEntropy().read(48)) == 48


def test_output_is_the_system_xor_the_conditioned_source(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the system's half held at zero, and at a known value, the other half comes to light."""
    tape = Tape()

    async def story() -> tuple[bytes, bytes, bytes]:
        async with mixing(source(tape)) as entropy:
            with monkeypatch.context() as patch:
                patch.setattr("keyhaul.entropy.mixer.os.urandom", bytes)
                bare = entropy.read(64).reveal()
                patch.setattr("keyhaul.entropy.mixer.os.urandom", lambda length: b"\xff" * length)
                flipped = entropy.read(64).reveal()
            return bare, flipped, entropy.read(64).reveal()

    bare, flipped, mixed = asyncio.run(story())
    blocks = [hashlib.sha512(tape.given[at * RAW_BLOCK : (at + 1) * RAW_BLOCK]).digest() for at in range(3)]
    assert bare == blocks[0]
    assert flipped == bytes(value ^ 0xFF for value in blocks[1])
    assert mixed != blocks[2]
    assert mixed not in tape.given
    assert bare not in tape.given


def test_what_a_hostile_source_gives_does_not_decide_the_output() -> None:
    """A source that gives the same bytes in two nodes: the keys differ all the same."""
    known = b"".join(hashlib.sha256(number.to_bytes(4)).digest() for number in range(4096))

    async def once() -> bytes:
        place = 0

        def make(length: int) -> bytes:
            nonlocal place
            place += length
            return known[place - length : place]

        async with mixing(source(make)) as entropy:
            return entropy.read(256).reveal()

    assert asyncio.run(once()) != asyncio.run(once())


def test_no_byte_of_a_source_is_used_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story() -> None:
        async with mixing(source()) as entropy:
            monkeypatch.setattr("keyhaul.entropy.mixer.os.urandom", bytes)
            blocks = {entropy.read(32).reveal() for _ in range(BUFFER // 32)}
            assert len(blocks) == BUFFER // 32

    asyncio.run(story())


def test_nothing_is_used_before_the_start_up_test_is_over() -> None:
    gate = asyncio.Event()

    class Slow(BlockingSource):
        async def read(self, length: int) -> bytes:
            if tape.given:
                await gate.wait()
            return tape(1023) if not tape.given else tape(length)

    tape = Tape()

    async def story() -> None:
        async with mixing(Slow("slow", "file", 7.0, tape), settled=False) as entropy:
            await until(lambda: tape.given)
            assert state(entropy) == "starting"
            with pytest.raises(Unavailable, match="slow: starting") as refused:
                entropy.read(1)
            assert refused.value.retry_after == 2
            gate.set()
            await until(lambda: state(entropy) == "good")
            entropy.read(1)

    asyncio.run(story())


@pytest.mark.parametrize("make", [stuck, lambda n: b"\x55\xaa" * n, lambda n: os.urandom(n).hex().encode()])
def test_a_source_that_fails_at_the_start_never_counts(make: Callable[[int], bytes]) -> None:
    async def story() -> None:
        async with mixing(source(make), settled=False) as entropy:
            await until(lambda: state(entropy) == "failed")
            with pytest.raises(Unavailable, match="lab: failed") as refused:
                entropy.read(32)
            assert refused.value.retry_after == 30
            assert entropy.status()["state"] == "closed"

    asyncio.run(story())


def test_a_source_that_breaks_later_is_out_and_its_buffer_wiped() -> None:
    tape = Tape()

    async def story() -> None:
        async with mixing(source(tape)) as entropy:
            tape.make = stuck
            entropy.read(BUFFER // 2)  # so that it reads again
            await until(lambda: state(entropy) == "failed")
            told = entropy.status()["sources"][1]
            assert told["bytes_ready"] == 0
            assert told["failures"] == 1
            assert "repetition count test" in told["last_cause"]
            read, tape.make = told["bytes_read"], os.urandom
            with pytest.raises(Unavailable):
                entropy.read(1)
            assert entropy.status()["sources"][1]["bytes_read"] == read, "it does not come back by itself"

    asyncio.run(story())


def test_degrading_serves_from_the_system_and_says_so() -> None:
    async def story() -> None:
        async with mixing(source(stuck), on_failure="degrade-with-alarm", settled=False) as entropy:
            await until(lambda: state(entropy) == "failed")
            assert len(entropy.read(32)) == 32
            told = entropy.status()
            assert (told["state"], told["bytes_from_system_alone"]) == ("degraded", 32)

    asyncio.run(story())


def test_one_of_two_sources_may_fail() -> None:
    async def story() -> None:
        async with mixing(source(), source(stuck, "dead"), settled=False) as entropy:
            await until(lambda: state(entropy) == "good" and state(entropy, 2) == "failed")
            assert len(entropy.read(32)) == 32
            assert entropy.status()["state"] == "reduced"
            assert entropy.status()["bytes_from_system_alone"] == 0

    asyncio.run(story())


def test_an_unreachable_source_serves_from_its_buffer_and_comes_back() -> None:
    tape = Tape()

    async def story() -> None:
        async with mixing(source(tape)) as entropy:
            tape.make = unplugged
            entropy.read(BUFFER // 2)
            await until(lambda: state(entropy) == "unreachable")
            entropy.read(BUFFER // 2)  # was good when it was read
            with pytest.raises(Unavailable, match="unreachable") as refused:
                entropy.read(BUFFER)
            assert "cable" not in refused.value.cause, "applications are not told what is wrong inside"
            assert entropy.status()["sources"][1]["last_cause"] == "the cable is out"
            tape.make = os.urandom
            await until(lambda: state(entropy) == "good")
            entropy.read(32)

    asyncio.run(story())


def test_a_surprise_in_a_library_is_a_failed_source() -> None:
    def surprise(_: int) -> bytes:
        raise ZeroDivisionError("with something secret in its text")

    async def story() -> None:
        async with mixing(source(surprise), settled=False) as entropy:
            await until(lambda: state(entropy) == "failed")
            assert entropy.status()["sources"][1]["last_cause"] == "reading failed (ZeroDivisionError)"

    asyncio.run(story())


def test_a_request_larger_than_the_buffer_is_served_when_asked_again() -> None:
    async def story() -> None:
        async with mixing(source()) as entropy:
            with pytest.raises(Unavailable, match="slower than the demand"):
                entropy.read(5 * BUFFER)
            await until(lambda: entropy.status()["sources"][1]["bytes_ready"] >= 5 * BUFFER)
            assert len(entropy.read(5 * BUFFER)) == 5 * BUFFER

    asyncio.run(story())


def test_the_buffer_is_bounded() -> None:
    tape = Tape(lambda length: os.urandom(10 * length))  # gives more than it is asked for

    async def story() -> None:
        async with mixing(source(tape)) as entropy:
            for _ in range(200):
                entropy.read(1024)
                await until(lambda: entropy.status()["sources"][1]["bytes_ready"] >= BUFFER)
                assert entropy.status()["sources"][1]["bytes_ready"] < BUFFER + 64

    asyncio.run(story())


def test_a_failed_source_is_replaced_while_it_runs() -> None:
    async def story() -> None:
        async with mixing(source(stuck), settled=False) as entropy:
            await until(lambda: state(entropy) == "failed")
            await entropy.replace([source(name="new")], "fail-closed", BUFFER)
            assert len(entropy.read(32)) == 32
            assert entropy.status()["state"] == "good"
            assert [each["name"] for each in entropy.status()["sources"]] == ["os", "new"]

    asyncio.run(story())


@pytest.mark.parametrize("make", [stuck, unplugged])
def test_a_source_that_does_not_work_does_not_replace_one_that_does(make: Callable[[int], bytes]) -> None:
    async def story() -> None:
        async with mixing(source()) as entropy:
            before = asyncio.all_tasks()
            with pytest.raises(Unavailable, match=r"not in use \(bad: "):
                await entropy.replace([source(name="new"), source(make, "bad")], "degrade-with-alarm", BUFFER)
            assert entropy.status()["sources"][1]["name"] == "lab"
            assert entropy.status()["on_failure"] == "fail-closed"
            assert len(entropy.read(32)) == 32
            assert asyncio.all_tasks() == before, "nothing of the refused sources goes on"

    asyncio.run(story())


def test_a_source_that_is_too_slow_to_start_does_not_replace(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "silent")

    async def story() -> None:
        async with mixing(source()) as entropy:
            silent = FileSource("silent", tmp_path / "silent", 7.0)
            with pytest.raises(Unavailable, match="silent: starting"):
                await entropy.replace([silent], "fail-closed", BUFFER, settle=0.3)
            assert len(entropy.read(32)) == 32

    asyncio.run(story())


def test_replacing_with_none_leaves_the_system() -> None:
    async def story() -> None:
        async with mixing(source()) as entropy:
            await entropy.replace([], "fail-closed")
            assert len(entropy.read(100_000)) == 100_000

    asyncio.run(story())


# --- files ---------------------------------------------------------------------------------------


def test_a_fifo_feeds_and_is_closed_with_its_source(tmp_path: Path) -> None:
    async def story() -> None:
        with pumped(tmp_path / "qrng") as pump:
            async with mixing(FileSource("qrng", pump.path, 7.0)) as entropy:
                assert len(entropy.read(BUFFER)) == BUFFER
                await until(lambda: entropy.status()["sources"][1]["bytes_ready"] >= BUFFER)
                assert entropy.status()["sources"][1]["bytes_read"] <= len(pump.given)
            assert open_files(pump.path) == 1, "the pump's own"

    asyncio.run(story())


def open_files(path: Path) -> int:
    links = [Path("/proc/self/fd") / name for name in os.listdir("/proc/self/fd")]
    return sum(1 for link in links if link.is_symlink() and os.readlink(link) == str(path))


async def emptied(file: FileSource) -> None:
    while await file.read(65_536):
        pass


def test_a_fifo_whose_writer_left_waits_for_another(tmp_path: Path) -> None:
    async def story() -> None:
        path = tmp_path / "qrng"
        quick = FileSource("qrng", path, 7.0, timeout=0.3)
        with pumped(path):
            assert len(await quick.read(CHUNK)) > 0
            os.link(path, tmp_path / "kept")
        with pytest.raises(Unavailable, match="gave nothing for"):
            await emptied(quick)
        writer = os.open(tmp_path / "kept", os.O_WRONLY | os.O_NONBLOCK)
        os.write(writer, b"back again")
        assert await quick.read(100) == b"back again"
        os.close(writer)
        await quick.close()
        with pytest.raises(Unavailable, match="closed"):
            await quick.read(1)

    asyncio.run(story())


def test_a_plain_file_ends(tmp_path: Path) -> None:
    content = os.urandom(10_000)
    (tmp_path / "plain").write_bytes(content)

    async def story() -> None:
        plain = FileSource("plain", tmp_path / "plain", 7.0)
        assert b"".join([await plain.read(4096) for _ in range(3)]) == content
        with pytest.raises(Unavailable, match="at its end"):
            await emptied(plain)
        await plain.close()

    asyncio.run(story())


@pytest.mark.parametrize("name", ["missing", "."])
def test_a_file_that_cannot_be_read_says_why(tmp_path: Path, name: str) -> None:
    async def story() -> None:
        wrong = FileSource("wrong", tmp_path / name, 7.0)
        with pytest.raises(Unavailable, match="cannot be read"):
            await wrong.read(1)
        await wrong.close()

    asyncio.run(story())


def test_a_device_file_feeds() -> None:
    async def story() -> None:
        async with mixing(FileSource("urandom", Path("/dev/urandom"), 7.9)) as entropy:
            assert len(entropy.read(64)) == 64
        async with mixing(FileSource("zero", Path("/dev/zero"), 7.9), settled=False) as entropy:
            await until(lambda: state(entropy) == "failed")

    asyncio.run(story())
