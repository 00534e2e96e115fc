"""What a wire between two neighbours does, and who may be cut off from whom; how it is done is below."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass
class Wire:
    """What a wire does, alike both ways: `delay` and `jitter` in seconds, `loss` a share, `rate` in bit/s."""

    delay: float = 0.0
    jitter: float = 0.0
    loss: float = 0.0
    rate: float = 0.0  # 0: as fast as it goes
    up: bool = True


class Wiring(ABC):
    """One wire for each pair of neighbours."""

    kind = ""
    """How reports call it."""

    def __init__(self) -> None:
        self._wires: dict[frozenset[str], Wire] = {}

    @abstractmethod
    def _changed(self, a: str, b: str, wire: Wire) -> None:
        """Do to what passes between two neighbours what the wire says."""

    @abstractmethod
    async def close(self) -> None:
        """No more wires; what was on them is lost."""

    def set(self, a: str, b: str, wire: Wire) -> None:
        """From now on the wire between two neighbours is like this."""
        pair = frozenset((a, b))
        if pair not in self._wires:
            raise KeyError(f"{a} and {b} are no neighbours")
        self._wires[pair] = wire
        self._changed(a, b, wire)

    def set_all(self, wire: Wire) -> None:
        """All wires alike."""
        for a, b in self.pairs():
            self.set(a, b, Wire(**vars(wire)))

    def pairs(self) -> list[tuple[str, str]]:
        """All neighbours."""
        return sorted((a, b) for a, b in map(sorted, self._wires))

    def cut(self, nodes: Iterable[str]) -> list[tuple[str, str]]:
        """Partition: cut every wire between `nodes` and the others; returns those cut."""
        inside = set(nodes)
        crossing = [(a, b) for a, b in self.pairs() if (a in inside) != (b in inside)]
        for a, b in crossing:
            self.set(a, b, Wire(up=False))
        return crossing
