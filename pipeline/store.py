"""The wheel store: what is compiled once is found by its key, on any machine."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import platformdirs

from pipeline import publish, tags
from pipeline.errors import PublishError
from pipeline.publish import KEY_LABEL
from pipeline.settings import Settings
from pipeline.spec import WheelSpec

if TYPE_CHECKING:
    from dagger import Directory

_WHEELS = "/wheels"
_KEY_DIGITS = 16
# Longer than any export, and than any clock of a shared folder goes wrong.
_FORGOTTEN_SECONDS = 86400


class Store(Protocol):
    """A place for compiled wheels; `name` says which in words."""

    @property
    def name(self) -> str: ...

    def has(self, spec: WheelSpec) -> bool:
        """Say whether the wheel of that key is there; asks no engine."""

    def wheel(self, spec: WheelSpec) -> Directory:
        """Return the directory with the wheel of that key, lazy."""

    async def put(self, spec: WheelSpec, wheel: Directory) -> None:
        """Keep the wheel under its key, whole or not at all; PublishError if that fails."""


def store(settings: Settings) -> Store | None:
    """Return the store in REGISTRY, else in a folder of this machine; None if it is off."""
    if settings.wheel_store == "off":
        return None
    # Without a network, what `bundle import` has put into the folder is all there is.
    if settings.registry and not settings.bundle:
        return Registry(tags.repository(settings.image_name, settings.registry) + "-wheels")
    return Folder(platformdirs.user_cache_path("cresset") / "wheels")


def present(store: Store, wheels: Iterable[WheelSpec]) -> frozenset[str]:
    """Return the keys of those wheels that a store has; a registry is asked once for them all.

    Raises:
        PublishError: the registry cannot be asked.

    """
    if isinstance(store, Registry):
        there = frozenset(publish.published(store.repository))
        return frozenset(wheel.key for wheel in wheels if tag(wheel) in there)
    return frozenset(wheel.key for wheel in wheels if store.has(wheel))


@dataclass(frozen=True)
class Registry:
    """A repository with an image for each wheel, which holds nothing else."""

    repository: str

    @property
    def name(self) -> str:
        return f"the wheel store {self.repository}"

    def has(self, spec: WheelSpec) -> bool:
        """Say whether the wheel is there; PublishError if the registry cannot be asked."""
        return publish.whole(self.repository, tag(spec))

    def wheel(self, spec: WheelSpec) -> Directory:
        """Return the directory with the wheel."""
        from dagger import dag  # noqa: PLC0415 - as in put

        return dag.container().from_(f"{self.repository}:{tag(spec)}").directory(_WHEELS)

    async def put(self, spec: WheelSpec, wheel: Directory) -> None:
        """Publish the wheel; PublishError if the registry does not take it."""
        from dagger import dag  # noqa: PLC0415 - most of a second, and whether one is there is none

        image = (
            dag.container()
            .with_directory(_WHEELS, wheel)
            .with_label(KEY_LABEL, spec.key)
            .with_label("org.opencontainers.image.title", spec.variant)
        )
        # A wheel is compressed already.
        await publish.push(image, self.repository, tag(spec), "uncompressed")
        if not await publish.read_back(lambda: self.has(spec)):
            raise PublishError(
                f"{self.repository} took {spec.variant} and does not have it whole",
                why="the registry answered the push with success, and now answers otherwise",
                next_step="look into the registry's log and storage",
            )


@dataclass(frozen=True)
class Folder:
    """A folder of this machine, in which each wheel has a folder named by variant and key."""

    path: Path

    @property
    def name(self) -> str:
        return f"the wheel store {self.path}"

    def has(self, spec: WheelSpec) -> bool:
        """Say whether the wheel is there."""
        return _has_wheel(self.path / tag(spec))

    def wheel(self, spec: WheelSpec) -> Directory:
        """Return the directory with the wheel."""
        from dagger import dag  # noqa: PLC0415 - as in put

        return dag.host().directory(str(self.path / tag(spec)))

    async def put(self, spec: WheelSpec, wheel: Directory) -> None:
        """Write the wheel beside its place and move it there; PublishError if that fails."""
        import dagger  # noqa: PLC0415 - as in Registry.put

        partial: Path | None = None
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._drop_forgotten()
            partial = Path(tempfile.mkdtemp(prefix=f".{tag(spec)}.", dir=self.path))
            partial.chmod(0o755)
            await wheel.export(str(partial))
            move(partial, self.path / tag(spec))
        except (dagger.QueryError, OSError) as error:
            raise PublishError(
                f"{self.path / tag(spec)} cannot be written",
                why=str(error),
                next_step=f"check the free space and the permissions of {self.path}",
            ) from error
        finally:
            if partial:
                shutil.rmtree(partial, ignore_errors=True)

    def _drop_forgotten(self) -> None:
        """Delete what was half written, by whatever key and machine, and left there."""
        for partial in self.path.glob(".*"):
            if partial.stat().st_mtime < time.time() - _FORGOTTEN_SECONDS:
                shutil.rmtree(partial, ignore_errors=True)


def move(partial: Path, place: Path) -> None:
    """Move the folder of a wheel to its place in a store; OSError if that fails."""
    try:
        partial.rename(place)
    except OSError:
        # Another process was faster, and what it has put there is as good: it has the same key.
        if not _has_wheel(place):
            raise


def _has_wheel(place: Path) -> bool:
    return any(place.glob("*.whl"))


def tag(spec: WheelSpec) -> str:
    """Return the name of a wheel in any store: its variant, and the beginning of its key."""
    return f"{spec.variant}-{spec.key[:_KEY_DIGITS]}"
