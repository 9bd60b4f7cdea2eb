"""What compiles: where the compiler and its limits come in, and how they are gone afterwards."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from dagger import dag

from pipeline import caches, reqs
from pipeline.spec import ImageSpec, Locked
from pipeline.stages import base, inputs, targets, verify
from pipeline.stages.inputs import Compiling
from pipeline.stages.packages import VENV
from pipeline.stages.toolchain import TOOLS
from pipeline.stages.wheels import wheel_source
from tests.graph.graph import calls, chain, everything, execs, left_over, stands_on
from tests.unit.specs import spec

COMPILED = {"build_mode": "include", "pytorch_version_tag": "v2.6.0", "cca": "7.5 8.6+PTX"}
OWN_MAGMA = COMPILED | {"magma_source": "archive"}
VISION_ONLY = {"vision_source": "git", "pytorch_version_tag": "v2.6.0", "cca": "8.6"}
PASSWORD = "hunter2"  # noqa: S105 - to look for
PROGRAM = "/run/compile.py"
COMPILED_FOLDERS = "/mnt/compiled"
MOUNTS = ("withMountedDirectory", "withMountedFile", "withMountedCache")


def limited() -> Compiling:
    cache = dag.set_secret("cresset-compiler-cache", f"redis://:{PASSWORD}@cache.invalid")
    return Compiling("3", 1700000000, cache)


def build(
    settings: Mapping[str, str],
    target: str = "train",
    compiling: Compiling | None = None,
    stored: tuple[str, ...] = (),
) -> tuple[ImageSpec, dict[str, Any]]:
    """Return the spec and its stages; `stored` names the packages that are in the wheel store."""
    if compiling is None:
        it, made = _usual(tuple(settings.items()), target, stored)
        return it, dict(made)
    return _build(settings, target, compiling, stored)


@functools.cache
def _usual(
    settings: tuple[tuple[str, str], ...], target: str, stored: tuple[str, ...]
) -> tuple[ImageSpec, dict[str, Any]]:
    """Return what is asked for again and again: the SDK takes a third of a second for it."""
    return _build(dict(settings), target, limited(), stored)


def _build(
    settings: Mapping[str, str], target: str, compiling: Compiling, stored: tuple[str, ...]
) -> tuple[ImageSpec, dict[str, Any]]:
    made = spec(target, **settings)
    bottom = base.base_from_registry(made.base.image)
    compiled_on = bottom
    for wheel in made.compiled:
        compiled_on = base.base_from_registry(wheel.toolchain.base.image)
    given = inputs.inputs(Path("reqs"), [reqs.PIP_TRAIN])
    given = dataclasses.replace(given, compiling=compiling)
    finished = {
        wheel.key: dag.directory().with_new_directory(wheel.package)
        for wheel in made.compiled
        if wheel.package in stored
    }
    return made, targets.stages(made, bottom, compiled_on, given, {}, finished)


def stages(*args: Any, **named: Any) -> dict[str, Any]:
    return build(*args, **named)[1]


def compiles(lazy: Any) -> list[list[str]]:
    """Return the commands of an object's own chain that compile."""
    return [command for command in execs(lazy) if PROGRAM in command]


# How it is run


@pytest.mark.parametrize("stage", ["magma", "torch-wheel", "torchvision-wheel"])
def test_a_compile_is_one_command_with_a_record(stage: str) -> None:
    (command,) = compiles(stages(OWN_MAGMA)[stage])
    assert command[:3] == [f"{TOOLS}/bin/python", PROGRAM, "/out/record.json"]
    assert command[3] == "--"
    # Where nobody compiles, nothing of it is run.
    assert all(compiles(it) == [] for name, it in stages(OWN_MAGMA).items()
               if name not in {"magma", "torch-wheel", "torchvision-wheel"})  # fmt: skip


def test_a_source_that_a_bundle_has_is_fetched_from_nowhere() -> None:
    made = spec("train", **OWN_MAGMA)
    bottom = base.base_from_registry(made.base.image)
    for wheel in made.compiled:
        for source in wheel.sources:
            held = {source.tarball: f"/held/{source.tarball}"}
            given = dataclasses.replace(inputs.inputs(Path("reqs"), []), sources=held)
            lazy = wheel_source(bottom, wheel, source, given)
            (command,) = execs(lazy)
            assert command[:2] == ["tar", "--extract"]
            paths = [it.args["path"] for it in everything(lazy) if it.name == "file"]
            assert f"/held/{source.tarball}" in paths


