"""The sealed envelope between two nodes: its header, its keys, and the two steps seal and open.

An envelope is msgpack `[header, nonce, ciphertext]`; the header, as bytes, is the associated data of
AES-256-GCM, so nothing in it can be changed. The plaintext is msgpack `[path, content]`: an observer
does not see whether a key, an acknowledgement or a void goes by (paper A §IV-C).

Each envelope has a key of its own, `HKDF-SHA-384(salt = SHA-384(header), ikm = len‖device key ‖
len‖ML-KEM secret)`: it holds if either input holds (the shape of ETSI TS 103 744 and SP 800-56C,
not a bare XOR). A one-time pad for the payload comes from other device bits (`otp`) or, where one
device key has to serve a batch, from the same derivation under another label (`expanded`, `kem`).

Devices whose two ends disagree give pads that fit nothing. The last 128 of the device bits of a pad are no
pad but what masks a Poly1305 tag over the others, which travels inside: whoever opens the envelope knows
before it takes a pad off, and the tag tells nobody anything about the bits, whatever he can compute.
"""

from __future__ import annotations

import enum
import hashlib
import hmac
from dataclasses import dataclass

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.poly1305 import Poly1305

from keyhaul.errors import Malformed, Tampered
from keyhaul.messages import labels

VERSION = 1
WITH_PAD_KEYS = 2  # the version of an envelope that names some: since then their bits are checked
NONCE_BYTES = 12
KEY_BYTES = 32
CHECK_BYTES = 16  # of the device bits of a pad: they mask the tag over the others, which is as long
MAX_DEVICE_KEYS = 65_536


class Suite(enum.IntEnum):
    """How the message key and the pad come about."""

    HKDF_SHA384 = 1
    PAPER_A = 2  # paper A §IV-A2: device key XOR KEM secret; for measuring beside ours only


class Mode(enum.StrEnum):
    """Where the pad's bits come from (design §2)."""

    OTP = "otp"
    EXPANDED = "expanded"
    KEM = "kem"


