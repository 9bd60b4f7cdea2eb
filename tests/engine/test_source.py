"""Sources from everywhere they come from, and all that gets into their way."""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import tarfile
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import dagger
import pytest

from pipeline.engine import select, session, telemetry
from pipeline.errors import BuildError, ConfigError
from pipeline.host import worktree
from pipeline.host.bootstrap import base_archive
from pipeline.spec import BaseSpec, SourceSpec
from pipeline.stages.base import base_from_archive
from pipeline.stages.inputs import Access
from pipeline.stages.source import ABOUT, git_config, source, source_tools
from tests.git_server import GitServer, git, git_server
from tests.services import Answer, Asked, free_port, own_address, serving

pytestmark = pytest.mark.engine

BASE = BaseSpec(
    distribution="debian",
    version="13",
    codename="trixie",
    image="debian:trixie-slim",
    source="bootstrap",
    can_bootstrap=True,
)
OUTPUT = Path("output")
"""What the engine and its containers said, in the test's own folder."""
TRUSTING = Access(trusted_host=own_address())


@dataclass(frozen=True)
class Fetched:
    """A source that has arrived."""

    digest: str
    files: list[str]
    about: dict[str, Any]
    contents: dict[str, str]


async def arrived(directory: dagger.Directory, *read: str) -> Fetched:
    """Return what is in a source, and in some of its files."""
    directory = await directory.sync()
    return Fetched(
        await directory.digest(),
        sorted(name for name in await directory.glob("**") if not name.endswith("/")),
        json.loads(await directory.file(ABOUT).contents()),
        {name: await directory.file(name).contents() for name in read},
    )


def in_engine(work: Callable[[dagger.Container], Awaitable[Any]]) -> Any:
    """Return what `work` returns of a container that fetches, in a session of its own."""
    choice = select.choose("local", print)
    archive = base_archive(BASE, print)

    # The SDK leaves variables behind by which the next receiver would not know that it is wanted.
    with OUTPUT.open("a") as log, patch.dict(os.environ):

        def note(text: str) -> None:
            log.write(text)

        async def run() -> Any:
            async with session.session(choice, log):
                tools = source_tools(base_from_archive(str(archive)), BASE)
                with session.translated():
                    return await work(tools)

        with telemetry.receiver(telemetry.Watcher(output=note, ran=note)):
            return session.run(run())


def fetched(
    wanted: SourceSpec,
    *read: str,
    untracked: list[str] | None = None,
    access: Access | None = None,
) -> Fetched:
    """Return a source that arrives."""

    async def work(tools: dagger.Container) -> Fetched:
        directory = source(
            wanted, tools, BASE, access=access or TRUSTING, untracked=untracked or []
        )
        return await arrived(directory, *read)

    result: Fetched = in_engine(work)
    return result


def said_of(wanted: SourceSpec, **options: Any) -> str:
    """Return what is said of a source that does not arrive."""
    with pytest.raises(BuildError) as failed:
        fetched(wanted, **options)
    return str(failed.value)


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    monkeypatch.chdir(folder)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[GitServer]:
    with git_server(tmp_path / "served") as served:
        yield served


@dataclass(frozen=True)
class Nested:
    """A repository with a submodule, which has one too."""

    spec: SourceSpec
    commit: str
    first: str
    """An older commit, which no branch and no tag stands at."""


def nested(server: GitServer, ref: str = "v1") -> Nested:
    """Return a new repository with submodules in submodules."""
    # A folder of its own: the engine remembers what it fetched from a URL.
    name = uuid.uuid4().hex
    inner = server.commit(f"{name}/inner", {"deep/inner.txt": f"inner {name}"})
    server.commit(f"{name}/inner", {"deep/inner.txt": "newer"})
    middle = server.commit(
        f"{name}/middle", {"middle.txt": "middle"}, {"inner": ("../inner.git", inner)}
    )
    server.commit(f"{name}/middle", {"middle.txt": "newer"})
    first = server.commit(f"{name}/outer", {"outer.txt": "old"})
    commit = server.commit(
        f"{name}/outer",
        {"outer.txt": "outer", "run.sh": "#!/bin/sh\n"},
        {"third_party/middle": ("../middle.git", middle)},
        tag="v1",
    )
    server.commit(f"{name}/outer", {"outer.txt": "newer"})
    made = SourceSpec(
        kind="git",
        location=server.url(f"{name}/outer"),
        ref={"commit": commit, "first": first}.get(ref, ref),
    )
    return Nested(made, commit, first)


