"""Every decoder as a function of bytes that either takes them or refuses them as documented.

A target returns True for what it accepted and False for what it refused with one of keyhaul's own errors.
Anything else that happens (another exception, an accepted value that does not survive being written and
read again) is a finding. `fuzz.py` drives the targets with coverage, `test_corpus.py` without.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from uuid import UUID

import msgspec

from keyhaul import config, control, kem, receipts
from keyhaul.consumers import channel
from keyhaul.destination import _Own
from keyhaul.edge import frames
from keyhaul.errors import ConfigError, KeyhaulError, Malformed
from keyhaul.keys import Secret
from keyhaul.links import onetime, refill
from keyhaul.messages import bundle, carrying, envelope, etsi014, etsi020, problems, skip, tracecontext
from keyhaul.messages.confirming import proofs_of
from keyhaul.messages.envelope import Material
from keyhaul.messages.etsi020 import ExtKey, ExtKeys
from keyhaul.messages.payload import NO_PAIR, Context, Pair, Payload, Scheme, renewing
from keyhaul.messages.wrapping import MAX_CARRIED, Wrapping, name, unwrap, wrap
from keyhaul.pairing import Pairing
from keyhaul.policy import Limits
from keyhaul.schemes.bfv import DENSE
from keyhaul.schemes.blind import Blind
from keyhaul.schemes.masked import Masked
from keyhaul.schemes.trusted import Trusted
from keyhaul.stores.memory import MemoryLedger
from tests.fuzz import outside
from tests.neighbours import Identity

PEN = 32473
NOW = 1_800_000_000.0
IDS = (UUID(int=1), UUID(int=2))
CONTEXT = Context(
    scheme="masked",
    origin="vigo",
    destination="bilbao",
    initiator="sae-vigo",
    targets=("sae-bilbao",),
    key_ids=IDS,
    size=256,
    expires=1_800_086_400,
    route=("vigo", "santiago", "bilbao"),
    trust=(("relays", "none"), ("wire", "computational")),
)
PAIR = Pair(bytes(16), Secret(bytes(32)))
KEM_KEYS = {name: kem.PrivateKey(name, bytes(96 if "+" in name else 64)) for name in kem.KEMS}
"""One destination key of each kind, always the same."""
MATERIAL = Material(bytes(32), bytes(64), bytes(32))


def _fresh() -> list[Scheme]:
    """Scheme `blind-fresh`, which has a library to lose; none where that is missing."""
    if importlib.util.find_spec("seal") is None or importlib.util.find_spec("numpy") is None:
        return []
    from keyhaul.schemes.fresh import Fresh, Notes
    from keyhaul.schemes.seal import Seal

    bfv, key = Seal(), KEM_KEYS[kem.DEFAULT]
    public, secret = bfv.generate()
    notes = Notes(lambda _, said: kem.seal(key.public, said), key.unseal, kem.SEAL_OVERHEAD)
    return [Fresh(bfv, lambda _: public, lambda _: Secret(secret), notes)]


FRESH = _fresh()


class StoppedClock:
    """The same moment at every run, so that a finding replays."""

    def now(self) -> float:
        return NOW


@dataclass
class Believed:
    """Vouched for whoever it says it is, whatever it signed."""

    name: str
    domain: str | None = "galicia"

    def check(self, signature: bytes, message: bytes) -> None:
        """Any signature will do: what is behind the check is what is fuzzed."""


class Gullible:
    """Trust anchors that take the first bytes of a certificate for its name."""

    def verify(self, der: bytes, now: float) -> Believed:
        return Believed(der.decode("utf-8", "replace"))


def _same(left: Any, right: Any) -> None:
    assert left == right, "an accepted value reads differently once it was written"


# --- ETSI GS QKD 014


def key_request(data: bytes) -> None:
    """enc_keys body; what is read is held against the limits as the port does."""
    request = etsi014.decode_request(data)
    _same(etsi014.decode_request(etsi014.encode_request(request)), request)
    order = Limits().check("sae-vigo", "sae-bilbao", request)
    assert order.size % 8 == 0
    assert 1 <= order.number <= Limits().max_key_per_request


def key_ids(data: bytes) -> None:
    """dec_keys body."""
    asked = etsi014.decode_key_ids(data)
    _same(etsi014.decode_key_ids(etsi014.encode_key_ids(asked.ids, trust=asked.trust)), asked)


def key_container(data: bytes) -> None:
    """What a client reads from a node or a device."""
    keys = etsi014.decode_container(data)
    again = etsi014.decode_container(etsi014.encode_container(keys, trust=True))
    seen = [[(key.key_id, key.bits.reveal(), key.trust) for key in each] for each in (keys, again)]
    _same(*seen)


def status_and_refusal(data: bytes) -> None:
    """The two other answers a client reads."""
    refusal = etsi014.decode_refusal(data)
    _same(etsi014.decode_refusal(etsi014.encode_refusal(refusal)), refusal)
    status = etsi014.decode_status(data)
    _same(etsi014.decode_status(etsi014.encode_status(status)), status)


def path_and_query(data: bytes) -> None:
    """An SAE id as one path segment, and the short forms of both requests."""
    text = data.decode("utf-8", "surrogateescape")
    segment, _, rest = text.partition("?")
    query: dict[str, list[str]] = {}
    for pair in rest.split("&"):
        query.setdefault(pair.partition("=")[0], []).append(pair.partition("=")[2])
    for read in (etsi014.request_from_query, etsi014.key_ids_from_query):
        try:
            read(query)
        except Malformed:
            continue
    sae = etsi014.unquote_sae(segment)
    _same(etsi014.unquote_sae(etsi014.quote_sae(sae)), sae)


def skip_request(data: bytes) -> None:
    """What an encryptor asks over SKIP: a key id in a path, and the query behind it."""
    segment, _, rest = data.decode("utf-8", "surrogateescape").partition("?")
    query: dict[str, list[str]] = {}
    for pair in rest.split("&"):
        query.setdefault(pair.partition("=")[0], []).append(pair.partition("=")[2])
    assert skip.read_remote(query)
    assert skip.read_bits(query, "size", 256) > 0
    key_id = skip.read_key_id(segment)
    _same(skip.read_key_id(key_id.hex.upper()), key_id)


# --- ETSI GS QKD 020


def ext_keys(data: bytes) -> None:
    """A transfer, as peers of V1.1.1, of drafts and our own nodes may write it."""
    for options in ({}, {"liberal": True}, {"sealed": True}):
        _ext_keys(data, **options)


def _ext_keys(data: bytes, **options: bool) -> None:
    try:
        transfer = etsi020.decode_ext_keys(data, **options)
    except Malformed as error:
        _refusal_is_sayable(error)
        if not options:
            raise
        return
    sealed = options.get("sealed", False)
    written = etsi020.encode_ext_keys(transfer, sealed=sealed)
    _same(etsi020.decode_ext_keys(written, sealed=sealed), transfer)


def acks(data: bytes) -> None:
    """Acknowledgements in both dialects."""
    for options in ({"liberal": True}, {"sealed": True}, {}):
        try:
            read = etsi020.decode_acks(data, **options)
        except Malformed as error:
            _refusal_is_sayable(error)
            if not options:
                raise
            continue
        assert all(len(proofs_of(ack, PEN)) == len(ack.key_ids) for ack in read)
        sealed = options.get("sealed", False)
        written = etsi020.encode_acks(read, sealed=sealed)
        again = etsi020.decode_acks(written, sealed=sealed)
        _same(
            [(ack.key_ids, ack.status, ack.target_sae_ids) for ack in again],
            [(ack.key_ids, ack.status, ack.target_sae_ids) for ack in read],
        )


def void(data: bytes) -> None:
    """A void, confirmed in the body or in the way of the drafts."""
    for options in ({"liberal": True, "confirmed": True}, {"sealed": True}, {}):
        try:
            read = etsi020.decode_void(data, **options)
        except Malformed as error:
            _refusal_is_sayable(error)
            if not options:
                raise
            continue
        sealed = options.get("sealed", False)
        _same(etsi020.decode_void(etsi020.encode_void(read, sealed=sealed), sealed=sealed), read)


def _refusal_is_sayable(error: KeyhaulError) -> None:
    """What a peer is told must itself be a problem document."""
    status, body = problems.problem(error, "ext_keys")
    assert status == 400
    assert msgspec.json.decode(body)["details"]


def problem_answer(data: bytes) -> None:
    """What a peer answered, as a line for the log."""
    text = problems.parse_problem(data)
    assert len(text) <= 512
    assert text.isprintable()
    problems.problem_slug(data)


# --- between our own nodes


def sealed_envelope(data: bytes) -> None:
    """The outside of an envelope; its inside is behind AES-GCM and so only ours or refused."""
    sealed = envelope.parse(data)
    envelope.header_bytes(sealed.header)
    envelope.pad(sealed.header, sealed.header_bytes, MATERIAL, 32)
    envelope.open_sealed(sealed, MATERIAL)


def envelopes(data: bytes) -> None:
    """Several envelopes in one body."""
    _same(bundle.encode(bundle.decode(data)), data)


def verdicts(data: bytes) -> None:
    """What a neighbour says of them, in two pieces."""
    reader = bundle.Verdicts(3)
    for piece in (data[: len(data) // 2], data[len(data) // 2 :]):
        for each in reader.feed(piece):
            (again,) = bundle.Verdicts(3).feed(bundle.encode_verdict(*each))
            _same(again, each)
    if reader.open:
        raise Malformed("some were left out")


def envelope_content(data: bytes) -> None:
    """The inside of an envelope, sealed by a neighbour that lies."""
    head = envelope.Header(
        1, 1, envelope.Mode.KEM, "vigo", "bilbao", b"e", 1, bytes(16), b"", b"", "", (), ()
    )
    raw = envelope.header_bytes(head)
    key = envelope.message_key(head, raw, MATERIAL)
    cipher = envelope.AESGCM(key).encrypt(bytes(12), data, raw)
    path, content = envelope.open_sealed(envelope.Sealed(head, raw, bytes(12), cipher), MATERIAL)
    again = envelope.seal(head, MATERIAL, bytes(12), path, content)
    _same(envelope.open_sealed(envelope.parse(again), MATERIAL), (path, content))


def wrapping(data: bytes) -> None:
    """The mandatory extension that carries a scheme's payload."""
    keys = tuple(ExtKey(key_id, bytes(32)) for key_id in IDS)
    extension = {name(PEN): msgspec.Raw(data)}
    transfer = ExtKeys(keys, "sae-vigo", ("sae-bilbao",), "https://vigo.example/ack", extension)
    found = unwrap(transfer, PEN)
    assert found is not None
    again = unwrap(wrap(found, "https://vigo.example/ack", PEN), PEN)
    assert again is not None
    _same(_parts(again), _parts(found))


