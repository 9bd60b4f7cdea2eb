"""``cresset.lock``: what builds with ``--locked`` are held to, and in what the world has moved on.

A lock holds what a name may mean tomorrow otherwise than today: a base's digest, a commit, the file
of a Python package, the version of an apt package. All else is pinned where it is written.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import Field, ValidationError

from pipeline.errors import ConfigError, Problem
from pipeline.host import whole
from pipeline.settings import Settings
from pipeline.spec import (
    BaseSpec,
    Frozen,
    ImageSpec,
    Locked,
    Package,
    SourceSpec,
    WheelSpec,
    without_login,
)
from pipeline.stages.pins import PROMPT, PROMPT_SHA512

FILE: Final = Path("cresset.lock")
UPDATE: Final = "python -m pipeline lock --update"

Mode = Literal["", "locked", "frozen"]
"""``locked`` takes what the lock has and refuses if a name means something else by now; ``frozen``
takes it and asks nobody."""

_HEAD = """\
# What builds with --locked are held to. Made by `python -m pipeline lock`; `lock --update` asks
# everything anew, and says what moves.
"""
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class Asked:
    """One image that a lock is to hold: its spec, and the branches that stand in it as commits."""

    spec: ImageSpec
    settings: Settings
    branches: Mapping[tuple[str, str], str]
    """Commits by URL and branch."""


class LockError(ConfigError):
    """The build is not what the lock says; holds every difference found."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__(problems)
        one = len(self.problems) == 1
        self.what = (
            f"{FILE} and the build differ in {len(self.problems)} thing{'' if one else 's'}:"
        )
        self.args = (self.what,)


class _File(Frozen):
    """A Python package as the lock writes it, under its name."""

    version: str
    file: str
    sha256: str


class Image(Frozen):
    """What one image is held to."""

    inputs: str
    """Hash of what the rest was resolved from: versions, requirements, the distribution."""
    torch: Mapping[str, _File] = Field(default_factory=dict)
    pip: Mapping[str, _File] = Field(default_factory=dict)
    apt: Mapping[str, str] = Field(default_factory=dict)


class Lock(Frozen):
    """The whole file."""

    format: Literal[1] = 1
    engine: str = ""
    """Version of Dagger."""
    prompt: str = ""
    """The npm package of the shell's prompt, and its hash."""
    base: Mapping[str, str] = Field(default_factory=dict)
    """Bases by reference, or ``bootstrap debian trixie``, or ``archive FILE``: their digest."""
    git: Mapping[str, Mapping[str, str]] = Field(default_factory=dict)
    """Repositories by URL: branches and tags, and the commit of each."""
    archive: Mapping[str, str] = Field(default_factory=dict)
    """Tarballs by URL or path, and their sha256."""
    image: Mapping[str, Image] = Field(default_factory=dict)
    """Images by variant."""


def engine() -> str:
    """Return the version of the engine that this Cresset speaks to."""
    return importlib.metadata.version("dagger-io")


def prompt() -> str:
    """Return what a lock says of the shell's prompt."""
    return f"{PROMPT} sha512:{PROMPT_SHA512}"


# The file


def read(path: Path = FILE) -> Lock:
    """Return the lock; an empty one where there is no file.

    Raises:
        ConfigError: the file cannot be read, or is not a lock.

    """
    try:
        return Lock.model_validate(tomllib.loads(path.read_text()))
    except FileNotFoundError:
        return Lock()
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else str(error)
    except ValidationError as error:
        first = error.errors()[0]
        why = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    step = f"take the file of the last commit, or delete it and run {UPDATE}"
    raise ConfigError([Problem(str(path), "", f"not a lock of Cresset: {why}", next_step=step)])


def write(lock: Lock, path: Path = FILE) -> None:
    """Write the lock, whole or not at all; ConfigError if it cannot be written."""
    try:
        whole.write(path, text(lock))
    except OSError as error:
        why = f"cannot be written: {error.strerror}"
        raise ConfigError([Problem(str(path), "", why, next_step="check the folder")]) from error


def text(lock: Lock) -> str:
    """Return the file's text: TOML, sorted, one package a line, the same for the same content."""
    content = lock.model_dump(mode="json")
    top = {key: content.pop(key) for key in ("format", "engine", "prompt")}
    return "\n".join([_HEAD + _pairs(top), *_tables(content, "")])


