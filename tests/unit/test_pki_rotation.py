"""A CA's next key: who is believed at which step, what a crash leaves, and who cannot claim a domain."""

from __future__ import annotations

import itertools
import shutil
import stat
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from keyhaul.certificates import authority, successor, vouching
from keyhaul.errors import ConfigError, Unauthorized
from keyhaul.identity import Anchors, Federation, issued_by, organisation, public_bytes
from keyhaul.pki import Files, Lifetimes, Pki, rollover
from keyhaul.pki import files as pem_files
from keyhaul.pki.files import certificates_in, pem, signer
from keyhaul.pki.renewing import renew

DER = serialization.Encoding.DER
HOSTS = ("localhost", "127.0.0.1")
ROLES = ("node", "sae", "admin", "device")


@pytest.fixture
def pki(tmp_path: Path) -> Pki:
    return Pki.create(tmp_path / "pki", ["north", "south"])


def read(files: Files) -> x509.Certificate:
    return x509.load_pem_x509_certificate(files.cert.read_bytes())


def der(files: Files) -> bytes:
    return read(files).public_bytes(DER)


def now() -> float:
    return datetime.now(UTC).timestamp()


def believes(file: Path, files: Files) -> bool:
    try:
        Federation(Anchors.of_domains(file.read_bytes()), {"vigo": "north", "lugo": "north"}).verify(
            der(files), now()
        )
    except Unauthorized:
        return False
    return True


# ---------------------------------------------------------------------- the steps


@pytest.mark.parametrize("role", ROLES)
def test_the_next_ca_has_the_name_of_the_old_one_and_its_kind_of_key(pki: Pki, role: str) -> None:
    before, key = signer(pki.ca("north", role))
    step = rollover.begin(pki, "north", role)
    assert step.signs == before
    assert step.other.subject == before.subject
    assert type(step.other.public_key()) is type(before.public_key())
    assert public_bytes(step.other) != public_bytes(before)
    assert signer(pki.ca("north", role))[0] == before
    step = rollover.switch(pki, "north", role)
    after, new = signer(pki.ca("north", role))
    assert (step.signs, step.other) == (after, before)
    assert new.public_key() != key.public_key()
    rollover.drop(pki, "north", role)
    assert certificates_in(pki.ca("north", role), "") == [after]
    (retired,) = (pki.ca("north", role).parent / "retired").iterdir()
    assert certificates_in(retired, "") == [before]


def test_a_node_is_believed_throughout_and_the_old_ca_no_more_at_the_end(pki: Pki) -> None:
    vigo = pki.node("north", "vigo", HOSTS)
    old = der(vigo)
    rollover.begin(pki, "north", "node")
    assert believes(vigo.ca, vigo)
    rollover.switch(pki, "north", "node")
    lugo = pki.node("north", "lugo", HOSTS)
    assert believes(vigo.ca, vigo)
    assert believes(vigo.ca, lugo)
    with pytest.raises(ConfigError, match="1 certificates are of the CA that shall go") as refused:
        rollover.drop(pki, "north", "node")
    assert "keyhaul pki renew" in refused.value.remedy
    renew(pki, vigo.cert)
    rollover.drop(pki, "north", "node")
    assert believes(vigo.ca, vigo)
    with pytest.raises(Unauthorized, match="not issued by a trusted CA") as no:
        Anchors.of_domains(vigo.ca.read_bytes()).verify(old, now())
    assert "keyhaul pki trust" in no.value.remedy


def test_a_rotation_can_be_given_up(pki: Pki) -> None:
    path = pki.ca("north", "node")
    before = path.read_bytes(), pki.anchors.read_bytes()
    vigo = pki.node("north", "vigo", HOSTS)
    rollover.begin(pki, "north", "node")
    rollover.drop(pki, "north", "node", next_one=True)
    assert believes(vigo.ca, vigo)
    assert path.read_bytes() == before[0]
    assert set(certificates_in(pki.anchors, "")) == set(x509.load_pem_x509_certificates(before[1]))
    assert not path.with_suffix(".next.key").exists()
    rollover.begin(pki, "north", "node")  # and begun again


