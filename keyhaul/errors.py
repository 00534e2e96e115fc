"""One small tree of errors: each says whose fault it is, what happened, and what to do next.

    KeyhaulError
    ├── Refused              400  the caller's request cannot be met as it stands
    │   ├── Malformed        400  bytes that are not what the interface says
    │   ├── KeyNotFound      400  a key id that is unknown, delivered, voided or expired here
    │   ├── ExtensionRefused 400  an extension that 014 lets the caller insist on
    │   ├── NoSuchTarget     400  an SAE nobody in the federation serves
    │   └── TooLarge         400  a body over the limit of its port
    ├── Unauthorized         401  a certificate that is not entitled to what it asked for
    ├── TimedOut             408  a request that did not arrive completely in time
    ├── Unavailable          503  ours or the network's fault; the same request may succeed later
    │   ├── NoRoute          503  no path of links joins the two nodes
    │   ├── InsufficientKey  503  a link on the way has not enough key material now
    │   ├── PeerUnreachable  503  a neighbour or device does not answer
    │   ├── StoreUnavailable 503  the store could not save, so nothing was promised
    │   ├── Busy             503  more than the caller's part of this node; come back later
    │   └── Unsupported      503  a mandatory 020 extension this node does not implement
    ├── Tampered             401  authentication of bytes failed; never says how or where
    ├── Conflict             503  a retry whose content differs from what was accepted
    ├── Taken, Spent         500  an item claimed twice, or erased when it was not there
    ├── StaleRow             500  a commit that another step overtook
    ├── IllegalStep          500  a transition the lifecycle table does not have
    ├── ConfigError          exit 2, with file and line
    └── SealError            exit 1: the root secret or the store cannot be opened

`status` is a hint for whoever turns the error into HTTP; one place per port does that.
`retry_after` is in seconds. `cause` and `remedy` are shown to people: nothing secret goes in.
"""

from __future__ import annotations


class KeyhaulError(Exception):
    """Base: `cause` says what is wrong, `remedy` the next step, `details` adds name-value pairs."""

    status = 500
    retry_after: int | None = None

    def __init__(self, cause: str, remedy: str = "", **details: str | int) -> None:
        super().__init__(cause if not remedy else f"{cause}: {remedy}")
        self.cause = cause
        self.remedy = remedy
        self.details = details


class Refused(KeyhaulError):
    status = 400


class Malformed(Refused):
    pass


class KeyNotFound(Refused):
    pass


class ExtensionRefused(Refused):
    pass


class NoSuchTarget(Refused):
    pass


class TooLarge(Refused):
    pass


class Unauthorized(KeyhaulError):
    status = 401


class TimedOut(KeyhaulError):
    status = 408


class Unavailable(KeyhaulError):
    status = 503
    retry_after = 2


class NoRoute(Unavailable):
    retry_after = 10


class InsufficientKey(Unavailable):
    pass


class PeerUnreachable(Unavailable):
    pass


class StoreUnavailable(Unavailable):
    pass


class Busy(Unavailable):
    """A limit of `[admission]` was met; nothing was begun. `reason` is one of a few words, for counting."""

    def __init__(self, reason: str, cause: str, retry_after: int) -> None:
        super().__init__(cause, f"come back in {retry_after} s, or have the limit raised")
        self.reason = reason
        self.retry_after = retry_after


class Unsupported(Unavailable):
    pass


class Conflict(Unavailable):
    pass


class Tampered(KeyhaulError):
    """Authentication failed. The message is constant on purpose: a hint is an oracle."""

    status = 401

    def __init__(self) -> None:
        super().__init__("authentication failed")


class Taken(KeyhaulError):
    pass


class Spent(KeyhaulError):
    pass


class StaleRow(KeyhaulError):
    pass


class IllegalStep(KeyhaulError):
    pass


class ConfigError(KeyhaulError):
    """A mistake in a configuration file: `cause` starts with file and line."""


class SealError(KeyhaulError):
    """The root secret, or the store under it, cannot be opened. Nothing was changed."""
