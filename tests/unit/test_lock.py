"""The lock: its one form, what a build is held to, and each way in which the world has moved."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline import lock as locks
from pipeline.errors import ConfigError, EngineError, Problem
from pipeline.lock import Asked, Image, Lock, LockError
from pipeline.relock import relocked
from pipeline.settings import load
from pipeline.spec import ImageSpec, Package
from pipeline.stages import locked
from tests.unit.running import run
from tests.unit.specs import spec, spec_in

NUMPY = Package(name="numpy", version="2.5.5", file="numpy-2.5.5-cp313.whl", sha256="a" * 64)
OURS = Package(name="ours", version="1.0", file="./ours-1.0-py3-none-any.whl", sha256="b" * 64)
DIGEST = "sha256:" + "c" * 64
COMPILED = {
    "build_mode": "include", "pytorch_version_tag": "v2.6.0", "cuda_version": "12.4", "cca": "8.6",
    "magma_source": "archive", "vision_source": "git",
}  # fmt: skip
TORCH = "https://github.com/pytorch/pytorch.git"
VISION = "https://github.com/pytorch/vision.git"


def lock_of(made: ImageSpec, **other: object) -> Lock:
    """Return a lock that a spec is held to, with some parts otherwise."""
    image = Image(
        inputs=locks.inputs(made),
        torch=locks.by_name([NUMPY] if made.torch else []),
        pip=locks.by_name([OURS]),
        apt={"less": "668-1", "libc6": "2.41-12"},
    )
    content = {
        "engine": locks.engine(),
        "prompt": locks.prompt(),
        "base": {locks.base_names(it)[0]: DIGEST for it in locks.bases(made)},
        "git": {url: {tag: "d" * 40} for url, tag in locks.tags(made)},
        "archive": {
            it.public_location: it.sha256 for it in locks.sources(made) if it.kind == "archive"
        },
        "image": {made.variant: image},
    }
    return Lock.model_validate(content | other)


def refused(made: ImageSpec, lock: Lock) -> str:
    with pytest.raises(LockError) as error:
        locks.held(made, lock)
    assert error.value.exit_code == 2
    return str(error.value)


# The file


def test_a_lock_reads_back_as_it_was_written(tmp_path: Path) -> None:
    lock = lock_of(spec(**COMPILED))
    file = tmp_path / "cresset.lock"
    locks.write(lock, file)
    assert locks.read(file) == lock
    assert [it.name for it in tmp_path.iterdir()] == ["cresset.lock"]


def test_the_same_content_has_one_text_whatever_its_order() -> None:
    one = Lock(base={"b": "2", "a": "1"}, git={"u": {"y": "2", "x": "1"}})
    other = Lock(base={"a": "1", "b": "2"}, git={"u": {"x": "1", "y": "2"}})
    assert locks.text(one) == locks.text(other)
    assert locks.text(one).index('a = "1"') < locks.text(one).index('b = "2"')


def test_a_package_is_one_line() -> None:
    line = f'numpy = {{ version = "2.5.5", file = "numpy-2.5.5-cp313.whl", sha256 = "{"a" * 64}" }}'
    assert line in locks.text(lock_of(spec())).splitlines()


@pytest.mark.parametrize(
    "name", ["debian:trixie-slim", 'quo"te', "back\\slash", "tab\there", "del\x7f", "ü"]
)
def test_any_name_can_be_in_it(tmp_path: Path, name: str) -> None:
    file = tmp_path / "cresset.lock"
    locks.write(Lock(base={name: name}), file)
    assert locks.read(file).base == {name: name}


@pytest.mark.parametrize(
    "text", ["<<<<<<< ours\n", "format = 2\n", 'base = "x"\n', "unknown = 1\n", "format = 1\nx"]
)
def test_a_file_that_is_no_lock_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "cresset.lock"
    file.write_text(text)
    with pytest.raises(ConfigError, match="not a lock of Cresset"):
        locks.read(file)


def test_without_a_file_the_lock_is_empty(tmp_path: Path) -> None:
    assert locks.read(tmp_path / "none") == Lock()


def test_a_lock_that_cannot_be_written_leaves_nothing_behind(tmp_path: Path) -> None:
    folder = tmp_path / "cresset.lock"
    folder.mkdir()
    with pytest.raises(ConfigError, match="cannot be written"):
        locks.write(Lock(), folder)
    assert [it.name for it in tmp_path.iterdir()] == ["cresset.lock"]


# What moves


def test_moves_are_told_by_entry_old_and_new() -> None:
    made = spec("simple")
    old = lock_of(made)
    image = old.image[made.variant].model_copy(
        update={"apt": {"less": "670-1", "zsh": "5.9"}, "pip": locks.by_name([])}
    )
    new = lock_of(made, image={made.variant: image}, base={made.base.image: "sha256:0"})
    assert list(map(str, locks.moves(old, new))) == [
        f"base debian:trixie-slim: {DIGEST} → sha256:0",
        f"{made.variant} apt less: 668-1 → 670-1",
        f"{made.variant} apt libc6: 2.41-12 → gone",
        f"{made.variant} apt zsh: new, 5.9",
        f"{made.variant} pip ours: 1.0 (./ours-1.0-py3-none-any.whl {'b' * 12}) → gone",
    ]
    assert locks.moves(old, old) == []


# What a build is held to


def test_an_unlocked_key_stays_and_a_locked_one_follows_all_that_is_locked() -> None:
    made = spec()
    held = locks.held(made, lock_of(made))
    assert held.lock is not None
    keys = {made.key, held.key}
    for part in (
        {"bases": (("debian:trixie-slim", "sha256:0"),)},
        {"torch": ()},
        {"pip": ()},
        {"apt": ()},
    ):
        keys.add(held.model_copy(update={"lock": held.lock.model_copy(update=part)}).key)
    assert len(keys) == 6
    assert held.variant == made.variant


def test_the_build_gets_what_the_lock_has() -> None:
    made = spec()
    lock = locks.held(made, lock_of(made)).lock
    assert lock is not None
    assert (lock.torch, lock.pip) == ((NUMPY,), (OURS,))
    assert dict(lock.apt) == {"less": "668-1", "libc6": "2.41-12"}
    assert lock.digest("debian:trixie-slim") == DIGEST


def test_tags_become_the_commits_of_the_lock_in_every_wheel() -> None:
    made = spec(**COMPILED)
    lock = lock_of(made, git={TORCH: {"v2.6.0": "1" * 40}, VISION: {"v0.21.0": "2" * 40}})
    torch, vision = locks.held(made, lock).compiled
    assert (torch.source.ref, vision.source.ref) == ("1" * 40, "2" * 40)
    assert vision.torch_key == torch.key
    assert torch.key != made.compiled[0].key


@pytest.mark.parametrize(
    ("other", "says"),
    [
        ({"engine": "0.1.0"}, ["engine=", "allowed: 0.1.0"]),
        ({"prompt": "pure-prompt-1"}, ["prompt=", "allowed: pure-prompt-1"]),
        ({"base": {}}, ["base debian:trixie-slim=", "cresset.lock does not have it"]),
        ({"git": {}}, [f"git {TORCH} v2.6.0=", f"git {VISION} v0.21.0="]),
        ({"archive": {}}, ["archive https://icl.utk.edu", "does not have it"]),
        ({"image": {}}, ["py313-torch2.6.0-cu124-sm86-trixie=", "does not have it"]),
    ],
)
def test_what_the_lock_lacks_or_has_otherwise_is_refused(
    other: dict[str, object], says: list[str]
) -> None:
    made = spec(**COMPILED)
    said = refused(made, lock_of(made, **other))
    assert [it for it in says if it not in said] == []
    assert "next: " in said


def test_another_hash_of_a_tarball_is_refused() -> None:
    made = spec(**COMPILED)
    (url,) = (it.public_location for it in locks.sources(made) if it.kind == "archive")
    said = refused(made, lock_of(made, archive={url: "0" * 64}))
    assert f"archive {url}" in said
    assert f"allowed: {'0' * 64}" in said


@pytest.mark.parametrize("change", [{"mkl_mode": "exclude"}, {"python_version": "3.12"}])
def test_a_lock_of_other_settings_is_refused(change: dict[str, str]) -> None:
    made = spec()
    image = lock_of(made).image[made.variant]
    other = spec(**change)
    said = refused(other, lock_of(other, image={other.variant: image}))
    assert "other versions or requirements" in said


def test_a_lock_of_other_requirements_is_refused(checkout: Path) -> None:
    made = spec_in(checkout / "reqs")
    lock = lock_of(made)
    (checkout / "reqs/pip-train.requirements.txt").write_text("einops\nrich\n")
    assert "other versions or requirements" in refused(spec_in(checkout / "reqs"), lock)


def test_wheels_are_held_to_bases_and_sources_alone() -> None:
    made = spec(**COMPILED)
    held = locks.held(made, lock_of(made, image={}), image=False)
    assert held.lock is not None
    assert held.lock.apt == ()
    assert held.compiled[0].source.ref == "d" * 40


@pytest.mark.parametrize("target", ["devel", "ngc"])
def test_targets_that_no_lock_holds_are_refused(target: str) -> None:
    made = spec(target, **(COMPILED if target == "devel" else {}))
    assert f"target='{target}'" in refused(made, Lock())


# What has moved


def drift(made: ImageSpec, lock: Lock, digest: str | Problem, commit: str | Problem) -> list[str]:
    moved, unasked = locks.drift(
        made, lock, locks.tags(made), digest=lambda _: digest, commit=lambda *_: commit
    )
    return [*map(str, moved), *unasked]


def test_nothing_has_moved_where_all_is_as_it_is_locked() -> None:
    made = spec(**COMPILED)
    assert drift(made, lock_of(made), DIGEST, "d" * 40) == []


def test_a_base_and_a_tag_that_moved_are_told_with_both_values_and_the_next_step() -> None:
    made = spec(**COMPILED)
    base, *tags = drift(made, lock_of(made), "sha256:0", "0" * 40)
    assert base.startswith("base debian:trixie-slim='sha256:0': the tag has moved")
    assert f"allowed: {DIGEST}" in base
    assert "lock --update" in base
    assert [re.split("=", it)[0] for it in tags] == [f"git {TORCH} v2.6.0", f"git {VISION} v0.21.0"]


def test_what_cannot_be_asked_is_said_and_refuses_nothing() -> None:
    made = spec(**COMPILED)
    away = Problem("", "", "no route to host")
    moved, unasked = locks.drift(
        made, lock_of(made), locks.tags(made), digest=lambda _: away, commit=lambda *_: away
    )
    assert moved == []
    assert len(unasked) == 3
    assert all("no route to host" in it for it in unasked)


def test_a_bootstrapped_base_is_held_to_its_archive() -> None:
    base = spec("simple").base
    name, digest = locks.base_entry(base, f"bootstrap debian-trixie-0.oci.tar@{DIGEST}")
    assert (name, digest) == ("bootstrap debian trixie", DIGEST)
    locks.check_base(base, {name: digest}, DIGEST)
    locks.check_base(base, {}, "sha256:0")
    with pytest.raises(LockError, match="bootstrap debian trixie"):
        locks.check_base(base, {name: digest}, "sha256:0")


def test_a_pulled_base_is_known_by_its_reference() -> None:
    base = spec("simple").base
    origin = f"image docker.io/library/debian:trixie-slim@{DIGEST}"
    assert locks.base_entry(base, origin) == ("debian:trixie-slim", DIGEST)
    assert locks.pinned(base.image, DIGEST) == f"debian:trixie-slim@{DIGEST}"
    assert locks.pinned(f"x@{DIGEST}", DIGEST) == f"x@{DIGEST}"


def test_another_file_of_the_same_version_and_a_missing_one_are_told() -> None:
    made = spec()
    lock = locks.held(made, lock_of(made)).lock
    assert lock is not None
    other = NUMPY.model_copy(update={"sha256": "0" * 64})
    assert locks.packages_drift("v", lock, [NUMPY]) == [], "a file of reqs/ is on no index"
    (moved,) = locks.packages_drift("v", lock, [other])
    assert (moved.field, "0" * 64 in moved.value) == ("v torch numpy", True)
    assert "a" * 64 in moved.allowed
    (gone,) = locks.packages_drift("v", lock, [])
    assert "does not have it" in gone.why


def test_other_versions_of_apt_are_told_each_by_its_name() -> None:
    made = spec()
    lock = locks.held(made, lock_of(made)).lock
    assert lock is not None
    assert locks.apt_drift(lock, {"less": "668-1", "libc6": "2.41-12"}) == []
    told = locks.apt_drift(lock, {"less": "670-1", "zsh": "5.9"})
    assert [(it.field, it.allowed, it.value) for it in told] == [
        ("apt less", "668-1", "670-1"),
        ("apt libc6", "2.41-12", "not there"),
        ("apt zsh", "not there", "5.9"),
    ]
    assert all("DEB_NEW" in it.next_step for it in told)


def test_what_apt_would_take_is_read_by_package() -> None:
    # As apt-cache policy of Debian 13 prints it; it says nothing of what it does not know.
    printed = """\
