"""Doctor's verdict on recorded hosts, and what it shows of one.

Each file in ``data/hosts`` is a machine as far as a public thread tells of it: facts alone, with
the thread's address, and what doctor has to find. What a thread leaves out is left out there too.
"""

from __future__ import annotations

import ast
import base64
import json
import os
import re
import shlex
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from pipeline import doctor, publish, settings, validate
from pipeline.doctor import Advice, Finding, fit
from pipeline.errors import Problem, PublishError
from pipeline.host import gpu, machine
from pipeline.host.machine import Machine
from pipeline.spec import ImageSpec
from tests.unit.running import ROOT, Result, run

pytestmark = pytest.mark.usefixtures("checkout")

FOLDER = Path(__file__).parent / "data" / "hosts"
HOSTS = sorted(FOLDER.glob("*.json"))
ALONE = {"PATH": "/nonexistent"}
"""An environment in which no program is found."""


def host(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text())
    return content


def judged(facts: Any, *argv: str, **given: str) -> tuple[Result, dict[str, Any]]:
    """Return what ``doctor --json`` says of a machine, with these settings."""
    Path("machine.json").write_text(json.dumps(facts))
    ran = run("doctor", *argv, "--machine", "machine.json", "--json", environ=given)
    assert ran.out, ran.err
    content: dict[str, Any] = json.loads(ran.out)
    assert content["exit_code"] == ran.code
    return ran, content


def ids(content: dict[str, Any]) -> list[str]:
    return sorted(it["id"] for it in content["findings"])


# Recorded hosts


@pytest.mark.parametrize("path", HOSTS, ids=lambda it: it.stem)
def test_the_verdict_on_a_recorded_host(path: Path) -> None:
    it = host(path)
    tag = [it["tag"]] if "tag" in it else []
    ran, content = judged(it["machine"], *tag, **it.get("settings", {}))
    assert ids(content) == it["expected"]
    assert ran.code == it["exit_code"]
    assert (content["advice"] or {}).get("tag") == it["fits"]


def test_there_are_enough_recorded_hosts_and_each_has_a_source() -> None:
    hosts = [host(path) for path in HOSTS]
    assert len(hosts) >= 25
    assert len({it["source"] for it in hosts}) >= 25
    assert [it["situation"] for it in hosts if not it["source"].startswith("https://")] == []


HEALTHY = [path for path in HOSTS if path.stem.startswith("healthy-")]


@pytest.mark.parametrize("path", HEALTHY, ids=lambda it: it.stem)
def test_a_healthy_host_is_left_in_peace(path: Path) -> None:
    it = host(path)
    _, content = judged(it["machine"], **it.get("settings", {}))
    assert [found for found in content["findings"] if found["level"] != "note"] == []


def test_among_the_healthy_are_a_hopper_and_an_ada() -> None:
    names = " ".join(json.dumps(host(path)["machine"]) for path in HEALTHY)
    assert "H100" in names
    assert "RTX 4090" in names


# What no thread was found for, beside a machine that is well


WELL = host(FOLDER / "healthy-rtx-4090s.json")["machine"]
NO_NEEDS: dict[str, list[object]] = {"lacks": []}
DOWN = {"server": "", "error": "Cannot connect to the Docker daemon"}


def well(**changes: Any) -> dict[str, Any]:
    """Return the healthy machine with parts of it changed; a dict changes parts of a part."""
    facts = dict(WELL)
    for name, change in changes.items():
        whole = isinstance(change, dict) and isinstance(facts.get(name), dict)
        facts[name] = facts[name] | change if whole else change
    return facts


