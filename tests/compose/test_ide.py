"""ssh, JupyterLab and dev containers, each with the real programs of whoever works by them."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from platformdirs import user_cache_path

from tests.compose.test_verbs import ANN, Site, checkout

pytestmark = pytest.mark.docker

CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"
DEVCONTAINER_CLI = "0.83.0"
"""The last that runs on Debian 12's Node."""


@pytest.fixture
def site(
    tmp_path: Path, docker_host: str, docker_config: Path, build: Callable[[str], str]
) -> Iterator[Site]:
    assert build("simple").startswith("cresset:")
    with checkout(tmp_path / "project", docker_host, docker_config, ANN) as it:
        yield it


def add(site: Site, *lines: str) -> None:
    with site.env_file.open("a") as file:
        file.writelines(f"{line}\n" for line in lines)


def free_port() -> int:
    with socket.socket() as it:
        it.bind(("127.0.0.1", 0))
        port: int = it.getsockname()[1]
        return port


def addresses(port: int) -> set[str]:
    """Return the addresses on which somebody listens at a port, as Linux writes them."""
    rows = [
        line.split()
        for table in ("tcp", "tcp6")
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]
    ]
    local = [row[1].split(":") for row in rows if row[3] == "0A"]
    return {address for address, its_port in local if int(its_port, 16) == port}


LOOPBACK = {"0100007F"}


def wait_for(port: int, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not addresses(port):
        assert time.monotonic() < deadline, f"nobody listens on {port}"
        time.sleep(0.1)


@dataclass(frozen=True)
class Ssh:
    """A client with a key, which takes a host's key at first sight alone."""

    folder: Path
    port: int

    @property
    def options(self) -> list[str]:
        known = f"UserKnownHostsFile={self.folder}/known"
        return [
            "-F", "/dev/null", "-i", f"{self.folder}/key", "-o", "IdentitiesOnly=yes", "-o", known,
            "-o", "StrictHostKeyChecking=accept-new", "-o", "BatchMode=yes",
            "-o", "LogLevel=VERBOSE", "-o", f"Port={self.port}",
        ]  # fmt: skip

    def __call__(
        self, command: str, *options: str, user: str = "ann"
    ) -> subprocess.CompletedProcess[str]:
        argv = ["ssh", *self.options, *options, f"{user}@127.0.0.1", command]
        return subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60)

    def must(self, command: str, user: str = "ann") -> str:
        done = self(command, user=user)
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture
def ssh(site: Site, tmp_path: Path) -> Ssh:
    folder = tmp_path / "client"
    folder.mkdir()
    key = folder / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    keys = site.folder / "keys"
    keys.write_text(key.with_suffix(".pub").read_text())
    os.chown(keys, int(ANN["UID"]), int(ANN["GID"]))
    it = Ssh(folder, free_port())
    add(site, f"SSH_PORT={it.port}", "SSH_KEYS=./keys")
    return it


