"""The compiler cache's server, as ccache uses it and as clients that misbehave do."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from pipeline import caches
from pipeline.host import objects
from pipeline.host.objects import Served
from tests import services
from tests.engine.conftest import ROOT

NAME = "ab/0123456789abcdefghijklmnopqrstu"
MB = 1 << 20
SOON = 30


@dataclass(frozen=True)
class Answered:
    """What a server answered."""

    status: int
    body: bytes
    headers: http.client.HTTPMessage


@contextlib.contextmanager
def connected(served: Served) -> Iterator[Callable[..., Answered]]:
    """Give a function that asks `served`, over one connection that is kept."""
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=SOON)

    def ask(method: str, path: str, body: bytes | None = None) -> Answered:
        connection.request(method, path, body)
        response = connection.getresponse()
        return Answered(response.status, response.read(), response.headers)

    try:
        yield ask
    finally:
        connection.close()


def ask(served: Served, method: str, name: str = NAME, body: bytes | None = None) -> Answered:
    with connected(served) as asking:
        return asking(method, f"/{name}", body)


def begin_put(port: int, size: int, sent: bytes) -> socket.socket:
    """Begin to put an object of `size` bytes; the rest of it is up to the caller."""
    connection = socket.create_connection(("127.0.0.1", port), timeout=SOON)
    head = f"PUT /{NAME} HTTP/1.1\r\nHost: cache\r\nContent-Length: {size}\r\n\r\n"
    connection.sendall(head.encode() + sent)
    return connection


def files(folder: Path) -> dict[str, int]:
    """Return the size of each file below a folder, where some may be going."""
    found = {}
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            if path.is_file():
                found[str(path.relative_to(folder))] = path.stat().st_size
    return found


def until(condition: Callable[[], object]) -> None:
    """Wait until a condition holds; the test fails if it never does."""
    deadline = time.monotonic() + SOON
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def at(served: Served) -> str:
    """Return the address of a server as ccache takes it."""
    # The default of 100 milliseconds is for machines that do nothing else.
    return f"http://127.0.0.1:{served.port}|connect-timeout=10000"


def compile_c(tmp_path: Path, remote: str) -> dict[str, int]:
    """Compile a file by ccache with an empty cache of its own; return what ccache counted."""
    own = tmp_path / f"ccache-{time.monotonic_ns()}"
    source = tmp_path / "answer.c"
    source.write_text("int answer(void) { return 42; }\n")
    env = {name: value for name, value in os.environ.items() if not name.startswith("CCACHE_")} | {
        "CCACHE_DIR": str(own),
        "CCACHE_REMOTE_STORAGE": remote,
    }
    output = tmp_path / "answer.o"
    output.unlink(missing_ok=True)
    subprocess.run(["ccache", "gcc", "-c", source, "-o", output], env=env, check=True)
    assert output.stat().st_size > 0
    told = subprocess.run(
        ["ccache", "--print-stats"], env=env, check=True, capture_output=True, text=True
    )
    return {name: int(number) for name, number in map(str.split, told.stdout.splitlines())}


def test_ccache_finds_what_another_left(tmp_path: Path) -> None:
    folder = tmp_path / "a folder #1 of 100%"
    with objects.serving(str(folder)) as served:
        first = compile_c(tmp_path, at(served))
        assert (first["remote_storage_hit"], first["remote_storage_write"]) == (0, 2)
        assert (served.gets, served.hits, served.puts) == (2, 0, 2)
        assert served.bytes_in == sum(files(folder).values()) > 0
    with objects.serving(str(folder)) as served:
        second = compile_c(tmp_path, at(served))
        assert (second["remote_storage_hit"], second["cache_miss"]) == (1, 0)
        assert (served.gets, served.hits, served.puts) == (2, 2, 0)
        assert served.bytes_out == sum(files(folder).values())
        assert served.broken == ""


def test_ccache_finds_what_another_left_in_a_redis_with_a_password(tmp_path: Path) -> None:
    with services.redis(tmp_path) as url:
        assert compile_c(tmp_path, caches.address(url))["remote_storage_write"] > 0
        assert compile_c(tmp_path, caches.address(url))["remote_storage_hit"] > 0
        # As everybody writes it, ccache would not say who it is.
        assert compile_c(tmp_path, url)["remote_storage_error"] > 0


@pytest.mark.parametrize("size", [0, 1, 8 * MB, 8 * MB + 1, 50 * MB])
def test_an_object_comes_back_as_it_went(tmp_path: Path, size: int) -> None:
    body = os.urandom(size)
    with objects.serving(str(tmp_path)) as served, connected(served) as asking:
        assert asking("GET", f"/{NAME}").status == 404
        assert asking("HEAD", f"/{NAME}").status == 404
        assert asking("PUT", f"/{NAME}", body).status == 201
        head = asking("HEAD", f"/{NAME}")
        assert (head.status, head.headers["Content-Length"]) == (200, str(size))
        got = asking("GET", f"/{NAME}")
        assert (got.status, got.body == body) == (200, True)
        assert asking("DELETE", f"/{NAME}").status == 204
        assert asking("GET", f"/{NAME}").status == 404
        assert asking("DELETE", f"/{NAME}").status == 404
        assert (served.bytes_in, served.bytes_out, served.broken) == (size, size, "")
    assert files(tmp_path) == {}


def test_many_at_once(tmp_path: Path) -> None:
    def round_trip(number: int) -> bool:
        body = os.urandom(MB)
        name = f"{number:02d}/{number:031d}"
        with connected(served) as asking:
            assert asking("PUT", f"/{name}", body).status == 201
            return asking("GET", f"/{name}").body == body

    with objects.serving(str(tmp_path)) as served:
        with ThreadPoolExecutor(32) as pool:
            assert all(pool.map(round_trip, range(96)))
        assert (served.puts, served.gets, served.hits) == (96, 96, 96)
        assert served.bytes_in == served.bytes_out == 96 * MB


def test_a_hit_is_a_use_of_the_object(tmp_path: Path) -> None:
    with objects.serving(str(tmp_path)) as served:
        assert ask(served, "PUT", body=b"object").status == 201
        os.utime(tmp_path / NAME, (0, 0))
        assert ask(served, "GET").body == b"object"
    assert objects.trim(tmp_path, 0) == 0
    assert files(tmp_path) == {NAME: 6}


@pytest.mark.parametrize("part", [10, 20 * MB])
def test_half_an_object_is_none(tmp_path: Path, part: int) -> None:
    with objects.serving(str(tmp_path)) as served:
        with begin_put(served.port, 24 * MB, os.urandom(part)):
            until(lambda: files(tmp_path) or part < 8 * MB)
            assert ask(served, "GET").status == 404
        until(lambda: not files(tmp_path))
        assert ask(served, "GET").status == 404
    assert (served.puts, served.broken) == (0, ""), "the client failed, and not the store"
    assert files(tmp_path) == {}


def test_half_an_object_does_not_replace_a_whole_one(tmp_path: Path) -> None:
    with objects.serving(str(tmp_path)) as served:
        assert ask(served, "PUT", body=b"whole").status == 201
        with begin_put(served.port, 24 * MB, bytes(20 * MB)):
            until(lambda: len(files(tmp_path)) == 2)
            assert ask(served, "GET").body == b"whole"
        until(lambda: len(files(tmp_path)) == 1)
        assert ask(served, "GET").body == b"whole"


def test_a_killed_pipeline_leaves_no_half_object(tmp_path: Path) -> None:
    folder = tmp_path / "objects"
    code = (
        "import sys, time\nfrom pipeline.host import objects\n"
        "with objects.serving(sys.argv[1]) as served:\n"
        "    print(served.port, flush=True)\n    time.sleep(60)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, folder], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        with begin_put(int(process.stdout.readline()), 24 * MB, bytes(20 * MB)):
            until(lambda: sum(files(folder).values()) >= 8 * MB)
            process.send_signal(signal.SIGKILL)
            process.wait()
    assert NAME not in files(folder)
    with objects.serving(str(folder)) as served:
        assert ask(served, "GET").status == 404
        assert ask(served, "PUT", body=b"whole").status == 201
        assert ask(served, "GET").body == b"whole"
    (rest,) = set(files(folder)) - {NAME}
    os.utime(folder / rest, (0, 0))
    assert objects.trim(folder, MB) >= 8 * MB
    assert files(folder) == {NAME: 5}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Give a folder with room for four megabytes."""
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", disk], check=True)
    yield disk
    subprocess.run(["umount", disk], check=True)


