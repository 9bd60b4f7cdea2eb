"""Where images go: files that are whole, registries that know you or not, and broken ones."""

from __future__ import annotations

import base64
import contextlib
import json
import signal
import socket
import subprocess
import tarfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import services
from tests.engine.conftest import Checkout, Ran, new_name
from tests.services import Answer, Asked

pytestmark = pytest.mark.engine

ARCHIVE = "dist/cresset-simple-py313-trixie.oci.tar"


def built(checkout: Checkout, **env: str) -> Ran:
    """Return a build of ``simple`` that succeeded."""
    ran = checkout.cresset("build", "simple", **env)
    assert ran.code == 0, ran.err
    return ran


def refused(checkout: Checkout, registry: str, **env: str) -> str:
    """Return what a build says that cannot deliver to `registry`."""
    ran = checkout.cresset("build", "simple", REGISTRY=registry, **env)
    assert ran.code == 7, ran.err
    assert ran.out == ""
    assert "Traceback" not in ran.err
    assert "next: " in ran.err
    return ran.err


# Files


def test_without_registry_and_docker_the_image_is_a_file(checkout: Checkout) -> None:
    first = built(checkout)
    assert first.out.startswith(f"oci-archive:{ARCHIVE}@sha256:")
    stem = Path(ARCHIVE).name.removesuffix(".oci.tar")
    assert {file.name for file in checkout.path.joinpath("dist").iterdir()} == {
        Path(ARCHIVE).name, f"{stem}.sbom.cdx.json", f"{stem}.provenance.json",
    }  # fmt: skip
    with tarfile.open(checkout.path / ARCHIVE) as tar:
        assert {"index.json", "oci-layout"} <= set(tar.getnames())

    again = built(checkout, ENGINE="session")
    assert again.out == first.out
    assert "nothing to do" in again.err

    checkout.require_something_new()
    assert built(checkout).out != first.out


@pytest.mark.parametrize("before", ["nothing", "an older image"])
def test_a_file_is_whole_or_as_it_was(checkout: Checkout, before: str) -> None:
    archive = checkout.path / ARCHIVE
    if before == "an older image":
        archive.parent.mkdir()
        archive.write_text(before)
    running = checkout.start("build", "simple")
    while not any(archive.parent.glob(".*")) and running.process.poll() is None:
        time.sleep(0.002)
    running.process.send_signal(signal.SIGKILL)
    assert running.end(timeout=60).code == -signal.SIGKILL
    assert archive.exists() == (before == "an older image")
    if before == "an older image":
        assert archive.read_text() == before

    built(checkout, ATTEST="off")
    assert list(archive.parent.iterdir()) == [archive]


# A registry that wants to know who pushes


def login(checkout: Checkout, registry: str, password: str) -> None:
    """Leave behind what ``docker login`` does."""
    auth = base64.b64encode(f"somebody:{password}".encode()).decode()
    config = Path(checkout.environment["DOCKER_CONFIG"], "config.json")
    config.write_text(json.dumps({"auths": {registry: {"auth": auth}}}))


def test_a_private_registry_takes_the_image_of_who_is_logged_in(
    checkout: Checkout, private_registry: str
) -> None:
    login(checkout, private_registry, "right")
    first = built(checkout, REGISTRY=private_registry)
    assert first.out.startswith(f"{private_registry}/cresset:")
    assert "nothing to do" in built(checkout, REGISTRY=private_registry, ENGINE="session").err


@pytest.mark.parametrize("password", ["wrong", ""])
def test_a_private_registry_refuses_who_is_not(
    checkout: Checkout, private_registry: str, password: str
) -> None:
    if password:
        login(checkout, private_registry, password)
    said = refused(checkout, f"{private_registry}/{new_name()}")
    assert f"docker login {private_registry}" in said


# Registries that are broken


def test_a_registry_that_is_down(checkout: Checkout) -> None:
    said = refused(checkout, f"localhost:{services.free_port()}")
    assert "cannot be reached" in said
    assert "Connection refused" in said


def read_only(status: int, why: bytes) -> Callable[[Asked], Answer]:
    """Return a registry that has nothing, and answers every push with `status`."""

    def answer(request: Asked) -> Answer:
        if request.method == "POST":
            return Answer(status, why)
        return Answer(200 if request.path == "/v2/" else 404)

    return answer


DENIED = b'{"errors": [{"code": "DENIED", "message": "not for you"}]}'


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        pytest.param(lambda _: Answer(500, b"on fire"), ["500", "on fire"], id="error"),
        pytest.param(lambda _: Answer(200, b"<p>Welcome!"), ["not a registry"], id="login page"),
        pytest.param(lambda _: Answer(200, b"[]"), ["not a registry"], id="no manifest"),
        pytest.param(read_only(403, DENIED), ["403", "docker login"], id="push denied"),
        pytest.param(read_only(507, b"full"), ["507", "free space"], id="full"),
    ],
)
def test_a_registry_that_is_broken(
    checkout: Checkout, answer: Callable[[Asked], Answer], told: list[str]
) -> None:
    with services.serving(answer) as host:
        said = refused(checkout, host)
    assert [words for words in told if words not in said] == []


def test_a_server_that_speaks_no_http(checkout: Checkout) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=greet, args=[server], daemon=True).start()
        said = refused(checkout, f"localhost:{server.getsockname()[1]}")
    assert "cannot be reached" in said


def greet(server: socket.socket) -> None:
    with contextlib.suppress(OSError):  # it is closed
        while True:
            client, _ = server.accept()
            with client:
                client.recv(4096)
                client.sendall(b"220 mail.example ESMTP\r\n")


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """Return a key and a certificate that nobody has reason to trust."""
    address, file = services.own_address(), tmp_path / "self-signed.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", file, "-out",
         tmp_path / "crt.pem", "-subj", "/CN=tests", "-addext", f"subjectAltName=IP:{address}"],
        check=True, capture_output=True,
    )  # fmt: skip
    file.write_text(file.read_text() + (tmp_path / "crt.pem").read_text())
    return file


def test_a_registry_whose_certificate_nobody_vouches_for(
    checkout: Checkout, certificate: Path
) -> None:
    with services.serving(read_only(403, b""), services.own_address(), pem=certificate) as host:
        said = refused(checkout, host)
    assert "CERTIFICATE_VERIFY_FAILED" in said
    assert "CA certificates" in said
