"""The program that compiles inside a container: memory, deadline, exit codes, and what it records.

It runs as it does there, in a Python of its own, but with its files in a folder of the test's.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pipeline.stages.inside import compile as untyped
from tests.unit.running import ROOT

program: Any = untyped

MACHINE = "program.cores, program.available = lambda: 16, lambda: 10e9"
"""16 cores, and 10 GB of free memory: enough for 6 C++, 2 CUDA and 1 flash attention compiler."""

OUT_OF_MEMORY = "g++: fatal error: Killed signal terminated program cc1plus"

FAKE_NVCC = """#!/bin/sh
case "$*" in *--version*) echo 'nvcc: NVIDIA (R) Cuda compiler driver'; exit 0 ;; esac
for word; do
  case $word in *.cu) source=$word ;; esac
  [ "$last" = -o ] && output=$word
  last=$word
done
cat "$source" > "${output:-/dev/stdout}"
"""


@dataclass(frozen=True)
class Done:
    code: int
    said: str
    record: dict[str, Any] | None
    folder: Path

    def lines(self, name: str) -> list[str]:
        """Return the lines that the command left in a file."""
        path = self.folder / name
        return path.read_text().split() if path.exists() else []


def compiles(
    folder: Path, script: str, *, machine: str = "", environ: Mapping[str, str] | None = None
) -> Done:
    """Return what comes of a shell script as the command that compiles, in a folder of its own."""
    record = folder / "out" / "record.json"
    gate = folder / "gate.py"
    gate.write_text((ROOT / "pipeline/stages/inside/gate.py").read_text())
    gate.chmod(0o755)
    run = "\n".join(
        [
            # A shell starts what it puts into the background, these tests perhaps, deaf to SIGINT.
            "import signal; signal.signal(signal.SIGINT, signal.SIG_DFL)",
            "from pipeline.stages.inside import compile as program",
            f"program.GATE = {str(gate)!r}",
            f"program.SLOTS = {str(folder / 'slots')!r}",
            f"program.STATSLOG = {str(folder / 'stats.log')!r}",
            machine,
            "program.main()",
        ]
    )
    ours = ("MAX_JOBS", "CRESSET_", "CCACHE_", "CMAKE_")
    clean = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    clean |= {"CCACHE_DIR": str(folder / "ccache"), "HOME": str(folder), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", run, record, "--", "sh", "-c", script],
        cwd=folder,
        env=clean | dict(environ or {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=60,
    )
    written = json.loads(record.read_text()) if record.exists() else None
    return Done(done.returncode, done.stdout, written, folder)


# The record and the exit code


def test_what_it_took_is_recorded(tmp_path: Path) -> None:
    script = "echo '[1/7] cc a.c'; echo 'a warning'; echo '[7/7] ld it'"
    done = compiles(tmp_path, script, environ={"MAX_JOBS": "3"})
    assert done.code == 0, done.said
    assert done.record is not None
    assert {name: done.record[name] for name in ("jobs", "steps", "of", "retried_for_memory")} == {
        "jobs": 3,
        "steps": 7,
        "of": 7,
        "retried_for_memory": False,
    }
    assert 0 <= done.record["seconds"] < 60
    assert done.record["peak_memory"] >= 0
    assert done.record["cache"] == {}
    assert f"compile: record: {json.dumps(done.record)}" in done.said


def test_what_the_command_says_is_passed_on(tmp_path: Path) -> None:
    done = compiles(tmp_path, "echo to standard output; echo to standard error >&2")
    assert {"to standard output", "to standard error"} <= set(done.said.splitlines())


def test_builds_one_after_the_other_are_counted_together(tmp_path: Path) -> None:
    done = compiles(tmp_path, "echo '[1/9] a'; echo '[9/9] b'; echo '[1/4] c'; echo '[4/4] d'")
    assert done.record is not None
    assert (done.record["steps"], done.record["of"]) == (13, 13)


@pytest.mark.parametrize("code", [1, 2, 75])
def test_a_failure_is_passed_on_and_leaves_no_record(code: int, tmp_path: Path) -> None:
    done = compiles(tmp_path, f"echo run >> runs; echo '[2/7] cc'; exit {code}")
    assert done.code == code
    assert done.record is None
    assert done.lines("runs") == ["run"]
    assert "deadline" not in done.said
    assert "memory:" not in done.said


# The deadline

UNTIL_STOPPED = """
trap 'echo interrupted > signal; exit 130' INT
echo '[3/10] cc a.c'
while :; do sleep 0.1; done
"""


def test_a_deadline_stops_it_in_good_order(tmp_path: Path) -> None:
    soon = {"CRESSET_DEADLINE": str(time.time() + 3)}
    done = compiles(tmp_path, UNTIL_STOPPED, environ=soon)
    assert done.code == program.UNFINISHED == 75
    assert "compile: stopped by the deadline at step 3 of 10" in done.said.splitlines()
    assert done.lines("signal") == ["interrupted"]
    assert done.record is None


def test_a_deadline_that_has_passed_stops_it_at_once(tmp_path: Path) -> None:
    passed = {"CRESSET_DEADLINE": str(time.time() - 60)}
    done = compiles(tmp_path, "sleep 300; echo finished", environ=passed)
    assert done.code == program.UNFINISHED
    assert "compile: stopped by the deadline at step 0 of 0" in done.said
    assert "finished" not in done.said


def test_what_does_not_heed_the_deadline_is_ended(tmp_path: Path) -> None:
    script = "trap '' INT TERM; echo '[1/2] cc'; while :; do sleep 0.1; done"
    done = compiles(tmp_path, script, machine="program.PATIENCE = 0.2",
                    environ={"CRESSET_DEADLINE": str(time.time() + 1)})  # fmt: skip
    assert done.code == program.UNFINISHED


def test_a_deadline_that_does_not_come_changes_nothing(tmp_path: Path) -> None:
    done = compiles(tmp_path, "exit 0", environ={"CRESSET_DEADLINE": str(time.time() + 3600)})
    assert done.code == 0
    assert done.record is not None


def test_what_is_killed_after_the_deadline_is_not_run_again(tmp_path: Path) -> None:
    script = f"""
    trap 'echo {OUT_OF_MEMORY}; exit 1' INT
    echo run >> runs
    while :; do sleep 0.1; done
    """
    done = compiles(tmp_path, script, environ={"CRESSET_DEADLINE": str(time.time() + 3)})
    assert done.code == program.UNFINISHED
    assert done.lines("runs") == ["run"]


# Memory

KILLED = f"echo $MAX_JOBS $CMAKE_BUILD_PARALLEL_LEVEL >> jobs; echo '{OUT_OF_MEMORY}'; exit 4"


def test_what_is_killed_for_memory_is_run_again_with_half_the_jobs_down_to_one(
    tmp_path: Path,
) -> None:
    done = compiles(tmp_path, KILLED, environ={"MAX_JOBS": "5"})
    assert done.lines("jobs") == ["5", "5", "2", "2", "1", "1"]
    assert done.code == 4
    assert done.record is None
    assert "compile: killed for memory; once more with MAX_JOBS=2" in done.said
    assert "compile: killed for memory with one job: add memory" in done.said


def test_what_then_fits_is_recorded_with_the_jobs_it_took(tmp_path: Path) -> None:
    script = f"[ $MAX_JOBS = 2 ] || {{ {KILLED}; }}; echo '[7/7] ld'"
    done = compiles(tmp_path, script, environ={"MAX_JOBS": "4"})
    assert done.code == 0, done.said
    assert done.record is not None
    assert (done.record["jobs"], done.record["retried_for_memory"]) == (2, True)


def test_one_job_that_does_not_fit_is_not_run_again(tmp_path: Path) -> None:
    done = compiles(tmp_path, KILLED, environ={"MAX_JOBS": "1"})
    assert done.lines("jobs") == ["1", "1"]
    assert done.code == 4
    assert "once more" not in done.said


def test_what_the_kernel_killed_counts_though_nobody_says_so(tmp_path: Path) -> None:
    counted = "kills = iter(range(9)); program.oom_kills = lambda: next(kills)"
    done = compiles(tmp_path, "echo $MAX_JOBS >> jobs; kill -9 $$", machine=counted,
                    environ={"MAX_JOBS": "4"})  # fmt: skip
    assert done.lines("jobs") == ["4", "2", "1"]
    assert done.code != 0


def test_a_compile_that_succeeds_is_not_repeated_whatever_it_prints(tmp_path: Path) -> None:
    done = compiles(tmp_path, f"echo run >> runs; echo '{OUT_OF_MEMORY}'")
    assert done.code == 0
    assert done.lines("runs") == ["run"]


@pytest.mark.parametrize(
    "line",
    [
        OUT_OF_MEMORY,
        "c++: fatal error: Killed signal terminated program cicc",
        "virtual memory exhausted: Killed",
        "cc1plus: out of memory allocating 65536 bytes after a total of 1835008 bytes",
    ],
)
def test_every_way_a_compiler_says_it_ran_out_of_memory_is_known(line: str) -> None:
    assert program.KILLED.search(line)


def test_jobs_follow_the_memory(tmp_path: Path) -> None:
    done = compiles(tmp_path, "echo $MAX_JOBS >> jobs", machine=MACHINE)
    assert done.lines("jobs") == ["6"]
    assert "compile: 6 jobs on 16 cores with 10.0 GB free" in done.said


def files(monkeypatch: pytest.MonkeyPatch, content: Mapping[str, str]) -> None:
    """Let the program find these files of the kernel and no other."""
    monkeypatch.setattr(program, "read", lambda path: content.get(path, ""))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))


V1 = "/sys/fs/cgroup/cpu/cpu.cfs_"


@pytest.mark.parametrize(
    ("content", "cores"),
    [
        ({}, 8),
        ({"/sys/fs/cgroup/cpu.max": "max 100000\n"}, 8),
        ({"/sys/fs/cgroup/cpu.max": "250000 100000\n"}, 2),
        ({"/sys/fs/cgroup/cpu.max": "50000 100000\n"}, 1),
        ({"/sys/fs/cgroup/cpu.max": "6400000 100000\n"}, 8),
        ({f"{V1}quota_us": "-1\n", f"{V1}period_us": "100000\n"}, 8),
        ({f"{V1}quota_us": "400000\n", f"{V1}period_us": "100000\n"}, 4),
    ],
)
def test_cores_are_those_the_container_may_use(
    content: dict[str, str], cores: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    files(monkeypatch, content)
    assert program.cores() == cores


@pytest.mark.parametrize(
    ("limit", "kilobytes"),
    [
        ({}, 8_000_000),
        ({"/sys/fs/cgroup/memory.max": "max\n"}, 8_000_000),
        ({"/sys/fs/cgroup/memory.max": f"{2_000_000 * 1024}\n"}, 2_000_000),
        ({"/sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n"}, 8_000_000),
        ({"/sys/fs/cgroup/memory/memory.limit_in_bytes": "1024000\n"}, 1000),
    ],
)
def test_memory_is_what_the_container_may_use(
    limit: dict[str, str], kilobytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    meminfo = {"/proc/meminfo": "MemTotal:  16000000 kB\nMemAvailable:    8000000 kB\n"}
    files(monkeypatch, meminfo | limit)
    assert program.available() == kilobytes * 1024


# The gate before the compilers

# Each stands for a compiler: it says when it begins and ends, and may wait for another to begin.
GATED = """
compiler() {
  "$CCACHE_PREFIX" sh -c 'echo begin >> log; touch "$0"; sleep 0.5; echo end >> log' "$@"
}
"""


def test_no_more_cuda_compilers_run_at_once_than_fit(tmp_path: Path) -> None:
    one_at_a_time = "program.cores, program.available = lambda: 16, lambda: 5e9"
    script = GATED + "compiler a.cu & compiler b.cu & compiler c.cu & wait"
    # More jobs by MAX_JOBS are more for C++ alone.
    done = compiles(tmp_path, script, machine=one_at_a_time, environ={"MAX_JOBS": "8"})
    assert done.lines("log") == ["begin", "end"] * 3


def test_a_cuda_compiler_leaves_less_room_for_others(tmp_path: Path) -> None:
    # Of 4 slots one for CUDA takes 3, so of the two C++ compilers one waits for the other.
    script = (
        GATED
        + """
    "$CCACHE_PREFIX" sh -c 'touch begun; until [ -e enough ]; do sleep 0.1; done' k.cu &
    until [ -e begun ]; do sleep 0.1; done
    compiler a.cpp & first=$!
    compiler b.cpp & second=$!
    wait $first $second
    touch enough; wait
    """
    )
    done = compiles(tmp_path, script, machine=MACHINE.replace("10e9", "6e9"))
    assert done.lines("log") == ["begin", "end"] * 2


def test_what_is_run_once_more_for_memory_has_half_the_slots(tmp_path: Path) -> None:
    # 6 slots let two CUDA compilers run at once, 3 of them one.
    script = (
        GATED
        + f"""
    compiler a.cu & compiler b.cu & wait
    [ $MAX_JOBS = 3 ] || {{ {KILLED}; }}
    """
    )
    done = compiles(tmp_path, script, machine=MACHINE)
    assert done.code == 0, done.said
    assert done.lines("log") == ["begin", "begin", "end", "end", "begin", "end", "begin", "end"]


def test_only_the_source_says_what_kind_of_compiler_it_is(tmp_path: Path) -> None:
    # Upstream gives every CUDA file this definition.
    define = "-DFLASH_NAMESPACE=pytorch_flash"
    script = f"""
    compiler() {{
      "$CCACHE_PREFIX" sh -c 'touch "$0"; until [ -e "$1" ]; do sleep 0.1; done' "$@"
    }}
    compiler a.cu b.cu {define} -o a.cu.o & compiler b.cu a.cu {define} -o b.cu.o & wait
    """
    assert compiles(tmp_path, script, machine=MACHINE).code == 0


@pytest.mark.parametrize("source", ["cpp", "cu"])
def test_compilers_that_fit_run_at_once(source: str, tmp_path: Path) -> None:
    # Each ends when the other has begun.
    script = f"""
    compiler() {{
      "$CCACHE_PREFIX" sh -c 'touch "$0"; until [ -e "$1" ]; do sleep 0.1; done' "$@"
    }}
    compiler a.{source} b.{source} & compiler b.{source} a.{source} & wait
    """
    machine = MACHINE if source == "cu" else MACHINE.replace("10e9", "1e9")
    assert compiles(tmp_path, script, machine=machine, environ={"MAX_JOBS": "8"}).code == 0


def test_flash_attention_has_fewer_slots_than_other_kernels(tmp_path: Path) -> None:
    script = GATED + "compiler flash_fwd_hdim96.cu & compiler flash_bwd_hdim96.cu & wait"
    done = compiles(tmp_path, script, machine=MACHINE)
    assert done.lines("log") == ["begin", "end"] * 2


def test_a_compiler_that_calls_another_does_not_wait_for_itself(tmp_path: Path) -> None:
    one_at_a_time = "program.cores, program.available = lambda: 16, lambda: 5e9"
    script = """"$CCACHE_PREFIX" sh -c '"$CCACHE_PREFIX" sh -c "echo $0 >> log" $0' a.cu"""
    done = compiles(tmp_path, script, machine=one_at_a_time, environ={"MAX_JOBS": "8"})
    assert done.code == 0, done.said
    assert done.lines("log") == ["a.cu"]


def test_what_waits_for_memory_ends_with_the_deadline(tmp_path: Path) -> None:
    script = """
    "$CCACHE_PREFIX" sh -c 'echo begin >> log; exec sleep 300' a.cu &
    until [ -e log ]; do sleep 0.1; done
    exec "$CCACHE_PREFIX" sh -c 'echo begin >> log' b.cu
    """
    soon = {"CRESSET_DEADLINE": str(time.time() + 2), "MAX_JOBS": "1"}
    done = compiles(tmp_path, script, machine=MACHINE.replace("10e9", "5e9"), environ=soon)
    assert done.code == program.UNFINISHED
    assert done.lines("log") == ["begin"]
    assert "Traceback" not in done.said


def test_a_compilers_exit_code_passes_the_gate(tmp_path: Path) -> None:
    for source in ("a.cpp", "a.cu", "flash_a.cu"):
        assert compiles(tmp_path, f'"$CCACHE_PREFIX" sh -c "exit 3" {source}').code == 3


# The compiler cache


def test_what_the_compiler_cache_did_is_counted_for_each_kind(tmp_path: Path) -> None:
    (tmp_path / "a.c").write_text("int f(void) { return 1; }\n")
    (tmp_path / "k.cu").write_text("__global__ void k() {}\n")
    nvcc = tmp_path / "nvcc"
    nvcc.write_text(FAKE_NVCC)
    nvcc.chmod(0o755)
    script = """
    set -e
    for time in 1 2 3; do ccache gcc -c a.c -o a.o; done
    for time in 1 2; do ccache ./nvcc -c k.cu -o k.o; done
    ccache gcc -E a.c > preprocessed
    ccache gcc -shared a.o -o a.so
    """
    done = compiles(tmp_path, script)
    assert done.code == 0, done.said
    assert done.record is not None
    assert done.record["cache"] == {
        "c++": {"misses": 1, "hits": 2, "uncacheable": 1},
        "cuda": {"misses": 1, "hits": 1},
    }


def test_a_shared_cache_that_does_not_answer_is_counted(tmp_path: Path) -> None:
    (tmp_path / "a.c").write_text("int f(void) { return 1; }\n")
    script = "CCACHE_REMOTE_STORAGE=http://127.0.0.1:1 ccache gcc -c a.c -o a.o"
    done = compiles(tmp_path, script)
    assert done.code == 0, done.said
    assert done.record is not None
    assert done.record["cache"] == {"c++": {"misses": 1, "unreached": 1}}


STATS = """\
# a.c
cache_miss
direct_cache_miss
local_storage_miss
local_storage_read_miss
local_storage_read_miss
local_storage_write
local_storage_write
preprocessed_cache_miss
# /src/torch/aten/src/ATen/native/cuda/Sort.cu
direct_cache_hit
local_storage_hit
remote_storage_hit
# build/Sort.cu
cache_miss
direct_cache_miss
# b.cpp
direct_cache_miss
preprocessed_cache_hit
# a.o
called_for_link
# c.cu
unsupported_compiler_option
# /src/torch/build/CMakeFiles/CMakeScratch/TryCompile-k1X22S/src.c
cache_miss
"""


def test_the_statistics_of_ccache_are_read_by_kind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "stats.log"
    monkeypatch.setattr(program, "STATSLOG", str(log))
    assert program.hit_rates() == {}
    log.write_text(STATS)
    assert program.hit_rates() == {
        "c++": {"misses": 1, "hits": 1},
        "cuda": {"hits": 1, "misses": 1, "uncacheable": 1},
    }
    assert program.cache_misses() == ["a.c", "build/Sort.cu"]
