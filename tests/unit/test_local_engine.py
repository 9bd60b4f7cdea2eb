"""The local engine's decisions, without an engine and without root."""

from __future__ import annotations

import json
import tomllib
from ipaddress import IPv4Network
from pathlib import Path

import pytest

from pipeline.engine import local
from pipeline.engine.local import build, places, rootfs, run, traces
from pipeline.engine.local.needs import go_serves, go_wanted
from pipeline.errors import EngineError
from pipeline.host import ca

GIB = rootfs.GIB
ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


# One version everywhere


def test_the_sdk_the_module_and_the_engine_have_one_version() -> None:
    module = (build.GO / "go.mod").read_text()
    assert f"require github.com/dagger/dagger v{local.VERSION}\n" in module
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert f"dagger-io=={local.VERSION}" in project["dependencies"]


# Disk


def test_a_well_filled_disk_keeps_its_cache() -> None:
    limits = rootfs.storage(total=252 * GIB, free=48 * GIB, used=0)
    assert limits["minFreeSpace"] < 5 * GIB
    assert limits["maxUsedSpace"] > 40 * GIB


def test_what_the_engine_holds_already_is_not_taken_for_someone_elses() -> None:
    fresh = rootfs.storage(total=252 * GIB, free=80 * GIB, used=0)
    filled = rootfs.storage(total=252 * GIB, free=10 * GIB, used=70 * GIB)
    assert filled == fresh


