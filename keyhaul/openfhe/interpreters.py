"""Which interpreters might load OpenFHE here, best first; whether one does, the worker itself finds out."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

VARIABLE = "KEYHAUL_OPENFHE_PYTHON"
"""Environment variable that names the interpreter; then no other is tried."""

VERSIONS = ("3.10", "3.12", "3.8")
"""CPython versions that some wheel of OpenFHE holds code for, whatever its tag says."""

INSTALLED_FOR = VERSIONS[0]
"""The one that `requirements-openfhe.lock` pins a wheel for: it loads on Debian 12 and later."""


def home() -> Path:
    """The virtual environment that `make install-openfhe` makes, per user (XDG base directories)."""
    data = os.environ.get("XDG_DATA_HOME") or str(Path.home() / ".local" / "share")
    return Path(data) / "keyhaul" / "openfhe"


def candidates() -> list[Path]:
    """Interpreters to try, in order, each once."""
    if named := os.environ.get(VARIABLE):
        return [Path(named)]
    found = [home() / "bin" / "python", *(path for version in VERSIONS for path in pythons(version))]
    return [path for path in dict.fromkeys(found) if path.exists()]


def pythons(version: str) -> Iterator[Path]:
    """Interpreters of a version such as `3.10`: of pyenv, newest first, then on the PATH.

    A name on the PATH may be a shim that refuses to run; pyenv's own folders hold the real ones.
    """
    root = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"
    if root.is_dir():
        fits = [path for path in root.iterdir() if re.fullmatch(rf"{re.escape(version)}\.\d+", path.name)]
        for folder in sorted(fits, key=lambda path: int(path.name.rpartition(".")[2]), reverse=True):
            yield folder / "bin" / "python"
    if found := shutil.which(f"python{version}"):
        yield Path(found)
