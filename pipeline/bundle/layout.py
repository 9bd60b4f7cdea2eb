"""The file: an OCI image layout (image-spec 1.1) in one tar, each part under its role.

Images are images; all else is an artifact whose layers are files, named as oras names them. The
blobs' names are their hashes, so what was damaged on its way is found out.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import tarfile
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, Self

from pipeline.errors import BundleError

Role = Literal["base", "python", "apt", "npm", "wheels", "sources", "engine", "image"]

ROLE: Final = "dev.cresset.role"
FORMAT: Final = "dev.cresset.bundle"
TITLE: Final = "org.opencontainers.image.title"
NAME: Final = "org.opencontainers.image.ref.name"

_FORMAT = "1"
_KIND = "application/vnd.oci.image"
_EMPTY = b"{}"
_PIECE: Final = 1 << 20
_AGAIN: Final = "copy or export it again"


@dataclass(frozen=True)
class Blob:
    """Some bytes, by their hash."""

    digest: str
    """As ``sha256:…``."""
    size: int

    def described(self, media_type: str, annotations: Mapping[str, str] = {}) -> dict[str, Any]:
        """Return it as an OCI descriptor."""
        said = {"mediaType": media_type, "digest": self.digest, "size": self.size}
        return said | ({"annotations": dict(annotations)} if annotations else {})


@dataclass(frozen=True)
class Part:
    """What a bundle holds under one role: an image, or files by name."""

    role: Role
    manifest: Blob
    blobs: tuple[Blob, ...]
    """The manifest's own, config and layers."""
    annotations: Mapping[str, str]
    files: Mapping[str, Blob]

    @property
    def size(self) -> int:
        """The bytes of all its blobs."""
        return sum(blob.size for blob in self.blobs)


class Writer:
    """A bundle while it is written; blobs first, the index last, so that half of one is none."""

    def __init__(self, path: Path) -> None:
        self._tar = tarfile.open(path, "w")  # noqa: SIM115 - closed by `close`
        self._held: dict[str, Blob] = {}
        self._files: dict[Role, dict[str, Blob]] = {}
        self._notes: dict[Role, dict[str, str]] = {}
        self._manifests: list[dict[str, Any]] = []
        self._lock = threading.Lock()

    def add(self, role: Role, name: str, file: Path) -> Blob:
        """Take a file, which is gone from its place then, into a part under a name."""
        with file.open("rb") as content:
            digest = f"sha256:{hashlib.file_digest(content, 'sha256').hexdigest()}"
        blob = Blob(digest, file.stat().st_size)
        with self._lock:
            with file.open("rb") as content:
                self._store(blob, content)
            self._files.setdefault(role, {})[name] = blob
        file.unlink()
        return blob

    def annotate(self, role: Role, annotations: Mapping[str, str]) -> None:
        """Say something of a part that consists of files."""
        self._notes[role] = dict(annotations)

    def add_image(self, role: Role, archive: Path, annotations: Mapping[str, str]) -> None:
        """Take the image of an OCI archive; it is copied."""
        with self._lock, tarfile.open(archive) as tar:
            index = json.loads(_read(tar, "index.json"))
            described = index["manifests"][0]
            manifest = json.loads(_read(tar, _place(described["digest"])))
            for it in (described, manifest["config"], *manifest["layers"]):
                content = tar.extractfile(_place(it["digest"]))
                assert content is not None
                self._store(Blob(it["digest"], it["size"]), content)
            named = {ROLE: role, **annotations}
            self._manifests.append(
                {name: described[name] for name in ("mediaType", "digest", "size")}
                | {"annotations": named}
            )

    def close(self, annotations: Mapping[str, str]) -> Blob:
        """Write the manifests and the index, and return the index as a blob."""
        for role, files in self._files.items():
            self._artifact(role, files)
        index = _json(
            {
                "schemaVersion": 2,
                "mediaType": f"{_KIND}.index.v1+json",
                "manifests": self._manifests,
                "annotations": {FORMAT: _FORMAT, **annotations},
            }
        )
        for name, content in (
            ("oci-layout", _json({"imageLayoutVersion": "1.0.0"})),
            ("index.json", index),
        ):
            _put(self._tar, name, len(content), io.BytesIO(content))
        self._tar.close()
        return _blob(index)

    def abandon(self) -> None:
        """Close the file as it is: no bundle."""
        with contextlib.suppress(OSError):
            self._tar.close()

    def _artifact(self, role: Role, files: Mapping[str, Blob]) -> None:
        self._store(_blob(_EMPTY), io.BytesIO(_EMPTY))
        manifest = _json(
            {
                "schemaVersion": 2,
                "mediaType": f"{_KIND}.manifest.v1+json",
                "artifactType": f"application/vnd.cresset.{role}.v1",
                "config": _blob(_EMPTY).described("application/vnd.oci.empty.v1+json"),
                "layers": [
                    blob.described("application/octet-stream", {TITLE: name})
                    for name, blob in sorted(files.items())
                ],
            }
        )
        blob = _blob(manifest)
        self._store(blob, io.BytesIO(manifest))
        notes = {ROLE: role, **self._notes.get(role, {})}
        self._manifests.append(blob.described(f"{_KIND}.manifest.v1+json", notes))

    def _store(self, blob: Blob, content: Any) -> None:  # noqa: ANN401 - a binary file
        if blob.digest not in self._held:
            _put(self._tar, _place(blob.digest), blob.size, content)
            self._held[blob.digest] = blob


