"""The worker: reads requests on stdin, answers on stdout, and needs nothing but CPython and `openfhe`.

    python -I worker.py SECONDS MEMORY_BYTES

A frame is a length (4 bytes, big endian), that many bytes of JSON, and then the parts whose lengths the
JSON lists under `sizes`. Requests name an operation `op` and a parameter set `set`; the functions below
that are listed in OPERATIONS say what else. Answers hold `steps`, pairs of a step's name and its duration
in nanoseconds, or `error`. What OpenFHE does not survive ends the process; so does a request that takes
longer than SECONDS (SIGALRM) or needs more than MEMORY_BYTES.
"""

from __future__ import annotations

import base64
import ctypes
import gzip
import importlib
import json
import os
import platform
import resource
import signal
import struct
import sys
import time
import zlib
from typing import Any, BinaryIO

MOST_BYTES = 1 << 24  # of a ciphertext unpacked; the published one has 263,011
_LENGTH = struct.Struct(">I")
_PR_SET_DUMPABLE = 4  # prctl(2)

SETS: dict[str, dict[str, Any]] = {
    # What paper B says, and otherwise OpenFHE's defaults: n = 8,192, q of two primes of 60 bits.
    "paper": {"t": 65537, "depth": 1},
    # The same on a ring of 1,024 with one prime. Far from secure: for experiments that are slow otherwise.
    "small": {"t": 65537, "depth": 0, "n": 1024, "prime_bits": 60, "level": "HEStd_NotSet"},
    # Plaintext modulus 2, q of 25 bits: a sum of bits is their XOR, and that is all anybody sees of it.
    "binary": {"t": 2, "depth": 0, "n": 1024, "prime_bits": 25, "level": "HEStd_128_quantum"},
}

Parts = list[bytes]


class Refusal(Exception):
    """The request cannot be met; its text goes back."""


class Watch:
    """Names and durations of what a request consists of."""

    def __init__(self) -> None:
        self.steps: list[tuple[str, int]] = []
        self._at = time.perf_counter_ns()

    def done(self, step: str) -> None:
        now = time.perf_counter_ns()
        self.steps.append((step, now - self._at))
        self._at = time.perf_counter_ns()


class Ring:
    """A parameter set with its keys, and the steps that the operations are made of."""

    def __init__(self, fhe: Any, name: str) -> None:
        self._fhe = fhe
        made = SETS[name]
        self.context = _context(fhe, made)
        self.packed = made["t"] != 2  # with t = 2 there are no slots: a bit is a coefficient
        self.capacity = self.context.GetRingDimension()
        self.public: dict[str, Any] = {}
        self.secret: dict[str, Any] = {}

    def encrypt(self, key: Any, bits: bytes, watch: Watch, what: str) -> Any:
        values = [byte >> at & 1 for byte in bits for at in range(8)]
        if len(values) > self.capacity:
            raise Refusal("more bits than a ciphertext has places")
        encode = self.context.MakePackedPlaintext if self.packed else self.context.MakeCoefPackedPlaintext
        plain = encode(values)
        watch.done(f"encode {what}")
        ciphertext = self.context.Encrypt(key, plain)
        watch.done(f"encrypt {what}")
        return ciphertext

    def over(self, ciphertext: Any, key: Any, pad: bytes, watch: Watch, what: str) -> Any:
        """The published XOR: encrypt the link key and add it."""
        if not pad:
            return ciphertext
        total = self.context.EvalAdd(ciphertext, self.encrypt(key, pad, watch, what))
        watch.done(f"add {what}")
        return total

    def values(self, secret: Any, ciphertext: Any, count: int, watch: Watch) -> list[int]:
        """What lies in the first `count` places, before it is reduced modulo 2."""
        plain = self.context.Decrypt(secret, ciphertext)
        watch.done("decrypt")
        plain.SetLength(count)
        values = plain.GetPackedValue() if self.packed else plain.GetCoefPackedValue()
        return [int(value) for value in values[:count]]

    def pack(self, ciphertext: Any, watch: Watch) -> bytes:
        """As published: binary, gzip at its highest level, base64."""
        raw = self._fhe.Serialize(ciphertext, self._fhe.BINARY)
        watch.done("serialise")
        small = gzip.compress(raw, 9)
        watch.done("gzip")
        text = base64.b64encode(small)
        watch.done("base64")
        return text

    def unpack(self, text: bytes, watch: Watch) -> Any:
        small = base64.b64decode(text, validate=True)
        watch.done("un-base64")
        raw = zlib.decompressobj(wbits=31).decompress(small, MOST_BYTES)
        watch.done("gunzip")
        ciphertext = self._fhe.DeserializeCiphertextString(raw, self._fhe.BINARY)
        watch.done("deserialise")
        return ciphertext

    def held(self, request: dict[str, Any], kind: str) -> Any:
        keys = self.public if kind == "public" else self.secret
        try:
            return keys[request[kind]]
        except KeyError:
            raise Refusal(f"the {kind} key is not loaded") from None


