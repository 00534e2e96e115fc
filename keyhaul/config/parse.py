"""From the TOML file of a node to a `NodeConfig`, or to the list of everything that is wrong with it.

name = "vigo"                     [store]                     [[peers]]
domain = "galicia"                file = "keyhaul.db"         name = "santiago"
directory = "data"                root = "root.slots"         url = "https://…"
                                                              kind = "qkd"
[listeners.sae]                   [[store.slots]]
port = 443                        kind = "tpm"                [peers.device]
cert = "sae.pem"                                              url = "https://…"
…                                 [network]
                                  file = "network.toml"       or the tables themselves
"""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any, cast

from keyhaul.config import model
from keyhaul.config.admission import read_admission
from keyhaul.config.entropy import read_entropy
from keyhaul.config.network import check_peers, read_network
from keyhaul.config.operations import read_audit, read_log, read_monitor, read_traces
from keyhaul.config.pools import read_level, read_pools
from keyhaul.config.reader import Mistake, Mistakes, Section, Source
from keyhaul.config.schemes import check_schemes, read_policy, read_schemes
from keyhaul.config.skip import read_skip
from keyhaul.errors import ConfigError
from keyhaul.policy import Limits

TLS = ("pq", "compatible", "classic")
NAME = r"[a-z0-9-]{1,63}"
NAME_SHAPE = "1 to 63 characters of a-z, 0-9 and -"
DEFAULT_TLS = {"sae": "compatible", "node": "pq", "admin": "compatible"}


def load(file: Path) -> model.NodeConfig:
    """Read and validate; raises `Mistakes` (a ConfigError) with every error found, warnings aside."""
    config, mistakes = _read(file)
    errors = [mistake for mistake in mistakes if not mistake.warning]
    if config is None or errors:
        raise Mistakes(errors)
    return config


def check(file: Path) -> list[Mistake]:
    """Everything to correct in a configuration and in the certificates it names, in the order of the file."""
    from keyhaul.config.certificates import check_certificates

    config, mistakes = _read(file)
    if config is not None:
        mistakes += check_certificates(config, _lines_of(file))
    return sorted(mistakes)


def _lines_of(file: Path) -> Source:
    source = Source(file.resolve(), [])
    source.read()
    return source


def _read(file: Path) -> tuple[model.NodeConfig | None, list[Mistake]]:
    mistakes: list[Mistake] = []
    source = Source(file.resolve(), mistakes)
    root = source.read()
    if root is None:
        return None, mistakes
    config = _node(root, source, mistakes)
    root.done()
    check_peers(config, root)
    check_schemes(config, root)
    return config, mistakes


def _node(root: Section, source: Source, mistakes: list[Mistake]) -> model.NodeConfig:
    directory = root.file("directory", ".")
    return model.NodeConfig(
        file=source.file,
        name=root.text("name", pattern=NAME, shape=NAME_SHAPE),
        domain=root.text("domain", pattern=NAME, shape=NAME_SHAPE),
        directory=directory,
        listeners=_listeners(root.section("listeners")),
        store=_store(root.section("store")),
        peers=tuple(_peer(section) for section in root.sections("peers")),
        network=read_network(root.section("network"), mistakes),
        limits=_limits(root.section("limits", required=False)),
        delivery=_delivery(root.section("delivery", required=False)),
        prefetch=_prefetch(root.section("prefetch", required=False)),
        extension_pen=_pen(root),
        ready_file=root.optional_file("ready_file"),
        user=root.text("user", ""),
        workers=root.integer("workers", 0, high=64),
        entropy=read_entropy(root.section("entropy", required=False)),
        admission=read_admission(root.section("admission", required=False)),
        audit=read_audit(root.section("audit", required=False)),
        monitor=read_monitor(root.section("monitor", required=False)),
        log=read_log(root.section("log", required=False)),
        traces=read_traces(root.section("traces", required=False)),
        schemes=read_schemes(root.section("schemes", required=False)),
        skip=read_skip(root),
        policy=read_policy(root),
        pools=read_pools(root.section("pool", required=False)),
    )


def _listeners(table: Section) -> model.Listeners:
    listeners = {name: _listener(table.section(name), tls) for name, tls in DEFAULT_TLS.items()}
    plain = _listener(table.section("plain"), "compatible", plain=True) if "plain" in table else None
    skip = _listener(table.section("skip"), "compatible") if "skip" in table else None
    table.done()
    return model.Listeners(**listeners, plain=plain, skip=skip)


def _listener(table: Section, tls: str, *, plain: bool = False) -> model.Listener:
    listener = model.Listener(
        host=table.text("host", "127.0.0.1"),
        port=table.integer("port", 0, high=65_535),
        cert=table.file("cert"),
        key=table.file("key"),
        ca=table.file("ca"),
        tls=cast(model.Tls, table.choice("tls", TLS, tls)),
        url=table.url("url") if plain and "url" in table else None,
    )
    table.done()
    return listener


def _store(table: Section) -> model.StoreConfig:
    store = model.StoreConfig(
        file=table.file("file", "keyhaul.db"),
        root=table.file("root", "root.slots"),
        slots=tuple(_slot(section) for section in table.sections("slots")),
    )
    if not store.slots:
        table.report(
            None, "the store has no key slot", 'add [[store.slots]] with kind = "credential" or other'
        )
    table.done()
    return store


