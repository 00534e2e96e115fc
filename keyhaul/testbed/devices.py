"""A simulated QKD device in its own process: `python -m keyhaul.testbed.devices --config FILE`.

It serves ETSI GS QKD 014 over mutual TLS on the sockets that were handed over (`device`, for its node and its
peer, and `operator`, for whoever runs the testbed), or on a port of 127.0.0.1 that the system picks; says
where in its ready file (`{"name", "url", "pid"}`, written whole or not at all), and ends on SIGTERM or SIGINT
with exit code 0. The configuration is TOML or JSON (`DeviceConfig`); it and the seed file must be readable by
their owner alone. A wrong configuration ends with exit code 2 and one line on stderr.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import secrets
import signal
import stat
import sys
import tomllib
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from aiohttp import web

from keyhaul.edge.activation import inherited
from keyhaul.edge.tls import Credentials, Policy, client_context, peer_certificate, server_context
from keyhaul.errors import ConfigError, KeyhaulError
from keyhaul.identity import sae_id
from keyhaul.testbed.channel import PairRoutes, PeerChannel, Ready
from keyhaul.testbed.http import CALLER, Handler, errors_as_json
from keyhaul.testbed.kme import Kme
from keyhaul.testbed.pair import End, Keeper, Mirror, Shelf
from keyhaul.testbed.presets import PRESETS, Profile
from keyhaul.testbed.processes import listening
from keyhaul.testbed.qkdlink import Reservoir

MAX_BODY = 1 << 20
"""Bytes of a request body."""


class PeerConfig(msgspec.Struct, forbid_unknown_fields=True):
    """The other device of the pair: its name, which its channel certificate carries, and its ready file."""

    name: str
    ready: str


class DeviceConfig(msgspec.Struct, forbid_unknown_fields=True):
    """One device.

    `cert`, `key`, `ca`: its 014 server (`Pki.device`). `channel_cert`, `channel_key`: itself as client of its
    peer (`Pki.device_client` with the device's name). `seed`: the pair's shared file of at least 32 random
    bytes. `role`: one end of a pair is keeper, the other mirror. `saes` may ask here; `remote_saes` may be
    named as slaves. `overrides`: members of the preset's `Profile` to change. `entropy`: seed of delays and
    bursts, for repeatable runs. `host`, `port`: where it listens if no socket is handed over; port 0 is one
    that the system picks.
    """

    name: str
    preset: str
    role: Literal["keeper", "mirror"]
    seed: str
    cert: str
    key: str
    ca: str
    channel_cert: str
    channel_key: str
    ready: str
    peer: PeerConfig
    saes: list[str]
    remote_saes: list[str]
    operator: str = "testbed-operator"
    overrides: dict[str, Any] = {}
    entropy: int | None = None
    host: str = "127.0.0.1"
    port: Annotated[int, msgspec.Meta(ge=0, le=65_535)] = 0


def load(path: Path) -> DeviceConfig:
    """Read a configuration; raises ConfigError."""
    content = _private(path)
    try:
        raw = tomllib.loads(content.decode()) if path.suffix == ".toml" else msgspec.json.decode(content)
        config = msgspec.convert(raw, DeviceConfig)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, msgspec.DecodeError) as error:
        raise ConfigError(f"{path}: {error}") from None
    if {config.operator, config.peer.name} & {*config.saes}:
        raise ConfigError(f"{path}: the operator and the peer cannot be SAEs of the device")
    return config


def profile(config: DeviceConfig) -> Profile:
    """The preset with its overrides; raises ConfigError."""
    if config.preset not in PRESETS:
        raise ConfigError(f"no preset {config.preset!r}", f"use one of {', '.join(sorted(PRESETS))}")
    unknown = config.overrides.keys() - {field.name for field in fields(Profile)}
    if unknown:
        raise ConfigError(f"a device profile has no {', '.join(sorted(unknown))}")
    try:
        changed = replace(PRESETS[config.preset], **config.overrides)
        checked = msgspec.convert(msgspec.to_builtins(changed), Profile)
        checked.supply()
    except (msgspec.ValidationError, ValueError, TypeError) as error:
        raise ConfigError(f"the profile of {config.name} is wrong: {error}") from None
    return checked


class Device:
    """A device put together from its configuration."""

    def __init__(self, config: DeviceConfig) -> None:
        self._config = config
        chosen = profile(config)
        seed = _private(Path(config.seed))
        if len(seed) < 32:
            raise ConfigError(f"{config.seed}: a seed has at least 32 bytes")
        self._server_tls = server_context(
            Credentials(Path(config.cert), Path(config.key), Path(config.ca)), Policy.CLASSIC
        )
        channel_tls = client_context(
            Credentials(Path(config.channel_cert), Path(config.channel_key), Path(config.ca)), Policy.CLASSIC
        )
        rng = random.Random(config.entropy)  # noqa: S311 - times delays and bursts, makes no key
        self._channel = PeerChannel(Path(config.peer.ready), channel_tls)
        end = self._end(chosen, rng)
        self._kme = Kme(
            config.name,
            config.peer.name,
            chosen,
            end,
            seed=seed,
            saes=frozenset(config.saes),
            remote_saes=frozenset(config.remote_saes),
            operator=config.operator,
            rng=rng,
        )
        self._app = web.Application(
            client_max_size=MAX_BODY, middlewares=[errors_as_json(chosen.empty_status), _identify]
        )
        self._app.add_routes(self._kme.routes() + PairRoutes(end, config.peer.name).routes())

    def _end(self, chosen: Profile, rng: random.Random) -> End:
        clock = asyncio.get_running_loop().time
        shelf = Shelf(chosen.key_ttl)
        if self._config.role == "mirror":
            return Mirror(self._channel, shelf, clock)
        reservoir = Reservoir(chosen.supply(), rng, clock())
        return Keeper(reservoir, secrets.token_bytes(16), self._channel, shelf, clock)

    async def run(self, stop: asyncio.Event) -> None:
        """Serve until `stop` is set, then finish what is under way."""
        runner = web.AppRunner(self._app, access_log=None, handle_signals=False, shutdown_timeout=2.0)
        await runner.setup()
        try:
            handed = inherited(frozenset({"device", "operator"}))
            sockets = [handed[name] for name in sorted(handed)] or [
                listening(self._config.host, self._config.port)
            ]
            for each in sockets:
                await web.SockSite(runner, each, ssl_context=self._server_tls).start()
            url = "https://{}:{}".format(*sockets[0].getsockname())
            ready = Path(self._config.ready)
            _announce(ready, Ready(self._config.name, url, os.getpid()))
            await stop.wait()
            _withdraw(ready)
        finally:
            await runner.cleanup()
            await self._channel.close()


@web.middleware
async def _identify(request: web.Request, handler: Handler) -> web.StreamResponse:
    request[CALLER] = sae_id(peer_certificate(request.transport))
    return await handler(request)


def _private(path: Path) -> bytes:
    """The content of a file that nobody but its owner may read."""
    try:
        if stat.S_IMODE(path.stat().st_mode) & 0o077:
            raise ConfigError(f"{path} can be read by others", "chmod 600 it")
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None


def _announce(path: Path, ready: Ready) -> None:
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_bytes(msgspec.json.encode(ready))
    draft.replace(path)


def _withdraw(path: Path) -> None:
    path.unlink(missing_ok=True)


async def _serve(config: DeviceConfig) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await Device(config).run(stop)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a device; the exit code is 0 after a signal, 2 if the configuration is wrong."""
    parser = argparse.ArgumentParser(prog="keyhaul.testbed.devices", description="A simulated QKD device.")
    parser.add_argument("--config", type=Path, required=True, help="TOML or JSON file, mode 0600")
    try:
        asyncio.run(_serve(load(parser.parse_args(argv).config)))
    except KeyhaulError as error:
        sys.stderr.write(f"keyhaul device: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
