"""Draws docs/lifecycle.svg from `keyhaul.lifecycle.NEXT`, so the picture cannot differ from the rules."""

from __future__ import annotations

from pathlib import Path

from keyhaul.keys import State
from keyhaul.lifecycle import NEXT

TARGET = Path(__file__).with_name("lifecycle.svg")
PLACES = {
    State.MINTED: (80, 60),
    State.ACCEPTED: (80, 180),
    State.SENDING: (260, 120),
    State.SENT: (430, 120),
    State.RELAYED: (620, 60),
    State.DELIVERABLE: (620, 180),
    State.TAKEN: (810, 180),
    State.FAILED: (260, 320),
    State.VOIDED: (470, 320),
    State.EXPIRED: (680, 320),
}
WIDTH, HEIGHT, BOX = 900, 380, (112, 36)
ENDS = (State.FAILED, State.VOIDED, State.EXPIRED)


def draw() -> str:
    """The picture as SVG text. Steps into failed, voided and expired are thin: most states have them."""
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        'font-family="sans-serif" font-size="14" role="img" aria-label="The life of a key">',
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="7" markerHeight="7" '
        'orient="auto"><path d="M0 0 8 4 0 8z" fill="context-stroke"/></marker></defs>',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>',
    ]
    for source, targets in NEXT.items():
        for target in sorted(targets):
            parts.append(_arrow(source, target))
    for state, (x, y) in PLACES.items():
        fill = "#eef4ff" if NEXT[state] else "#e8e8e8"
        parts.append(
            f'<rect x="{x - BOX[0] // 2}" y="{y - BOX[1] // 2}" width="{BOX[0]}" height="{BOX[1]}" rx="8" '
            f'fill="{fill}" stroke="#223"/>'
            f'<text x="{x}" y="{y + 5}" text-anchor="middle">{state.value}</text>'
        )
    return "\n".join([*parts, "</svg>"]) + "\n"


def _arrow(source: State, target: State) -> str:
    (x1, y1), (x2, y2) = PLACES[source], PLACES[target]
    if source is target:
        return (
            f'<path d="M{x1 - 20} {y1 - 18} C{x1 - 40} {y1 - 60} {x1 + 40} {y1 - 60} {x1 + 20} {y1 - 18}" '
            'fill="none" stroke="#225" stroke-width="1.6" marker-end="url(#tip)"/>'
        )
    down = target in ENDS
    if down:
        start, end = (x1, y1 + BOX[1] // 2), (x2, y2 - BOX[1] // 2)
        if y1 == y2:
            start, end = (x1 + BOX[0] // 2, y1), (x2 - BOX[0] // 2, y2)
    else:
        start, end = (x1 + BOX[0] // 2, y1), (x2 - BOX[0] // 2, y2)
    style = 'stroke="#a99" stroke-width="0.8"' if down else 'stroke="#225" stroke-width="1.8"'
    return (
        f'<line x1="{start[0]}" y1="{start[1]}" x2="{end[0]}" y2="{end[1]}" {style} marker-end="url(#tip)"/>'
    )


if __name__ == "__main__":
    TARGET.write_text(draw())
