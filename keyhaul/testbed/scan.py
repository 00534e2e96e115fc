"""Looks for key bits where none may be: memory, arguments, environments, files and recorded wires, raw, in
hex and in base64.

A scan is worth as much as it finds where keys are. So the tests let it find the keys of scheme `trusted` in
relays first, and then see that it finds none of `masked` and `blind`.

Memory is read from /proc/PID/mem, which nodes close to their own user (`keyhaul.hardening`): root with
CAP_SYS_PTRACE reads it all the same, and that is who a scan runs as.
"""

from __future__ import annotations

import base64
import contextlib
import re
import socket
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from keyhaul.errors import Unavailable

_CHUNK = 1 << 24  # bytes read at once
_PREFIX = 8  # bytes by which forms are told apart before they are compared
_REGION = re.compile(r"([0-9a-f]+)-([0-9a-f]+) (\S+) \S+ \S+ \S+\s*(.*)")
_ETH_P_ALL = 3
_BUFFER = 1 << 26  # bytes the kernel may hold for a recording
_SO_RCVBUFFORCE = 33  # socket(7)


@dataclass(frozen=True, slots=True)
class Hit:
    """Key number `key` of those looked for, in this form, at this place."""

    key: int
    form: str
    place: str


class Needles:
    """Every form in which the bits of some keys may lie somewhere. Keys have 16 bytes or more.

    All forms are looked for in one pass: pairs of bytes that begin none of them are sorted out by a table,
    and what is left by the next pair. A node's 100 MB take a second or two, however many keys.
    """

    def __init__(self, keys: Sequence[bytes]) -> None:
        self._forms: dict[bytes, list[tuple[int, str, bytes]]] = {}
        self._tables = np.zeros((2, 1 << 16), np.bool_)
        self.longest = 0
        for at, key in enumerate(keys):
            for form, text in _forms(key):
                self._forms.setdefault(text[:_PREFIX], []).append((at, form, text))
                self._tables[[0, 1], np.frombuffer(text[:4], "<u2")] = True
                self.longest = max(self.longest, len(text))

    def find(self, data: bytes, place: str) -> Iterator[Hit]:
        """What of them occurs in `data`."""
        for phase in (0, 1):
            pairs = np.frombuffer(
                data, "<u2", count=max(len(data) - phase, 0) // 2, offset=min(phase, len(data))
            )
            found = np.flatnonzero(self._tables[0][pairs[:-1]])
            for start in found[self._tables[1][pairs[found + 1]]].tolist():
                at = 2 * start + phase
                for key, form, text in self._forms.get(data[at : at + _PREFIX], ()):
                    if data.startswith(text, at):
                        yield Hit(key, form, place)


