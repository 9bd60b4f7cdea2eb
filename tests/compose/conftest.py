"""What the tests of containers share: a daemon, and a client that has Compose."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.docker import ROOT, add_compose, dockerd


@pytest.fixture(scope="session")
def docker_host() -> Iterator[str]:
    """Yield the DOCKER_HOST of a daemon that has nothing; what it was given goes at the end."""
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder,
        dockerd(Path(folder)) as host,
    ):
        yield host


@pytest.fixture(scope="session")
def docker_config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a DOCKER_CONFIG folder with the Compose plugin in it, and nothing else."""
    folder = tmp_path_factory.mktemp("docker-config")
    add_compose(folder)
    return folder


@pytest.fixture(scope="session")
def build(docker_host: str, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """Return what builds a target into the daemon, by the local engine, and returns its name."""
    built: dict[str, str] = {}
    folder = tmp_path_factory.mktemp("image")
    shutil.copytree(ROOT / "reqs", folder / "reqs")

    def image(target: str) -> str:
        if target not in built:
            argv = [sys.executable, "-m", "pipeline", "build-only", target]
            env = {**os.environ, "DOCKER_HOST": docker_host, "ENGINE": "local"}
            done = subprocess.run(
                argv, cwd=folder, env=env, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, done.stderr
            built[target] = done.stdout.strip().partition("@")[0]
        return built[target]

    return image


@pytest.fixture(scope="session", params=["simple", pytest.param("train", marks=pytest.mark.slow)])
def image(request: pytest.FixtureRequest, build: Callable[[str], str]) -> str:
    """Return an image in the daemon: the plain one, and among the slow tests that of torch."""
    return build(request.param)
