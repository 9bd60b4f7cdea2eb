"""What a build has beside its spec where a bundle is read, or written."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import platformdirs

from pipeline.bundle.layout import NAME, Bundle, Writer
from pipeline.bundle.packages import NPM, Packages, Recorder, Replay, Upstream
from pipeline.errors import BundleError
from pipeline.host import whole
from pipeline.settings import Settings
from pipeline.spec import BaseSpec, SourceSpec

ORIGIN: Final = "dev.cresset.origin"
_PYPI: Final = "https://pypi.org/simple"


@dataclass(frozen=True)
class Given:
    """All that a build takes is in a bundle."""

    bundle: Bundle
    packages: Packages
    folder: Path
    """For what is used by one build."""

    def check_imported(self, wheels: Sequence[str]) -> None:
        """Raise BundleError where it has a finished wheel that nobody has put into the store.

        The wheels are told by their tags there; a compile of hours would make them once more.
        """
        held = {name.partition("/")[0] for name in self.bundle.files("wheels")}
        for tag in wheels:
            if tag in held:
                raise BundleError(
                    f"{self.bundle.path} has {tag}, and the wheel store has not",
                    next_step=f"run `python -m pipeline bundle import {self.bundle.path}` first, "
                    "or compile it anew with WHEEL_STORE=off",
                )

    def source(self, spec: SourceSpec) -> Path:
        """Return the tarball of a source; BundleError where the bundle has not this one."""
        held = self.bundle.files("sources")
        blob = held.get(spec.tarball)
        if blob is None:
            raise BundleError(
                f"{self.bundle.path} has no source {spec.public_location} {spec.ref}".rstrip(),
                why=f"it has {', '.join(held) or 'none'}",
                next_step="export one with these settings, where there is a network",
            )
        file = self.folder / spec.tarball
        self.bundle.write(blob, file)
        return file

    def base(self, spec: BaseSpec) -> tuple[Path, str]:
        """Return an OCI archive of the base and where it came from once.

        BundleError where the bundle has another base.
        """
        bases = {part.annotations[NAME]: part for part in self.bundle.of("base")}
        part = bases.get(spec.image)
        if part is None:
            raise BundleError(
                f"{self.bundle.path} has no base {spec.image}",
                why=f"it has {', '.join(bases) or 'none'}",
                next_step="export one with these settings, where there is a network",
            )
        folder = platformdirs.user_cache_path("cresset") / "bases"
        folder.mkdir(parents=True, exist_ok=True)
        archive = folder / f"bundle-{part.manifest.digest.removeprefix('sha256:')[:16]}.oci.tar"
        if not archive.exists():
            self.bundle.write_image(part, archive)
        return archive, part.annotations[ORIGIN]


@dataclass(frozen=True)
class Taken:
    """All that a build takes goes into a bundle."""

    writer: Writer
    folder: Path
    """For what is not whole yet."""
    packages: Packages
    _bases: set[str] = field(default_factory=set)

    def add_base(self, spec: BaseSpec, archive: Path, origin: str) -> None:
        """Keep the OCI archive of a base."""
        if spec.image not in self._bases:
            self._bases.add(spec.image)
            self.writer.add_image("base", archive, {NAME: spec.image, ORIGIN: origin})

    def add_source(self, spec: SourceSpec, file: Path) -> None:
        """Keep the tarball of a source."""
        self.writer.add("sources", spec.tarball, file)

    def add_wheel(self, tag: str, folder: Path) -> None:
        """Keep what a wheel store has of one wheel under a tag."""
        for file in sorted(folder.iterdir()):
            self.writer.add("wheels", f"{tag}/{file.name}", file)


@contextlib.contextmanager
def given(settings: Settings) -> Iterator[Given | None]:
    """Yield what BUNDLE names, None where it names none; BundleError where that is no bundle."""
    if not settings.bundle:
        yield None
        return
    cache = platformdirs.user_cache_path("cresset", ensure_exists=True)
    with (
        contextlib.closing(Bundle.opened(Path(settings.bundle).expanduser())) as bundle,
        whole.scratch(cache) as folder,
    ):
        yield Given(bundle, Replay(bundle), folder)


@contextlib.contextmanager
def taken(settings: Settings, torch_index: str, writer: Writer, folder: Path) -> Iterator[Taken]:
    """Yield what writes down all that a build with these settings takes.

    `torch_index` is that of torch's wheels, if it is one of its own.
    """
    upstream = Upstream(
        settings.index_url or _PYPI,
        settings.extra_index_url,
        torch_index,
        settings.npm_registry or NPM,
    )
    with (
        TemporaryDirectory(dir=folder, prefix="partial-") as partial,
        contextlib.closing(Recorder(upstream, writer, Path(partial))) as recorder,
    ):
        yield Taken(writer, Path(partial), recorder)
