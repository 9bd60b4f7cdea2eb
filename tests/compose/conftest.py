"""What the tests of containers share: a daemon, and a client that has Compose."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docker import add_compose, dockerd


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
