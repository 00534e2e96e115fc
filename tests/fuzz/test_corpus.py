"""The corpus and some thousand changes of it, without a fuzzer: accepted, or refused as documented."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from keyhaul.errors import Malformed
from tests.fuzz import make_corpus
from tests.fuzz.mutate import mutate
from tests.fuzz.targets import TARGETS, run

CORPUS = Path(__file__).parent / "corpus"
CHANGES = 150  # of every file
FILES = sorted(path for target in TARGETS for path in (CORPUS / target).iterdir())


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_a_kept_input_and_its_neighbours_do_what_is_documented(path: Path) -> None:
    target, data = path.parent.name, path.read_bytes()
    run(target, data)
    for seed in range(CHANGES):
        changed = mutate(data, seed)
        try:
            run(target, changed)
        except Exception as found:
            raise AssertionError(f"{target} with seed {seed} on {changed!r}") from found


DEEP = b"[" * 3000 + b"]" * 3000  # more than a decoder may follow; a fuzzer seldom gets that far
WHOLE = (b'{"x":' + DEEP + b"}", DEEP, b'{"\xff":1}', b"\x91" * 3000, b"\x81\xa1a" * 3000)
MEMBERS = (b',"zz":' + DEEP, b',"zz":"\xff"', b',"\xff":1')


@pytest.mark.parametrize("target", TARGETS)
def test_what_is_nested_without_end_or_not_utf_8_is_refused_as_documented(target: str) -> None:
    for data in WHOLE:
        run(target, data)
    for path in (CORPUS / target).iterdir():
        head, brace, tail = path.read_bytes().rpartition(b"}")
        for member in MEMBERS if brace else ():
            run(target, head + member + brace + tail)


@pytest.mark.parametrize("depth", [9, 200, 600, 900])  # some pass the decoder and end what comes after it
def test_the_data_of_a_key_slot_nested_without_end_is_refused_as_documented(depth: int) -> None:
    data = (CORPUS / "root_slots" / "other").read_bytes()
    assert run("root_slots", data)
    deep = data.replace(b'"data": {}', b'"data": {"a": ' + b"[" * depth + b"]" * depth + b"}")
    assert deep != data
    assert not run("root_slots", deep)


@pytest.mark.parametrize("target", TARGETS)
def test_every_target_has_seeds_that_it_accepts(target: str) -> None:
    """Otherwise it would fuzz nothing but its first check."""
    inner = {"sealed_envelope", "payload"}  # behind an authentication that no seed can pass
    accepted = [run(target, path.read_bytes()) for path in (CORPUS / target).iterdir()]
    assert accepted
    assert any(accepted) or target in inner


def test_every_folder_of_the_corpus_has_a_target() -> None:
    assert {path.name for path in CORPUS.iterdir()} - {"dense_polynomial"} == set(TARGETS) - {
        "dense_polynomial"
    }


def test_the_seeds_are_those_that_the_script_writes() -> None:
    for target, files in make_corpus.seeds().items():
        for name, content in files.items():
            assert (CORPUS / target / name).read_bytes() == content


def test_changes_are_repeatable_and_reach_members_of_every_form() -> None:
    data = json.dumps({"keys": [{"key_id": "x", "value": "y"}], "more": {"a": 1}}).encode()
    assert [mutate(data, seed) for seed in range(50)] == [mutate(data, seed) for seed in range(50)]
    still_json = 0
    for seed in range(200):
        try:
            still_json += json.loads(mutate(data, seed)) != json.loads(data)
        except ValueError:
            continue
    assert still_json > 100


def test_what_no_caller_is_prepared_for_is_not_swallowed(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(data: bytes) -> None:
        raise Malformed("no") if data == b"refused" else KeyError(data)

    monkeypatch.setitem(TARGETS, "broken", broken)
    assert run("broken", b"refused") is False
    with pytest.raises(KeyError):
        run("broken", b"other")
