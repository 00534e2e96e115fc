"""Talking to a TPM 2.0 by tpm2-pytss: one short connection a task, and errors in words.

The library is imported when a TPM is first used, so that everything else works without it. Connections
are not kept: after a TPM daemon dies, an old context is unusable while a new one works. Calls block.
"TPM part 2" and "part 3" below are the TCG TPM 2.0 Library Specification, Structures and Commands.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

from keyhaul.errors import SealError
from keyhaul.stores.sealing.keyfile import Grade

# Response codes, TPM part 2, 6.6.3, with the bits for parameter, session and handle taken out.
TPM_VALUE, TPM_KEY_SIZE, TPM_MODE, TPM_SYMMETRIC = 0x084, 0x087, 0x089, 0x096
TPM_HANDLE, TPM_AUTH_FAIL, TPM_BAD_AUTH = 0x08B, 0x08E, 0x0A2
TPM_POLICY_FAIL, TPM_INTEGRITY = 0x09D, 0x09F
TPM_INITIALIZE, TPM_FAILURE, TPM_PCR_CHANGED, TPM_NV_DEFINED = 0x100, 0x101, 0x128, 0x14C
TPM_OBJECT_MEMORY, TPM_SESSION_MEMORY, TPM_LOCKOUT = 0x902, 0x903, 0x921
LAYER_TCTI = 0x000A  # TSS 2.0 overview, error layers: the transport to the TPM

PT_MANUFACTURER, PT_VENDOR_STRING_1 = 0x105, 0x106  # TPM part 2, 6.13
SOFTWARE_MANUFACTURERS = ("IBM", "MSFT")  # libtpms and its swtpm; Microsoft's simulator and Hyper-V

PCRS = re.compile(r"sha(256|384|512):\d{1,2}(,\d{1,2})*(\+sha(256|384|512):\d{1,2}(,\d{1,2})*)*")

Meanings = Mapping[int, tuple[str, str]]
_OTHER_PCRS = (
    "the PCR values have changed since the root was sealed (firmware, secure boot or boot chain)",
    "if that was intended, open with the recovery slot and seal the TPM slot again",
)
_NO_AUTH = ("the TPM's owner hierarchy asks for a password", "clear it, or use another slot")
_FULL = ("the TPM has no room for more objects", "use /dev/tpmrm0, or free it with `tpm2_flushcontext -t`")
_NOT_STARTED = ("the TPM was not started up, or is in failure mode", "restart it; see `tpm2_gettestresult`")
MEANINGS: Meanings = {
    TPM_POLICY_FAIL: _OTHER_PCRS,
    TPM_PCR_CHANGED: _OTHER_PCRS,
    TPM_AUTH_FAIL: _NO_AUTH,
    TPM_BAD_AUTH: _NO_AUTH,
    TPM_INTEGRITY: (
        "this TPM did not seal the root (another machine's, or cleared since), or the slot is damaged",
        "use the machine it was sealed on, or open with the recovery slot and seal again",
    ),
    TPM_OBJECT_MEMORY: _FULL,
    TPM_SESSION_MEMORY: _FULL,
    TPM_INITIALIZE: _NOT_STARTED,
    TPM_FAILURE: _NOT_STARTED,
    TPM_LOCKOUT: ("the TPM is locked out after wrong passwords", "wait, or `tpm2_dictionarylockout -c`"),
}


def library() -> Any:
    """The module tpm2_pytss. SealError says how to get it."""
    # Its C library writes every error to stderr as well; ours are told by SealError.
    os.environ.setdefault("TSS2_LOG", "all+NONE")
    try:
        return importlib.import_module("tpm2_pytss")
    except ImportError:
        raise SealError(
            "the tpm2 slot needs tpm2-pytss, which is not installed",
            "run `scripts/install-debian-packages.sh tpm` (swtpm, libtss2-dev, pkg-config, gcc), "
            "then `pip install keyhaul[tpm]`",
        ) from None


def default_tcti() -> str | None:
    """The kernel's resource-managed TPM of this machine, if it has one.

    One that this process may not open counts too: its slot then says so, instead of being passed over.
    """
    device = "/dev/tpmrm0"
    return f"device:{device}" if os.path.exists(device) else None


def error_code(error: Any) -> int:
    """The bare response code of a TSS2_Exception (TPM part 2, 6.6.2), or 0 if the transport failed."""
    rc = int(error.rc)
    if rc >> 16 == LAYER_TCTI:
        return 0
    return 0x80 | (rc & 0x3F) if rc & 0x80 else rc & 0xFFF


@contextlib.contextmanager
def connected(tcti: str, meanings: Meanings = MEANINGS) -> Iterator[Chip]:
    """A connection, closed with everything loaded over it on leaving. TPM errors leave as SealError."""
    lib = library()
    name, _, conf = tcti.partition(":") if not tcti.startswith("/dev/") else ("device", ":", tcti)
    try:
        with lib.TCTILdr(name, conf or None) as transport, lib.ESAPI(transport) as esys:
            chip = Chip(lib, esys)
            try:
                yield chip
            finally:
                chip.flush()
    except lib.TSS2_Exception as error:
        raise _explained(error, tcti, meanings) from error


class Chip:
    """A connected TPM: the few commands the slot and the counter share."""

    def __init__(self, lib: Any, esys: Any) -> None:
        self.lib = lib
        self.esys = esys
        self._transient: list[Any] = []

    def keep(self, handle: Any) -> Any:
        """Remember a loaded object or session for flushing; a TPM holds as few as three."""
        self._transient.append(handle)
        return handle

    def flush(self) -> None:
        """Unload, last first. An error here would hide the one that brought us here."""
        while self._transient:
            with contextlib.suppress(self.lib.TSS2_Exception):
                self.esys.flush_context(self._transient.pop())

    def storage_key(self, bits: int) -> Any:
        """The storage primary key, P-256 with AES of 128 or 256 bits: the same one each time on one TPM.

        Nothing is made persistent: the TPM derives it from its owner seed (TPM part 3, 24.1).
        """
        attribute = self.lib.TPMA_OBJECT
        template = self.lib.TPM2B_PUBLIC.parse(
            f"ecc256:aes{bits}cfb",
            objectAttributes=attribute.RESTRICTED
            | attribute.DECRYPT
            | attribute.FIXEDTPM
            | attribute.FIXEDPARENT
            | attribute.SENSITIVEDATAORIGIN
            | attribute.USERWITHAUTH
            | attribute.NODA,
        )
        handle, *_ = self.esys.create_primary(self.lib.TPM2B_SENSITIVE_CREATE(), template)
        return self.keep(handle)

    def salted_session(self, storage_key: Any, bits: int) -> Any:
        """A session that encrypts the secret parameter both ways: a probe on the bus reads nothing."""
        lib = self.lib
        symmetric = lib.TPMT_SYM_DEF(
            algorithm=lib.TPM2_ALG.AES, keyBits={"sym": bits}, mode={"sym": lib.TPM2_ALG.CFB}
        )
        session = self._session(storage_key, lib.TPM2_SE.HMAC, symmetric)
        attribute = lib.TPMA_SESSION
        self.esys.trsess_set_attributes(
            session, attribute.DECRYPT | attribute.ENCRYPT | attribute.CONTINUESESSION
        )
        return session

    def authorizing_session(self) -> Any:
        """A session that proves an authorization value to the TPM, and the TPM's answers to us, by HMAC."""
        lib = self.lib
        return self._session(
            lib.ESYS_TR.NONE, lib.TPM2_SE.HMAC, lib.TPMT_SYM_DEF(algorithm=lib.TPM2_ALG.NULL)
        )

    def pcr_session(self, pcrs: str, trial: bool = False) -> Any:
        """A policy session that stands for the PCR values of now, or a trial one to compute its digest."""
        lib = self.lib
        kind = lib.TPM2_SE.TRIAL if trial else lib.TPM2_SE.POLICY
        session = self._session(lib.ESYS_TR.NONE, kind, lib.TPMT_SYM_DEF(algorithm=lib.TPM2_ALG.NULL))
        self.esys.policy_pcr(session, lib.TPM2B_DIGEST(), lib.TPML_PCR_SELECTION.parse(pcrs))
        return session

    def pcr_values(self, pcrs: str) -> list[bytes]:
        """The values now, one each. SealError for a selection this TPM does not keep."""
        if not PCRS.fullmatch(pcrs):
            raise SealError(f"{pcrs[:80]!r} is no PCR selection", "write it like sha256:7 or sha256:0,2,7")
        values = []
        for bank in pcrs.split("+"):
            algorithm, _, numbers = bank.partition(":")
            for number in numbers.split(","):
                values.append(self._pcr_value(f"{algorithm}:{int(number)}"))
        return values

    def grade(self) -> Grade:
        """Hardware, unless the manufacturer or vendor string is one of a TPM in software."""
        _, listed = self.esys.get_capability(self.lib.TPM2_CAP.TPM_PROPERTIES, PT_MANUFACTURER, 2)
        text = {
            int(entry.property): int(entry.value).to_bytes(4, "big").rstrip(b"\0 ").decode("latin-1")
            for entry in listed.data.tpmProperties
        }
        in_software = text.get(PT_MANUFACTURER, "") in SOFTWARE_MANUFACTURERS
        return Grade.SOFTWARE if in_software or text.get(PT_VENDOR_STRING_1, "") == "SW" else Grade.HARDWARE

    def _pcr_value(self, one: str) -> bytes:
        try:
            selection = self.lib.TPML_PCR_SELECTION.parse(one)
        except ValueError:
            raise SealError(f"{one} is no PCR", "PCRs are numbered 0 to 23") from None
        _, _, digests = self.esys.pcr_read(selection)
        if len(digests) != 1:
            raise SealError(f"the TPM keeps no PCR {one}", "choose a bank that `tpm2_getcap pcrs` lists")
        return bytes(digests[0])

    def _session(self, key: Any, kind: Any, symmetric: Any) -> Any:
        lib = self.lib
        session = self.esys.start_auth_session(key, lib.ESYS_TR.NONE, kind, symmetric, lib.TPM2_ALG.SHA256)
        return self.keep(session)


def _explained(error: Any, tcti: str, meanings: Meanings) -> SealError:
    code = error_code(error)
    if code in meanings:
        cause, remedy = meanings[code]
        return SealError(f"TPM {tcti}: {cause}", remedy)
    if int(error.rc) >> 16 == LAYER_TCTI:
        return SealError(
            f"TPM {tcti} cannot be reached",
            "see that it is there, running, and open to this user (group tss)",
        )
    return SealError(f"TPM {tcti}: {error} (code {int(error.rc):#x})", "see `tpm2_rc_decode`")
