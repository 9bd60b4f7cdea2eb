"""What is delivered, run by a real Docker daemon."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from pipeline.engine import select
from tests.docker import docker, dockerd
from tests.engine.conftest import Checkout

pytestmark = [pytest.mark.engine, pytest.mark.docker, pytest.mark.slow]

IMPORTS = "import torch, torchvision; print(torch.__version__, torchvision.__version__)"


def run(host: str, image: str, *command: str) -> str:
    return docker(host, "run", "--rm", "--network", "none", image, *command).stdout


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with dockerd(tmp_path_factory.mktemp("docker")) as host:
        yield host


def test_docker_pulls_the_dev_image_and_runs_it(
    checkout: Checkout, registry: str, daemon: str
) -> None:
    built = checkout.cresset("build", "--registry", registry, "--json")
    assert built.code == 0, built.err
    ref = built.json["ref"]
    docker(daemon, "pull", "--quiet", ref)
    torch, vision = run(daemon, ref, "python", "-c", IMPORTS).split()
    assert f"torch{torch.partition('+')[0]}" in built.json["variant"]
    assert vision.startswith("0.")
    assert "not found" not in run(daemon, ref, "sh", "-c", "ldd /opt/venv/lib/libiomp5.so")
    assert run(daemon, ref, "sh", "-c", "ls /mnt /tmp /home | grep -v :").split() == []


def test_without_a_registry_the_image_goes_into_docker(checkout: Checkout, daemon: str) -> None:
    built = checkout.cresset("build", "simple", "--json", DOCKER_HOST=daemon)
    assert built.code == 0, built.err
    variant = built.json["variant"]
    config = json.loads(docker(daemon, "image", "inspect", f"cresset:{variant}").stdout)[0]
    assert config["Id"] == built.json["digest"]
    assert config["Config"]["User"] == ""
    assert run(daemon, f"cresset:{variant}", "python", "--version").startswith("Python 3.13")
    again = checkout.cresset("build", "simple", DOCKER_HOST=daemon, ENGINE="session")
    assert again.code == 0, "nothing is left to do, so no engine is needed"


def test_a_docker_that_cannot_run_the_engine_is_passed_over(
    checkout: Checkout, daemon: str
) -> None:
    checkout.require_something_new()
    built = checkout.cresset("build", "simple", DOCKER_HOST=daemon, ENGINE="auto")
    assert built.code == 0, built.err
    assert "engine: local" in built.err
    assert f"docker: {select.ENGINE_IMAGE} cannot be pulled" in built.err


def test_a_privileged_container_that_cannot_start_is_no_engine(
    checkout: Checkout, daemon: str
) -> None:
    """The image is a stand-in for the engine's: what is tried is whether it may start."""
    stand_in = checkout.cresset("build", "simple", "--json", DOCKER_HOST=daemon)
    assert stand_in.code == 0, stand_in.err
    docker(daemon, "tag", f"cresset:{stand_in.json['variant']}", select.ENGINE_IMAGE)
    trial = docker(daemon, "run", "--rm", "--privileged", select.ENGINE_IMAGE, "true", check=False)
    if trial.returncode == 0:
        pytest.skip("this Docker may run privileged containers")
    checkout.require_something_new()
    client = {select.CLI_BIN: "true"}
    built = checkout.cresset("build", "simple", DOCKER_HOST=daemon, ENGINE="auto", **client)
    assert built.code == 0, built.err
    assert "docker: a privileged container cannot start" in built.err
