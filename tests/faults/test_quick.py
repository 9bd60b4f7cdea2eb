"""Faults that need no engine: registries, state files, clocks, disks; real servers, real files."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import http.client
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from pipeline import build, publish, records, retry, store
from pipeline.errors import PublishError
from pipeline.tags import tags
from tests import services
from tests.faults.rows import ROW, Row, Table
from tests.faulty import OTHER, SLOW, authority, faulty
from tests.services import Answer, Asked
from tests.unit import running
from tests.unit.specs import spec

TABLE = Table()
LOGIN = b"somebody:right"
HTPASSWD = "somebody:$2y$05$zICwPCYKJe.QfKj7bKHQrOov7IoOEksI28kAUyHFPTWDKZ88KTkF6\n"
IMAGE = spec("simple")
WHEEL = spec(build_mode="include", pytorch_version_tag="v2.6.0", cca="8.6").compiled[0]


@dataclass
class Bench:
    """What the checks of the rows work with."""

    folder: Path
    monkeypatch: pytest.MonkeyPatch
    registry: str
    data: Path
    """The folder of what the registry keeps."""
    said: list[str] = field(default_factory=list)
    """The tries that a user was told of."""

    def name(self) -> str:
        return f"t{os.urandom(6).hex()}"

    def log_in(self, host: str, config: Mapping[str, Any] | str | None = None) -> None:
        auth = base64.b64encode(LOGIN).decode()
        given = {"auths": {host: {"auth": auth}}} if config is None else config
        text = given if isinstance(given, str) else json.dumps(given)
        Path(self.folder, "docker").mkdir(exist_ok=True)
        Path(self.folder, "docker", "config.json").write_text(text)
        self.monkeypatch.setenv("DOCKER_CONFIG", str(self.folder / "docker"))


def put(registry: str, repository: str, names: tuple[str, ...]) -> tuple[str, list[str]]:
    """Put a small image into a registry; return its digest and those of its blobs."""
    blobs = [b"{}", os.urandom(3000)]
    kinds = ["config.v1+json", "layer.v1.tar"]
    described = []
    for blob, kind in zip(blobs, kinds, strict=True):
        digest = f"sha256:{hashlib.sha256(blob).hexdigest()}"
        location = ask(registry, "POST", f"/v2/{repository}/blobs/uploads/").headers["Location"]
        path = "/" + location.partition("://")[2].partition("/")[2] + f"&digest={digest}"
        assert ask(registry, "PUT", path, blob).status == 201
        media_type = f"application/vnd.oci.image.{kind}"
        described.append({"mediaType": media_type, "digest": digest, "size": len(blob)})
    media_type = publish._MANIFESTS[0]
    manifest = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": media_type,
            "config": described[0],
            "layers": described[1:],
        }
    ).encode()
    for name in names:
        path = f"/v2/{repository}/manifests/{name}"
        assert ask(registry, "PUT", path, manifest, media_type).status == 201
    digests = [str(it["digest"]) for it in described]
    return f"sha256:{hashlib.sha256(manifest).hexdigest()}", digests


def ask(
    host: str, method: str, path: str, body: bytes | None = None, media_type: str = ""
) -> http.client.HTTPResponse:
    name, _, port = host.partition(":")
    connection = http.client.HTTPConnection(name, int(port), timeout=30)
    login = base64.b64encode(LOGIN).decode()
    headers = {"Authorization": f"Basic {login}"} | (
        {"Content-Type": media_type} if media_type else {}
    )
    with contextlib.closing(connection):
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        answer.read()
    return answer


@pytest.fixture(scope="module")
def behind() -> Iterator[tuple[str, Path]]:
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        htpasswd = Path(folder, "htpasswd")
        htpasswd.write_text(HTPASSWD)
        with services.registry(Path(folder), htpasswd=htpasswd) as host:
            yield host, Path(folder, "data")


@pytest.fixture
def bench(
    behind: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Bench]:
    host, data = behind
    # The waits grow as they do for a user, in hundredths of the time.
    monkeypatch.setattr(retry, "FIRST_SECONDS", 0.005)
    monkeypatch.setattr(retry, "LONGEST_SECONDS", 0.08)
    monkeypatch.setattr(retry, "LONGEST_ASKED_SECONDS", 0.05)
    made = Bench(tmp_path, monkeypatch, host, data)
    with retry.told(made.said.append):
        yield made


# A registry that loses requests, whichever of the questions of a build it is asked


Reading = Callable[[str], object]


def image_there(repository: str) -> object:
    return publish.Registry(repository, "cresset").find(IMAGE)


def tags_there(repository: str) -> object:
    return publish.published(repository)


def wheel_there(repository: str) -> object:
    return store.Registry(repository).has(WHEEL)


READS: Mapping[str, tuple[Reading, tuple[str, ...]]] = {
    "image": (image_there, tags(IMAGE, "cresset")),
    "tag list": (tags_there, tags(IMAGE, "cresset")),
    "wheel store": (wheel_there, (store.tag(WHEEL),)),
}


def passes(what: str, fault: str) -> Callable[[Bench], None]:
    """Return the check that a fault that passes is passed over, and told of."""

    def check(bench: Bench) -> None:
        read, names = READS[what]
        name = bench.name()
        digest, _ = put(bench.registry, name, names)
        with faulty(bench.registry, script=[fault] * 2, address="127.0.0.1") as proxy:
            bench.log_in(proxy.host)
            found = read(f"{proxy.host}/{name}")
        assert found
        if isinstance(found, publish.Delivered):
            assert found.digest == digest
        if fault == SLOW:
            assert bench.said == []
        else:
            assert [it.split(" in ")[0] for it in bench.said] == ["try 2 of 5", "try 3 of 5"]
            assert proxy.host in bench.said[0]

    return check


for _what in READS:
    for _fault in ("500", "502", "503", "504", "429", "reset", "cut answer", SLOW):
        if (_what, _fault) != ("wheel store", "cut answer"):
            TABLE.add(
                Row(
                    f"registry, {_what}",
                    f"{_fault} twice",
                    "found as if nothing had been; each try is said",
                    passes(_what, _fault),
                )
            )


def fails(bench: Bench, read: Reading, repository: str, *words: str, tries: int = 0) -> None:
    """Check that reading ends with exit code 7 and these words, after so many tries again."""
    with pytest.raises(PublishError) as raised:
        read(repository)
    assert raised.value.exit_code == 7
    said = str(raised.value)
    assert [it for it in words if it not in said] == []
    assert raised.value.next_step
    assert len(bench.said) == tries


def lasts(fault: str, *words: str, tries: int) -> Callable[[Bench], None]:
    def check(bench: Bench) -> None:
        name = bench.name()
        put(bench.registry, name, tags(IMAGE, "cresset"))
        with faulty(bench.registry, script=[fault] * 20, address="127.0.0.1") as proxy:
            bench.log_in(proxy.host)
            fails(bench, image_there, f"{proxy.host}/{name}", *words, tries=tries)
            deadline = time.monotonic() + 10
            # The last is written down after its connection has ended.
            while len(proxy.seen) <= tries and time.monotonic() < deadline:
                time.sleep(0.01)
            assert len(proxy.seen) == tries + 1

    return check


for _fault, _words, _tries in (
    ("500", ("answers with 500", "tried 5 times"), 4),
    ("429", ("answers with 429", "tried 5 times"), 4),
    ("reset", ("cannot be reached", "tried 5 times"), 4),
    (OTHER, ("is not a registry", "Welcome"), 0),
):
    TABLE.add(
        Row(
            "registry, image",
            f"{_fault} for ever",
            "exit 7 in words and with a next step, after a bounded number of tries",
            lasts(_fault, *_words, tries=_tries),
        )
    )


@TABLE.row("registry, image", "nobody listens", "exit 7 in words, after 5 tries")
def down(bench: Bench) -> None:
    host = f"localhost:{services.free_port()}"
    fails(bench, image_there, f"{host}/x", "cannot be reached", "refused", tries=4)


@TABLE.row("registry, image", "wrong password (401)", "exit 7 with docker login, at once")
def wrong_password(bench: Bench) -> None:
    auth = base64.b64encode(b"somebody:wrong").decode()
    bench.log_in("", {"auths": {bench.registry: {"auth": auth}}})
    fails(bench, image_there, f"{bench.registry}/x", f"docker login {bench.registry}")


@TABLE.row("registry, image", "not allowed (403)", "exit 7 with docker login, at once")
def forbidden(bench: Bench) -> None:
    with services.serving(lambda _: Answer(403)) as host:
        fails(bench, image_there, f"{host}/x", "403", f"docker login {host}")


@TABLE.row("registry, image", "not there (404)", "nothing is found, at once; it would be built")
def not_there(bench: Bench) -> None:
    bench.log_in(bench.registry)
    assert image_there(f"{bench.registry}/{bench.name()}") is None
    assert bench.said == []


@TABLE.row(
    "registry, image", "certificate of an unknown CA", "exit 7 in words, at once; TLS stays on"
)
def unknown_authority(bench: Bench) -> None:
    made = authority(bench.folder)
    with faulty(bench.registry, pem=made.server, rate=0) as proxy:
        fails(bench, image_there, f"{proxy.host}/x", "CERTIFICATE_VERIFY_FAILED")


@TABLE.row(
    "registry, image",
    "private CA in SSL_CERT_FILE, another in REQUESTS_CA_BUNDLE",
    "found: what the machine trusts counts",
)
def private_authority(bench: Bench) -> None:
    made, name = authority(bench.folder), bench.name()
    put(bench.registry, name, tags(IMAGE, "cresset"))
    bench.monkeypatch.setenv("SSL_CERT_FILE", str(made.bundle))
    bench.monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/etc/ssl/certs/ca-certificates.crt")
    with faulty(bench.registry, pem=made.server, rate=0) as proxy:
        bench.log_in(proxy.host)
        assert image_there(f"{proxy.host}/{name}")


@TABLE.row("registry, image", "speaks no HTTP", "exit 7 in words, after 5 tries")
def no_http(bench: Bench) -> None:
    import socket  # noqa: PLC0415 - here alone
    import threading  # noqa: PLC0415

    def greet(server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = server.accept()
                client.sendall(b"220 mail.example ESMTP\r\n")
                client.close()

    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=greet, args=[server], daemon=True).start()
        host = f"localhost:{server.getsockname()[1]}"
        fails(bench, image_there, f"{host}/x", "cannot be reached", tries=4)


@TABLE.row(
    "registry, image", "a readable tag moved to another image", "it is published again, not found"
)
def swapped_tag(bench: Bench) -> None:
    bench.log_in(bench.registry)
    name = bench.name()
    put(bench.registry, name, tags(IMAGE, "cresset"))
    put(bench.registry, name, (IMAGE.variant,))
    assert image_there(f"{bench.registry}/{name}") is None


@TABLE.row(
    "registry, image", "the push ended before the key's tag", "nothing is found; it is built again"
)
def half_pushed(bench: Bench) -> None:
    bench.log_in(bench.registry)
    name = bench.name()
    put(bench.registry, name, (IMAGE.variant,))
    assert image_there(f"{bench.registry}/{name}") is None


def lose(bench: Bench, digest: str, cut: int | None = None) -> None:
    """Take a blob, or a part of it, out of the registry's storage, as a broken disk does."""
    hexed = digest.removeprefix("sha256:")
    blob = bench.data / "docker/registry/v2/blobs/sha256" / hexed[:2] / hexed / "data"
    if cut is None:
        blob.unlink()
    else:
        blob.write_bytes(blob.read_bytes()[:cut])