def _tables(content: Mapping[str, Any], prefix: str) -> Iterator[str]:
    for name, value in sorted(content.items()):
        here = f"{prefix}{_key(name)}"
        simple = {key: it for key, it in value.items() if not _is_table(it)}
        if simple:
            yield f"[{here}]\n{_pairs(simple)}"
        yield from _tables({key: it for key, it in value.items() if _is_table(it)}, f"{here}.")


def _is_table(value: object) -> bool:
    return isinstance(value, Mapping) and "sha256" not in value


def _pairs(values: Mapping[str, Any]) -> str:
    return "".join(f"{_key(name)} = {_value(it)}\n" for name, it in sorted(values.items()))


def _value(value: object) -> str:
    if isinstance(value, Mapping):
        # As the model has them: the version first, for people.
        return "{ " + ", ".join(f"{name} = {_value(it)}" for name, it in value.items()) + " }"
    # A JSON string is a TOML string, but for a character that TOML wants escaped.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007F")


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else _value(name)


# What moves


@dataclass(frozen=True)
class Move:
    """One entry of two locks that differs; an empty value is of an entry that is not there."""

    entry: str
    old: str
    new: str

    def __str__(self) -> str:
        if not self.old:
            return f"{self.entry}: new, {self.new}"
        return f"{self.entry}: {self.old} → {self.new or 'gone'}"


def moves(old: Lock, new: Lock) -> list[Move]:
    """Return in what two locks differ, by entry, sorted."""
    before, after = entries(old), entries(new)
    return [
        Move(entry, before.get(entry, ""), after.get(entry, ""))
        for entry in sorted({*before, *after})
        if before.get(entry) != after.get(entry)
    ]


def entries(lock: Lock) -> dict[str, str]:
    """Return every entry of a lock by its name, in words for people."""
    named = {"engine": lock.engine, "prompt": lock.prompt}
    found = {entry: value for entry, value in named.items() if value}
    found |= {f"base {name}": digest for name, digest in lock.base.items()}
    for url, refs in lock.git.items():
        found |= {f"git {url} {ref}": commit for ref, commit in refs.items()}
    found |= {f"archive {url}": sha256 for url, sha256 in lock.archive.items()}
    for variant, image in lock.image.items():
        found[f"{variant} inputs"] = image.inputs
        found |= {f"{variant} apt {name}": version for name, version in image.apt.items()}
        for kind, packages in (("torch", image.torch), ("pip", image.pip)):
            for name, it in packages.items():
                found[f"{variant} {kind} {name}"] = f"{it.version} ({it.file} {it.sha256[:12]})"
    return found


# What a spec needs of it