libc6:
  Installed: 2.41-12
  Candidate: 2.41-12
  Version table:
 *** 2.41-12 1001
        100 /var/lib/dpkg/status
less:
  Installed: (none)
  Candidate: 668-1
  Version table:
     668-1 500
        500 http://deb.debian.org/debian trixie/main amd64 Packages
libfoo:
  Installed: (none)
  Candidate: (none)
  Version table:
"""
    assert locked.read_candidates(printed) == {"libc6": "2.41-12", "less": "668-1"}


def test_another_engine_is_told() -> None:
    assert list(locks.engine_drift(f"v{locks.engine()}")) == []
    (told,) = locks.engine_drift("v0.1.0")
    assert told.value == "v0.1.0"


# What an index has


def wheel(name: str, sha256: str) -> str:
    return f'{{ url = "https://x.example/a%2Bb/{name}", hashes = {{ sha256 = "{sha256}" }} }}'


def pylock(*packages: str) -> str:
    return 'lock-version = "1.0"\n' + "".join(f"[[packages]]\n{it}\n" for it in packages)


def listed(*packages: str) -> list[Package]:
    return locks.packages(pylock(*packages), "3.13", (2, 41), "../mnt/reqs")


def test_the_wheel_that_is_made_closest_for_the_image_is_taken() -> None:
    plain, own, old = "f-1-py3-none-any.whl", "f-1-cp313-cp313-manylinux_2_28_x86_64.whl", (
        "f-1-cp313-cp313-manylinux2014_x86_64.whl"
    )  # fmt: skip
    names = ", ".join(wheel(name, str(at) * 64) for at, name in enumerate((plain, old, own)))
    (found,) = listed(f'name = "f"\nversion = "1"\nwheels = [{names}]')
    assert (found.file, found.sha256) == (own, "2" * 64)


def test_a_local_file_is_named_as_the_requirements_name_it() -> None:
    archive = '{ path = "../mnt/reqs/d/o-1-py3-none-any.whl", hashes = { sha256 = "0" } }'
    (found,) = listed(f'name = "o"\nversion = "1"\narchive = {archive}')
    assert found.file == "./d/o-1-py3-none-any.whl"


def test_what_has_no_wheel_is_held_to_its_source() -> None:
    (found,) = listed(f'name = "s"\nversion = "1"\nsdist = {wheel("s-1%2B2.tar.gz", "0")}')
    assert found.file == "s-1+2.tar.gz"


def test_a_repository_cannot_be_locked() -> None:
    vcs = 'vcs = { type = "git", url = "https://x.example/y.git", commit-id = "0" }'
    with pytest.raises(ConfigError, match="has no hash"):
        listed(f'name = "g"\n{vcs}')


def test_nothing_listed_is_no_package() -> None:
    assert locks.packages("", "3.13", (2, 41), "") == []


# The verbs


def test_lock_asks_no_engine_where_nothing_is_missing() -> None:
    made = spec(**COMPILED)
    lock = lock_of(made)
    settings = load(COMPILED | {"wheel_store": "off"}, environ={}).settings

    def commit(*_: str) -> str:
        raise AssertionError("nobody is to be asked")

    assert relocked(Asked(made, settings, {}), lock, commit, update=False).lock == lock


def test_plan_is_held_to_the_lock_of_the_checkout(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = spec_in(checkout / "reqs", "simple")
    locks.write(lock_of(made))
    monkeypatch.setattr("pipeline.publish.digest", lambda _: DIGEST)
    held = run("plan", "simple", "--locked")
    assert held.code == 0, held.err
    assert f"key      {locks.held(made, lock_of(made)).key}" in held.out
    assert made.key in run("plan", "simple").out

    monkeypatch.setattr("pipeline.publish.digest", lambda _: "sha256:0")
    moved = run("plan", "simple", "--locked")
    assert (moved.code, moved.out) == (2, "")
    assert "base debian:trixie-slim" in moved.err
    assert run("plan", "simple", "--frozen").out == held.out


def test_a_branch_is_that_of_the_lock(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    branch = COMPILED | {"torch_ref": "main", "magma_source": "off"}
    made = spec_in(checkout / "reqs", "", lambda *_: "1" * 40, **branch)
    refs = {TORCH: {"main": "1" * 40}, VISION: {"v0.21.0": "2" * 40}}
    locks.write(lock_of(made, git=refs))
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in branch.items()]
    monkeypatch.setattr("pipeline.publish.digest", lambda _: DIGEST)
    monkeypatch.setattr(
        "pipeline.host.repository.commit", lambda url, *_: ("3" if url == TORCH else "2") * 40
    )
    moved = run("plan", *flags, "--locked")
    assert moved.code == 2
    assert f"git {TORCH} main='{'3' * 40}'" in moved.err
    assert f"allowed: {'1' * 40}" in moved.err
    frozen = run("plan", *flags, "--frozen")
    assert frozen.code == 0, frozen.err
    assert "at " + "1" * 40 in frozen.out


def test_locked_and_frozen_are_one_or_the_other(checkout: Path) -> None:
    assert checkout.is_dir()
    assert run("plan", "simple", "--locked", "--frozen").code == 2


def test_without_a_lock_a_locked_build_is_refused(checkout: Path) -> None:
    refusal = run("build", "simple", "--locked")
    assert refusal.code == 2
    assert "python -m pipeline lock" in refusal.err
    assert not (checkout / "cresset.lock").exists()


# Wheels that are not there, and engines that go away


FLAGS = [f"--{name.replace('_', '-')}={value}" for name, value in COMPILED.items()]
VARIANT = "py313-torch2.6.0-cu124-sm86-trixie"


@pytest.fixture
def newer(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stand in a checkout, with an engine that finds a newer base, and no wheel anywhere."""

    def started(_work: object, made: ImageSpec, *_: object) -> tuple[dict[str, str], None]:
        return {locks.base_names(it)[0]: "sha256:newer" for it in locks.bases(made)}, None

    monkeypatch.setattr("pipeline.relock.started", started)
    monkeypatch.setattr("pipeline.host.repository.commit", lambda *_: "e" * 40)
    return checkout