@TABLE.row("registry, image", "it lost a blob", "not found, so built and pushed whole again")
def lost_blob(bench: Bench) -> None:
    bench.log_in(bench.registry)
    name = bench.name()
    _, blobs = put(bench.registry, name, tags(IMAGE, "cresset"))
    assert image_there(f"{bench.registry}/{name}")
    lose(bench, blobs[1])
    assert image_there(f"{bench.registry}/{name}") is None


@TABLE.row("registry, image", "it lost half a blob", "not found, so built and pushed again")
def half_blob(bench: Bench) -> None:
    bench.log_in(bench.registry)
    name = bench.name()
    _, blobs = put(bench.registry, name, tags(IMAGE, "cresset"))
    lose(bench, blobs[1], cut=1000)
    assert image_there(f"{bench.registry}/{name}") is None


@TABLE.row("registry, wheel store", "it lost the wheel's blob", "not found, so compiled again")
def lost_wheel(bench: Bench) -> None:
    bench.log_in(bench.registry)
    name = bench.name()
    _, blobs = put(bench.registry, name, (store.tag(WHEEL),))
    assert wheel_there(f"{bench.registry}/{name}") is True
    lose(bench, blobs[1])
    assert wheel_there(f"{bench.registry}/{name}") is False


@TABLE.row("registry, wheel store", "it is down", "the plan says so and goes on")
def plan_without_store(bench: Bench) -> None:
    host = f"localhost:{services.free_port()}"
    with running.checkout(bench.folder / "c"):
        ran = running.run(
            "plan",
            "--build-mode",
            "include",
            "--pytorch-version-tag",
            "v2.6.0",
            "--cca",
            "8.6",
            environ={"REGISTRY": host},
        )
    assert ran.code == 0, ran.err
    assert "unless the store has it" in ran.out
    assert "Traceback" not in ran.err


