"""A proxy with TLS before a real server, that loses what a bad network loses; and a private CA."""

from __future__ import annotations

import contextlib
import datetime
import http.client
import ipaddress
import random
import socket
import ssl
import struct
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tests.services import own_address

STATUSES: Final = ("500", "502", "503", "504", "429")
OTHER: Final = "login page"
LOST: Final = ("reset", "lost answer", "cut request", "cut answer")
"""No answer at all; the answer of what was done is lost; a body ends in the middle, either way."""
SLOW: Final = "slow"
ALL: Final = (*STATUSES, *LOST, SLOW)

_CHUNK = 1 << 16
_SLOW_SECONDS = 1.0


@dataclass(frozen=True)
class Seen:
    """A request, the fault that was put into it, and what the server behind answered, if asked."""

    method: str
    path: str
    fault: str
    status: int


@dataclass
class Faulty:
    """The proxy: `rate` of its requests fail, by a random number of a known seed.

    With a `script` the next requests have just these faults, in this order, and no other has any.
    Requests without `only` in their paths pass untouched.
    """

    rate: float
    faults: Sequence[str]
    seed: int
    script: list[str] | None = None
    only: str = ""
    host: str = ""
    seen: list[Seen] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)  # noqa: S311 - the same faults in each run
        self._lock = threading.Lock()

    def fault(self, path: str) -> str:
        """Return what happens to a request, nothing mostly."""
        if self.only not in path:
            return ""
        with self._lock:
            if self.script is not None:
                return self.script.pop(0) if self.script else ""
            return self._random.choice(self.faults) if self._random.random() < self.rate else ""

    def saw(self, request: Seen) -> None:
        with self._lock:
            self.seen.append(request)

    def failed(self) -> list[Seen]:
        """Return the requests with a fault in them."""
        return [it for it in self.seen if it.fault]

    def done(self, method: str, part: str) -> list[str]:
        """Return the paths of what the server behind has done, with `part` in them."""
        return [
            it.path.partition("?")[0] + ("?" + it.path.rpartition("?")[2]) * ("?" in it.path)
            for it in self.seen
            if it.method == method and part in it.path and it.status in {200, 201, 202}
        ]


