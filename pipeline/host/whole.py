"""Files that are whole or as they were, whatever happens in between."""

from __future__ import annotations

import contextlib
import fcntl
import os
import platform
import shutil
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

# Of this machine alone: on a shared disk a lock on a folder is not seen by the others (NFS).
_SCRATCH: Final = f".cresset-{platform.node()}-"


def write(path: Path, content: str | bytes, *, mode: int | None = None) -> None:
    """Write a file, its folder too; OSError if that fails, with nothing half-written left.

    `mode` is of its permissions, which it has before there is anything in it; None: as usual.
    """
    # By process: two may write the same file at once.
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.touch()
        if mode is not None:
            partial.chmod(mode)
        partial.write_bytes(content.encode() if isinstance(content, str) else content)
        partial.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def scratch(parent: Path) -> Iterator[Path]:
    """Yield an empty folder in `parent` that goes at the end; OSError if there can be none.

    Those of processes that were killed go first: each may have half a bundle in it (issue 6).
    """
    with contextlib.ExitStack() as stack:
        # So that nobody takes for forgotten what is not locked yet.
        with locked(parent, fcntl.LOCK_EX):
            for left in parent.glob(f"{_SCRATCH}*"):
                with (
                    contextlib.suppress(OSError),
                    locked(left, fcntl.LOCK_EX | fcntl.LOCK_NB),
                ):
                    shutil.rmtree(left)
            made = stack.enter_context(TemporaryDirectory(dir=parent, prefix=_SCRATCH))
            stack.enter_context(locked(Path(made), fcntl.LOCK_SH))
        yield Path(made)


@contextlib.contextmanager
def locked(folder: Path, how: int) -> Iterator[int]:
    """Hold a lock of ``fcntl`` on a folder, which ends with its holder; OSError without it.

    Yields the descriptor that holds it.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, how)
        yield descriptor
    finally:
        os.close(descriptor)
