"""A checkout of the original as its user left it: its ``.env``, Compose files and requirements."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import CressetError

_COMPOSE = ("docker-compose.yaml", "docker-compose.yml", "compose.yaml", "compose.yml")
_OVERRIDE = ("docker-compose.override.yaml", "docker-compose.override.yml")

# ``$$`` is a dollar sign; a default may hold variables of its own.
_VARIABLE = re.compile(
    r"\$(?:(?P<dollar>\$)|(?P<plain>[A-Za-z_]\w*)"
    r"|\{(?P<name>[A-Za-z_]\w*)(?:(?P<how>:?[-+?])(?P<word>(?:[^{}]|\{[^{}]*\})*))?\})"
)


@dataclass(frozen=True)
class Original:
    """What was found; empty where there is nothing."""

    root: Path
    env: Mapping[str, str]
    compose: Mapping[str, Any]
    override: Mapping[str, Any]
    compose_text: str
    """Both Compose files as they are written, to look for names of variables in."""
    requirements: Mapping[str, str]
    """Files of ``reqs/`` by name."""
    dockerfiles: tuple[str, ...]

    @property
    def variables(self) -> Mapping[str, str]:
        """What the Compose files may refer to; the shell's own are not looked at."""
        return {"PWD": str(self.root), **self.env}


def original(path: Path) -> Original:
    """Return what a checkout holds.

    Raises:
        CressetError: it is no checkout of the original, or a file cannot be read.

    """
    root = Path(os.path.normpath(path.absolute()))
    compose, compose_text = _yaml_of(root, _COMPOSE)
    override, override_text = _yaml_of(root, _OVERRIDE)
    env = root / ".env"
    if not compose and not env.is_file():
        raise CressetError(
            f"{path} is no checkout of the original",
            why="it has neither a docker-compose.yaml nor a .env",
            next_step="name the folder that its Makefile is in",
        )
    folder = root / "reqs"
    names = sorted(it.name for it in folder.iterdir()) if folder.is_dir() else []
    dockerfiles = [*root.glob("*Dockerfile"), *root.glob("*/*Dockerfile")]
    return Original(
        root,
        _env(_text(env)) if env.is_file() else {},
        compose,
        override,
        compose_text + override_text,
        {name: _text(folder / name) for name in names if (folder / name).is_file()},
        tuple(sorted(str(it.relative_to(root)) for it in dockerfiles)),
    )


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise CressetError(
            f"{path} cannot be read", why=str(reason), next_step="mend it, or move it away"
        ) from error


def _env(text: str) -> dict[str, str]:
    import io  # noqa: PLC0415 - as in settings

    from dotenv import dotenv_values  # noqa: PLC0415

    read = dotenv_values(stream=io.StringIO(text), interpolate=False)
    values = {name: value for name, value in read.items() if value is not None}
    return {name: expanded(value, values) for name, value in values.items()}


def assigned(path: Path) -> frozenset[str]:
    """Return the names that a ``.env`` sets, to nothing too; CressetError if it is unreadable."""
    return frozenset(_env(_text(path))) if path.is_file() else frozenset()


def _yaml_of(root: Path, names: tuple[str, ...]) -> tuple[Mapping[str, Any], str]:
    for name in names:
        if (root / name).is_file():
            text = _text(root / name)
            return read_yaml(text, name), text
    return {}, ""


def read_yaml(text: str, name: str) -> Mapping[str, Any]:
    """Return a YAML file that is a mapping, empty if there is nothing in it; else CressetError.

    Compose's own tags, such as ``!override``, leave the value that they stand before.
    """
    import yaml  # noqa: PLC0415 - only where there is a file

    class Loader(yaml.SafeLoader):
        pass

    def untagged(loader: Any, _: str, node: Any) -> Any:  # noqa: ANN401 - as pyyaml has it
        if isinstance(node, yaml.MappingNode):
            return loader.construct_mapping(node, deep=True)
        if isinstance(node, yaml.SequenceNode):
            return loader.construct_sequence(node, deep=True)
        return None if node.value in {"", "null", "~"} else loader.construct_scalar(node)

    Loader.add_multi_constructor("!", untagged)
    try:
        read = yaml.load(text, Loader)  # noqa: S506 - a subclass of the safe one
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        raise CressetError(
            f"{name} is not YAML",
            why=str(getattr(error, "problem", error))
            + (f" in line {mark.line + 1}" if mark else ""),
            next_step="mend it; `docker compose config` in the old checkout says more",
        ) from error
    if read is None:
        return {}
    if not isinstance(read, dict):
        raise CressetError(f"{name} is not a mapping", next_step="mend it, or move it away")
    return read


def expanded(text: str, variables: Mapping[str, str], *, escape: bool = False) -> str:
    """Return text with the variables that are known, or have a default, as Compose fills them in.

    What is not known stays as it is written, such as ``${HOME}``. With `escape` the result is for a
    Compose file, where a dollar sign of a value is written twice.
    """

    def value(match: re.Match[str]) -> str:
        if match["dollar"]:
            return match[0]
        name = match["plain"] or match["name"]
        how, word = match["how"] or "", match["word"] or ""
        known = variables.get(name)
        if how.endswith("+"):
            return expanded(word, variables, escape=escape) if known else ""
        if known or (known is not None and ":" not in how):
            return known.replace("$", "$$") if escape else known
        return expanded(word, variables, escape=escape) if how.endswith("-") else match[0]

    return _VARIABLE.sub(value, text)