def carried(data: bytes) -> None:
    """The extensions that a payload carries, as their origin wrote them: it may be a node that lies."""
    if not 0 < len(data) <= MAX_CARRIED:
        raise Malformed("nothing, or more than a wrapping lets through")
    found = carrying.carried(replace(CONTEXT, carried=data), NO_PAIR)
    _same(carrying.carried(carrying.carrying(CONTEXT, NO_PAIR, found), NO_PAIR), found)


def traceparent(data: bytes) -> None:
    """The member of an optional extension that names a trace: one of version 00, or none."""
    found = tracecontext.read({tracecontext.extension_name(PEN): msgspec.Raw(data)}, PEN)
    if found is None:
        raise Malformed("no trace is named")
    again = tracecontext.read(tracecontext.written(found, PEN), PEN)
    _same(again, found)
    assert len(found.traceparent()) == 55


class _NodeEnd(frames.Channel):
    """The node's end of a worker's channel: what it understands must survive being written again."""

    def __init__(self) -> None:
        super().__init__(most=4096)
        self.ended_early = False

    def ended(self) -> None:
        pass

    def take(self, kind: int, number: int, content: bytes) -> None:
        if kind == frames.Kind.CALL:
            call = frames.unpack_call(content)
            _same(frames.unpack_call(frames.pack_call(*call)), call)
        elif kind == frames.Kind.REFUSED:
            told = frames.unpack_told(content)
            _same(frames.unpack_told(frames.pack_told(told)).story, told.story)

    def abort(self) -> None:
        self.ended_early = True


