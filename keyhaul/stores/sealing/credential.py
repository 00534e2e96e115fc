"""A secret that somebody else keeps and hands in as a file: a systemd credential, a container's secret.

With `LoadCredentialEncrypted=keyhaul-root:…` systemd decrypts the credential, by TPM or host key, into
`$CREDENTIALS_DIRECTORY`, readable by this service only and only while it runs.
"""

from __future__ import annotations

import os
import secrets
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from keyhaul.errors import SealError
from keyhaul.keys import Secret
from keyhaul.stores.sealing.keyfile import Grade
from keyhaul.stores.sealing.wrapping import WrongKey, decode, encode, unwrap_under, wrap_under

NAME = "keyhaul-root"
MIN_BYTES = 32
MAX_BYTES = 64 * 1024
SALT_BYTES = 16


def systemd_credential(name: str = NAME) -> Path | None:
    """The credential's path if the service manager handed one in (systemd.exec(5), CREDENTIALS_DIRECTORY)."""
    directory = os.environ.get("CREDENTIALS_DIRECTORY")
    path = Path(directory) / name if directory else None
    return path if path is not None and path.is_file() else None


@dataclass(frozen=True, slots=True)
class Credential:
    """All bytes of the file count, a final newline too. It must hold 32 bytes or more of randomness."""

    path: Path

    @property
    def kind(self) -> str:
        return "credential"

    @property
    def grade(self) -> Grade:
        return Grade.EXTERNAL

    @property
    def label(self) -> str:
        return self.path.name

    def wrap(self, root: Secret) -> dict[str, Any]:
        salt = secrets.token_bytes(SALT_BYTES)
        return {"salt": encode(salt), **wrap_under(self._key(salt), root, self.kind)}

    def unwrap(self, data: dict[str, Any]) -> Secret:
        salt = decode(data, "salt", SALT_BYTES)
        try:
            return unwrap_under(self._key(salt), data, self.kind)
        except WrongKey:
            raise SealError(
                f"credential {self.path} is not the one the root was sealed with",
                "give the original one back byte for byte, or open with another slot",
            ) from None

    def caveats(self) -> tuple[str, ...]:
        try:
            mode = stat.S_IMODE(self.path.stat().st_mode)
        except FileNotFoundError:  # taken away after use, as it should be
            return ()
        found = []
        if mode & 0o004:
            found.append(f"credential {self.path} can be read by everybody on this machine (mode {mode:04o})")
        handed_in = os.environ.get("CREDENTIALS_DIRECTORY")
        if handed_in is None or not self.path.is_relative_to(handed_in):
            found.append(f"credential {self.path} stays on this machine: whoever copies it opens the store")
        return tuple(found)

    def _key(self, salt: bytes) -> bytes:
        """32 bytes: HKDF-SHA-256 over the content (RFC 5869); no password hash, it is not a password."""
        try:
            with self.path.open("rb") as file:
                content = file.read(MAX_BYTES + 1)
        except OSError as error:
            raise SealError(
                f"cannot read credential {self.path}: {error.strerror}",
                "see that the service manager hands it in, and that this user may read it",
            ) from error
        if not MIN_BYTES <= len(content) <= MAX_BYTES:
            raise SealError(
                f"credential {self.path} has an unfit size; {MIN_BYTES} to {MAX_BYTES} bytes are expected",
                "make one with `openssl rand -out FILE 32`",
            )
        kdf = HKDF(algorithm=hashes.SHA256(), length=32, salt=salt, info=b"keyhaul v1 seal/credential")
        return kdf.derive(content)
