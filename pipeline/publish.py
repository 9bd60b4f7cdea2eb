"""Where an image goes: a registry, Docker, or a file. Each also finds what it already has.

Finding must be quick, since it is all that a build with nothing to do waits for: no engine, no
SDK and no library that it does not need is imported for it.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import hashlib
import json
import os
import re
import subprocess
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

from pipeline import retry, tags
from pipeline.errors import Problem, PublishError
from pipeline.host import ca
from pipeline.spec import ImageSpec

if TYPE_CHECKING:
    from dagger import Container, ImageLayerCompression

T = TypeVar("T")

DIST: Final = Path("dist")
KEY_LABEL: Final = "dev.cresset.key"

_DOCKER_SECONDS = 5.0
_REGISTRY_SECONDS = 10.0
_INDEXES = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)
_AT_ONCE: Final = 16
_MANIFESTS = (
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
)


@dataclass(frozen=True)
class Delivered:
    """An image where it was asked for; `size` is what it takes there, in bytes."""

    ref: str
    digest: str
    size: int
    next_step: str = ""
    image: str = ""
    """By which Docker finds it, empty where it does not."""


class Destination(Protocol):
    """A place for images; `name` says which in words."""

    @property
    def name(self) -> str: ...

    @property
    def repository(self) -> str:
        """The name of the images there, without a tag."""

    def find(self, spec: ImageSpec) -> Delivered | None:
        """Return the image of the spec's key, if it is there."""

    async def deliver(self, image: Container, spec: ImageSpec) -> Delivered:
        """Put the image there under all its tags; PublishError if that fails."""


def destination(registry: str, image_name: str) -> Destination:
    """Return the registry if one is named, else Docker if its daemon answers, else ``dist/``."""
    if registry:
        return Registry(tags.repository(image_name, registry), image_name)
    docker = Docker(tags.repository(image_name), image_name)
    return docker if docker.answers() else Archive(DIST, tags.repository(image_name))


def find_all(wanted: Sequence[tuple[ImageSpec, Destination]]) -> list[Delivered | None]:
    """Return what each destination has of its spec, asked at once; PublishError as `find`.

    The tags of a registry's repository are listed first, so that what is not there costs nothing.
    """
    from concurrent.futures import ThreadPoolExecutor  # noqa: PLC0415 - one image needs no threads

    with ThreadPoolExecutor(_AT_ONCE) as threads:
        repositories = list({it.repository for _, it in wanted if isinstance(it, Registry)})
        listed = dict(zip(repositories, threads.map(published, repositories), strict=True))
        tagged = {name: frozenset(found) for name, found in listed.items()}

        def find(pair: tuple[ImageSpec, Destination]) -> Delivered | None:
            spec, where = pair
            if isinstance(where, Registry) and tags.key_tag(spec) not in tagged[where.repository]:
                return None
            return where.find(spec)

        return list(threads.map(find, wanted))


@dataclass(frozen=True)
class Registry:
    """A repository of an OCI registry; logins are Docker's own (``docker login``)."""

    repository: str
    image_name: str

    @property
    def name(self) -> str:
        return f"the registry, as {self.repository}"

    def find(self, spec: ImageSpec) -> Delivered | None:
        # Another image may have taken a readable tag since, and then there is something to do.
        *readable, key = tags.tags(spec, self.image_name)
        found = self._manifest(key, spec)
        if found is None or any(self._manifest(tag, spec) != found for tag in readable):
            return None
        # A registry that was cut off, or tidied up wrongly, has manifests of what is gone.
        return found if whole(self.repository, key) else None

    async def deliver(self, image: Container, spec: ImageSpec) -> Delivered:
        # The key's own tag is the last: what is found by it has all the others, and every blob.
        *names, key = tags.tags(spec, self.image_name)
        pushed = {
            await push(image, self.repository, tag, spec.compression)
            for tag in (*names, tags.dated(spec, datetime.now(UTC).date()), key)
        }
        delivered = await read_back(lambda: self.find(spec))
        # Another machine may have delivered the same meanwhile; then ours is there without a tag.
        others = pushed - {delivered.digest} if delivered else pushed
        if delivered is None or not await read_back(
            lambda: all(whole(self.repository, digest) for digest in others)
        ):
            raise PublishError(
                f"{self.repository} took the image and does not have it under all its tags",
                why="the registry answered every push with success, and now answers otherwise"
                + (f": {delivered.digest} in place of {', '.join(others)}" if delivered else ""),
                next_step="look into the registry's log and storage, and run it again with --force",
            )
        return delivered

    def _manifest(self, tag: str, spec: ImageSpec) -> Delivered | None:
        found = manifest(self.repository, tag)
        if found is None:
            return None
        digest, size = found
        return Delivered(
            ref=f"{self.repository}:{spec.variant}@{digest}",
            digest=digest,
            size=size,
            next_step=f"docker pull {self.repository}:{spec.variant}",
            image=f"{self.repository}:{spec.variant}@{digest}",
        )


