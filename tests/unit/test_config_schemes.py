"""The `[schemes]` and `[[policy]]` tables: values, defaults, the patent notice, mistakes with remedies."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from keyhaul import config
from keyhaul.config import schemes
from keyhaul.errors import ConfigError
from keyhaul.notice import NOTICE
from keyhaul.policy import NO_POLICY, Rule
from tests.unit.test_config import NETWORK, NODE

TABLE = """
[schemes]
default = "blind"
blind = { enabled = true, profile = "dense-25", rerandomise = true }
masked = { kem = "ml-kem-768+x25519", form = "batch" }

[[policy]]
master = "sae-vigo-*"
slave = "sae-[ab]"
labels = ["relay-blind", "pq"]
[[policy]]
labels = ["its-wire"]
"""


def node_file(directory: Path, table: str) -> Path:
    (directory / "network.toml").write_text(NETWORK)
    (directory / "node.toml").write_text(NODE + table)
    return directory / "node.toml"


def test_nothing_of_it_is_on_by_default(tmp_path: Path) -> None:
    read = config.load(node_file(tmp_path, ""))
    assert read.schemes == config.SchemesConfig()
    assert (read.schemes.default, read.schemes.blind.enabled) == ("auto", False)
    assert (read.schemes.masked.kem, read.schemes.masked.form) == ("ml-kem-768", "epoch")
    assert read.policy == NO_POLICY
    assert not [mistake for mistake in config.check(read.file) if "patent" in mistake.cause]


def test_full_tables_become_values(tmp_path: Path) -> None:
    read = config.load(node_file(tmp_path, TABLE))
    assert read.schemes == config.SchemesConfig(
        "blind", config.BlindConfig(True, "dense-25", True), config.MaskedConfig("ml-kem-768+x25519", "batch")
    )
    assert read.policy.rules == (
        Rule("sae-vigo-*", "sae-[ab]", frozenset({"relay-blind", "pq"})),
        Rule("*", "*", frozenset({"its-wire"})),
    )


def test_enabling_blind_shows_the_patent_notice_at_its_line(tmp_path: Path) -> None:
    file = node_file(tmp_path, TABLE)
    (told,) = [mistake for mistake in config.check(file) if "patent" in mistake.cause]
    assert told.warning
    assert NOTICE in told.cause
    assert file.read_text().splitlines()[told.line - 1].startswith("blind = ")


def test_a_missing_library_is_a_warning_and_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schemes, "LIBRARIES", ("seal_of_nobody", "sys"))
    file = node_file(tmp_path, TABLE)
    assert config.load(file).schemes.blind.enabled
    (told,) = [mistake for mistake in config.check(file) if "cannot be imported" in mistake.cause]
    assert "seal_of_nobody" in told.cause
    assert "sys" in sys.modules
    assert "sys" not in told.cause.partition(":")[0].replace("seal_of_nobody", "")
    assert "extra 'blind'" in told.remedy


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ('[schemes]\ndefault = "blind"', 'default is "blind", which is not enabled'),
        ('[schemes]\ndefault = "blind-fresh"', "rerandomise = true"),
        (
            '[schemes]\ndefault = "blind-fresh"\nblind = { enabled = true }',
            'default is "blind-fresh", which is not enabled',
        ),
        ("[schemes]\nblind = { enabled = true, rerandomize = true }", "did you mean 'rerandomise'"),
        ('[schemes]\ndefault = "masks"', "did you mean 'masked'"),
        ('[schemes]\nblind = { profile = "dense-26", enabled = false }', "dense-25"),
        ("[schemes]\nblind = { enabled = 1 }", "true or false"),
        ("[schemes]\nblind = { enable = true }", "did you mean 'enabled'"),
        ('[schemes]\nmasked = { kem = "ml-kem-512" }', "ml-kem-512"),
        ('[schemes]\nmasked = { form = "hourly" }', "hourly"),
        ("[schemes]\nmask = {}", "did you mean 'masked'"),
        ('[[policy]]\nlabels = ["relay-blnd"]', "did you mean 'relay-blind'"),
        ("[[policy]]\nlabels = []", "demands nothing"),
        ('[[policy]]\nmaster = "*"', "demands nothing"),
        ('[[policy]]\nlabels = ["pq"]\nslaves = "*"', "did you mean 'slave'"),
        ('[[policy]]\nlabels = ["pq"]\nslave = ""', "not a filled string"),
    ],
)
def test_a_mistake_is_told_with_what_to_do(tmp_path: Path, table: str, said: str) -> None:
    with pytest.raises(ConfigError) as raised:
        config.load(node_file(tmp_path, "\n" + table + "\n"))
    assert said in str(raised.value)


def test_under_the_flow_of_paper_a_it_is_told_to_have_no_effect(tmp_path: Path) -> None:
    file = node_file(tmp_path, TABLE)
    file.write_text(file.read_text().replace("[delivery]", '[delivery]\nprofile = "paper-a"'))
    told = [mistake.cause for mistake in config.check(file) if "no effect" in mistake.cause]
    assert len(told) == 2
