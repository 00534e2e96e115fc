"""BFV keys made without numpy are the same keys; numpy is there as soon as a payload needs it."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import pytest

from keyhaul.blindkeys import SealWhenNeeded
from keyhaul.errors import Unsupported
from keyhaul.schemes.bfv import COEFFICIENTS, PROFILES, Profile

pytest.importorskip("seal", reason="Microsoft SEAL comes with the extra 'blind'")

import numpy as np

from keyhaul.schemes import dense
from keyhaul.schemes.seal import Seal
from keyhaul.schemes.sealkeys import SealKeys

PLAIN = bytes(range(32))


@pytest.mark.parametrize("profile", PROFILES.values(), ids=lambda each: each.name)
def test_keys_are_in_the_dense_form(profile: Profile) -> None:
    public, secret = SealKeys(profile).generate()
    Seal(profile).check_public(public)
    whole = dense.unpack(secret, COEFFICIENTS, profile)
    assert dense.pack(whole, profile) == secret
    assert len(np.unique(whole)) > 500  # a secret key in the transformed domain, not zeros


@pytest.mark.parametrize("profile", PROFILES.values(), ids=lambda each: each.name)
def test_what_is_encrypted_under_such_a_key_is_decrypted_with_it(profile: Profile) -> None:
    public, secret = SealKeys(profile).generate()
    upper, rest = Seal(profile).encrypt(public, PLAIN)
    assert SealWhenNeeded(profile).decrypt(secret, upper, rest) == PLAIN
    upper, rest = SealWhenNeeded(profile).encrypt(public, PLAIN)
    assert Seal(profile).decrypt(secret, upper, rest) == PLAIN


def test_no_two_keys_are_the_same() -> None:
    keys = SealKeys()
    assert len({half for _ in range(3) for half in keys.generate()}) == 6


def test_numpy_comes_with_the_first_payload_and_not_before() -> None:
    code = """
import sys
from keyhaul.blindkeys import SealWhenNeeded
bfv = SealWhenNeeded()
public, secret = bfv.generate()
before = "numpy" in sys.modules
assert bfv.decrypt(secret, *bfv.encrypt(public, b"some key")) == b"some key"
sys.exit(0 if (before, "numpy" in sys.modules) == (False, True) else 1)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_without_numpy_there_is_no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "numpy" else found(name))
    with pytest.raises(Unsupported, match="numpy is missing"):
        SealWhenNeeded()
