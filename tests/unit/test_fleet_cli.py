"""``build --matrix`` before anything is built, ENGINES, errors as JSON and the step summary."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from pipeline import lock as locks
from pipeline import publish, store, summary, tags
from pipeline.attest import proof, referrers
from pipeline.build import Outcome
from pipeline.cli import fleet as verbs
from pipeline.engine import local, select
from pipeline.engine.select import Choice
from pipeline.errors import BuildError, EngineError
from pipeline.fleet import report
from pipeline.fleet.build import Wanted
from pipeline.publish import Delivered
from pipeline.settings import load
from pipeline.spec import ImageSpec
from tests.unit.running import run
from tests.unit.specs import spec, spec_in
from tests.unit.test_lock import lock_of

MATRIX = """
[axes]
SERVICE = ["simple"]
DISTRO_VERSION = ["12", "13"]
[[include]]
VISION_SOURCE = "apt"
PYTORCH_VERSION = "2.6.0"
CCA = "8.6"
reason = "Ampere"
"""


def built(folder: Path, *argv: str) -> Any:
    (folder / "images.toml").write_text(MATRIX)
    return run("build-only", "--matrix", *argv)


def test_a_dry_run_says_what_would_be_built_and_compiled(checkout: Path) -> None:
    said = json.loads(built(checkout, "--dry-run", "--json").out)["cells"]
    assert [(it["variant"], it["there"], it["compiles"]) for it in said] == [
        ("simple-py311-bookworm", False, []),
        ("simple-py313-trixie", False, []),
        ("py313-torch2.6.0-cu124-sm86-trixie", False, ["torchvision"]),
    ]
    assert {it["destination"] for it in said} == {"nowhere"}
    text = built(checkout, "--dry-run", "--only", "py313-*").out
    assert text.split()[0] == "py313-torch2.6.0-cu124-sm86-trixie"
    assert "would be built, compiling torchvision" in text
    assert len(text.splitlines()) == 1


@pytest.mark.parametrize("mine", [True, False])
def test_a_dry_run_says_which_proofs_would_be_attached(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, *, mine: bool
) -> None:
    there = Delivered("nowhere:it@sha256:0", "sha256:0", 1)
    monkeypatch.setattr(publish, "find_all", lambda wanted: [there for _ in wanted])
    monkeypatch.setattr(proof, "lacks_proof", lambda _, where, __: where.name == "nowhere")
    monkeypatch.setattr(referrers, "may_push", lambda _: mine)
    text = built(checkout, "--dry-run", "--only", "py313-*").out
    assert "there already" in text
    assert (", and its proof would be attached" in text) is mine
    (cell,) = json.loads(built(checkout, "--dry-run", "--json", "--only", "py313-*").out)["cells"]
    assert cell["there"]
    assert cell["compiles"] == []
    assert cell["proof"] == ("to be attached" if mine else "missing")


def test_another_file_is_read_where_it_is_named(checkout: Path) -> None:
    (checkout / "few.toml").write_text('[axes]\nSERVICE = ["simple"]\n')
    ran = run("build", "--matrix", "--dry-run", "--file", "few.toml")
    assert ran.code == 0, ran.err
    assert len(ran.out.splitlines()) == 1
    assert "no container is started" not in ran.err


def test_nothing_selected_is_its_own_exit_code(checkout: Path) -> None:
    assert built(checkout, "--only", "nope").code == 3


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (
            ("build", "simple", "--matrix"),
            "TARGET='simple': images.toml says which",
        ),
        (("build-only", "--only", "x*"), "--only='x*': chooses among images, and this is one"),
        (("build-only", "--resume"), "--resume='yes'"),
        (("build", "--file", "few.toml"), "--file='few.toml': chooses among images"),
        (("lock", "--file", "few.toml"), "--file='few.toml': chooses among images"),
        (("build", "--matrix", "--resume", "--force"), "allowed: --force or --resume"),
        (("build", "--matrix", "--resume", "--pull"), "--resume='yes': --pull goes against it"),
    ],
)
def test_options_that_do_not_go_together_are_refused(
    checkout: Path, argv: tuple[str, ...], words: str
) -> None:
    assert checkout
    ran = run(*argv)
    assert ran.code == 2
    assert words in ran.err


def test_the_command_to_repeat_a_cell_has_no_password_in_it() -> None:
    asked = verbs.Asked((), (), Path("x.toml"), False, False, False, False, False, "frozen")
    words = verbs._words({"CACHE_URL": "redis://:secret@host:1", "TZ": "UTC"}, asked)
    again = report.command("simple-py313-trixie", words)
    assert "secret" not in again
    assert again.startswith("python -m pipeline build-only --matrix --only simple-py313-trixie")
    assert "--file x.toml" in again
    assert "--frozen" in again
    assert "--tz UTC" in again


BRANCH = """
[settings]
VISION_SOURCE = "git"
PYTORCH_VERSION = "2.6.0"
CCA = "8.6"
[axes]
of = [
    { PYTHON_VERSION = "3.12", VISION_REF = "main" },
    { PYTHON_VERSION = "3.13", VISION_REF = "v0.21.0" },
]
[[include]]
SERVICE = "simple"
reason = "a shell"
"""


def handed(checkout: Path, monkeypatch: pytest.MonkeyPatch, *argv: str) -> list[Wanted]:
    """Return the cells that a matrix with a branch hands to its runner."""
    given: list[Wanted] = []

    def build(wanted: list[Wanted], *_: object) -> report.Report:
        given.extend(wanted)
        return report.Report([], [], 0, 0)

    (checkout / "images.toml").write_text(BRANCH)
    monkeypatch.setattr("pipeline.fleet.build.build", build)
    monkeypatch.setattr("pipeline.host.repository.commit", lambda *_: "c" * 40)
    ran = run("build-only", "--matrix", *argv)
    assert ran.code == 0, ran.err
    return given


def test_a_branch_that_moves_under_a_matrix_makes_no_other_image(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells = [it.cell for it in handed(checkout, monkeypatch)]
    assert [it.settings.get("VISION_REF") for it in cells] == ["c" * 40, "v0.21.0", None]

    def moved(*_: str) -> str:
        raise AssertionError("nobody is asked again")

    for cell in cells:
        assert spec_in(checkout / "reqs", "", moved, **cell.settings).key == cell.key


def test_whether_a_locked_branch_has_moved_is_asked_by_the_build_of_its_cell(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"VISION_SOURCE": "git", "PYTORCH_VERSION": "2.6.0", "CCA": "8.6",
                "PYTHON_VERSION": "3.12", "VISION_REF": "main"}  # fmt: skip
    made = spec_in(checkout / "reqs", "", lambda *_: "c" * 40, **settings)
    url = "https://github.com/pytorch/vision.git"
    locks.write(lock_of(made, git={url: {"main": "c" * 40}}))
    (it,) = handed(checkout, monkeypatch, "--locked", "--only", made.variant)
    assert it.cell.settings["VISION_REF"] == "main"


# ENGINES


@pytest.mark.parametrize(
    "value",
    [
        "local",
        "tcp://builder:1234, tcp://10.0.0.2:1234",
        "unix:///run/dagger/engine.sock local",
        "tls://builder:1234?ca_path=/etc/ca.pem&cert_path=/etc/me.pem&key_path=/etc/me.key",
        "ssh://me@builder",
        "kube-pod://dagger-0?namespace=dagger&context=team",
    ],
)
def test_runner_hosts_are_taken(value: str) -> None:
    loaded = load({"ENGINES": value}, environ={}, env_file=Path("/nonexistent"))
    assert loaded.problems == ()
    assert len(select.hosts(loaded.settings.engines)) == len(value.replace(",", " ").split())


@pytest.mark.parametrize(
    "value", ["builder", "tcp://builder", "http://builder:1", "unix://run/x", "tcp://a:1;tcp://b:1"]
)
def test_what_is_no_runner_host_is_refused(value: str) -> None:
    (problem,) = load({"ENGINES": value}, environ={}, env_file=Path("/nonexistent")).problems
    assert problem.field == "ENGINES"
    assert "runner hosts of Dagger" in problem.why
    assert "tls://host:port?ca_path=FILE" in problem.allowed


def test_one_image_is_built_by_the_first_of_them_that_answers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(local, "session_program", lambda: None)
    monkeypatch.setattr(select, "no_answer", lambda host: "refused" if "one" in host else None)
    named = select.hosts("tcp://one:1 tcp://two:1 tcp://one:1")
    assert named == ("tcp://one:1", "tcp://two:1")
    chosen = select.choose("local", print, named)
    assert chosen.environment[select.RUNNER_HOST] == "tcp://two:1"
    assert chosen.reason == (
        "ENGINES=tcp://two:1; not tcp://one:1: tcp://one:1 does not answer (refused)"
    )
    with pytest.raises(EngineError, match="none of ENGINES can be used"):
        select.choose("auto", print, named[:1])


def test_local_is_one_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(select, "_local", lambda _: Choice("local", "built here"))
    assert select.choose("auto", print, ("local", "tcp://one:1")).kind == "local"


# Errors as JSON


def test_an_error_is_printed_as_json_where_json_was_asked_for(checkout: Path) -> None:
    assert checkout
    ran = run("plan", "--json", "--cca", "12")
    assert ran.code == 2
    error = json.loads(ran.out)["error"]
    assert error["exit_code"] == 2
    assert "CCA='12'" in error["details"][0]
    assert set(error) == {"what", "why", "next", "details", "stage", "log", "exit_code"}
    plain = run("plan", "--cca", "12")
    assert plain.out == ""
    assert plain.err == ran.err, "a person reads the same"


# What is there already


class Listed:
    """A registry's answers, counted."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *tags: str) -> None:
        self.listed: list[str] = []
        self.asked: list[str] = []

        def published(repository: str) -> tuple[str, ...]:
            self.listed.append(repository)
            return tags

        def manifest(repository: str, tag: str) -> tuple[str, int] | None:
            self.asked.append(f"{repository}:{tag}")
            return ("sha256:1", 5) if tag in tags else None

        monkeypatch.setattr(publish, "published", published)
        monkeypatch.setattr(publish, "manifest", manifest)
        monkeypatch.setattr(publish, "whole", lambda *_: True)