def _context(fhe: Any, made: dict[str, Any]) -> Any:
    parameters = fhe.CCParamsBFVRNS()
    parameters.SetPlaintextModulus(made["t"])
    parameters.SetMultiplicativeDepth(made["depth"])
    if "n" in made:
        parameters.SetKeySwitchTechnique(fhe.BV)
        parameters.SetScalingModSize(made["prime_bits"])
        parameters.SetRingDim(made["n"])
        parameters.SetSecurityLevel(getattr(fhe, made["level"]))
    context = fhe.GenCryptoContext(parameters)
    context.Enable(fhe.PKESchemeFeature.PKE)
    context.Enable(fhe.PKESchemeFeature.LEVELEDSHE)
    return context


# ---------------------------------------------------------------------- operations


def generate(fhe: Any, ring: Ring, request: dict[str, Any], parts: Parts, watch: Watch) -> Parts:
    """A key pair: `[public, secret]` in OpenFHE's binary form."""
    pair = ring.context.KeyGen()
    watch.done("generate")
    return [fhe.Serialize(key, fhe.BINARY) for key in (pair.publicKey, pair.secretKey)]


def load(fhe: Any, ring: Ring, request: dict[str, Any], parts: Parts, watch: Watch) -> Parts:
    """Keep the key in part 0 under `name`; `kind` is `public` or `secret`."""
    if request["kind"] == "public":
        ring.public[request["name"]] = fhe.DeserializePublicKeyString(parts[0], fhe.BINARY)
    else:
        ring.secret[request["name"]] = fhe.DeserializePrivateKeyString(parts[0], fhe.BINARY)
    return []


def forget(fhe: Any, ring: Ring, request: dict[str, Any], parts: Parts, watch: Watch) -> Parts:
    """Drop the keys under `name`."""
    ring.public.pop(request["name"], None)
    ring.secret.pop(request["name"], None)
    return []


def originate(fhe: Any, ring: Ring, request: dict[str, Any], parts: Parts, watch: Watch) -> Parts:
    """Initial XOR (paper B, equation 1): key bits, then the first link key or nothing."""
    public = ring.held(request, "public")
    ciphertext = ring.encrypt(public, parts[0], watch, "key")
    return [ring.pack(ring.over(ciphertext, public, parts[1], watch, "link key out"), watch)]


def relay(fhe: Any, ring: Ring, request: dict[str, Any], parts: Parts, watch: Watch) -> Parts:
    """Undo and redo (equation 2): ciphertext, link key it came under, link key it leaves under."""
    public = ring.held(request, "public")
    ciphertext = ring.unpack(parts[0], watch)
    ciphertext = ring.over(ciphertext, public, parts[1], watch, "link key in")
    return [ring.pack(ring.over(ciphertext, public, parts[2], watch, "link key out"), watch)]


def deliver(fhe: Any, ring: Ring, request: dict[str, Any], parts: Parts, watch: Watch) -> Parts:
    """Final undo and decryption (equations 4 and 5) of `size` bytes: ciphertext, last link key or nothing."""
    ciphertext = ring.unpack(parts[0], watch)
    if parts[1]:
        ciphertext = ring.over(ciphertext, ring.held(request, "public"), parts[1], watch, "link key in")
    values = ring.values(ring.held(request, "secret"), ciphertext, request["size"] * 8, watch)
    bits = bytes(
        sum((value & 1) << at for at, value in enumerate(values[start : start + 8]))
        for start in range(0, len(values), 8)
    )
    watch.done("decode")
    return [bits]


