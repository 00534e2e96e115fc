"""The documentation says what the code does: links lead somewhere, drawings and lists are complete."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import fields
from pathlib import Path
from types import ModuleType

import pytest

from keyhaul import config
from keyhaul.admission import Rules
from keyhaul.config import Mistakes
from keyhaul.config.parse import load
from keyhaul.keys import State
from keyhaul.lifecycle import NEXT
from keyhaul.messages import labels
from keyhaul.policy import Limits, Rule

DOCS = Path(__file__).parents[2] / "docs"
SECTIONS = (
    config.AuditConfig,
    config.BlindConfig,
    config.Delivery,
    config.DeviceEnd,
    config.Listener,
    config.LogConfig,
    config.MaskedConfig,
    config.NetworkLink,
    config.Peer,
    config.Prefetch,
    config.SchemesConfig,
    config.SkipConfig,
    config.SlotSource,
    config.StoreConfig,
    config.TracesConfig,
    Limits,
    Rules,
    Rule,
)


def script(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(DOCS))
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    return module


def test_links_lead_somewhere_and_the_drawing_is_current(monkeypatch: pytest.MonkeyPatch) -> None:
    script("draw_lifecycle", monkeypatch)
    assert script("check", monkeypatch).mistakes() == []


def test_a_stale_drawing_and_a_dead_link_are_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script("draw_lifecycle", monkeypatch)
    check = script("check", monkeypatch)
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "lifecycle.svg").write_text("<svg/>")
    (tmp_path / "README.md").write_text(
        "[here](docs/nowhere.md), [there](https://example.org), `docs/gone.md`"
    )
    monkeypatch.setattr(check, "ROOT", tmp_path)
    found = check.mistakes()
    assert len(found) == 3
    assert "nowhere" in found[0]
    assert "gone" in found[1]
    assert "lifecycle.svg" in found[2]


def test_the_drawing_shows_every_state_and_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    picture = script("draw_lifecycle", monkeypatch).draw()
    assert all(f">{state.value}</text>" in picture for state in State)
    assert picture.count("marker-end") == sum(len(targets) for targets in NEXT.values())


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.__name__)
def test_every_setting_is_in_the_configuration_page(section: type) -> None:
    page = (DOCS / "configuration.md").read_text()
    undocumented = [
        field.name
        for field in fields(section)
        if f"`{field.name}`" not in page and field.name not in ("slots", "device")
    ]
    assert undocumented == []
    assert "[[store.slots]]" in page
    assert "[peers.device]" in page


def test_the_settings_of_the_node_itself_are_in_the_configuration_page(tmp_path: Path) -> None:
    page = (DOCS / "configuration.md").read_text()
    file = tmp_path / "node.toml"
    file.write_text("unheard-of = 1\n")
    with pytest.raises(Mistakes) as raised:
        load(file)
    told = next(str(mistake) for mistake in raised.value.mistakes if "unheard-of" in str(mistake))
    known = told.partition("known here: ")[2].split(", ")
    assert "extension_pen" in known
    for name in known:
        assert f"`{name}`" in page or f"[{name}]" in page or f"[{name}." in page or f"[[{name}]]" in page, (
            name
        )


def test_every_label_is_in_the_protocol_page() -> None:
    page = (DOCS / "protocol.md").read_text()
    values = [value for name, value in vars(labels).items() if name.isupper() and not name.startswith("_")]
    assert len(values) > 5
    assert [value for value in values if f'"{value.decode()}"' not in page] == []