def _forms(key: bytes) -> Iterator[tuple[str, bytes]]:
    """Base64 in the three ways bytes fall into groups of three, without the ends that neighbours share."""
    yield "raw", key
    yield "hex", key.hex().encode()
    yield "HEX", key.hex().upper().encode()
    for before in range(3):
        text = base64.b64encode(bytes(before) + key)
        first = -(-before * 8 // 6)
        last = (before + len(key)) * 8 // 6
        yield f"base64+{before}", text[first:last]
        if (url := text[first:last].translate(_URL_SAFE)) != text[first:last]:
            yield f"base64url+{before}", url


_URL_SAFE = bytes.maketrans(b"+/", b"-_")


def memory(pid: int, needles: Needles) -> Iterator[Hit]:
    """Hits in everything a process can have written to. Raises Unavailable if its memory cannot be read."""
    try:
        regions = Path(f"/proc/{pid}/maps").read_text().splitlines()
        with open(f"/proc/{pid}/mem", "rb", buffering=0) as file:
            for line in regions:
                found = _REGION.fullmatch(line)
                if found is None or not found[3].startswith("rw") or found[4] in ("[vvar]", "[vsyscall]"):
                    continue
                start, end = int(found[1], 16), int(found[2], 16)
                for data in _pieces(file, start, end, needles.longest):
                    yield from needles.find(data, f"memory {found[4] or 'anonymous'}")
    except OSError as error:
        raise Unavailable(f"the memory of process {pid}: {error.strerror}", "scan as root") from None


def _pieces(file: object, start: int, end: int, overlap: int) -> Iterator[bytes]:
    """A region in pieces that overlap, so that nothing is cut in two; what is not mapped is left out."""
    at = start
    while at < end:
        try:
            file.seek(at)  # type: ignore[attr-defined]
            data = file.read(min(_CHUNK, end - at))  # type: ignore[attr-defined]
        except OSError:
            return  # a guard page, or unmapped meanwhile
        if not data:
            return
        yield data
        at += len(data) if at + len(data) >= end else max(len(data) - overlap, 1)


def files(folder: Path, needles: Needles) -> Iterator[Hit]:
    """Hits in every file below a folder, or in one file."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else [folder]
    for path in paths:
        with contextlib.suppress(FileNotFoundError):  # gone meanwhile
            yield from needles.find(path.read_bytes(), f"file {path.name}")


class Wire:
    """`with Wire(ports) as wire: ...` records the loopback device. Raises Unavailable without the right to.

    `ports` are those whose packets are kept, in either direction. `streams()` are the bytes of each TCP
    connection and direction, in order of arrival; `lost` tells whether the kernel had to drop packets.
    """

    def __init__(self, ports: Iterable[int]) -> None:
        self._ports = frozenset(ports)
        self._streams: dict[tuple[int, int], bytearray] = {}
        self.packets = 0
        self.lost = 0

    def __enter__(self) -> Self:
        try:
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL))
        except PermissionError as error:
            raise Unavailable(f"recording the wire: {error.strerror}", "scan as root") from None
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER)
        except PermissionError:  # then as much as net.core.rmem_max allows
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
        self._socket.bind(("lo", 0))
        self._socket.settimeout(0.1)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._record, name="wire", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping.set()
        self._thread.join()
        self.lost = int.from_bytes(self._socket.getsockopt(263, 6, 8)[4:], "little")  # PACKET_STATISTICS
        self._socket.close()

    def streams(self) -> list[bytes]:
        """One byte string a connection and direction."""
        return [bytes(each) for each in self._streams.values()]

    def _record(self) -> None:
        while True:
            try:
                packet, address = self._socket.recvfrom(1 << 17)
            except TimeoutError:
                if self._stopping.is_set():
                    return
                continue
            if address[2] == socket.PACKET_OUTGOING:
                self._take(packet)

    def _take(self, frame: bytes) -> None:
        """IPv4 and TCP below a loopback frame's 14 bytes."""
        if len(frame) < 54 or frame[12:14] != b"\x08\x00" or frame[23] != 6:
            return
        header = 14 + (frame[14] & 15) * 4
        source, target = (int.from_bytes(frame[header + at : header + at + 2], "big") for at in (0, 2))
        if not self._ports & {source, target}:
            return
        end = 14 + int.from_bytes(frame[16:18], "big") or len(frame)
        data = frame[header + (frame[header + 12] >> 4) * 4 : max(end, header)]
        self.packets += 1
        self._streams.setdefault((source, target), bytearray()).extend(data)


@dataclass(frozen=True, slots=True)
class Finding:
    """What of some keys one node has: which of them (their numbers), and the places."""

    node: str
    keys: frozenset[int]
    places: tuple[str, ...]


def testbed(state: Mapping[str, Any], directory: Path, keys: Sequence[bytes]) -> list[Finding]:
    """Memory, arguments, environment, store and log of every node of a running testbed.

    `state` is what testbed.json says.
    """
    needles = Needles(keys)
    findings = []
    for node in state["nodes"]:
        hits = [
            *memory(node["pid"], needles),
            *files(Path(f"/proc/{node['pid']}/cmdline"), needles),
            *files(Path(f"/proc/{node['pid']}/environ"), needles),
            *files(directory / "nodes" / node["name"], needles),
            *files(directory / "logs" / f"{node['name']}.log", needles),
        ]
        places = sorted({f"{hit.form} in {hit.place}" for hit in hits})
        findings.append(Finding(node["name"], frozenset(hit.key for hit in hits), tuple(places)))
    return findings