@dataclass(frozen=True)
class Bundle:
    """A bundle to read from; the file stays open as long as this is used."""

    path: Path
    digest: str
    """Of its index, which names all else by hashes."""
    annotations: Mapping[str, str]
    parts: tuple[Part, ...]
    _places: Mapping[str, tuple[int, int]] = field(repr=False)
    _descriptor: int = field(repr=False)

    @classmethod
    def opened(cls, path: Path) -> Self:
        """Return the bundle in a file, of which only the index is read.

        Raises:
            BundleError: there is none, it is none, it is cut off, or of another version.

        """
        try:
            places = dict(_members(path))
            descriptor = os.open(path, os.O_RDONLY)
        except FileNotFoundError as error:
            raise BundleError(f"there is no bundle {path}") from error
        except (OSError, tarfile.TarError) as error:
            raise BundleError(f"{path} is no bundle", why=str(error), next_step=_AGAIN) from error
        try:
            return cls._read(path, descriptor, places)
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            os.close(descriptor)
            raise BundleError(
                f"{path} is damaged", why="what its index says makes no sense", next_step=_AGAIN
            ) from error
        except BaseException:
            os.close(descriptor)
            raise

    @classmethod
    def _read(cls, path: Path, descriptor: int, places: dict[str, tuple[int, int]]) -> Self:
        if "index.json" not in places:
            why = "its index, which is written last, is not in it: it is cut off, or no bundle"
            raise BundleError(f"{path} is not whole", why=why, next_step=_AGAIN)

        def content(name: str) -> bytes:
            start, size = places[name]
            return os.pread(descriptor, size, start)

        index = json.loads(content("index.json"))
        version = index.get("annotations", {}).get(FORMAT)
        if version != _FORMAT:
            raise BundleError(
                f"{path} is no bundle that this version of Cresset reads",
                why=f"{FORMAT} is {version!r} and not {_FORMAT!r}",
                next_step="use the version of Cresset that exported it",
            )
        parts = []
        for described in index["manifests"]:
            text = content(_place(described["digest"]))
            if _blob(text).digest != described["digest"]:
                raise _damaged(path, described["digest"])
            manifest = json.loads(text)
            layers = [(it, Blob(it["digest"], it["size"])) for it in manifest["layers"]]
            config = Blob(manifest["config"]["digest"], manifest["config"]["size"])
            itself = Blob(described["digest"], described["size"])
            files = {
                it["annotations"][TITLE]: blob
                for it, blob in layers
                if TITLE in it.get("annotations", {})
            }
            notes = described.get("annotations", {})
            blobs = (itself, config, *(blob for _, blob in layers))
            parts.append(Part(notes[ROLE], itself, blobs, notes, files))
        for blob in (blob for part in parts for blob in part.blobs):
            if places.get(_place(blob.digest), (0, -1))[1] != blob.size:
                raise _damaged(path, blob.digest)
        return cls(
            path,
            _blob(content("index.json")).digest,
            index["annotations"],
            tuple(parts),
            places,
            descriptor,
        )

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)

    def of(self, role: Role) -> list[Part]:
        """Return the parts of a role."""
        return [part for part in self.parts if part.role == role]

    def files(self, role: Role) -> Mapping[str, Blob]:
        """Return the files of a role by name."""
        return {name: blob for part in self.of(role) for name, blob in part.files.items()}

    def pieces(self, blob: Blob) -> Iterator[bytes]:
        """Yield the bytes of a blob; BundleError at its end if they are not what its hash says."""
        start, size = self._places[_place(blob.digest)]
        total = hashlib.sha256()
        for offset in range(0, size, _PIECE):
            piece = os.pread(self._descriptor, min(_PIECE, size - offset), start + offset)
            total.update(piece)
            if offset + _PIECE >= size and f"sha256:{total.hexdigest()}" != blob.digest:
                raise _damaged(self.path, blob.digest)
            yield piece

    def check(self, say: Callable[[str], None]) -> int:
        """Read all of it and return its bytes; BundleError if any is not what its hash says."""
        done = 0
        blobs = {blob.digest: blob for part in self.parts for blob in part.blobs}
        total = sum(blob.size for blob in blobs.values())
        for blob in blobs.values():
            for piece in self.pieces(blob):
                done += len(piece)
                say(f"{done / 1e9:.1f} of {total / 1e9:.1f} GB read")
        return done

    def write(self, blob: Blob, file: Path) -> None:
        """Write a blob to a file; BundleError, and no file, if it is damaged."""
        draft = file.with_name(f".{file.name}.{os.getpid()}.part")
        try:
            with draft.open("wb") as out:
                for piece in self.pieces(blob):
                    out.write(piece)
            draft.replace(file)
        finally:
            draft.unlink(missing_ok=True)

    def write_image(self, part: Part, file: Path, name: str = "") -> None:
        """Write an image as an OCI archive of its own, which Docker reads too, under `name`.

        BundleError, and no file, if it is damaged.
        """
        draft = file.with_name(f".{file.name}.{os.getpid()}.part")
        manifest, config, *layers = part.blobs
        annotations = {NAME: name.rpartition(":")[2]} if name else {}
        index = {
            "schemaVersion": 2,
            "mediaType": f"{_KIND}.index.v1+json",
            "manifests": [manifest.described(f"{_KIND}.manifest.v1+json", annotations)],
        }
        for_docker = [
            {
                "Config": _place(config.digest),
                "RepoTags": [name] if name else [],
                "Layers": [_place(layer.digest) for layer in layers],
            }
        ]
        try:
            with tarfile.open(draft, "w") as tar:
                for text, content in (
                    ("oci-layout", {"imageLayoutVersion": "1.0.0"}),
                    ("index.json", index),
                    ("manifest.json", for_docker),
                ):
                    _put(tar, text, len(_json(content)), io.BytesIO(_json(content)))
                for blob in {blob.digest: blob for blob in part.blobs}.values():
                    _put(tar, _place(blob.digest), blob.size, _stream(self.pieces(blob)))
            draft.replace(file)
        finally:
            draft.unlink(missing_ok=True)