def test_nothing_is_bound_to_a_service() -> None:
    # A binding would be part of the engine's cache key.
    fields = list(everything(*stages(OWN_MAGMA).values()))
    assert any(field.name == "withExec" for field in fields)
    assert not [it for it in fields if "service" in it.name.lower() or it.type_name == "Service"]


LIMITS = {"MAX_JOBS": "3", "CRESSET_DEADLINE": "1700000000"}


def test_what_only_changes_the_speed_is_volatile() -> None:
    for name, lazy in stages(OWN_MAGMA).items():
        volatile = {args["name"]: args["value"] for args in calls(lazy, "withVolatileVariable")}
        assert volatile == (LIMITS if compiles(lazy) else {}), name
        lasting = {args["name"] for args in calls(lazy, "withEnvVariable")}
        assert lasting.isdisjoint({*LIMITS, "CCACHE_REMOTE_STORAGE"})


def test_jobs_and_deadline_are_not_in_the_engines_cache_key() -> None:
    def keyed(compiling: Compiling) -> list[Any]:
        return [
            (field.name, {name: it for name, it in field.args.items() if not hasattr(it, "_ctx")})
            for field in chain(stages(COMPILED, compiling=compiling)["torch-wheel"])
            if "Volatile" not in field.name
        ]

    cache = limited().cache
    # The names of volatile variables are in the key, so they are there without a value, too.
    assert {
        args["name"]
        for args in calls(
            stages(COMPILED, compiling=Compiling())["torch-wheel"], "withVolatileVariable"
        )
    } == set(LIMITS)
    assert keyed(limited()) == keyed(Compiling("", 0, cache)) == keyed(Compiling("9", 1, cache))


def test_the_address_of_the_cache_is_a_secret_and_nothing_else() -> None:
    it = stages(OWN_MAGMA)
    for stage in ("magma", "torch-wheel", "torchvision-wheel"):
        given = calls(it[stage], "withSecretVariable")
        # By its name of today and by that of ccache 4.5.
        names = ["CCACHE_REMOTE_STORAGE", "CCACHE_SECONDARY_STORAGE"]
        assert [args["name"] for args in given] == names
        for args in given:
            assert chain(args["secret"])[-1].args["name"] == "cresset-compiler-cache"
    holders = {
        field.name
        for field in everything(*it.values())
        if PASSWORD in repr({k: v for k, v in field.args.items() if not hasattr(v, "_ctx")})
    }
    assert holders == {"setSecret"}


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("redis://:word@host:6379/2", "redis://word@host:6379/2|"),
        ("redis://me:word@host", "redis://me:word@host|"),
        ("http://me:word@host/path", "http://me:word@host/path|"),
    ],
)
def test_a_password_without_a_user_is_told_as_ccache_reads_it(url: str, told: str) -> None:
    assert caches.address(url).startswith(told)
    assert "connect-timeout" in caches.address(url)


def test_without_a_shared_cache_there_is_still_the_engines_own() -> None:
    it = stages(COMPILED, compiling=Compiling())["torch-wheel"]
    assert calls(it, "withSecretVariable") == []
    assert caches.COMPILER in {args["path"] for args in calls(it, "withMountedCache")}


def during_compile(lazy: Any, add: tuple[str, ...], take: str, key: str) -> set[str]:
    """Return what is put in and not yet taken out while the compile runs."""
    there: set[str] = set()
    for field in chain(lazy):
        if field.name in add:
            there.add(field.args[key])
        elif field.name == take:
            there.discard(field.args[key])
        elif field.name == "withExec" and PROGRAM in field.args["args"]:
            return there
    pytest.fail("nothing compiles")


@pytest.mark.parametrize("stage", ["magma", "torch-wheel", "torchvision-wheel"])
def test_what_a_compile_uses_is_gone_after_it(stage: str) -> None:
    it = stages(OWN_MAGMA)[stage]
    assert {caches.COMPILER, PROGRAM} <= during_compile(it, MOUNTS, "withoutMount", "path")
    assert "CCACHE_DIR" in during_compile(it, ("withEnvVariable",), "withoutEnvVariable", "name")
    for add, take, key in (
        (MOUNTS, ("withoutMount",), "path"),
        (("withSecretVariable",), ("withoutSecretVariable",), "name"),
        (("withVolatileVariable",), ("withoutVolatileVariable",), "name"),
        (("withEnvVariable",), ("withoutEnvVariable",), "name"),
    ):
        left = left_over(it, add=add, take=take, key=key)
        assert not [
            name for name in left if name == PROGRAM or name.startswith(("CCACHE_", "/ccache"))
        ]
        assert left.isdisjoint(LIMITS)


