"""Packages as a build asks for them, written down on their way or given from a bundle.

A build reaches this server by a name of the session's own: pip, uv and npm as their index, apt as
its proxy, so that the image's apt sources stay what they are. Nothing here is a way out: what is
not an index of the build's own or a package of apt's is refused.
"""

from __future__ import annotations

import contextlib
import hashlib
import html
import json
import os
import re
import socketserver
import tempfile
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from html.parser import HTMLParser
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol
from urllib.parse import unquote, urljoin, urlsplit

from pipeline.bundle.layout import Blob, Bundle, Role, Writer
from pipeline.host import ca

if TYPE_CHECKING:
    import requests

HOST: Final = "cresset-bundle"
PORT: Final = 8378
URL: Final = f"http://{HOST}:{PORT}"

INDEX, EXTRA, TORCH = "index", "extra", "torch"
"""The package indexes of a build, by the part of the path that stands for each."""

NPM: Final = "https://registry.npmjs.org/"
_PIECE: Final = 1 << 18
_CONNECT_SECONDS: Final = 20.0
_READ_SECONDS: Final = 120.0
_TRIES: Final = 4
_END_SECONDS: Final = 30.0
_PAGE = re.compile(r"/(index|extra|torch)/([A-Za-z0-9._-]+)/?")
# A proxy for all of http would be a way to what only this machine reaches.
_APT = re.compile(r"http://[^/]+/(.+/)?(dists|pool)/.+")
_FILE = re.compile(r"/files/([0-9a-f]{64})/([^/]+)")


@dataclass(frozen=True)
class Answer:
    """What a request is answered with."""

    status: int
    """Any that a server somewhere may give, so more than HTTP names."""
    body: Iterator[bytes] = field(default_factory=lambda: iter(()))
    size: int | None = None
    """Of the body, where it is known before its end."""
    kind: str = "application/octet-stream"


class Packages(Protocol):
    """What answers."""

    def answer(self, target: str) -> Answer:
        """Return the answer to a GET of a path of ours, or of a whole URL as of a proxy."""

    @property
    def indexes(self) -> frozenset[str]:
        """Which of the indexes there are."""


def _text(status: int, text: str, kind: str = "text/plain") -> Answer:
    body = text.encode()
    return Answer(status, iter((body,)), len(body), f"{kind}; charset=utf-8")


@dataclass(frozen=True)
class Listed:
    """A file that an index lists."""

    name: str
    url: str
    sha256: str = ""
    requires_python: str = ""
    yanked: bool = False
    has_metadata: bool = False


def page(files: Mapping[str, Listed]) -> str:
    """Return a project's page (PEP 503), with the place of each file for its URL."""
    lines = []
    for place, file in files.items():
        url = f"/files/{place}/{file.name}" + (f"#sha256={file.sha256}" if file.sha256 else "")
        more = ""
        if file.requires_python:
            more += f' data-requires-python="{html.escape(file.requires_python)}"'
        if file.yanked:
            more += ' data-yanked=""'
        if file.has_metadata:
            more += ' data-core-metadata="true" data-dist-info-metadata="true"'
        lines.append(f'<a href="{url}"{more}>{html.escape(file.name)}</a>')
    return "<!DOCTYPE html>\n<body>\n" + "<br>\n".join(lines) + "\n</body>\n"


def listed(text: str, kind: str, url: str) -> list[Listed]:
    """Return what a page lists, be it JSON (PEP 691) or HTML (PEP 503); `url` is where it was."""
    if "json" not in kind:
        parser = _Page(url)
        parser.feed(text)
        return parser.found
    return [
        Listed(
            it["filename"],
            urljoin(url, it["url"]),
            it.get("hashes", {}).get("sha256", ""),
            it.get("requires-python") or "",
            bool(it.get("yanked")),
            bool(it.get("core-metadata") or it.get("dist-info-metadata")),
        )
        for it in json.loads(text)["files"]
    ]


class _Page(HTMLParser):
    def __init__(self, url: str) -> None:
        super().__init__()
        self._url = url
        self.found: list[Listed] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag == "base":
            self._url = urljoin(self._url, given.get("href") or "")
        if tag != "a" or not given.get("href"):
            return
        url, _, fragment = urljoin(self._url, given["href"] or "").partition("#")
        metadata = given.get("data-core-metadata") or given.get("data-dist-info-metadata")
        self.found.append(
            Listed(
                unquote(urlsplit(url).path.rpartition("/")[2]),
                url,
                fragment.removeprefix("sha256=") if fragment.startswith("sha256=") else "",
                given.get("data-requires-python") or "",
                "data-yanked" in given,
                bool(metadata),
            )
        )


@dataclass
class Upstream:
    """Where the packages of this machine come from; empty where there is none."""

    index: str
    extra: str = ""
    torch: str = ""
    npm: str = NPM


