"""What an SAE may ask for: every bound of the status, targets, and the extensions we understand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyhaul.errors import ConfigError, Malformed, NoSuchTarget, Refused
from keyhaul.messages.etsi014 import KeyIds, KeyRequest, Order, Standing
from keyhaul.policy import Limits, check_sae

LIMITS = Limits()


def ask(limits: Limits = LIMITS, **members: Any) -> Order:
    return limits.check("a", "b", KeyRequest(**members))


def test_an_empty_request_is_one_key_of_the_default_size() -> None:
    assert ask() == Order("a", ("b",), 1, 256)
    assert ask(replace(LIMITS, key_size=512)).size == 512


@pytest.mark.parametrize(
    "members",
    [{"number": 1}, {"number": 128}, {"size": 8}, {"size": 65_536}, {"number": 128, "size": 65_536}],
)
def test_the_bounds_themselves_are_allowed(members: dict[str, int]) -> None:
    order = ask(**members)
    assert {name: getattr(order, name) for name in members} == members


@pytest.mark.parametrize(
    ("members", "cause"),
    [
        ({"number": 0}, "number"),
        ({"number": 129}, "number"),
        ({"size": 0}, "size is out"),
        ({"size": 65_544}, "size is out"),
        ({"size": 12}, "size shall be a multiple of 8"),
        ({"size": -4}, "size shall be a multiple of 8"),
        ({"size": 65_543}, "size shall be a multiple of 8"),
    ],
)
def test_past_the_bounds_is_refused_with_a_next_step(members: dict[str, int], cause: str) -> None:
    with pytest.raises(Refused, match=cause) as refused:
        ask(**members)
    assert refused.value.remedy


def test_the_advice_for_an_odd_size_can_be_followed() -> None:
    for size in (-9, 1, 9, 255):
        with pytest.raises(Refused) as refused:
            ask(size=size)
        advised = int(refused.value.remedy.split()[2])
        assert ask(size=advised).size == advised


def test_bits_of_one_request_are_bounded() -> None:
    tight = replace(LIMITS, max_bits=65_536)
    assert ask(tight, number=2, size=32_768).number == 2
    with pytest.raises(Malformed, match="too much"):
        ask(tight, number=3, size=32_768)


@given(st.integers(), st.integers())
def test_every_order_keeps_the_limits(number: int, size: int) -> None:
    try:
        order = ask(number=number, size=size)
    except Refused:
        return
    assert 1 <= order.number <= 128
    assert 8 <= order.size <= 65_536
    assert order.size % 8 == 0


def test_targets_are_the_slave_and_then_the_additional_ones() -> None:
    assert ask(additional=("d", "c")).targets == ("b", "d", "c")


@pytest.mark.parametrize("additional", [("b",), ("a",), ("c", "c"), ("",), tuple("cdefghijk")])
def test_targets_that_make_no_sense_are_refused(additional: tuple[str, ...]) -> None:
    with pytest.raises(Malformed):
        ask(additional=additional)


def test_an_sae_may_name_itself_only_where_the_policy_lets_it() -> None:
    assert LIMITS.check("a", "a", KeyRequest()).targets == ("a",)
    with pytest.raises(Malformed, match="same SAE"):
        replace(LIMITS, allow_self=False).check("a", "a", KeyRequest())


def test_sae_ids_nobody_can_have() -> None:
    assert check_sae("ñ" * 32) == "ñ" * 32
    for sae in ("ñ" * 33, "a\nb", "\x7f", "\u202e"):
        with pytest.raises(NoSuchTarget):
            check_sae(sae)


def test_understood_extensions_become_options() -> None:
    order = ask(
        mandatory=({"keyhaul_scheme": "masked", "keyhaul_labels": ["pq", "qkd"]},),
        optional=({"keyhaul_trust": True}, {"acme_x": {"y": 1}}),
    )
    assert order.options == {
        "keyhaul_scheme": "masked",
        "keyhaul_labels": ("pq", "qkd"),
        "keyhaul_trust": True,
    }
    assert order.mandatory == {"keyhaul_scheme", "keyhaul_labels"}


def test_what_was_not_insisted_on_may_be_ignored() -> None:
    assert ask(optional=({"acme_x": 1},)).options == {}
    with pytest.raises(Refused, match="not all extension_mandatory parameters are supported") as refused:
        ask(mandatory=({"acme_x": 1, "keyhaul_trust": True},))
    assert refused.value.details == {"extension_mandatory_unsupported": "not supported: acme_x"}


@pytest.mark.parametrize(
    ("mandatory", "optional"),
    [
        (({"keyhaul_trust": "yes"},), ()),
        (({"keyhaul_scheme": ""},), ()),
        ((), ({"keyhaul_labels": [1]},)),
        ((), ({"keyhaul_labels": [""]},)),
        (({"keyhaul_trust": True}, {"keyhaul_trust": True}), ()),
        (({"keyhaul_trust": True},), ({"keyhaul_trust": True},)),
    ],
)
def test_extensions_that_make_no_sense_are_refused(mandatory: Any, optional: Any) -> None:
    with pytest.raises(Malformed, match="extension keyhaul_"):
        ask(mandatory=mandatory, optional=optional)


def test_a_flood_of_extensions_gets_a_short_answer() -> None:
    flood = {f"x_{'y' * 200}_{n}\n": n for n in range(5000)}
    with pytest.raises(Refused) as refused:
        ask(mandatory=(flood,))
    told = str(refused.value.details["extension_mandatory_unsupported"])
    assert len(told) < 1000
    assert "4992 more" in told
    assert told.isprintable()


def test_as_many_ids_as_one_request_gives() -> None:
    ids = tuple(UUID(int=n) for n in range(129))
    assert len(LIMITS.check_ids(KeyIds(ids[:128])).ids) == 128
    with pytest.raises(Malformed, match="at most 128"):
        LIMITS.check_ids(KeyIds(ids))


def test_the_status_is_the_limits_and_the_standing() -> None:
    status = LIMITS.status("a", "b", Standing("here", "there", 7, 9))
    assert (status.source_kme, status.target_kme, status.master_sae, status.slave_sae) == (
        "here",
        "there",
        "a",
        "b",
    )
    assert (status.stored_key_count, status.max_key_count, status.max_sae_id_count) == (7, 9, 8)


@pytest.mark.parametrize(
    "wrong",
    [
        {"key_size": 0},
        {"key_size": 12},
        {"min_key_size": 512},
        {"max_key_size": 128},
        {"max_bits": 128},
        {"max_key_per_request": 0},
        {"max_key_count": 0},
        {"max_sae_id_count": -1},
    ],
)
def test_limits_that_contradict_each_other_are_a_config_error(wrong: dict[str, int]) -> None:
    with pytest.raises(ConfigError):
        Limits(**wrong)  # type: ignore[arg-type]
