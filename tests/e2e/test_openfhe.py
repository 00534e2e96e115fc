"""The OpenFHE worker and paper B's relay on it: what it does, what it is open to, what it survives."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from keyhaul.errors import Malformed, Unavailable, Unsupported
from keyhaul.keys import Secret
from keyhaul.messages.payload import NO_PAIR, Payload
from keyhaul.openfhe import OpenFhe, WorkerDied, layout
from tests.openfhe import SMALL, Node, needs_openfhe, vouched, worker

pytestmark = pytest.mark.e2e
T = 65_537


@pytest.fixture(scope="module")
def published() -> Iterator[Node]:
    """The parameters of the paper."""
    with worker("paper") as fhe:
        yield Node(fhe)


@pytest.fixture(scope="module")
def small() -> Iterator[Node]:
    """The same on a smaller ring, which is quicker and breaks in the same ways."""
    with worker("small") as fhe:
        yield Node(fhe)


@pytest.fixture(scope="module")
def binary() -> Iterator[Node]:
    with worker("binary") as fhe:
        yield Node(fhe)


def keys_of(seed: int, number: int = 1, size: int = 256) -> list[Secret]:
    source = random.Random(seed)
    return [Secret(source.randbytes(size // 8)) for _ in range(number)]


def bits(keys: list[Secret]) -> list[bytes]:
    return [key.reveal() for key in keys]


def travel(node: Node, payload: Payload, hops: int, seed: int = 0) -> Payload:
    source, pad = random.Random(seed), None
    for _ in range(hops):
        following = source.randbytes(node.scheme.pad_bytes(payload))
        payload, pad = node.scheme.transit(payload, pad, following), following
    return node.scheme.transit(payload, pad, None)


# ---------------------------------------------------------------------- as published


@pytest.mark.parametrize("size", [128, 256])
def test_a_ciphertext_of_the_paper_has_347_kilobytes_at_every_hop(published: Node, size: int) -> None:
    wire = published.encrypt(bytes(range(size // 8)), os.urandom(size // 8))
    lengths = [len(wire)]
    for _ in range(3):
        wire = published.fhe.relay(published.public, wire, bytes(size // 8), os.urandom(size // 8)).value
        lengths.append(len(wire))
    assert all(abs(length - 347_360) < 0.005 * 347_360 for length in lengths), lengths


@pytest.mark.parametrize("size", [128, 256])
def test_a_key_crosses_the_four_links_of_the_paper(published: Node, size: int) -> None:
    context, keys = vouched(1, size), keys_of(size, 1, size)
    payload = published.scheme.originate(keys, context, NO_PAIR)
    assert published.scheme.pad_bytes(payload) == size // 8
    arrived = travel(published, payload, 4, size)
    assert bits(published.scheme.deliver(arrived, context, NO_PAIR)) == bits(keys)


def test_many_keys_are_as_many_ciphertexts(small: Node) -> None:
    context, keys = vouched(5, 128), keys_of(5, 5, 128)
    payload = small.scheme.originate(keys, context, NO_PAIR)
    assert payload.body.count(b"\n") == 4
    assert small.scheme.pad_bytes(payload) == 80
    assert bits(small.scheme.deliver(travel(small, payload, 20), context, NO_PAIR)) == bits(keys)


def test_steps_of_a_hop_are_those_of_the_paper(published: Node) -> None:
    wire = published.encrypt(bytes(32), b"a" * 32)
    hop = published.fhe.relay(published.public, wire, b"a" * 32, b"b" * 32)
    unpack, pack = ["un-base64", "gunzip", "deserialise"], ["serialise", "gzip", "base64"]
    undo, redo = (
        [f"{verb} link key {way}" for verb in ("encode", "encrypt", "add")] for way in ("in", "out")
    )
    assert [name for name, _ in hop.steps] == [*unpack, *undo, *redo, *pack]
    assert all(seconds >= 0 for _, seconds in hop.steps)
    assert hop.seconds == pytest.approx(sum(seconds for _, seconds in hop.steps))


def test_a_payload_for_other_keys_is_refused(small: Node) -> None:
    payload = small.scheme.originate(keys_of(1, 2), vouched(2), NO_PAIR)
    for other in (vouched(1), vouched(3), vouched(2, 128)):
        with pytest.raises(Malformed):
            small.scheme.deliver(payload, other, NO_PAIR)
    with pytest.raises(Malformed):
        small.scheme.transit(payload, bytes(63), None)
    with pytest.raises(Malformed):
        small.scheme.transit(replace(payload, body=b"no base64!"), None, None)
    with pytest.raises(Malformed):
        small.scheme.transit(replace(payload, body=b"A" * (1 << 20) + b"A"), None, None)
    for head in (b"", b"\0\0\0\x20", b"\0\0\0\x20\xff"):
        with pytest.raises(Malformed):
            small.scheme.pad_bytes(replace(payload, head=head))


# ---------------------------------------------------------------------- what it is open to


def test_the_destination_sees_the_sum_of_all_link_keys(small: Node, binary: Node) -> None:
    """With t = 65,537 it counts the ones at each place; with t = 2 it sees their XOR: the key."""
    source = random.Random(3)
    key, pads = source.randbytes(8), [source.randbytes(8) for _ in range(4)]
    for node, modulus in ((small, T), (binary, 2)):
        wire, previous = node.encrypt(key, pads[0]), pads[0]
        for pad in pads[1:]:
            wire, previous = node.fhe.relay(node.public, wire, previous, pad).value, pad
        undone = node.fhe.relay(node.public, wire, previous).value
        columns = [_places(key), *(_places(pad) for pad in pads for _ in (1, 2))]
        expected = [sum(column) % modulus for column in zip(*columns, strict=True)]
        assert node.fhe.places(node.secret, undone, 64) == expected
        assert node.decrypt(undone, 8) == key
    assert expected == _places(key), "t = 2: nothing but the key"


def _places(data: bytes) -> list[int]:
    return [byte >> at & 1 for byte in data for at in range(8)]


def test_the_bit_after_32768_additions_is_wrong(small: Node) -> None:
    """Not after 2^220, as paper B §6 has it: a place counts modulo 65,537, and from -32,768."""
    one = small.encrypt(b"\xff" * 32)
    most = small.fhe.add(one, one, 32_767)
    assert small.fhe.places(small.secret, most, 3) == [32_768] * 3
    assert small.decrypt(most) == bytes(32), "an even number of ones: right"
    further = small.fhe.add(most, one)
    assert small.fhe.places(small.secret, further, 3) == [-32_768] * 3
    assert small.decrypt(further) == bytes(32), "an odd number of ones, and yet zero"


def test_a_relay_flips_bits_and_puts_keys_of_its_own_in_place_unnoticed(small: Node) -> None:
    """Why no node offers this profile: nothing tells the destination who made what it decrypts."""
    context, keys = vouched(), keys_of(8)
    payload = small.scheme.originate(keys, context, NO_PAIR)
    flipped = small.scheme.transit(payload, b"\1" + bytes(31), None)
    (delivered,) = bits(small.scheme.deliver(flipped, context, NO_PAIR))
    assert delivered == bytes([keys[0].reveal()[0] ^ 1]) + keys[0].reveal()[1:]
    own = small.scheme.originate([Secret(b"chosen by a relay, not an origin")], context, NO_PAIR)
    assert bits(small.scheme.deliver(own, context, NO_PAIR)) == [b"chosen by a relay, not an origin"]


def test_whether_keys_are_of_use_opens_the_secret_key(small: Node) -> None:
    """The reaction attack (blind relays that cheat): about 1,700 keys with something added on their way.

    A relay adds a ciphertext it made up. Whether the applications' keys still agree afterwards depends on
    one coefficient of the destination's secret key; nothing but that is looked at.
    """
    context, keys = vouched(), keys_of(9)
    honest = small.scheme.originate(keys, context, NO_PAIR)
    scale, submissions = small.modulus() // T, 0

    def agree(at: int, sign: int) -> bool:
        nonlocal submissions
        submissions += 1
        first, second = [0] * SMALL, [0] * SMALL
        second[-at % SMALL] = (scale * 2 // 5) * (-1 if at else 1)  # x^1024 is -1
        first[0] = sign * (scale * 3 // 10)  # too small alone, too large if the secret's sign agrees
        body = layout.packed(layout.altered(layout.unpacked(honest.body), SMALL, first, second))
        delivered = small.scheme.deliver(replace(honest, body=body), context, NO_PAIR)
        return bits(delivered) == bits(keys)

    found = [next((sign for sign in (1, -1) if not agree(at, sign)), 0) for at in range(SMALL)]
    assert found == _secret(small)
    assert submissions < 1_900


def _secret(node: Node) -> list[int]:
    """-1, 0 or 1 each: the test's own knowledge, from where OpenFHE keeps the secret key."""
    (limb,) = layout.limbs(node.secret, SMALL)
    wire = layout.unpacked(node.encrypt(bytes(32)))
    found = layout._coefficients(limb.values(node.secret), limb.q, layout._root(wire, limb))
    return [value - limb.q if value > 1 else value for value in found]