async def read_back(once: Callable[[], T]) -> T:
    """Return what a call to a registry returns, which may wait and so must not hold up Ctrl-C."""
    from anyio import to_thread  # noqa: PLC0415 - only a real delivery needs it

    return await to_thread.run_sync(once, abandon_on_cancel=True)


async def push(image: Container, repository: str, tag: str, compression: str) -> str:
    """Publish an image under one tag, and return its digest.

    The engine itself gives up at the first request that is lost, whatever else it was sending
    (dagger v0.21.8, engine/server/resolver PushImage; of what it is answered it asks once more at
    408, 429, 500, 503 and 504). What has arrived by then is not sent again.

    Raises:
        PublishError: the registry does not take it.

    """
    import dagger  # noqa: PLC0415 - most of a second, and only a real delivery needs it

    async def once() -> str:
        try:
            ref = await image.publish(
                f"{repository}:{tag}", forced_compression=_forced(compression)
            )
        except dagger.QueryError as error:
            if not retry.stumbled(str(error)):
                raise refused(repository, str(error)) from error
            lost = PublishError(
                f"{repository} loses what is pushed to it",
                why=str(error),
                next_step="run it again: what has arrived is not sent again; or look into the "
                "registry's log and free space, and at the network",
            )
            raise retry.Lost(lost) from error
        return ref.rpartition("@")[2]

    return await retry.acall(once, tries=retry.PUSH_TRIES)


def manifest(repository: str, tag: str) -> tuple[str, int] | None:
    """Return digest and size in bytes of what a registry has under a tag, None if nothing.

    Raises:
        PublishError: the registry cannot be asked, or answers with anything else.

    """
    found = _manifest(repository, tag)
    if found is None:
        return None
    digest, blobs = found
    return digest, sum(blobs.values())


def whole(repository: str, tag: str) -> bool:
    """Say whether a registry has what is under a tag, and every blob of it in its full size.

    Raises:
        PublishError: the registry cannot be asked, or answers with anything else.

    """
    from concurrent.futures import ThreadPoolExecutor  # noqa: PLC0415 - as requests below

    found = _manifest(repository, tag)
    if found is None:
        return False
    _, blobs = found

    def there(blob: tuple[str, int]) -> bool:
        digest, size = blob
        response = _answer(repository, f"blobs/{digest}", method="HEAD")
        # A registry that keeps its blobs elsewhere sends the client there, and tells no size.
        return bool(response.ok) and response.headers.get("Content-Length", "0") in {str(size), "0"}

    # Each in a context of the caller's, which says where tries are told.
    contexts = [contextvars.copy_context() for _ in blobs]
    with ThreadPoolExecutor(_AT_ONCE) as threads:
        return all(threads.map(lambda it, blob: it.run(there, blob), contexts, blobs.items()))


