"""What happened in many storms, in numbers, and the stories of those that broke a promise."""

from __future__ import annotations

import gc
import signal
from collections import Counter
from collections.abc import Callable, Iterable

from tests.sim.storm import Outcome, run_seed


def quiet() -> None:
    """For a worker: Ctrl-C is its parent's business, and the chunk under way is finished.

    What is loaded is for good, and a storm's garbage can wait: rare collections are a tenth of its time less.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    gc.collect()
    gc.freeze()
    gc.set_threshold(1_000_000, 20, 100)


def storms(
    seeds: Iterable[int], run: Callable[[int], Outcome] = run_seed
) -> tuple[Counter[str], list[tuple[int, str]]]:
    """What happened in some storms, and the stories of those in which a promise was broken."""
    seen: Counter[str] = Counter()
    bad = []
    for seed in seeds:
        outcome = run(seed)
        seen["seeds"] += 1
        seen["events"] += len(outcome.history)
        seen[f"network: {outcome.shape}"] += 1
        seen[f"scheme: {outcome.scheme}"] += 1
        for event in outcome.history:
            if event.verb == "fault":
                text = event.text.partition(" is killed")
                seen["kill" + text[2] if text[1] else "fault: " + _kind(event.text)] += 1
            elif event.verb in ("got", "fetched", "refused", "cut", "voided", "expired"):
                seen[event.verb] += 1
        if not outcome.good:
            bad.append((seed, outcome.story()))
    return seen, bad


def _kind(text: str) -> str:
    for word in ("cut", "dry", "disagree", "full", "jumps", "cheats", "swallows", "acknowledges", "restored"):
        if word in text:
            return word
    return text
