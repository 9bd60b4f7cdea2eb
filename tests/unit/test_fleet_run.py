"""The runner of a matrix, with a stand-in for the build of each cell."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from pipeline.attest import proof, referrers
from pipeline.engine import select
from pipeline.fleet import build as fleet
from pipeline.fleet import engines, report
from pipeline.host import whole
from pipeline.publish import Delivered
from pipeline.settings import Settings
from pipeline.spec import ImageSpec
from tests.unit.running import ROOT
from tests.unit.specs import spec

STAND_IN = Path(__file__).with_name("stand_in_build.py").read_text()
PROGRAM = (sys.executable, "-c", STAND_IN)
ENGINES = "tcp://one:1 tcp://two:1"
VISION = {"VISION_SOURCE": "apt", "PYTORCH_VERSION": "2.6.0", "CCA": "8.6"}


@dataclass(frozen=True)
class Cell:
    """As a cell of the matrix, with a name of its own."""

    variant: str
    settings: Mapping[str, str]
    spec: ImageSpec = field(default_factory=lambda: spec("simple"))

    @property
    def key(self) -> str:
        return f"key of {self.variant}"


@dataclass
class Shelf:
    """A destination that has some images, by key."""

    name: str = "a shelf"
    repository: str = "shelf"
    asked: int = 0
    has: set[str] = field(default_factory=set)
    cell: str = ""

    def find(self, _: ImageSpec) -> Delivered | None:
        self.asked += 1
        ref = f"registry/{self.cell}@sha256:1"
        return Delivered(ref, "sha256:1", 5) if self.cell in self.has else None

    async def deliver(self, *_: object) -> Delivered:
        raise AssertionError("the stand-in delivers")


@pytest.fixture(autouse=True)
def stand_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(fleet, "PROGRAM", PROGRAM)
    monkeypatch.setattr(select, "no_answer", lambda _: None)
    monkeypatch.setenv("STAND_IN_NOTES", str(tmp_path))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


def wanted(has: tuple[str, ...] = (), /, **does: str) -> list[fleet.Wanted]:
    """Return cells by name and what the stand-in does for each; `has` are there already."""
    return [
        fleet.Wanted(
            Cell(name, {"STAND_IN_NAME": name, "STAND_IN_DOES": what}),  # type: ignore[arg-type]
            Settings(wheel_store="off"),
            Shelf(cell=name, has=set(has)),
        )
        for name, what in does.items()
    ]


def run(
    cells: list[fleet.Wanted], hosts: str = ENGINES, options: fleet.Options | None = None
) -> tuple[report.Report, str]:
    """Return the report of a run and what it said."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        made = fleet.build(cells, Settings(engines=hosts), options or fleet.Options())
    return made, said.getvalue()


def states(made: report.Report) -> dict[str, str]:
    return {row.variant: row.state for row in made.rows}


def handed(tmp_path: Path) -> list[list[str]]:
    """Return what was handed out, in order: cell and engine."""
    with contextlib.suppress(FileNotFoundError):
        return [line.split() for line in (tmp_path / "handed").read_text().splitlines()]
    return []


def test_all_cells_are_delivered_and_the_report_says_by_whom(tmp_path: Path) -> None:
    made, said = run(wanted(a="deliver", b="deliver", c="deliver", d="deliver"))
    assert states(made) == dict.fromkeys("abcd", "delivered")
    assert made.exit_code == 0
    assert {engine for _, engine in handed(tmp_path)} == set(ENGINES.split())
    assert {it["name"]: it["cells"] for it in made.engines} == {"tcp://one:1": 2, "tcp://two:1": 2}
    assert "engine tcp://one:1: 4 cores, 68.7 GB, 2 cells at once" in said
    assert "a: delivered by tcp://" in said
    assert "4 of 4 delivered" in "\n".join(made.lines())
    kept = json.loads(next((tmp_path / "state/cresset/matrix").glob("*/report.json")).read_text())
    assert kept == made.as_json()
    assert kept["cells"][0]["ref"] == "registry/a@sha256:1"