# ---------------------------------------------------------------------- randomness and processes


def test_two_workers_never_encrypt_alike(small: Node) -> None:
    """OpenFHE's generator is copied by fork(): a worker is a fresh process, so theirs are seeded apart."""
    with worker("small") as other:
        wires = {
            fhe.originate(small.public, bytes(32)).value for fhe in (small.fhe, other) for _ in range(20)
        }
        assert len(wires) == 40
        assert other.generate()[0] != small.public


def test_a_worker_is_another_program_not_a_copy_of_this_one(small: Node) -> None:
    command = Path(f"/proc/{small.fhe.pid}/cmdline").read_bytes().split(b"\0")
    assert command[2].endswith(b"keyhaul/openfhe/worker.py")
    assert b"tests" not in b"".join(command)
    maps = Path(f"/proc/{small.fhe.pid}/maps").read_text()
    assert "OPENFHE" in maps
    assert "OPENFHE" not in Path("/proc/self/maps").read_text()


def test_a_forked_process_cannot_use_its_parents_worker(small: Node) -> None:
    small.encrypt(bytes(32))
    child = os.fork()
    if child == 0:
        try:
            small.encrypt(bytes(32))
        except Unavailable:
            os._exit(7)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    assert small.decrypt(small.encrypt(b"k" * 32)) == b"k" * 32