def test_an_update_keeps_the_packages_of_an_image_whose_wheels_are_not_there(newer: Path) -> None:
    made = spec_in(newer / "reqs", **COMPILED)
    had = lock_of(made)
    locks.write(had)
    ran = run("lock", "--update", *FLAGS)
    assert ran.code == 0, ran.err
    has = locks.read()
    assert has.image == had.image
    assert set(has.base.values()) == {"sha256:newer"}
    assert locks.held(made, has).compiled[0].source.ref == "e" * 40
    assert "gone" not in ran.out
    assert f"the packages of these stay as they were: {VARIANT}; next: " in ran.err
    assert "wheels --locked" in ran.err
    assert "then `lock --update` again" in ran.err


@pytest.mark.parametrize("update", [("--update",), ()])
def test_packages_that_are_of_other_requirements_go_and_that_is_said(
    newer: Path, update: tuple[str, ...]
) -> None:
    locks.write(lock_of(spec_in(newer / "reqs", **COMPILED)))
    (newer / "reqs/pip-train.requirements.txt").write_text("einops\nrich\n")
    ran = run("lock", *update, *FLAGS)
    assert ran.code == 0, ran.err
    assert locks.read().image == {}
    said = f"these are locked without packages, and no build with --locked takes them: {VARIANT};"
    assert said in ran.err
    assert "then `lock` again" in ran.err


