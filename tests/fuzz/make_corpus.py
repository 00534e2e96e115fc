"""Writes the seeds of the fuzzing corpus: good and bad inputs a target, small, from nobody's keys.

Run it again after a wire format changed: `python tests/fuzz/make_corpus.py`. Files it does not write,
such as findings of earlier runs, stay.
"""

from __future__ import annotations

import base64
import hashlib
import json
import struct
import sys
from pathlib import Path

import msgspec

from keyhaul.audit import chain

HERE = Path(__file__).resolve().parent
ID = "00000000-0000-0000-0000-000000000001"
VALUE = base64.b64encode(bytes(32)).decode()
SAES = {"initiator_sae_id": "SAE_A", "target_sae_ids": ["SAE_B", "app%20one"]}
CALL = {"ack_callback_url": "https://kme.example/kmapi/v1/ext_keys/ack"}
STATUS = {
    "source_KME_ID": "a", "target_KME_ID": "b", "master_SAE_ID": "c", "slave_SAE_ID": "d", "key_size": 256,
    "stored_key_count": 1, "max_key_count": 2, "max_key_per_request": 3, "max_key_size": 4096,
    "min_key_size": 64, "max_SAE_ID_count": 0,
}  # fmt: skip
EXTENSION = {
    "v": 1, "scheme": "masked", "origin": "vigo", "destination": "bilbao",
    "route": ["vigo", "santiago", "bilbao"], "size": 256, "expires": 1_800_086_400, "deadline": 1.8e9,
    "trust": [["relays", "none"]], "head": "AAAA", "tail": "AAAAAAAAAAAAAAAAAAAAAA==",
}  # fmt: skip
REFUSED = {
    "reason": "Malformed", "status": 400, "cause": "no such thing", "caller": None, "method": "GET",
    "path": "/x", "story": ["r", "t", "s"],
}  # fmt: skip
NODE = """\
name = "vigo"
domain = "galicia"
extension_pen = 32473
[listeners.sae]
cert = "a.pem"
key = "a.key"
ca = "ca.pem"
[listeners.node]
host = "::1"
port = 8444
cert = "a.pem"
key = "a.key"
ca = "ca.pem"
tls = "pq"
[listeners.admin]
cert = "a.pem"
key = "a.key"
ca = "ca.pem"
[[store.slots]]
kind = "tpm"
pcrs = "sha256:0,7"
[[peers]]
name = "santiago"
url = "https://santiago.example:8444"
kind = "qkd"
mode = "otp"
[peers.device]
url = "https://qkd.example"
cert = "a.pem"
key = "a.key"
ca = "ca.pem"
own_sae = "vigo"
peer_sae = "santiago"
[[peers]]
name = "kme-b"
url = "https://kme.example"
kind = "plain"
dialect = "draft-0.4"
[network.nodes]
vigo = "galicia"
santiago = "galicia"
[[network.links]]
a = "vigo"
b = "santiago"
kind = "qkd"
mode = "otp"
[network.saes]
sae-vigo = "vigo"
[network.foreign]
SAE_B = { node = "vigo", peer = "kme-b" }
[network.costs]
qkd = 1.5
[limits]
key_size = 512
[delivery]
release = "immediate"
pool = 4
[entropy]
sources = [{ kind = "http", url = "https://qrng.example/{bytes}", json_path = "data.0" }]
"""

AGENT = """\
peer = "sae-bilbao"
role = "initiator"
interval = 60
max_age = 600
[sae]
url = "https://vigo.example"
cert = "a.pem"
key = "a.key"
ca = "ca.pem"
[channel]
url = "https://bilbao.example"
ca = "ca.pem"
[consumer]
KIND
"""
SLOT = {
    "kind": "credential", "grade": "external", "label": "",
    "data": {"salt": "A" * 22 + "==", "nonce": "A" * 16, "sealed": "A" * 64},
}  # fmt: skip
EMPTY = hashlib.sha256().hexdigest()
FILES = ("keyhaul.db", "root.slots", "node.toml")


