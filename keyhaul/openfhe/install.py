"""Makes the virtual environment in which the worker runs, from a lock file with hashes.

python -m keyhaul.openfhe.install requirements-openfhe.lock
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from keyhaul.errors import KeyhaulError, Unsupported
from keyhaul.openfhe.interpreters import INSTALLED_FOR, home, pythons
from keyhaul.openfhe.sidecar import OpenFhe


def install(lock: Path) -> Path:
    """The interpreter of the environment, once it has loaded OpenFHE. Raises Unsupported."""
    for python in pythons(INSTALLED_FOR):
        if subprocess.run([python, "-c", ""], check=False, capture_output=True).returncode == 0:
            break
    else:
        raise Unsupported(
            f"there is no CPython {INSTALLED_FOR} here, which the wheel of OpenFHE is made for",
            f"put python{INSTALLED_FOR} on the PATH or have pyenv install it",
        )
    target = home()
    own = target / "bin" / "python"
    try:
        subprocess.run([python, "-m", "venv", "--clear", target], check=True)
        pip = [str(own), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "--require-hashes", "-r", str(lock)], check=True)
    except subprocess.CalledProcessError as error:
        raise Unsupported(f"{error}", "see above") from None
    OpenFhe(python=own).close()
    return own


def main() -> None:
    """As a command: exit code 0, or 1 with the reason."""
    try:
        sys.stdout.write(f"OpenFHE is at hand in {install(Path(sys.argv[1]))}\n")
    except KeyhaulError as error:
        sys.exit(f"OpenFHE could not be installed: {error}")


if __name__ == "__main__":
    main()
