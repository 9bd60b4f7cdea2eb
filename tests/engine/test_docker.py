"""What is delivered, run by a real Docker daemon; ``make test-slow`` starts Debian's."""

from __future__ import annotations

import contextlib
import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.engine import select
from tests.engine.conftest import Checkout

pytestmark = [pytest.mark.engine, pytest.mark.docker, pytest.mark.slow]

READY_SECONDS = 60.0
IMPORTS = "import torch, torchvision; print(torch.__version__, torchvision.__version__)"


@contextlib.contextmanager
def dockerd(folder: Path) -> Iterator[str]:
    """Run a Docker daemon with all it has in `folder`; yield its DOCKER_HOST."""
    host = f"unix://{folder}/docker.sock"
    argv = [
        "dockerd", "--host", host, "--data-root", str(folder / "data"),
        "--exec-root", str(folder / "exec"), "--pidfile", str(folder / "pid"),
        # Containers here need no network, and the host's own is left alone.
        "--bridge", "none", "--iptables=false", "--ip6tables=false",
    ]  # fmt: skip
    log = folder / "log"
    with log.open("wb") as out, subprocess.Popen(argv, stdout=out, stderr=out) as process:
        try:
            deadline = time.monotonic() + READY_SECONDS
            while docker(host, "version", check=False).returncode:
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.2)
            yield host
        finally:
            process.terminate()


def docker(host: str, *args: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        ["docker", "--host", host, *args], capture_output=True, text=True, check=False
    )
    assert not check or done.returncode == 0, done.stderr
    return done


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
