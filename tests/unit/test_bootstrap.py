"""Making a base here: what is asked of mmdebstrap, what is kept, and what can fail."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import subprocess
from pathlib import Path
from typing import ClassVar

import pytest

from pipeline.errors import BuildError
from pipeline.host import bootstrap
from pipeline.validate import recipe
from tests.unit.running import ROOT
from tests.unit.specs import spec

BASE = spec().base


@pytest.fixture
def bases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of bases, on a machine that could make them."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(bootstrap, "_check_possible", lambda _: None)
    return tmp_path / "cresset" / "bases"


def makes(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Return a list that grows by each file system that is made."""
    made: list[Path] = []

    def make(_: object, rootfs: Path, __: object) -> None:
        rootfs.write_bytes(b"rootfs")
        made.append(rootfs)

    monkeypatch.setattr(bootstrap, "_mmdebstrap", make)
    return made


def test_a_base_is_made_once_and_older_ones_go(
    bases: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = makes(monkeypatch)
    bases.mkdir(parents=True)
    for name in ("debian-trixie", "debian-trixie-01234567", "debian-bookworm-01234567"):
        (bases / f"{name}.oci.tar").touch()
    path = bootstrap.base_archive(BASE, print)
    assert bootstrap.base_archive(BASE, print) == path
    assert len(made) == 1
    left = {it.name for it in bases.glob("*.tar")}
    assert left == {path.name, "debian-bookworm-01234567.oci.tar"}
    bootstrap.base_archive(BASE, print, refresh=True)
    assert len(made) == 2


def test_another_recipe_is_another_base(bases: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = makes(monkeypatch)
    first = bootstrap.base_archive(BASE, print)
    monkeypatch.setattr(bootstrap, "_recipe", lambda: "01234567")
    second = bootstrap.base_archive(BASE, print)
    assert len(made) == 2
    assert [*bases.glob("*.tar")] == [second] != [first]


def test_what_another_build_made_meanwhile_is_taken(
    bases: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = makes(monkeypatch)
    release = "debian-trixie"
    path = bases / f"{release}-{bootstrap._recipe()}.oci.tar"

    def other(_: object, how: int) -> None:
        if how & fcntl.LOCK_NB:
            raise BlockingIOError
        path.touch()

    monkeypatch.setattr(fcntl, "flock", other)
    said: list[str] = []
    assert bootstrap.base_archive(BASE, said.append) == path
    assert said == [f"waiting for another build to make {release}"]
    assert made == []


def test_a_full_disk_is_told_in_words(bases: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(bootstrap, "_mmdebstrap", full)
    with pytest.raises(BuildError) as caught:
        bootstrap.base_archive(BASE, print)
    assert "No space left on device" in caught.value.why
    assert str(bases) in caught.value.next_step


def test_a_cache_folder_that_is_none_is_told_in_words(
    bases: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    makes(monkeypatch)
    bases.parent.touch()
    with pytest.raises(BuildError, match="cannot be made") as caught:
        bootstrap.base_archive(BASE, print)
    assert "Not a directory" in caught.value.why


class Dead:
    """A mmdebstrap that ends before it has read its sources."""

    returncode = 25
    stdout = ("E: unknown option\n",)

    def __init__(self, command: list[str], **_: object) -> None:
        type(self).command = command
        self.stdin = self

    command: ClassVar[list[str]] = []

    def __enter__(self) -> Dead:
        return self

    def __exit__(self, *_: object) -> None: ...

    def write(self, _: str) -> None:
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))

    def close(self) -> None:
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))


@pytest.mark.usefixtures("bases")
def test_an_early_death_shows_its_own_last_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "Popen", Dead)
    monkeypatch.setattr(bootstrap, "_machine_sources", lambda _: "deb http://mirror trixie main")
    with pytest.raises(BuildError) as caught:
        bootstrap.base_archive(BASE, print)
    assert caught.value.command_exit_code == 25
    assert "unknown option" in caught.value.tail
    assert caught.value.next_step
    hook = next(it for it in Dead.command if it.startswith("--customize-hook="))
    for path in ("/etc/hostname", "/etc/resolv.conf", "/var/lib/dpkg/*-old"):
        assert f'"$1"{path}' in hook


@pytest.mark.parametrize(("userinfo", "used"), [("", True), ("me:pass@", False), ("me@", False)])
def test_a_mirror_with_a_password_does_not_get_into_the_image(
    userinfo: str, used: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = "".join(
        f"Debian|{label}|main|http://{userinfo}mirror/{label}/\n"
        for label in ("Debian", "Debian-Security")
    )
    answer = subprocess.CompletedProcess([], 0, stdout=lines)
    monkeypatch.setattr(shutil, "which", lambda _: "/usr/bin/apt-get")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: answer)
    assert ("mirror" in bootstrap._machine_sources(BASE)) is used


def test_how_a_base_is_made_is_part_of_the_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    before, read = recipe(ROOT / "reqs"), Path.read_bytes

    def changed(path: Path) -> bytes:
        return read(path) + (b"# new" if path.name == "bootstrap.py" else b"")

    monkeypatch.setattr(Path, "read_bytes", changed)
    assert recipe(ROOT / "reqs") != before
