"""The 020 probes: a right KME passes all, and each way of being wrong fails the probes that are about it."""

from __future__ import annotations

import asyncio
import ssl
from typing import Any

import pytest

from keyhaul.conformance.call import Caller
from keyhaul.conformance.desk import Desk
from keyhaul.conformance.kme020 import Kme020
from keyhaul.conformance.kme020 import Neighbour as Ourselves
from keyhaul.conformance.probe import Result, Verdict, run_all
from keyhaul.conformance.probes020 import PROBES
from keyhaul.edge.tls import Credentials, Policy, anonymous_context, client_context, server_context
from keyhaul.identity import urn
from tests.conformance.wrong020 import Neighbour, WrongKme, serving
from tests.sideways import Ecdsa

WAIT = 8.0  # seconds; only what never comes takes that long
OWN = "sae-own"

KEPT = {"missing", "invalid", "unknown-target", "pass-back", "callback-host", "synchronous"}
NEAR = {"accepted", "same-bits", "void", "ack-array", "onward", "optional-passed"}
"""Probes that are tried beside those a defect should fail, to see that it fails no others."""

DEFECTS: dict[str, set[str]] = {
    "TLS 1.2": {"tls"},
    "anybody": {"no-certificate", "stranger"},
    "no v1": {"versions"},
    "202 with a body": {"accepted"},
    "200 for 202": {"accepted", "same-bits", "optional-passed", "onward", "void"},
    "works before 202": {"before-work", "onward-202"},
    "keeps what it refuses": KEPT,
    "503 for 400": {
        "missing",
        "invalid",
        "not-json",
        "void-empty",
        "void-malformed",
        "ack-unknown",
        "ack-array",
    },
    "draft errors": KEPT | {"conflict", "not-json", "mandatory", "void-empty", "void-malformed", "ack-array"},
    "any SAE id": {"invalid"},
    "sloppy base64": {"invalid"},
    "no callback needed": {"synchronous"},
    "any callback": {"callback-host"},
    "unknown target 404": {"unknown-target"},
    "passes back": {"pass-back"},
    "other bits": {"same-bits"},
    "retry 503": {"retry"},
    "conflict 400": {"conflict"},
    "overwrites": {"conflict"},
    "mandatory ignored": {"mandatory"},
    "mandatory 400": {"mandatory"},
    "optional refused": {"optional", "optional-passed"},
    "optional dropped": {"optional-passed"},
    "optional changed": {"optional-passed"},
    "relayed too early": {"onward", "optional-passed"},
    "failure hidden": {"onward-failed"},
    "void stays here": {"onward-void", "void-all-onward"},
    "unknown is voided": {"void-unknown", "void-first"},
    "no tombstone": {"void-first"},
    "voids delivered keys": {"void-delivered"},
    "void ignored": {"void", "void-all"},
    "unconfirmed void": {"void-empty"},
    "voids one of all": {"void-all"},
    "callback without TLS": {"sends", "ack-array"},
    "takes single acks": {"ack-array"},
    "any ack status": {"ack-status"},
    "acks for anything": {"ack-unknown"},
    "failed is fine": {"ack-failed"},
    "releases at once": {"ack-failed", "ack-missing", "ack-array"},
    "refusal hidden": {"ack-failed", "refused"},
    "never repeats": {"unanswered"},
    "repeats with other bits": {"unanswered"},
    "no void for silence": {"ack-missing"},
    "acks once": {"ack-lost"},
}

QUIET = {
    "works before 202",
    "voids one of all",
    "no void for silence",
    "releases at once",
    "never repeats",
    "acks once",
    "relayed too early",
}
"""Defects that are seen by something not coming."""

MUTE = ("no acks", "single acks", "draft acks", "own ack status")
"""Defects after which nothing else can be seen."""


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Credentials]:
    maker = Ecdsa(tmp_path_factory.mktemp("maker") / "pki", "maker")
    files = {name: maker.issue(name) for name in ("kme", "kme-a", "kme-b", "kme-x")}
    return {**files, OWN: maker.issue(OWN, "sae")}


