"""Room: what cannot fit is refused, what may not is warned of, evictions are told."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline import run
from pipeline.engine import local
from pipeline.engine.local.evictions import Evicted, evicted
from pipeline.errors import BuildError
from pipeline.host import machine, room
from pipeline.host.room import DISK, GB, Kind
from tests.unit.specs import spec


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


def guard(target: str = "", *compiled: str) -> list[str]:
    return list(run._guard(spec(target), compiled, image=True))


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
