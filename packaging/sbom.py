"""Writes what a node is made of as CycloneDX (`make sbom`): the packages of its lock files, with hashes.

Wheels carry libraries of their own that no lock file names. They are asked for their versions and listed
below the packages that bring them.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
LOCKS = ("requirements-run.lock", "requirements-blind.lock")


def document(tools: Path) -> dict[str, Any]:
    """The whole document; `tools` is the directory with cyclonedx-py, which also checks it."""
    with tempfile.TemporaryDirectory() as folder:
        lock = Path(folder) / "requirements.txt"
        lock.write_text("".join((ROOT / name).read_text() for name in LOCKS))
        words = [str(tools / "cyclonedx-py"), "requirements", "--pyproject", str(ROOT / "pyproject.toml")]
        words += ["--output-reproducible", "--spec-version", "1.6", "--output-format", "JSON", str(lock)]
        quiet = os.environ | {"PYTHONWARNINGS": "ignore"}  # a lock file says nothing of who needs whom
        done = subprocess.run(words, env=quiet, text=True, stdout=subprocess.PIPE, check=True)
    made: dict[str, Any] = json.loads(done.stdout)
    for component in made["components"]:
        if inside := carried().get(component["name"]):
            component["components"] = [_library(*each, component["name"]) for each in inside]
    _check(made, tools)
    return made


def carried() -> dict[str, list[tuple[str, str]]]:
    """Package -> name and version of the libraries compiled into its wheel, as they say it themselves."""
    from cryptography.hazmat.backends.openssl import backend
    from sqlcipher3 import dbapi2

    connection = dbapi2.connect(":memory:")
    try:
        connection.execute("PRAGMA key = 'of an empty database'")  # the provider answers only then
        sqlcipher = str(connection.execute("PRAGMA cipher_version").fetchone()[0])
        provider = str(connection.execute("PRAGMA cipher_provider_version").fetchone()[0])
    finally:
        connection.close()
    return {
        "cryptography": [("openssl", _number(backend.openssl_version_text()))],
        "sqlcipher3": [
            ("sqlcipher", _number(sqlcipher)),
            ("sqlite", dbapi2.sqlite_version),
            ("openssl", _number(provider)),
        ],
    }


def _number(text: str) -> str:
    """The version number in `OpenSSL 3.6.0 1 Oct 2025` or `4.19.0 community`."""
    return next(word for word in text.split() if word[0].isdigit())


def _library(name: str, version: str, package: str) -> dict[str, str]:
    return {
        "type": "library",
        "bom-ref": f"{package}/{name}",
        "name": name,
        "version": version,
        "purl": f"pkg:generic/{name}@{version}",
    }


def _check(made: dict[str, Any], tools: Path) -> None:
    """Against the schema of CycloneDX; raises CalledProcessError with what is wrong on stderr."""
    code = (
        "import sys; from cyclonedx.schema import SchemaVersion as V; from cyclonedx.validation.json import "
        "JsonStrictValidator as J; sys.exit(str(e) if (e := J(V.V1_6).validate_str(sys.stdin.read())) else 0)"
    )
    subprocess.run([str(tools / "python"), "-c", code], input=json.dumps(made), text=True, check=True)


if __name__ == "__main__":
    options = argparse.ArgumentParser(description="Write the list of what a node is made of.")
    options.add_argument("tools", type=Path, help="bin/ of an environment with requirements-sbom.lock")
    options.add_argument("out", type=Path)
    given = options.parse_args()
    written = document(given.tools)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(written, indent=1) + "\n")
    sys.stdout.write(f"{given.out}: {len(written['components'])} components\n")
