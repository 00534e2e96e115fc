"""The key-slot file and the slots that need no hardware: what opens, what is refused, and in which words."""

from __future__ import annotations

import base64
import hmac
import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from keyhaul.errors import SealError
from keyhaul.keys import Secret
from keyhaul.stores.sealing import (
    Cost,
    Credential,
    Grade,
    NvCounter,
    Passphrase,
    Pkcs11,
    Slot,
    Tpm,
    add_slot,
    create,
    derive,
    describe,
    open_root,
    systemd_credential,
)

QUICK = Cost(memory_kib=64, iterations=1, lanes=1)
PHRASE = "correct horse battery staple"


def passphrase(text: str = PHRASE) -> Passphrase:
    return Passphrase(lambda: text, QUICK)


def asker(asked: list[str]) -> Callable[[], str]:
    """Answers, and notes that it was asked."""

    def ask() -> str:
        asked.append(PHRASE)
        return PHRASE

    return ask


@dataclass
class Vault:
    """A slot that keeps roots itself, as a device does, and can be unplugged."""

    grade: Grade = Grade.HARDWARE
    plugged: bool = True
    kind: str = "vault"
    label: str = "vault"
    kept: list[bytes] = field(default_factory=list)
    asked: int = 0

    def wrap(self, root: Secret) -> dict[str, Any]:
        if not self.plugged:
            raise SealError("the vault is not plugged in", "plug it in")
        self.kept.append(root.reveal())
        return {"number": len(self.kept) - 1}

    def unwrap(self, data: dict[str, Any]) -> Secret:
        self.asked += 1
        if not self.plugged:
            raise SealError("the vault is not plugged in", "plug it in")
        return Secret(self.kept[data["number"]])

    def caveats(self) -> tuple[str, ...]:
        return ("the vault creaks",)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "root.json"


def refused(path: Path, *slots: Slot) -> SealError:
    """The error of an open that must fail, and must leave the file and its directory as they were."""
    before = {entry.name: entry.read_bytes() for entry in path.parent.iterdir()}
    with pytest.raises(SealError) as caught:
        open_root(path, slots)
    assert {entry.name: entry.read_bytes() for entry in path.parent.iterdir()} == before
    assert caught.value.remedy
    assert PHRASE not in str(caught.value)
    return caught.value


def edit(path: Path, change: Any) -> None:
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


# --- create and open -----------------------------------------------------------------------------


def test_the_root_that_was_made_is_the_root_that_opens(path: Path) -> None:
    made = create(path, [passphrase()])
    opened = open_root(path, [passphrase()])
    assert len(opened.root) == 32
    assert opened.root.same_as(made.root)
    assert (opened.kind, opened.grade, opened.warnings) == ("passphrase", Grade.SOFTWARE, ())


def test_two_nodes_get_different_roots(tmp_path: Path) -> None:
    one, other = (create(tmp_path / name, [passphrase()]).root for name in ("a", "b"))
    assert not one.same_as(other)


def test_the_file_is_private_and_does_not_hold_the_root_or_the_passphrase(path: Path) -> None:
    root = create(path, [passphrase()]).root.reveal()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    content = path.read_bytes()
    for form in (root, root.hex().encode(), base64.b64encode(root), PHRASE.encode()):
        assert form not in content


def test_nothing_but_the_file_is_left_in_the_directory(path: Path) -> None:
    opened = create(path, [passphrase()])
    add_slot(path, opened, Vault())
    assert os.listdir(path.parent) == [path.name]


def test_create_never_overwrites(path: Path) -> None:
    create(path, [passphrase()])
    before = path.read_bytes()
    with pytest.raises(SealError, match="exists already"):
        create(path, [passphrase()])
    assert path.read_bytes() == before


def test_create_does_not_follow_a_dangling_link(path: Path) -> None:
    path.symlink_to(path.parent / "elsewhere")
    with pytest.raises(SealError, match="exists already"):
        create(path, [passphrase()])
    assert not (path.parent / "elsewhere").exists()