def test_nothing_secret_is_in_the_workers_arguments_environment_or_core_files(small: Node) -> None:
    process = Path(f"/proc/{small.fhe.pid}")
    variables = (process / "environ").read_bytes()
    assert {each.partition(b"=")[0] for each in variables.split(b"\0") if each} <= {
        b"OMP_NUM_THREADS",
        b"LANG",
    }
    limits = {line[:26].strip(): line[26:].split() for line in (process / "limits").read_text().splitlines()}
    assert limits["Max core file size"][:2] == ["0", "0"]
    assert limits["Max address space"][:2] == [str(1 << 30), str(1 << 30)]


# ---------------------------------------------------------------------- a worker may die


def test_a_killed_worker_is_replaced_and_gets_its_keys_again(small: Node) -> None:
    wire = small.encrypt(b"k" * 32)
    old, starts = small.fhe.pid, small.fhe.starts
    os.kill(old, signal.SIGKILL)
    while small.fhe.pid:
        os.sched_yield()
    assert small.decrypt(wire) == b"k" * 32
    assert small.fhe.pid not in (0, old)
    assert small.fhe.starts == starts + 1


def test_corrupted_ciphertexts_kill_a_worker_at_most() -> None:
    """Until one does, out of thousands; all others decrypt to something or are refused."""
    with worker("small", seconds=20.0) as fhe:
        node, source = Node(fhe), random.Random(1)
        raw = layout.unpacked(node.encrypt(b"k" * 32, b"a" * 32))
        seen = set()
        for _ in range(3_000):
            seen.add(_fate(node, layout.packed(_corrupted(raw, source))))
            if WorkerDied in seen:
                break
        assert seen == {bytes, Malformed, WorkerDied}
        assert node.decrypt(node.encrypt(b"k" * 32)) == b"k" * 32, "the one after it serves on"
        assert fhe.starts == 2


def _fate(node: Node, wire: bytes) -> type:
    try:
        return type(node.decrypt(wire))
    except (Malformed, WorkerDied) as error:
        return type(error)


def _corrupted(raw: bytes, source: random.Random) -> bytes:
    """Bytes changed, mostly in the header, where lengths and types are."""
    altered = bytearray(raw)
    for _ in range(source.choice((1, 1, 4, 16))):
        altered[source.randrange(700 if source.random() < 0.7 else len(raw))] = source.randrange(256)
    return bytes(altered)


