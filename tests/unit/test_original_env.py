"""``.env`` files of the original project: what each of them would build here, or why not.

``data/original/`` holds the example of its README, at the commit in each file's name; the one
without a commit is the README that this project began with.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.unit.running import Result, run

DATA = Path(__file__).parent / "data" / "original"

NO_ROW = "no row for torch 1.11.0"

# What each would build, and the keys it has that do nothing any more.
BUILDS = {
    "readme-example": ("py310-torch1.13.0-cu117-jammy", []),
    "2023-01-30-318af75": ("py310-torch1.13.1-cu117-jammy", []),
    "2023-04-08-1e47613": (
        "py310-torch2.0.0-cu118-jammy",
        ["HOST_NAME", "TARGET_STAGE", "INTERACTIVE_MODE"],
    ),
    "2023-04-30-e6f196f": ("py310-torch2.0.0-cu118-jammy", ["TARGET_STAGE", "INTERACTIVE_MODE"]),
    "2024-09-20-382cc0b": ("py310-torch2.0.0-cu118-jammy", ["TARGET_STAGE"]),
}
REFUSED = {
    "2022-03-26-b4725bd": [NO_ROW],
    "2022-08-27-00384ad": [NO_ROW],
}


def test_every_file_is_asked() -> None:
    assert {path.stem for path in DATA.glob("*.env")} == BUILDS.keys() | REFUSED.keys()


def with_env(checkout: Path, name: str, *argv: str) -> Result:
    (checkout / ".env").write_bytes((DATA / f"{name}.env").read_bytes())
    return run(*argv)


@pytest.mark.parametrize("name", BUILDS)
def test_what_it_builds(name: str, checkout: Path) -> None:
    variant, retired = BUILDS[name]
    result = with_env(checkout, name, "plan", "--json")
    assert result.code == 0, result.err
    plan = json.loads(result.out)
    assert plan["variant"] == variant
    makes = {step["name"]: step["makes"] for step in plan["steps"]}
    assert makes["base"] == "ubuntu 22.04 from a registry"
    assert makes["system"].startswith("Python 3.10")
    notes = result.err.splitlines()
    assert [note.split()[2] for note in notes] == retired
    assert all(note.startswith("note: .env: ") for note in notes)


@pytest.mark.parametrize("name", REFUSED)
def test_why_it_is_refused(name: str, checkout: Path) -> None:
    result = with_env(checkout, name, "plan")
    assert result.code == 2
    assert result.out == ""
    for reason in REFUSED[name]:
        assert reason in result.err
    assert "PYTORCH_VERSION_TAG='v1.11.0'" in result.err
    assert "next: set PYTORCH_VERSION_TAG=v1.13.0, the nearest" in result.err


def test_its_user_and_time_zone_are_taken_over(checkout: Path) -> None:
    result = with_env(checkout, "2024-09-20-382cc0b", "config", "--json")
    values = {name: it["value"] for name, it in json.loads(result.out).items()}
    assert values["COMMAND"] == "/usr/bin/zsh --login"
    assert (values["UID"], values["USR"], values["TZ"]) == ("1000", "USERNAME", "Asia/Seoul")
    assert values["CCA"] == "8.6"
    assert values["IMAGE_NAME"] == "cresset:train-username"
