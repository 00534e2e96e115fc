"""Bugs to plant: one line each, and what it breaks.

`old` must occur exactly once in the file: when the code moves on, the run fails and says which entry has to
be written anew. `tests` are what it takes a thief, a replay, a clock to see; they are run instead of storms.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Bug:
    """In `file` of the package, `old` becomes `new`."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...] = ()
    needs: str = ""
    """A module without which nobody can see it."""
    seeds: int = 30
    """Storms to look for it in, at most, where no tests are named."""


BUGS = (
    Bug(
        "a key is released before the far end has it",
        "origin.py",
        'if self._site.settings.release == "immediate" or self._local(order):',
        "if True:",
    ),
    Bug(
        "no end-to-end authentication",
        "messages/payload.py",
        "if not hmac.compare_digest(origin_tag(pair, context, *parts), given):",
        "if False:",
        ("tests/sim/test_cheats.py",),
    ),
    Bug(
        "what is carried beside the keys is not vouched for",
        "messages/payload.py",
        "        if self.carried:\n",
        "        if False:\n",
        ("tests/sim/test_transit.py",),
    ),
    Bug(
        "whoever certifies the key of a CA is its predecessor",
        "identity.py",
        "if vouches(known, key) and vouches(key, known)}",
        "if vouches(known, key) or vouches(key, known)}",
        ("tests/unit/test_pki_rotation.py",),
    ),
    Bug(
        "a relay's word is enough for an acknowledgement",
        "settlement.py",
        "if expected is None or hmac.compare_digest(expected, proof):",
        "if True:",
        ("tests/sim/test_cheats.py",),
    ),
    Bug(
        "which pads are used is known in memory only: used device keys stay on disk",
        "links/prefetch.py",
        "            change.spend(self._out, name)\n",
        "            pass\n",
    ),
    Bug(
        "burned device keys stay on disk",
        "links/prefetch.py",
        "                change.erase(self._out, name)  # twice is harmless\n",
        "                pass\n",
    ),
    Bug(
        "device keys of an accepted message stay on disk",
        "links/prefetch.py",
        "                change.spend(self._in, name)\n",
        "                pass\n",
    ),
    Bug(
        "one-time pads are ready for others while a message uses them",
        "links/prefetch.py",
        "            return await self.supply.take(number, patience, payer)\n",
        "            keys = await self.supply.take(number, patience, payer)\n"
        "            self.supply.add(keys[1:])\n"
        "            return keys\n",
    ),
    Bug(
        "device keys are said to be held and are on no disk",
        "links/prefetch.py",
        "                self._kept.put(change, key.key_id, key.bits.reveal())\n",
        "                pass\n",
    ),
    Bug(
        "a delivery is marked after it, not before",
        "origin.py",
        "        lifecycle.given(row, sae, self._site.clock.now())\n"
        "        return Delivered(row.ref.key_id, bits, dict(row.trust))\n",
        "        async def mark() -> None:\n"
        "            async with self._site.ledger.edit(row.ref) as change:\n"
        "                lifecycle.given(change.rows[row.ref], sae, self._site.clock.now())\n\n"
        '        self._spawn(mark(), "mark")\n'
        "        return Delivered(row.ref.key_id, bits, dict(row.trust))\n",
    ),
    Bug(
        "a delivery is not marked",
        "lifecycle.py",
        "    row.waiting -= {sae}\n",
        "    row.waiting -= set()\n",
    ),
    Bug(
        "a key stays until its last slave has it, and everybody may come again",
        "origin.py",
        "            and caller in row.waiting\n",
        "",
    ),
    Bug(
        "a void at the far end is answered and ignored",
        "settlement.py",
        "        elif not row.peers:\n            lifecycle.step(row, State.VOIDED, now)\n",
        "        elif not row.peers:\n",
    ),
    Bug(
        "a void that comes first leaves no tombstone",
        "settlement.py",
        "row = change.rows[ref] = self._tombstone(",
        "row = self._tombstone(",
        ("tests/sim/test_settlement.py",),
    ),
    Bug(
        "a request that failed voids nothing",
        "settlement.py",
        "                elif (MASTER in row.waiting or not lost) and lifecycle.may(row, State.VOIDED):\n",
        "                elif False:\n",
        (
            "tests/sim/test_stock.py::test_the_policy_warms_a_pair_serves_it_and_voids_at_both_ends_what_lies_idle",
        ),
    ),
    Bug(
        "a stale row is committed",
        "stores/memory.py",
        "if (old.version if old is not None else 0) != row.version:",
        "if False:",
        ("tests/contracts/test_ledger.py",),
    ),
    Bug(
        "an acknowledgement may not overtake the 202",
        "lifecycle.py",
        "State.SENDING: frozenset({State.SENT, State.RELAYED, State.DELIVERABLE}) | _ENDED,",
        "State.SENDING: frozenset({State.SENT}) | _ENDED,",
        ("tests/unit/test_lifecycle.py",),
    ),
    Bug(
        "the replay window is in memory only",
        "links/sealed.py",
        "        change.claim(space, name, header.message_id)\n",
        "",
        ("tests/sim/test_cheats.py",),
    ),
    Bug(
        "one-time keys are not erased",
        "links/onetime.py",
        "        change.spend(self._space, key_id.hex())\n",
        "        pass\n",
        ("tests/sim/test_cheats.py",),
    ),
    Bug(
        "message numbers are not reserved on disk",
        "links/sealed.py",
        "change.put(_SEQUENCE, self.peer, str(limit).encode())",
        "pass",
    ),
    Bug(
        "the far end acknowledges what it did not save with its keys",
        "relay.py",
        "change.post(message)\n        except _VoidedBefore:\n            await self",
        "pass\n        except _VoidedBefore:\n            await self",
    ),
    Bug(
        "a key of the pool is given to two requests",
        "stock.py",
        "        return [keys.popleft()[1] for _ in range(number)]",
        "        return [key for _, key in list(keys)[:number]]",
        ("tests/sim/test_stock.py::test_a_pool_fills_serves_and_survives_a_restart",),
    ),
    Bug(
        "one of several targets is enough",
        "lifecycle.py",
        "    return all(state is State.RELAYED for state in legs)",
        "    return any(state is State.RELAYED for state in legs)",
    ),
    Bug(
        "masked keys are not masked",
        "messages/payload.py",
        "    return hashlib.shake_256(key).digest(length)",
        "    return bytes(length)",
    ),
    Bug(
        "key ids repeat within a millisecond",
        "minting.py",
        '    rest = int.from_bytes(os.urandom(10), "big")',
        "    rest = 0",
        ("tests/unit/test_minting.py",),
    ),
    Bug(
        "a key is written to the log",
        "origin.py",
        "        bits = Secret(row.secret.reveal())\n",
        '        bits = Secret(row.secret.reveal())\n        log.info("given", bits=bits.reveal().hex())\n',
    ),
    Bug(
        "an expired key is given until the sweep comes by",
        "origin.py",
        "            and row.expires > self._site.clock.now()\n",
        "",
        ("tests/sim/test_stock.py::test_an_expired_key_is_not_given_even_before_the_sweep",),
    ),
    Bug(
        "nothing is ever forgotten",
        "settlement.py",
        "            await self.site.ledger.forget(now - retention)\n",
        "",
    ),
    Bug(
        "what a full disk refused is not tried again",
        "outbox.py",
        "await self._noted(lambda: outcome.refused(message, answer))",
        "await outcome.refused(message, answer)",
        ("tests/unit/test_outbox.py",),
    ),
    Bug(
        "a restored node numbers its messages under its old incarnation",
        "stores/renewal.py",
        "    await copy.rename(incarnation)\n",
        "    pass\n",
    ),
    Bug(
        "a restored node gives the keys of its backup out once more",
        "stores/renewal.py",
        "    keys = await _expire(ledger, now)\n",
        "    keys = 0\n",
        seeds=150,
    ),
    Bug(
        "a restored node uses the one-time keys and pads of its backup",
        "stores/renewal.py",
        'LASTING = ("seen/*", "directory", "audit", "rollback")',
        'LASTING = ("*",)',
    ),
    Bug(
        "nobody is told that a neighbour was restored",
        "links/sealed.py",
        '        if self._peer_epoch not in (b"", epoch):',
        "        if False:",
        ("tests/unit/test_refill.py",),
    ),
    Bug(
        "a destination that was restored is still sent keys under a secret it lost",
        "pairing.py",
        "            self.forget(node)\n",
        "            pass\n",
    ),
    Bug(
        "any key that arrives confirms the secret of now, were it of another run",
        "pairing.py",
        "if held is not None and key_id in held.carriers:",
        "if held is not None:",
        ("tests/unit/test_pairing.py",),
    ),
    Bug(
        "keys that a restored destination has lost are given out all the same",
        "pairing.py",
        "            self.restored(node)\n",
        "            pass\n",
        ("tests/sim/test_stock.py::test_what_lies_ready_for_a_node_that_was_restored_is_given_to_nobody",),
    ),
    Bug(
        "keys that a request claims reach its pool as well",
        "waiting.py",
        "self.claimed = frozenset(refs[:claimed])",
        "self.claimed = frozenset(refs[:0])",
        ("tests/sim/test_ahead.py",),
    ),
    Bug(
        "keys under way to a destination that was restored meanwhile are given out",
        "losses.py",
        "[*await ledger.unfinished(), *await ledger.deliverable()]",
        "await ledger.deliverable()",
        (
            "tests/sim/test_stock.py"
            "::test_nor_is_what_was_under_way_then_although_it_was_acknowledged_before_the_restore",
        ),
    ),
    Bug(
        "a restored destination takes the other slaves' copies with it",
        "settlement.py",
        "(MASTER in row.waiting or not lost) and ",
        "",
        (
            "tests/sim/test_stock.py"
            "::test_a_key_that_the_master_has_stays_for_its_other_slaves_when_one_of_their_nodes_is_restored",
        ),
    ),
    Bug(
        "a void is confirmed upwards before the far end did it",
        "relay.py",
        " and (row.state is not State.VOIDED or lifecycle.voided_everywhere(row))",
        "",
        (
            "tests/sim/test_settlement.py"
            "::test_a_void_is_confirmed_when_the_far_end_did_it_and_no_sooner_although_the_keys_come_again",
        ),
    ),
    Bug(
        "a restored node that says which old descriptor it holds is not reminded",
        "gossip.py",
        "                self._remind(held)\n            return encode_names",
        "                pass\n            return encode_names",
        ("tests/unit/test_gossip.py::test_a_restored_node_is_reminded_too_by_what_it_says_it_holds",),
    ),
    Bug(
        "a descriptor counts although the disk did not take it",
        "gossip.py",
        "                    news[known.descriptor.node] = newest(",
        "                    self._directory.take(known)\n"
        "                    news[known.descriptor.node] = newest(",
        ("tests/unit/test_gossip.py::test_what_the_disk_did_not_take_is_not_held_and_comes_again",),
    ),
    Bug(
        "a node that lost its disk is asked what it lacks only by those who hear of it first",
        "gossip.py",
        "self._neighbours.get(node)) is not None:\n            neighbour.doubt()",
        "self._neighbours.get(node)) is not None and node == peer:\n            neighbour.doubt()",
        (
            "tests/unit/test_gossip.py::test_a_neighbour_whose_news_come_from_another_is_asked_too_what_it_lacks",
        ),
    ),
    Bug(
        "keys that were voided before they came are kept out of one node only",
        "settlement.py",
        "        if peer in self.site.foreign:\n            return [here]",
        "        if False:\n            return [here]",
        ("tests/sim/test_settlement.py::test_a_void_of_an_unknown_key_leaves_a_tombstone_and_says_so",),
    ),
    Bug(
        "a pad is taken off although the two ends of its link disagree",
        "messages/envelope.py",
        "    if not hmac.compare_digest(inner.content[:CHECK_BYTES], ",
        "    if False and (inner.content[:CHECK_BYTES], ",
        ("tests/unit/test_sealed_link.py", "tests/sim/test_stock.py"),
    ),
    Bug(
        "a request fails where a link further on disagreed for a while",
        "settlement.py",
        '            self._fail(row, news, now, proof if proof == confirming.UNOPENED else b"")',
        "            self._fail(row, news, now)",
        ("tests/sim/test_stock.py::test_devices_that_disagreed_for_a_while_cost_no_request_once_they_agree",),
    ),
    Bug(
        "a gateway fails where a void comes while it looks for a way",
        "relay.py",
        "        except (_VoidedBefore, Conflict):",
        "        except Conflict:",
        ("tests/sim/test_settlement.py::test_a_void_may_come_while_a_gateway_still_looks_for_a_way",),
    ),
    Bug(
        "a node that is killed forgets which destination has lost its keys",
        "gossip.py",
        "                    if self._pairing.anew(known):",
        "                    if False:",
        (
            "tests/sim/test_stock.py::test_nor_by_a_node_that_was_killed_when_it_had_just_heard_of_the_restore",
        ),
    ),
    Bug(
        "all behind one neighbour stand in one line",
        "rounds.py",
        '    return (("neighbour", peer), origin, sae)',
        '    return (("neighbour", peer),)',
        ("tests/unit/test_rounds.py",),
    ),
    Bug(
        "turns that were left to others are lost",
        "rounds.py",
        "        if self._credit and self._favour:\n",
        "        if False:\n",
        ("tests/unit/test_rounds.py",),
    ),
    Bug(
        "who catches up takes every turn",
        "rounds.py",
        "self._favour = not favoured",
        "self._favour = True",
        ("tests/unit/test_rounds.py",),
    ),
    Bug(
        "a node is believed about the applications of others",
        "site.py",
        'initiator if known else "")',
        "initiator)",
        ("tests/unit/test_rounds.py",),
    ),
    Bug(
        "keys may come from a node that is not on their route",
        "relay.py",
        "        self.site.came(context.route, peer)\n",
        "",
        ("tests/sim/test_ways.py",),
    ),
    Bug(
        "of several envelopes in one request only the first counts against its neighbour",
        "edge/peer.py",
        "if place and self._turns is not None:",
        "if False:",
        ("tests/e2e/test_bundles.py",),
    ),
    Bug(
        "one envelope may be given the verdict of another",
        "messages/bundle.py",
        "            self.open.remove(place)\n",
        "            place = min(self.open)\n            self.open.remove(place)\n",
        ("tests/unit/test_bundle.py",),
    ),
    Bug(
        "an envelope without a verdict counts as accepted",
        "edge/joining.py",
        "                each.failed(error)\n",
        '                each.told(202, b"")\n',
        ("tests/unit/test_joining.py",),
    ),
    Bug(
        "scheme blind leaves its encryption out",
        "schemes/seal.py",
        "uppers.append(dense.bytes_of(upper ^ bits))",
        "uppers.append(dense.bytes_of(bits))",
        needs="seal",
    ),
)
