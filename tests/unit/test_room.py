"""Room: what cannot fit is refused, what may not is warned of, evictions are told."""

from __future__ import annotations

import contextlib
import functools
import os
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Literal

import anyio
import pytest

from pipeline import run
from pipeline.engine import local, select, session
from pipeline.engine.local.evictions import Evicted, evicted
from pipeline.engine.select import Choice
from pipeline.errors import BuildError
from pipeline.host import machine, room
from pipeline.host.room import DISK, GB, Kind
from pipeline.plan import Step
from pipeline.settings import Settings
from tests.unit.specs import spec

LOCAL = Choice("local", "a test's")
DOCKER = Choice("docker", "a test's")


@pytest.mark.parametrize("kind", ["simple", "wheels", "compile"])
def test_what_the_engine_holds_counts_as_free(kind: Kind) -> None:
    need = DISK[kind]
    assert room.disk(kind, need.usual) == "fits"
    assert room.disk(kind, need.usual - 1) == "low"
    assert room.disk(kind, need.least - 1) == "full"
    assert room.disk(kind, 0, need.least) == "low"
    assert room.disk(kind, 1, need.usual) == "fits"
    assert need.least < need.usual


def test_memory_for_one_compiler_at_least() -> None:
    assert room.memory(room.COMPILER_LEAST - 1, torch=False) == "full"
    assert room.memory(room.COMPILER_LEAST, torch=False) == "low"
    assert room.memory(room.COMPILER_LEAST, torch=True) == "full"
    assert room.memory(room.COMPILER, torch=True) == "low"
    assert room.memory(2 * room.COMPILER, torch=True) == "fits"