def test_a_registry_is_asked_once_for_what_it_does_not_have(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one, two = spec("simple"), spec("simple", TZ="Asia/Seoul")
    answers = Listed(monkeypatch, one.variant, f"key-{one.key}")
    where = publish.Registry("registry/cresset", "cresset")
    wanted: list[tuple[ImageSpec, publish.Destination]] = [(one, where), (two, where)]
    first, second = publish.find_all(wanted)
    assert isinstance(first, Delivered)
    assert first.ref == f"registry/cresset:{one.variant}@sha256:1"
    assert second is None
    assert answers.listed == ["registry/cresset"]
    assert not any(two.key in it for it in answers.asked)


def test_a_registry_is_asked_once_for_all_wheels(monkeypatch: pytest.MonkeyPatch) -> None:
    vision = {"VISION_SOURCE": "apt", "PYTORCH_VERSION": "2.6.0"}
    (one,), (two,) = (spec(**vision, CCA=it).compiled for it in ("8.6", "8.0"))
    answers = Listed(monkeypatch, f"{one.variant}-{one.key[:16]}")
    assert store.present(store.Registry("registry/wheels"), [one, two]) == {one.key}
    assert answers.listed == ["registry/wheels"]
    assert answers.asked == []


# What is shown


def test_a_terminal_shows_what_runs_what_failed_and_how_many_are_left() -> None:
    rows = [report.Row(name, "simple", name) for name in "abcd"]
    rows[0].state, rows[0].engine = report.BUILDING, "tcp://one:1"
    rows[0].told("pip: running 20 s  Installing torch")
    rows[1].state, rows[1].why = "failed", "a command failed"
    rows[2].state = "delivered"
    out = io.StringIO()
    view = report.Live(Console(file=out, force_terminal=True, width=120), rows)
    view.note("engine [tcp]: 4 cores")
    view.close()
    text = out.getvalue()
    for words in ("pip 20 s  Installing torch", "a command failed", "engine [tcp]: 4 cores"):
        assert words in text
    assert "1 delivered, 1 waiting, 4 in all" in text


def test_the_summary_of_a_build_that_fails_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "summary.md"
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(file))
    with pytest.raises(BuildError), verbs.summarized(spec("simple")):
        raise BuildError("a command failed", command="make", tail="no such | file")
    text = file.read_text()
    assert "### simple-py313-trixie is not built" in text
    assert "| simple-py313-trixie | failed |" in text
    assert "command: make" in text


