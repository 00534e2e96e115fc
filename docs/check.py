"""Checks the documentation: links and names lead somewhere, and pictures are what the code says today."""

from __future__ import annotations

import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import draw_lifecycle

ROOT = Path(__file__).resolve().parent.parent
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")
STEP = re.compile(r"`([A-Z]\w+)\.(\w+)`")
CODE = re.compile(r"`(keyhaul/[\w/]+\.(?:py|toml)|tests/[\w/]+\.py|docs/[\w/.-]+|bench/README.md)`")


def mistakes() -> list[str]:
    """One line for every broken link, missing file or stale picture."""
    found = []
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]:
        text = page.read_text()
        for target in LINK.findall(text):
            if "://" not in target and not (page.parent / target).exists():
                found.append(f"{page.relative_to(ROOT)}: link to {target}, which is not there")
        for target in CODE.findall(text):
            if not (ROOT / target).exists():
                found.append(f"{page.relative_to(ROOT)}: names {target}, which is not there")
    found += [f"docs/flow.md: names {step}, which no module has" for step in _missing_steps()]
    picture = ROOT / "docs" / "lifecycle.svg"
    if not picture.exists() or picture.read_text() != draw_lifecycle.draw():
        found.append("docs/lifecycle.svg is not what the lifecycle table says: run docs/draw_lifecycle.py")
    return found


def _missing_steps() -> list[str]:
    """The `Class.method` names of the flow that the package does not have."""
    page = ROOT / "docs" / "flow.md"
    named = STEP.findall(page.read_text()) if page.exists() else []
    sources = [file.read_text() for file in (ROOT / "keyhaul").rglob("*.py")]

    def there(owner: str, method: str) -> bool:
        forms = (rf"^class {owner}\b", rf"^    (?:async )?def {method}\(")
        return any(all(re.search(form, text, re.M) for form in forms) for text in sources)

    return [f"{owner}.{method}" for owner, method in named if not there(owner, method)]


if __name__ == "__main__":
    wrong = mistakes()
    sys.stdout.write("\n".join([*wrong, f"documentation: {len(wrong)} mistakes"]) + "\n")
    sys.exit(1 if wrong else 0)
