"""What a user sees when the ground gives way: killed engines, Ctrl-C, full disks, missing parts."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests import services
from tests.engine.conftest import Checkout, make_wheel, new_name, tags
from tests.services import Index

pytestmark = pytest.mark.engine

SOON = 30
"""Seconds to wait for what takes a moment on an idle machine."""


def until(condition: Callable[[], object]) -> bool:
    """Wait for a condition; return whether it came."""
    deadline = time.monotonic() + SOON
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.05)
    return False


def engine_pid(checkout: Checkout, **env: str) -> int:
    """Return the process id of the engine, 0 if none runs."""
    pid = checkout.cresset("engine", "status", "--json", **env).json["pid"]
    return int(pid or 0)


def processes_that_know(text: str) -> list[int]:
    """Return the processes, those in containers too, with `text` in their environment."""

    def knows(process: Path) -> bool:
        try:
            return text.encode() in (process / "environ").read_bytes()
        except OSError:
            return False

    return [int(process.name) for process in Path("/proc").glob("[0-9]*") if knows(process)]


@pytest.fixture
def index(checkout: Checkout) -> Iterator[Index]:
    """Yield an index that keeps a build waiting in the middle of a stage."""
    with services.package_index() as index:
        wheel = make_wheel(checkout.path, new_name())
        index.add(wheel)
        index.open.clear()
        checkout.require(wheel.name.partition("-")[0])
        yield index


@pytest.fixture
def own_engine(checkout: Checkout, tmp_path: Path) -> Iterator[Checkout]:
    """Return the checkout with an engine of its own: killing one costs all that it has cached."""
    environment = {**checkout.environment, "XDG_STATE_HOME": str(tmp_path / "state")}
    alone = replace(checkout, environment=environment)
    yield alone
    assert alone.cresset("engine", "stop").code == 0


# In the middle of a build


def test_an_engine_that_is_killed_ends_the_build_and_not_the_next(
    own_engine: Checkout, index: Index, repository: str
) -> None:
    # Compression takes most of the time that a cold engine needs here.
    given = {"REGISTRY": repository, "COMPRESSION": "uncompressed", **mirror(index)}
    running = own_engine.start("build", "simple", **given)
    until_asked(index, running.process)
    os.kill(engine_pid(own_engine), signal.SIGKILL)
    ran = running.end(timeout=SOON)
    assert ran.code == 4, ran.err
    assert ran.out == ""
    assert "the engine cannot be reached, or went away" in ran.err
    assert "next: run the command again" in ran.err
    assert "stage: installer" in ran.err
    assert "log: " in ran.err.splitlines()[-1]
    assert "Traceback" not in ran.err
    assert tags(repository) == []

    index.open.set()
    again = own_engine.cresset("build", "simple", **given)
    assert again.code == 0, again.err
    assert again.out.startswith(f"{repository}/cresset:")


def test_ctrl_c_stops_the_work_in_the_engine_too(
    checkout: Checkout, index: Index, repository: str
) -> None:
    given = {"REGISTRY": repository, **mirror(index)}
    engine = engine_pid(checkout)
    running = checkout.start("build", "simple", **given)
    until_asked(index, running.process)
    assert len(processes_that_know(index.host)) > 1
    running.signal(signal.SIGINT)
    ran = running.end(timeout=SOON)
    assert ran.code == 130, ran.err
    assert ran.out == ""
    assert "run the same command again" in ran.err
    assert "Traceback" not in ran.err
    assert until(lambda: not processes_that_know(index.host))
    assert tags(repository) == []

    index.open.set()
    assert checkout.cresset("build", "simple", **given).code == 0
    assert engine_pid(checkout) == engine or not engine


def mirror(index: Index) -> dict[str, str]:
    """Return the settings by which builds use the index."""
    return {"EXTRA_INDEX_URL": index.url, "TRUSTED_HOST": index.host.partition(":")[0]}


def until_asked(index: Index, build: subprocess.Popen[str]) -> None:
    """Wait until the build asks for what the index keeps back."""
    while not index.asked.wait(0.1):
        assert build.poll() is None, build.communicate()[1]


def test_two_builds_at_once_share_one_engine(checkout: Checkout, tmp_path: Path) -> None:
    other = replace(checkout, path=tmp_path / "other")
    shutil.copytree(checkout.path, other.path)
    for folder in (checkout, other):
        folder.require_something_new()
    both = [folder.start("build", "simple") for folder in (checkout, other)]
    ran = [running.end() for running in both]
    assert [one.code for one in ran] == [0, 0], [one.err for one in ran]
    assert len({one.out for one in ran}) == 2
    used = {
        line for one in ran for line in one.err.splitlines() if line.startswith("engine: local")
    }
    assert len(used) == 1


# Which engine


def test_an_engine_that_is_asked_for_and_cannot_be_used(checkout: Checkout) -> None:
    ran = checkout.cresset("build", "simple", ENGINE="docker")
    assert ran.code == 4
    assert "no Dagger engine can be used" in ran.err
    assert "why: docker: " in ran.err
    assert "no-docker" in ran.err or "docker is not installed" in ran.err
    assert "next: start Docker" in ran.err


def test_auto_says_which_and_why(checkout: Checkout) -> None:
    ran = checkout.cresset("build", "simple", ENGINE="auto")
    assert ran.code == 0, ran.err
    (said,) = [line for line in ran.err.splitlines() if line.startswith("engine: local (")]
    for other in ("not session: ", "not remote: ", "not docker: "):
        assert other in said


def test_without_root_it_says_so(checkout: Checkout, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    for path in (tmp_path, *tmp_path.rglob("*")):
        os.chown(path, 65534, 65534)
    for folder in (tmp_path.parent, *tmp_path.parent.parents[:1]):
        folder.chmod(0o755)
    # Python may be in root's home, which it has to read; it is nobody in all else.
    wrapper = (
        "setpriv", "--reuid=65534", "--regid=65534", "--clear-groups",
        "--inh-caps=-all,+dac_read_search", "--ambient-caps=-all,+dac_read_search",
        "--bounding-set=-all,+dac_read_search",
    )  # fmt: skip
    environment = {
        name: value for name, value in checkout.environment.items() if not name.startswith("XDG_")
    }
    ran = replace(checkout, wrapper=wrapper, environment=environment).cresset(
        "build", "simple", HOME=str(home)
    )
    assert ran.code == 4, ran.err
    assert "local: it needs root" in ran.err
    assert "next: run it under sudo -E" in ran.err
    assert "Traceback" not in ran.err


def test_without_go_and_nothing_built_it_says_what_to_install(
    checkout: Checkout, tmp_path: Path
) -> None:
    folders = [Path(folder) for folder in os.environ["PATH"].split(":")]
    path = ":".join(str(folder) for folder in folders if not (folder / "go").exists())
    ran = checkout.cresset("build", "simple", PATH=path, XDG_CACHE_HOME=str(tmp_path / "cache"))
    assert ran.code == 4, ran.err
    assert "local: it needs Go" in ran.err
    assert "next: install Go " in ran.err
    assert "Traceback" not in ran.err


# Disks and bases


@pytest.fixture
def full_dist(checkout: Checkout) -> Iterator[Path]:
    """Return the checkout's dist/ on a disk that is too small for any image."""
    dist = checkout.path / "dist"
    dist.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", dist], check=True)
    yield dist
    subprocess.run(["umount", dist], check=True)


def test_a_full_disk_keeps_no_half_image(checkout: Checkout, full_dist: Path) -> None:
    ran = checkout.cresset("build", "simple")
    assert ran.code == 7, ran.err
    assert ran.out == ""
    assert "no space left on device" in ran.err
    assert f"next: check the free space below {full_dist}" in ran.err
    assert "Traceback" not in ran.err
    assert list(full_dist.iterdir()) == []


@pytest.mark.parametrize("where", ["not there", "nobody home"])
def test_a_base_that_cannot_be_pulled(checkout: Checkout, registry: str, where: str) -> None:
    host = registry if where == "not there" else f"localhost:{services.free_port()}"
    ran = checkout.cresset("build", "simple", BASE_SOURCE="image", BASE_IMAGE=f"{host}/no:1")
    assert ran.code == 5, ran.err
    assert ran.out == ""
    assert f"the base {host}/no:1 cannot be pulled" in ran.err
    why = "not found" if where == "not there" else "connection refused"
    assert why in ran.err
    assert "next: set BASE_IMAGE" in ran.err