MADE_UP: dict[str, tuple[dict[str, Any], dict[str, str], set[str]]] = {
    "docker-none": (well(docker={"program": ""} | DOWN), {}, {"engine-none"}),
    "docker-down": (well(docker=DOWN), {}, {"engine-none"}),
    "docker-client-only": (well(docker=DOWN | {"daemon": False}), {}, {"engine-none"}),
    "docker-client-old": (well(docker={"api": "1.39"}), {}, set()),
    "docker-no-zstd": (well(docker={"server": "20.10.25"}), {"COMPRESSION": "zstd"}, set()),
    "daemon-json": (well(toolkit={"daemon_json": "Expecting value: line 1"}), {}, set()),
    "toolkit-bad": (well(toolkit={"version": "1.17.0"}), {}, set()),
    "cdi-off": (
        well(docker={"server": "27.5.1", "cdi_folders": [], "cgroup_driver": "cgroupfs"}),
        {},
        set(),
    ),
    "compose-none": (well(compose={"plugin": ""}), {}, set()),
    "arch-jit": (well(nvidia={"gpus": [{"name": "B200", "capability": "10.0"}]}), {}, set()),
    "wsl-old": (
        well(kernel="4.19.128-microsoft-standard", docker={"system": "Docker Desktop"}),
        {},
        {"wsl-memory"},
    ),
    "engine-none": (well(docker={"rootless": True}, toolkit={"no_cgroups": True}), {}, set()),
    "disk-low": (well(disks=[{"what": "here", "free": 15 * 10**9, "total": 10**12}]), {}, set()),
    "cache-thrown-away": (
        well(disks=[{"what": "docker", "free": 190 * 10**9, "total": 10**12}]),
        {},
        set(),
    ),
    "proxy-registry": (
        well(proxies={"http_proxy": "http://proxy:3128"}, docker={"proxied": True}),
        {"REGISTRY": "localhost:5000"},
        set(),
    ),
    "ca-missing": (well(certificates={"SSL_CERT_FILE": "missing"}), {}, set()),
    "engine-other": (well(), {"ENGINE": "local"}, set()),
    "docker-remote": (well(docker={"remote": True}), {}, set()),
    "registry-login": (well(), {"REGISTRY": "ghcr.io/team"}, set()),
    "registry-away": (
        well(registry={"repository": "ghcr.io/team/cresset", "error": "Connection refused"}),
        {"REGISTRY": "ghcr.io/team"},
        set(),
    ),
    "user-root": (well(uid=0, gid=0), {}, set()),
    "user-name": (well(odd_names=["USR"]), {}, set()),
    "settings": (well(), {"CUDA_VERSION": "9.9"}, set()),
    "unread": (well(unread=["disks: OSError"]), {}, set()),
}


@pytest.mark.parametrize("name", MADE_UP)
def test_a_fault_is_found_and_no_other(name: str) -> None:
    facts, given, others = MADE_UP[name]
    tag = ["py313-torch2.6.0-cu124-sm90ptx-trixie"] if name == "arch-jit" else []
    _, content = judged(facts, *tag, **given)
    assert set(ids(content)) == {name, *others}


MAKERS = {"error", "_error", "warning", "note", "finding"}


def declared() -> Iterator[str]:
    """Yield the ids of all findings that the code can make."""
    for path in (ROOT / "pipeline" / "doctor").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in MAKERS and node.args:
                yield from _texts(node.args[0])


def _texts(node: ast.expr) -> Iterator[str]:
    if isinstance(node, ast.IfExp):
        yield from (*_texts(node.body), *_texts(node.orelse))
    elif isinstance(node, ast.Constant):
        yield str(node.value)


def test_every_finding_is_reached_by_a_host() -> None:
    reached = {name for path in HOSTS for name in host(path)["expected"]} | MADE_UP.keys()
    known = set(declared())
    assert len(known) > 40, "or the code is not read"
    assert reached == known


# Findings


def all_findings() -> Iterator[dict[str, Any]]:
    for path in HOSTS:
        it = host(path)
        tag = [it["tag"]] if "tag" in it else []
        yield from judged(it["machine"], *tag, **it.get("settings", {}))[1]["findings"]
    for facts, given, _ in MADE_UP.values():
        yield from judged(facts, **given)[1]["findings"]


def test_each_finding_says_what_and_why_and_has_a_command_that_mends_it() -> None:
    for it in all_findings():
        assert it["what"], it
        assert it["why"], it
        # A shell could read it, and it is no sentence.
        words = shlex.split(it["mend"])
        assert words, it
        assert not it["mend"].endswith("."), it
        assert it["source"] == "" or it["source"].startswith("https://"), it


def test_root_needs_no_sudo_which_it_may_not_have() -> None:
    facts = well(docker=DOWN)
    assert "sudo systemctl start docker" in judged(facts)[0].out
    assert "sudo" not in judged(facts | {"uid": 0})[0].out


