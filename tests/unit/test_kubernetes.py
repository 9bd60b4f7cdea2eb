"""The manifest that ``compose --kubernetes`` prints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline import compose, kubernetes
from tests.unit.running import ROOT, Result, checkout, run

BASE = (ROOT / compose.BASE).read_text()
VARIABLES = {
    "PROJECT": "net_ann",
    "PROJECT_ROOT": "/opt/project",
    "UID": "1234",
    "GID": "2345",
    "USR": "ann",
    "ADD_USER": "include",
    "SHM_SIZE": "16gb",
    "TZ": "Asia/Seoul",
}


def made(*, gpus: int = 1, **variables: str) -> list[dict[str, Any]]:
    found = VARIABLES | variables
    environment = kubernetes.environment(BASE, found)
    return kubernetes.manifests("train", "registry.invalid/c:1", found, environment, gpus=gpus)


def pod(*, gpus: int = 1, **variables: str) -> dict[str, Any]:
    it: dict[str, Any] = made(gpus=gpus, **variables)[-1]["spec"]
    return it


def test_each_claim_is_mounted_where_compose_mounts_its_volume() -> None:
    *claims, last = made()
    names = {it["metadata"]["name"] for it in claims}
    spec = last["spec"]
    volumes = {it["name"]: it for it in spec["volumes"]}
    claimed = {
        it["persistentVolumeClaim"]["claimName"]
        for it in volumes.values()
        if "persistentVolumeClaim" in it
    }
    assert claimed == names == {"net-ann-project", "net-ann-history", "net-ann-ide"}
    (container,) = spec["containers"]
    mounted = {it["name"]: it["mountPath"] for it in container["volumeMounts"]}
    assert set(mounted) == set(volumes)
    binds, *named = yaml.safe_load(BASE)["x-service"]["volumes"]
    assert binds["target"] == "${PROJECT_ROOT:-/opt/project}"
    assert mounted["project"] == container["workingDir"] == "/opt/project"
    for name, _, path in (it.partition(":") for it in named):
        assert mounted[name] == path


def test_the_cluster_runs_it_as_the_user_who_may_write_to_the_claims() -> None:
    security = pod()["securityContext"]
    assert (security["runAsUser"], security["runAsGroup"], security["fsGroup"]) == (
        1234,
        2345,
        2345,
    )
    assert security["supplementalGroups"] == [0], "whose is the image's Python"
    assert pod(ADD_USER="exclude")["securityContext"]["runAsUser"] == 0


def test_the_environment_is_that_of_compose_filled_in() -> None:
    (container,) = pod()["containers"]
    values = {it["name"]: it["value"] for it in container["env"]}
    left_out = {"UID", "GID", "GRP", "SUDO"}
    assert set(values) == set(yaml.safe_load(BASE)["x-service"]["environment"]) - left_out
    assert values["USR"] == "ann"
    assert values["TZ"] == "Asia/Seoul"
    assert values["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    assert "$" not in "".join(values.values())


def test_what_is_within_another_is_filled_in_first() -> None:
    text = "x-service: {environment: {A: '${A:-${B:-c}}', D: '${D:-}'}}"
    assert kubernetes.environment(text, {}) == {"A": "c", "D": ""}
    assert kubernetes.environment(text, {"B": "b"})["A"] == "b"


def test_gpus_shared_memory_and_a_terminal() -> None:
    (container,) = pod(gpus=2)["containers"]
    assert container["resources"] == {"limits": {"nvidia.com/gpu": 2}}
    assert container["stdin"] is container["tty"] is True
    assert pod(gpus=0)["containers"][0]["resources"] == {}
    (shm,) = [it["emptyDir"] for it in pod()["volumes"] if it["name"] == "shm"]
    assert shm == {"medium": "Memory", "sizeLimit": "16Gi"}


@pytest.mark.parametrize(("docker", "cluster"), [("512m", "512Mi"), ("8GB", "8Gi"), ("9b", "9")])
def test_a_size_of_docker_in_the_units_of_kubernetes(docker: str, cluster: str) -> None:
    assert pod(SHM_SIZE=docker)["volumes"][-1]["emptyDir"]["sizeLimit"] == cluster


def printed(*words: str, **environ: str) -> Result:
    identity = {"UID": "1234", "GID": "2345", "USR": "ann", "GRP": "lab"}
    return run("compose", "--kubernetes", "--service", "simple", *words, environ=identity | environ)


def test_it_is_printed_as_documents_and_as_a_list(tmp_path: Path) -> None:
    with checkout(tmp_path / "It", {str(compose.BASE): BASE}):
        ran = printed(REGISTRY="registry.invalid/me")
        assert (ran.code, ran.err) == (0, "")
        documents = list(yaml.safe_load_all(ran.out))
        assert json.loads(printed("--json", REGISTRY="registry.invalid/me").out) == {
            "apiVersion": "v1",
            "kind": "List",
            "items": documents,
        }
        spec = documents[-1]["spec"]["containers"][0]
        assert spec["image"].startswith("registry.invalid/me/cresset:simple-")
        assert documents[-1]["metadata"]["name"] == "it-ann"
        assert "a cluster cannot pull cresset:simple-" in printed().err
