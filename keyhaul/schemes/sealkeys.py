"""BFV key pairs by Microsoft SEAL, without numpy: what a node needs while nobody sends it a `blind` key.

numpy costs a process 11 MiB; it comes with `keyhaul.schemes.seal` when the first payload is made or opened.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from array import array
from collections.abc import Sequence
from typing import Any

from keyhaul.errors import Unsupported
from keyhaul.schemes.bfv import COEFFICIENTS, DENSE, Profile

WORD_BYTES = 8
BLOB_BYTES = COEFFICIENTS * WORD_BYTES
"""One polynomial in a blob of SEAL's: 64-bit coefficients, lowest byte first."""


class SealKeys:
    """Makes keys of one profile.

    The secret key is kept in the form the library computes with (number-theoretic transform). Raises
    Unsupported when the library is missing or does not take the profile's parameters.
    """

    def __init__(self, profile: Profile = DENSE) -> None:
        self.profile = profile
        self._seal = _library()
        self._context = self._made_context()

    def _made_context(self) -> Any:
        seal, profile = self._seal, self.profile
        parameters = seal.EncryptionParameters(seal.scheme_type.bfv)
        parameters.set_poly_modulus_degree(COEFFICIENTS)
        modulus = seal.CoeffModulus.Create(COEFFICIENTS, [profile.width])
        parameters.set_coeff_modulus(modulus)
        parameters.set_plain_modulus(2)
        level = {128: seal.sec_level_type.tc128, 192: seal.sec_level_type.tc192}[profile.security]
        context = seal.SEALContext(parameters, True, level)
        if not context.parameters_set() or [prime.value() for prime in modulus] != [profile.q]:
            raise Unsupported(
                f"this version of SEAL does not offer BFV profile {profile.id}",
                "install the version that requirements-blind.lock names",
            )
        return context

    def generate(self) -> tuple[bytes, bytes]:
        """See `Bfv.generate`."""
        generator = self._seal.KeyGenerator(self._context)
        halves = _coefficients(generator.create_public_key().to_string(), 2)
        secret = _coefficients(generator.secret_key().to_string(), 1)
        return bytes([self.profile.id]) + self._packed(halves), self._packed(secret)

    def _packed(self, coefficients: Sequence[int]) -> bytes:
        """The dense form (`keyhaul.schemes.dense.pack`): eight coefficients are `width` bytes."""
        width = self.profile.width
        eights = (coefficients[at : at + 8] for at in range(0, len(coefficients), 8))
        numbers = (sum(value << (width * place) for place, value in enumerate(eight)) for eight in eights)
        return b"".join(number.to_bytes(width, "little") for number in numbers)


def _library() -> Any:
    try:
        if importlib.util.find_spec("numpy") is None:
            raise ImportError("numpy is missing")
        return importlib.import_module("seal")
    except ImportError as error:
        raise Unsupported(
            f"scheme 'blind' needs Microsoft SEAL ({error})", "install keyhaul with the extra 'blind'"
        ) from None


def _coefficients(blob: bytes, polynomials: int) -> array[int]:
    """The coefficients of the last polynomials of a blob of SEAL's."""
    found = array("Q", blob[-polynomials * BLOB_BYTES :])
    if sys.byteorder == "big":
        found.byteswap()
    return found