# What is compiled


def variables(lazy: Any) -> dict[str, str]:
    return {args["name"]: args["value"] for args in calls(lazy, "withEnvVariable")}


def test_the_build_of_torch_is_told_what_the_spec_says() -> None:
    it, made = build(COMPILED)
    torch = it.compiled[0]
    environment = variables(made["torch-wheel"])
    assert dict(torch.flags).items() <= environment.items()
    assert environment["TORCH_CUDA_ARCH_LIST"] == "7.5;8.6+PTX"
    assert environment["PYTORCH_BUILD_VERSION"] == "2.6.0+cu124"
    required = environment["PYTORCH_EXTRA_INSTALL_REQUIREMENTS"].split(" | ")
    assert required == list(torch.requires)
    assert any(package.startswith("nvidia-cudnn-cu12==") for package in required)
    assert environment["CXX"] == f"g++-{torch.toolchain.gcc}"
    launchers = {f"CMAKE_{language}_COMPILER_LAUNCHER" for language in ("C", "CXX", "CUDA")}
    assert {environment[name] for name in launchers} == {"ccache"}


def test_the_build_of_torchvision_is_told_what_the_spec_says() -> None:
    it, made = build(COMPILED)
    environment = variables(made["torchvision-wheel"])
    flags = dict(it.compiled[1].flags)
    assert flags.pop("NVCC_FLAGS") in environment["NVCC_FLAGS"]
    assert flags.items() <= environment.items()
    assert environment["TORCH_CUDA_ARCH_LIST"] == "7.5;8.6+PTX"
    assert (environment["BUILD_VERSION"], environment["PYTORCH_VERSION"]) == (
        "0.21.0+cu124",
        "2.6.0",
    )
    assert environment["FORCE_CUDA"] == "1"
    assert all("ccache" in environment[name] for name in ("CC", "CXX"))


@pytest.mark.parametrize("package", ["torch", "torchvision"])
def test_each_is_compiled_in_its_own_source(package: str) -> None:
    it = stages(COMPILED)
    made, source = it[f"{package}-wheel"], it[f"{package}-source"]
    (folder,) = [args["path"] for args in calls(made, "withMountedDirectory")
                 if args["source"] is source]  # fmt: skip
    assert calls(made, "withWorkdir")[-1] == {"path": folder}


def test_a_wheel_is_made_to_stand_on_its_own_before_it_leaves() -> None:
    for name in ("torch-wheel", "torchvision-wheel"):
        made = stages(COMPILED)[name]
        *_, build_command, graft = execs(made)
        assert "build" in build_command
        assert "--wheel" in build_command
        assert graft == [f"{TOOLS}/bin/python", "/run/graft.py", "/out"]
        assert chain(made)[-1].args == {"path": "/out"}


def test_magma_is_compiled_for_the_same_gpus_and_linked() -> None:
    it = stages(OWN_MAGMA)
    (configure,) = [command for command in execs(it["magma"]) if command[:1] == ["cmake"]]
    assert "-DCMAKE_CUDA_ARCHITECTURES=75-real;86" in configure
    (linked,) = [args for args in calls(it["torch-tools"], "withDirectory")
                 if stands_on(args["source"], it["magma"])]  # fmt: skip
    assert variables(it["torch-wheel"])["MAGMA_HOME"] == linked["path"]


def test_what_magma_generates_has_no_date() -> None:
    # Or the compiler cache knows none of it on another machine, or after a pruning.
    (generate,) = [command for command in execs(stages(OWN_MAGMA)["magma"])
                   if "make generate" in command[2]]  # fmt: skip
    undated, _, _ = generate[2].partition("make generate")
    assert "datetime.now().ctime()" in undated


def test_magma_is_patched_before_it_is_configured() -> None:
    settings = OWN_MAGMA | {"pytorch_version_tag": "v2.11.0", "cuda_version": "13.0"}
    it, made = build(settings)
    assert it.compiled[0].magma is not None
    assert it.compiled[0].magma.patches
    commands = [command[0] for command in execs(made["magma"])]
    assert 0 < commands.index("sed") < commands.index("cmake")
    assert "sed" not in [command[0] for command in execs(stages(OWN_MAGMA)["magma"])]


