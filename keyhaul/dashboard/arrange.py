"""Where nodes stand on the map: the same network always looks the same. Pure."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence

import rustworkx

LOOKS = 300_000  # at pairs of nodes that may have to give way: a tenth of a second for a hundred nodes
IN_ONE_ROW = 10  # nodes of a line; longer ones are folded

Position = tuple[float, float]


def arrange(nodes: Iterable[str], links: Iterable[tuple[str, str]]) -> dict[str, Position]:
    """Positions in the unit square: lines straight or folded, rings round, all else by springs."""
    names = sorted(nodes)
    near: dict[str, set[str]] = {name: set() for name in names}
    for a, b in links:
        near[a].add(b)
        near[b].add(a)
    walk = _walk(near)
    if walk is None:
        return _springs(names, near)
    if len(walk) > 2 and walk[0] in near[walk[-1]]:
        return _ring(walk)
    return _line(walk)


def _walk(near: Mapping[str, set[str]]) -> list[str] | None:
    """All nodes in the order of the one line or ring they form; None if they form another shape."""
    if not near or any(len(those) > 2 for those in near.values()):
        return None
    ends = [name for name, those in near.items() if len(those) < 2]
    here = ends[0] if ends else next(iter(near))
    walk = [here]
    while following := [name for name in sorted(near[here]) if name not in walk]:
        here = following[0]
        walk.append(here)
    return walk if len(walk) == len(near) else None


def _line(walk: Sequence[str]) -> dict[str, Position]:
    rows = math.ceil(len(walk) / IN_ONE_ROW)
    width = math.ceil(len(walk) / rows)
    places: dict[str, Position] = {}
    for at, name in enumerate(walk):
        row, column = divmod(at, width)
        along = column if row % 2 == 0 else width - 1 - column
        places[name] = ((along + 0.5) / width, (row + 0.5) / rows)
    return places


def _ring(walk: Sequence[str]) -> dict[str, Position]:
    angles = [2 * math.pi * at / len(walk) for at in range(len(walk))]
    return {
        name: (0.5 + 0.42 * math.sin(angle), 0.5 - 0.42 * math.cos(angle))
        for name, angle in zip(walk, angles, strict=True)
    }


def _springs(names: Sequence[str], near: Mapping[str, set[str]]) -> dict[str, Position]:
    index = {name: at for at, name in enumerate(names)}
    graph: rustworkx.PyGraph = rustworkx.PyGraph(multigraph=False)
    graph.add_nodes_from(list(names))
    graph.add_edges_from([(index[a], index[b], 1.0) for a in names for b in sorted(near[a]) if a < b])
    placed = rustworkx.spring_layout(graph, seed=1, num_iter=300)
    spots = [placed[at] for at in range(len(names))]
    return dict(zip(names, _apart(_fitted([(float(x), float(y)) for x, y in spots])), strict=True))


def room(number: int) -> float:
    """The side of the square that each of so many nodes has for itself and its name, in the unit square."""
    return min(0.12, 0.55 / math.sqrt(number))


def _apart(spots: Sequence[Position]) -> list[Position]:
    """Where two nodes are in each other's room both give way, as little as it takes."""
    side, places = room(len(spots)), [list(spot) for spot in spots]
    for _ in range(1 + 2 * LOOKS // len(places) ** 2):
        crowded = False
        for one, other in itertools.combinations(places, 2):
            gaps = [one[axis] - other[axis] for axis in (0, 1)]
            axis = 0 if abs(gaps[0]) > abs(gaps[1]) else 1
            lacking = side - abs(gaps[axis])
            if lacking > side / 50:
                crowded = True
                step = math.copysign(lacking / 2, gaps[axis])
                one[axis], other[axis] = _within(one[axis] + step), _within(other[axis] - step)
        if not crowded:
            break
    return [(x, y) for x, y in places]


def _within(value: float) -> float:
    return min(0.97, max(0.03, value))


def _fitted(spots: Sequence[Position]) -> list[Position]:
    """Stretched over the square, with a margin."""
    low = [min(spot[axis] for spot in spots) for axis in (0, 1)]
    span = [max(spot[axis] for spot in spots) - low[axis] or 1.0 for axis in (0, 1)]

    def fit(value: float, axis: int) -> float:
        return 0.05 + 0.9 * (value - low[axis]) / span[axis]

    return [(fit(x, 0), fit(y, 1)) for x, y in spots]
