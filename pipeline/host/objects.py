"""What compilers made before, kept in a folder or a bucket and served to ccache while a build runs.

ccache speaks HTTP to a port of loopback (GET, HEAD, PUT and DELETE of an object's name), so the
containers hold no credentials. It goes on without an object that it cannot have, so nothing that
happens to the store fails a build.
"""

from __future__ import annotations

import contextlib
import os
import re
import socketserver
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socket import SHUT_RDWR, socket
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit
from urllib.request import url2pathname

if TYPE_CHECKING:
    from obstore.store import ClientConfig, ObjectStore, RetryConfig

# An object's name is longer than any folder's, so that no object lies where another's folder does.
_NAME: Final = re.compile(r"(?:[0-9a-z]{1,15}/){0,3}[0-9a-z]{16,200}")
# The library writes to such a name first; a process that was killed leaves it.
_HALF_WRITTEN: Final = re.compile(rf"{_NAME.pattern}#[0-9]+")

# The library's errors do not say why there is no connection, but what they say to debuggers does.
_CAUSE: Final = re.compile(
    r'(?:message|error): "([^"]*)"|InvalidCertificate\(\s*(\w+)|source: (TimedOut)'
)
_EFFORT: Final = re.compile(r" in [\d.]+[mµn]?s(, after [^-]*)? +- ")

# Up to this many bytes are stored by one request, and what is longer in parts of this size.
_PART: Final = 8 << 20
_PIECE: Final = 1 << 20

# ccache waits ten seconds for an answer, so nothing is tried for longer. Whatever fails slowly is
# then left alone for a while, or each of thousands of compilations would wait for it.
_RETRY: Final[RetryConfig] = {"max_retries": 2, "retry_timeout": timedelta(seconds=8)}
_SLOW_SECONDS: Final = 2.0
_REST_SECONDS: Final = 300.0

# A connection is idle for as long as its file compiles.
_IDLE_SECONDS: Final = 3600.0
_END_SECONDS: Final = 10.0

_YOUNG_SECONDS: Final = 3600.0


@dataclass
class Served:
    """Where the objects are served, and what came of it so far."""

    port: int
    gets: int = 0
    hits: int = 0
    """The gets that found their object."""
    puts: int = 0
    """The objects that were stored."""
    bytes_out: int = 0
    bytes_in: int = 0
    broken: str = ""
    """Why the store failed first, in words and without secrets; empty if it never did."""
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    def count(self, **more: int) -> None:
        """Add to the numbers of these names."""
        with self._lock:
            for name, number in more.items():
                setattr(self, name, getattr(self, name) + number)

    def fail(self, error: BaseException) -> None:
        """Remember why the store failed, if this is the first time."""
        with self._lock:
            self.broken = self.broken or _words(error)


def folder_of(url: str) -> Path | None:
    """Return the folder that `url` means, as a path or by ``file://``; None if it means none."""
    if url.startswith("file://"):
        return Path(url2pathname(urlsplit(url).path))
    return None if "://" in url else Path(url).expanduser().absolute()


@contextlib.contextmanager
def serving(url: str) -> Iterator[Served]:
    """Serve the objects under `url` on a free port of loopback, until the context ends.

    `url` is a folder, which is made if it is missing, or ``s3://bucket/prefix``, ``gs://…``,
    ``az://…``, whose credentials and endpoint obstore reads from the environment. Nothing is
    raised for a store that does not work: :attr:`Served.broken` says why.
    """
    with _Server() as server:
        try:
            server.folder = folder_of(url)
            server.store = _store(url, server.folder)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: BLE001 - a panic of the library is no Exception
            server.served.fail(error)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1})
        thread.start()
        try:
            yield server.served
        finally:
            server.shutdown()
            thread.join()
            server.cut()


