"""Compiles that are cut off, run out of memory, or move to another machine. Each takes minutes.

Each uses engines of its own, in folders of its own, since it kills them or counts what they have.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from tests import services
from tests.engine.conftest import Checkout, Ran, Running

pytestmark = [pytest.mark.engine, pytest.mark.slow]

VISION = {"VISION_SOURCE": "apt", "PYTORCH_VERSION": "2.6.0", "CCA": "8.6", "WHEEL_STORE": "off"}
STEPS = 49
"""torchvision 0.21.0 with CUDA: 32 objects and libraries of one extension, 17 of the other."""


@contextmanager
def machine(checkout: Checkout, state: Path) -> Iterator[Checkout]:
    """Yield the checkout on a machine of its own: an engine that has done nothing yet."""
    own = replace(checkout, environment={**checkout.environment, "XDG_STATE_HOME": str(state)})
    try:
        yield own
    finally:
        own.cresset("engine", "stop")
        shutil.rmtree(state, ignore_errors=True)  # gigabytes, which pytest would keep


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[str]:
    """Yield the URL of a Redis that containers reach, with a password."""
    with services.redis(tmp_path) as url:
        yield url


def steps(log: Path) -> int:
    """Return how many steps of torchvision's two extensions a log has seen done."""
    text = log.read_text(errors="replace").partition("=== torchvision-wheel\n")[2]
    done = before = count = total = 0
    for number, of in re.findall(r"^\[(\d+)/(\d+)\]", text, re.MULTILINE):
        if int(number) < count:
            before += total
        count, total = int(number), int(of)
        done = before + count
    return done


def killed_at(running: Running, checkout: Checkout, part: float) -> tuple[int, float]:
    """Kill the engine, as the kernel or a power cut would, once so much is compiled.

    Return the steps done by then, and the seconds that the compile had.
    """
    assert running.process.stderr is not None
    log = Path(running.process.stderr.readline().partition("log: ")[2].strip())
    begun = 0.0
    for line in running.process.stderr:
        begun = begun or ("torchvision-wheel: running" in line) * time.monotonic()
        if (done := steps(log)) >= part * STEPS:
            pid = checkout.cresset("engine", "status", "--json").json["pid"]
            os.kill(int(pid), signal.SIGKILL)
            return done, time.monotonic() - begun
    raise AssertionError(log.read_text()[-4000:])


def rates(ran: Ran) -> dict[str, tuple[int, int]]:
    """Return hits and lookups of the compiler cache, for C++ and for CUDA."""
    found = re.findall(r"compiler cache, (\S+): (\d+) of (\d+) hits", ran.err)
    return {kind: (int(hits), int(total)) for kind, hits, total in found}


def compile_seconds(ran: Ran) -> float:
    """Return what compiling torchvision took of a run that did."""
    (seconds,) = re.findall(r"MB in (\d+) s, \d+ steps", ran.err)
    return float(seconds)


def test_what_is_cut_off_goes_on_and_another_machine_takes_over(
    checkout: Checkout, redis: str, tmp_path: Path, figure: Callable[[str], None]
) -> None:
    env = {**VISION, "CACHE_URL": redis}
    done, cut = 0, []
    with machine(checkout, tmp_path / "one") as one:
        for part in (0.3, 0.6):
            running = one.start("wheels", "--output", "out", **env)
            done, seconds = killed_at(running, one, part)
            assert running.end().code == 4
            cut.append(seconds)
            figure(f"killed at step {done} of {STEPS}, after {seconds:.0f} s of compiling")
        ran = one.cresset("wheels", "--output", "out", **env)
        assert ran.code == 0, ran.err
        cut.append(compile_seconds(ran))
        hits = sum(found for found, _ in rates(ran).values())
        figure(f"the third run finds {hits} objects and ends after {cut[-1]:.0f} s of compiling")
        # Links are steps as well, and were none of them yet; what was finished was found again.
        assert hits >= done - 1
    with machine(checkout, tmp_path / "two") as two:
        ran = two.cresset("wheels", "--output", "out2", **env)
        assert ran.code == 0, ran.err
        assert all(hits == total for hits, total in rates(ran).values()), rates(ran)
        assert set(rates(ran)) == {"c++", "cuda"}
        figure(
            f"an empty engine with the same Redis: {rates(ran)} hits, {ran.seconds:.0f} s from "
            f"command to wheel, {compile_seconds(ran):.0f} s of them compiling"
        )
    (tmp_path / "other").mkdir()
    with machine(checkout, tmp_path / "three") as three, services.redis(tmp_path / "other") as url:
        ran = three.cresset("wheels", "--output", "out3", **VISION, CACHE_URL=url)
        assert ran.code == 0, ran.err
        assert all(hits == 0 for hits, _ in rates(ran).values()), rates(ran)
        whole = compile_seconds(ran)
    figure(f"cut off twice {sum(cut):.0f} s of compiling, at once {whole:.0f} s")


