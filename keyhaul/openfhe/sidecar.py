"""The service's end of an OpenFHE worker: calls that answer, or raise and leave a fresh worker behind.

Calls block; a service makes them in a thread. One call is under way at a time. Keys are handed over once
a worker and named by their hash afterwards; a worker that took the place of a dead one gets them again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import struct
import subprocess
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from keyhaul.errors import Malformed, Unavailable, Unsupported
from keyhaul.openfhe.interpreters import VARIABLE, candidates

WORKER = Path(__file__).with_name("worker.py")
SECONDS = 20.0
MEMORY = 1 << 30
MOST_BYTES = 1 << 24  # of any part of an answer
_LENGTH = struct.Struct(">I")


class WorkerDied(Unavailable):
    """The worker ended during a call: killed by what it was given, by its limits, or from outside."""


@dataclass(frozen=True, slots=True)
class Timed:
    """What a call gave, and the worker's own times: seconds of each step in order, and of its processor."""

    value: bytes
    steps: tuple[tuple[str, float], ...]
    processor: float

    @property
    def seconds(self) -> float:
        """All steps together: without the pipe and without anything of this process."""
        return sum(seconds for _, seconds in self.steps)


class OpenFhe:
    """BFV in paper B's configuration, or another of the worker's parameter sets (`worker.SETS`).

    `seconds` and `memory` (bytes of address space) limit each call. Raises Unsupported, with what was tried,
    when no interpreter here loads OpenFHE. Any other call may raise WorkerDied.
    """

    def __init__(
        self,
        parameters: str = "paper",
        *,
        python: Path | None = None,
        seconds: float = SECONDS,
        memory: int = MEMORY,
    ) -> None:
        self.parameters = parameters
        self.starts = 0
        self._seconds = seconds
        self._memory = memory
        self._lock = threading.Lock()
        self._owner = os.getpid()
        self._child: subprocess.Popen[bytes] | None = None
        self._loaded: set[str] = set()
        self._python = python or self._find()
        self._start()

    @property
    def pid(self) -> int:
        """Of the worker that runs, or 0."""
        return self._child.pid if self._child is not None and self._child.poll() is None else 0

    def generate(self) -> tuple[bytes, bytes]:
        """`(public, secret)` in OpenFHE's binary form."""
        _, (public, secret) = self._call("generate")
        return public, secret

    def originate(self, public: bytes, key: bytes, pad: bytes = b"") -> Timed:
        """Key bytes encrypted, the first link key over them, packed for the wire."""
        return self._timed("originate", [key, pad], public=public)

    def relay(self, public: bytes, wire: bytes, pad_in: bytes = b"", pad_out: bytes = b"") -> Timed:
        """One link key off, the next one on. Raises Malformed for what OpenFHE refuses to read."""
        return self._timed("relay", [wire, pad_in, pad_out], public=public)

    def deliver(self, public: bytes, secret: bytes, wire: bytes, size: int, pad: bytes = b"") -> Timed:
        """The last link key off, and `size` bytes decrypted. Nothing authenticates them.

        Every ciphertext that can be read decrypts to something. Whoever sends ciphertexts of his own making
        and learns whether the key was of use learns the secret key. Raises Malformed as `relay` does.
        """
        return self._timed("deliver", [wire, pad], public=public, secret=secret, size=size)

    def places(self, secret: bytes, wire: bytes, count: int) -> list[int]:
        """What lies in the first `count` places of a ciphertext before the destination reduces modulo 2."""
        found = self._timed("places", [wire], secret=secret, size=count).value
        return [*struct.unpack(f">{count}q", found)]

    def add(self, wire: bytes, term: bytes, times: int = 1) -> bytes:
        """A ciphertext with another one added `times` times: what anybody can do who sees them."""
        return self._timed("add", [wire, term], times=times).value

    def walk(self, public: bytes, wire: bytes, pad: bytes, hops: int) -> tuple[bytes, bytes]:
        """The ciphertext and its new link key after `hops` relays with random link keys."""
        _, (further, last) = self._call("walk", [wire, pad], public=public, hops=hops)
        return further, last

    def forget(self, key: bytes) -> None:
        """Have a key, public or secret, dropped by the worker that holds it."""
        if (name := _name(key)) in self._loaded:
            self._call("forget", name=name)
            self._loaded.discard(name)

    def close(self) -> None:
        """End the worker. A call after that raises Unavailable."""
        with self._lock:
            self._reap()
            self._owner = 0

    def _timed(self, operation: str, parts: Sequence[bytes], **fields: Any) -> Timed:
        answer, (value,) = self._call(operation, parts, **fields)
        steps = tuple((name, nanoseconds / 1e9) for name, nanoseconds in answer["steps"])
        return Timed(value, steps, answer["processor"] / 1e9)

    def _call(
        self, operation: str, parts: Sequence[bytes] = (), **fields: Any
    ) -> tuple[dict[str, Any], list[bytes]]:
        # A fork shares the pipes, and OpenFHE's randomness would repeat in a forked worker.
        if os.getpid() != self._owner:
            raise Unavailable("this OpenFHE worker is closed, or another process's", "start one here")
        with self._lock:
            if self.pid == 0:
                self._reap()
                self._start()
            for kind in ("public", "secret"):
                if kind in fields:
                    fields[kind] = self._load(kind, fields[kind])
            return self._exchange({"op": operation, "set": self.parameters, **fields}, parts)

    def _load(self, kind: str, key: bytes) -> str:
        name = _name(key)
        if name not in self._loaded:
            self._exchange({"op": "load", "set": self.parameters, "kind": kind, "name": name}, [key])
            self._loaded.add(name)
        return name

    def _exchange(
        self, request: dict[str, Any], parts: Sequence[bytes]
    ) -> tuple[dict[str, Any], list[bytes]]:
        head = json.dumps({**request, "sizes": [len(part) for part in parts]}).encode()
        try:
            stream = self._running().stdin
            assert stream is not None
            stream.write(b"".join((_LENGTH.pack(len(head)), head, *parts)))
            stream.flush()
            answer = self._receive()
        except (OSError, EOFError, ValueError):
            raise WorkerDied(f"the OpenFHE worker {self._reap()}", "the next call starts another") from None
        if "error" in answer[0]:
            raise Malformed(f"OpenFHE refuses this: {answer[0]['error'][:200]}")
        return answer

    def _receive(self) -> tuple[dict[str, Any], list[bytes]]:
        """Raises EOFError or ValueError for no answer: hostile bytes may have made anything of a worker."""
        (length,) = _LENGTH.unpack(self._read(_LENGTH.size))
        answer: dict[str, Any] = json.loads(self._read(length))
        try:
            return answer, [self._read(size) for size in answer["sizes"]]
        except (LookupError, TypeError):
            raise ValueError("not an answer of the worker") from None

    def _read(self, length: int) -> bytes:
        if not 0 <= length <= MOST_BYTES:
            raise ValueError("not an answer of the worker")
        stream = self._running().stdout
        assert stream is not None
        data = stream.read(length)
        if len(data) != length:
            raise EOFError
        return data

    def _running(self) -> subprocess.Popen[bytes]:
        assert self._child is not None
        return self._child

    def _start(self) -> None:
        self._loaded.clear()
        self._child = _spawned(self._python, self._seconds, self._memory)
        self.starts += 1
        try:
            hello, _ = self._receive()
        except (EOFError, ValueError):
            hello = {"error": f"the worker {self._reap()} while it started"}
        if "error" in hello:
            self._reap()
            raise Unsupported(f"{self._python} does not load OpenFHE: {hello['error']}", _REMEDY)

    def _find(self) -> Path:
        tried = []
        for python in candidates():
            self._python = python
            try:
                self._start()
            except (Unsupported, OSError) as error:
                tried.append(f"{python} ({error})")
            else:
                self._reap()
                self.starts = 0
                return python
        raise Unsupported(f"no interpreter here loads OpenFHE; tried: {'; '.join(tried) or 'none'}", _REMEDY)

    def _reap(self) -> str:
        """End what is left of the worker; says how it ended."""
        child, self._child = self._child, None
        if child is None:
            return "does not run"
        for stream in (child.stdin, child.stdout):
            if stream is not None:
                _close(stream)
        try:
            code = child.wait(_GRACE)
        except subprocess.TimeoutExpired:
            child.kill()
            code = child.wait()
        if code == -signal.SIGALRM:
            return f"took longer than {self._seconds:g} s"
        return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"


_GRACE = 2.0  # seconds a worker has to notice that its pipes are closed
_REMEDY = f"`make install-openfhe` where there is a CPython 3.10, or name an interpreter in {VARIABLE}"


def _spawned(python: Path, seconds: float, memory: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [str(python), "-I", str(WORKER), str(seconds), str(memory)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={"OMP_NUM_THREADS": "1", "LANG": "C.UTF-8"},
        start_new_session=True,
    )


def _close(stream: Any) -> None:
    with contextlib.suppress(OSError):  # unsent bytes for a process that is gone
        stream.close()


def _name(key: bytes) -> str:
    return hashlib.sha256(key).hexdigest()
