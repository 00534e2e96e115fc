"""The checkers themselves: a history that keeps every promise passes, and each way to break one is told."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keyhaul.testbed.history import Event, History, load, tell
from keyhaul.testbed.invariants import PROMISES, Limits, check, seen

LIMITS = Limits(ttl=100.0, skew=1.0, recovery=30.0)


class Script:
    """Writes a history line by line; every line is a second later."""

    def __init__(self) -> None:
        self.at = 0.0
        self.history = History(lambda: self.at, salt=b"salt")
        for node in "abc":
            self("home", node, to=(f"sae-{node}",))

    def __call__(self, verb: str, who: str, **named: object) -> None:
        self.at += 1.0
        self.history.note(who, verb, **named)  # type: ignore[arg-type]

    def ask(
        self, master: str, slaves: tuple[str, ...], key: str, bits: bytes, request: int | None = None
    ) -> int:
        number = self.history.request() if request is None else request
        self("asked", master, request=number, to=slaves)
        digest = self.history.digest(bits)
        self("got", master, request=number, to=slaves, key_id=key, digest=digest)
        return number

    def fetch(self, slave: str, key: str, bits: bytes | None, status: int = 0) -> None:
        number = self.history.request()
        self("fetching", slave, request=number, key_id=key)
        if bits is not None:
            self("fetched", slave, request=number, key_id=key, digest=self.history.digest(bits))
        elif status:
            self("refused", slave, request=number, status=status, text="not found")
        else:
            self("cut", slave, request=number)


def good() -> Script:
    """Two keys over a relay, a void, an expiry, an account, a fault that heals: nothing is wrong."""
    script = Script()
    script.ask("sae-a", ("sae-c",), "k1", b"one")
    script("used", "a", name="pad-1", text="a>b", to=("m1",))
    script("used", "b", name="pad-1", text="b>c", to=("m2",))
    script.fetch("sae-b", "k1", None, status=401)
    script.fetch("sae-c", "k1", b"one")
    script.fetch("sae-c", "k1", None, status=400)
    script.ask("sae-a", ("sae-b", "sae-c"), "k2", b"two")
    script.fetch("sae-b", "k2", None)  # the answer was lost: it may or may not be burned
    script.fetch("sae-b", "k2", None, status=400)
    script.fetch("sae-c", "k2", None, status=503)
    script.fetch("sae-c", "k2", b"two")
    script("expired", "c", key_id="k2")
    script("held", "c", digest=script.history.digest(b"one"), text="memory")
    script("held", "b", digest=script.history.digest(b"noise"), text="memory")
    script("fault", "world", text="a cut")
    script("asked", "sae-a", request=90, to=("sae-c",))
    script("refused", "sae-a", request=90, status=503, text="cut")
    script("healed", "world")
    script.at += LIMITS.recovery
    script.ask("sae-a", ("sae-c",), "k3", b"three")
    for name, value in (("in handed", 7), ("out used", 4), ("out left", 3)):
        script("account", "a of a=b", name=name, value=value)
    script("size", "b", name="rows", value=3, limit=10)
    return script


def test_a_history_that_keeps_every_promise_passes_and_speaks_of_all_of_them() -> None:
    script = good()
    assert check(script.history, LIMITS) == []
    assert seen(script.history) == list(PROMISES)
    assert seen([]) == []


BREAKS: dict[str, tuple[int, Callable[[Script], None], str]] = {
    "another value": (1, lambda s: s.fetch("sae-c", "k3", b"other"), "2 different values"),
    "twice to a slave": (2, lambda s: s.fetch("sae-c", "k1", b"one"), "sae-c received key k1 2 times"),
    "twice to a master": (
        2,
        lambda s: s("got", "sae-a", request=1, key_id="k1", digest=s.history.digest(b"one"), to=("sae-c",)),
        "sae-a received key k1 2 times",
    ),
    "an id for two requests": (
        3,
        lambda s: (s.ask("sae-b", ("sae-c",), "k3", b"three"), None)[1],
        "two requests",
    ),
    "an id minted twice": (
        3,
        lambda s: (s("minted", "a", key_id="k9"), s("minted", "c", key_id="k9"), None)[2],
        "minted 2 times",
    ),
    "lost at the far end": (4, lambda s: s.fetch("sae-c", "k3", None, status=400), "sae-a holds key k3"),
    "lost at one of two": (
        4,
        lambda s: (
            s.ask("sae-c", ("sae-a", "sae-b"), "k4", b"4"),
            s.fetch("sae-a", "k4", b"4"),
            s.fetch("sae-b", "k4", None, status=404),
        )[2],
        "sae-b was told that there is none",
    ),
    "after a void": (
        5,
        lambda s: (s("voided", "sae-a", key_id="k3"), s.fetch("sae-c", "k3", b"three"))[1],
        "after it had voided",
    ),
    "after its node let it expire": (
        5,
        lambda s: (s("expired", "c", key_id="k3"), s.fetch("sae-c", "k3", b"three"))[1],
        "after it had expired",
    ),
    "after its time": (
        5,
        lambda s: (setattr(s, "at", s.at + 102), s.fetch("sae-c", "k3", b"three"))[1],
        "when its time was over",
    ),
    "a relay that sees": (
        6,
        lambda s: s("held", "b", digest=s.history.digest(b"one"), text="memory"),
        "b, a relay, had key k1",
    ),
    "a device key for two messages": (
        7,
        lambda s: s("used", "a", name="pad-1", text="a>b", to=("m7",)),
        "pad-1 of link a>b was used for 2 messages",
    ),
    "a key in a log": (
        8,
        lambda s: s("held", "c", digest=s.history.digest(b"one"), text="log"),
        "key k1 lies in the clear in log",
    ),
    "a stranger": (9, lambda s: s.fetch("sae-b", "k3", b"three"), "sae-b fetched key k3, which is for sae-c"),
    "somebody else's request": (
        9,
        lambda s: (
            s("asked", "sae-a", request=77, to=("sae-c",)),
            s("got", "sae-b", request=77, key_id="k7", digest="00", to=("sae-c",)),
        )[1],
        "was not its own",
    ),
    "an account that lacks keys": (
        10,
        lambda s: s("account", "a of a=b", name="out left", value=2),
        "7 came in, 6 are accounted for",
    ),
    "state that grows": (
        11,
        lambda s: s("size", "b", name="rows", value=11, limit=10),
        "b keeps 11 rows; 10 are allowed",
    ),
    "no recovery": (
        12,
        lambda s: (
            s("asked", "sae-b", request=99, to=("sae-c",)),
            s("refused", "sae-b", request=99, status=503),
        )[1],
        "sae-b asked for keys and got: 503",
    ),
}


@pytest.mark.parametrize("name", BREAKS)
def test_every_way_to_break_a_promise_is_told_with_its_story(name: str) -> None:
    number, break_it, what = BREAKS[name]
    script = good()
    break_it(script)
    found = check(script.history, LIMITS)
    assert number in {violation.number for violation in found}
    (violation,) = [each for each in found if each.number == number][:1]
    assert what in violation.what
    story = violation.story(script.history)
    assert story.startswith(f"promise {number} ")
    assert len(story.splitlines()) > 2, "the story tells nothing"
    assert "suffers: a cut" in story
    if violation.about[0].startswith("k"):
        assert f"key {violation.about[0]}" in story.partition("\n")[2]


def test_every_promise_can_be_broken() -> None:
    assert {number for number, _, _ in BREAKS.values()} == set(PROMISES)


def test_relays_of_the_trusted_scheme_may_see_keys_in_memory_and_nowhere_else() -> None:
    script = good()
    script("held", "b", digest=script.history.digest(b"one"), text="memory")
    trusted = Limits(ttl=100.0, skew=1.0, recovery=30.0, trusted=True)
    assert check(script.history, trusted) == []
    script("held", "b", digest=script.history.digest(b"one"), text="disk")
    assert {violation.number for violation in check(script.history, trusted)} == {6, 8}


def test_a_request_may_overtake_a_void_but_not_follow_one() -> None:
    script = good()
    script("fetching", "sae-c", request=50, key_id="k3")
    script("voided", "sae-a", key_id="k3")
    script("fetched", "sae-c", request=50, key_id="k3", digest=script.history.digest(b"three"))
    assert check(script.history, LIMITS) == []


def test_a_request_after_the_end_of_its_time_may_be_refused() -> None:
    script = good()
    script.at += 100
    script.fetch("sae-c", "k3", None, status=400)
    assert check(script.history, LIMITS) == []


@pytest.mark.parametrize(
    ("node", "early", "lost"), [("c", False, False), ("b", False, True), ("c", True, True)]
)
def test_only_what_a_slaves_node_held_before_it_was_restored_may_be_gone(
    node: str, early: bool, lost: bool
) -> None:
    script = good()
    for first in (early, not early):
        if first:
            script("restored", node)
        else:
            script("stored", "c", key_id="k5")
            script.ask("sae-a", ("sae-c",), "k5", b"five")
    script.fetch("sae-c", "k5", None, status=400)
    assert [violation.number for violation in check(script.history, LIMITS)] == [4] * lost


@pytest.mark.parametrize(("waited", "broken"), [(0.0, []), (LIMITS.recovery, [4])])
def test_a_key_of_a_stock_may_be_gone_until_its_origin_has_heard_of_it(
    waited: float, broken: list[int]
) -> None:
    script = good()
    script("stored", "c", key_id="k5")
    script("restored", "c")
    script.at += waited
    script.ask("sae-a", ("sae-c",), "k5", b"five")
    script.fetch("sae-c", "k5", None, status=400)
    assert [violation.number for violation in check(script.history, LIMITS)] == broken


SAES = ("sae-a", "sae-b", "sae-c")
PLANS = st.lists(
    st.tuples(
        st.sampled_from(SAES),
        st.sets(st.sampled_from(SAES), min_size=1, max_size=2),
        st.lists(st.sampled_from(SAES), max_size=6),
        st.booleans(),
    ),
    max_size=6,
)


def obeying(plans: list[tuple[str, set[str], list[str], bool]]) -> Script:
    """What a network without mistakes answers to these requests."""
    script = Script()
    for at, (master, slaves, fetches, void) in enumerate(plans):
        key, bits = f"k{at}", bytes([at])
        script.ask(master, tuple(sorted(slaves)), key, bits)
        left = set(slaves)
        for number, slave in enumerate(fetches):
            if void and number == 2:
                script("voided", master, key_id=key)
                left.clear()
            served = slave in left
            script.fetch(slave, key, bits if served else None, status=400 if slave in slaves else 401)
            left.discard(slave)
    return script


@settings(max_examples=60, deadline=None)
@given(PLANS)
def test_no_honest_history_is_blamed(plans: list[tuple[str, set[str], list[str], bool]]) -> None:
    script = obeying(plans)
    assert check(script.history, LIMITS) == []
    assert len(script.history.trace()) == 64


@settings(max_examples=60, deadline=None)
@given(PLANS, st.randoms(use_true_random=False))
def test_a_flipped_digest_or_a_repeated_delivery_is_never_missed(
    plans: list[tuple[str, set[str], list[str], bool]], chance: object
) -> None:
    script = obeying(plans)
    events = list(script.history)
    delivered = [at for at, event in enumerate(events) if event.verb == "fetched"]
    for at in delivered:
        event = events[at]
        changed = [*events[:at], _with(event, digest="ff" * 16), *events[at + 1 :]]
        assert 1 in {violation.number for violation in check(changed, LIMITS)}
        assert 2 in {violation.number for violation in check([*events, event], LIMITS)}
        lost = [*events[:at], _with(event, verb="refused", status=400, digest=""), *events[at + 1 :]]
        assert 4 in {violation.number for violation in check(lost, LIMITS)}


def _with(event: Event, **changed: object) -> Event:
    return Event(**({name: getattr(event, name) for name in event.__struct_fields__} | changed))  # type: ignore[arg-type]


def test_digests_compare_and_say_nothing() -> None:
    one, other = History(lambda: 0.0), History(lambda: 0.0)
    assert one.digest(b"bits") == one.digest(b"bits")
    assert one.digest(b"bits") != one.digest(b"bit5")
    assert one.digest(b"bits") != other.digest(b"bits"), "whoever guesses bits could check them"


def test_a_history_is_saved_and_loaded_without_its_salt(tmp_path: Path) -> None:
    script = good()
    path = tmp_path / "history.jsonl"
    script.history.save(path)
    assert load(path) == script.history.events
    assert b"salt" not in path.read_bytes()
    assert check(load(path), LIMITS) == []


def test_a_verb_nobody_checks_is_refused() -> None:
    with pytest.raises(ValueError, match="'recieved' is not a verb"):
        History(lambda: 0.0).note("sae-a", "recieved")


def test_a_dialogue_has_one_line_for_every_event() -> None:
    script = good()
    text = tell(script.history)
    assert len(text.splitlines()) == len(script.history)
    assert "sae-a      asks #1 for keys shared with sae-c" in text
    assert "sae-b      is refused #2: 401 not found" in text
    assert "c          keeps" not in tell(script.history, ["k1"])
