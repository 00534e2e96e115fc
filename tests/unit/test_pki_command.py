"""`keyhaul pki` as an operator meets it: what it says, its exit codes, and what it leaves alone."""

from __future__ import annotations

import base64
import json
import shutil
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, mldsa
from cryptography.x509.oid import ExtendedKeyUsageOID

from keyhaul.certificates import CLIENT, SERVER, Leaf, request
from keyhaul.pki import Lifetimes, Pki
from keyhaul.pki.files import certificates_in, key_in
from keyhaul.pki.rollover import fingerprint
from tests.unit.test_cli import run

HOSTS = ("localhost", "127.0.0.1")


@pytest.fixture
def pki(tmp_path: Path) -> Pki:
    made = Pki.create(tmp_path / "pki", ["lab"])
    made.node("lab", "n1", HOSTS)
    made.sae("lab", "app/1")
    return made


class Operator:
    """Types `keyhaul pki …` and reads the answer."""

    def __init__(self, pki: Pki, capsys: pytest.CaptureFixture[str]) -> None:
        self.pki, self.capsys = pki, capsys

    def types(self, *words: str, fails: int = 0) -> str:
        code, out, err = run(self.capsys, "pki", *words)
        assert code == fails, out + err
        return out + err

    def reads(self, *words: str, fails: int = 0) -> Any:
        return json.loads(self.types(*words, "--json", fails=fails))

    def at_home(self, *words: str, fails: int = 0) -> Any:
        return self.reads(*words, "--pki", str(self.pki.directory), fails=fails)


@pytest.fixture
def operator(pki: Pki, capsys: pytest.CaptureFixture[str]) -> Operator:
    return Operator(pki, capsys)


def test_show_tells_who_each_certificate_speaks_for(operator: Operator, pki: Pki) -> None:
    answer = operator.reads("show", str(pki.directory))
    assert answer["ok"]
    found = {
        Path(each["file"]).relative_to(pki.directory).as_posix(): each for each in answer["certificates"]
    }
    assert len(found) == 7
    node, ca = found["lab/node/n1.pem"], found["lab/ca/node.pem"]
    assert (node["kind"], node["role"], node["name"], node["domain"]) == ("end", "node", "n1", "lab")
    assert node["names"] == ["urn:keyhaul:node:n1", "localhost", "127.0.0.1"]
    assert (node["uses"], node["algorithm"], node["key"]) == (["server", "client"], "ML-DSA-65", "fits")
    assert (node["days_left"], node["chain"]) == (364, ca["fingerprint"])
    assert (ca["kind"], ca["chain"], ca["key"], ca["common"]) == ("ca", "self-signed", "fits", "lab node CA")
    assert found["node-anchors.pem"]["key"] == "none"
    (sae,) = [each for name, each in found.items() if "/sae/" in name]
    assert (sae["role"], sae["name"]) == ("sae", "app/1")
    text = operator.types("show", str(pki.directory))
    assert "node n1" in text
    assert "sae app/1" in text
    one = operator.types("show", str(pki.directory / "lab" / "node" / "n1.pem"))
    assert fingerprint(certificates_in(pki.directory / "lab" / "node" / "n1.pem", "")[0]) in one


def test_show_exits_with_1_where_something_is_wrong(operator: Operator, pki: Pki, tmp_path: Path) -> None:
    def problems(*words: str, fails: int = 1) -> dict[str, list[str]]:
        answer = operator.reads("show", *words, fails=fails)
        assert answer["ok"] is not bool(fails)
        return {Path(e["file"]).name: e["problems"] for e in answer["certificates"] if e["problems"]}

    home = str(pki.directory)
    assert problems(home, "--within", "364", fails=0) == {}
    assert set(problems(home, "--within", "365")) == {"n1.pem", sae_file(pki).name}
    past = Lifetimes(leaf=2, start=datetime.now(UTC) - timedelta(days=3))
    Pki.open(pki.directory, lifetimes=past).sae("lab", "late")
    coming = Lifetimes(leaf=2, start=datetime.now(UTC) + timedelta(days=3))
    Pki.open(pki.directory, lifetimes=coming).sae("lab", "early")
    assert problems(home) == {"late.pem": ["expired"], "early.pem": ["not valid yet"]}
    for name in ("late", "early"):
        (pki.directory / "lab" / "sae" / f"{name}.pem").unlink()
    pki.sae("lab", "odd").key.write_bytes((pki.directory / "lab" / "ca" / "sae.key").read_bytes())
    pki.sae("lab", "open").key.chmod(0o644)
    stranger = Pki.create(tmp_path / "stranger", ["lab"])
    (pki.directory / "lab" / "sae" / "false.pem").write_bytes(stranger.sae("lab", "x").cert.read_bytes())
    assert problems(home) == {
        "odd.pem": ["odd.key does not belong to it"],
        "open.pem": ["open.key can be read by others"],
        "false.pem": ["its issuer is not here"],
    }
    assert problems(str(pki.directory / "lab" / "sae" / "false.pem"), fails=0) == {}
    ca = str(stranger.directory / "lab" / "ca" / "sae.pem")
    assert problems(str(pki.directory / "lab" / "sae" / "false.pem"), "--ca", ca, fails=0) == {}


