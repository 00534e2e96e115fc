"""A configuration is read whole or refused whole, and every mistake is told with its line and remedy."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from keyhaul import config
from keyhaul.config.positions import positions
from keyhaul.config.write import toml, write
from keyhaul.errors import ConfigError
from keyhaul.pki import Files, Lifetimes, Pki, rollover

NETWORK = """
[nodes]
vigo = "galicia"
santiago = "galicia"
derio = "basque"

[[links]]
a = "vigo"
b = "santiago"
kind = "qkd"

[[links]]
a = "derio"
b = "vigo"
kind = "pqc"

[saes]
"bank/1 #?%" = "vigo"
hospital = "derio"

[foreign]
far-sae = { node = "vigo", peer = "other maker" }
"""

NODE = """
name = "vigo"
domain = "galicia"
directory = "data"
ready_file = "ready"
extension_pen = 65000

[listeners.sae]
port = 8443
cert = "sae.pem"
key = "sae.key"
ca = "sae-ca.pem"

[listeners.node]
host = "0.0.0.0"
cert = "node.pem"
key = "node.key"
ca = "node-ca.pem"

[listeners.admin]
cert = "admin.pem"
key = "admin.key"
ca = "admin-ca.pem"
tls = "pq"

[store]
[[store.slots]]
kind = "tpm"
pcrs = "sha256:0,7"
[[store.slots]]
kind = "passphrase"
file = "phrase"

[[peers]]
name = "santiago"
url = "https://santiago.example:8444/"
kind = "qkd"
[peers.device]
url = "https://10.0.0.1"
cert = "dev.pem"
key = "dev.key"
ca = "dev-ca.pem"
own_sae = "vigo"
peer_sae = "santiago"
method = "post"

[[peers]]
name = "derio"
url = "https://derio.example:8444"
kind = "pqc"

[[peers]]
name = "other maker"
url = "https://other.example"
kind = "plain"
callback = "https://other.example:9000"
dialect = "draft-0.4"

[network]
file = "network.toml"

[limits]
max_key_per_request = 32