def client(files: Credentials) -> ssl.SSLContext:
    return client_context(files, Policy.COMPATIBLE)


def old(files: Credentials) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH, cafile=files.ca)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(files.cert, files.key)
    return context


async def neighbour(name: str, sae: str, files: Credentials) -> Ourselves:
    desk = Desk("")
    port = await desk.open("127.0.0.1", 0, server_context(files, Policy.COMPATIBLE))
    desk.origin = f"https://127.0.0.1:{port}"
    return Ourselves(Caller(name, "", client(files)), desk, sae)


def try_out(
    defect: str, people: dict[str, Credentials], names: set[str], *, alone: bool = False, wait: float = WAIT
) -> list[Result]:
    async def story() -> list[Result]:
        ours = [await neighbour(f"kme-{at}", f"SAE_{at.upper()}", people[f"kme-{at}"]) for at in "ab"]
        known = {urn("node", each.caller.name): Neighbour(each.desk.origin, each.sae) for each in ours}
        files = people["kme"]
        blocking = ssl.create_default_context(ssl.Purpose.SERVER_AUTH, cafile=files.ca)
        blocking.load_cert_chain(files.cert, files.key)
        kme = WrongKme(known, (urn("sae", OWN), OWN), blocking, defect)
        async with serving(kme, str(files.cert), str(files.key), str(files.ca)) as url:
            first, second = (
                Ourselves(Caller(each.caller.name, url, each.caller.tls), each.desk, each.sae)
                for each in ours
            )
            more: dict[str, Any] = {
                "sae": Caller(OWN, url, client(people[OWN])),
                "second": second,
                "stranger": Caller("kme-x", url, client(people["kme-x"])),
                "old_tls": Caller("kme-a", url, old(people["kme-a"])),
            }
            nobody = Caller("", url, anonymous_context(files.ca, Policy.COMPATIBLE))
            subject = Kme020(first, OWN, nobody, wait, **({} if alone else more))
            subject.start()
            try:
                chosen = [probe for probe in PROBES if probe.name in names]
                return await run_all(chosen, subject, 60.0, tidy=subject.tidy)
            finally:
                for each in ours:
                    await each.desk.close()

    return asyncio.run(story())


def failed(results: list[Result]) -> dict[str, str]:
    return {each.name: each.seen for each in results if each.verdict is Verdict.FAIL}


ALL = {probe.name for probe in PROBES}


def test_a_kme_that_does_as_it_should_passes_everything(people: dict[str, Credentials]) -> None:
    results = try_out("", people, ALL)
    assert failed(results) == {}
    assert [each.name for each in results if each.verdict is not Verdict.PASS] == []
    assert len(results) == len(ALL) > 40


@pytest.mark.parametrize("defect", DEFECTS)
def test_a_defect_is_found_by_the_probes_about_it(defect: str, people: dict[str, Credentials]) -> None:
    results = try_out(defect, people, DEFECTS[defect] | NEAR, wait=4.0 if defect in QUIET else WAIT)
    assert set(failed(results)) == DEFECTS[defect], failed(results)


@pytest.mark.parametrize("defect", MUTE)
def test_a_kme_without_proper_acknowledgements_is_found(defect: str, people: dict[str, Credentials]) -> None:
    results = try_out(defect, people, {"versions", "accepted", "mandatory", "ack-form"}, wait=1.0)
    assert set(failed(results)) == {"accepted", "ack-form"}, failed(results)


def test_what_cannot_be_tried_is_said_and_not_passed(people: dict[str, Credentials]) -> None:
    results = try_out("", people, ALL, alone=True)
    waiting = {each.name: each.seen for each in results if each.verdict is Verdict.NOT_RUN}
    assert {"needs --stranger", "needs --second", "needs --sae and --sae-url"} == set(waiting.values())
    assert {"stranger", "onward", "same-bits", "ack-array", "void-delivered"} <= set(waiting)
    assert failed(results) == {}


def test_every_probe_is_failed_by_some_defect() -> None:
    """A probe that no defect fails might as well not be there."""
    caught = set().union(*DEFECTS.values()) | {"ack-form"}
    assert ALL - caught == set()
