"""``up`` where VERIFY_KEY says by whom an image must be signed."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from tests import services
from tests.compose.test_verbs import ANN, Site, checkout

pytestmark = [pytest.mark.docker, pytest.mark.engine]


@pytest.fixture
def ann(tmp_path: Path, docker_host: str, docker_config: Path) -> Iterator[Site]:
    with checkout(tmp_path / "project", docker_host, docker_config, ANN) as site:
        (site.folder / "reqs/apt-train.requirements.txt").write_text("less\n")
        (site.folder / "reqs/pip-train.requirements.txt").write_text("")
        yield site


def key_pair(folder: Path, name: str) -> tuple[str, str]:
    private, public = str(folder / f"{name}.key"), str(folder / f"{name}.pub")
    make = ["openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", private]
    subprocess.run(make, check=True, capture_output=True)
    halve = ["openssl", "ec", "-in", private, "-pubout", "-out", public]
    subprocess.run(halve, check=True, capture_output=True)
    return private, public


def test_only_an_image_that_is_signed_starts(ann: Site, tmp_path: Path) -> None:
    private, public = key_pair(tmp_path, "ours")
    _, stranger = key_pair(tmp_path, "stranger")
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder,
        services.registry(Path(folder)) as host,
    ):
        where = {"REGISTRY": f"{host}/team", "ENGINE": "local"}
        signed = ann.must("build-only", "simple", SIGN_KEY=private, **where).strip()

        refused = ann.cresset("up", VERIFY_KEY=stranger)
        assert refused.returncode == 6, refused.stderr
        assert "nobody with the key of VERIFY_KEY has signed it" in refused.stderr
        assert ann.compose("ps", "--quiet") == ""

        up = ann.cresset("up", VERIFY_KEY=public)
        assert up.returncode == 0, up.stderr
        assert f"{signed} is signed by the key of {public}" in up.stderr
        (container,) = ann.compose("ps", "--quiet").split()

        # Whoever may push may take what is attached out of the list, and signed it stays.
        repository, _, digest = signed.partition("@")
        listed = f"{repository.rpartition(':')[0]}/manifests/sha256-{digest.partition(':')[2]}"
        url = f"http://{host}/v2/{listed.partition('/')[2]}"
        kind = {"Content-Type": "application/vnd.oci.image.index.v1+json"}
        index = requests.get(url, headers={"Accept": kind["Content-Type"]}, timeout=60).content
        none = json.dumps({**json.loads(index), "manifests": []})
        requests.put(url, none, headers=kind, timeout=60).raise_for_status()
        refused = ann.cresset("up", VERIFY_KEY=public)
        assert refused.returncode == 6, refused.stderr
        for missing in ("provenance=", "SBOM="):
            assert missing in refused.stderr
        assert "signature=" not in refused.stderr
        assert ann.compose("ps", "--quiet").split() == [container]
        requests.put(url, index, headers=kind, timeout=60).raise_for_status()

        # By its tag Docker has another one then, whatever stands in .env.
        ann.must("build-only", "simple", "--tz", "Asia/Seoul", **where)
        for verb in (["up"], ["run", "true"]):
            refused = ann.cresset(*verb, VERIFY_KEY=public)
            assert refused.returncode == 6, refused.stderr
            assert "it is not signed" in refused.stderr
        assert ann.compose("ps", "--quiet").split() == [container]
    # Nothing is proved by a registry that is gone, though the image is here.
    gone = ann.cresset("up", IMAGE_SIMPLE=signed, VERIFY_KEY=public)
    assert gone.returncode == 6
    assert "cannot be reached" in gone.stderr


def test_an_image_that_is_in_no_registry_is_signed_by_nobody(ann: Site, tmp_path: Path) -> None:
    _, public = key_pair(tmp_path, "ours")
    ann.must("build-only", "simple", ENGINE="local")
    refused = ann.cresset("up", VERIFY_KEY=public)
    assert refused.returncode == 6, refused.stderr
    assert "no registry has a signature of it" in refused.stderr
    assert ann.compose("ps", "--quiet") == ""