def sae_file(pki: Pki) -> Path:
    (found,) = (pki.directory / "lab" / "sae").glob("app_1*.pem")
    return found


@pytest.mark.parametrize(
    ("words", "cause"),
    [
        (("show", "/nonexistent"), "No such file"),
        (("show", "{pki}/lab/ca/node.key"), "no certificate in PEM form"),
        (("show", "{pki}/nothing"), "no certificates here"),
        (("renew", "--pki", "{pki}"), "not clear what to renew"),
        (("renew", "{pki}/lab/node/n1.pem", "--all", "--pki", "{pki}"), "not clear what to renew"),
        (("renew", "{pki}/lab/ca/node.pem", "--pki", "{pki}"), "that is a CA"),
        (("issue", "node", "N1", "--pki", "{pki}"), "no node name"),
        (("issue", "plain", "n1", "--pki", "{pki}"), "--foreign-ca"),
        (("issue", "sae", "x", "--pki", "/nonexistent"), "No such file"),
        (("issue", "sae", "x", "--domain", "east", "--pki", "{pki}"), "no domain 'east'"),
        (("request", "plain", "n1", "--host", "a"), "use `keyhaul pki issue plain`"),
        (("sign", "x", "plain", "n1", "--host", "a", "--pki", "{pki}"), "use `keyhaul pki issue plain`"),
        (("request", "node", "n1"), "see --host"),
        (("request", "sae", "x", "--host", "a"), "see --host"),
        (("switch-ca", "node", "--pki", "{pki}"), "no next CA"),
        (("trust", "{pki}/lab/node/n1.pem", "--into", "{pki}/node-anchors.pem"), "is no CA"),
    ],
)
def test_misuse_gives_2_and_changes_nothing(
    operator: Operator, pki: Pki, words: tuple[str, ...], cause: str
) -> None:
    (pki.directory / "nothing").mkdir()
    before = {path: path.read_bytes() for path in pki.directory.rglob("*") if path.is_file()}
    assert cause in operator.types(*(word.format(pki=pki.directory) for word in words), fails=2)
    assert before == {path: path.read_bytes() for path in pki.directory.rglob("*") if path.is_file()}


def test_every_role_can_be_issued_and_nothing_is_replaced_unasked(
    operator: Operator, pki: Pki, tmp_path: Path
) -> None:
    foreign = str(Pki.create(tmp_path / "maker", ["maker"]).ca("maker", "sae"))
    for role in ("node", "sae-port", "admin-port", "sae", "admin", "device", "device-client", "plain"):
        more = ("--foreign-ca", foreign) if role == "plain" else ()
        answer = operator.at_home("issue", role, "n2", "--host", "n2.example", "--days", "30", *more)
        (certificate,) = certificates_in(Path(answer["cert"]), "")
        assert fingerprint(certificate) == answer["fingerprint"]
        assert (certificate.not_valid_after_utc - datetime.now(UTC)).days == 29
        key = Path(answer["key"])
        before = key.read_bytes()
        operator.at_home("issue", role, "n2", *more, fails=2)
        assert key.read_bytes() == before
    operator.at_home("issue", "node", "n2", "--overwrite")
    assert operator.at_home("issue", "sae", "modern", "--ml-dsa")["fingerprint"]
    found = operator.reads("show", str(pki.directory))
    assert {each["algorithm"] for each in found["certificates"] if each["name"] == "modern"} == {"ML-DSA-65"}


