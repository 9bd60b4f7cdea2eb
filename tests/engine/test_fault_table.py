"""Faults of whole builds, one a row: networks, disks, killed programs, each with the next run."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from pipeline import publish
from tests import services
from tests.engine.conftest import Checkout, Ran, Running, make_wheel, new_name, tags
from tests.faults.rows import ROW, Row, Table
from tests.faulty import LOST, SLOW, Faulty, faulty
from tests.services import Index

# Some forty builds: `make test` has the rows of tests/faults, which need no engine.
pytestmark = [pytest.mark.engine, pytest.mark.slow]

TABLE = Table()
SOON = 60
"""Seconds to wait for what takes a moment on an idle machine."""


@dataclass(frozen=True)
class World:
    """What the checks of the rows work with."""

    checkout: Checkout
    repository: str
    registry_data: Path
    folder: Path

    def build(self, **env: str) -> Ran:
        return self.checkout.cresset("build", "simple", **{"REGISTRY": self.repository, **env})

    def start(self, **env: str) -> Running:
        return self.checkout.start("build", "simple", **{"REGISTRY": self.repository, **env})

    def ends(self, ran: Ran, code: int, *words: str) -> None:
        """Check an end in words, with nothing on standard output and nothing to be found."""
        assert ran.code == code, ran.err
        assert ran.out == ""
        assert [it for it in words if it not in ran.err] == [], ran.err
        assert "Traceback" not in ran.err
        assert not [it for it in tags(self.repository) if it.startswith("key-")]

    def goes_on(self, **env: str) -> Ran:
        """Check that the next run succeeds, and that what it delivers is whole."""
        ran = self.build(**env)
        assert ran.code == 0, ran.err
        repository, _, rest = ran.out.strip().partition(":")[2].partition(":")
        repository = f"{ran.out.partition(':')[0]}:{repository}"
        assert publish.whole(repository, rest.partition("@")[0])
        return ran


@pytest.fixture
def world(checkout: Checkout, repository: str, registry_folder: Path, tmp_path: Path) -> World:
    return World(checkout, repository, registry_folder / "data", tmp_path)


# Package indexes


@contextmanager
def index_with(
    world: World, script: list[str], only: str = "/files/"
) -> Iterator[tuple[Faulty, dict[str, str]]]:
    """Yield what fails as the script says before an index, a package of it being required."""
    with services.package_index() as index:
        wheel = make_wheel(world.folder, new_name())
        index.add(wheel)
        world.checkout.require(wheel.name.partition("-")[0])
        with faulty(index.host, script=script, only=only) as proxy:
            host = proxy.host
            yield (
                proxy,
                {
                    "EXTRA_INDEX_URL": f"http://{host}/simple",
                    "TRUSTED_HOST": host.partition(":")[0],
                },
            )


def index_recovers(script: list[str], only: str) -> Callable[[World], None]:
    def check(world: World) -> None:
        with index_with(world, script, only) as (_, given):
            world.goes_on(**given)

    return check


for _what, _name, _script in (
    ("page", "503 twice", ["503"] * 2),
    ("wheel", "503 twice", ["503"] * 2),
    ("wheel", "connection reset twice", ["reset"] * 2),
    ("wheel", "slow", [SLOW] * 3),
):
    TABLE.add(
        Row(
            f"package index, {_what}",
            _name,
            "built as if nothing had been",
            index_recovers(_script, "/files/" if _what == "wheel" else "/simple/"),
        )
    )


def index_refuses(script: list[str], *words: str) -> Callable[[World], None]:
    def check(world: World) -> None:
        with index_with(world, script) as (proxy, given):
            world.ends(world.build(**given), 5, "stage: pip", "exit code: ", *words)
            proxy.script = []
            world.goes_on(**given)

    return check


TABLE.add(
    Row(
        "package index, wheel",
        "404",
        "exit 5 with its last lines; the next run succeeds",
        index_refuses(["404"] * 6),
    )
)
TABLE.add(
    Row(
        "package index, wheel",
        "500 as long as it is tried",
        "exit 5 with its last lines; the next run succeeds",
        index_refuses(["500"] * 6),
    )
)


@TABLE.row(
    "package index, wheel", "ends in the middle, once", "built, or exit 5; the next run succeeds"
)
def cut_wheel(world: World) -> None:
    with index_with(world, ["cut answer"]) as (_, given):
        ran = world.build(**given)
        if ran.code:
            world.ends(ran, 5, "stage: pip")
        world.goes_on(**given)


@TABLE.row(
    "package index, wheel", "another file than its hash says", "exit 5; the next run succeeds"
)
def wrong_hash(world: World) -> None:
    with services.package_index() as index:
        wheel = make_wheel(world.folder, new_name())
        name = wheel.name.partition("-")[0]
        index.add(wheel)
        good = hashlib.sha256(wheel.read_bytes()).hexdigest()
        world.checkout.require(f"{name}==1.0 --hash=sha256:{'0' * 64}")
        given = {"EXTRA_INDEX_URL": index.url, "TRUSTED_HOST": index.host.partition(":")[0]}
        ran = world.build(**given)
        world.ends(ran, 5, "stage: pip", "mismatch")
        text = world.checkout.pip_train.read_text()
        world.checkout.pip_train.write_text(text.replace("0" * 64, good))
        world.goes_on(**given)


@TABLE.row("package index", "nobody listens", "exit 5 with its last lines; the next run succeeds")
def index_down(world: World) -> None:
    address = services.own_address()
    world.checkout.require(new_name().replace("_", "-"))
    given = {
        "EXTRA_INDEX_URL": f"http://{address}:{services.free_port()}/simple",
        "TRUSTED_HOST": address,
    }
    world.ends(world.build(**given), 5, "stage: pip")
    lines = world.checkout.pip_train.read_text().splitlines()
    world.checkout.pip_train.write_text("\n".join(lines[:-1]) + "\n")
    world.goes_on()


@TABLE.row("apt mirror", "nobody listens", "exit 5 with its last lines; the next run succeeds")
def apt_down(world: World) -> None:
    old = "http://deb.debian.org"
    given = {"DEB_OLD": old, "DEB_NEW": f"http://{services.own_address()}:{services.free_port()}"}
    world.ends(world.build(**given), 5, "exit code: 100", "last lines:")
    world.goes_on()


# Registries, while an image is pushed to them


def push_recovers(fault: str) -> Callable[[World], None]:
    def check(world: World) -> None:
        host, _, name = world.repository.partition("/")
        with faulty(host, script=[fault] * 3, only="/blobs/", address="127.0.0.1") as proxy:
            ran = world.goes_on(REGISTRY=f"{proxy.host}/{name}")
            assert [it.fault for it in proxy.failed()] == [fault] * 3
        said = [it for it in ran.err.splitlines() if it.startswith("try ")]
        assert all(it.startswith("try ") and "of 30 in " in it for it in said)

    return check


for _fault in ("500", "502", "503", "504", "429", *LOST, SLOW):
    TABLE.add(
        Row(
            "registry, push",
            f"{_fault} three times",
            "published under all tags, every blob there",
            push_recovers(_fault),
        )
    )


@TABLE.row(
    "registry, push", "403 in the middle", "exit 7 with docker login, at once; nothing is found"
)
def denied_half_way(world: World) -> None:
    host, _, name = world.repository.partition("/")
    with faulty(host, script=[""] * 4 + ["403"] * 9, only="/blobs/", address="127.0.0.1") as proxy:
        ran = world.build(REGISTRY=f"{proxy.host}/{name}")
        world.ends(ran, 7, "docker login")
        assert "try 2" not in ran.err
    world.goes_on()


@TABLE.row(
    "registry, push", "the tag's manifest is refused", "exit 7; nothing is found; next run succeeds"
)
def manifest_refused(world: World) -> None:
    host, _, name = world.repository.partition("/")
    script = ["", "", "", "400", "400", "400", "400"]
    with faulty(host, script=script, only="/manifests/", address="127.0.0.1") as proxy:
        world.ends(world.build(REGISTRY=f"{proxy.host}/{name}"), 7, "400")
    world.goes_on()


@TABLE.row("registry, push", "read-only", "exit 7; nothing is found; next run succeeds")
def read_only_registry(world: World) -> None:
    with services.registry(world.folder, readonly=True) as host:
        world.ends(world.build(REGISTRY=f"{host}/x"), 7)
    world.goes_on()


@TABLE.row("registry", "it lost a blob of an image", "it is pushed again, under the same digest")
def lost_blob(world: World) -> None:
    first = world.goes_on()
    name = first.out.partition("@")[0].rpartition(":")[0]
    found = publish._manifest(name, first.out.strip().rpartition("@")[2])
    assert found
    blob = max(found[1], key=lambda it: found[1][it]).removeprefix("sha256:")
    # Of this image alone: the biggest may be the base's, which all that follows needs as well.
    path = world.registry_data / "docker/registry/v2/blobs/sha256" / blob[:2] / blob / "data"
    path.unlink()
    again = world.goes_on()
    assert "nothing to do" not in again.err
    assert again.out == first.out


# Disks


@contextmanager
def disk(folder: Path, size: str, *options: str) -> Iterator[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    wanted = ",".join((f"size={size}", *options))
    subprocess.run(["mount", "-t", "tmpfs", "-o", wanted, "tmpfs", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


@TABLE.row("dist/", "the disk is full", "exit 7, no half of a file; the next run succeeds")
def full_dist(world: World) -> None:
    with disk(world.checkout.path / "dist", "4m") as dist:
        ran = world.build(REGISTRY="")
        world.ends(ran, 7, "no space left on device", "check the free space")
        assert list(dist.iterdir()) == []
    ran = world.build(REGISTRY="")
    assert ran.code == 0, ran.err


@TABLE.row("dist/", "read-only", "exit 7 in words; the next run succeeds")
def read_only_dist(world: World) -> None:
    with disk(world.checkout.path / "dist", "4m", "ro"):
        world.ends(world.build(REGISTRY=""), 7, "cannot be written")
    ran = world.build(REGISTRY="")
    assert ran.code == 0, ran.err


@TABLE.row(
    "the engine's disk",
    "too small for any image",
    "exit 5 in words, before anything is built",
    slow=True,
)
def small_state(world: World) -> None:
    with disk(world.folder / "state", "600m") as state:
        alone = with_own_engine(world, state)
        try:
            ran = alone.build()
            alone.ends(ran, 5, "there is no room on the disk", "at the very least")
            assert "installer: running" not in ran.err
        finally:
            assert alone.checkout.cresset("engine", "stop").code == 0
    world.goes_on()


def with_own_engine(world: World, state: Path, **env: str) -> World:
    environment = {**world.checkout.environment, "XDG_STATE_HOME": str(state), **env}
    return replace(world, checkout=replace(world.checkout, environment=environment))


# Programs that end


@contextmanager
def held(world: World) -> Iterator[tuple[Index, dict[str, str]]]:
    """Yield an index that keeps a build waiting in the middle of its stage pip."""
    with services.package_index() as index:
        wheel = make_wheel(world.folder, new_name())
        index.add(wheel)
        index.open.clear()
        world.checkout.require(wheel.name.partition("-")[0])
        address = index.host.partition(":")[0]
        yield index, {"EXTRA_INDEX_URL": index.url, "TRUSTED_HOST": address}


def until_asked(index: Index, running: Running) -> None:
    while not index.asked.wait(0.1):
        assert running.process.poll() is None, running.process.communicate()[1]


def children(pid: int) -> Mapping[int, str]:
    """Return the command lines of the processes below one."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            words = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
        if parent == pid:
            found[int(folder.name)] = words
    return found


