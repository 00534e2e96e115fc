"""Keep-alive connections that write prepared requests: cheap, so that not they are the limit."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any, Self

from yarl import URL

from keyhaul.edge.tls import Credentials, Policy, client_context

Json = dict[str, Any]


class Wire(asyncio.Protocol):
    """One keep-alive connection with one request under way."""

    def __init__(self) -> None:
        self.open = False
        self._transport: Any = None
        self._received = bytearray()
        self._answer: asyncio.Future[tuple[int, bytes]] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self.open = True

    def data_received(self, data: bytes) -> None:
        self._received += data
        end = self._received.find(b"\r\n\r\n")
        if end < 0 or self._answer is None:
            return
        head = bytes(self._received[:end]).lower()
        length = int(head.partition(b"content-length:")[2].partition(b"\r\n")[0] or b"0")
        if len(self._received) >= end + 4 + length and not self._answer.done():
            body = bytes(self._received[end + 4 : end + 4 + length])
            self._received.clear()
            self._answer.set_result((int(head[9:12]), body))

    def connection_lost(self, problem: Exception | None) -> None:
        self.open = False
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(ConnectionError("the server hung up"))

    async def ask(self, request: bytes) -> tuple[int, bytes]:
        """Status and body."""
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return await self._answer

    def close(self) -> None:
        self._transport.close()


def line(host: str, asked: Json) -> bytes:
    """An HTTP request as bytes, from method, path and body."""
    body: bytes = asked.get("body", "").encode()
    kind = "Content-Type: application/json\r\n" if body else ""
    length = f"Content-Length: {len(body)}\r\n\r\n"
    head = f"{asked['method']} {asked['path']} HTTP/1.1\r\nHost: {host}\r\n{kind}{length}"
    return head.encode() + body


def tls(task: Json) -> Any:
    """The TLS context of an SAE, from the paths of its PEM files."""
    files = Credentials(Path(task["cert"]), Path(task["key"]), Path(task["ca"]))
    return client_context(files, Policy.COMPATIBLE)


class Caller:
    """One SAE with its connections to its node; `sae` holds `id`, `url` and the paths of its PEM files."""

    def __init__(self, sae: Json) -> None:
        self.id: str = sae["id"]
        url = URL(sae["url"])
        self._host, self._port = url.host or "", url.port or 443
        self._tls = tls(sae)
        self._idle: list[Wire] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        for wire in self._idle:
            wire.close()

    async def connect(self, number: int) -> None:
        """Open connections, so that no request pays for a handshake."""
        while len(self._idle) < number:
            self._idle.append(await self._wire())

    async def enc(
        self, slave: str, number: int, *, scheme: str | None = None, patience: float = 60.0
    ) -> tuple[int, bytes]:
        """Status and body of enc_keys; status 0 if there was no answer within `patience` seconds."""
        asked: Json = {"number": number, "size": 256}
        if scheme is not None:
            asked["extension_mandatory"] = [{"keyhaul_scheme": scheme}]
        body = json.dumps(asked)
        return await self._ask(f"/api/v1/keys/{slave}/enc_keys", body, patience)

    async def dec(self, master: str, key_ids: list[str], patience: float = 60.0) -> tuple[int, bytes]:
        """Status and body of dec_keys."""
        body = json.dumps({"key_IDs": [{"key_ID": each} for each in key_ids]})
        return await self._ask(f"/api/v1/keys/{master}/dec_keys", body, patience)

    async def _ask(self, path: str, body: str, patience: float) -> tuple[int, bytes]:
        request = line(f"{self._host}:{self._port}", {"method": "POST", "path": path, "body": body})
        while self._idle and not self._idle[-1].open:
            self._idle.pop()  # the node closed it while it was idle
        wire = self._idle.pop() if self._idle else await self._wire()
        try:
            async with asyncio.timeout(patience):
                answer = await wire.ask(request)
        except (TimeoutError, ConnectionError):
            wire.close()
            return 0, b""
        except BaseException:
            wire.close()
            raise
        self._idle.append(wire)
        return answer

    async def _wire(self) -> Wire:
        loop = asyncio.get_running_loop()
        _, wire = await loop.create_connection(
            Wire, self._host, self._port, ssl=self._tls, server_hostname=self._host
        )
        return wire
