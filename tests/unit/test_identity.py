"""Who a certificate speaks for, and which certificates and signatures are believed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, mldsa, rsa
from cryptography.x509.oid import NameOID
from hypothesis import given, settings
from hypothesis import strategies as st

from keyhaul.errors import ConfigError, Tampered, Unauthorized
from keyhaul.identity import Anchors, Identity, admin_name, domain, node_name, sae_id, urn
from keyhaul.pki import Files, Lifetimes, Pki

NOW = datetime(2030, 6, 1, tzinfo=UTC)
CA_KEY = ec.generate_private_key(ec.SECP256R1())
CA_NAME = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test CA")])
PEM = serialization.Encoding.PEM
DER = serialization.Encoding.DER


def certificate(
    common: Sequence[str] = (),
    uris: Sequence[str] = (),
    hosts: Sequence[str] = (),
    extra: Sequence[tuple[x509.ExtensionType, bool]] = (),
) -> x509.Certificate:
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name) for name in common]))
        .issuer_name(CA_NAME)
        .public_key(CA_KEY.public_key())
        .serial_number(1)
        .not_valid_before(NOW - timedelta(days=1))
        .not_valid_after(NOW + timedelta(days=1))
    )
    names = [*map(x509.UniformResourceIdentifier, uris), *map(x509.DNSName, hosts)]
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    for extension, critical in extra:
        builder = builder.add_extension(extension, critical)
    return builder.sign(CA_KEY, hashes.SHA256())


@pytest.mark.parametrize(
    ("subject", "name"),
    [
        (certificate(common=["cn"], uris=["urn:keyhaul:sae:app%2F1"], hosts=["dns"]), "app/1"),
        (certificate(common=["cn"], uris=["spiffe://example.org/app%2F1"], hosts=["dns"]), "spiffe://example.org/app%2F1"),
        (certificate(uris=["urn:other:1", "URN:KeyHaul:SAE:app"]), "app"),
        (certificate(common=["cn"], hosts=["app.example", "other.example"]), "app.example"),
        (certificate(common=["the app"]), "the app"),
    ],
)  # fmt: skip
def test_the_name_is_the_uri_else_the_host_else_the_cn(subject: x509.Certificate, name: str) -> None:
    assert sae_id(subject) == name


@pytest.mark.parametrize(
    "subject",
    [
        certificate(),
        certificate(common=["one", "two"]),
        certificate(uris=["urn:a:1", "urn:b:2"]),
        certificate(uris=["urn:keyhaul:sae:a", "urn:keyhaul:sae:b"]),
        certificate(uris=["urn:keyhaul:sae:a", "urn:keyhaul:node:b"]),
        certificate(uris=["urn:keyhaul:sae:"]),
        certificate(uris=["urn:keyhaul:sae"]),
        certificate(uris=["urn:keyhaul:sae:100%"]),
        certificate(uris=["urn:keyhaul:sae:%ff"]),
        certificate(uris=["urn:keyhaul:sae:a%00b"]),
        certificate(uris=["urn:keyhaul:sae:a%0Ab"]),
        certificate(common=["line\nbreak"]),
    ],
)
def test_a_certificate_without_one_usable_name_is_refused(subject: x509.Certificate) -> None:
    with pytest.raises(Unauthorized) as refused:
        sae_id(subject)
    assert refused.value.cause
    assert refused.value.remedy


READERS: dict[str, Callable[[x509.Certificate], str]] = {
    "sae": sae_id,
    "node": node_name,
    "admin": admin_name,
}


@pytest.mark.parametrize("role", ["sae", "node", "admin", "device", "something"])
@pytest.mark.parametrize("prefix", ["urn:keyhaul:", "URN:KEYHAUL:"])
def test_a_certificate_counts_in_its_own_role_only(role: str, prefix: str) -> None:
    subject = certificate(common=["cn"], hosts=["dns"], uris=[f"{prefix}{role}:x"])
    for reader_role, read in READERS.items():
        if reader_role == role:
            assert read(subject) == "x"
        else:
            with pytest.raises(Unauthorized, match="role"):
                read(subject)


def test_node_names_are_plain_and_foreign_kmes_keep_their_own() -> None:
    assert node_name(certificate(uris=["https://kme.example/7"])) == "https://kme.example/7"
    assert node_name(certificate(hosts=["kme.example"])) == "kme.example"
    for bad in ("Vigo", "a%2Fb", "a%20b", "..%2F"):
        with pytest.raises(Unauthorized):
            node_name(certificate(uris=[f"urn:keyhaul:node:{bad}"]))


@settings(max_examples=60, deadline=None)
@given(st.text(min_size=1, max_size=40).filter(str.isprintable))
def test_every_printable_id_survives_the_way_through_a_certificate(name: str) -> None:
    assert sae_id(certificate(uris=[urn("sae", name)])) == name


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    lifetimes = Lifetimes(leaf=10, ca=20, start=NOW)
    return Pki.create(tmp_path_factory.mktemp("pki") / "pki", ["north", "south"], lifetimes=lifetimes)


@pytest.fixture(scope="module")
def vigo(pki: Pki) -> Files:
    return pki.node("north", "vigo", ["localhost"])


def load(files: Files) -> Identity:
    return Identity.load(files.cert.read_bytes(), files.key.read_bytes())


def anchors(path: Path) -> Anchors:
    return Anchors.load(path.read_bytes())


def at(days: float) -> float:
    return (NOW + timedelta(days=days)).timestamp()


def test_a_node_signs_and_its_neighbour_in_another_domain_believes_it(pki: Pki, vigo: Files) -> None:
    own = load(vigo)
    known = anchors(pki.node("south", "derio", []).ca).verify(own.der, at(1))
    assert (known.name, known.domain, own.name) == ("vigo", "north", "vigo")
    signature = own.sign(b"message")
    assert len(signature) == 3309
    known.check(signature, b"message")
    for wrong, text in ((signature, b"massage"), (b"", b"message"), (bytes(3309), b"message")):
        with pytest.raises(Tampered):
            known.check(wrong, text)


AnyKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | mldsa.MLDSA44PrivateKey


def issued(
    key: AnyKey, *, name: str = "n", ca: bool = False, extra: Sequence[tuple[x509.ExtensionType, bool]] = ()
) -> x509.Certificate:
    """A certificate for `key`, issued by the test CA; with `ca`, the test CA's own."""
    own = certificate(common=[name], uris=[] if ca else [urn("node", name)])
    builder = (
        x509.CertificateBuilder()
        .subject_name(CA_NAME if ca else own.subject)
        .issuer_name(CA_NAME)
        .public_key(key.public_key())
        .serial_number(2)
        .not_valid_before(NOW - timedelta(days=1))
        .not_valid_after(NOW + timedelta(days=1))
    )
    for extension in own.extensions:
        builder = builder.add_extension(extension.value, extension.critical)
    for value, critical in extra:
        builder = builder.add_extension(value, critical)
    return builder.sign(CA_KEY, hashes.SHA256())