def _manifest(repository: str, tag: str) -> tuple[str, dict[str, int]] | None:
    """Return the digest of what is under a tag, and the sizes of its blobs by their digests."""
    import requests  # noqa: PLC0415 - needed only where a registry is named

    def once() -> tuple[str, dict[str, int]] | None:
        response = _answer(repository, f"manifests/{tag}")
        if response.status_code == requests.codes.not_found:
            return None
        try:
            content = response.json()
            digest = response.headers["Docker-Content-Digest"]
            blobs = {
                it["digest"]: int(it["size"]) for it in [content["config"], *content["layers"]]
            }
        except (ValueError, LookupError, TypeError) as error:
            raise _no_registry(repository, "a manifest", response.text) from error
        # What is read is what was asked for, or the digest would name something else.
        if digest != (read := f"sha256:{hashlib.sha256(response.content).hexdigest()}"):
            raise retry.Lost(
                PublishError(
                    f"{repository}:{tag} is not what the registry says it is",
                    why=f"it names {digest}, and what it sends is {read}",
                    next_step="look into the registry's storage, or what stands before it",
                )
            )
        return digest, blobs

    return retry.call(once)


def digest(reference: str) -> str | Problem:
    """Return the digest that a reference's tag stands at now, as Docker reads references.

    A problem says why it is not known. Nothing is pulled, so no registry counts it as that.
    """
    import requests  # noqa: PLC0415 - needed only where a registry is asked

    name, _, tag = reference.rpartition(":")
    name = with_registry(name)
    accept = {"Accept": ", ".join((*_INDEXES, *_MANIFESTS))}

    def once() -> Any:  # noqa: ANN401 - as above
        answer = request("HEAD", name, f"manifests/{tag}", headers=accept)
        if answer.status_code in retry.STATUSES:
            raise retry.Lost(refused(name, f"{answer.status_code} {answer.reason}"))
        return answer

    try:
        response = retry.call(once)
    except requests.RequestException as error:  # where nobody answers there is no second try
        return Problem("", reference, _innermost(error))
    except PublishError as error:
        return Problem("", reference, error.why)
    found: str = response.headers.get("Docker-Content-Digest", "")
    if response.status_code == requests.codes.ok and found:
        return found
    return Problem("", reference, f"its registry says {response.status_code} {response.reason}")


def with_registry(name: str) -> str:
    """Return a repository by its whole name: Docker's own registry is what a short one means."""
    host, _, rest = name.partition("/")
    if rest and (re.search("[.:]", host) or host == "localhost"):
        return name
    return f"docker.io/{name}" if rest else f"docker.io/library/{name}"


def is_plain(host: str) -> bool:
    """Say whether a registry speaks plain HTTP: on loopback, as Docker and the engine have it."""
    return host.partition(":")[0] in {"localhost", "127.0.0.1"}


def published(repository: str, *, tries: int = retry.TRIES) -> tuple[str, ...]:
    """Return the tags that a repository has; none if it is not there.

    Raises:
        PublishError: the registry cannot be asked, or answers with anything else.

    """
    import requests  # noqa: PLC0415 - needed only where a registry is named

    found: list[str] = []
    page = "tags/list?n=1000"
    while page:
        response = _answer(repository, page, tries=tries)
        if response.status_code == requests.codes.not_found:
            break
        try:
            found += map(str, response.json().get("tags") or ())
        except (ValueError, TypeError, AttributeError) as error:
            raise _no_registry(repository, "tags", response.text) from error
        # Long lists come in pages, each with a link to the next (OCI distribution, "Listing Tags").
        link = re.search(
            r'<[^>]*(tags/list\?[^>]*)>;\s*rel="?next', response.headers.get("Link", "")
        )
        page = link[1] if link and link[1] != page else ""
    return tuple(found)


def _no_registry(repository: str, what: str, said: str) -> PublishError:
    return PublishError(
        f"{repository.partition('/')[0]} is not a registry, or something before it answers in its "
        "place",
        why=f"it was asked for {what} and says {said[:200]!r}",
        next_step="check REGISTRY, and the machine's proxies",
    )


