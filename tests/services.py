"""Real services that tests and benchmarks start on loopback, and end."""

from __future__ import annotations

import base64
import contextlib
import os
import socket
import ssl
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from email.message import Message
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from pip._internal.models.index import PyPI

_READY_SECONDS = 20.0

_CONFIG = """\
version: 0.1
log: {{level: warn}}
storage:
  filesystem: {{rootdirectory: {data}}}
  delete: {{enabled: true}}
  maintenance: {{readonly: {{enabled: {readonly}}}}}
http: {{addr: "{address}"{tls}}}
{auth}"""

_AUTH = "auth: {{htpasswd: {{realm: tests, path: {path}}}}}\n"


@contextlib.contextmanager
def registry(
    folder: Path, *, htpasswd: Path | None = None, readonly: bool = False, pem: Path | None = None
) -> Iterator[str]:
    """Run Debian's docker-registry with its data in `folder`; yield its ``localhost:port``.

    By a key and certificate it speaks TLS, where containers reach it.
    """
    port = free_port()
    config = folder / "registry.yml"
    auth = _AUTH.format(path=htpasswd) if htpasswd else ""
    host = own_address() if pem else "127.0.0.1"
    tls = f", tls: {{certificate: {pem}, key: {pem}}}" if pem else ""
    config.write_text(
        _CONFIG.format(
            data=folder / "data",
            address=f"{host}:{port}",
            tls=tls,
            auth=auth,
            readonly=str(readonly).lower(),
        )
    )
    log = folder / "registry.log"
    with (
        log.open("wb") as out,
        subprocess.Popen(
            ["docker-registry", "serve", str(config)], stdout=out, stderr=subprocess.STDOUT
        ) as process,
    ):
        try:
            # Spoken to without TLS, it answers that this is wrong, and so is there.
            _wait_until_ready(f"http://{host}:{port}/v2/", process, log)
            yield f"{host if pem else 'localhost'}:{port}"
        finally:
            process.terminate()


def authority(folder: Path) -> tuple[Path, Path]:
    """Make a CA that nobody knows; return its certificate, and key and certificate of a server.

    The server is one of loopback, and of the address of this machine that containers reach.
    """
    names = f"subjectAltName=DNS:localhost,IP:127.0.0.1,IP:{own_address()}"
    ca, key = folder / "ca.pem", folder / "ca.key"
    pem, request = folder / "server.pem", folder / "server.csr"
    made = ("openssl", "req", "-newkey", "rsa:2048", "-nodes", "-keyout")
    for command in (
        (*made, str(key), "-x509", "-days", "2", "-subj", "/CN=Private CA of a test", "-out",
         str(ca)),
        (*made, str(folder / "server.key"), "-subj", "/CN=localhost", "-out", str(request)),
        ("openssl", "x509", "-req", "-in", str(request), "-CA", str(ca), "-CAkey", str(key),
         "-CAcreateserial", "-days", "2", "-out", str(folder / "server.crt"), "-extfile",
         str(folder / "names")),
    ):  # fmt: skip
        (folder / "names").write_text(names)
        subprocess.run(command, check=True, capture_output=True)
    pem.write_text((folder / "server.key").read_text() + (folder / "server.crt").read_text())
    return ca, pem


def free_port() -> int:
    """Return a port of loopback that nothing listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def own_address() -> str:
    """Return the address of this machine that containers reach: its loopback is not theirs."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as route:
        route.connect(("198.51.100.1", 9))  # sends nothing
        address: str = route.getsockname()[0]
        return address


def _wait_until_ready(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + _READY_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=1):  # noqa: S310 - a loopback URL of ours
                return
        except urllib.error.HTTPError:
            return  # 401 is an answer
        except OSError:
            time.sleep(0.05)
    msg = f"docker-registry does not answer:\n{log.read_text()}"
    raise RuntimeError(msg)


@dataclass(frozen=True)
class Asked:
    """A request that came."""

    method: str
    path: str
    headers: Message


@dataclass(frozen=True)
class Answer:
    """What to answer it with."""

    status: int
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that a test has killed are no news."""


@contextlib.contextmanager
def serving(
    answer: Callable[[Asked], Answer], host: str = "127.0.0.1", *, pem: Path | None = None
) -> Iterator[str]:
    """Serve HTTP, or HTTPS by a key and certificate, on a port of `host`; yield ``host:port``."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            given = answer(Asked(self.command, self.path, self.headers))
            self.send_response(given.status)
            for name, value in given.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(given.body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(given.body)

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_POST(self) -> None:
            self.do_GET()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base's name
            """Keep the server's lines out of the tests' output."""

    with _Server((host, 0), Handler) as server:
        if pem:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(pem)
            server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1})
        thread.start()
        try:
            yield f"{host}:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@dataclass
class Index:
    """A package index with a few wheels of its own; what it lacks, it redirects to PyPI for.

    With `open` cleared it keeps whoever asks it waiting, and says so by `asked`.
    """

    wheels: dict[str, Path] = field(default_factory=dict)
    login: str = ""
    host: str = ""
    asked: threading.Event = field(default_factory=threading.Event)
    open: threading.Event = field(default_factory=threading.Event)

    @property
    def url(self) -> str:
        """The URL for INDEX_URL, with the login in it."""
        return f"http://{self.login}{'@' if self.login else ''}{self.host}/simple"

    def add(self, wheel: Path) -> None:
        """Serve `wheel`."""
        self.wheels[_project(wheel.name)] = wheel


@contextlib.contextmanager
def package_index(login: str = "") -> Iterator[Index]:
    """Serve an :class:`Index` where containers reach it."""
    index = Index(login=login)
    index.open.set()
    basic = f"Basic {base64.b64encode(login.encode()).decode()}"
    upstream = os.environ.get("PIP_INDEX_URL", PyPI.simple_url).rstrip("/")

    def answer(request: Asked) -> Answer:
        kind, _, name = request.path.strip("/").partition("/")
        if login and request.headers.get("Authorization") != basic:
            return Answer(401, headers={"WWW-Authenticate": 'Basic realm="tests"'})
        index.asked.set()
        index.open.wait()
        if kind == "files":
            return Answer(200, index.wheels[_project(name)].read_bytes())
        if wheel := index.wheels.get(name):
            digest = sha256(wheel.read_bytes()).hexdigest()
            link = f'<a href="/files/{wheel.name}#sha256={digest}">{wheel.name}</a>'
            return Answer(200, link.encode(), {"Content-Type": "text/html"})
        return Answer(302, headers={"Location": f"{upstream}/{name}/"})

    with serving(answer, own_address()) as index.host:
        try:
            yield index
        finally:
            index.open.set()


def _project(wheel: str) -> str:
    return wheel.partition("-")[0].replace("_", "-")


@contextlib.contextmanager
def redis(folder: Path, password: str = "secret") -> Iterator[str]:  # noqa: S107 - a test's
    """Run a Redis with a password that containers reach; yield its URL."""
    address, port = own_address(), free_port()
    command = ["redis-server", "--bind", address, "--port", str(port), "--requirepass", password,
               "--save", "", "--dir", str(folder), "--maxmemory", "2gb"]  # fmt: skip
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        try:
            deadline = time.monotonic() + _READY_SECONDS
            while True:
                with contextlib.suppress(OSError), socket.create_connection((address, port), 1):
                    break
                if time.monotonic() > deadline or process.poll() is not None:
                    raise AssertionError("redis-server does not start")
                time.sleep(0.05)
            yield f"redis://:{password}@{address}:{port}"
        finally:
            process.terminate()