def test_a_deadline_in_the_middle_loses_nothing(
    checkout: Checkout, tmp_path: Path, figure: Callable[[str], None]
) -> None:
    env = {**VISION, "CACHE_URL": str(tmp_path / "objects")}
    with machine(checkout, tmp_path / "late") as late:
        # Everything up to the compile, which then has all of the time that there is.
        assert late.cresset("wheels", "--deadline", "1s", **env).code == 8
        ran = late.cresset("wheels", "--output", "out", "--deadline", "2m", **env)
        assert ran.code == 8, ran.err
        (stop,) = re.findall(r"stopped by the deadline at step (\d+) of (\d+)", ran.err)
        done, total = map(int, stop)
        assert 0 < done < total <= STEPS
        assert not (late.path / "out").exists()
        ran = late.cresset("wheels", "--output", "out", **env)
        assert ran.code == 0, ran.err
        hits = sum(found for found, _ in rates(ran).values())
        figure(f"stopped at step {done} of {STEPS}; the next run finds {hits} objects")
        assert hits >= done - 1


@pytest.mark.parametrize(
    ("cca", "code"), [("6.1", "sm_61"), ("7.5 8.6+PTX", "compute_86 sm_75 sm_86")]
)
def test_there_is_code_for_what_was_asked_and_nothing_else(
    checkout: Checkout, cca: str, code: str, figure: Callable[[str], None]
) -> None:
    ran = checkout.cresset("wheels", "--output", "out", **{**VISION, "CCA": cca})
    assert ran.code == 0, ran.err
    (proof,) = re.findall(r"^torchvision: (GPU code by cuobjdump: .*)$", ran.err, re.MULTILINE)
    assert proof == f"GPU code by cuobjdump: torchvision/_C.so {code}"
    figure(f"CCA={cca}: {proof}; {rates(ran) or 'from the engine cache'}")


def test_another_machine_takes_the_wheel_from_the_store(
    checkout: Checkout, repository: str, tmp_path: Path, figure: Callable[[str], None]
) -> None:
    env = {**VISION, "WHEEL_STORE": "auto", "REGISTRY": repository}
    assert checkout.cresset("wheels", "--output", "out", **env).code == 0
    with machine(checkout, tmp_path / "two") as two:
        ran = two.cresset("wheels", "--output", "out2", **env)
        assert ran.code == 0, ran.err
        assert "from the wheel store" in ran.err
        figure(f"an empty engine with the same registry: {ran.seconds:.0f} s to the wheel")
        (wheel,) = (checkout.path / "out").iterdir()
        assert (checkout.path / "out2" / wheel.name).read_bytes() == wheel.read_bytes()


def test_out_of_memory_is_noticed_and_fewer_jobs_finish(
    checkout: Checkout, tmp_path: Path, figure: Callable[[str], None]
) -> None:
    env = {**VISION, "CACHE_URL": str(tmp_path / "objects")}
    with machine(checkout, tmp_path / "small") as small:
        # Everything up to the compile, which then finds a machine with little memory.
        ran = small.cresset("wheels", "--deadline", "1s", **env)
        assert ran.code == 8, ran.err
        memory_limit(small, 2_500_000_000)
        ran = small.cresset("wheels", "--output", "out", **env, MAX_JOBS="4")
        assert ran.code == 0, ran.err
        assert "killed for memory; once more with MAX_JOBS=2" in ran.log
        (jobs,) = re.findall(r"MB in .*, (\d) jobs, at most", ran.err)
        figure(f"4 jobs in 2.5 GB were killed, {jobs} finished: {compile_seconds(ran):.0f} s")
        assert int(jobs) < 4


def memory_limit(checkout: Checkout, limit: int) -> None:
    """Give all containers of an engine together so many bytes."""
    pid = checkout.cresset("engine", "status", "--json").json["pid"]
    program = Path(f"/proc/{pid}/cmdline").read_bytes()
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        program += Path(f"/proc/{child}/cmdline").read_bytes()
    # The engine names its control group as its network.
    (name,) = set(re.findall(rb"--network-name\0([\w-]+)", program))
    group = Path("/sys/fs/cgroup/memory", name.decode())
    if group.is_dir():
        (group / "memory.limit_in_bytes").write_text(str(limit))
    else:
        Path("/sys/fs/cgroup", name.decode(), "memory.max").write_text(str(limit))