NESTED = [
    ABOUT, ".gitmodules", "outer.txt", "run.sh", "third_party/middle/.gitmodules",
    "third_party/middle/inner/deep/inner.txt", "third_party/middle/middle.txt",
]  # fmt: skip


# Repositories


@pytest.mark.parametrize("ref", ["v1", "commit"])
def test_a_repository_comes_with_the_submodules_of_its_submodules(
    server: GitServer, ref: str
) -> None:
    wanted = nested(server, ref)
    got = fetched(wanted.spec, "outer.txt", "third_party/middle/middle.txt")
    assert got.files == NESTED
    assert set(got.contents.values()) == {"outer", "middle"}
    assert got.about == {
        "kind": "git",
        "location": wanted.spec.location,
        "ref": wanted.spec.ref,
        "commit": wanted.commit,
    }


def test_a_server_that_serves_no_bare_commits_is_asked_for_the_whole_history(
    server: GitServer,
) -> None:
    server.knows_protocol_2 = False
    wanted = nested(server, "commit")
    assert fetched(wanted.spec).files == NESTED


def test_what_git_would_leave_out_is_an_error_that_names_it(server: GitServer) -> None:
    name = uuid.uuid4().hex
    inner = server.commit(f"{name}/inner", {"inner.txt": "inner"})
    left_out = '[submodule "parts/inner"]\n\tupdate = none\n'
    submodules = {"parts/inner": ("../inner.git", inner)}
    server.commit(f"{name}/outer", {"a": "a"}, submodules, tag="v1", gitmodules=left_out)
    wanted = SourceSpec(kind="git", location=server.url(f"{name}/outer"), ref="v1")
    assert "not there, or empty: parts/inner" in said_of(wanted)


def test_a_submodule_whose_repository_is_missing_is_named_at_once(server: GitServer) -> None:
    name = uuid.uuid4().hex
    missing = {"parts/gone": ("../gone.git", "1" * 40)}
    server.commit(f"{name}/outer", {"a": "a"}, missing, tag="v1")
    wanted = SourceSpec(kind="git", location=server.url(f"{name}/outer"), ref="v1")
    said = said_of(wanted)
    assert "parts/gone" in said
    assert "attempt" not in said
    # git itself asks once more.
    assert sum("gone.git" in path for path in server.asked) <= 2


@pytest.mark.parametrize("ref", ["v2", "main", "2" * 40])
def test_a_ref_that_does_not_exist_is_an_error_at_once(server: GitServer, ref: str) -> None:
    wanted = nested(server, ref).spec
    said = said_of(wanted)
    kind = "commit" if ref.isdigit() else "tag"
    assert f"no {kind} {ref}" in said
    assert "attempt" not in said


@pytest.mark.parametrize("fault", ["resets", "unavailable", "cuts"])
def test_what_fails_three_times_is_tried_once_more(server: GitServer, fault: str) -> None:
    wanted = nested(server)
    setattr(server, fault, 3)
    assert fetched(wanted.spec).files == NESTED
    assert getattr(server, fault) == 0


@pytest.mark.parametrize("fault", ["resets", "unavailable", "cuts"])
def test_the_original_gave_up_at_the_first_fault(
    server: GitServer, tmp_path: Path, fault: str
) -> None:
    """Known issue 4 of the original: a clone that fails once had to be begun again by hand."""
    wanted = nested(server)
    setattr(server, fault, 1)
    clone = ["git", "clone", "--quiet", "--recursive", wanted.spec.location, str(tmp_path / "its")]
    assert subprocess.run(clone, capture_output=True, check=False).returncode != 0
    assert getattr(server, fault) == 0
    setattr(server, fault, 1)
    assert fetched(wanted.spec).files == NESTED


def test_a_submodule_that_is_there_is_not_fetched_again(server: GitServer) -> None:
    name = uuid.uuid4().hex
    submodules = {
        part: (f"../{part}.git", server.commit(f"{name}/{part}", {f"{part}.txt": part}))
        for part in ("good", "late")
    }
    server.commit(f"{name}/outer", {"a": "a"}, submodules, tag="v1")
    server.unavailable, server.failing = 5, "late.git"
    got = fetched(SourceSpec(kind="git", location=server.url(f"{name}/outer"), ref="v1"))
    assert {"good/good.txt", "late/late.txt"} <= set(got.files)
    assert server.unavailable == 0
    # What it has, and its pack.
    assert len([path for path in server.asked if "good.git/git-upload-pack" in path]) == 2