@pytest.fixture
def has(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """Let the machine have plenty of all."""

    class Usage:
        free = 10**12

    monkeypatch.setattr(local, "log_path", lambda: tmp_path / "engine.log")
    monkeypatch.setattr("shutil.disk_usage", lambda _: Usage)
    monkeypatch.setattr(local, "held", lambda: pytest.fail("nothing is to be counted"))
    monkeypatch.setattr(machine, "memory_bytes", lambda: (10**12, 0))
    return monkeypatch


def guard(target: str = "", *compiled: str, choice: Choice = LOCAL) -> list[str]:
    asked = functools.partial(run._guard, choice, spec(target), compiled, image=True)
    return anyio.run(asked)


def disk_with(patch: pytest.MonkeyPatch, free: int, held: int) -> None:
    class Usage:
        pass

    Usage.free = free  # type: ignore[attr-defined]
    patch.setattr("shutil.disk_usage", lambda _: Usage)
    patch.setattr(local, "held", lambda: held)


def test_with_room_for_all_nothing_is_said_or_counted(has: pytest.MonkeyPatch) -> None:
    assert has
    assert guard() == guard("simple") == guard("train", "torch") == []


def test_a_disk_that_cannot_do_is_refused(has: pytest.MonkeyPatch) -> None:
    disk_with(has, 2 * GB, 1 * GB)
    assert len(guard("simple")) == 1
    with pytest.raises(BuildError) as raised:
        guard()
    said = str(raised.value)
    assert "2.0 GB are free beside the engine's 1.0 GB" in said
    assert "9 GB at the very least" in said
    assert "XDG_STATE_HOME" in said
    assert raised.value.exit_code == 5


def test_a_disk_that_may_not_do_is_warned_of(has: pytest.MonkeyPatch) -> None:
    disk_with(has, 2 * GB, 10 * GB)
    (said,) = guard()
    assert said.startswith("disk: 2.0 GB are free beside the engine's 10.0 GB")
    assert "engine prune" in said


def test_memory_matters_where_something_is_compiled(has: pytest.MonkeyPatch) -> None:
    has.setattr(machine, "memory_bytes", lambda: (GB, GB // 2))
    assert guard() == []
    with pytest.raises(BuildError, match="no memory to compile with"):
        guard("train", "torchvision")
    has.setattr(machine, "memory_bytes", lambda: (3 * GB, GB))
    (said,) = guard("train", "torchvision")
    assert "one by one" in said


def docker_with(patch: pytest.MonkeyPatch, folder: Path | None, held: int) -> None:
    async def counted() -> int:
        return held

    patch.setattr(select, "docker_folder", lambda: folder)
    patch.setattr(session, "held", counted)


def test_dockers_disk_is_looked_at_where_it_is_here(
    has: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    disk_with(has, 2 * GB, 100 * GB)
    docker_with(has, tmp_path / "docker", 10 * GB)
    (said,) = guard(choice=DOCKER)
    assert said.startswith("disk: 2.0 GB are free beside the engine's 10.0 GB")
    assert "docker system df" in said
    docker_with(has, tmp_path / "docker", 0)
    with pytest.raises(BuildError, match=r"no room on the disk of .*/docker") as raised:
        guard(choice=DOCKER)
    assert "data-root" in str(raised.value)


@pytest.mark.parametrize("kind", ["docker", "remote", "session"])
def test_nothing_is_said_of_a_machine_that_is_not_known(
    has: pytest.MonkeyPatch, kind: Literal["docker", "remote", "session"]
) -> None:
    disk_with(has, 0, 0)
    has.setattr(machine, "memory_bytes", lambda: (0, 0))
    docker_with(has, None, 0)
    assert guard("train", "torch", choice=Choice(kind, "a test's")) == []


def test_dockers_memory_is_this_machines(has: pytest.MonkeyPatch, tmp_path: Path) -> None:
    docker_with(has, tmp_path, 0)
    assert guard("train", "torch", choice=DOCKER) == []
    has.setattr(machine, "memory_bytes", lambda: (GB, 0))
    with pytest.raises(BuildError, match="no memory to compile with"):
        guard("train", "torch", choice=DOCKER)


@pytest.mark.parametrize("choice", [LOCAL, DOCKER], ids=lambda choice: choice.kind)
def test_a_build_looks_before_it_begins(
    has: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str], choice: Choice
) -> None:
    @contextlib.asynccontextmanager
    async def opened(*_: object) -> AsyncIterator[None]:
        yield

    async def work(_: run.Run) -> str:
        return "made"

    def build(verb: str = "deliver") -> str:
        steps = [Step(verb, "")]
        return run.started(work, spec("simple"), Settings(wheel_store="off"), steps, image=False)

    has.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    has.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://nowhere.invalid")
    has.setattr(select, "choose", lambda *_: choice)
    has.setattr(session, "session", opened)
    docker_with(has, tmp_path, 2 * GB)
    assert build() == "made"
    disk_with(has, GB, 2 * GB)
    assert build() == "made"
    assert "disk: 1.0 GB are free beside the engine's 2.0 GB" in capsys.readouterr().err
    disk_with(has, 0, 0)
    docker_with(has, tmp_path, 0)
    with pytest.raises(BuildError, match="no room on the disk"):
        build()
    assert build("plan") == "made", "what makes nothing wants no room"


@pytest.mark.parametrize(
    ("endpoint", "name", "folder", "here"),
    [
        ("unix:///var/run/docker.sock", os.uname().nodename, "", True),
        ("unix:///var/run/docker.sock", os.uname().nodename, "gone", False),
        ("unix:///var/run/docker.sock", "docker-desktop", "", False),
        ("ssh://builder", os.uname().nodename, "", False),
        ("", "", "", False),
    ],
)
def test_where_docker_keeps_its_data(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
    endpoint: str, name: str, folder: str, here: bool,
) -> None:  # fmt: skip
    root = tmp_path / folder

    def ended(command: list[str], _: float | None) -> object:
        said = endpoint if "context" in command else f"{name} {root}"
        return subprocess.CompletedProcess(command, 0, f"{said}\n", "")

    monkeypatch.setattr(select, "_ended", ended)
    assert select.docker_folder() == (root if here else None)


def test_without_docker_nothing_of_it_is_known(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert select.docker_folder() is None


AT = 1795908000.0
"""23:20 of the day of the log, in seconds since the epoch."""


def line(time: str, what: str, **fields: object) -> str:
    """Return a line as Go's slog writes it into the engine's log."""
    rest = "".join(f" {name}={value}" for name, value in fields.items())
    return f'time=2026-11-28T{time}Z level=INFO msg="{what}"{rest}\n'


ARGS = r'"[args=[\"pip\", ...(+8)]]"'
LOG = (
    'time="2026-11-28T23:10:00Z" level=info msg="engine metrics" cpu-count=2\n'
    + line("23:20:00.000", "dagql pruned result", resultID=1, call="x", reclaimedBytes=5)
    + line("23:21:00.000", "start call", client_id="c", field="EngineCache.prune", digest="d")
    + line("23:21:01.000", "dagql pruned result", resultID=2, call="x", reclaimedBytes=70)
    + line("23:21:02.000", "end call", client_id="c", field="EngineCache.prune", digest="d")
    + line("23:22:31.620", "dagql pruned result", call="y", args=ARGS, reclaimedBytes=3 * GB)
)


def test_evictions_are_counted_from_then_on_and_without_what_was_asked_for(tmp_path: Path) -> None:
    log = tmp_path / "engine.log"
    assert evicted(log, 0) == Evicted()
    log.write_text(LOG)
    assert evicted(log, AT) == Evicted(2, 3_000_000_005)
    assert evicted(log, AT + 60) == Evicted(1, 3_000_000_000)
    assert evicted(log, AT + 600) == Evicted()
    assert str(evicted(log, 0)) == "3.0 GB of its cache (2 results)"
    log.rename(log.with_name("engine.log.old"))
    log.write_text("\x00\xff")
    assert evicted(log, AT).results == 2


def test_what_was_thrown_away_is_told_in_words(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    log = tmp_path / "engine.log"
    monkeypatch.setattr("pipeline.engine.local.run.log_path", lambda: log)
    assert run._evicted(0) == ""
    log.write_text(LOG)
    assert run._evicted(0).startswith("the engine threw away 3.0 GB of its cache (2 results)")
