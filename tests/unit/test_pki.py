"""The files a PKI writes: their modes, their names, their contents, and what is never overwritten."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, mldsa
from cryptography.x509.oid import ExtendedKeyUsageOID
from hypothesis import given
from hypothesis import strategies as st

from keyhaul.edge.peercert import _serial
from keyhaul.errors import ConfigError
from keyhaul.identity import admin_name, node_name, sae_id
from keyhaul.pki import Files, Lifetimes, Pki, file_name

HOSTS = ("localhost", "127.0.0.1", "::1")
AWKWARD = ("a/b", "../../etc/passwd", ".hidden", "a b?c#d%e", "ñandú", "x" * 300, "..", "-rf", "a.key", "*")


@pytest.fixture
def pki(tmp_path: Path) -> Pki:
    return Pki.create(tmp_path / "deep" / "pki", ["north", "south"])


def read(files: Files) -> x509.Certificate:
    return x509.load_pem_x509_certificate(files.cert.read_bytes())


def everybody(pki: Pki) -> dict[str, Files]:
    return {
        "node": pki.node("north", "vigo", HOSTS),
        "sae-port": pki.sae_port("north", "vigo", HOSTS),
        "admin-port": pki.admin_port("north", "vigo", HOSTS),
        "admin": pki.admin("north", "ana"),
        "sae": pki.sae("north", "app/1"),
        "device": pki.device("north", "alice", HOSTS),
        "device-client": pki.device_client("north", "vigo"),
    }


def test_keys_are_private_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        pki = Pki.create(tmp_path / "a" / "b", ["d"])
        pki.sae("d", "app")
    finally:
        os.umask(before)
    inside = list(pki.directory.rglob("*"))
    assert len([path for path in inside if path.suffix == ".key"]) == 5
    for path in [tmp_path / "a", pki.directory, *inside]:
        expected = 0o700 if path.is_dir() else 0o600 if path.suffix == ".key" else 0o644
        assert stat.S_IMODE(path.stat().st_mode) == expected, path


def test_a_key_file_is_born_private_not_narrowed_later(pki: Pki, monkeypatch: pytest.MonkeyPatch) -> None:
    born: dict[str, int] = {}
    original = os.open

    def watch(path: Path, flags: int, mode: int = 0o777, **rest: int) -> int:
        assert flags & os.O_EXCL
        born[str(path)] = mode
        return original(path, flags, mode, **rest)

    monkeypatch.setattr(os, "open", watch)
    monkeypatch.setattr(os, "chmod", None)
    pki.sae("north", "app")
    assert {mode for name, mode in born.items() if ".key" in name} == {0o600}


def test_every_party_gets_its_role_and_its_uses(pki: Pki) -> None:
    client, server = ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH
    expected = {
        "node": {client, server},
        "sae-port": {server},
        "admin-port": {server},
        "device": {server},
        "sae": {client},
        "admin": {client},
        "device-client": {client},
    }
    made = everybody(pki)
    for role, files in made.items():
        certificate = read(files)
        extensions = certificate.extensions
        assert set(extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == expected[role]
        assert not extensions.get_extension_for_class(x509.BasicConstraints).value.ca
        assert extensions.get_extension_for_class(x509.KeyUsage).value.digital_signature
        kind = mldsa.MLDSA65PublicKey if role == "node" else ec.EllipticCurvePublicKey
        assert isinstance(certificate.public_key(), kind)
        if server in expected[role]:
            names = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
            assert names.get_values_for_type(x509.DNSName) == ["localhost"]
            assert [str(ip) for ip in names.get_values_for_type(x509.IPAddress)] == ["127.0.0.1", "::1"]
    assert node_name(read(made["node"])) == "vigo"
    assert sae_id(read(made["sae"])) == "app/1"
    assert sae_id(read(made["device-client"])) == "vigo"
    assert admin_name(read(made["admin"])) == "ana"


def test_each_leaf_points_to_the_ca_of_its_own_role_and_domain(pki: Pki) -> None:
    for role, files in everybody(pki).items():
        certificate = read(files)
        trusted = x509.load_pem_x509_certificates(files.ca.read_bytes())
        issuers = [ca for ca in trusted if ca.subject == certificate.issuer]
        certificate.verify_directly_issued_by(issuers[0])
        assert len(trusted) == (2 if role == "node" else 1)
        own = certificate.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value
        theirs = issuers[0].extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
        assert own.key_identifier == theirs.digest


def test_an_sae_may_have_a_post_quantum_certificate(pki: Pki) -> None:
    assert isinstance(read(pki.sae("north", "modern", "ml-dsa-65")).public_key(), mldsa.MLDSA65PublicKey)
    with pytest.raises(ConfigError, match="no certificate algorithm"):
        pki.sae("north", "odd", "rsa")


def test_a_node_shows_foreign_key_managers_an_ecdsa_certificate_of_a_ca_made_for_that(
    pki: Pki, tmp_path: Path
) -> None:
    """Only on request: without a port for them there is no such CA."""
    folder = pki.directory / pki.domains[0] / "ca"
    assert not (folder / "plain.pem").exists()
    theirs = Pki.create(tmp_path / "theirs", ["maker"])
    believed = theirs.directory / "maker" / "ca" / "sae.pem"
    files = pki.plain(pki.domains[0], "vigo", ("localhost",), [believed, believed])
    certificate = read(files)
    assert isinstance(certificate.public_key(), ec.EllipticCurvePublicKey)
    certificate.verify_directly_issued_by(x509.load_pem_x509_certificate((folder / "plain.pem").read_bytes()))
    assert node_name(certificate) == "vigo"
    assert [each.subject for each in x509.load_pem_x509_certificates(files.ca.read_bytes())] == [
        x509.load_pem_x509_certificate(believed.read_bytes()).subject
    ] * 2
    again = pki.plain(pki.domains[0], "derio", ("localhost",), [believed])
    assert read(again).issuer == certificate.issuer


@pytest.mark.parametrize("content", [b"", b"-----BEGIN CERTIFICATE-----\n", None])
def test_a_foreign_ca_that_is_none_is_named(pki: Pki, tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "foreign.pem"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ConfigError, match=r"foreign\.pem"):
        pki.plain(pki.domains[0], "vigo", ("localhost",), [file])


@pytest.mark.parametrize("name", AWKWARD)
def test_any_sae_id_becomes_a_certificate_in_its_folder(pki: Pki, name: str) -> None:
    files = pki.sae("north", name)
    assert files.cert.parent == files.key.parent == pki.directory / "north" / "sae"
    assert sae_id(read(files)) == name


@given(st.text(min_size=1, max_size=300).filter(str.isprintable))
def test_file_names_are_plain(name: str) -> None:
    made = file_name(name)
    assert made.isascii()
    assert len(made) < 100
    assert not set(made) & set("/\\ *?")
    assert not made.startswith(".")
    assert made == file_name(name)


def test_similar_ids_do_not_share_a_file() -> None:
    assert len({file_name(name) for name in ("a/b", "a?b", "a b", "a_b", "a//b")}) == 5


@pytest.mark.parametrize("name", ["", "a\nb", "a\0b", "\ud800"])
def test_unprintable_ids_are_refused(pki: Pki, name: str) -> None:
    with pytest.raises(ConfigError):
        pki.sae("north", name)


@pytest.mark.parametrize("name", ["", "Vigo", "a.b", "../x", "a/b", "x" * 64])
def test_nodes_and_domains_have_plain_names(pki: Pki, tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="no node name"):
        pki.node("north", name, HOSTS)
    with pytest.raises(ConfigError, match="no domain name"):
        Pki.create(tmp_path / "other", [name])
    assert not (tmp_path / "other").exists()


def test_mistakes_are_told(pki: Pki, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no host name"):
        pki.device("north", "alice", ["a" * 64])
    with pytest.raises(ConfigError, match=r"no domain 'east'.*north, south"):
        pki.sae("east", "app")
    with pytest.raises(ConfigError, match="at least one domain"):
        Pki.create(tmp_path / "none", [])
    with pytest.raises(ConfigError, match="no certificate authorities here"):
        Pki.open(tmp_path / "nothing")
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="directory"):
        Pki.create(tmp_path / "file" / "pki", ["d"])


def test_nothing_is_overwritten_unless_asked(pki: Pki) -> None:
    def content() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in pki.directory.rglob("*") if path.is_file()}

    files = pki.sae("north", "app")
    before = content()
    with pytest.raises(ConfigError, match="exists already"):
        pki.sae("north", "app")
    with pytest.raises(ConfigError, match="exists already"):
        Pki.create(pki.directory, ["north"])
    assert content() == before
    Pki.open(pki.directory, overwrite=True).sae("north", "app")
    changed = {path for path, text in content().items() if text != before[path]}
    assert changed == {files.cert, files.key}
    assert stat.S_IMODE(files.key.stat().st_mode) == 0o600


def test_a_pair_is_written_whole_before_either_file_is_replaced(
    pki: Pki, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An application that reads both meets the moment between two renames, not that of two disk writes."""
    files = pki.sae("north", "app")
    old = (files.key.read_bytes(), files.cert.read_bytes())
    synced: list[tuple[bytes, bytes]] = []
    honest = os.fsync

    def watched(descriptor: int) -> None:
        synced.append((files.key.read_bytes(), files.cert.read_bytes()))
        honest(descriptor)

    monkeypatch.setattr(os, "fsync", watched)
    Pki.open(pki.directory, overwrite=True).sae("north", "app")
    assert synced == [old, old]
    assert files.key.read_bytes() != old[0]
    assert files.cert.read_bytes() != old[1]

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    new = (files.key.read_bytes(), files.cert.read_bytes())
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ConfigError, match="No space left"):
        Pki.open(pki.directory, overwrite=True).sae("north", "app")
    assert (files.key.read_bytes(), files.cert.read_bytes()) == new
    assert sorted(path.name for path in files.key.parent.iterdir()) == [files.key.name, files.cert.name]


