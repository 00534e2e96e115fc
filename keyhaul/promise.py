"""Which scheme a path gets, and what is promised of a key that went along it.

Labels name promises: `relay-blind` (no relay can read the key), `its-wire` (one-time pads of device bits on
every link), `qkd` (devices on every link), `pq` (post-quantum key exchange on every link). Those that a
request insists on and those of the configuration's policy hold for the whole path, or nothing is sent, and
the error names each hop and what it lacks (`keyhaul.ways` looks for another path first). Those that are only
wished for are honoured where they can be.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from keyhaul.control import BASELINE
from keyhaul.errors import ExtensionRefused, KeyhaulError, NoRoute, Refused
from keyhaul.messages.payload import Context, Scheme
from keyhaul.site import Site

MOST_TOLD = 4  # hops in one error


@dataclass(frozen=True, slots=True)
class Ask:
    """What is wanted of a path: a scheme and labels, each either insisted on or only wished for.

    `policy` are the labels that the configuration demands whatever the request says.
    """

    scheme: str | None = None
    insisted: bool = False
    labels: frozenset[str] = frozenset()
    wished: frozenset[str] = frozenset()
    policy: frozenset[str] = frozenset()

    @property
    def demanded(self) -> frozenset[str]:
        return self.labels | self.policy


NOTHING = Ask()


def choose_scheme(site: Site, hops: tuple[str, ...], ask: Ask) -> Scheme:
    """The scheme for a path. Raises ExtensionRefused where the request asks too much, NoRoute for policy.

    What the request names comes first, then the node's default, then, if labels are asked for, `masked`.
    `blind` is never chosen without being named, by the request or as the default.
    """
    names = candidates(site, hops, ask)
    for labels in (ask.demanded | ask.wished, ask.demanded):
        for name in names:
            if not _lacking(site, hops, name, labels):
                return site.schemes[name]
    raise _refusal(site, hops, names, ask)


def needs_descriptors(site: Site, hops: tuple[str, ...], ask: Ask) -> bool:
    """Whether the choice rests on what nodes of the path say of themselves."""
    asked = "pq" in ask.demanded | ask.wished
    return asked or any(name not in BASELINE for name in candidates(site, hops, ask) if name in site.schemes)


def refuse_plain(peer: str, site: Site, ask: Ask, gateway: str = "") -> None:
    """A hop to a foreign key manager, of this node or of `gateway`, has no label and no scheme.

    Raises if any is demanded.
    """
    lacks = sorted(ask.demanded) + ([f"scheme {ask.scheme}"] if ask.insisted else [])
    if lacks:
        cause = f"hop {gateway or site.name} to {peer}, plain ETSI GS QKD 020, lacks {', '.join(lacks)}"
        if ask.labels or ask.insisted:
            raise ExtensionRefused(cause, "ask for less, or name targets on nodes of ours")
        raise NoRoute(cause, "the [[policy]] of these applications cannot be met there")


def trust(site: Site, scheme: Scheme, hops: tuple[str, ...]) -> dict[str, str]:
    """The trust statement of a delivered key (design §2): what protects it, and from whom.

    `wire`: against wiretappers; `relays`: against the nodes between; `neighbour`: against the last relay
    before the destination. Values: `information-theoretic`, `computational`, `none`. `labels`: those that
    hold for the whole path.
    """
    links = site.view.labels(hops)
    wire = "information-theoretic" if all("its-wire" in each for each in links) else "computational"
    relayed = len(hops) > 2
    blind = "computational" if "relay-blind" in scheme.labels else "none"
    held = frozenset.intersection(*_promised(site, hops, scheme)) if links else frozenset[str]()
    return {
        "scheme": scheme.name,
        "path": site.view.picture(hops),
        "wire": wire if links else "not on a wire",
        "relays": blind if relayed else "no relay",
        "neighbour": blind if relayed else "no relay",
        "labels": " ".join(sorted(held)),
    }


def handed_over(statement: dict[str, str]) -> dict[str, str]:
    """The trust statement of a key whose last hop is plain 020, from a gateway that has it in the clear."""
    none = {"relays": "none", "neighbour": "none", "labels": ""}
    return {**statement, **none, "path": f"{statement['path']}~", "wire": "computational"}


def joined(statements: Sequence[dict[str, str]]) -> dict[str, str]:
    """One statement for a key that went to several nodes: every value that occurs; labels all have."""
    if len(statements) == 1:
        return dict(statements[0])
    names = {name for statement in statements for name in statement}
    whole = {
        name: ", ".join(dict.fromkeys(each[name] for each in statements if name in each))
        for name in sorted(names)
    }
    if "labels" in names:
        common = frozenset.intersection(*(frozenset(each.get("labels", "").split()) for each in statements))
        whole["labels"] = " ".join(sorted(common))
    return whole


def obstacles(
    site: Site, hops: tuple[str, ...], name: str, labels: frozenset[str]
) -> frozenset[str | tuple[str, str]] | None:
    """The relays and links of a path that stand against a scheme and labels; None if no other path helps."""
    scheme = site.schemes.get(name)
    if scheme is None:
        return None
    found: set[str | tuple[str, str]] = {node for node, _ in _absent(site, hops, name)}
    if found & {hops[0], hops[-1]}:
        return None
    for (a, b), promised in zip(itertools.pairwise(hops), _promised(site, hops, scheme), strict=True):
        lacks = labels - promised
        if "relay-blind" in lacks:
            found.update(hops[1:-1])  # only a path without relays has it under this scheme
        elif lacks:
            found.add((a, b))
    return frozenset(found)


async def refuse_forbidden(site: Site, context: Context, peer: str, until: float) -> None:
    """At relay and destination: the own [[policy]] for the applications of keys that another node sent.

    A destination judges the whole path, as the origin vouches for it; a relay the scheme and its own two
    hops, for it cannot check the rest. Waits until Unix `until` for descriptors. Raises Refused naming what
    lacks what, Unavailable where that cannot be known yet.
    """
    labels = site.policy.demanded(context.initiator, context.targets)
    scheme = site.schemes.get(context.scheme)
    if not labels or scheme is None or site.name not in context.route[1:]:
        return
    hops = context.route
    if context.destination != site.name:
        hops = (peer, site.name, hops[hops.index(site.name) + 1])
    if "pq" in labels:
        await site.pairing.acquainted(hops, until)
    lacking = _unkept(site, hops, scheme, labels)
    if site.view.foreign(context.initiator):
        lacks = ", ".join(sorted(labels))
        lacking.insert(0, f"the hop of {context.initiator} into {context.origin}, plain 020, lacks {lacks}")
    if lacking:
        raise Refused(
            f"the policy of {site.name} for these applications demands {', '.join(sorted(labels))}; "
            f"scheme {scheme.name}: {_told(lacking)}",
            f"send them under what it demands, or change [[policy]] at {site.name}",
        )


def candidates(site: Site, hops: tuple[str, ...], ask: Ask) -> list[str]:
    """Names of schemes that could serve, the one that is preferred first."""
    if ask.insisted and ask.scheme is not None:
        return [ask.scheme]
    default = site.settings.scheme
    if default == "auto":
        default = "masked" if len(hops) > 2 else "trusted"
    names = [ask.scheme, default, "masked" if ask.demanded | ask.wished else None]
    return list(dict.fromkeys(name for name in names if name is not None))


def _refusal(site: Site, hops: tuple[str, ...], names: list[str], ask: Ask) -> KeyhaulError:
    lacking = _lacking(site, hops, names[0], ask.demanded)
    cause = f"scheme {names[0]}: {_told(lacking)}"
    asked = ask.insisted or any(label in text for label in ask.labels for text in lacking)
    if asked:
        return ExtensionRefused(cause, "ask for less, or for other targets")
    if ask.policy:
        cause = f"the policy of these applications demands {', '.join(sorted(ask.policy))}; {cause}"
    return NoRoute(cause, "enable there what is lacking, or change [[policy]] or [schemes] here")


def _told(lacking: list[str]) -> str:
    more = f", and {len(lacking) - MOST_TOLD} more" if len(lacking) > MOST_TOLD else ""
    return "; ".join(lacking[:MOST_TOLD]) + more


def _lacking(site: Site, hops: tuple[str, ...], name: str, labels: frozenset[str]) -> list[str]:
    """What stands against a scheme on a path, in words; empty if nothing does."""
    scheme = site.schemes.get(name)
    if scheme is None:
        here = ", ".join(site.schemes)
        return [f"node {site.name} does not take part in it (it does in {here})"]
    found = [f"node {node} {words}" for node, words in _absent(site, hops, name)]
    return [*found, *_unkept(site, hops, scheme, labels)] if labels else found


def _unkept(site: Site, hops: tuple[str, ...], scheme: Scheme, labels: frozenset[str]) -> list[str]:
    """The hops that lack a label under a scheme, in words."""
    return [
        f"hop {a} to {b} lacks {', '.join(sorted(labels - promised))}"
        for (a, b), promised in zip(itertools.pairwise(hops), _promised(site, hops, scheme), strict=True)
        if labels - promised
    ]


def _absent(site: Site, hops: tuple[str, ...], name: str) -> Iterator[tuple[str, str]]:
    """Nodes of the path that do not play their part in a scheme that not every node has, and why."""
    if name in BASELINE:
        return
    for node in hops:
        if not site.pairing.takes_part(node, name):
            yield node, "does not take part in it"
        elif (
            name.startswith("blind")
            and node in (hops[0], hops[-1])
            and not site.pairing.has_key(node, "bfv-")
        ):
            yield node, "relays it only, for it has no BFV key"


def _promised(site: Site, hops: tuple[str, ...], scheme: Scheme) -> list[frozenset[str]]:
    """The labels of each hop under a scheme."""
    blind = frozenset({"relay-blind"}) if len(hops) == 2 else frozenset[str]()
    promised = []
    for (a, b), link in zip(itertools.pairwise(hops), site.view.labels(hops), strict=True):
        # A link alone says what travels in its envelopes; the nodes say what their ports agree on.
        vouched = site.pairing.vouches(a, "pq") and site.pairing.vouches(b, "pq")
        promised.append((link if vouched else link - {"pq"}) | scheme.labels | blind)
    return promised
