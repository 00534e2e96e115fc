"""Whole BFV ciphertexts by Microsoft SEAL: encoded, encrypted, added to and decrypted by the library.

For profile `lean`, where relays compute with the library too. Both polynomials travel in dense form; as in
`keyhaul.schemes.seal`, what comes from outside is range-checked coefficients, spliced behind headers of ours.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from keyhaul.errors import Malformed
from keyhaul.schemes import dense
from keyhaul.schemes.bfv import CHUNK_BYTES, COEFFICIENTS, DENSE, Profile
from keyhaul.schemes.seal import Seal, _blob, _words
from keyhaul.schemes.sealkeys import WORD_BYTES


class SealWhole(Seal):
    """A ciphertext of up to 128 bytes is two dense polynomials; longer plaintexts are several in a row."""

    def __init__(self, profile: Profile = DENSE) -> None:
        super().__init__(profile)
        self._evaluator = self._seal.Evaluator(self._context)
        empty = self._seal.Plaintext(COEFFICIENTS).to_bytes()
        self._plain_header = empty[: -COEFFICIENTS * WORD_BYTES]

    def ciphertext_bytes(self, size: int) -> int:
        """Bytes of the ciphertexts of `size` bytes."""
        return -(-size // CHUNK_BYTES) * 2 * self.profile.polynomial_bytes

    def encrypt_whole(self, public: bytes, plain: bytes) -> bytes:
        """Raises Malformed if the public key is none."""
        encryptor = self._encryptor(public)
        chunks = (plain[at : at + CHUNK_BYTES] for at in range(0, len(plain), CHUNK_BYTES))
        return b"".join(self._dense(encryptor.encrypt(self._plain(chunk))) for chunk in chunks)

    def add_plain_whole(self, ciphertexts: bytes, pad: bytes) -> bytes:
        """The ciphertexts of the plaintext XOR `pad`; each addition of two ones adds a unit of noise.

        Raises Malformed for a wrong length or a coefficient out of range.
        """
        moved = []
        for at, ciphertext in self._each(ciphertexts, len(pad)):
            loaded = self._ciphertext(ciphertext)
            self._evaluator.add_plain_inplace(loaded, self._plain(pad[at : at + CHUNK_BYTES]))
            moved.append(self._dense(loaded))
        return b"".join(moved)

    def decrypt_whole(self, secret: bytes, ciphertexts: bytes, size: int) -> bytes:
        """`size` bytes of plaintext. Raises Malformed as above. For authenticated ciphertexts only."""
        decryptor = self._decryptor(secret)
        plain = []
        for at, ciphertext in self._each(ciphertexts, size):
            first, second = self._polynomials(ciphertext)
            bits = self._bits(decryptor, first, second)
            plain.append(dense.bytes_of(bits[: 8 * min(CHUNK_BYTES, size - at)]))
        return b"".join(plain)

    def second_polynomials(self, ciphertexts: bytes) -> bytes:
        """What plaintexts are never added to: the same at every hop."""
        half = self.profile.polynomial_bytes
        return b"".join(ciphertexts[at + half : at + 2 * half] for at in range(0, len(ciphertexts), 2 * half))

    def _each(self, ciphertexts: bytes, size: int) -> list[tuple[int, bytes]]:
        """Place in the plaintext and bytes of each ciphertext."""
        if len(ciphertexts) != self.ciphertext_bytes(size):
            raise Malformed("ciphertexts have the wrong length")
        step = 2 * self.profile.polynomial_bytes
        return [
            (at // step * CHUNK_BYTES, ciphertexts[at : at + step]) for at in range(0, len(ciphertexts), step)
        ]

    def _polynomials(self, ciphertext: bytes) -> tuple[dense.Polynomial, dense.Polynomial]:
        both = dense.unpack(ciphertext, 2 * COEFFICIENTS, self.profile)
        return both[:COEFFICIENTS], both[COEFFICIENTS:]

    def _ciphertext(self, ciphertext: bytes) -> Any:
        loaded = self._seal.Ciphertext()
        loaded.load_bytes(self._context, self._ciphertext_header + _blob(*self._polynomials(ciphertext)))
        return loaded

    def _dense(self, ciphertext: Any) -> bytes:
        return dense.pack(np.concatenate(_words(ciphertext.to_string(), 2)), self.profile)

    def _plain(self, data: bytes) -> Any:
        coefficients = np.zeros(COEFFICIENTS, np.uint32)
        coefficients[: 8 * len(data)] = dense.bits_of(data)
        plain = self._seal.Plaintext()
        plain.load_bytes(self._context, self._plain_header + _blob(coefficients))
        return plain