def gone(text: str) -> bool:
    """Wait until no process, in a container either, knows the text; say whether that came."""
    deadline = time.monotonic() + SOON
    while time.monotonic() < deadline:
        if not any(text.encode() in environ(it) for it in Path("/proc").glob("[0-9]*")):
            return True
        time.sleep(0.2)
    return False


def environ(process: Path) -> bytes:
    try:
        return (process / "environ").read_bytes()
    except OSError:
        return b""


@TABLE.row(
    "session program",
    "killed in a stage",
    "exit 4 with the stage and the log; the next run goes on",
)
def session_killed(world: World) -> None:
    with held(world) as (index, given):
        running = world.start(**given)
        until_asked(index, running)
        (session,) = [
            pid
            for pid, words in children(running.process.pid).items()
            if "/session session" in words
        ]
        os.kill(session, signal.SIGKILL)
        ran = running.end(timeout=SOON)
        world.ends(ran, 4, "cannot be reached, or went away", "stage: ", "log: ")
        assert gone(index.host)
        index.open.set()
        world.goes_on(**given)


@TABLE.row("pipeline", "killed with -9 in a stage", "its containers end; the next run goes on")
def pipeline_killed(world: World) -> None:
    with held(world) as (index, given):
        running = world.start(**given)
        until_asked(index, running)
        running.process.kill()
        assert running.end(timeout=SOON).code == -signal.SIGKILL
        assert gone(index.host)
        assert tags(world.repository) == []
        index.open.set()
        world.goes_on(**given)


