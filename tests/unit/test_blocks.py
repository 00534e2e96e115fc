"""Every block of code in the documentation is one that a test runs, reads, or knows why it cannot."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from keyhaul.config.write import toml, write
from keyhaul.messages import etsi020
from keyhaul.messages.confirming import proofs_of
from keyhaul.messages.wrapping import unwrap
from tests.blocks import (
    README_REASONS,
    ROOT,
    RUN,
    Block,
    Shell,
    Step,
    blocks,
    fits,
    pages,
    prepared,
    steps,
    unknown,
)

READ = ("toml", "json", "yaml")
AGENT = "[consumer]"  # in pieces of an agent's file, which tests/unit/test_agent_settings.py reads
SUFFIX = {"cert": "pem", "key": "key"}
PEN = 32473  # the example number of RFC 5612, which the page's messages have
ALL = [block for page in pages() for block in blocks(page.read_text(), str(page.relative_to(ROOT)))]


def of(*languages: str) -> list[Block]:
    return [block for block in ALL if block.language in languages]


def test_every_fence_was_found_and_has_a_language() -> None:
    fences = sum(len(re.findall(r"^ *```", page.read_text(), re.M)) for page in pages())
    assert fences == 2 * len(ALL)
    known = (*RUN, *READ, "text", "console")
    strange = [str(block) for block in ALL if block.language not in known and block.page != "README.md"]
    assert strange == [], f"give these sh, python, toml, json, yaml, console or text: {strange}"


def test_what_can_be_run_is_run() -> None:
    """A page whose blocks are run has its preparation in tests/pages; test_pages.py runs all of these."""
    left = [
        str(block)
        for block in of(*RUN, "console")
        if not block.why and not (block.language in RUN and prepared(block.page))
    ]
    assert left == [], (
        f"{left}: put what has to be there first into tests/pages/NAME.sh (it may be empty), "
        "or write <!-- not run: why --> on the line above the block"
    )


@pytest.mark.parametrize("block", [block for block in of("sh", "console") if block.why], ids=str)
def test_what_is_not_run_names_only_what_exists(block: Block) -> None:
    assert list(unknown(block)) == []


def test_the_reasons_for_the_readme_are_for_blocks_that_are_there() -> None:
    first = {re.split(r"  |\n", block.code)[0] for block in ALL if block.page == "README.md"}
    assert README_REASONS.keys() <= first


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A node with a port for other makers' key managers, as `keyhaul init` makes it."""
    home = tmp_path_factory.mktemp("node")
    secret = home / "passphrase"
    write(secret, "not a secret")
    pki = home / "elsewhere"
    for place, name, domain, more in (
        (pki, "tester", "abroad", []),
        (home / "vigo", "vigo", "galicia", ["--foreign-ca", str(pki / "pki" / "abroad" / "ca" / "node.pem")]),
    ):
        words = ["init", str(place), "--name", name, "--domain", domain, "--passphrase-file", str(secret)]
        done = keyhaul(*words, *more)
        assert done.returncode == 0, done.stderr
    return home / "vigo"


def keyhaul(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "keyhaul.cli", *words]
    return subprocess.run(command, text=True, capture_output=True, check=False)


@pytest.mark.parametrize(
    "block", [block for block in of("toml") if not block.why and AGENT not in block.code], ids=str
)
def test_a_piece_of_a_configuration_fits_into_one(block: Block, node: Path) -> None:
    piece = tomllib.loads(block.code)
    _make_files(piece, node)
    file = node / f"{block.page.replace('/', '-')}-{block.line}.toml"
    whole = _joined(tomllib.loads((node / "node.toml").read_text()), piece)
    write(file, toml(whole, "A piece of the documentation."))
    done = keyhaul("config", "check", str(file))
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_piece_with_a_mistake_is_noticed(node: Path) -> None:
    block = Block("page", 1, "toml", '[schemes]\ndefualt = "masked"\n', "")
    with pytest.raises(AssertionError, match="defualt"):
        test_a_piece_of_a_configuration_fits_into_one(block, node)


def _joined(whole: dict[str, Any], piece: dict[str, Any]) -> dict[str, Any]:
    """`piece` as if it had been written into `whole`: tables go together, arrays of tables get longer."""
    joined = dict(whole)
    for name, value in piece.items():
        there = joined.get(name)
        if isinstance(value, dict) and isinstance(there, dict):
            joined[name] = _joined(there, value)
        elif isinstance(value, list) and isinstance(there, list):
            joined[name] = [*there, *value]
        else:
            joined[name] = value
    return joined


def _make_files(piece: Any, node: Path) -> None:
    """Certificates that the piece names and that only a reader's own PKI can have."""
    for name, value in piece.items() if isinstance(piece, dict) else ():
        for each in value if isinstance(value, list) else [value]:
            _make_files(each, node)
        if name in ("cert", "key", "ca") and isinstance(value, str) and not (node / value).exists():
            made = "ca/device.pem" if name == "ca" else f"device-client/vigo.{SUFFIX[name]}"
            source = node / "pki" / "galicia" / made
            write(node / value, source.read_text(), 0o600 if name == "key" else 0o644)


