"""Where end keys come from: the node's own generator, never a QKD device (paper B §4.1).

A `Source` is tested (`health`), conditioned and read ahead (`feed`), and XORed with the operating
system's generator (`mixer`), so that what comes out is never worse than that alone.
"""

from keyhaul.entropy.feed import Feed, Stage
from keyhaul.entropy.health import Finding, Health
from keyhaul.entropy.mixer import MixedEntropy, OnFailure, SystemEntropy
from keyhaul.entropy.sources import BlockingSource, Encoding, FileSource, HttpSource, Source

__all__ = [
    "BlockingSource",
    "Encoding",
    "Feed",
    "FileSource",
    "Finding",
    "Health",
    "HttpSource",
    "MixedEntropy",
    "OnFailure",
    "Source",
    "Stage",
    "SystemEntropy",
]
