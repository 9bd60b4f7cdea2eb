"""A working tree of this machine: what git tracks in it, with the edits that are not committed."""

from __future__ import annotations

import hashlib
import os
import re
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

from pipeline.errors import ConfigError, Problem

_GITLINK = b"160000"

# The patterns travel in the header of one gRPC request, which holds 1 MiB: each once quoted, with
# the header's own name, and once as base64 (engine/opts.go of Dagger 0.21.8).
_ROOM = 1_000_000


def tracked(folder: Path, field: str = "path") -> tuple[list[str], str]:
    """Return the files that git tracks in `folder`, submodules' too, and the sha256 of them all.

    A file that is deleted but not committed is not among them. The sum is of names, contents, what
    can be run and where symbolic links point; `field` is the setting that named the folder.

    Raises:
        ConfigError: it is missing, no working tree, or lacks a submodule.

    """
    files = sorted(_files(folder, field))
    if not files:
        raise _refused(field, folder, "git tracks no file in it")
    return [os.fsdecode(name) for name in files], _sum(os.fsencode(folder), files)


def untracked(folder: Path, field: str = "path") -> list[str]:
    """Return patterns of all else in `folder`, as Dagger takes them: few folders, and some files.

    Raises:
        ConfigError: as `tracked`, or it is more than an engine can be told.

    """
    patterns = sorted(_pattern(name) for name in _others(folder, field))
    if sum(64 + 3 * len(quote(pattern)) for pattern in patterns) > _ROOM:
        raise _refused(
            field,
            folder,
            f"{len(patterns)} files that git does not track lie among those that it does, more "
            "than an engine can be told to leave out",
            "git clean -ndx shows what to move away, in one folder or out of it",
        )
    return patterns


def _files(folder: Path, field: str) -> Iterator[bytes]:
    for _, under, names in _repositories(folder, field):
        yield from (under + name for name in names)


def _others(folder: Path, field: str) -> Iterator[bytes]:
    for repository, under, _ in _repositories(folder, field):
        for name in _git(repository, field, "ls-files", "-z", "--others", "--directory"):
            yield under + name.rstrip(b"/")


def _repositories(
    folder: Path, field: str, under: bytes = b""
) -> Iterator[tuple[Path, bytes, list[bytes]]]:
    """Yield a working tree and its submodules: folder, path within the first, files there."""
    # Not --recurse-submodules: it passes over submodules that are not there.
    lines = _git(folder, field, "ls-files", "-z", "--stage")
    # By name, as a file in conflict has several entries.
    modes = {name: line[:6] for line in lines for _, _, name in [line.partition(b"\t")]}
    names = [name for name, mode in modes.items() if mode != _GITLINK and _is_there(folder, name)]
    if under and not names:
        raise _without_submodule(field, folder)
    yield folder, under, names
    for name in (name for name, mode in modes.items() if mode == _GITLINK):
        submodule = folder / os.fsdecode(name)
        # Without it, git would answer for the repository around the submodule.
        if not (submodule / ".git").exists():
            raise _without_submodule(field, submodule)
        yield from _repositories(submodule, field, under + name + b"/")


def _git(folder: Path, field: str, *args: str) -> list[bytes]:
    # Inside of a hook of git, these name another repository.
    others = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_PREFIX")
    env = {name: value for name, value in os.environ.items() if name not in others}
    try:
        done = subprocess.run(["git", *args], cwd=folder, env=env, capture_output=True, check=False)
    except OSError as error:
        if error.filename == "git":
            raise _refused(field, folder, "git is not installed", "apt-get install git") from None
        why = "there is no such folder" if not folder.is_dir() else error.strerror
        raise _refused(field, folder, why or str(error)) from None
    if done.returncode:
        said = os.fsdecode(done.stderr).strip().splitlines()
        raise _refused(field, folder, said[0] if said else f"git ended with {done.returncode}")
    return [part for part in done.stdout.split(b"\0") if part]


def _is_there(folder: Path, name: bytes) -> bool:
    try:
        mode = os.lstat(os.path.join(os.fsencode(folder), name)).st_mode  # noqa: PTH118 - bytes
    except OSError:
        return False
    return stat.S_ISREG(mode) or stat.S_ISLNK(mode)


def _sum(folder: bytes, files: list[bytes]) -> str:
    """Return the sum of all files; stages/source.py has it made of what arrived."""
    parts: dict[bytes, list[bytes]] = {b"files": [], b"programs": [], b"links": []}
    for name in files:
        path = os.path.join(folder, name)  # noqa: PTH118 - bytes
        mode = os.lstat(path).st_mode
        if stat.S_ISLNK(mode):
            parts[b"links"].append(b"./%b//%b" % (name, os.readlink(path)))  # noqa: PTH115
            continue
        with open(path, "rb") as content:  # noqa: PTH123
            digest = hashlib.file_digest(content, "sha256").hexdigest().encode()
        parts[b"programs" if mode & 0o111 else b"files"].append(b"%b  ./%b" % (digest, name))
    parts[b"links"].sort()
    everything = hashlib.sha256()
    for kind, lines in parts.items():
        everything.update(b"".join(line + b"\0" for line in [kind, *lines]))
    return everything.hexdigest()


def _pattern(name: bytes) -> str:
    """Return the pattern that means this name and no other."""
    text = re.sub(r"[][*?\\!^]", r"\\\g<0>", name.decode(errors="replace"))
    # What is no text cannot be sent; spaces around a pattern are cut off.
    text = text.replace("\N{REPLACEMENT CHARACTER}", "?")
    return re.sub(r"^\s|\s$", lambda space: f"[{space[0]}]", text)


def _without_submodule(field: str, submodule: Path) -> ConfigError:
    return _refused(
        field,
        submodule,
        "this submodule is not checked out",
        "git submodule update --init --recursive, in the working tree it belongs to",
    )


def _refused(field: str, folder: Path, why: str, next_step: str = "") -> ConfigError:
    return ConfigError(
        [Problem(field, str(folder), why, "a working tree of git, with its submodules", next_step)]
    )
