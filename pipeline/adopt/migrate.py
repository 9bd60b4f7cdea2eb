"""From a checkout of the original to ours: what to write, and what became of each thing."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pipeline import reqs
from pipeline.adopt import files, packages, services
from pipeline.adopt.files import Change
from pipeline.adopt.original import Original
from pipeline.adopt.report import Fate, Item
from pipeline.errors import ConfigError, Problem
from pipeline.settings import ALIASES, NAMES, RETIRED, load, refusal, shown

ENV: Final = ".env"
_NOWHERE: Final = Path("/nonexistent/.env")

_SERVICES: Final = {"full": "train", "deploy": "train", "hub": "train", "ssh": "train"}
_OWN_OF_COMPOSE = re.compile(r"(DOCKER|NVIDIA|BUILDKIT|BUILDX)_\w+")
_NAMES_OF_IMAGES = re.compile(r"(IMAGE_NAME|TRAIN_NAME|TORCH_NAME|INSTALL_NAME|\w+_NAME)(_\w+)?")
# Either names the version; the one that the build mode does not read was never wanted.
_VERSIONS: Final = {
    "PYTORCH_VERSION": "PYTORCH_VERSION_TAG",
    "TORCHVISION_VERSION": "TORCHVISION_VERSION_TAG",
}
_NO_DEFAULT: Final = ("SERVICE", "PYTORCH_INDEX_URL", "HOST_ROOT")

_HEAD: Final = "# Written by `python -m pipeline migrate`, which never overwrites it.\n"
_OVERRIDE_HEAD: Final = (
    "# Settings of this machine for Docker Compose; git ignores this file. Written by\n"
    "# `python -m pipeline migrate`, from the Compose files of the original.\n"
)
_REQS_HEAD: Final = "# From the original, by `python -m pipeline migrate`:"


@dataclass(frozen=True)
class Migration:
    """What to write, what became of each thing, and what the settings refuse."""

    settings: Mapping[str, str]
    env: str
    override: str
    """Empty if there is nothing to override."""
    apt: tuple[str, ...]
    pip: tuple[str, ...]
    items: tuple[Item, ...]
    problems: tuple[Problem, ...]
    """What the settings refuse, each alone and together."""

    def changes(self, into: Path) -> list[Change]:
        """Return what is to become of the files of a folder."""
        made = [files.new(into / ENV, self.env)]
        if self.override:
            made.append(files.new(into / services.OVERRIDE, self.override))
        for name, lines in ((reqs.APT_TRAIN, self.apt), (reqs.PIP_TRAIN, self.pip)):
            made.append(files.with_lines(into / reqs.FOLDER / name, lines, _REQS_HEAD))
        return made


def migration(original: Original, folder: Path = reqs.FOLDER) -> Migration:
    """Return what a checkout of the original comes to; `folder` has our requirements.

    Raises:
        CressetError: a file of conda's is not YAML.

    """
    service = original.env.get("SERVICE", "") or _only_service(original)
    found = services.services(original, service)
    items, values, problems = _variables(original, found)
    values = _completed(values, found, items)
    shell, _ = reqs.apt_packages(_text(folder / reqs.APT_SHELL), python="3.13", file=reqs.APT_SHELL)
    ours = _SERVICES.get(service, service)
    listed = packages.packages(original.requirements, ours, shell)
    if listed.python and "PYTHON_VERSION" not in values and ours == "simple":
        values["PYTHON_VERSION"] = listed.python
    values, refused = _allowed(values)
    problems += refused
    problems += _together(values, folder)
    items += [*found.items, *listed.items]
    items += [
        Item(name, "file", name, Fate.LEFT,
             "no Dockerfile is read: packages that it installs belong into reqs/")
        for name in original.dockerfiles
    ]  # fmt: skip
    override = services.override_text(found.override, _OVERRIDE_HEAD) if found.override else ""
    lines = [f"{name}={files.quoted(values[name])}" for name in _ordered(values)]
    env = _HEAD + "\n".join(lines) + "\n"
    return Migration(
        values, env, override, tuple(listed.apt), tuple(listed.pip), tuple(items), tuple(problems)
    )


def _only_service(original: Original) -> str:
    listed = list(original.compose.get("services") or {})
    # What the Makefile took: the only one, full while there was one, else train.
    return listed[0] if len(listed) == 1 else "full" if "full" in listed else "train"


def _text(path: Path) -> str:
    return path.read_text() if path.is_file() else ""


def _ordered(values: Mapping[str, str]) -> list[str]:
    return [it for it in NAMES if it in values] + [it for it in values if it not in NAMES]


def _variables(
    original: Original, found: services.Found
) -> tuple[list[Item], dict[str, str], list[Problem]]:
    """Return what becomes of the lines of ``.env``, and the settings that they come to."""
    items: list[Item] = []
    values: dict[str, str] = {}
    problems: list[Problem] = []
    for name, value in original.env.items():
        fate, word = _variable(name, value, original, values, found)
        if fate is not None:
            items.append(Item(ENV, "variable", name, fate, word))
        setting = ALIASES.get(name, name)
        if setting in values and (problem := refusal(setting, values[setting])):
            del values[setting]
            problems.append(problem)
            items[-1] = Item(ENV, "variable", name, Fate.REFUSED, problem.why)
    return items, values, problems


def _variable(  # noqa: PLR0911, PLR0912 - one case a kind of variable
    name: str, value: str, original: Original, values: dict[str, str], found: services.Found
) -> tuple[Fate | None, str]:
    """Return what becomes of a variable, and put what it comes to into `values`."""
    if not value:
        return Fate.LEFT, "it is empty, which counts as not set"
    if name == "HOST_ROOT":
        values[name] = _root(value, original)
        return Fate.MAPPED, f"HOST_ROOT={values[name]}"
    if name == "SERVICE":
        values[name] = _SERVICES.get(value, value)
        changed = values[name] != value
        return (Fate.MAPPED if changed else Fate.CARRIED), f"SERVICE={values[name]}"
    if name == "IMAGE_NAME":
        return _image_name(value, original, values)
    if name in {"PROJECT", "COMPOSE_PROJECT_NAME"}:
        values["PROJECT"] = value.lower()
        carried = name == "PROJECT" and value == value.lower()
        return (Fate.CARRIED if carried else Fate.MAPPED), f"PROJECT={value.lower()}"
    if name in NAMES:
        values[name] = value
        return Fate.CARRIED, f"{name}={shown(value, name)}"
    if name in ALIASES:
        values.setdefault(ALIASES[name], value)
        return Fate.MAPPED, f"{ALIASES[name]}={value}"
    if name in RETIRED:
        return Fate.LEFT, RETIRED[name]
    if re.fullmatch(r"USE_\w+|BUILD_\w+", name):
        services.flag(ENV, "variable", name, value, original, found)
        return None, ""
    if _OWN_OF_COMPOSE.fullmatch(name):
        values[name] = value
        return Fate.CARRIED, "Docker's own, which reads the same file"
    if name.startswith("COMPOSE_"):
        return Fate.LEFT, "our verbs choose Compose's files and profiles for this machine"
    if name in {"YEAR", "MONTH"}:
        return Fate.LEFT, RETIRED.get(f"NGC_{name}", f"NGC_{name} is its name now")
    if re.search(rf"\$\{{?{name}\b", original.compose_text):
        return Fate.MAPPED, f"its value stands in {services.OVERRIDE}, where it was referred to"
    if _NAMES_OF_IMAGES.fullmatch(name):
        return Fate.LEFT, "IMAGE_NAME names the image, and the variant its tag"
    word = "nothing of ours reads it; `environment` of a service in the override gives it to one"
    return Fate.LEFT, word


def _root(value: str, original: Original) -> str:
    place = os.path.expanduser(value)  # noqa: PTH111 - a Path would lose nothing, and say no more
    return os.path.normpath(original.root / place)


def _image_name(value: str, original: Original, values: dict[str, str]) -> tuple[Fate, str]:
    """Map the name of the image: a tag of one user is none of an image that holds no user."""
    repository, colon, tag = value.lower().partition(":")
    user = original.env.get("USR", "").lower()
    if not colon:
        # In 2022 it was the tag alone, of a repository that Compose named.
        repository, tag = "cresset", repository
    of_user = bool(user) and re.search(rf"(^|[._-]){re.escape(user)}([._-]|$)", tag)
    if of_user or re.search(r"\d{8}-\d{6}", tag) or not colon:
        values["IMAGE_NAME"] = repository
        word = f"IMAGE_NAME={repository}; its tag, {tag}, was of one user or day: no image here is"
        return Fate.MAPPED, word
    values["IMAGE_NAME"] = value.lower()
    return Fate.CARRIED, f"IMAGE_NAME={value.lower()}"


def _completed(values: dict[str, str], found: services.Found, items: list[Item]) -> dict[str, str]:
    """Return the settings with what the Compose files add where ``.env`` says nothing."""
    complete = dict(values)
    named = {it.name for it in items if it.place == ENV and it.fate is not Fate.LEFT}
    for name, value in {**found.defaults, **found.settings}.items():
        pair = _VERSIONS.get(name) or next((a for a, b in _VERSIONS.items() if b == name), "")
        if name in complete or name in named or (name in _NO_DEFAULT and name in found.defaults):
            continue
        if pair and pair in values:
            continue
        complete[name] = value
        if name in found.defaults:
            what = "what docker-compose.yaml took where .env says nothing"
            items.append(Item(ENV, "default", name, Fate.CARRIED, f"{name}={value}: {what}"))
    # Where neither of a pair was in .env, the one that the mode reads.
    included = complete.get("BUILD_MODE", NAMES["BUILD_MODE"].default) == "include"
    for version, tag in _VERSIONS.items():
        if version in complete and tag in complete and not {version, tag} & values.keys():
            unread = version if included else tag
            del complete[unread]
            items[:] = [it for it in items if (it.kind, it.name) != ("default", unread)]
    return {name: value for name, value in complete.items() if value}


def _allowed(values: Mapping[str, str]) -> tuple[dict[str, str], list[Problem]]:
    """Return the values that the settings take, and what is wrong with the others."""
    refused = {name: refusal(name, value) for name, value in values.items() if name in NAMES}
    problems = [it for it in refused.values() if it]
    return {name: it for name, it in values.items() if not refused.get(name)}, problems


def _together(values: Mapping[str, str], folder: Path) -> Sequence[Problem]:
    """Return what is wrong with the settings together: no build would begin."""
    from pipeline import validate  # noqa: PLC0415 - it reads every table

    ours: dict[str, Any] = {name: value for name, value in values.items() if name in NAMES}
    loaded = load(ours, environ={}, env_file=_NOWHERE)
    try:
        validate.image_spec(loaded.settings, folder=folder)
    except ConfigError as error:
        return error.problems
    return ()
