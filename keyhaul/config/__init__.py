"""The configuration of one node: a TOML file becomes frozen values once, or every mistake at once."""

from keyhaul.config.entropy import parse_entropy
from keyhaul.config.model import (
    AuditConfig,
    Delivery,
    DeviceEnd,
    EntropyConfig,
    EntropySource,
    ForeignSae,
    Listener,
    Listeners,
    MonitorConfig,
    NetworkLink,
    NetworkView,
    NodeConfig,
    Peer,
    Prefetch,
    SlotSource,
    StoreConfig,
)
from keyhaul.config.parse import check, load
from keyhaul.config.reader import Mistake, Mistakes

__all__ = [
    "AuditConfig",
    "Delivery",
    "DeviceEnd",
    "EntropyConfig",
    "EntropySource",
    "ForeignSae",
    "Listener",
    "Listeners",
    "Mistake",
    "Mistakes",
    "MonitorConfig",
    "NetworkLink",
    "NetworkView",
    "NodeConfig",
    "Peer",
    "Prefetch",
    "SlotSource",
    "StoreConfig",
    "check",
    "load",
    "parse_entropy",
]
