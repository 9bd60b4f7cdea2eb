"""The Dockerfile that `eject` writes, read back and held against the calls of the stages."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from pipeline.adopt import eject
from pipeline.adopt.dockerfile import Copied
from pipeline.labels import labels as labels_of
from pipeline.publish import KEY_LABEL
from pipeline.spec import ImageSpec
from pipeline.stages import base, inputs, targets
from tests.graph.graph import calls, chain, execs
from tests.unit.running import ROOT
from tests.unit.specs import spec_in

REQS = ROOT / "reqs"
TORCH = {"pytorch_version_tag": "v2.6.0", "cca": "8.6"}
KINDS: dict[str, tuple[str, dict[str, str]]] = {
    "train": ("train", {}),
    "another index, Python and zone": (
        "train",
        {**TORCH, "cuda_version": "12.6", "python_version": "3.12", "tz": "Asia/Seoul"},
    ),
    "without MKL": ("train", {"mkl_mode": "exclude", "linux_distro": "ubuntu"}),
    "simple": ("simple", {}),
    "simple with another Python": ("simple", {"python_version": "3.12"}),
    "compiled": ("train", {**TORCH, "build_mode": "include"}),
    "torchvision compiled": ("train", {**TORCH, "vision_source": "git"}),
}


@dataclass
class Stage:
    """What a reader of a Dockerfile would say of one of its stages."""

    below: str
    commands: list[tuple[list[str], dict[str, str], dict[str, str], str]] = field(
        default_factory=list
    )
    """Words, mounts by their place, variables of the command, and its folder."""
    variables: dict[str, str] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)
    copies: list[list[str]] = field(default_factory=list)
    entrypoint: Any = None
    command: Any = None
    folder: str = ""


@dataclass(frozen=True)
class Case:
    spec: ImageSpec
    files: dict[str, Copied]
    read: dict[str, Stage]
    graph: dict[str, Any]

    def whole(self, name: str) -> Stage:
        """Return a stage with all below it."""
        own = self.read[name]
        if own.below not in self.read:
            return own
        below = self.whole(own.below)
        return Stage(
            below.below,
            below.commands + own.commands,
            below.variables | own.variables,
            below.labels | own.labels,
            below.copies + own.copies,
            own.entrypoint or below.entrypoint,
            own.command or below.command,
            own.folder or below.folder,
        )


@pytest.fixture(params=KINDS)
def case(request: pytest.FixtureRequest) -> Case:
    target, settings = KINDS[request.param]
    it = spec_in(REQS, target, **settings)
    bottom = base.base_from_registry(it.base.image)
    given = inputs.inputs(
        REQS,
        [file.name for file in it.pip],
        torch_index_url=it.torch.index if it.torch and not it.torch.torch_wheel else "",
    )
    stored = {wheel.key: inputs.finished_wheel(Path("w"), wheel.package) for wheel in it.compiled}
    graph = targets.stages(it, bottom, bottom, given, labels_of(it, "origin"), stored)
    files = eject.ejected(it, "cresset", REQS)
    return Case(it, files, dict(read(files["Dockerfile"].content.decode())), graph)


def instructions(text: str) -> Iterator[tuple[str, str, str]]:
    """Yield keyword, words and heredoc of each instruction."""
    lines = iter(text.splitlines())
    for line in lines:
        while line.endswith("\\"):
            line = line[:-1] + next(lines)  # noqa: PLW2901
        if not line or line.startswith("#"):
            continue
        keyword, _, rest = line.partition(" ")
        document: list[str] = []
        if "<<'EOF'" in rest:
            for inner in lines:
                if inner == "EOF":
                    break
                document.append(inner)
        yield keyword, rest, "\n".join(document)


def read(text: str) -> Iterator[tuple[str, Stage]]:
    stage = Stage("")
    for keyword, rest, document in instructions(text):
        match keyword:
            case "FROM":
                below, name = re.fullmatch(r"(?:--platform=\S+ )?(\S+) AS (\S+)", rest).groups()  # type: ignore[union-attr]
                stage = Stage(below)
                yield name, stage
            case "RUN":
                stage.commands.append(command(rest, document))
            case "COPY":
                stage.copies.append([*shlex.split(rest), document])
            case "ENV":
                stage.variables |= pairs(rest)
            case "LABEL":
                stage.labels |= pairs(rest)
            case "ENTRYPOINT":
                stage.entrypoint = json.loads(rest)
            case "CMD":
                stage.command = json.loads(rest)
            case "WORKDIR":
                stage.folder = rest
            case _:
                pytest.fail(keyword)


def pairs(text: str) -> dict[str, str]:
    return dict(word.split("=", 1) for word in shlex.split(text))


def command(rest: str, document: str) -> tuple[list[str], dict[str, str], dict[str, str], str]:
    words = shlex.split(rest)
    mounts: dict[str, str] = {}
    while words and words[0].startswith("--mount="):
        kind, _, place = words.pop(0).removeprefix("--mount=").rpartition(",target=")
        mounts[place] = kind
    variables: dict[str, str] = {}
    folder = ""
    if words == ["<<EOF"]:
        head, *lines = document.replace(" \\\n", " ").splitlines()
        assert head == "set -e"
        words = ["sh", "-ec"]
        args: list[str] = []
        while lines and (match := re.match(r"(export|cd|set --) (.*)", lines[0])):
            if match[1] == "export":
                variables |= pairs(match[2])
            elif match[1] == "cd" and not match[2].startswith('"'):
                folder = match[2]
            elif match[1] == "set --":
                args = shlex.split(match[2])
            else:
                break
            lines.pop(0)
        return [*words, "\n".join(lines), *args], mounts, variables, folder
    if words[0] == "cd":
        folder = words[1]
        words = words[3:]
    while re.match(r"[A-Za-z_]+=", words[0]):
        variables |= pairs(shlex.quote(words.pop(0)))
    return words, mounts, variables, folder


def expected(lazy: Any) -> list[tuple[list[str], set[str], dict[str, str], str]]:
    """Return the commands of a container, each with what it finds mounted and set for itself."""
    fields = chain(lazy)
    mounts: set[str] = set()
    variables: dict[str, str] = {}
    folder = ""
    found = []
    for index, it in enumerate(fields):
        later = {(other.name, other.args.get("name")) for other in fields[index:]}
        match it.name:
            case "withMountedFile" | "withMountedDirectory" | "withMountedCache":
                mounts.add(it.args["path"])
            case "withoutMount":
                mounts.remove(it.args["path"])
            case "withEnvVariable" if ("withoutEnvVariable", it.args["name"]) in later:
                variables[it.args["name"]] = it.args["value"]
            case "withSecretVariable":
                variables[it.args["name"]] = chain(it.args["secret"])[-1].args["plaintext"]
            case "withoutEnvVariable" | "withoutSecretVariable":
                variables.pop(it.args["name"], None)
            case "withWorkdir" if any(other.name == "withoutWorkdir" for other in fields[index:]):
                folder = it.args["path"]
            case "withoutWorkdir":
                folder = ""
            case "withExec":
                words = it.args["args"]
                if words[:2] == ["sh", "-ec"]:
                    script = words[2].replace(" \\\n", " ").strip("\n")
                    words = ["sh", "-ec", script, *words[4:]]
                found.append((words, set(mounts), dict(variables), folder))
            case _:
                pass
    return found


@pytest.mark.parametrize("name", ["image", "wheels"])
def test_its_commands_are_those_of_the_stages_with_what_they_find(case: Case, name: str) -> None:
    if name not in case.graph:
        return
    wanted = expected(case.graph[name])
    # What the stages do without a command has one in a Dockerfile: the time zone.
    there = [it for it in case.whole(name).commands if it[0][0] not in {"rm", "ln"}]
    assert [it[0] for it in there] == [it[0] for it in wanted]
    for (words, mounts, *rest), (_, places, *wanted_rest) in zip(there, wanted, strict=True):
        assert (set(mounts), rest) == (places, wanted_rest), words
    assert len(wanted) == len(execs(case.graph[name])) > 2


def test_it_ends_as_the_image_does(case: Case) -> None:
    image, it = case.graph["image"], case.whole("image")
    assert it.below == case.spec.base.image
    taken_out = {args["name"] for args in calls(image, "withoutEnvVariable")}
    assert it.variables == {
        args["name"]: args["value"]
        for args in calls(image, "withEnvVariable")
        if args["name"] not in taken_out
    }
    labels = {args["name"]: args["value"] for args in calls(image, "withLabel")}
    assert labels.keys() - it.labels.keys() == {KEY_LABEL, "dev.cresset.base"}
    assert it.labels == {name: labels[name] for name in it.labels}
    assert it.entrypoint == calls(image, "withEntrypoint")[0]["args"]
    assert it.command == calls(image, "withDefaultArgs")[0]["args"]
    assert it.folder == case.spec.project_root
    zone = f"/usr/share/zoneinfo/{case.spec.timezone}"
    assert [words for words, *_ in it.commands][-2:] == [
        ["rm", "-f", "/etc/localtime"],
        ["ln", "-s", zone, "/etc/localtime"],
    ]
    assert it.copies[-1] == ["<<EOF", "/etc/timezone", case.spec.timezone]


def test_the_files_of_the_shell_are_those_of_the_image(case: Case) -> None:
    (source,) = [args["source"] for args in calls(case.graph["image"], "withDirectory")]
    wanted = {
        args["path"]: (args["contents"], args.get("permissions", 0o644))
        for args in calls(source, "withNewFile")
    }
    stage = case.read["files"]
    there = {}
    for *words, _ in stage.copies:
        if words[0].startswith("--chmod="):
            for path in words[1:-1]:
                place = f"{words[-1].removeprefix('/files')}{Path(path).name}"
                there[place] = case.files[path].content.decode(), int(words[0][8:], 8)
    assert there == wanted
    folders = {args["path"]: args["permissions"] for args in calls(source, "withNewDirectory")}
    made = [shlex.join(words) for words, *_ in stage.commands]
    for path, mode in folders.items():
        assert any(f"{mode:o} /files{path}" in line for line in made)
    assert ["--from=files", "/files/", "/", ""] in case.whole("image").copies


def test_all_that_it_takes_from_beside_it_is_there(case: Case) -> None:
    taken = set()
    for stage in case.read.values():
        for _, mounts, *_ in stage.commands:
            for kind in mounts.values():
                if kind.startswith("type=bind,source="):
                    taken.add(kind.removeprefix("type=bind,source="))
                elif kind.startswith("type=bind"):
                    assert re.match(r"type=bind,from=([\w-]+)", kind)[1] in case.read  # type: ignore[index]
        for *words, _ in stage.copies:
            if words[0].startswith("--chmod"):
                taken |= set(words[1:-1])
    folders = {str(Path(name).parent) for name in case.files}
    assert taken <= case.files.keys() | folders
    pinned = case.files["pins/pip-build.requirements.txt"].content
    assert pinned == (REQS / "pip-build.requirements.txt").read_bytes()


def test_compiled_wheels_come_from_a_folder_beside_it() -> None:
    it = spec_in(REQS, "train", **TORCH, build_mode="include")
    files = eject.ejected(it, "cresset", REQS)
    text = files["Dockerfile"].content.decode()
    assert "COPY wheels/torch-*.whl /" in text
    assert "COPY wheels/torchvision-*.whl /" in text
    assert "nvcc" not in text
    assert "pipeline wheels --output wheels" in files["README.md"].content.decode()
