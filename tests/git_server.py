"""A real git server on an address that containers reach, and how its network fails."""

from __future__ import annotations

import base64
import contextlib
import os
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from email.parser import BytesParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from tests.services import own_address

_WHO = {
    f"GIT_{who}_{what}": value
    for who in ("AUTHOR", "COMMITTER")
    for what, value in (("NAME", "t"), ("EMAIL", "t@example.org"), ("DATE", "1700000000 +0000"))
}
_ENV = {
    "PATH": os.environ["PATH"],
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_CONFIG_NOSYSTEM": "1",
    **_WHO,
}


def git(folder: Path, *args: str, text: str = "") -> str:
    """Run git, deaf to this machine's own configuration; return what it prints."""
    done = subprocess.run(
        ["git", *args], cwd=folder, env=_ENV, input=text, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


@dataclass
class GitServer:
    """Repositories, whoever may read them, and how often which fault is still to come."""

    folder: Path
    host: str = ""
    login: str = ""
    knows_protocol_2: bool = True
    """Without it, only what a branch or tag stands at is handed out."""
    resets: int = 0
    """Connections that end as soon as they are there."""
    unavailable: int = 0
    """Requests that are answered with 503."""
    failing: str = ""
    """What the paths of those requests have in them."""
    cuts: int = 0
    """Packs that end in the middle."""
    asked: list[str] = field(default_factory=list)
    """The paths that were asked for, those that failed too."""

    @property
    def root(self) -> str:
        """What all its URLs begin with."""
        return f"http://{self.host}/"

    def url(self, name: str) -> str:
        return f"{self.root}{name}.git"

    def commit(
        self,
        name: str,
        files: Mapping[str, str],
        submodules: Mapping[str, tuple[str, str]] | None = None,
        *,
        tag: str = "",
        gitmodules: str = "",
    ) -> str:
        """Commit files, and submodules by path as URL and commit; return the commit."""
        repository = self.folder / f"{name}.git"
        if not repository.exists():
            repository.mkdir(parents=True)
            git(repository, "init", "-q", "-b", "main")
        for path, content in files.items():
            file = repository / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(content)
        for path, (url, commit) in (submodules or {}).items():
            gitmodules += f'[submodule "{path}"]\n\tpath = {path}\n\turl = {url}\n'
            git(repository, "update-index", "--add", "--cacheinfo", f"160000,{commit},{path}")
        if gitmodules:
            (repository / ".gitmodules").write_text(gitmodules)
        git(repository, "add", "--", *files, *([".gitmodules"] if gitmodules else []))
        git(repository, "commit", "-q", "-m", "a change")
        if tag:
            git(repository, "tag", "-a", "-m", tag, tag)
        return git(repository, "rev-parse", "HEAD")


@contextlib.contextmanager
def git_server(folder: Path, *, port: int = 0, silent_for: float = 0) -> Iterator[GitServer]:
    """Serve the repositories of `folder` over HTTP; for the first seconds, nothing listens."""
    served = GitServer(folder)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            _answer(served, self)

        def do_POST(self) -> None:
            _answer(served, self)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base's name
            """Keep the server's lines out of the tests' output."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        block_on_close = False

        def process_request(self, request: object, client_address: object) -> None:
            assert isinstance(request, socket.socket)
            if served.resets > 0:
                served.resets -= 1
                served.asked.append("a connection")
                _reset(request)
                return
            super().process_request(request, client_address)

        def handle_error(self, request: object, client_address: object) -> None:
            """Connections that end in the middle are what is tested."""

    address = own_address()
    with Server((address, port), Handler, bind_and_activate=False) as server:
        server.server_bind()
        served.host = f"{address}:{server.server_port}"

        def serve() -> None:
            time.sleep(silent_for)  # bound, but not listening: connections are refused
            server.server_activate()
            server.serve_forever(poll_interval=0.1)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        if not silent_for:
            time.sleep(0.05)
        try:
            yield served
        finally:
            server.shutdown()
            thread.join()


def _reset(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def _answer(served: GitServer, request: BaseHTTPRequestHandler) -> None:
    path, _, query = request.path.partition("?")
    served.asked.append(path)
    body = _body(request)
    if served.unavailable > 0 and served.failing in path:
        served.unavailable -= 1
        _send(request, 503, {}, b"")
        return
    basic = f"Basic {base64.b64encode(served.login.encode()).decode()}"
    if served.login and request.headers.get("Authorization") != basic:
        _send(request, 401, {"WWW-Authenticate": 'Basic realm="tests"'}, b"")
        return
    env = {
        **_ENV,
        "GIT_PROJECT_ROOT": str(served.folder),
        "GIT_HTTP_EXPORT_ALL": "1",
        "REQUEST_METHOD": request.command,
        "PATH_INFO": path,
        "QUERY_STRING": query,
        "CONTENT_TYPE": request.headers.get("Content-Type", ""),
        "CONTENT_LENGTH": str(len(body)),
        "HTTP_CONTENT_ENCODING": request.headers.get("Content-Encoding", ""),
    }
    if served.knows_protocol_2:
        env["GIT_PROTOCOL"] = request.headers.get("Git-Protocol", "")
    # It fails where it has told the client why.
    done = subprocess.run(
        ["git", "http-backend"], env=env, input=body, capture_output=True, check=False
    )
    head, _, content = done.stdout.partition(b"\r\n\r\n")
    headers = dict(BytesParser().parsebytes(head + b"\r\n\r\n").items())
    status = int(headers.pop("Status", "200").split()[0])
    has_pack = path.endswith("/git-upload-pack") and b"PACK" in content
    if served.cuts > 0 and has_pack:
        served.cuts -= 1
        _send(request, status, headers, content, cut=content.index(b"PACK") + 40)
        return
    _send(request, status, headers, content)


def _body(request: BaseHTTPRequestHandler) -> bytes:
    if request.headers.get("Transfer-Encoding") != "chunked":
        return request.rfile.read(int(request.headers.get("Content-Length", 0)))
    body = b""
    while size := int(request.rfile.readline(), 16):
        body += request.rfile.read(size)
        request.rfile.readline()
    request.rfile.readline()
    return body


def _send(
    request: BaseHTTPRequestHandler,
    status: int,
    headers: Mapping[str, str],
    content: bytes,
    *,
    cut: int | None = None,
) -> None:
    request.send_response(status)
    for name, value in headers.items():
        request.send_header(name, value)
    request.send_header("Content-Length", str(len(content)))
    request.end_headers()
    request.wfile.write(content[:cut])
    if cut is not None:
        request.wfile.flush()
        request.close_connection = True
        request.connection.shutdown(socket.SHUT_RDWR)
