"""Compiles as a user runs them: torchvision from Debian's source, by a real nvcc, in a real engine.

The first test compiles for some minutes where this engine has never done so; the rest find what it
left behind. What takes longer is in test_compile_slow.py.
"""

from __future__ import annotations

import json
import subprocess
import zipfile
from pathlib import Path

import pytest

from tests import services
from tests.engine.conftest import Checkout, Ran, new_name, vision_source

pytestmark = pytest.mark.engine

VISION = {"VISION_SOURCE": "apt", "PYTORCH_VERSION": "2.6.0", "CCA": "8.6"}


def wheels(checkout: Checkout, *args: str, **env: str) -> Ran:
    """Return a run of ``wheels`` for torchvision into ``out/``."""
    return checkout.cresset("wheels", "--output", "out", *args, **{**VISION, **env})


def said(ran: Ran, words: str) -> list[str]:
    """Return the lines of a run with these words in them."""
    return [line for line in ran.err.splitlines() if words in line]


@pytest.fixture(scope="module")
def shared(registry: str) -> str:
    """Return a folder of the registry that these tests have in common."""
    return f"{registry}/{new_name()}"


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return torchvision's source as a working tree of git."""
    folder = vision_source(tmp_path_factory.mktemp("source") / "vision")
    commit = ["-c", "user.name=x", "-c", "user.email=x@x", "commit", "-q", "-m", "as released"]
    for args in (["init", "-q"], ["add", "-A"], commit):
        subprocess.run(["git", *args], cwd=folder, check=True)
    return folder


def test_torchvision_is_compiled_for_the_architecture_asked_and_no_other(
    checkout: Checkout, shared: str
) -> None:
    ran = wheels(checkout, REGISTRY=shared)
    assert ran.code == 0, ran.err
    (file,) = (checkout.path / "out").iterdir()
    assert file.name.startswith("torchvision-0.21.0+cu124-cp313-cp313-")
    assert ran.out.split() == [f"out/{file.name}"]
    with zipfile.ZipFile(file) as wheel:
        names = wheel.namelist()
        metadata = wheel.read("torchvision-0.21.0+cu124.dist-info/METADATA").decode()
    assert {"torchvision/_C.so", "torchvision/image.so"} <= set(names)
    assert any(name.startswith("torchvision.libs/libjpeg") for name in names)
    assert "Requires-Dist: torch==2.6.0\n" in metadata
    (proof,) = said(ran, "GPU code by cuobjdump")
    assert proof == "torchvision: GPU code by cuobjdump: torchvision/_C.so sm_86"


def test_a_wheel_in_the_store_is_not_compiled_again(checkout: Checkout, shared: str) -> None:
    ran = wheels(checkout, REGISTRY=shared)
    assert ran.code == 0, ran.err
    assert said(ran, f"torchvision: from the wheel store {shared}/cresset-wheels")
    assert not said(ran, "toolchain")
    assert (checkout.path / ran.out.strip()).is_file()


def test_the_plan_tells_what_is_there_and_what_is_compiled(checkout: Checkout, shared: str) -> None:
    told = checkout.cresset("plan", "--json", **VISION, REGISTRY=shared).json["compile"]
    assert told[0]["store"] == f"the wheel store {shared}/cresset-wheels"
    other = {**VISION, "CCA": "8.0"}
    told = checkout.cresset("plan", "--json", **other, REGISTRY=shared).json["compile"]
    assert told[0]["store"] == ""
    assert told[0]["like"]["package"] == "torchvision"
    assert told[0]["like"]["size"] > 1e6


def test_without_a_store_the_engine_still_knows_what_it_compiled(checkout: Checkout) -> None:
    ran = wheels(checkout, WHEEL_STORE="off")
    assert ran.code == 0, ran.err
    assert said(ran, "torchvision-wheel: cached")
    assert said(ran, "from the engine's cache")
    assert not said(ran, "compiler cache")


def test_a_registry_that_takes_no_wheel_costs_none(checkout: Checkout, tmp_path: Path) -> None:
    with services.registry(tmp_path, readonly=True) as registry:
        ran = wheels(checkout, REGISTRY=registry)
    assert ran.code == 7, ran.err
    assert ran.out == ""
    (file,) = (checkout.path / "out").iterdir()
    assert said(ran, "warning: torchvision is not kept in the wheel store")
    assert said(ran, f"written: out/{file.name}")


@pytest.mark.slow
def test_one_file_changed_is_one_file_compiled(checkout: Checkout, tree: Path) -> None:
    source = {"VISION_SOURCE": "path", "VISION_URL": str(tree), "WHEEL_STORE": "off"}
    ran = wheels(checkout, **source)
    assert ran.code == 0, ran.err
    file = tree / "torchvision/csrc/ops/nms.cpp"
    file.write_text(f"{file.read_text()}\n// {new_name()}\nint cresset_was_here = 1;\n")
    ran = wheels(checkout, **source)
    assert ran.code == 0, ran.err
    (cpp,) = said(ran, "compiler cache, c++")
    (cuda,) = said(ran, "compiler cache, cuda")
    hits, _, total, *_ = cpp.partition(": ")[2].split()
    assert int(total) - int(hits) == 1
    assert "(100%)" in cuda


def test_a_deadline_ends_a_compile_in_words_and_keeps_nothing_half_done(
    checkout: Checkout, repository: str
) -> None:
    ran = wheels(checkout, "--deadline", "1s", REGISTRY=repository, CCA="9.0")
    assert ran.code == 8
    assert "stopped by the deadline" in ran.err
    assert "run the same command again" in ran.err
    assert not (checkout.path / "out").exists()
    told = checkout.cresset("plan", "--json", **{**VISION, "CCA": "9.0"}, REGISTRY=repository)
    assert json.loads(told.out)["compile"][0]["store"] == ""