MATRIX = """
[settings]
SERVICE = "simple"
[axes]
PYTHON_VERSION = ["3.12", "3.13", "3.14"]
"""


def engine_lost_at(at: int) -> Callable[..., Any]:
    """Return what asks an engine for an image, which is there no longer at one of them."""
    asked = []

    def started(_work: object, made: ImageSpec, *_: object) -> tuple[dict[str, str], Image]:
        asked.append(made.variant)
        if len(asked) == at:
            raise EngineError("the engine went away")
        return {made.base.image: DIGEST}, lock_of(made).image[made.variant]

    return started


def test_what_is_locked_of_a_matrix_is_written_before_the_engine_goes_away(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (checkout / "images.toml").write_text(MATRIX)
    monkeypatch.setattr("pipeline.relock.started", engine_lost_at(3))
    lost = run("lock", "--matrix")
    assert (lost.code, lost.out) == (4, "")
    there = ["simple-py312-trixie", "simple-py313-trixie"]
    assert sorted(locks.read().image) == there
    assert "cresset.lock has simple-py312-trixie now, 1 of 3" in lost.err
    assert "cresset.lock has simple-py313-trixie now, 2 of 3" in lost.err

    monkeypatch.setattr("pipeline.relock.started", engine_lost_at(2))
    again = run("lock", "--matrix")
    assert again.code == 0, again.err
    assert sorted(locks.read().image) == [*there, "simple-py314-trixie"]
    assert "py312" not in again.out + again.err


@pytest.mark.parametrize("option", ["--update", "--dry-run"])
def test_an_update_is_written_whole_or_not_at_all(
    checkout: Path, option: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (checkout / "images.toml").write_text(MATRIX)
    monkeypatch.setattr("pipeline.relock.started", engine_lost_at(3))
    lost = run("lock", "--matrix", option)
    assert lost.code == 4
    assert not (checkout / "cresset.lock").exists()
    assert "cresset.lock has" not in lost.err
