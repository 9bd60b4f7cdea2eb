"""What of a source is in the engine's cache key, and what is not."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from dagger import dag

from pipeline.spec import BaseSpec, SourceSpec
from pipeline.stages.inputs import Access
from pipeline.stages.source import ABOUT, git_config, source
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


def test_a_signature_in_the_url_of_a_tarball_is_for_its_download_alone() -> None:
    signed = [
        graph(f"https://me:{PASSWORD}@host.invalid/torch.tar.gz?sign={it}#top", kind="archive")
        for it in ("one", "other")
    ]
    asked = [it.args["url"] for it in everything(signed[0]) if it.name == "http"]
    assert asked == ["https://host.invalid/torch.tar.gz?sign=one#top"]
    assert execs_of(signed[0]) == execs_of(signed[1])
    assert "https://host.invalid/torch.tar.gz" in execs_of(signed[0])[0]
    assert "sign=" not in repr(execs_of(signed[0]))


def apt_says(folder: Path, *, described: bool) -> dict[str, Any]:
    """Return what is written of a source package, from a mirror with or without its .dsc."""
    gets = "echo 'Version: v1' > v.dsc" if described else "echo 'v.dsc  404' >&2; exit 1"
    programs = {
        "apt-get": f"""case "$*" in
            update*) ;;
            *--tar-only*) mkdir v; touch v/setup.py; tar -czf v.orig.tar.gz v ;;
            *) {gets} ;;
            esac""",
        "apt-cache": "exit 1",
        "dpkg-source": "mkdir ../source",
    }
    (folder / "bin").mkdir(parents=True)
    for name, script in programs.items():
        (folder / "bin" / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / "bin" / name).chmod(0o755)
    (command,) = (it for it in execs_of(graph("vision", kind="apt")) if "apt-source" in it)
    ours = [word.replace("/mnt/made", str(folder)) for word in command]
    code = f"import os; os.execvp('sh', {ours})"
    path = f"{folder / 'bin'}:{os.environ['PATH']}"
    subprocess.run([sys.executable, "-c", code], check=True, env={"PATH": path})
    about: dict[str, Any] = json.loads((folder / "source" / ABOUT).read_text())
    return about


def test_a_source_package_without_the_patches_says_so(tmp_path: Path) -> None:
    same = {"kind": "apt", "location": "vision", "version": "v1"}
    for described in (True, False):
        about = apt_says(tmp_path / str(described), described=described)
        assert about == same | {"patched": described}


def test_the_user_of_a_repository_by_ssh_is_kept() -> None:
    for location in ("ssh://git@git.invalid/outer.git", "git@git.invalid:outer.git"):
        assert location in execs_of(graph(location))[0]


def execs_of(directory: Any) -> list[list[str]]:
    return [field.args["args"] for field in everything(directory) if field.name == "withExec"]


def test_a_password_is_in_no_url_that_git_hands_to_its_programs() -> None:
    login = f"Authorization: Basic {base64.b64encode(f'me:{PASSWORD}'.encode()).decode()}"
    with_password = OUTER.replace("//", f"//me:{PASSWORD}@")
    mirror = (OUTER, f"https://me:{PASSWORD}@mirror.invalid/x.git")
    for config, site in (
        (git_config(with_password, Access()), OUTER.partition("//")[2].partition("/")[0]),
        (git_config(OUTER, Access(mirror)), "mirror.invalid"),
    ):
        assert PASSWORD not in config
        assert f'[http "https://{site}/"]\nextraHeader = "{login}"' in config


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
