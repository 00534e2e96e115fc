"""The configuration of one node: a TOML file becomes frozen values once, or every mistake at once."""

from keyhaul.config.entropy import parse_entropy
from keyhaul.config.model import (
    AuditConfig,
    BlindConfig,
    Delivery,
    DeviceEnd,
    EntropyConfig,
    EntropySource,
    ForeignSae,
    Listener,
    Listeners,
    MaskedConfig,
    MonitorConfig,
    NetworkLink,
    NetworkView,
    NodeConfig,
    Peer,
    Prefetch,
    SchemesConfig,
    SlotSource,
    StoreConfig,
)
from keyhaul.config.parse import check, load
from keyhaul.config.reader import Mistake, Mistakes

__all__ = [
    "AuditConfig",
    "BlindConfig",
    "Delivery",
    "DeviceEnd",
    "EntropyConfig",
    "EntropySource",
    "ForeignSae",
    "Listener",
    "Listeners",
    "MaskedConfig",
    "Mistake",
    "Mistakes",
    "MonitorConfig",
    "NetworkLink",
    "NetworkView",
    "NodeConfig",
    "Peer",
    "Prefetch",
    "SchemesConfig",
    "SlotSource",
    "StoreConfig",
    "check",
    "load",
    "parse_entropy",
]
