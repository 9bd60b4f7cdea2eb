"""``install-compose`` with real sources, for a real client of Docker and its daemon."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from pipeline.host.compose_plugin import OLDEST, VERSION
from tests.docker import docker, install_compose

pytestmark = pytest.mark.docker


def version(host: str, config: Path) -> str:
    """Return what ``docker compose version`` says."""
    return docker(host, "compose", "version", "--short", config=config).stdout.strip()


def test_compose_of_the_distribution_answers_to_docker(docker_host: str, tmp_path: Path) -> None:
    installed = json.loads(install_compose(tmp_path, "--from", "apt", "--force", "--json").stdout)
    answered = version(docker_host, tmp_path)
    assert answered == installed["version"]
    assert tuple(map(int, re.findall(r"\d+", answered)[:2])) >= OLDEST
    assert [it.name for it in (tmp_path / "cli-plugins").iterdir()] == ["docker-compose"]
    assert docker(docker_host, "compose", "ls", "--format=json", config=tmp_path).stdout == "[]\n"

    plugin = Path(installed["path"])
    before = plugin.stat()
    again = install_compose(tmp_path)
    assert "is there already" in again.stderr
    assert again.stdout.strip() == str(plugin)
    assert plugin.stat().st_ino == before.st_ino


def test_compose_from_the_first_source_that_works(docker_host: str, docker_config: Path) -> None:
    answered = version(docker_host, docker_config)
    assert tuple(map(int, re.findall(r"\d+", answered)[:2])) >= OLDEST


@pytest.mark.slow
def test_compose_is_compiled_from_its_go_module(docker_host: str, tmp_path: Path) -> None:
    install_compose(tmp_path, "--from", "go", "--force")
    assert version(docker_host, tmp_path).removeprefix("v") == VERSION
    assert docker(docker_host, "compose", "ls", "--format=json", config=tmp_path).stdout == "[]\n"
