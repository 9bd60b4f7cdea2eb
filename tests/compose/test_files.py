"""The files of ``compose/`` under real Compose, the oldest that we know of and the newest."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from pipeline.compose import BASE, FOLDER, IMAGES, ROOT
from tests import docker as tests_docker

pytestmark = pytest.mark.docker

OVERRIDES = sorted(
    it.name for it in (tests_docker.ROOT / FOLDER).glob("*.yaml") if it.name != BASE.name
)
VARIABLES = {
    "IMAGE": "cresset:dev", "UID": "1234", "GID": "2345", "USR": "ann", "GRP": "lab",
    "SSH_PORT": "2222", "SSH_KEYS": "/dev/null", "JUPYTER_PORT": "8888",
}  # fmt: skip


@pytest.fixture(
    scope="session", params=["distribution", pytest.param("newest", marks=pytest.mark.slow)]
)
def config(
    request: pytest.FixtureRequest, docker_config: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Return a folder of Docker's settings with a Compose: Debian's 2.26, or the newest we pin."""
    if request.param == "distribution":
        return docker_config
    folder: Path = tmp_path_factory.mktemp("newest")
    tests_docker.install_compose(folder, "--from", "go", "--force")
    return folder


def configured(config: Path, folder: Path, *files: str, **variables: str) -> dict[str, Any]:
    """Return what Compose makes of the files; the test fails where it refuses them."""
    chosen = [word for name in (str(ROOT), str(BASE), *files) for word in ("-f", name)]
    argv = ["docker", "--config", str(config), "compose", *chosen, "--profile", "*", "config"]
    env = {"PATH": os.environ["PATH"], "HOME": "/home/ann", **VARIABLES, **variables}
    done = subprocess.run([*argv, "--format", "json"], cwd=folder, env=env, capture_output=True,
                          text=True, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stderr.lower(), done.stderr
    services: dict[str, Any] = json.loads(done.stdout)["services"]
    return services


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shutil.copytree(tests_docker.ROOT / FOLDER, tmp_path / FOLDER)
    shutil.copy(tests_docker.ROOT / ROOT, tmp_path)
    return tmp_path


@pytest.mark.parametrize("override", OVERRIDES)
def test_each_override_is_valid_and_changes_each_service(
    config: Path, folder: Path, override: str
) -> None:
    plain = configured(config, folder)
    changed = configured(config, folder, f"{FOLDER}/{override}")
    assert set(plain) == set(changed) == {*IMAGES, "full"}
    assert [name for name in plain if plain[name] == changed[name]] == []


def test_all_that_go_together_are_valid_together(config: Path, folder: Path) -> None:
    (folder / "docker-compose.override.yaml").write_text(
        "services: {train: {volumes: ['./data:/data'], ports: ['127.0.0.1:6006:6006']}}\n"
    )
    files = ["gpu.yaml", "wsl.yaml", "ssh.yaml", "jupyter.yaml"]
    chosen = [*(f"{FOLDER}/{name}" for name in files), "docker-compose.override.yaml"]
    train = configured(config, folder, *chosen, NETWORK_MODE="bridge")["train"]
    (device,) = train["deploy"]["resources"]["reservations"]["devices"]
    assert (device["driver"], device["count"], device["capabilities"]) == ("nvidia", -1, ["gpu"])
    assert train["ipc"] == "private"
    assert str(folder / "data") in [it["source"] for it in train["volumes"]]


def test_what_the_services_share_is_what_the_original_had(config: Path, folder: Path) -> None:
    services = configured(config, folder)
    for service in services.values():
        assert (service["tty"], service["stdin_open"], service["init"]) == (True, True, True)
        assert (service["ipc"], service["network_mode"]) == ("host", "host")
        assert service["environment"]["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
        assert {it["target"] for it in service["volumes"]} == {
            "/opt/project", "/var/lib/cresset/history", "/var/lib/cresset/ide",
        }  # fmt: skip
        assert "build" not in service
        assert "user" not in service
    sources = [it["source"] for it in services["train"]["volumes"]]
    assert sources == [str(folder), "history", "ide"]