def manifest_with(change: Callable[[dict[str, Any]], object]) -> Callable[[Asked], Answer]:
    """Return a registry that serves one manifest, changed after its digest was taken."""
    content = {"config": {"digest": "sha256:c", "size": 1}, "layers": []}
    digest = f"sha256:{hashlib.sha256(json.dumps(content).encode()).hexdigest()}"
    change(content)
    body = json.dumps(content).encode()
    return lambda _: Answer(200, body, {"Docker-Content-Digest": digest})


@TABLE.row("registry, image", "its digest is not its content's", "exit 7 in words, after 5 tries")
def wrong_digest(bench: Bench) -> None:
    answer = manifest_with(lambda it: it["config"].update(size=2))
    with services.serving(answer) as host:
        fails(bench, image_there, f"{host}/x", "is not what the registry says it is", tries=4)


@TABLE.row("registry, tag list", "pages that link to each other", "each tag once, and an end")
def endless_pages(_: Bench) -> None:
    def answer(request: Asked) -> Answer:
        link = f'<{request.path}>; rel="next"'
        return Answer(200, b'{"tags": ["a"]}', {"Link": link})

    with services.serving(answer) as host:
        assert publish.published(f"{host}/x") == ("a",)


# Tokens and logins


def with_tokens(
    token: Callable[[Asked], Answer], manifest: Callable[[Asked], Answer]
) -> Callable[[Asked], Answer]:
    """Return a registry that wants a token of the server at ``/token``, its own."""

    def answer(request: Asked) -> Answer:
        if request.path.startswith("/token"):
            return token(request)
        if request.headers.get("Authorization") == "Bearer t0ken":
            return manifest(request)
        realm = f'Bearer realm="http://{request.headers["Host"]}/token",service="tests"'
        return Answer(401, headers={"WWW-Authenticate": realm})

    return answer