def test_ca_after_ca(pki: Pki) -> None:
    vigo = pki.node("north", "vigo", HOSTS)
    for _ in range(3):
        rollover.begin(pki, "north", "node")
        rollover.switch(pki, "north", "node")
        renew(pki, vigo.cert)
        rollover.drop(pki, "north", "node")
        assert believes(vigo.ca, vigo)
    assert len(certificates_in(pki.anchors, "")) == 2


def test_steps_out_of_turn_change_nothing(pki: Pki) -> None:
    def content() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in pki.directory.rglob("*") if path.is_file()}

    def refused(step: Callable[[], object], cause: str) -> None:
        before = content()
        with pytest.raises(ConfigError, match=cause):
            step()
        assert content() == before

    refused(lambda: rollover.switch(pki, "north", "node"), "no next CA")
    refused(lambda: rollover.drop(pki, "north", "node"), "no other CA")
    refused(lambda: rollover.drop(pki, "north", "node", next_one=True), "no next CA")
    refused(lambda: rollover.begin(pki, "east", "node"), "no such CA")
    refused(lambda: rollover.begin(pki, "north", "plain"), "no such CA")
    rollover.begin(pki, "north", "node")
    refused(lambda: rollover.begin(pki, "north", "node"), "under way")
    refused(lambda: rollover.drop(pki, "north", "node"), "still signs")
    rollover.switch(pki, "north", "node")
    refused(lambda: rollover.begin(pki, "north", "node"), "under way")
    refused(lambda: rollover.switch(pki, "north", "node"), "no next CA")


