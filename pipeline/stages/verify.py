"""Checks of the built image, made inside it before it is delivered."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from importlib import resources
from typing import Any

from dagger import Container, dag

from pipeline.errors import Problem
from pipeline.spec import Arch, ImageSpec
from pipeline.stages.packages import VENV

_PROBE = "/run/probe.py"


def probe(image: Container, spec: ImageSpec) -> Container:
    """Return the image after the probe; its standard output holds the facts as JSON."""
    source = resources.files("pipeline.stages").joinpath("probe.py").read_text()
    args = ["--torch"] if spec.torch else []
    return image.with_mounted_file(_PROBE, dag.file("probe.py", source)).with_exec(
        [f"{VENV}/bin/python", _PROBE, *args]
    )


def read(output: str) -> dict[str, Any]:
    """Return the facts the probe printed, below whatever the image's libraries print on import."""
    facts: dict[str, Any] = json.loads(output.strip().splitlines()[-1])
    return facts


def judge(spec: ImageSpec, facts: dict[str, Any]) -> list[Problem]:
    """Return in what the image is not what `spec` says; empty where it may be delivered."""
    problems = list(_system_problems(spec, facts))
    if spec.torch is not None:
        problems += _torch_problems(spec, facts["torch"])
    return problems


def _system_problems(spec: ImageSpec, facts: dict[str, Any]) -> Iterator[Problem]:
    yield from _differs("python", facts["python"], spec.python)
    yield from _differs("TZ", facts["timezone"], spec.timezone)
    if not facts["timezone_known"]:
        yield Problem("TZ", spec.timezone, "the image's own tz database has no such time zone")
    unwanted = {
        "compilers": "the dev image ships none; what compiles is the devel target",
        "apt_lists": "apt's lists are out of date the day after and only take room",
        "apt_archives": "downloaded packages only take room",
        "caches": "download caches only take room",
        "build_leftovers": "something of the build was left behind",
        "preload_errors": "the loader would warn at the start of every program",
    }
    for name, why in unwanted.items():
        found = facts[name]
        # A compiler that the user asked for in reqs/ is no mistake of ours.
        if found and not (name == "compilers" and _asks_for_compiler(spec)):
            yield Problem(name, ", ".join(found[:5]), why, allowed="none")
    for home in facts["homes"]:
        if home["uid"] == 0 or home["world_writable"]:
            kind = "owned by root" if home["uid"] == 0 else "writable by everyone"
            yield Problem("home", home["path"], f"a home folder is {kind}")
    twice = {name: folders for name, folders in facts["cuda_libraries"].items() if len(folders) > 1}
    for name, folders in sorted(twice.items()):
        yield Problem("CUDA library", name, "is in the image twice", allowed=" or ".join(folders))


def _asks_for_compiler(spec: ImageSpec) -> bool:
    return any(
        re.match(r"(gcc|g\+\+|clang|build-essential|nvidia-cuda-toolkit)", p) for p in spec.apt
    )


def _torch_problems(spec: ImageSpec, facts: dict[str, Any]) -> Iterator[Problem]:
    if spec.torch is None:
        return
    if error := facts.get("import_error"):
        yield Problem("import torch, torchvision", error, "the image cannot import them")
        return
    yield from _differs("torch", facts["version"].partition("+")[0], spec.torch.version)
    yield from _differs("torchvision", facts["vision"].partition("+")[0], spec.torch.vision)
    yield from _differs("CUDA of torch", facts["cuda"] or "none", spec.torch.cuda)
    for name in ("tensor_op", "vision_op"):
        yield from _differs(name, facts[name], "ok")
    if spec.mkl and not facts["mkl"]:
        yield Problem("MKL_MODE", "include", "this torch was built without MKL", allowed="exclude")
    compiled = arches(facts["arches"])
    for wanted in spec.arches:
        if not any(code.runs_on(wanted) for code in compiled):
            yield Problem(
                "CCA",
                str(wanted),
                f"no code in this torch runs on a GPU of compute capability {wanted.number}",
                allowed=", ".join(facts["arches"]) or "none: it is a CPU build",
                next_step="BUILD_MODE=include, or a version whose wheels still have it",
            )


def arches(flags: list[str]) -> list[Arch]:
    """Return the architectures behind names such as ``sm_86`` and ``compute_120``."""
    matches = (re.fullmatch(r"(sm|compute)_(\d+)(\d)([af]?)", flag) for flag in flags)
    return [
        Arch.parse(f"{m[2]}.{m[3]}{m[4]}{'+PTX' if m[1] == 'compute' else ''}")
        for m in matches
        if m
    ]


def _differs(name: str, found: str, wanted: str) -> Iterator[Problem]:
    if found != wanted:
        yield Problem(name, found, "is not what the settings ask for", allowed=wanted)
