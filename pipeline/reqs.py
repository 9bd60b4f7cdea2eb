"""The requirements files of ``reqs/``: the only files of a checkout that enter a build."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

from pipeline.errors import Problem
from pipeline.settings import shown
from pipeline.spec import ImageSpec, ReqsFile

FOLDER = Path("reqs")
APT_SHELL = "apt-shell.requirements.txt"
APT_TRAIN = "apt-train.requirements.txt"
PIP_TRAIN = "pip-train.requirements.txt"
PIP_MKL = "pip-mkl.requirements.txt"
BUILD_MKL = "build-mkl.requirements.txt"
PIP_BUILD = "pip-build.requirements.txt"
PIP_CHECK = "pip-check.requirements.txt"
PIP_NPM = "pip-npm.requirements.txt"

_APT = re.compile(
    r"(?P<name>[a-z0-9][a-z0-9+.-]+(:[a-z0-9]+)?)\s*(==?\s*(?P<version>[\w.+:~-]+\*?))?", re.ASCII
)
_APT_FORM = "name, name==version, name=version, each with an optional ; marker and # comment"
_INCLUDE = re.compile(
    r"(?:-[rcf]\s*|-e\s+|--(?:requirement|constraint|find-links|editable)(?:\s+|=))(?P<file>\S+)"
)
_LOCAL = re.compile(r"(?:[^@\s]+\s*@\s*)?(?P<file>(?:file:|\.{1,2}/|/)\S+)")


def apt_packages(text: str, *, python: str, file: str) -> tuple[list[str], list[Problem]]:
    """Return apt-get's arguments for a requirements file, and what is wrong with it.

    Markers are PEP 508's, judged for the image: `python` is its minor version.
    """
    packages: list[str] = []
    problems: list[Problem] = []
    for number, line in enumerate(text.splitlines(), 1):
        content = re.split(r"(?:^|\s)#", line, maxsplit=1)[0].strip()
        if not content:
            continue
        requirement, _, marker = (part.strip() for part in content.partition(";"))
        match = _APT.fullmatch(requirement)
        if match is None:
            why = "not an apt requirement"
        elif requirement.endswith("-"):
            why = "apt-get reads a - at the end as: remove this package"
        elif marker and (why := _marker_error(marker, python)):
            pass
        else:
            if not marker or _holds(marker, python):
                version = match["version"]
                packages.append(f"{match['name']}={version}" if version else match["name"])
            continue
        problems.append(Problem(f"{file}:{number}", content, why, allowed=_APT_FORM))
    return packages, problems


def _marker_error(marker: str, python: str) -> str:
    try:
        _holds(marker, python)
    except ValueError as error:  # of packaging's, one a way in which a marker can be wrong
        return f"not an environment marker: {str(error).splitlines()[0]}"
    return ""


def _holds(marker: str, python: str) -> bool:
    from packaging.markers import Marker  # noqa: PLC0415 - 50 ms, rarely needed

    image = {
        "implementation_name": "cpython",
        "os_name": "posix",
        "platform_machine": "x86_64",
        "platform_python_implementation": "CPython",
        "platform_system": "Linux",
        "python_full_version": f"{python}.0",
        "python_version": python,
        "sys_platform": "linux",
    }
    return Marker(marker).evaluate(image)


def pip_files(folder: Path, name: str) -> tuple[list[ReqsFile], list[Problem]]:
    """Return a pip requirements file and all files it names, hashed, and what is wrong.

    Only files below `folder` can enter a build; anything else that the file names is a problem.
    """
    files: dict[str, ReqsFile] = {}
    problems: list[Problem] = []
    waiting = [(name, "")]
    while waiting:
        current, named_by = waiting.pop(0)
        path = Path(os.path.normpath(folder / current))
        if not path.resolve().is_relative_to(folder.resolve()):
            problems.append(_outside(named_by, current, folder))
            continue
        current = os.path.relpath(path, folder)
        if current in files:
            continue
        try:
            content = path.read_bytes()
            text = content.decode() if path.suffix in {".txt", ".in"} else ""
        except (OSError, UnicodeDecodeError) as error:
            problems.append(_unreadable(named_by or str(path), current, error))
            continue
        files[current] = ReqsFile(name=current, sha256=hashlib.sha256(content).hexdigest())
        waiting += [
            (found, f"{path}:{number}")
            for number, line in enumerate(text.splitlines(), 1)
            if (found := _named_file(line.strip(), current))
        ]
    return list(files.values()), problems


def _named_file(line: str, includer: str) -> str:
    """Return the file of the folder that a line names, as uv takes it, which runs in the folder.

    Only requirements files are named from the file that includes them.
    """
    match = _INCLUDE.match(line) or _LOCAL.match(line)
    file = match["file"] if match else ""
    if not file or file.startswith(("http://", "https://")):
        return ""
    included = _INCLUDE.match(line) and not line.startswith(("-e", "--editable"))
    return str(Path(includer).parent / file) if included else file.removeprefix("file:")


def _outside(where: str, file: str, folder: Path) -> Problem:
    return Problem(
        where,
        file,
        f"names a file outside {folder}/, and nothing else enters a build",
        next_step=f"copy it into {folder}/ and name it from there",
    )


def _unreadable(where: str, file: str, error: Exception) -> Problem:
    reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
    return Problem(where, file, f"cannot be read: {reason}", next_step="create it or take it out")


def check_pip(folder: Path, spec: ImageSpec) -> list[Problem]:
    """Return the lines that are not requirements, or that contradict torch's chosen versions.

    A resolver would find both too, after minutes.
    """
    from packaging.requirements import InvalidRequirement, Requirement  # noqa: PLC0415 - 50 ms
    from packaging.utils import canonicalize_name  # noqa: PLC0415

    torch = spec.torch
    pinned = {"torch": torch.version, "torchvision": torch.vision} if torch else {}
    problems: list[Problem] = []
    for file in spec.pip:
        path = folder / file.name
        if path.suffix not in {".txt", ".in"}:
            continue
        for number, content in _logical_lines(path.read_text()):
            if content.startswith("-") or _LOCAL.match(content):
                continue
            where = f"{path}:{number}"
            try:
                requirement = Requirement(re.split(r"\s--hash", content, maxsplit=1)[0])
            except InvalidRequirement as error:
                why = f"not a pip requirement: {shown(str(error).splitlines()[0])}"
                form = "as pip: name==1.2, name>=1"
                problems.append(Problem(where, shown(content), why, allowed=form))
                continue
            if requirement.marker and not _holds(str(requirement.marker), spec.python):
                continue
            version = pinned.get(canonicalize_name(requirement.name))
            if version and not requirement.specifier.contains(version, prereleases=True):
                problems.append(
                    Problem(
                        where,
                        shown(content),
                        f"contradicts the {requirement.name} {version} that the settings choose",
                        next_step="take the line out and set PYTORCH_VERSION_TAG or "
                        "TORCHVISION_VERSION_TAG instead",
                    )
                )
    return problems


def _logical_lines(text: str) -> list[tuple[int, str]]:
    joined = text.replace("\\\r\n", " ").replace("\\\n", " ")
    stripped = ((n, re.split(r"(?:^|\s)#", line)[0].strip()) for n, line in
                enumerate(joined.splitlines(), 1))  # fmt: skip
    return [(number, content) for number, content in stripped if content]
