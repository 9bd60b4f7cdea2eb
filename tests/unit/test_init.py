"""Cresset added to a project that has files of its own."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from pipeline.adopt import join
from tests.unit.running import ROOT, run

IMAGE = "ghcr.io/team/cresset:py313"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "My Project"
    folder.mkdir()
    return folder


@pytest.mark.usefixtures("checkout")
def test_one_compose_file_and_one_env_that_has_what_it_reads(project: Path) -> None:
    result = run("init", str(project), "--image", IMAGE, "--uid", "1234", "--tz", "Asia/Seoul")
    assert result.code == 0, result.err
    assert {it.name for it in project.iterdir()} == {".env", "compose.cresset.yaml"}
    lines = (project / ".env").read_text().splitlines()
    assert lines[0].startswith("#")
    values = dict(line.split("=", 1) for line in lines[1:])
    text = (project / "compose.cresset.yaml").read_text()
    assert values.keys() == set(re.findall(r"\$\{(\w+)", text)) == set(join.variables())
    assert (values["IMAGE"], values["UID"], values["TZ"]) == (IMAGE, "1234", "Asia/Seoul")
    assert values["PROJECT"] == "my-project-cresset"


@pytest.mark.usefixtures("checkout")
def test_the_image_is_by_default_the_one_of_the_settings(project: Path) -> None:
    assert run("init", str(project), "--registry", "ghcr.io/team").code == 0
    env = (project / ".env").read_text()
    assert re.search(r"^IMAGE=ghcr.io/team/cresset:py3\d+-torch", env, re.MULTILINE)


def test_the_image_that_a_build_wrote_down_goes_before(project: Path, checkout: Path) -> None:
    (checkout / ".env").write_text(f"IMAGE={IMAGE}\n")
    assert run("init", str(project)).code == 0
    assert f"IMAGE={IMAGE}\n" in (project / ".env").read_text()


@pytest.mark.usefixtures("checkout")
@pytest.mark.parametrize("before", ["TOKEN=x\nTZ=Asia/Tokyo", "TOKEN=x\r\nTZ=Asia/Tokyo\r\n"])
def test_an_env_only_gets_what_it_lacks(before: str, project: Path) -> None:
    env = project / ".env"
    env.write_bytes(before.encode())
    env.chmod(0o640)
    result = run("init", str(project), "--image", IMAGE)
    after = env.read_bytes().decode()
    assert after.startswith(before)
    added = after[len(before) :]
    assert "TZ=" not in added
    assert f"\nIMAGE={IMAGE}\n" in added
    # It is said before it is done, and without what was there.
    assert "added to" in result.err
    assert f"IMAGE={IMAGE}" in result.err
    assert "TOKEN" not in result.err
    assert env.stat().st_mode & 0o777 == 0o640
    assert run("init", str(project), "--image", IMAGE).code == 0
    assert env.read_bytes().decode() == after


@pytest.mark.usefixtures("checkout")
def test_a_compose_file_of_that_name_is_not_written_over(project: Path) -> None:
    (project / "compose.cresset.yaml").write_text("services: {}\n")
    result = run("init", str(project), "--image", IMAGE)
    assert result.code == 1
    assert "would be written over" in result.err
    assert "--force" not in result.err
    assert not (project / ".env").exists()
    assert (project / "compose.cresset.yaml").read_text() == "services: {}\n"


def test_in_the_project_itself_its_env_is_no_setting_of_ours(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project)
    (project / ".env").write_text("DATABASE_PASSWORD=hunter2\nSERVICE=web\n")
    result = run("init")
    assert result.code == 1
    assert "no image is named" in result.err
    assert "--image" in result.err
    result = run("init", "--image", IMAGE)
    assert result.code == 0, result.err
    assert "hunter2" not in result.err + result.out


def test_its_container_is_like_ours() -> None:
    ours = yaml.safe_load((ROOT / "compose" / "compose.yaml").read_text())["services"]["train"]
    made = yaml.safe_load(join.changes(Path("/nonexistent"), {})[0].text)
    (it,) = made["services"].values()
    for option in ("tty", "stdin_open", "init", "ipc", "working_dir"):
        assert it[option] == ours[option]
    for name in ("UID", "GID", "USR", "TZ", "PYTHONPATH"):
        assert it["environment"][name] == ours["environment"][name]
    assert it["volumes"][1:] == ours["volumes"][1:]
    gpu = yaml.safe_load((ROOT / "compose" / "gpu.yaml").read_text())["services"]["train"]
    assert it["deploy"] == gpu["deploy"]
    assert "build" not in it