def test_a_reopened_pki_goes_on_where_it_was(pki: Pki) -> None:
    again = Pki.open(pki.directory)
    assert again.domains == ("north", "south")
    certificate = read(again.sae("south", "late"))
    ca = x509.load_pem_x509_certificate((pki.directory / "south" / "ca" / "sae.pem").read_bytes())
    certificate.verify_directly_issued_by(ca)


def test_a_damaged_ca_is_named(pki: Pki) -> None:
    key = pki.directory / "north" / "ca" / "sae.key"
    other = (pki.directory / "south" / "ca" / "sae.key").read_bytes()
    for content, cause in ((other, "do not belong together"), (b"", "not readable"), (None, "No such file")):
        key.unlink() if content is None else key.write_bytes(content)
        with pytest.raises(ConfigError, match=cause) as refused:
            pki.sae("north", "app")
        assert "backup" in refused.value.remedy


def test_lifetimes_are_as_asked_and_never_longer_than_the_cas(tmp_path: Path) -> None:
    start = datetime(2030, 1, 1, tzinfo=UTC)
    pki = Pki.create(tmp_path / "pki", ["d"], lifetimes=Lifetimes(leaf=30, ca=40, start=start))
    leaf = read(pki.sae("d", "app"))
    assert leaf.not_valid_after_utc - leaf.not_valid_before_utc == timedelta(days=30)
    assert leaf.not_valid_before_utc <= start
    longer = Pki.open(pki.directory, lifetimes=Lifetimes(leaf=99, start=start)).sae("d", "other")
    assert read(longer).not_valid_after_utc - leaf.not_valid_before_utc == timedelta(days=40)
    year = Lifetimes()
    assert (year.leaf, year.ca) == (365, 3650)


