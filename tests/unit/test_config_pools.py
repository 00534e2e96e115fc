"""`pool` of [delivery] and the `[pool]` table: values, defaults, and mistakes with their remedies."""

from __future__ import annotations

from pathlib import Path

import pytest

from keyhaul import config
from keyhaul.pools import Pair, Rules
from tests.unit.test_config import NETWORK, NODE

TABLE = """
[pool]
most = 100
idle = 60
share = 0.25

[[pool.pairs]]
master = "sae-a"
slave = "sae-b"
weight = 2
least = 8
priority = true
[[pool.pairs]]
master = "sae-a"
slave = "sae-c"
most = 5
"""


def loaded(directory: Path, level: str = "4", table: str = "") -> config.NodeConfig:
    (directory / "network.toml").write_text(NETWORK)
    file = directory / "node.toml"
    assert "pool = 4\n" in NODE
    file.write_text(NODE.replace("pool = 4\n", f"pool = {level}\n" if level else "") + table)
    return config.load(file)


def test_the_table_becomes_rules(tmp_path: Path) -> None:
    pairs = {
        ("sae-a", "sae-b"): Pair(weight=2.0, least=8, priority=True),
        ("sae-a", "sae-c"): Pair(most=5),
    }
    assert loaded(tmp_path, table=TABLE).pools == Rules(most=100, idle=60.0, share=0.25, pairs=pairs)
    assert loaded(tmp_path).pools == Rules()


@pytest.mark.parametrize(("level", "pool"), [("0", 0), ("4", 4), ('"auto"', "auto"), ("", "auto")])
def test_the_level_is_a_number_or_by_demand(tmp_path: Path, level: str, pool: object) -> None:
    assert loaded(tmp_path, level).delivery.pool == pool


@pytest.mark.parametrize(
    ("level", "table", "cause"),
    [
        ('"automatic"', "", "pool = 'automatic' is not known"),
        ("-1", "", "pool = -1 is out of range"),
        ("true", "", "pool is true or false"),
        ("4", "[pool]\nmots = 1", "'mots' is not a setting of [pool]"),
        ("4", "[pool]\nshare = 1.5", "share = 1.5 is out of range"),
        ("4", '[[pool.pairs]]\nmaster = "a"', "slave is missing"),
        ("4", '[[pool.pairs]]\nmaster = "a"\nslave = "b"\nmost = 1\nleast = 2', "most is smaller than least"),
        ("4", 2 * '[[pool.pairs]]\nmaster = "a"\nslave = "b"\n', "a and b stand in [pool] twice"),
        ("4", '[[pool.pairs]]\nmaster = "a"\nslave = "b"\nweight = 0', "weight = 0 is out of range"),
    ],
)
def test_mistakes_are_told_with_their_line(tmp_path: Path, level: str, table: str, cause: str) -> None:
    with pytest.raises(config.Mistakes) as caught:
        loaded(tmp_path, level, "\n" + table)
    assert any(cause in mistake.cause and mistake.line > 0 for mistake in caught.value.mistakes), [
        mistake.cause for mistake in caught.value.mistakes
    ]
