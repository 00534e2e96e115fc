"""What scheme `blind` asks of BFV: parameter sets that are constants here, sizes, and two operations.

A ciphertext hides up to 1,024 key bits, one per coefficient, with plaintext modulus 2, so that adding a
plaintext is XOR (paper B §4.2 works modulo 65,537 and reduces at the end). The wire names a profile by
one byte and nothing else: no parameter, header or context of another node is ever given to a library.

The first polynomial of a ciphertext travels in quarters: of each coefficient only in which quarter of
[0, q) it lies. The upper bit of that number says which half; adding q/2, the image of a plaintext bit,
is flipping it. So the upper bits of all coefficients are a string as long as the key, over which a relay
XORs its pads, and the rest of the ciphertext is the same at every hop. docs/blind.md gives the reasons.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from keyhaul.errors import Malformed

if TYPE_CHECKING:
    from keyhaul.schemes.dense import Polynomial  # brings numpy, which relays of `blind` do without

COEFFICIENTS = 1024
CHUNK_BYTES = COEFFICIENTS // 8  # key bytes that one ciphertext hides


@dataclass(frozen=True, slots=True)
class Profile:
    """A parameter set of ring dimension 1,024; `q` is prime and 1 modulo 2,048, `width` its bits.

    `security` is the level in SEAL's and HomomorphicEncryption.org's tables (ternary secret). `id` stands
    in payloads, `name` in descriptors.
    """

    id: int
    q: int
    width: int
    security: int
    name: str = ""

    @property
    def polynomial_bytes(self) -> int:
        """One polynomial in dense form: `width` bits a coefficient."""
        return COEFFICIENTS * self.width // 8

    @property
    def public_bytes(self) -> int:
        """A public key as announced: the profile's id, then two polynomials."""
        return 1 + 2 * self.polynomial_bytes

    def rest_bytes(self, size: int) -> int:
        """Bytes of a ciphertext of `size` key bytes besides the `size` bytes that pads go over."""
        return size + -(-size // CHUNK_BYTES) * self.polynomial_bytes


DENSE = Profile(id=1, q=120_833, width=17, security=192, name="bfv-dense")
"""The one to use: core-SVP 187 bits classical and 170 quantum, where Kyber-768 has 182 classical."""

DENSE_25 = Profile(id=2, q=33_550_337, width=25, security=128, name="bfv-dense-25")
"""Room for 2^27 additions of ciphertexts, which `blind` does not make; 113 and 102 bits."""

PROFILES = {profile.id: profile for profile in (DENSE, DENSE_25)}


class Bfv(Protocol):
    """BFV at the two ends of a way. Relays have none."""

    profile: Profile

    def generate(self) -> tuple[bytes, bytes]:
        """`(public, secret)`: the public key as announced, the secret one in dense form."""

    def check_public(self, public: bytes) -> None:
        """Raises Malformed unless this is a public key of this profile in dense form."""

    def encrypt(self, public: bytes, plain: bytes) -> tuple[bytes, bytes]:
        """`(upper, rest)`: as many bytes as the plaintext for the pads to go over, and what no pad touches.

        `rest` does not depend on the plaintext. Raises Malformed if the public key is none.
        """

    def zero(self, public: bytes) -> tuple[Polynomial, Polynomial]:
        """A whole encryption of zero; no coefficient of the first is q - 1. Raises Malformed as above."""

    def decrypt(self, secret: bytes, upper: bytes, rest: bytes) -> bytes:
        """The plaintext. Raises Malformed for a wrong length or a coefficient out of range.

        Only for authenticated ciphertexts: whoever sees what becomes of ciphertexts of his own making
        reads the secret key from it.
        """


class EveryProfile:
    """A `Bfv` that encrypts under keys of any profile it is given, and has keys of one: `own`'s."""

    def __init__(self, own: Bfv, others: Mapping[int, Bfv]) -> None:
        self.profile = own.profile
        self._own = own
        self._every = {**others, own.profile.id: own}

    def generate(self) -> tuple[bytes, bytes]:
        return self._own.generate()

    def check_public(self, public: bytes) -> None:
        self._of(public).check_public(public)

    def encrypt(self, public: bytes, plain: bytes) -> tuple[bytes, bytes]:
        return self._of(public).encrypt(public, plain)

    def zero(self, public: bytes) -> tuple[Polynomial, Polynomial]:
        return self._of(public).zero(public)

    def decrypt(self, secret: bytes, upper: bytes, rest: bytes) -> bytes:
        return self._own.decrypt(secret, upper, rest)

    def _of(self, public: bytes) -> Bfv:
        found = self._every.get(public[0]) if public else None
        if found is None:
            raise Malformed("a BFV public key is of a profile that is not known here")
        return found
