"""BFV at origin and destination by Microsoft SEAL, in process.

SEAL reads and writes blobs of its own, uncompressed: a header, then 64-bit coefficients. The headers we
use are of objects SEAL made here; from the network come range-checked coefficients only, spliced behind
such a header. A blob of another node never reaches the library.

SEAL draws its randomness from the operating system (a fork does not repeat it).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from keyhaul.errors import Malformed
from keyhaul.schemes import dense
from keyhaul.schemes.bfv import CHUNK_BYTES, COEFFICIENTS, DENSE, Profile
from keyhaul.schemes.dense import Bits, Polynomial
from keyhaul.schemes.sealkeys import BLOB_BYTES, WORD_BYTES, SealKeys

_MOST_ENCRYPTORS = 256


class Seal(SealKeys):
    """A `Bfv` of one profile; see that protocol for what each method promises.

    Raises Unsupported when the library is missing or does not take the profile's parameters.
    """

    def __init__(self, profile: Profile = DENSE) -> None:
        super().__init__(profile)
        generator = self._seal.KeyGenerator(self._context)
        public, secret = generator.create_public_key(), generator.secret_key()
        self._public_header = public.to_string()[: -2 * BLOB_BYTES]
        self._secret_header = secret.to_string()[:-BLOB_BYTES]
        sample = self._seal.Encryptor(self._context, public).encrypt_zero()
        self._ciphertext_header = sample.to_string()[: -2 * BLOB_BYTES]
        self._encryptors: dict[bytes, Any] = {}

    def check_public(self, public: bytes) -> None:
        self._halves(public)

    def encrypt(self, public: bytes, plain: bytes) -> tuple[bytes, bytes]:
        encryptor = self._encryptor(public)
        uppers, lowers, seconds = [], [], []
        for at in range(0, len(plain), CHUNK_BYTES):
            bits = dense.bits_of(plain[at : at + CHUNK_BYTES])
            upper, lower, second = self._zero(encryptor, len(bits))
            uppers.append(dense.bytes_of(upper ^ bits))
            lowers.append(dense.bytes_of(lower))
            seconds.append(dense.pack(second, self.profile))
        return b"".join(uppers), b"".join((*lowers, *seconds))

    def zero(self, public: bytes) -> tuple[Polynomial, Polynomial]:
        """A whole encryption of zero whose first polynomial has no coefficient q - 1."""
        encryptor = self._encryptor(public)
        while True:
            first, second = _words(encryptor.encrypt_zero().to_string(), 2)
            if int(first.max()) < self.profile.q - 1:
                return first, second

    def _zero(self, encryptor: Any, count: int) -> tuple[Bits, Bits, Polynomial]:
        """Quarters of the first `count` coefficients, and the second polynomial, of an encryption of zero.

        One in 118 is thrown away, at most (`dense`, 1,024 coefficients), for a coefficient q - 1.
        """
        while True:
            first, second = _words(encryptor.encrypt_zero().to_string(), 2)
            found = dense.quarters(first[:count], self.profile)
            if found is not None:
                return (*found, second)

    def decrypt(self, secret: bytes, upper: bytes, rest: bytes) -> bytes:
        size, step = len(upper), self.profile.polynomial_bytes
        if len(rest) != self.profile.rest_bytes(size):
            raise Malformed("a ciphertext has the wrong length")
        seconds = [
            dense.unpack(rest[at : at + step], COEFFICIENTS, self.profile)
            for at in range(size, len(rest), step)
        ]
        decryptor = self._decryptor(secret)
        plain = []
        for at, second in zip(range(0, size, CHUNK_BYTES), seconds, strict=True):
            end = min(at + CHUNK_BYTES, size)
            first = dense.centres(dense.bits_of(upper[at:end]), dense.bits_of(rest[at:end]), self.profile)
            plain.append(dense.bytes_of(self._bits(decryptor, first, second)[: len(first)]))
        return b"".join(plain)

    def _bits(self, decryptor: Any, first: Polynomial, second: Polynomial) -> Bits:
        """The 1,024 plaintext bits of a ciphertext; coefficients that `first` lacks count as zero."""
        padded = np.zeros(COEFFICIENTS, np.uint32)
        padded[: len(first)] = first
        ciphertext = self._seal.Ciphertext()
        ciphertext.load_bytes(self._context, self._ciphertext_header + _blob(padded, second))
        plain = decryptor.decrypt(ciphertext)
        count = plain.coeff_count()  # leading zeros are left off
        bits = np.zeros(COEFFICIENTS, np.uint8)
        bits[:count] = np.frombuffer(plain.to_bytes()[-count * WORD_BYTES :], "<u8")
        return bits

    def _halves(self, public: bytes) -> tuple[Polynomial, Polynomial]:
        step = self.profile.polynomial_bytes
        if len(public) != self.profile.public_bytes or public[0] != self.profile.id:
            raise Malformed("a BFV public key is not of the expected profile")
        return (
            dense.unpack(public[1 : 1 + step], COEFFICIENTS, self.profile),
            dense.unpack(public[1 + step :], COEFFICIENTS, self.profile),
        )

    def _encryptor(self, public: bytes) -> Any:
        found = self._encryptors.get(public)
        if found is None:
            blob = self._public_header + _blob(*self._halves(public))
            found = self._seal.Encryptor(self._context, self._context.from_public_str(blob))
            if len(self._encryptors) >= _MOST_ENCRYPTORS:
                self._encryptors.pop(next(iter(self._encryptors)))
            self._encryptors[public] = found
        return found

    def _decryptor(self, secret: bytes) -> Any:
        # Not kept: a decryptor would outlive the erasure of its key.
        blob = self._secret_header + _blob(dense.unpack(secret, COEFFICIENTS, self.profile))
        return self._seal.Decryptor(self._context, self._context.from_secret_str(blob))


def _words(blob: bytes, count: int) -> list[Polynomial]:
    """The last `count` polynomials of a blob of SEAL's."""
    flat: npt.NDArray[np.uint64] = np.frombuffer(blob[-count * BLOB_BYTES :], "<u8")
    return list(flat.astype(np.uint32).reshape(count, COEFFICIENTS))


def _blob(*polynomials: Polynomial) -> bytes:
    return b"".join(polynomial.astype("<u8").tobytes() for polynomial in polynomials)
