"""The compiler cache's folder: its name, its bounds, and what is said where there can be none."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from unittest import mock

import pytest

from pipeline import caches
from pipeline.host import objects

HOUR = 3600


def put(folder: Path, name: str, size: int, *, hours_ago: float) -> Path:
    """Write a file that was last used some hours ago."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x" * size)
    used = time.time() - hours_ago * HOUR
    os.utime(path, (used, used))
    return path


def name(number: int) -> str:
    """Return the name of an object."""
    return f"a{number}/{number:031d}"


def left(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_the_least_recently_used_go_until_the_rest_fits(tmp_path: Path) -> None:
    for number in range(5):
        put(tmp_path, name(number), 100, hours_ago=10 - number)
    assert objects.trim(tmp_path, 250) == 300
    assert left(tmp_path) == {name(3), name(4)}


def test_nothing_goes_from_a_folder_that_fits(tmp_path: Path) -> None:
    path = put(tmp_path, name(1), 100, hours_ago=1000)
    os.utime(path, (0, 0))
    assert objects.trim(tmp_path, 100) == 0
    assert left(tmp_path) == {name(1)}


def test_what_was_used_within_the_hour_stays(tmp_path: Path) -> None:
    put(tmp_path, name(1), 100, hours_ago=0.9)
    put(tmp_path, name(2), 100, hours_ago=1.1)
    assert objects.trim(tmp_path, 0) == 100
    assert left(tmp_path) == {name(1)}


def test_what_was_never_finished_goes_though_there_is_room(tmp_path: Path) -> None:
    put(tmp_path, f"{name(1)}#1", 100, hours_ago=2)
    put(tmp_path, f"{name(2)}#12", 100, hours_ago=0.5)
    put(tmp_path, name(3), 100, hours_ago=3)
    assert objects.trim(tmp_path, 1000) == 100
    assert left(tmp_path) == {f"{name(2)}#12", name(3)}


def test_without_a_bound_only_what_was_never_finished_goes(tmp_path: Path) -> None:
    put(tmp_path, f"{name(1)}#1", 100, hours_ago=2)
    put(tmp_path, name(2), 100, hours_ago=1000)
    assert objects.trim(tmp_path, None) == 100
    assert left(tmp_path) == {name(2)}


@pytest.mark.parametrize("is_named", [False, True], ids=["default", "named"])
def test_only_the_default_folder_is_kept_within_bounds(
    is_named: bool, checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = checkout / "team" if is_named else checkout / "cache" / "cresset" / "ccache"
    put(folder, name(1), 100, hours_ago=10)
    put(folder, name(2), 100, hours_ago=5)
    # The engine's side of it; what is served here is real.
    fake_dag = mock.MagicMock()
    service = fake_dag.host.return_value.service.return_value.with_hostname.return_value
    service.start = mock.AsyncMock(return_value=service)
    service.stop = mock.AsyncMock(return_value=service)
    monkeypatch.setattr(caches, "dag", fake_dag)
    monkeypatch.setattr(caches, "_FOLDER_BYTES", 100)

    async def build() -> None:
        async with caches.objects(str(folder) if is_named else "", pytest.fail):
            pass

    asyncio.run(build())
    assert left(folder) == ({name(1), name(2)} if is_named else {name(2)})


def test_only_objects_go(tmp_path: Path) -> None:
    mine = {
        "notes.txt",
        "ab/thesis.tex",
        f".ssh/{31 * '0'}",
        f"{name(1)}.bak",
        f"a/b/c/d/{name(2)}",
    }
    for file in mine:
        put(tmp_path, file, 100, hours_ago=1000)
    other = put(tmp_path.parent, "elsewhere/" + 31 * "1", 100, hours_ago=1000).parent
    (tmp_path / "ab" / "link").symlink_to(other, target_is_directory=True)
    assert objects.trim(tmp_path, 0) == 0
    assert left(tmp_path) == mine
    assert left(other) == {31 * "1"}


def test_a_folder_that_is_not_there_has_nothing_to_trim(tmp_path: Path) -> None:
    assert objects.trim(tmp_path / "none", 0) == 0


@pytest.mark.parametrize(
    ("url", "folder"),
    [
        ("/var/cache/objects", Path("/var/cache/objects")),
        ("file:///var/my%20cache", Path("/var/my cache")),
        ("objects", Path.cwd() / "objects"),
        ("~/objects", Path.home() / "objects"),
        ("s3://bucket/objects", None),
        ("redis://host", None),
    ],
)
def test_what_a_folder_is(url: str, folder: Path | None) -> None:
    assert objects.folder_of(url) == folder


def test_a_missing_folder_is_made(tmp_path: Path) -> None:
    with objects.serving(str(tmp_path / "not/yet")) as served:
        assert served.broken == ""
        assert served.port > 0
    assert (tmp_path / "not/yet").is_dir()


def test_a_file_where_the_folder_should_be_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with objects.serving(str(tmp_path / "file")) as served:
        assert served.broken == f"[Errno 17] File exists: '{tmp_path}/file'"


def test_a_url_of_no_store_is_told_without_its_login() -> None:
    with objects.serving("ftp://somebody:secret@host/objects?token=secret") as served:
        assert served.broken == 'URL: Unable to recognise URL "ftp://host/objects"'
