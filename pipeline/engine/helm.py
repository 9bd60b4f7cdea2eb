"""Values of Dagger's official Helm chart for an engine that a team's builds share.

The chart runs one engine a release, so several engines are several releases.
https://github.com/dagger/dagger/tree/main/helm/dagger
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

import yaml

from pipeline.engine import local
from pipeline.engine.local import rootfs

CHART: Final = "oci://registry.dagger.io/dagger-helm"
VERSION: Final = local.VERSION
"""The chart has the version of the engine in it."""

GRACE_SECONDS: Final = 300
"""Dagger writes its cache down as it ends, and starts with an empty one where it could not."""

_USABLE: Final = 95
"""Per cent of a volume's size that ext4 leaves to its files, whose blocks are kept for root."""


def values(storage: int, port: int = 0) -> dict[str, Any]:
    """Return the values for an engine with a volume of `storage` GiB.

    It listens on `port` of a Service too, or, if that is 0, is reached as ``kube-pod://`` alone.
    """
    room = storage * rootfs.GIB * _USABLE // 100
    limits = rootfs.storage(room, free=room, used=0)
    engine: dict[str, Any] = {
        "kind": "StatefulSet",
        "statefulSet": {
            "persistentVolumeClaim": {
                "enabled": True,
                "resources": {"requests": {"storage": f"{storage}Gi"}},
            }
        },
        # Folders of the node instead, which two engines on one node would share.
        "hostPath": {"dataVolume": {"enabled": False}, "runVolume": {"enabled": False}},
        "configJson": json.dumps(rootfs.configuration(limits, {}), indent=2) + "\n",
        # The number of compile jobs follows the memory that a limit leaves.
        "resources": {
            "requests": {"cpu": "4", "memory": "32Gi"},
            "limits": {"memory": "32Gi"},
        },
        "terminationGracePeriodSeconds": GRACE_SECONDS,
        "livenessProbeSettings": {"terminationGracePeriodSeconds": GRACE_SECONDS},
    }
    return {"engine": engine | ({"port": port} if port else {})}


class _Readable(yaml.SafeDumper):
    """Writes a text of several lines as its lines."""


_Readable.add_representer(
    str,
    lambda dumper, text: dumper.represent_scalar(
        "tag:yaml.org,2002:str", text, style="|" if "\n" in text else None
    ),
)


def as_yaml(values: Mapping[str, Any]) -> str:
    """Return the values as a file that a person edits."""
    return yaml.dump(values, Dumper=_Readable, sort_keys=False)


def command(release: str, namespace: str) -> str:
    """Return the command that installs a release, with the values on its standard input."""
    return (
        f"helm upgrade --install {release} {CHART} --version {VERSION} "
        f"--namespace {namespace} --create-namespace --values -"
    )


def runner_host(release: str, namespace: str, port: int = 0) -> str:
    """Return the address by which Dagger finds the engine of a release."""
    name = f"{release}-dagger-helm"
    if port:
        return f"tcp://{name}.{namespace}:{port}"
    return f"kube-pod://{name}-engine-0?namespace={namespace}"
