"""Each script of the workflows and actions, run as GitHub's runner runs it.

What cannot be had here has a stand-in that is named so: ``gh``, ``sudo``, ``cosign`` where it would
sign by a token of GitHub, and a Docker with a GPU.
"""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from platformdirs import user_cache_path

from pipeline.settings import ALIASES, NAMES
from tests import services, workflows
from tests.docker import dockerd
from tests.engine.conftest import ROOT
from tests.engine.test_updates import index
from tests.workflows import substituted

NOTHING: Mapping[str, str] = {}
ACTIONLINT = "v1.7.12"
STEPS = {step.name: step for step in workflows.steps() if step.script}
BASH = ("bash", "--noprofile", "--norc", "-eo", "pipefail")
"""How GitHub starts ``shell: bash``:
https://docs.github.com/en/actions/reference/workflows-and-actions/workflow-syntax"""


@dataclass(frozen=True)
class Ended:
    """A script that has ended, and what it wrote for GitHub."""

    code: int
    out: str
    err: str
    outputs: Mapping[str, str]
    summary: str
    stood_in: Sequence[str]
    """The command lines that stand-ins were given."""


@dataclass(frozen=True)
class Site:
    """A clone with what its job has installed in it, and an environment as a runner's."""

    clone: Path
    environment: Mapping[str, str]
    folder: Path

    def stand_in(self, name: str, script: str = "") -> None:
        """Put a program on PATH that writes down what it is given, and does `script`."""
        file = self.folder / "stand-ins" / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(f'#!/bin/bash\necho "{name} $*" >> "$STOOD_IN"\n{script}\n')
        file.chmod(0o755)

    def is_ready(self) -> None:
        """Say to make that what is installed is newer than what is written."""
        for name in ("ready", "testable"):
            (self.clone / ".venv" / name).unlink(missing_ok=True)
        (self.clone / ".venv" / "ready").touch()

    def run(
        self, name: str, values: Mapping[str, str] = NOTHING, environ: Mapping[str, str] = NOTHING
    ) -> Ended:
        """Run a step's script, with `values` for its expressions and `environ` on top."""
        step = STEPS[name]
        given = {key: substituted(value, values) for key, value in step.env.items()}
        files = {
            key: self.folder / key.lower()
            for key in ("GITHUB_OUTPUT", "GITHUB_STEP_SUMMARY", "STOOD_IN")
        }
        for file in files.values():
            file.write_text("")
        script = self.folder / "script"
        script.write_text(step.script)
        done = subprocess.run(
            [*BASH, str(script)],
            cwd=self.clone,
            env={
                **self.environment,
                **{key: str(file) for key, file in files.items()},
                "PATH": f"{self.folder}/stand-ins:{self.environment['PATH']}",
                "RUNNER_TEMP": str(self.folder),
                **given,
                **environ,
            },
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        lines = files["GITHUB_OUTPUT"].read_text().splitlines()
        return Ended(
            done.returncode,
            done.stdout,
            done.stderr,
            dict(line.split("=", 1) for line in lines),
            files["GITHUB_STEP_SUMMARY"].read_text(),
            files["STOOD_IN"].read_text().splitlines(),
        )


@pytest.fixture(scope="session")
def clone() -> Iterator[Path]:
    """Yield a clone of this checkout as it is now."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        path = Path(folder, "clone")
        for name in _git(ROOT, "ls-files", "-co", "--exclude-standard").splitlines():
            if (ROOT / name).is_file():
                (path / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, path / name)
        _git(path, "init", "--quiet", "--initial-branch", "main")
        _git(path, "add", "--all")
        _git(path, *WHO, "commit", "--quiet", "--message", "all")
        yield path


@pytest.fixture
def fresh(clone: Path, tmp_path: Path) -> Site:
    """Return a clone in which nothing is installed."""
    copy, home = tmp_path / "clone", tmp_path / "home"
    # With the times of files, by which make sees what is newer.
    shutil.copytree(clone, copy)
    home.mkdir()
    ours = {*NAMES, *ALIASES, "NO_COLOR", "FORCE_COLOR", "VIRTUAL_ENV"}
    outer = ("DAGGER_", "_EXPERIMENTAL_DAGGER", "OTEL_", "GITHUB_", "PYTEST_", "MAKE")
    kept = {
        name: value
        for name, value in os.environ.items()
        if name not in ours and not name.startswith(outer)
    }
    ours_here = {
        "ENGINE": "local",
        "TZ": "UTC",
        "PYTHONPATH": str(copy),
        "DOCKER_CONFIG": str(home),
        "DOCKER_HOST": f"unix://{tmp_path}/no-docker",
        "GITHUB_ACTIONS": "true",
        "GITHUB_ACTOR": "somebody",
        "GITHUB_REPOSITORY": "Some-Team/cresset",
        "GITHUB_REPOSITORY_OWNER": "Some-Team",
        "GITHUB_SERVER_URL": "https://github.com",
    }
    return Site(copy, kept | ours_here, tmp_path)


@pytest.fixture
def site(fresh: Site) -> Site:
    """Return a clone in which what these tests run in is installed.

    And nothing else ever is: make would install this clone in place of the checkout of the tests.
    """
    (fresh.clone / ".venv").mkdir()
    for path in Path(sys.prefix).iterdir():
        (fresh.clone / ".venv" / path.name).symlink_to(path)
    fresh.is_ready()
    return fresh


WHO = ("-c", "user.name=tests", "-c", "user.email=tests@example.com")


def _git(folder: Path, *args: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(folder), *args], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_script_is_run_here() -> None:
    named = [it.name for it in workflows.steps() if it.script]
    assert len(named) == len(STEPS), "two steps of a job have one name"
    run = re.findall(r'\.run\(\s*"([^"]+)"', Path(__file__).read_text())
    assert set(run) == set(named)


@pytest.fixture(scope="session")
def programs() -> Path:
    """Return a folder of programs that the tests install, once for all checkouts."""
    return user_cache_path("cresset") / "tests" / "bin"


def test_actionlint_has_nothing_to_say(programs: Path) -> None:
    """With shellcheck, if it is installed, of the scripts as well."""
    actionlint = programs / "actionlint"
    if not actionlint.exists():
        package = f"github.com/rhysd/actionlint/cmd/actionlint@{ACTIONLINT}"
        environment = {**os.environ, "GOBIN": str(programs)}
        subprocess.run(["go", "install", package], env=environment, check=True)
    done = subprocess.run([actionlint], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")
    wrong = "on: push\njobs: {a: {runs-on: ubuntu-24.04, steps: [{run: 'echo ${{ needs.b }}'}]}}\n"
    done = subprocess.run(
        [actionlint, "-"], input=wrong, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1, "it says nothing of what is wrong"


@pytest.mark.slow
def test_a_job_installs_the_pipeline(fresh: Site) -> None:
    ended = fresh.run("ready: Install the pipeline")
    assert ended.code == 0, ended.err
    ended = fresh.run("ready: Install the pipeline")
    assert (ended.code, ended.err) == (0, "")
    done = subprocess.run(
        [fresh.clone / ".venv/bin/cresset", "plan", "simple"],
        check=False,
        cwd=fresh.clone,
        env=fresh.environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def test_images_go_to_the_registry_of_the_repository(site: Site) -> None:
    ended = site.run("ready: Name the registry")
    assert ended.outputs == {"registry": "ghcr.io/some-team"}


@pytest.fixture(scope="module")
def docker_host() -> Iterator[str]:
    """Yield the DOCKER_HOST of a daemon that has nothing."""
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder,
        dockerd(Path(folder)) as host,
    ):
        yield host


@pytest.mark.docker
def test_a_job_logs_in_by_the_token_of_its_run(
    site: Site, docker_host: str, private_registry: str
) -> None:
    reached = {"DOCKER_HOST": docker_host}
    ours = {
        "steps.registry.outputs.registry": f"{private_registry}/some-team",
        "needs.build.outputs.ref": f"{private_registry}/some-team/cresset@sha256:0",
    }
    wrong = {"inputs.token": "wrong", "github.token": "wrong"}
    right = {"inputs.token": "right", "github.token": "right"}
    config = Path(site.environment["DOCKER_CONFIG"], "config.json")
    assert site.run("ready: Log in to the registry", ours | wrong, reached).code != 0
    assert not config.exists()
    assert site.run("ready: Log in to the registry", ours | right, reached).code == 0
    assert list(json.loads(config.read_text())["auths"]) == [private_registry]
    config.unlink()
    assert site.run("image/smoke: Log in to the registry", ours | right, reached).code == 0
    assert list(json.loads(config.read_text())["auths"]) == [private_registry]


# The tests' own job would run them again, without end: real make and real pytest say what they
# would do.
DRY = {"MAKEFLAGS": "--dry-run", "PYTEST_ADDOPTS": "--collect-only --quiet"}
SUDO = '[ "$1" != make ] && [ "$1" != .venv/bin/pytest ] || exec "$@"'


def test_ci_lints_and_tests(site: Site) -> None:
    site.stand_in("sudo", SUDO)
    ended = site.run("ci/lint: Lint and type-check", environ=DRY)
    assert ended.code == 0, ended.err
    assert all(it in ended.out for it in ("ruff check", "ruff format --check", "mypy"))
    ended = site.run("ci/engine: Install what the tests start", environ=DRY)
    assert ended.code == 0, ended.err
    assert "docker-registry" in ended.out
    ended = site.run("ci/unit: Test without an engine", environ=DRY)
    assert (ended.code, "tests/unit/test_workflows.py" in ended.out) == (0, True), ended.out
    ended = site.run("ci/graph: Test what the engine would be asked", environ=DRY)
    assert (ended.code, "tests/graph/test_stages.py" in ended.out) == (0, True), ended.out
    ended = site.run("ci/engine: Test on a real engine and in a real Docker", environ=DRY)
    assert (ended.code, "tests/engine/test_build.py" in ended.out) == (0, True), ended.out
    assert len(ended.stood_in) == 1


def test_what_is_slow_is_tested_too(site: Site) -> None:
    site.stand_in("sudo", SUDO)
    ended = site.run("slow/tests: Test what takes longer", environ=DRY)
    assert (ended.code, ended.stood_in) == (0, ["sudo make test-slow"]), ended.err
    (command,) = [it for it in ended.out.splitlines() if ".venv/bin/pytest" in it]
    done = subprocess.run(
        [*BASH, "-c", f"{command} tests/engine/test_bundle.py tests/engine/test_torch.py"],
        cwd=site.clone,
        env={**site.environment, **DRY},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert "tests/engine/test_bundle.py" in done.stdout
    assert "tests/engine/test_torch.py" not in done.stdout


def test_the_disk_is_freed_of_what_no_build_reads(site: Site) -> None:
    site.stand_in("sudo")
    ended = [site.run("link/work: Free the disk"), site.run("slow/tests: Free the disk")]
    (said,) = {line for it in ended for line in it.stood_in}
    paths = said.removeprefix("sudo rm -rf ").split()
    assert all(re.fullmatch(r"/(opt|usr)(/[\w.]+)+", it) for it in paths), said


CELL = {
    "steps.ready.outputs.registry": "localhost:5000/some-team",
    "inputs.settings": "PYTHON_VERSION=3.13",
    "inputs.target": "simple",
    "inputs.force": "false",
    "vars.HOLD": "",
    "secrets.CACHE_URL": "",
    "secrets.ENGINES": "",
}
WHEELS = CELL | {"inputs.target": "", "inputs.settings": "CCA=7.5 8.6+PTX\nBUILD_MODE=include"}
REF = {"ref": "registry/image@sha256:1"}


@pytest.mark.parametrize(
    ("values", "words", "said"),
    [
        (CELL, "build-only simple", REF),
        (CELL | {"inputs.force": "true"}, "build-only simple --force", REF),
        (CELL | {"vars.HOLD": "frozen"}, "build-only simple --frozen", REF),
        (WHEELS, "wheels", {}),
    ],
)
@pytest.mark.parametrize("code", [0, 5, 8])
def test_a_link_says_whether_more_is_left(
    site: Site, values: Mapping[str, str], words: str, said: Mapping[str, str], code: int
) -> None:
    """A stand-in of the pipeline ends as it would."""
    shutil.rmtree(site.clone / ".venv")
    site.stand_in("python", f"[ {code} = 0 ] && echo registry/image@sha256:1\nexit {code}")
    (site.clone / ".venv").mkdir()
    (site.clone / ".venv" / "bin").symlink_to(site.folder / "stand-ins")
    ended = site.run("link/work: Build or compile", values)
    assert ended.stood_in == [f"python -m pipeline {words}"]
    assert ended.code == (0 if code == 8 else code)
    assert ended.outputs == {0: said, 5: {}, 8: {"unfinished": "true"}}[code]


def test_a_link_compiles_by_the_settings_that_it_is_given(site: Site) -> None:
    """With nothing compiled: what the settings make is refused, and the refusal says what it is."""
    torch = WHEELS | {"inputs.settings": "BUILD_MODE=include\nCCA=7.5 8.6+PTX\nCUDA_VERSION=9.9"}
    ended = site.run("link/work: Build or compile", torch)
    assert ended.code == 2
    assert "CUDA_VERSION='9.9'" in ended.err
    assert "CCA=" not in ended.err


def test_a_chain_that_is_not_done_fails(site: Site) -> None:
    ended = site.run("chain/done: Say that it is not done")
    assert (ended.code, ended.out.startswith("::error::")) == (8, True)


def test_the_image_multiplies_on_the_gpu_of_a_runner(site: Site) -> None:
    """A stand-in of Docker: no GPU is here."""
    site.stand_in("docker", 'printf "%s" "${@: -1}" > "$RUNNER_TEMP/program"')
    ended = site.run(
        "image/smoke: Multiply on the GPU", {"needs.build.outputs.ref": "a/b@sha256:1"}
    )
    assert ended.code == 0, ended.err
    assert ended.stood_in[0].startswith("docker run --rm --gpus all a/b@sha256:1 python -c")
    program = ast.parse((site.folder / "program").read_text())
    assert any(isinstance(it, ast.Assert) for it in program.body)


PINS = {"vars.HOLD": "", "steps.ready.outputs.registry": "localhost:5000/some-team"}
NO_PULL_REQUEST = 'case "$*" in "pr list"*) echo 0;; esac'
ONE_PULL_REQUEST = 'case "$*" in "pr list"*) echo 1;; esac'
TOKEN = {"secrets.UPDATES_TOKEN || github.token": "token"}
LACKING = {"torch": ["99.0.0"], "torchvision": []}
NOTHING_LACKING: Mapping[str, list[str]] = {"torch": [], "torchvision": []}


@pytest.fixture
def origin(site: Site) -> Path:
    """Return the repository that the clone pushes to."""
    path = site.folder / "origin.git"
    _git(site.folder, "init", "--quiet", "--bare", str(path))
    _git(site.clone, "remote", "add", "origin", str(path))
    (site.folder / "body.md").write_text("what moves\n")
    (site.folder / "releases.json").write_text(json.dumps(NOTHING_LACKING))
    return path


def test_pins_are_renewed_and_what_moves_is_said(site: Site) -> None:
    lock = site.clone / "requirements.lock"
    had = lock.read_text()
    lock.write_text("")
    site.is_ready()
    with services.serving(index(LACKING)) as host:
        ended = site.run("updates/propose: Renew the pins", PINS, {"INDEX_URL": f"http://{host}"})
    assert ended.code == 0, ended.err
    pins = re.compile(r"^([\w.-]+)==", re.MULTILINE)
    assert set(pins.findall(lock.read_text())) == set(pins.findall(had))
    body = (site.folder / "body.md").read_text()
    assert "- torch: the compatibility tables lack 99.0.0\n" in body
    assert json.loads((site.folder / "releases.json").read_text()) == LACKING
    assert ended.summary == body


def test_a_lock_that_cannot_be_renewed_proposes_nothing(site: Site) -> None:
    (site.clone / "cresset.lock").write_text("none")
    for hold in ("", "frozen"):
        ended = site.run("updates/propose: Renew the pins", PINS | {"vars.HOLD": hold}, DRY)
        assert ended.code == 2, ended.err
        assert "cresset.lock" in ended.err


def test_newer_pins_are_proposed_as_one_pull_request(site: Site, origin: Path) -> None:
    site.stand_in("gh", NO_PULL_REQUEST)
    assert site.run("updates/propose: Propose them", TOKEN).stood_in == []
    assert _git(origin, "branch", "--list") == ""
    for gh, verb in ((NO_PULL_REQUEST, "create"), (ONE_PULL_REQUEST, "edit")):
        site.stand_in("gh", gh)
        with (site.clone / "requirements.lock").open("a") as lock:
            lock.write(f"# {verb}\n")
        ended = site.run("updates/propose: Propose them", TOKEN)
        assert ended.code == 0, ended.err
        assert f"# {verb}\n" in _git(origin, "show", "updates/pins:requirements.lock")
        assert [line.split()[1:3] for line in ended.stood_in] == [
            ["auth", "setup-git"],
            ["pr", "list"],
            ["pr", verb],
        ]
        assert f"--title Newer pins --body-file {site.folder}/body.md" in ended.stood_in[-1]
        _begin_anew(site)


def _begin_anew(site: Site) -> None:
    """Leave the clone as each run begins: with what is merged."""
    _git(site.clone, "switch", "--quiet", "main")
    _git(site.clone, "branch", "--quiet", "-D", "updates/pins")


def test_releases_that_the_tables_lack_are_told_where_no_pin_moved(
    site: Site, origin: Path
) -> None:
    (site.folder / "releases.json").write_text(json.dumps(LACKING))
    for gh, verb in ((NO_PULL_REQUEST, "create"), (ONE_PULL_REQUEST, "edit")):
        site.stand_in("gh", gh)
        ended = site.run("updates/propose: Propose them", TOKEN)
        assert ended.code == 0, ended.err
        *_, listed, last = [line.split()[1:3] for line in ended.stood_in]
        assert (listed, last) == (["pr", "list"], ["pr", verb])
        title = "Releases that the compatibility tables lack"
        assert f"--title {title} --body-file {site.folder}/body.md" in ended.stood_in[-1]
        # A pull request needs a commit of its own, and this one changes nothing.
        assert _git(origin, "log", "-1", "--format=%s", "updates/pins").strip() == title
        assert _git(site.clone, "diff", "main", "updates/pins") == ""
        assert _git(site.clone, "rev-list", "--count", "main..updates/pins").strip() == "1"
        _begin_anew(site)


def test_releases_that_somebody_was_told_of_are_proposed_once(site: Site, origin: Path) -> None:
    (site.folder / "releases.json").write_text(json.dumps(LACKING))
    site.stand_in("gh", r"""case "$*" in *"--state all"*) printf 'what moves\r\n';; esac""")
    ended = site.run("updates/propose: Propose them", TOKEN)
    assert ended.code == 0, ended.err
    assert [line.split()[1:3] for line in ended.stood_in] == [["pr", "list"]]
    assert _git(origin, "branch", "--list") == ""


def plan(site: Site, registry: str, force: str = "false", hold: str = "") -> list[dict[str, str]]:
    """Return the cells that the workflow makes jobs of, of the simple images alone."""
    values = {
        "steps.ready.outputs.registry": registry,
        "inputs.only": "simple-*",
        "inputs.skip": "*-jammy",
        "inputs.force": force,
        "vars.HOLD": hold,
    }
    ended = site.run("images/plan: Plan", values)
    assert ended.code == 0, ended.err
    cells: list[dict[str, str]] = json.loads(ended.outputs["matrix"])["include"]
    return cells


def test_a_plan_that_is_held_to_a_lock_says_what_that_lacks(site: Site) -> None:
    with pytest.raises(AssertionError, match="lock --matrix` writes what is missing"):
        plan(site, "localhost:9/team", hold="frozen")


MATRIX = """\
[settings]
SERVICE = "simple"
[axes]
PYTHON_VERSION = ["3.13"]
TZ = ["Asia/Seoul"]
"""


@pytest.mark.engine
def test_what_the_plan_says_is_built_published_signed_and_then_there(
    site: Site, repository: str
) -> None:
    for file in (site.clone / "reqs").glob("*-train.requirements.txt"):
        file.write_text("")
    (site.clone / "images.toml").write_text(MATRIX)
    (cell,) = plan(site, repository)
    images = workflows.read(ROOT / ".github/workflows/images.yml")["jobs"]["image"]["with"]
    given = {
        f"inputs.{name}": substituted(text, {f"matrix.{key}": cell[key] for key in cell})
        for name, text in images.items()
        if "matrix." in text
    }
    values = CELL | given | {"steps.ready.outputs.registry": repository}
    built = site.run("link/work: Build or compile", values)
    assert built.code == 0, built.err
    assert set(built.outputs) == {"ref"}
    ref = built.outputs["ref"]
    assert re.fullmatch(rf"{re.escape(repository)}/cresset:\S+@sha256:[0-9a-f]{{64}}", ref)
    # What was planned is what was built, through a file of settings; and nobody has signed it.
    assert cell["published"] == "false"
    there = cell | {"published": "true"}
    assert plan(site, repository) == [there]
    assert plan(site, repository, force="true") == [there]
    again = site.run("link/work: Build or compile", values)
    assert (again.code, again.outputs) == (0, built.outputs), again.err
    _sign(site, values | {"needs.build.outputs.ref": ref})
    assert plan(site, repository) == []
    ended = site.run("images/page: Write the page of tags", values)
    assert ended.code == 0, ended.err
    job = workflows.read(ROOT / ".github/workflows/images.yml")["jobs"]["page"]
    (folder,) = [it["with"]["path"] for it in job["steps"] if "path" in it.get("with", {})]
    assert ref.partition("@")[2] in (site.clone / folder / "index.html").read_text()


def _sign(site: Site, values: dict[str, str]) -> None:
    """Sign it by keys, and as a workflow's run with a stand-in of cosign; check what is there."""
    none = {"secrets.SIGN_KEY": "", "secrets.COSIGN_PASSWORD": "", "vars.VERIFY_KEY": ""}
    for private, public in (_key_pair(), _key_pair()):
        key = none | {"secrets.SIGN_KEY": private, "vars.VERIFY_KEY": public}
        early = site.run("image/attest: Verify what everybody pulls", values | key)
        assert early.code == 6, early.err
        signed = site.run("image/attest: Sign", values | key)
        assert signed.code == 0, signed.err
        assert not (site.folder / "sign.key").exists()
        assert site.run("image/attest: Verify what everybody pulls", values | key).code == 0
    site.stand_in("cosign")
    token = {"ACTIONS_ID_TOKEN_REQUEST_URL": "https://token.example.com"}
    signed = site.run("image/attest: Sign", values | none, token)
    assert signed.code == 0, signed.err
    said = [line.split()[1] for line in signed.stood_in]
    assert (said[0], said[-2:]) == ("attest", ["sign", "verify"])
    assert site.run("image/attest: Verify what everybody pulls", values | none).code == 0


def _key_pair() -> tuple[str, str]:
    """Return a private and its public key, in PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return private.decode(), public.decode()
