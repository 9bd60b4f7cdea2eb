"""Writing into a folder of a user's: a file that is there already is never lost."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import CressetError


@dataclass(frozen=True)
class Change:
    """What is to become of one file."""

    path: Path
    text: str
    was: str | None
    """What it holds now; None where it is not there."""
    only_adds: bool = False

    @property
    def needed(self) -> bool:
        """Whether there is anything to do."""
        return self.text != self.was

    @property
    def in_the_way(self) -> bool:
        """Whether it would take the place of something else."""
        return self.needed and self.was is not None and not self.only_adds


def new(path: Path, text: str) -> Change:
    """Return the change that makes a file hold just this."""
    return Change(path, text, _content(path))


def with_lines(path: Path, lines: Sequence[str], heading: str) -> Change:
    """Return the change that adds the lines that a file does not have yet, under a heading."""
    was = _content(path)
    there = {line.strip() for line in (was or "").splitlines()}
    missing = [line for line in lines if line.strip() not in there]
    text = was or ""
    if missing:
        text += "" if not text or text.endswith("\n") else "\n"
        text += "\n".join([heading, *missing]) + "\n"
    return Change(path, text, was if was is not None or missing else "", only_adds=True)


def _content(path: Path) -> str | None:
    try:
        # As it is: with newline="" nothing of a file is written otherwise than it was.
        with path.open(encoding="utf-8", newline="") as file:
            return file.read()
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise CressetError(
            f"{path} cannot be read", why=str(reason), next_step="mend it, or move it away"
        ) from error


def apply(
    changes: Sequence[Change], *, force: bool = False, next_step: str = "move it away"
) -> Mapping[Path, Path]:
    """Make the changes, or none of them; return where each file that was in the way is now.

    `next_step` says what to do about a file that is in the way.

    Raises:
        CressetError: a file is in the way and `force` is not given, or one cannot be written.

    """
    in_the_way = [str(it.path) for it in changes if it.in_the_way]
    if in_the_way and not force:
        raise CressetError(
            f"nothing was written: {', '.join(in_the_way)} would be written over",
            next_step=next_step,
        )
    kept: dict[Path, Path] = {}
    for it in changes:
        if not it.needed:
            continue
        try:
            it.path.parent.mkdir(parents=True, exist_ok=True)
            if it.in_the_way:
                kept[it.path] = _kept(it.path)
            _write(it)
        except OSError as error:
            raise CressetError(
                f"{it.path} cannot be written",
                why=error.strerror or str(error),
                next_step="name a folder that you may write to and that has room",
            ) from error
    return kept


def _kept(path: Path) -> Path:
    """Put a second name beside a file's own, one that is free."""
    names = (path.with_name(f"{path.name}.bak{number or ''}") for number in range(1000))
    free = next(it for it in names if not it.exists())
    free.hardlink_to(path)
    return free


def _write(change: Change) -> None:
    # All of it at once, and not over a link's target. A new file is for its user alone: it may
    # hold what stood in the old one.
    handle, partial = tempfile.mkstemp(prefix=f".{change.path.name}.", dir=change.path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="") as file:
            file.write(change.text)
        if change.was is not None:
            Path(partial).chmod(change.path.stat().st_mode & 0o777)
        Path(partial).replace(change.path)
    finally:
        Path(partial).unlink(missing_ok=True)


def quoted(value: str) -> str:
    """Return a value as ``.env`` holds it, for Compose and for us."""
    if not value or not set(value) & set(" \t#'\"$\\`"):
        return value
    if "'" not in value:
        return f"'{value}'"
    escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("$", "\\$")
    return f'"{escaped}"'
