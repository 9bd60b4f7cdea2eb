"""What the workflows of GitHub may do, and how they are pinned."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.unit.running import run
from tests.workflows import ACTIONS, EXPRESSION, ROOT, WORKFLOWS, Step, jobs, read, steps

FILES = [*WORKFLOWS, *ACTIONS]
JOBS = {place: job for place, job, _ in jobs()}
STEPS = list(steps())
CALLERS = {place for place, job in JOBS.items() if "uses" in job}

MAY_WRITE = {
    "link/work": {"packages"},
    "image/attest": {"packages", "id-token"},
    "images/page": {"pages", "id-token"},
    "updates/propose": {"contents", "pull-requests"},
}
"""What each job writes; a job that calls a workflow may give it no more than that needs."""


def called(job: Mapping[str, Any]) -> str:
    """Return the name of the workflow that a job calls."""
    return str(job["uses"]).removeprefix("./.github/workflows/").removesuffix(".yml")


def written(place: str) -> set[str]:
    job = JOBS[place]
    if "uses" not in job:
        return MAY_WRITE.get(place, set())
    below = [it for it in JOBS if it.startswith(f"{called(job)}/")]
    return set().union(*map(written, below))


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_actions_of_others_are_pinned_to_a_commit_whose_version_is_said(path: Any) -> None:
    used = re.findall(r"uses: *(\S+)(.*)", path.read_text())
    for name, comment in used:
        if not name.startswith("./"):
            assert re.fullmatch(r"[\w.-]+/[\w./-]+@[0-9a-f]{40}", name), name
            assert re.fullmatch(r"  # v\d+\.\d+\.\d+", comment), name


def test_each_action_has_one_version() -> None:
    text = "\n".join(path.read_text() for path in FILES)
    pins: dict[str, set[str]] = {}
    for owner, name, pin in re.findall(r"uses: *([\w.-]+)/([\w.-]+)[\w./-]*(@.*)", text):
        pins.setdefault(f"{owner}/{name}", set()).add(pin)
    assert len(pins) > 4
    assert {name for name, found in pins.items() if len(found) > 1} == set()


def test_only_who_publishes_may_write() -> None:
    for path in WORKFLOWS:
        assert read(path)["permissions"] in ({}, {"contents": "read"}), path.name
    for place, job in JOBS.items():
        given = job.get("permissions", {})
        assert {name for name, how in given.items() if how == "write"} == written(place), place
    assert written("images/image") == {"packages", "id-token"}


def test_a_pull_request_starts_nothing_that_writes_and_reads_no_secret() -> None:
    from_forks = [path.stem for path in WORKFLOWS if "pull_request" in read(path)["on"]]
    assert from_forks == ["ci", "images"]
    for place, job in JOBS.items():
        if place.partition("/")[0] in from_forks and written(place):
            assert "github.event_name != 'pull_request'" in job["if"], place
    assert not any("pull_request_target" in path.read_text() for path in WORKFLOWS)


def test_the_slow_tests_run_each_week_and_by_hand() -> None:
    (place,) = {it.place for it in STEPS if "make test-slow" in it.script}
    workflow = read(next(path for path in WORKFLOWS if path.stem == place.partition("/")[0]))
    (when,) = workflow["on"]["schedule"]
    assert re.fullmatch(r"\d+ \d+ \* \* [0-6]", when["cron"])
    assert "workflow_dispatch" in workflow["on"]


def test_the_readme_says_what_starts_each_workflow() -> None:
    by_others = {path.name for path in WORKFLOWS if "workflow_call" in read(path)["on"]}
    text = (ROOT / "README.md").read_text()
    rows = dict(re.findall(r"^\| `(\w+\.yml)` \| (.*) \|$", text, re.MULTILINE))
    assert set(rows) == {path.name for path in WORKFLOWS} - by_others
    said = {"schedule": "weekly", "workflow_dispatch": "by hand"}
    for path in WORKFLOWS:
        if path.name in rows:
            starts = read(path)["on"]
            told = {start for start, words in said.items() if words in rows[path.name]}
            assert told == set(starts) & set(said), path.name
    pushes = read(next(path for path in WORKFLOWS if path.stem == "ci"))["on"]["push"]
    assert pushes == {"branches": ["main"]}
    assert "every push to `main`" in rows["ci.yml"]


def test_what_publishes_is_never_cancelled_and_a_pull_request_is() -> None:
    for path in WORKFLOWS:
        workflow = read(path)
        if "workflow_call" in workflow["on"]:
            continue  # runs in its caller's group
        cancels = workflow["concurrency"]["cancel-in-progress"]
        if any(written(place) for place in JOBS if place.startswith(f"{path.stem}/")):
            assert cancels in (False, "${{ github.event_name == 'pull_request' }}"), path.name
        else:
            assert cancels is True, path.name


def secrets(text: object) -> bool:
    return any(
        re.search(r"\bsecrets\.|\bgithub\.token\b|\binputs\.token\b", it)
        for it in EXPRESSION.findall(str(text))
    )


def without(content: Mapping[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in content.items() if key not in keys}


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.name)
def test_a_step_gets_secrets_by_its_environment_alone(step: Step) -> None:
    handed_on = step.content.get("uses") == "./.github/actions/ready"
    assert not secrets(without(step.content, "env", *(["with"] if handed_on else [])))


HELD = [it for it in STEPS if "HOLD" in it.env]


@pytest.mark.parametrize("step", HELD, ids=lambda step: step.name)
def test_what_a_lock_holds_is_looked_for_in_the_registry(step: Step) -> None:
    # A runner's own store is empty: of compiled images there would be no packages to lock.
    ready = next(it for it in STEPS if it.place == step.place and it.content.get("id") == "ready")
    assert step.env["REGISTRY"] == "${{ steps.ready.outputs.registry }}"
    assert secrets(ready.content["with"])
    assert JOBS[step.place]["permissions"]["packages"] in {"read", "write"}


def test_every_use_of_a_lock_is_among_them() -> None:
    places = {"image/attest", "images/plan", "link/work", "updates/propose"}
    assert {it.place for it in HELD} == places


def test_no_job_has_a_secret_that_only_one_step_needs() -> None:
    for place, job, workflow in jobs():
        # GitHub gives the secrets of a call to the workflow that is called, not to a process.
        assert not secrets(without(job, "steps", "secrets")), place
        assert not secrets(workflow.get("env", {})), place


@pytest.mark.parametrize("step", [it for it in STEPS if it.script], ids=lambda step: step.name)
def test_a_script_is_named_fails_with_any_of_its_commands_and_holds_no_expression(
    step: Step,
) -> None:
    assert step.content.get("name")
    # Text in place of an expression is read by the shell, whatever it is.
    assert not EXPRESSION.search(step.script)
    # GitHub's own bash has no pipefail unless it is asked for by name.
    action = "/" not in step.place
    workflows = {place: workflow for place, _, workflow in jobs()}
    shell = step.content["shell"] if action else workflows[step.place]["defaults"]["run"]["shell"]
    assert shell == "bash"


def test_no_token_stays_in_a_checkout() -> None:
    checkouts = [it for it in STEPS if str(it.content.get("uses")).startswith("actions/checkout@")]
    assert len(checkouts) > 4
    for step in checkouts:
        assert step.content["with"]["persist-credentials"] is False, step.name


def minutes(text: str) -> int:
    hours, rest = re.fullmatch(r"(?:(\d+)h)?(?:(\d+)m)?", text).groups()  # type: ignore[union-attr]
    return int(hours or 0) * 60 + int(rest or 0)


def test_each_job_ends_before_github_ends_it_and_each_compile_before_its_job() -> None:
    for place, job in JOBS.items():
        assert place in CALLERS or job["timeout-minutes"] < 360, place
    deadlines = {step.place: step.env["DEADLINE"] for step in STEPS if "DEADLINE" in step.env}
    assert set(deadlines) == {"link/work"}
    for place, deadline in deadlines.items():
        assert minutes(deadline) + 20 <= JOBS[place]["timeout-minutes"]


def links() -> Iterator[tuple[int, dict[str, Any]]]:
    chain = {it: job for it, job in JOBS.items() if it.startswith("chain/") and it in CALLERS}
    yield from enumerate(chain.values(), start=1)


def test_a_chain_goes_on_only_where_the_link_before_it_left_something() -> None:
    names = [it.removeprefix("chain/") for it in JOBS if it.startswith("chain/")]
    for number, job in links():
        assert job["with"]["link"] == number
        if number > 1:
            before = names[number - 2]
            assert (job["needs"], job["if"]) == (
                before, f"needs.{before}.outputs.unfinished == 'true'"
            )  # fmt: skip
    # Whatever a link can be told, each link is told.
    told = read(next(path for path in WORKFLOWS if path.stem == "link"))["on"]["workflow_call"]
    for _, job in links():
        assert set(job["with"]) == set(told["inputs"])
        assert set(job["secrets"]) == set(told["secrets"])


def test_more_cells_than_github_makes_jobs_are_left_for_the_next_run(checkout: Path) -> None:
    archs = ["6.0", "6.1", "7.0", "7.5", "8.0", "8.6", "8.9", "9.0"]
    some = [" ".join(it) for n in (1, 2, 3, 4) for it in itertools.combinations(archs, n)]
    (checkout / "images.toml").write_text(
        "[settings]\nLINUX_DISTRO = 'ubuntu'\nBUILD_MODE = 'include'\n"
        "PYTORCH_VERSION_TAG = 'v2.6.0'\n"
        f"CUDA_VERSION = '12.6'\n[axes]\nCCA = {some}\nPYTHON_VERSION = ['3.12', '3.13']\n"
    )
    ran = run("matrix", "--github")
    assert ran.code == 0, ran.err
    cells = json.loads(ran.out)["include"]
    assert (len(some) * 2, len(cells)) == (324, 256)
    assert "68 more cells" in ran.err


def test_what_shapes_images_starts_them() -> None:
    workflow = read(next(path for path in WORKFLOWS if path.stem == "images"))
    paths = workflow["on"]["push"]["paths"]
    assert workflow["on"]["pull_request"]["paths"] == paths
    for pattern in set(paths) - {"cresset.lock"}:  # a team's own
        assert list(ROOT.glob(pattern.replace("/**", "/**/*"))), pattern
