"""The PKCS#11 slot on a real token: SoftHSM 2, two tokens, keys made in them."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from keyhaul.errors import SealError
from keyhaul.stores.sealing import Cost, Grade, Passphrase, Pkcs11, create, open_root

MODULES = [Path("/usr/lib/softhsm/libsofthsm2.so"), Path("/usr/lib64/softhsm/libsofthsm2.so")]
MODULE = next((path for path in MODULES if path.exists()), None)
PIN = "736251"

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.pkcs11,
    pytest.mark.skipif(
        MODULE is None or shutil.which("softhsm2-util") is None,
        reason="no SoftHSM 2 here: run scripts/install-debian-packages.sh pkcs11",
    ),
    pytest.mark.skipif(
        importlib.util.find_spec("pkcs11") is None,
        reason="python-pkcs11 is not installed: scripts/install-debian-packages.sh pkcs11 says how",
    ),
]


@pytest.fixture(scope="module", autouse=True)
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tokens `one` and `two`. SoftHSM reads its configuration once, when the module is first used."""
    directory = tmp_path_factory.mktemp("softhsm")
    (directory / "tokens").mkdir()
    configuration = directory / "softhsm2.conf"
    configuration.write_text(f"directories.tokendir = {directory / 'tokens'}\nlog.level = ERROR\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SOFTHSM2_CONF", str(configuration))
        for label in ("one", "two"):
            command = ["softhsm2-util", "--init-token", "--free", "--label", label]
            subprocess.run([*command, "--so-pin", "9911", "--pin", PIN], check=True, capture_output=True)
        yield
        with contextlib.suppress(ImportError):
            importlib.import_module("pkcs11").unload(str(MODULE))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "root.json"


def slot(token: str = "one", pin: str = PIN, key_label: str = "keyhaul-root") -> Pkcs11:
    assert MODULE is not None
    return Pkcs11(MODULE, token, lambda: pin, key_label)


@contextlib.contextmanager
def session(token: str) -> Iterator[tuple[Any, Any]]:
    """A logged-in session for looking at and changing the token behind the slot's back."""
    lib = importlib.import_module("pkcs11")
    with lib.lib(str(MODULE)).get_token(token_label=token).open(rw=True, user_pin=PIN) as opened:
        yield lib, opened


def refused(path: Path, *slots: Pkcs11) -> SealError:
    before = path.read_bytes()
    with pytest.raises(SealError) as caught:
        open_root(path, slots)
    assert path.read_bytes() == before
    assert PIN not in str(caught.value)
    return caught.value


def test_the_token_opens_what_it_wrapped_and_is_graded_for_what_it_is(path: Path) -> None:
    made = create(path, [slot()])
    opened = open_root(path, [slot()])
    assert opened.root.same_as(made.root)
    assert (opened.kind, opened.grade) == ("pkcs11", Grade.SOFTWARE)
    assert any("NO BOUNDARY" in warning for warning in opened.warnings)
    assert made.root.reveal().hex() not in path.read_text()


def test_the_key_never_leaves_the_token(path: Path) -> None:
    create(path, [slot()])
    with session("one") as (lib, opened):
        key = opened.get_key(label="keyhaul-root")
        assert key[lib.Attribute.EXTRACTABLE] is False
        with pytest.raises(lib.AttributeSensitive):
            key[lib.Attribute.VALUE]


def test_two_nodes_share_the_tokens_key_but_not_their_roots(tmp_path: Path) -> None:
    one, other = (create(tmp_path / name, [slot()]) for name in ("a", "b"))
    assert not one.root.same_as(other.root)
    assert open_root(tmp_path / "a", [slot()]).root.same_as(one.root)


def test_another_token_is_refused(path: Path, tmp_path: Path) -> None:
    create(path, [slot("one")])
    create(tmp_path / "other.json", [slot("two")])  # so that it holds a key of the same label
    assert "does not hold the key" in str(refused(path, slot("two")))


def test_a_missing_token_is_named(path: Path) -> None:
    create(path, [slot()])
    assert "token gone is not there" in str(refused(path, slot("gone")))


def test_a_wrong_pin_says_so_and_does_not_repeat_it(path: Path) -> None:
    create(path, [slot()])
    error = refused(path, slot(pin="000111"))
    assert "wrong PIN" in str(error)
    assert "000111" not in str(error)


def test_a_module_that_is_not_there_is_named(tmp_path: Path, path: Path) -> None:
    with pytest.raises(SealError, match=r"module .*no-such\.so"):
        create(path, [Pkcs11(tmp_path / "no-such.so", "one", lambda: PIN)])


def test_a_removed_key_is_named_and_the_recovery_passphrase_opens(path: Path) -> None:
    recovery = Passphrase(lambda: "correct horse", Cost(64, 1, 1))
    made = create(path, [slot(key_label="short-lived"), recovery])
    with session("one") as (_, opened):
        opened.get_key(label="short-lived").destroy()
    with pytest.raises(SealError, match="does not hold the key"):
        open_root(path, [slot(key_label="short-lived")])
    again = open_root(path, [slot(key_label="short-lived"), recovery])
    assert again.root.same_as(made.root)
    assert any("does not hold the key" in warning for warning in again.warnings)


def test_a_key_that_can_be_taken_out_is_not_used(path: Path) -> None:
    with session("one") as (lib, opened):
        opened.generate_key(
            lib.KeyType.AES,
            256,
            label="loose",
            id=os.urandom(8),
            store=True,
            template={lib.Attribute.EXTRACTABLE: True, lib.Attribute.SENSITIVE: False},
        )
    with pytest.raises(SealError, match="can be taken out"):
        create(path, [slot(key_label="loose")])
    assert not path.exists()


def test_a_damaged_wrapping_is_refused(path: Path) -> None:
    create(path, [slot()])
    text = path.read_text()
    start = text.index('"sealed": "') + len('"sealed": "')
    flipped = "B" if text[start] == "A" else "A"
    path.write_text(text[:start] + flipped + text[start + 1 :])
    assert "does not open with its key" in str(refused(path, slot()))
