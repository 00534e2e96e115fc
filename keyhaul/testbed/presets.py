"""Profiles of QKD devices: the eight of paper A, the pair of paper B, and one without delay for benchmarks.

Where the figures come from:
* delay: paper A, Table IV, columns "latency median" and "95%-th jitter". The table's four columns are jitter
  median, 95th percentile of jitter, 95th percentile of the rolling standard deviation, median latency, as the
  text of VI-3 confirms. They were taken at the SAE, so the whole of paper A's software is in them; they are
  an upper bound of what the device alone needs.
* rate: paper A, Table III, the highest mean in the rows of the pair's two nodes: what one end was seen to
  deliver, the link must have made. The table is bound by latency (256 bits / median delay is within 6 % of
  the mean of every row, once the stray 509.5 in row 7 is left out), so true rates may be higher.
  The Clavis 3 pair of paper B made 1,900 to 2,500 bits/s over about 1 km (paper B, section 5).
* block, burstiness, store, limits and quirks: neither paper states them. They are ours, chosen so that the
  eight devices differ in the ways 014 servers are known to differ, and say nothing about any maker's product.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from keyhaul.testbed.qkdlink import Delay, Supply, secret_key_rate

Verbs = Literal["both", "get", "post"]


@dataclass(frozen=True, slots=True)
class Profile:
    """One device. Rates in bits/s, sizes in bits, times in seconds.

    `rate` None means: from `distance_km` by the rate-loss model. `verbs`: what enc_keys and dec_keys accept.
    `empty_status` is sent when key runs out (014 leaves it open; 400 and 503 are both seen in the field).
    `status_every`: stored_key_count is refreshed only so often, so a status can be out of date.
    `status_omits`: members of Status this device leaves out although 014 requires them.
    """

    title: str
    rate: float | None = None
    distance_km: float | None = None
    block: int = 16_384
    burstiness: float = 0.3
    capacity: int = 1_048_576
    initial: int = 262_144
    delay_median: float = 0.0
    delay_jitter_95: float = 0.0
    key_size: int = 256
    min_key_size: int = 64
    max_key_size: int = 4096
    max_key_per_request: int = 16
    max_extra_saes: int = 0
    key_ttl: float = 3600.0
    verbs: Verbs = "both"
    empty_status: Literal[400, 503] = 503
    status_every: float = 0.0
    status_omits: tuple[str, ...] = ()

    def supply(self) -> Supply:
        """The statistics of the link behind this device."""
        rate = self.rate
        if rate is None:
            rate = secret_key_rate(self.distance_km or 0.0)
        return Supply(rate, self.block, self.burstiness, self.capacity, self.initial)

    def delay(self) -> Delay:
        """The delay of enc_keys and dec_keys."""
        return Delay.from_jitter(self.delay_median, self.delay_jitter_95)


def _both_ends(
    node_a: str, node_b: str, profile: Profile, delay_a: tuple[float, float], delay_b: tuple[float, float]
) -> dict[str, Profile]:
    """One link, two devices that differ in their delay: median and 95th percentile of jitter, in seconds."""
    return {
        name: replace(profile, title=f"{profile.title}, {name}", delay_median=median, delay_jitter_95=jitter)
        for name, (median, jitter) in ((node_a, delay_a), (node_b, delay_b))
    }


PRESETS: dict[str, Profile] = {
    "instant": Profile(
        "no delay, 100 Mbit/s",
        rate=100e6,
        block=8_000_000,
        burstiness=0.0,
        capacity=256_000_000,
        initial=256_000_000,
        min_key_size=8,
        max_key_size=65_536,
        max_key_per_request=512,
        max_extra_saes=8,
    ),
    "clavis3": Profile(
        "IDQ Clavis 3, COW, about 1 km (paper B)",
        rate=2200.0,
        distance_km=1.0,
        delay_median=0.114441,  # of the same site's device in paper A; paper B gives none
        delay_jitter_95=0.067390,
    ),
    **_both_ends(
        "kmstn1",
        "kmstn2",
        Profile(
            "ITG, LuxQuanta NovaLQ, CV-QKD",
            rate=2625.7,
            burstiness=0.2,
            max_key_per_request=64,
            max_extra_saes=2,
        ),
        (0.102661, 0.042079),
        (0.106473, 0.053335),
    ),
    **_both_ends(
        "kmstn3",
        "kmstn4",
        Profile("UVIGO, IDQ Cerberis, DV-QKD", rate=2767.0, verbs="get", empty_status=400),
        (0.110638, 0.078944),
        (0.140890, 0.091555),
    ),
    **_both_ends(
        "kmstn5",
        "kmstn6",
        Profile(
            "CESGA, QTI Quell-X, DV-QKD over 120 km",
            rate=541.6,
            distance_km=120.0,
            block=32_768,
            burstiness=0.5,
            min_key_size=256,
            max_key_size=256,
            max_key_per_request=8,
            status_every=5.0,
            status_omits=("max_SAE_ID_count",),
        ),
        (0.704282, 0.359525),
        (0.496933, 0.724589),
    ),
    **_both_ends(
        "kmstn7",
        "kmstn8",
        Profile(
            "TECNALIA, IDQ Clavis 3, DV-QKD",
            rate=2419.6,
            distance_km=1.0,
            verbs="post",
        ),
        (0.114441, 0.067390),
        (0.131394, 0.059999),
    ),
}
