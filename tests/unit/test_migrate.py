"""Checkouts of the original taken over: nothing in one is lost without a word.

``data/original/*.json`` holds the facts of its Compose file and requirements at six commits from
its first month to its last, and ``*.env`` the examples of its README.
"""

from __future__ import annotations

import json
import re
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.adopt import services
from pipeline.adopt.migrate import migration
from pipeline.adopt.original import expanded, original
from pipeline.adopt.packages import packages
from pipeline.adopt.report import Fate, Item
from pipeline.settings import NAMES, START, group_of
from pipeline.stages.finish import environment
from tests.unit.running import ROOT, Result, run
from tests.unit.specs import spec

DATA = Path(__file__).parent / "data" / "original"
LAYOUTS = sorted(path.stem for path in DATA.glob("*.json"))
ENVS = sorted(path.stem for path in DATA.glob("*.env"))
# Of each layout, the nearest example of a .env.
OF_THE_TIME = {
    "2021-10-15-0235f63": "",
    "2022-01-23-9565327": "2022-03-26-b4725bd",
    "2022-08-27-00384ad": "2022-08-27-00384ad",
    "2023-03-20-34d5f8b": "2023-01-30-318af75",
    "2023-07-31-17a1362": "2023-04-30-e6f196f",
    "2024-10-22-6fd444c": "2024-09-20-382cc0b",
}
SECRET = "hunter2"  # noqa: S105 - to look for
EDITED = """
services:
  train:
    environment:
      WANDB_API_KEY: ${WANDB_API_KEY}
      NCCL_DEBUG: INFO
      EDITOR: ${EDITOR}
    volumes:
      - ${HOME}:/mnt/home
      - ../data:/mnt/data:ro
      - cache:/root/.cache
      - type: bind
        source: ./weights
        target: /weights
    deploy:
      resources:
        reservations:
          devices:
            - driver: nvidia
              device_ids: ["0"]
              capabilities: [gpu]
        limits:
          memory: 32G
    shm_size: 16GB
    tmpfs:
      - /opt/data
    env_file: secrets.env
  redis:
    image: redis:7
    build: ./redis
volumes:
  cache:
"""


def facts(layout: str) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((DATA / f"{layout}.json").read_text())
    return read


def old_checkout(
    folder: Path, layout: str = LAYOUTS[-1], env: str = "", override: str = ""
) -> Path:
    """Make a checkout of the original as it was at a commit, edited by its user."""
    known = facts(layout)
    (folder / "reqs").mkdir(parents=True)
    # JSON is YAML.
    (folder / "docker-compose.yaml").write_text(json.dumps(known["compose"]))
    for name, content in known["reqs"].items():
        text = json.dumps(content) if isinstance(content, dict) else "\n".join(content)
        (folder / "reqs" / name).write_text(text)
    for name in known["dockerfiles"]:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("FROM scratch\n")
    if env:
        (folder / ".env").write_text(env)
    if override:
        (folder / "docker-compose.override.yaml").write_text(override)
    return folder


def env_of(name: str) -> str:
    return (DATA / f"{name}.env").read_text() if name else ""


def migrated(old: Path, *argv: str) -> tuple[Result, dict[str, Any]]:
    result = run("migrate", str(old), *argv, "--json")
    assert result.code == 0, result.err
    return result, json.loads(result.out)


# Nothing is lost without a word


def things(known: Mapping[str, Any], env: Mapping[str, str]) -> Iterator[tuple[str, str, str]]:
    """Yield every thing of a checkout: where it stands, its kind and its name."""
    for service, options in known["compose"]["services"].items():
        place = f"service {service}"
        yield place, "service", service
        for option, value in options.items():
            match option:
                case "environment":
                    yield from ((place, "variable", name) for name in value)
                case "volumes":
                    targets = [expanded(it, env).partition(":")[2] for it in value]
                    yield from ((place, "volume", target) for target in targets)
                case "build":
                    yield from ((place, "build", it) for it in value if it != "args")
                    args = value.get("args") or {}
                    yield from ((place, "build arg", name) for name in args)
                case "deploy":
                    yield place, "option", "deploy.resources.reservations.devices"
                case _:
                    yield place, "option", option
    for part in ("networks", "volumes"):
        for name in known["compose"].get(part) or {}:
            yield "docker-compose.yaml", part.rstrip("s"), name
    for name in env:
        yield ".env", "variable", name
    for name in known["dockerfiles"]:
        yield name, "file", name