[delivery]
ttl = 60
pool = 4
"""


@pytest.fixture
def node_file(tmp_path: Path) -> Path:
    (tmp_path / "network.toml").write_text(NETWORK)
    (tmp_path / "node.toml").write_text(NODE)
    return tmp_path / "node.toml"


def edited(file: Path, old: str, new: str) -> Path:
    """The configuration with one passage changed."""
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))
    return file


def mistakes(file: Path) -> list[config.Mistake]:
    with pytest.raises(config.Mistakes) as caught:
        config.load(file)
    return list(caught.value.mistakes)


def test_a_full_configuration_becomes_values(node_file: Path, tmp_path: Path) -> None:
    node = config.load(node_file)
    assert (node.name, node.domain, node.directory) == ("vigo", "galicia", tmp_path / "data")
    assert node.listeners.sae == config.Listener(
        "127.0.0.1", 8443, tmp_path / "sae.pem", tmp_path / "sae.key", tmp_path / "sae-ca.pem", "compatible"
    )
    assert [listener.tls for _, listener in node.listeners] == ["compatible", "pq", "pq"]
    assert node.listeners.node.port == 0
    assert node.store.slots == (
        config.SlotSource("tpm", pcrs="sha256:0,7"),
        config.SlotSource("passphrase", file=tmp_path / "phrase"),
    )
    quantum, classical, plain = node.peers
    assert quantum.url == "https://santiago.example:8444"
    assert quantum.device is not None
    assert (quantum.device.key_size, quantum.device.method) == (256, "post")
    assert classical.device is None
    assert (plain.dialect, plain.callback) == ("draft-0.4", "https://other.example:9000")
    assert node.network.saes["bank/1 #?%"] == "vigo"
    assert node.network.foreign == {"far-sae": config.ForeignSae("vigo", "other maker")}
    assert (node.limits.max_key_per_request, node.limits.key_size) == (32, 256)
    assert (node.delivery.ttl, node.delivery.release) == (60.0, "relayed")
    assert node.extension_pen == 65000


def test_the_network_may_stand_in_the_same_file(node_file: Path) -> None:
    inline = NETWORK.replace("[nodes]", "[network.nodes]").replace("[[links]]", "[[network.links]]")
    inline = inline.replace("[saes]", "[network.saes]").replace("[foreign]", "[network.foreign]")
    expected = config.load(node_file).network
    assert config.load(edited(node_file, '[network]\nfile = "network.toml"', inline)).network == expected


@pytest.mark.parametrize(
    ("old", "new", "line", "cause", "remedy"),
    [
        ('name = "vigo"', 'name = "Vigo!"', 2, "'Vigo!' is not 1 to 63", "correct"),
        ('name = "vigo"', 'nam = "vigo"', 2, "'nam' is not a setting of the file", "did you mean 'name'?"),
        ('name = "vigo"', "", 0, "name is missing in the file", "add name"),
        ('domain = "galicia"', "domain = 7", 3, "a whole number, not a string", "write a string"),
        ('domain = "galicia"', 'domain = "basque"', 3, "basque here and galicia in the network", "agree"),
        ("port = 8443", "port = 84430", 9, "port = 84430 is out of range", "0 to 65535"),
        ("port = 8443", 'port = "8443"', 9, "port is a string, not a whole number", "whole number"),
        ("port = 8443", "port = true", 9, "port is true or false, not a whole number", "whole number"),
        ("port = 8443", "prot = 8443", 9, "'prot' is not a setting of [listeners.sae]", "'port'?"),
        ('tls = "pq"', 'tls = "pqc"', 24, "tls = 'pqc' is not known", "did you mean 'pq'?"),
        ('kind = "tpm"', 'kind = "tmp"', 28, "kind = 'tmp' is not known", "did you mean 'tpm'?"),
        ('pcrs = "sha256:0,7"', 'pcrs = "7"', 29, "pcrs = '7' is not a bank", "correct"),
        ('file = "phrase"', 'passphrase = "x"', 32, "stands in the configuration", "file of mode 0600"),
        ('file = "phrase"', 'file = "phrase"\nfd = 3', 30, "the passphrase has 2 sources", "keep one"),
        ('url = "https://10.0.0.1"', 'url = "http://10.0.0.1"', 39, "is not an https URL", "https://HOST"),
        ('peer_sae = "santiago"', 'peer_sae = "vigo"', 44, "own_sae and peer_sae are the same", "far node"),
        (
            'peer_sae = "santiago"',
            'peer_sae = "santiago"\nkey_size = 100',
            45,
            "multiple of 8",
            "whole bytes",
        ),
        ('kind = "pqc"', 'kind = "pqc"\nmode = "otp"', 51, "no device bits", "expanded"),
        ('kind = "pqc"', 'kind = "qkd"', 50, "peer derio is of kind qkd but has no device", "[peers.device]"),
        ('kind = "pqc"', 'kind = "pqc"\ncallback = "https://x"', 51, "for plain peers only", "remove"),
        ('name = "derio"', 'name = "bilbao"', 48, "the network has no link to bilbao", "network's links"),
        ('name = "derio"', 'name = "santiago"', 48, "peer santiago is there twice", "remove one"),
        (
            'file = "network.toml"',
            'file = "missing.toml"',
            60,
            "there is no network file",
            "correct the path",
        ),
        (
            "max_key_per_request = 32",
            "max_keys_per_request = 32",
            63,
            "is not a setting",
            "'max_key_per_request'",
        ),
        ("max_key_per_request = 32", "key_size = 12", 62, "key_size is 12", "multiple of 8"),
        ("ttl = 60", "ttl = 0.5", 66, "ttl = 0.5 is out of range", "from 1"),
        ("ttl = 60", "ttl = nan", 66, "ttl = nan is out of range", "from 1"),
    ],
)
def test_each_mistake_is_told_with_line_and_remedy(
    node_file: Path, old: str, new: str, line: int, cause: str, remedy: str
) -> None:
    found = [m for m in mistakes(edited(node_file, old, new)) if cause in m.cause]
    assert len(found) == 1
    assert (found[0].file, found[0].line) == (node_file, line)
    assert remedy in found[0].remedy


@pytest.mark.parametrize(
    ("old", "new", "line", "cause"),
    [
        ('b = "santiago"', 'b = "santigo"', 9, "santigo is not a node of the network"),
        ('b = "santiago"', 'b = "vigo"', 9, "a link joins vigo with itself"),
        (
            'b = "vigo"',
            'b = "santiago"\nkind = "pqc"\n[[links]]\na = "santiago"\nb = "derio"',
            16,
            "linked twice",
        ),
        ('hospital = "derio"', 'hospital = "bilbao"', 19, "bilbao is not a node of the network"),
        ('hospital = "derio"', f'{"x" * 65} = "derio"', 19, "longer than 64 bytes"),
        ("[saes]", "[sae]", 17, "'sae' is not a setting of the file"),
    ],
)
def test_mistakes_of_the_network_carry_its_file(
    node_file: Path, old: str, new: str, line: int, cause: str
) -> None:
    shared = edited(node_file.with_name("network.toml"), old, new)
    found = [m for m in mistakes(node_file) if cause in m.cause]
    assert [(m.file, m.line) for m in found] == [(shared, line)]


def test_a_plain_port_is_optional_and_may_say_where_it_is_reached(node_file: Path) -> None:
    assert config.load(node_file).listeners.plain is None
    port = '[listeners.plain]\ncert = "p.pem"\nkey = "p.key"\nca = "p-ca.pem"\n'
    url = 'url = "https://kme.example:8446"\n'
    edited(node_file, "[store]", f"{port}{url}[store]")
    listeners = config.load(node_file).listeners
    assert [name for name, _ in listeners] == ["sae", "node", "admin", "plain"]
    assert listeners.plain is not None
    assert (listeners.plain.tls, listeners.plain.url) == ("compatible", "https://kme.example:8446")
    edited(node_file, url, "")
    edited(node_file, "[listeners.sae]", f"[listeners.sae]\n{url}")
    assert ["'url' is not a setting of [listeners.sae]" in each.cause for each in mistakes(node_file)] == [
        True
    ]


def test_all_mistakes_are_told_at_once(node_file: Path) -> None:
    edited(node_file, "port = 8443", "port = -1")
    edited(node_file, "pool = 4", "poool = 4")
    edited(node_file.with_name("network.toml"), 'kind = "qkd"', 'kind = "qdk"')
    causes = [mistake.cause for mistake in mistakes(node_file)]
    assert len(causes) == 3
    with pytest.raises(ConfigError) as caught:
        config.load(node_file)
    assert caught.value.cause.splitlines()[0].startswith(f"{node_file.with_name('network.toml')}:10: ")


def test_disagreement_between_peer_and_network_is_found(node_file: Path) -> None:
    edited(node_file.with_name("network.toml"), 'kind = "qkd"', 'kind = "qkd"\nmode = "otp"')
    edited(
        node_file.with_name("network.toml"),
        "[saes]",
        '[[links]]\na = "vigo"\nb = "lugo"\nkind = "pqc"\n[saes]',
    )
    edited(node_file.with_name("network.toml"), "[nodes]", '[nodes]\nlugo = "galicia"')
    causes = {mistake.cause for mistake in mistakes(node_file)}
    assert causes == {"mode is expanded here and otp in the network", "the network links vigo with lugo"}


@pytest.mark.parametrize(
    ("content", "line", "cause"),
    [(b"name = ", 1, "not valid TOML"), (b"a = 1\n\xff", 0, "is not UTF-8"), (None, 0, "cannot be read")],
)
def test_an_unreadable_file_is_one_mistake(
    tmp_path: Path, content: bytes | None, line: int, cause: str
) -> None:
    file = tmp_path / "node.toml"
    if content is not None:
        file.write_bytes(content)
    (found,) = mistakes(file)
    assert found.line == line
    assert cause in found.cause


def test_a_wrong_type_anywhere_is_told_and_never_crashes(node_file: Path) -> None:
    """Each value in turn becomes each wrong type: the answer is a value or mistakes, nothing else."""
    lines = node_file.read_text().splitlines()
    for index, line in enumerate(lines):
        if " = " not in line:
            continue
        name = line.split(" = ")[0]
        for wrong in ("[1]", "{ x = 1 }", "1979-05-27", '""', "-1", "[[1]]"):
            node_file.write_text("\n".join([*lines[:index], f"{name} = {wrong}", *lines[index + 1 :]]))
            found = config.check(node_file)
            assert any(mistake.line == index + 1 and name in mistake.cause for mistake in found), (
                line,
                wrong,
            )


def test_the_documentation_number_and_immediate_release_are_warned_of(node_file: Path) -> None:
    edited(node_file, "extension_pen = 65000", "")
    edited(node_file, "ttl = 60", 'release = "immediate"')
    assert config.load(node_file).extension_pen == 32473
    warnings = [mistake for mistake in config.check(node_file) if mistake.warning]
    assert any("32473" in warning.cause for warning in warnings)
    assert any("immediate" in warning.cause for warning in warnings)


def test_positions_know_headers_keys_arrays_and_inline_tables() -> None:
    text = '# c\n[a]\n"x.y" = 1 # [b]\nt = """\n[no]\n"""\nlist = [\n  1,\n'
    text += "  { k = [2,\n 3] },\n]\n[[a.b]]\n[[a.b]]\nc.d = '#'\n"
    found = positions(text)
    assert found[("a",)] == 2
    assert found[("a", "x.y")] == 3
    assert found[("a", "list", 1, "k")] == 9
    assert found[("a", "list", 1, "k", 1)] == 10
    assert found[("a", "b", 1)] == 13
    assert found[("a", "b", 1, "c", "d")] == 14
    assert ("no",) not in found


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    import tomllib

    tables = {
        "text": 'quote " back \\ line\nend ñ',
        "list": [1, 2.5, "x"],
        "yes": True,
        "none": None,
        "odd key /#": {"inner": {"deep": 1}},
        "rows": [{"a": 1, "sub": {"b": "c"}}, {"a": 2}],
    }
    text = toml(tables, "two\nlines")
    assert text.startswith("# two\n# lines\n")
    assert tomllib.loads(text) == {name: value for name, value in tables.items() if value is not None}
    write(tmp_path / "file", text)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.fixture
def with_pki(node_file: Path) -> Path:
    """The same configuration with real certificates in place of the names of files."""
    pki = Pki.create(node_file.parent / "pki", ["galicia"])
    hosts = ["localhost", "127.0.0.1"]
    put(node_file, "sae", pki.sae_port("galicia", "vigo", hosts))
    put(node_file, "node", pki.node("galicia", "vigo", hosts))
    put(node_file, "admin", pki.admin_port("galicia", "vigo", hosts))
    put(node_file, "dev", pki.device_client("galicia", "vigo"))
    return node_file


def put(node_file: Path, stem: str, files: Files) -> None:
    for name, source in (
        (f"{stem}.pem", files.cert),
        (f"{stem}.key", files.key),
        (f"{stem}-ca.pem", files.ca),
    ):
        target = node_file.with_name(name)
        target.write_bytes(source.read_bytes())
        target.chmod(0o600)


def test_good_certificates_give_no_mistake(with_pki: Path) -> None:
    assert config.check(with_pki) == []


def test_missing_foreign_and_exposed_files_are_found(with_pki: Path) -> None:
    with_pki.with_name("sae.pem").unlink()
    with_pki.with_name("node.key").chmod(0o644)
    with_pki.with_name("admin.key").write_bytes(with_pki.with_name("dev.key").read_bytes())
    with_pki.with_name("dev-ca.pem").write_text("nothing")
    found = {mistake.line: mistake for mistake in config.check(with_pki)}
    assert "sae.pem: No such file" in found[10].cause
    assert "can be read by others" in found[17].cause
    assert found[17].remedy.startswith("chmod 600")
    assert "does not belong to the certificate" in found[22].cause
    assert "no certificate in PEM form" in found[42].cause


def test_certificates_of_others_and_of_other_roles_are_found(with_pki: Path) -> None:
    pki = Pki.open(with_pki.parent / "pki")
    put(with_pki, "node", pki.node("galicia", "lugo", ["localhost"]))
    put(with_pki, "dev", pki.sae_port("galicia", "other", []))
    found = [str(mistake) for mistake in config.check(with_pki)]
    assert any("speaks for 'lugo', name is 'vigo'" in each for each in found)
    assert any("device of santiago: the certificate is not for clients" in each for each in found)


def test_a_stranger_under_the_name_of_our_domain_is_found_at_the_node_port_only(with_pki: Path) -> None:
    stranger = Pki.create(with_pki.parent / "stranger", ["galicia"])
    for place, role in (("sae", "sae"), ("node", "node")):
        bundle = with_pki.with_name(f"{place}-ca.pem")
        bundle.write_bytes(bundle.read_bytes() + stranger.ca("galicia", role).read_bytes())
    (found,) = config.check(with_pki)
    assert "node port: two CAs in the bundle claim the domain 'galicia'" in found.cause


def test_a_rotation_is_in_order_at_every_step(with_pki: Path) -> None:
    pki = Pki.open(with_pki.parent / "pki")
    for step in (rollover.begin, rollover.switch):
        step(pki, "galicia", "node")
        with_pki.with_name("node-ca.pem").write_bytes(pki.anchors.read_bytes())
        assert config.check(with_pki) == []


@pytest.mark.parametrize(
    ("start", "days", "cause", "warning"),
    [(-400, 365, "expired on", False), (10, 365, "valid only from", False), (-360, 365, "expires on", True)],
)
def test_dates_are_checked(with_pki: Path, start: int, days: int, cause: str, warning: bool) -> None:
    moment = datetime.now(UTC) + timedelta(days=start)
    lifetimes = Lifetimes(leaf=days, start=moment)
    pki = Pki.open(with_pki.parent / "pki", lifetimes=lifetimes, overwrite=True)
    put(with_pki, "sae", pki.sae_port("galicia", "vigo", ["127.0.0.1"]))
    found = [mistake for mistake in config.check(with_pki) if cause in mistake.cause]
    assert [(mistake.line, mistake.warning) for mistake in found] == [(10, warning)]


def test_a_classical_node_certificate_is_warned_of(with_pki: Path) -> None:
    pki = Pki.open(with_pki.parent / "pki")
    classical = pki.sae_port("galicia", "vigo-classical", ["127.0.0.1"])
    put(with_pki, "node", classical)
    assert any("classical" in m.cause and m.warning for m in config.check(with_pki))