def test_one_engine_and_one_cell_work_the_same_way(tmp_path: Path) -> None:
    made, _ = run(wanted(a="deliver"), "tcp://one:1")
    assert states(made) == {"a": "delivered"}
    assert handed(tmp_path) == [["a", "tcp://one:1"]]


def test_what_is_there_starts_no_engine_and_no_child(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "engines", lambda *_: pytest.fail("no engine is needed"))
    made, said = run(wanted(("a", "b"), a="deliver", b="deliver"))
    assert states(made) == dict.fromkeys("ab", "there already")
    assert made.rows[0].result["ref"] == "registry/a@sha256:1"
    assert handed(tmp_path) == []
    assert "2 of 2 cells are there already" in said


def test_one_that_fails_sinks_no_other_and_tells_how_to_build_it_again() -> None:
    words = fleet.Options(words=("--file", "other.toml"))
    made, _ = run(wanted(a="fail 5 pip", b="deliver"), options=words)
    assert states(made) == {"a": "failed", "b": "delivered"}
    assert made.exit_code == 5
    text = "\n".join(made.lines())
    assert "a: failed, exit code 5: a cannot be built" in text
    assert "stage: pip" in text
    assert "next: mend it" in text
    again = "python -m pipeline build-only --matrix --only a --file other.toml"
    assert f"again: {again}" in text
    assert Path(made.rows[0].log).read_text().startswith("log: nowhere")


def test_a_delivery_is_tried_again_at_the_end() -> None:
    made, said = run(wanted(a="once 7", b="deliver", c="deliver"), "tcp://one:1")
    assert states(made) == dict.fromkeys("abc", "delivered")
    assert re.findall(r"^(\w): building", said, re.MULTILINE) == ["a", "b", "c", "a"]
    assert "a: waiting by tcp://one:1" in said
    assert made.exit_code == 0


def test_an_engine_that_dies_gives_its_cells_to_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STAND_IN_DIES", "tcp://two:1")
    monkeypatch.setattr(select, "no_answer", dying(tmp_path))
    made, said = run(wanted(a="deliver", b="deliver", c="deliver", d="deliver"))
    assert states(made) == dict.fromkeys("abcd", "delivered")
    assert {row.engine for row in made.rows} == {"tcp://one:1"}
    assert {it["name"]: bool(it["lost"]) for it in made.engines} == {
        "tcp://one:1": False,
        "tcp://two:1": True,
    }
    # What its build says, or what the engine itself, whichever is heard first.
    assert re.search(r"tcp://two:1 went away: (refused|it was killed)", said)


def dying(tmp_path: Path) -> Any:
    """Return how engine two answers: not once it was handed a cell."""

    def no_answer(host: str) -> str | None:
        died = any(engine == host for _, engine in handed(tmp_path)) and "two" in host
        return "refused" if died else None

    return no_answer


def test_without_any_engine_left_the_rest_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STAND_IN_DIES", ENGINES)
    made, _ = run(wanted(a="deliver", b="deliver"))
    assert states(made) == dict.fromkeys("ab", "not built")
    assert made.exit_code == 4


def test_engines_that_do_not_answer_at_the_start_are_left_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("STAND_IN_DEAD", "tcp://two:1")
    made, said = run(wanted(a="deliver", b="deliver", c="deliver"))
    assert states(made) == dict.fromkeys("abc", "delivered")
    assert "engine tcp://two:1 is left out: nobody there" in said
    monkeypatch.setenv("STAND_IN_DEAD", ENGINES)
    made, said = run(wanted(a="deliver"))
    assert states(made) == {"a": "not built"}
    assert made.exit_code == 4
    assert "a: not built (no engine was left)" in said


def test_an_engine_that_falls_silent_does_not_hold_its_cells_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "_PAUSE", 0.05)
    monkeypatch.setattr(
        select, "no_answer", lambda _: "no route" if list(tmp_path.glob("*.pid")) else None
    )
    made, said = run(wanted(a="wait"), "tcp://one:1")
    assert states(made) == {"a": "not built"}
    assert "engine tcp://one:1 does not answer any more: no route" in said
    assert (tmp_path / "a.told").exists()