@pytest.mark.parametrize("block", of("json"), ids=str)
def test_messages_are_what_the_schema_and_the_node_say(block: Block) -> None:
    value = json.loads(block.code)
    schemas = yaml.safe_load((ROOT / "docs" / "openapi" / "etsi020.yaml").read_text())
    if isinstance(value, dict) and "keys" in value:
        _valid(value, "ext_key_container", schemas)
        assert unwrap(etsi020.decode_ext_keys(block.code.encode(), sealed=True), PEN) is not None
    elif isinstance(value, list) and "ack_status" in value[0]:
        _valid(value, "ack_containers", schemas)
        (ack,) = etsi020.decode_acks(block.code.encode(), sealed=True)
        assert len(proofs_of(ack, PEN)) == len(ack.key_ids)


def _valid(value: Any, name: str, schemas: dict[str, Any]) -> None:
    jsonschema.validate(value, {**schemas, "$ref": f"#/components/schemas/{name}"})


@pytest.mark.parametrize("block", of("yaml") or [Block("none", 1, "yaml", "a: 1", "")], ids=str)
def test_yaml_is_yaml(block: Block) -> None:
    assert list(yaml.safe_load_all(block.code))


# --- and that these tests notice

PAGE = "a\n\n<!-- not run: takes a day -->\n```sh\nmake soak\n```\n\n- b\n\n    ```toml\n    c = 1\n    ```\n"


def test_blocks_are_found_with_their_reasons_and_places() -> None:
    soak, piece = blocks(PAGE, "page")
    assert (soak.why, soak.line, soak.code) == ("takes a day", 4, "make soak\n")
    assert (piece.why, piece.language, piece.code, str(piece)) == ("", "toml", "c = 1\n", "page:10")
    assert steps(PAGE) == []


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("make soak SEEDS=3 && make nonsense", "make nonsense"),
        ("keyhaul testbed up line-2 --dir D; keyhaul testbed up line-2", "--dir"),
        ("keyhaul sae get sae-b --dri D --as sae-a", "--dri"),
        ("sudo keyhaul fetch", "there is no fetch"),
        (".venv/bin/pytest tests/unit/test_blocks.py tests/unit/test_gone.py", "test_gone"),
        ("A=1 frobnicate --all", "frobnicate"),
        ("$ keyhaul chaos galicia-basque \\\n    --kills many", "many"),
    ],
)
def test_a_name_that_does_not_exist_is_noticed(code: str, said: str) -> None:
    (found,) = unknown(Block("page", 1, "sh", code, "because"))
    assert said in found


def test_what_exists_is_no_mistake() -> None:
    code = "keyhaul version --json   # which\n$ git diff > my.diff; scripts/install-debian-packages.sh\n"
    assert list(unknown(Block("page", 1, "sh", code, "because"))) == []
    assert list(unknown(Block("page", 1, "sh", "keyhaul testbed --help\n", "because"))) == []


def test_a_block_that_fails_or_prints_something_else_is_noticed(tmp_path: Path) -> None:
    first, second, third = steps(
        "```sh\nA=1; echo 2\n```\n\n```text\n3\n```\n```sh\necho $A\n```\n```sh\nfalse\n```\n"
    )
    shell = Shell(tmp_path)
    assert not fits(first.expected, shell.run(first))
    assert shell.run(second) == "1\n"
    with pytest.raises(AssertionError, match="false"):
        shell.run(third)
    with pytest.raises(AssertionError, match="ValueError: no"):
        shell.run(Step("python", "raise ValueError('no')", ""))


def test_key_id_stands_for_the_one_that_was_printed_last(tmp_path: Path) -> None:
    one, two = (f"00000000-0000-0000-0000-00000000000{number}" for number in (1, 2))
    shown = Shell(tmp_path).run(Step("sh", f"echo {one} {two}\necho now KEY_ID\necho AKEY_ID\n", ""))
    assert shown == f"{one} {two}\nnow {two}\nAKEY_ID\n"


@pytest.mark.parametrize(
    ("expected", "output", "right"),
    [
        ("a … c\n", "a b c\n", True),
        ("a … c\n", "a b d\n", False),
        ("a\n…\nd\n", "a\nb\nc\nd\n", True),
        ("a\n…\nd\n", "a\nb\nc\n", False),
        ("a…\n", "a\nb\n", False),
        ("a.c\n", "abc\n", False),
        ("", "anything\n", False),
    ],
)
def test_dots_stand_for_what_differs_and_for_nothing_else(expected: str, output: str, right: bool) -> None:
    assert fits(expected, output) is right