def packages_of(content: Any) -> Iterator[str]:
    if isinstance(content, list):
        yield from content
    else:
        for it in content["dependencies"]:
            yield from it["pip"] if isinstance(it, dict) else [it]


@pytest.mark.usefixtures("checkout")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_thing_of_the_original_has_an_answer(layout: str, tmp_path: Path) -> None:
    assert OF_THE_TIME.keys() == set(LAYOUTS)
    old = old_checkout(tmp_path / "old", layout, env_of(OF_THE_TIME[layout]))
    _, said = migrated(old, "--dry-run")
    items = [Item(**it) for it in said["items"]]
    answers = {(it.place, it.kind, it.name): it for it in items}
    wanted = list(things(facts(layout), original(old).env))
    assert len(wanted) > 10
    assert [it for it in wanted if it not in answers] == []
    assert all(it.word for it in items)
    for name, content in facts(layout)["reqs"].items():
        place = f"reqs/{name}"
        if (place, "file", name) not in answers:
            told = {it.name for it in items if it.place == place and it.kind == "package"}
            assert set(packages_of(content)) <= told, name


OFFERED = yaml.safe_load((ROOT / "compose" / "compose.yaml").read_text())["services"]


def test_what_is_said_of_our_compose_file_is_so() -> None:
    assert tuple(OFFERED) == services.ALL
    for name, service in OFFERED.items():
        it = service["environment"]
        assert it.items() >= services.ENVIRONMENT.items()
        for setting in services.OF_SETTINGS:
            assert it[setting] == f"${{{setting}:-{NAMES[setting].default}}}"
        for option in ("tty", "init", "stdin_open"):
            assert service[option] is True, name
        assert {"UID", "GID", "USR", "GRP", "ADD_USER"} <= it.keys()
        assert service["ipc"] == "host"
        assert service["working_dir"].startswith("${PROJECT_ROOT:-")
        assert service["network_mode"].startswith("${NETWORK_MODE:-host")
        assert service["profiles"] == [name]
        mount, *others = service["volumes"]
        assert mount["source"].startswith("${HOST_ROOT")
        assert mount["target"].startswith("${PROJECT_ROOT")
        assert "ide:/var/lib/cresset/ide" in others
    image = environment(spec())
    assert {name: image[name] for name in services.OF_IMAGE} == services.OF_IMAGE


def test_the_compose_files_that_are_named_are_there_and_say_what_is_said() -> None:
    folder = ROOT / "compose"
    for name in OFFERED:

        def of(file: str, service: str = name) -> dict[str, Any]:
            read: dict[str, Any] = yaml.safe_load((folder / file).read_text())
            it: dict[str, Any] = read["services"][service]
            return it

        for file in ("gpu.yaml", "gpu-cdi.yaml"):
            assert "devices" in of(file)["deploy"]["resources"]["reservations"]
        assert of("gpu-runtime.yaml") == {"runtime": "nvidia"}
        for file in ("wsl.yaml", "rootless.yaml"):
            assert of(file)["ipc"] == "private"
            assert "SHM_SIZE" in of(file)["shm_size"]
        assert "SSH_PORT" in of("ssh.yaml")["environment"]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_is_offered_by_ours_is_not_in_the_override_as_well(
    layout: str, tmp_path: Path
) -> None:
    old = old_checkout(tmp_path / "old", layout, env_of(OF_THE_TIME[layout]))
    found = migration(original(old), ROOT / "reqs")
    made = yaml.safe_load(found.override.replace("!override", "")) if found.override else {}
    there = {name for it in made.get("services", {}).values() for name in it.get("environment", {})}
    known = {*services.ENVIRONMENT, *services.OF_SETTINGS}
    assert there.isdisjoint(known)
    # The words that say so are true.
    for it in found.items:
        if it.kind == "variable" and it.place.startswith("service") and "override" in it.word:
            assert it.name in there


def test_the_old_switch_of_cudnn_stays_where_torch_reads_it(tmp_path: Path) -> None:
    def fate(version: str) -> Item:
        old = old_checkout(tmp_path / version, env=f"PYTORCH_VERSION_TAG={version}\n")
        items = migration(original(old), ROOT / "reqs").items
        return next(it for it in items if it.name == "TORCH_CUDNN_V8_API_ENABLED")

    assert "docker-compose.override.yaml" in fate("v1.13.1").word
    assert fate("v2.4.1").fate is Fate.LEFT


