"""Coverage-guided fuzzing of one decoder: `python tests/fuzz/fuzz.py TARGET [CORPUS …] [libFuzzer options]`.

Needs the extra `fuzz` (requirements-fuzz.lock). The first corpus directory takes what is found on the way;
the seeds in tests/fuzz/corpus are read beside it. A finding ends the run with the input in a file named
crash-…; put that file into tests/fuzz/corpus/TARGET and it is tried by every `make test` from then on.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path

import atheris

HERE = Path(__file__).resolve().parent


def main() -> None:
    """Never returns: libFuzzer ends the process."""
    target, *options = sys.argv[1:]
    sys.path.insert(0, str(HERE.parents[1]))
    with atheris.instrument_imports(include=["keyhaul"]):
        from tests.fuzz import mutate, targets

        if importlib.util.find_spec("numpy") is not None:
            importlib.import_module("keyhaul.schemes.dense")

    def one(data: bytes) -> None:
        targets.run(target, data)

    def change(data: bytes, most: int, seed: int) -> bytes:
        """Structure two times out of three, libFuzzer's own mutations else."""
        return mutate.mutate(data, seed)[:most] if seed % 3 else atheris.Mutate(data, most)

    arguments = [sys.argv[0], *options, str(HERE / "corpus" / target)]
    atheris.Setup(arguments, one, custom_mutator=change)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
