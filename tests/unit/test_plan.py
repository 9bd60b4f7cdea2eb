"""The plan: an order that can be followed, and a picture of it."""

from __future__ import annotations

import re

import pytest

from pipeline.plan import Step, mermaid, plan, wheel_plan
from tests.unit.specs import spec

COMPILED = {"build_mode": "include", "pytorch_version_tag": "v2.6.0", "cca": "8.6"}
TARGETS: dict[str, tuple[str, dict[str, str]]] = {
    "train": ("train", {}),
    "simple": ("simple", {}),
    "compiled": ("train", COMPILED | {"magma_source": "archive"}),
    "torchvision": ("train", COMPILED | {"build_mode": "exclude", "vision_source": "git"}),
    "devel": ("devel", COMPILED),
    "ngc": ("ngc", {}),
}


def planned(name: str) -> tuple[Step, ...]:
    target, settings = TARGETS[name]
    return plan(spec(target, **settings))


@pytest.mark.parametrize("target", TARGETS)
def test_each_step_comes_after_those_it_needs(target: str) -> None:
    done: set[str] = set()
    for step in planned(target):
        assert set(step.needs) <= done, step
        assert step.name not in done
        done.add(step.name)


@pytest.mark.parametrize("target", TARGETS)
def test_only_what_is_checked_is_delivered(target: str) -> None:
    *_, verify, deliver, attest = planned(target)
    assert (verify.name, deliver.name, attest.name) == ("verify", "deliver", "attest")
    assert verify.name in deliver.needs


@pytest.mark.parametrize("target", TARGETS)
def test_the_picture_has_every_step_and_every_need(target: str) -> None:
    steps = planned(target)
    lines = mermaid(steps).splitlines()
    assert lines[0].startswith("flowchart")
    edges = {tuple(line.split(" --> ")) for line in map(str.strip, lines) if " --> " in line}
    assert edges == {(need, step.name) for step in steps for need in step.needs}
    for step in steps:
        assert any(re.match(rf"\s*{step.name}\[", line) and step.makes in line for line in lines)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({}, "debian 13 from a registry, else by mmdebstrap"),
        ({"linux_distro": "ubuntu"}, "ubuntu 24.04 from a registry"),
        ({"base_image": "mirror/debian:13"}, "debian 13 from a registry"),
        ({"base_source": "image"}, "debian 13 from a registry"),
        ({"base_source": "bootstrap"}, "debian 13 from mmdebstrap"),
    ],
    ids=str,
)
def test_it_says_where_the_base_will_come_from(settings: dict[str, str], says: str) -> None:
    assert plan(spec(**settings))[0].makes == says


def names(steps: tuple[Step, ...]) -> list[str]:
    return [step.name for step in steps]


SHELL = ["installer", "prompt", "shell"]
MAGMA = ["magma-source", "magma"]
TORCH = [f"torch-{part}" for part in ("tools", "source", "wheel", "check")]
VISION = [f"torchvision-{part}" for part in ("tools", "source", "wheel", "check")]


@pytest.mark.parametrize(
    ("settings", "compiling"),
    [
        ({}, ["toolchain", *TORCH, *VISION]),
        ({"magma_source": "archive"}, ["toolchain", *MAGMA, *TORCH, *VISION]),
        ({"magma_source": "git"}, ["toolchain", *MAGMA, *TORCH, *VISION]),
        ({"magma_source": "off"}, ["toolchain", *TORCH, *VISION]),
        (
            {"vision_source": "index", "pytorch_version_tag": "v2.13.0"},
            ["toolchain", *TORCH],
        ),
        ({"torch_source": "index"}, ["toolchain", *VISION]),
        ({"torch_source": "index", "vision_source": "index"}, []),
    ],
    ids=str,
)
def test_only_what_is_compiled_is_a_step_of_compiling(
    settings: dict[str, str], compiling: list[str]
) -> None:
    it = spec(**COMPILED | settings)
    around = ["base", *SHELL, "system"], ["wheels", "torch", "apt", "pip", "image"]
    assert names(plan(it)) == [*around[0], *compiling, *around[1], "verify", "deliver", "attest"]
    if compiling:
        assert names(wheel_plan(it)) == ["base", *SHELL, "system", *compiling, "export"]


def test_the_devel_image_compiles_no_more_than_it_needs() -> None:
    ready = ["toolchain", *MAGMA, "torch-tools", "torch-source"]
    it = spec("devel", **COMPILED, magma_source="archive")
    assert names(plan(it)) == [
        "base", *ready, *SHELL, "apt", "image", "verify", "deliver", "attest",
    ]  # fmt: skip


def test_it_says_what_is_compiled_from_what() -> None:
    it = spec(
        **COMPILED, magma_source="archive", vision_ref="1" * 40, vision_url="https://git.invalid/v"
    )
    makes = {step.name: step.makes for step in plan(it)}
    assert makes["toolchain"] == "CUDA 12.4 by apt, GCC 13, build-2.3.requirements.txt"
    assert makes["magma"] == "MAGMA 2.9.0 for 8.6"
    assert "magma-2.9.0.tar.gz at ff77fd3726b3" in makes["magma-source"]
    assert "https://github.com/pytorch/pytorch.git at v2.6.0" in makes["torch-source"]
    assert makes["torch-wheel"] == "torch 2.6.0+cu124 for 8.6, MAGMA 2.9.0"
    assert makes["torchvision-source"] == f"source by git: https://git.invalid/v at {'1' * 40}"


def test_no_password_of_a_source_is_in_the_plan() -> None:
    url = "https://me:hunter2@git.invalid/torch.git"
    it = spec(**COMPILED, torch_url=url, magma_source="git", magma_url=url)
    assert "hunter2" not in repr(plan(it)) + mermaid(plan(it)) + repr(wheel_plan(it))