@TABLE.row("pipeline", "SIGTERM in a stage", "exit 143 in words; the next run goes on")
def terminated(world: World) -> None:
    with held(world) as (index, given):
        running = world.start(**given)
        until_asked(index, running)
        running.process.terminate()
        world.ends(running.end(timeout=SOON), 143, "run the same command again")
        assert gone(index.host)
        index.open.set()
        world.goes_on(**given)


def ctrl_c_at(stage: str) -> Callable[[World], None]:
    def check(world: World) -> None:
        running = world.start()
        assert running.process.stderr
        for line in running.process.stderr:
            if line.startswith(f"{stage}: running"):
                break
        running.signal(signal.SIGINT)
        world.ends(running.end(timeout=SOON), 130, "run the same command again")
        world.goes_on()

    return check


for _stage in ("engine", "base", "pip", "verify", "deliver"):
    TABLE.add(
        Row(
            f"stage {_stage}",
            "Ctrl-C",
            "exit 130 in words, nothing is found; the next run goes on",
            ctrl_c_at(_stage),
        )
    )


@TABLE.row(
    "engine",
    "killed in the delivery",
    "exit 4 or 7 in words, nothing is found; the next run succeeds",
    slow=True,
)
def engine_killed_in_delivery(world: World) -> None:
    alone = with_own_engine(world, world.folder / "state")
    try:
        running = alone.start()
        assert running.process.stderr
        for line in running.process.stderr:
            if line.startswith("deliver: running"):
                break
        pid = alone.checkout.cresset("engine", "status", "--json").json["pid"]
        os.kill(pid, signal.SIGKILL)
        ran = running.end(timeout=SOON)
        alone.ends(ran, ran.code if ran.code in {4, 7} else 4, "stage: deliver")
        alone.goes_on()
    finally:
        assert alone.checkout.cresset("engine", "stop").code == 0


