"""The TPM 2.0 slot: the root sealed to this chip and to what it measured at boot.

The root is the only thing the chip keeps for us; keys of the store are derived from it in the process.
TPM2_EncryptDecrypt is optional in the specification and missing on common chips, and a chip does some tens
of operations a second, so keys are never sent to it one by one.
"""

from __future__ import annotations

from typing import Any

from keyhaul.errors import SealError
from keyhaul.keys import Secret
from keyhaul.stores.sealing.keyfile import Grade
from keyhaul.stores.sealing.tss import (
    PCRS,
    TPM_KEY_SIZE,
    TPM_MODE,
    TPM_SYMMETRIC,
    TPM_VALUE,
    Chip,
    connected,
    error_code,
)
from keyhaul.stores.sealing.wrapping import damaged, decode, encode

KEY_SIZES = (256, 128)  # bits of AES in the storage key: 128 is all that every TPM 2.0 must have
_UNSUPPORTED = (TPM_VALUE, TPM_KEY_SIZE, TPM_MODE, TPM_SYMMETRIC)


class Tpm:
    """`tcti` as tpm2-tools write it (`device:/dev/tpmrm0`, `swtpm:host=…,port=…`, `cmd:…`), `pcrs` likewise.

    The default PCR 7 is the secure boot policy. PCRs 0, 2 and 4 change with firmware and kernel updates,
    so whoever adds them needs the recovery slot more often. A software TPM is of grade `software`.
    """

    kind = "tpm2"

    def __init__(self, tcti: str, pcrs: str = "sha256:7") -> None:
        self.tcti = tcti
        self.pcrs = pcrs
        self._grade: Grade | None = Grade.SOFTWARE if tcti.startswith(("swtpm", "mssim")) else None
        self._caveats: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"Tpm({self.tcti!r}, {self.pcrs!r})"

    @property
    def label(self) -> str:
        return self.tcti

    @property
    def grade(self) -> Grade:
        """Asks the chip who made it, once. SealError if it cannot be reached."""
        if self._grade is None:
            with connected(self.tcti) as chip:
                self._grade = chip.grade()
        return self._grade

    def wrap(self, root: Secret) -> dict[str, Any]:
        """Seal, and unseal once to be sure that it can be done."""
        with connected(self.tcti) as chip:
            self._examine(chip, self.pcrs)
            bits, parent = _storage_key(chip)
            data = _seal(chip, root, self.pcrs, bits, parent)
        with self.unwrap(data) as again:
            if not again.same_as(root):
                raise SealError(
                    f"TPM {self.tcti} gave back something else than was sealed", "replace the TPM"
                )
        return data

    def unwrap(self, data: dict[str, Any]) -> Secret:
        """Unseal under the recorded PCR selection, if this is the TPM that sealed."""
        bits, pcrs = data.get("aes_bits"), data.get("pcrs")
        if bits not in KEY_SIZES or not isinstance(pcrs, str) or not PCRS.fullmatch(pcrs):
            raise damaged("aes_bits or pcrs")
        with connected(self.tcti) as chip:
            self._examine(chip, pcrs)
            parent = chip.storage_key(bits)
            if bytes(chip.esys.tr_get_name(parent)) != decode(data, "parent"):
                raise SealError(
                    f"TPM {self.tcti} did not seal this root (it is another machine's, or was cleared)",
                    "use the machine it was sealed on, or open with the recovery slot and seal again",
                )
            return _unseal(chip, data, pcrs, bits, parent)

    def caveats(self) -> tuple[str, ...]:
        return self._caveats

    def _examine(self, chip: Chip, pcrs: str) -> None:
        """Find the grade, and what is hollow about this TPM."""
        if self._grade is None:
            self._grade = chip.grade()
        caveats = []
        if self._grade is Grade.SOFTWARE:
            caveats.append(
                f"SOFTWARE TPM at {self.tcti}: it is NO BOUNDARY. Whoever copies its state directory "
                "together with the store opens both; use it for trials only"
            )
        if all(value.strip(b"\0") == b"" or value.strip(b"\xff") == b"" for value in chip.pcr_values(pcrs)):
            caveats.append(
                f"PCRs {pcrs} of TPM {self.tcti} were never extended (all zeros or all ones): "
                "the PCR policy protects nothing"
            )
        self._caveats = tuple(caveats)


def _storage_key(chip: Chip) -> tuple[int, Any]:
    """The strongest storage key that this TPM can make, and the bits of its AES."""
    try:
        return KEY_SIZES[0], chip.storage_key(KEY_SIZES[0])
    except chip.lib.TSS2_Exception as error:
        if error_code(error) not in _UNSUPPORTED:
            raise
    return KEY_SIZES[1], chip.storage_key(KEY_SIZES[1])


def _seal(chip: Chip, root: Secret, pcrs: str, bits: int, parent: Any) -> dict[str, Any]:
    """A sealed data object without password: the PCR policy is the only way in (TPM part 3, 12.1)."""
    lib, esys = chip.lib, chip.esys
    trial = chip.pcr_session(pcrs, trial=True)
    policy = esys.policy_get_digest(trial)
    attribute = lib.TPMA_OBJECT
    template = lib.TPM2B_PUBLIC(
        lib.TPMT_PUBLIC(
            type=lib.TPM2_ALG.KEYEDHASH,
            nameAlg=lib.TPM2_ALG.SHA256,
            objectAttributes=attribute.FIXEDTPM | attribute.FIXEDPARENT | attribute.NODA,
            authPolicy=policy,
        )
    )
    template.publicArea.parameters.keyedHashDetail.scheme.scheme = lib.TPM2_ALG.NULL
    sensitive = lib.TPMS_SENSITIVE_CREATE(data=lib.TPM2B_SENSITIVE_DATA(root.reveal()))
    private, public, *_ = esys.create(
        parent,
        lib.TPM2B_SENSITIVE_CREATE(sensitive),
        template,
        session1=lib.ESYS_TR.PASSWORD,
        session2=chip.salted_session(parent, bits),
    )
    return {
        "pcrs": pcrs,
        "aes_bits": bits,
        "parent": encode(bytes(esys.tr_get_name(parent))),
        "public": encode(public.marshal()),
        "private": encode(private.marshal()),
    }


def _unseal(chip: Chip, data: dict[str, Any], pcrs: str, bits: int, parent: Any) -> Secret:
    lib, esys = chip.lib, chip.esys
    try:
        private, _ = lib.TPM2B_PRIVATE.unmarshal(decode(data, "private"))
        public, _ = lib.TPM2B_PUBLIC.unmarshal(decode(data, "public"))
    except lib.TSS2_Exception:
        raise damaged("public or private") from None
    sealed = chip.keep(esys.load(parent, private, public))
    session = chip.salted_session(parent, bits)
    return Secret(bytes(esys.unseal(sealed, session1=chip.pcr_session(pcrs), session2=session)))
