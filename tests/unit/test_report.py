"""What a person sees of a run where nothing can be drawn over, and what its log keeps."""

from __future__ import annotations

import io
import os
import re
from pathlib import Path

import pytest
from rich.console import Console

from pipeline import report
from pipeline.errors import BuildError
from pipeline.report import Report, reporting, tail

pytestmark = pytest.mark.usefixtures("checkout")


def work(it: Report) -> None:
    it.watched = True
    with it.stage("base"):
        it.output("Get:1 trixie\n")
    with it.stage("torch"):
        it.ran("exec uv")
        it.output("Resolved 3 packages\nInstalled")
    it.note("engine: local (built here)")


def lines(text: str) -> list[str]:
    return [re.sub(r"\d+\.\d s", "N s", line) for line in text.splitlines()]


def test_plain_lines_say_what_starts_and_how_it_ends(capsys: pytest.CaptureFixture[str]) -> None:
    with reporting("build", ["base", "torch"]) as it:
        work(it)
    out, err = capsys.readouterr()
    assert out == ""
    assert lines(err)[1:] == [
        "base: running",
        "base: cached N s",
        "torch: running",
        "torch: done N s",
        "engine: local (built here)",
    ]
    assert "\x1b" not in err
    assert it.cached() == ["base"]
    assert list(it.seconds()) == ["base", "torch"]


def test_without_word_from_the_engine_nothing_is_said_to_be_cached() -> None:
    with reporting("build", ["base"]) as it, it.stage("base"):
        pass
    assert it.cached() == []


def test_the_first_line_names_the_log_however_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / ("long-" * 30)))
    monkeypatch.setenv("COLUMNS", "80")
    with reporting("build", []) as it:
        pass
    assert capsys.readouterr().err.splitlines()[0] == f"log: {it.log}"


def test_a_stage_that_fails_says_so_and_where_its_log_is(
    capsys: pytest.CaptureFixture[str],
) -> None:
    failure = BuildError("it broke", next_step="mend it")
    with (
        pytest.raises(BuildError) as raised,
        reporting("build", ["base"]) as it,
        it.stage("base"),
    ):
        raise failure
    assert lines(capsys.readouterr().err)[-1] == "base: failed N s"
    assert f"stage: base\nlog: {it.log}" in str(raised.value)
    assert "=== base: failed" in it.log.read_text()
    assert it.cached() == []


def test_the_log_holds_everything_and_its_tail_the_last() -> None:
    with reporting("build", ["base", "torch"]) as it:
        work(it)
    log = it.log.read_text()
    assert it.log.name.endswith("-build.log")
    for text in ("=== base", "Get:1 trixie", "--- exec uv", "Installed", "engine: local"):
        assert text in log
    assert tail(it.log, 1) == "engine: local (built here)"


def test_a_stage_outside_the_engine_is_not_cached_and_shows_its_own_output(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with reporting("build", ["deliver"]) as it, it.stage("deliver", in_engine=False):
        it.say("uploading")
        it.output("of the engine\n")
        it.beat()
    assert it.cached() == []
    assert re.search(r"^deliver: running \d+ s  uploading$", capsys.readouterr().err, re.MULTILINE)
    assert "of the engine" in it.log.read_text()


def test_a_sign_of_life_shows_the_last_line(capsys: pytest.CaptureFixture[str]) -> None:
    with reporting("build", ["torch"]) as it, it.stage("torch"):
        it.output("one\ntwo\r\rthree 40%\n\n")
        it.beat()
        err = capsys.readouterr().err
    assert re.search(r"^torch: running \d+ s  three 40%$", err, re.MULTILINE)


def test_old_logs_go_and_the_newest_stay() -> None:
    with reporting("build", []) as first:
        pass
    for number in range(40):
        old = first.log.parent / f"20200101-0000{number:02}-build.log"
        old.write_text("old\n")
        os.utime(old, (number, number))
    with reporting("build", []) as it:
        pass
    left = sorted(it.log.parent.iterdir())
    assert len(left) == 20
    assert {first.log, it.log} <= set(left)
    assert left[0].name == "20200101-000022-build.log"


def test_a_log_that_another_build_throws_away_meanwhile_is_no_error() -> None:
    with reporting("build", []) as first:
        pass
    for number in range(40):
        # Listed, and gone when it is looked at: what a build that starts at the same time leaves.
        (first.log.parent / f"20200101-0000{number:02}-build.log").symlink_to("gone")
    with reporting("build", []) as it:
        pass
    assert it.log.exists()
    assert first.log.exists()
    assert len(list(it.log.parent.iterdir())) == 20


@pytest.mark.parametrize(("no_color", "drawn"), [(False, True), (True, False)])
def test_only_a_terminal_that_wants_it_is_drawn_on(
    capsys: pytest.CaptureFixture[str], *, no_color: bool, drawn: bool
) -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, no_color=no_color, width=100)
    with reporting("build", ["base", "torch"], console) as it:
        work(it)
    assert ("\x1b[2K" in screen.getvalue()) is drawn
    assert ("torch: running" in capsys.readouterr().err) is not drawn
    if drawn:
        assert re.search(r"torch\s.*done", screen.getvalue())


def test_no_color_is_asked_of_the_environment(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(report, "Console", lambda **_: Console(stderr=True, force_terminal=True))
    monkeypatch.setenv("NO_COLOR", "1")
    with reporting("build", ["base", "torch"]) as it:
        work(it)
    err = capsys.readouterr().err
    assert "torch: running" in err
    assert "\x1b[2K" not in err
