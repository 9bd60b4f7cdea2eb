"""Run inside a build container by its own Python: compiles, within the machine's memory and time.

Usage: compile.py RECORD -- COMMAND...

Jobs follow memory as well as cores; a compile that is killed for memory is run once more with half
of them, down to one; one that reaches its deadline stops in good order and exits with 75. What it
took goes to RECORD as JSON. Mounted for one exec, never part of an image; keeps to the standard
library.
"""

import collections
import json
import math
import os
import re
import signal
import subprocess
import sys
import threading
import time

UNFINISHED = 75  # EX_TEMPFAIL of sysexits.h: run the same command again
PATIENCE = 10  # seconds between two signals
GATE = "/run/gate.py"
SLOTS = "/tmp/slots"
STATSLOG = "/tmp/ccache-stats.log"
SOME = 100  # names of files, which tell why little was found

# Bytes that a C++ compiler takes at its worst (the largest of PyTorch 2.6.0's own files), and how
# many times as much one for CUDA does (4 GB: pytorch issues 130443 and 124018), and for flash
# attention (5.3 GB: flash-attention pull request 2079).
SLOT = 1.5e9
CUDA, FLASH = 3, 4

PROBE = re.compile(r"/CMakeFiles/CMake(Scratch|Tmp)/")
STEP = re.compile(r"\[(\d+)/(\d+)\]")
KILLED = re.compile(
    r"Killed signal terminated program|died due to signal 9|\bKilled\b|out of memory allocating",
    re.IGNORECASE,
)