def private_pem(key: AnyKey) -> bytes:
    return key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


CA_EXTENSION = (x509.BasicConstraints(ca=True, path_length=0), True)
TEST_CA = issued(CA_KEY, ca=True, extra=[CA_EXTENSION])
TEST_ANCHORS = Anchors.load(TEST_CA.public_bytes(PEM))


@pytest.mark.parametrize("curve", [ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1()])
def test_an_ecdsa_identity_signs_too(curve: ec.EllipticCurve) -> None:
    key = ec.generate_private_key(curve)
    own = Identity.load(issued(key).public_bytes(PEM), private_pem(key))
    known = TEST_ANCHORS.verify(own.der, at(0))
    known.check(own.sign(b"m"), b"m")
    for signature in (own.sign(b"other"), b"", b"0" * 64):
        with pytest.raises(Tampered):
            known.check(signature, b"m")


def test_a_key_that_cannot_sign_for_a_node_checks_nothing() -> None:
    key = rsa.generate_private_key(65537, 2048)
    cert = issued(key)
    with pytest.raises(ConfigError, match="neither ML-DSA nor ECDSA"):
        Identity.load(cert.public_bytes(PEM), private_pem(key))
    with pytest.raises(Tampered):
        TEST_ANCHORS.verify(cert.public_bytes(DER), at(0)).check(bytes(256), b"m")


def test_an_identity_shows_no_key(vigo: Files) -> None:
    assert repr(load(vigo)) == "Identity('vigo')"