# The .env


@pytest.mark.usefixtures("checkout")
@pytest.mark.parametrize("name", ENVS)
def test_the_new_env_is_one_that_ours_reads(name: str, tmp_path: Path) -> None:
    old = old_checkout(tmp_path / "old", env=env_of(name))
    _, said = migrated(old)
    shown = run("config", "--json")
    assert (shown.code, shown.err) == (0, "")
    values = {key: it["value"] for key, it in json.loads(shown.out).items()}
    assert values["HOST_ROOT"] == str(old)
    assert values["CCA"] == "8.6"
    assert values["IMAGE_NAME"] == "cresset"
    before = original(old).env
    same: tuple[str, ...] = (
        "UID",
        "GID",
        "TZ",
        "PYTHON_VERSION",
        "CUDA_VERSION",
        "BUILD_MODE",
        "PROJECT",
    )
    same += ("PYTORCH_VERSION_TAG", "TORCHVISION_VERSION_TAG", "COMMAND", "LINUX_DISTRO")
    for key in same:
        assert key not in before or values[key] == before[key]
    planned = run("plan")
    assert (planned.code == 0) == (said["problems"] == [])


@pytest.mark.usefixtures("checkout")
def test_what_the_compose_file_defaulted_to_is_kept(tmp_path: Path) -> None:
    migrated(old_checkout(tmp_path / "old", env="UID=1000\n"))
    assert "torch2.4.1-cu124-jammy" in run("plan").out


@pytest.mark.usefixtures("checkout")
def test_a_tag_in_env_is_not_outvoted_by_a_default(tmp_path: Path) -> None:
    env = "PYTORCH_VERSION_TAG=v2.3.0\nTORCHVISION_VERSION_TAG=v0.18.0\nCUDA_VERSION=12.1.1\n"
    migrated(old_checkout(tmp_path / "old", env=env))
    assert "torch2.3.0-cu121" in run("plan").out


@pytest.mark.parametrize(
    ("line", "root"),
    [("", "old"), ("HOST_ROOT=.", "old"), ("HOST_ROOT=..", ""), ("HOST_ROOT=../work", "work"),
     ("HOST_ROOT=/data/me", "/data/me")],
)  # fmt: skip
def test_the_projects_folder_stays_where_it_is(line: str, root: str, tmp_path: Path) -> None:
    old = old_checkout(tmp_path / "old", env=f"{line}\nUID=1\n")
    found = migration(original(old), ROOT / "reqs")
    assert found.settings["HOST_ROOT"] == str(tmp_path / root)


@pytest.mark.parametrize(
    ("lines", "name"),
    [
        ("IMAGE_NAME=cresset:train-me", "cresset"),
        ("IMAGE_NAME=cresset:train-me-20240501-101112", "cresset"),
        ("IMAGE_NAME=full-me", "cresset"),
        ("IMAGE_NAME=Team/Vision:Stable", "team/vision:stable"),
        ("IMAGE_NAME=vision:some-more", "vision:some-more"),
    ],
)
def test_the_tag_of_one_user_is_no_name_for_everybody(
    lines: str, name: str, tmp_path: Path
) -> None:
    old = old_checkout(tmp_path / "old", env=f"USR=me\n{lines}\n")
    assert migration(original(old), ROOT / "reqs").settings["IMAGE_NAME"] == name


@pytest.mark.usefixtures("checkout")
def test_what_the_settings_refuse_is_said_in_their_words(tmp_path: Path) -> None:
    env = "CUDA_VERSION=twelve\nPROJECT=my project\nSERVICE=train\nTZ=Asia/Soul\n"
    old = old_checkout(tmp_path / "old", env=env)
    result = run("migrate", str(old))
    assert result.code == 0
    assert "CUDA_VERSION='twelve': not a version number" in result.err
    assert "PROJECT='my project': not a Compose project name" in result.err
    assert "nearest: Asia/Seoul" in result.err
    assert "variable CUDA_VERSION" in result.out
    assert "refused" in result.out
    assert run("config").code == 0