def test_a_file_that_appears_while_slots_are_being_made_is_not_overwritten(path: Path) -> None:
    def ask() -> str:
        path.write_text("somebody was faster")
        return PHRASE

    with pytest.raises(SealError, match="exists already"):
        create(path, [Passphrase(ask, QUICK)])
    assert path.read_text() == "somebody was faster"
    assert os.listdir(path.parent) == [path.name]


def test_create_takes_the_first_usable_slot_and_says_what_was_not_usable(path: Path) -> None:
    made = create(path, [Vault(plugged=False), passphrase()])
    assert (made.kind, made.grade) == ("passphrase", Grade.SOFTWARE)
    assert any("vault is not plugged in" in warning for warning in made.warnings)
    assert describe(path) == [{"kind": "passphrase", "grade": "software", "label": "passphrase"}]


def test_create_without_any_usable_slot_makes_no_file(path: Path) -> None:
    for slots in ([], [Vault(plugged=False)]):
        with pytest.raises(SealError, match="no key slot could be made"):
            create(path, slots)
    assert os.listdir(path.parent) == []


def test_create_in_a_missing_directory_says_so(tmp_path: Path) -> None:
    with pytest.raises(SealError, match="cannot write key-slot file"):
        create(tmp_path / "nowhere" / "root.json", [passphrase()])


# --- the chain -----------------------------------------------------------------------------------


def test_the_recovery_slot_opens_and_says_why_it_had_to(path: Path) -> None:
    vault = Vault()
    made = create(path, [vault, passphrase()])
    vault.plugged = False
    opened = open_root(path, [vault, passphrase()])
    assert opened.root.same_as(made.root)
    assert (made.grade, opened.grade) == (Grade.HARDWARE, Grade.SOFTWARE)
    assert any("not plugged in" in warning for warning in opened.warnings)


def test_a_slots_caveats_are_heard_at_every_open(path: Path) -> None:
    vault = Vault()
    assert "the vault creaks" in create(path, [vault]).warnings
    assert "the vault creaks" in open_root(path, [vault]).warnings
    assert "the vault creaks" in open_root(path, [vault]).warnings


@pytest.mark.parametrize(
    ("recorded", "offered"),
    [
        (Grade.HARDWARE, Grade.EXTERNAL),
        (Grade.HARDWARE, Grade.SOFTWARE),
        (Grade.EXTERNAL, Grade.SOFTWARE),
    ],
)
def test_a_provider_of_a_lower_grade_is_refused_and_not_even_asked(
    path: Path, recorded: Grade, offered: Grade
) -> None:
    vault = Vault(recorded)
    create(path, [vault])
    vault.grade = offered
    assert "downgrade" in str(refused(path, vault))
    assert vault.asked == 0


def test_a_provider_of_a_higher_grade_opens_at_the_recorded_one(path: Path) -> None:
    vault = Vault(Grade.SOFTWARE)
    create(path, [vault])
    vault.grade = Grade.HARDWARE
    assert open_root(path, [vault]).grade is Grade.SOFTWARE


def test_a_slot_that_was_not_recorded_is_not_tried(path: Path) -> None:
    create(path, [Vault()])
    asked: list[str] = []
    error = refused(path, Passphrase(asker(asked), QUICK))
    assert "vault slot is not configured" in str(error)
    assert asked == []


def test_all_slots_failing_names_every_cause(path: Path) -> None:
    vault = Vault()
    create(path, [vault, passphrase()])
    vault.plugged = False
    error = refused(path, vault, passphrase("something else"))
    assert "not plugged in" in error.cause
    assert "wrong passphrase" in error.cause


def test_a_root_of_another_length_is_not_accepted(path: Path) -> None:
    vault = Vault()
    create(path, [vault])
    vault.kept[0] = vault.kept[0][:16]
    assert "holds 16 bytes" in str(refused(path, vault))


# --- hostile and damaged files -------------------------------------------------------------------