# At once, and meanwhile


@TABLE.row("pipeline", "two builds of one image at once", "both print the same reference")
def two_at_once(world: World) -> None:
    both = [world.start(), world.start()]
    ran = [it.end() for it in both]
    assert [it.code for it in ran] == [0, 0], [it.err for it in ran]
    assert len({it.out for it in ran}) == 1
    assert world.goes_on().out == ran[0].out


@TABLE.row("dist/", "two builds of one image at once", "one whole file with its proof")
def two_files_at_once(world: World) -> None:
    world.checkout.require_something_new()
    ran = [it.end() for it in [world.start(REGISTRY=""), world.start(REGISTRY="")]]
    assert [it.code for it in ran] == [0, 0], [it.err for it in ran]
    written = [it.name.partition(".")[2] for it in (world.checkout.path / "dist").iterdir()]
    assert sorted(written) == ["oci.tar", "provenance.json", "sbom.cdx.json"]
    again = world.build(REGISTRY="")
    assert "nothing to do" in again.err


@TABLE.row(
    "requirements", "edited while a build begins", "exit 2 in words, or the image of the old ones"
)
def edited_meanwhile(world: World) -> None:
    world.checkout.require_something_new()
    old = world.checkout.cresset("plan", "simple", "--json").json["key"]
    running = world.start()
    assert running.process.stderr
    for line in running.process.stderr:
        if line.startswith("engine: running"):
            break
    world.checkout.require_something_new()
    ran = running.end()
    if ran.code:
        world.ends(ran, 2, "was edited while the build began", "run the same command again")
    else:
        assert f"key-{old}" in tags(world.repository)
    new = world.goes_on()
    assert f"key-{old}" not in new.out
    assert "nothing to do" not in new.err


