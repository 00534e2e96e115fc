"""Writes the vector files anew: `python -m tests.vectors.make` from the root of the repository.

Only after a deliberate change of a wire format, with a new version number in the format. Everything
comes from fixed labels, so two runs write the same files; review the difference like code.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import json
from collections.abc import Iterator
from dataclasses import replace
from uuid import UUID

import msgspec
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from keyhaul import control
from keyhaul.control import Directory
from keyhaul.keys import Secret
from keyhaul.messages import carrying, confirming, envelope, labels, payload
from keyhaul.messages.envelope import Header, Material, Mode, Suite
from keyhaul.messages.etsi020 import AckStatus, encode_acks, encode_ext_keys
from keyhaul.messages.payload import Context, Pair, Payload, Scheme
from keyhaul.messages.wrapping import MAX_CARRIED, Wrapping, wrap
from keyhaul.pairing import Pairing
from keyhaul.schemes.masked import Masked
from keyhaul.schemes.trusted import Trusted
from keyhaul.stores.memory import MemoryLedger
from tests.neighbours import Anchors, Identity, context
from tests.vectors.files import FOLDER, Vector

PEN = 32473
NOW = 1_800_000_000.0
CALLBACK = "https://vigo.example/kmapi/v1/ext_keys/ack"


def fixed(label: str, length: int) -> bytes:
    """Bytes that look random and are the same for ever."""
    return hashlib.shake_256(b"keyhaul vectors " + label.encode()).digest(length)


# ---------------------------------------------------------------------- envelopes


def header(**changes: object) -> Header:
    fields: dict[str, object] = {
        "version": 1,
        "suite": Suite.HKDF_SHA384,
        "mode": Mode.KEM,
        "sender": "vigo",
        "receiver": "santiago",
        "epoch": fixed("epoch", 8),
        "sequence": 70_000,
        "message_id": fixed("message id", 16),
        "kem_id": fixed("kem id", 16),
        "kem_ciphertext": fixed("kem ciphertext", 1088),
        "owner": "",
        "message_keys": (),
        "pad_keys": (),
    }
    return msgspec.convert(tuple({**fields, **changes}.values()), Header)


DEVICE = {"owner": "vigo-devices", "message_keys": ("11111111-0000-4000-8000-000000000001",)}
PAD_NAMES = tuple(f"11111111-0000-4000-8000-00000000000{digit}" for digit in "2cd")
PLAIN = ("ext_keys", b'{"keys": []}')
MATERIAL = Material(b"", b"", fixed("kem secret", 32))
WITH_DEVICE = Material(fixed("device key", 32), b"", fixed("kem secret", 32))
WITH_PAD = Material(fixed("device key", 32), fixed("pad keys", 96), fixed("kem secret", 32))
SUITES = {
    "kem": (header(), MATERIAL),
    "expanded": (header(mode=Mode.EXPANDED, **DEVICE), WITH_DEVICE),
    "otp": (header(version=2, mode=Mode.OTP, **DEVICE, pad_keys=PAD_NAMES), WITH_PAD),
    "paper-a": (header(suite=Suite.PAPER_A, mode=Mode.EXPANDED, **DEVICE), WITH_DEVICE),
}


def material_fields(material: Material) -> dict[str, str]:
    return {
        "message-bits": material.message_bits.hex(),
        "pad-bits": material.pad_bits.hex(),
        "kem-secret": material.kem_secret.hex(),
    }


def sealed(name: str) -> bytes:
    head, material = SUITES[name]
    return envelope.seal(head, material, fixed("nonce", 12), *PLAIN)


def envelopes() -> Iterator[Vector]:
    for name, (head, material) in SUITES.items():
        pad = envelope.pad(head, envelope.header_bytes(head), material, 48)
        fields = {
            "expect": "ok",
            "header": json.dumps(plain_header(head)),
            **material_fields(material),
            "nonce": fixed("nonce", 12).hex(),
            "path": PLAIN[0],
            "content": PLAIN[1].hex(),
            "pad": pad.hex(),
        }
        yield Vector(f"envelope/{name}.txt", fields, sealed(name))
    for name, material, body in tampered_envelopes():
        yield Vector(f"envelope/{name}.txt", {"expect": "tampered", **material_fields(material)}, body)
    for name, body in malformed_envelopes():
        yield Vector(f"envelope/{name}.txt", {"expect": "malformed", **material_fields(MATERIAL)}, body)


def plain_header(head: Header) -> list[object]:
    fields = msgspec.structs.astuple(head)
    return [field.hex() if isinstance(field, bytes) else field for field in fields]


def flipped(body: bytes, at: int) -> bytes:
    changed = bytearray(body)
    changed[at] ^= 1
    return bytes(changed)


def tampered_envelopes() -> Iterator[tuple[str, Material, bytes]]:
    body = sealed("otp")
    yield "tampered-sender", WITH_PAD, body.replace(b"\xa4vigo", b"\xa4vico", 1)
    yield "tampered-device-key-name", WITH_PAD, body.replace(b"00000001", b"00000003", 1)
    yield "tampered-pad-name", WITH_PAD, body.replace(b"0000000c", b"0000000d", 1)
    yield "tampered-kem-ciphertext", WITH_PAD, body.replace(fixed("kem ciphertext", 8), bytes(8), 1)
    yield "tampered-nonce", WITH_PAD, body.replace(fixed("nonce", 12), bytes(12), 1)
    yield "tampered-first-bit", WITH_PAD, flipped(body, len(body) - 16 - 8)
    yield "tampered-last-bit-of-the-tag", WITH_PAD, flipped(body, len(body) - 1)
    yield "tampered-mode", WITH_PAD, body.replace(b"\xa3otp", b"\xa3kem", 1)
    yield "wrong-kem-secret", Material(WITH_PAD.message_bits, WITH_PAD.pad_bits, bytes(32)), body
    yield "wrong-device-key", Material(bytes(32), WITH_PAD.pad_bits, WITH_PAD.kem_secret), body
    yield "no-device-key", Material(b"", WITH_PAD.pad_bits, WITH_PAD.kem_secret), body
    yield "paper-a-read-as-ours", WITH_DEVICE, sealed("paper-a").replace(b"\x01\x02", b"\x01\x01", 1)


def malformed_envelopes() -> Iterator[tuple[str, bytes]]:
    body = sealed("kem")
    yield "empty", b""
    yield "json", b'{"version": 1}'
    yield "truncated", body[:-20]
    yield "trailing-byte", body + b"\0"
    yield "nothing-inside", authentic(b"")
    yield "not-a-message-inside", authentic(msgspec.msgpack.encode(["ext_keys"]))
    wrong: dict[str, dict[str, object]] = {
        "version-2": {"version": 2},
        "suite-9": {"suite": 9},
        "message-id-short": {"message_id": fixed("message id", 15)},
        "epoch-long": {"epoch": fixed("epoch", 17)},
        "sequence-negative": {"sequence": -1},
        "sequence-too-high": {"sequence": 1 << 63},
    }
    for name, change in wrong.items():
        yield name, outer(msgspec.msgpack.encode(header(**change)))
    fields = list(msgspec.structs.astuple(header()))
    yield "field-too-many", outer(msgspec.msgpack.encode([*fields, 0]))
    yield "field-too-few", outer(msgspec.msgpack.encode(fields[:-1]))
    yield "mode-unknown", outer(msgspec.msgpack.encode([*fields[:2], "xor", *fields[3:]]))
    yield "sender-not-utf-8", outer(msgspec.msgpack.encode(header()).replace(b"\xa4vigo", b"\xa4vig\xff"))
    yield "nonce-short", msgspec.msgpack.encode([msgspec.msgpack.encode(header()), bytes(11), bytes(40)])


def outer(head: bytes) -> bytes:
    return msgspec.msgpack.encode([head, fixed("nonce", 12), bytes(40)])


def authentic(plain: bytes) -> bytes:
    """Sealed by the right keys, but no message inside."""
    head = envelope.header_bytes(header())
    key = envelope.message_key(header(), head, MATERIAL)
    text = AESGCM(key).encrypt(fixed("nonce", 12), plain, head)
    return msgspec.msgpack.encode([head, fixed("nonce", 12), text])


# ---------------------------------------------------------------------- payloads under the origin's tag

PAIR = Pair(fixed("pair id", 16), Secret(fixed("pair secret", 32)), fixed("statement", 40))
KEYS = [Secret(fixed("key 1", 32)), Secret(fixed("key 2", 32))]


def context_text(vouched: Context) -> str:
    """As JSON; a context that carries nothing does not say so."""
    said = msgspec.to_builtins(vouched)
    if not vouched.carried:
        del said["carried"]
    return msgspec.json.encode(said).decode()


def context_fields(vouched: Context) -> dict[str, str]:
    return {
        "context": context_text(vouched),
        "pair-id": PAIR.id.hex(),
        "pair-secret": PAIR.secret.reveal().hex(),
        "statement": PAIR.statement.hex(),
    }


def payloads() -> Iterator[Vector]:
    for scheme in (Trusted(), Masked()):
        vouched = context(scheme=scheme.name)
        sent = scheme.originate(KEYS, vouched, PAIR)
        fields = context_fields(vouched)
        keys = {"keys": " ".join(key.reveal().hex() for key in KEYS), "head": sent.head.hex()}
        yield Vector(f"payload/{scheme.name}.txt", {"expect": "ok", **fields, **keys}, sent.body)
        for name, change in CHANGES.items():
            fields = context_fields(context(**{"scheme": scheme.name, **change}))
            path = f"payload/{scheme.name}-{name}.txt"
            yield Vector(path, {"expect": "tampered", **fields}, sent.body)
        fields = context_fields(vouched)
        for name, body in damaged(vouched, sent):
            yield Vector(f"payload/{scheme.name}-{name}.txt", {"expect": "tampered", **fields}, body)
        yield from carried(scheme)


EXTENSIONS = {"E32473_hops": msgspec.Raw(b'{ "n": 1.50 }'), "E32473_note": msgspec.Raw('"ñ"'.encode())}


def carried(scheme: Scheme) -> Iterator[Vector]:
    """A foreign key manager's optional extensions beside the keys: theirs, a relay's, or taken away."""
    vouched = carrying.carrying(context(scheme=scheme.name), PAIR, EXTENSIONS)
    sent = scheme.originate(KEYS, vouched, PAIR)
    keys = {"keys": " ".join(key.reveal().hex() for key in KEYS), "head": sent.head.hex()}
    good = {"expect": "ok", **context_fields(vouched), **keys, "optional": json_text(EXTENSIONS)}
    yield Vector(f"payload/{scheme.name}-carries.txt", good, sent.body)
    for name, text in (
        ("carried-bit", flipped(vouched.carried, 0)),
        ("carried-taken-away", b""),
        ("carried-short", vouched.carried[:-1]),
    ):
        fields = context_fields(replace(vouched, carried=text))
        yield Vector(f"payload/{scheme.name}-{name}.txt", {"expect": "tampered", **fields}, sent.body)


def json_text(value: object) -> str:
    return msgspec.json.encode(value).decode()


CHANGES: dict[str, dict[str, object]] = {
    "other-origin": {"origin": "derio"},
    "other-targets": {"targets": ("sae-bilbao", "sae-derio")},
    "swapped-ids": {"key_ids": (UUID(int=2), UUID(int=1))},
    "longer-life": {"expires": 1_800_086_401},
    "other-route": {"route": ("vigo", "derio", "bilbao")},
    "better-trust": {"trust": (("relays", "computational"), ("wire", "computational"))},
}


def damaged(vouched: Context, sent: Payload) -> Iterator[tuple[str, bytes]]:
    yield "bit-of-a-key", flipped(sent.body, 0)
    yield "bit-of-the-tag", flipped(sent.body, len(sent.body) - 1)
    yield "swapped-keys", sent.body[32:64] + sent.body[:32] + sent.body[64:]
    yield "tag-short", sent.body[:-1]
    relay = Pair(PAIR.id, Secret(fixed("relay's own secret", 32)))
    own = fixed("relay's own keys", 64)
    yield "substituted", own + payload.origin_tag(relay, vouched, own)


# ---------------------------------------------------------------------- the 020 extension


def wrappings() -> Iterator[Vector]:
    vouched = context()
    sent = Trusted().originate(KEYS, vouched, PAIR)
    transfer = wrap(Wrapping(vouched, sent, NOW + 15.25), CALLBACK, PEN)
    good = encode_ext_keys(transfer, sealed=True)
    yield Vector("wrapping/trusted.txt", wrapping_fields(vouched, sent), good)
    laden = replace(vouched, carried=fixed("carried", 40))
    sent = Trusted().originate(KEYS, laden, PAIR)
    body = encode_ext_keys(wrap(Wrapping(laden, sent, NOW + 15.25), CALLBACK, PEN), sealed=True)
    yield Vector("wrapping/carries.txt", wrapping_fields(laden, sent), body)
    for name, (old, new) in CONTRADICTIONS.items():
        assert old in good, (name, old)
        body = good.replace(old, new, 1)
        yield Vector(f"wrapping/{name}.txt", {"expect": "malformed", "pen": str(PEN)}, body)


def wrapping_fields(vouched: Context, sent: Payload) -> dict[str, str]:
    return {
        "expect": "ok",
        "context": context_text(vouched),
        "head": sent.head.hex(),
        "payload": sent.body.hex(),
        "deadline": repr(NOW + 15.25),
        "callback": CALLBACK,
        "pen": str(PEN),
    }


CONTRADICTIONS: dict[str, tuple[bytes, bytes]] = {
    "version-2": (b'"v":1', b'"v":2'),
    "size-zero": (b'"size":256', b'"size":0'),
    "size-not-bytes": (b'"size":256', b'"size":257'),
    "size-of-other-keys": (b'"size":256', b'"size":128'),
    "origin-not-first": (b'"origin":"vigo"', b'"origin":"derio"'),
    "destination-not-last": (b'"destination":"bilbao"', b'"destination":"derio"'),
    "route-of-one": (b'["vigo","santiago","bilbao"]', b'["vigo"]'),
    "route-in-a-circle": (b'["vigo","santiago","bilbao"]', b'["vigo","santiago","santiago","bilbao"]'),
    "head-not-base64": (b'"head":"', b'"head":"*'),
    "head-not-ascii": (b'"head":"', '"head":"é'.encode()),
    "tail-not-base64": (b'"tail":"', b'"tail":"='),
    "member-unknown": (b'"v":1', b'"v":1,"w":1'),
    "carries-what-is-not-base64": (b'"v":1', b'"v":1,"carried":"*"'),
    "carries-too-much": (b'"v":1', b'"v":1,"carried":"' + b"AAAA" * (MAX_CARRIED // 3 + 1) + b'"'),
    "expires-beyond-time": (b'"expires":1800086400', b'"expires":1' + b"0" * 400),
    "expires-negative": (b'"expires":1800086400', b'"expires":-1'),
    "deadline-beyond-time": (b'"deadline":1800000015.25', b'"deadline":1e300'),
    "key-id-twice": (b"00000000-0000-0000-0000-000000000002", b"00000000-0000-0000-0000-000000000001"),
}


# ---------------------------------------------------------------------- confirmations


def confirmations() -> Iterator[Vector]:
    """What a destination acknowledges, and the same with one thing wrong."""
    vouched = context()
    fields = {**context_fields(vouched), "pen": str(PEN)}
    good = confirming.confirmations(PAIR, vouched)
    wrong = {
        "good": good,
        "of-another-pair": confirming.confirmations(Pair(PAIR.id, Secret(fixed("other", 32))), vouched),
        "of-another-route": confirming.confirmations(PAIR, context(route=("vigo", "derio", "bilbao"))),
        "of-another-scheme": confirming.confirmations(PAIR, context(scheme="masked")),
        "swapped": dict(zip(good, reversed(good.values()), strict=True)),
        "none": dict.fromkeys(good, b""),
    }
    for name, proofs in wrong.items():
        saes = vouched.initiator, vouched.targets
        acks = confirming.acks(list(proofs.items()), AckStatus.RELAYED, saes, PEN)
        expect = "ok" if name == "good" else "tampered"
        yield Vector(f"confirmation/{name}.txt", {"expect": expect, **fields}, encode_acks(acks, sealed=True))
    body = encode_acks(confirming.acks(list(good.items()), AckStatus.RELAYED, ("a", ("b",)), PEN))
    for name, old, new in (
        ("version-2", b'"v":1', b'"v":2'),
        ("one-proof-short", b'"proofs":"', b'"proofs":"' + b"AAAA"),
        ("not-base64", b'"proofs":"', b'"proofs":"*'),
        ("member-unknown", b'"v":1', b'"v":1,"w":1'),
    ):
        changed = body.replace(old, new, 1)
        assert changed != body
        yield Vector(f"confirmation/{name}.txt", {"expect": "tampered", **fields}, changed)


# ---------------------------------------------------------------------- descriptors and statements


def descriptors() -> Iterator[Vector]:
    keys = (
        control.PublicKey("ml-kem-768", fixed("public", 1184), NOW, NOW + 3600),
        control.PublicKey("bfv-dense", fixed("bfv public", 4353), NOW, NOW + 1800),
    )
    said = control.Descriptor("vigo", "lab", 7, NOW, NOW + 3600, keys, ("trusted", "blind"), ("pq",))
    record = control.publish(said, Identity("vigo"))
    fields = {
        "node": said.node,
        "domain": said.domain,
        "sequence": str(said.sequence),
        "issued": repr(said.issued),
        "expires": repr(said.expires),
        "kem-public": keys[0].public.hex(),
        "bfv-public": keys[1].public.hex(),
        "bfv-expires": repr(keys[1].expires),
        "schemes": " ".join(said.schemes),
        "labels": " ".join(said.labels),
    }
    yield Vector("descriptor/good.txt", {"expect": "ok", **fields}, control.encode_records([record]))
    bad = {
        "bit-of-the-key": control.Record(flipped(record.body, -1), record.certificate, record.signature),
        "bit-of-the-signature": control.Record(record.body, record.certificate, flipped(record.signature, 0)),
        "label-missing": control.Record(record.body, record.certificate, Identity("vigo").sign(record.body)),
        "signed-by-another": control.publish(said, Identity("derio")),
    }
    for name, each in bad.items():
        body = control.encode_records([each])
        yield Vector(f"descriptor/{name}.txt", {"expect": "tampered"}, body)
    clipped = msgspec.structs.replace(keys[1], public=keys[1].public[:-1])
    short = msgspec.structs.replace(said, keys=(keys[0], clipped))
    twice = msgspec.structs.replace(said, keys=(keys[0], keys[0]))
    garbage = msgspec.msgpack.encode(["vigo"])
    wrong = {
        "key-short": control.encode_records([control.publish(short, Identity("vigo"))]),
        "profile-twice": control.encode_records([control.publish(twice, Identity("vigo"))]),
        "no-descriptor": control.encode_records([control.Record(garbage, record.certificate, b"")]),
        "no-list": msgspec.msgpack.encode(record),
        "node-not-utf-8": control.encode_records(
            [control.Record(record.body.replace(b"\xa4vigo", b"\xa4vig\xff"), b"", b"")]
        ),
    }
    for name, body in wrong.items():
        yield Vector(f"descriptor/{name}.txt", {"expect": "malformed"}, body)


def statements() -> Iterator[Vector]:
    """A pair's statement; any ciphertext decapsulates to something, so a fixed one will do."""
    body = msgspec.msgpack.encode(
        [
            *("vigo", "bilbao", "ml-kem-768", fixed("kem id", 16), fixed("statement ciphertext", 1088)),
            *(NOW, NOW + 10_800, False),
        ]
    )
    signature = Identity("vigo").sign(labels.PAIR_STATEMENT + body)
    signed = msgspec.msgpack.encode([body, signature])
    head = hashlib.sha256(signed).digest()[:16] + signed
    fields = {"kem-id": fixed("kem id", 16).hex(), "kem-seed": fixed("kem seed", 64).hex()}
    secret = asyncio.run(admitted(head, fields))
    assert secret is not None
    yield Vector("statement/good.txt", {"expect": "ok", **fields, "pair-secret": secret.hex()}, head)
    for name, at in (("bit-of-the-id", 0), ("bit-of-the-signature", -1), ("bit-of-the-ciphertext", 200)):
        yield Vector(f"statement/{name}.txt", {"expect": "tampered", **fields}, flipped(head, at))


