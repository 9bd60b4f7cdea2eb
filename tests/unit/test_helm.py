"""The values that ``engine helm-values`` prints for Dagger's chart."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.engine import helm, local
from tests.unit.running import checkout, run

# Of values.yaml of the chart 0.21.8, and engine.port, which is a comment there and read by its
# service.yaml and engine-statefulset.yaml. Helm says nothing of a name that no template reads.
CHART = {
    "engine.configJson",
    "engine.hostPath.dataVolume.enabled",
    "engine.hostPath.runVolume.enabled",
    "engine.kind",
    "engine.livenessProbeSettings.terminationGracePeriodSeconds",
    "engine.port",
    "engine.resources.limits.memory",
    "engine.resources.requests.cpu",
    "engine.resources.requests.memory",
    "engine.statefulSet.persistentVolumeClaim.enabled",
    "engine.statefulSet.persistentVolumeClaim.resources.requests.storage",
    "engine.terminationGracePeriodSeconds",
}
CHART_VERSION = "0.21.8"
GIB = 1 << 30


def names(values: Mapping[str, Any], above: str = "") -> Iterator[str]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from names(value, f"{above}{name}.")
        else:
            yield f"{above}{name}"


def printed(folder: Path, *options: str) -> tuple[dict[str, Any], str]:
    with checkout(folder / "checkout"):
        ran = run("engine", "helm-values", *options)
    assert ran.code == 0, ran.err
    values: dict[str, Any] = yaml.safe_load(ran.out)
    return values, ran.err


def test_the_chart_reads_every_value(tmp_path: Path) -> None:
    assert local.VERSION == CHART_VERSION, "read the names of the new chart's values.yaml"
    values, _ = printed(tmp_path, "--port", "1234")
    assert set(names(values)) == CHART


@pytest.mark.parametrize("storage", [50, 500, 4000])
def test_the_cache_fits_into_the_volume_and_goes_by_room_alone(
    tmp_path: Path, storage: int
) -> None:
    values, _ = printed(tmp_path, "--storage", str(storage))
    claim = values["engine"]["statefulSet"]["persistentVolumeClaim"]
    assert claim["resources"]["requests"]["storage"] == f"{storage}Gi"
    policies = json.loads(values["engine"]["configJson"])["gc"]["policies"]
    for policy in policies:
        assert policy["maxUsedSpace"] + policy["minFreeSpace"] < storage * GIB
        assert not policy.keys() & {"filters", "keepDuration"}
    assert any(policy.get("all") for policy in policies), "cache volumes are never collected"


def test_an_engine_in_a_cluster_listens_only_if_asked_to(tmp_path: Path) -> None:
    closed, said = printed(tmp_path / "closed")
    assert "port" not in closed["engine"]
    assert "kube-pod://engine-a-dagger-helm-engine-0?namespace=dagger" in said
    opened, said = printed(tmp_path / "opened", "--port", "1234")
    assert opened["engine"]["port"] == 1234
    assert "tcp://engine-a-dagger-helm.dagger:1234" in said
    assert "NetworkPolicy" in said


def test_it_installs_the_chart_of_this_engine_and_lets_it_write_its_cache_down(
    tmp_path: Path,
) -> None:
    values, said = printed(tmp_path)
    assert f"{helm.CHART} --version {local.VERSION} " in said
    grace = "terminationGracePeriodSeconds"
    engine = values["engine"]
    assert (engine[grace], engine["livenessProbeSettings"][grace]) == (300, 300)
