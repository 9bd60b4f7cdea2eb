"""How anything is compiled: one exec with a compiler cache, a deadline and jobs that fit."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources

from dagger import Container, Directory, dag

from pipeline import caches
from pipeline.stages.inputs import Compiling
from pipeline.stages.toolchain import CUDA, TOOLS

OUT = "/out"
RECORD = f"{OUT}/record.json"

_PROGRAM = "/run/compile.py"
_GATE = "/run/gate.py"
_GRAFT = "/run/graft.py"

_CCACHE = {
    "CCACHE_DIR": caches.COMPILER,
    "CCACHE_MAXSIZE": "20G",
    # A compiler of the same version on another machine is the same compiler: time stamps are not,
    # and the folder is a constant one.
    "CCACHE_COMPILERCHECK": "%compiler% --version",
    "CCACHE_NOHASHDIR": "1",
    # The compiler's own list of what it read, in place of a preprocessor run before each compile.
    "CCACHE_DEPEND": "1",
    # Sources are unpacked, and code is generated, just before they are compiled.
    "CCACHE_SLOPPINESS": "include_file_ctime,include_file_mtime,time_macros",
}
# The second is its name before ccache 4.7, as in Ubuntu 22.04.
_ADDRESSES = ("CCACHE_REMOTE_STORAGE", "CCACHE_SECONDARY_STORAGE")


def built_wheel(container: Container, compiling: Compiling) -> Directory:
    """Return the directory with the wheel of the project in the working folder, and its record."""
    # The one command that builds every torch and torchvision on record: setup.py refuses it from
    # 2.14 on, and pip takes no options for it from 25.3 on (pytorch pull request 189758).
    build = [
        f"{TOOLS}/bin/python", "-m", "build", "--wheel", "--no-isolation",
        "--skip-dependency-check", "--outdir", OUT, ".",
    ]  # fmt: skip
    graft = resources.files("pipeline.stages.inside").joinpath("graft.py").read_text()
    return (
        compiled(container, build, compiling)
        .with_mounted_file(_GRAFT, dag.file("graft.py", graft))
        # Where the wheels of CUDA 13 are linked to, which the loader does not know of.
        .with_env_variable("LD_LIBRARY_PATH", f"{CUDA}/lib64")
        .with_exec([f"{TOOLS}/bin/python", _GRAFT, OUT])
        .directory(OUT)
    )


def compiled(container: Container, command: Sequence[str], compiling: Compiling) -> Container:
    """Return the container after the command, which compiles in its working folder.

    Where it gets the time it leaves what it made in `OUT`, with a `RECORD` of what it took; else it
    ends with an error, and run again goes on from the compiler cache.
    """
    inside = resources.files("pipeline.stages.inside")
    program, gate = (inside.joinpath(name).read_text() for name in ("compile.py", "gate.py"))
    ready = container.with_mounted_file(_PROGRAM, dag.file("compile.py", program))
    ready = ready.with_mounted_file(_GATE, dag.file("gate.py", gate, permissions=0o755))
    ready = ready.with_mounted_cache(caches.COMPILER, caches.compiler())
    for name, value in _CCACHE.items():
        ready = ready.with_env_variable(name, value)
    # None of these changes what comes out, so none is part of the engine's cache key.
    for name, value in compiling.limits().items():
        ready = ready.with_volatile_variable(name, value)
    if compiling.cache is not None:
        for name in _ADDRESSES:
            ready = ready.with_secret_variable(name, compiling.cache)
    done = ready.with_exec([f"{TOOLS}/bin/python", _PROGRAM, RECORD, "--", *command])
    for name in _CCACHE:
        done = done.without_env_variable(name)
    for name in compiling.limits():
        done = done.without_volatile_variable(name)
    if compiling.cache is not None:
        for name in _ADDRESSES:
            done = done.without_secret_variable(name)
    return done.without_mount(caches.COMPILER).without_mount(_GATE).without_mount(_PROGRAM)