class Recorder:
    """Answers from the network, and keeps what it has answered with."""

    def __init__(self, upstream: Upstream, writer: Writer, folder: Path) -> None:
        import requests  # noqa: PLC0415 - a build from a bundle needs none
        from requests.adapters import HTTPAdapter  # noqa: PLC0415
        from urllib3.util import Retry  # noqa: PLC0415

        self._urls = {INDEX: upstream.index, EXTRA: upstream.extra, TORCH: upstream.torch}
        self._npm = upstream.npm.rstrip("/") + "/"
        self._writer = writer
        self._folder = folder
        self._files: dict[str, tuple[str, Listed]] = {}
        self._session = requests.Session()
        self._session.verify = ca.bundle()
        retry = Retry(_TRIES, backoff_factor=0.5, status_forcelist=[429, 500, 502, 503, 504])
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, HTTPAdapter(pool_maxsize=32, max_retries=retry))

    def close(self) -> None:
        """Close the connections that were kept for more."""
        self._session.close()

    @property
    def indexes(self) -> frozenset[str]:
        return frozenset(name for name, url in self._urls.items() if url)

    def answer(self, target: str) -> Answer:
        if found := _PAGE.fullmatch(target):
            return self._page(found[1], found[2])
        if found := _FILE.fullmatch(target):
            return self._file(found[1], found[2])
        if target.startswith("/npm/"):
            return self._from_npm(target.removeprefix("/npm/"))
        if _APT.fullmatch(target):
            return self._kept(target, "apt", target, "")
        return Answer(HTTPStatus.NOT_FOUND, size=0)

    def _page(self, index: str, project: str) -> Answer:
        base = self._urls[index]
        if not base:
            return Answer(HTTPStatus.NOT_FOUND, size=0)
        url = f"{base.rstrip('/')}/{project}/"
        accept = "application/vnd.pypi.simple.v1+json, text/html;q=0.1"
        response = self._get(url, {"Accept": accept})
        if response.status_code != HTTPStatus.OK:
            return Answer(response.status_code, size=0)
        found = {}
        for it in listed(response.text, response.headers.get("Content-Type", ""), response.url):
            place = hashlib.sha256(it.url.encode()).hexdigest()
            found[place] = it
            self._files[place] = f"{index}/{_normal(project)}/{it.name}", it
        return _text(HTTPStatus.OK, page(found), "text/html")

    def _file(self, place: str, name: str) -> Answer:
        if place not in self._files:
            return Answer(HTTPStatus.NOT_FOUND, size=0)
        title, it = self._files[place]
        url = _with_login(it.url, self._urls[title.partition("/")[0]])
        if name == f"{it.name}.metadata":
            response = self._get(f"{url}.metadata", {})
            body = response.content
            return Answer(response.status_code, iter((body,)), len(body))
        return self._kept(url, "python", title, it.sha256)

    def _from_npm(self, path: str) -> Answer:
        url = self._npm + path
        if path.endswith(".tgz"):
            return self._kept(url, "npm", path, "")
        response = self._get(url, {"Accept": "application/json"})
        if response.status_code != HTTPStatus.OK:
            return Answer(response.status_code, size=0)
        # npm itself takes its own registry's name for that of whichever it was told of.
        text = response.text
        for base in (self._npm, NPM):
            text = text.replace(f'"{base}', f'"{URL}/npm/')
        self._write("npm", path, iter((text.encode(),)), "")
        return _text(HTTPStatus.OK, text, "application/json")

    def _kept(self, url: str, role: Role, title: str, sha256: str) -> Answer:
        response = self._get(url, {"Accept-Encoding": "identity"}, stream=True)
        if response.status_code != HTTPStatus.OK:
            response.close()
            return Answer(response.status_code, size=0)
        length = response.headers.get("Content-Length")
        body = self._passing(response, role, title, sha256, int(length) if length else None)
        return Answer(HTTPStatus.OK, body, int(length) if length else None)

    def _passing(
        self, response: requests.Response, role: Role, title: str, sha256: str, size: int | None
    ) -> Iterator[bytes]:
        with contextlib.closing(response):
            yield from self._write_passing(role, title, response.iter_content(_PIECE), sha256, size)

    def _write(self, role: Role, title: str, body: Iterator[bytes], sha256: str) -> None:
        for _ in self._write_passing(role, title, body, sha256, None):
            pass

    def _write_passing(
        self, role: Role, title: str, body: Iterator[bytes], sha256: str, size: int | None
    ) -> Iterator[bytes]:
        """Yield the body, and keep it once all of it has come and is what it should be."""
        descriptor, name = tempfile.mkstemp(dir=self._folder)
        file = Path(name)
        try:
            total = hashlib.sha256()
            with os.fdopen(descriptor, "wb") as out:
                for piece in body:
                    total.update(piece)
                    out.write(piece)
                    yield piece
                came = out.tell()
            whole = size is None or came == size
            if whole and sha256 in {"", total.hexdigest()}:
                self._writer.add(role, title, file)
        finally:
            file.unlink(missing_ok=True)

    def _get(
        self, url: str, headers: Mapping[str, str], *, stream: bool = False
    ) -> requests.Response:
        seconds = (_CONNECT_SECONDS, _READ_SECONDS)
        return self._session.get(url, headers=dict(headers), stream=stream, timeout=seconds)


