"""Builds that are held to a lock: the same again, and a refusal where the world has moved on."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline import lock as locks
from pipeline.engine import local
from pipeline.host.bootstrap import base_archive
from tests import services
from tests.engine.conftest import Checkout, Pulled, Ran, make_wheel, new_name
from tests.git_server import git_server
from tests.services import Index
from tests.unit.specs import spec

pytestmark = pytest.mark.engine

VARIANT = "simple-py313-trixie"

PUBLISH = """
import asyncio, sys
import dagger

async def main():
    async with dagger.connection(dagger.Config(log_output=sys.stderr, retry=None)):
        image = dagger.dag.container().import_(dagger.dag.host().file({archive!r}))
        print(await image.with_new_file("/etc/of-the-day", {day!r}).publish({ref!r}))

asyncio.run(main())
"""


def publish_base(ref: str, day: str) -> str:
    """Publish a base under `ref`, another one each `day`; return its digest."""
    endpoint = local.ensure(print)
    archive = base_archive(spec("simple").base, print)
    done = subprocess.run(
        [sys.executable, "-c", PUBLISH.format(archive=str(archive), day=day, ref=ref)],
        env={
            "_EXPERIMENTAL_DAGGER_RUNNER_HOST": endpoint.runner_host,
            "_EXPERIMENTAL_DAGGER_CLI_BIN": str(endpoint.session_bin),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().rpartition("@")[2]


@pytest.fixture
def index() -> Iterator[Index]:
    with services.package_index() as serving:
        yield serving


def succeeded(ran: Ran) -> Ran:
    assert ran.code == 0, ran.err
    return ran


def refused(ran: Ran) -> str:
    assert ran.code == 2, ran.err
    assert ran.out == ""
    assert "Traceback" not in ran.err
    assert "lock --update" in ran.err
    return ran.err


def python_packages(ref: str) -> list[str]:
    """Return name and version of each Python package in an image, by its metadata."""
    found = (re.search(r"site-packages/([^/]+)\.dist-info/METADATA$", it) for it, _ in
             Pulled.of(ref).files())  # fmt: skip
    return sorted(it[1] for it in found if it)


def test_a_locked_build_is_the_same_again_and_refuses_what_has_moved(
    checkout: Checkout,
    repository: str,
    registry: str,
    index: Index,
    tmp_path: Path,
    figure: Callable[[str], None],
) -> None:
    name = new_name()
    index.add(make_wheel(tmp_path, name))
    checkout.require(name)
    base = f"{registry}/{new_name()}:1"
    first = publish_base(base, "monday")
    where = {
        "BASE_IMAGE": base, "BASE_SOURCE": "image", "INDEX_URL": index.url, "REGISTRY": repository,
        "TRUSTED_HOST": index.host.partition(":")[0], "ATTEST": "off",
    }  # fmt: skip

    made = succeeded(checkout.cresset("lock", "simple", **where))
    lock = tomllib.loads((checkout.path / "cresset.lock").read_text())
    assert lock["base"] == {base: first}
    packages = lock["image"][VARIANT]["pip"]
    project = name.replace("_", "-")
    assert packages.keys() == {"pip", project}
    assert packages[project]["file"] == f"{name}-1.0-py3-none-any.whl"
    again = succeeded(checkout.cresset("lock", "simple", **where))
    assert (again.out, "nothing moves" in again.err) == ("", True)

    built = succeeded(checkout.cresset("build", "simple", "--locked", "--json", **where)).json
    assert built["base"].endswith(f"@{first}")
    has = python_packages(built["ref"])
    assert has == sorted(
        f"{it.replace('-', '_')}-{about['version']}" for it, about in packages.items()
    )

    # The index has another file under the same name and version.
    index.add(make_wheel(tmp_path, name, {f"{name}_more.py": "more = 1\n"}))
    said = refused(checkout.cresset("build", "simple", "--locked", "--force", **where))
    assert f"{VARIANT} pip {project}" in said
    assert packages[project]["sha256"] in said
    told = succeeded(checkout.cresset("lock", "simple", "--update", "--dry-run", "--json", **where))
    moves = json.loads(told.out)
    (moved,) = [it for it in moves if it["entry"] == f"{VARIANT} pip {project}"]
    assert packages[project]["sha256"][:12] in moved["old"]
    assert moved["new"] not in {"", moved["old"]}
    assert tomllib.loads((checkout.path / "cresset.lock").read_text()) == lock

    # With the locked file back, the base's tag moves.
    index.add(make_wheel(tmp_path, name))
    second = publish_base(base, "tuesday")
    assert second != first
    said = refused(checkout.cresset("build", "simple", "--locked", "--force", **where))
    assert f"base {base}='{second}'" in said
    assert f"allowed: {first}" in said
    frozen = succeeded(
        checkout.cresset("build", "simple", "--frozen", "--force", "--json", **where)
    )
    assert frozen.json["base"].endswith(f"@{first}")
    assert python_packages(frozen.json["ref"]) == has
    figure(
        f"lock {made.seconds:.0f} s; again {again.seconds:.1f} s; frozen build, all cached, "
        f"{frozen.seconds:.0f} s"
    )


@pytest.mark.slow
def test_another_version_of_apt_than_the_lock_has_is_not_delivered(
    checkout: Checkout, repository: str
) -> None:
    where = {"REGISTRY": repository, "ATTEST": "off"}
    succeeded(checkout.cresset("lock", "simple", **where))
    file = checkout.path / "cresset.lock"
    # As the lock of a day would be whose versions no mirror has any more.
    file.write_text(re.sub(r'^less = ".*"$', 'less = "1-1"', file.read_text(), flags=re.MULTILINE))
    said = refused(checkout.cresset("build", "simple", "--locked", **where))
    assert "apt less=" in said
    assert "allowed: 1-1" in said
    ran = checkout.cresset("build", "simple", "--frozen", **where)
    assert (ran.code, ran.out) == (6, ""), ran.err
    assert "apt less=" in ran.err
    assert "allowed: 1-1" in ran.err
    assert "DEB_NEW" in ran.err


def listed(checkout: Checkout, *args: str, **where: str) -> list[dict[str, Any]]:
    """Return the cells of a matrix, as the verb prints them."""
    found: list[dict[str, Any]] = json.loads(
        succeeded(checkout.cresset("matrix", "--json", *args, **where)).out
    )
    return found


@pytest.mark.slow
def test_a_matrix_is_built_as_its_lock_has_it(checkout: Checkout, repository: str) -> None:
    (checkout.path / "images.toml").write_text(
        '[settings]\nSERVICE = "simple"\n[axes]\nTZ = ["UTC"]\n'
    )
    where = {"REGISTRY": repository, "ATTEST": "off", "ENGINES": "local"}
    succeeded(checkout.cresset("lock", "--matrix", **where))
    (cell,) = listed(checkout, "--frozen", **where)
    report = succeeded(checkout.cresset("build", "--matrix", "--frozen", "--json", **where)).json
    (built,) = report["cells"]
    assert (built["state"], built["key"]) == ("delivered", cell["key"])
    assert Pulled.of(built["ref"]).config["Labels"]["dev.cresset.key"] == cell["key"]
    (there,) = listed(checkout, "--frozen", **where)
    assert there["published"]
    (unlocked,) = listed(checkout, **where)
    assert not unlocked["published"]
    succeeded(checkout.cresset("lock", "--matrix", "--check", **where))


def test_wheels_are_held_to_the_commit_of_a_branch(checkout: Checkout, tmp_path: Path) -> None:
    with git_server(tmp_path / "git") as git:
        commit = git.commit("vision", {"setup.py": ""})
        where = {
            "VISION_SOURCE": "git", "VISION_URL": git.url("vision"), "VISION_REF": "main",
            "PYTORCH_VERSION_TAG": "v2.6.0", "CUDA_VERSION": "12.4", "CCA": "8.6",
        }  # fmt: skip
        made = succeeded(checkout.cresset("lock", **where))
        assert f"git {git.url('vision')} main: new, {commit}" in made.out
        assert "wheels --locked" in made.err
        plan = succeeded(checkout.cresset("wheels", "--dry-run", "--locked", **where))
        assert f"at {commit}" in plan.out

        later = git.commit("vision", {"setup.py": "# more"})
        said = refused(checkout.cresset("wheels", "--dry-run", "--locked", **where))
        assert f"git {git.url('vision')} main='{later}'" in said
        assert f"allowed: {commit}" in said
        held = succeeded(checkout.cresset("wheels", "--dry-run", "--frozen", **where))
        assert held.out == plan.out
        moves = json.loads(succeeded(checkout.cresset("lock", "--update", "--json", **where)).out)
        assert moves == [{"entry": f"git {git.url('vision')} main", "old": commit, "new": later}]
        assert locks.read(checkout.path / "cresset.lock").git[git.url("vision")]["main"] == later