def _answer(repository: str, what: str, *, method: str = "GET", tries: int = retry.TRIES) -> Any:  # noqa: ANN401 - requests' Response
    """Return a registry's answer that there is something, or that there is nothing.

    Raises:
        PublishError: it cannot be reached, refuses, or answers with anything else.

    """
    import requests  # noqa: PLC0415 - needed only where a registry is named

    host, _, path = repository.partition("/")

    def once() -> Any:  # noqa: ANN401 - as above
        try:
            response = _get(host, path, what, method)
        except requests.RequestException as error:
            refusal = unreachable(host, error)
            # Nobody vouches for its certificate another time either.
            if "CERTIFICATE_VERIFY_FAILED" in str(error):
                raise refusal from error
            raise retry.Lost(refusal) from error
        if response.status_code in {requests.codes.unauthorized, requests.codes.forbidden}:
            raise refused(repository, f"{response.status_code} {response.reason}")
        if not (response.ok or response.status_code == requests.codes.not_found):
            refusal = PublishError(
                f"the registry {host} answers with {response.status_code} {response.reason}",
                why=response.text[:200],
                next_step="try again, or look into the registry's log",
            )
            if response.status_code in retry.STATUSES:
                raise retry.Lost(refusal, retry.asked_seconds(response.headers.get("Retry-After")))
            raise refusal
        return response

    return retry.call(once, tries=tries)


def _get(host: str, path: str, what: str, method: str = "GET") -> Any:  # noqa: ANN401 - requests' Response
    """Return the registry's answer about a repository, logged in as Docker is if it asks."""
    accept = {"Accept": ", ".join((*_MANIFESTS, "application/json"))}
    return request(method, f"{host}/{path}", what, headers=accept)


def request(
    method: str,
    repository: str,
    what: str,
    *,
    headers: Mapping[str, str] | None = None,
    data: bytes = b"",
    stream: bool = False,
) -> Any:  # noqa: ANN401 - requests' Response
    """Return a registry's answer, whatever it is, logged in as Docker is if it asks.

    `what` is the rest of the path, or a whole URL that the registry gave. Raises what requests
    raises where there is no answer.
    """
    from urllib.parse import urljoin, urlsplit  # noqa: PLC0415 - as below

    from oras.container import Container as Reference  # noqa: PLC0415 - few verbs need a registry
    from oras.logger import setup_logger  # noqa: PLC0415
    from oras.provider import Registry as Client  # noqa: PLC0415

    setup_logger(quiet=True)
    host, _, path = repository.partition("/")
    hub = host in {"docker.io", "index.docker.io"}
    host = "registry-1.docker.io" if hub else host
    client = Client(host, insecure=is_plain(host))
    client.auth._auth_config = _logins()  # its own reading knows no DOCKER_CONFIG
    with _helped(host):
        client.auth.load_configs(Reference(f"{host}/{path}"))
        if hub:
            client.auth._load_auth("https://index.docker.io/v1/")  # the name `docker login` keeps
    # With each call, since REQUESTS_CA_BUNDLE goes before what a session trusts; the server of its
    # tokens is asked by calls that have no timeout.
    client.auth._tls_verify = ca.bundle()
    client.session.request = functools.partial(
        client.session.request, timeout=_REGISTRY_SECONDS, verify=ca.bundle()
    )
    answers: list[Any] = []
    client.session.hooks["response"].append(lambda answer, **_: answers.append(answer))
    url = urljoin(f"{client.prefix}://{host}/v2/{path}/", what)
    sent = dict(headers or {})

    def ask() -> Any:  # noqa: ANN401 - requests' Response
        return client.session.request(
            method,
            url,
            headers=sent,
            data=data,
            stream=stream,
            # That a blob lies elsewhere is answer enough; where it lies may refuse to be asked.
            allow_redirects=method != "HEAD",
        )

    response = ask()
    # A place elsewhere that the registry sends to is not told who we are.
    if response.status_code != 401 or urlsplit(url).netloc != host:  # noqa: PLR2004 - HTTP's own
        return response
    basic = getattr(client.auth, "_basic_auth", None)
    challenge = response.headers.get("Www-Authenticate", "").lower()
    if challenge.startswith("basic"):
        sent |= {"Authorization": f"Basic {basic}"} if basic else {}
    elif "realm=" in challenge:
        sent, _ = client.auth.authenticate_request(response, sent)
        # Or a server of tokens that stumbles would look like a registry that knows nobody.
        if answers[-1].status_code in retry.STATUSES:
            return answers[-1]
    return ask()