def test_the_worst_comes_first_and_decides_the_exit_code() -> None:
    facts = well(docker=DOWN, compose={"plugin": ""}, odd_names=["USR"])
    ran, content = judged(facts)
    levels = [it["level"] for it in content["findings"]]
    assert levels == sorted(levels, key=["error", "warning", "note"].index)
    assert content["findings"][0]["id"] == "engine-none"
    assert ran.code == 4
    assert judged(well(compose={"plugin": ""}))[0].code == 1
    assert judged(well(odd_names=["USR"]))[0].code == 0


def test_a_machine_without_a_gpu_is_only_warned_of_what_runs_images() -> None:
    facts = well(docker=DOWN, nvidia={"gpus": [], "pci": 0, "driver": ""}, engine=NO_NEEDS)
    ran, content = judged(facts)
    assert ids(content) == ["docker-down", "gpu-none"]
    assert ran.code == 1


@pytest.mark.parametrize(
    ("mode", "free", "found"),
    [("exclude", 40, []), ("include", 40, ["disk-low"]), ("include", 11, ["disk-full"])],
)
def test_the_room_depends_on_what_is_built(mode: str, free: int, found: list[str]) -> None:
    facts = well(disks=[{"what": "engine", "free": free * 10**9, "total": 10**12}])
    given = {"BUILD_MODE": mode, "CCA": "8.9", "LINUX_DISTRO": "ubuntu"}
    assert ids(judged(facts, **given)[1]) == found


def test_an_engine_elsewhere_needs_nothing_here() -> None:
    lacking = {"lacks": [{"what": "root", "why": "mounts"}]}
    for way in ("session", "remote"):
        _, content = judged(well(docker=DOWN, engine=lacking | {way: True}))
        assert ids(content) == ["docker-down"]


def test_a_registry_of_this_machine_is_started_where_it_does_not_answer() -> None:
    registry = {"repository": "localhost:5000/cresset", "error": "Connection refused"}
    _, content = judged(well(registry=registry), REGISTRY="localhost:5000")
    (found,) = content["findings"]
    assert found["mend"] == "docker run -d -p 5000:5000 registry:2"


def test_cdi_without_a_list_of_devices_keeps_a_gpu_from_vanishing_too() -> None:
    assert ids(judged(well(docker={"cdi_devices": []}))[1]) == []
    facts = well(docker={"cdi_devices": []}, toolkit={"specs": []})
    assert ids(judged(facts)[1]) == ["gpu-vanishes"]


def without(facts: Any) -> Iterator[Any]:
    """Yield what is left of a recording when one fact of it is not known."""
    if isinstance(facts, dict):
        for name, value in facts.items():
            rest = {key: it for key, it in facts.items() if key != name}
            yield rest
            yield from (rest | {name: it} for it in without(value))


@pytest.mark.parametrize("path", HOSTS, ids=lambda it: it.stem)
def test_no_missing_fact_ends_in_an_error(path: Path) -> None:
    chosen = settings.load(host(path).get("settings", {}), environ={}).settings
    subject = doctor.by_spec(image(chosen))
    # A path or what is needed is never missing by itself.
    whole = {key: it for key, it in host(path)["machine"].items() if key not in NEVER_MISSING}
    for facts in without(whole):
        it = Machine.model_validate(facts)
        found = doctor.judge(it, chosen, subject, doctor.best(it, chosen, image))
        assert doctor.exit_code(found) in {0, 1, 2, 4, 7, 9}


NEVER_MISSING = {"disks", "registry"}


# The image that fits


def image(of: settings.Settings) -> ImageSpec:
    return validate.image_spec(of)


def advice(facts: dict[str, Any], **given: str) -> Advice | None:
    loaded = settings.load(given, environ={}).settings
    return doctor.best(Machine.model_validate(facts), loaded, image)


def with_gpu(capability: str, driver: str = "595.71.05") -> dict[str, Any]:
    return {"nvidia": {"driver": driver, "gpus": [{"name": "it", "capability": capability}]}}


def test_settings_that_fit_are_left_as_they_are() -> None:
    found = advice(with_gpu("8.6"), python_version="3.12")
    assert found is not None
    assert found.command == "make build"
    assert found.tag == "py312-torch2.15.0-cu132-trixie"


def test_the_command_says_no_more_than_what_has_to_change() -> None:
    found = advice(with_gpu("8.6", "535.161.07"))
    assert found is not None
    assert found.command == "make build PYTORCH_VERSION_TAG=v2.14.1 CUDA_VERSION=12.6"