def test_versions_that_no_table_knows_are_said(tmp_path: Path, checkout: Path) -> None:
    old = old_checkout(tmp_path / "old", "2022-08-27-00384ad", env_of("2022-08-27-00384ad"))
    result = run("migrate", str(old))
    assert result.code == 0
    assert "no row for torch 1.11.0" in result.err
    assert "PYTORCH_VERSION_TAG=v1.11.0" in (checkout / ".env").read_text()


def test_flags_of_a_compile_go_where_something_is_compiled(tmp_path: Path) -> None:
    def flags(mode: str) -> str:
        env = f"BUILD_MODE={mode}\nUSE_CUDNN=0\nCCC=8.6\n"
        old = old_checkout(tmp_path / mode, "2023-07-31-17a1362", env)
        return migration(original(old), ROOT / "reqs").settings.get("TORCH_FLAGS", "")

    assert flags("exclude") == ""
    wanted = {"USE_CUDNN=0", "USE_NNPACK=0", "USE_QNNPACK=0", "USE_PRECOMPILED_HEADERS=1"}
    assert set(flags("include").split()) == wanted


# The override


def test_an_edited_override_is_carried_over(tmp_path: Path, checkout: Path) -> None:
    env = f"USR=me\nWANDB_API_KEY={SECRET}$\nUID=1000\n"
    old = old_checkout(tmp_path / "old", env=env, override=EDITED)
    result, _ = migrated(old)
    path = checkout / "docker-compose.override.yaml"
    text = path.read_text()
    assert "devices: !override" in text
    made = yaml.safe_load(text.replace("!override", ""))
    for name in ("train", "full"):
        it = made["services"][name]
        assert it["environment"] == {
            "WANDB_API_KEY": f"{SECRET}$$",
            "NCCL_DEBUG": "INFO",
            "EDITOR": "${EDITOR}",
        }
        assert it["volumes"] == [
            "${HOME}:/mnt/home",
            f"{tmp_path}/data:/mnt/data:ro",
            "cache:/root/.cache",
            {"type": "bind", "source": f"{old}/weights", "target": "/weights"},
        ]
        (device,) = it["deploy"]["resources"]["reservations"]["devices"]
        assert device["device_ids"] == ["0"]
        assert it["deploy"]["resources"]["limits"] == {"memory": "32G"}
        assert (it["shm_size"], it["ipc"], it["tmpfs"]) == ("16GB", "private", ["/opt/data"])
        assert it["env_file"] == [f"{old}/secrets.env"]
    assert made["services"]["redis"] == {"image": "redis:7", "build": f"{old}/redis"}
    assert made["volumes"] == {"cache": None}
    assert "SHM_SIZE=16gb" in (checkout / ".env").read_text()
    assert SECRET not in result.out + result.err + run("migrate", str(old)).out
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_what_was_edited_in_the_compose_file_itself_is_carried_over(tmp_path: Path) -> None:
    known = facts(LAYOUTS[-1])["compose"]
    base = known["services"]["base"]
    base["volumes"] += ["/data:/data", "./logs:/logs"]
    base["environment"]["OMP_NUM_THREADS"] = 4
    base["hostname"] = "gpubox"
    base["user"] = "root"
    known["services"]["train"]["build"]["args"]["CUDA_VERSION"] = "${CUDA_VERSION:-12.1.1}"
    old = old_checkout(tmp_path / "old")
    (old / "docker-compose.yaml").write_text(json.dumps(known))
    found = migration(original(old), ROOT / "reqs")
    made = yaml.safe_load(found.override)["services"]
    assert tuple(sorted(made)) == tuple(sorted(services.ALL))
    for it in made.values():
        assert it["volumes"] == ["/data:/data", f"{old}/logs:/logs"]
        assert it["environment"] == {"OMP_NUM_THREADS": "4"}
        assert it["hostname"] == "gpubox"
    assert found.settings["ADD_USER"] == "exclude"
    assert found.settings["CUDA_VERSION"] == "12.1.1"


