"""Backs a node up, running or not, and restores it so that no key, pad or number is met a second time.

A backup is a directory: the store and its key-slot file as they are on disk, encrypted and wrapped; the
configuration; and `manifest.json`, which says what is there and what is not. Private keys of certificates
are not in it, and neither is a passphrase, a credential or a chip: without one of them it opens for nobody.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import time
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from keyhaul import __version__, vault
from keyhaul.config import NodeConfig, load
from keyhaul.config.write import write
from keyhaul.errors import ConfigError, Refused, SealError
from keyhaul.stores import backup, database
from keyhaul.stores.backup import Items
from keyhaul.stores.renewal import Renewal

STORE, SLOTS, CONFIG, NETWORK = "keyhaul.db", "root.slots", "node.toml", "network.toml"
MANIFEST = "manifest.json"
RESTORED = ("restored", "backup")
"""The item by which a node learns at its next start that it was restored."""


@dataclass(frozen=True, slots=True)
class Restored:
    """What `restore` did. `aside`: what stood there before; `warnings`: what the operator has to do."""

    renewal: Renewal
    aside: tuple[Path, ...]
    warnings: tuple[str, ...]


def back_up(config: NodeConfig, directory: Path) -> dict[str, Any]:
    """Write a backup into a new or empty directory; returns its manifest. Raises SealError or ConfigError."""
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        if any(directory.iterdir()):
            raise ConfigError(f"{directory} is not empty", "name another directory")
        os.chmod(directory, 0o700)
    except OSError as error:
        raise ConfigError(f"{directory}: {error.strerror}", "name another directory") from None
    with vault.keys(config.store) as (page_key, _, _):
        incarnation = backup.copy(config.store.file, directory / STORE, page_key)
    _copy(config.store.root, directory / SLOTS)
    _copy(config.file, directory / CONFIG)
    if (network := _network_file(config.file)) is not None:
        _copy(network, directory / NETWORK)
    manifest = {
        "version": 1,
        "node": config.name,
        "domain": config.domain,
        "release": __version__,
        "made": time.time(),
        "incarnation": incarnation,
        "sha256": {file.name: _digest(file) for file in sorted(directory.iterdir())},
        "not_included": [str(path) for _, port in config.listeners for path in (port.cert, port.key)],
    }
    write(directory / MANIFEST, json.dumps(manifest, indent=2) + "\n")
    backup.flush(directory / MANIFEST)
    return manifest


def restore(directory: Path, file: Path, *, replace: bool = False, rebase_counter: bool = False) -> Restored:
    """Put a backup in place for the configuration `file`, which is taken from the backup if it is not there.

    Raises Refused if the backup is not whole, ConfigError if something is in the way and `replace` is not
    set, SealError if the root does not open or a node is running. `rebase_counter` accepts an old copy
    under a TPM's counter, which would refuse it at the start.
    """
    manifest = _checked(directory)
    _bring_configuration(directory, file)
    config = load(file)
    if config.name != manifest["node"]:
        raise ConfigError(
            f"the backup is of {manifest['node']!r}, the configuration is of {config.name!r}",
            "name the configuration of the node that was backed up",
        )
    store = config.store
    store.file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with database.owned(store.file):
        in_the_way = [store.file] if store.file.exists() else []
        if store.root.exists() and _digest(store.root) != _digest(directory / SLOTS):
            in_the_way.append(store.root)
        if in_the_way and not replace:
            named = " and ".join(str(path) for path in in_the_way)
            raise ConfigError(f"{named} would be replaced", "give --replace; what is there is set aside")
        fresh = store.file.with_name(store.file.name + ".restored")
        aside = _set_aside(store.root) if store.root in in_the_way else ()
        _copy(directory / SLOTS, store.root)
        renewal, warnings = _renewed(config, directory, fresh, manifest, rebase_counter)
        aside += _set_aside(store.file)
        fresh.replace(store.file)
        backup.flush(store.file)
    return Restored(renewal, aside, warnings)


def _renewed(
    config: NodeConfig, directory: Path, fresh: Path, manifest: dict[str, Any], rebase: bool
) -> tuple[Renewal, tuple[str, ...]]:
    """The store of the backup at `fresh`, safe to go on with."""
    for leftover in ("", "-wal", "-shm", "-lock"):
        fresh.with_name(fresh.name + leftover).unlink(missing_ok=True)
    _copy(directory / STORE, fresh)
    told = {name: manifest[name] for name in ("made", "incarnation")}
    items: Items = {RESTORED: json.dumps(told).encode()}
    warnings: list[str] = []
    with vault.keys(config.store) as (page_key, field_key, opened):
        if opened.kind.startswith("tpm") and rebase:
            count = vault.counter(config.store, opened).read()
            items[vault.EPOCH] = f"{count} {count}".encode()
        elif opened.kind.startswith("tpm"):
            warnings.append("the TPM's counter will refuse this store: restore again with --rebase-counter")
        renewal = asyncio.run(backup.renew(fresh, page_key, field_key, items))
    fresh.with_name(fresh.name + "-lock").unlink(missing_ok=True)
    for leftover in ("-wal", "-shm"):
        if fresh.with_name(fresh.name + leftover).exists():
            raise SealError(f"{fresh} was not closed completely", "try again; nothing was replaced")
    for name, listener in config.listeners:
        missing = [str(path) for path in (listener.cert, listener.key, listener.ca) if not path.is_file()]
        if missing:
            warnings.append(f"{name} port: {', '.join(missing)} is not there; backups hold no private keys")
    return renewal, tuple(warnings)


def _checked(directory: Path) -> dict[str, Any]:
    try:
        manifest: dict[str, Any] = json.loads((directory / MANIFEST).read_text())
        digests: dict[str, str] = manifest["sha256"]
        wrong = [name for name, digest in digests.items() if _digest(directory / Path(name).name) != digest]
    except OSError as error:
        raise Refused(f"{error.filename}: {error.strerror}", "name the directory of a backup") from None
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
        raise Refused(f"{directory / MANIFEST} is no manifest of a backup", "name another backup") from None
    if wrong or not {STORE, SLOTS, CONFIG} <= digests.keys():
        raise Refused(f"{', '.join(wrong) or 'a file'} is not as it was backed up", "take another backup")
    if manifest.get("version") != 1 or not isinstance(manifest.get("made"), float):
        raise Refused("the backup is of another version of keyhaul", "use the release that made it")
    return manifest


def _bring_configuration(directory: Path, file: Path) -> None:
    """The configuration, where there is none; and the network's file beside it, likewise."""
    if not file.exists():
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _copy(directory / CONFIG, file)
    network = _network_file(file)
    if network is not None and not network.exists() and (directory / NETWORK).exists():
        _copy(directory / NETWORK, network)


def _network_file(file: Path) -> Path | None:
    try:
        named = tomllib.loads(file.read_text()).get("network", {}).get("file")
    except (OSError, ValueError, AttributeError, RecursionError):
        return None
    return file.parent / named if isinstance(named, str) else None


def _set_aside(path: Path) -> tuple[Path, ...]:
    """Move what stands there, and a database's log with it, to a name that tells when."""
    if not path.exists():
        return ()
    kept = path.with_name(f"{path.name}.before-{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}")
    log = path.with_name(path.name + "-wal")
    if log.exists():
        log.replace(kept.with_name(kept.name + "-wal"))
    path.with_name(path.name + "-shm").unlink(missing_ok=True)
    path.replace(kept)
    return (kept,)


def _copy(source: Path, target: Path) -> None:
    """A private copy, on disk when this returns; replaces what is there whole."""
    draft = target.with_name(f".{target.name}.new")
    try:
        draft.unlink(missing_ok=True)
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as there, source.open("rb") as here:
            while part := here.read(1 << 20):
                there.write(part)
        draft.replace(target)
        backup.flush(target)
    except OSError as error:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)
        raise ConfigError(f"{source} to {target}: {error.strerror}", "check path, rights and space") from None


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