@pytest.mark.parametrize("size", [6 * MB, 30 * MB])
def test_a_full_disk_holds_no_half_object(
    small_disk: Path, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objects, "_SLOW_SECONDS", 0.0)  # it is a slow one, and yet can be read
    with objects.serving(str(small_disk)) as served, connected(served) as asking:
        assert asking("PUT", f"/{NAME}", b"before").status == 201
        assert asking("PUT", f"/{NAME}", bytes(size)).status == 503
        assert "No space left on device" in served.broken
        assert asking("GET", f"/{NAME}").body == b"before"
        assert served.puts == 1
    assert files(small_disk) == {NAME: 6}


def test_a_compilation_does_without_a_store_that_fails(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with objects.serving(str(tmp_path / "file")) as served:
        assert ask(served, "GET").status == 503
        assert ask(served, "HEAD").status == 503
        assert ask(served, "PUT", body=bytes(20 * MB)).status == 503
        assert ask(served, "DELETE").status == 503
        assert compile_c(tmp_path, at(served))["cache_miss"] == 1
        assert served.broken == f"[Errno 17] File exists: '{tmp_path}/file'"


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/ab",
        "/ab/",
        "/../secret0123456789",
        "/ab/../../secret0123456789",
        "/ab/%2e%2e/%2e%2e/secret0123456789",
        "//etc/passwd",
        "/ab/./0123456789abcdefghijklmnopqrstu",
        "/ab//0123456789abcdefghijklmnopqrstu",
        "/AB/0123456789ABCDEFGHIJKLMNOPQRSTU",
        f"/{NAME}%00",
        f"/{NAME}#1",
        f"/{NAME}?x=y",
        f"/{NAME}/{NAME}",
        f"http://other/{NAME}",
        f"/{'a' * 300}",
    ],
)
def test_a_name_that_ccache_does_not_make_is_refused(tmp_path: Path, path: str) -> None:
    folder = tmp_path / "a/b"
    (tmp_path / "secret0123456789").write_bytes(b"secret")
    with objects.serving(str(folder)) as served:
        for method in ("GET", "HEAD", "PUT", "DELETE"):
            with connected(served) as asking:
                answered = asking(method, path, b"evil" if method == "PUT" else None)
            assert (answered.status, answered.body) == (400, b"")
        assert (served.puts, served.gets, served.broken) == (0, 0, "")
    assert files(tmp_path) == {"secret0123456789": 6}