def test_a_server_that_comes_up_late_is_waited_for(tmp_path: Path) -> None:
    port = free_port()
    with git_server(tmp_path / "served", port=port, silent_for=8) as server:
        begun = time.monotonic()
        assert fetched(nested(server).spec).files == NESTED
        assert time.monotonic() - begun > 8


def test_a_mirror_is_the_same_source_and_its_password_is_nowhere(server: GitServer) -> None:
    server.login = "somebody:s3cret"
    wanted = nested(server).spec
    upstream = "https://git.invalid/"
    named = SourceSpec(
        kind="git", location=wanted.location.replace(server.root, upstream), ref="v1"
    )
    with_login = server.root.replace("//", f"//{server.login}@")
    access = Access((upstream, with_login), own_address())
    first = fetched(named, access=access)
    assert first.files == NESTED
    assert first.about["location"] == named.location
    asked = len(server.asked)
    assert asked > 3
    # Another mirror, and none.
    other = Access((upstream, "https://mirror.invalid/"))
    assert fetched(named, access=other) == first
    assert fetched(named) == first
    assert len(server.asked) == asked
    output = OUTPUT.read_text()
    assert f"{named.location} is at" in output
    assert "s3cret" not in output


def test_a_wrong_password_is_an_error_at_once_and_is_not_told(server: GitServer) -> None:
    server.login = "somebody:right"
    wanted = nested(server).spec
    location = wanted.location.replace("//", "//somebody:s3cret@")
    said = said_of(wanted.model_copy(update={"location": location}))
    assert "the server wants a login, or another than it was given" in said
    assert "attempt" not in said
    assert "s3cret" not in said + OUTPUT.read_text()
    assert len(server.asked) < 4


def test_a_password_reaches_the_submodules_of_its_host(server: GitServer) -> None:
    server.login = "somebody:s3cret"
    wanted = nested(server).spec
    location = wanted.location.replace("//", "//somebody:s3cret@")
    got = fetched(wanted.model_copy(update={"location": location}))
    assert got.files == NESTED
    assert got.about["location"] == wanted.location


@pytest.mark.parametrize("scheme", ["file", "http"])
def test_what_is_not_safe_is_not_spoken(server: GitServer, scheme: str) -> None:
    location = {"file": "file:///etc", "http": nested(server).spec.location}[scheme]
    said = said_of(SourceSpec(kind="git", location=location, ref="v1"), access=Access())
    assert f"transport '{scheme}' not allowed" in said
    assert server.asked == []


def test_git_reads_the_mirror_as_it_was_written(tmp_path: Path) -> None:
    old, new = 'https://a"b\\c/', "https://d e#;[f]/"
    (tmp_path / "config").write_text(git_config("https://x/y", Access((old, new))))
    read = git(tmp_path, "config", "--file", "config", "--null", "--list").split("\0")
    assert f"url.{new}.insteadof\n{old}" in read


# Tarballs


def tarball(folder: Path) -> Path:
    """Write a release as upstream does: one folder with everything in it."""
    path = folder / "torch-1.0.tar.gz"
    text = uuid.uuid4().hex.encode()
    with tarfile.open(path, "w:gz") as tar:
        member = tarfile.TarInfo("torch-1.0/torch/version.txt")
        member.size = len(text)
        tar.addfile(member, io.BytesIO(text))
    return path