def seeds() -> dict[str, dict[str, bytes]]:
    """Target to file name to content."""
    one = {"key_id": ID}
    transfer = {"keys": [{**one, "value": VALUE}], **SAES, **CALL}
    extended = {**transfer, "extension_optional": {"E32473_x": {"a": [1, 2.50, "ñ"]}}}
    ack = {"key_id_container": [one], "ack_status": "relayed", **SAES, "message": "done"}
    proofs = {"v": 1, "proofs": base64.b64encode(bytes(16)).decode()}
    proved = {**ack, "extension": {"E32473_keyhaul": proofs}}
    draft = {"key_ids": [one], "ack_status": "voided", "initiator_sae_id": "A", "target_sae_id": "B"}
    asked = {"number": 2, "size": 512, "additional_slave_SAE_IDs": ["x"], "extension_optional": [{"a": 1}]}
    insisted = {"extension_mandatory": [{"keyhaul_scheme": "masked", "keyhaul_labels": ["its-wire"]}]}
    header = [1, 1, "kem", "vigo", "bilbao", b"epoch", 1, bytes(16), b"k", b"c", "vigo", ["m"], ["p"]]
    pack = msgspec.msgpack.encode
    sealed = pack([pack(header), bytes(12), bytes(40)])
    announced = [["ml-kem-768", bytes(1184), 1.8e9, 1.8e9 + 60], ["unheard-of", b"key", 1.8e9, 1.8e9 + 60]]
    descriptor = ["vigo", "galicia", 7, 1.8e9, 1.8e9 + 60, announced, ["trusted"], ["relay-blind"]]
    named = {"key_ID": ID, "key_ID_extension": {}}
    trusted = {"keyhaul_trust": {"wire": "computational"}}
    timeout = {"type": "https://qkd.etsi.org/gs020-interop-kms/timeout", "title": "timeout"}
    trailer = bytes(16) + b"\x01" + (32).to_bytes(4, "big")
    batch = [pack([[bytes(16), bytes(1184)]]), b"vigo", b"signature"]
    receipt = [
        b"keyhaul/v1/receipt",
        "vigo",
        "vigo",
        None,
        {"bilbao": "santiago"},
        "",
        {"bilbao": "00"},
        1.8e9,
    ]
    seal = pack(["vigo", 2, 1.8e9 + 1, bytes(32), [bytes(32), hashlib.sha256(pack(receipt)).digest()]])
    return {
        "key_request": {"full": _json(asked), "mandatory": _json(insisted), "empty": b""},
        "key_ids": {
            "one": _json({"key_IDs": [{"key_ID": ID}]}),
            "trust": _json({"key_IDs": [named], "key_IDs_extension": {"keyhaul_trust": True}}),
        },
        "key_container": {
            "one": _json({"keys": [{"key_ID": ID, "key": VALUE, "key_extension": trusted}]}),
        },
        "status_and_refusal": {
            "status": _json(STATUS),
            "refusal": _json({"message": "m", "details": [{"a": 1}]}),
        },
        "path_and_query": {
            "enc": b"sae%2Fone?number=2&size=256",
            "dec": b"%C3%B1?key_ID=" + ID.encode(),
        },
        "skip_request": {
            "key": b"0" * 32 + b"?remoteSystemID=Alice&size=512",
            "bare": b"?remoteSystemID=Bob",
        },
        "ext_keys": {
            "one": _json(transfer),
            "extended": _json(extended),
            "traced": _json({**transfer, "extension_optional": {"E32473_traceparent": "00-"}}),
            "draft": _json({"ext_key_container": {**transfer, "extension_optional": [{"a": 1}]}}),
        },
        "acks": {
            "v111": _json([ack]),
            "proved": _json([proved]),
            "draft": _json(draft),
            "wrapped": _json({"ack_containers": [ack]}),
        },
        "void": {
            "ids": _json({"key_ids": [ID], **SAES, **CALL}),
            "all": _json({"key_ids": [], **SAES, **CALL, "all_confirmation": True}),
        },
        "problem_answer": {
            "etsi": _json({**timeout, "details": {"timeout": "late"}}),
            "draft": _json({"message": "no", "details": [{"a": "b"}]}),
            "text": b"Bad gateway",
        },
        "sealed_envelope": {"kem": sealed, "otp": sealed.replace(b"\xa3kem", b"\xa3otp")},
        "envelopes": {"two": b"\0\0\0\3one\0\0\0\0", "torn": b"\0\0\0\4one"},
        "verdicts": {
            "mixed": b"\0\2\0\xca\0\0\0\0" + b"\0\0\1\x90\0\0\0\2{}" + b"\0\1\0\xca\0\0\0\0",
            "twice": b"\0\2\0\xca\0\0\0\0" * 2,
        },
        "envelope_content": {"ack": pack(["ack", b"[]"])},
        "wrapping": {"masked": _json(EXTENSION), "carries": _json({**EXTENSION, "carried": "e30="})},
        "carried": {
            "two": _json(extended["extension_optional"] | {"E1_y": "z"}),
            "prefix": _json({"x": 1}),
            "none": b"{}",
        },
        "traceparent": {
            "example": _json("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
            "later": _json("01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more"),
        },
        "worker_frames": {
            "call": _frame(11, b"\x04\x00\x02\x00\x03POST/xa=b{}"),
            "refused": _frame(12, _json(REFUSED)),
            "several": _frame(8, b"") + _frame(10, b"sae-vigo") + _frame(13, b""),
            "long": b"\x80\0\0\0\x0b" + bytes(8),
        },
        "payload": {
            "short": bytes(80),
            "blind": bytes(32 + 16 + 32 + 2176) + trailer,
            "fresh": bytes(32 + 16 + 512 + 2176) + trailer + bytes(2),
            "fresh-noted": bytes(32 + 16 + 512 + 2176 + 3824) + trailer + b"\0\1",
        },
        "pair_statement": {
            name: pack([pack(["vigo", "bilbao", name, name.encode(), bytes(size), *times]), b"signature"])
            for name, size, times in (
                ("ml-kem-768", 1088, (1.8e9, 1.8e9 + 60, False)),
                ("ml-kem-1024", 1568, (1.8e9, 1.8e9 + 60, True)),
                ("ml-kem-768+x25519", 1168, (1.8e9, 1.8e9 + 60, True)),
            )
        },
        "dense_polynomial": {"zero": bytes(17), "ones": bytes([255] * 17), "small": bytes(range(34))},
        "records": {
            "one": pack([[pack(descriptor), b"vigo", b"signature"]]),
            "none": pack([]),
            "stamps": pack({"vigo": [7, bytes(16)], "nowhere": [1, b""]}),
        },
        "refill_request": {
            "want": pack([4, ["k1", "k2"]]),
            "reply": pack([batch, ["k1"]]),
            "epoch": pack([0, ["k1"], bytes(8)]),
        },
        "receipt_seal": {"one": pack([seal, b"vigo", b"signature"])},
        "agent_step": {
            "stage": _json({"key_ID": ID, "in_use": ID}),
            "settle": _json({"key_ID": ID, "in_use": None}),
        },
        "configuration": {"node": NODE.encode(), "empty": b""},
        "device_answer": {
            "one": _json({"keys": [{"key_ID": ID, "key": VALUE}]}),
            "capital": _json({"Keys": [{"key_ID": ID, "key": VALUE}, {"key_ID": "x", "key": "AA=="}]}),
            "status": _json(STATUS),
            "refusal": _json({"message": "not enough keys", "details": []}),
            "later": b"120",
        },
        "entropy_answer": {
            "hex": _json({"data": "00ff"}),
            "list": _json({"data": [0, 255]}),
            "parts": _json({"data": ["00ff", "AA=="]}),
            "deeper": _json({"result": {"random": {"data": ["AA=="]}}}),
        },
        "audit_log": {
            "log": _log(),
            "anchored": f"2:{'0' * 64}\n".encode() + _log(),
            "torn": _log()[:-9],
        },
        "root_slots": {
            "credential": _json({"version": 1, "slots": [SLOT], "check": "00" * 32}),
            "other": _json({"version": 1, "slots": [{**SLOT, "kind": "tpm2", "data": {}}], "check": ""}),
        },
        "agent_configuration": {
            kind: AGENT.replace("KIND", lines).encode()
            for kind, lines in {
                "exec": 'kind = "exec"\ncommand = ["/bin/true"]\nencoding = "hex"',
                "wireguard": f'kind = "wireguard"\ninterface = "wg0"\npublic_key = "{VALUE}"',
                "stunnel": 'kind = "stunnel"\nsecrets = "psk"\npid_file = "pid"',
                "strongswan": 'kind = "strongswan"\nname = "a"\n[consumer.connection.children.b]\nx = 1',
            }.items()
        },
        "backup_manifest": {
            "whole": _json({"version": 1, "made": 1.8e9, "sha256": dict.fromkeys(FILES, EMPTY)}),
        },
        "network_file": {"named": b'[network]\nfile = "network.toml"\n', "none": b"[network]\n"},
        "agent_refusal": {"no": _json({"cause": "not now", "next_step": "wait"}), "text": b"gone"},
        "doctor_answer": {
            "versions": b"HTTP/1.1 200 OK\r\nDate: Fri, 15 Jan 2027 08:00:00 GMT\r\n"
            b'Content-Length: 22\r\n\r\n{"versions": ["v1"]}\r\n',
            "other": b"HTTP/1.1 405 Method Not Allowed\r\n\r\n",
        },
    }


def _json(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode()


def _log() -> bytes:
    """An audit log of a few lines."""
    lines, head = b"", chain.Head()
    signed = {"node": "vigo", "signature": "AAAA"}
    for event, fields in (
        (chain.BEGIN, {}),
        ("delivery", {"to": "sae-vigo", "keys": [ID]}),
        ("lines_missing", {"number": 3}),
        (chain.CHECKPOINT, signed),
    ):
        line, head = chain.make(head, 1.8e9, event, fields)
        lines += line
    return lines


def _frame(kind: int, content: bytes) -> bytes:
    """What a worker sends about its seventh connection."""
    return struct.pack(">IBQ", len(content), kind, 7) + content


def main() -> int:
    """Write them all."""
    for target, files in seeds().items():
        folder = HERE / "corpus" / target
        folder.mkdir(parents=True, exist_ok=True)
        for file, content in files.items():
            (folder / file).write_bytes(content)
    return 0


if __name__ == "__main__":
    sys.exit(main())
