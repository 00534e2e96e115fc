"""Writes requirements-run.lock: of requirements.lock the part that a node needs, and nothing for tests.

Image and SBOM are made from it. It follows what the installed packages say that they need, for every Python
that keyhaul runs on; `make lock` calls it, and a test says when it is out of date.
"""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
PYTHONS = ("3.11", "3.12", "3.13")
HEAD = """# What keyhaul itself needs: the part of requirements.lock without tests and tools, for the image.
# Renew: make lock, or python packaging/locks.py
"""


def entries(lock: str) -> dict[str, str]:
    """The text of each package in a lock file, hashes and all, by its name."""
    found = re.finditer(r"^([A-Za-z0-9._-]+)==(?:.*\\\n)*.*\n", lock, re.M)
    return {canonicalize_name(each[1]): each[0] for each in found}


def needed() -> set[str]:
    """Names of all packages that the project's dependencies lead to."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    found: set[str] = set()
    todo = [Requirement(line) for line in project["dependencies"]]
    while todo:
        wanted = todo.pop()
        name = canonicalize_name(wanted.name)
        if name not in found:
            found.add(name)
            todo += _below(name, wanted.extras)
    return found


def _below(name: str, extras: set[str]) -> Iterator[Requirement]:
    for line in metadata.requires(name) or []:
        wanted = Requirement(line)
        if any(_applies(wanted, python, extra) for python in PYTHONS for extra in ("", *extras)):
            yield wanted


def _applies(wanted: Requirement, python: str, extra: str) -> bool:
    where = {"python_version": python, "python_full_version": f"{python}.0", "extra": extra}
    return wanted.marker is None or wanted.marker.evaluate(where)


def run_lock() -> str:
    """The content of requirements-run.lock."""
    there = entries((ROOT / "requirements.lock").read_text())
    return HEAD + "".join(there[name] for name in sorted(needed() & there.keys()))


if __name__ == "__main__":
    (ROOT / "requirements-run.lock").write_text(run_lock())
    sys.stdout.write(f"requirements-run.lock: {', '.join(sorted(entries(run_lock())))}\n")
