"""Every label that separates one use of a key, hash or signature from another, in one tree.

A label is never reused for a second purpose and never built from foreign bytes.
"""

from __future__ import annotations

_ROOT = b"keyhaul/v1/"

MESSAGE_KEY = _ROOT + b"envelope/message-key"
PAD_KEY = _ROOT + b"envelope/pad-key"
PAD_CHECK = _ROOT + b"envelope/pad-check"
KEM_BATCH = _ROOT + b"link/kem-batch"
DESCRIPTOR = _ROOT + b"control/descriptor"
PAIR_STATEMENT = _ROOT + b"pair/statement"
PAIR_SECRET = _ROOT + b"pair/secret"
MASK_STREAM = _ROOT + b"scheme/mask-stream"
CARRIED_STREAM = _ROOT + b"scheme/carried-stream"
ORIGIN_TAG = _ROOT + b"scheme/origin-tag"
CONFIRMATION = _ROOT + b"scheme/confirmation"
RECEIPT = _ROOT + b"receipt"
RECEIPT_SEAL = _ROOT + b"receipt/seal"
AUDIT_CHECKPOINT = _ROOT + b"audit/checkpoint"
HYBRID_KEM = _ROOT + b"pair/hybrid-kem"
NOTE = _ROOT + b"scheme/note"