def test_the_distributions_magma_is_installed_and_not_compiled() -> None:
    it = stages(COMPILED)
    assert not [name for name in it if name.startswith("magma")]
    assert any("libmagma-dev" in command for command in execs(it["torch-tools"]))
    off = stages(COMPILED | {"magma_source": "off"})
    assert not any("libmagma-dev" in command for command in execs(off["torch-tools"]))


@pytest.mark.parametrize(
    ("settings", "way", "packages"),
    [
        ({}, "apt", ["nvidia-cuda-toolkit"]),
        ({"linux_distro": "ubuntu", "cuda_version": "12.6"}, "image", []),
        ({"pytorch_version_tag": "v2.15.0"}, "wheels", []),
    ],
)
def test_cuda_is_in_one_place_however_it_comes(
    settings: dict[str, str], way: str, packages: list[str]
) -> None:
    it, made = build(COMPILED | settings)
    tools = made["toolchain"]
    *_, link = execs(tools)
    assert link[:3] == ["bash", "/run/link_cuda.sh", way]
    asked = {word for command in execs(tools) for word in command}
    assert [word for word in asked if "cuda-toolkit" in word] == packages
    assert ("nvidia-cuda-nvcc" in " ".join(asked)) is (way == "wheels")
    assert variables(tools)["CUDA_HOME"] == "/usr/local/cuda"
    bottom = it.compiled[0].toolchain.base.image
    assert (bottom != it.base.image) is (way == "image")
    assert chain(tools)[1].args == {"address": bottom}
    # The image stands on its own base in any case.
    assert chain(made["image"])[1].args == {"address": it.base.image}


def test_mkl_is_compiled_in_where_it_is_wanted_and_openblas_else() -> None:
    for mode in ("include", "exclude"):
        tools = stages(COMPILED | {"mkl_mode": mode})["toolchain"]
        files = [field.args.get("path") for field in everything(tools)]
        assert (f"reqs/{reqs.BUILD_MKL}" in files) is (mode == "include")
        words = {word for command in execs(tools) for word in command}
        assert ("libopenblas-dev" in words) is (mode == "exclude")


def test_build_tools_come_with_their_hashes() -> None:
    it, made = build(COMPILED)
    pinned = [command for command in execs(made["toolchain"]) if "--requirement" in command]
    assert len(pinned) == 2
    assert all("--require-hashes" in command for command in pinned)
    files = [field.args.get("path") for field in everything(made["toolchain"])]
    assert f"reqs/{it.compiled[0].toolchain.tools.name}" in files


@pytest.mark.parametrize("stage", ["toolchain", "torch-tools", "torchvision-tools"])
def test_no_mount_and_no_index_stays_in_what_compiles(stage: str) -> None:
    it = stages(COMPILED)[stage]
    assert left_over(it, add=MOUNTS, take=("withoutMount",), key="path") == set()
    secrets = left_over(
        it, add=("withSecretVariable",), take=("withoutSecretVariable",), key="name"
    )
    assert secrets == set()


# One wheel from another


def mounted(lazy: Any, source: Any) -> str:
    """Return where an object's own chain mounts a directory."""
    (path,) = [
        args["path"]
        for args in calls(lazy, "withMountedDirectory")
        if stands_on(args["source"], source) and len(chain(args["source"])) == len(chain(source))
    ]
    return str(path)


def test_torchvision_is_compiled_against_the_torch_it_will_run_with() -> None:
    it = stages(COMPILED)
    tools = it["torchvision-tools"]
    (wheels,) = [args["source"] for args in calls(tools, "withMountedDirectory")
                 if stands_on(args["source"], it["torch-wheel"])]  # fmt: skip
    *_, install = execs(tools)
    assert install[-1] == "torch==2.6.0+cu124"
    assert "--no-index" in install
    *_, download = execs(wheels)
    assert mounted(wheels, it["torch-wheel"]).startswith(COMPILED_FOLDERS)
    assert f"{COMPILED_FOLDERS}*/*.whl" in download[2]
    assert not any(word.startswith("torch") for word in download)
    # What runs is what it was compiled against: the same wheels, and nothing fetched again.
    before = [args["source"] for args in calls(it["wheels"], "withDirectory")]
    assert [len(chain(args)) for args in before] == [len(chain(wheels))]


def test_torchvision_alone_is_compiled_against_the_official_torch() -> None:
    it = stages(VISION_ONLY)
    assert not [name for name in it if name.startswith(("torch-", "magma"))]
    *_, install = execs(it["torchvision-tools"])
    assert install[-1] == "torch==2.6.0"
    downloads = [command for command in execs(it["wheels"]) if "torch==2.6.0" in command]
    assert any(f"{COMPILED_FOLDERS}*/*.whl" in command[2] for command in downloads)