@TABLE.row("registry, tokens", "503 twice", "found; it is not taken for a missing login")
def tokens_stumble(bench: Bench) -> None:
    answers = [Answer(503), Answer(503)]
    good = Answer(200, b'{"token": "t0ken"}')
    server = with_tokens(
        lambda _: answers.pop() if answers else good, lambda _: Answer(200, b'{"tags": ["a"]}')
    )
    with services.serving(server) as host:
        assert publish.published(f"{host}/x") == ("a",)
    assert "answers with 503" in bench.said[0]


@TABLE.row("registry, tokens", "none for this user", "exit 7 with docker login, at once")
def no_token(bench: Bench) -> None:
    server = with_tokens(lambda _: Answer(401), lambda _: Answer(200, b"{}"))
    with services.serving(server) as host:
        fails(bench, tags_there, f"{host}/x", f"docker login {host}")


@TABLE.row("registry, tokens", "an answer that is no JSON", "exit 7 in words")
def tokens_rubbish(_: Bench) -> None:
    server = with_tokens(lambda _: Answer(200, b"<p>"), lambda _: Answer(200, b"{}"))
    with services.serving(server) as host, pytest.raises(PublishError):
        publish.published(f"{host}/x")


@TABLE.row("registry, tokens", "a challenge without a server", "exit 7 with docker login")
def no_realm(bench: Bench) -> None:
    with services.serving(lambda _: Answer(401, headers={"WWW-Authenticate": "Bearer"})) as host:
        fails(bench, tags_there, f"{host}/x", f"docker login {host}")