def test_renew_takes_files_or_all_or_those_that_end_soon(operator: Operator, pki: Pki) -> None:
    node = pki.directory / "lab" / "node" / "n1.pem"
    before = certificates_in(node, "")[0]
    answer = operator.at_home("renew", str(node))
    (one,) = answer["renewed"]
    assert (one["file"], one["new_key"], one["replaces"]) == (str(node), False, fingerprint(before))
    assert "2 renewed" in operator.types("renew", "--all", "--pki", str(pki.directory))
    assert operator.at_home("renew", "--all", "--within", "30")["renewed"] == []
    operator.at_home("renew", str(sae_file(pki)), "--days", "20")
    (soon,) = operator.at_home("renew", "--all", "--within", "30", "--new-key")["renewed"]
    assert (soon["file"], soon["new_key"]) == (str(sae_file(pki)), True)
    assert operator.reads("show", str(pki.directory))["ok"]


def test_a_rotation_from_first_to_last_and_what_the_other_domain_types(
    operator: Operator, pki: Pki, tmp_path: Path
) -> None:
    other = Pki.create(tmp_path / "other", ["east"])
    sent, into = str(pki.ca("lab", "node")), ("--into", str(other.anchors))
    (known,) = operator.reads("trust", sent, *into)["added"]
    step = operator.at_home("rotate-ca", "node")
    assert step["signs"] == known
    assert set(step["files"]) == {sent, str(pki.anchors)}
    answer = operator.reads("trust", sent, *into, "--fingerprint", step["other"])
    assert (answer["added"], answer["removed"]) == ([step["other"]], [])
    assert "nothing is different" in operator.types("trust", sent, *into)
    states = {
        e["key"]: e["fingerprint"] for e in operator.reads("show", sent)["certificates"] if e["kind"] == "ca"
    }
    assert states == {"fits": known, "next": step["other"]}
    turned = operator.at_home("switch-ca", "node")
    assert (turned["signs"], turned["other"]) == (step["other"], known)
    assert "renew them" in operator.types("drop-ca", "node", "--pki", str(pki.directory), fails=2)
    operator.at_home("renew", "--all")
    gone = operator.at_home("drop-ca", "node")
    assert (gone["signs"], gone["other"]) == (step["other"], known)
    assert operator.reads("trust", sent, *into)["removed"] == [known]
    assert operator.reads("show", str(pki.directory))["ok"]
    assert operator.reads("show", str(other.directory))["ok"]


