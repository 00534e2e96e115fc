"""What tests of agents share: a network of two nodes, agents as processes of their own, and what they log."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import IO, Any

from keyhaul.config.write import toml, write

PATIENCE = 180.0  # seconds until an agent that says nothing fails the test
INITIATOR, RESPONDER = "sae-n1", "sae-n2"


@dataclass(frozen=True)
class Network:
    """A running testbed `line-2`."""

    directory: Path

    @property
    def state(self) -> dict[str, Any]:
        return dict(json.loads((self.directory / "testbed.json").read_text()))

    def sae(self, name: str) -> dict[str, str]:
        """Address of its node, and its PEM files."""
        (found,) = [each for each in self.state["saes"] if each["id"] == name]
        return dict(found)

    def settings(self, name: str, consumer: Mapping[str, Any], url: str = "", **more: Any) -> dict[str, Any]:
        """An agent's configuration: the initiator's if a channel's `url` is given, else the responder's."""
        sae = self.sae(name)
        files = {part: sae[part] for part in ("cert", "key", "ca")}
        channel: dict[str, Any] = {"ca": sae["ca"], "url": url} if url else {"ca": sae["ca"]}
        if not url:
            channel["listen"] = "127.0.0.1:0"
        return {
            "peer": INITIATOR if name == RESPONDER else RESPONDER,
            "role": "initiator" if url else "responder",
            **more,
            "sae": {"url": sae["sae_url"], **files},
            "channel": channel,
            "consumer": dict(consumer),
        }


@contextmanager
def network(directory: Path) -> Iterator[Network]:
    """Two nodes with a quantum link."""
    words = [sys.executable, "-m", "keyhaul.cli", "testbed", "up", "line-2", "--dir", str(directory)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as testbed:
        try:
            assert "is up" in Lines(testbed.stdout).next()
            yield Network(directory)
        finally:
            testbed.send_signal(signal.SIGTERM)


class Lines:
    """What a process prints, line by line as it comes; a thread reads, so that no line hides in a buffer."""

    def __init__(self, stream: IO[str] | None) -> None:
        assert stream is not None
        self._lines: SimpleQueue[str] = SimpleQueue()
        self._thread = threading.Thread(target=self._read, args=(stream,), daemon=True)
        self._thread.start()

    def _read(self, stream: IO[str]) -> None:
        with contextlib.suppress(ValueError):  # the test is over and has closed it
            for line in stream:
                self._lines.put(line)
        self._lines.put("")

    def next(self) -> str:
        """The next line; it is an error if none comes."""
        line = self._lines.get(timeout=PATIENCE)
        assert line, "the process has ended"
        return line

    def so_far(self) -> list[str]:
        """All that came and was not asked for."""
        return [self._lines.get() for _ in range(self._lines.qsize())]

    def rest(self) -> list[str]:
        """The same, once the process has ended."""
        self._thread.join(PATIENCE)
        return self.so_far()


@contextmanager
def traffic(namespace: str, *words: str) -> Iterator[set[int]]:
    """Pings from a namespace, fifty a second; at the end the numbers of those that were lost in between.

    The last ones may have been on their way when it ended, so they do not count.
    """
    command = ["ip", "netns", "exec", namespace, "ping", "-i", "0.02", *words]
    lost: set[int] = set()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield lost
        finally:
            process.send_signal(signal.SIGINT)
            report, _ = process.communicate(timeout=PATIENCE)
    came = {int(number) for number in re.findall(r"bytes from .* icmp_seq=(\d+)", report)}
    assert len(came) > 20, report
    lost |= set(range(1, max(came))) - came


class Agent:
    """A running `keyhaul agent`; everything it logged stays in `logs`."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.lines = Lines(process.stderr)
        self.logs: list[dict[str, Any]] = []
        self._seen = 0

    def until(self, event: str) -> dict[str, Any]:
        """The next line of its log with this event."""
        while True:
            while self._seen < len(self.logs):
                self._seen += 1
                if self.logs[self._seen - 1]["event"] == event:
                    return self.logs[self._seen - 1]
            self.logs.append(json.loads(self.lines.next()))

    def stop(self) -> None:
        """End it, and read the rest of its log."""
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(PATIENCE)
        self.logs += [json.loads(line) for line in self.lines.rest() if line.startswith("{")]

    def kill(self) -> None:
        """kill -9."""
        self._process.kill()
        self._process.wait(PATIENCE)

    @property
    def url(self) -> str:
        """The responder's address, once it is ready."""
        return str(self.until("agent ready")["channel"])


@contextmanager
def agent(folder: Path, settings: Mapping[str, Any], **environment: str) -> Iterator[Agent]:
    """Start one with these settings; at the end it has to stop cleanly, unless it was killed."""
    file = folder / f"{settings['role']}.toml"
    write(file, toml(settings))
    words = [sys.executable, "-m", "keyhaul.cli", "agent", str(file)]
    with subprocess.Popen(
        words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment or None
    ) as process:
        started = Agent(process)
        try:
            yield started
        finally:
            process.send_signal(signal.SIGTERM)
            code = process.wait(PATIENCE)
            started.logs += [json.loads(line) for line in started.lines.rest() if line.startswith("{")]
            assert code in (0, -signal.SIGKILL), started.logs