def test_an_identity_that_does_not_fit_is_a_mistake_of_the_configuration(pki: Pki, vigo: Files) -> None:
    cert, key = vigo.cert.read_bytes(), vigo.key.read_bytes()
    sae = pki.sae("north", "app")
    for pair, cause in (
        ((cert, sae.key.read_bytes()), "does not belong"),
        ((b"", key), "not readable"),
        ((cert, b"-----BEGIN"), "not readable"),
        ((sae.cert.read_bytes(), sae.key.read_bytes()), "role 'sae'"),
    ):
        with pytest.raises(ConfigError, match=cause):
            Identity.load(*pair)


@pytest.mark.parametrize(("days", "valid"), [(-1, False), (0, True), (9, True), (11, False)])
def test_certificates_count_within_their_validity_only(vigo: Files, days: float, valid: bool) -> None:
    der = load(vigo).der
    if valid:
        assert anchors(vigo.ca).verify(der, at(days)).name == "vigo"
    else:
        with pytest.raises(Unauthorized, match="not valid at this time"):
            anchors(vigo.ca).verify(der, at(days))


def test_an_expired_ca_vouches_for_nobody() -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    builder = x509.CertificateBuilder(
        CA_NAME, CA_NAME, CA_KEY.public_key(), 3, NOW - timedelta(days=9), NOW - timedelta(days=8)
    ).add_extension(*CA_EXTENSION)
    expired = Anchors.load(builder.sign(CA_KEY, hashes.SHA256()).public_bytes(PEM))
    with pytest.raises(Unauthorized, match="certificate's CA is not valid"):
        expired.verify(issued(key).public_bytes(DER), at(0))


def test_foreign_and_forged_certificates_are_refused(pki: Pki, vigo: Files, tmp_path: Path) -> None:
    trusted = anchors(vigo.ca)
    # Same names, other keys: only the signature tells.
    twin = Pki.create(tmp_path / "twin", ["north", "south"], lifetimes=pki.lifetimes)
    forged = bytearray(load(vigo).der)
    forged[-1] ^= 1
    sae = x509.load_pem_x509_certificate(pki.sae("north", "caller").cert.read_bytes())
    for der in (load(twin.node("north", "vigo", [])).der, bytes(forged), sae.public_bytes(DER)):
        with pytest.raises(Unauthorized, match="not issued by a trusted CA"):
            trusted.verify(der, at(1))


@pytest.mark.parametrize("der", [b"", b"\x30\x00", b"\x30\x84\xff\xff\xff\xff", bytes(1000)])
def test_malformed_certificates_are_refused(der: bytes) -> None:
    with pytest.raises(Unauthorized, match="malformed"):
        TEST_ANCHORS.verify(der, at(0))


def usage(sign: bool) -> x509.KeyUsage:
    return x509.KeyUsage(sign, False, not sign, False, False, False, False, False, False)


@pytest.mark.parametrize(
    ("extra", "cause"),
    [
        ([CA_EXTENSION], "that of a CA"),
        ([(usage(sign=False), True)], "not for signatures"),
        ([(x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\5\0"), True)], "critical"),
    ],
)
def test_certificates_for_other_purposes_are_refused(
    extra: list[tuple[x509.ExtensionType, bool]], cause: str
) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    with pytest.raises(Unauthorized, match=cause):
        TEST_ANCHORS.verify(issued(key, extra=extra).public_bytes(DER), at(0))
    assert TEST_ANCHORS.verify(issued(key, extra=[(usage(sign=True), True)]).public_bytes(DER), at(0)).name


def test_a_ca_certificate_itself_is_no_node() -> None:
    with pytest.raises(Unauthorized, match="that of a CA"):
        TEST_ANCHORS.verify(TEST_CA.public_bytes(DER), at(0))


def test_a_bundle_of_anchors_holds_cas_only(vigo: Files) -> None:
    for pem, cause in (
        (b"", "no certificate"),
        (vigo.cert.read_bytes(), "is no CA"),
        (issued(CA_KEY).public_bytes(PEM), "is no CA"),
    ):
        with pytest.raises(ConfigError, match=cause):
            Anchors.load(pem)


def test_the_domain_is_the_issuers_organisation(vigo: Files) -> None:
    assert domain(load(vigo).certificate) == "north"
    assert domain(certificate(common=["x"])) is None