def test_a_directory_of_several_domains_has_to_be_told_which(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    both = Operator(Pki.create(tmp_path / "pki", ["north", "south"]), capsys)
    assert "--domain" in both.types("rotate-ca", "sae", "--pki", str(both.pki.directory), fails=2)
    assert both.at_home("rotate-ca", "sae", "--domain", "south")["files"] == [
        str(both.pki.ca("south", "sae"))
    ]


# ---------------------------------------------------------------------- keys that stay with their party


def armoured(der: bytes) -> str:
    """A request in PEM form."""
    body = base64.encodebytes(der).decode()
    return f"-----BEGIN CERTIFICATE REQUEST-----\n{body}-----END CERTIFICATE REQUEST-----\n"


REQUESTS = ("node", "sae-port", "admin-port", "sae", "admin", "device", "device-client")
SERVERS = ("node", "sae-port", "admin-port", "device")


@pytest.mark.parametrize("party", REQUESTS)
def test_a_request_gets_what_issue_would_have_made(
    operator: Operator, pki: Pki, tmp_path: Path, party: str
) -> None:
    hosts = ("--host", "n2.example", "--host", "192.0.2.7") if party in SERVERS else ()
    asked = operator.reads("request", party, "n2", "--into", str(tmp_path), *hosts)
    assert stat.S_IMODE(Path(asked["key"]).stat().st_mode) == 0o600
    before = Path(asked["key"]).read_bytes()
    assert "exists already" in operator.types(
        "request", party, "n2", "--into", str(tmp_path), *hosts, fails=2
    )
    assert Path(asked["key"]).read_bytes() == before
    signed = operator.at_home(
        "sign", asked["request"], party, "n2", *hosts, "--public-key", asked["public_key"]
    )
    made = certificates_in(Path(signed["cert"]), "")[0]
    operator.at_home("sign", asked["request"], party, "n2", *hosts, fails=2)
    other = pki.directory.parent / "other"
    shutil.copytree(pki.directory, other)
    issued = operator.reads("issue", party, "n2", *hosts, "--pki", str(other), "--overwrite")
    like = certificates_in(Path(issued["cert"]), "")[0]
    if not hosts:
        assert made.subject == like.subject
    for each in made.extensions:
        if each.oid._name not in ("subjectKeyIdentifier",):
            assert each.value == like.extensions.get_extension_for_oid(each.oid).value
    assert type(made.public_key()) is type(like.public_key())
    assert key_in(Path(asked["key"])).public_key() == made.public_key()
    assert Path(signed["ca"]) == Path(issued["ca"].replace(str(other), str(pki.directory)))
    assert operator.reads("show", str(pki.directory))["ok"]
    operator.at_home("renew", signed["cert"], "--new-key", fails=2)
    operator.at_home("renew", "--all", "--new-key")
    (after,) = certificates_in(Path(signed["cert"]), "")
    assert after.serial_number != made.serial_number
    assert after.public_key() == made.public_key()


def test_a_request_is_refused_if_it_asks_for_anything_but_what_the_operator_says(
    operator: Operator, pki: Pki, tmp_path: Path
) -> None:
    """Exit code 1, with the cause; and nothing is written."""
    wanted = Leaf("n2", "node", ("n2.example",), (*SERVER, *CLIENT), "ml-dsa-65")
    key = mldsa.MLDSA65PrivateKey.generate()
    good = request(wanted, key)
    names = good.extensions.get_extension_for_class(x509.SubjectAlternativeName).value

    def made(*more: tuple[x509.ExtensionType, bool], subject: str = "CN=n2", signer: Any = key) -> bytes:
        builder = x509.CertificateSigningRequestBuilder()
        builder = builder.subject_name(x509.Name.from_rfc4514_string(subject))
        for value, critical in more or ((names, False),):
            builder = builder.add_extension(value, critical)
        digest = None if isinstance(signer, mldsa.MLDSA65PrivateKey) else hashes.SHA256()
        return builder.sign(signer, digest).public_bytes(serialization.Encoding.PEM)

    usage = {word: False for word in ("content_commitment", "key_encipherment", "data_encipherment")}
    usage |= {word: False for word in ("key_agreement", "crl_sign", "encipher_only", "decipher_only")}
    forged = bytearray(good.public_bytes(serialization.Encoding.DER))
    forged[-1] ^= 1
    later = good.public_bytes(serialization.Encoding.DER).replace(b"\x02\x01\x00", b"\x02\x01\x07", 1)
    elsewhere = x509.SubjectAlternativeName([*names, x509.DNSName("n1.example")])
    bad = {
        "nobody proves": armoured(bytes(forged)),
        "no certificate request": "nonsense",
        "request that can be read": armoured(later),
        "basicConstraints": made((names, False), (x509.BasicConstraints(True, None), True)),
        "keyUsage": made(
            (names, False), (x509.KeyUsage(digital_signature=True, key_cert_sign=True, **usage), True)
        ),
        "extendedKeyUsage": made(
            (names, False), (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CODE_SIGNING]), False)
        ),
        "TLSFeature": made((names, False), (x509.TLSFeature([x509.TLSFeatureType.status_request]), False)),
        "nameConstraints": made((names, False), (x509.NameConstraints(None, [x509.DNSName("a")]), True)),
        "n1.example": made((elsewhere, False)),
        "(none)": made((x509.BasicConstraints(False, None), True)),
        "its subject has CN=n3": made(subject="CN=n3"),
        "its subject has O=elsewhere": made(subject="CN=n2,O=elsewhere"),
        "its subject has C=ES": made(subject="CN=n2,C=ES"),
        "kind of key": made(signer=ec.generate_private_key(ec.SECP256R1())),
    }
    file = tmp_path / "n2.csr"
    words = ("sign", str(file), "node", "n2", "--host", "n2.example", "--pki", str(pki.directory))
    for cause, content in bad.items():
        file.write_bytes(content.encode() if isinstance(content, str) else content)
        assert cause in operator.types(*words, fails=1), cause
    file.write_bytes(made(subject="CN=n2,O=lab"))
    assert "not the one given" in operator.types(*words, "--public-key", "00" * 32, fails=1)
    assert "asks for the names" in operator.types(*words, "--host", "more.example", fails=1)
    assert "see --host" in operator.types("sign", str(file), "node", "n2", *words[-2:], fails=2)
    assert "No such file" in operator.types("sign", "/nonexistent", *words[2:], fails=2)
    assert not (pki.directory / "lab" / "node" / "n2.pem").exists()
    assert "private key of that party is here" in operator.types(
        "sign", str(file), "node", "n1", *words[4:], fails=2
    )
    operator.types(*words)  # what other tools leave out, the CA says by itself
    (issued,) = certificates_in(pki.directory / "lab" / "node" / "n2.pem", "")
    assert not issued.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