def test_a_mirror_edited_into_the_compose_file_is_kept_and_its_password_is_not_shown(
    tmp_path: Path, checkout: Path
) -> None:
    known = facts(LAYOUTS[-1])["compose"]
    args = known["services"]["base"]["build"]["args"]
    args["INDEX_URL"] = f"${{INDEX_URL:-https://me:{SECRET}@mirror.example.com/simple}}"
    args["DEB_OLD"] = "${DEB_OLD:-http://archive.ubuntu.com}"
    args["DEB_NEW"] = "${DEB_NEW:-http://kr.archive.ubuntu.com}"
    known["services"]["train"]["build"]["args"]["IMAGE_FLAVOR"] = "runtime"
    old = old_checkout(tmp_path / "old", env="UID=1000\n")
    (old / "docker-compose.yaml").write_text(json.dumps(known))
    result, _ = migrated(old)
    env = (checkout / ".env").read_text()
    assert f"INDEX_URL=https://me:{SECRET}@mirror.example.com/simple\n" in env
    assert "IMAGE_FLAVOR=runtime\n" in env
    assert "EXTRA_INDEX_URL" not in env
    assert SECRET not in result.out + result.err
    again = run("migrate", str(old))
    assert "https://***@mirror.example.com/simple" in again.out
    assert SECRET not in again.out + again.err


def test_no_default_of_the_original_passes_for_a_choice_of_its_user() -> None:
    had: dict[str, set[str]] = {}
    for layout in LAYOUTS:
        for it in facts(layout)["compose"]["services"].values():
            build = it.get("build") or {}
            args = build.get("args") or {} if isinstance(build, dict) else {}
            for name, value in args.items():
                text = expanded(str(value), {}).strip("'\"")
                had.setdefault({"TORCH_CUDA_ARCH_LIST": "CCA"}.get(name, name), set()).add(text)
    for name, stock in services.STOCK.items():
        defaults = {it for it in had.get(name, set()) if it and "${" not in it}
        assert defaults <= set(stock), name


def test_a_network_of_ones_own_takes_the_place_of_the_machines(tmp_path: Path) -> None:
    override = "services: {train: {networks: [team]}}\nnetworks: {team: {external: true}}\n"
    found = migration(original(old_checkout(tmp_path / "old", override=override)), ROOT / "reqs")
    assert re.search(r"network_mode: !reset", found.override)
    made = yaml.safe_load(re.sub(r"!reset \S+", "null", found.override))
    assert made["services"]["train"] == {"networks": ["team"], "network_mode": None}
    assert made["networks"] == {"team": {"external": True}}


def test_the_service_of_2021_keeps_its_port_and_its_gpu(tmp_path: Path) -> None:
    found = migration(original(old_checkout(tmp_path / "old", LAYOUTS[0])), ROOT / "reqs")
    assert found.settings["SSH_PORT"] == "8080"
    assert found.settings["NETWORK_MODE"] == "bridge"
    assert "device_ids" in found.override


# Requirements


@pytest.mark.parametrize(
    ("dependency", "apt", "pip"),
    [
        ("numpy", [], ["numpy"]),
        ("numpy=1.24", [], ["numpy==1.24.*"]),
        ("numpy==1.24.1", [], ["numpy==1.24.1"]),
        ("conda-forge::numpy=1.24.1=py310h8d", [], ["numpy==1.24.1.*"]),
        ("numpy >=1.24,<2", [], ["numpy>=1.24,<2"]),
        ("opencv", [], ["opencv-python"]),
        ("gxx_linux-64", ["g++"], []),
        ("ffmpeg=4", ["ffmpeg"], []),
        ("pytorch=2.0", [], []),
        ("mkl", [], []),
        ("git", [], []),
    ],
)
def test_a_dependency_of_condas_becomes_what_apt_or_pip_has(
    dependency: str, apt: list[str], pip: list[str]
) -> None:
    content = json.dumps({"dependencies": [dependency]})
    found = packages({"train-environment.yaml": content}, "train", ["git"])
    assert (found.apt, found.pip) == (apt, pip)
    assert [it.name for it in found.items] == [dependency]


def test_lists_add_to_ours_and_only_once(tmp_path: Path, checkout: Path) -> None:
    old = old_checkout(tmp_path / "old", "2022-08-27-00384ad", "UID=1\n")
    (old / "reqs" / "apt-train.requirements.txt").write_text("zsh  jq  # two\ntmux=3.2a\nnot/ok\n")
    (old / "reqs" / "pip-train.requirements.txt").write_text("torch==1.12\n-r more.txt\njax[cpu]\n")
    apt, pip = (checkout / "reqs" / f"{kind}-train.requirements.txt" for kind in ("apt", "pip"))
    before = apt.read_text(), pip.read_text()
    _, said = migrated(old)
    assert apt.read_text().startswith(before[0])
    assert apt.read_text().splitlines()[-2:] == ["jq", "tmux=3.2a"]
    assert pip.read_text().startswith(before[1])
    assert pip.read_text().splitlines()[-1] == "jax[cpu]"
    fates = {it["name"]: it["fate"] for it in said["items"] if it["kind"] == "package"}
    assert (fates["not/ok"], fates["torch==1.12"]) == ("refused", "not carried over")
    after = apt.read_text(), pip.read_text()
    migrated(old)
    assert (apt.read_text(), pip.read_text()) == after