def places(fhe: Any, ring: Ring, request: dict[str, Any], parts: Parts, watch: Watch) -> Parts:
    """What the destination sees before it reduces modulo 2: `size` values of 8 bytes, signed, big endian."""
    ciphertext = ring.unpack(parts[0], watch)
    values = ring.values(ring.held(request, "secret"), ciphertext, request["size"], watch)
    return [struct.pack(f">{len(values)}q", *values)]


def add(fhe: Any, ring: Ring, request: dict[str, Any], parts: Parts, watch: Watch) -> Parts:
    """Ciphertext 0 with ciphertext 1 added `times` times, as anybody can who sees them."""
    total, term = (ring.unpack(part, watch) for part in parts)
    for _ in range(request["times"]):
        total = ring.context.EvalAdd(total, term)
    watch.done("add")
    return [ring.pack(total, watch)]


def walk(fhe: Any, ring: Ring, request: dict[str, Any], parts: Parts, watch: Watch) -> Parts:
    """`hops` relays at once, without a wire between them, each with a fresh link key of the pad's size.

    In: ciphertext, its link key. Out: ciphertext, its new link key.
    """
    public, quiet = ring.held(request, "public"), Watch()
    ciphertext, pad = ring.unpack(parts[0], watch), parts[1]
    for _ in range(request["hops"]):
        following = os.urandom(len(pad))
        for each in (pad, following):
            ciphertext = ring.over(ciphertext, public, each, quiet, "")
        pad = following
    watch.done("hops")
    return [ring.pack(ciphertext, watch), pad]


OPERATIONS = {
    each.__name__: each for each in (generate, load, forget, originate, relay, deliver, places, add, walk)
}


# ---------------------------------------------------------------------- the process


def _limit(memory: int) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def _answer(fhe: Any, rings: dict[str, Ring], request: dict[str, Any], parts: Parts) -> tuple[Any, Parts]:
    watch = Watch()
    used = time.process_time_ns()
    try:
        name = request["set"]
        if name not in rings:
            rings[name] = Ring(fhe, name)
            watch = Watch()
        given = OPERATIONS[request["op"]](fhe, rings[name], request, parts, watch)
    # OpenFHE reports what it noticed as RuntimeError; a gzip or base64 error says as much.
    except (Refusal, RuntimeError, ValueError, TypeError, LookupError, MemoryError, zlib.error) as error:
        return {"error": f"{type(error).__name__}: {error}"}, []
    return {"steps": watch.steps, "processor": time.process_time_ns() - used}, given


def _take(stream: BinaryIO, length: int) -> bytes:
    data = stream.read(length)
    if len(data) != length:
        raise SystemExit(0)  # the service has gone
    return data


def main() -> None:
    seconds, memory = float(sys.argv[1]), int(sys.argv[2])
    source, sink = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints must not look like an answer
    signal.setitimer(signal.ITIMER_REAL, seconds)
    _limit(memory)
    rings: dict[str, Ring] = {}
    try:
        fhe = importlib.import_module("openfhe")
        hello = {"python": platform.python_version(), "pid": os.getpid()}
    except (ImportError, OSError) as error:
        fhe, hello = None, {"error": str(error)}
    _send(sink, hello, [])
    while fhe is not None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        (length,) = _LENGTH.unpack(_take(source, _LENGTH.size))
        signal.setitimer(signal.ITIMER_REAL, seconds)
        request = json.loads(_take(source, length))
        parts = [_take(source, size) for size in request["sizes"]]
        _send(sink, *_answer(fhe, rings, request, parts))


def _send(sink: BinaryIO, fields: Any, parts: Parts) -> None:
    head = json.dumps({**fields, "sizes": [len(part) for part in parts]}).encode()
    sink.write(b"".join((_LENGTH.pack(len(head)), head, *parts)))
    sink.flush()


if __name__ == "__main__":
    main()
