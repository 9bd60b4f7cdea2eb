"""Checks of the built image, made inside it before it is delivered."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from importlib import resources
from typing import Any

from dagger import Container, File, dag

from pipeline.compat.source import extra_arches
from pipeline.errors import Problem
from pipeline.spec import Arch, ImageSpec, WheelSpec, code_arches, variant
from pipeline.stages.inputs import Inputs
from pipeline.stages.packages import INSTALLER, PINS, VENV
from pipeline.stages.toolchain import TOOLS

_CUDNN_9 = 9
_COMMIT = r"[0-9a-f]{40}"
_PROBE = "/run/probe.py"
_CUOBJDUMP = "/run/cuobjdump"


def cuobjdump(installer: Container, inputs: Inputs) -> File:
    """Return the program that lists GPU code, which an image has only where Triton brings it."""
    folder = "/opt/check"
    program = f"{folder}/nvidia/cu13/bin/cuobjdump"
    pip = [
        f"{INSTALLER}/bin/pip", "install", "--no-cache-dir", "--no-deps", "--progress-bar", "off",
        "--target", folder, "--require-hashes", "--requirement", PINS,
    ]  # fmt: skip
    return (
        installer.with_(inputs.network.for_packages)
        .with_mounted_file(PINS, inputs.pip_check)
        .with_exec(pip)
        .with_exec(["chmod", "755", program])
        .file(program)
    )


def probe(image: Container, spec: ImageSpec, lister: File | None = None) -> Container:
    """Return the image after the probe; its standard output holds the facts as JSON.

    `lister` is cuobjdump, without which nothing is said of GPU code.
    """
    if spec.target == "devel":
        return _probed(image, f"{TOOLS}/bin/python", [])
    asked = ["--own-torch"] if spec.target == "ngc" else ["--torch"] if spec.torch else []
    return _probed(image, f"{VENV}/bin/python", asked, lister)


def probe_torch(image: Container) -> Container:
    """Return an image with torch after the probe, as `probe` does; it tells its GPU code itself.

    cuobjdump comes from a base, which nobody knows of an image that was pulled.
    """
    return _probed(image, f"{VENV}/bin/python", ["--torch"])


def probe_wheel(installed: Container, wheel: WheelSpec, lister: File) -> Container:
    """Return the container, in which the wheel is installed, after the probe, as `probe` does."""
    alone = ["--no-vision"] if wheel.package == "torch" else []
    return _probed(installed, f"{VENV}/bin/python", ["--torch", *alone], lister)


def _probed(
    container: Container, python: str, args: list[str], lister: File | None = None
) -> Container:
    source = resources.files("pipeline.stages.inside").joinpath("probe.py").read_text()
    if lister:
        container = container.with_mounted_file(_CUOBJDUMP, lister)
        args = [*args, f"--code={_CUOBJDUMP}"]
    return container.with_mounted_file(_PROBE, dag.file("probe.py", source)).with_exec(
        [python, _PROBE, *args]
    )


def read(output: str) -> dict[str, Any]:
    """Return the facts the probe printed, below whatever the image's libraries print on import."""
    facts: dict[str, Any] = json.loads(output.strip().splitlines()[-1])
    return facts


def judge(spec: ImageSpec, facts: dict[str, Any]) -> list[Problem]:
    """Return in what the image is not what `spec` says; empty where it may be delivered."""
    if spec.target == "ngc":
        return [*_told_problems(spec, facts), *_ngc_problems(facts)]
    problems = list(_system_problems(spec, facts))
    if facts["torch"] is not None:
        problems += _torch_problems(spec, facts["torch"])
    if not problems:
        problems += _differs("tag", told_variant(spec, facts), spec.variant)
    return problems


def told_variant(spec: ImageSpec, facts: dict[str, Any]) -> str:
    """Return the variant of an image by what is in it; of the spec only what it is to be.

    The devel image has a torch in its name that it compiles, and not in it.
    """
    torch = facts["torch"]
    release, cuda = (torch["version"].partition("+")[0], torch["cuda"]) if torch else ("", "")
    if spec.target == "devel" and spec.torch:
        release, cuda = spec.torch.version, spec.torch.cuda
    arches = _told_arches(spec, torch) if torch and spec.compiled else ()
    if spec.target == "devel" and spec.compiled:
        arches = spec.compiled[0].arches
    return variant(spec.target, facts["python"], facts["codename"], release, cuda or "", arches)


def _told_arches(spec: ImageSpec, torch: dict[str, Any]) -> tuple[Arch, ...]:
    """Return what was compiled for, by the GPU code that was found in it.

    Without what torch adds by itself, which is in no name.
    """
    wheel = spec.compiled[0]
    names = {
        name
        for file, found in (torch["code"] or {}).items()
        if file.startswith(f"{wheel.package}/")
        for name in found
    }
    extra: set[str] = set()
    if wheel.package == "torch":
        extra = {it.sm for it in extra_arches(wheel.version.partition("+")[0], wheel.arches)}
        extra -= {it.sm for it in wheel.arches}
    each = {it.sm: it for it in code_arches(sorted(names - extra))}
    return tuple(
        sorted(
            (it.model_copy(update={"ptx": it.compute in names}) for it in each.values()),
            key=lambda it: (it.major, it.minor, it.suffix),
        )
    )


