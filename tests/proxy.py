"""A forward proxy that wants a password, on an address that containers reach."""

from __future__ import annotations

import base64
import contextlib
import http.client
import select
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

from tests.services import own_address

_CHUNK = 1 << 16
_IDLE_SECONDS = 60


@dataclass
class Proxy:
    """Where it is, and what it was asked for by whom it knows."""

    url: str
    passed: list[str] = field(default_factory=list)


@contextlib.contextmanager
def proxy(login: str) -> Iterator[Proxy]:
    """Pass on what is asked with `login`, a ``user:password``."""
    wanted = f"Basic {base64.b64encode(login.encode()).decode()}"
    made = Proxy("")

    class Handler(BaseHTTPRequestHandler):
        def _known(self) -> bool:
            if self.headers.get("Proxy-Authorization") == wanted:
                made.passed.append(self.path)
                return True
            self.send_response(407)
            self.send_header("Proxy-Authenticate", 'Basic realm="tests"')
            self.send_header("Content-Length", "0")
            self.end_headers()
            return False

        def do_CONNECT(self) -> None:
            if not self._known():
                return
            host, _, port = self.path.rpartition(":")
            with socket.create_connection((host, int(port)), timeout=_IDLE_SECONDS) as there:
                self.send_response(200)
                self.end_headers()
                _tunnel(self.connection, there)
            self.close_connection = True

        def do_GET(self) -> None:
            if not self._known():
                return
            url = urlsplit(self.path)
            behind = http.client.HTTPConnection(url.netloc, timeout=_IDLE_SECONDS)
            headers = {
                name: value
                for name, value in self.headers.items()
                if not name.lower().startswith(("proxy-", "connection"))
            }
            with contextlib.closing(behind):
                path = f"{url.path}?{url.query}" if url.query else url.path
                behind.request(self.command, path, headers=headers)
                answer = behind.getresponse()
                self.send_response(answer.status)
                for name, value in answer.getheaders():
                    if name.lower() not in {"connection", "transfer-encoding", "server", "date"}:
                        self.send_header(name, value)
                self.end_headers()
                while part := answer.read(_CHUNK):
                    self.wfile.write(part)

        do_HEAD = do_GET  # noqa: N815 - the base's name

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base's name
            """Keep the server's lines out of the tests' output."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        block_on_close = False

        def handle_error(self, request: object, client_address: object) -> None:
            """Clients that go are no news."""

    with Server((own_address(), 0), Handler) as server:
        made.url = f"http://{login}@{own_address()}:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1})
        thread.start()
        try:
            yield made
        finally:
            server.shutdown()
            thread.join()


def _tunnel(one: socket.socket, other: socket.socket) -> None:
    while True:
        ready, _, _ = select.select([one, other], [], [], _IDLE_SECONDS)
        if not ready:
            return
        for side in ready:
            part = side.recv(_CHUNK)
            if not part:
                return
            (other if side is one else one).sendall(part)
