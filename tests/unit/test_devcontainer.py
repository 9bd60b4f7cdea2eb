"""What ``make devcontainer`` writes; tests/compose opens it with the real devcontainer CLI."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline import compose, devcontainer
from tests.unit.running import ROOT, Result, checkout, run

VARIABLES = {
    "IMAGE": "registry.invalid/me/cresset:py313@sha256:00",
    "UID": "1234",
    "GID": "2345",
    "USR": "ann",
    "GRP": "lab",
    "ADD_USER": "include",
    "PROJECT": "net-ann",
}
COMPOSE = {
    name: (ROOT / name).read_text()
    for name in (".compose.yaml", "compose/compose.yaml", "compose/ssh.yaml")
}


def files(*extra: str, **variables: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return both files as their readers understand them."""
    read = (compose.ROOT, compose.BASE, *map(Path, extra))
    project = compose.Project("train", VARIABLES | variables, read)
    made = devcontainer.files(project, "/opt/project")
    assert list(map(str, made)) == [".devcontainer/devcontainer.json", ".devcontainer/compose.yaml"]
    settings, own = made.values()
    return json.loads(settings), yaml.safe_load(own)


def test_the_files_of_compose_start_at_the_checkout_and_end_with_the_users_own() -> None:
    settings, _ = files("compose/gpu.yaml", "docker-compose.override.yaml")
    assert settings["dockerComposeFile"] == [
        "../.compose.yaml",
        "../compose/compose.yaml",
        "../compose/gpu.yaml",
        "compose.yaml",
        "../docker-compose.override.yaml",
    ]


def test_the_image_and_the_name_of_env_go_before_those_that_are_written_down() -> None:
    _, own = files()
    assert own["name"] == "${PROJECT:-net-ann}"
    assert own["services"]["train"]["image"] == f"${{IMAGE:-{VARIABLES['IMAGE']}}}"


def test_the_user_is_the_one_that_enter_becomes() -> None:
    settings, own = files()
    assert settings["remoteUser"] == own["services"]["train"]["environment"]["USR"] == "ann"
    assert settings["runServices"] == ["train", "ready"]


@pytest.mark.parametrize(
    ("extra", "variables"),
    [((), {"ADD_USER": "exclude"}), ((), {"UID": "0"}), (("compose/rootless.yaml",), {})],
)
def test_who_stays_root_is_waited_for_by_nothing(
    extra: tuple[str, ...], variables: dict[str, str]
) -> None:
    settings, own = files(*extra, **variables)
    assert settings["remoteUser"] == "root"
    assert settings["runServices"] == list(own["services"]) == ["train"]


def written(*words: str) -> Result:
    identity = {"UID": "1234", "GID": "2345", "USR": "ann", "GRP": "lab"}
    # With files that are named the machine need not be looked at.
    named = {"COMPOSE_FILE": ".compose.yaml:compose/compose.yaml", "SSH_PORT": "2222"}
    return run("devcontainer", *words, environ=identity | named)


def test_it_is_written_once_and_never_over_another(tmp_path: Path) -> None:
    with checkout(tmp_path / "it", COMPOSE):
        assert written().err.count(" written") == 2
        path = Path(".devcontainer/devcontainer.json")
        settings = json.loads(path.read_text())
        assert "../compose/ssh.yaml" in settings["dockerComposeFile"]
        assert written().err.count("as it would be written") == 2
        path.write_text("{}")
        ran = written()
        assert f"{path} is there already and differs" in ran.err
        assert ran.code == 0
        assert path.read_text() == "{}"


def test_on_standard_output_it_is_json_and_nothing_is_written(tmp_path: Path) -> None:
    with checkout(tmp_path / "it", COMPOSE):
        assert json.loads(written("--stdout", "--service", "simple").out)["service"] == "simple"
        assert not Path(".devcontainer").exists()