def test_resume_asks_nobody_for_what_the_last_run_delivered() -> None:
    cells = wanted(a="deliver", b="once 5")
    made, _ = run(cells)
    assert states(made) == {"a": "delivered", "b": "failed"}
    made, _ = run(cells, options=fleet.Options(resume=True))
    assert states(made) == {"a": "there already", "b": "delivered"}
    assert [it.where.asked for it in cells] == [1, 2]  # type: ignore[attr-defined]
    made, _ = run(cells, options=fleet.Options(resume=True))
    assert states(made) == dict.fromkeys("ab", "there already")
    assert made.rows[1].result["ref"] == "registry/b@sha256:1"


def test_the_report_has_the_key_of_what_was_built() -> None:
    made, _ = run(wanted(a="edited", b="deliver"))
    assert [row.key for row in made.rows] == ["another key of a", "key of b"]
    cells = [it["key"] for it in made.as_json()["cells"]]
    assert cells == ["another key of a", "key of b"]
    made, _ = run(wanted(a="deliver", b="deliver"), options=fleet.Options(resume=True))
    assert states(made) == {"a": "delivered", "b": "there already"}


def test_a_report_that_cannot_be_kept_is_told_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    summary = tmp_path / "summary.md"
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    full = OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr(whole, "write", mock.Mock(side_effect=full))
    made, said = run(wanted(a="deliver", b="fail 5 pip"))
    assert states(made) == {"a": "delivered", "b": "failed"}
    assert "the report is not kept" in said
    assert "No space left on device" in said
    assert "| a | delivered |" in summary.read_text()


def test_a_build_that_cannot_be_started_sinks_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    opened = Path.open

    def full(path: Path, *args: Any, **named: Any) -> Any:
        if path.name == "a.1.log":
            raise OSError(errno.ENOSPC, "No space left on device")
        return opened(path, *args, **named)

    monkeypatch.setattr(Path, "open", full)
    made, _ = run(wanted(a="deliver", b="deliver"))
    assert states(made) == {"a": "failed", "b": "delivered"}
    assert made.exit_code == 1
    text = "\n".join(made.lines())
    assert "a: failed, exit code 1: no process could be started for it" in text
    assert "why: [Errno 28] No space left on device" in text
    assert "next: make room in " in text


def test_a_log_that_cannot_be_followed_costs_no_build(monkeypatch: pytest.MonkeyPatch) -> None:
    opened = Path.open

    def unread(path: Path, mode: str = "r", **named: Any) -> Any:
        if path.suffix == ".log" and mode == "r":
            raise OSError(errno.EMFILE, "Too many open files")
        return opened(path, mode, **named)

    monkeypatch.setattr(Path, "open", unread)
    made, _ = run(wanted(a="deliver"))
    assert states(made) == {"a": "delivered"}


def test_old_runs_go_but_those_that_may_still_run(tmp_path: Path) -> None:
    runs = tmp_path / "state/cresset/matrix"
    for number in range(25):
        (runs / f"2020{number:02}").mkdir(parents=True)
    for number in (0, 3, 24):
        (runs / f"2020{number:02}/report.json").write_text("{}")
    os.utime(runs / "202001", (0, 0))
    new = report.new_run()
    left = {it.name for it in runs.iterdir()}
    # Ended, and of the kept twenty; ended; killed long ago; and all that may still run.
    assert left == {f"2020{number:02}" for number in range(25)} - {"202000", "202001", "202003"} | {
        new.name
    }


def test_what_is_there_without_its_proof_is_handed_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proof, "lacks_proof", lambda _, where, __: where.cell == "a")
    monkeypatch.setattr(referrers, "may_push", lambda _: True)
    made, _ = run(wanted(("a", "b"), a="deliver", b="deliver"))
    assert states(made) == {"a": "delivered", "b": "there already"}
    assert [cell for cell, _ in handed(tmp_path)] == ["a"]


