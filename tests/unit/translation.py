"""What a translation of the README has in common with it, section by section."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass

FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
_TITLE = re.compile(r"<!-- (.+) -->")
_HEADING = re.compile(r"(#+) (.+)")
_CODE = re.compile(r"`([^`]+)`")
_LINK = re.compile(r"\]\(([^)]+)\)")
_PARAGRAPH = re.compile(r"(?:^.+\n?)+", re.MULTILINE)
_ITEM = re.compile(r"^(?:-|[0-9]+\.) ", re.MULTILINE)
_TABLE = re.compile(r"(?:^\|.*\n?)+", re.MULTILINE)
_CELLS = re.compile(r"(?<!\\)\|")
_NUMBER = re.compile(
    r"(?<![\w.])(\d+(?:[.,]\d+)*)(?: ?(ms|s|min|h|MB|GB|GiB|초|분|시간)(?![A-Za-z]))?"
)
_UNITS = {"초": "s", "분": "min", "시간": "h"}


@dataclass(frozen=True)
class Section:
    """A heading and what stands below it, up to the next one."""

    level: int
    title: str
    text: str

    @property
    def heading(self) -> str:
        return f"{'#' * self.level} {self.title}"


def sections(text: str) -> list[Section]:
    """Return the sections; the English title of a translated one is a comment right above it."""
    found: list[tuple[int, str, list[str]]] = []
    lines: list[str] = []
    is_code = False
    for line in text.splitlines():
        is_code ^= line.startswith("```")
        heading = None if is_code else _HEADING.fullmatch(line)
        if heading is None:
            lines.append(line)
            continue
        original = _TITLE.fullmatch(lines[-1]) if lines else None
        if original:
            lines.pop()
        lines = []
        found.append((len(heading[1]), original[1] if original else heading[2], lines))
    return [Section(level, title, "\n".join(lines)) for level, title, lines in found]


def facts(text: str) -> list[str]:
    """Return what any language says alike: code, links, figures, the shape of text and tables."""
    prose = FENCED.sub("", text)
    tables, words = _TABLE.findall(prose), _TABLE.sub("", prose)
    figures = (it for it in _numbers(words) if " " in it)
    return [
        *(f"code: {line}" for block in FENCED.findall(text) for line in block.splitlines()),
        *(f"`{it}`" for it in sorted(set(_codes(words)))),
        *(f"link: {it}" for it in sorted(_LINK.findall(prose))),
        *(f"figure: {it}" for it in sorted(figures)),
        f"paragraphs: {len(_PARAGRAPH.findall(words))}",
        f"items of lists: {len(_ITEM.findall(words))}",
        *(
            f"row of table {place}: {_row(row)}"
            for place, table in enumerate(tables, 1)
            for row in table.splitlines()
        ),
    ]


def _row(row: str) -> str:
    cells = _CELLS.split(row.strip())[1:-1]
    return "; ".join(
        ", ".join([*(f"`{it}`" for it in sorted(_codes(cell))), *sorted(_numbers(cell))]) or "…"
        for cell in cells
    )


def _codes(text: str) -> list[str]:
    return [" ".join(it.split()) for it in _CODE.findall(text)]


def _numbers(text: str) -> list[str]:
    found = _NUMBER.findall(_CODE.sub("", text))
    return [f"{number} {_UNITS.get(unit, unit)}" if unit else number for number, unit in found]


def drift(english: Sequence[str], korean: Sequence[str]) -> list[str]:
    """Return each line that only one of the two has, behind the name of its file."""
    files = {"- ": "only README.md", "+ ": "only README.ko.md"}
    lines = difflib.ndiff(english, korean)
    return [f"{files[line[:2]]}: {line[2:]}" for line in lines if line[:2] in files]