def test_a_command_by_ssh_has_the_environment_of_the_container(site: Site, ssh: Ssh) -> None:
    # Of every image's own environment this one has no LD_PRELOAD.
    library = "/usr/lib/x86_64-linux-gnu/libnss_wrapper.so"
    (site.folder / "docker-compose.override.yaml").write_text(
        f"services: {{simple: {{environment: {{LD_PRELOAD: {library}}}}}}}\n"
    )
    site.must("up")
    wait_for(ssh.port)
    env = dict(line.partition("=")[::2] for line in ssh.must("env").splitlines())
    assert env["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    assert env["PATH"].startswith("/opt/venv/bin:")
    assert env["VIRTUAL_ENV"] == "/opt/venv"
    assert env["LD_PRELOAD"] == library
    assert env["HOME"] == "/home/ann"
    assert {"ADD_USER", "GRP", "SUDO", "USR"}.isdisjoint(env), "it is for `enter` alone"
    assert ssh.must("id -u; id -g; command -v python").split() == [
        "1234",
        "2345",
        env["PATH"][:13] + "/python",
    ]
    assert addresses(ssh.port) == LOOPBACK


def test_the_environment_was_lost_by_ssh_in_the_originals_way(site: Site, ssh: Ssh) -> None:
    """Known issue 1 of the original: sshd begins a new environment, and nothing filled it."""
    asked = "printenv CUDA_DEVICE_ORDER VIRTUAL_ENV || echo lost"
    kept, away = "/run/cresset/environment", "/run/cresset/away"
    site.must("up")
    wait_for(ssh.port)
    assert ssh.must(asked).split() == ["PCI_BUS_ID", "/opt/venv"]
    # The same sshd, user and shell, without what `enter` keeps for them.
    site.compose("exec", "--user", "root", "simple", "mv", kept, away)
    assert ssh.must(asked).split() == ["lost"]


def test_keys_alone_let_in_and_the_user_alone(site: Site, ssh: Ssh) -> None:
    site.must("up")
    wait_for(ssh.port)
    by_password = ["PreferredAuthentications=password,keyboard-interactive", "BatchMode=no"]
    refused = ssh("true", *(word for option in by_password for word in ("-o", option)))
    assert refused.returncode == 255
    assert "Permission denied (publickey)." in refused.stderr, "nothing else is offered"
    stranger = ssh.folder / "stranger"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", stranger], check=True)
    (ssh.folder / "key").replace(ssh.folder / "right")
    stranger.replace(ssh.folder / "key")
    assert ssh("true").returncode == 255
    (ssh.folder / "right").replace(ssh.folder / "key")
    assert ssh("true", user="root").returncode == 255
    assert ssh("true").returncode == 0


def test_a_fresh_container_is_the_host_that_clients_know(site: Site, ssh: Ssh) -> None:
    site.must("up")
    wait_for(ssh.port)
    ssh.must("true")
    known = (ssh.folder / "known").read_text()
    first = site.compose("ps", "--quiet")
    site.must("up")
    assert site.compose("ps", "--quiet") != first
    wait_for(ssh.port)
    ssh.must("true")
    assert (ssh.folder / "known").read_text() == known


def test_files_are_copied_as_the_user(site: Site, ssh: Ssh) -> None:
    site.must("up")
    wait_for(ssh.port)
    sent = ssh.folder / "sent"
    sent.write_text("by scp\n")
    there = "ann@127.0.0.1:/opt/project/there"
    for protocol in ("-s", "-O"):
        subprocess.run(
            ["scp", *ssh.options, protocol, sent, there], check=True, capture_output=True
        )
        made = site.folder / "there"
        assert made.read_text() == "by scp\n"
        assert (made.stat().st_uid, made.stat().st_gid) == (1234, 2345)
        made.unlink()


def test_root_by_ssh_has_the_environment_too(site: Site, ssh: Ssh) -> None:
    os.chown(site.folder / "keys", 0, 0)
    add(site, "ADD_USER=exclude")
    site.must("up")
    wait_for(ssh.port)
    said = ssh.must("id -un; command -v python; printenv CUDA_DEVICE_ORDER", user="root")
    assert said.split() == ["root", "/opt/venv/bin/python", "PCI_BUS_ID"]


def test_a_port_that_is_taken_is_told_of_in_the_log(site: Site, ssh: Ssh) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", ssh.port))
        other.listen()
        site.must("up")
        deadline = time.monotonic() + 20
        while "there is no ssh on port" not in (log := site.compose("logs", "simple")):
            assert time.monotonic() < deadline, log
            time.sleep(0.2)
    assert "Address already in use" in log
    assert site.must("exec", "id", "-un").strip() == "ann"


def index(site: Site) -> None:
    """Let the container reach the package index as this machine does."""
    names = ("PIP_INDEX_URL", "http_proxy", "https_proxy", "no_proxy", "HTTPS_PROXY", "NO_PROXY")
    environment = {name: os.environ[name] for name in names if name in os.environ}
    service = {
        "environment": {**environment, "PIP_CERT": CERTIFICATES},
        "volumes": [f"{CERTIFICATES}:{CERTIFICATES}:ro"],
    }
    (site.folder / "docker-compose.override.yaml").write_text(
        json.dumps({"services": {"simple": service}})
    )


def status(url: str) -> int:
    try:
        with urllib.request.urlopen(url) as response:  # noqa: S310 - http on loopback
            code: int = response.status
    except urllib.error.HTTPError as error:
        error.close()
        return error.code
    return code


@pytest.mark.slow
@pytest.mark.parametrize("add_user", ["include", "exclude"])
def test_jupyterlab_serves_who_has_the_token(site: Site, add_user: str) -> None:
    port = free_port()
    add(site, f"JUPYTER_PORT={port}", f"ADD_USER={add_user}")
    index(site)
    site.must("up")
    wait_for(port, seconds=240)
    deadline = time.monotonic() + 20
    while (found := re.search(r"lab\?token=(\w+)", site.compose("logs", "simple"))) is None:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    api = f"http://127.0.0.1:{port}/api/contents"
    assert status(f"{api}?token={found[1]}") == 200
    assert status(api) == 403
    assert addresses(port) == LOOPBACK
    name = "ann" if add_user == "include" else "root"
    assert site.must("exec", "sh", "-c", "id -un; pwd").split() == [name, "/opt/project"]
    assert site.must("exec", "printenv", "CUDA_DEVICE_ORDER").strip() == "PCI_BUS_ID"


def test_without_an_index_there_is_a_shell_and_no_jupyterlab(site: Site) -> None:
    port = free_port()
    add(site, f"JUPYTER_PORT={port}")
    nowhere = {"PIP_INDEX_URL": f"http://127.0.0.1:{free_port()}/simple", "PIP_RETRIES": "0"}
    (site.folder / "docker-compose.override.yaml").write_text(
        json.dumps({"services": {"simple": {"environment": nowhere}}})
    )
    site.must("up")
    deadline = time.monotonic() + 60
    while "No matching distribution found for jupyterlab" not in (
        log := site.compose("logs", "simple")
    ):
        assert time.monotonic() < deadline, log
        time.sleep(0.2)
    assert site.must("exec", "id", "-un").strip() == "ann"
    assert addresses(port) == set()


@pytest.fixture(scope="session")
def devcontainer_cli() -> Path:
    """Return the devcontainer CLI, which npm fetches once."""
    folder = user_cache_path("cresset") / "tests" / f"devcontainers-cli-{DEVCONTAINER_CLI}"
    program = folder / "node_modules" / ".bin" / "devcontainer"
    if not program.exists():
        folder.mkdir(parents=True, exist_ok=True)
        package = f"@devcontainers/cli@{DEVCONTAINER_CLI}"
        argv = ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", "--prefix"]
        subprocess.run([*argv, folder, package], check=True, capture_output=True)
    return program


@pytest.mark.slow
def test_a_dev_container_is_entered_as_the_user(site: Site, devcontainer_cli: Path) -> None:
    def cli(*args: str) -> str:
        done = subprocess.run(
            [devcontainer_cli, args[0], "--workspace-folder", site.folder, *args[1:]],
            cwd="/", env=site.environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    site.must("devcontainer")
    first = json.loads(cli("up"))
    assert (first["remoteUser"], first["remoteWorkspaceFolder"]) == ("ann", "/opt/project")
    said = cli("exec", "sh", "-c", "id -un; id -u; id -g; pwd; command -v python; touch made")
    assert said.split() == ["ann", "1234", "2345", "/opt/project", "/opt/venv/bin/python"]
    made = (site.folder / "made").stat()
    assert (made.st_uid, made.st_gid) == (1234, 2345)
    assert cli("exec", "printenv", "CUDA_DEVICE_ORDER").strip() == "PCI_BUS_ID"
    settings = json.loads((site.folder / ".devcontainer" / "devcontainer.json").read_text())
    python = settings["customizations"]["vscode"]["settings"]["python.defaultInterpreterPath"]
    assert cli("exec", python, "-c", "print(6 * 7)").strip() == "42"

    assert site.must("exec", "id", "-un").strip() == "ann", "the verbs know it too"
    assert json.loads(cli("up"))["containerId"] == first["containerId"], "what runs is attached to"
    site.compose("stop")
    cli("up")
    assert cli("exec", "id", "-un").strip() == "ann"
    for _ in range(3):
        # The user is looked for at once, and has to be there.
        site.must("down")
        cli("up")
    site.must("down")
    assert site.compose("ps", "--all", "--quiet") == ""


def test_the_compose_files_are_printed_as_compose_reads_them(site: Site) -> None:
    service = json.loads(site.must("compose", "--json"))["services"]["simple"]
    assert service["environment"]["USR"] == "ann"
    assert service["image"].startswith("cresset:simple-")
    assert site.must("compose").startswith("name: test-")
