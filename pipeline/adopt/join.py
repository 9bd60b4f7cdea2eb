"""Cresset in a project that has nothing of it: one Compose file and a few lines of ``.env``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from pipeline.adopt import files
from pipeline.adopt.files import Change
from pipeline.adopt.original import assigned

COMPOSE: Final = "compose.cresset.yaml"
ENV: Final = ".env"

_HEADING: Final = f"# Of {COMPOSE}:"
_SNIPPET: Final = """\
# A dev container with this project in it, from an image that Cresset made. Needs Docker Compose and
# this file alone; the variables are in .env.
#
#   docker compose -f compose.cresset.yaml up -d
#   docker compose -f compose.cresset.yaml exec train enter    # a shell, as you
#   docker compose -f compose.cresset.yaml down

name: ${PROJECT:-cresset}

services:
  train:
    image: ${IMAGE:?names the image, in .env}
    tty: true
    stdin_open: true
    init: true
    ipc: host  # On WSL and on a rootless engine shm_size instead, such as 8gb.
    working_dir: ${PROJECT_ROOT:-/opt/project}
    environment:
      # The image knows no user: its entrypoint becomes this one.
      UID: ${UID:-}
      GID: ${GID:-}
      USR: ${USR:-user}
      GRP: ${GRP:-user}
      TZ: ${TZ:-UTC}
      PYTHONPATH: ${PROJECT_ROOT:-/opt/project}
    volumes:
      - .:${PROJECT_ROOT:-/opt/project}
      # The history of the shell and the servers of IDEs outlive the container.
      - history:/var/lib/cresset/history
      - ide:/var/lib/cresset/ide
    deploy:  # All GPUs of NVIDIA's; without one, or for CPUs alone, take this out.
      resources:
        reservations:
          devices:
            - driver: nvidia
              count: all
              capabilities: [gpu]

volumes:
  history:
  ide:
"""


def changes(folder: Path, values: Mapping[str, str]) -> list[Change]:
    """Return what adds Cresset to a project; `values` are by the names that the Compose file reads.

    What ``.env`` has already stays as it is, and goes before.

    Raises:
        CressetError: a file that is there cannot be read.

    """
    env = folder / ENV
    there = assigned(env)
    lines = [
        f"{name}={files.quoted(value)}"
        for name, value in values.items()
        if value and name not in there
    ]
    return [files.new(folder / COMPOSE, _SNIPPET), files.with_lines(env, lines, _HEADING)]


def variables() -> list[str]:
    """Return the names that the Compose file reads, in its order."""
    return list(dict.fromkeys(re.findall(r"\$\{(\w+)", _SNIPPET)))


def project_name(folder: Path) -> str:
    """Return a name for the project of Compose: not the folder's own, which has other services."""
    name = re.sub(r"[^a-z0-9_-]+", "-", folder.resolve().name.lower()).strip("-_")
    return f"{name}-cresset" if name else "cresset"
