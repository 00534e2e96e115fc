"""The values a configuration consists of: frozen, complete, every path absolute or relative to the file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from keyhaul import pools as stocking
from keyhaul.admission import Rules
from keyhaul.policy import NO_POLICY, Limits, PathPolicy

Tls = Literal["pq", "compatible", "classic"]
Kind = Literal["qkd", "pqc", "plain"]
Mode = Literal["otp", "expanded"]
OnFailure = Literal["fail-closed", "degrade-with-alarm"]

DOCUMENTATION_PEN = 32473
"""The private enterprise number reserved for examples (RFC 5612); no release may speak under it."""


@dataclass(frozen=True, slots=True)
class Listener:
    """One port: where it listens (port 0: one the system picks) and its PEM files.

    `ca` are the CAs whose clients it believes; `tls` is the key exchange policy (see `edge.tls.Policy`).
    `url` (plain port only): the address others know it by, where it is not host and port.
    """

    host: str
    port: int
    cert: Path
    key: Path
    ca: Path
    tls: Tls
    url: str | None = None


@dataclass(frozen=True, slots=True)
class Listeners:
    """The ports of a node, each with its own CAs (design §3).

    `plain` is for key managers of other makers, which may know neither ML-DSA nor post-quantum groups;
    without it they come to the node port. `skip` is for encryptors that
    speak SKIP.
    """

    sae: Listener
    node: Listener
    admin: Listener
    plain: Listener | None = None
    skip: Listener | None = None

    def __iter__(self) -> Iterator[tuple[str, Listener]]:
        """Those that are there, by name."""
        yield from (("sae", self.sae), ("node", self.node), ("admin", self.admin))
        if self.plain is not None:
            yield "plain", self.plain
        if self.skip is not None:
            yield "skip", self.skip


@dataclass(frozen=True, slots=True)
class SlotSource:
    """Where one key slot gets what opens it. Which fields count depends on `kind`:

    * `passphrase`: `file`, or `fd`, a descriptor the starter left open, or `env`, the name of an
      environment variable that holds the path of a file; without any the person at the terminal is asked.
    * `credential`: `file`; without it the systemd credential `name`.
    * `tpm`: `tcti` (None: the kernel's own TPM) and `pcrs`, such as `sha256:7`.
    * `pkcs11`: `module`, `token`, `name` of the key, and the PIN from `file`, `fd` or `env`.
    """

    kind: Literal["passphrase", "credential", "tpm", "pkcs11"]
    file: Path | None = None
    fd: int | None = None
    env: str | None = None
    name: str = "keyhaul-root"
    tcti: str | None = None
    pcrs: str = "sha256:7"
    module: Path | None = None
    token: str = ""


@dataclass(frozen=True, slots=True)
class StoreConfig:
    """The database and the key-slot file it opens with."""

    file: Path
    root: Path
    slots: tuple[SlotSource, ...]


@dataclass(frozen=True, slots=True)
class DeviceEnd:
    """This node's end of a QKD link: a vendor's 014 server, and who we are to it.

    `key_size` in bits. `max_key_per_request` 0: as the device's status says.
    """

    url: str
    cert: Path
    key: Path
    ca: Path
    tls: Tls
    own_sae: str
    peer_sae: str
    key_size: int
    max_key_per_request: int
    method: Literal["auto", "get", "post"]


@dataclass(frozen=True, slots=True)
class Peer:
    """A neighbour. `callback` (plain only): the origin its acknowledgements may name and ours go to."""

    name: str
    url: str
    kind: Kind
    mode: Mode
    dialect: Literal["v1.1.1", "draft-0.4"]
    callback: str | None = None
    device: DeviceEnd | None = None


@dataclass(frozen=True, slots=True)
class NetworkLink:
    """Adjacency of two nodes."""

    a: str
    b: str
    kind: Literal["qkd", "pqc"]
    mode: Mode


@dataclass(frozen=True, slots=True)
class ForeignSae:
    """Behind which plain peer of which node an SAE of another maker's network is found."""

    node: str
    peer: str


@dataclass(frozen=True, slots=True)
class NetworkView:
    """What routing starts from.

    `nodes` maps names to domains, `saes` SAE ids to nodes, `costs` link kinds to costs.
    """

    nodes: Mapping[str, str]
    links: tuple[NetworkLink, ...]
    saes: Mapping[str, str]
    foreign: Mapping[str, ForeignSae] = field(default_factory=dict)
    costs: Mapping[str, float] = field(default_factory=lambda: dict(COSTS))


COSTS: Mapping[str, float] = {"qkd": 1.0, "pqc": 2.0}
"""A quantum hop is preferred until it would take twice as many of them."""


@dataclass(frozen=True, slots=True)
class Delivery:
    """How keys are handed out. Times in seconds; `pool` in keys kept ready per pair of SAEs, or by demand.

    `release`: the master gets a key when all targets have it (`relayed`) or at once (`immediate`).
    `retention`: how long the tombstone of a finished key is kept. `void_delivered`: paper B's void.
    """

    release: Literal["relayed", "immediate"] = "relayed"
    request_timeout: float = 15.0
    ttl: float = 86_400.0
    retention: float = 86_400.0
    pool: int | Literal["auto"] = "auto"
    profile: Literal["default", "paper-a"] = "default"
    void_delivered: bool = False


@dataclass(frozen=True, slots=True)
class Prefetch:
    """Link keys held ready for each neighbour: refilled to `high` when fewer than `low` are left."""

    low: int = 16
    high: int = 64


MIN_ENTROPY = 7.0
"""Bits per byte that a source is taken to have where nobody says: low enough for every real QRNG."""

PER_REQUEST = 1024  # bytes


@dataclass(frozen=True, slots=True)
class EntropySource:
    """One generator. `min_entropy` in bits per raw byte. Which fields count depends on `kind`:

    * `os`: none; the operating system's generator is mixed in always, named or not.
    * `file`: `path` of a device, a FIFO or, for trials, a plain file.
    * `http`: `url`, `json_path`, `encoding`, `per_request` bytes; `ca` (None: the system's), `cert` and
      `key` for mutual TLS; the content of `api_key_file` goes into `api_key_header`.
    * `tpm`: `tcti` (None: the kernel's own TPM).
    * `pkcs11`: `module`, `token`, and `pin_file` for tokens that want a login first.
    """

    kind: Literal["os", "file", "http", "tpm", "pkcs11"] = "os"
    name: str = "os"
    min_entropy: float = MIN_ENTROPY
    path: Path | None = None
    url: str = ""
    json_path: str = "data"
    encoding: Literal["hex", "base64", "uint8", "raw"] = "hex"
    per_request: int = PER_REQUEST
    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None
    api_key_header: str = "x-api-key"
    api_key_file: Path | None = None
    tcti: str | None = None
    module: Path | None = None
    token: str = ""
    pin_file: Path | None = None


@dataclass(frozen=True, slots=True)
class EntropyConfig:
    """Where end keys come from. `buffer`: bytes held ready per source."""

    sources: tuple[EntropySource, ...] = (EntropySource(),)
    on_failure: OnFailure = "fail-closed"
    buffer: int = 65_536


@dataclass(frozen=True, slots=True)
class AuditConfig:
    """The audit log; none without `file`. `required`: no key is handed out that is not in it on disk."""

    file: Path | None = None
    required: bool = False
    rotate_bytes: int = 64 * 2**20


@dataclass(frozen=True, slots=True)
class MonitorConfig:
    """Where `/live`, `/ready` and `/metrics` are served in plain HTTP; nowhere without `port`."""

    host: str = "127.0.0.1"
    port: int | None = None


@dataclass(frozen=True, slots=True)
class LogConfig:
    """The log: nothing below `level` is written, unless an operator wants it for a while."""

    level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"


@dataclass(frozen=True, slots=True)
class SkipConfig:
    """Names of SKIP. `systems` maps system ids to SAE ids; an SAE that is not named has its own id."""

    systems: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TracesConfig:
    """Where spans go, OTLP over HTTP; nowhere without `endpoint`.

    `ratio` of the traces that begin here is recorded. `key_ids`: whether spans name keys by their ids.
    `ca`: that of an https collector, None: the system's.
    """

    endpoint: str = ""
    ratio: float = 1.0
    key_ids: bool = False
    ca: Path | None = None


@dataclass(frozen=True, slots=True)
class BlindConfig:
    """Whether this node takes part in scheme `blind`, and the profile of the BFV keys it announces.

    `rerandomise`: whether it takes part in `blind-fresh` as well.
    """

    enabled: bool = False
    profile: Literal["dense", "dense-25"] = "dense"
    rerandomise: bool = False


@dataclass(frozen=True, slots=True)
class MaskedConfig:
    """How this node makes secrets with destinations.

    `form`: one secret for the payloads of an hour (`epoch`), or one for each payload (`batch`).
    """

    kem: Literal["ml-kem-768", "ml-kem-1024", "ml-kem-768+x25519"] = "ml-kem-768"
    form: Literal["epoch", "batch"] = "epoch"


@dataclass(frozen=True, slots=True)
class SchemesConfig:
    """How keys are kept from relays. `default`: where a request names no scheme.

    `private_keys`: what opens the private halves that others send under, the store's root or only its TPM.
    """

    default: Literal["auto", "trusted", "masked", "blind", "blind-fresh"] = "auto"
    blind: BlindConfig = BlindConfig()
    masked: MaskedConfig = MaskedConfig()
    private_keys: Literal["store", "tpm"] = "store"


@dataclass(frozen=True, slots=True)
class NodeConfig:
    """Everything one node needs to know before it starts.

    `workers`: processes that serve the SAE port, 0 for the node's own.
    """

    file: Path
    name: str
    domain: str
    directory: Path
    listeners: Listeners
    store: StoreConfig
    peers: tuple[Peer, ...]
    network: NetworkView
    limits: Limits
    delivery: Delivery
    prefetch: Prefetch
    extension_pen: int
    ready_file: Path | None = None
    user: str = ""
    workers: int = 0
    entropy: EntropyConfig = EntropyConfig()
    admission: Rules = field(default_factory=Rules)
    audit: AuditConfig = AuditConfig()
    monitor: MonitorConfig = MonitorConfig()
    log: LogConfig = LogConfig()
    traces: TracesConfig = TracesConfig()
    schemes: SchemesConfig = SchemesConfig()
    skip: SkipConfig = field(default_factory=SkipConfig)
    policy: PathPolicy = NO_POLICY
    pools: stocking.Rules = field(default_factory=stocking.Rules)
