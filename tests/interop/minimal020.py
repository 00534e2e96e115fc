"""A second ETSI GS QKD 020 V1.1.1 KME, small and on its own: standard library only, nothing of keyhaul.

It exists so that our reading of the standard is checked against code that does not share it. Asynchronous
mode only. Requests are answered 202 before any work is done; outcomes are posted to the caller's callback by
a worker thread. One neighbour, identified by the URI or DNS name in its certificate.
"""

from __future__ import annotations

import base64
import binascii
import http.client
import json
import queue
import re
import ssl
import threading
import uuid
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

PROBLEMS = "https://qkd.etsi.org/gs020-interop-kms/"
SAE_ID = re.compile(r"(?:[A-Za-z0-9._~:/?#\[\]@!$&'()*+,;=-]|%[0-9A-Fa-f]{2}){1,64}")
STATUSES = {"relayed", "failed", "voided", "failed to void", "key not present"}


class Refusal(Exception):
    """A request that is answered with a problem."""

    def __init__(self, status: int, kind: str, detail: str, text: str) -> None:
        super().__init__(text)
        self.status = status
        self.document = {
            "type": PROBLEMS + kind,
            "status": status,
            "title": kind.replace("-", " "),
            "details": {detail: text},
        }


@dataclass
class Held:
    """A key this KME holds for its SAEs, or what is left of one."""

    value: bytes | None
    initiator: str
    targets: list[str]
    state: str = "accepted"


@dataclass
class Seen:
    """One incoming call, as it was."""

    path: str
    body: bytes
    status: int