@TABLE.row("clock", "it jumps to 2001 for a build", "built and delivered as ever")
def old_clock(world: World) -> None:
    (library,) = Path("/usr/lib").glob("*/faketime/libfaketime.so.1")
    ran = world.build(LD_PRELOAD=str(library), FAKETIME="@2001-01-01 00:00:00")
    assert ran.code == 0, ran.err
    assert world.goes_on().out == ran.out


# Docker


@TABLE.row(
    "Docker", "its client ends while it loads", "exit 7 in words; nothing is said to be there"
)
def docker_ends_while_loading(world: World) -> None:
    program = world.folder / "bin/docker"
    program.parent.mkdir()
    program.write_text(
        "#!/bin/sh\n"
        'case "$1" in version) echo 28.0 ;; load) head -c 100000 >/dev/null; exit 137 ;; '
        "*) exit 1 ;; esac\n"
    )
    program.chmod(0o755)
    path = f"{program.parent}:{os.environ['PATH']}"
    ran = world.build(REGISTRY="", PATH=path)
    world.ends(ran, 7, "Docker does not take the image", "next: ")
    assert shutil.which("docker", path=str(program.parent))
    world.goes_on()


# What an engine throws away


@TABLE.row(
    "engine's cache",
    "its limits are too small for it",
    "what it throws away is said; builds succeed",
    slow=True,
)
def evictions(world: World) -> None:
    config = world.folder / "config/dagger"
    config.mkdir(parents=True)
    limits = {"maxUsedSpace": "50MB", "reservedSpace": "1MB", "minFreeSpace": "1MB"}
    policy = {"gc": {"policies": [{"all": True, **limits}]}}
    (config / "engine.json").write_text(json.dumps(policy))
    alone = with_own_engine(
        world, world.folder / "state", XDG_CONFIG_HOME=str(world.folder / "config")
    )
    try:
        alone.goes_on()
        deadline = time.monotonic() + SOON
        evicted = 0
        while not evicted and time.monotonic() < deadline:
            time.sleep(1)
            evicted = alone.checkout.cresset("engine", "status", "--json").json["evicted_bytes"]
        assert evicted > 0
        # Said as soon as there is an engine, whatever comes of the build.
        nowhere = f"localhost:{services.free_port()}/no:1"
        ran = alone.build(BASE_SOURCE="image", BASE_IMAGE=nowhere)
        assert ran.code == 5, ran.err
        assert "since the last build the engine threw away " in ran.err
    finally:
        assert alone.checkout.cresset("engine", "stop").code == 0


@TABLE.parametrized()
def test_fault(row: Row, world: World, record_property: Callable[[str, object], None]) -> None:
    record_property(ROW, (row.where, row.fault, row.holds))
    row.check(world)
