"""A Docker daemon of the tests' own, and a folder of Docker's settings with Compose in it."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from platformdirs import user_cache_path

READY_SECONDS = 60.0
ROOT = Path(__file__).parents[1]


@contextlib.contextmanager
def dockerd(folder: Path) -> Iterator[str]:
    """Run a Docker daemon with all it has in `folder`; yield its DOCKER_HOST.

    Its containers have the network of this machine (``host``) or none.
    """
    host = f"unix://{folder}/docker.sock"
    argv = [
        "dockerd", "--host", host, "--data-root", str(folder / "data"),
        "--exec-root", str(folder / "exec"), "--pidfile", str(folder / "pid"),
        # The host's own network and its rules are left alone.
        "--bridge", "none", "--iptables=false", "--ip6tables=false",
    ]  # fmt: skip
    log = folder / "log"
    try:
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
    finally:
        _unmount(folder)


def _unmount(folder: Path) -> None:
    """Unmount what a daemon leaves behind: the network of the host, where a container had it."""
    mounts = [line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()]
    left = [it for it in mounts if Path(it).is_relative_to(folder)]
    if left:
        subprocess.run(["umount", *reversed(left)], check=True)


def docker(
    host: str, *args: str, check: bool = True, config: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run the client against a daemon, with a folder of settings."""
    settings = ["--config", str(config)] if config else []
    done = subprocess.run(
        ["docker", *settings, "--host", host, *args], capture_output=True, text=True, check=False
    )
    assert not check or done.returncode == 0, done.stderr
    return done


def install_compose(
    config: Path, *args: str, check: bool = True
) -> subprocess.CompletedProcess[str]:
    """Run the verb ``install-compose`` for a user whose settings of Docker are in `config`."""
    done = subprocess.run(
        [sys.executable, "-m", "pipeline", "install-compose", *args],
        cwd=ROOT,
        env={**os.environ, "DOCKER_CONFIG": str(config)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert not check or done.returncode == 0, done.stderr
    return done


def add_compose(config: Path) -> Path:
    """Put the plugin into a DOCKER_CONFIG folder; fetched once, and kept in the cache folder."""
    done = install_compose(user_cache_path("cresset") / "tests" / "docker")
    plugin = config / "cli-plugins" / "docker-compose"
    plugin.parent.mkdir(parents=True)
    plugin.symlink_to(done.stdout.strip())
    return plugin
