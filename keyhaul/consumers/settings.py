"""From an agent's TOML file to its settings, or to the list of everything that is wrong with it.

peer = "sae-bilbao"         [sae]                    [channel]              [consumer]
role = "initiator"          url = "https://…"        url = "https://…"      kind = "wireguard"
interval = 60               cert = "sae.pem"         ca = "sae-ca.pem"      interface = "wg0"
max_age = 600               …                                               …
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import cast
from urllib.parse import urlsplit

from keyhaul.config.reader import Mistake, Mistakes, Section, Source
from keyhaul.consumers.exec import Encoding, Exec
from keyhaul.consumers.port import Consumer, Role
from keyhaul.consumers.strongswan import StrongSwan
from keyhaul.consumers.stunnel import Stunnel
from keyhaul.consumers.wireguard import WireGuard
from keyhaul.edge.tls import Credentials

WG_KEY = r"[A-Za-z0-9+/]{42}[AEIMQUYcgkosw048]="
"""32 bytes in base64: the last digit has two bits to spare."""


@dataclass(frozen=True, slots=True)
class AgentConfig:
    """One agent. `interval` (initiator) and `max_age` in seconds; `lock`: what happens after `max_age`.

    `node` and `own` are where its SAE gets keys, and as whom. `channel` are the same certificate and key with
    the CAs of the other SAE; `url` is where the other agent listens (initiator), `host` and `port` where this
    one does (responder).
    """

    peer: str
    role: Role
    interval: float
    max_age: float
    lock: bool
    node: str
    own: Credentials
    channel: Credentials
    url: str
    host: str
    port: int
    consumer: Callable[[], Consumer]
    ready_file: Path | None


def load(file: Path) -> AgentConfig:
    """Read and validate. Raises `Mistakes` (a ConfigError) with every error found."""
    mistakes: list[Mistake] = []
    root = Source(file.resolve(), mistakes).read()
    if root is None:
        raise Mistakes(mistakes)
    config = _agent(root)
    root.done()
    if mistakes:
        raise Mistakes(mistakes)
    return config


def _agent(root: Section) -> AgentConfig:
    peer = root.text("peer")
    role = cast(Role, root.choice("role", ("initiator", "responder")))
    interval = root.number("interval", 60.0, low=0.1, high=86_400.0) if role == "initiator" else 0.0
    sae = root.section("sae")
    node = sae.url("url")
    own = Credentials(sae.file("cert"), sae.file("key"), sae.file("ca"))
    sae.done()
    channel = root.section("channel")
    ends = Credentials(own.cert, own.key, channel.file("ca"))
    url = channel.url("url") if role == "initiator" else ""
    host, port = _listen(channel) if role == "responder" else ("", 0)
    channel.done()
    config = AgentConfig(
        peer=peer,
        role=role,
        interval=interval,
        max_age=root.number("max_age", 600.0, low=0.1),
        lock=root.choice("on_expiry", ("lock", "keep"), "lock") == "lock",
        node=node,
        own=own,
        channel=ends,
        url=url,
        host=host,
        port=port,
        consumer=_consumer(root.section("consumer"), peer, role),
        ready_file=root.optional_file("ready_file"),
    )
    if config.max_age <= interval:
        root.report("max_age", "keys expire before the next one comes", "set max_age above interval")
    return config


def _listen(table: Section) -> tuple[str, int]:
    listen = table.text("listen")
    try:
        parts = urlsplit(f"//{listen}")
        host, port = parts.hostname or "", parts.port
    except ValueError:
        host, port, parts = "", None, urlsplit("")
    if listen and (not host or port is None or parts.path):
        table.report("listen", f"listen = {listen!r} is no address and port", 'write "192.0.2.1:7443"')
    return host, port or 0


def _consumer(table: Section, peer: str, role: Role) -> Callable[[], Consumer]:
    kind = table.choice("kind", tuple(_KINDS))
    made = _KINDS[kind](table, peer, role)
    table.done()
    return made


def _exec(table: Section, peer: str, role: Role) -> Callable[[], Consumer]:
    command = table.texts("command")
    if not command:
        table.report(None, "there is no command to run", 'add command = ["/path/to/program", "argument"]')
    bits = table.integer("key_bits", 256, low=8, high=8 * 2048)
    encoding = cast(Encoding, table.choice("encoding", ("base64", "hex", "raw"), "base64"))
    patience = table.number("timeout", 10.0, low=0.1, high=60.0)
    return lambda: Exec(command, peer=peer, role=role, key_bits=bits, encoding=encoding, patience=patience)


def _wireguard(table: Section, peer: str, role: Role) -> Callable[[], Consumer]:
    interface = table.text("interface", pattern=r"[A-Za-z0-9_=+.-]{1,15}", shape="the name of an interface")
    public = table.text("public_key", pattern=WG_KEY, shape="a public key as `wg show` has it")
    wg = table.texts("wg", ("wg",))
    return lambda: WireGuard(interface, public, wg)


def _stunnel(table: Section, peer: str, role: Role) -> Callable[[], Consumer]:
    secrets, pid = table.file("secrets"), table.file("pid_file")
    on_disk = table.flag("on_disk", False)
    return lambda: Stunnel(secrets, pid, client=role == "initiator", on_disk=on_disk)


def _strongswan(table: Section, peer: str, role: Role) -> Callable[[], Consumer]:
    vici, name = table.file("vici", "/run/charon.vici"), table.text("name")
    connection = table.tree("connection")
    if not isinstance(children := connection.get("children"), dict) or len(children) != 1:
        table.report(
            "connection", "the connection has not one child", "add [consumer.connection.children.NAME]"
        )
    if ours := sorted({"ppk_id", "ppk_required"} & connection.keys()):
        table.report("connection", f"{' and '.join(ours)} cannot be set", "leave it out: the agent sets it")
    return lambda: StrongSwan(name, connection, vici, role)


_KINDS: dict[str, Callable[[Section, str, Role], Callable[[], Consumer]]] = {
    "exec": _exec,
    "strongswan": _strongswan,
    "stunnel": _stunnel,
    "wireguard": _wireguard,
}
