"""A registry behind TLS of a private CA and a login, that fails one request in five."""

from __future__ import annotations

import base64
import io
import json
import os
import tarfile
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

from pipeline import publish, retry
from pipeline.engine import select, session
from pipeline.stages.base import base_from_registry
from tests.engine.conftest import Checkout, new_name
from tests.faults.rows import ROW
from tests.faulty import Authority, authority, faulty
from tests.unit.stand_in_registry import digest_of

pytestmark = [pytest.mark.engine, pytest.mark.slow]

LOGIN = "Basic " + base64.b64encode(b"somebody:right").decode()


class Behind:
    """The registry itself, without the proxy: what is really in it."""

    def __init__(self, host: str) -> None:
        self.host = host

    def get(self, path: str) -> bytes | None:
        """Return what is there, None if nothing."""
        accept = ", ".join((*publish._INDEXES, *publish._MANIFESTS))
        headers = {"Authorization": LOGIN, "Accept": accept}
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
        return [
            f"{tag}: {wrong}"
            for tag in self.tags(repository)
            for wrong in self.wrong(repository, "manifests", tag)
        ]

    def wrong(self, repository: str, kind: str, name: str) -> Iterator[str]:
        """Yield what is missing or other of a manifest or a blob, and of all that it names."""
        content = self.get(f"{repository}/{kind}/{name}")
        if content is None:
            yield f"{name} is not there"
            return
        if name.startswith("sha256:") and name != digest_of(content):
            yield f"{name} is another"
        if kind == "manifests":
            read = json.loads(content)
            for it in read.get("manifests", ()):
                yield from self.wrong(repository, kind, it["digest"])
            for it in [read["config"], *read["layers"]] if "layers" in read else ():
                yield from self.wrong(repository, "blobs", it["digest"])


def of_images(tags: list[str]) -> list[str]:
    """Leave out the tag of what is attached to an image, in a registry without referrers."""
    return [it for it in tags if not it.startswith("sha256-")]


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
        found = of_images(behind.tags(repository))
        if any(tag.startswith("key-") for tag in found) and len(found) < 3:
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
    assert behind.broken(f"{name}/cresset") == []
    images = of_images(tags)
    assert {ran.json["variant"], f"key-{ran.json['key']}"} < set(images)
    assert len(images) == 3, "the third has the day in it"
    for tag in images:
        content = behind.get(f"{name}/cresset/manifests/{tag}")
        assert content is not None
        assert digest_of(content) == ran.json["digest"]
    proofs = behind.get(f"{name}/cresset/manifests/{ran.json['digest'].replace(':', '-')}")
    assert proofs is not None
    assert len(json.loads(proofs)["manifests"]) == 2, "SBOM and provenance"
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


def put_base(host: str, name: str) -> None:
    """Put an image of two layers into a registry, each big enough to be cut off in the middle."""

    def ask(method: str, path: str, body: bytes = b"", kind: str = "") -> Any:
        headers = {"Authorization": LOGIN} | ({"Content-Type": kind} if kind else {})
        url = path if path.startswith("http") else f"http://{host}/v2/{name}/{path}"
        request = urllib.request.Request(url, body or None, headers, method=method)  # noqa: S310
        with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310 - http
            return answer.headers

    def blob(content: bytes, kind: str) -> dict[str, Any]:
        digest = digest_of(content)
        place = ask("POST", "blobs/uploads/")["Location"]
        ask("PUT", f"{place}&digest={digest}", content, "application/octet-stream")
        media_type = f"application/vnd.oci.image.{kind}"
        return {"mediaType": media_type, "digest": digest, "size": len(content)}

    layers = []
    for number in range(2):
        with io.BytesIO() as file:
            with tarfile.open(fileobj=file, mode="w") as tar:
                member = tarfile.TarInfo(f"file{number}")
                member.size = 5 << 20
                tar.addfile(member, io.BytesIO(os.urandom(member.size)))
            layers.append(file.getvalue())
    ids = [digest_of(it) for it in layers]
    about = {"architecture": "amd64", "os": "linux", "config": {},
             "rootfs": {"type": "layers", "diff_ids": ids}}  # fmt: skip
    config = blob(json.dumps(about).encode(), "config.v1+json")
    described = [blob(it, "layer.v1.tar") for it in layers]
    manifest = {"schemaVersion": 2, "mediaType": publish._MANIFESTS[0], "config": config,
                "layers": described}  # fmt: skip
    ask("PUT", "manifests/it", json.dumps(manifest).encode(), publish._MANIFESTS[0])


def pulled(refs: list[str], log: Path) -> list[str]:
    """Return why each image cannot be pulled, by the machine's own engine."""
    choice = select.choose("local", print)

    async def work() -> list[str]:
        with log.open("w") as stream:
            async with session.session(choice, stream):
                return [await session.why_unavailable(base_from_registry(it)) for it in refs]

    return session.run(work())


def test_bases_are_pulled_from_it_too(
    registry: str,
    tmp_path: Path,
    figure: Callable[[str], None],
    record_property: Callable[[str, object], None],
) -> None:
    held = "four images, each pulled whole"
    record_property(ROW, ("registry, base", "one request in five", held))
    names = [new_name() for _ in range(4)]
    for name in names:
        put_base(registry, name)
    said: list[str] = []
    with faulty(registry, seed=7, address="127.0.0.1") as proxy, retry.told(said.append):
        assert pulled([f"{proxy.host}/{it}:it" for it in names], tmp_path / "log") == [""] * 4
    layers = [it for it in proxy.seen if "/blobs/" in it.path and it.status == 200]
    assert len(layers) >= 4 * 2
    figure(f"{len(proxy.seen)} requests, {len(proxy.failed())} with a fault, {len(said)} tries")
    assert proxy.failed()