class _Reader(io.RawIOBase):
    """Pieces, as the file that tarfile reads from."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._rest = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:  # noqa: ANN401 - as io's own
        self._rest = self._rest or next(self._pieces, b"")
        taken = self._rest[: len(buffer)]
        self._rest = self._rest[len(taken) :]
        buffer[: len(taken)] = taken
        return len(taken)


def _stream(pieces: Iterator[bytes]) -> io.BufferedReader:
    # tarfile takes a short read for the end, and a raw file may give one at any time.
    return io.BufferedReader(_Reader(pieces))


def _members(path: Path) -> Iterator[tuple[str, tuple[int, int]]]:
    """Yield name, place and size of each file of a tar, of which none may reach beyond its end."""
    end = path.stat().st_size
    with tarfile.open(path, "r:") as tar:
        for member in tar:
            if member.offset_data + member.size > end:
                msg = f"unexpected end of data at {end} bytes, in {member.name}"
                raise tarfile.ReadError(msg)
            yield member.name, (member.offset_data, member.size)


def _damaged(path: Path, digest: str) -> BundleError:
    return BundleError(
        f"{path} is damaged",
        why=f"the blob {digest} is not in it as its hash says",
        next_step=_AGAIN,
    )


def _read(tar: tarfile.TarFile, name: str) -> bytes:
    content = tar.extractfile(name)
    assert content is not None
    return content.read()


def _put(tar: tarfile.TarFile, name: str, size: int, content: Any) -> None:  # noqa: ANN401 - a binary file
    member = tarfile.TarInfo(name)
    member.size = size
    member.mode = 0o644
    tar.addfile(member, content)


def _place(digest: str) -> str:
    return f"blobs/{digest.replace(':', '/')}"


def _json(content: object) -> bytes:
    return json.dumps(content, separators=(",", ":")).encode()


def _blob(content: bytes) -> Blob:
    return Blob(f"sha256:{hashlib.sha256(content).hexdigest()}", len(content))


@contextlib.contextmanager
def written(path: Path) -> Iterator[Writer]:
    """Yield a writer of a bundle that is at `path` once it is whole, and nowhere before."""
    draft = path.with_name(f".{path.name}.part")
    writer = Writer(draft)
    try:
        yield writer
        draft.replace(path)
    finally:
        writer.abandon()
        draft.unlink(missing_ok=True)