@dataclass
class MinimalKme:
    """A KME for the SAEs `saes`, whose only neighbour has the certificate name `neighbour`.

    `start` makes it listen on a free port of 127.0.0.1; `url` is where. Outgoing calls block.
    """

    cert: str
    key: str
    ca: str
    neighbour: str
    saes: set[str]
    keys: dict[str, Held] = field(default_factory=dict)
    outcomes: dict[str, str] = field(default_factory=dict)
    seen: list[Seen] = field(default_factory=list)
    answers: list[tuple[int, bytes]] = field(default_factory=list)
    allowed_origin: str = ""
    hold: threading.Event = field(default_factory=threading.Event)

    def start(self) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(self.ca)
        context.load_cert_chain(self.cert, self.key)
        self._client = ssl.create_default_context(ssl.Purpose.SERVER_AUTH, cafile=self.ca)
        self._client.minimum_version = ssl.TLSVersion.TLSv1_3
        self._client.load_cert_chain(self.cert, self.key)
        self._lock = threading.Lock()
        self._work: queue.Queue[tuple[str, list[dict[str, Any]]] | None] = queue.Queue()
        self.hold.set()
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.kme = self
        self._server.context = context
        self.url = f"https://127.0.0.1:{self._server.server_port}"
        self._threads = [
            threading.Thread(target=self._server.serve_forever, args=(0.02,)),
            threading.Thread(target=self._acknowledge),
        ]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self.hold.set()
        self._work.put(None)
        self._server.shutdown()
        for thread in self._threads:
            thread.join()
        self._server.server_close()

    # --- calling the neighbour

    def call(self, method: str, url: str, body: bytes | None = None) -> tuple[int, bytes]:
        """One exchange on a connection of its own."""
        parts = urlsplit(url)
        connection = http.client.HTTPSConnection(
            parts.hostname or "", parts.port, context=self._client, timeout=60
        )
        try:
            connection.request(method, parts.path, body, {"Content-Type": "application/json; charset=UTF-8"})
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def send_keys(
        self, base: str, initiator: str, targets: list[str], keys: dict[str, bytes], **more: Any
    ) -> tuple[int, bytes]:
        container = {
            "keys": [
                {"key_id": key_id, "value": base64.b64encode(value).decode()}
                for key_id, value in keys.items()
            ],
            "initiator_sae_id": initiator,
            "target_sae_ids": targets,
            "ack_callback_url": self.url + "/kmapi/v1/ext_keys/ack",
            **more,
        }
        return self.call("POST", base + "/kmapi/v1/ext_keys", json.dumps(container).encode())

    def send_void(
        self, base: str, initiator: str, targets: list[str], key_ids: list[str], **more: Any
    ) -> tuple[int, bytes]:
        container = {
            "key_ids": key_ids,
            "initiator_sae_id": initiator,
            "target_sae_ids": targets,
            "ack_callback_url": self.url + "/kmapi/v1/ext_keys/ack",
            **more,
        }
        return self.call("POST", base + "/kmapi/v1/ext_keys/void", json.dumps(container).encode())

    def _acknowledge(self) -> None:
        while (job := self._work.get()) is not None:
            self.hold.wait(10)
            url, containers = job
            try:
                self.answers.append(self.call("POST", url, json.dumps(containers).encode()))
            except OSError:  # the node has been stopped meanwhile: nobody is left to be told
                continue

    # --- serving it

    def receive(self, method: str, path: str, body: bytes) -> tuple[int, bytes | None]:
        if method == "GET" and path == "/kmapi/versions":
            return 200, json.dumps({"versions": ["v1"]}).encode()
        operations = {
            "/kmapi/v1/ext_keys": self._ext_keys,
            "/kmapi/v1/ext_keys/ack": self._ack,
            "/kmapi/v1/ext_keys/void": self._void,
        }
        if method != "POST" or path not in operations:
            return 404, None
        with self._lock:
            return operations[path](body), None

    def _ext_keys(self, body: bytes) -> int:
        container = _object(body, "invalid-parameter", "invalid_parameter")
        initiator, targets, url = self._common(container, "invalid-parameter", "invalid_parameter")
        if container.get("extension_mandatory"):
            names = ", ".join(container["extension_mandatory"])
            raise Refusal(503, "unsupported-mandatory-extension", "unsupported_mandatory_extension", names)
        for target in targets:
            if target not in self.saes:
                raise Refusal(400, "key-routing-error", "target_sae_id_not_recognized", target)
        fresh: dict[str, Held] = {}
        for item in container.get("keys") or _missing("keys"):
            key_id = _uuid(item.get("key_id"), "invalid-parameter", "invalid_parameter")
            try:
                value = base64.b64decode(item["value"], validate=True)
            except (KeyError, binascii.Error, ValueError) as error:
                raise Refusal(400, "invalid-parameter", "invalid_parameter", "value") from error
            fresh[key_id] = Held(value, initiator, targets)
        status = "relayed"
        for key_id, held in fresh.items():
            known = self.keys.setdefault(key_id, held)
            if (known.value, known.initiator, known.targets) != (held.value, initiator, targets):
                status = "failed"
        self._later(url, list(fresh), status, initiator, targets)
        return 202

    def _void(self, body: bytes) -> int:
        blame = ("void-request-not-understood", "key_voiding_error")
        container = _object(body, *blame)
        initiator, targets, url = self._common(container, *blame)
        if not isinstance(container.get("key_ids"), list):
            raise Refusal(400, *blame, "key_ids")
        key_ids = [_uuid(item, *blame) for item in container["key_ids"]]
        if not key_ids:
            if container.get("all_confirmation") is not True:
                raise Refusal(400, "no-key-ids-or-confirmation", "no_all_confirmation", "all_confirmation")
            key_ids = [
                i for i, held in self.keys.items() if (held.initiator, held.targets) == (initiator, targets)
            ]
        for key_id in key_ids:
            held = self.keys.get(key_id)
            if held is None:
                self.keys[key_id] = Held(None, initiator, targets, "voided")
                status = "key not present"
            elif held.state == "taken":
                status = "failed to void"
            else:
                held.value, held.state = None, "voided"
                status = "voided"
            self._later(url, [key_id], status, initiator, targets)
        return 202

    def _ack(self, body: bytes) -> int:
        blame = ("ack-not-understood", "ack_not_understood")
        try:
            containers = json.loads(body)
        except ValueError as error:
            raise Refusal(400, *blame, "no JSON") from error
        if not isinstance(containers, list):
            raise Refusal(400, *blame, "not an array")
        for container in containers:
            _saes(container, *blame)
            if container.get("ack_status") not in STATUSES:
                raise Refusal(400, *blame, "ack_status")
            for item in container["key_id_container"]:
                self.outcomes[_uuid(item["key_id"], *blame)] = container["ack_status"]
        return 200

    def take(self, key_id: str, sae: str) -> bytes:
        """What dec_keys would give to an SAE."""
        with self._lock:
            held = self.keys[key_id]
            assert sae in held.targets
            assert held.value is not None
            value, held.value, held.state = held.value, None, "taken"
            return value

    def _common(self, container: dict[str, Any], kind: str, detail: str) -> tuple[str, list[str], str]:
        initiator, targets = _saes(container, kind, detail)
        url = container.get("ack_callback_url")
        if url is None:
            _missing("ack_callback_url")
        if not isinstance(url, str) or not url.startswith(self.allowed_origin + "/"):
            raise Refusal(400, kind, detail, "ack_callback_url")
        return initiator, targets, url

    def _later(self, url: str, key_ids: list[str], status: str, initiator: str, targets: list[str]) -> None:
        container = {
            "key_id_container": [{"key_id": key_id} for key_id in key_ids],
            "ack_status": status,
            "initiator_sae_id": initiator,
            "target_sae_ids": targets,
        }
        self._work.put((url, [container]))


