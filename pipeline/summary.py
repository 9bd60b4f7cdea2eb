"""The step summary of GitHub Actions: a Markdown file that a job appends to."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

FILE: Final = "GITHUB_STEP_SUMMARY"
"""The variable that names the file (GitHub, "Workflow commands", "Adding a job summary")."""

_HEAD: Final = ("Variant", "State", "Reference", "Size", "Seconds", "Compiled", "Cached stages")


def append(title: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Append a table of images to the summary, where there is one.

    A row is what ``--json`` prints of a build, with ``state``; of one that failed, its ``error``.
    A file that cannot be written costs no image: standard error says so.
    """
    if file := os.environ.get(FILE):
        try:
            with Path(file).open("a") as summary:
                summary.write(table(title, rows) + "\n")
        except OSError as error:
            sys.stderr.write(f"note: the step summary cannot be written: {error}\n")


def table(title: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the table as Markdown."""
    cells = [list(_HEAD), ["---"] * len(_HEAD), *(_row(row) for row in rows)]
    lines = [f"| {' | '.join(line)} |" for line in cells]
    wrong = [
        f"\n<details><summary>{_text(row['variant'])}</summary>\n\n"
        f"```\n{_text_block(row['error'])}\n```\n\n</details>"
        for row in rows
        if row.get("error")
    ]
    return "\n".join([f"### {title}\n", *lines, *wrong, ""])


def _row(row: Mapping[str, Any]) -> list[str]:
    seconds = row.get("took", 0)
    ref = row.get("ref", "")
    return [
        _text(row["variant"]),
        _text(row["state"]),
        f"`{ref}`" if ref else "",
        f"{row['size'] / 1e9:.2f} GB" if row.get("size") else "",
        f"{seconds:.0f}" if seconds else "",
        _text("; ".join(compiled(it) for it in row.get("compiled", ()))),
        str(len(row["cached"])) if "cached" in row else "",
    ]


def compiled(wheel: Mapping[str, Any]) -> str:
    """Return what compiling a wheel took, with its cache hits: ``torchvision 300 s, 12 of 40``."""
    hits, asked = wheel["hits"], wheel["hits"] + wheel["misses"]
    return f"{wheel['package']} {wheel['seconds']} s, {hits} of {asked} objects from the cache"


def _text(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


def _text_block(error: Mapping[str, Any]) -> str:
    lines = [error.get("what", ""), *error.get("details", ())]
    lines += [f"{name}: {error[name]}" for name in ("why", "next", "stage") if error.get(name)]
    return "\n".join(lines).replace("```", "'''")