def judge_wheel(wheel: WheelSpec, facts: dict[str, Any]) -> list[Problem]:
    """Return in what an installed wheel is not what `wheel` says; empty where it may be kept."""
    torch = facts["torch"]
    if error := torch.get("import_error"):
        return [Problem(f"import {wheel.package}", error, "the wheel cannot be imported")]
    problems = list(wheel_problems(wheel, torch))
    found = torch["version" if wheel.package == "torch" else "vision"]
    problems += _differs(wheel.package, found, wheel.version)
    problems += _operations(torch)
    return problems


def proof(wheel: WheelSpec, facts: dict[str, Any]) -> str:
    """Return in one line what GPU code was found in the wheel, file by file, and its commit."""
    code = facts["torch"]["code"] or {}
    said = "GPU code by cuobjdump: " + "; ".join(
        f"{file} {' '.join(names)}" for file, names in code.items() if _of(wheel, file)
    )
    commit = facts["torch"]["git"]
    is_known = wheel.package == "torch" and re.fullmatch(_COMMIT, commit)
    return f"{said}; git commit {commit}" if is_known else said


def gpu_code(facts: dict[str, Any]) -> list[str]:
    """Return what GPU code the torch in an image has, as ``sm_86`` and ``compute_86``, sorted.

    By cuobjdump where it looked, else by what torch tells; nothing where torch is not Cresset's.
    """
    torch = facts["torch"]
    if torch is None:
        return []
    listed = {
        name
        for file, names in (torch["code"] or {}).items()
        if file.startswith("torch/")
        for name in names
    }
    return sorted(
        listed or torch["arches"], key=lambda name: (not name.startswith("sm_"), len(name), name)
    )


def commit(facts: dict[str, Any]) -> str:
    """Return the commit that Cresset's torch in an image tells it is of, empty if none."""
    told = str((facts["torch"] or {}).get("git", ""))
    return told if re.fullmatch(_COMMIT, told) else ""


def _of(wheel: WheelSpec, file: str) -> bool:
    # NVIDIA's own libraries beside it have what NVIDIA compiled them for.
    return file.startswith(f"{wheel.package}/") or (wheel.package == "torch" and "libmagma" in file)


def _operations(facts: dict[str, Any]) -> Iterator[Problem]:
    for name in ("tensor_op", "vision_op", "image_codecs"):
        if name in facts:
            yield from _differs(name, facts[name], "ok")
    if facts["gpu"] != "none":
        yield from _differs("on the GPU", facts["gpu"], "ok")


def _told_problems(spec: ImageSpec, facts: dict[str, Any]) -> Iterator[Problem]:
    yield from _differs("python", facts["python"], spec.python)
    yield from _differs("TZ", facts["timezone"], spec.timezone)
    if not facts["timezone_known"]:
        yield Problem("TZ", spec.timezone, "the image's own tz database has no such time zone")


def _ngc_problems(facts: dict[str, Any]) -> Iterator[Problem]:
    """Yield what is wrong with what was put on NVIDIA's image; what it has is as it is."""
    if left := [path for path in facts["build_leftovers"] if path.startswith("/mnt/")]:
        yield Problem("build_leftovers", ", ".join(left[:5]), "something of the build was left")
    if errors := facts["preload_errors"]:
        yield Problem("preload_errors", errors[0], "the loader would warn at every start")
    own = facts["own_torch"] or {}
    if error := own.get("import_error"):
        yield Problem("import torch", error, "the image has a torch and cannot import it")
    elif own and own["file"].startswith(f"{VENV}/"):
        yield Problem(
            "torch",
            own["version"],
            "a package of reqs/pip-train brought another torch along, and it hides NVIDIA's",
            allowed="the one of the base",
            next_step="require a version of that package that takes the base's torch",
        )


