"""The cache volumes: the only caller of ``dag.cache_volume``.

A volume's identity is its key together with its sharing mode, so each is defined once, here. The
keys name what breaks reuse (the distribution, the tool), never a date.
"""

from __future__ import annotations

from dagger import CacheSharingMode, CacheVolume, Container, dag

APT_ARCHIVES = "/var/cache/apt"
APT_LISTS = "/var/lib/apt/lists"
UV = "/mnt/uv-cache"


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


def with_apt(container: Container, distribution: str, codename: str) -> Container:
    """Return the container with apt's caches mounted; ``without_apt`` takes them out again."""
    archives, lists = apt(distribution, codename)
    return container.with_mounted_cache(
        APT_ARCHIVES, archives, sharing=CacheSharingMode.LOCKED
    ).with_mounted_cache(APT_LISTS, lists, sharing=CacheSharingMode.LOCKED)


def without_apt(container: Container) -> Container:
    """Return the container without apt's caches."""
    return container.without_mount(APT_ARCHIVES).without_mount(APT_LISTS)
