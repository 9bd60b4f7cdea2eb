"""The step summary of GitHub Actions: a Markdown file that a job appends to."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

FILE: Final = "GITHUB_STEP_SUMMARY"
"""The variable that names the file (GitHub, "Workflow commands", "Adding a job summary")."""

_HEAD: Final = (
    "Variant", "State", "Reference", "Tags", "Size", "Seconds", "Compiled", "Cached stages",
)  # fmt: skip
_TAGGED: Final = re.compile(r".+:([\w.-]+)@.+")
_KINDS: Final = {"c++": "C++", "cuda": "CUDA"}
"""How people write the kinds of compiled objects."""


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
        "<br>".join(f"`{tag}`" for tag in _tags(ref, row.get("key", ""))),
        f"{row['size'] / 1e9:.2f} GB" if row.get("size") else "",
        f"{seconds:.0f}" if seconds else "",
        _text("; ".join(compiled(it) for it in row.get("compiled", ()))),
        str(len(row["cached"])) if "cached" in row else "",
    ]


def _tags(ref: str, key: str) -> list[str]:
    """Return the variant's tag and the key's, which every image has; a file has no tags."""
    tagged = _TAGGED.fullmatch(ref)
    return [tagged[1], f"key-{key}"] if tagged else []


def compiled(wheel: Mapping[str, Any]) -> str:
    """Return what compiling a wheel took, with the hits of the compiler cache by kind.

    As ``torchvision 300 s, from the cache C++ 12 of 33 and CUDA 0 of 7``: few of CUDA's are hours,
    and would hide in a sum.
    """
    found = [
        f"{_KINDS.get(kind, kind)} {hits} of {hits + misses}"
        for kind, count in wheel["cache"].items()
        for hits, misses in [(count.get("hits", 0), count.get("misses", 0))]
    ]
    cache = f", from the cache {' and '.join(found)}" if found else ""
    return f"{wheel['package']} {wheel['seconds']} s{cache}"


def _text(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


def _text_block(error: Mapping[str, Any]) -> str:
    lines = [error.get("what", ""), *error.get("details", ())]
    lines += [f"{name}: {error[name]}" for name in ("why", "next", "stage") if error.get(name)]
    return "\n".join(lines).replace("```", "'''")
