"""Engines behind ssh and kubectl: what is said of one that does not answer, and who goes on.

Both programs are stand-ins: they write down what they are given, and do as a real one would.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.engine import select
from pipeline.errors import EngineError
from pipeline.fleet import build as fleet
from pipeline.fleet import engines
from tests.unit import test_fleet_run as runner

Stand = Callable[[str, str], None]

OPTIONS = "-o BatchMode=yes -o ConnectTimeout=5 -o ControlMaster=no"
DENIED = "me@builder: Permission denied"


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stand:
    """Return what puts a program on PATH, before all others."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")

    def put(name: str, script: str) -> None:
        file = folder / name
        file.write_text(f'#!/bin/sh\necho "$*" >> {tmp_path}/given\n{script}\n')
        file.chmod(0o755)

    return put


@pytest.mark.parametrize(
    ("host", "given"),
    [
        ("ssh://builder", f"{OPTIONS} -- builder true"),
        ("ssh://me@Builder:2222", f"{OPTIONS} -l me -p 2222 -- Builder true"),
        ("ssh://me%2Bci@[fd00::1]:22", f"{OPTIONS} -l me+ci -p 22 -- fd00::1 true"),
        ("ssh://builder/run/engine.sock", f"{OPTIONS} -- builder true"),
    ],
)
def test_a_host_that_ssh_reaches_answers(
    stand_in: Stand, tmp_path: Path, host: str, given: str
) -> None:
    stand_in("ssh", 'test -z "$(cat)"')  # it waits for nobody to type
    assert select.no_answer(host) is None
    assert (tmp_path / "given").read_text() == f"{given}\n"


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("echo 'ssh: connect to host builder port 22: No route to host' >&2; exit 255",
         "ssh: connect to host builder port 22: No route to host"),
        ("echo 'Host key verification failed.' >&2; exit 255", "Host key verification failed."),
        (f"echo '{DENIED} (publickey,password).' >&2; exit 255", "its ssh asks for a password"),
        (f"echo '{DENIED} (keyboard-interactive).' >&2; exit 255", "its ssh asks for a password"),
        (f"echo '{DENIED} (publickey).' >&2; exit 255", "its ssh takes no key of ours"),
        ("exec sleep 60", "no answer in 0 s"),
    ],
)  # fmt: skip
def test_one_that_ssh_does_not_reach_is_told_in_words(
    stand_in: Stand, monkeypatch: pytest.MonkeyPatch, script: str, said: str
) -> None:
    monkeypatch.setattr(select, "_LOGIN_SECONDS", 0.4 if "sleep" in script else 60)
    stand_in("ssh", script)
    why = select.no_answer("ssh://me@builder") or ""
    assert said in why
    assert "Permission denied" not in script or ("ssh-copy-id" in why and DENIED in why)
    with pytest.raises(EngineError, match="none of ENGINES can be used"):
        select.choose("auto", print, ("ssh://me@builder",))


def test_what_ends_badly_there_was_run_there(stand_in: Stand) -> None:
    stand_in("ssh", "echo 'true: command not found' >&2; exit 127")
    assert select.no_answer("ssh://builder") is None


WHERE = "--request-timeout=5s get pod dagger-0 -o jsonpath={.status.phase}"


@pytest.mark.parametrize(
    ("query", "before"),
    [
        ("", ""),
        ("?namespace=dagger", "--namespace=dagger "),
        ("?context=team&namespace=a&container=engine", "--context=team --namespace=a "),
    ],
)
def test_a_pod_that_runs_answers(stand_in: Stand, tmp_path: Path, query: str, before: str) -> None:
    stand_in("kubectl", "printf 'Running '")
    assert select.no_answer(f"kube-pod://dagger-0{query}") is None
    assert (tmp_path / "given").read_text().startswith(before + WHERE)


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("printf 'Pending '", "its pod is Pending, not Running"),
        ("printf 'Running 2026-11-29T12:00:00Z'", "is to be gone by 2026-11-29T12:00:00Z"),
        ("printf ' '", "its pod is in no phase, not Running"),
        ("""echo 'E1129 memcache.go:265' >&2
            echo 'Error from server (NotFound): pods "dagger-0" not found' >&2; exit 1""",
         'Error from server (NotFound): pods "dagger-0" not found'),
        ("exec sleep 60", "no answer in 0 s"),
    ],
)  # fmt: skip
def test_a_pod_that_does_not_run_is_told_in_words(
    stand_in: Stand, monkeypatch: pytest.MonkeyPatch, script: str, said: str
) -> None:
    monkeypatch.setattr(select, "_LOGIN_SECONDS", 0.4 if "sleep" in script else 60)
    stand_in("kubectl", script)
    assert said in (select.no_answer("kube-pod://dagger-0") or "")


@pytest.mark.parametrize(
    ("host", "program"), [("ssh://builder", "ssh"), ("kube-pod://dagger-0", "kubectl")]
)
def test_a_program_that_is_missing_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, host: str, program: str
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert select.no_answer(host) == f"{program} is not installed"


def test_an_engine_whose_host_hangs_gives_its_cell_to_another(
    stand_in: Stand, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    one, two = "ssh://one", "ssh://two"
    # Its host is there until a cell of its waits, and from then on the line is dead.
    stand_in("ssh", f"case $* in *two*) ls {tmp_path}/*.pid > /dev/null && exec sleep 60; esac")
    monkeypatch.setattr(fleet, "PROGRAM", runner.PROGRAM)
    monkeypatch.setattr(engines, "_LOGIN_PAUSE", 0.05)
    monkeypatch.setattr(select, "_LOGIN_SECONDS", 2.0)
    monkeypatch.setenv("STAND_IN_NOTES", str(tmp_path))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    made, said = runner.run(runner.wanted(a=f"wait {two}", b=f"wait {two}"), f"{one} {two}")
    assert runner.states(made) == dict.fromkeys("ab", "delivered")
    assert {row.engine for row in made.rows} == {one}
    assert f"engine {two} does not answer any more: no answer in 2 s" in said
    assert {it["name"]: it["lost"] for it in made.engines} == {one: "", two: "no answer in 2 s"}
    assert list(tmp_path.glob("*.told")), "the child that waited was stopped"
