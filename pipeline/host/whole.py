"""Files that are whole or as they were, whatever happens in between."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


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
