"""`keyhaul pki` as an operator meets it: what it says, its exit codes, and what it leaves alone."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from keyhaul.pki import Lifetimes, Pki
from keyhaul.pki.files import certificates_in
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
