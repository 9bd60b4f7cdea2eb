"""What of a source is in the engine's cache key, and what is not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from dagger import dag

from pipeline.spec import BaseSpec, SourceSpec
from pipeline.stages.inputs import Access
from pipeline.stages.source import git_config, source
from tests.graph.graph import everything

BASE = BaseSpec(
    distribution="debian", version="13", codename="trixie", image="debian:13", source="image",
    can_bootstrap=True,
)  # fmt: skip
OUTER = "https://git.invalid/outer.git"
PASSWORD = "hunter2"  # noqa: S105 - to look for


def graph(location: str, access: Access | None = None, kind: str = "git") -> Any:
    spec = SourceSpec.model_validate(
        {"kind": kind, "location": location, "ref": "v1", "sha256": "0" * 64}
    )
    return source(spec, dag.container().from_("tools"), BASE, access=access)


def keyed(lazy: Any) -> list[tuple[str, dict[str, Any]]]:
    """Return all that the engine finds an earlier result by: no plain text of a secret."""
    return sorted(
        (
            (field.name, {name: value for name, value in field.args.items() if plain(name, value)})
            for field in everything(lazy)
        ),
        key=repr,
    )


def plain(name: str, value: object) -> bool:
    return name != "plaintext" and not hasattr(value, "_ctx")


@pytest.mark.parametrize(
    "access",
    [
        Access(("https://git.invalid/", f"https://me:{PASSWORD}@mirror.invalid/")),
        Access(("https://git.invalid/", "http://mirror.invalid/"), "mirror.invalid"),
        Access(known_hosts="git.invalid ssh-ed25519 AAAA"),
    ],
)
def test_a_mirror_is_the_same_source(access: Access) -> None:
    assert keyed(graph(OUTER, access)) == keyed(graph(OUTER))


@pytest.mark.parametrize("kind", ["git", "archive"])
def test_a_password_in_a_url_is_a_secret_and_nothing_else(kind: str) -> None:
    with_password = graph(OUTER.replace("//", f"//me:{PASSWORD}@"), kind=kind)
    assert PASSWORD not in repr(keyed(with_password))
    if kind == "git":
        assert keyed(with_password) == keyed(graph(OUTER))


def test_the_user_of_a_repository_by_ssh_is_kept() -> None:
    for location in ("ssh://git@git.invalid/outer.git", "git@git.invalid:outer.git"):
        assert location in execs_of(graph(location))[0]


def execs_of(directory: Any) -> list[list[str]]:
    return [field.args["args"] for field in everything(directory) if field.name == "withExec"]


def test_only_a_trusted_host_is_spoken_to_without_tls() -> None:
    spoken = '[protocol "http"]\nallow = always'
    for location in ("http://localhost:80/a", "http://127.0.0.7/a", "http://[::1]/a"):
        assert spoken in git_config(location, Access())
    for location in ("http://git.invalid/a", "https://localhost/a", "http:///a"):
        assert spoken not in git_config(location, Access())
        assert spoken not in git_config(location, Access(trusted_host="other.invalid"))
    assert spoken in git_config("http://git.invalid/a", Access(trusted_host="git.invalid"))
    mirror = ("https://", "http://git.invalid/")
    assert spoken not in git_config(OUTER, Access(mirror))
    assert spoken in git_config(OUTER, Access(mirror, "git.invalid"))


def test_only_what_git_does_not_track_is_left_out(tmp_path: Path) -> None:
    spec = SourceSpec(kind="path", location=str(tmp_path), sha256="0" * 64)
    made = source(spec, dag.container(), BASE, untracked=["build", "a.o"])
    (sent,) = (field.args for field in everything(made) if field.name == "directory"
               and "exclude" in field.args)  # fmt: skip
    assert sent["path"] == str(tmp_path)
    assert sent["exclude"] == ["**/.git", "build", "a.o"]