class Header(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What travels in the clear and is authenticated; field order is the wire format.

    `epoch` and `sequence` number the sender's messages on this link; `message_id` names this one.
    `owner` is the SAE that drew the device keys (paper A's `[SAE]`); `message_keys` and `pad_keys`
    are their ids, as the device spelled them.
    """

    version: int
    suite: int
    mode: Mode
    sender: str
    receiver: str
    epoch: bytes
    sequence: int
    message_id: bytes
    kem_id: bytes
    kem_ciphertext: bytes
    owner: str
    message_keys: tuple[str, ...]
    pad_keys: tuple[str, ...]


@dataclass(frozen=True, slots=True, repr=False)
class Material:
    """The secrets behind one envelope: bits of the message keys, bits of the pad keys, KEM secret."""

    message_bits: bytes
    pad_bits: bytes
    kem_secret: bytes


class _Wire(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    header: bytes
    nonce: bytes
    ciphertext: bytes


class _Plain(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    path: str
    content: bytes


@dataclass(frozen=True, slots=True)
class Sealed:
    """A parsed envelope that nobody has opened yet."""

    header: Header
    header_bytes: bytes
    nonce: bytes
    ciphertext: bytes


_encode = msgspec.msgpack.Encoder().encode
_header = msgspec.msgpack.Decoder(Header).decode
_wire = msgspec.msgpack.Decoder(_Wire).decode
_plain = msgspec.msgpack.Decoder(_Plain).decode


def seal(header: Header, material: Material, nonce: bytes, path: str, content: bytes) -> bytes:
    """The envelope's bytes. `nonce` is 12 random bytes; the key is used for this message only."""
    head = _encode(header)
    key = message_key(header, head, material)
    if header.pad_keys:
        content = _pad_tag(head, material) + content
    return _encode(_Wire(head, nonce, AESGCM(key).encrypt(nonce, _encode(_Plain(path, content)), head)))


def header_bytes(header: Header) -> bytes:
    """The exact bytes that `seal` authenticates and derives keys from."""
    return _encode(header)


def parse(body: bytes) -> Sealed:
    """Read the outside of an envelope. Raises Malformed; nothing is authenticated yet."""
    try:
        wire = _wire(body)
        header = _header(wire.header)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise Malformed(f"the body is not an envelope ({error})") from None
    spoken = WITH_PAD_KEYS if header.pad_keys else VERSION
    if header.version != spoken or header.suite not in list(Suite):
        raise Malformed(
            f"envelope version {header.version}, suite {header.suite} is not spoken here",
            "run the same protocol version at both ends",
        )
    fits = (
        len(wire.nonce) == NONCE_BYTES
        and len(header.message_id) == 16
        and len(header.epoch) <= 16
        and 0 <= header.sequence < 1 << 63
        and len(header.message_keys) + len(header.pad_keys) <= MAX_DEVICE_KEYS
    )
    if not fits:
        raise Malformed("the envelope header has a field out of range")
    return Sealed(header, wire.header, wire.nonce, wire.ciphertext)


def open_sealed(sealed: Sealed, material: Material) -> tuple[str, bytes]:
    """`(path, content)`. Raises Tampered if any bit of header, body or pad is not the sender's."""
    key = message_key(sealed.header, sealed.header_bytes, material)
    try:
        plain = AESGCM(key).decrypt(sealed.nonce, sealed.ciphertext, sealed.header_bytes)
    except InvalidTag:
        raise Tampered from None
    try:
        inner = _plain(plain)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        raise Malformed("the envelope holds no message") from None
    if not sealed.header.pad_keys:
        return inner.path, inner.content
    if not hmac.compare_digest(inner.content[:CHECK_BYTES], _pad_tag(sealed.header_bytes, material)):
        raise Tampered
    return inner.path, inner.content[CHECK_BYTES:]


def message_key(header: Header, head: bytes, material: Material) -> bytes:
    """The 32-byte AES key of one envelope; `head` is the header as bytes."""
    if header.suite == Suite.PAPER_A:
        return xor(material.message_bits or bytes(KEY_BYTES), material.kem_secret)
    return _derive(head, material.message_bits, material.kem_secret, labels.MESSAGE_KEY, KEY_BYTES)


def pad(header: Header, head: bytes, material: Material, length: int) -> bytes:
    """`length` bytes of one-time pad. Raises Malformed if `otp` announced too few device bits."""
    if header.suite == Suite.PAPER_A:
        return bytes(length)  # paper A pads nothing below its message key
    device = b"" if header.mode is Mode.OTP else material.message_bits
    key = _derive(head, device, material.kem_secret, labels.PAD_KEY, 48)
    stream = hashlib.shake_256(key).digest(length)
    if header.mode is not Mode.OTP:
        return stream
    if len(material.pad_bits) - CHECK_BYTES < length:
        raise Malformed("fewer pad bits were announced than the payload needs")
    return xor(material.pad_bits[:length], stream)


def _pad_tag(head: bytes, material: Material) -> bytes:
    """What both ends compute alike if their pad bits are the same: a polynomial in them, masked."""
    if len(material.pad_bits) < CHECK_BYTES:
        raise Malformed("fewer pad bits were announced than their check needs")
    point = _derive(head, b"", material.kem_secret, labels.PAD_CHECK, CHECK_BYTES)
    return Poly1305.generate_tag(point + material.pad_bits[-CHECK_BYTES:], material.pad_bits[:-CHECK_BYTES])


def xor(left: bytes, right: bytes) -> bytes:
    """Bitwise XOR of two byte strings of the same length."""
    if len(left) != len(right):
        raise Malformed("the two sides of an XOR differ in length")
    number = int.from_bytes(left, "little") ^ int.from_bytes(right, "little")
    return number.to_bytes(len(left), "little")


def _derive(head: bytes, device: bytes, kem: bytes, label: bytes, length: int) -> bytes:
    ikm = len(device).to_bytes(4, "big") + device + len(kem).to_bytes(4, "big") + kem
    salt = hashlib.sha384(head).digest()
    return HKDF(hashes.SHA384(), length, salt, label).derive(ikm)


def tag(key: bytes, label: bytes, *parts: bytes) -> bytes:
    """A 16-byte HMAC-SHA-256 tag over length-prefixed parts."""
    message = label + b"".join(len(part).to_bytes(8, "big") + part for part in parts)
    return hmac.digest(key, message, "sha256")[:16]
