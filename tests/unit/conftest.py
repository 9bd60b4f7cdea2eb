"""No unit test reaches an engine, a network or another program."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import dagger
import pytest

from pipeline.host import machine
from tests.unit import running

Popen = subprocess.Popen
PATH = os.environ.get("PATH")


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail the test that makes a real call.

    A fresh interpreter of our own may be started, a program be missed on a test's own PATH, and git
    be asked of folders and of servers on this machine.
    """

    def refuse(what: str) -> Any:
        def called(*args: Any, **_: Any) -> NoReturn:
            pytest.fail(f"a real call: {what}{args!r}")

        return called

    class Guarded(Popen):  # type: ignore[type-arg]
        def __init__(self, args: Any, *rest: Any, **named: Any) -> None:
            ours = list(args)[:2] == [sys.executable, "-c"]
            missing = os.environ.get("PATH") != PATH and shutil.which(args[0]) is None
            if not (ours or missing or _git_at_home(args, named.get("env") or {})):
                pytest.fail(f"a real call: {args!r}")
            super().__init__(args, *rest, **named)

    monkeypatch.setattr(subprocess, "Popen", Guarded)
    monkeypatch.setattr(dagger, "connection", refuse("dagger.connection"))
    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse(f"socket.{name}"))
    calls = [name for name in dir(os) if name.startswith(("exec", "spawn", "posix_spawn"))]
    for name in [*calls, "system", "fork", "forkpty"]:
        monkeypatch.setattr(os, name, refuse(f"os.{name}"))


def _git_at_home(args: Any, environment: Any) -> bool:
    """Say whether a command is git's, and every server in it is of this machine."""
    program, *rest = (str(arg) for arg in args)
    # With a mirror, that is what is reached.
    mirrors = [it for name, it in environment.items() if name.startswith("GIT_CONFIG_KEY_")]
    rest = [it.removeprefix("url.").removesuffix(".insteadOf") for it in mirrors] or rest
    return program == "git" and all("127.0.0.1" in arg for arg in rest if "://" in arg)


@pytest.fixture
def checkout(tmp_path: Path) -> Iterator[Path]:
    """Stand in a checkout of the test's own."""
    with running.checkout(tmp_path / "checkout") as folder:
        yield folder


@pytest.fixture
def no_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let verbs that look at the machine find nothing there."""
    monkeypatch.setattr(machine, "look", machine.Machine)