@contextlib.contextmanager
def faulty(
    backend: str,
    *,
    pem: Path | None = None,
    rate: float = 0.2,
    faults: Sequence[str] = ALL,
    seed: int = 1,
    script: Sequence[str] | None = None,
    only: str = "",
    address: str = "",
) -> Iterator[Faulty]:
    """Stand before `backend`, a ``host:port`` of loopback, with TLS by `pem`."""
    proxy = Faulty(rate, faults, seed, None if script is None else list(script), only)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            _pass_on(proxy, self, backend, "https" if pem else "http")

        do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_GET  # noqa: N815 - the base's names

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base's name
            """Keep the server's lines out of the tests' output."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        block_on_close = False

        def handle_error(self, request: object, client_address: object) -> None:
            """Connections that end in the middle are what is tested."""

    with Server((address or own_address(), 0), Handler) as server:
        if pem:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(pem)
            server.socket = context.wrap_socket(
                server.socket, server_side=True, do_handshake_on_connect=False
            )
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1})
        thread.start()
        proxy.host = f"{address or own_address()}:{server.server_port}"
        try:
            yield proxy
        finally:
            server.shutdown()
            thread.join()


def _pass_on(proxy: Faulty, request: BaseHTTPRequestHandler, backend: str, scheme: str) -> None:
    fault, status = proxy.fault(request.path), 0
    try:
        if fault == "reset":
            _reset(request)
        elif fault == "cut request":
            _read(request, half=True)
            _reset(request)
        elif fault.isdecimal():
            for _ in _body(request):
                pass
            _refuse(request, int(fault))
        elif fault == OTHER:
            _send_other(request)
        else:
            if fault == SLOW:
                time.sleep(_SLOW_SECONDS)
            status = _forward(request, backend, scheme, fault)
    finally:
        proxy.saw(Seen(request.command, request.path, fault, status))


def _forward(request: BaseHTTPRequestHandler, backend: str, scheme: str, fault: str) -> int:
    host, _, port = backend.partition(":")
    behind = http.client.HTTPConnection(host, int(port), timeout=60)
    headers = {
        name: value
        for name, value in request.headers.items()
        if name.lower() not in {"connection", "transfer-encoding"}
    }
    with contextlib.closing(behind):
        behind.request(
            request.command,
            request.path,
            body=_body(request),
            headers=headers | {"X-Forwarded-Proto": scheme},
            encode_chunked="Content-Length" not in headers,
        )
        answer = behind.getresponse()
        if fault == "lost answer":
            answer.read()
            _reset(request)
            return answer.status
        request.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in {"connection", "transfer-encoding", "server", "date"}:
                request.send_header(name, value)
        length = int(answer.headers.get("Content-Length") or 0)
        request.end_headers()
        if fault == "cut answer":
            request.wfile.write(answer.read(length // 2))
            request.wfile.flush()
            _reset(request)
            return answer.status
        while part := answer.read(_CHUNK):
            request.wfile.write(part)
        return answer.status


def _refuse(request: BaseHTTPRequestHandler, status: int) -> None:
    body = b'{"errors": [{"code": "UNAVAILABLE", "message": "a fault of the tests"}]}'
    request.send_response(status)
    if status == 429:
        request.send_header("Retry-After", "1")
    request.send_header("Content-Type", "application/json")
    request.send_header("Content-Length", str(len(body)))
    request.end_headers()
    if request.command != "HEAD":
        request.wfile.write(body)


def _send_other(request: BaseHTTPRequestHandler) -> None:
    """Answer as a portal does that wants a login first."""
    body = b"<html><p>Welcome to the guests' network!"
    request.send_response(200)
    request.send_header("Content-Type", "text/html")
    request.send_header("Content-Length", str(len(body)))
    request.end_headers()
    if request.command != "HEAD":
        request.wfile.write(body)


def _body(request: BaseHTTPRequestHandler) -> Iterator[bytes]:
    """Yield the body of a request, in pieces."""
    if request.headers.get("Transfer-Encoding") == "chunked":
        while size := int(request.rfile.readline() or b"0", 16):
            yield request.rfile.read(size)
            request.rfile.readline()
        request.rfile.readline()
        return
    left = int(request.headers.get("Content-Length") or 0)
    while left and (part := request.rfile.read(min(left, _CHUNK))):
        left -= len(part)
        yield part


def _read(request: BaseHTTPRequestHandler, *, half: bool) -> None:
    wanted = int(request.headers.get("Content-Length") or 0) // (2 if half else 1)
    while wanted > 0 and (part := request.rfile.read(min(wanted, _CHUNK))):
        wanted -= len(part)


def _reset(request: BaseHTTPRequestHandler) -> None:
    """End the connection as one is ended that was lost: by a reset, without a goodbye of TLS."""
    request.close_connection = True
    connection = request.connection
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    with contextlib.suppress(OSError):
        socket.socket(fileno=connection.detach()).close()


@dataclass(frozen=True)
class Authority:
    """A private CA: its certificate, a bundle of the machine's own and it, and a server's `pem`."""

    certificate: Path
    bundle: Path
    server: Path


def authority(folder: Path) -> Authority:
    """Make a CA in `folder`, and a certificate by it for this machine's own address."""
    ours, theirs = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "CA of the tests")])
    address = x509.IPAddress(ipaddress.ip_address(own_address()))
    ca = (
        _about(name, name, ours.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(ours.public_key()), False)
        .sign(ours, hashes.SHA256())
    )
    server_name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, own_address())])
    server = (
        _about(server_name, name, theirs.public_key())
        .add_extension(x509.SubjectAlternativeName([address]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ours.public_key()), False)
        .sign(ours, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    made = Authority(folder / "ca.crt", folder / "bundle.crt", folder / "server.pem")
    made.certificate.write_bytes(ca.public_bytes(pem))
    made.bundle.write_bytes(_machine() + b"\n" + made.certificate.read_bytes())
    key = theirs.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    made.server.write_bytes(key + server.public_bytes(pem))
    return made


def _about(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey
) -> x509.CertificateBuilder:
    now, day = datetime.datetime.now(tz=datetime.UTC), datetime.timedelta(days=1)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - day)
        .not_valid_after(now + 7 * day)
    )


def _machine() -> bytes:
    """Return the certificates that this machine trusts anyway."""
    paths = ssl.get_default_verify_paths()
    return Path(paths.cafile or paths.openssl_cafile).read_bytes()
