"""The physics and statistics of a simulated QKD link: rate, bursts, store, delay, bits; time is passed in.

What is modelled, and from where:
* secret key rate over fibre: asymptotic decoy-state BB84 (Ma, Qi, Zhao, Lo, Phys. Rev. A 72, 012326 (2005),
  eqs. 8-10, 34, 42), kept under the repeaterless bound of Pirandola et al. (Nat. Commun. 8, 15043 (2017));
* blocks: "devices do not generate the keys at constant, predictable rates, but rather in discrete bursts"
  (paper A, Section I): a block of bits appears after a gamma-distributed wait;
* response delay: log-normal, because the measured delays are skewed to the right (paper A, Figure 5),
  fitted to the median and the jitter of Table IV.

Given the same seeds, everything here gives the same results.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from statistics import NormalDist

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

FIBRE_LOSS = 0.2
"""Attenuation of standard single-mode fibre at 1550 nm, in dB/km (ITU-T G.652.D)."""


@dataclass(frozen=True, slots=True)
class Optics:
    """Transmitter and detectors of a decoy-state BB84 pair.

    `pulses` is the rate of usable pulses in 1/s after dead time and duty cycle; its default puts the formula
    at about 500 bits/s over 120 km, what paper A (Section VI-2) found there. `ceiling` in bits/s stands for
    detectors and post-processing that saturate on short fibres.
    """

    pulses: float = 14e6
    mean_photons: float = 0.5
    efficiency: float = 0.1
    dark_counts: float = 1e-6  # per pulse
    misalignment: float = 0.015
    correction: float = 1.16  # error-correction inefficiency f >= 1
    ceiling: float = 4000.0


def transmittance(distance_km: float) -> float:
    """Share of photons that survive `distance_km` of fibre."""
    return math.pow(10.0, -FIBRE_LOSS * distance_km / 10.0)


def repeaterless_bound(distance_km: float) -> float:
    """Most secret bits per channel use that any protocol without a repeater can reach."""
    eta = transmittance(distance_km)
    return -math.log2(1.0 - eta) if eta < 1.0 else math.inf


def _binary_entropy(share: float) -> float:
    if share <= 0.0 or share >= 1.0:
        return 0.0
    return -share * math.log2(share) - (1.0 - share) * math.log2(1.0 - share)


def secret_key_rate(distance_km: float, optics: Optics | None = None) -> float:
    """Secret key rate in bits/s over `distance_km` of fibre; 0 where dark counts drown the signal."""
    o = optics or Optics()
    eta = o.efficiency * transmittance(distance_km)
    clicks = 1.0 - math.exp(-eta * o.mean_photons)
    gain = o.dark_counts + clicks
    error = (0.5 * o.dark_counts + o.misalignment * clicks) / gain
    single_yield = o.dark_counts + eta
    single_gain = single_yield * o.mean_photons * math.exp(-o.mean_photons)
    single_error = (0.5 * o.dark_counts + o.misalignment * eta) / single_yield
    per_pulse = 0.5 * (
        single_gain * (1.0 - _binary_entropy(single_error)) - gain * o.correction * _binary_entropy(error)
    )
    per_pulse = min(max(0.0, per_pulse), repeaterless_bound(distance_km))
    return min(o.ceiling, o.pulses * per_pulse)


@dataclass(frozen=True, slots=True)
class Delay:
    """A log-normal response delay: `median` in seconds, `sigma` of its logarithm."""

    median: float
    sigma: float

    @classmethod
    def from_jitter(cls, median: float, jitter_95: float) -> Delay:
        """The delay whose jitter, |difference of two successive delays|, has `jitter_95` as 95th percentile.

        Both in seconds. Table IV of paper A gives no percentile of the delay itself, but this one.
        """
        if median <= 0 or jitter_95 <= 0:
            return cls(max(median, 0.0), 0.0)
        low, high = 0.0, 3.0
        for _ in range(30):
            middle = (low + high) / 2
            if _jitter_within(jitter_95 / median, middle) > 0.95:
                low = middle
            else:
                high = middle
        return cls(median, (low + high) / 2)

    def percentile(self, share: float) -> float:
        """Seconds under which a `share` of the delays stays."""
        return self.median * math.exp(self.sigma * NormalDist().inv_cdf(share))

    def draw(self, rng: random.Random) -> float:
        """One delay in seconds."""
        return self.median * math.exp(self.sigma * rng.gauss(0.0, 1.0))


def _jitter_within(jitter: float, sigma: float) -> float:
    """P(|X - Y| <= jitter) for two independent log-normals of median 1; midpoint rule over X."""
    normal = NormalDist()
    if sigma < 1e-6:
        return 1.0
    steps = 160
    total = 0.0
    for step in range(steps):
        x = math.exp(sigma * normal.inv_cdf((step + 0.5) / steps))
        above = normal.cdf(math.log(x + jitter) / sigma)
        below = normal.cdf(math.log(x - jitter) / sigma) if x > jitter else 0.0
        total += above - below
    return total / steps


@dataclass(frozen=True, slots=True)
class Supply:
    """How a link makes key: `rate` in bits/s, blocks and store in bits (multiples of 8).

    `burstiness` is the coefficient of variation of the wait between blocks: 0 is clockwork, 1 is Poisson.
    """

    rate: float
    block: int
    burstiness: float
    capacity: int
    initial: int

    def __post_init__(self) -> None:
        if self.block <= 0 or any(bits % 8 for bits in (self.block, self.capacity, self.initial)):
            raise ValueError("block, capacity and initial are whole bytes, and a block is not empty")
        if self.rate < 0 or self.burstiness < 0 or not 0 <= self.initial <= self.capacity:
            raise ValueError("rate and burstiness are not negative, and the initial fill fits the capacity")


class Reservoir:
    """The stream of secret bits that both ends of a pair share, and how far it has been used.

    Two positions in the stream tell everything: bits before `head` are gone, bits from `head` to `produced`
    are stored. A full store gives up its oldest bits. At every moment
    `produced == stored + taken + discarded`. Times are seconds of any clock that does not go back.
    """

    def __init__(self, supply: Supply, rng: random.Random, now: float) -> None:
        self._supply = supply
        self._rng = rng
        self._next = now + self._wait()
        self._paused_with: float | None = None  # seconds the unfinished block still needed
        self.produced = supply.initial
        self.head = 0
        self.taken = 0
        self.discarded = 0

    @property
    def stored(self) -> int:
        """Bits that can be taken now."""
        return self.produced - self.head

    @property
    def capacity(self) -> int:
        """Bits that fit."""
        return self._supply.capacity

    def advance(self, now: float) -> None:
        """Let every block appear that was due by `now`."""
        if self._paused_with is not None:
            return
        while self._next <= now:
            self.produced += self._supply.block
            self._next += self._wait()
            self._drop(self.stored - self._supply.capacity)

    def take(self, bits: int, now: float) -> int | None:
        """Position in bits of `bits` fresh bits, now used up; None if fewer are stored."""
        self.advance(now)
        if bits > self.stored:
            return None
        position = self.head
        self.head += bits
        self.taken += bits
        return position

    def burn(self, bits: int) -> None:
        """Count `bits` that were taken as discarded: no application will ever get them."""
        self.taken -= bits
        self.discarded += bits

    def drain(self, now: float) -> None:
        """Discard everything stored."""
        self.advance(now)
        self._drop(self.stored)

    def pause(self, now: float) -> None:
        """Stop production, as a cut fibre does; what is stored stays."""
        self.advance(now)
        if self._paused_with is None:
            self._paused_with = self._next - now

    def resume(self, now: float) -> None:
        """Go on with the block that was under way."""
        if self._paused_with is not None:
            self._next = now + self._paused_with
            self._paused_with = None

    def _drop(self, bits: int) -> None:
        if bits > 0:
            self.head += bits
            self.discarded += bits

    def _wait(self) -> float:
        if self._supply.rate <= 0:
            return math.inf
        mean = self._supply.block / self._supply.rate
        if self._supply.burstiness == 0:
            return mean
        shape = self._supply.burstiness**-2
        return self._rng.gammavariate(shape, mean / shape)


class KeyStream:
    """The bits themselves: AES-256 in counter mode under a key from the pair's shared seed.

    The seed file stands for the quantum channel: made once at set-up, it lets both ends derive the same
    bits for the same position, so that no key ever crosses the classical channel. `run` is fresh whenever the
    end that keeps the account starts, so a restart never brings used bits back.
    """

    def __init__(self, seed: bytes, run: bytes) -> None:
        if len(seed) < 32:
            raise ValueError("a seed has at least 32 bytes")
        kdf = HKDF(SHA256(), length=32, salt=run, info=b"keyhaul testbed qkd stream v1")
        self._cipher = algorithms.AES(kdf.derive(seed))

    def bits(self, position: int, size: int) -> bytearray:
        """`size` bits from `position`, both multiples of 8, as bytes."""
        if position % 8 or size % 8 or position < 0 or size < 0:
            raise ValueError("positions and sizes are whole bytes")
        block, skip = divmod(position // 8, 16)
        counter = modes.CTR(block.to_bytes(16, "big"))
        stream = Cipher(self._cipher, counter).encryptor().update(bytes(skip + size // 8))
        return bytearray(stream[skip:])
