"""A registry behind TLS of a private CA and a login, that fails one request in five."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline import publish
from tests.engine.conftest import Checkout, new_name
from tests.faults.rows import ROW
from tests.faulty import ALL, Authority, Faulty, authority, faulty

pytestmark = [pytest.mark.engine, pytest.mark.slow]

LOGIN = "Basic " + base64.b64encode(b"somebody:right").decode()


class Behind:
    """The registry itself, without the proxy: what is really in it."""

    def __init__(self, host: str) -> None:
        self.host = host

    def get(self, path: str) -> bytes | None:
        """Return what is there, None if nothing."""
        headers = {"Authorization": LOGIN, "Accept": publish._MANIFESTS[0]}
        request = urllib.request.Request(f"http://{self.host}/v2/{path}", headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=60) as response:  # noqa: S310 - http
                content: bytes = response.read()
                return content
        except urllib.error.HTTPError as error:
            if error.code != 404:
                raise
            return None

    def tags(self, repository: str) -> list[str]:
        listed = self.get(f"{repository}/tags/list")
        return (json.loads(listed)["tags"] or []) if listed else []

    def broken(self, repository: str) -> list[str]:
        """Return what is wrong with what can be found by its tag: anything missing or other."""
        wrong = []
        for tag in self.tags(repository):
            content = self.get(f"{repository}/manifests/{tag}")
            if content is None:
                wrong.append(f"{tag} has no manifest")
                continue
            manifest = json.loads(content)
            for it in [manifest["config"], *manifest["layers"]]:
                blob = self.get(f"{repository}/blobs/{it['digest']}")
                if blob is None:
                    wrong.append(f"{tag} lacks {it['digest']}")
                elif f"sha256:{hashlib.sha256(blob).hexdigest()}" != it["digest"]:
                    wrong.append(f"{it['digest']} is another")
        return wrong


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return authority(tmp_path_factory.mktemp("ca"))


@pytest.fixture(scope="module")
def engine(ca: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Return the environment of an engine of these tests' own, that knows the CA."""
    environment = {
        "XDG_STATE_HOME": str(tmp_path_factory.mktemp("state")),
        "SSL_CERT_FILE": str(ca.bundle),
    }
    yield environment
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        from pipeline.engine import local  # noqa: PLC0415 - reads the environment as it is now

        local.stop(print)


@pytest.fixture
def trusting(checkout: Checkout, engine: dict[str, str]) -> Checkout:
    return replace(checkout, environment={**checkout.environment, **engine})


def log_in(checkout: Checkout, host: str) -> None:
    auth = LOGIN.removeprefix("Basic ")
    config = Path(checkout.environment["DOCKER_CONFIG"], "config.json")
    config.write_text(json.dumps({"auths": {host: {"auth": auth}}}))


def watched(behind: Behind, repository: str, until: threading.Event) -> list[str]:
    """Return what was wrong, at any time until then, with what a user could have pulled."""
    wrong: list[str] = []
    while not until.wait(0.2):
        wrong += behind.broken(repository)
        found = behind.tags(repository)
        if any(tag.startswith("key-") for tag in found) and len(found) < 2:
            wrong.append(f"the key's tag is there before the others: {found}")
    return wrong


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_everything_is_published_once_and_nothing_by_halves(
    trusting: Checkout,
    ca: Authority,
    private_registry: str,
    seed: int,
    figure: Callable[[str], None],
    record_property: Callable[[str, object], None],
) -> None:
    held = "published once, nothing by halves, digests and blobs read back"
    record_property(ROW, ("registry, TLS and login", f"one request in five, seed {seed}", held))
    behind, name = Behind(private_registry), new_name()
    ended = threading.Event()
    wrong: list[str] = []
    with faulty(private_registry, pem=ca.server, seed=seed) as proxy:
        log_in(trusting, proxy.host)
        watcher = threading.Thread(
            target=lambda: wrong.extend(watched(behind, f"{name}/cresset", ended))
        )
        watcher.start()
        begun = time.monotonic()
        ran = trusting.cresset("build", "simple", "--json", REGISTRY=f"{proxy.host}/{name}")
        seconds = time.monotonic() - begun
        ended.set()
        watcher.join()
        assert ran.code == 0, ran.err
        assert wrong == []
        pushing = list(proxy.seen)
        again = trusting.cresset(
            "build", "simple", REGISTRY=f"{proxy.host}/{name}", ENGINE="session"
        )
        assert again.out == f"{ran.json['ref']}\n", again.err
        assert "nothing to do" in again.err

    failed = [it for it in pushing if it.fault]
    kinds = Counter(it.fault for it in failed)
    figure(
        f"seed {seed}: {len(pushing)} requests, {len(failed)} with a fault "
        f"({', '.join(f'{kind} {count}' for kind, count in sorted(kinds.items()))}), "
        f"{ran.err.count('try ')} tries of ours, {seconds:.0f} s"
    )
    assert len(failed) > 5
    tags = behind.tags(f"{name}/cresset")
    assert len(tags) == 2
    assert behind.broken(f"{name}/cresset") == []
    for tag in tags:
        content = behind.get(f"{name}/cresset/manifests/{tag}")
        assert content is not None
        assert f"sha256:{hashlib.sha256(content).hexdigest()}" == ran.json["digest"]
    twice = [it for it, count in Counter(committed(pushing)).items() if count > 1]
    assert twice == []
    assert "right" not in ran.err + ran.log
    assert LOGIN.removeprefix("Basic ") not in ran.err + ran.log


def committed(seen: list[Any]) -> list[str]:
    """Return what the registry was told to keep, and said that it did: blobs and tags."""
    return [
        it.path.rpartition("digest=")[2] if "digest=" in it.path else it.path
        for it in seen
        if it.method == "PUT" and it.status == 201
    ]


def test_a_base_is_pulled_from_it_too(
    trusting: Checkout,
    ca: Authority,
    private_registry: str,
    record_property: Callable[[str, object], None],
) -> None:
    held = "it is pulled, and an image built on it delivered"
    record_property(ROW, ("registry, base", "one request in five", held))
    name = new_name()
    with faulty(private_registry, pem=ca.server, rate=0) as proxy:
        log_in(trusting, proxy.host)
        ran = trusting.cresset("build", "simple", REGISTRY=f"{proxy.host}/{name}")
        assert ran.code == 0, ran.err
        base = ran.out.strip()
    with faulty(private_registry, pem=ca.server, faults=ALL, seed=4) as proxy:
        log_in(trusting, proxy.host)
        image = f"{proxy.host}/{base.partition('/')[2]}"
        given = {"BASE_SOURCE": "image", "BASE_IMAGE": image, "SERVICE": "simple"}
        ran = trusting.cresset("build", "simple", REGISTRY=f"{proxy.host}/{name}-2", **given)
        assert ran.code == 0, ran.err
        assert isinstance(proxy, Faulty)
        assert proxy.failed()
