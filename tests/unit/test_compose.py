"""Which Compose files are taken, and what is in them, by machine and settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline import compose, settings
from pipeline.errors import ComposeError
from pipeline.host import user
from pipeline.host.gpu import Gpu
from pipeline.host.machine import Docker, Machine, Nvidia, Toolkit
from tests.unit.running import ROOT
from tests.unit.specs import spec

CARD = Nvidia(driver="580.95", gpus=(Gpu(name="RTX", capability="8.6", memory=1),))
MODERN = Docker(server="28.2.2")


def chosen(machine: Machine | None, folder: Path, named: str = "", **values: str) -> list[str]:
    given = settings.load(values, environ={}, env_file=Path("/nonexistent")).settings
    first, second, *more = compose.files(given, machine, folder, named)
    assert named or (first, second) == (compose.ROOT, compose.BASE)
    return [it.name for it in more] if not named else [str(first), str(second), *map(str, more)]


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        ({}, []),
        ({"nvidia": CARD}, []),
        ({"nvidia": CARD, "docker": MODERN}, []),
        ({"docker": MODERN, "toolkit": Toolkit(version="1.17.0")}, []),
        ({"nvidia": CARD, "docker": MODERN, "toolkit": Toolkit(version="1.17.0")}, ["gpu.yaml"]),
        ({"nvidia": CARD, "docker": Docker(server="28.2.2", cdi_devices=("nvidia.com/gpu=all",))},
         ["gpu-cdi.yaml"]),
        ({"nvidia": CARD, "docker": Docker(server="18.09.1", runtimes=("nvidia", "runc"))},
         ["gpu-runtime.yaml"]),
        ({"nvidia": CARD, "docker": Docker(server="20.10.24", runtimes=("nvidia", "runc"))},
         ["gpu.yaml"]),
        ({"kernel": "5.15.153.1-microsoft-standard-WSL2", "docker": MODERN,
          "nvidia": Nvidia(libraries=("/usr/lib/wsl/lib/libcuda.so.1",)),
          "toolkit": Toolkit(version="1.17.0")}, ["gpu.yaml", "wsl.yaml"]),
        ({"docker": Docker(server="28.2.2", rootless=True)}, ["rootless.yaml"]),
        ({"docker": Docker(podman=True)}, ["rootless.yaml"]),
    ],
    ids=str,
)  # fmt: skip
def test_the_machine_decides_about_gpus_and_memory(
    facts: dict[str, Any], expected: list[str], tmp_path: Path
) -> None:
    names = chosen(Machine(**facts), tmp_path)
    assert names == expected
    assert [name for name in names if not (ROOT / compose.FOLDER / name).is_file()] == []


def test_settings_add_services_and_the_users_own_file_comes_last(tmp_path: Path) -> None:
    (tmp_path / compose.OVERRIDE).touch()
    asked = {"SSH_PORT": "2222", "JUPYTER_PORT": "8888"}
    expected = ["ssh.yaml", "jupyter.yaml", str(compose.OVERRIDE)]
    assert chosen(None, tmp_path, **asked) == expected
    named = f"mine.yaml:{compose.OVERRIDE}:other.yaml"
    assert chosen(Machine(nvidia=CARD), tmp_path, named, SSH_PORT="2222") == [
        "mine.yaml", "other.yaml", "compose/ssh.yaml", str(compose.OVERRIDE),
    ]  # fmt: skip


ANN = {"UID": "1234", "GID": "2345", "USR": "Ann.Lee", "GRP": "lab"}


def variables(folder: Path, **values: str) -> dict[str, str]:
    given = settings.load(values, environ={}, env_file=Path("/nonexistent")).settings
    flags = {name.lower(): value for name, value in values.items() if "VERSION" in name}
    return compose.variables(given, folder, ANN, lambda target: spec(target, **flags).variant)


def test_the_user_is_who_calls_unless_the_settings_say_otherwise(tmp_path: Path) -> None:
    found = variables(tmp_path)
    assert ANN.items() <= found.items()
    assert found["HOST_ROOT"] == str(tmp_path)
    assert found["PROJECT"] == f"{tmp_path.name.lower()}-ann-lee".replace("_", "_")
    assert variables(tmp_path, UID="7", HOST_ROOT="sub")["UID"] == "7"
    assert variables(tmp_path, HOST_ROOT="sub")["HOST_ROOT"] == str(tmp_path / "sub")
    assert variables(tmp_path, PROJECT="mine")["PROJECT"] == "mine"


def test_an_image_is_the_tag_of_the_settings_unless_one_is_named(tmp_path: Path) -> None:
    found = variables(tmp_path, REGISTRY="ghcr.io/team")
    assert found["IMAGE"] == f"ghcr.io/team/cresset:{spec('train').variant}"
    assert found["IMAGE_SIMPLE"] == f"ghcr.io/team/cresset:{spec('simple').variant}"
    assert "IMAGE_DEVEL" not in found, "these settings make none"
    digest = f"host/it:tag@sha256:{'0' * 64}"
    assert variables(tmp_path, IMAGE=digest)["IMAGE"] == digest


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("A=1\nIMAGE=old\nB=2\n", "A=1\nIMAGE=new\nB=2\n"),
        ("# IMAGE=\nA=1\n", "IMAGE=new\nA=1\n"),
        ("IMAGE=older\nIMAGE=old\n", "IMAGE=older\nIMAGE=new\n"),
        ("A=1", "A=1\nIMAGE=new\n"),
        ("IMAGE_SIMPLE=old\n", "IMAGE_SIMPLE=old\nIMAGE=new\n"),
        ("", "IMAGE=new\n"),
    ],
)
def test_a_variable_is_set_in_its_place(before: str, after: str, tmp_path: Path) -> None:
    file = tmp_path / ".env"
    file.write_text(before)
    file.chmod(0o600)
    assert user.set_variable(file, "IMAGE", "new")
    assert file.read_text() == after
    assert file.stat().st_mode & 0o777 == 0o600
    assert not user.set_variable(file, "IMAGE", "new")
    assert [it.name for it in tmp_path.iterdir()] == [".env"]


def test_a_folder_without_our_files_is_said(tmp_path: Path) -> None:
    with pytest.raises(ComposeError, match=r"there is no compose/compose\.yaml") as raised:
        compose.check_folder(tmp_path)
    assert "next: run it in a checkout" in str(raised.value)


WITH_TOOLKIT = Machine(nvidia=CARD, docker=MODERN, toolkit=Toolkit(version="1.17.0"))


@pytest.mark.parametrize(
    ("machine", "named", "image", "said"),
    [
        (WITH_TOOLKIT, "compose/compose.yaml", "", "add compose/gpu.yaml to it"),
        (WITH_TOOLKIT, "compose/compose.yaml:compose/gpu-cdi.yaml", "", ""),
        (Machine(), "compose/compose.yaml", "", ""),
        (
            Machine(),
            "",
            f"cresset:old@sha256:{0:064}",
            "names cresset:old, and these settings make ",
        ),
        (Machine(), "", "ghcr.io/others/cresset:old", ""),
    ],
)
def test_what_in_env_was_right_once_is_said(
    machine: Machine, named: str, image: str, said: str, tmp_path: Path
) -> None:
    given = settings.load({"IMAGE": image}, environ={}, env_file=Path("/nonexistent")).settings
    made = f"cresset:{spec('train').variant}"
    files = compose.files(given, machine, tmp_path, named)
    it = compose.Project("train", {"IMAGE": image or made}, files)
    doubts = list(compose.doubts(given, machine, it, made))
    assert len(doubts) == bool(said)
    assert said in "".join(doubts)
