"""The configuration of one node: a TOML file becomes frozen values once, or every mistake at once."""

from keyhaul.config.model import (
    Delivery,
    DeviceEnd,
    ForeignSae,
    Listener,
    Listeners,
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
    "Delivery",
    "DeviceEnd",
    "ForeignSae",
    "Listener",
    "Listeners",
    "Mistake",
    "Mistakes",
    "NetworkLink",
    "NetworkView",
    "NodeConfig",
    "Peer",
    "Prefetch",
    "SlotSource",
    "StoreConfig",
    "check",
    "load",
]
