"""Exports without an engine: who waits for whom, what ends them, what their check is told."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.bundle import export
from pipeline.bundle.layout import Blob
from pipeline.engine import local
from pipeline.engine.local import places
from pipeline.errors import EngineError, PublishError, Terminated
from pipeline.fleet import child
from pipeline.settings import Settings, load
from pipeline.spec import ImageSpec
from pipeline.validate import image_spec
from tests.unit.specs import spec

SECONDS = 60.0


@pytest.fixture(autouse=True)
def own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


def until(is_so: Callable[[], object]) -> None:
    end = time.monotonic() + SECONDS
    while not is_so():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.02)


def check_is(monkeypatch: pytest.MonkeyPatch, script: str) -> list[subprocess.Popen[str]]:
    """Let a script stand for the build without a network; return it once it is started."""
    popen, started = subprocess.Popen, []

    def start(argv: Any, **named: Any) -> subprocess.Popen[str]:
        if "unshare" not in argv:
            return popen(argv, **named)
        started.append(popen([sys.executable, "-c", script], **named))
        return started[-1]

    monkeypatch.setattr(subprocess, "Popen", start)
    return started


# Its end


WAITS = """
import pathlib, signal
signal.signal(signal.SIGINT, signal.default_int_handler)
try:
    pathlib.Path({ready!r}).touch()
    signal.pause()
except KeyboardInterrupt:
    pathlib.Path({told!r}).touch()