def inputs(spec: ImageSpec) -> str:
    """Return the hash of what an image's packages are resolved from."""
    shaping = {
        "target": spec.target,
        "python": [spec.python, spec.python_from_distribution],
        "base": [spec.base.distribution, spec.base.codename],
        "torch": [*spec.torch.pins, spec.torch.index, *spec.torch.constraints]
        if spec.torch
        else [],
        "requires": [it.requires for it in spec.compiled],
        "mkl": spec.mkl,
        "pip": [[it.name, it.sha256] for it in spec.pip],
        "apt": [*spec.shell, *spec.apt],
    }
    canonical = json.dumps(shaping, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def base_names(base: BaseSpec) -> tuple[str, ...]:
    """Return the names under which a lock may have a base, the likeliest first."""
    bootstrap = f"bootstrap {base.distribution} {base.codename}"
    if base.source == "archive":
        return (f"archive {base.distribution} {base.codename}",)
    if base.source == "bootstrap":
        return (bootstrap,)
    may = base.source == "auto" and base.can_bootstrap
    return (base.image, bootstrap) if may else (base.image,)


def base_entry(base: BaseSpec, origin: str) -> tuple[str, str]:
    """Return a base's name in a lock and its digest; `origin` is what a build says it is."""
    kind, _, _ = origin.partition(" ")
    named = {it.partition(" ")[0]: it for it in base_names(base)}
    return named.get(kind, base.image), origin.rpartition("@")[2]


def pinned(image: str, digest: str) -> str:
    """Return the reference by which an image of this digest, and no other, is pulled."""
    return f"{image}@{digest}" if digest and "@" not in image else image


def check_base(base: BaseSpec, locked: Mapping[str, str], found: str) -> None:
    """Raise LockError where an archive is not the locked one; `locked` are digests by name."""
    name = base_names(base)[-1]
    wanted = locked.get(name)
    if wanted and wanted != found:
        why = (
            "apt's mirror has had other packages" if name.startswith("bootstrap") else "it differs"
        )
        raise LockError([_moved(f"base {name}", wanted, found, why)])


def check_origin(base: BaseSpec, held: Locked, origin: str) -> None:
    """Raise LockError where a bundle has another base; `origin` is what it says of its own."""
    name, found = base_entry(base, origin)
    wanted = held.digest(name)
    if wanted and wanted != found:
        raise LockError([_moved(f"base {name}", wanted, found, "the bundle has another")])


def bases(spec: ImageSpec) -> list[BaseSpec]:
    """Return the bases of a build: what the image stands on, and what it is compiled on."""
    found = [spec.base, *(wheel.toolchain.base for wheel in spec.compiled)]
    return list({base_names(it): it for it in found}.values())


def sources(spec: ImageSpec) -> list[SourceSpec]:
    """Return the sources that are compiled for an image, MAGMA's among them."""
    return [source for wheel in spec.compiled for source in wheel.sources]


def tags(spec: ImageSpec) -> list[tuple[str, str]]:
    """Return URL and tag of each repository that a spec names by a tag."""
    return [
        (it.location, it.ref)
        for it in sources(spec)
        if it.kind == "git" and not _COMMIT.fullmatch(it.ref)
    ]


def resolver(lock: Lock) -> Callable[[str, str], str | Problem]:
    """Return what answers for a branch from the lock, in place of its repository."""

    def commit(url: str, ref: str) -> str | Problem:
        found = lock.git.get(without_login(url), {}).get(ref)
        return found or Problem("", ref, f"{FILE} does not have it", next_step=_WRITE)

    return commit


_WRITE = "`python -m pipeline lock` writes what is missing"


def held(spec: ImageSpec, lock: Lock, *, image: bool = True) -> ImageSpec:
    """Return the spec held to the lock; without `image`, to its bases and sources alone.

    Raises:
        LockError: the lock is of something else; nobody is asked for that.

    """
    problems = [*_of_this_cresset(lock)]
    if not_held := _unlockable(spec, image=image):
        raise LockError([not_held])
    digests: dict[str, str] = {}
    for base in bases(spec):
        known = {name: lock.base[name] for name in base_names(base) if name in lock.base}
        if not known:
            problems.append(_missing(f"base {base_names(base)[0]}"))
        digests |= dict(list(known.items())[:1])
    for source in sources(spec):
        problems += _of_source(source, lock)
    entry = lock.image.get(spec.variant)
    if image and entry is None:
        problems.append(_missing(spec.variant))
    elif image and entry and entry.inputs != (wanted := inputs(spec)):
        problems.append(
            Problem(
                f"{spec.variant} inputs",
                wanted,
                "the lock was made of other versions or requirements",
                allowed=entry.inputs,
                next_step="`python -m pipeline lock` resolves them again",
            )
        )
    if problems:
        raise LockError(problems)
    locked = Locked(bases=tuple(sorted(digests.items())))
    if image and entry:
        locked = Locked(
            bases=locked.bases,
            torch=_packages(entry.torch),
            pip=_packages(entry.pip),
            apt=tuple(sorted(entry.apt.items())),
        )
    return with_sources(spec, lock).model_copy(update={"lock": locked})


def _packages(files: Mapping[str, _File]) -> tuple[Package, ...]:
    return tuple(Package(name=name, **dict(it)) for name, it in sorted(files.items()))


def by_name(packages: Sequence[Package]) -> dict[str, _File]:
    """Return packages as a lock has them."""
    return {it.name: _File(version=it.version, file=it.file, sha256=it.sha256) for it in packages}


def _unlockable(spec: ImageSpec, *, image: bool) -> Problem | None:
    """Return why an image cannot be held to a lock, None if it can."""
    if not image or spec.target in {"train", "simple"}:
        return None
    return Problem(
        "target",
        spec.target,
        "a lock does not hold what is installed in this target",
        allowed="train, simple",
        next_step="build it without --locked; of a matrix, --skip leaves it out",
    )


def check_lockable(spec: ImageSpec) -> None:
    """Raise LockError for an image of which no lock can be made."""
    if problem := _unlockable(spec, image=True):
        raise LockError([problem])


def _of_this_cresset(lock: Lock) -> Iterator[Problem]:
    """Yield what the lock holds of Cresset itself and this one has otherwise."""
    for field, wanted, found in (
        ("engine", lock.engine, engine()),
        ("prompt", lock.prompt, prompt()),
    ):
        if wanted != found:
            yield Problem(
                field,
                found,
                "this Cresset is another than the one that wrote the lock",
                allowed=wanted or "an entry in the lock",
                next_step=f"take the Cresset of the lock, or: {UPDATE}",
            )


def _of_source(source: SourceSpec, lock: Lock) -> Iterator[Problem]:
    url = source.public_location
    if source.kind == "git" and not _COMMIT.fullmatch(source.ref):
        if source.ref not in lock.git.get(url, {}):
            yield _missing(f"git {url} {source.ref}")
    elif source.kind == "archive":
        wanted = lock.archive.get(url)
        if wanted is None:
            yield _missing(f"archive {url}")
        elif wanted != source.sha256:
            yield _moved(f"archive {url}", wanted, source.sha256, "the settings name another hash")


def _missing(entry: str) -> Problem:
    return Problem(entry, "", f"{FILE} does not have it", next_step=_WRITE)


def _moved(entry: str, locked: str, found: str, why: str) -> Problem:
    return Problem(
        entry,
        found,
        why,
        allowed=locked,
        next_step=f"{UPDATE} takes it and shows what moves; --frozen builds what is locked",
    )


def with_sources(spec: ImageSpec, lock: Lock) -> ImageSpec:
    """Return the spec with the commit of the lock for each tag."""
    if spec.torch is None or not spec.compiled:
        return spec

    def commit(source: SourceSpec) -> SourceSpec:
        refs = lock.git.get(source.public_location, {})
        return source.model_copy(update={"ref": refs.get(source.ref, source.ref)})

    def wheel(it: WheelSpec | None, **more: str) -> WheelSpec | None:
        if it is None:
            return None
        magma = it.magma and it.magma.model_copy(update={"source": commit(it.magma.source)})
        return it.model_copy(update={"source": commit(it.source), "magma": magma, **more})

    torch = wheel(spec.torch.torch_wheel)
    vision = wheel(spec.torch.vision_wheel, **({"torch_key": torch.key} if torch else {}))
    return spec.model_copy(
        update={
            "torch": spec.torch.model_copy(update={"torch_wheel": torch, "vision_wheel": vision})
        }
    )


def drift(
    spec: ImageSpec,
    lock: Lock,
    refs: Sequence[tuple[str, str]],
    *,
    digest: Callable[[str], str | Problem],
    commit: Callable[[str, str], str | Problem],
) -> tuple[list[Problem], list[str]]:
    """Return which bases, branches and tags have moved since, and what could not be asked.

    `spec` is as it was before it was held; `refs` are the URL and name of each branch and tag in
    it. `digest` answers for a base's reference, `commit` for a branch or tag; a problem is why not.
    What cannot be asked is still built as it is locked.
    """
    moved: list[Problem] = []
    unasked: list[str] = []
    for base in bases(spec):
        locked = lock.base.get(base.image)
        if locked is None or "@" in base.image or base.source not in {"auto", "image"}:
            continue
        found = digest(base.image)
        if isinstance(found, Problem):
            unasked.append(f"{base.image}: {found.why}")
        elif found != locked:
            moved.append(_moved(f"base {base.image}", locked, found, "the tag has moved"))
    for url, ref in dict.fromkeys(refs):
        public = without_login(url)
        locked = lock.git.get(public, {}).get(ref, "")
        found = commit(url, ref)
        if isinstance(found, Problem):
            unasked.append(f"{public} {ref}: {found.why}")
        elif found != locked:
            moved.append(_moved(f"git {public} {ref}", locked, found, "it has moved"))
    return moved, unasked


def engine_drift(found: str) -> Iterator[Problem]:
    """Yield that an engine is not the one of this Cresset, which is the lock's."""
    if found.removeprefix("v") != engine():
        yield Problem(
            "engine",
            found,
            "the engine is another than the lock's",
            allowed=engine(),
            next_step=f"run the build on Dagger {engine()}",
        )


def packages_drift(variant: str, locked: Locked, found: Sequence[Package]) -> list[Problem]:
    """Return in which files the indexes differ from the lock; `found` is what they have of it."""
    has = {it.name: it for it in found}
    problems = []
    for kind, packages in (("torch", locked.torch), ("pip", locked.pip)):
        # A file of reqs/ is in the hash of what all was resolved from.
        for it in (it for it in packages if not it.file.startswith("./")):
            now = has.get(it.name)
            if now is None or (now.file, now.sha256) != (it.file, it.sha256):
                problems.append(
                    _moved(
                        f"{variant} {kind} {it.name}",
                        f"{it.version} ({it.file} {it.sha256})",
                        f"{now.version} ({now.file} {now.sha256})" if now else "",
                        "the index has another file" if now else "the index does not have it",
                    )
                )
    return problems


def apt_drift(locked: Locked, found: Mapping[str, str]) -> list[Problem]:
    """Return in what an image's packages, or those that apt would take, differ from the lock."""
    wanted = dict(locked.apt)
    return [
        Problem(
            f"apt {name}",
            found.get(name, "not there"),
            "is not the version that the lock has: a mirror keeps the newest alone",
            allowed=wanted.get(name, "not there"),
            next_step=f"{UPDATE}; or DEB_OLD and DEB_NEW with a mirror of that day, such as "
            "http://snapshot.debian.org/archive/debian/20261128T000000Z",
            source="https://snapshot.debian.org",
        )
        for name in sorted({*wanted, *found})
        if wanted.get(name) != found.get(name)
    ]


def packages(pylock: str, python: str, glibc: tuple[int, int], folder: str) -> list[Package]:
    """Return the packages of a ``pylock.toml``, each with the file that an image would install.

    Of several wheels that fit that is the one made closest for this Python and C library; `folder`
    is where local files lie, as seen from the file.

    Raises:
        ConfigError: a package that has no file with a hash: a repository, or a folder.

    """
    from packaging.utils import parse_wheel_filename  # noqa: PLC0415 - 50 ms, rarely needed

    ranks = _ranks(python, glibc)

    def rank(file: str) -> int:
        return min(ranks.get(tag, len(ranks)) for tag in parse_wheel_filename(file)[3])

    found, problems = [], []
    for it in tomllib.loads(pylock).get("packages", ()) if pylock.strip() else ():
        wheels = {_file_name(wheel): wheel for wheel in it.get("wheels", ())}
        local = it.get("archive")
        if wheels:
            file = min(wheels, key=rank)
            chosen = wheels[file]
        elif local and "path" in local:
            file, chosen = "./" + os.path.relpath(local["path"], folder), local
        elif "sdist" in it:
            file, chosen = _file_name(it["sdist"]), it["sdist"]
        else:
            problems.append(
                Problem(
                    "reqs/pip-train.requirements.txt",
                    it["name"],
                    "comes from a place that has no hash, and a lock holds files by their hash",
                    allowed="a package of an index, or a wheel in reqs/",
                    next_step="put its wheel into reqs/: `pip wheel` makes one",
                )
            )
            continue
        found.append(
            Package(
                name=it["name"],
                version=it.get("version", ""),
                file=file,
                sha256=chosen["hashes"]["sha256"],
            )
        )
    if problems:
        raise ConfigError(problems)
    return found


def _file_name(entry: Mapping[str, Any]) -> str:
    """Return the name of a file on an index: by itself where it is given, else of its URL."""
    from urllib.parse import unquote, urlsplit  # noqa: PLC0415 - few commands need it

    return str(entry.get("name") or unquote(urlsplit(entry["url"]).path.rpartition("/")[2]))


def _ranks(python: str, glibc: tuple[int, int]) -> dict[Any, int]:
    """Return the tags of wheels that fit, each with its rank: the closest first (PEP 425, 600)."""
    from packaging.tags import compatible_tags, cpython_tags  # noqa: PLC0415 - as packages

    major, minor = (int(part) for part in python.split("."))
    aliases = {17: "manylinux2014_x86_64", 12: "manylinux2010_x86_64", 5: "manylinux1_x86_64"}
    platforms = []
    for number in range(glibc[1], 4, -1):
        platforms.append(f"manylinux_{glibc[0]}_{number}_x86_64")
        platforms += [aliases[number]] if number in aliases else []
    platforms.append("linux_x86_64")
    version = (major, minor)
    fitting = [
        *cpython_tags(version, platforms=platforms),
        *compatible_tags(version, f"cp{major}{minor}", platforms),
    ]
    return {tag: rank for rank, tag in enumerate(fitting)}