@pytest.mark.parametrize("settings", [COMPILED, VISION_ONLY], ids=["both", "torchvision"])
def test_compiled_wheels_are_taken_by_their_paths(settings: dict[str, str]) -> None:
    # An index may have wheels of the very same version, as PyTorch's own has.
    it, made = build(settings)
    wheels = made["wheels"]
    for wheel in it.compiled:
        assert mounted(wheels, made[f"{wheel.package}-wheel"]).startswith(COMPILED_FOLDERS)
    (download, *_) = [command for command in execs(wheels) if COMPILED_FOLDERS in str(command)]
    assert not any(f"{wheel.package}=={wheel.version}" in download for wheel in it.compiled)


def test_each_wheel_is_checked_where_nothing_of_the_toolchain_is() -> None:
    it, made = build(COMPILED)
    assert it.torch is not None
    wanted = ([it.torch.pins[0]], ["pip", *it.torch.pins, "intel-openmp"])
    lister = dag.file("cuobjdump", "")
    for wheel, pins in zip(it.compiled, wanted, strict=True):
        check = made[f"{wheel.package}-check"]
        assert chain(check)[1].args == {"address": it.base.image}
        commands = list(execs(check))
        assert commands[-1][-len(pins) :] == pins
        assert "--no-index" in commands[-1]
        words = {word for command in commands for word in command}
        assert words.isdisjoint({"nvidia-cuda-toolkit", f"{TOOLS}/bin/pip"})
        wheels = calls(check, "withMountedDirectory")[-1]["source"]
        assert stands_on(wheels, made[f"{wheel.package}-wheel"])
        *_, program, _, probe = chain(verify.probe_wheel(check, wheel, lister))
        assert program.args["source"] is lister
        asked = {"--torch", f"--code={program.args['path']}"}
        asked |= {"--no-vision"} if wheel.package == "torch" else set()
        assert probe.args["args"][0] == f"{VENV}/bin/python"
        assert {word for word in probe.args["args"] if word.startswith("--")} == asked


def test_the_last_check_is_made_in_the_layer_that_the_image_has() -> None:
    made = stages(COMPILED)
    assert stands_on(made["torch"], made["torchvision-check"])
    assert stands_on(made["torchvision-check"], made["torch"])


@pytest.mark.parametrize("settings", [COMPILED, VISION_ONLY], ids=["both", "torchvision"])
@pytest.mark.parametrize("stored", [(), ("torchvision",)], ids=["compiled", "stored"])
def test_another_torchvision_leaves_the_layer_of_torch_as_it_is(
    settings: dict[str, str], stored: tuple[str, ...]
) -> None:
    it, made = build(settings, stored=stored)
    assert it.torch is not None
    first, second = [args["source"] for args in calls(made["torch"], "withMountedDirectory")][-2:]
    vision = made.get("torchvision-wheel") or dag.directory().with_new_directory("torchvision")
    assert stands_on(second, vision)
    assert not stands_on(first, vision)
    only_torch, everything = execs(made["torch"])[-2:]
    assert only_torch[-1] == it.torch.pins[0]
    assert set(it.torch.pins) < set(everything)


def test_wheels_from_an_index_need_nothing_that_compiles() -> None:
    it = stages({"pytorch_version_tag": "v2.6.0", "cca": "8.6"})
    assert not [name for name in it if name.endswith(("-wheel", "-check", "-source"))]
    assert "toolchain" not in it
    assert COMPILED_FOLDERS not in str(execs(it["wheels"]))


# The wheel store

BOTH = ("torch", "torchvision")


def test_what_is_in_the_wheel_store_is_not_compiled() -> None:
    def left_out(*stored: str) -> set[str]:
        return stages(OWN_MAGMA).keys() - stages(OWN_MAGMA, stored=stored).keys()

    torch = {f"torch-{part}" for part in ("tools", "source", "wheel", "check")}
    vision = {f"torchvision-{part}" for part in ("tools", "source", "wheel", "check")}
    assert left_out("torch") == {"magma", "magma-source", *torch}
    assert left_out("torchvision") == vision
    assert left_out(*BOTH) == {"toolchain", "magma", "magma-source", *torch, *vision}