"""
DEAF = """
import pathlib, signal, time
signal.signal(signal.SIGINT, signal.SIG_IGN)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
pathlib.Path({ready!r}).touch()
time.sleep(600)
"""


@pytest.fixture(params=[signal.default_int_handler, signal.SIG_IGN], ids=["", "a script's job"])
def _sigint(request: pytest.FixtureRequest) -> Iterator[None]:
    """Have SIGINT heard, or ignored as a shell has it for what a script starts with ``&``."""
    before = signal.signal(signal.SIGINT, request.param)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("script", [WAITS, DEAF], ids=["one that hears", "one that is deaf"])
@pytest.mark.usefixtures("checkout", "_sigint")
def test_an_export_that_is_ended_in_its_check_leaves_nothing_that_runs(
    script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(*args: Any) -> None:
        args[2].write_bytes(b"a bundle")

    monkeypatch.setattr(export, "_write", write)
    monkeypatch.setattr(export, "tool", lambda *_: None)
    patience = ((signal.SIGINT, SECONDS if script == WAITS else 0.2), (signal.SIGKILL, SECONDS))
    monkeypatch.setattr(child, "_PATIENCE", patience)
    ready, told = tmp_path / "ready", tmp_path / "told"
    started = check_is(monkeypatch, script.format(ready=str(ready), told=str(told)))

    def terminate() -> None:
        until(ready.exists)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=terminate).start()
    with pytest.raises(Terminated):
        export.export(spec("simple"), Settings(), tmp_path / "dist" / "it.tar", check=True)
    (process,) = started
    assert process.poll() is not None
    assert told.exists() == (script == WAITS)
    assert list((tmp_path / "dist").iterdir()) == []


def test_the_check_has_folders_of_its_own_wherever_the_bundle_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environments = []

    def write(*args: Any) -> Blob:
        return Blob("sha256:1", args[2].write_bytes(b"a bundle"))

    class Process:
        def __enter__(self) -> Process:
            return self

        def __exit__(self, *_: object) -> None: ...

        def communicate(self) -> tuple[str, str]:
            return spec("simple").key, ""

    def popen(*_: Any, env: dict[str, str], **__: Any) -> Process:
        environments.append(env)
        return Process()

    monkeypatch.setattr(export, "_write", write)
    monkeypatch.setattr(export, "tool", lambda *_: None)
    monkeypatch.setattr(export, "_sizes", lambda _: {})
    monkeypatch.setattr(subprocess, "Popen", popen)
    monkeypatch.setattr(child, "end", lambda _: None)
    (tmp_path / "reqs").mkdir()
    monkeypatch.chdir(tmp_path)
    export.export(spec("simple"), Settings(), Path("it.tar"), check=True)
    (environ,) = environments
    for name in ("XDG_STATE_HOME", "XDG_CACHE_HOME", "BUNDLE"):
        assert Path(environ[name]).is_absolute()


# Two at once


def test_a_second_export_leaves_the_engine_of_the_first_alone_and_says_that_it_waits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ends: list[str] = []
    monkeypatch.setattr(local, "stop", lambda _: ends.append(threading.current_thread().name))

    def second() -> None:
        with export._own_engine("bundle"):
            ends.append("second builds")

    other = threading.Thread(target=second, name="second")
    said = io.StringIO()
    with contextlib.redirect_stderr(said), export._own_engine("bundle"):
        kept = places.state() / "data"
        kept.touch()
        ends.append("first builds")
        other.start()
        until(lambda: "waiting: another process exports a bundle" in said.getvalue())
        assert kept.exists()
    with contextlib.redirect_stderr(said):
        other.join(SECONDS)
    first = threading.current_thread().name
    assert ends == [first, "first builds", first, "second", "second builds", "second"]


# Its check


ECHO = "import json, os; print(json.dumps(dict(os.environ)))"


def asked(settings: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> tuple[str, ImageSpec]:
    """Return the key of these settings, and the spec that the check makes of what it is told."""
    loaded = load(settings, environ={}).settings
    it = image_spec(loaded, "train")
    check_is(monkeypatch, ECHO)
    folder = Path("elsewhere").absolute()
    folder.mkdir()
    said = export._without_network(loaded, it, Path("it.tar"), folder, sys.stderr)
    environ = json.loads(said) | {"BUNDLE": ""}
    with contextlib.chdir(folder):
        there = load(environ=environ)
        return it.key, image_spec(there.settings, "train", problems=there.problems)


COMPILED = {
    "build_mode": "include", "pytorch_version_tag": "v2.6.0", "cuda_version": "12.4", "cca": "8.6",
    "sign_key": "sign.key",
}  # fmt: skip


def test_a_tarball_by_a_path_from_here_is_found_by_the_check(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("torch", "magma", "vision"):
        (checkout / f"{name}.tar.gz").write_text(name)
    parts = {
        f"{name}_{what}": value
        for name in ("torch", "magma", "vision")
        for what, value in (
            ("source", "archive"),
            ("url", f"{name}.tar.gz"),
            ("sha256", hashlib.sha256(name.encode()).hexdigest()),
        )
    }
    key, there = asked(COMPILED | parts, monkeypatch)
    assert there.key == key
    torch, vision = there.compiled
    assert torch.source.location == str(checkout / "torch.tar.gz")
    assert vision.source.location == str(checkout / "vision.tar.gz")
    assert torch.magma is not None
    assert torch.magma.source.location == str(checkout / "magma.tar.gz")


def test_a_working_tree_by_a_path_from_here_is_found_by_the_check(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = checkout.parent / "pytorch"
    tree.mkdir()
    (tree / "setup.py").touch()
    for command in (("init", "-q"), ("add", "setup.py")):
        subprocess.run(["git", *command], cwd=tree, check=True)
    given = {"torch_source": "path", "torch_url": "../pytorch", "magma_source": "off"}
    key, there = asked(COMPILED | given, monkeypatch)
    assert there.key == key
    assert there.compiled[0].source.location == str(tree)


def test_a_key_is_not_looked_for_where_nothing_is_signed(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not (checkout / "sign.key").exists()
    loaded = load(COMPILED, environ={}).settings
    check_is(monkeypatch, ECHO)
    (checkout / "elsewhere").mkdir()
    said = export._without_network(
        loaded, spec("simple"), Path("it.tar"), checkout / "elsewhere", sys.stderr
    )
    assert json.loads(said)["SIGN_KEY"] == ""


def test_a_check_that_cannot_run_is_refused_before_anything_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name, **_: None if name == "ip" else name)
    written: list[bool] = []

    def write(*_: Any) -> None:
        written.append(True)
        raise OSError("enough")

    monkeypatch.setattr(export, "_write", write)
    with pytest.raises(EngineError, match="ip is missing") as refused:
        export.export(spec("simple"), Settings(), tmp_path / "it.tar", check=True)
    assert "apt-get install -y iproute2" in refused.value.next_step
    assert "no network" in refused.value.why
    assert not written
    with pytest.raises(PublishError, match="cannot be written"):
        export.export(spec("simple"), Settings(), tmp_path / "it.tar", check=False)
    assert written
