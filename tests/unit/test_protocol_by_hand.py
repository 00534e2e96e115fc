"""docs/protocol.md taken at its word: what the code seals and masks opens with the page's formulae alone."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import struct
from uuid import UUID

import msgspec
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.poly1305 import Poly1305
from msgspec import Raw

from keyhaul.keys import Secret
from keyhaul.messages import carrying, confirming, envelope, receipts
from keyhaul.messages.envelope import Header, Material, Mode, Suite
from keyhaul.messages.etsi020 import AckStatus
from keyhaul.messages.payload import Context, Pair, Payload, Scheme
from keyhaul.messages.wrapping import Wrapping, wrap
from keyhaul.schemes.masked import Masked
from keyhaul.schemes.trusted import Trusted

MESSAGE_BITS, PAD_BITS, KEM_SECRET = bytes(range(32)), bytes(range(64, 160)), bytes(range(200, 232))
KEYS = [bytes([n]) * 32 for n in (1, 2)]


def hkdf(ikm: bytes, salt: bytes, info: bytes, length: int) -> bytes:
    return HKDF(hashes.SHA384(), length, salt, info).derive(ikm)


def ikm(device: bytes) -> bytes:
    return struct.pack(">I", len(device)) + device + struct.pack(">I", len(KEM_SECRET)) + KEM_SECRET


def xor(left: bytes, right: bytes) -> bytes:
    return bytes(a ^ b for a, b in zip(left, right, strict=True))


def header(mode: Mode) -> Header:
    message, pads = (("m1",), ("p1", "p2", "p3")) if mode is not Mode.KEM else ((), ())
    return Header(
        version=2 if mode is Mode.OTP else 1,
        suite=Suite.HKDF_SHA384,
        mode=mode,
        sender="uvigo-4",
        receiver="cesga-5",
        epoch=bytes(8),
        sequence=7,
        message_id=bytes(16),
        kem_id=bytes(16),
        kem_ciphertext=bytes(1088),
        owner="uvigo-4" if message else "",
        message_keys=message,
        pad_keys=pads if mode is Mode.OTP else (),
    )


def material(mode: Mode) -> Material:
    device = b"" if mode is Mode.KEM else MESSAGE_BITS
    return Material(device, PAD_BITS if mode is Mode.OTP else b"", KEM_SECRET)


@pytest.mark.parametrize("mode", list(Mode))
def test_an_envelope_opens_with_the_formulae_of_the_page(mode: Mode) -> None:
    body = envelope.seal(header(mode), material(mode), bytes(12), "ext_keys", b"{}")
    head, nonce, ciphertext = msgspec.msgpack.decode(body)
    assert msgspec.msgpack.decode(head)[:5] == [
        2 if mode is Mode.OTP else 1,
        1,
        mode.value,
        "uvigo-4",
        "cesga-5",
    ]
    device = b"" if mode is Mode.KEM else MESSAGE_BITS
    salt = hashlib.sha384(head).digest()
    key = hkdf(ikm(device), salt, b"keyhaul/v1/envelope/message-key", 32)
    plain = AESGCM(key).decrypt(nonce, ciphertext, head)
    point = hkdf(ikm(b""), salt, b"keyhaul/v1/envelope/pad-check", 16)
    tag = Poly1305.generate_tag(point + PAD_BITS[-16:], PAD_BITS[:-16]) if mode is Mode.OTP else b""
    assert msgspec.msgpack.decode(plain) == ["ext_keys", tag + b"{}"]


@pytest.mark.parametrize("mode", list(Mode))
def test_a_pad_is_what_the_page_says(mode: Mode) -> None:
    head = envelope.header_bytes(header(mode))
    device = MESSAGE_BITS if mode is Mode.EXPANDED else b""
    key = hkdf(ikm(device), hashlib.sha384(head).digest(), b"keyhaul/v1/envelope/pad-key", 48)
    stream = hashlib.shake_256(key).digest(80)
    expected = xor(stream, PAD_BITS[:80]) if mode is Mode.OTP else stream
    assert envelope.pad(header(mode), head, material(mode), 80) == expected


def some_context(scheme: str) -> Context:
    return Context(
        scheme=scheme,
        origin="uvigo-4",
        destination="tecnalia-8",
        initiator="a b",
        targets=("c", "d"),
        key_ids=(UUID(int=1), UUID(int=2)),
        size=256,
        expires=1_790_000_000,
        route=("uvigo-4", "cesga-5", "tecnalia-8"),
        trust=(("relays", "computational"),),
    )


def transcript(scheme: str) -> bytes:
    ids = [UUID(int=1).bytes, UUID(int=2).bytes]
    route = ["uvigo-4", "cesga-5", "tecnalia-8"]
    sides = [scheme, "uvigo-4", "tecnalia-8", "a b", ["c", "d"]]
    trust = [["relays", "computational"]]
    return msgspec.msgpack.encode([*sides, ids, 256, 1_790_000_000, route, trust])


def tag(pair: Pair, said: bytes, body: bytes) -> bytes:
    parts = b"".join(struct.pack(">Q", len(part)) + part for part in (pair.id, said, body))
    message = b"keyhaul/v1/scheme/origin-tag" + parts
    return hmac.digest(pair.secret.reveal(), message, "sha256")[:16]


def test_a_trusted_payload_is_what_the_page_says() -> None:
    pair = Pair(b"i" * 16, Secret(b"s" * 32), b"statement")
    payload = Trusted().originate([Secret(key) for key in KEYS], some_context("trusted"), pair)
    assert payload.head == pair.id + b"statement"
    bare = b"".join(KEYS)
    assert payload.body == bare + tag(pair, transcript("trusted"), bare)


def test_a_masked_payload_is_what_the_page_says() -> None:
    pair = Pair(b"i" * 16, Secret(b"s" * 32))
    payload = Masked().originate([Secret(key) for key in KEYS], some_context("masked"), pair)
    said = transcript("masked")
    info = b"keyhaul/v1/scheme/mask-stream" + hashlib.sha384(said).digest()
    mask = hashlib.shake_256(hkdf(b"s" * 32, pair.id, info, 48)).digest(64)
    masked = xor(b"".join(KEYS), mask)
    assert payload.head == pair.id
    assert payload.body == masked + tag(pair, said, masked)


@pytest.mark.parametrize("scheme", [Trusted(), Masked()], ids=lambda scheme: scheme.name)
def test_what_a_payload_carries_is_what_the_page_says(scheme: Scheme) -> None:
    pair, bare = Pair(b"i" * 16, Secret(b"s" * 32)), some_context(scheme.name)
    context = carrying.carrying(bare, pair, {"E1_x": Raw(b'{ "a":1.0 }')})
    before = hashlib.sha384(transcript(scheme.name)).digest()
    stream = hkdf(b"s" * 32, pair.id, b"keyhaul/v1/scheme/carried-stream" + before, 48)
    text = b'{"E1_x":{ "a":1.0 }}'
    assert context.carried == xor(text, hashlib.shake_256(stream).digest(len(text)))
    said = msgspec.msgpack.encode([*msgspec.msgpack.decode(transcript(scheme.name)), context.carried])
    payload = scheme.originate([Secret(key) for key in KEYS], context, pair)
    assert payload.body[-16:] == tag(pair, said, payload.body[:-16])
    transfer = wrap(Wrapping(context, payload, 1.8e9), "https://a/ack", 32473)
    extension = json.loads(bytes(transfer.extension_mandatory["E32473_keyhaul"]))
    assert base64.b64decode(extension["carried"]) == context.carried


def test_an_acknowledgement_proves_itself_as_the_page_says() -> None:
    pair, context = Pair(b"i" * 16, Secret(b"s" * 32)), some_context("masked")
    proofs = confirming.confirmations(pair, context)
    digest = hashlib.sha384(transcript("masked")).digest()
    for key_id in context.key_ids:
        parts = b"".join(struct.pack(">Q", len(each)) + each for each in (pair.id, digest, key_id.bytes))
        said = b"keyhaul/v1/scheme/confirmation" + parts
        assert proofs[key_id] == hmac.digest(b"s" * 32, said, "sha256")[:16]
    (ack,) = confirming.acks(list(proofs.items()), AckStatus.RELAYED, ("a b", ("c", "d")), 32473)
    extension = json.loads(bytes(ack.extension["E32473_keyhaul"]))
    assert extension["v"] == 1
    assert base64.b64decode(extension["proofs"]) == b"".join(proofs.values())


def test_a_receipt_is_what_the_page_says() -> None:
    context, payload = some_context("masked"), Payload("masked", b"head", b"body")
    parts = [hashlib.sha256(transcript("masked")).digest(), b"head", b"body"]
    said = b"".join(struct.pack(">Q", len(part)) + part for part in parts)
    assert receipts.digest(context, payload) == hmac.digest(b"keyhaul/v1/receipt", said, "sha256")[:16]
    row = {"node": "n", "leg": "z", "upstream": "m", "peers": {"z": "o"}, "took": "aa", "passed": {"z": "bb"}}
    expected = [b"keyhaul/v1/receipt", "n", "z", "m", {"z": "o"}, "aa", {"z": "bb"}, 7.5]
    assert msgspec.msgpack.decode(receipts.statement({**row, "created": 7.5})) == expected
