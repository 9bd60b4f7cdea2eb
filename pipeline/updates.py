"""What the package index has and the compatibility tables lack; a person adds the rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

from packaging.version import InvalidVersion, Version

from pipeline.compat import tables
from pipeline.errors import CressetError
from pipeline.host import ca

PYPI: Final = "https://pypi.org/simple"
_SECONDS: Final = 60.0


def known() -> Mapping[str, Sequence[str]]:
    """Return the releases that the tables know, by package of the index, oldest first."""
    torch = tables.torch()
    visions = {vision for release in torch.values() for vision in release.pairing.visions}
    return {"torch": list(torch), "torchvision": sorted(visions, key=Version)}


def lacking(listed: Iterable[str], known: Iterable[str]) -> list[str]:
    """Return the final releases among `listed` that are newer than all `known`, oldest first."""
    newest = max(map(Version, known))
    return [str(it) for it in sorted(filter(None, map(_final, listed))) if it > newest]


def _final(text: str) -> Version | None:
    try:
        version = Version(text)
    except InvalidVersion:  # of before PEP 440, which an index still lists
        return None
    odd = version.is_prerelease or version.is_postrelease or version.local
    return None if odd else version


def releases(package: str, index_url: str) -> list[str]:
    """Return the versions of a package that a package index lists.

    Raises:
        CressetError: it does not answer, or not in the JSON form that lists versions (PEP 700).

    """
    import requests  # noqa: PLC0415 - as in publish

    from pipeline.settings import shown  # noqa: PLC0415 - only a message needs it

    url = f"{index_url.rstrip('/')}/{package}/"
    accept = {"Accept": "application/vnd.pypi.simple.v1+json"}
    try:
        response = requests.get(url, headers=accept, timeout=_SECONDS, verify=ca.bundle())
        response.raise_for_status()
        versions: list[str] = response.json()["versions"]
    except (requests.RequestException, KeyError, TypeError) as error:
        raise CressetError(
            f"the releases of {package} cannot be listed",
            why=shown(f"{url}: {error or type(error).__name__}"),
            next_step="name an index that lists them as JSON by INDEX_URL, as PyPI does",
        ) from error
    return versions


def missing(list_releases: Callable[[str], Iterable[str]]) -> dict[str, list[str]]:
    """Return what the tables lack, by package; `list_releases` says what there is of one."""
    return {package: lacking(list_releases(package), had) for package, had in known().items()}
