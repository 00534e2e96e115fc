"""The TPM slot and the TPM counter on real TPMs in software (swtpm), one process and state directory each."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import importlib.util
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from keyhaul import backups, vault
from keyhaul.errors import SealError
from keyhaul.stores.sealing import (
    Cost,
    Grade,
    Guard,
    NvCounter,
    Passphrase,
    Tpm,
    add_slot,
    create,
    derive,
    describe,
    open_root,
)
from keyhaul.stores.sealing.tss import connected
from tests.nodes import make_node, make_ports

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.tpm,
    pytest.mark.skipif(
        shutil.which("swtpm") is None,
        reason="no swtpm here: run scripts/install-debian-packages.sh tpm",
    ),
    pytest.mark.skipif(
        importlib.util.find_spec("tpm2_pytss") is None,
        reason="tpm2-pytss is not installed: scripts/install-debian-packages.sh tpm says how",
    ),
]

RECOVERY = Passphrase(lambda: "correct horse", Cost(64, 1, 1))
HOST = "127.0.0.1"


class SoftwareTpm:
    """A swtpm process over one state directory. Clients expect the control port after the command port."""

    def __init__(self, state: Path) -> None:
        self.state = state
        self.port = 0
        self._pid: int | None = None

    @property
    def tcti(self) -> str:
        return f"swtpm:host={HOST},port={self.port}"

    def start(self) -> None:
        """Listening when this returns: swtpm goes into the background after it has bound its ports."""
        self.state.mkdir(exist_ok=True)
        pid_file = self.state / "pid"
        for _ in range(50):  # another process may have one of the two ports
            self.port = free_port()
            ports = [f"type=tcp,port={port},bindaddr={HOST}" for port in (self.port, self.port + 1)]
            command = ["swtpm", "socket", "--tpm2", "--tpmstate", f"dir={self.state}"]
            command += ["--server", ports[0], "--ctrl", ports[1], "--flags", "not-need-init,startup-clear"]
            command += ["--daemon", "--pid", f"file={pid_file}"]
            if subprocess.run(command, capture_output=True).returncode == 0:
                self._pid = int(pid_file.read_text())
                return
        raise RuntimeError("swtpm found no two ports in a row")

    def stop(self) -> None:
        """Power off; its state stays on disk."""
        if self._pid is None:
            return
        with contextlib.suppress(ProcessLookupError):
            process = os.pidfd_open(self._pid)
            signal.pidfd_send_signal(process, signal.SIGTERM)
            select.select([process], [], [], 10)
            os.close(process)
        self._pid = None

    def restart(self) -> None:
        self.stop()
        self.start()

    def extend_pcr7(self) -> None:
        """What firmware does when it measures something at boot."""
        with connected(self.tcti) as chip:
            chip.esys.pcr_event(chip.lib.ESYS_TR.PCR7, chip.lib.TPM2B_EVENT(b"measured"))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return min(int(probe.getsockname()[1]), 65534)


@pytest.fixture
def new_tpm(tmp_path: Path) -> Iterator[Callable[[str], SoftwareTpm]]:
    made: list[SoftwareTpm] = []

    def new(name: str) -> SoftwareTpm:
        made.append(SoftwareTpm(tmp_path / name))
        made[-1].start()
        return made[-1]

    yield new
    for tpm in made:
        tpm.stop()


@pytest.fixture
def tpm(new_tpm: Callable[[str], SoftwareTpm]) -> SoftwareTpm:
    return new_tpm("tpm")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "root.json"


class Claimed(Tpm):
    """Our software TPM as an earlier, better chip would have been recorded."""

    @property
    def grade(self) -> Grade:
        return Grade.HARDWARE


def refused(path: Path, tpm: SoftwareTpm) -> SealError:
    before = path.read_bytes()
    with pytest.raises(SealError) as caught:
        open_root(path, [Tpm(tpm.tcti)])
    assert path.read_bytes() == before
    assert caught.value.remedy
    return caught.value


# --- the slot ------------------------------------------------------------------------------------


def test_the_root_opens_after_the_tpm_was_switched_off_and_on(path: Path, tpm: SoftwareTpm) -> None:
    made = create(path, [Tpm(tpm.tcti)])
    tpm.restart()
    opened = open_root(path, [Tpm(tpm.tcti)])
    assert opened.root.same_as(made.root)
    assert made.root.reveal().hex() not in path.read_text()


def test_a_software_tpm_is_graded_software_and_says_so_at_every_open(path: Path, tpm: SoftwareTpm) -> None:
    for opened in (create(path, [Tpm(tpm.tcti)]), *(open_root(path, [Tpm(tpm.tcti)]) for _ in range(2))):
        assert (opened.kind, opened.grade) == ("tpm2", Grade.SOFTWARE)
        assert any("NO BOUNDARY" in warning for warning in opened.warnings)
    assert [slot["grade"] for slot in describe(path)] == ["software"]


@pytest.mark.skipif(
    shutil.which("socat") is None, reason="no socat here: run scripts/install-debian-packages.sh tpm"
)
def test_a_software_tpm_behind_another_transport_is_known_by_its_maker(
    path: Path, new_tpm: Callable[[str], SoftwareTpm]
) -> None:
    tpm = new_tpm("hidden")
    slot = Tpm(f"cmd:socat - TCP:{HOST}:{tpm.port}")
    assert slot.grade is Grade.SOFTWARE
    made = create(path, [slot])
    assert open_root(path, [slot]).root.same_as(made.root)


def test_ten_opens_in_a_row_leave_nothing_loaded(path: Path, tpm: SoftwareTpm) -> None:
    create(path, [Tpm(tpm.tcti)])
    for _ in range(10):  # a TPM has room for three objects
        open_root(path, [Tpm(tpm.tcti)])
    with connected(tpm.tcti) as chip:
        _, listed = chip.esys.get_capability(chip.lib.TPM2_CAP.HANDLES, 0x80000000, 8)
        assert len(listed.data.handles) == 0


def test_untouched_pcrs_are_reported_and_extended_ones_are_not(tmp_path: Path, tpm: SoftwareTpm) -> None:
    hollow = create(tmp_path / "hollow", [Tpm(tpm.tcti)])
    assert any("protects nothing" in warning for warning in hollow.warnings)
    tpm.extend_pcr7()
    sound = create(tmp_path / "sound", [Tpm(tpm.tcti)])
    assert not any("protects nothing" in warning for warning in sound.warnings)
    assert open_root(tmp_path / "sound", [Tpm(tpm.tcti)]).root.same_as(sound.root)


def test_changed_pcrs_are_refused_and_the_recovery_slot_seals_again(path: Path, tpm: SoftwareTpm) -> None:
    made = create(path, [Tpm(tpm.tcti), RECOVERY])
    tpm.extend_pcr7()
    assert "PCR values have changed" in str(refused(path, tpm))
    recovered = open_root(path, [Tpm(tpm.tcti), RECOVERY])
    assert recovered.kind == "passphrase"
    assert any("PCR values have changed" in warning for warning in recovered.warnings)
    add_slot(path, recovered, Tpm(tpm.tcti))
    assert len(describe(path)) == 2
    again = open_root(path, [Tpm(tpm.tcti)])
    assert again.kind == "tpm2"
    assert again.root.same_as(made.root)


def test_the_recorded_pcrs_count_not_the_configured_ones(path: Path, tpm: SoftwareTpm) -> None:
    create(path, [Tpm(tpm.tcti, "sha256:7")])
    tpm.extend_pcr7()
    with pytest.raises(SealError, match="PCR values have changed"):
        open_root(path, [Tpm(tpm.tcti, "sha256:16")])


def test_another_machines_tpm_is_refused(path: Path, new_tpm: Callable[[str], SoftwareTpm]) -> None:
    mine, other = new_tpm("mine"), new_tpm("other")
    create(path, [Tpm(mine.tcti)])
    assert "did not seal this root" in str(refused(path, other))


def test_a_cleared_tpm_is_refused(path: Path, tpm: SoftwareTpm) -> None:
    create(path, [Tpm(tpm.tcti)])
    with connected(tpm.tcti) as chip:
        chip.esys.clear(chip.lib.ESYS_TR.LOCKOUT)
    assert "did not seal this root" in str(refused(path, tpm))


def test_a_copied_state_directory_opens_the_root_elsewhere(
    path: Path, tmp_path: Path, tpm: SoftwareTpm, new_tpm: Callable[[str], SoftwareTpm]
) -> None:
    """Why a software TPM is no boundary; if this ever fails, its grade and its warning are wrong."""
    made = create(path, [Tpm(tpm.tcti)])
    tpm.stop()
    shutil.copytree(tpm.state, tmp_path / "stolen")
    assert open_root(path, [Tpm(new_tpm("stolen").tcti)]).root.same_as(made.root)


def test_an_unreachable_tpm_says_so_and_comes_back(path: Path, tpm: SoftwareTpm) -> None:
    made = create(path, [Tpm(tpm.tcti)])
    tpm.stop()
    assert "cannot be reached" in str(refused(path, tpm))
    tpm.start()
    assert open_root(path, [Tpm(tpm.tcti)]).root.same_as(made.root)


def test_create_goes_on_without_a_tpm_that_is_not_there(path: Path, tpm: SoftwareTpm) -> None:
    tpm.stop()
    made = create(path, [Tpm(tpm.tcti), RECOVERY])
    assert made.kind == "passphrase"
    assert any("cannot be reached" in warning for warning in made.warnings)


def test_a_software_tpm_in_place_of_hardware_is_refused(path: Path, tpm: SoftwareTpm) -> None:
    create(path, [Claimed(tpm.tcti)])
    assert "downgrade" in str(refused(path, tpm))


@pytest.mark.parametrize("pcrs", ["", "7", "sha1:7", "sha256", "sha256:", "sha256:99", "md5:7", "sha256:7;1"])
def test_a_mistaken_pcr_selection_is_named(path: Path, tpm: SoftwareTpm, pcrs: str) -> None:
    with pytest.raises(SealError, match="PCR"):
        create(path, [Tpm(tpm.tcti, pcrs)])
    assert not path.exists()


def test_several_pcrs_and_banks_can_be_chosen(path: Path, tpm: SoftwareTpm) -> None:
    made = create(path, [Tpm(tpm.tcti, "sha256:0,2,7+sha384:7")])
    assert open_root(path, [Tpm(tpm.tcti)]).root.same_as(made.root)
    tpm.extend_pcr7()
    assert "PCR values have changed" in str(refused(path, tpm))


@pytest.mark.parametrize("member", ["public", "private", "parent", "pcrs", "aes_bits"])
def test_damaged_slot_data_is_refused(path: Path, tpm: SoftwareTpm, member: str) -> None:
    create(path, [Tpm(tpm.tcti)])
    document = json.loads(path.read_text())
    data = document["slots"][0]["data"]
    for damage in (None, 7, "AAAA", "x" * 6000, base64.b64encode(bytes(90)).decode()):
        data[member] = damage
        path.write_text(json.dumps(document))
        refused(path, tpm)


class Tap:
    """Forwards both ports of a TPM and keeps every byte: a probe on the bus."""

    def __init__(self, target: int) -> None:
        self.seen = bytearray()
        self._target = target
        self._listeners: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self.port = 0

    def __enter__(self) -> Tap:
        while not self._listeners:
            self.port = free_port()
            first = socket.create_server((HOST, self.port))
            try:
                self._listeners = [first, socket.create_server((HOST, self.port + 1))]
            except OSError:  # somebody has the second port
                first.close()
        for offset, listener in enumerate(self._listeners):
            self._run(self._accept, listener, self._target + offset)
        return self

    def __exit__(self, *_: object) -> None:
        for listener in self._listeners:
            listener.shutdown(socket.SHUT_RDWR)
            listener.close()
        for thread in self._threads:
            thread.join(10)

    def _run(self, work: Callable[..., None], *arguments: object) -> None:
        self._threads.append(threading.Thread(target=work, args=arguments, daemon=True))
        self._threads[-1].start()

    def _accept(self, listener: socket.socket, target: int) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = listener.accept()
                server = socket.create_connection((HOST, target))
                self._run(self._forward, client, server)
                self._run(self._forward, server, client)

    def _forward(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError), source:
            while chunk := source.recv(65536):
                self.seen += chunk
                sink.sendall(chunk)
            sink.shutdown(socket.SHUT_WR)


def test_the_root_does_not_cross_the_bus_in_clear(path: Path, tpm: SoftwareTpm) -> None:
    with Tap(tpm.port) as tap:
        slot = Tpm(f"swtpm:host={HOST},port={tap.port}")
        root = create(path, [slot]).root.reveal()
        assert open_root(path, [slot]).root.reveal() == root
        auth = derive(open_root(path, [slot]).root, "seal/counter").reveal()
        NvCounter(slot.tcti, open_root(path, [slot]).root).define()
    blob = json.loads(path.read_text())["slots"][0]["data"]["private"]
    assert base64.b64decode(blob)[2:] in tap.seen  # the tap does listen
    assert root not in tap.seen
    assert auth not in tap.seen


# --- the counter ---------------------------------------------------------------------------------


@pytest.fixture
def counter(path: Path, tpm: SoftwareTpm) -> NvCounter:
    made = NvCounter(tpm.tcti, create(path, [Tpm(tpm.tcti)]).root)
    made.define()
    return made


def test_the_counter_goes_up_and_outlives_a_restart(tpm: SoftwareTpm, counter: NvCounter) -> None:
    first = counter.read()
    assert counter.increment() == first + 1
    assert counter.define() == first + 1  # defining again changes nothing
    tpm.restart()
    counter.tcti = tpm.tcti
    assert counter.read() == first + 1


def test_nobody_without_the_root_reads_or_turns_it(
    tmp_path: Path, tpm: SoftwareTpm, counter: NvCounter
) -> None:
    before = counter.read()
    stranger = NvCounter(tpm.tcti, create(tmp_path / "stranger", [RECOVERY]).root)
    for attempt in (stranger.read, stranger.increment, stranger.define):
        with pytest.raises(SealError, match="belongs to something else"):
            attempt()
    assert counter.read() == before


def test_two_nodes_on_one_tpm_have_counters_of_their_own(
    path: Path, tpm: SoftwareTpm, counter: NvCounter
) -> None:
    other = NvCounter(tpm.tcti, open_root(path, [Tpm(tpm.tcti)]).root, counter.index + 1)
    with pytest.raises(SealError, match="there is no counter"):
        other.read()
    other.define()
    before = counter.read()
    other.increment()
    assert counter.read() == before


def test_a_removed_counter_is_missed_and_a_new_one_does_not_go_back(
    tpm: SoftwareTpm, counter: NvCounter
) -> None:
    reached = counter.increment()
    with connected(tpm.tcti) as chip:
        chip.esys.nv_undefine_space(chip.esys.tr_from_tpmpublic(counter.index))
    with pytest.raises(SealError, match="there is no counter"):
        counter.read()
    assert counter.define() > reached


def test_an_unreachable_counter_says_so(tpm: SoftwareTpm, counter: NvCounter) -> None:
    tpm.stop()
    with pytest.raises(SealError, match="cannot be reached"):
        counter.read()


def test_a_restored_old_store_is_refused_by_the_real_counter(tmp_path: Path, counter: NvCounter) -> None:
    store, copy = tmp_path / "epoch.json", tmp_path / "copy.json"

    def load() -> tuple[int, int] | None:
        if not store.exists():
            return None
        current, following = json.loads(store.read_text())
        return current, following

    def save(epoch: tuple[int, int]) -> None:
        store.write_text(json.dumps(epoch))

    guard = Guard(load, save, counter)
    guard.advance()
    shutil.copy(store, copy)
    guard.advance()
    guard.advance()
    shutil.copy(copy, store)
    with pytest.raises(SealError, match="rollback"):
        guard.advance()


def test_a_restored_backup_starts_under_the_counter_only_where_that_is_asked_for(
    tmp_path: Path, tpm: SoftwareTpm
) -> None:
    slots = {"slots": [{"kind": "tpm", "tcti": tpm.tcti}]}
    config = make_node(tmp_path / "node", make_ports(tmp_path / "pki"), store=slots)

    async def start() -> None:
        await (await vault.open_vault(config.store)).ledger.close()

    asyncio.run(start())
    backups.back_up(config, tmp_path / "copy")
    asyncio.run(start())
    done = backups.restore(tmp_path / "copy", config.file, replace=True)
    assert "--rebase-counter" in done.warnings[0]
    with pytest.raises(SealError, match="rollback"):
        asyncio.run(start())
    done = backups.restore(tmp_path / "copy", config.file, replace=True, rebase_counter=True)
    assert done.warnings == ()
    asyncio.run(start())
    asyncio.run(start())
