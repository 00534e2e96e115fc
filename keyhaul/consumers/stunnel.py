"""stunnel: delivered keys are TLS 1.3 external PSKs, each under its key id, in the file `PSKsecrets` names.

A server takes every identity in its file, a client shows the first one; so the initiator's end is the client.
The file is written whole, mode 0600, and read again on SIGHUP. Open connections go on; stunnel then opens its
port anew, and a connection that comes at that moment is reset. Since it wants a file, its directory must be
in memory (tmpfs), or the key would stay on a disk.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import signal
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

from keyhaul.config.write import write
from keyhaul.consumers.port import AgreedKey, unusable
from keyhaul.errors import ConfigError, Unavailable

IN_MEMORY = ("tmpfs", "ramfs")
PATIENCE = 5.0  # seconds that stunnel may take to read its file again
LOOK_EVERY = 0.01  # seconds
TCP_LISTEN, UNIX_LISTEN = "0A", 0x10000  # how /proc/net/tcp and /proc/net/unix mark them
LOCKED = "locked"
"""The identity of a key that nobody else has; an empty file would keep stunnel from reading it."""


class Stunnel:
    """One stunnel process: `file` is its `PSKsecrets`, `pid_file` its `pid`. A `client` has one key only.

    Raises ConfigError for a file that would lie on a disk, unless `on_disk` allows that.
    """

    key_bits = 256

    def __init__(self, file: Path, pid_file: Path, *, client: bool, on_disk: bool = False) -> None:
        self._file, self._pid_file, self._client = file, pid_file, client
        kind = file_system(file.parent)
        if kind not in IN_MEMORY and not on_disk:
            raise ConfigError(
                f"{file}: stunnel's keys would lie on a disk ({kind})",
                "name a file in a tmpfs such as /run, or set on_disk = true",
            )
        self._keys = _read(file)

    async def held(self) -> list[UUID]:
        """What stands in the file, oldest first."""
        return list(self._keys)

    async def install(self, key: AgreedKey) -> None:
        """See `port.Consumer.install`."""
        before = self._keys
        self._keys = {**({} if self._client else before), key.key_id: key.bits.reveal().hex()}
        try:
            await self._apply()
        except Unavailable:
            self._keys = before
            raise

    async def drop(self, key_id: UUID) -> None:
        """See `port.Consumer.drop`."""
        if self._keys.pop(key_id, None) is not None:
            await self._apply()

    async def lock(self) -> None:
        """New connections fail at this end; open ones go on until they end."""
        self._keys.clear()
        await self._apply()

    async def close(self) -> None:
        """The file stays: stunnel may be started again before the agent is."""

    async def _apply(self) -> None:
        """Write the file, and return when stunnel goes by it: then it listens on new sockets."""
        newest_first = [f"{key_id}:{bits}" for key_id, bits in reversed(self._keys.items())]
        write(self._file, "\n".join(newest_first or [f"{LOCKED}:{secrets.token_hex(32)}"]) + "\n")
        try:
            process = int(self._pid_file.read_text())
            before = listening(process)
            os.kill(process, signal.SIGHUP)
        except (OSError, ValueError) as error:
            raise unusable("stunnel", f"cannot be told to read its keys ({error})") from None
        loop = asyncio.get_running_loop()
        give_up = loop.time() + PATIENCE
        while not (now := listening(process)) or now & before:
            if loop.time() > give_up:
                raise unusable("stunnel", f"did not take its new configuration within {PATIENCE:g} s")
            await asyncio.sleep(LOOK_EVERY)


def listening(process: int) -> frozenset[str]:
    """The sockets a process listens on, by inode. stunnel opens new ones whenever it has read its files."""
    own = set()
    for entry in Path(f"/proc/{process}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            own.add(os.readlink(entry))
    return frozenset(each for each in _listeners(process) if f"socket:[{each}]" in own)


def _listeners(process: int) -> Iterator[str]:
    """Inodes of all listening sockets in the process's network (proc(5))."""
    network = Path(f"/proc/{process}/net")
    for name in ("tcp", "tcp6"):
        if (network / name).exists():
            for line in (network / name).read_text().splitlines()[1:]:
                if (words := line.split())[3] == TCP_LISTEN:
                    yield words[9]
    for line in (network / "unix").read_text().splitlines()[1:]:
        if int((words := line.split())[3], 16) & UNIX_LISTEN:
            yield words[6]


def file_system(folder: Path) -> str:
    """The kind of file system a directory is on. Raises ConfigError if it is not there."""
    try:
        device = folder.stat().st_dev
    except OSError as problem:
        raise ConfigError(f"{folder}: {problem.strerror}", "make the directory, or name another") from None
    number = f"{os.major(device)}:{os.minor(device)}"
    for line in Path("/proc/self/mountinfo").read_text().splitlines():  # proc(5)
        before, _, after = line.partition(" - ")
        if before.split()[2] == number:
            return after.split()[0]
    return "unknown"


def _read(file: Path) -> dict[UUID, str]:
    """The keys in a file that is there from an earlier run; what is no key of ours is left out."""
    found: dict[UUID, str] = {}
    try:
        lines = file.read_text().splitlines()
    except FileNotFoundError:
        lines = []
    except OSError as problem:
        raise ConfigError(f"{file}: {problem.strerror}", "let the agent read and write it") from None
    for line in reversed(lines):
        name, _, bits = line.partition(":")
        try:
            found[UUID(name)] = bits
        except ValueError:
            continue
    return found
