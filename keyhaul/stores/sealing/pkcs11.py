"""The PKCS#11 slot: the root under an AES-256 key that a token, usually an HSM, does not give away.

The key is looked up by label, or made on the token as sensitive and not extractable. The root is wrapped
by CKM_AES_GCM in the token (PKCS #11 v3.0); key-wrap mechanisms are less widely offered.
"""

from __future__ import annotations

import contextlib
import importlib
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from keyhaul.errors import SealError
from keyhaul.keys import Secret
from keyhaul.stores.sealing.keyfile import Grade
from keyhaul.stores.sealing.wrapping import (
    NONCE_BYTES,
    WRAPPED_BYTES,
    associated,
    decode,
    encode,
)

KEY_BITS = 256
ID_BYTES = 16
SOFTWARE_TOKENS = ("SoftHSM",)  # beginnings of manufacturer names


def library() -> Any:
    """The module pkcs11. SealError says how to get it."""
    try:
        return importlib.import_module("pkcs11")
    except ImportError:
        raise SealError(
            "the pkcs11 slot needs python-pkcs11, which is not installed",
            "run `pip install keyhaul[pkcs11]`; for a token in software also "
            "`scripts/install-debian-packages.sh pkcs11` (softhsm2)",
        ) from None


class Pkcs11:
    """`module` is the vendor's shared library, `token` the token's label; `pin` is asked when needed.

    Grade `external`; a token known to be files on this machine (SoftHSM) is `software`.
    """

    kind = "pkcs11"

    def __init__(
        self, module: Path, token: str, pin: Callable[[], str], key_label: str = "keyhaul-root"
    ) -> None:
        self.module = module
        self.token = token
        self.pin = pin
        self.key_label = key_label
        self._grade: Grade | None = None

    def __repr__(self) -> str:
        return f"Pkcs11({str(self.module)!r}, {self.token!r}, key_label={self.key_label!r})"

    @property
    def label(self) -> str:
        return f"{self.token}/{self.key_label}"

    @property
    def grade(self) -> Grade:
        """Asks the token who made it, once. SealError if there is no such token."""
        if self._grade is None:
            with self._explained() as lib:
                maker = self._find(lib).manufacturer_id
            self._grade = Grade.SOFTWARE if maker.startswith(SOFTWARE_TOKENS) else Grade.EXTERNAL
        return self._grade

    def wrap(self, root: Secret) -> dict[str, Any]:
        nonce = secrets.token_bytes(NONCE_BYTES)
        with self._session(rw=True) as (lib, session):
            key, key_id = self._key_to_wrap(lib, session)
            sealed = key.encrypt(root.reveal(), **self._mechanism(lib, nonce))
        return {"key": encode(key_id), "nonce": encode(nonce), "sealed": encode(bytes(sealed))}

    def unwrap(self, data: dict[str, Any]) -> Secret:
        nonce = decode(data, "nonce", NONCE_BYTES)
        sealed = decode(data, "sealed", WRAPPED_BYTES)
        with self._session(rw=False) as (lib, session):
            key = self._key_to_unwrap(lib, session, decode(data, "key", at_most=64))
            try:
                return Secret(key.decrypt(sealed, **self._mechanism(lib, nonce)))
            except (lib.EncryptedDataInvalid, lib.EncryptedDataLenRange, lib.GeneralError):
                # tokens differ in what they call a wrong tag; SoftHSM 2 says general error
                raise SealError(
                    f"PKCS#11 token {self.token}: the wrapped root does not open with its key",
                    "give the original token and key-slot file back, or open with another slot",
                ) from None

    def caveats(self) -> tuple[str, ...]:
        if self.grade is Grade.SOFTWARE:
            return (
                f"PKCS#11 token {self.token} is SOFTWARE, files on this machine: it is NO BOUNDARY; "
                "use it for trials only",
            )
        return ()

    def _key_to_wrap(self, lib: Any, session: Any) -> tuple[Any, bytes]:
        """The key with our label, made if there is none, and its id on the token."""
        try:
            key = session.get_key(object_class=lib.ObjectClass.SECRET_KEY, label=self.key_label)
        except lib.NoSuchKey:
            key_id = secrets.token_bytes(ID_BYTES)
            attributes = {lib.Attribute.SENSITIVE: True, lib.Attribute.EXTRACTABLE: False}
            uses = lib.MechanismFlag.ENCRYPT | lib.MechanismFlag.DECRYPT
            key = session.generate_key(
                lib.KeyType.AES,
                KEY_BITS,
                id=key_id,
                label=self.key_label,
                store=True,
                capabilities=uses,
                template=attributes,
            )
            return key, key_id
        if key[lib.Attribute.EXTRACTABLE] or not key[lib.Attribute.SENSITIVE]:
            raise SealError(
                f"key {self.key_label} on PKCS#11 token {self.token} can be taken out of the token",
                "give the slot another key label, and it makes a key that cannot",
            )
        return key, bytes(key[lib.Attribute.ID])

    def _key_to_unwrap(self, lib: Any, session: Any, key_id: bytes) -> Any:
        try:
            return session.get_key(object_class=lib.ObjectClass.SECRET_KEY, id=key_id)
        except lib.NoSuchKey:
            raise SealError(
                f"PKCS#11 token {self.token} does not hold the key that wrapped the root",
                "it is another token of that name, or the key was deleted: give it back, or use another slot",
            ) from None

    def _mechanism(self, lib: Any, nonce: bytes) -> dict[str, Any]:
        parameters = lib.GCMParams(nonce, associated(self.kind), 128)
        return {"mechanism": lib.Mechanism.AES_GCM, "mechanism_param": parameters}

    def _find(self, lib: Any) -> Any:
        return lib.lib(str(self.module)).get_token(token_label=self.token)

    @contextlib.contextmanager
    def _session(self, rw: bool) -> Iterator[tuple[Any, Any]]:
        with self._explained() as lib, self._find(lib).open(rw=rw, user_pin=self.pin()) as session:
            yield lib, session

    @contextlib.contextmanager
    def _explained(self) -> Iterator[Any]:
        """The library; its errors leave as SealError. None of them carries the PIN."""
        lib = library()
        where = f"PKCS#11 token {self.token}"
        try:
            yield lib
        except (lib.NoSuchToken, lib.TokenNotPresent, lib.DeviceRemoved):
            raise SealError(
                f"{where} is not there", f"plug it in; `pkcs11-tool --module {self.module} -L` lists tokens"
            ) from None
        except (lib.PinIncorrect, lib.PinInvalid, lib.PinLenRange, lib.ArgumentsBad):
            raise SealError(f"{where}: wrong PIN", "mind that tokens lock after a few wrong ones") from None
        except (lib.PinLocked, lib.PinExpired):
            raise SealError(
                f"{where}: the PIN is locked or expired", "have its security officer reset it"
            ) from None
        except lib.MultipleObjectsReturned:
            raise SealError(
                f"{where} holds several keys {self.key_label}", "give the slot another label"
            ) from None
        except lib.PKCS11Error as error:
            raise SealError(
                f"PKCS#11 module {self.module}: {type(error).__name__}",
                "see that the module is the right one and that its device answers",
            ) from None