def test_what_lacks_a_proof_that_is_for_others_to_attach_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(proof, "lacks_proof", lambda _, where, __: where.cell == "a")
    monkeypatch.setattr(referrers, "may_push", lambda _: False)
    monkeypatch.setattr(proof, "for_others", lambda _: "lacks its proof")
    made, said = run(wanted(("a", "b"), a="deliver", b="deliver"))
    assert states(made) == {"a": "there already", "b": "there already"}
    assert "a lacks its proof" in said


def test_force_builds_what_is_there() -> None:
    options = fleet.Options(force=True, arguments=("--force",))
    made, _ = run(wanted(("a",), a="deliver"), options=options)
    assert states(made) == {"a": "delivered"}
    assert made.rows[0].result["args"] == ["build-only", "simple", "--json", "--force"]


def test_a_build_that_is_killed_says_so(tmp_path: Path) -> None:
    made, _ = run(wanted(a="kill", b="deliver"))
    assert states(made) == {"a": "failed", "b": "delivered"}
    assert made.exit_code == 1
    assert "a: failed, exit code -9: the build was killed by signal 9" in "\n".join(made.lines())
    assert handed(tmp_path)


def test_a_compile_that_the_deadline_stopped_is_unfinished() -> None:
    made, _ = run(wanted(a="fail 8 torchvision-wheel", b="deliver"))
    assert states(made) == {"a": "unfinished", "b": "delivered"}
    assert made.exit_code == 8


def test_a_deadline_that_has_passed_leaves_cells_unfinished(tmp_path: Path) -> None:
    made, _ = run(wanted(a="deliver"), options=fleet.Options(until=time.time() - 1))
    assert states(made) == {"a": "unfinished"}
    assert made.exit_code == 8
    assert handed(tmp_path) == []


def test_the_step_summary_is_written_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    summary = tmp_path / "summary.md"
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    made, _ = run(wanted(a="deliver", b="fail 5 pip"))
    text = summary.read_text()
    assert text.startswith("### 1 of 2 images delivered")
    assert "| a | delivered | `registry/a@sha256:1` |" in text
    assert "<summary>b</summary>" in text
    assert "b cannot be built" in text
    assert made.rows[0].result["summary"] is None, "a child would have written to it too"


SCRIPT = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job is deaf to it
from pipeline.engine import select
from pipeline.fleet import build as fleet
from pipeline.settings import Settings
from tests.unit import test_fleet_run as here
fleet.PROGRAM = here.PROGRAM
select.no_answer = lambda _: None
cells = here.wanted(a="wait", b="wait", c="deliver")
made = fleet.build(cells, Settings(engines="tcp://one:1"), fleet.Options())
print(here.states(made))
sys.exit(made.exit_code)
"""


@contextlib.contextmanager
def started(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT],
        cwd=ROOT,
        env={**os.environ, "STAND_IN_NOTES": str(tmp_path), "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_ctrl_c_ends_every_child_in_good_order(tmp_path: Path, number: signal.Signals) -> None:
    with started(tmp_path) as process:
        deadline = time.monotonic() + 300
        while len(list(tmp_path.glob("*.pid"))) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        pids = [int(file.read_text()) for file in tmp_path.glob("*.pid")]
        process.send_signal(number)
        process.send_signal(number)
        out, err = process.communicate(timeout=300)
    assert process.returncode == (143 if number == signal.SIGTERM else 130), err
    assert len(list(tmp_path.glob("*.told"))) == 2, "each was told by SIGINT"
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]
    assert "'a': 'interrupted', 'b': 'interrupted', 'c': 'interrupted'" in out
    assert "Traceback" not in err


CHILD = """
import pathlib, sys, time
from pipeline.errors import Interrupted, interruptible
try:
    with interruptible():
        pathlib.Path(sys.argv[1]).touch()
        time.sleep(600)
except Interrupted:
    print("interrupted")
"""


def test_a_child_hears_sigint_though_a_script_has_us_ignore_it(tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        process = subprocess.Popen(
            [sys.executable, "-c", CHILD, str(ready)],
            cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip
    finally:
        signal.signal(signal.SIGINT, before)
    with process:
        deadline = time.monotonic() + 300
        while not ready.exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        try:
            said, _ = process.communicate(timeout=60)
        finally:
            process.kill()
    assert said == "interrupted\n"