@TABLE.row("Docker's config.json", "half of it is missing", "read as if there were no login")
def half_config(bench: Bench) -> None:
    bench.log_in("", '{"auths": {"local')
    fails(bench, tags_there, f"{bench.registry}/x", f"docker login {bench.registry}")


@TABLE.row("Docker's config.json", "it is a list", "read as if there were no login")
def config_is_a_list(bench: Bench) -> None:
    bench.log_in("", "[]")
    fails(bench, tags_there, f"{bench.registry}/x", f"docker login {bench.registry}")


@TABLE.row("Docker's login helper", "prints no JSON", "exit 7 that names it")
def broken_helper(bench: Bench) -> None:
    helper = bench.folder / "bin/docker-credential-broken"
    helper.parent.mkdir()
    helper.write_text("#!/bin/sh\necho oops\n")
    helper.chmod(0o755)
    bench.monkeypatch.setenv("PATH", f"{helper.parent}:{os.environ['PATH']}")
    bench.log_in("", {"auths": {}, "credsStore": "broken"})
    fails(bench, tags_there, f"{bench.registry}/x", "the login for", "docker login")


@TABLE.row("Docker's login helper", "is not installed", "read as if there were no login")
def missing_helper(bench: Bench) -> None:
    bench.log_in("", {"auths": {}, "credsStore": "nowhere"})
    fails(bench, tags_there, f"{bench.registry}/x", f"docker login {bench.registry}")


# Files that are broken


def archive_with(bench: Bench, write: Callable[[Path], object]) -> publish.Archive:
    where = publish.Archive(bench.folder / "dist", "cresset")
    path = where.path(IMAGE)
    path.parent.mkdir()
    write(path)
    return where


def tar_of(files: Mapping[str, bytes]) -> Callable[[Path], object]:
    def write(path: Path) -> None:
        import io  # noqa: PLC0415 - here alone

        with tarfile.open(path, "w") as tar:
            for name, content in files.items():
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))

    return write


for _fault, _write in {
    "half of it is missing": lambda path: path.write_bytes(os.urandom(700)),
    "it is empty": lambda path: path.touch(),
    "its index is a list": tar_of({"index.json": b"[]"}),
    "its index names nothing": tar_of({"index.json": b'{"manifests": []}'}),
    "its index is no JSON": tar_of({"index.json": b"{"}),
}.items():

    def _check(bench: Bench, write: Callable[[Path], object] = _write) -> None:
        where = archive_with(bench, write)
        assert where.find(IMAGE) is None
        assert build.found(IMAGE, where) is None

    TABLE.add(
        Row("file of the image", _fault, "not found, so built and replaced as a whole", _check)
    )


@TABLE.row("records of compiles", "half a line, and bytes that are no text", "the rest is read")
def broken_records(bench: Bench) -> None:
    bench.monkeypatch.setenv("XDG_STATE_HOME", str(bench.folder))
    good = records.Record("torch", "v", "s", 1, 60, 2, 3, 4, 5, 6, 7)
    records.keep(good)
    whole = records.path().read_bytes()
    records.path().write_bytes(b'{"package": "to\n\xff\xfe\n' + whole)
    assert records.known(good)
    records.keep(good)
    assert records.path().read_bytes().count(b"\n") == 2