def _system_problems(spec: ImageSpec, facts: dict[str, Any]) -> Iterator[Problem]:
    yield from _told_problems(spec, facts)
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
    return spec.target == "devel" or any(
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
    yield from _operations(facts)
    for wheel in spec.torch.compiled:
        yield from wheel_problems(wheel, facts)
    if spec.mkl and not facts["mkl"]:
        yield Problem("MKL_MODE", "include", "this torch was built without MKL", allowed="exclude")
    compiled = code_arches(facts["arches"])
    for wanted in spec.arches:
        if not any(code.runs_on(wanted) for code in compiled):
            yield Problem(
                "CCA",
                str(wanted),
                f"no code in this torch runs on a GPU of compute capability {wanted.number}",
                allowed=", ".join(facts["arches"]) or "none: it is a CPU build",
                next_step="BUILD_MODE=include, or a version whose wheels still have it",
            )


def wheel_problems(wheel: WheelSpec, facts: dict[str, Any]) -> Iterator[Problem]:
    """Yield in what an installed wheel is not what was to be compiled.

    Upstream switches off in silence what its build does not find, and compiles for architectures of
    its own choice where the list does not reach it; here both are failures.
    """
    yield from _code_problems(wheel, facts["code"])
    own = rf"/{wheel.package}([.]libs)?/"
    for path, names in sorted(facts["missing"].items()):
        if re.search(own, path):
            yield Problem("ldd", path, f"needs {', '.join(names)}, which is not found")
    flags = dict(wheel.flags)
    if wheel.package != "torch":
        asked = flags["TORCHVISION_USE_NVJPEG"] == "1"
        yield from _lacks({"nvJPEG": (asked, facts["nvjpeg"])}, "torchvision")
        return
    config = facts["config"]
    # What belongs to torch.distributed is not there without it, whatever its own flag says.
    if flags.get("USE_DISTRIBUTED") != "1":
        flags |= dict.fromkeys(("USE_NCCL", "USE_GLOO", "USE_TENSORPIPE"), "0")
    blas, sign = ("MKL", "mkl") if flags.get("BLAS") == "MKL" else ("OpenBLAS", "open")
    wanted = {
        blas: (True, f"BLAS_INFO={sign}" in config),
        "LAPACK": (True, facts["lapack"]),
        "cuDNN": (flags.get("USE_CUDNN") == "1", facts["cudnn"] is not None),
        "MAGMA": (flags.get("USE_MAGMA") == "1", facts["magma"]),
        "NCCL": (flags.get("USE_NCCL") == "1", facts["nccl"]),
        "gloo": (flags.get("USE_GLOO") == "1", facts["gloo"]),
    }
    wanted |= {
        flag: (flags[flag] == "1", found)
        for flag, found in facts["features"].items()
        if flag in flags
    }
    yield from _lacks(wanted, "torch")
    if facts["cudnn"] is not None:
        yield from _cudnn_problems(wheel, facts["cudnn"])
    commit = wheel.source.ref
    if re.fullmatch(_COMMIT, commit):
        yield from _differs("torch's git commit", facts["git"], commit)


def _lacks(wanted: dict[str, tuple[bool, Any]], package: str) -> Iterator[Problem]:
    """Yield each feature of which what was asked is not what was found."""
    for name, (asked, found) in wanted.items():
        if asked != bool(found):
            yield Problem(
                name,
                "in it" if found else "not in it",
                f"{package} tells it otherwise than it was to be built; upstream's build switches "
                "off what it does not find",
                allowed="in it" if asked else "not in it",
            )


def _cudnn_problems(wheel: WheelSpec, found: int) -> Iterator[Problem]:
    """Yield the number of a cuDNN that is not the one the wheel requires.

    8902 is 8.9.2, and from 9 on 90100 is 9.1.0 (cudnn_version.h).
    """
    for pin in wheel.requires:
        name, _, version = pin.partition("==")
        if name.startswith("nvidia-cudnn-"):
            major, minor, patch = (int(part) for part in version.split(".")[:3])
            number = major * (1_000 if major < _CUDNN_9 else 10_000) + minor * 100 + patch
            yield from _differs("cuDNN", str(found), str(number))


def _code_problems(wheel: WheelSpec, code: dict[str, list[str]] | None) -> Iterator[Problem]:
    if code is None:
        yield Problem("cuobjdump", "", "there is none, so nobody knows what GPU code is in it")
        return
    wanted = {name for arch in wheel.arches for name in arch.code}
    extra: set[str] = set()
    if wheel.package == "torch":
        version = wheel.version.partition("+")[0]
        extra = {arch.sm for arch in extra_arches(version, wheel.arches)}
    compiled = {
        file: set(names) for file, names in code.items() if file.startswith(f"{wheel.package}/")
    }
    listed = ", ".join(sorted(set().union(*compiled.values()))) if compiled else "none"
    if not wanted <= set().union(*compiled.values()) <= wanted | extra:
        yield Problem(
            f"GPU code of {wheel.package}",
            listed,
            "is not the code that was asked for, by cuobjdump",
            allowed=", ".join(sorted(wanted)),
        )
    # The distribution's MAGMA has the architectures it has: what it has must run, no more.
    for file, names in code.items():
        runs = all(any(it.runs_on(arch) for it in code_arches(names)) for arch in wheel.arches)
        if wheel.package == "torch" and "libmagma" in file and not runs:
            yield Problem("GPU code of MAGMA", ", ".join(names), "does not run where it is to",
                          allowed=", ".join(sorted(wanted)))  # fmt: skip


def _differs(name: str, found: str, wanted: str) -> Iterator[Problem]:
    if found != wanted:
        yield Problem(name, found, "is not what the settings ask for", allowed=wanted)