class Now:
    """A clock that stands still."""

    def now(self) -> float:
        return NOW


async def destination(kem_id: bytes, seed: bytes) -> Pairing:
    """Node `bilbao` with a fixed key, to which `vigo` is known."""
    directory = Directory(Anchors(), {"vigo": "lab"})
    said = control.Descriptor("vigo", "lab", 1, NOW, NOW + 3600, ())
    directory.receive(control.publish(said, Identity("vigo")), NOW)
    ledger = MemoryLedger()
    async with ledger.edit() as change:
        change.put("kem/destination", kem_id.hex(), msgspec.msgpack.encode([seed, NOW]))
    pairing = Pairing(Identity("bilbao"), "lab", directory, ledger, Now())
    await pairing.start()
    return pairing


async def admitted(head: bytes, fields: dict[str, str]) -> bytes:
    """What the destination makes of a payload's head."""
    pairing = await destination(bytes.fromhex(fields["kem-id"]), bytes.fromhex(fields["kem-seed"]))
    return (await pairing.incoming(head, "vigo")).secret.reveal()


def everything() -> list[Vector]:
    return list(
        itertools.chain(envelopes(), payloads(), wrappings(), confirmations(), descriptors(), statements())
    )


if __name__ == "__main__":
    for vector in everything():
        path = FOLDER / vector.path
        path.parent.mkdir(exist_ok=True)
        path.write_text(vector.text())
