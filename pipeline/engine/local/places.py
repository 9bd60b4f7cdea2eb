"""Where the local engine keeps things, and the few file operations that all its parts share."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from contextvars import ContextVar
from pathlib import Path

import platformdirs

from pipeline.errors import EngineError
from pipeline.host import whole

Say = Callable[[str], None]

TICK = 10.0
"""Seconds between two lines about a step that is still running."""


def cache() -> Path:
    """Return the folder of what can be built again: programs and root file systems."""
    return _made(platformdirs.user_cache_path("cresset") / "engine")


_apart: ContextVar[Path | None] = ContextVar("apart", default=None)


def state() -> Path:
    """Return the folder of what a running engine keeps: its data, its log, its record."""
    return _made(_apart.get() or platformdirs.user_state_path("cresset") / "engine")


@contextlib.contextmanager
def apart(name: str) -> Iterator[Path]:
    """Let this process have an engine of its own, whose state is in a folder of that name."""
    token = _apart.set(platformdirs.user_state_path("cresset") / name)
    try:
        yield state()
    finally:
        _apart.reset(token)


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return folder


def digest(*parts: bytes) -> str:
    """Return 12 hex digits that stand for `parts` and for where one ends and the next begins."""
    total = hashlib.sha256()
    for part in parts:
        total.update(len(part).to_bytes(8, "big"))
        total.update(part)
    return total.hexdigest()[:12]


@contextlib.contextmanager
def locked(file: Path, waiting: Callable[[], None]) -> Iterator[None]:
    """Hold `file`'s lock; call `waiting` once if another process has it. Ends with its holder."""
    with file.open("a") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waiting()
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def in_use(folder: Path) -> AbstractContextManager[int]:
    """Give a descriptor that keeps `folder` from being pruned for as long as anyone holds it."""
    return whole.locked(folder, fcntl.LOCK_SH)


def prune(stem: str, keep: Path) -> None:
    """Delete the other folders named `stem`-something beside `keep` that nobody uses."""
    for folder in keep.parent.glob(f"{stem}-*"):
        if folder == keep:
            continue
        with in_use(folder) as descriptor, contextlib.suppress(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def under_construction(final: Path) -> Iterator[Path]:
    """Yield an empty folder that becomes `final` at the end, or vanishes on an error.

    The caller holds the cache's lock: leftovers of a builder that was killed go first.
    """
    for leftover in final.parent.glob(".building-*"):
        shutil.rmtree(leftover, ignore_errors=True)  # its compiler may still be at work
    folder = Path(tempfile.mkdtemp(prefix=".building-", dir=final.parent))
    try:
        folder.chmod(0o755)
        yield folder
        folder.rename(final)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def write(file: Path, text: str) -> None:
    """Write `text` to `file` so that a reader sees all of it or the old content."""
    draft = file.with_name(f".{file.name}.{os.getpid()}")
    draft.write_text(text)
    draft.replace(file)


def tail(file: Path, lines: int = 12) -> str:
    """Return the last `lines` lines of `file`, or nothing where there is no such file."""
    try:
        return "\n".join(file.read_text(errors="replace").splitlines()[-lines:])
    except FileNotFoundError:
        return ""


def minutes(seconds: float) -> str:
    """Return a duration for people: ``42s``, ``3m07s``."""
    whole, rest = divmod(int(seconds), 60)
    return f"{whole}m{rest:02}s" if whole else f"{rest}s"


def build_log() -> Path:
    """Return the file that the builds of the programs and of the root file system write to."""
    return state() / "build.log"


def work(
    what: str,
    argv: Sequence[str],
    say: Say,
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    progress: Callable[[str], str] = lambda _: "",
) -> None:
    """Run `argv` into the build log and say how it goes; EngineError where it fails.

    `progress` turns what the command has written so far into a few words.
    """
    log = build_log()
    begun = time.monotonic()
    say(what)
    with log.open("a") as sink:
        sink.write(f"\n== {what}\n$ {' '.join(argv)}\n")
        sink.flush()
        offset = sink.tell()
        with subprocess.Popen(
            argv, cwd=cwd, env=env, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink, umask=0o022
        ) as process:
            try:
                while process.poll() is None:
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        process.wait(TICK)
                        break
                    with log.open(errors="replace") as written:
                        written.seek(offset)
                        words = progress(written.read())
                    elapsed = minutes(time.monotonic() - begun)
                    say(f"{what}: {words + ', ' if words else ''}{elapsed} (log: {log})")
            except BaseException:
                process.terminate()
                raise
    if process.returncode:
        failed = f"{what}: {argv[0]} ended with exit code {process.returncode}"
        raise EngineError(failed, why=tail(log), next_step=f"read the whole log: {log}")
