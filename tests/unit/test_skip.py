"""SKIP without a network: system ids, what is hexadecimal, and what `[skip]` may say."""

from __future__ import annotations

import json
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from keyhaul.config import model
from keyhaul.config.reader import Mistake, Source
from keyhaul.config.skip import read_skip
from keyhaul.errors import Malformed
from keyhaul.keys import Secret
from keyhaul.messages import skip
from keyhaul.messages.skip import Systems


def test_every_sae_has_one_name_and_every_name_one_sae() -> None:
    systems = Systems({"Alice": "sae-a", "Bob": "sae-b"}, ["sae-a", "sae-b", "sae-c"])
    for name, sae in (("Alice", "sae-a"), ("Bob", "sae-b"), ("sae-c", "sae-c")):
        assert systems.sae(name) == sae
        assert systems.system(sae) == name
    told = json.loads(systems.capabilities("sae-a"))
    assert told["localSystemID"] == "Alice"
    assert told["remoteSystemID"] == ["Bob", "sae-c"]


def test_the_list_of_remote_systems_is_never_empty() -> None:
    assert json.loads(Systems({}, ["sae-a"]).capabilities("sae-a"))["remoteSystemID"] == ["sae-a"]


def test_key_ids_are_uuids_without_dashes_in_either_case() -> None:
    key_id = uuid4()
    for text in (key_id.hex, key_id.hex.upper(), "".join(f"%{ord(c):02x}" for c in key_id.hex)):
        assert skip.read_key_id(text) == key_id
    for text in (
        "",
        str(key_id),
        key_id.hex[:-1],
        key_id.hex + "0",
        "g" * 32,
        "%zz",
        "٣" * 32,
        f"{key_id.hex}\n",
    ):
        with pytest.raises(Malformed):
            skip.read_key_id(text)
    said = json.loads(skip.encode_key(key_id, Secret(b"\x01\xff")))
    assert said == {"keyId": key_id.hex, "key": "01ff"}


def test_parameters_are_read_once_and_as_numbers() -> None:
    assert skip.read_remote({"remoteSystemID": ["Bob"]}) == "Bob"
    assert skip.read_bits({}, "size", 256) == 256
    assert skip.read_bits({"size": ["0512"]}, "size", 256) == 512
    for query in ({}, {"remoteSystemID": [""]}, {"remoteSystemID": ["a", "b"]}):
        with pytest.raises(Malformed):
            skip.read_remote(query)
    for text in ("", "0", "-1", "+8", "1e3", " 8", "8\n", "٣", "9" * 10):
        with pytest.raises(Malformed):
            skip.read_bits({"size": [text]}, "size", 256)


@pytest.mark.parametrize(
    ("text", "systems", "said"),
    [
        ("", {}, []),
        ('[skip.systems]\nAlice = "sae-a"\n"Bob 2" = "sae-b"', {"Alice": "sae-a", "Bob 2": "sae-b"}, []),
        ('[skip.systems]\n"KP_*" = "sae-a"', None, ["'KP_*' is no system ID"]),
        ('[skip.systems]\nA = "x"\nB = "x"', None, ["'x' has two system IDs"] * 2),
        (
            "[skip.systems]\nA = 7",
            None,
            ["A is a whole number, not a string", "A = '' is not a filled string"],
        ),
        ("[skip]\nnames = 1", None, ["'names' is not a setting of [skip]"]),
    ],
)
def test_the_table_of_names(
    tmp_path: Path, text: str, systems: dict[str, str] | None, said: list[str]
) -> None:
    file = tmp_path / "node.toml"
    file.write_text(text)
    mistakes: list[Mistake] = []
    root = Source(file, mistakes).read()
    assert root is not None
    found = read_skip(root)
    assert [each.cause for each in mistakes if each.cause not in said] == []
    assert len(mistakes) == len(said)
    if systems is not None:
        assert found == model.SkipConfig(systems)


def test_an_id_of_128_bits_is_what_the_draft_has_by_default() -> None:
    assert len(UUID(int=0).hex) * 4 == 128
