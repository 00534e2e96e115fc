"""What is shipped beside the code: man pages, completion, the lock file of the image, the image's recipe."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]


@pytest.fixture
def packaging_of(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    def opened(name: str) -> ModuleType:
        monkeypatch.syspath_prepend(str(ROOT / "docs"))
        spec = importlib.util.spec_from_file_location(f"packaging_{name}", ROOT / "packaging" / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, f"packaging_{name}", module)
        spec.loader.exec_module(module)
        return module

    return opened


def test_every_command_has_a_man_page_that_the_formatter_takes(
    packaging_of: Callable[[str], ModuleType], tmp_path: Path
) -> None:
    pages = packaging_of("man").pages()
    assert {"keyhaul.1", "keyhaul-testbed-up.1", "keyhaul-serve.1", "keyhaul-federation-test.1"} <= {*pages}
    for name, text in pages.items():
        assert text.startswith(f".TH {name.removesuffix('.1').upper()} 1 ")
        assert text.isascii()
        for heading in ("NAME", "SYNOPSIS", "EXIT STATUS"):
            assert f".SH {heading}\n" in text
    if shutil.which("groff") is None:
        pytest.skip("groff is not installed: apt-get install groff-base")
    for name, text in pages.items():
        (tmp_path / name).write_text(text)
        words = ["groff", "-man", "-Tutf8", "-ww", "-rF0", str(tmp_path / name)]
        done = subprocess.run(words, text=True, capture_output=True, check=True)
        assert done.stderr == "", name
    shown = subprocess.run(
        ["groff", "-man", "-Tascii", "-P-cbou", str(tmp_path / "keyhaul-testbed-up.1")],
        text=True,
        capture_output=True,
        check=True,
    ).stdout
    assert "--no-restart" in shown
    assert "keyhaul-testbed(1)" in shown


def test_an_option_that_looks_like_a_request_is_text(packaging_of: Callable[[str], ModuleType]) -> None:
    assert packaging_of("man")._text(".dot \\ a-b …") == r"\&.dot \e a\-b \[u2026]"


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("keyhaul testbed co", ["compose"]),
        ("keyhaul sae ", ["get", "fetch", "status"]),
        ("keyhaul testbed up --no-r", ["--no-restart"]),
    ],
)
def test_the_shell_completes_commands_and_options(words: str, offered: list[str]) -> None:
    environment = os.environ | {
        "COMP_WORDS": words,
        "COMP_CWORD": str(words.count(" ")),
        "_KEYHAUL_COMPLETE": "complete_bash",
    }
    done = subprocess.run(
        [sys.executable, "-m", "keyhaul.cli"], env=environment, text=True, capture_output=True, check=True
    )
    assert done.stdout.split() == offered


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_gets_its_script(shell: str) -> None:
    environment = os.environ | {"_KEYHAUL_COMPLETE": f"source_{shell}"}
    done = subprocess.run(
        [sys.executable, "-m", "keyhaul.cli"], env=environment, text=True, capture_output=True, check=True
    )
    assert f"_KEYHAUL_COMPLETE=complete_{shell}" in done.stdout


def test_the_image_takes_what_a_node_needs_and_nothing_for_tests(
    packaging_of: Callable[[str], ModuleType],
) -> None:
    locks = packaging_of("locks")
    content = (ROOT / "requirements-run.lock").read_text()
    assert content == locks.run_lock(), "run make lock, or python packaging/locks.py"
    everything = locks.entries((ROOT / "requirements.lock").read_text())
    ours = locks.entries(content)
    assert ours.items() <= everything.items()
    assert all("--hash=sha256:" in text for text in ours.values())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = {canonicalize_name(Requirement(line).name) for line in project["dependencies"]}
    assert wanted <= ours.keys()
    assert not {"pytest", "mypy", "ruff", "schemathesis", "hypothesis"} & ours.keys()
    assert len(everything) > 2 * len(ours)


def test_the_recipe_of_the_image_is_locked_and_ends_without_rights() -> None:
    recipe = (ROOT / "Containerfile").read_text()
    last = recipe[recipe.rindex("FROM ") :]
    assert re.search(r"^USER 10001:10001$", last, re.M)
    assert "pip install" not in last
    for line in re.findall(r"pip install.*?(?:\n(?! )|&&)", recipe, re.S):
        assert "--no-index" in line
        assert "--require-hashes" in line or "keyhaul-*.whl" in line
    ignored = (ROOT / ".dockerignore").read_text().split("\n")
    assert ignored[1:3] == ["*", "!build/image"]


def test_the_libraries_inside_wheels_are_in_the_bill_of_materials(
    packaging_of: Callable[[str], ModuleType],
) -> None:
    sbom = packaging_of("sbom")
    inside = {package: dict(libraries) for package, libraries in sbom.carried().items()}
    assert {*inside["sqlcipher3"]} == {"sqlcipher", "sqlite", "openssl"}
    assert {*inside["cryptography"]} == {"openssl"}
    for libraries in inside.values():
        assert all(re.fullmatch(r"\d+(\.\d+)+", version) for version in libraries.values())
    locks = packaging_of("locks")
    named = locks.entries("".join((ROOT / name).read_text() for name in sbom.LOCKS))
    assert inside.keys() <= named.keys()


def test_a_bill_of_materials_that_is_not_one_is_refused(
    packaging_of: Callable[[str], ModuleType], tmp_path: Path
) -> None:
    tools = os.environ.get("KEYHAUL_SBOM_TOOLS", str(ROOT / "build" / "sbom" / "bin"))
    if not Path(tools, "cyclonedx-py").exists():
        pytest.skip("cyclonedx-py is not installed: make sbom")
    sbom = packaging_of("sbom")
    made = sbom.document(Path(tools))
    names = {component["name"] for component in made["components"]}
    assert {"cryptography", "sqlcipher3", "aiohttp", "seal-python"} <= names
    assert "pytest" not in names
    assert all(component["externalReferences"][0]["hashes"] for component in made["components"])
    made["components"][0].pop("name")
    with pytest.raises(subprocess.CalledProcessError):
        sbom._check(made, Path(tools))
