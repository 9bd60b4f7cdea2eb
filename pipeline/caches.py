"""The caches: volumes of the engine, and where compiled objects are shared beside them.

Nothing else calls ``dag.cache_volume``.

A volume's identity is its key together with its sharing mode, so each is defined once, here. The
keys name what breaks reuse (the distribution, the tool), never a date.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Final
from urllib.parse import urlsplit

import platformdirs
from dagger import CacheSharingMode, CacheVolume, Container, PortForward, Secret, dag

from pipeline.host import objects as served_objects

APT_ARCHIVES = "/var/cache/apt"
APT_LISTS = "/var/lib/apt/lists"
UV = "/mnt/uv-cache"
COMPILER = "/ccache"

_HOST: Final = "cresset-cache"
_PORT: Final = 8377
# ccache gives up on a connection after 0.1 s by itself, which a tunnel may take.
_PATIENT: Final = "|connect-timeout=5000|operation-timeout=60000"
_ADDRESS: Final = f"http://{_HOST}:{_PORT}{_PATIENT}"
_FOLDER_BYTES: Final = 30_000_000_000


def apt(distribution: str, codename: str) -> tuple[CacheVolume, CacheVolume]:
    """Return the volumes for apt's archives and lists of one release of a distribution."""
    # apt keeps a lock file beside its archives and gives up at once when another holds it.
    return (
        dag.cache_volume(
            f"apt-archives-{distribution}-{codename}", sharing=CacheSharingMode.LOCKED
        ),
        dag.cache_volume(f"apt-lists-{distribution}-{codename}", sharing=CacheSharingMode.LOCKED),
    )


def uv() -> CacheVolume:
    """Return the volume for uv's downloads, which any number of builds may use at once."""
    return dag.cache_volume("uv", sharing=CacheSharingMode.SHARED)


def compiler() -> CacheVolume:
    """Return the volume for compiled objects, which any number of compiles may use at once."""
    return dag.cache_volume("ccache", sharing=CacheSharingMode.SHARED)


def with_apt(container: Container, distribution: str, codename: str) -> Container:
    """Return the container with apt's caches mounted; ``without_apt`` takes them out again."""
    archives, lists = apt(distribution, codename)
    return container.with_mounted_cache(
        APT_ARCHIVES, archives, sharing=CacheSharingMode.LOCKED
    ).with_mounted_cache(APT_LISTS, lists, sharing=CacheSharingMode.LOCKED)


def without_apt(container: Container) -> Container:
    """Return the container without apt's caches."""
    return container.without_mount(APT_ARCHIVES).without_mount(APT_LISTS)


def address(url: str) -> str:
    """Return a Redis or HTTP URL as ccache takes it.

    A password without a user is ``redis://:password@host`` to all but ccache, which sends none then
    (4.11.2: every lookup failed, and nothing said so).
    """
    return url.replace("redis://:", "redis://", 1) + _PATIENT


@contextlib.asynccontextmanager
async def objects(url: str, note: Callable[[str], None]) -> AsyncIterator[Secret]:
    """Yield where compiles share their objects, as ccache takes it; a volume alone is lost easily.

    Redis and HTTP are spoken to by ccache itself. A folder (the default is one of this machine's
    user), S3 and the like are served from here as long as the context is open. The default alone is
    kept within bounds: what else lies in a folder that was named may be a team's.
    """
    bound = None if url else _FOLDER_BYTES
    url = url or str(platformdirs.user_cache_path("cresset") / "ccache")
    if urlsplit(url).scheme in {"redis", "http"}:
        yield dag.set_secret("cresset-compiler-cache", address(url))
        return
    with served_objects.serving(url) as served:
        try:
            async with reached(served.port, _HOST, _PORT):
                yield dag.set_secret("cresset-compiler-cache", _ADDRESS)
        finally:
            # Said of a compile that was cut off, too: it will not go on where it stopped.
            if served.broken:
                note(f"the compiler cache could not be used: {served.broken}")
            if folder := served_objects.folder_of(url):
                served_objects.trim(folder, bound)


@contextlib.asynccontextmanager
async def reached(port: int, host: str, frontend: int) -> AsyncIterator[None]:
    """Let every container of the session reach a port of loopback by a name, until the end.

    It is bound to none: a binding would be part of the engine's cache key, and nothing compiled
    ever found again.
    """
    service = dag.host().service([PortForward(backend=port, frontend=frontend)])
    started = await service.with_hostname(host).start()
    try:
        yield
    finally:
        started = await started.stop()
