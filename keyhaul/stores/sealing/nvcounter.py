"""A TPM counter that only goes up, for `rollback.Guard`.

It is an NV index of type counter (TPM part 2, 13.2). Its authorization value is derived from the root, and
reading and turning it run in HMAC sessions under that value: without the root nobody turns it, or forges
what it says on the bus. Whoever owns the TPM can delete it, but cannot make it again with the same
authorization, and a counter made again starts above all earlier ones: that is refused, not a way back.
"""

from __future__ import annotations

from typing import Any

from keyhaul.errors import SealError
from keyhaul.keys import Secret
from keyhaul.stores.sealing import tss
from keyhaul.stores.sealing.keyfile import derive
from keyhaul.stores.sealing.tss import Chip, connected

INDEX = 0x01800100  # in the owner's range of the TCG handle registry; one per node where nodes share a TPM
SIZE = 8  # bytes, big endian


class NvCounter:
    """The counter at `index` of the TPM at `tcti`. Every call connects anew, blocks, and raises SealError.

    A hardware TPM takes some tens of milliseconds a call and wears with increments: minutes apart, not keys.
    """

    def __init__(self, tcti: str, root: Secret, index: int = INDEX) -> None:
        self.tcti = tcti
        self.index = index
        with derive(root, "seal/counter") as auth:
            # The TPM drops trailing zeros of authorization values (TPM part 1); so must we.
            self._auth = Secret(auth.reveal().rstrip(b"\0"))
        other = (
            f"the counter {index:#x} belongs to something else than this node's root",
            "give this node another index, or remove that one with `tpm2_nvundefine` if nobody needs it",
        )
        gone = (
            f"there is no counter {index:#x}",
            "if this TPM had it, somebody removed it: check the store's age, then accept it explicitly",
        )
        self._meanings = {
            **tss.MEANINGS,
            tss.TPM_AUTH_FAIL: other,
            tss.TPM_BAD_AUTH: other,
            tss.TPM_HANDLE: gone,
        }

    def define(self) -> int:
        """Make the counter unless it is there, and return its value; for `init`, not for every start."""
        with connected(self.tcti, self._meanings) as chip:
            # `listed` owns the memory that its members point into: it must outlive them
            _, listed = chip.esys.get_capability(chip.lib.TPM2_CAP.HANDLES, self.index, 1)
            if self.index in [int(handle) for handle in listed.data.handles]:
                return self._read(chip, self._handle(chip))
            handle = self._define(chip)
            chip.esys.nv_increment(handle, session1=chip.authorizing_session())  # unreadable before the first
            return self._read(chip, handle)

    def read(self) -> int:
        with connected(self.tcti, self._meanings) as chip:
            return self._read(chip, self._handle(chip))

    def increment(self) -> int:
        """One step up; returns the new value."""
        with connected(self.tcti, self._meanings) as chip:
            handle = self._handle(chip)
            chip.esys.nv_increment(handle, session1=chip.authorizing_session())
            return self._read(chip, handle)

    def _handle(self, chip: Chip) -> Any:
        handle = chip.esys.tr_from_tpmpublic(self.index)
        chip.esys.tr_set_auth(handle, self._auth.reveal())
        return handle

    def _read(self, chip: Chip, handle: Any) -> int:
        value = bytes(chip.esys.nv_read(handle, SIZE, session1=chip.authorizing_session()))
        if len(value) != SIZE:
            raise SealError(f"the counter {self.index:#x} is no counter", "give this node another index")
        return int.from_bytes(value, "big")

    def _define(self, chip: Chip) -> Any:
        lib = chip.lib
        attribute = lib.TPMA_NV
        public = lib.TPM2B_NV_PUBLIC(
            lib.TPMS_NV_PUBLIC(
                nvIndex=self.index,
                nameAlg=lib.TPM2_ALG.SHA256,
                attributes=attribute.AUTHREAD
                | attribute.AUTHWRITE
                | attribute.NO_DA
                | (lib.TPM2_NT.COUNTER << attribute.TPM2_NT_SHIFT),
                dataSize=SIZE,
            )
        )
        parent = chip.storage_key(128)
        return chip.esys.nv_define_space(
            lib.TPM2B_AUTH(self._auth.reveal()),
            public,
            session1=lib.ESYS_TR.PASSWORD,
            session2=chip.salted_session(parent, 128),
        )