def test_a_card_for_the_display_decides_nothing() -> None:
    facts = with_gpu("3.5")
    facts["nvidia"]["gpus"].append({"name": "RTX 3090", "capability": "8.6"})
    found = advice(facts)
    assert found is not None
    assert found.command == "make build"
    assert ids(judged(facts)[1]) == ["arch-some"]


def test_another_cuda_goes_before_another_torch() -> None:
    found = advice(with_gpu("6.1", "550.163.01"), pytorch_version_tag="v2.8.0", cuda_version="12.8")
    assert found is not None
    assert found.command == "make build CUDA_VERSION=12.6"


def test_what_the_command_says_really_fits() -> None:
    for capability in ("3.7", "5.2", "6.1", "7.0", "7.5", "8.7", "9.0", "10.0", "12.1"):
        for driver in ("470.86", "535.161.07", "570.144", "580.95.05", "595.71.05"):
            facts = with_gpu(capability, driver)
            found = advice(facts)
            if found is None or found.least_driver:
                continue
            subject = doctor.by_tag(found.tag)
            assert not isinstance(subject, Problem)
            devices = fit.gpus(Machine.model_validate(facts))
            assert fit.fits(subject, devices, driver), (capability, driver, found)
            words = dict(it.split("=", 1) for it in shlex.split(found.command)[2:])
            _, content = judged(facts, **words)
            assert not {"arch-missing", "driver-old"} & set(ids(content)), (capability, driver)


def test_where_only_a_newer_driver_helps_it_is_said() -> None:
    found = advice(with_gpu("12.0", "390.157"))
    assert found is not None
    assert found.least_driver == "580"
    Path("machine.json").write_text(json.dumps(with_gpu("12.0", "390.157")))
    out = run("doctor", "--machine", "machine.json").out
    assert "first: driver 580 or newer" in out


def test_a_published_image_goes_before_a_build() -> None:
    tags = ["py312-torch2.8.0-cu126-noble", "py313-torch2.14.1-cu126-trixie",
            "py313-torch2.15.0-cu132-trixie", "key-0123", "latest"]  # fmt: skip
    registry = {"registry": {"repository": "ghcr.io/team/cresset", "tags": tags}}
    found = advice(with_gpu("6.1", "550.163.01") | registry, registry="ghcr.io/team")
    assert found is not None
    assert found.published
    assert found.command == "docker pull ghcr.io/team/cresset:py313-torch2.14.1-cu126-trixie"
    found = advice(with_gpu("8.9") | registry, registry="ghcr.io/team")
    assert found is not None
    assert found.tag == "py313-torch2.15.0-cu132-trixie"


@pytest.mark.parametrize(
    ("tag", "torch", "cuda", "arches"),
    [
        ("py313-torch2.6.0-cu124-sm75-86ptx-trixie", "2.6.0", "12.4", "7.5 8.6+PTX"),
        ("devel-py312-torch2.8.0-cu128-sm90a-120-noble", "2.8.0", "12.8", "9.0a 12.0"),
        ("ghcr.io/team/cresset:py313-torch2.15.0-cu132-trixie@sha256:" + "0" * 64,
         "2.15.0", "13.2", "7.5 8.0 8.6 9.0 10.0 12.0"),
    ],
)  # fmt: skip
def test_a_tag_says_what_is_in_the_image(tag: str, torch: str, cuda: str, arches: str) -> None:
    subject = doctor.by_tag(tag)
    assert not isinstance(subject, Problem)
    assert (subject.torch, subject.cuda) == (torch, cuda)
    assert " ".join(map(str, subject.arches)) == arches


def test_every_variant_is_read_back_from_its_tag() -> None:
    old = {"pytorch_version_tag": "v2.6.0", "cuda_version": "12.4"}
    compiled = {"build_mode": "include", "cca": "7.5 8.6+PTX", "linux_distro": "ubuntu"}
    for given in ({}, old, compiled):
        spec = image(settings.load(given, environ={}).settings)
        subject = doctor.by_tag(spec.variant)
        assert subject == doctor.by_spec(spec)


# The verb


def test_a_recording_is_replayed_as_it_was_judged() -> None:
    for path in (FOLDER / "docker-desktop-rtx-3080.json", FOLDER / "healthy-rtx-4090s.json"):
        first, content = judged(host(path)["machine"])
        second, again = judged(content)
        assert second.out == first.out
        assert again["machine"] == content["machine"]


