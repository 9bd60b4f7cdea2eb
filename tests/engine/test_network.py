"""The local engine behind a private CA and a mirror: its own pulls and pushes, over real TLS."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests import services

pytestmark = pytest.mark.engine

# An engine of its own, for a CA is given to an engine as it starts.
PROGRAM = """
import asyncio, os, sys
import dagger
from pipeline import publish
from pipeline.engine import local
from pipeline.host import ca

ca.trust({ca!r})
endpoint = local.start(print)
os.environ["_EXPERIMENTAL_DAGGER_RUNNER_HOST"] = endpoint.runner_host
os.environ["_EXPERIMENTAL_DAGGER_CLI_BIN"] = str(endpoint.session_bin)

async def main():
    async with dagger.connection(dagger.Config(log_output=sys.stderr, retry=None)):
        made = dagger.dag.container().with_new_file("/it", "over TLS")
        await made.publish({registry!r} + "/library/it:1")
        again = dagger.dag.container().from_("docker.io/library/it:1")
        print("READ", await again.file("/it").contents())
    print("FOUND", publish.manifest({registry!r} + "/library/it", "1") is not None)

try:
    asyncio.run(main())
finally:
    local.stop(print)
"""


@dataclass(frozen=True)
class Private:
    """A registry under a CA that nobody knows."""

    host: str
    ca: Path


@pytest.fixture
def private(tmp_path: Path) -> Iterator[Private]:
    """Yield such a registry."""
    ca, pem = services.authority(tmp_path)
    with services.registry(tmp_path, pem=pem) as host:
        yield Private(host, ca)


def ran(private: Private, ca: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run the program, with the registry as mirror of Docker Hub and a CA to trust."""
    config = folder / "dagger"
    config.mkdir()
    mirrors = {"registries": {"docker.io": {"mirrors": [private.host]}}}
    (config / "engine.json").write_text(json.dumps(mirrors))
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as state:
        return subprocess.run(
            [sys.executable, "-c", PROGRAM.format(ca=ca, registry=private.host)],
            env={**os.environ, "XDG_STATE_HOME": state, "XDG_CONFIG_HOME": str(folder)},
            capture_output=True,
            text=True,
            check=False,
        )


def test_a_registry_under_a_private_ca_is_pushed_to_and_is_a_mirror(
    private: Private, tmp_path: Path
) -> None:
    done = ran(private, str(private.ca), tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "READ over TLS" in done.stdout
    assert "FOUND True" in done.stdout


def test_without_its_ca_the_registry_is_refused(private: Private, tmp_path: Path) -> None:
    done = ran(private, "", tmp_path)
    assert done.returncode != 0
    assert "unknown authority" in done.stdout + done.stderr
