"""The graph of each target: what runs, on what, and what is left in the image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from dagger import dag

from pipeline import caches, reqs
from pipeline.plan import plan
from pipeline.spec import ImageSpec
from pipeline.stages import base, inputs, targets, verify
from tests.graph.graph import calls, chain, everything, execs, left_over, objects, stands_on
from tests.unit.specs import spec

PASSWORD = "hunter2"  # noqa: S105 - to look for
URLS = {
    "index_url": f"https://me:{PASSWORD}@index/simple",
    "extra_index_url": f"https://me:{PASSWORD}@extra/simple",
    "torch_index_url": f"https://me:{PASSWORD}@torch/whl",
}
LABELS = {"org.opencontainers.image.title": "cresset"}
FILES = [reqs.PIP_TRAIN, "more.txt"]
MOUNTS = ("withMountedDirectory", "withMountedFile", "withMountedCache")
AFTER_ALL = ("withLabel", "withEntrypoint", "withDefaultArgs")


@dataclass(frozen=True)
class Built:
    spec: ImageSpec
    base: Any
    stages: Mapping[str, Any]

    @property
    def image(self) -> Any:
        return self.stages["image"]


COMPILED = {"build_mode": "include", "pytorch_version_tag": "v2.6.0", "cca": "8.6"}


def build(target: str, urls: Mapping[str, str] = URLS, **settings: str) -> Built:
    made = spec(target, **settings)
    bottom = base.base_from_registry(made.base.image)
    index, extra, torch = (urls.get(name, "") for name in URLS)
    given = inputs.inputs(
        Path("reqs"), FILES, index_url=index, extra_index_url=extra, torch_index_url=torch
    )
    return Built(made, bottom, targets.stages(made, bottom, bottom, given, LABELS, {}))


@pytest.fixture(params=["train", "simple", "compiled", "ngc"])
def built(request: pytest.FixtureRequest) -> Built:
    return build("train", URLS, **COMPILED) if request.param == "compiled" else build(request.param)


def said(command: list[str]) -> str:
    return " ".join(command)


# What runs


def test_the_train_image_is_made_by_these_commands_and_no_other() -> None:
    it = build("train")
    expected = [
        ["apt-get install", *it.spec.shell],
        ["install -d -m 1777 /var/lib/cresset/history /var/lib/cresset/ide"],
        ["apt-get install", "ca-certificates", "tzdata"],
        ["apt-get install", "python3"],
        ["uv", "venv", "/usr/bin/python3.13", "/opt/venv"],
        ["uv", "pip install", "--no-index", "torch==2.15.0", "torchvision==0.29.2"],
        ["uv", "pip install", f"--requirement /mnt/reqs/{reqs.PIP_TRAIN}", "--constraint"],
        ["find /opt/venv -type d", "chmod g+w"],
    ]
    commands = [said(command) for command in execs(it.image)]
    assert len(commands) == len(expected), commands
    for command, words in zip(commands, expected, strict=True):
        assert [word for word in words if word not in command] == [], command


def test_the_simple_image_has_nothing_of_torch_or_cuda() -> None:
    it = build("simple")
    asked = [said(command) for field in everything(it.image) for command in [field.args.get("args")]
             if command]  # fmt: skip
    assert len(asked) > 5
    assert not any(word in command for command in asked for word in ("torch", "nvidia", "intel"))
    variables = {args["name"] for args in calls(it.image, "withEnvVariable")}
    assert not any("NVIDIA" in name or name == "LD_PRELOAD" for name in variables)


def test_on_nvidias_image_stand_our_packages_in_a_venv_that_sees_its_own() -> None:
    it = build("ngc", ngc_year="25", ngc_month="09")
    assert chain(it.image)[1].args == {"address": "nvcr.io/nvidia/pytorch:25.09-py3"}
    expected = [
        ["apt-get install", *it.spec.shell],
        ["install -d -m 1777 /var/lib/cresset/history /var/lib/cresset/ide"],
        ["apt-get install", "python3-venv", "tzdata"],
        ["/usr/bin/python3.12 -m venv --system-site-packages /opt/venv"],
        ["/opt/venv/bin/pip install", f"--requirement /mnt/reqs/{reqs.PIP_TRAIN}"],
        ["find /opt/venv -type d", "chmod g+w"],
    ]
    commands = [said(command) for command in execs(it.image)]
    assert len(commands) == len(expected), commands
    for command, words in zip(commands, expected, strict=True):
        assert [word for word in words if word not in command] == [], command


def test_nvidias_constraints_hold_for_its_image_and_not_for_what_installs_the_prompt() -> None:
    it = build("ngc")
    (dropped,) = [
        field for field in chain(it.stages["installer"]) if field.args == {"name": "PIP_CONSTRAINT"}
    ]
    assert dropped.name == "withoutEnvVariable"
    assert not [args for args in calls(it.image, "withoutEnvVariable") if "PIP" in args["name"]]


def test_nvidias_variables_stay_and_its_path_is_only_added_to() -> None:
    it = build("ngc")
    *_, last = [args for args in calls(it.image, "withEnvVariable") if args["name"] == "PATH"]
    assert last == {"name": "PATH", "value": "/opt/venv/bin:${PATH}", "expand": True}
    ours = {args["name"] for args in calls(it.image, "withEnvVariable")}
    assert ours == {"PATH", "VIRTUAL_ENV", "LANG", "TZ", "DEBIAN_FRONTEND"}


def test_wheels_are_fetched_elsewhere_and_come_by_a_mount_and_one_install() -> None:
    it = build("train")
    wheels = it.stages["wheels"]
    assert [said(c) for c in execs(wheels) if "download" in c and "torch==2.15.0" in c]
    mounted = [args for args in calls(it.image, "withMountedDirectory") if args["source"] is wheels]
    assert len(mounted) == 1
    installs = [command for command in execs(it.image) if mounted[0]["path"] in command]
    assert len(installs) == 1
    assert "--no-index" in installs[0]


def test_the_shells_own_files_and_nothing_else_are_copied_into_an_image(built: Built) -> None:
    (files,) = calls(built.image, "withFile", "withFiles", "withDirectory", "withRootfs")
    paths = {args["path"] for args in calls(files["source"], "withNewFile", "withDirectory")}
    assert {"/usr/local/bin/enter", "/etc/zsh/zshrc", "/usr/local/share/zsh/pure"} <= paths
    assert all(path.startswith(("/etc/", "/usr/local/")) for path in paths)


def test_the_time_zone_is_set_for_every_way_of_reading_it() -> None:
    image = build("train", tz="Asia/Seoul").image
    (link,), (file,) = calls(image, "withSymlink"), calls(image, "withNewFile")
    assert (link["target"], link["linkName"]) == (
        "/usr/share/zoneinfo/Asia/Seoul",
        "/etc/localtime",
    )
    assert (file["path"], file["contents"]) == ("/etc/timezone", "Asia/Seoul\n")
    assert {"name": "TZ", "value": "Asia/Seoul"} in calls(image, "withEnvVariable")


def test_without_mkl_its_runtime_is_neither_fetched_nor_loaded() -> None:
    for mode, there in (("include", True), ("exclude", False)):
        it = build("train", mkl_mode=mode)
        sent = [field.args.get("path", "") for field in everything(it.image)]
        assert (f"reqs/{reqs.PIP_MKL}" in sent) is there
        preload = [
            a["value"] for a in calls(it.image, "withEnvVariable") if a["name"] == "LD_PRELOAD"
        ]
        assert ("libiomp5.so" in preload[0]) is there


def test_another_python_comes_by_uv_and_apts_own_by_apt() -> None:
    own, other = build("train"), build("train", python_version="3.12")
    assert not any("python install" in said(command) for command in execs(own.image))
    assert any("python install" in said(c) and "3.12" in c for c in execs(other.image))
    assert any("python install" in said(c) for c in execs(other.stages["wheels"]))


# What is left in the image


@pytest.mark.parametrize("stage", ["system", "torch", "apt", "pip", "image"])
@pytest.mark.parametrize("settings", [{}, COMPILED], ids=["wheels", "compiled"])
def test_every_mount_is_taken_out_again(stage: str, settings: dict[str, str]) -> None:
    it = build("train", URLS, **settings)
    mounted = {args["path"] for args in calls(it.stages[stage], *MOUNTS)}
    assert {"/var/cache/apt", "/var/lib/apt/lists"} <= mounted
    left = left_over(it.stages[stage], add=MOUNTS, take=("withoutMount",), key="path")
    assert left == set()


def test_every_cache_is_mounted_where_it_is_used(built: Built) -> None:
    for command, there in during_execs(built.image, MOUNTS, "withoutMount", "path"):
        if "apt-get" in said(command):
            assert {"/var/cache/apt", "/var/lib/apt/lists"} <= there
        if command[0].endswith("/uv"):
            assert {caches.UV, command[0]} <= there


def test_the_indexes_are_there_for_each_install_and_gone_after(built: Built) -> None:
    add, take = ("withSecretVariable",), ("withoutSecretVariable",)
    seen = [
        there
        for command, there in during_execs(built.image, add, take[0], "name")
        if command[0].endswith(("/uv", "/pip"))
    ]
    assert seen
    wanted = {"PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "UV_DEFAULT_INDEX", "UV_INDEX"}
    assert all(wanted <= there for there in seen)
    assert left_over(built.image, add=add, take=take, key="name") == set()


def during_execs(
    lazy: Any, add: tuple[str, ...], take: str, key: str
) -> list[tuple[list[str], set[str]]]:
    """Return each command with what is put in and not yet taken out while it runs."""
    there: set[str] = set()
    found = []
    for field in chain(lazy):
        if field.name in add:
            there.add(field.args[key])
        elif field.name == take:
            there.discard(field.args[key])
        elif field.name == "withExec":
            found.append((field.args["args"], set(there)))
    return found


@pytest.mark.parametrize(
    ("urls", "usual"),
    [(URLS, "cresset-index-url"), ({"torch_index_url": URLS["torch_index_url"]}, "")],
)
def test_torch_wheels_have_their_own_index_and_nothing_else_has(
    urls: Mapping[str, str], usual: str
) -> None:
    index, used = "", {}
    for field in chain(build("train", urls).stages["wheels"]):
        if field.name == "withSecretVariable" and field.args["name"] == "PIP_INDEX_URL":
            index = chain(field.args["secret"])[-1].args["name"]
        elif field.name == "withoutSecretVariable" and field.args["name"] == "PIP_INDEX_URL":
            index = ""
        elif field.name == "withExec":
            used[said(field.args["args"])] = index
    downloads = {command: index for command, index in used.items() if " download " in command}
    by_torch = {"torch==" in command: index for command, index in downloads.items()}
    assert by_torch == {True: "cresset-torch-index-url", False: usual}


def test_without_an_index_no_secret_is_made() -> None:
    fields = list(everything(*build("train", {}).stages.values()))
    assert not any("ecret" in field.name for field in fields)


def test_no_password_is_in_any_argument_but_the_secrets_own(built: Built) -> None:
    holders = {
        field.name
        for field in everything(*built.stages.values())
        if PASSWORD in repr({k: v for k, v in field.args.items() if not hasattr(v, "_ctx")})
    }
    assert holders == {"setSecret"}


def test_environment_and_labels_come_after_the_last_command(built: Built) -> None:
    names = [field.name for field in chain(built.image)]
    last = len(names) - 1 - names[::-1].index("withExec")
    assert not set(names[:last]) & set(AFTER_ALL)
    tail = calls(built.image, *AFTER_ALL, "withEnvVariable")
    assert LABELS.items() <= {(args.get("name"), args.get("value")) for args in tail}
    lasting = left_over(
        built.image, add=("withEnvVariable",), take=("withoutEnvVariable",), key="name"
    )
    after = {
        field.args["name"] for field in chain(built.image)[last:] if field.name == "withEnvVariable"
    }
    assert lasting == after
    assert {"PATH", "TZ", "VIRTUAL_ENV"} <= after


# What enters the build


def test_the_files_named_and_nothing_else_are_sent(built: Built) -> None:
    fields = everything(*built.stages.values(), verify.probe(built.image, built.spec))
    sent = [(field.name, field.args) for field in fields if field.type_name == "Host"]
    folders = [args for name, args in sent if name == "directory"]
    assert folders == [{"path": "reqs", "include": FILES}]
    ours = {reqs.PIP_BUILD, reqs.PIP_NPM}
    if built.spec.torch is not None:
        ours.add(reqs.PIP_MKL)
    for wheel in built.spec.compiled:
        ours |= {wheel.toolchain.tools.name, reqs.BUILD_MKL}
    files = [args["path"] for name, args in sent if name == "file"]
    assert set(files) == {f"reqs/{name}" for name in ours}
    assert len(sent) == len(folders) + len(files)


def test_a_base_archive_is_the_only_other_thing_that_is_sent() -> None:
    fields = everything(base.base_from_archive("/bases/mine.tar"))
    sent = [(field.name, field.args) for field in fields if field.type_name == "Host"]
    assert sent == [("file", {"path": "/bases/mine.tar"})]


def test_a_base_is_pulled_for_one_platform_with_nothing_in_between(built: Built) -> None:
    first, second = chain(built.image)[:2]
    assert (first.name, first.args) == ("container", {"platform": "linux/amd64"})
    assert (second.name, second.args) == ("from", {"address": built.spec.base.image})
    assert [field.name for field in chain(built.base)] == ["container", "from"]


def test_an_apt_mirror_is_replaced_only_where_it_is_asked_for() -> None:
    plain, mirrored = spec(), spec(deb_old="http://old.example", deb_new="http://mirror.example")
    bottom = base.base_from_registry(plain.base.image)
    assert base.with_apt_mirror(bottom, plain.base) is bottom
    (command,) = execs(base.with_apt_mirror(bottom, mirrored.base))
    assert command[-2:] == [r"http://old\.example", "http://mirror.example"]


# The plan


PLANNED: dict[str, tuple[str, dict[str, str]]] = {
    "train": ("train", {}),
    "train of another Python": ("train", {"python_version": "3.12"}),
    "simple": ("simple", {}),
    "simple of another Python": ("simple", {"python_version": "3.12"}),
    "compiled": ("train", COMPILED),
    "compiled with its own MAGMA": ("train", COMPILED | {"magma_source": "archive"}),
    "torch alone": (
        "train",
        COMPILED | {"pytorch_version_tag": "v2.13.0", "vision_source": "index"},
    ),
    "torchvision alone": ("train", COMPILED | {"build_mode": "exclude", "vision_source": "git"}),
    "devel": ("devel", COMPILED),
    "devel with its own MAGMA": ("devel", COMPILED | {"magma_source": "git"}),
    "ngc": ("ngc", {}),
}


@pytest.mark.parametrize("name", PLANNED)
def test_a_stage_stands_on_what_the_plan_says_it_needs(name: str) -> None:
    target, settings = PLANNED[name]
    built = build(target, URLS, **settings)
    needs: dict[str, set[str]] = {}
    for step in plan(built.spec):
        needs[step.name] = set(step.needs).union(*(needs[need] for need in step.needs))
    made = {"base": built.base, **built.stages}
    assert [step.name for step in plan(built.spec)] == [*made, "verify", "deliver", "attest"]
    earlier: dict[str, Any] = {}
    for stage, lazy in made.items():
        below = {other for other, it in earlier.items() if stands_on(lazy, it)}
        # What torchvision is checked in is the layer that the image has.
        same = {other for other in below if stands_on(earlier[other], lazy)}
        assert below - same == needs[stage] - same, stage
        earlier[stage] = lazy


def test_the_probe_is_mounted_and_knows_whether_there_is_torch(built: Built) -> None:
    lister = dag.file("cuobjdump", "") if built.spec.compiled else None
    probed = verify.probe(built.image, built.spec, lister)
    *_, mount, command = chain(probed)
    assert mount.name == "withMountedFile"
    assert objects(mount)
    assert command.args["args"][:2] == ["/opt/venv/bin/python", mount.args["path"]]
    asked = [it for it in command.args["args"] if it.startswith("--")]
    torch = [] if built.spec.torch is None else ["--torch"]
    torch = ["--own-torch"] if built.spec.target == "ngc" else torch
    (where,) = [args["path"] for args in calls(probed, "withMountedFile")
                if args["source"] is lister] or [""]  # fmt: skip
    assert bool(where) == bool(built.spec.compiled)
    assert asked == [*torch, *([f"--code={where}"] if where else [])]