def main():
    record_path, command = sys.argv[1], sys.argv[3:]
    started = time.time()
    fitting = max(1, int(available() // SLOT))
    jobs = int(os.environ.get("MAX_JOBS") or 0) or min(cores(), fitting)
    attempts = []
    while True:
        attempt = run(command, jobs, fitting)
        attempts.append(attempt)
        out_of_memory = attempt["code"] != 0 and not attempt["stopped"] and attempt["killed"]
        if not (out_of_memory and jobs > 1):
            break
        jobs, fitting = jobs // 2, max(1, fitting // 2)
        say("killed for memory; once more with MAX_JOBS=%d" % jobs)
    record = {
        "seconds": round(time.time() - started),
        "jobs": jobs,
        "steps": attempts[-1]["done"],
        "of": attempts[-1]["total"],
        "peak_memory": peak_memory(),
        "retried_for_memory": len(attempts) > 1,
        "cache": hit_rates(),
    }
    missed = cache_misses()
    if missed:
        rest = ", and %d more" % (len(missed) - SOME) if len(missed) > SOME else ""
        say("not in the compiler cache: " + ", ".join(missed[:SOME]) + rest)
    say("record: " + json.dumps(record))
    if attempts[-1]["stopped"]:
        say("stopped by the deadline at step %(steps)s of %(of)s" % record)
        sys.exit(UNFINISHED)
    if attempts[-1]["code"]:
        if out_of_memory:
            say("killed for memory with one job: add memory")
        sys.exit(attempts[-1]["code"])
    os.makedirs(os.path.dirname(record_path), exist_ok=True)
    with open(record_path, "w") as file:
        json.dump(record, file)


def say(line):
    print("compile: " + line, flush=True)


def run(command, jobs, fitting):
    """Run the command once; return its exit code, how far it came, and why it ended."""
    environment = dict(os.environ, MAX_JOBS=str(jobs), CMAKE_BUILD_PARALLEL_LEVEL=str(jobs))
    environment.update(CCACHE_PREFIX=GATE, CCACHE_STATSLOG=STATSLOG, PYTHONUNBUFFERED="1")
    environment.update(gate(jobs, fitting))
    say("%d jobs on %d cores with %.1f GB free" % (jobs, cores(), available() / 1e9))
    kills = oom_kills()
    state = {"code": 0, "done": 0, "total": 0, "stopped": False, "killed": False}
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, errors="replace", start_new_session=True,
    )  # fmt: skip

    def stop():
        # ninja ends its compilers on SIGINT and throws their half-written objects away. What
        # starts at just this moment may miss it, and a compiler may take its time.
        state["stopped"] = True
        for number in (signal.SIGINT, signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(process.pid, number)
            except ProcessLookupError:
                return
            time.sleep(PATIENCE)

    deadline = float(os.environ.get("CRESSET_DEADLINE") or 0)
    timer = threading.Timer(max(0, deadline - time.time()), stop) if deadline else None
    if timer:
        timer.daemon = True
        timer.start()
    before = 0
    for line in process.stdout:
        sys.stdout.write(line)
        sys.stdout.flush()
        step = STEP.match(line)
        if step:
            # torchvision's extensions are built one after the other, each with a count of its own.
            if int(step[1]) < state["done"] - before:
                before = state["total"]
            state["done"], state["total"] = before + int(step[1]), before + int(step[2])
        state["killed"] = state["killed"] or bool(KILLED.search(line))
    state["code"] = process.wait()
    if timer:
        timer.cancel()
    # One that was done by then has lost nothing.
    state["stopped"] = state["stopped"] and state["code"] != 0
    state["killed"] = state["killed"] or oom_kills() > kills
    return state


def gate(jobs, fitting):
    """Return what gate.py reads: how many slots there are, and who takes how many.

    `fitting` compilers for C++ fit into memory. Who asks for more jobs by MAX_JOBS knows their own
    C++ files to be smaller; one for CUDA then still takes as much of the memory as before.
    """
    os.makedirs(SLOTS, exist_ok=True)
    slots = max(jobs, fitting)
    cuda, flash = (min(slots, math.ceil(each * slots / fitting)) for each in (CUDA, FLASH))
    return {
        "SLOTS_FOLDER": SLOTS,
        "SLOTS": str(slots),
        "CUDA_SLOTS": str(cuda),
        "FLASH_SLOTS": str(flash),
    }


def cores():
    """Return the cores of the machine, or what this container is limited to."""
    quota, _, period = read("/sys/fs/cgroup/cpu.max").partition(" ")
    if not period:
        quota = read("/sys/fs/cgroup/cpu/cpu.cfs_quota_us")
        period = read("/sys/fs/cgroup/cpu/cpu.cfs_period_us")
    mine = len(os.sched_getaffinity(0))
    if not quota.strip().isdigit():  # "max", or -1
        return mine
    return max(1, min(mine, int(quota) // int(period)))


def available():
    """Return the bytes of memory that are free, of the machine or of this container's own limit."""
    fields = dict(re.findall(r"(\w+):\s+(\d+) kB", read("/proc/meminfo")))
    free = int(fields["MemAvailable"]) * 1024
    most = memory("memory.max", "memory.limit_in_bytes")
    # A limit that no machine has means none.
    return min(free, most) if 0 < most < 1 << 50 else free


def peak_memory():
    """Return the most bytes this container used at once; with page cache, as the kernel counts."""
    return memory("memory.peak", "memory.max_usage_in_bytes")


def oom_kills():
    text = read("/sys/fs/cgroup/memory.events") or read("/sys/fs/cgroup/memory/memory.oom_control")
    found = re.search(r"oom_kill (\d+)", text)
    return int(found[1]) if found else 0


def memory(v2, v1):
    text = read("/sys/fs/cgroup/" + v2) or read("/sys/fs/cgroup/memory/" + v1)
    return int(text) if text.strip().isdigit() else 0


def read(path):
    try:
        with open(path) as file:
            return file.read()
    except OSError:
        return ""


def hit_rates():
    """Return hits and misses of the compiler cache for C++ and CUDA apart."""
    counts = {"c++": collections.Counter(), "cuda": collections.Counter()}
    for source, line in cache_log():
        count = counts["cuda" if source.endswith(".cu") else "c++"]
        if line in ("direct_cache_hit", "preprocessed_cache_hit"):
            count["hits"] += 1
        elif line == "cache_miss":
            count["misses"] += 1
        elif line in ("unsupported_compiler_option", "called_for_preprocessing"):
            count["uncacheable"] += 1
        elif line in ("remote_storage_error", "remote_storage_timeout"):
            count["unreached"] += 1
    return {kind: dict(count) for kind, count in counts.items() if count}


def cache_misses():
    """Return the files that were compiled because the compiler cache did not have them."""
    return [source for source, line in cache_log() if line == "cache_miss"]


def cache_log():
    """Yield what ccache did, with the source it did it for.

    CMake's own probes are left out: each lies in a folder with another name every time (56 of
    PyTorch 2.6.0's), so none is ever found again, and nobody waits for them.
    """
    source = ""
    for line in read(STATSLOG).splitlines():
        if line.startswith("# "):
            source = "" if PROBE.search(line) else line[2:]
        elif source:
            yield source, line


if __name__ == "__main__":
    main()