@contextlib.contextmanager
def _helped(host: str) -> Iterator[None]:
    """Say it in words where the helper that keeps Docker's passwords fails."""
    try:
        yield
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise PublishError(
            f"the login for {host} cannot be read",
            why=f"the helper that Docker's config.json names fails: {error}",
            next_step=f"see that `docker login {host}` works, or take the helper out of it",
        ) from error


def _logins() -> dict[str, Any]:
    """Return the logins and their helpers that ``docker login`` left behind."""
    folder = os.environ.get("DOCKER_CONFIG") or Path.home() / ".docker"
    content: dict[str, Any] = {}
    with contextlib.suppress(OSError, ValueError):
        read = json.loads(Path(folder, "config.json").read_text())
        content = read if isinstance(read, dict) else {}
    empty: dict[str, Any] = {"auths": {}, "credHelpers": {}, "credsStore": None}
    return empty | {name: content[name] for name in empty if content.get(name)}


def refused(repository: str, why: str) -> PublishError:
    """Return the error of a registry that does not take, or does not show, what it is asked."""
    host = repository.partition("/")[0]
    step = "check the registry's log and free space"
    if re.search(r"\b(401|403|unauthorized|denied|forbidden)\b", why.lower()):
        step = f"log in with `docker login {host}` as somebody who may push there"
    return PublishError(f"{repository} refuses the image", why=why, next_step=step)


def unreachable(host: str, error: BaseException) -> PublishError:
    """Return the error of a registry that gives no answer."""
    return PublishError(
        f"the registry {host} cannot be reached",
        why=_innermost(error),
        next_step="check REGISTRY, the network and the machine's CA certificates",
    )


def _innermost(error: BaseException) -> str:
    while error.__context__ is not None:
        error = error.__context__
    return str(error) or type(error).__name__


@dataclass(frozen=True)
class Docker:
    """The images of a Docker daemon, by the client on PATH, so by its contexts as well."""

    repository: str
    image_name: str

    @property
    def name(self) -> str:
        return f"Docker, as {self.repository}"

    def answers(self) -> bool:
        """Say whether a Docker daemon answers."""
        return _docker("version", "--format", "{{.Server.Version}}") is not None

    def find(self, spec: ImageSpec) -> Delivered | None:
        names = [f"{self.repository}:{tag}" for tag in tags.tags(spec, self.image_name)]
        shown = _docker("image", "inspect", *names)
        if shown is None:
            return None
        try:
            image, *others = json.loads(shown)
        except ValueError:  # the daemon ended in the middle of it
            return None
        # Another image may have taken a readable tag since, and then there is something to do.
        if any(other["Id"] != image["Id"] for other in others):
            return None
        return Delivered(
            ref=f"{self.repository}:{spec.variant}@{image['Id']}",
            digest=image["Id"],
            size=image["Size"],
            next_step=f"docker run --rm -it {self.repository}:{spec.variant}",
            image=f"{self.repository}:{spec.variant}",
        )

    async def deliver(self, image: Container, spec: ImageSpec) -> Delivered:
        import dagger  # noqa: PLC0415 - most of a second, and only a real delivery needs it
        from beartype.roar import BeartypeCallHintReturnViolation  # noqa: PLC0415

        names = [f"{self.repository}:{tag}" for tag in tags.tags(spec, self.image_name)]
        try:
            # The SDK declares a return value that it never gives, and its own type check refuses
            # the None once the work is done (dagger-io 0.21.8, Container.export_image).
            with contextlib.suppress(BeartypeCallHintReturnViolation):
                # Docker unpacks what it loads: compressing it first would be thrown away at once.
                await image.export_image(
                    names[0],
                    forced_compression=_forced("uncompressed"),
                    media_types=dagger.ImageMediaTypes.DockerMediaTypes,
                )
        except dagger.QueryError as error:
            raise PublishError(
                "Docker does not take the image",
                why=str(error),
                next_step="look into the daemon's log and the free space of its data folder",
            ) from error
        for name in names[1:]:
            _docker("tag", names[0], name)
        delivered = self.find(spec)
        if delivered is None:
            raise PublishError(
                "Docker took the image and does not have it under all its tags",
                why="it may be out of disk space, or too busy to answer",
                next_step="look at `docker image ls` and the daemon's log, and run it again",
            )
        return delivered


