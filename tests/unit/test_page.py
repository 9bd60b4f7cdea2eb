"""The page of a repository: complete in itself, escaped, and right without a script."""

from __future__ import annotations

import re
from datetime import date
from html.parser import HTMLParser
from pathlib import Path

import pytest

from pipeline.errors import CressetError
from pipeline.listing import Image
from pipeline.page import page, write

DIGEST = "sha256:" + "0123456789abcdef" * 4
REPOSITORY = "registry.example.com/team/cresset"


def image(tag: str = "py313-torch2.6.0-cu124-trixie", **other: object) -> Image:
    """Return an image of a repository, with some parts otherwise."""
    labels = {
        "org.opencontainers.image.version": tag,
        "dev.cresset.cuda": "12.4",
        "dev.cresset.torch": "2.6.0",
        "dev.cresset.python": "3.13",
        "dev.cresset.driver": "525.60.13",
        "dev.cresset.arches": "sm_86 sm_90 compute_90",
    }
    content = {
        "repository": REPOSITORY,
        "digest": DIGEST,
        "tags": (tag, f"{tag}-20261128"),
        "size": 3_290_000_000,
        "labels": labels,
        "day": date(2026, 11, 28),
        "sbom": "https://registry.example.com/v2/sbom",
    }
    return Image(**(content | other))  # type: ignore[arg-type]


class Read(HTMLParser):
    """What a browser makes of a page: its cells, by row, and all that it would fetch."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.cells: dict[str, str] = {}
        self.fetched: list[str] = []
        self.links: list[str] = []
        self.text = ""
        self.cell = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag not in {"meta", "input", "link", "img"}:
            self.open.append(tag)
        if tag in {"link", "img", "iframe"} or (tag == "script" and "src" in given):
            self.fetched.append(tag)
        if tag == "a":
            self.links.append(given["href"] or "")
        if tag in {"td", "th"}:
            self.cell = given.get("data-name") or (
                "Tag" if given.get("scope") == "row" else "Pull" if tag == "td" else ""
            )

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        self.cell = "" if tag in {"td", "th"} else self.cell

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.cell and "style" not in self.open:
            self.cells[self.cell] = (self.cells.get(self.cell, "") + " " + data.strip()).strip()


def test_it_tells_of_an_image_all_that_one_chooses_by() -> None:
    cells = Read(page(REPOSITORY, [image()])).cells
    tag = "py313-torch2.6.0-cu124-trixie"
    assert cells == {
        "Tag": f"{tag} {tag}-20261128",
        "CUDA": "12.4",
        "GPUs": "8.6 9.0+PTX",
        "torch": "2.6.0",
        "Python": "3.13",
        "Driver": "525.60.13",
        "Size": "3.29 GB",
        "Date": "2026-11-28",
        "SBOM": "JSON",
        "Digest": "0123456789ab",
        "Pull": f"Pull docker pull {REPOSITORY}:{tag}@{DIGEST}",
    }


def test_it_needs_nothing_from_elsewhere() -> None:
    text = page(REPOSITORY, [image()])
    read = Read(text)
    assert read.open == []
    assert read.fetched == []
    assert read.links == ["https://registry.example.com/v2/sbom"]
    assert not re.search(r"@import|url\(", text)


def test_what_an_image_does_not_tell_is_a_dash() -> None:
    labels = {"dev.cresset.python": "3.13"}
    cells = Read(page(REPOSITORY, [image("simple", labels=labels, day=None, sbom="")])).cells
    assert {cells[it] for it in ("CUDA", "GPUs", "torch", "Driver", "Date", "SBOM")} == {
        "\N{EN DASH}"
    }


def test_labels_of_strangers_are_text_and_nothing_else() -> None:
    evil = '"><script>alert(1)</script><b x="'
    labels = {"dev.cresset.torch": evil, "dev.cresset.driver": evil}
    text = page(evil, [image(evil, labels=labels, sbom=evil)])
    assert text.count("<script>") == 1
    assert "alert(1)</script><b" not in text
    assert evil in Read(text).text


def test_versions_sort_as_versions() -> None:
    text = page(REPOSITORY, [image(labels={"dev.cresset.torch": it}) for it in ("2.10.0", "2.9.1")])
    keys = re.findall(r'data-name="torch" data-sort="([^"]*)"', text)
    assert sorted(keys) == keys[::-1]


def test_an_empty_repository_has_a_page_too() -> None:
    assert "0 images" in Read(page(REPOSITORY, [])).text


def test_it_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    file = tmp_path / "site" / "tags.html"
    write(file, "<p>")
    assert file.read_text() == "<p>"
    with pytest.raises(CressetError, match="cannot be written"):
        write(file / "below", "<p>")
    assert [it.name for it in file.parent.iterdir()] == ["tags.html"]