@pytest.mark.parametrize("way", ["url", "path"])
def test_a_tarball_is_unpacked_if_its_sum_is_right(tmp_path: Path, way: str) -> None:
    path = tarball(tmp_path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()

    def answer(_: Asked) -> Answer:
        return Answer(200, path.read_bytes())

    with serving(answer, own_address()) as host:
        location = f"http://{host}/{path.name}" if way == "url" else str(path)
        wanted = SourceSpec(kind="archive", location=location, sha256=digest)
        got = fetched(wanted)
        assert got.files == [ABOUT, "torch/version.txt"]
        where = location if way == "url" else path.name
        assert got.about == {"kind": "archive", "location": where, "sha256": digest}

        path.write_bytes(tarball(tmp_path).read_bytes())
        found = hashlib.sha256(path.read_bytes()).hexdigest()
        said = said_of(wanted)
        assert f"wanted sha256 {digest}" in said
        assert f"found sha256 {found}" in said


# The distribution


def test_a_source_package_comes_from_the_distribution() -> None:
    got = fetched(SourceSpec(kind="apt", location="pytorch-vision"), "version.txt")
    assert got.about["version"].startswith("0.21.0")
    # Which of the two depends on the mirror: not every one serves the description.
    assert got.about["patched"] is ("debian/changelog" in got.files)
    assert got.contents["version.txt"].strip().startswith("0.21.0")
    assert "torchvision/__init__.py" in got.files


# Working trees


@dataclass(frozen=True)
class Tree:
    path: Path

    @property
    def spec(self) -> SourceSpec:
        _, digest = worktree.tracked(self.path)
        return SourceSpec(kind="path", location=str(self.path), sha256=digest)

    @property
    def fetched(self) -> Fetched:
        return fetched(self.spec, untracked=worktree.untracked(self.path))


@pytest.fixture
def tree(server: GitServer, tmp_path: Path) -> Tree:
    """Return a working tree with submodules, and with files that nobody committed."""
    wanted = nested(server).spec
    path = tmp_path / "tree"
    git(tmp_path, "clone", "-q", "--recurse-submodules", "-b", "v1", wanted.location, str(path))
    odd = ("ü\udcff", " spaced [x]*.txt ", "!bang", "back\\slash", "^{}")
    for name in ("secret.txt", "build/a.o", "third_party/middle/inner/.env", *odd):
        (path / name).parent.mkdir(exist_ok=True)
        (path / name).write_text("s3cret")
    return Tree(path)


def test_only_what_git_tracks_is_sent(tree: Tree) -> None:
    (tree.path / ".gitignore").write_text("*.txt\n")
    git(tree.path, "add", ".gitignore")
    (tree.path / "odd [1]*.txt").write_text("tracked")
    (tree.path / "link").symlink_to("outer.txt")
    git(tree.path, "add", "-f", "odd [1]*.txt", "link")
    got = tree.fetched
    assert got.files == sorted([*NESTED, ".gitignore", "link", "odd [1]*.txt"])
    assert got.about == {"kind": "path", "location": "tree", "sha256": tree.spec.sha256}


def test_edits_that_are_not_committed_are_sent(tree: Tree) -> None:
    before = tree.spec.sha256
    (tree.path / "outer.txt").write_text("edited")
    (tree.path / "run.sh").unlink()
    spec = tree.spec
    assert spec.sha256 != before
    got = fetched(spec, "outer.txt", untracked=worktree.untracked(tree.path))
    assert got.contents["outer.txt"] == "edited"
    assert got.files == [name for name in NESTED if name != "run.sh"]


@pytest.mark.parametrize("change", ["edited", "added"])
def test_a_tree_that_changes_while_the_build_begins_is_refused(tree: Tree, change: str) -> None:
    spec, untracked = tree.spec, worktree.untracked(tree.path)
    name = {"edited": "outer.txt", "added": "late.txt"}[change]
    (tree.path / name).write_text("while it began")
    assert "was edited while the build began" in said_of(spec, untracked=untracked)


def test_the_sum_is_of_names_contents_and_modes(tree: Tree) -> None:
    sums = [tree.spec.sha256]
    script = tree.path / "run.sh"
    script.chmod(0o755)
    sums.append(tree.spec.sha256)
    inner = tree.path / "third_party/middle/inner/deep/inner.txt"
    inner.write_text("edited")
    sums.append(tree.spec.sha256)
    script.rename(tree.path / "other.sh")
    git(tree.path, "add", "other.sh")
    sums.append(tree.spec.sha256)
    assert len(set(sums)) == 4
    (tree.path / "untracked").write_text("nobody")
    assert tree.spec.sha256 == sums[-1]


def test_more_than_can_be_left_out_is_refused_before_it_is_tried(tree: Tree) -> None:
    for number in range(15_000):
        (tree.path / f"{number}.o").touch()
    with pytest.raises(ConfigError, match="files that git does not track"):
        worktree.untracked(tree.path)
    (tree.path / "objects").mkdir()
    for number in range(15_000):
        (tree.path / f"{number}.o").rename(tree.path / f"objects/{number}.o")
    assert "objects" in worktree.untracked(tree.path)


def test_a_folder_that_is_no_whole_working_tree_is_refused(tree: Tree, tmp_path: Path) -> None:
    def why(folder: Path) -> str:
        with pytest.raises(ConfigError) as refused:
            worktree.tracked(folder, "TORCH_URL")
        return str(refused.value)

    plain = tmp_path / "plain"
    plain.mkdir()
    assert "not a git repository" in why(plain)
    assert "there is no such folder" in why(tmp_path / "none")
    assert f"TORCH_URL='{plain}'" in why(plain)
    assert "git tracks no file in it" in why(tree.path / "build")
    git(tree.path / "third_party/middle", "submodule", "deinit", "-q", "-f", "inner")
    said = why(tree.path)
    assert f"{tree.path}/third_party/middle/inner" in said
    assert "not checked out" in said
