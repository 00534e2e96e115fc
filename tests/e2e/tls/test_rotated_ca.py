"""Real handshakes while a CA is rotated under its name: everybody with everybody, until the old one goes."""

from __future__ import annotations

import itertools
import shutil
import ssl
import time
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from OpenSSL import SSL

from keyhaul.edge.tls import Policy, client_context, reload, server_context
from keyhaul.errors import ConfigError, Unauthorized
from keyhaul.identity import Anchors, Federation, issued_by
from keyhaul.pki import Files, Pki, rollover
from keyhaul.pki.files import certificates_in, pem
from keyhaul.pki.renewing import renew
from tests.doors import BOTH_VERSIONS, HOSTS, ask, credentials, listening, plain_client, shake

REFUSED = (ssl.SSLError, SSL.Error, ConnectionError)


@pytest.fixture
def pki(tmp_path: Path) -> Pki:
    return Pki.create(tmp_path / "pki", ["galicia", "euskadi"])


def contexts(files: Files) -> dict[str, ssl.SSLContext]:
    return {
        "server": server_context(credentials(files), Policy.PQ),
        "client": client_context(credentials(files), Policy.PQ),
    }


def meet(one: dict[str, ssl.SSLContext], other: dict[str, ssl.SSLContext]) -> None:
    """Both ways."""
    shake(one["server"], other["client"])
    shake(other["server"], one["client"])


def test_nodes_meet_at_every_step_of_a_rotation(pki: Pki) -> None:
    """Two nodes of the domain that rotates, and one of another, each reloading at its own time."""
    names = {"vigo": "galicia", "lugo": "galicia", "derio": "euskadi"}
    files = {name: pki.node(domain, name, HOSTS) for name, domain in names.items()}
    running = {name: contexts(each) for name, each in files.items()}

    def everybody_meets() -> None:
        for one, other in itertools.combinations(running.values(), 2):
            meet(one, other)

    def each_in_turn() -> None:
        for mine in running.values():
            assert reload(mine).refused == []
            everybody_meets()

    everybody_meets()
    old = pki.ca("galicia", "node").read_bytes()
    rollover.begin(pki, "galicia", "node")
    each_in_turn()  # now both are believed
    rollover.switch(pki, "galicia", "node")
    for name in ("vigo", "lugo"):  # one is of the new CA, the other still of the old one
        renewed = renew(pki, files[name].cert, new_key=name == "vigo")
        assert renewed.after.issuer == renewed.before.issuer
        done = reload(running[name])
        assert (done.shows, done.refused) == (["server", "client"], [])
        everybody_meets()
    rollover.drop(pki, "galicia", "node")
    each_in_turn()
    assert pki.ca("galicia", "node").read_bytes() != old


def test_after_the_drop_the_old_key_opens_no_door(pki: Pki, tmp_path: Path) -> None:
    vigo = pki.node("galicia", "vigo", HOSTS)
    stolen = tmp_path / "stolen"
    shutil.copytree(pki.directory, stolen)
    rollover.begin(pki, "galicia", "node")
    words = [each for each in certificates_in(vigo.ca, "") if not issued_by(each, each)]
    rollover.switch(pki, "galicia", "node")
    renew(pki, vigo.cert)
    rollover.drop(pki, "galicia", "node")
    thief = Pki.open(stolen).node("galicia", "lugo", HOSTS)
    thief = Files(thief.cert, thief.key, vigo.ca)  # who believes the right CA, so that only the door refuses
    with pytest.raises(REFUSED):
        shake(contexts(vigo)["server"], contexts(thief)["client"])
    # Nor does what the new CA once said for the old key, shown as a link of the chain.
    assert len(words) == 2
    thief.cert.write_bytes(thief.cert.read_bytes() + pem(words))
    with pytest.raises(REFUSED):
        shake(contexts(vigo)["server"], contexts(thief)["client"])
    shake(contexts(vigo)["server"], contexts(pki.node("galicia", "lugo", HOSTS))["client"])


@BOTH_VERSIONS
def test_applications_of_either_ca_reach_a_port_of_either(
    pki: Pki, run: Any, version: ssl.TLSVersion
) -> None:
    """With the interpreter's own TLS, as most of them have it."""
    port, early = pki.sae_port("galicia", "vigo", HOSTS), pki.sae("galicia", "early")
    before = plain_client(early.ca, credentials(early), version)
    rollover.begin(pki, "galicia", "sae")
    waiting = pki.sae("galicia", "waiting")  # still of the old one
    rollover.switch(pki, "galicia", "sae")
    late = pki.sae("galicia", "late")
    after = [plain_client(each.ca, credentials(each), version) for each in (early, waiting, late)]

    async def scene() -> None:
        context = server_context(credentials(port), Policy.COMPATIBLE)
        async with listening(context) as door:
            await ask(door, before)  # who has not heard of the new CA
            for client in after:
                await ask(door, client)
        renew(pki, port.cert)
        async with listening(server_context(credentials(port), Policy.COMPATIBLE)) as door:
            for client in after:
                await ask(door, client)
            with pytest.raises(Exception, match="certificate verify failed"):
                await ask(door, before)  # which is why both come first, and the switch later

    run(scene())


def test_who_only_shares_the_name_is_no_ca_of_the_domain(pki: Pki, tmp_path: Path) -> None:
    """A stranger calls his CA as ours is called: neither TLS nor the federation takes its nodes for ours."""
    vigo, derio = pki.node("galicia", "vigo", HOSTS), pki.node("euskadi", "derio", HOSTS)
    stranger = Pki.create(tmp_path / "stranger", ["galicia"])
    false = stranger.node("galicia", "vigo", HOSTS)
    rollover.begin(pki, "galicia", "node")
    with pytest.raises(REFUSED):
        shake(contexts(derio)["server"], contexts(Files(false.cert, false.key, vigo.ca))["client"])
    federation = Federation(Anchors.of_domains(derio.ca.read_bytes()), {"vigo": "galicia"})
    der = x509.load_pem_x509_certificate(false.cert.read_bytes()).public_bytes(Encoding.DER)
    with pytest.raises(Unauthorized, match="not issued by a trusted CA"):
        federation.verify(der, time.time())
    # An operator who puts it beside ours without looking is told, and nothing is loaded.
    careless = derio.ca.read_bytes() + stranger.anchors.read_bytes()
    with pytest.raises(ConfigError, match="claim the domain 'galicia'"):
        Anchors.of_domains(careless)