@pytest.mark.parametrize("stored", [("torch",), ("torchvision",), BOTH], ids=" and ".join)
def test_a_stored_wheel_takes_the_place_of_the_compiled(stored: tuple[str, ...]) -> None:
    it, made = build(COMPILED, stored=stored)
    everything_compiled = {
        tuple(field.args["args"])
        for field in everything(made["image"])
        if field.name == "withExec" and PROGRAM in field.args["args"]
    }
    assert len(everything_compiled) == (0 if stored == BOTH else 1)
    mounts = [args["source"] for args in calls(made["wheels"], "withMountedDirectory")]
    names = [next((a["path"] for a in calls(m, "withNewDirectory")), "") for m in mounts]
    # The same order as ever: torch, then torchvision.
    assert names == [wheel.package if wheel.package in stored else "" for wheel in it.compiled]
    if "torchvision" not in stored:
        (wheels,) = [args["source"] for args in calls(made["torchvision-tools"],
                                                      "withMountedDirectory")
                     if args["path"] == "/mnt/wheels"]  # fmt: skip
        (torch,) = [args["source"] for args in calls(wheels, "withMountedDirectory")]
        assert calls(torch, "withNewDirectory")[0]["path"] == "torch"


# What ships


def test_the_image_has_nothing_of_what_compiled_it() -> None:
    it = stages(OWN_MAGMA)
    image = it["image"]
    assert compiles(image) == []
    (shell,) = calls(image, "withDirectory", "withFile", "withRootfs")
    assert not [
        it for it in everything(shell["source"]) if it.args.get("path", "").endswith(".whl")
    ]
    words = {word for command in execs(image) for word in command}
    assert not [word for word in words if word.startswith((TOOLS, "/src/", "/usr/local/cuda"))]
    paths = {args["path"] for args in calls(image, *MOUNTS)}
    assert caches.COMPILER not in paths
    assert not [name for name in variables(image) if "CUDA" in name or "CCACHE" in name]
    assert all(
        "torch==2.6.0+cu124" in command for command in execs(image) if "--no-index" in command
    )


def test_the_devel_image_is_one_command_away_from_a_build() -> None:
    it, made = build(OWN_MAGMA, "devel")
    image = made["image"]
    assert not any(compiles(lazy) for name, lazy in made.items() if name != "magma")
    assert stands_on(image, made["toolchain"])
    assert stands_on(image, made["magma"])
    (source,) = [args["path"] for args in calls(image, "withDirectory")
                 if args["source"] is made["torch-source"]]  # fmt: skip
    assert calls(image, "withWorkdir")[-1] == {"path": source}
    assert variables(image)["TORCH_CUDA_ARCH_LIST"] == "7.5;8.6+PTX"
    assert dict(it.compiled[0].flags).items() <= variables(image).items()
    assert f"{VENV}/bin" not in variables(image)["PATH"]
    assert left_over(image, add=MOUNTS, take=("withoutMount",), key="path") == set()
    *_, probe = chain(verify.probe(image, it))
    assert probe.args["args"] == [f"{TOOLS}/bin/python", "/run/probe.py"]


# What enters the build


def test_the_files_named_and_nothing_else_are_sent_to_compile() -> None:
    it, made = build(OWN_MAGMA)
    sent = [field for field in everything(*made.values()) if field.type_name == "Host"]
    files = {field.args["path"] for field in sent if field.name == "file"}
    wanted = (
        reqs.PIP_BUILD,
        reqs.PIP_MKL,
        reqs.PIP_NPM,
        reqs.BUILD_MKL,
        it.compiled[0].toolchain.tools.name,
    )
    assert files == {f"reqs/{name}" for name in wanted}
    assert {field.name for field in sent} == {"file", "directory"}


def test_what_wheels_run_with_is_fetched_although_only_bases_are_locked_yet() -> None:
    """A first lock of what is compiled has no packages, and torch is checked with its own."""
    made = spec("train", **COMPILED).model_copy(update={"lock": Locked()})
    bottom = base.base_from_registry(made.base.image)
    given = dataclasses.replace(inputs.inputs(Path("reqs"), [reqs.PIP_TRAIN]), compiling=limited())
    checked = targets.stages(made, bottom, bottom, given, {}, {})["torch-check"]
    downloads = [it for it in everything_executed(checked) if "download" in it]
    assert downloads
    assert not any("--no-deps" in it for it in downloads)


def everything_executed(lazy: Any) -> list[list[str]]:
    return [field.args["args"] for field in everything(lazy) if field.name == "withExec"]
