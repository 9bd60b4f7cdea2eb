"""``.devcontainer/``: the Compose service, as VS Code, its kin and the devcontainer CLI open it.

They call Compose themselves, which reads ``.env`` and nothing else of the settings; what may not
stand there is in a Compose file of their own.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import yaml

from pipeline import compose

FOLDER: Final = Path(".devcontainer")
PYTHON: Final = "/opt/venv/bin/python"
_ROOTLESS: Final = "rootless.yaml"
_WAIT_SECONDS: Final = 30


def user(project: compose.Project) -> str:
    """Return the name of whom ``enter`` becomes in the containers of a project."""
    is_root = (
        project.variables.get("ADD_USER") == "exclude"
        or project.variables.get("UID") == "0"
        or any(file.name == _ROOTLESS for file in project.files)
    )
    return "root" if is_root else project.variables["USR"]


def files(project: compose.Project, project_root: str) -> dict[Path, str]:
    """Return the text of each file, by its path from the checkout."""
    own = FOLDER / "compose.yaml"
    # The user's own file comes last here too.
    read = sorted((*project.files, own), key=lambda file: file.name == compose.OVERRIDE.name)
    waits = user(project) != "root"
    settings: dict[str, Any] = {
        "name": project.variables["PROJECT"],
        "dockerComposeFile": [os.path.relpath(file, FOLDER) for file in read],
        "service": project.service,
        # Compose takes a profile for granted where its service is named.
        "runServices": [project.service, *(["ready"] if waits else [])],
        "workspaceFolder": project_root,
        "remoteUser": user(project),
        # `enter` has given the user the ids already.
        "updateRemoteUserUID": False,
        # What the container starts with is `enter`, with a shell or JupyterLab.
        "overrideCommand": False,
        # What trains goes on when the window is closed.
        "shutdownAction": "none",
        "customizations": {
            "vscode": {
                "extensions": ["ms-python.python", "ms-toolsai.jupyter"],
                "settings": {"python.defaultInterpreterPath": PYTHON},
            }
        },
    }
    return {
        FOLDER / "devcontainer.json": json.dumps(settings, indent=2) + "\n",
        own: _HEAD + yaml.safe_dump(_compose(project, waits=waits), sort_keys=False),
    }


_HEAD = """\
# Written by `make devcontainer`. What .env has of IMAGE and PROJECT goes before what is here.
# The tools of dev containers look for the user as soon as the container is started, which is before
# its entrypoint has made one; `ready` holds Compose back until it has.
"""


def _compose(project: compose.Project, *, waits: bool) -> dict[str, Any]:
    """Return the Compose file that comes on top of the project's own."""
    variables, image = project.variables, compose.IMAGES[project.service]
    names = ("UID", "GID", "USR", "GRP", "ADD_USER", "SUDO", "TZ")
    service: dict[str, Any] = {"environment": _chosen(variables, names)}
    if project.image:
        service["image"] = f"${{{image}:-{project.image}}}"
    return {
        "name": f"${{PROJECT:-{variables['PROJECT']}}}",
        "services": {
            project.service: service,
            **(_waiting(project, service.get("image", "")) if waits else {}),
        },
    }


def _chosen(variables: Mapping[str, str], names: Sequence[str]) -> dict[str, str]:
    return {name: variables[name] for name in names if name in variables}


def _waiting(project: compose.Project, image: str) -> dict[str, Any]:
    """Return a service that has seen the user, and one that Compose starts only after it."""
    small = {"profiles": [project.service], "image": image, "network_mode": "none"}
    seen = f"until grep -q '^{user(project)}:' /proc/1/root/etc/passwd; do sleep 0.05; done"
    return {
        "seen": {
            **small,
            "pid": f"service:{project.service}",
            # Where a kernel module keeps containers from seeing each other, it has waited at least.
            "entrypoint": ["sh", "-c", f'timeout {_WAIT_SECONDS} sh -c "{seen}" || true'],
            "depends_on": {project.service: {"condition": "service_started"}},
        },
        "ready": {
            **small,
            "entrypoint": ["true"],
            "depends_on": {"seen": {"condition": "service_completed_successfully"}},
        },
    }