def test_clients_that_misbehave_are_no_news(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with objects.serving(str(tmp_path)) as served:
        assert ask(served, "PUT", body=bytes(20 * MB)).status == 201
        for nonsense in (b"nonsense", b"GET / HTTP/9.9", b"PATCH / HTTP/1.1"):
            with socket.create_connection(("127.0.0.1", served.port), timeout=SOON) as connection:
                connection.sendall(nonsense + b"\r\n\r\n")
                assert connection.recv(99)
        for length in ("", "Content-Length: -1\r\n", "Transfer-Encoding: chunked\r\n"):
            with socket.create_connection(("127.0.0.1", served.port), timeout=SOON) as connection:
                connection.sendall(f"PUT /{NAME} HTTP/1.1\r\n{length}\r\n".encode())
                assert connection.recv(12) == b"HTTP/1.1 411"
        with socket.create_connection(("127.0.0.1", served.port), timeout=SOON) as connection:
            connection.sendall(f"GET /{NAME} HTTP/1.1\r\n\r\n".encode())
            connection.recv(1)  # and the rest never
        assert ask(served, "HEAD").status == 200
    assert served.broken == ""
    assert capfd.readouterr() == ("", "")


def test_everything_ends_with_the_build(tmp_path: Path) -> None:
    before = set(threading.enumerate())
    with contextlib.ExitStack() as clients:
        with objects.serving(str(tmp_path)) as served:
            asking = clients.enter_context(connected(served))
            assert asking("GET", f"/{NAME}").status == 404
            clients.enter_context(begin_put(served.port, 24 * MB, bytes(20 * MB)))
            until(lambda: files(tmp_path))
            ending = time.monotonic()
        assert time.monotonic() - ending < 5
        assert set(threading.enumerate()) <= before
    assert files(tmp_path) == {}
    with pytest.raises(ConnectionError):
        socket.create_connection(("127.0.0.1", served.port), timeout=SOON)


@dataclass
class Bucket:
    """A bucket of S3 that keeps what it is given, or refuses it as S3 does."""

    objects: dict[str, bytes] = field(default_factory=dict)
    asked: list[tuple[str, str]] = field(default_factory=list)
    """Method and ``Authorization`` of each request."""
    refusal: str = ""
    seconds: float = 0.0
    """How long an answer takes."""


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    """Serve ``s3://cache``, to which the environment has the key."""
    bucket = Bucket()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_PUT(self) -> None:
            self.answer(self.rfile.read(int(self.headers["Content-Length"])))

        def do_GET(self) -> None:
            self.answer()

        do_HEAD = do_GET  # noqa: N815 - the base's name

        def answer(self, put: bytes | None = None) -> None:
            bucket.asked.append((self.command, self.headers.get("Authorization", "")))
            time.sleep(bucket.seconds)
            if bucket.refusal:
                return self.send(403, bucket.refusal.encode())
            if put is not None:
                bucket.objects[self.path] = put
                return self.send(200, b"")
            if self.path not in bucket.objects:
                return self.send(404, b"")
            return self.send(200, bucket.objects[self.path])

        def send(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
            self.send_header("Last-Modified", "Thu, 01 Jan 2026 00:00:00 GMT")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def log_message(self, *_: Any) -> None: ...

    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "somebody")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "right-and-secret")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "token-and-secret")
    monkeypatch.setenv("AWS_REGION", "eu-west-1")
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1})
        server.daemon_threads = True
        thread.start()
        yield bucket
        server.shutdown()
        thread.join()