def test_a_recording_is_read_from_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    import io  # noqa: PLC0415

    monkeypatch.setattr("sys.stdin", io.StringIO(json.dumps(well(compose={"plugin": ""}))))
    ran = run("doctor", "--machine", "-")
    assert ran.code == 1
    assert "compose-none" in ran.out


def test_a_person_reads_what_why_and_the_command_each_on_a_line_of_its_own() -> None:
    Path("machine.json").write_text(json.dumps(well(docker=DOWN, engine=NO_NEEDS)))
    ran = run("doctor", "--machine", "machine.json", environ={"COLUMNS": "40"})
    assert ran.code == 9
    assert "error: Docker's daemon does not answer (docker-down)\n" in ran.out
    assert "    mend: sudo systemctl start docker\n" in ran.out
    assert ran.out.splitlines()[-2].startswith("fits: cresset:py313-torch2.15.0-cu132-trixie")
    assert ran.out.endswith("    get it: make build\n")
    assert "\x1b" not in ran.out


def test_a_machine_that_is_well_is_told_so() -> None:
    Path("machine.json").write_text(json.dumps(WELL))
    ran = run("doctor", "--machine", "machine.json")
    assert ran.code == 0
    assert ran.out.startswith("nothing is wrong\n")


@pytest.mark.parametrize(
    ("content", "word"),
    [(None, "No such file"), ("{", "Expecting"), ('{"machine": {"x": 1}}', "validation error")],
)
def test_what_is_no_recording_is_refused(content: str | None, word: str) -> None:
    if content is not None:
        Path("it.json").write_text(content)
    ran = run("doctor", "--machine", "it.json")
    assert ran.code == 2
    assert word in ran.err
    assert "doctor --json" in ran.err
    assert "Traceback" not in ran.err


@pytest.mark.parametrize(
    ("tag", "said"),
    [
        ("ubuntu:24.04", "such as py313-torch2.6.0-cu124-sm86-trixie"),
        ("py313-torch9.0.0-cu132-trixie", "no row for torch 9.0.0"),
        ("py313-torch2.6.0-cu999-trixie", "no row for CUDA 99.9"),
    ],
)
def test_a_tag_of_which_nothing_is_known_is_refused(tag: str, said: str) -> None:
    Path("machine.json").write_text(json.dumps(WELL))
    ran = run("doctor", tag, "--machine", "machine.json")
    assert ran.code == 2
    assert said in ran.err


def test_mistakes_in_the_settings_are_findings_beside_the_others() -> None:
    wrong = {"CUDA_VERSION": "9.9", "PYTHON_VERSION": "three"}
    ran, content = judged(well(docker=DOWN, engine=NO_NEEDS), **wrong)
    assert ids(content) == ["docker-down", "settings", "settings"]
    assert ran.code == 9
    assert "fits: mend the settings first\n" in run("doctor", environ=ALONE | wrong).out


def test_the_image_without_torch_fits_everywhere() -> None:
    _, content = judged(with_gpu("2.1", "390.157"), SERVICE="simple")
    assert content["findings"] == []
    assert content["advice"]["tag"] == "simple-py313-trixie"


# Looking


def test_a_machine_without_any_program_is_looked_at() -> None:
    ran = run("doctor", "--json", environ=ALONE)
    content = json.loads(ran.out)
    assert "docker-none" in ids(content)
    facts = content["machine"]
    assert facts["kernel"] == os.uname().release
    assert facts["memory"] > 0
    assert {it["what"] for it in facts["disks"]} == {"engine", "here"}
    assert "unread" not in facts
    Path("doctor.json").write_text(ran.out)
    replayed = run("doctor", "--json", "--machine", "doctor.json")
    assert (replayed.code, replayed.out) == (ran.code, ran.out)


def test_what_cannot_be_looked_at_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("nobody thought of this")

    for name in ("_nvidia", "_docker", "_engine", "_disks"):
        monkeypatch.setattr(machine, name, broken)
    ran = run("doctor", "--json", environ=ALONE)
    content = json.loads(ran.out)
    assert "unread" in ids(content)
    assert len(content["machine"]["unread"]) == 4


def test_what_hangs_is_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    end = threading.Event()
    monkeypatch.setattr(machine, "_SECTION_SECONDS", 0.05)
    monkeypatch.setattr(machine, "_nvidia", end.wait)
    facts = json.loads(run("doctor", "--json", environ=ALONE).out)["machine"]
    end.set()
    assert "nvidia: no answer in 0 s" in facts["unread"]
    assert "nvidia" not in facts