def test_a_missing_file_is_named_with_the_way_out(path: Path) -> None:
    error = refused(path, passphrase())
    assert "there is no key-slot file" in error.cause
    assert "keyhaul init" in error.remedy


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty"),
        (b" \n", "empty"),
        (b"\x00\xff\xfe" * 40, "not text"),
        (b"[1, 2]", "not an object"),
        (b'{"version": 1, "slots": [x]}', "damaged at line 1"),
        (b"[" * 100_000, "damaged|truncated"),
        (b"9" * 10_000, "damaged"),
        (b" " * (300 * 1024) + b"{}", "larger than"),
        (b'{"version": 2, "slots": [], "check": ""}', "version 2, this release reads version 1"),
        (b'{"version": true, "slots": [], "check": ""}', "version unknown"),
        (b'{"slots": [], "check": ""}', "version unknown"),
        (b'{"version": 1, "slots": [], "check": ""}', "0 slots"),
        (b'{"version": 1, "slots": {}, "check": ""}', "members"),
        (b'{"version": 1, "slots": [{}], "check": 5}', "check value"),
        (b'{"version": 1, "slots": [{}], "check": "zz"}', "check value"),
        (b'{"version": 1, "slots": [{}], "check": ""}', "slot 0"),
        (b'{"version": 1, "slots": [7], "check": ""}', "slot 0"),
        (b'{"version": 1, "slots": [], "check": "", "more": 1}', "members"),
    ],
)
def test_a_damaged_file_gets_its_own_words(path: Path, content: bytes, words: str) -> None:
    path.write_bytes(content)
    with pytest.raises(SealError, match=words):
        open_root(path, [passphrase()])
    assert refused(path, passphrase()).remedy


def test_a_file_cut_anywhere_is_called_truncated(path: Path) -> None:
    create(path, [passphrase(), Vault()])
    whole = path.read_bytes().rstrip()
    for length in range(1, len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(SealError, match="truncated"):
            open_root(path, [passphrase()])


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda d: d["slots"][0].update(grade="software"), id="grade lowered"),
        pytest.param(lambda d: d["slots"][1].update(grade="external"), id="grade of the other slot"),
        pytest.param(lambda d: d["slots"][0].update(label="another"), id="label"),
        pytest.param(lambda d: d["slots"].pop(0), id="slot taken out"),
        pytest.param(lambda d: d["slots"].reverse(), id="order"),
        pytest.param(lambda d: d["slots"].append(dict(d["slots"][1])), id="slot put in"),
        pytest.param(lambda d: d["slots"][0]["data"].update(note=1), id="data"),
        pytest.param(lambda d: d.update(check="00" * 32), id="check"),
        pytest.param(lambda d: d.update(check=""), id="no check"),
    ],
)
def test_an_edited_file_is_refused_although_the_passphrase_is_right(path: Path, change: Any) -> None:
    vault = Vault()
    create(path, [vault, passphrase()])
    edit(path, change)
    assert "was altered" in str(refused(path, vault, passphrase()))


def test_a_grade_raised_by_hand_opens_by_no_slot(path: Path) -> None:
    vault = Vault(Grade.SOFTWARE)
    create(path, [vault])
    edit(path, lambda d: d["slots"][0].update(grade="hardware"))
    assert "downgrade" in str(refused(path, vault))


def test_a_slot_of_a_foreign_root_is_refused(path: Path, tmp_path: Path) -> None:
    create(path, [passphrase()])
    create(tmp_path / "foreign.json", [passphrase("mallory")])
    foreign = json.loads((tmp_path / "foreign.json").read_text())["slots"]
    edit(path, lambda d: d.update(slots=foreign))
    assert "was altered" in str(refused(path, passphrase("mallory")))


def test_a_file_others_can_read_is_reported(path: Path) -> None:
    create(path, [passphrase()])
    path.chmod(0o644)
    assert any("0644" in warning for warning in open_root(path, [passphrase()]).warnings)


# --- passphrase ----------------------------------------------------------------------------------


def test_a_wrong_passphrase_says_so_and_repeats_neither(path: Path) -> None:
    create(path, [passphrase()])
    error = refused(path, passphrase("sesame-31337"))
    assert "wrong passphrase" in error.cause
    assert "sesame" not in str(error)


