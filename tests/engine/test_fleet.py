"""Matrices built by several engines, each on a machine of its own, with one registry for all.

The first test takes the machine's own engine and one more; those that kill engines or compile have
two of their own, which begin with nothing, and are slow.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import signal
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.engine import local
from tests import services
from tests.engine.conftest import Checkout, Pulled, Ran, Running, tags
from tests.engine.machines import Machine, forwarding, machine

pytestmark = pytest.mark.engine

SIMPLE = """
[settings]
SERVICE = "simple"
[axes]
DISTRO_VERSION = ["13", "12"]
"""

# Two targets for each architecture, of which one compiles torchvision; the Pythons are those of the
# two releases. What compiles PyTorch shares its layers, so this takes 80 GB and not three times it.
TWELVE = """
[settings]
VISION_SOURCE = "apt"
PYTORCH_VERSION = "2.6.0"
MAGMA_SOURCE = "off"

[axes]
what = [{ SERVICE = "train" }, { SERVICE = "devel", TORCH_SOURCE = "apt" }]
CCA = ["7.5", "8.0", "8.6", "9.0"]

[[include]]
SERVICE = "simple"
reason = "the Python of Debian 13"

[[include]]
SERVICE = "simple"
DISTRO_VERSION = "12"
reason = "the Python of Debian 12"

[[include]]
SERVICE = "devel"
TORCH_SOURCE = "apt"
CCA = "7.0"
reason = "to compile for Volta by hand"