def test_no_secret_and_no_name_gets_into_a_recording() -> None:
    folder = Path("docker").absolute()
    folder.mkdir()
    auth = base64.b64encode(b"jdoe:hunter2").decode()
    config = {"auths": {"ghcr.io": {"auth": auth}, "https://index.docker.io/v1/": {}}}
    (folder / "config.json").write_text(json.dumps(config))
    secret = "http://jdoe:hunter2@proxy.example.com:3128"  # noqa: S105
    environ = ALONE | {
        "DOCKER_CONFIG": str(folder), "https_proxy": secret, "HTTP_PROXY": secret.split("//")[1],
        "_EXPERIMENTAL_DAGGER_RUNNER_HOST": "tcp://jdoe:hunter2@example.com:1",
    }  # fmt: skip
    ran = run("doctor", "--json", environ=environ)
    facts = json.loads(ran.out)["machine"]
    for word in ("hunter2", "jdoe", auth):
        assert word not in ran.out
    assert facts["logins"]["hosts"] == ["ghcr.io", "https://index.docker.io/v1/"]
    assert facts["proxies"]["https_proxy"] == "http://***@proxy.example.com:3128"
    assert facts["engine"]["remote"] is True


@pytest.mark.parametrize(("exists", "kind"), [(True, "own"), (False, "missing")])
def test_certificates_are_told_apart(*, exists: bool, kind: str) -> None:
    own = Path("own.pem").absolute()
    if exists:
        own.write_text("")
    system = "/etc/ssl/certs/ca-certificates.crt"
    found = run("doctor", "--json", environ=ALONE | {"REQUESTS_CA_BUNDLE": str(own)})
    assert json.loads(found.out)["machine"]["certificates"]["REQUESTS_CA_BUNDLE"] == kind
    if Path(system).exists():
        found = run("doctor", "--json", environ=ALONE | {"REQUESTS_CA_BUNDLE": system})
        assert json.loads(found.out)["machine"]["certificates"]["REQUESTS_CA_BUNDLE"] == "system"


VERSION: dict[str, Any] = {
    "Client": {"Version": "29.4.0", "ApiVersion": "1.54", "Context": "default"},
    "Server": {"Version": "29.4.0", "MinAPIVersion": "1.40"},
    "error": "",
}
INFO: dict[str, Any] = {
    "OperatingSystem": "Arch Linux",
    "DockerRootDir": "/var/lib/docker",
    "CgroupDriver": "systemd",
    "CgroupVersion": "2",
    "Runtimes": {"runc": {"path": "runc"}, "nvidia": {"path": "nvidia-container-runtime"}},
    "SecurityOptions": ["name=seccomp,profile=builtin", "name=cgroupns"],
    "CDISpecDirs": ["/etc/cdi", "/var/run/cdi"],
    "DiscoveredDevices": [{"Source": "cdi", "ID": "nvidia.com/gpu=all"}],
    "HttpProxy": "http://xxxxx:xxxxx@proxy:3128",
    "Name": "secret-host",
    "error": "",
}


def test_docker_is_read_from_what_it_prints() -> None:
    it = machine.docker_facts("/usr/bin/docker", "Docker version 29.4.0, build 9d7", VERSION, INFO)
    assert (it.client, it.server, it.api, it.least_api) == ("29.4.0", "29.4.0", "1.54", "1.40")
    assert (it.cgroup_driver, it.cgroup_version, it.rootless) == ("systemd", "2", False)
    assert it.runtimes == ("nvidia", "runc")
    assert it.cdi_devices == ("nvidia.com/gpu=all",)
    assert it.proxied
    assert "secret-host" not in it.model_dump_json()
    rootless = INFO | {"SecurityOptions": ["name=rootless"], "Runtimes": None}
    it = machine.docker_facts("docker", "Docker version 29.4.0", VERSION, rootless)
    assert it.rootless
    assert it.runtimes == ()


def test_a_client_without_a_daemon_and_podman_are_read_too() -> None:
    said = "Cannot connect to the Docker daemon at unix:///var/run/docker.sock."
    alone = {"Client": VERSION["Client"], "Server": None, "error": said}
    it = machine.docker_facts("docker", "Docker version 28.2.2, build e6534b4", alone, {})
    assert (it.server, it.error, it.podman) == ("", said, False)
    it = machine.docker_facts("docker", "podman version 4.9.3\n", {"error": ""}, {})
    assert (it.podman, it.client) == (True, "4.9.3")


