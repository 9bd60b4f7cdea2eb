"""A source in one file: out of an engine into a bundle, and from a bundle into an engine."""

from __future__ import annotations

from dagger import Container, Directory, File, dag

_SOURCE = "/mnt/source"
_FILE = "/mnt/source.tar.gz"

_PACK = (
    "tar", "--create", "--sort=name", "--owner=0", "--group=0", "--numeric-owner",
    "--use-compress-program=gzip --no-name -1", "--file", _FILE, "--directory", _SOURCE, ".",
)  # fmt: skip


def tarball(source: Directory, base: Container) -> File:
    """Return the tarball of a source, packed by the tar of a base."""
    return base.with_mounted_directory(_SOURCE, source).with_exec([*_PACK]).file(_FILE)


def source_from_tarball(path: str, base: Container) -> Directory:
    """Return the source that a tarball of this machine holds, just as it was packed."""
    unpack = ["tar", "--extract", "--no-same-owner", "--file", _FILE, "--directory", _SOURCE]
    return (
        base.with_mounted_directory(_SOURCE, dag.directory())
        .with_mounted_file(_FILE, dag.host().file(path))
        .with_exec(unpack)
        .directory(_SOURCE)
    )