[[include]]
SERVICE = "devel"
TORCH_SOURCE = "apt"
CCA = "8.9"
reason = "to compile for Ada by hand"
"""

BUILD = ("build-only", "--matrix", "--json")
HOURS = 3 * 3600


def images(checkout: Checkout, text: str) -> None:
    (checkout.path / "images.toml").write_text(text)


def states(report: dict[str, Any]) -> dict[str, str]:
    """Return how each cell of a report stands."""
    return {cell["variant"]: cell["state"] for cell in report["cells"]}


def by_engine(report: dict[str, Any]) -> dict[str, int]:
    return {it["name"]: it["cells"] for it in report["engines"]}


def all_delivered(report: dict[str, Any], repository: str) -> None:
    """Check that each cell can be pulled under its variant and is what the report says."""
    assert set(states(report).values()) <= {"delivered", "there already"}, states(report)
    found = set(tags(repository))
    for cell in report["cells"]:
        assert {cell["variant"], f"key-{cell['key']}"} <= found
        assert Pulled.of(cell["ref"]).config["Labels"]["dev.cresset.key"] == cell["key"]


@pytest.fixture
def machines(tmp_path: Path, registry: str) -> Iterator[list[Machine]]:
    """Yield two machines, each with an engine that has built nothing yet."""
    with ExitStack() as stack:
        yield [
            stack.enter_context(machine(number, tmp_path / f"m{number}", registry))
            for number in (1, 2)
        ]


def test_two_engines_share_a_matrix_and_a_second_run_does_nothing(
    checkout: Checkout, repository: str, registry: str, tmp_path: Path,
    figure: Callable[[str], None],
) -> None:  # fmt: skip
    images(checkout, SIMPLE)
    summary = tmp_path / "summary.md"
    with machine(3, tmp_path / "m3", registry) as other:
        env = {
            "REGISTRY": repository,
            "ENGINES": f"local,{other.host}",
            "GITHUB_STEP_SUMMARY": str(summary),
        }
        ran = checkout.cresset(*BUILD, **env)
        assert ran.code == 0, ran.err
        assert by_engine(ran.json) == {"local": 1, other.host: 1}
        all_delivered(ran.json, repository)
        assert summary.read_text().startswith("### 2 of 2 images delivered")
        figure(f"two cells, two engines: {ran.seconds:.0f} s")
    # The other engine is gone, and nothing is missed.
    again = checkout.cresset(*BUILD, **env)
    assert again.code == 0, again.err
    assert set(states(again.json).values()) == {"there already"}
    assert again.json["engines"] == [], "none was needed"
    assert [it["digest"] for it in again.json["cells"]] == [
        it["digest"] for it in ran.json["cells"]
    ]
    figure(f"the second run: {again.seconds:.1f} s, nothing built")


@pytest.fixture
def behind_tls(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """Yield the address of the machine's own engine behind TLS, and a folder with what it takes.

    ``ca.pem`` vouches for both sides; ``me.pem`` is a client's certificate with its key.
    """
    made = subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
         "-nodes", "-days", "2", "-subj", "/CN=localhost", "-addext",
         "subjectAltName=DNS:localhost", "-keyout", "key.pem", "-out", "ca.pem"],
        cwd=tmp_path, capture_output=True, check=False,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    (tmp_path / "me.pem").write_text(
        (tmp_path / "key.pem").read_text() + (tmp_path / "ca.pem").read_text()
    )
    engine = local.ensure(print).runner_host.removeprefix("unix://")
    port = services.free_port()
    with forwarding((), f"localhost:{port}={engine}", tls=tmp_path / "me.pem"):
        yield f"tls://localhost:{port}", tmp_path


def test_an_engine_is_reached_by_tls_with_a_certificate_and_never_without(
    checkout: Checkout, behind_tls: tuple[str, Path]
) -> None:
    host, folder = behind_tls
    ca, me = f"ca_path={folder}/ca.pem", f"cert_path={folder}/me.pem&key_path={folder}/me.pem"
    ran = checkout.cresset("engine", "machine", "--json", ENGINES=f"{host}?{ca}&{me}")
    assert ran.code == 0, ran.err
    assert ran.json["cores"] > 0
    for wrong, why in ((f"?{ca}", "cert"), ("", "certificate verify failed")):
        ran = checkout.cresset("engine", "machine", "--json", ENGINES=f"{host}{wrong}")
        assert ran.code == 4
        assert why in ran.json["error"]["why"].replace("_", " ").lower(), ran.err


def until_building(running: Running, host: str) -> str:
    """Wait until an engine is in the middle of a cell; return which."""
    assert running.process.stderr is not None
    said, cell = [], ""
    for line in running.process.stderr:
        said.append(line)
        if match := re.match(rf"(\S+): building by {re.escape(host)}", line):
            cell = match[1]
        if cell and re.match(rf"{re.escape(cell)}: (installer|prompt|shell|system|pip) ", line):
            return cell
    raise AssertionError("".join(said))


@pytest.mark.slow
def test_one_engine_killed_half_way_costs_no_cell(
    checkout: Checkout, repository: str, machines: list[Machine], figure: Callable[[str], None]
) -> None:
    images(checkout, SIMPLE)
    first, second = machines
    env = {"REGISTRY": repository, "ENGINES": f"{first.host} {second.host}"}
    running = checkout.start(*BUILD, **env)
    cell = until_building(running, second.host)
    second.kill()
    ran = running.end()
    assert ran.code == 0, ran.err
    assert f"{cell}: waiting by {second.host}" in ran.err
    assert "went away" in ran.err
    assert by_engine(ran.json) == {first.host: 2, second.host: 0}
    all_delivered(ran.json, repository)
    figure(f"{cell} was given on by {second.host}; all delivered after {ran.seconds:.0f} s")
    again = checkout.cresset(*BUILD, **env)
    assert set(states(again.json).values()) == {"there already"}
    figure(f"the second run: {again.seconds:.1f} s, nothing built")


@pytest.mark.slow
def test_ctrl_c_leaves_nothing_running_and_the_next_run_goes_on(
    checkout: Checkout, repository: str
) -> None:
    images(checkout, SIMPLE)
    checkout.require_something_new()
    env = {"REGISTRY": repository, "ENGINES": "local"}
    running = checkout.start(*BUILD, **env)
    until_building(running, "local")
    # Only the parent hears of it, as where a program sends it; the children are told by it.
    running.process.send_signal(signal.SIGINT)
    ran = running.end()
    assert ran.code == 130, ran.err
    assert "interrupted" in states(ran.json).values()
    left = [it for it in Path("/proc").glob("[0-9]*/environ") if repository in _read(it)]
    assert left == [], "nothing that this run started is there any more"
    assert checkout.cresset(*BUILD, **env).code == 0
    all_delivered(checkout.cresset(*BUILD, **env).json, repository)


def _read(file: Path) -> str:
    try:
        return file.read_text(errors="replace")
    except OSError:
        return ""


def compiled(report: dict[str, Any]) -> Counter[str]:
    """Return how often each wheel was compiled, by its key."""
    return Counter(it["key"] for cell in report["cells"] for it in cell.get("compiled", ()))


def until_half(running: Running, host: str) -> str:
    """Wait until half of twelve are delivered and an engine builds; return what was said."""
    assert running.process.stderr is not None
    said, done = [], 0
    builds: set[str] = set()
    for line in running.process.stderr:
        said.append(line)
        done += bool(re.match(r"\S+: delivered by ", line))
        if match := re.match(rf"(\S+): (building|delivered) by {re.escape(host)}", line):
            (builds.add if match[2] == "building" else builds.discard)(match[1])
        if done >= 6 and builds:
            return "".join(said)
    raise AssertionError("".join(said))


@dataclass(frozen=True)
class Team:
    """What builds the twelve cells: machines, and a registry and a Redis for all of them."""

    checkout: Checkout
    repository: str
    machines: list[Machine]

    def build(self) -> Ran:
        """Build what is missing."""
        return self.checkout.start(*BUILD).end(HOURS)


@contextlib.contextmanager
def team(checkout: Checkout, folder: Path, *numbers: int) -> Iterator[Team]:
    """Yield a team of machines that have built nothing; with its registry, all of it goes."""
    folder.mkdir()
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        host = stack.enter_context(services.registry(folder))
        found = [stack.enter_context(machine(it, folder / f"m{it}", host)) for it in numbers]
        env = {
            "REGISTRY": f"{host}/twelve",
            "ENGINES": " ".join(it.host for it in found),
            "CACHE_URL": stack.enter_context(services.redis(folder)),
            # With one job each, two engines on one machine are what two machines are to each other.
            "MAX_JOBS": "1",
        }
        own = replace(checkout, environment={**checkout.environment, **env})
        yield Team(own, env["REGISTRY"], found)


def built(by: Team, figure: Callable[[str], None]) -> None:
    """Build the twelve cells, and once more."""
    ran = by.build()
    assert ran.code == 0, ran.err
    assert len(ran.json["cells"]) == 12
    all_delivered(ran.json, by.repository)
    counts = compiled(ran.json)
    assert len(counts) == 4, counts
    assert set(counts.values()) == {1}, "compiled twice"
    figure(f"{ran.seconds:.0f} s, cells by engine {by_engine(ran.json)}")
    again = by.build()
    assert set(states(again.json).values()) == {"there already"}
    assert compiled(again.json) == Counter()
    figure(f"the second run: {again.seconds:.2f} s, nothing built")


@pytest.mark.slow
@pytest.mark.hours
def test_twelve_cells_by_two_engines_compile_nothing_twice(
    checkout: Checkout, tmp_path: Path, figure: Callable[[str], None]
) -> None:
    images(checkout, TWELVE)
    with team(checkout, tmp_path / "two", 4, 5) as two:
        built(two, figure)


@pytest.mark.slow
@pytest.mark.hours
def test_twelve_cells_by_one_engine_to_compare_with(
    checkout: Checkout, tmp_path: Path, figure: Callable[[str], None]
) -> None:
    images(checkout, TWELVE)
    with team(checkout, tmp_path / "one", 8) as one:
        built(one, figure)


@pytest.mark.slow
@pytest.mark.hours
def test_twelve_cells_of_which_a_killed_engine_costs_none(
    checkout: Checkout, tmp_path: Path, figure: Callable[[str], None]
) -> None:
    images(checkout, TWELVE)
    with team(checkout, tmp_path / "killed", 6, 7) as both:
        one_killed_half_way(both, figure)


def one_killed_half_way(by: Team, figure: Callable[[str], None]) -> None:
    """Build the twelve cells by two engines, one of which goes."""
    _, second = by.machines
    running = by.checkout.start(*BUILD)
    said = until_half(running, second.host)
    second.kill()
    ran = running.end(HOURS)
    assert ran.code == 0, ran.err
    assert f"waiting by {second.host}" in ran.err
    assert "went away" in ran.err
    all_delivered(ran.json, by.repository)
    assert set(compiled(ran.json).values()) == {1}
    cells = by_engine(ran.json)
    assert sum(cells.values()) == 12
    by_second = re.findall(rf"delivered by {re.escape(second.host)}", said + ran.err)
    assert cells[second.host] == len(by_second)
    figure(f"one of two killed with six delivered: {ran.seconds:.0f} s, cells by engine {cells}")
    again = by.build()
    assert set(states(again.json).values()) == {"there already"}


def test_the_twelve_cells_are_what_they_are_said_to_be(checkout: Checkout) -> None:
    images(checkout, TWELVE)
    ran = checkout.cresset(*BUILD, "--dry-run", WHEEL_STORE="off")
    assert ran.code == 0, ran.err
    cells = ran.json["cells"]
    assert len(cells) == 12
    assert sum(it["compiles"] == ["torchvision"] for it in cells) == 4
    names = " ".join(it["variant"] for it in cells)
    assert {"py311", "py313", "devel", "simple"} <= set(re.split(r"[\s-]", names))
