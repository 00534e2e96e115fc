"""The chart is taken by helm without a remark, and what comes out is one node without rights or secrets."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from keyhaul.testbed.composing import MONITOR, USER

ROOT = Path(__file__).parents[2]
CHART = ROOT / "packaging" / "helm" / "keyhaul"
HELM = shutil.which("helm") or str(ROOT / "build" / "helm" / "helm")
SECRETS = ("--set", "secrets.root=vigo-root", "--set", "secrets.certificates=vigo-pki")


@pytest.fixture(autouse=True)
def tool() -> None:
    if not Path(HELM).exists():
        pytest.skip("helm is not installed: make helm-tools")


@pytest.fixture
def config(tmp_path: Path) -> Path:
    file = tmp_path / "node.toml"
    file.write_text('name = "vigo"\ndomain = "galicia"\n# {{ .Values.image }} is text here\n')
    return file


def helm(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([HELM, *words], text=True, capture_output=True, check=False)


def rendered(config: Path, *more: str) -> dict[tuple[str, str], dict[str, Any]]:
    """Every object by kind and name."""
    done = helm("template", "vigo", str(CHART), "--set-file", f"config={config}", *SECRETS, *more)
    assert done.returncode == 0, done.stderr
    objects = [each for each in yaml.safe_load_all(done.stdout) if each]
    return {(each["kind"], each["metadata"]["name"]): each for each in objects}


def test_helm_has_no_remark(config: Path) -> None:
    done = helm("lint", "--strict", "--quiet", str(CHART), "--set-file", f"config={config}", *SECRETS)
    assert (done.returncode, done.stdout.strip(), done.stderr.strip()) == (0, "", "")


def test_it_is_one_node_two_services_and_a_configuration(config: Path) -> None:
    objects = rendered(config)
    assert objects.keys() == {
        ("ConfigMap", "vigo-keyhaul"),
        ("Service", "vigo-keyhaul"),
        ("Service", "vigo-keyhaul-neighbours"),
        ("StatefulSet", "vigo-keyhaul"),
    }
    assert objects["ConfigMap", "vigo-keyhaul"]["data"]["node.toml"] == config.read_text()
    node = objects["StatefulSet", "vigo-keyhaul"]["spec"]
    assert node["replicas"] == 1
    labels = node["template"]["metadata"]["labels"]
    ports = {each["name"] for each in node["template"]["spec"]["containers"][0]["ports"]}
    for name in ("vigo-keyhaul", "vigo-keyhaul-neighbours"):
        service = objects["Service", name]["spec"]
        assert service["selector"].items() <= labels.items()
        assert {each["targetPort"] for each in service["ports"]} <= ports
    wide = objects["Service", "vigo-keyhaul-neighbours"]["spec"]["ports"]
    assert [each["targetPort"] for each in wide] == ["node"]


def test_it_has_no_rights_and_asks_the_node_itself_how_it_is(config: Path) -> None:
    pod = rendered(config)["StatefulSet", "vigo-keyhaul"]["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] == USER
    assert pod["automountServiceAccountToken"] is False
    volumes = {each["name"] for each in pod["volumes"]} | {"store"}
    for container in [*pod["initContainers"], *pod["containers"]]:
        rights = container["securityContext"]
        assert rights["readOnlyRootFilesystem"] is True
        assert rights["allowPrivilegeEscalation"] is False
        assert rights["capabilities"] == {"drop": ["ALL"]}
        assert {each["name"] for each in container["volumeMounts"]} <= volumes
        for code in [word for word in container.get("command", []) if "\n" in word]:
            compile(code, "init", "exec")
    (node,) = pod["containers"]
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        code = node[probe]["exec"]["command"][-1]
        compile(code, probe, "exec")
        assert f"http://{MONITOR}/" in code


def test_the_files_are_put_where_only_the_node_reads_them(config: Path, tmp_path: Path) -> None:
    """The script of the init container, run in folders of ours."""
    pod = rendered(config)["StatefulSet", "vigo-keyhaul"]["spec"]["template"]["spec"]
    code = pod["initContainers"][0]["command"][-1]
    for place in ("secrets/certificates", "run/keyhaul/pki", "run/credentials", "var/lib/keyhaul"):
        (tmp_path / place).mkdir(parents=True)
        code = code.replace(f'"/{place}', f'"{tmp_path}/{place}')
    (tmp_path / "secrets/certificates/node.key").write_text("key")
    (tmp_path / "run/credentials/root.slots").write_text("first")
    for _ in range(2):
        subprocess.run(["python3", "-c", code], check=True)
        (tmp_path / "run/credentials/root.slots").write_text("second")
    key, slots = tmp_path / "run/keyhaul/pki/node.key", tmp_path / "var/lib/keyhaul/root.slots"
    assert (key.read_text(), slots.read_text()) == ("key", "first")
    assert {key.stat().st_mode & 0o777, slots.stat().st_mode & 0o777} == {0o600}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--set", "secrets.root="), "secrets.root"),
        (("--set", "ports.sae=443"), "minimum"),
        (("--set", "imagee.tag=1"), "imagee"),
    ],
)
def test_a_wrong_value_is_refused_with_its_name(config: Path, words: tuple[str, ...], said: str) -> None:
    done = helm("template", "vigo", str(CHART), "--set-file", f"config={config}", *SECRETS, *words)
    assert done.returncode != 0
    assert said in done.stderr
