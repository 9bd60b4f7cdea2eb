"""The Compose service as a Kubernetes Pod and the claims that outlive it.

A cluster chooses the user itself; ``enter`` gives that one a name and a home.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

import yaml

STORAGE: Final[Mapping[str, str]] = {"project": "50Gi", "history": "1Gi", "ide": "10Gi"}
"""What outlives the Pod, and how much of it there may be."""

_CHOOSES_A_USER: Final = {"UID", "GID", "GRP", "SUDO"}
"""Of the environment of compose.yaml, what the security context of a Pod is in place of."""

_STATE: Final = "/var/lib/cresset"
_LONGEST_NAME: Final = 50
"""Less than the 63 that a label holds: claims have more behind it."""


def name(project: str) -> str:
    """Return a Compose project's name as Kubernetes allows it."""
    return re.sub(r"[^a-z0-9-]+", "-", project.lower())[:_LONGEST_NAME].strip("-") or "cresset"


def environment(compose_file: str, variables: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of the services of compose.yaml, less what chooses a user."""
    text: Mapping[str, Any] = yaml.safe_load(compose_file)["x-service"]["environment"]
    return {
        key: _filled_in(str(value), variables)
        for key, value in text.items()
        if key not in _CHOOSES_A_USER
    }


def _filled_in(text: str, variables: Mapping[str, str]) -> str:
    """Return a text with its ``${NAME:-default}`` filled in, the inner ones first."""
    filled = re.sub(r"\$\{(\w+):-([^${}]*)\}", lambda it: variables.get(it[1]) or it[2], text)
    return text if filled == text else _filled_in(filled, variables)


def manifests(
    service: str,
    image: str,
    variables: Mapping[str, str],
    environment: Mapping[str, str],
    *,
    gpus: int,
) -> list[dict[str, Any]]:
    """Return what `kubectl apply` makes: a claim for each of `STORAGE`, and the Pod.

    `variables` are those that the Compose files read.
    """
    project = name(variables["PROJECT"])
    labels = {"app.kubernetes.io/name": "cresset", "app.kubernetes.io/instance": project}
    claims = [
        {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": {"name": f"{project}-{volume}", "labels": labels},
            "spec": {
                "accessModes": ["ReadWriteOnce"],
                "resources": {"requests": {"storage": size}},
            },
        }
        for volume, size in STORAGE.items()
    ]
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": project, "labels": labels},
        "spec": _pod(project, service, image, variables, environment, gpus=gpus),
    }
    return [*claims, pod]


def _pod(
    project: str,
    service: str,
    image: str,
    variables: Mapping[str, str],
    environment: Mapping[str, str],
    *,
    gpus: int,
) -> dict[str, Any]:
    root = variables["PROJECT_ROOT"]
    uid, gid = int(variables["UID"]), int(variables["GID"])
    if variables["ADD_USER"] == "exclude":
        uid = gid = 0
    paths = {"project": root, "history": f"{_STATE}/history", "ide": f"{_STATE}/ide"}
    container = {
        "name": service,
        "image": image,
        # What `kubectl attach -it` takes over.
        "stdin": True,
        "tty": True,
        "workingDir": root,
        "env": [{"name": key, "value": value} for key, value in environment.items()],
        "resources": {"limits": {"nvidia.com/gpu": gpus}} if gpus else {},
        "securityContext": {"allowPrivilegeEscalation": False},
        "volumeMounts": [
            *({"name": volume, "mountPath": path} for volume, path in paths.items()),
            {"name": "shm", "mountPath": "/dev/shm"},  # noqa: S108 - the container's
        ],
    }
    return {
        "securityContext": {
            "runAsUser": uid,
            "runAsGroup": gid,
            # By which the user may install into the image's Python.
            "supplementalGroups": [0],
            # Claims are mounted as root's; the group may write to them.
            "fsGroup": gid,
            "fsGroupChangePolicy": "OnRootMismatch",
        },
        "containers": [container],
        "volumes": [
            *(
                {"name": it, "persistentVolumeClaim": {"claimName": f"{project}-{it}"}}
                for it in STORAGE
            ),
            # The runtime gives 64 MB, which a DataLoader fills with one batch.
            {
                "name": "shm",
                "emptyDir": {"medium": "Memory", "sizeLimit": _size(variables["SHM_SIZE"])},
            },
        ],
    }


def _size(docker: str) -> str:
    """Return a size of Docker's, whose units are powers of 1024, as Kubernetes writes it."""
    number, unit = re.findall(r"\d+|[a-z]", docker.lower())[:2]
    return number if unit == "b" else f"{number}{unit.upper()}i"