def _missing(name: str) -> Any:
    raise Refusal(400, "missing-parameters", "missing_parameters", f"{name} is required")


def _object(body: bytes, kind: str, detail: str) -> dict[str, Any]:
    try:
        container = json.loads(body)
    except ValueError as error:
        raise Refusal(400, kind, detail, "no JSON") from error
    if not isinstance(container, dict):
        raise Refusal(400, kind, detail, "no object")
    return container


def _saes(container: dict[str, Any], kind: str, detail: str) -> tuple[str, list[str]]:
    initiator = container.get("initiator_sae_id") or _missing("initiator_sae_id")
    targets = container.get("target_sae_ids") or _missing("target_sae_ids")
    if not isinstance(targets, list) or not all(
        isinstance(name, str) and SAE_ID.fullmatch(name) for name in [initiator, *targets]
    ):
        raise Refusal(400, kind, detail, "SAE id")
    return initiator, targets


def _uuid(text: Any, kind: str, detail: str) -> str:
    try:
        return str(uuid.UUID(text))
    except (ValueError, TypeError, AttributeError) as error:
        raise Refusal(400, kind, detail, "key_id") from error


class _Server(ThreadingHTTPServer):
    daemon_threads = False
    kme: MinimalKme
    context: ssl.SSLContext

    def finish_request(self, request: Any, client_address: Any) -> None:
        """The handshake runs in the connection's own thread."""
        request.settimeout(60)
        try:
            with self.context.wrap_socket(request, server_side=True) as wrapped:
                super().finish_request(wrapped, client_address)
        except (ssl.SSLError, ConnectionError, TimeoutError):
            return


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def _serve(self) -> None:
        kme = self.server.kme
        body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        answer: bytes | None
        try:
            self._authenticate(kme.neighbour)
            status, answer = kme.receive(self.command, self.path, body)
        except Refusal as refusal:
            status, answer = refusal.status, json.dumps(refusal.document).encode()
        kme.seen.append(Seen(self.path, body, status))
        self.send_response(status)
        self.send_header("Content-Length", str(len(answer or b"")))
        self.send_header("Content-Type", "application/json; charset=UTF-8")
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(answer or b"")

    do_GET = do_POST = _serve

    def _authenticate(self, neighbour: str) -> None:
        names = self.connection.getpeercert().get("subjectAltName", ())
        if neighbour not in [value for kind, value in names if kind in ("URI", "DNS")]:
            raise Refusal(401, "unauthorized", "unauthorized", "not a known KME")

    def log_message(self, *_: Any) -> None:
        """Quiet."""
