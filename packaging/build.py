"""Makes sdist and wheel (`make package`): the wheel from the unpacked sdist alone, so the sdist is whole.

Takes setuptools as it is installed, which is the version of requirements-build.lock; fetches nothing.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PARTS = (".ci", "bench", "docs", "keyhaul", "packaging", "scripts", "tests")
CALL = "import sys, setuptools.build_meta as made; print(getattr(made, sys.argv[1])(sys.argv[2]))"


def built(out: Path) -> tuple[Path, Path]:
    """The sdist and the wheel, made in `out`, from copies: the tree itself stays as it is."""
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        for part in PARTS:
            shutil.copytree(ROOT / part, tree / part, ignore=shutil.ignore_patterns("__pycache__", "results"))
        for file in filter(Path.is_file, ROOT.iterdir()):
            shutil.copy2(file, tree)
        sdist = _made("build_sdist", tree, out)
        with tarfile.open(sdist) as archive:
            archive.extractall(folder, filter="data")
        return sdist, _made("build_wheel", Path(folder) / sdist.name.removesuffix(".tar.gz"), out)


def _made(what: str, tree: Path, out: Path) -> Path:
    """Call one hook of PEP 517 in `tree`; a process of its own, because setuptools works where it stands."""
    words = [sys.executable, "-c", CALL, what, str(out.resolve())]
    environment = os.environ | {"SOURCE_DATE_EPOCH": "315532800"}  # the same bytes from the same files
    done = subprocess.run(words, cwd=tree, env=environment, text=True, stdout=subprocess.PIPE, check=True)
    return out.resolve() / done.stdout.splitlines()[-1]


if __name__ == "__main__":
    options = argparse.ArgumentParser(description="Make sdist and wheel.")
    options.add_argument("out", type=Path, help="directory for both")
    for made in built(options.parse_args().out):
        sys.stdout.write(f"{made}\n")