def test_the_default_cost_is_the_recommended_one_and_is_recorded(path: Path) -> None:
    made = create(path, [Passphrase(lambda: PHRASE)])
    data = json.loads(path.read_text())["slots"][0]["data"]
    assert (data["memory_kib"], data["iterations"], data["lanes"]) == (65536, 3, 4)
    assert open_root(path, [passphrase()]).root.same_as(made.root)  # the file's cost counts, not ours


def test_an_empty_passphrase_is_refused(path: Path) -> None:
    with pytest.raises(SealError, match="passphrase is empty"):
        create(path, [passphrase("")])
    assert not path.exists()


def test_composed_and_decomposed_letters_are_one_passphrase(path: Path) -> None:
    made = create(path, [passphrase("contrasen\u0303a")])
    assert open_root(path, [passphrase("contrase\u00f1a")]).root.same_as(made.root)


@pytest.mark.parametrize(
    "hostile",
    [
        {"memory_kib": 10 * 1024 * 1024},
        {"memory_kib": 2**62},
        {"memory_kib": -1},
        {"memory_kib": True},
        {"memory_kib": "64"},
        {"memory_kib": 64.0},
        {"memory_kib": None},
        {"iterations": 0},
        {"iterations": 10**9},
        {"lanes": 0},
        {"lanes": 10**6},
        {"lanes": 9},  # needs 8 KiB a lane
    ],
)
def test_hostile_argon2_parameters_are_refused_before_anything_is_asked(path: Path, hostile: Any) -> None:
    create(path, [passphrase()])
    edit(path, lambda d: d["slots"][0]["data"].update(hostile))
    asked: list[str] = []
    error = refused(path, Passphrase(asker(asked), QUICK))
    assert "Argon2id parameters" in str(error)
    assert asked == []


@pytest.mark.parametrize("name", ["salt", "nonce", "sealed"])
@pytest.mark.parametrize("value", [None, 5, "", "!!", "AAAA", "\u00e9", [1]])
def test_damaged_slot_data_is_refused_by_member_name(path: Path, name: str, value: Any) -> None:
    create(path, [passphrase()])
    edit(path, lambda d: d["slots"][0]["data"].update({name: value}))
    assert f"damaged ({name})" in str(refused(path, passphrase()))


# --- credential ----------------------------------------------------------------------------------


@pytest.fixture
def secret_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    directory = tmp_path / "credentials"
    directory.mkdir()
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(directory))
    file = directory / "keyhaul-root"
    file.write_bytes(os.urandom(32))
    file.chmod(0o400)
    return file


def test_a_credential_opens_at_grade_external(path: Path, secret_file: Path) -> None:
    made = create(path, [Credential(secret_file)])
    opened = open_root(path, [Credential(secret_file)])
    assert opened.root.same_as(made.root)
    assert (opened.kind, opened.grade, opened.warnings) == ("credential", Grade.EXTERNAL, ())


def test_another_credential_is_refused(tmp_path: Path, secret_file: Path) -> None:
    path = tmp_path / "node" / "root.json"
    path.parent.mkdir()
    create(path, [Credential(secret_file)])
    secret_file.chmod(0o600)
    secret_file.write_bytes(secret_file.read_bytes() + b"\n")
    assert "is not the one the root was sealed with" in str(refused(path, Credential(secret_file)))


@pytest.mark.parametrize("size", [0, 31, 65537])
def test_a_credential_of_an_unfit_size_is_refused(path: Path, secret_file: Path, size: int) -> None:
    secret_file.chmod(0o600)
    secret_file.write_bytes(b"x" * size)
    with pytest.raises(SealError, match="unfit size"):
        create(path, [Credential(secret_file)])


def test_a_missing_credential_is_named(path: Path, tmp_path: Path) -> None:
    with pytest.raises(SealError, match=r"cannot read credential .*no-such"):
        create(path, [Credential(tmp_path / "no-such")])


