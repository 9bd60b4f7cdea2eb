"""A container behind a private CA: what a user types in it reaches a real TLS server."""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import services
from tests.compose.test_verbs import ANN, checkout
from tests.docker import docker
from tests.engine.conftest import make_wheel

pytestmark = pytest.mark.docker


@pytest.fixture
def simple(build: Callable[[str], str]) -> str:
    return build("simple")


def test_pip_curl_and_git_trust_the_ca_and_use_the_index(
    docker_host: str, docker_config: Path, simple: str, tmp_path: Path
) -> None:
    ca, pem = services.authority(tmp_path)
    name = f"cresset_test_{uuid.uuid4().hex[:8]}"
    wheel = make_wheel(tmp_path, name)

    def answer(asked: services.Asked) -> services.Answer:
        if asked.path.endswith(".whl"):
            return services.Answer(200, wheel.read_bytes())
        link = f'<a href="/files/{wheel.name}">{wheel.name}</a>'.encode()
        return services.Answer(200, link, {"Content-Type": "text/html"})

    with (
        services.serving(answer, pem=pem) as host,
        checkout(tmp_path / "site", docker_host, docker_config, ANN) as site,
    ):
        url = f"https://{host}/simple"
        told = {"CA_BUNDLE": str(ca), "INDEX_URL": url, "IMAGE_SIMPLE": simple}
        site.must("up", **told, HTTPS_PROXY="http://me:s3cr3t@proxy:1")
        inside = ("exec", "--no-TTY", "simple", "enter")
        assert name in site.compose(*inside, "curl", "--silent", "--show-error", f"{url}/x/")
        site.compose(*inside, "pip", "install", "--quiet", "--no-deps", name)
        assert "True" in site.compose(*inside, "python", "-c", f"import {name}; print({name}.here)")
        (container,) = site.compose("ps", "--quiet").split()
        shown = docker(docker_host, "inspect", container).stdout
        assert "s3cr3t" not in shown
        assert re.search(r"PIP_CERT=/run/cresset/ca\.pem", shown)
        # Nothing of it is in the image, and a container of a machine without it has none of it.
        image = docker(docker_host, "image", "inspect", simple).stdout
        assert "ca.pem" not in image
        assert host not in image