# Files


def test_nothing_is_ever_written_over(tmp_path: Path, checkout: Path) -> None:
    old = old_checkout(tmp_path / "old", env="UID=1000\n", override=EDITED)
    (checkout / ".env").write_text("# mine\n")
    result = run("migrate", str(old))
    assert result.code == 1
    assert "nothing was written: .env would be written over" in result.err
    assert (checkout / ".env").read_text() == "# mine\n"
    assert not (checkout / "docker-compose.override.yaml").exists()

    _, said = migrated(old, "--force")
    assert said["kept"] == {".env": ".env.bak"}
    assert (checkout / ".env.bak").read_text() == "# mine\n"
    assert "UID=1000" in (checkout / ".env").read_text()
    # The same again is no harm, and a second .bak does not take the place of the first.
    assert set(migrated(old)[1]["files"].values()) == {"nothing to change"}
    (checkout / ".env").write_text("# mine, too\n")
    migrated(old, "--force")
    assert (checkout / ".env.bak").read_text() == "# mine\n"
    assert (checkout / ".env.bak1").read_text() == "# mine, too\n"


def test_a_dry_run_writes_nothing(tmp_path: Path, checkout: Path) -> None:
    old = old_checkout(tmp_path / "old", env="UID=1000\n", override=EDITED)
    before = sorted(checkout.rglob("*"))
    result = run("migrate", str(old), "--dry-run")
    assert result.code == 0
    assert ".env: would be written" in result.out
    assert sorted(checkout.rglob("*")) == before


@pytest.mark.usefixtures("checkout")
@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({}, "is no checkout of the original"),
        ({"docker-compose.yaml": "services: [\n"}, "docker-compose.yaml is not YAML"),
        ({"docker-compose.yaml": "- train\n"}, "docker-compose.yaml is not a mapping"),
        ({"docker-compose.yaml": "services: [a]\n"}, "services: neither a mapping"),
        ({"docker-compose.yaml": "services: {train: [a]}\n"}, "services.train: neither"),
        ({"docker-compose.yaml": "services: {a: {deploy: 3}}\n"}, "services.a.deploy: neither"),
        ({"docker-compose.yaml": "services: {a: {volumes: b}}\n"}, "services.a.volumes: neither"),
        ({".env": b"\xff\xfe"}, "is not UTF-8 text"),
        ({".env": "UID=1\n", "reqs/train-environment.yaml": "a: ["}, "is not YAML"),
        ({".env": "UID=1\n", "reqs/train-environment.yaml": "dependencies: 3"}, "not as conda"),
    ],
)
def test_what_cannot_be_read_is_said(
    files: dict[str, str | bytes], said: str, tmp_path: Path
) -> None:
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    result = run("migrate", str(tmp_path))
    assert result.code == 1
    assert said in result.err
    assert "next: " in result.err


@pytest.mark.parametrize(
    ("text", "filled"),
    [
        ("${A}:$A", "1:1"),
        ("${B:-x}${B-x}${E:-x}${E-x}", "xxx"),
        ("${B:-${A}}", "1"),
        ("${A:+--pre}${B:+--pre}", "--pre"),
        ("$$A ${HOME} ${A:?no}", "$$A ${HOME} 1"),
    ],
)
def test_variables_are_filled_in_as_compose_does(text: str, filled: str) -> None:
    assert expanded(text, {"A": "1", "E": ""}) == filled


def test_the_settings_of_a_container_are_those_that_are_asked_about() -> None:
    # Or a setting of containers could be dropped from compose.yaml unseen.
    text = "".join(path.read_text() for path in (ROOT / "compose").glob("*.yaml"))
    of_start = {name for name, field in NAMES.items() if group_of(field) == START}
    assert {it for it in of_start if f"${{{it}" not in text} <= {"COMMAND", "VERIFY_KEY"}
