"""The passphrase slot, and so the recovery slot: Argon2id turns what a person knows into a wrapping key."""

from __future__ import annotations

import secrets
import unicodedata
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

from keyhaul.errors import SealError
from keyhaul.keys import Secret
from keyhaul.stores.sealing.keyfile import RESTORE, Grade
from keyhaul.stores.sealing.wrapping import WrongKey, damaged, decode, encode, unwrap_under, wrap_under

SALT_BYTES = 16
MAX_MEMORY_KIB = 1024 * 1024
MAX_LANES = 16
MAX_WORK_KIB = 4 * 1024 * 1024  # memory times iterations: seconds, not minutes


@dataclass(frozen=True, slots=True)
class Cost:
    """Argon2id parameters; the default is RFC 9106, 4, second recommendation: 64 MiB, 3 passes, 4 lanes."""

    memory_kib: int = 64 * 1024
    iterations: int = 3
    lanes: int = 4

    def __post_init__(self) -> None:
        """SealError outside the bounds, so that a hostile file cannot ask for gigabytes or for hours."""
        if any(type(number) is not int or number < 1 for number in asdict(self).values()):
            raise damaged("Argon2id parameters")
        small_enough = self.memory_kib <= MAX_MEMORY_KIB and self.lanes <= MAX_LANES
        if (
            not small_enough
            or self.memory_kib * self.iterations > MAX_WORK_KIB
            or self.memory_kib < 8 * self.lanes
        ):
            raise SealError(
                f"Argon2id parameters out of bounds (at most {MAX_MEMORY_KIB} KiB, {MAX_LANES} lanes, "
                f"{MAX_WORK_KIB} KiB times passes)",
                RESTORE,
            )


@dataclass(frozen=True, slots=True)
class Passphrase:
    """`ask` returns the passphrase when it is needed, and raises SealError if nobody can be asked.

    The text is normalised (NFC, as RFC 8265, 4.2 does), so that another keyboard gives the same key.
    """

    ask: Callable[[], str]
    cost: Cost = Cost()
    label: str = "passphrase"

    @property
    def kind(self) -> str:
        return "passphrase"

    @property
    def grade(self) -> Grade:
        return Grade.SOFTWARE

    def wrap(self, root: Secret) -> dict[str, Any]:
        """Asks once; confirming a new passphrase is the asker's part."""
        salt = secrets.token_bytes(SALT_BYTES)
        key = self._key(salt, self.cost)
        return {"salt": encode(salt), **asdict(self.cost), **wrap_under(key, root, self.kind)}

    def unwrap(self, data: dict[str, Any]) -> Secret:
        salt = decode(data, "salt", SALT_BYTES)
        cost = Cost(data.get("memory_kib", 0), data.get("iterations", 0), data.get("lanes", 0))
        try:
            return unwrap_under(self._key(salt, cost), data, self.kind)
        except WrongKey:
            raise SealError("wrong passphrase", "try again, or open with another slot") from None

    def caveats(self) -> tuple[str, ...]:
        return ()

    def _key(self, salt: bytes, cost: Cost) -> bytes:
        phrase = unicodedata.normalize("NFC", self.ask())
        if not phrase:
            raise SealError("the passphrase is empty", "give one, best of five or more random words")
        kdf = Argon2id(
            salt=salt, length=32, iterations=cost.iterations, lanes=cost.lanes, memory_cost=cost.memory_kib
        )
        try:
            return kdf.derive(phrase.encode())
        except MemoryError:
            raise SealError(
                f"not enough memory for Argon2id ({cost.memory_kib} KiB)", "free some and start again"
            ) from None