def _slot(table: Section) -> model.SlotSource:
    kind = table.choice("kind", ("passphrase", "credential", "tpm", "pkcs11"))
    values: dict[str, Any] = {"kind": kind}
    if kind in ("passphrase", "pkcs11"):
        values |= _spoken(table, "the passphrase" if kind == "passphrase" else "the PIN")
    if kind == "credential":
        values["file"] = table.optional_file("file")
    if kind in ("credential", "pkcs11"):
        values["name"] = table.text("name", "keyhaul-root")
    if kind == "tpm":
        values["tcti"] = table.text("tcti") if "tcti" in table else None
        shape = "a bank and numbers, such as sha256:7 or sha256:0,7"
        values["pcrs"] = table.text("pcrs", "sha256:7", pattern=r"sha\d+:\d+(,\d+)*", shape=shape)
    if kind == "pkcs11":
        values["module"] = table.file("module")
        values["token"] = table.text("token")
    table.done()
    return model.SlotSource(**values)


def _spoken(table: Section, what: str) -> dict[str, Any]:
    """One way to get what a person would type, or none: then the person is asked. Never this file itself."""
    given = [name for name in ("file", "fd", "env") if name in table]
    for secret in ("passphrase", "pin"):
        if secret in table:
            table.report(secret, f"{what} stands in the configuration", "move it to a file of mode 0600")
            table.text(secret)
    if len(given) > 1:
        table.report(None, f"{what} has {len(given)} sources", "keep one of file, fd and env")
    return {
        "file": table.optional_file("file"),
        "fd": table.integer("fd", low=3) if "fd" in table else None,
        "env": table.text("env", pattern=r"[A-Za-z_]\w*", shape="a variable's name")
        if "env" in table
        else None,
    }


def _peer(table: Section) -> model.Peer:
    kind = table.choice("kind", ("qkd", "pqc", "plain"))
    peer = model.Peer(
        name=table.text("name", pattern=NAME if kind != "plain" else "", shape=NAME_SHAPE),
        url=table.url("url"),
        kind=cast(model.Kind, kind),
        mode=cast(model.Mode, table.choice("mode", ("expanded", "otp"), "expanded")),
        dialect=table.choice("dialect", ("v1.1.1", "draft-0.4"), "v1.1.1"),  # type: ignore[arg-type]
        callback=table.url("callback") if "callback" in table else None,
        device=_device(table.section("device")) if "device" in table else None,
    )
    if kind == "qkd" and peer.device is None:
        table.report("kind", f"peer {peer.name} is of kind qkd but has no device", "add [peers.device]")
    if kind != "qkd" and peer.device is not None:
        table.report("device", f"peer {peer.name} is of kind {kind} but has a device", 'set kind = "qkd"')
    if kind == "pqc" and peer.mode == "otp":
        table.report("mode", "a pqc link has no device bits for one-time pads", 'set mode = "expanded"')
    if kind != "plain":
        for name in ("callback", "dialect"):
            if name in table:
                table.report(name, f"{name} is for plain peers only", "remove it")
    table.done()
    return peer


def _device(table: Section) -> model.DeviceEnd:
    device = model.DeviceEnd(
        url=table.url("url"),
        cert=table.file("cert"),
        key=table.file("key"),
        ca=table.file("ca"),
        tls=cast(model.Tls, table.choice("tls", TLS, "compatible")),
        own_sae=table.text("own_sae"),
        peer_sae=table.text("peer_sae"),
        key_size=table.integer("key_size", 256, low=8, high=65_536),
        max_key_per_request=table.integer("max_key_per_request", 0, high=65_536),
        method=table.choice("method", ("auto", "get", "post"), "auto"),  # type: ignore[arg-type]
    )
    if device.key_size % 8:
        table.report("key_size", f"key_size = {device.key_size} is not a multiple of 8", "give whole bytes")
    if device.own_sae == device.peer_sae and device.own_sae:
        table.report("peer_sae", "own_sae and peer_sae are the same", "name the SAE id of the far node")
    table.done()
    return device


def _limits(table: Section) -> Limits:
    values: dict[str, Any] = {}
    for field in fields(Limits):
        if field.name in table:
            default = cast(Any, field.default)
            values[field.name] = (
                table.flag(field.name) if isinstance(default, bool) else table.integer(field.name)
            )
        else:
            table.integer(field.name, 0)  # so that a misspelt name finds its neighbour
    table.done()
    try:
        return Limits(**values)
    except ConfigError as error:
        table.report(None, error.cause, error.remedy)
        return Limits()


def _delivery(table: Section) -> model.Delivery:
    plain = model.Delivery()
    delivery = model.Delivery(
        release=table.choice("release", ("relayed", "immediate"), plain.release),  # type: ignore[arg-type]
        request_timeout=table.number("request_timeout", plain.request_timeout, low=0.1, high=3600),
        ttl=table.number("ttl", plain.ttl, low=1),
        retention=table.number("retention", plain.retention, low=0),
        pool=read_level(table, plain.pool),
        profile=table.choice("profile", ("default", "paper-a"), plain.profile),  # type: ignore[arg-type]
        void_delivered=table.flag("void_delivered", plain.void_delivered),
    )
    if delivery.release == "immediate":
        risk = "a master may hold a key that never reaches its slave"
        table.report("release", f'release = "immediate": {risk}', 'prefer "relayed"', warning=True)
    table.done()
    return delivery


def _prefetch(table: Section) -> model.Prefetch:
    plain = model.Prefetch()
    prefetch = model.Prefetch(
        table.integer("low", plain.low, high=100_000), table.integer("high", plain.high, low=1, high=100_000)
    )
    if prefetch.low >= prefetch.high:
        table.report(None, f"low = {prefetch.low} is not below high = {prefetch.high}", "raise high")
    table.done()
    return prefetch


def _pen(root: Section) -> int:
    pen = root.integer("extension_pen", model.DOCUMENTATION_PEN, low=1)
    if pen == model.DOCUMENTATION_PEN:
        cause = f"020 extensions carry the documentation number {pen}"
        remedy = "set extension_pen to your organisation's IANA number outside of test networks"
        root.report("extension_pen", cause, remedy, warning=True)
    return pen