def _store(url: str, folder: Path | None) -> ObjectStore:
    from obstore.store import LocalStore, from_url  # noqa: PLC0415 - few builds need it

    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        return LocalStore(folder)
    # The library refuses an endpoint without TLS unless told twice; naming it is telling enough.
    plain = any(
        value.startswith("http://")
        for name, value in os.environ.items()
        if re.match("(AWS|AZURE|GOOGLE)_.*ENDPOINT", name)
    )
    options: ClientConfig | None = {"allow_http": True} if plain else None
    return from_url(url, client_options=options, retry_config=_RETRY)


def _words(error: BaseException) -> str:
    """Return what an error says in one line, without what may be secret in its quotations."""
    text, _, debug = str(error).partition("\n\nDebug source")
    if "HTTP error" in text and (cause := _CAUSE.search(debug)):
        text += f": {cause[cause.lastindex or 0]}"
    text = _EFFORT.sub(": ", text)
    # An answer in XML may quote the token that it refuses.
    told = re.findall(r"<(?:Code|Message)>([^<]*)<", text)
    text = re.sub(r"(<\?xml|<\w+>).*", "", text, flags=re.DOTALL) + ": ".join(told)
    text = re.sub(r"//\S*@", "//", text)  # the login of a URL
    text = re.sub(r"\?[^\s\"]*", "", text)  # its query, which holds signatures
    text = re.sub(r"^Generic (\w+) error: ", r"\1: ", text)
    return " ".join(text.split())[:400] or type(error).__name__


class _Failed(Exception):
    """The store could not do what it was asked, and `Served.broken` says why."""


class _CutOff(Exception):
    """The client ended before its object did."""


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.served = Served(self.server_address[1])
        self.store: ObjectStore | None = None
        self.folder: Path | None = None
        self._rests_until = 0.0
        self._open: dict[threading.Thread, socket] = {}

    @contextlib.contextmanager
    def asked(self, *expected: type[Exception]) -> Iterator[ObjectStore]:
        """Give the store, to be asked once; _Failed for all that goes wrong but the `expected`."""
        store = self.store
        if store is None or time.monotonic() < self._rests_until:
            raise _Failed
        begun = time.monotonic()
        try:
            yield store
        except expected:
            raise
        except BaseException as error:
            self.served.fail(error)
            if self.folder is None and time.monotonic() - begun > _SLOW_SECONDS:
                self._rests_until = time.monotonic() + _REST_SECONDS
            if not isinstance(error, Exception):  # a panic, which the library prints each time
                self.store = None
            raise _Failed from error

    def process_request(
        self, request: socket | tuple[bytes, socket], client_address: object
    ) -> None:
        assert isinstance(request, socket)
        thread = threading.Thread(target=self._serve, args=(request, client_address), daemon=True)
        self._open[thread] = request
        thread.start()

    def _serve(self, request: socket, client_address: object) -> None:
        self.process_request_thread(request, client_address)
        self._open.pop(threading.current_thread())

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that were killed are no news."""

    def cut(self) -> None:
        """End every connection, and wait for its thread; one that hangs is not waited for."""
        threads = self._open.copy()
        for connection in threads.values():
            with contextlib.suppress(OSError):
                connection.shutdown(SHUT_RDWR)
        deadline = time.monotonic() + _END_SECONDS
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    timeout = _IDLE_SECONDS

    def do_GET(self) -> None:
        self._answer(self._get)

    def do_HEAD(self) -> None:
        self._answer(self._head)

    def do_PUT(self) -> None:
        self._answer(self._put)

    def do_DELETE(self) -> None:
        self._answer(self._delete)

    def _answer(self, method: Callable[[str], None]) -> None:
        name = self.path.removeprefix("/")
        if not _NAME.fullmatch(name):
            self.close_connection = True  # a body may follow
            self._send(HTTPStatus.BAD_REQUEST)
            return
        try:
            method(name)
        except FileNotFoundError:
            self._send(HTTPStatus.NOT_FOUND)
        except _Failed:
            self._send(HTTPStatus.SERVICE_UNAVAILABLE)
        except (_CutOff, OSError):
            self.close_connection = True

    def _get(self, name: str) -> None:
        self.server.served.count(gets=1)
        with self.server.asked(FileNotFoundError) as store:
            found = store.get(name)
        size = found.meta["size"]
        self.server.served.count(hits=1)
        if self.server.folder:
            with contextlib.suppress(OSError):  # it is then older than it should be
                os.utime(self.server.folder / name)
        self._send(HTTPStatus.OK, size)
        pieces = iter(found.stream(min_chunk_size=_PIECE))
        try:
            while size > 0:
                with self.server.asked():
                    piece = next(pieces, b"")
                    if not piece:
                        msg = "an object is shorter than the store said"
                        raise EOFError(msg)
                self.wfile.write(piece)
                self.server.served.count(bytes_out=len(piece))
                size -= len(piece)
        except _Failed:  # the answer has begun, and only its end can say so
            self.close_connection = True

    def _head(self, name: str) -> None:
        with self.server.asked(FileNotFoundError) as store:
            size = store.head(name)["size"]
        self._send(HTTPStatus.OK, size)

    def _put(self, name: str) -> None:
        length = self.headers.get("Content-Length", "")
        if not re.fullmatch(r"[0-9]{1,15}", length) or "Transfer-Encoding" in self.headers:
            self.close_connection = True
            self._send(HTTPStatus.LENGTH_REQUIRED)
            return
        size = int(length)
        body = self._body(size)
        try:
            with self.server.asked(_CutOff) as store:
                if size <= _PART:
                    store.put(name, b"".join(body), use_multipart=False)
                else:
                    store.put(name, body, chunk_size=_PART, max_concurrency=2)
        except _Failed:
            deque(body, maxlen=0)  # a client that still writes would not hear the answer
            raise
        self.server.served.count(puts=1, bytes_in=size)
        self._send(HTTPStatus.CREATED)

    def _body(self, size: int) -> Iterator[bytes]:
        """Yield a body in pieces; _CutOff if it is shorter than `size`."""
        while size > 0:
            try:
                piece = self.rfile.read(min(size, _PIECE))
            except OSError as error:
                raise _CutOff from error
            if not piece:
                raise _CutOff
            size -= len(piece)
            yield piece

    def _delete(self, name: str) -> None:
        with self.server.asked(FileNotFoundError) as store:
            store.delete(name)
        self._send(HTTPStatus.NO_CONTENT)

    def _send(self, status: HTTPStatus, size: int = 0) -> None:
        """Send the head of an answer, whose body, if any, has `size` bytes."""
        self.send_response(status)
        if status != HTTPStatus.NO_CONTENT:
            self.send_header("Content-Length", str(size))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base's name
        """Leave standard error to the build's own lines."""