@pytest.mark.parametrize("part", ["base64", "gzip", "cut"])
def test_what_is_no_ciphertext_is_refused_and_the_worker_lives(small: Node, part: str) -> None:
    wire, pid = small.encrypt(bytes(32)), small.fhe.pid
    broken = {"base64": b"*" + wire[1:], "gzip": b"AAAA" + wire[4:], "cut": wire[: len(wire) // 8 * 4]}
    with pytest.raises(Malformed, match="OpenFHE refuses"):
        small.decrypt(broken[part])
    assert small.fhe.pid == pid


def test_a_gzip_bomb_is_cut_short(small: Node) -> None:
    with pytest.raises(Malformed):
        small.decrypt(layout.packed(bytes(1 << 26)))


def test_what_takes_too_long_is_ended() -> None:
    with worker("small", seconds=4.0) as fhe:
        node = Node(fhe)
        one = node.encrypt(bytes(32))
        with pytest.raises(WorkerDied, match="took longer than 4 s"):
            fhe.add(one, one, 1 << 40)
        assert node.decrypt(one) == bytes(32)


def test_what_needs_too_much_memory_is_ended_or_refused() -> None:
    with worker("small", memory=1 << 28) as fhe:
        node = Node(fhe)
        with pytest.raises((WorkerDied, Malformed)):
            fhe.originate(node.public, bytes(1 << 27))
        assert node.decrypt(node.encrypt(b"k" * 32)) == b"k" * 32


def test_more_bits_than_places_are_refused(small: Node) -> None:
    with pytest.raises(Malformed, match="more bits"):
        small.encrypt(bytes(SMALL // 8 + 1))


def test_a_forgotten_key_is_gone_from_the_worker_until_it_is_needed_again(small: Node) -> None:
    public, _ = small.fhe.generate()
    small.fhe.originate(public, bytes(32))
    small.fhe.forget(public)
    small.fhe.forget(public)
    assert small.fhe.originate(public, bytes(32)).value


def test_a_closed_worker_says_so() -> None:
    with worker("small") as fhe:
        fhe.close()
        assert fhe.pid == 0
        with pytest.raises(Unavailable, match="closed"):
            fhe.generate()


def test_an_interpreter_without_openfhe_is_unsupported_with_the_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    needs_openfhe()
    with pytest.raises(Unsupported, match="does not load OpenFHE"):
        OpenFhe(python=Path("/usr/bin/false"))
    with pytest.raises(Unsupported, match="while it started"), worker("small", memory=1 << 25):
        pass


# ---------------------------------------------------------------------- noise


@pytest.mark.parametrize(
    ("parameters", "n", "t"), [("paper", 8192, T), ("small", SMALL, T), ("binary", SMALL, 2)]
)
def test_noise_grows_with_the_root_of_the_additions(parameters: str, n: int, t: int) -> None:
    with worker(parameters) as fhe:
        node = Node(fhe)
        fresh = node.encrypt(b"k" * 32)
        begin = layout.noise(layout.unpacked(fresh), node.secret, n, t)
        further, pad = fhe.walk(node.public, fresh, bytes(32), 32)  # 64 additions
        end = layout.noise(layout.unpacked(further), node.secret, n, t)
        assert 6 < end.deviation / begin.deviation < 10.5  # 8.1, and chance
        assert end.largest < end.limit == begin.limit
        assert fhe.deliver(node.public, node.secret, further, 32, pad).value == b"k" * 32


def test_noise_of_something_else_is_not_guessed(small: Node) -> None:
    wire = layout.unpacked(small.encrypt(bytes(32)))
    for blob in (wire[:-9000], b"", bytes(20_000)):
        with pytest.raises((Malformed, ValueError)):
            layout.noise(blob, small.secret, SMALL, T)


def test_a_made_up_ciphertext_is_what_it_was_made_of(binary: Node) -> None:
    half = binary.modulus() // 2 + 1
    first = [half if at % 3 == 0 else 0 for at in range(SMALL)]
    expected = [int(at % 3 == 0) for at in range(SMALL)]
    assert binary.fhe.places(binary.secret, binary.crafted(first, [0] * SMALL), SMALL) == expected