@TABLE.row(
    "records of compiles", "the disk is full", "the compile is delivered all the same", root=True
)
def full_records(bench: Bench) -> None:
    with small_disk(bench.folder / "state", 1) as folder:
        bench.monkeypatch.setenv("XDG_STATE_HOME", str(folder))
        good = records.Record("torch", "v", "s", 1, 60, 2, 3, 4, 5, 6, 7)
        records.keep(good)
        fill(folder)
        records.keep(records.Record("torch", "w" * 9000, "s", 1, 60, 2, 3, 4, 5, 6, 7))
        assert records.known(good)
        assert [it.name for it in records.path().parent.iterdir()] == ["compiles.jsonl"]


@contextlib.contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[Path]:
    folder.mkdir()
    size = f"size={megabytes}m"
    subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def fill(folder: Path) -> None:
    with contextlib.suppress(OSError), (folder / "filler").open("wb") as file:
        while True:
            file.write(b"x" * 4096)
            file.flush()


# The command line in a process of its own


def cresset(
    bench: Bench, *args: str, wrapper: tuple[str, ...] = (), env: Mapping[str, str] | None = None
) -> Any:
    """Run the command line in a checkout of its own; return the process that has ended."""
    folder = bench.folder / "checkout"
    if not folder.exists():
        shutil.copytree(running.ROOT / "reqs", folder / "reqs")
    home = {
        "XDG_STATE_HOME": str(bench.folder / "s"),
        "XDG_CACHE_HOME": str(bench.folder / "c"),
        "DOCKER_HOST": f"unix://{bench.folder}/no-docker",
        "ENGINE": "session",
        "PYTHONPATH": str(running.ROOT),
    }
    environment = running.without_settings(os.environ) | home | dict(env or {})
    return subprocess.run(
        [*wrapper, sys.executable, "-m", "pipeline", *args],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def ends_with(ran: Any, code: int, *words: str) -> None:
    assert ran.returncode == code, ran.stderr
    assert ran.stdout == ""
    assert [it for it in words if it not in ran.stderr] == []
    assert "Traceback" not in ran.stderr


@TABLE.row("log folder", "it cannot be written", "exit 1 in words, before anything starts")
def no_logs(bench: Bench) -> None:
    (bench.folder / "s").write_text("a file where the folder should be")
    ends_with(cresset(bench, "build", "simple"), 1, "cannot be written", "XDG_STATE_HOME")


@TABLE.row("log folder", "read-only", "exit 1 in words, before anything starts", root=True)
def read_only_logs(bench: Bench) -> None:
    with small_disk(bench.folder / "s", 1) as folder:
        subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
        ends_with(cresset(bench, "build", "simple"), 1, "cannot be written", "XDG_STATE_HOME")


@TABLE.row(".env", "it is a folder", "exit 2 in words")
def env_folder(bench: Bench) -> None:
    cresset(bench, "plan", "simple")
    (bench.folder / "checkout/.env").mkdir()
    ends_with(cresset(bench, "plan", "simple"), 2, ".env")


@TABLE.row(".env", "bytes that are no text", "exit 2 in words")
def env_bytes(bench: Bench) -> None:
    cresset(bench, "plan", "simple")
    (bench.folder / "checkout/.env").write_bytes(b"TZ=\xff\xfe\n")
    ends_with(cresset(bench, "plan", "simple"), 2, ".env")


@TABLE.row(".env", "nobody may read it", "exit 2 in words", root=True)
def env_unreadable(bench: Bench) -> None:
    cresset(bench, "plan", "simple")
    env = bench.folder / "checkout/.env"
    env.write_text("TZ=UTC\n")
    env.chmod(0)
    for folder in (bench.folder, *bench.folder.parents[:2]):
        folder.chmod(0o755)
    # Whom no permission stops reads it all the same.
    wrapper = ("setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-all")
    ends_with(cresset(bench, "plan", "simple", wrapper=wrapper), 2, ".env")


@TABLE.row("requirements", "the file is gone", "exit 2 in words")
def no_requirements(bench: Bench) -> None:
    cresset(bench, "plan", "simple")
    (bench.folder / "checkout/reqs/pip-train.requirements.txt").unlink()
    ends_with(cresset(bench, "plan", "simple"), 2, "pip-train")


@TABLE.row("record of the engine", "half of it is missing", "read as if none ran; it starts anew")
def broken_engine_record(bench: Bench) -> None:
    state = bench.folder / "s/cresset/engine"
    state.mkdir(parents=True)
    (state / "engine.json").write_text('{"pid": 12')
    ran = cresset(bench, "engine", "status", "--json")
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout)["running"] is False


