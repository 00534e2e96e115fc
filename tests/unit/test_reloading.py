"""What a reload takes over and what it leaves: the pure parts of it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from keyhaul import config
from keyhaul.errors import ConfigError
from keyhaul.identity import Anchors, Federation, Identity
from keyhaul.keys import MASTER, Ref, Row, State
from keyhaul.pki import Pki
from keyhaul.policy import Limits, PathPolicy, Rule
from keyhaul.reloading import TAKEN_OVER, Outcome, differences
from keyhaul.shelves import Pool, Shelves
from tests.nodes import make_node, make_ports


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> config.NodeConfig:
    folder = tmp_path_factory.mktemp("node")
    return make_node(folder / "node", make_ports(folder / "pki"))


def test_the_same_configuration_has_no_differences(node: config.NodeConfig) -> None:
    assert differences(node, dataclasses.replace(node)) == ([], [])


@pytest.mark.parametrize(
    ("change", "taken", "left"),
    [
        ({"limits": Limits(key_size=512)}, ["limits"], []),
        ({"policy": PathPolicy((Rule("*", "*", frozenset({"pq"})),))}, ["policy"], []),
        ({"log": config.LogConfig("DEBUG")}, ["log"], []),
        ({"prefetch": config.Prefetch(3, 9)}, [], ["prefetch.low", "prefetch.high"]),
        ({"delivery": config.Delivery(ttl=5.0)}, [], ["delivery.ttl"]),
        ({"user": "keyhaul", "log": config.LogConfig("ERROR")}, ["log"], ["user"]),
        ({"monitor": config.MonitorConfig(port=9464)}, [], ["monitor.port"]),
    ],
)
def test_each_change_is_taken_over_or_named(
    node: config.NodeConfig, change: dict[str, Any], taken: list[str], left: list[str]
) -> None:
    assert differences(node, dataclasses.replace(node, **change)) == (taken, left)


def test_a_port_within_a_listener_is_named_exactly(node: config.NodeConfig) -> None:
    port = dataclasses.replace(node.listeners.sae, port=4711)
    changed = dataclasses.replace(node, listeners=dataclasses.replace(node.listeners, sae=port))
    assert differences(node, changed) == ([], ["listeners.sae.port"])


def test_every_part_that_is_taken_over_is_one_of_the_configuration() -> None:
    names = {field.name for field in dataclasses.fields(config.NodeConfig)}
    assert names >= {*TAKEN_OVER}
    assert Outcome(["a"], ["b"], ["c"]).plain() == {
        "changed": ["a"], "kept_as_it_was": ["b"], "needs_a_restart": ["c"],
    }  # fmt: skip


def test_a_node_signs_with_a_renewed_certificate_and_with_no_other_ones(tmp_path: Path) -> None:
    pki = Pki.create(tmp_path / "pki", ["galicia"], overwrite=True)

    def made(name: str) -> Identity:
        files = pki.node("galicia", name, ("localhost",))
        return Identity.load(files.cert.read_bytes(), files.key.read_bytes())

    mine, fresh, other = made("vigo"), made("vigo"), made("derio")
    anchors = Anchors.load((tmp_path / "pki" / "galicia" / "ca" / "node.pem").read_bytes())
    federation = Federation(anchors, {"vigo": "galicia"})
    now = fresh.certificate.not_valid_before_utc.timestamp() + 60
    before = mine.sign(b"x")
    mine.renew(fresh)
    signer = federation.verify(mine.der, now)
    signer.check(mine.sign(b"x"), b"x")
    with pytest.raises(Exception, match="authentication failed"):
        signer.check(before, b"x")
    with pytest.raises(ConfigError):
        mine.renew(other)
    signer.check(mine.sign(b"y"), b"y")
    federation.change(anchors, {"derio": "galicia"})
    with pytest.raises(Exception, match="comes from domain"):
        federation.verify(mine.der, now)


def row(number: int, targets: tuple[str, ...]) -> Row:
    ref = Ref(UUID(int=number), "vigo")
    return Row(ref, State.DELIVERABLE, "master", targets, 256, 0.0, 1.0, 2.0, waiting=frozenset({MASTER}))


def test_a_pool_that_is_emptied_gives_all_it_had_and_leaves_the_others() -> None:
    shelves = Shelves()
    for number in (1, 2, 300, 600):
        assert shelves.offer(row(number, ("a",)))
    assert shelves.offer(row(1000, ("b",)))
    pool = Pool("master", frozenset({"a"}), 256)
    assert [ref.key_id.int for ref in shelves.empty(pool)] == [1, 2, 300, 600]
    assert shelves.empty(pool) == []
    assert shelves.count(pool) == 0
    assert [each.targets for each in shelves] == [frozenset({"b"})]
    assert shelves.offer(row(2, ("a",)))
    assert shelves.count(pool) == 1
