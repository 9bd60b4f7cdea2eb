"""From what the user wrote to what is compiled: sources, toolchain, flags, as wheel specs."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from pipeline import reqs, validate_ngc
from pipeline.compat import flags, lookup, rules, source, toolkit
from pipeline.compat.tables import Distribution, TorchRelease
from pipeline.errors import ConfigError, Problem
from pipeline.host import worktree
from pipeline.once import Once
from pipeline.settings import Settings
from pipeline.spec import (
    Arch,
    BaseSpec,
    ImageSpec,
    MagmaSpec,
    ReqsFile,
    SourceKind,
    SourceSpec,
    ToolchainSpec,
    WheelSpec,
)

Resolve = Callable[[str, str], str | Problem]
"""Returns the commit that a branch or tag of a repository stands at."""


def unresolved(_url: str, ref: str) -> str | Problem:
    """Answer for a branch where no repository may be asked."""
    return Problem("", ref, "a branch moves, and no repository was asked where it stands now")


_UPSTREAM = {
    "TORCH": "https://github.com/pytorch/pytorch.git",
    "VISION": "https://github.com/pytorch/vision.git",
    "MAGMA": "https://github.com/icl-utk-edu/magma.git",
}
_PACKAGES = {"TORCH": "pytorch", "VISION": "pytorch-vision"}
_RELEASE_TAG = re.compile(r"v\d+(\.\d+)+|[0-9a-f]{40}")

_STAGES = (
    "base.py", "compiled.py", "inside/fetch_git.sh", "inside/graft.py", "inside/link_cuda.sh",
    "inside/nvcc.sh", "magma.py", "packages.py", "source.py", "toolchain.py", "torch.py",
    "vision.py",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Wanted:
    """Which torch and torchvision are wanted, for whatever GPUs."""

    release: TorchRelease
    vision: str
    cuda: str
    python: str
    distribution: Distribution


def kind(settings: Settings, part: str) -> str:
    """Return where a part comes from: ``index``, or how its source is had."""
    asked = settings.torch_source if part == "TORCH" else settings.vision_source
    return asked or ("git" if settings.build_mode == "include" else "index")


def compiles(settings: Settings) -> bool:
    """Say whether anything is compiled."""
    return kind(settings, "TORCH") != "index" or kind(settings, "VISION") != "index"


def at_commits(settings: Settings, commits: Mapping[tuple[str, str], str]) -> dict[str, str]:
    """Return what to set, so that each branch in the settings is the commit that it stood at.

    `commits` are by URL and branch. Nobody is asked again where a branch stands then.
    """
    named = {
        part: (getattr(settings, f"{part.lower()}_url") or url,
               getattr(settings, f"{part.lower()}_ref"))
        for part, url in _UPSTREAM.items()
    }  # fmt: skip
    return {f"{part}_REF": commits[branch] for part, branch in named.items() if branch in commits}


_READ_BY = {
    "URL": ("git", "archive", "path"),
    "REF": ("git",),
    "SHA256": ("archive",),
}
"""The kinds of source that read a setting of a part."""


def unread(settings: Settings, spec: ImageSpec) -> list[str]:
    """Return what was set and changes nothing here, each with why, for a person to know."""
    if spec.target == "ngc":
        return validate_ngc.unread(settings)
    torch = next((it for it in spec.compiled if it.package == "torch"), None)
    magma = torch.magma.source.kind if torch and torch.magma else "none"
    kinds = {part: kind(settings, part) for part in ("TORCH", "VISION")} | {"MAGMA": magma}
    found = {
        f"{part}_{name}": f"{part}_SOURCE is {how}"
        for part, how in kinds.items()
        for name, readers in _READ_BY.items()
        if how not in readers
    }
    if torch is None:
        found["TORCH_FLAGS"] = "torch is not compiled"
    if magma == "none":
        found["MAGMA_RELEASE"] = "torch has no MAGMA that is chosen here"
    if spec.compiled and not settings.image_flavor:
        found["CUDNN_VERSION"] = "what is compiled takes the cuDNN of the official wheel"
    return [
        f"{name} is set and changes nothing: {why}"
        for name, why in found.items()
        if getattr(settings, name.lower())
    ]


def wheel_specs(
    settings: Settings,
    wanted: Wanted,
    arches: tuple[Arch, ...],
    base: BaseSpec,
    folder: Path,
    resolve: Resolve,
    once: Once,
) -> tuple[WheelSpec | None, WheelSpec | None, list[Problem]]:
    """Return the wheels of torch and torchvision that are compiled, and every mistake."""
    torch_source, vision_source, wrong = once.reading(_sources, settings, wanted, resolve, once)
    problems = list(wrong)
    compiles_torch = kind(settings, "TORCH") != "index"
    libraries = magma = None
    reason = ""
    if compiles_torch and settings.torch_flags:
        problems += flags.check(flags.parse(settings.torch_flags))
    if compiles_torch:
        libraries, wrong = once(_libraries, wanted.release, wanted.cuda, arches)
        problems += wrong
    toolchain, wrong = once.reading(_toolchain, settings, wanted, base, folder, libraries)
    problems += wrong
    if compiles_torch:
        choice = source.magma(
            wanted.release,
            wanted.cuda,
            wanted.distribution,
            settings.magma_source,
            settings.magma_release,
            arches,
        )
        magma, reason, wrong = once.reading(_magma, settings, choice, resolve, once)
        problems += wrong
    # What is written and names none has been refused already.
    if not arches and not settings.cca.strip(" ;"):
        problems.append(source.no_arches())
    if problems or toolchain is None:
        return None, None, problems
    local = "+cu" + "".join(wanted.cuda.split(".")[:2])
    torch_wheel = vision_wheel = None
    if torch_source and libraries:
        torch_wheel = WheelSpec(
            package="torch",
            version=wanted.release.version + local,
            source=torch_source,
            toolchain=toolchain,
            arches=arches,
            flags=once(
                _torch_flags,
                arches,
                torch_source.kind,
                mkl=toolchain.blas == "mkl",
                magma=magma is not None,
                compress=source.compress_mode(wanted.cuda),
                version=wanted.release.version,
                libraries=libraries,
                asked=settings.torch_flags,
            ),
            requires=libraries.runtime,
            magma=magma,
            magma_reason=reason,
            recipe=once(recipe, folder),
        )
    if vision_source:
        vision_wheel = WheelSpec(
            package="torchvision",
            version=wanted.vision + local,
            source=vision_source,
            toolchain=toolchain,
            arches=arches,
            flags=once(_vision_flags, compress=source.compress_mode(wanted.cuda)),
            requires=(),
            torch=torch_wheel.version if torch_wheel else wanted.release.version,
            torch_key=torch_wheel.key if torch_wheel else "",
            recipe=once(recipe, folder),
        )
    return torch_wheel, vision_wheel, problems


def _libraries(
    torch: TorchRelease, cuda: str, arches: tuple[Arch, ...]
) -> tuple[source.Libraries | None, tuple[Problem, ...]]:
    release = lookup.cuda_release(cuda)
    # That a GPU is too old for this CUDA has been said; it need not be too old for its cuDNN too.
    able = [it for it in arches if isinstance(release, Problem) or it.number in release.archs]
    found = source.libraries(torch, cuda, able)
    return (None, (found,)) if isinstance(found, Problem) else (found, ())


def _torch_flags(
    arches: tuple[Arch, ...],
    kind: SourceKind,
    *,
    mkl: bool,
    magma: bool,
    compress: bool,
    version: str,
    libraries: source.Libraries,
    asked: str,
) -> tuple[tuple[str, str], ...]:
    made = flags.torch_flags(
        arches,
        kind,
        mkl=mkl,
        magma=magma,
        compress=compress,
        version=version,
        packages=libraries.runtime,
        asked=flags.parse(asked),
    )
    return tuple(sorted(made.items()))


def _vision_flags(*, compress: bool) -> tuple[tuple[str, str], ...]:
    return tuple(sorted(flags.vision_flags(compress=compress).items()))


def _sources(
    settings: Settings, wanted: Wanted, resolve: Resolve, once: Once
) -> tuple[SourceSpec | None, SourceSpec | None, tuple[Problem, ...]]:
    """Return the sources of torch and torchvision, None for what is not compiled."""
    problems: list[Problem] = []
    sources: dict[str, SourceSpec | None] = {}
    for part, version in (("TORCH", wanted.release.version), ("VISION", wanted.vision)):
        if kind(settings, part) != "index":
            sources[part], wrong = _source(
                settings, part, version, wanted.distribution, resolve, once
            )
            problems += wrong
    return sources.get("TORCH"), sources.get("VISION"), tuple(problems)


def _source(
    settings: Settings,
    part: str,
    version: str,
    distribution: Distribution,
    resolve: Resolve,
    once: Once,
) -> tuple[SourceSpec | None, tuple[Problem, ...]]:
    """Return the source of a part, None if it names none, and what is wrong with it."""
    how = kind(settings, part)
    if other := _of_another_version(settings, part, how, version):
        return None, (other,)
    url, ref, sha256 = (
        str(getattr(settings, f"{part.lower()}_{name}")) for name in ("url", "ref", "sha256")
    )
    found: SourceSpec | Problem
    if how == "git":
        found = _git(part, url or _UPSTREAM[part], ref or f"v{version}", resolve, once)
    elif how == "archive":
        found = once(_archive, part, url, sha256)
    elif how == "apt":
        found = source.apt_source(distribution, _PACKAGES[part], version)
    else:
        found = once(_path, part, url)
    return (None, (found,)) if isinstance(found, Problem) else (found, ())


_CHOSEN = "CUDA, Python, compiler and libraries are chosen by it"
_CHOSEN_BY = {
    "TORCH": ("PYTORCH_VERSION_TAG=v", _CHOSEN),
    "VISION": ("TORCHVISION_VERSION_TAG=v", _CHOSEN),
    "MAGMA": ("MAGMA_RELEASE=", "its patches, and what it compiles with, are chosen by it"),
}
"""What says which version of a part is built, and what follows from that."""


def _of_another_version(settings: Settings, part: str, how: str, version: str) -> Problem | None:
    """Refuse one release under the version of another: all else is chosen by that.

    A repository's tag tells which it is, and the name that upstream gives a tarball
    (https://icl.utk.edu/projectsfiles/magma/downloads/, https://github.com/pytorch/pytorch/releases).
    """
    ref, url = (str(getattr(settings, f"{part.lower()}_{name}")) for name in ("ref", "url"))
    if how == "git":
        name, value, allowed = "REF", ref, f"v{version}, a branch, a commit"
        named = re.match(r"v(\d+\.\d+\.\d+)(-|$)", value)
    elif how == "archive":
        # No more of it: a password can be before it, and a signature after it.
        path = re.split("[?#]", url)[0] if "://" in url else url
        name, value, allowed = "URL", path.rpartition("/")[2], f"a tarball of {version}"
        named = re.match(r"(?:(?:magma|pytorch|vision)-)?v?(\d+\.\d+\.\d+)(?!\d)", value)
    else:
        return None
    if named is None or named[1] == version:
        return None
    setting, because = _CHOSEN_BY[part]
    return Problem(
        f"{part}_{name}",
        value,
        f"is a release of {named[1]}, and {version} is what is to be built: {because}",
        allowed=allowed,
        next_step=f"set {setting}{named[1]}",
    )


def _git(part: str, url: str, ref: str, resolve: Resolve, once: Once) -> SourceSpec | Problem:
    """Return a repository at a commit; a release's tag stays, a branch becomes its commit."""
    if "://" not in url and not re.match(r"[\w.-]+@[\w.-]+:", url):
        return Problem(
            f"{part}_URL", url, "is a path, and a repository is fetched by an engine that may run "
            "anywhere", allowed="https://…, ssh://… or git@host:path",
            next_step=f"set {part}_SOURCE=path to take a working tree of this machine",
        )  # fmt: skip
    if _RELEASE_TAG.fullmatch(ref):
        return SourceSpec(kind="git", location=url, ref=ref)
    commit = once(resolve, url, ref)
    if isinstance(commit, Problem):
        return Problem(
            f"{part}_REF", ref, commit.why, commit.allowed, commit.next_step, commit.source
        )
    return SourceSpec(kind="git", location=url, ref=commit)


def _archive(part: str, url: str, sha256: str) -> SourceSpec | Problem:
    name = f"{part}_SHA256" if url else f"{part}_URL"
    if url and sha256 and "://" in url:
        return SourceSpec(kind="archive", location=url, sha256=sha256)
    if url and sha256:
        return _file(part, Path(url).expanduser(), sha256)
    return Problem(
        name,
        "",
        f"{part}_SOURCE=archive takes a tarball whose hash is known before it is unpacked",
        allowed=f"{part}_URL with a URL or a path, and {part}_SHA256",
        next_step="set both; `sha256sum` prints the hash of a file you trust",
    )


def _file(part: str, file: Path, sha256: str) -> SourceSpec | Problem:
    """Return a tarball of this machine, which is looked at before hours are spent on it."""
    if not file.is_file():
        return Problem(
            f"{part}_URL", str(file), "is no file of this machine",
            allowed="a tarball's URL, or its path", next_step="check the path",
        )  # fmt: skip
    if (found := _sha256(file)) != sha256:
        return Problem(
            f"{part}_SHA256", sha256, f"is not the hash of {file}, which is {found}",
            allowed=found, next_step=f"set {part}_SHA256 to it if you trust the file",
        )  # fmt: skip
    return SourceSpec(kind="archive", location=str(file), sha256=sha256)


def _path(part: str, url: str) -> SourceSpec | Problem:
    if not url:
        return Problem(
            f"{part}_URL",
            "",
            f"{part}_SOURCE=path takes a working tree of this machine",
            allowed="a folder that git tracks",
            next_step=f"set {part}_URL to the folder",
        )
    folder = Path(url).expanduser().resolve()
    try:
        _, sha256 = worktree.tracked(folder, f"{part}_URL")
    except ConfigError as error:
        return error.problems[0]
    return SourceSpec(kind="path", location=str(folder), sha256=sha256)


def _toolchain(
    settings: Settings,
    wanted: Wanted,
    base: BaseSpec,
    folder: Path,
    libraries: source.Libraries | None,
) -> tuple[ToolchainSpec | None, tuple[Problem, ...]]:
    """Return what compiles, and what is wrong with it."""
    torch, cuda, distribution = wanted.release, wanted.cuda, wanted.distribution
    serves = toolkit.toolkit(distribution, cuda, settings.cuda_source)
    release = lookup.cuda_release(cuda)
    # check_source has said what is wrong with these two.
    gcc = "" if isinstance(release, Problem) else rules.host_gcc(torch, release, distribution)
    if isinstance(serves, Problem):
        return None, (serves,)
    if isinstance(release, Problem) or isinstance(gcc, Problem):
        return None, ()
    if serves == "image":
        image = toolkit.nvidia_image(cuda, settings.cudnn_version, "devel", distribution)
        if isinstance(image, Problem):
            return None, (image,)
        base = base.model_copy(update={"image": image, "source": "image", "can_bootstrap": False})
    name = torch.tools
    pins = toolkit.toolkit_wheels(cuda) if serves == "wheels" else ()
    made = ToolchainSpec(
        base=base,
        cuda=release.version,
        cuda_source=serves,
        gcc=gcc,
        python=wanted.python,
        python_from_distribution=wanted.python == distribution.python,
        tools=ReqsFile(name=name, sha256=_sha256(folder / name)),
        libraries=(*pins, *(libraries.build if libraries else ())),
        blas="" if libraries is None else "mkl" if settings.mkl_mode == "include" else "openblas",
    )
    return made, ()


def _magma(
    settings: Settings,
    choice: source.MagmaChoice | Problem,
    resolve: Resolve,
    once: Once,
) -> tuple[MagmaSpec | None, str, tuple[Problem, ...]]:
    """Return the MAGMA of a torch, None for none, and why; and what is wrong with it."""
    if isinstance(choice, Problem):
        return None, "", (choice,)
    if choice.kind == "off":
        return None, choice.reason, ()
    found: SourceSpec | Problem
    if other := _of_another_version(settings, "MAGMA", choice.kind, choice.version):
        found = other
    elif choice.kind == "apt":
        found = SourceSpec(kind="apt", location="libmagma-dev")
    elif choice.kind == "git":
        ref = settings.magma_ref or f"v{choice.version}"
        found = _git("MAGMA", settings.magma_url or _UPSTREAM["MAGMA"], ref, resolve, once)
    elif settings.magma_url:
        found = once(_archive, "MAGMA", settings.magma_url, settings.magma_sha256)
    else:
        url = source.MAGMA_ARCHIVE.format(version=choice.version)
        found = once(_archive, "MAGMA", url, settings.magma_sha256 or choice.sha256)
    if isinstance(found, Problem):
        return None, "", (found,)
    made = once(MagmaSpec, source=found, version=choice.version, patches=choice.patches)
    return made, choice.reason, ()


def recipe(folder: Path) -> str:
    """Return the hash of what turns a wheel spec into a wheel."""
    digest = hashlib.sha256()
    for name in _STAGES:
        digest.update((resources.files("pipeline.stages").joinpath(name)).read_bytes())
    mkl = folder / reqs.BUILD_MKL
    digest.update(mkl.read_bytes() if mkl.is_file() else b"")
    return digest.hexdigest()


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
