"""Key ids: version 7 of RFC 9562, and no two alike even when the clock stands still."""

from __future__ import annotations

import asyncio

from keyhaul.entropy import SystemEntropy
from keyhaul.minting import OwnMint


class Stopped:
    def now(self) -> float:
        return 1_800_000_000.5


def test_ids_of_one_millisecond_differ_and_say_their_time() -> None:
    async def story() -> None:
        mint = OwnMint(SystemEntropy(), Stopped())
        made = [pair for number in (1, 3) * 50 for pair in await mint.keys(number, 256)]
        ids = {key_id for key_id, _ in made}
        assert len(ids) == len(made) == 200
        assert {key_id.int >> 80 for key_id in ids} == {1_800_000_000_500}
        assert {key_id.version for key_id in ids} == {7}
        assert {len(secret) for _, secret in made} == {32}

    asyncio.run(story())