def test_private_keys_are_private_and_the_dropped_one_is_gone(pki: Pki) -> None:
    folder = pki.ca("north", "sae").parent
    old = (folder / "sae.key").read_bytes()
    rollover.begin(pki, "north", "sae")
    rollover.switch(pki, "north", "sae")
    for path in folder.glob("*.key"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert (folder / "sae.old.key").read_bytes() == old
    rollover.drop(pki, "north", "sae")
    assert all(path.read_bytes() != old for path in folder.glob("*.key"))
    assert sorted(path.name for path in folder.glob("sae*")) == ["sae.key", "sae.pem"]


class Killed(BaseException):
    """The process ends at a write."""


@pytest.mark.parametrize("nth", range(1, 8))
def test_a_crash_at_any_write_leaves_a_pki_that_works_and_the_same_command_goes_on(
    pki: Pki, nth: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    vigo = pki.node("north", "vigo", HOSTS)
    writes = itertools.count(1)
    honest = pem_files.write

    def dying(path: Path, content: bytes, mode: int, *, overwrite: bool) -> None:
        if next(writes) == nth:
            raise Killed
        honest(path, content, mode, overwrite=overwrite)

    def mended(step: Callable[[], object]) -> None:
        """A step that is begun again after it was killed; it may have been done by then."""
        try:
            step()
        except Killed:
            assert believes(vigo.ca, vigo)
            assert believes(vigo.ca, pki.node("north", f"lugo-{nth}", HOSTS)) is False  # unknown name
            signer(pki.ca("north", "node"))
            step()
        assert believes(vigo.ca, vigo)

    for module in ("rollover", "renewing"):
        monkeypatch.setattr(f"keyhaul.pki.{module}.write", dying)
    monkeypatch.setattr(pem_files, "write", dying)
    mended(lambda: rollover.begin(pki, "north", "node"))
    mended(lambda: rollover.switch(pki, "north", "node"))
    mended(lambda: renew(pki, vigo.cert))
    mended(lambda: rollover.drop(pki, "north", "node", even_if_used=True))
    assert len(certificates_in(pki.ca("north", "node"), "")) == 1
    assert not list(pki.directory.rglob("*.old.key")) + list(pki.directory.rglob("*.next.key"))
    assert next(writes) > nth, "it was killed"


# ---------------------------------------------------------------------- who speaks for a domain


def stranger(tmp_path: Path, *domains: str) -> Pki:
    """A PKI of somebody else, whatever its domains are called."""
    return Pki.create(tmp_path / "-".join(("stranger", *domains)), domains)


def test_two_keys_speak_for_a_domain_only_if_each_vouches_for_the_other(pki: Pki, tmp_path: Path) -> None:
    ours, our_key = signer(pki.ca("north", "node"))
    theirs, their_key = signer(stranger(tmp_path, "north").ca("north", "node"))
    we_say, they_say = vouching(theirs, ours, our_key), vouching(ours, theirs, their_key)
    assert issued_by(we_say, ours)
    assert issued_by(they_say, theirs)
    both = pem([ours, theirs])
    for alone in (b"", pem([we_say]), pem([they_say]), pem([they_say, they_say])):
        with pytest.raises(ConfigError, match="claim the domain 'north', and do not vouch for each other"):
            Anchors.of_domains(both + alone)
    assert len(Anchors.of_domains(both + pem([we_say, they_say])).certificates) == 4
    assert len(Anchors.load(both).certificates) == 2  # where CAs speak for no domain


def test_three_keys_have_to_hang_together(pki: Pki, tmp_path: Path) -> None:
    first, key = signer(pki.ca("north", "node"))
    rollover.begin(pki, "north", "node")
    family = certificates_in(pki.ca("north", "node"), "")
    lone, lone_key = signer(stranger(tmp_path, "north").ca("north", "node"))
    with pytest.raises(ConfigError, match="claim the domain"):
        Anchors.of_domains(pem([*family, lone]))
    known = [vouching(lone, first, key), vouching(first, lone, lone_key)]
    assert Anchors.of_domains(pem([lone, *family, *known]))  # through `first`, in any order


def test_one_certificate_twice_is_one_and_a_ca_that_was_renewed_is_not_two_voices() -> None:
    ca, key = authority("north", "node", Lifetimes().window(10))
    again, _ = successor(ca, Lifetimes().window(60), key)
    assert len(Anchors.of_domains(pem([ca, ca])).certificates) == 1
    assert len(Anchors.of_domains(pem([ca, again])).certificates) == 2


def test_of_two_certificates_of_one_ca_the_valid_one_counts(tmp_path: Path) -> None:
    """A CA that got a new certificate for its old key, while the expired one is still in the bundle."""
    past = datetime.now(UTC) - timedelta(days=100)
    pki = Pki.create(tmp_path / "pki", ["north"], lifetimes=Lifetimes(ca=10, start=past))
    expired, key = signer(pki.ca("north", "node"))
    fresh, _ = successor(expired, Lifetimes().window(100), key)
    pki.ca("north", "node").write_bytes(pem([fresh]))
    vigo = Pki.open(pki.directory).node("north", "vigo", HOSTS)
    for order in ([expired, fresh], [fresh, expired]):
        assert Anchors.of_domains(pem(order)).verify(der(vigo), now()).name == "vigo"
    with pytest.raises(Unauthorized, match="CA is not valid"):
        Anchors.of_domains(pem([expired])).verify(der(vigo), now())


# ---------------------------------------------------------------------- what other domains do


def test_another_domain_follows_a_rotation_with_one_file_at_each_step(pki: Pki, tmp_path: Path) -> None:
    other = stranger(tmp_path, "east")
    vigo, sent = pki.node("north", "vigo", HOSTS), pki.ca("north", "node")
    done = rollover.trust(other.anchors, sent)
    assert (done.domain, len(done.added), done.removed) == ("north", 1, ())
    assert believes(other.anchors, vigo)
    rollover.begin(pki, "north", "node")
    assert len(rollover.trust(other.anchors, sent).added) == 1
    assert rollover.trust(other.anchors, sent) == rollover.Trusted("north", (), ())
    rollover.switch(pki, "north", "node")
    renew(pki, vigo.cert)
    assert believes(other.anchors, vigo)
    rollover.drop(pki, "north", "node")
    done = rollover.trust(other.anchors, sent)
    assert (len(done.added), len(done.removed)) == (0, 1)
    assert believes(other.anchors, vigo)
    assert {organisation(each.subject) for each in certificates_in(other.anchors, "")} == {"east", "north"}


def test_a_ca_that_the_known_one_does_not_vouch_for_comes_in_on_demand_only(pki: Pki, tmp_path: Path) -> None:
    other = stranger(tmp_path, "east")
    rollover.trust(other.anchors, pki.ca("north", "node"))
    before = other.anchors.read_bytes()
    false = stranger(tmp_path, "north").ca("north", "node")
    with pytest.raises(ConfigError, match="known by another CA"):
        rollover.trust(other.anchors, false)
    (fresh,) = certificates_in(false, "")
    with pytest.raises(ConfigError, match="the fingerprint of CN=north node CA"):
        rollover.trust(other.anchors, false, replace=True, fingerprints=["00" * 32])
    assert other.anchors.read_bytes() == before
    digits = rollover.fingerprint(fresh).upper()
    spelled = ":".join(digits[at : at + 2] for at in range(0, 64, 2))  # as openssl does
    done = rollover.trust(other.anchors, false, replace=True, fingerprints=[spelled])
    assert (len(done.added), len(done.removed)) == (1, 1)


def test_a_file_of_several_domains_has_to_be_asked_for_one(pki: Pki, tmp_path: Path) -> None:
    """Else what another side believes of us would replace what we know of ourselves."""
    other = stranger(tmp_path, "east")
    with pytest.raises(ConfigError, match="north, south"):
        rollover.trust(other.anchors, pki.anchors)
    assert rollover.trust(other.anchors, pki.anchors, "south").domain == "south"
    with pytest.raises(ConfigError, match="speaks for 'west'"):
        rollover.trust(other.anchors, pki.anchors, "west")
    with pytest.raises(ConfigError, match="is no CA"):
        rollover.trust(other.anchors, pki.node("north", "vigo", HOSTS).cert)
    shutil.copy(pki.ca("north", "node"), tmp_path / "new.pem")
    assert rollover.trust(tmp_path / "none-yet.pem", tmp_path / "new.pem").domain == "north"


# ---------------------------------------------------------------------- renewing


def test_a_renewed_certificate_says_the_same_of_the_same_party(pki: Pki) -> None:
    for files in (
        pki.node("north", "vigo", HOSTS),
        pki.sae("north", "a/b"),
        pki.admin_port("north", "vigo", HOSTS),
        pki.sae("north", "modern", "ml-dsa-65"),
    ):
        before, key = read(files), files.key.read_bytes()
        done = renew(pki, files.cert)
        after = read(files)
        assert (done.before, done.after) == (before, after)
        assert after.subject == before.subject
        assert after.serial_number != before.serial_number
        assert set(after.extensions) == set(before.extensions)  # the key and its CA's are the same
        assert public_bytes(after) == public_bytes(before)
        assert files.key.read_bytes() == key
        renew(pki, files.cert, new_key=True)
        assert public_bytes(read(files)) != public_bytes(before)
        assert type(read(files).public_key()) is type(before.public_key())
        assert stat.S_IMODE(files.key.stat().st_mode) == 0o600
        loaded = serialization.load_pem_private_key(files.key.read_bytes(), None)
        assert loaded.public_key() == read(files).public_key()


def test_nobody_gets_a_certificate_by_putting_a_file_there(pki: Pki, tmp_path: Path) -> None:
    false = stranger(tmp_path, "north").node("north", "vigo", HOSTS)
    mine = pki.node("north", "lugo", HOSTS)
    for source, target in ((false.cert, mine.cert), (false.key, mine.key)):
        shutil.copy(source, target)
    with pytest.raises(ConfigError, match="no CA of this PKI issued it"):
        renew(pki, mine.cert)
    other = pki.node("north", "vigo", HOSTS)
    shutil.copy(false.key, other.key)
    with pytest.raises(ConfigError, match="does not belong"):
        renew(pki, other.cert)
