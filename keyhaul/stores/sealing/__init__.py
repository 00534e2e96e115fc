"""The root secret of a node: 32 bytes that open its store, kept in a file of key slots.

`create` makes the root at `init`, `open_root` opens it at each start, `derive` makes keys from it, and
`rollback.Guard` with a `NvCounter` refuses an old copy of the store. The slots for a TPM and for PKCS#11
need optional packages; everything here imports without them.
"""

from keyhaul.stores.sealing.credential import Credential, systemd_credential
from keyhaul.stores.sealing.items import ItemSeal
from keyhaul.stores.sealing.keyfile import Grade, derive
from keyhaul.stores.sealing.nvcounter import NvCounter
from keyhaul.stores.sealing.passphrase import Cost, Passphrase
from keyhaul.stores.sealing.pkcs11 import Pkcs11
from keyhaul.stores.sealing.rollback import Counter, Guard, check
from keyhaul.stores.sealing.slots import Opened, Slot, add_slot, create, describe, open_root
from keyhaul.stores.sealing.tpm import Tpm
from keyhaul.stores.sealing.tss import default_tcti

__all__ = [
    "Cost",
    "Counter",
    "Credential",
    "Grade",
    "Guard",
    "ItemSeal",
    "NvCounter",
    "Opened",
    "Passphrase",
    "Pkcs11",
    "Slot",
    "Tpm",
    "add_slot",
    "check",
    "create",
    "default_tcti",
    "derive",
    "describe",
    "open_root",
    "systemd_credential",
]
