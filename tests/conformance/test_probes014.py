"""The 014 probes: a right KME passes all, and each way of being wrong fails the probes that are about it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from keyhaul.conformance import kme014
from keyhaul.conformance.call import Caller
from keyhaul.conformance.kme014 import Kme014
from keyhaul.conformance.probe import Result, Verdict, run_all
from keyhaul.conformance.probes014 import PROBES
from keyhaul.edge.tls import Credentials, Policy, anonymous_context, client_context
from keyhaul.identity import urn
from keyhaul.pki import Files, Pki
from tests.conformance.wrong014 import WrongKme, serving

NAMES = ("sae a?", "sae-b", "sae-c", "sae-d")
URIS = {urn("sae", name): name for name in NAMES}

MISSING = {"once", "unknown-id", "unknown-id-get", "all-or-nothing", "multicast"}
DENIED = {"master-dec", "stranger", "each-id"}
FETCHES = {
    "same-bits", "get-key-id", "once", "all-or-nothing", "get-two-ids", "other-master", "multicast",
} | DENIED  # fmt: skip
KEYS = FETCHES | {"default", "number-size", "get", "get-number-size", "optional-unknown"}
ERRORS = {
    "size-octets", "size-over", "size-under", "number-over", "number-under", "bad-types", "not-json",
    "get-not-a-number", "mandatory-unknown", "too-many-slaves", "bad-ids", "error-bodies",
} | MISSING  # fmt: skip

DEFECTS: dict[str, set[str]] = {
    "": set(),
    "404": MISSING | {"other-master"},
    "own wording": MISSING,
    "partial": {"all-or-nothing"},
    "takes though it refuses": {"all-or-nothing"},
    "delivers twice": {"once", "multicast"},
    "gives to anyone": {"once", "multicast"} | DENIED,
    "403": DENIED,
    "loses what it refuses": DENIED,
    "first slave takes all": {"multicast"},
    "other bits at the slave": FETCHES,
    "any master": {"other-master"},
    "GET with two ids": {"get-two-ids"},
    "odd size in own words": {"size-octets"},
    "no bounds": {"size-over", "size-under", "number-over"},
    "default size 128": {"default", "get", "optional-unknown"},
    "GET ignores the query": {"get-number-size", "get-not-a-number"},
    "mandatory ignored": {"mandatory-unknown"},
    "mandatory 503": {"mandatory-unknown"},
    "optional refused": {"optional-unknown"},
    "extensions of any type": {"extension-types"},
    "any number of slaves": {"too-many-slaves"},
    "422": {"bad-types", "not-json", "bad-ids", "extension-types"},
    "PUT works": {"methods"},
    "unknown slave 404": {"escaping", "slash", "unknown-slave"},
    "slash is a separator": {"slash", "escaping"},
    "decodes twice": {"escaping"},
    "status names swapped": {"status-names", "escaping"},
    "numbers as texts": {"status", "status-bounds"},
    "more than fits": {"status-bounds"},
    "a member missing": {"status"},
    "ids are no UUIDs": KEYS,
    "no padding": KEYS,
    "plain text errors": ERRORS,
    "details object": ERRORS,
    "no certificate asked": {"no-certificate"},
}


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return Pki.create(tmp_path_factory.mktemp("pki"), ["lab"])


@pytest.fixture(scope="module")
def port(pki: Pki) -> Files:
    return pki.sae_port("lab", "kme", ("127.0.0.1",))


@pytest.fixture(scope="module")
def saes(pki: Pki) -> dict[str, Files]:
    return {name: pki.sae("lab", name) for name in NAMES}


def try_all(
    defect: str, port: Files, saes: dict[str, Files], left_out: int = 0, dry: int = 0, only: str = ""
) -> list[Result]:
    async def story() -> list[Result]:
        async with serving(
            WrongKme(URIS, defect, dry=dry), str(port.cert), str(port.key), str(port.ca)
        ) as url:
            callers = [
                Caller(
                    name,
                    url,
                    client_context(Credentials(files.cert, files.key, files.ca), Policy.COMPATIBLE),
                )
                for name, files in saes.items()
            ]
            nobody = Caller("", url, anonymous_context(port.ca, Policy.COMPATIBLE))
            kme = Kme014(callers[0], callers[1], [nobody], *callers[2 : 4 - left_out])
            probes = [probe for probe in PROBES if only in ("", probe.name)]
            return await run_all(probes, kme, 60.0)

    return asyncio.run(story())


def failed(results: list[Result]) -> set[str]:
    return {each.name for each in results if each.verdict is Verdict.FAIL}


@pytest.mark.parametrize("defect", DEFECTS)
def test_a_defect_is_found_by_the_probes_about_it_and_by_no_other(
    defect: str, port: Files, saes: dict[str, Files]
) -> None:
    results = try_all(defect, port, saes)
    assert failed(results) == DEFECTS[defect], [each for each in results if each.verdict is Verdict.FAIL]
    assert len(results) == len(PROBES)
    assert not [each for each in results if each.verdict is Verdict.NOT_RUN]


def test_a_kme_that_has_no_keys_just_now_breaks_no_rule(
    monkeypatch: pytest.MonkeyPatch, port: Files, saes: dict[str, Files]
) -> None:
    monkeypatch.setattr(kme014, "PAUSE", 0.0)
    (result,) = try_all("", port, saes, dry=3, only="same-bits")
    assert result.verdict is Verdict.PASS
    (result,) = try_all("", port, saes, dry=99, only="same-bits")
    assert (result.verdict, result.seen[:13]) == (Verdict.FAIL, "enc_keys: 503")


def test_what_cannot_be_tried_is_said_and_not_passed(port: Files, saes: dict[str, Files]) -> None:
    results = try_all("", port, saes, left_out=2)
    waiting = {each.name: each.seen for each in results if each.verdict is Verdict.NOT_RUN}
    assert waiting == {
        "stranger": "needs --stranger",
        "each-id": "needs --additional",
        "multicast": "needs --additional",
    }


def test_every_probe_is_failed_by_some_defect() -> None:
    """A probe that no defect fails might as well not be there."""
    caught = set().union(*DEFECTS.values())
    assert {probe.name for probe in PROBES} - caught == {"tls"}


def test_names_are_unique() -> None:
    names = [probe.name for probe in PROBES]
    assert len(set(names)) == len(names)


def test_nothing_that_listens_is_no_refusal(pki: Pki, port: Files, tmp_path: Path) -> None:
    """A closed port and a certificate we do not believe must not pass as "turned away"."""
    other = Pki.create(tmp_path / "other", ["other"])

    async def story() -> set[str]:
        async with serving(WrongKme(URIS), str(port.cert), str(port.key), str(port.ca)) as url:
            believed = client_context(
                Credentials(*(getattr(port, each) for each in ("cert", "key", "ca"))), Policy.COMPATIBLE
            )
            caller = Caller("sae-b", url, believed)
            strange = other.sae_port("other", "kme", ("127.0.0.1",))
            doubting = Caller("", url, anonymous_context(strange.ca, Policy.COMPATIBLE))
            closed = Caller("", "https://127.0.0.1:1", anonymous_context(port.ca, Policy.COMPATIBLE))
            probes = [probe for probe in PROBES if probe.name == "no-certificate"]
            seen = set()
            for nobody in (doubting, closed):
                (result,) = await run_all(probes, Kme014(caller, caller, [nobody]), 60.0)
                seen.add(f"{result.verdict}: {result.seen.split(':')[0]}")
            return seen

    assert asyncio.run(story()) == {"fail: not believed", "fail: nothing listens there"}
