"""The daily verbs, with a real Docker, a real Compose and a real terminal."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests import services
from tests.docker import ROOT, docker

pytestmark = pytest.mark.docker


@dataclass(frozen=True)
class Site:
    """A checkout of somebody's, on a machine with a Docker."""

    folder: Path
    environment: dict[str, str]

    @property
    def env_file(self) -> Path:
        return self.folder / ".env"

    @property
    def project(self) -> str:
        lines = self.env_file.read_text().splitlines()
        return next(it for it in lines if it.startswith("PROJECT=")).partition("=")[2]

    def cresset(self, *args: str, **env: str) -> subprocess.CompletedProcess[str]:
        argv = [sys.executable, "-m", "pipeline", *args]
        return subprocess.run(
            argv, cwd=self.folder, env={**self.environment, **env}, capture_output=True,
            text=True, stdin=subprocess.DEVNULL, check=False,
        )  # fmt: skip

    def must(self, *args: str, **env: str) -> str:
        done = self.cresset(*args, **env)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def compose(self, *args: str) -> str:
        """Run ``docker compose`` as somebody types it."""
        done = subprocess.run(
            ["docker", "compose", *args], cwd=self.folder, env=self.environment,
            capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout


@contextmanager
def checkout(folder: Path, host: str, config: Path, user: dict[str, str]) -> Iterator[Site]:
    """Yield a checkout of this user's, and take its containers down at the end."""
    folder.mkdir()
    shutil.copytree(ROOT / "compose", folder / "compose")
    shutil.copytree(ROOT / "reqs", folder / "reqs")
    shutil.copy(ROOT / ".compose.yaml", folder)
    os.chown(folder, int(user["UID"]), int(user["GID"]))
    for it in (folder, *folder.parents):
        if not it.stat().st_mode & 0o001:
            it.chmod(0o755)
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    site = Site(folder, {**kept, "DOCKER_HOST": host, "DOCKER_CONFIG": str(config)})
    flags = [word for name, value in user.items() for word in (f"--{name.lower()}", value)]
    site.must("env", "--service", "simple", *flags, "--project", f"test-{uuid.uuid4().hex[:8]}")
    try:
        yield site
    finally:
        site.cresset("down", "--volumes")


PROMPT = "\N{HEAVY RIGHT-POINTING ANGLE QUOTATION MARK ORNAMENT}"
"""Of pure."""

ANN = {"UID": "1234", "GID": "2345", "USR": "ann", "GRP": "lab"}
BOB = {"UID": "5678", "GID": "2345", "USR": "bob", "GRP": "lab"}


@pytest.fixture
def simple(build: Callable[[str], str]) -> str:
    return build("simple")


@pytest.fixture
def ann(tmp_path: Path, docker_host: str, docker_config: Path, simple: str) -> Iterator[Site]:
    assert simple.startswith("cresset:")
    with checkout(tmp_path / "project", docker_host, docker_config, ANN) as site:
        yield site


def test_a_day_with_a_container(ann: Site) -> None:
    up = ann.cresset("up")
    assert "simple is up, from cresset:simple-" in up.stderr
    assert ann.must("exec", "sh", "-c", "id -un; pwd").split() == ["ann", "/opt/project"]
    ann.must("exec", "touch", "made")
    made = (ann.folder / "made").stat()
    assert (made.st_uid, made.st_gid) == (1234, 2345)

    ann.must("exec", "touch", "/home/ann/kept")
    first = ann.compose("ps", "--quiet")
    ann.compose("stop")
    refused = ann.cresset("exec", "true")
    assert refused.returncode == 9
    assert "next: start it with `make up SERVICE=simple`" in refused.stderr
    ann.must("start")
    assert ann.compose("ps", "--quiet") == first
    ann.must("exec", "test", "-e", "/home/ann/kept")

    ann.must("up")
    assert ann.compose("ps", "--quiet") != first, "a fresh one"
    assert ann.cresset("exec", "test", "-e", "/home/ann/kept").returncode == 1

    (row,) = [it for it in json.loads(ann.must("ls", "--json")) if it["name"] == ann.project]
    assert row["status"] == "running(1)"
    ann.must("down")
    assert ann.compose("ps", "--all", "--quiet") == ""
    assert ann.must("run", "id", "-un").split()[-1] == "ann"
    assert ann.compose("ps", "--all", "--quiet") == "", "it goes when it ends"


def test_exit_codes_and_input_pass_through(ann: Site) -> None:
    ann.must("up")
    assert ann.cresset("exec", "sh", "-c", "exit 7").returncode == 7
    assert ann.cresset("run", "sh", "-c", "exit 8").returncode == 8
    piped = subprocess.run(
        [sys.executable, "-m", "pipeline", "exec", "tr", "a-z", "A-Z"], cwd=ann.folder,
        env=ann.environment, input="into the container\n", capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    assert piped.stdout == "INTO THE CONTAINER\n"


@pytest.fixture
def terminal(ann: Site, tmp_path: Path) -> Iterator[Callable[..., str]]:
    """Yield what runs tmux, a terminal of its own, with a shell in Ann's folder."""
    socket = str(tmp_path / "tmux")

    def tmux(*args: str) -> str:
        argv = ["tmux", "-S", socket, "-f", "/dev/null", *args]
        env = {**ann.environment, "TERM": "xterm-256color", "PYTHONPATH": str(ROOT)}
        done = subprocess.run(argv, cwd=ann.folder, env=env, capture_output=True, text=True,
                              check=True)  # fmt: skip
        return done.stdout

    tmux("new-session", "-d", "-x", "120", "-y", "30", "-c", str(ann.folder), "sh")
    yield tmux
    tmux("kill-server")


def shows(tmux: Callable[..., str], text: str) -> str:
    """Return the screen once it shows a text."""
    deadline = time.monotonic() + 20
    while text not in (screen := tmux("capture-pane", "-p")):
        assert time.monotonic() < deadline, screen
        time.sleep(0.1)
    return screen


def test_a_shell_in_a_real_terminal(ann: Site, terminal: Callable[..., str]) -> None:
    ann.must("up")
    terminal("send-keys", f"{sys.executable} -m pipeline exec; echo code $?", "Enter")
    shows(terminal, PROMPT)
    terminal("send-keys", "echo $ZSH_NAME-$(id -un)-$(tput cols) > made; stty size", "Enter")
    shows(terminal, "30 120")
    assert (ann.folder / "made").read_text() == "zsh-ann-120\n"
    assert (ann.folder / "made").stat().st_uid == 1234
    # A program that wants the whole terminal, and Ctrl-C, which ends it and not the shell.
    terminal(
        "send-keys", 'python -c \'import time; print("wait" + "ing"); time.sleep(60)\'', "Enter"
    )
    shows(terminal, "waiting")
    terminal("send-keys", "C-c", "")
    shows(terminal, "KeyboardInterrupt")
    terminal("send-keys", "exit 5", "Enter")
    shows(terminal, "code 5")


def test_history_outlives_the_container(ann: Site, terminal: Callable[..., str]) -> None:
    ann.must("up")
    terminal("send-keys", f"{sys.executable} -m pipeline exec; echo left", "Enter")
    shows(terminal, PROMPT)
    terminal("send-keys", "echo remember-$((40+2))", "Enter")
    shows(terminal, "remember-42")
    terminal("send-keys", "exit", "Enter")
    shows(terminal, "\nleft")
    ann.must("up")
    assert "remember-$((40+2))" in ann.must("exec", "zsh", "-ic", 'cat "$HISTFILE"')


def test_two_users_on_one_machine(
    ann: Site, tmp_path: Path, docker_host: str, docker_config: Path
) -> None:
    with checkout(tmp_path / "bobs", docker_host, docker_config, BOB) as bob:
        ann.must("up")
        bob.must("up")
        for site in (ann, bob):
            site.must("exec", "sh", "-c", 'id -un > "$USER"')
        assert (ann.folder / "ann").stat().st_uid == 1234
        assert (bob.folder / "bob").stat().st_uid == 5678
        bob.must("down")
        ann.must("exec", "true")


def test_what_is_typed_by_hand_is_the_same_container(ann: Site) -> None:
    (ann.folder / "data").mkdir()
    (ann.folder / "data" / "here").touch()
    ann.must("over")
    (ann.folder / "docker-compose.override.yaml").write_text(
        "services: {simple: {volumes: ['./data:/data'], environment: {MINE: '1'}}}\n"
    )
    ann.compose("up", "--detach")
    shown = ann.must("exec", "sh", "-c", "ls /data; echo $MINE; id -un").split()
    assert shown == ["here", "1", "ann"]
    ann.must("up")
    assert ann.compose("exec", "--no-TTY", "simple", "enter", "ls", "/data").split() == ["here"]


def test_without_an_image_it_says_how_to_make_one(ann: Site) -> None:
    missing = ann.cresset("up", IMAGE_SIMPLE="cresset:nothing-of-that-name")
    assert missing.returncode == 9
    assert missing.stdout == ""
    assert "there is no image cresset:nothing-of-that-name" in missing.stderr
    assert "next: run `make build SERVICE=simple`" in missing.stderr
    ann.env_file.unlink()
    by_hand = ann.compose("-f", "compose/compose.yaml", "--profile", "*", "config", "--images")
    assert set(by_hand.split()) >= {"missing/run-make-build"}
    assert all(name.startswith("missing/run-") for name in by_hand.split())


@pytest.fixture
def published(docker_host: str, simple: str, tmp_path: Path) -> Iterator[tuple[str, str]]:
    """Yield the image as a registry has it: its reference with a tag, and its digest."""
    with services.registry(tmp_path) as registry:
        tag = f"{registry}/team/cresset:dev"
        docker(docker_host, "tag", simple, tag)
        docker(docker_host, "push", "--quiet", tag)
        shown = docker(docker_host, "image", "inspect", "--format", "{{json .RepoDigests}}", tag)
        digest = next(it for it in json.loads(shown.stdout) if registry in it).partition("@")[2]
        docker(docker_host, "rmi", tag)
        yield tag, digest


def test_up_pulls_the_tag_and_holds_it_to_the_digest(ann: Site, published: tuple[str, str]) -> None:
    tag, digest = published
    pinned = f"{tag}@{digest}"
    up = ann.cresset("up", IMAGE_SIMPLE=pinned)
    assert up.returncode == 0, up.stderr
    assert f"from {pinned}" in up.stderr
    ann.must("down")

    other = f"{tag}@sha256:{'0' * 64}"
    refused = ann.cresset("up", IMAGE_SIMPLE=other)
    assert refused.returncode == 9
    assert "neither here nor to be had from its registry" in refused.stderr
    assert ann.compose("ps", "--all", "--quiet") == ""


def test_up_builds_if_it_is_told_to(ann: Site) -> None:
    built = ann.cresset("up", "--build", ENGINE="local")
    assert built.returncode == 0, built.stderr
    assert re.search("nothing to do: simple-|delivered to Docker", built.stderr)
    assert "simple is up" in built.stderr


def test_a_docker_that_does_not_answer_is_said(ann: Site) -> None:
    gone = ann.cresset("up", DOCKER_HOST="unix:///nonexistent/docker.sock")
    assert gone.returncode == 9
    assert "Docker does not answer" in gone.stderr
    assert "Traceback" not in gone.stderr
    bare = ann.cresset("up", DOCKER_CONFIG=str(ann.folder / "empty"))
    assert bare.returncode in {0, 9}  # a plugin may be installed for everybody
    assert bare.returncode == 0 or "make install-compose" in bare.stderr


def test_fixes_says_what_it_mends(ann: Site) -> None:
    ann.must("up")
    assert "nothing to fix" in ann.must("fixes")
    ann.compose("exec", "--no-TTY", "--user", "root", "simple", "mkdir", "/opt/venv/lib/by-root")
    assert "folders of /opt/venv that root made" in ann.must("fixes", "--dry-run")
    assert "mended by" in ann.must("fixes")
    assert "nothing to fix" in ann.must("fixes")


def test_a_container_that_ends_at_once_is_not_up(ann: Site) -> None:
    (ann.folder / "docker-compose.override.yaml").write_text(
        "services: {simple: {command: [sh, -c, 'echo why; exit 3']}}\n"
    )
    ended = ann.cresset("up")
    assert ended.returncode == 9
    assert "simple has started, and has ended at once\nwhy: why" in ended.stderr
    assert "make run SERVICE=simple" in ended.stderr


def test_down_takes_every_service_of_the_project(ann: Site) -> None:
    ann.must("up")
    ann.must("down", SERVICE="train")
    assert ann.compose("ps", "--all", "--quiet") == ""


def test_a_service_starts_where_the_settings_make_no_other(ann: Site) -> None:
    lines = ann.env_file.read_text().splitlines()
    ann.env_file.write_text("\n".join(it for it in lines if not it.startswith("IMAGE=")))
    ann.must("up", "--cca", "6.1")
    refused = ann.cresset("up", "--service", "train", "--cca", "6.1")
    assert refused.returncode == 2
    assert "CCA='6.1'" in refused.stderr
