"""What `migrate` and `init` write, read by Compose itself; it needs no daemon for that."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.unit.running import ROOT, checkout, run
from tests.unit.test_migrate import EDITED, LAYOUTS, OF_THE_TIME, env_of, old_checkout

pytestmark = pytest.mark.docker

OURS = (".compose.yaml", "compose/compose.yaml", "compose/gpu.yaml", "docker-compose.override.yaml")


def composed(config: Path, folder: Path, *files: str) -> dict[str, Any]:
    named = [word for name in files if (folder / name).exists() for word in ("-f", name)]
    done = subprocess.run(
        ["docker", "--config", str(config), "compose", *named, "--profile", "*", "config",
         "--format", "json"],
        cwd=folder, env={"PATH": os.environ["PATH"], "HOME": "/home/me", "IMAGE": "cresset:it"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    read: dict[str, Any] = json.loads(done.stdout)
    return read


@pytest.mark.parametrize("override", ["", EDITED], ids=["as it was", "edited"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_compose_reads_what_was_migrated(
    layout: str, override: str, tmp_path: Path, docker_config: Path
) -> None:
    old = old_checkout(tmp_path / "old", layout, env_of(OF_THE_TIME[layout]), override)
    (old / "secrets.env").write_text("A=1\n")
    with checkout(tmp_path / "new") as folder:
        shutil.copytree(ROOT / "compose", folder / "compose")
        shutil.copy(ROOT / ".compose.yaml", folder)
        assert run("migrate", str(old)).code == 0
        read = composed(docker_config, folder, *OURS)
    train = read["services"]["train"]
    mounts = {it["target"]: it["source"] for it in train["volumes"]}
    assert mounts["/opt/project"] == str(old)
    (device,) = train["deploy"]["resources"]["reservations"]["devices"]
    if override:
        assert mounts["/mnt/home"] == "/home/me"
        assert mounts["/mnt/data"] == str(tmp_path / "data")
        assert (device["device_ids"], device.get("count")) == (["0"], None)
        assert train["environment"]["A"] == "1"


def test_compose_reads_what_was_added_to_a_project(tmp_path: Path, docker_config: Path) -> None:
    project = tmp_path / "project"
    project.mkdir()
    with checkout(tmp_path / "new"):
        assert run("init", str(project), "--image", "team/image:tag", "--usr", "me").code == 0
    (project / ".env").write_text((project / ".env").read_text().replace("IMAGE=", "#IMAGE="))
    read = composed(docker_config, project, "compose.cresset.yaml")
    (it,) = read["services"].values()
    assert read["name"] == "project-cresset"
    assert (it["image"], it["environment"]["USR"]) == ("cresset:it", "me")
    assert it["volumes"][0]["source"] == str(project)