@TABLE.row("record of the engine", "another version's", "exit 4 that says whose it is")
def foreign_engine_record(bench: Bench) -> None:
    state = bench.folder / "s/cresset/engine"
    state.mkdir(parents=True)
    (state / "engine.json").write_text('{"pid": 12, "novel": true}')
    ends_with(cresset(bench, "engine", "status"), 4, "another version of Cresset")


def with_clock(when: str) -> Callable[[Bench], None]:
    """Return the check that an image that is there is found with the clock at another time."""

    def check(bench: Bench) -> None:
        name = bench.name()
        simple = cresset(bench, "plan", "simple", "--json")
        variant, key = (json.loads(simple.stdout)[it] for it in ("variant", "key"))
        put(bench.registry, f"{name}/cresset", (variant, f"key-{key}"))
        bench.log_in(bench.registry)
        (library,) = Path("/usr/lib").glob("*/faketime/libfaketime.so.1")
        given = {
            "LD_PRELOAD": str(library),
            "FAKETIME": when,
            "REGISTRY": f"{bench.registry}/{name}",
            "DOCKER_CONFIG": os.environ["DOCKER_CONFIG"],
            "ATTEST": "off",
        }
        ran = cresset(bench, "build", "simple", env=given)
        assert ran.returncode == 0, ran.stderr
        assert "nothing to do" in ran.stderr
        assert ran.stdout.startswith(f"{bench.registry}/{name}/cresset:{variant}@sha256:")

    return check


for _year in ("2001", "2099"):
    TABLE.add(
        Row(
            "clock",
            f"it jumps to {_year}",
            "what is there is found as ever",
            with_clock(f"@{_year}-01-01 00:00:00"),
        )
    )


@TABLE.row(
    ".env",
    "the disk is full when IMAGE is written down",
    "the reference is printed, .env is whole",
    root=True,
)
def full_env(bench: Bench) -> None:
    name = bench.name()
    simple = cresset(bench, "plan", "simple", "--json")
    variant, key = (json.loads(simple.stdout)[it] for it in ("variant", "key"))
    put(bench.registry, f"{name}/cresset", (variant, f"key-{key}"))
    bench.log_in(bench.registry)
    text = "TZ=UTC\n" + "# a comment\n" * 400
    with small_disk(bench.folder / "small", 1) as small:
        (small / ".env").write_text(text)
        fill(small)
        (bench.folder / "checkout/.env").symlink_to(small / ".env")
        ran = cresset(
            bench,
            "build-only",
            "simple",
            env={
                "REGISTRY": f"{bench.registry}/{name}",
                "DOCKER_CONFIG": os.environ["DOCKER_CONFIG"],
                "ATTEST": "off",
            },
        )
        assert ran.returncode == 0, ran.stderr
        assert ran.stdout.startswith(f"{bench.registry}/{name}/cresset:")
        assert "warning: .env does not get" in ran.stderr
        assert (small / ".env").read_text() == text
        assert sorted(it.name for it in small.iterdir()) == [".env", "filler"]


@TABLE.row("Docker", "it ends in the middle of an answer", "nothing is found; no traceback")
def docker_ends(bench: Bench) -> None:
    program = bench.folder / "bin/docker"
    program.parent.mkdir()
    program.write_text('#!/bin/sh\n[ "$1" = version ] && echo 28.0 || echo \'[{"Id": "sha25\'\n')
    program.chmod(0o755)
    bench.monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    where = publish.destination("", "cresset")
    assert isinstance(where, publish.Docker)
    assert where.find(IMAGE) is None


@TABLE.parametrized()
def test_fault(row: Row, bench: Bench, record_property: Callable[[str, object], None]) -> None:
    record_property(ROW, (row.where, row.fault, row.holds))
    row.check(bench)
