"""Random bytes from a TPM 2.0 (TPM2_GetRandom) and from a PKCS#11 token (C_GenerateRandom). Calls block.

Both are generators behind a generator: what they give is conditioned by their maker. The health tests
notice when they break, not when they are badly seeded. They share the libraries of the store's key slots.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from keyhaul.entropy.sources import BlockingSource
from keyhaul.errors import SealError, Unavailable
from keyhaul.stores.sealing import default_tcti, pkcs11, tss

TPM_STEP = 32  # bytes of one TPM2_GetRandom: a chip gives no more than its largest digest
TPM_ONCE = 2048  # bytes of one connection, so that the key slots' users get their turn
TOKEN_ONCE = 65_536  # bytes of one session
_MODULES: dict[str, threading.Lock] = {}
"""A module is loaded, and a login holds, once in a process: two threads at once would spoil both."""

AES_BITS = 128  # of the storage key and session; every TPM 2.0 has it


def tpm(name: str, tcti: str | None, min_entropy: float) -> BlockingSource:
    """The TPM at `tcti`; None is the kernel's. It is reached when it is read."""

    def read(length: int) -> bytes:
        chosen = tcti or default_tcti() or "device:/dev/tpmrm0"
        with tss.connected(chosen) as chip:
            return _get_random(chip, min(length, TPM_ONCE))

    return BlockingSource(name, "tpm", min_entropy, read)


def token(
    name: str, module: Path, label: str, min_entropy: float, pin: Callable[[], str] | None = None
) -> BlockingSource:
    """The PKCS#11 token `label`; most give random bytes without a login, and then `pin` is not needed."""

    def read(length: int) -> bytes:
        with _session(module, label, pin) as session:
            return bytes(session.generate_random(min(length, TOKEN_ONCE) * 8))

    return BlockingSource(name, "pkcs11", min_entropy, read)


def _get_random(chip: tss.Chip, length: int) -> bytes:
    """TPM part 3, 16.1, in a session that encrypts the answer and proves where it is from."""
    lib = chip.lib
    session = chip.salted_session(chip.storage_key(AES_BITS), AES_BITS)
    attribute = lib.TPMA_SESSION
    # The command has no parameter that a session could decrypt, so it may not ask for that.
    chip.esys.trsess_set_attributes(session, attribute.ENCRYPT | attribute.CONTINUESESSION)
    samples = b""
    while len(samples) < length:
        step = bytes(chip.esys.get_random(min(TPM_STEP, length - len(samples)), session1=session))
        if not step:
            raise Unavailable("the TPM gave no random bytes", "see `tpm2_gettestresult`")
        samples += step
    return samples


@contextlib.contextmanager
def _session(module: Path, label: str, pin: Callable[[], str] | None) -> Iterator[Any]:
    lib = pkcs11.library()
    where = f"PKCS#11 token {label}"
    try:
        with _MODULES.setdefault(str(module), threading.Lock()):
            found = lib.lib(str(module)).get_token(token_label=label)
            with found.open(rw=False, user_pin=None if pin is None else pin()) as session:
                yield session
    except (lib.NoSuchToken, lib.TokenNotPresent, lib.DeviceRemoved):
        remedy = f"plug it in; `pkcs11-tool --module {module} -L` lists tokens"
        raise SealError(f"{where} is not there", remedy) from None
    except (lib.PinIncorrect, lib.PinInvalid, lib.PinLenRange, lib.ArgumentsBad):
        # asked again and again, a wrong PIN would lock the token
        raise SealError(f"{where}: wrong PIN", "correct it, then replace the source", final=1) from None
    except lib.PKCS11Error as error:
        raise SealError(
            f"PKCS#11 module {module}: {type(error).__name__}",
            "see that the module is the right one and that its device answers",
        ) from None
