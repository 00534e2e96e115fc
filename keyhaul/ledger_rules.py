"""The rules of `ports.Ledger`, one function each, that every ledger must keep. `testing` runs them.

A rule gets a fresh ledger and raises AssertionError where the ledger breaks it; the rule's name is on
the traceback.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from random import Random
from uuid import UUID

from keyhaul.errors import IllegalStep, KeyhaulError, Spent, StaleRow, StoreUnavailable, Taken
from keyhaul.keys import Ref, Row, Secret, State
from keyhaul.ledger_samples import add, herd_of, sample_message, sample_ref, sample_row, shown
from keyhaul.ports import Ledger

PATIENCE = 30.0
"""Seconds after which a wait counts as a dead-lock."""


# -- rules -----------------------------------------------------------------------------------------


async def a_row_comes_back_as_it_was_saved(ledger: Ledger) -> None:
    ref = sample_ref(1)
    row = sample_row(ref)
    bare = sample_row(sample_ref(2), targets=(), waiting=frozenset(), secret=None, upstream=None, legs={})
    assert await ledger.get(ref) is None
    await add(ledger, row, bare)
    assert row.version == 1, "a row that was written knows its version"
    assert shown(await ledger.get(ref)) == shown(row)
    assert shown(await ledger.get(bare.ref)) == shown(bare)
    assert await ledger.get(sample_ref(1, "other")) is None


async def nothing_is_committed_if_the_body_raises(ledger: Ledger) -> None:
    ref = sample_ref(1)
    await add(ledger, sample_row(ref))
    try:
        async with ledger.edit(ref) as change:
            draft = change.rows[ref]
            assert draft is not None
            draft.state = State.SENT
            change.put("space", "name", b"value")
            change.post(sample_message(1))
            raise LookupError
    except LookupError:
        pass
    kept = await ledger.get(ref)
    assert kept is not None
    assert (kept.state, kept.version) == (State.SENDING, 1)
    assert await ledger.item("space", "name") is None
    assert await ledger.messages() == []


async def a_draft_is_nobody_elses(ledger: Ledger) -> None:
    ref = sample_ref(1)
    await add(ledger, sample_row(ref))
    loose = await ledger.get(ref)
    assert loose is not None
    assert loose.secret is not None
    loose.state = State.SENT
    loose.legs["leioa"] = State.RELAYED
    loose.secret.wipe()
    assert shown(await ledger.get(ref)) == shown(sample_row(ref, version=1))


async def an_unchanged_draft_is_not_written(ledger: Ledger) -> None:
    ref = sample_ref(1)
    await add(ledger, sample_row(ref))
    async with ledger.edit(ref) as change:
        assert change.rows[ref] is not None
    assert shown(await ledger.get(ref)) == shown(sample_row(ref, version=1))


async def concurrent_edits_lose_no_update(ledger: Ledger) -> None:
    ref = sample_ref(1)
    await add(ledger, sample_row(ref, size=0))

    async def count() -> None:
        async with ledger.edit(ref) as change:
            draft = change.rows[ref]
            assert draft is not None
            size = draft.size
            await asyncio.sleep(0)
            draft.size = size + 8

    await asyncio.gather(*(count() for _ in range(40)))
    row = await ledger.get(ref)
    assert row is not None
    assert (row.size, row.version) == (320, 41)


async def edits_of_crossing_refs_do_not_dead_lock(ledger: Ledger) -> None:
    refs = [sample_ref(number) for number in range(6)]
    await add(ledger, *(sample_row(ref, size=0) for ref in refs))

    async def touch(seed: int) -> None:
        chosen = Random(seed).sample(refs, 3)  # noqa: S311 - an order, not a secret
        async with ledger.edit(*chosen, chosen[0]) as change:
            await asyncio.sleep(0)
            for ref in chosen:
                draft = change.rows[ref]
                assert draft is not None
                draft.size += 8

    async with asyncio.timeout(PATIENCE):
        await asyncio.gather(*(touch(seed) for seed in range(40)))
    rows = [await ledger.get(ref) for ref in refs]
    assert sum(row.size for row in rows if row is not None) == 40 * 3 * 8


async def a_stale_row_is_refused(ledger: Ledger) -> None:
    ref = sample_ref(1)
    await add(ledger, sample_row(ref))
    old = await ledger.get(ref)
    assert old is not None
    async with ledger.edit(ref) as change:
        draft = change.rows[ref]
        assert draft is not None
        draft.state = State.SENT
    for late in (replace(old, state=State.FAILED), sample_row(ref, state=State.ACCEPTED)):
        assert await refusal(ledger, StaleRow, late)
    row = await ledger.get(ref)
    assert row is not None
    assert (row.state, row.version) == (State.SENT, 2)


async def refusal(ledger: Ledger, error: type[KeyhaulError], row: Row) -> bool:
    """Whether writing `row` beside a named value raises `error` and leaves nothing."""
    try:
        async with ledger.edit(row.ref) as change:
            change.put("refused", "name", b"value")
            change.rows[row.ref] = row
    except error:
        return await ledger.item("refused", "name") is None
    return False


async def rows_neither_vanish_nor_change_place(ledger: Ledger) -> None:
    ref, other = sample_ref(1), sample_ref(2)
    await add(ledger, sample_row(ref))
    for written in ({ref: None}, {other: sample_row(other)}, {ref: sample_row(other)}):
        try:
            async with ledger.edit(ref) as change:
                change.rows.update(written)
        except IllegalStep:
            continue
        raise AssertionError(f"an edit of {ref} wrote {written}")
    assert shown(await ledger.get(ref)) == shown(sample_row(ref, version=1))
    assert await ledger.get(other) is None


async def a_refused_change_leaves_nothing_and_its_neighbours_alone(ledger: Ledger) -> None:
    async with ledger.edit() as change:
        change.put("space", "taken", b"first")
        change.post(sample_message(7))

    async def attempt(number: int) -> type[KeyhaulError] | None:
        row = sample_row(sample_ref(number))
        try:
            async with ledger.edit(row.ref) as change:
                change.rows[row.ref] = row
                change.post(sample_message(100 + number))
                if number % 4:
                    change.drop(sample_message(7).id)
                change.put("space", str(number), b"value")
                change.erase("space", "nothing")
                if number % 4 == 1:
                    change.claim("space", "taken", b"second")
                if number % 4 == 2:
                    change.spend("space", "missing")
                if number % 4 == 3:
                    change.post(sample_message(100 + number))
        except (Taken, Spent) as error:
            assert row.version == 0, "a row that was not written stays new"
            return type(error)
        return None

    answers = await asyncio.gather(*(attempt(number) for number in range(40)))
    assert answers == [None, Taken, Spent, Taken] * 10
    for number in range(40):
        there = number % 4 == 0
        assert (await ledger.get(sample_ref(number)) is not None) == there
        assert (await ledger.item("space", str(number)) == b"value") == there
    queued = [message.id.int for message in await ledger.messages()]
    assert queued[0] == 7, "a drop in a refused change took the message off the queue"
    assert sorted(queued[1:]) == list(range(100, 140, 4))
    assert await ledger.item("space", "taken") == b"first"


async def a_name_is_claimed_once_and_spent_once(ledger: Ledger) -> None:
    async def attempt(verb: str, number: int) -> bool:
        try:
            async with ledger.edit() as change:
                if verb == "claim":
                    change.claim("marks", "one", b"%d" % number)
                else:
                    change.spend("marks", "one")
        except (Taken, Spent):
            return False
        return True

    for _ in range(3):
        for verb in ("claim", "spend"):
            won = await asyncio.gather(*(attempt(verb, number) for number in range(20)))
            assert won.count(True) == 1
            winner = b"%d" % won.index(True) if verb == "claim" else None
            assert await ledger.item("marks", "one") == winner


async def steps_of_a_change_are_taken_in_order(ledger: Ledger) -> None:
    async with ledger.edit() as change:
        change.claim("space", "a", b"1")
        change.spend("space", "a")
        change.claim("space", "a", b"2")
        change.put("space", "b", b"")
        change.put("space", "b", bytes(range(256)))
        change.post(sample_message(1))
        change.drop(sample_message(1).id)
    assert await ledger.items("space") == {"a": b"2", "b": bytes(range(256))}
    assert await ledger.items("other") == {}
    assert await ledger.item("space", "c") is None
    assert await ledger.messages() == []


async def messages_come_in_queue_order(ledger: Ledger) -> None:
    order = [5, 3, 9, 1, 7]
    for number in order:
        async with ledger.edit() as change:
            change.post(sample_message(number, bytes(number)))
    async with ledger.edit() as change:
        change.drop(sample_message(9).id)
        change.drop(UUID(int=404))
        change.post(sample_message(2))
    async with ledger.edit() as change:
        change.drop(sample_message(5).id)
        change.post(sample_message(5))
    expected = [sample_message(3, bytes(3)), sample_message(1, bytes(1)), sample_message(7, bytes(7))]
    assert await ledger.messages() == [*expected, sample_message(2), sample_message(5)]


async def queries_find_rows_and_show_no_secret(ledger: Ledger) -> None:
    rows = {state: sample_row(sample_ref(number), state) for number, state in enumerate(State, 1)}
    for state in (State.RELAYED, State.TAKEN, State.FAILED, State.VOIDED, State.EXPIRED):
        rows[state].secret = None
    twin = sample_row(sample_ref(1, "derio"), State.SENT)
    await add(ledger, *rows.values(), twin)

    found = await ledger.find(rows[State.MINTED].ref.key_id)
    assert [shown(row) for row in found] == [
        shown(replace(row, secret=None)) for row in (twin, rows[State.MINTED])
    ]
    assert await ledger.find(UUID(int=404)) == []
    await _expect(ledger.unfinished(), twin, rows[State.SENDING], rows[State.SENT])
    await _expect(ledger.deliverable(), rows[State.DELIVERABLE])


async def _expect(query: Awaitable[list[Row]], *rows: Row) -> None:
    found = await query
    assert {row.ref for row in found} == {row.ref for row in rows}
    assert len(found) == len(rows)
    assert all(row.secret is None for row in found), "a query shows a secret"


async def between_asks_for_all_targets(ledger: Ledger) -> None:
    def row(number: int, *targets: str, state: State = State.DELIVERABLE, initiator: str = "sae-a") -> Row:
        return sample_row(sample_ref(number), state, targets=targets, initiator=initiator)

    b, bc, c, nobody = row(1, "b"), row(2, "c", "b"), row(3, "c", state=State.MINTED), row(4)
    gone = row(7, "b", state=State.RELAYED)
    own = replace(row(8, "b", state=State.RELAYED), callback=None)
    await add(
        ledger, b, bc, c, nobody, row(5, "b", state=State.FAILED), row(6, "b", initiator="x"), gone, own
    )
    await _expect(ledger.between("sae-a", frozenset("b")), b, nobody, gone)
    await _expect(ledger.between("sae-a", frozenset("bc")), b, bc, c, nobody, gone)
    await _expect(ledger.between("sae-a", frozenset("d")), nobody)
    await _expect(ledger.between("sae-b", frozenset("b")))


async def due_rows_come_earliest_first(ledger: Ledger) -> None:
    def row(number: int, state: State, deadline: float, expires: float) -> Row:
        secret = None if state is State.FAILED else Secret(b"bits")
        return sample_row(sample_ref(number), state, deadline=deadline, expires=expires, secret=secret)

    await add(
        ledger,
        row(1, State.SENDING, 50.0, 900.0),
        row(2, State.DELIVERABLE, 10.0, 60.0),
        row(3, State.MINTED, 20.0, 30.0),
        row(4, State.SENT, 70.0, 40.0),
        row(5, State.FAILED, 1.0, 2.0),
        row(6, State.DELIVERABLE, 1.0, 61.0),
    )
    assert await ledger.due(29.9) == []
    assert [ref.key_id.int for ref in await ledger.due(60.0)] == [3, 4, 1, 2]
    assert [ref.key_id.int for ref in await ledger.due(1_000.0)] == [3, 4, 1, 2, 6]
    assert [ref.key_id.int for ref in await ledger.due(1_000.0, limit=2)] == [3, 4]


async def forget_removes_final_rows_only(ledger: Ledger) -> None:
    ended = [sample_row(sample_ref(n), State.FAILED, expires=float(n), secret=None) for n in range(1, 1201)]
    live = sample_row(sample_ref(5_000), State.DELIVERABLE, expires=1.0)
    await add(ledger, *ended, live)
    assert await ledger.forget(1_101.0) == 1_100
    assert await ledger.forget(1_101.0) == 0
    assert await ledger.get(sample_ref(1_100)) is None
    assert await ledger.get(sample_ref(1_101)) is not None
    assert await ledger.get(live.ref) is not None


async def a_forgotten_row_is_stale(ledger: Ledger) -> None:
    ref = sample_ref(1)
    await add(ledger, sample_row(ref, State.FAILED, expires=1.0, secret=None))
    try:
        async with ledger.edit(ref) as change:
            assert await ledger.forget(2.0) == 1
            draft = change.rows[ref]
            assert draft is not None
            draft.state = State.VOIDED
    except StaleRow:
        assert await ledger.get(ref) is None
        return
    raise AssertionError("a row came back after forget")


async def secrets_are_wiped_by_their_owner(ledger: Ledger) -> None:
    given, kept, gone = Secret(b"given"), sample_ref(1), sample_ref(2)
    await add(ledger, sample_row(kept, secret=given), sample_row(gone))
    assert given.reveal() == b"given", "the ledger wiped a secret it was given"
    async with ledger.edit(kept, gone) as change:
        first, second = change.rows[kept], change.rows[gone]
        assert first is not None
        assert second is not None
        handed, orphan = first.secret, second.secret
        assert handed is not None
        assert orphan is not None
        first.state = State.SENT
        second.secret = Secret(b"replacement")
    assert handed.reveal() == b"given", "the ledger wiped a secret that its row still holds"
    assert len(orphan) == 0, "a secret nobody holds was not wiped"
    row = await ledger.get(gone)
    assert row is not None
    assert row.secret is not None
    assert row.secret.reveal() == b"replacement"


async def a_cancelled_edit_is_whole_or_absent(ledger: Ledger) -> None:
    refs = [sample_ref(number) for number in range(30)]

    async def create(ref: Ref) -> None:
        async with ledger.edit(ref) as change:
            change.rows[ref] = sample_row(ref)
            change.put("made", str(ref.key_id.int), b"")

    for number, ref in enumerate(refs):
        task = asyncio.create_task(create(ref))
        for _ in range(number % 6):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    made = await ledger.items("made")
    for ref in refs:
        async with asyncio.timeout(PATIENCE), ledger.edit(ref) as change:
            assert (change.rows[ref] is not None) == (str(ref.key_id.int) in made)


# -- rows that stand alike -------------------------------------------------------------------------


async def a_herd_changes_as_one(ledger: Ledger) -> None:
    for number, secret in enumerate((Secret(b"bits"), None), 1):
        rows = herd_of(number, secret=secret)
        refs = [row.ref for row in reversed(rows)]
        await add(ledger, *rows)
        async with ledger.together(refs) as herd:
            assert herd is not None
            assert len(herd.secrets) == (len(rows) if secret else 0)
            herd.row.state, herd.row.legs = State.DELIVERABLE, {"leioa": State.RELAYED}
        for row in rows:
            expected = replace(row, state=State.DELIVERABLE, legs={"leioa": State.RELAYED}, version=2)
            assert shown(await ledger.get(row.ref)) == shown(expected)
        assert {row.ref for row in await ledger.deliverable()} >= set(refs)
        async with ledger.together(refs) as herd:
            assert herd is not None
            herd.row.state = State.TAKEN
        taken = await ledger.get(refs[0])
        assert taken is not None
        assert (taken.state, taken.secret, taken.version) == (State.TAKEN, None, 3)


async def a_herd_hands_out_the_secrets_in_the_order_of_the_refs(ledger: Ledger) -> None:
    rows = herd_of(1)
    await add(ledger, *rows)
    order = [rows[at].ref for at in (3, 0, 4, 1, 2)]
    async with ledger.together(order) as herd:
        assert herd is not None
        assert [secret.reveal()[0] for secret in herd.secrets] == [3, 0, 4, 1, 2]
        for secret in herd.secrets:
            secret.wipe()
    assert [shown(await ledger.get(row.ref)) for row in rows] == [shown(row) for row in rows]


async def rows_that_differ_are_no_herd(ledger: Ledger) -> None:
    rows = herd_of(1)
    await add(ledger, *rows)
    stranger = sample_ref(99_999)
    async with ledger.edit(rows[0].ref) as change:
        draft = change.rows[rows[0].ref]
        assert draft is not None
        draft.state = State.SENT
    for refs in ([row.ref for row in rows], [rows[1].ref, stranger], [stranger]):
        async with ledger.together(refs) as herd:
            assert herd is None
    async with ledger.together([row.ref for row in rows[1:]]) as herd:
        assert herd is not None
        herd.row.state = State.SENT
    assert len(await ledger.unfinished()) == len(rows)


async def nothing_of_a_herd_is_committed_if_the_body_raises(ledger: Ledger) -> None:
    rows = herd_of(1)
    await add(ledger, *rows)
    try:
        async with ledger.together([row.ref for row in rows]) as herd:
            assert herd is not None
            herd.row.state = State.SENT
            raise LookupError
    except LookupError:
        pass
    assert [shown(await ledger.get(row.ref)) for row in rows] == [shown(row) for row in rows]


async def rows_leave_a_herd_side_by_side(ledger: Ledger) -> None:
    rows = herd_of(1, count=40, state=State.DELIVERABLE)
    await add(ledger, *rows)

    async def take(group: Sequence[Row]) -> list[bytes]:
        async with ledger.edit(*(row.ref for row in group)) as change:
            bits = []
            for row in group:
                draft = change.rows[row.ref]
                if draft is not None and draft.state is State.DELIVERABLE and draft.secret is not None:
                    bits.append(draft.secret.reveal())
                    draft.state, draft.secret = State.TAKEN, None
            return bits

    groups = [rows[at : at + 3] for at in range(0, 36, 2)]  # neighbours want one row in common
    taken = [bits for found in await asyncio.gather(*map(take, groups)) for bits in found]
    assert sorted(taken) == [bytes([at]) * 32 for at in range(37)], "a row was taken twice, or lost"
    left = [row.ref for row in await ledger.deliverable()]
    assert sorted(left) == [row.ref for row in rows[37:]]
    kept = [await ledger.get(ref) for ref in left]
    assert [row.secret.reveal()[0] for row in kept if row and row.secret] == [37, 38, 39]
    assert await take(rows[37:]) == [bytes([at]) * 32 for at in (37, 38, 39)]
    assert await ledger.deliverable() == []
    assert [row.state for row in await ledger.find(rows[5].ref.key_id)] == [State.TAKEN]


async def a_row_that_left_its_herd_is_stale_there(ledger: Ledger) -> None:
    rows = herd_of(1, state=State.DELIVERABLE)
    await add(ledger, *rows)
    old = await ledger.get(rows[2].ref)
    assert old is not None
    async with ledger.edit(old.ref) as change:
        draft = change.rows[old.ref]
        assert draft is not None
        draft.state, draft.secret = State.TAKEN, None
    for late in (old, replace(old, version=0), replace(rows[1], version=0), replace(rows[1], version=7)):
        assert await refusal(ledger, StaleRow, late)
    row = await ledger.get(old.ref)
    assert row is not None
    assert (row.state, row.secret) == (State.TAKEN, None)
    assert shown(await ledger.get(rows[1].ref)) == shown(rows[1])


async def herds_fall_due_and_are_forgotten(ledger: Ledger) -> None:
    live = herd_of(1, state=State.DELIVERABLE, expires=50.0, deadline=9.0)
    overdue = herd_of(2, state=State.SENT, expires=60.0, deadline=10.0)
    ended = herd_of(3, state=State.TAKEN, secret=None, expires=5.0)
    await add(ledger, *live, *overdue, *ended)
    await _expect(ledger.between("sae-a", frozenset({"sae-b", "sae-c"})), *live, *overdue)
    assert await ledger.due(9.5) == []
    assert await ledger.due(10.0) == [row.ref for row in overdue]
    assert await ledger.due(70.0) == [row.ref for row in (*overdue, *live)]
    assert await ledger.due(70.0, limit=3) == [row.ref for row in overdue[:3]]
    async with ledger.edit(ended[0].ref) as change:
        draft = change.rows[ended[0].ref]
        assert draft is not None
        draft.expires = 500.0
    assert await ledger.forget(6.0) == len(ended) - 1
    assert await ledger.get(ended[1].ref) is None
    assert await ledger.get(ended[0].ref) is not None
    assert await ledger.forget(6.0) == 0


async def a_closed_ledger_says_so(ledger: Ledger) -> None:
    await ledger.close()
    try:
        await ledger.get(sample_ref(1))
    except StoreUnavailable:
        return
    raise AssertionError("a closed ledger answered")


RULES: tuple[Callable[[Ledger], Awaitable[None]], ...] = (
    a_row_comes_back_as_it_was_saved,
    nothing_is_committed_if_the_body_raises,
    a_draft_is_nobody_elses,
    an_unchanged_draft_is_not_written,
    concurrent_edits_lose_no_update,
    edits_of_crossing_refs_do_not_dead_lock,
    a_stale_row_is_refused,
    rows_neither_vanish_nor_change_place,
    a_refused_change_leaves_nothing_and_its_neighbours_alone,
    a_name_is_claimed_once_and_spent_once,
    steps_of_a_change_are_taken_in_order,
    messages_come_in_queue_order,
    queries_find_rows_and_show_no_secret,
    between_asks_for_all_targets,
    due_rows_come_earliest_first,
    forget_removes_final_rows_only,
    a_forgotten_row_is_stale,
    secrets_are_wiped_by_their_owner,
    a_cancelled_edit_is_whole_or_absent,
    a_herd_changes_as_one,
    a_herd_hands_out_the_secrets_in_the_order_of_the_refs,
    rows_that_differ_are_no_herd,
    nothing_of_a_herd_is_committed_if_the_body_raises,
    rows_leave_a_herd_side_by_side,
    a_row_that_left_its_herd_is_stale_there,
    herds_fall_due_and_are_forgotten,
    a_closed_ledger_says_so,
)