def worker_frames(data: bytes) -> None:
    """What a worker sends to its node, in one piece."""
    end = _NodeEnd()
    end.data_received(data)
    if end.ended_early:
        raise Malformed("a frame is too long")


def _parts(found: Wrapping) -> object:
    return found.context, found.payload.head, found.payload.body, found.deadline


def payload(data: bytes) -> None:
    """A payload with all pads off, in each scheme; only the origin's own is taken."""
    taken = 0
    for scheme in (Trusted(), Masked(), Blind(), *FRESH):
        forged = Payload(scheme.name, data[:16], data)
        try:
            if (by := renewing(scheme)) is not None:
                by.steady(forged)
                by.renew(forged, CONTEXT)
            scheme.transit(forged, None, bytes(scheme.pad_bytes(forged)))
            scheme.deliver(forged, CONTEXT, PAIR)
        except KeyhaulError:
            continue
        taken += 1
    if not taken:
        raise Malformed("no scheme takes it")


def pair_statement(data: bytes) -> None:
    """The head of a payload: an origin's signed encapsulation."""

    async def read() -> None:
        signer = Identity("bilbao")
        directory = control.Directory(Gullible(), {"vigo": "galicia"})
        announced = control.Descriptor("vigo", "galicia", 1, NOW, NOW + 60.0, ())
        directory.receive(control.Record(msgspec.msgpack.encode(announced), b"vigo", b""), NOW)
        pairing = Pairing(signer, "galicia", directory, MemoryLedger(), StoppedClock())
        pairing._keys._own |= {name.encode(): _Own(key, NOW) for name, key in KEM_KEYS.items()}
        await pairing._admit(b"", data, "vigo")

    asyncio.run(read())