def test_a_credential_that_stays_on_the_machine_is_reported(
    path: Path, secret_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CREDENTIALS_DIRECTORY")
    (warning,) = create(path, [Credential(secret_file)]).warnings
    assert "whoever copies it opens the store" in warning


def test_a_credential_everybody_reads_is_reported(path: Path, secret_file: Path) -> None:
    secret_file.chmod(0o444)
    assert any("everybody" in warning for warning in create(path, [Credential(secret_file)]).warnings)


def test_the_credential_of_the_service_manager_is_found(
    secret_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    assert systemd_credential() is None
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(secret_file.parent))
    assert systemd_credential() == secret_file
    assert systemd_credential("other") is None


# --- changing the slots --------------------------------------------------------------------------


def test_a_second_slot_opens_the_same_root(path: Path) -> None:
    made = create(path, [Vault()])
    add_slot(path, made, passphrase())
    assert [entry["kind"] for entry in describe(path)] == ["vault", "passphrase"]
    assert open_root(path, [passphrase()]).root.same_as(made.root)


def test_a_slot_of_the_same_kind_and_label_is_replaced(path: Path) -> None:
    made = create(path, [passphrase("old")])
    add_slot(path, made, passphrase("new"))
    assert len(describe(path)) == 1
    assert open_root(path, [passphrase("new")]).root.same_as(made.root)
    assert "wrong passphrase" in str(refused(path, passphrase("old")))


def test_a_stranger_to_the_root_cannot_add_a_slot(path: Path, tmp_path: Path) -> None:
    create(path, [passphrase()])
    stranger = create(tmp_path / "other.json", [passphrase()])
    before = path.read_bytes()
    with pytest.raises(SealError, match="was altered"):
        add_slot(path, stranger, passphrase("mine"))
    assert path.read_bytes() == before


def test_slots_are_limited(path: Path) -> None:
    made = create(path, [Vault(label=str(number)) for number in range(16)])
    with pytest.raises(SealError, match="16 slots already"):
        add_slot(path, made, passphrase())
    assert len(describe(path)) == 16


@pytest.mark.parametrize("step", ["fsync", "rename"])
def test_a_disk_that_fails_leaves_the_old_file(
    path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    made = create(path, [passphrase()])
    before = path.read_bytes()

    def fails(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, step, fails)
    with pytest.raises(SealError, match="No space left"):
        add_slot(path, made, Vault())
    monkeypatch.undo()
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]


# --- derived keys --------------------------------------------------------------------------------


def test_derive_is_hkdf_expand_with_our_labels() -> None:
    root = Secret(bytes(range(32)))
    first = hmac.digest(root.reveal(), b"keyhaul v1 store/page\x01", "sha256")
    second = hmac.digest(root.reveal(), first + b"keyhaul v1 store/page\x02", "sha256")
    assert derive(root, "store/page", 48).reveal() == (first + second)[:48]


def test_every_label_and_every_root_gives_another_key() -> None:
    roots = [Secret(bytes([number]) * 32) for number in range(3)]
    labels = ["store/page", "store/field", "audit/mac", "seal/check", "seal/counter"]
    keys = {derive(root, label).reveal() for root in roots for label in labels}
    assert len(keys) == len(roots) * len(labels)


# --- optional packages ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("module", "slot", "extra"),
    [
        ("tpm2_pytss", Tpm("device:/dev/tpmrm0"), "keyhaul[tpm]"),
        ("pkcs11", Pkcs11(Path("/usr/lib/some-module.so"), "token", lambda: "1234"), "keyhaul[pkcs11]"),
    ],
)
def test_without_its_package_a_slot_says_what_to_install(
    path: Path, monkeypatch: pytest.MonkeyPatch, module: str, slot: Slot, extra: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)  # what an import of a missing package meets
    made = create(path, [slot, passphrase()])
    assert made.kind == "passphrase"
    assert any(extra in warning and "install-debian-packages.sh" in warning for warning in made.warnings)
    with pytest.raises(SealError) as caught:
        _ = slot.grade
    assert extra in caught.value.remedy


def test_a_counter_without_its_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tpm2_pytss", None)
    with pytest.raises(SealError, match="tpm2-pytss"):
        NvCounter("device:/dev/tpmrm0", Secret(bytes(32))).read()


def test_importing_the_package_imports_no_optional_one() -> None:
    code = "import sys, keyhaul.stores.sealing; print(sorted({'tpm2_pytss', 'pkcs11'} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