SMI = """\
| NVIDIA-SMI 535.161.07   Driver Version: 535.161.07   CUDA Version: 12.2     |
|   0  NVIDIA A100-SXM4-40GB       On  | 00000000:00:04.0 Off |                    0 |
"""


def test_nvidia_smi_stands_in_for_the_library() -> None:
    first = "535.161.07, NVIDIA A100-SXM4-40GB, 8.0, 40960, Disabled"
    query = f"{first}\n535.161.07, it, [N/A], [N/A], Enabled\n"
    it = gpu.by_smi(SMI, query, "NVML Shared Library Not Found")
    assert (it.driver, it.cuda) == ("535.161.07", "12.2")
    assert it.gpus[0] == gpu.Gpu(
        name="NVIDIA A100-SXM4-40GB", capability="8.0", memory=40960 * 2**20
    )
    assert it.gpus[1] == gpu.Gpu(name="it", mig="on")
    assert gpu.by_smi("NVIDIA-SMI has failed", "", "it").gpus == ()


def test_the_driver_of_a_cdi_specification_is_in_the_names_of_its_libraries() -> None:
    spec = "hostPath: /usr/lib/x86_64-linux-gnu/libcuda.so.580.159.04\n"
    assert machine.cdi_driver(spec) == "580.159.04"
    assert machine.cdi_driver("hostPath: /usr/lib/wsl/drivers/it/libcuda.so.1.1\n") == "1.1"
    assert machine.cdi_driver("") == ""


class Answer:
    """A registry's answer."""

    def __init__(self, status: int, content: Any = None, link: str = "") -> None:
        self.headers = {"Link": link}
        self.status_code = status
        self.ok = status < 400
        self.reason = "Forbidden" if status == 403 else "it"
        self.text = json.dumps(content)

    def json(self) -> Any:
        return json.loads(self.text)


def test_the_tags_of_the_registry_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, ...]] = []
    following = '</v2/team/cresset/tags/list?last=b&n=1000>; rel="next"'

    def get(*what: str) -> Answer:
        asked.append(what)
        if len(asked) == 1:
            return Answer(200, {"tags": ["a", "b", "key-0"]}, following)
        return Answer(200, {"tags": ["c"]})

    monkeypatch.setattr(publish, "_get", get)
    ran = run("doctor", "--json", environ=ALONE | {"REGISTRY": "ghcr.io/team"})
    assert json.loads(ran.out)["machine"]["registry"]["tags"] == ["a", "b", "c"]
    assert asked == [
        ("ghcr.io", "team/cresset", "tags/list?n=1000", "GET"),
        ("ghcr.io", "team/cresset", "tags/list?last=b&n=1000", "GET"),
    ]


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        (Answer(404), []),
        (Answer(200, {"tags": None}), []),
        (Answer(403), ["registry-denied"]),
        (Answer(500), ["registry-away"]),
        (Answer(200, ["not", "a", "registry"]), ["registry-away"]),
        (requests.ConnectionError("refused"), ["registry-away"]),
    ],
    ids=lambda it: "" if isinstance(it, list) else str(getattr(it, "status_code", it)),
)
def test_a_registry_that_does_not_answer_well_is_a_finding(
    answer: Answer | Exception, found: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def get(*_: str) -> Answer:
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(publish, "_get", get)
    ran = run("doctor", "--json", environ=ALONE | {"REGISTRY": "ghcr.io/team"})
    about = [it for it in ids(json.loads(ran.out)) if it.startswith("registry-")]
    assert about == (found or ["registry-login"])
    if found:
        with pytest.raises(PublishError):
            publish.published("ghcr.io/team/cresset", tries=1)


def test_the_readme_shows_what_doctor_says() -> None:
    text = (ROOT / "README.md").read_text()
    shown = re.search(r"^\$ python -m pipeline (doctor .*)\n([^`]*)^```", text, re.MULTILINE)
    assert shown is not None
    words = shlex.split(shown[1])
    assert run(*words[:-1], str(ROOT / words[-1])).out == shown[2]


def test_findings_are_values() -> None:
    it = Finding(id="it", level=doctor.Level.NOTE, what="what", why="why", mend="true")
    assert doctor.exit_code([it]) == doctor.exit_code([]) == 0
