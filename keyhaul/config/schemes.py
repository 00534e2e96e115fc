"""The `[schemes]` and `[[policy]]` tables: how keys are kept from relays, what their paths must promise.

[schemes]                                        [[policy]]
default = "auto"                                 master = "sae-vigo-*"
blind = { enabled = true, profile = "dense" }    slave = "*"
masked = { kem = "ml-kem-768", form = "epoch" }  labels = ["relay-blind", "pq"]
"""

from __future__ import annotations

import difflib
from importlib.util import find_spec
from typing import Any, cast

from keyhaul.config import model
from keyhaul.config.reader import Section
from keyhaul.kem import DEFAULT, KEMS
from keyhaul.notice import NOTICE
from keyhaul.policy import LABELS_KNOWN, PathPolicy, Rule

DEFAULTS = ("auto", "trusted", "masked", "blind", "blind-fresh")
PROFILES = ("dense", "dense-25")
LIBRARIES = ("seal", "numpy")
"""What the ends of scheme `blind` need; relays need neither."""


def read_schemes(table: Section) -> model.SchemesConfig:
    """What the table says; enabling `blind` reports its patent notice as a warning."""
    default = table.choice("default", DEFAULTS, "auto")
    blind = _blind(table.section("blind", required=False))
    masked = table.section("masked", required=False)
    config = model.SchemesConfig(
        default=cast(Any, default),
        private_keys=cast(Any, table.choice("private_keys", ("store", "tpm"), "store")),
        blind=blind,
        masked=model.MaskedConfig(
            kem=cast(Any, masked.choice("kem", tuple(KEMS), DEFAULT)),
            form=cast(Any, masked.choice("form", ("epoch", "batch"), "epoch")),
        ),
    )
    masked.done()
    on = {"blind": blind.enabled, "blind-fresh": blind.enabled and blind.rerandomise}
    if not on.get(default, True):
        wanted = "enabled = true" if default == "blind" else "enabled = true, rerandomise = true"
        table.report(
            "default",
            f'default is "{default}", which is not enabled',
            f"set blind = {{ {wanted} }}, or change it",
        )
    table.done()
    return config


def _blind(table: Section) -> model.BlindConfig:
    blind = model.BlindConfig(
        enabled=table.flag("enabled", False),
        profile=cast(Any, table.choice("profile", PROFILES, "dense")),
        rerandomise=table.flag("rerandomise", False),
    )
    if blind.enabled:
        table.report("enabled", f"patent notice: {NOTICE}", "read it before you go on", warning=True)
        if missing := missing_libraries():
            cause = f"{missing} cannot be imported: this node relays scheme blind but is no end of it"
            cause += ", and takes no part in blind-fresh" if blind.rerandomise else ""
            table.report("enabled", cause, "install keyhaul with the extra 'blind'", warning=True)
    table.done()
    return blind


def missing_libraries() -> str:
    """Which of the libraries for the ends of `blind` are not installed, in words; empty if all are."""
    return " and ".join(name for name in LIBRARIES if find_spec(name) is None)


def read_policy(root: Section) -> PathPolicy:
    """The rules of all `[[policy]]` tables."""
    return PathPolicy(tuple(_rule(section) for section in root.sections("policy")))


def _rule(table: Section) -> Rule:
    labels = table.texts("labels")
    if not labels:
        table.report(None, "a policy without labels demands nothing", 'write labels = ["relay-blind"]')
    for label in labels:
        if label not in LABELS_KNOWN:
            near = difflib.get_close_matches(label, LABELS_KNOWN, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"use some of {', '.join(LABELS_KNOWN)}"
            table.report("labels", f"label {label!r} is not known", hint)
    rule = Rule(table.text("master", "*"), table.text("slave", "*"), frozenset(labels))
    table.done()
    return rule


def check_schemes(config: model.NodeConfig, root: Section) -> None:
    """Schemes and policy against the rest: the flow of paper A has a scheme of its own and no other."""
    if config.schemes.private_keys == "tpm" and all(slot.kind != "tpm" for slot in config.store.slots):
        root.section("schemes").report(
            "private_keys",
            'private_keys is "tpm", and no key slot of the store names a TPM',
            'add a [[store.slots]] with kind = "tpm", or remove the line',
        )
    if config.delivery.profile != "paper-a":
        return
    for name in ("schemes", "policy"):
        if name in root:
            cause = f'[{name}] has no effect under profile = "paper-a", which protects nothing from relays'
            root.report(name, cause, "remove it, or the profile", warning=True)
