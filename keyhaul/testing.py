"""Contract suites for anyone's back end: a port is what passes its suite.

`check_store` runs every rule of `ports.Ledger` on fresh ledgers, `check_reopen` what must survive a
restart, and `cross_test` random operations on two ledgers side by side. All of them raise
AssertionError. They measure no time.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from random import Random
from uuid import UUID

from keyhaul.errors import KeyhaulError
from keyhaul.keys import Ref, Row, Secret, State
from keyhaul.ledger_rules import RULES
from keyhaul.ledger_samples import add, sample_message, sample_ref, sample_row, shown
from keyhaul.lifecycle import FINAL
from keyhaul.ports import Change, Ledger

Make = Callable[[], Awaitable[Ledger]]
Reopen = Callable[[Ledger], Awaitable[Ledger]]

NAMES = ("a", "b", "c", "d")


async def check_store(make: Make) -> None:
    """Every rule of the port, each on a new ledger from `make`."""
    for rule in RULES:
        ledger = await make()
        try:
            await rule(ledger)
        finally:
            await ledger.close()


async def check_reopen(make: Make) -> None:
    """What one store must keep: `make` opens the same store each time it is called."""
    row, ended = sample_row(sample_ref(1)), sample_row(sample_ref(2), State.FAILED, secret=None)
    ledger = await make()
    await add(ledger, row, ended)
    async with ledger.edit() as change:
        change.post(sample_message(2))
        change.post(sample_message(1))
        change.claim("space", "spent", b"1")
        change.claim("space", "kept", b"2")
    async with ledger.edit() as change:
        change.spend("space", "spent")
    await ledger.close()

    ledger = await make()
    try:
        assert shown(await ledger.get(row.ref)) == shown(row)
        assert shown(await ledger.get(ended.ref)) == shown(ended)
        assert [kept.ref for kept in await ledger.unfinished()] == [row.ref]
        assert await ledger.messages() == [sample_message(2), sample_message(1)]
        assert await ledger.items("space") == {"kept": b"2"}
    finally:
        await ledger.close()


async def cross_test(
    left: Ledger, right: Ledger, *, seed: int, steps: int = 1_000, reopen: Reopen | None = None
) -> None:
    """Do the same random operations on two ledgers; every answer and error must be the same.

    The ledgers must be empty and are closed at the end. With `reopen`, which closes a ledger and
    opens it again, `right` goes through ten restarts on the way.
    """
    random = Random(seed)  # noqa: S311 - repeatable on purpose
    for number in range(steps):
        if reopen is not None and number % (steps // 10 or 1) == 0:
            right = await reopen(right)
        operation = random.choices((_edit, _herd, _query, _forget), (8, 3, 4, 0.2))[0]
        choice = random.getrandbits(64)
        answers = [await _answer(operation, ledger, choice) for ledger in (left, right)]
        assert answers[0] == answers[1], f"seed {seed}, step {number}: {answers[0]} is not {answers[1]}"
    for ledger in (left, right):
        await ledger.close()


async def _answer(
    operation: Callable[[Ledger, Random], Awaitable[object]], ledger: Ledger, seed: int
) -> object:
    try:
        return await operation(ledger, Random(seed))  # noqa: S311 - both ledgers get the same choices
    except (KeyhaulError, LookupError) as error:
        return type(error)


def _some_ref(random: Random) -> Ref:
    return sample_ref(random.randrange(12), random.choice(("vigo", "derio")))


def _some_row(ref: Ref, version: int, random: Random) -> Row:
    state = random.choice(list(State))
    row = sample_row(
        ref,
        state,
        version=version,
        initiator=random.choice(NAMES),
        targets=tuple(random.sample(NAMES, random.randrange(4))),
        waiting=frozenset(random.sample(NAMES, 2)),
        deadline=float(random.randrange(100)),
        expires=float(random.randrange(100)),
        size=random.randrange(8, 65_537, 8),
    )
    row.secret = None if state in FINAL else Secret(random.randbytes(random.choice((1, 32, 8_192))))
    return row


async def _edit(ledger: Ledger, random: Random) -> object:
    refs = {_some_ref(random) for _ in range(random.randrange(4))}
    async with ledger.edit(*refs) as change:
        for ref in sorted(refs):
            _alter(change, ref, random)
        for _ in range(random.randrange(4)):
            _step(change, random)
        if random.random() < 0.1:
            raise LookupError
    return [shown(change.rows[ref]) for ref in sorted(refs)]


async def _herd(ledger: Ledger, random: Random) -> object:
    """All rows of one leg, or some, made alike: in one draft where they are so already, else one by one."""
    leg = random.choice(("vigo", "derio"))
    refs = [sample_ref(number, leg) for number in random.choice((range(12), range(5), range(3, 9)))]
    model = _some_row(refs[0], 0, random)
    async with ledger.edit(*refs) as change:
        for ref in refs:
            draft = change.rows[ref]
            secret = None if model.secret is None else Secret(ref.key_id.bytes)
            version = draft.version if draft is not None else 0
            proofs = {name: bytes([ref.key_id.int]) * 16 for name in model.legs}
            change.rows[ref] = replace(model.draft(), ref=ref, version=version, secret=secret, proofs=proofs)
    bits = []
    async with ledger.together(refs) as herd:
        if herd is not None:
            bits = [secret.reveal() for secret in herd.secrets]
            herd.row.expires += 1.0
    if herd is None:  # a ledger need not see that rows became alike
        async with ledger.edit(*refs) as change:
            drafts = [row for ref in refs if (row := change.rows[ref]) is not None]
            bits = [
                row.secret.reveal() for row in drafts if row.secret is not None and row.state not in FINAL
            ]
            for row in drafts:
                row.expires += 1.0
    return bits, [shown(await ledger.get(ref)) for ref in refs]


def _alter(change: Change, ref: Ref, random: Random) -> None:
    draft = change.rows[ref]
    match random.randrange(5):
        case 0:  # stale or early as often as not
            change.rows[ref] = _some_row(ref, random.randrange(3), random)
        case 1 | 2:
            change.rows[ref] = _some_row(ref, draft.version if draft else 0, random)
        case 3 if draft is not None:
            draft.legs[random.choice(NAMES)] = State.SENT
            draft.peers = {"derio": random.choice(NAMES)}


def _step(change: Change, random: Random) -> None:
    space, name, value = random.choice(NAMES), random.choice(NAMES), random.randbytes(random.randrange(40))
    message = sample_message(random.randrange(12), random.randbytes(20))
    match random.randrange(7):
        case 0 | 1:
            change.put(space, name, value)
        case 2:
            change.claim(space, name, value)
        case 3:
            change.spend(space, name)
        case 4:
            change.erase(space, name)
        case 5:
            change.post(message)
        case 6:
            change.drop(message.id)


async def _query(ledger: Ledger, random: Random) -> object:
    match random.randrange(8):
        case 0:
            return shown(await ledger.get(_some_ref(random)))
        case 1:
            return _by_ref(await ledger.find(UUID(int=random.randrange(12))))
        case 2:
            return _by_ref(await ledger.unfinished()), _by_ref(await ledger.deliverable())
        case 3:
            targets = frozenset(random.sample(NAMES, random.randrange(5)))
            return _by_ref(await ledger.between(random.choice(NAMES), targets))
        case 4:
            return await ledger.due(float(random.randrange(100)), random.choice((1, 5, 256)))
        case 5:
            return await ledger.messages()
        case 6:
            return await ledger.item(random.choice(NAMES), random.choice(NAMES))
        case _:
            return await ledger.items(random.choice(NAMES))


async def _forget(ledger: Ledger, random: Random) -> object:
    return await ledger.forget(float(random.randrange(100)))


def _by_ref(rows: list[Row]) -> list[object]:
    assert all(row.secret is None for row in rows), "a query shows a secret"
    return [replace(row, secret=None) for row in sorted(rows, key=lambda row: row.ref)]