def dense_polynomial(data: bytes) -> None:
    """BFV polynomials in dense form: the same bytes come out, and quarters lie where they should."""
    from keyhaul.schemes import dense

    eight = DENSE.width  # bytes of eight coefficients, the least that can be told apart
    if len(data) > eight:
        data = data[: len(data) // eight * eight]
    polynomial = dense.unpack(data, len(data) * 8 // DENSE.width // 8 * 8, DENSE)
    _same(dense.pack(polynomial, DENSE), data)
    if (parts := dense.quarters(polynomial, DENSE)) is not None:
        middle = dense.centres(*parts, DENSE).astype("i8") - polynomial.astype("i8")
        assert not middle.size or int(abs(middle).max()) <= DENSE.q // 8


def records(data: bytes) -> None:
    """Signed descriptors, with a signature check that believes everything: the rules behind it count."""
    read = control.decode_told(data)
    directory = control.Directory(Gullible(), {"vigo": "galicia", "bilbao": "euskadi"})
    if isinstance(read, dict):
        _same(control.decode_told(control.encode_stamps(read)), read)
        lacking = directory.lacking(read)
        assert set(lacking) <= {"vigo", "bilbao"}
        _same(control.decode_names(control.encode_names(lacking)), lacking)
        return
    _same(control.decode_told(control.encode_records(read)), read)
    for record in read:
        if (known := directory.receive(record, NOW)) is not None:
            assert directory.get(known.descriptor.node, NOW) is known


def refill_request(data: bytes) -> None:
    """What a neighbour asks of our supplies, and what it answers."""
    try:
        request = refill._request(data)
        _same(refill._request(msgspec.msgpack.encode(request)), request)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        reply = refill._reply(data)
        _same(refill._reply(msgspec.msgpack.encode(reply)), reply)
        if reply.batch is not None:
            onetime.check_batch(reply.batch, Gullible(), "vigo", "bilbao", NOW)


RECEIPT: dict[str, Any] = {
    "node": "vigo", "leg": "vigo", "upstream": None, "peers": {"bilbao": "santiago"},
    "took": "", "passed": {"bilbao": "00"}, "created": NOW,
}  # fmt: skip
"""What a row says, as far as a node signs it."""


def receipt_seal(data: bytes) -> None:
    """What a node's operator shows for a receipt; a seal that binds it says its number and the one before."""
    number, before = receipts.check(RECEIPT, data, Gullible(), NOW)
    assert isinstance(number, int)
    assert isinstance(before, bytes)


# --- between two agents


def agent_step(data: bytes) -> None:
    """Which key an initiator stages or settles."""
    told = channel.decode(data)
    _same(channel.decode(msgspec.json.encode(told)), told)


# --- configuration

_FOLDER = Path("/dev/shm") if os.access("/dev/shm", os.W_OK) else Path(tempfile.gettempdir())
_FILE = _FOLDER / f"keyhaul-fuzz-{os.getpid()}.toml"


def configuration(data: bytes) -> None:
    """A node's TOML file: frozen values, or mistakes that each name a line and a remedy."""
    if b"/dev" in data or b"/proc" in data:
        raise Malformed("no file of the machine is opened for a guess")
    _FILE.write_bytes(data)
    try:
        config.load(_FILE)
    except config.Mistakes as found:
        if not all(each.cause and each.remedy and each.line >= 0 for each in found.mistakes):
            raise AssertionError("a mistake lacks its line, cause or remedy") from found
        raise
    finally:
        _FILE.unlink(missing_ok=True)


TARGETS: dict[str, Callable[[bytes], None]] = {
    each.__name__: each
    for each in (
        key_request,
        key_ids,
        key_container,
        status_and_refusal,
        path_and_query,
        skip_request,
        ext_keys,
        acks,
        void,
        problem_answer,
        sealed_envelope,
        envelopes,
        verdicts,
        envelope_content,
        wrapping,
        carried,
        traceparent,
        worker_frames,
        payload,
        pair_statement,
        dense_polynomial,
        records,
        refill_request,
        receipt_seal,
        agent_step,
        configuration,
        *outside.TARGETS,
    )
}

if importlib.util.find_spec("numpy") is None:  # the extra `blind` is not installed
    del TARGETS["dense_polynomial"]

_OTHERS: dict[str, tuple[type[Exception], ...]] = {
    # These two are read by msgspec alone; their callers turn its errors into Malformed.
    "refill_request": (msgspec.MsgspecError, UnicodeDecodeError),
}


def run(target: str, data: bytes) -> bool:
    """Whether the bytes were accepted. Raises what no caller of the decoder is prepared for."""
    try:
        TARGETS[target](data)
    except (KeyhaulError, ConfigError, *_OTHERS.get(target, ())):
        return False
    return True
