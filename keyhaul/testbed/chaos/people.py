"""Applications that ask and fetch without pause, behave as 014 wants, and note everything they meet.

A master asks for keys; its slave fetches half of them at once and the others only at the end of the run, up
to some hundreds a pair, so that keys lie in stores while nodes die. Answers that never came are noted as
`cut`: such keys are burned, by design, and nobody counts on them. Now and then a stranger, with a good
certificate of its own, asks for a key that is for others. The bits of some keys stay in the memory of this
process, to be looked for in the end.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from keyhaul.client import AsyncClient
from keyhaul.errors import KeyhaulError, Malformed, PeerUnreachable, TimedOut, Unavailable
from keyhaul.testbed.history import History

PAUSE = 0.05  # seconds between two requests of one master
AFTER_REFUSAL = 0.2  # seconds before it asks again
MOST_KEPT = 400  # keys of one pair that lie in stores until the end
PRYING = 0.1  # share of keys for which a stranger asks
SAMPLE = 500  # keys whose bits are kept, to be looked for in files
CALL = 20.0  # seconds a call may take


@dataclass(slots=True)
class Tally:
    """What became of requests for keys: of one pair, in one phase."""

    served: int = 0
    refused: int = 0
    unanswered: int = 0

    @property
    def asked(self) -> int:
        return self.served + self.refused + self.unanswered


@dataclass(slots=True)
class Pair:
    """A master and its slave, as SAE ids."""

    master: str
    slave: str
    kept: list[UUID] = field(default_factory=list)


class People:
    """All applications of one testbed. `phase` names what is going on, for the tallies."""

    def __init__(self, state: Mapping[str, Any], history: History, pairs: Sequence[tuple[str, str]]) -> None:
        self.history = history
        self.pairs = [Pair(*pair) for pair in pairs]
        self.phase = "calm"
        self.tallies: dict[tuple[str, str, str], Tally] = {}
        self.sample: list[bytes] = []
        """Bits of keys that were received, evenly over the run."""
        self.errors: set[str] = set()
        """All that errors said."""
        self._received = 0
        self._chance = random.Random()  # noqa: S311 (which keys are looked for, not a key)
        self._homes = {sae["id"]: sae["node"] for sae in state["saes"]}
        self._clients = {
            sae["id"]: AsyncClient(
                sae["sae_url"], cert=sae["cert"], key=sae["key"], ca=sae["ca"], timeout=CALL, patience=0.0
            )
            for sae in state["saes"]
        }
        self._stop = asyncio.Event()
        self._news = asyncio.Condition()
        for sae, node in self._homes.items():
            history.note(node, "home", to=(sae,))

    def home(self, sae: str) -> str:
        """The node that serves an SAE."""
        return str(self._homes[sae])

    async def work(self) -> None:
        """Ask and fetch, all pairs at once, until `stop`."""
        async with asyncio.TaskGroup() as tasks:
            for at, pair in enumerate(self.pairs):
                tasks.create_task(self._use(pair, random.Random(at)))  # noqa: S311 (habits, not a key)

    def stop(self) -> None:
        """Finish what was begun and ask for nothing new."""
        self._stop.set()

    async def collect(self, patience: float) -> None:
        """Slaves fetch all that their masters still hold for them, again while nodes say 503."""
        async with asyncio.TaskGroup() as tasks:
            for pair in self.pairs:
                tasks.create_task(self._collect(pair, patience))

    async def close(self) -> None:
        """Hang up."""
        for client in self._clients.values():
            await client.close()

    async def until_served(self, pairs: Sequence[Pair], patience: float) -> float | None:
        """Seconds until every one of these pairs got a key that was asked for from now on; None: too long."""
        loop = asyncio.get_running_loop()
        start = loop.time()
        before = {pair.master + pair.slave: self._served(pair) for pair in pairs}

        def all_served() -> bool:
            return all(self._served(pair) > before[pair.master + pair.slave] for pair in pairs)

        try:
            async with asyncio.timeout(patience), self._news:
                await self._news.wait_for(all_served)
        except TimeoutError:
            return None
        return loop.time() - start

    def _served(self, pair: Pair) -> int:
        mine = (pair.master, pair.slave)
        return sum(tally.served for (_, *those), tally in self.tallies.items() if tuple(those) == mine)

    async def _use(self, pair: Pair, rng: random.Random) -> None:
        while not self._stop.is_set():
            served = await self._ask(pair, rng.randint(1, 4), rng)
            await self._rest(PAUSE if served else AFTER_REFUSAL)

    async def _rest(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stop.wait()

    async def _ask(self, pair: Pair, number: int, rng: random.Random) -> bool:
        """One request for keys; half of what it brings is fetched at once."""
        history, request = self.history, self.history.request()
        tally = self.tallies.setdefault((self.phase, pair.master, pair.slave), Tally())
        history.note(pair.master, "asked", request=request, to=(pair.slave,))
        try:
            keys = await self._clients[pair.master].get_key(pair.slave, number=number)
        except KeyhaulError as error:
            if self._unanswered(pair.master, request, error):
                tally.unanswered += 1
            else:
                tally.refused += 1
            return False
        except asyncio.CancelledError:
            history.note(pair.master, "cut", request=request, text="the run was broken off")
            raise
        for key in keys:
            self._keep(bytes(key.bits.reveal()))
            digest = history.digest(key.bits.reveal())
            key.bits.wipe()
            history.note(
                pair.master, "got", request=request, key_id=key.key_id, digest=digest, to=(pair.slave,)
            )
        tally.served += 1
        async with self._news:
            self._news.notify_all()
        for key in keys:
            await self._pry(pair, key.key_id, rng)
            keeps = rng.random() < 0.5 and len(pair.kept) < MOST_KEPT
            if keeps or not await self._fetch(pair, key.key_id):
                pair.kept.append(key.key_id)
        return True

    def _keep(self, bits: bytes) -> None:
        """Every key received so far is in the sample with the same chance."""
        self._received += 1
        if len(self.sample) < SAMPLE:
            self.sample.append(bits)
        elif (at := self._chance.randrange(self._received)) < SAMPLE:
            self.sample[at] = bits

    async def _pry(self, pair: Pair, key_id: UUID, rng: random.Random) -> None:
        """Now and then somebody else asks for the key, at a node that has it if there is one."""
        others = [sae for sae in self._clients if sae not in (pair.master, pair.slave)]
        if others and rng.random() < PRYING:
            ends = {self._homes[pair.master], self._homes[pair.slave]}
            near = [sae for sae in others if self._homes[sae] in ends]
            await self._fetch(pair, key_id, rng.choice(near or others))

    async def _fetch(self, pair: Pair, key_id: UUID, who: str = "") -> bool:
        """Whether the key's fate is known now: delivered, gone, or burned by a lost answer.

        `who` asks; the slave, if nobody else does.
        """
        history, request, who = self.history, self.history.request(), who or pair.slave
        history.note(who, "fetching", request=request, key_id=key_id)
        try:
            (key,) = await self._clients[who].fetch_key(pair.master, [key_id])
        except KeyhaulError as error:
            return self._unanswered(who, request, error) or not isinstance(error, Unavailable)
        except asyncio.CancelledError:
            history.note(who, "cut", request=request, text="the run was broken off")
            raise
        digest = history.digest(key.bits.reveal())
        key.bits.wipe()
        history.note(who, "fetched", request=request, key_id=key_id, digest=digest)
        return True

    def _unanswered(self, sae: str, request: int, error: KeyhaulError) -> bool:
        """Note how a request failed; True if nobody knows whether the node acted on it."""
        self.errors.add(f"{error} {error.details}")
        if error.details.get("sent") == 0:
            self.history.note(sae, "refused", request=request, status=503, text=error.cause)
            return False
        if isinstance(error, PeerUnreachable | TimedOut | Malformed):
            self.history.note(sae, "cut", request=request, text=error.cause)
            return True
        self.history.note(sae, "refused", request=request, status=error.status, text=error.cause)
        return False

    async def _collect(self, pair: Pair, patience: float) -> None:
        give_up = asyncio.get_running_loop().time() + patience
        while pair.kept and asyncio.get_running_loop().time() < give_up:
            pair.kept = [key_id for key_id in pair.kept if not await self._fetch(pair, key_id)]
            if pair.kept:
                await asyncio.sleep(AFTER_REFUSAL)