def has_compose() -> bool:
    """Say whether Docker's client has Compose."""
    return _docker("compose", "version") is not None


def _docker(*args: str) -> str | None:
    """Return what docker prints, None where it is missing, fails, or does not answer in time."""
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        done = subprocess.run(
            ["docker", *args], capture_output=True, text=True, timeout=_DOCKER_SECONDS, check=False
        )
        if done.returncode == 0:
            return done.stdout
    return None


@dataclass(frozen=True)
class Archive:
    """A folder of OCI archives, which Docker, Podman and skopeo all read."""

    folder: Path
    repository: str

    @property
    def name(self) -> str:
        return f"a file in {self.folder}/"

    def path(self, spec: ImageSpec) -> Path:
        """Return where the image of this variant lies."""
        return self.folder / f"{self.repository.replace('/', '-')}-{spec.variant}.oci.tar"

    def find(self, spec: ImageSpec) -> Delivered | None:
        path = self.path(spec)
        if not path.is_file():
            return None
        try:
            digest, labels = _read_archive(path)
        except (
            tarfile.TarError,
            LookupError,
            TypeError,
            AttributeError,
            ValueError,
            OSError,
            EOFError,
        ):
            return None  # half of one, or something else by its name
        if labels.get(KEY_LABEL) != spec.key:
            return None
        return Delivered(
            ref=f"oci-archive:{path}@{digest}",
            digest=digest,
            size=path.stat().st_size,
            next_step=f"docker load -i {path}, podman load -i {path}, or "
            f"skopeo copy oci-archive:{path} docker://…",
        )

    async def deliver(self, image: Container, spec: ImageSpec) -> Delivered:
        import dagger  # noqa: PLC0415 - most of a second, and only a real delivery needs it

        path = self.path(spec)
        with _half_written(path) as part:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                await image.export(
                    str(part.absolute()), forced_compression=_forced(spec.compression)
                )
                part.replace(path)
            except (dagger.QueryError, OSError) as error:
                raise PublishError(
                    f"{path} cannot be written",
                    why=str(error),
                    next_step=f"check the free space below {self.folder.absolute()}",
                ) from error
        delivered = self.find(spec)
        if delivered is None:
            raise PublishError(f"{path} was written and cannot be read back")
        return delivered


@contextlib.contextmanager
def _half_written(path: Path) -> Iterator[Path]:
    """Yield a name beside `path` to write to; what is left under it afterwards goes."""
    # By process: two builds may write the same archive at once.
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    for other in path.parent.glob(f".{path.name}.*.part"):
        if not _lives(int(other.suffixes[-2][1:])):  # it was killed, and left gigabytes
            other.unlink(missing_ok=True)
    try:
        yield part
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # somebody else's
    return True


def _read_archive(path: Path) -> tuple[str, dict[str, str]]:
    """Return the digest of the image in an OCI archive, and its labels."""
    with tarfile.open(path) as tar:

        def blob(name: str) -> dict[str, Any]:
            member = tar.extractfile(name)
            if member is None:
                msg = f"{name} is not a file"
                raise ValueError(msg)
            content: dict[str, Any] = json.load(member)
            return content

        digest: str = blob("index.json")["manifests"][0]["digest"]
        manifest = blob(f"blobs/{digest.replace(':', '/')}")
        config = blob(f"blobs/{manifest['config']['digest'].replace(':', '/')}")
    return digest, config.get("config", {}).get("Labels") or {}


def _forced(compression: str) -> ImageLayerCompression:
    from dagger import ImageLayerCompression  # noqa: PLC0415 - as in deliver

    return {
        "gzip": ImageLayerCompression.Gzip,
        "zstd": ImageLayerCompression.Zstd,
        "uncompressed": ImageLayerCompression.Uncompressed,
    }[compression]
