"""Secrets do not leak by accident, and a row's summary holds no bits."""

from __future__ import annotations

import copy
import json
import logging
import pickle
from dataclasses import replace

import pytest

from keyhaul.keys import MASTER, Secret
from keyhaul.ledger_samples import sample_ref, sample_row

BITS = b"thirty-two bytes nobody may see!"


@pytest.mark.parametrize(
    "show",
    [repr, str, "{}".format, "%s".__mod__, lambda s: f"{s} {s!r} {s!s}", lambda s: repr([s])],
)
def test_a_secret_shows_nothing(show: object) -> None:
    assert callable(show)
    secret = Secret(BITS)
    text = show(secret)
    assert BITS.decode() not in text
    assert BITS.hex() not in text
    assert "Secret(…)" in text


def test_a_secret_shows_nothing_in_a_log_or_an_error(caplog: pytest.LogCaptureFixture) -> None:
    secret = Secret(BITS)
    with caplog.at_level(logging.DEBUG):
        logging.getLogger("test").error("key %s", secret)
        try:
            raise ValueError(secret)
        except ValueError:
            logging.getLogger("test").exception("failed with %r", {"key": secret})
    assert BITS.decode() not in caplog.text
    assert BITS.hex() not in caplog.text


@pytest.mark.parametrize(
    "leak",
    [
        lambda s: s == Secret(BITS),
        lambda s: s != Secret(BITS),
        lambda s: s in [Secret(BITS)],
        hash,
        lambda s: {s},
        pickle.dumps,
        copy.copy,
        copy.deepcopy,
        json.dumps,
        bytes,
        list,
        lambda s: s[0],
        vars,
    ],
)
def test_what_would_compare_or_copy_a_secret_is_refused(leak: object) -> None:
    assert callable(leak)
    with pytest.raises(TypeError):
        leak(Secret(BITS))


def test_secrets_compare_in_constant_time_only() -> None:
    kept = Secret(BITS)
    assert kept == kept  # as records that hold it are compared
    assert Secret(BITS).same_as(Secret(bytearray(BITS)))
    assert not Secret(BITS).same_as(Secret(BITS[:-1]))
    assert not Secret(BITS).same_as(Secret(BITS[:-1] + b"?"))


def test_a_wiped_secret_is_empty_and_may_be_wiped_again() -> None:
    secret = Secret(memoryview(BITS))
    buffer = secret._bytes
    secret.wipe()
    secret.wipe()
    assert len(secret) == len(buffer) == 0
    assert secret.reveal() == b""


def test_a_secret_is_a_copy_of_what_it_was_made_from() -> None:
    source = bytearray(BITS)
    secret = Secret(source)
    source[:] = bytes(len(source))
    assert secret.reveal() == BITS


def test_leaving_the_block_wipes_also_on_an_error() -> None:
    kept = Secret(BITS)

    def fail() -> None:
        with kept:
            raise LookupError

    with pytest.raises(LookupError):
        fail()
    assert len(kept) == 0


def test_a_summary_holds_everything_but_bits() -> None:
    row = replace(sample_row(sample_ref(3)), secret=Secret(BITS), waiting=frozenset({MASTER, "sae-c"}))
    text = json.dumps(row.summary())
    assert BITS.decode() not in text
    assert BITS.hex() not in text
    assert "secret" not in text.lower()
    assert row.summary()["waiting"] == ["(master)", "sae-c"]
    assert row.summary()["key_ID"] == str(row.ref.key_id)
    assert BITS.decode() not in repr(row)


def test_a_draft_shares_nothing_that_can_be_changed() -> None:
    row = sample_row(sample_ref(3))
    draft = row.draft()
    draft.legs.clear()
    draft.peers.clear()
    draft.trust["wire"] = "none"
    assert row.legs
    assert row.peers
    assert row.trust["wire"] == "its"
