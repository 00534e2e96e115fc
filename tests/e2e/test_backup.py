"""An old backup is restored under a running network: no key comes a second time, and new ones flow again."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from keyhaul.edge.client import Received, SaeClient
from keyhaul.edge.tls import Credentials, Policy, client_context
from keyhaul.errors import KeyNotFound, Unavailable
from keyhaul.testbed.network import Testbed
from keyhaul.testbed.topology import named

pytestmark = pytest.mark.e2e


@contextlib.asynccontextmanager
async def clients(testbed: Testbed) -> AsyncIterator[dict[str, SaeClient]]:
    async with contextlib.AsyncExitStack() as stack:
        found = {}
        for sae in testbed.state()["saes"]:
            files = Credentials(*(Path(sae[part]) for part in ("cert", "key", "ca")))
            client = SaeClient(sae["sae_url"], client_context(files, Policy.COMPATIBLE), patience=0.0)
            found[sae["node"]] = await stack.enter_async_context(client)
        yield found


async def command(*words: str) -> dict[str, Any]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "keyhaul.cli", *words, "--json", stdout=-1, stderr=-1
    )
    out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    said: dict[str, Any] = json.loads(out)
    return said


async def patiently(call: Callable[[], Awaitable[list[Received]]], seen: list[str]) -> list[Received]:
    """As applications do: again, while the node says that it may work later."""
    async with asyncio.timeout(120):
        while True:
            try:
                return await call()
            except Unavailable as busy:
                seen.append(busy.cause)
                await asyncio.sleep(0.5)


def test_after_an_old_backup_no_key_is_met_twice_and_all_pairs_serve_again(tmp_path: Path) -> None:
    async def scene() -> None:
        settings = {"delivery": {"pool": 8, "request_timeout": 5.0}, "audit": {"file": "audit.log"}}
        async with (
            Testbed(named("line-3"), tmp_path / "net", settings=settings) as testbed,
            clients(testbed) as saes,
        ):
            ids: list[UUID] = []
            taken = await saes["n1"].get_key("sae-n3", 4)
            for _ in range(10):  # long enough for the pool to fill
                taken += await patiently(lambda: saes["n1"].get_key("sae-n3"), [])
            fetched = await saes["n3"].fetch_key("sae-n1", [key.key_id for key in taken[:2]])
            assert len(fetched) == 2

            for node in ("n1", "n3"):
                config = str(testbed.layout.node_file(node))
                await command("backup", str(tmp_path / f"backup-{node}"), "--config", config)

            # Overtaken by life: what the backup holds as deliverable is delivered now.
            await saes["n3"].fetch_key("sae-n1", [key.key_id for key in taken[2:]])
            later = await patiently(lambda: saes["n1"].get_key("sae-n3", 8), [])
            ids += [key.key_id for key in (*taken, *later)]
            assert len(set(ids)) == len(ids)

            for node in ("n1", "n3"):
                await testbed.kill(node)
                config = str(testbed.layout.node_file(node))
                done = await command(
                    "restore", str(tmp_path / f"backup-{node}"), "--config", config, "--replace"
                )
                assert done["keys"] > 0
                assert done["items"] > 0
                await testbed.restart(node)

            for key_id in ids:
                with pytest.raises(KeyNotFound):
                    await saes["n3"].fetch_key("sae-n1", [key_id])

            failures: list[str] = []
            for master, slave in (("n1", "n3"), ("n3", "n1"), ("n2", "n1"), ("n2", "n3"), ("n1", "n2")):
                target = f"sae-{slave}"
                new = await patiently(lambda m=master, t=target: saes[m].get_key(t, 4), failures)  # type: ignore[misc]
                same = await saes[slave].fetch_key(f"sae-{master}", [key.key_id for key in new])
                assert all(a.bits.same_as(b.bits) for a, b in zip(new, same, strict=True))
                assert not {key.key_id for key in new} & set(ids)
                assert not any(a.bits.same_as(b.bits) for a in new for b in taken + later)
                ids += [key.key_id for key in new]
            # The neighbour in between notices the new stores at once, not after each of its stale keys.
            assert len(failures) < 20, failures
            log = (testbed.layout.node_folder("n1") / "audit.log").read_text()
            written = log[: log.rfind("\n")].splitlines()
            assert [json.loads(line)["event"] for line in written].count("restored") == 1

    asyncio.run(scene())