class Replay:
    """Answers from a bundle, and from nothing else."""

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle
        self._python = bundle.files("python")
        self._apt = bundle.files("apt")
        self._npm = bundle.files("npm")
        self._files = {blob.digest.removeprefix("sha256:"): blob for blob in self._python.values()}
        self._projects: dict[tuple[str, str], dict[str, Listed]] = {}
        for title, blob in self._python.items():
            index, project, name = title.split("/")
            sha256 = blob.digest.removeprefix("sha256:")
            files = self._projects.setdefault((index, project), {})
            files[sha256] = Listed(name, "", sha256)

    @property
    def indexes(self) -> frozenset[str]:
        return frozenset(index for index, _ in self._projects)

    def answer(self, target: str) -> Answer:
        if found := _PAGE.fullmatch(target):
            files = self._projects.get((found[1], _normal(found[2])))
            if files is None:
                return Answer(HTTPStatus.NOT_FOUND, size=0)
            return _text(HTTPStatus.OK, page(files), "text/html")
        if found := _FILE.fullmatch(target):
            return self._blob(self._files.get(found[1]))
        if target.startswith("/npm/"):
            return self._blob(self._npm.get(target.removeprefix("/npm/")))
        return self._blob(self._apt.get(target))

    def _blob(self, blob: Blob | None) -> Answer:
        if blob is None:
            return Answer(HTTPStatus.NOT_FOUND, size=0)
        return Answer(HTTPStatus.OK, self._bundle.pieces(blob), blob.size)


def _normal(project: str) -> str:
    return re.sub(r"[-_.]+", "-", project).lower()


def _with_login(url: str, index: str) -> str:
    """Return the URL of a file with the login of its index, if both are on one host."""
    file, page_of = urlsplit(url), urlsplit(index)
    login, at, host = page_of.netloc.rpartition("@")
    if at and "@" not in file.netloc and file.netloc == host:
        return file._replace(netloc=f"{login}@{host}").geturl()
    return url


@dataclass
class Served:
    """Where packages are served, and what went wrong there."""

    port: int
    packages: Packages
    broken: str = ""
    """What failed first, without secrets; empty if nothing did."""


@contextlib.contextmanager
def serving(packages: Packages) -> Iterator[Served]:
    """Serve packages on a free port of loopback until the context ends."""
    with _Server(packages) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1})
        thread.start()
        try:
            yield server.served
        finally:
            server.shutdown()
            thread.join()
            server.wait()


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, packages: Packages) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.served = Served(self.server_address[1], packages)
        self._answering = 0
        self._quiet = threading.Condition()

    @contextlib.contextmanager
    def answering(self) -> Iterator[None]:
        """Hold up the end of the server: a client has all before it is written down."""
        with self._quiet:
            self._answering += 1
        try:
            yield
        finally:
            with self._quiet:
                self._answering -= 1
                self._quiet.notify_all()

    def wait(self) -> None:
        """Return once nothing is being answered, or a client has held it up for long."""
        with self._quiet:
            self._quiet.wait_for(lambda: not self._answering, _END_SECONDS)

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that were killed are no news."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"
    timeout = 300.0

    def do_GET(self) -> None:
        with self.server.answering():
            self._answer(with_body=True)

    def do_HEAD(self) -> None:
        with self.server.answering():
            self._answer(with_body=False)

    def _answer(self, *, with_body: bool) -> None:
        target = self.path.removeprefix(URL)
        try:
            given = self.server.served.packages.answer(target)
        except Exception as error:  # noqa: BLE001 - whatever a server sends, the build is answered
            self._fail(error)
            given = Answer(HTTPStatus.BAD_GATEWAY, size=0)
        self.send_response(given.status)
        self.send_header("Content-Type", given.kind)
        if given.size is None:
            self.close_connection = True
            self.send_header("Connection", "close")
        else:
            self.send_header("Content-Length", str(given.size))
        self.end_headers()
        if not with_body:
            return
        try:
            for piece in given.body:
                self.wfile.write(piece)
        except Exception as error:  # noqa: BLE001 - the answer has begun, and its end says so
            self.close_connection = True
            if not isinstance(error, ConnectionError):
                self._fail(error)

    def _fail(self, error: Exception) -> None:
        said = re.sub(r"//\S*@", "//", f"{self.path}: {type(error).__name__}: {error}")
        self.server.served.broken = self.server.served.broken or " ".join(said.split())[:400]

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base's name
        """Leave standard error to the build's own lines."""