def test_keys_are_unencrypted_pkcs8_that_fit_their_certificates(pki: Pki) -> None:
    for files in everybody(pki).values():
        key = serialization.load_pem_private_key(files.key.read_bytes(), None)
        assert key.public_key() == read(files).public_key()


@pytest.mark.skipif(shutil.which("openssl") is None, reason="the openssl command is not installed")
def test_openssl_accepts_the_chains_for_their_purpose_and_no_other(pki: Pki) -> None:
    def verifies(files: Files, purpose: str, ca: Path) -> bool:
        command = ["openssl", "verify", "-x509_strict", "-purpose", purpose, "-CAfile", ca, "--", files.cert]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0

    made = everybody(pki)
    for role, purpose, other in (
        ("sae", "sslclient", "sslserver"),
        ("device-client", "sslclient", "sslserver"),
        ("admin", "sslclient", "sslserver"),
        ("sae-port", "sslserver", "sslclient"),
        ("admin-port", "sslserver", "sslclient"),
        ("device", "sslserver", "sslclient"),
    ):
        files = made[role]
        assert verifies(files, purpose, files.ca), role
        assert not verifies(files, other, files.ca), role
        foreign = pki.directory / "south" / "ca" / files.ca.name
        assert not verifies(files, purpose, foreign), role


@pytest.mark.parametrize(("number", "digits"), [(0x0A, "0A"), (0xAB, "AB"), (0x123, "0123")])
def test_serial_numbers_are_shown_in_whole_octets(number: int, digits: str) -> None:
    assert _serial(number) == digits