@pytest.mark.parametrize("free", [0, GIB // 2, 3 * GIB, 900 * GIB])
def test_limits_are_in_order_and_fit_the_disk(free: int) -> None:
    limits = rootfs.storage(total=1000 * GIB, free=free, used=0)
    assert 0 < limits["reservedSpace"] < limits["maxUsedSpace"] <= max(free, GIB)
    assert GIB <= limits["minFreeSpace"] <= 20 * GIB


def test_cache_volumes_live_as_long_as_there_is_room() -> None:
    limits = rootfs.storage(total=100 * GIB, free=50 * GIB, used=0)
    policies = rootfs.configuration(limits, {})["gc"]["policies"]
    assert all("keepDuration" not in policy and "filters" not in policy for policy in policies)
    assert policies[-1]["all"] is True


def test_the_users_engine_json_wins(tmp_path: Path) -> None:
    file = tmp_path / "config/dagger/engine.json"
    file.parent.mkdir(parents=True)
    own = {"registries": {"mirror.test": {"http": True}}, "logLevel": "debug"}
    file.write_text(json.dumps(own))
    config = rootfs.configuration(rootfs.storage(GIB, GIB, 0), rootfs.users_configuration())
    assert config["registries"] == own["registries"]
    assert config["logLevel"] == "debug"
    assert "gc" in config


def test_a_broken_engine_json_is_named(tmp_path: Path) -> None:
    file = tmp_path / "config/dagger/engine.json"
    file.parent.mkdir(parents=True)
    file.write_text("{")
    with pytest.raises(EngineError, match=r"dagger/engine\.json is not JSON"):
        rootfs.users_configuration()


# Root file system


def test_the_machines_own_mirrors_serve_the_root_file_system() -> None:
    targets = (
        "Debian|http://mirror.test/debian/|bookworm|main\n"
        "Debian|http://mirror.test/debian/|bookworm-updates|main\n"
        "Debian|http://mirror.test/debian/|trixie|main\n"
        "Other, Inc.|http://other.test/apt/|bookworm|main\n"
        "|http://flat.test/|/|\n"
    )
    assert rootfs.mirrors(targets) == [
        "deb http://mirror.test/debian/ bookworm main",
        "deb http://mirror.test/debian/ bookworm-updates main",
    ]


@pytest.mark.parametrize("targets", ["", "Ubuntu|http://mirror.test/|noble|main\n"])
def test_another_distribution_takes_the_tools_default(targets: str) -> None:
    assert rootfs.mirrors(targets) == []


def test_apts_proxies_are_handed_on() -> None:
    config = (
        'Acquire "";\nAcquire::http "";\nAcquire::http::Proxy "http://proxy.test:3142";\n'
        'Acquire::https::Proxy "";\nAPT::Architecture "amd64";\n'
    )
    assert rootfs.proxies(config) == ['Acquire::http::Proxy "http://proxy.test:3142";']


def _certificate(body: str) -> str:
    return f"-----BEGIN CERTIFICATE-----\n{body}\n-----END CERTIFICATE-----\n"


def test_only_certificates_that_are_not_public_go_into_containers() -> None:
    public, private = _certificate("QUFB\nQkJC"), _certificate("Q0ND")
    rewrapped = _certificate("QUFBQkJC")
    found = ca.private(["# comment\n" + rewrapped + private, private], public)
    assert list(found.values()) == [private]
    assert all(name.endswith(".crt") for name in found)


def test_a_machine_without_private_authorities_hands_on_nothing() -> None:
    assert ca.private([_certificate("QUFB")], _certificate("QUFB")) == {}


# Keys and folders


def test_the_key_follows_names_and_content(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("one")
    first = build.fingerprint(tmp_path)
    assert build.fingerprint(tmp_path) == first
    (tmp_path / "a").rename(tmp_path / "b")
    second = build.fingerprint(tmp_path)
    (tmp_path / "b").write_text("two")
    assert len({first, second, build.fingerprint(tmp_path)}) == 3


def test_nothing_half_made_stands_under_a_final_name(tmp_path: Path) -> None:
    final = tmp_path / "programs-1"

    def interrupted() -> None:
        with places.under_construction(final) as draft:
            (draft / "half").write_text("x")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []


def test_leftovers_of_a_killed_builder_go_with_the_next_build(tmp_path: Path) -> None:
    (tmp_path / ".building-old").mkdir()
    with places.under_construction(tmp_path / "programs-1") as draft:
        (draft / "whole").write_text("x")
    assert [folder.name for folder in tmp_path.iterdir()] == ["programs-1"]


def test_old_versions_go_unless_an_engine_runs_from_them(tmp_path: Path) -> None:
    old, used, new, other = (
        tmp_path / name for name in ("root-old", "root-used", "root-new", "programs-old")
    )
    for folder in (old, used, new, other):
        folder.mkdir()
    with places.in_use(used):
        places.prune("root", new)
        assert sorted(tmp_path.iterdir()) == sorted([used, new, other])
    places.prune("root", new)
    assert sorted(tmp_path.iterdir()) == sorted([new, other])


def test_every_state_folder_gets_a_socket_that_can_be_dialled() -> None:
    short, long = Path("/home/ann/.local/state"), Path("/home") / ("x" * 90)
    assert run.sockets(short).is_relative_to(short)
    assert run.sockets(long).is_relative_to("/run")
    assert run.sockets(Path("/home/ann lee")).is_relative_to("/run")
    assert run.sockets(long) != run.sockets(long / "other")


def test_the_bridge_fits_the_kernels_limit_and_is_the_folders_own() -> None:
    first, second = (run.own_name(Path("/home") / who) for who in ("ann", "bob"))
    assert first != second
    assert len(f"{first}0") <= 15


def test_a_record_of_another_version_is_not_guessed_at() -> None:
    (places.state() / "engine.json").write_text('{"pid": 1, "new": true}')
    with pytest.raises(EngineError, match="written by another version"):
        local.status()


# Commands


def test_the_engine_is_started_in_its_own_namespaces() -> None:
    argv = run.command(
        Path("/run"), Path("/layer"), Path("/root fs"), Path("/data"), Path("/s"),
        name="cresset-1a2b", cidr="10.213.0.0/16",
    )  # fmt: skip
    own = argv[: argv.index("sh")]
    assert own[0] == "unshare"
    assert {"--mount", "--pid", "--fork", "--kill-child"} <= set(own)
    assert "/root fs" in argv
    assert argv[argv.index("--network-name") + 1] == "cresset-1a2b"
    assert argv[argv.index("--network-cidr") + 1] == "10.213.0.0/16"


def test_the_engine_sees_the_proxies_and_nothing_else_of_the_shell() -> None:
    shell = {"HTTPS_PROXY": "http://p:1", "no_proxy": "localhost", "AWS_SECRET": "s", "PATH": "/x"}
    seen = run.environment(shell)
    assert seen["HTTPS_PROXY"] == "http://p:1"
    assert seen["no_proxy"] == "localhost"
    assert "AWS_SECRET" not in seen
    assert seen["PATH"] != "/x"


# Needs


def test_each_missing_tool_comes_with_the_command_that_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    found = {need.what: need for need in local.needs()}
    assert found["mmdebstrap"].mend == "apt-get install -y mmdebstrap"
    assert found["unshare"].mend == "apt-get install -y util-linux"
    assert go_wanted((build.GO / "go.mod").read_text()) in found["Go"].mend
    assert all(need.why for need in found.values())


@pytest.mark.parametrize(
    ("found", "toolchain", "serves"),
    [
        ("1.26.1", "local", True),
        ("1.27", "local", True),
        ("1.26.0", "local", False),
        ("1.22.3", "auto", True),
        ("1.22.3", "path", False),
        ("1.19.8", "auto", False),
        ("", "", False),
    ],
)
def test_an_older_go_serves_where_it_may_fetch_a_newer(
    found: str, toolchain: str, serves: bool
) -> None:
    assert go_serves(found, "1.26.1", toolchain) is serves


# Network


def test_routes_are_read_from_the_kernels_table() -> None:
    table = (
        "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n"
        "eth0\t00000000\t0101A8C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n"
        "eth0\t0001A8C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n"
    )
    assert traces.routes(table) == [IPv4Network("192.168.1.0/24")]


def test_the_range_keeps_clear_of_every_route() -> None:
    first = traces.free_range([])
    assert traces.free_range([IPv4Network("192.168.0.0/16")]) == first
    second = traces.free_range([IPv4Network(first).supernet(new_prefix=15)])
    assert not IPv4Network(second).overlaps(IPv4Network(first))


OURS = '-m comment --comment "name: \\"cresset-1a2b\\" id: \\"x\\""'
NAT = f"""# Generated
*nat
:POSTROUTING ACCEPT [0:0]
:CNI-aa11 - [0:0]
:CNI-bb22 - [0:0]
-A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE
-A POSTROUTING -s 10.213.0.2/32 {OURS} -j CNI-aa11
-A POSTROUTING -s 10.88.0.2/32 -m comment --comment "name: \\"podman\\" id: \\"y\\"" -j CNI-bb22
-A CNI-aa11 -d 10.213.0.0/16 {OURS} -j ACCEPT
-A CNI-aa11 ! -d 224.0.0.0/4 {OURS} -j MASQUERADE
-A CNI-bb22 -d 10.88.0.0/16 -j ACCEPT
COMMIT
"""
FILTER = """*filter
:FORWARD ACCEPT [0:0]
:CNI-ADMIN - [0:0]
:CNI-FORWARD - [0:0]
-A FORWARD -m comment --comment "CNI firewall plugin rules" -j CNI-FORWARD
-A CNI-FORWARD -m comment --comment "CNI firewall plugin admin overrides" -j CNI-ADMIN
-A CNI-FORWARD -d 10.213.0.2/32 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A CNI-FORWARD -s 10.213.0.2/32 -j ACCEPT
COMMIT
"""


def _leftovers(saved: str, keep: tuple[str, ...] = ()) -> list[str]:
    return traces.leftovers(saved, "cresset-1a2b", "10.213.0.0/16", keep).splitlines()


def test_only_our_rules_and_chains_are_removed() -> None:
    assert _leftovers(NAT) == [
        "*nat",
        f"-D POSTROUTING -s 10.213.0.2/32 {OURS} -j CNI-aa11",
        "-F CNI-aa11",
        "-X CNI-aa11",
        "COMMIT",
    ]


def test_the_shared_chains_go_with_their_last_user() -> None:
    script = _leftovers(FILTER)
    assert '-D FORWARD -m comment --comment "CNI firewall plugin rules" -j CNI-FORWARD' in script
    assert script[-5:] == [
        "-F CNI-ADMIN", "-F CNI-FORWARD", "-X CNI-ADMIN", "-X CNI-FORWARD", "COMMIT",
    ]  # fmt: skip


def test_the_shared_chains_stay_where_others_use_them() -> None:
    others = FILTER.replace("COMMIT", "-A CNI-FORWARD -s 10.88.0.2/32 -j ACCEPT\nCOMMIT")
    script = _leftovers(others)
    assert [line for line in script if line.startswith(("-F", "-X"))] == []
    assert [line for line in script if line.startswith("-D")] == [
        "-D CNI-FORWARD -d 10.213.0.2/32 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
        "-D CNI-FORWARD -s 10.213.0.2/32 -j ACCEPT",
    ]


def test_the_shared_chains_stay_where_they_were_before_us() -> None:
    script = _leftovers(FILTER, keep=("CNI-FORWARD", "CNI-ADMIN"))
    assert [line for line in script if line.startswith(("-F", "-X"))] == []


def test_a_clean_table_is_left_alone() -> None:
    assert _leftovers("*nat\n:POSTROUTING ACCEPT [0:0]\nCOMMIT\n") == []