def test_the_summary_names_what_was_compiled_and_how_much_the_cache_had() -> None:
    counts = {"c++": {"hits": 12, "misses": 21, "uncacheable": 3}, "cuda": {"misses": 7}}
    wheel = {"package": "torchvision", "seconds": 300, "hits": 12, "misses": 28, "cache": counts}
    row = {"variant": "a|b", "state": "delivered", "ref": "r:5000/n:t@sha256:1", "key": "0f",
           "size": 3_290_000_000, "took": 61.4, "compiled": [wheel, wheel | {"cache": {}}],
           "cached": ["base", "apt"]}  # fmt: skip
    head, line, last = summary.table("t", [row]).splitlines()[2:]
    assert {it.count(" | ") for it in (head, line, last)} == {7}
    assert last == (
        "| a\\|b | delivered | `r:5000/n:t@sha256:1` | `t`<br>`key-0f` | 3.29 GB | 61 | "
        "torchvision 300 s, from the cache C++ 12 of 33 and CUDA 0 of 7; torchvision 300 s | 2 |"
    )


@pytest.mark.parametrize("repository", ["n", "localhost:5000/team/n"])
def test_the_summary_names_the_tags_of_an_image(repository: str) -> None:
    it = spec("simple")
    outcome = Outcome(Delivered(f"{repository}:{it.variant}@sha256:1", "sha256:1", 5), it, {}, [])
    row = {**outcome.as_json(), "state": "delivered"}
    ref, *named = re.findall(r"`([^`]+)`", summary.table("t", [row]).splitlines()[-1])
    assert ref == outcome.delivered.ref
    assert tuple(named) == tags.tags(it, "n")


def test_the_summary_gives_no_tags_to_a_file_and_to_what_is_not_there() -> None:
    archive = {"variant": "a", "state": "delivered", "ref": "oci-archive:dist/n-a.oci.tar@sha256:1"}
    failed = {"variant": "a", "state": "failed"}
    for row in (archive, failed):
        assert "key-" not in summary.table("t", [row | {"key": "0f"}])


def test_a_summary_that_cannot_be_written_costs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "no/such/folder"))
    summary.append("t", [{"variant": "a", "state": "delivered"}])
    assert "the step summary cannot be written" in capsys.readouterr().err