def trim(folder: Path, max_bytes: int | None) -> int:
    """Delete the least recently used objects of a folder until they fit; return the bytes freed.

    What was never finished goes whatever the room, and without a bound nothing else. None goes that
    was used within the hour, since another build may be at it, and nothing that is no object. What
    cannot be deleted stays.
    """
    until = time.time() - _YOUNG_SECONDS
    total = freed = 0
    old: list[tuple[bool, float, int, Path]] = []
    for path, is_whole in _objects(folder):
        with contextlib.suppress(OSError):  # another build may have deleted it
            about = path.lstat()
            total += about.st_size
            if about.st_mtime < until:
                old.append((is_whole, about.st_mtime, about.st_size, path))
    for is_whole, _, size, path in sorted(old):
        # What was never finished comes first.
        if is_whole and (max_bytes is None or total - freed <= max_bytes):
            break
        with contextlib.suppress(OSError):
            path.unlink()
            freed += size
    return freed


def _objects(folder: Path) -> Iterator[tuple[Path, bool]]:
    """Yield each object of a folder, and whether it is whole."""
    for parent, _, names in os.walk(folder):
        for name in names:
            path = Path(parent, name)
            relative = path.relative_to(folder).as_posix()
            is_whole = _NAME.fullmatch(relative) is not None
            if is_whole or _HALF_WRITTEN.fullmatch(relative):
                yield path, is_whole