def test_ccache_finds_what_another_left_in_a_bucket(tmp_path: Path, bucket: Bucket) -> None:
    with objects.serving("s3://cache/some/prefix") as served:
        assert compile_c(tmp_path, at(served))["remote_storage_write"] == 2
    assert all(path.startswith("/cache/some/prefix/") for path in bucket.objects)
    assert all("Credential=somebody/" in signed for _, signed in bucket.asked)
    with objects.serving("s3://cache/some/prefix") as served:
        assert compile_c(tmp_path, at(served))["remote_storage_hit"] == 1
        assert (served.gets, served.hits, served.puts, served.broken) == (2, 2, 0, "")


def test_a_bucket_that_refuses_is_told_without_secrets(tmp_path: Path, bucket: Bucket) -> None:
    bucket.refusal = (
        '<?xml version="1.0"?>\n<Error><Code>InvalidToken</Code><Message>The token is wrong.'
        "</Message><Token-0>token-and-secret</Token-0></Error>"
    )
    with objects.serving("s3://somebody:login-secret@cache/prefix?key=query-secret") as served:
        assert compile_c(tmp_path, at(served))["cache_miss"] == 1
        assert ask(served, "PUT", body=b"object").status == 503
    assert "403 Forbidden: InvalidToken: The token is wrong." in served.broken
    assert "secret" not in served.broken


def test_a_slow_bucket_that_fails_is_not_asked_by_every_compilation(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objects, "_REST_SECONDS", 3.0)
    bucket.seconds, bucket.refusal = 2.2, "busy"
    with objects.serving("s3://cache") as served:
        assert ask(served, "GET").status == 503
        began = time.monotonic()
        assert {ask(served, method).status for method in ("GET", "HEAD", "DELETE")} == {503}
        assert ask(served, "PUT", body=b"object").status == 503
        assert time.monotonic() - began < 1
        bucket.seconds, bucket.refusal = 0.0, ""
        until(lambda: ask(served, "PUT", body=b"object").status == 201)
        assert ask(served, "GET").body == b"object"


def test_a_bucket_out_of_reach_is_told(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://me:secret@127.0.0.1:{services.free_port()}")
    with objects.serving("s3://cache") as served:
        assert ask(served, "GET").status == 503
        assert served.broken.endswith("HTTP error: error sending request: Connection refused")
        assert "secret" not in served.broken
    assert not bucket.asked
