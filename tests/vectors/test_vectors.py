"""Every vector file is read, and every format still writes and reads the very same bytes."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json

import msgspec
import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from keyhaul import control
from keyhaul.errors import Malformed, Tampered
from keyhaul.keys import Secret
from keyhaul.messages import carrying, confirming, envelope, etsi020
from keyhaul.messages.envelope import Header, Material
from keyhaul.messages.payload import Context, Pair, Payload, Scheme
from keyhaul.messages.wrapping import Wrapping, unwrap, wrap
from keyhaul.schemes.masked import Masked
from keyhaul.schemes.trusted import Trusted
from tests.descriptors import records_of
from tests.neighbours import Anchors, Identity
from tests.vectors import make
from tests.vectors.files import FOLDER, Vector, read_all

ERRORS = {"tampered": Tampered, "malformed": Malformed}
SCHEMES: dict[str, Scheme] = {"trusted": Trusted(), "masked": Masked()}


def vectors(kind: str) -> pytest.MarkDecorator:
    found = read_all(kind)
    return pytest.mark.parametrize("vector", found, ids=[vector.path for vector in found])


def test_the_files_are_those_that_the_script_writes() -> None:
    expected = {vector.path: vector.text() for vector in make.everything()}
    stored = {path.relative_to(FOLDER).as_posix(): path.read_text() for path in sorted(FOLDER.rglob("*.txt"))}
    changed = sorted(
        path for path in expected.keys() | stored.keys() if expected.get(path) != stored.get(path)
    )
    assert changed == [], "a wire format changed; see tests/vectors/make.py if that is meant"


# ---------------------------------------------------------------------- envelopes


@vectors("envelope")
def test_envelope(vector: Vector) -> None:
    material = Material(*(vector.bytes_of(name) for name in ("message-bits", "pad-bits", "kem-secret")))
    if vector.expect != "ok":
        with pytest.raises(ERRORS[vector.expect]):
            envelope.open_sealed(envelope.parse(vector.body), material)
        return
    header = read_header(vector)
    content = vector.bytes_of("content")
    sealed = envelope.seal(header, material, vector.bytes_of("nonce"), vector.fields["path"], content)
    assert sealed == vector.body
    parsed = envelope.parse(vector.body)
    assert parsed.header == header
    assert envelope.open_sealed(parsed, material) == (vector.fields["path"], content)
    assert envelope.pad(header, parsed.header_bytes, material, 48) == vector.bytes_of("pad")


def read_header(vector: Vector) -> Header:
    fields = json.loads(vector.fields["header"])
    for at in (5, 7, 8, 9):  # epoch, message id, KEM key id, KEM ciphertext
        fields[at] = bytes.fromhex(fields[at])
    return msgspec.convert(fields, Header)


@vectors("envelope")
def test_envelope_by_other_means(vector: Vector) -> None:
    """The same keys from RFC 5869 and the standard library alone, without a line of ours."""
    if vector.expect != "ok":
        return
    head, nonce, ciphertext = msgspec.msgpack.decode(vector.body)
    fields = msgspec.msgpack.decode(head)
    device, pad_bits, kem = (vector.bytes_of(name) for name in ("message-bits", "pad-bits", "kem-secret"))
    if fields[1] == 2:
        key = bytes(a ^ b for a, b in zip(device, kem, strict=True))
        stream = bytes(48)
    else:
        key = hkdf_sha384(device, kem, head, b"keyhaul/v1/envelope/message-key", 32)
        pad_device = b"" if fields[2] == "otp" else device
        seed = hkdf_sha384(pad_device, kem, head, b"keyhaul/v1/envelope/pad-key", 48)
        stream = hashlib.shake_256(seed).digest(48)
    if fields[2] == "otp":
        stream = bytes(a ^ b for a, b in zip(pad_bits[:48], stream, strict=True))
    plain = msgspec.msgpack.decode(AESGCM(key).decrypt(nonce, ciphertext, head))
    check = b""
    if pad_bits:
        point = hkdf_sha384(b"", kem, head, b"keyhaul/v1/envelope/pad-check", 16)
        check = poly1305(point + pad_bits[-16:], pad_bits[:-16])
    assert plain == [vector.fields["path"], check + vector.bytes_of("content")]
    assert stream == vector.bytes_of("pad")


def poly1305(key: bytes, message: bytes) -> bytes:
    """RFC 8439 §2.5."""
    r = int.from_bytes(key[:16], "little") & 0x0FFFFFFC0FFFFFFC0FFFFFFC0FFFFFFF
    total = 0
    for at in range(0, len(message), 16):
        total = (total + int.from_bytes(message[at : at + 16] + b"\x01", "little")) * r % ((1 << 130) - 5)
    return (total + int.from_bytes(key[16:], "little")).to_bytes(17, "little")[:16]


def hkdf_sha384(device: bytes, kem: bytes, head: bytes, info: bytes, length: int) -> bytes:
    ikm = len(device).to_bytes(4, "big") + device + len(kem).to_bytes(4, "big") + kem
    extracted = hmac.digest(hashlib.sha384(head).digest(), ikm, "sha384")
    return hmac.digest(extracted, info + b"\x01", "sha384")[:length]


# ---------------------------------------------------------------------- payloads


@vectors("payload")
def test_payload(vector: Vector) -> None:
    vouched = msgspec.json.decode(vector.fields["context"], type=Context)
    scheme = SCHEMES[vouched.scheme]
    pair = Pair(
        vector.bytes_of("pair-id"), Secret(vector.bytes_of("pair-secret")), vector.bytes_of("statement")
    )
    if vector.expect != "ok":
        with pytest.raises(ERRORS[vector.expect]):
            scheme.deliver(Payload(scheme.name, b"", vector.body), vouched, pair)
        return
    keys = [bytes.fromhex(key) for key in vector.fields["keys"].split()]
    sent = scheme.originate([Secret(key) for key in keys], vouched, pair)
    assert (sent.head, sent.body) == (vector.bytes_of("head"), vector.body)
    assert [key.reveal() for key in scheme.deliver(sent, vouched, pair)] == keys
    if optional := vector.fields.get("optional"):
        assert msgspec.json.encode(carrying.carried(vouched, pair)).decode() == optional


# ---------------------------------------------------------------------- the 020 extension


@vectors("wrapping")
def test_wrapping(vector: Vector) -> None:
    pen = int(vector.fields["pen"])
    if vector.expect != "ok":
        with pytest.raises(ERRORS[vector.expect]):
            unwrap(etsi020.decode_ext_keys(vector.body, sealed=True), pen)
        return
    vouched = msgspec.json.decode(vector.fields["context"], type=Context)
    payload = Payload(vouched.scheme, vector.bytes_of("head"), vector.bytes_of("payload"))
    wrapping = Wrapping(vouched, payload, float(vector.fields["deadline"]))
    transfer = wrap(wrapping, vector.fields["callback"], pen)
    assert etsi020.encode_ext_keys(transfer, sealed=True) == vector.body
    assert unwrap(etsi020.decode_ext_keys(vector.body, sealed=True), pen) == wrapping


# ---------------------------------------------------------------------- confirmations


@vectors("confirmation")
def test_confirmation(vector: Vector) -> None:
    vouched = msgspec.json.decode(vector.fields["context"], type=Context)
    pair, pen = Pair(vector.bytes_of("pair-id"), Secret(vector.bytes_of("pair-secret"))), vector.fields["pen"]
    expected = confirming.confirmations(pair, vouched)
    acks = etsi020.decode_acks(vector.body, sealed=True)
    proofs = {
        key_id: proof
        for ack in acks
        for key_id, proof in zip(ack.key_ids, confirming.proofs_of(ack, int(pen)), strict=True)
    }
    assert proofs.keys() == expected.keys()
    if vector.expect == "ok":
        assert proofs == expected
    else:
        assert not any(proofs[key_id] == expected[key_id] for key_id in expected)


# ---------------------------------------------------------------------- descriptors and statements


@vectors("descriptor")
def test_descriptor(vector: Vector) -> None:
    directory = control.Directory(Anchors(), {"vigo": "lab", "derio": "lab"})
    if vector.expect != "ok":
        with pytest.raises(ERRORS[vector.expect]):
            directory.receive(records_of(vector.body)[0], make.NOW)
        assert directory.nodes() == []
        return
    fields, now = vector.fields, make.NOW
    kem_over, bfv_over = float(fields["expires"]), float(fields["bfv-expires"])
    said = control.Descriptor(
        fields["node"],
        fields["domain"],
        int(fields["sequence"]),
        float(fields["issued"]),
        float(fields["expires"]),
        (
            control.PublicKey("ml-kem-768", vector.bytes_of("kem-public"), now, kem_over),
            control.PublicKey("bfv-dense", vector.bytes_of("bfv-public"), now, bfv_over),
        ),
        tuple(fields["schemes"].split()),
        tuple(fields["labels"].split()),
    )
    assert control.encode_records([control.publish(said, Identity("vigo"))]) == vector.body
    known = directory.receive(records_of(vector.body)[0], make.NOW)
    assert known is not None
    assert known.descriptor == said


@vectors("statement")
def test_statement(vector: Vector) -> None:
    async def run() -> bytes:
        pairing = await make.destination(vector.bytes_of("kem-id"), vector.bytes_of("kem-seed"))
        return (await pairing.incoming(vector.body, "vigo")).secret.reveal()

    if vector.expect != "ok":
        with pytest.raises(ERRORS[vector.expect]):
            asyncio.run(run())
        return
    assert asyncio.run(run()) == vector.bytes_of("pair-secret")
