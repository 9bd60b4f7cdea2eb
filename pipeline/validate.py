"""From what the user wrote to what can be built: every mistake at once, before any engine."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from pathlib import Path
from typing import TypeVar

from pipeline import reqs, validate_ngc
from pipeline.compat import lookup, rules, toolkit
from pipeline.compat.tables import Distribution
from pipeline.errors import ConfigError, Problem
from pipeline.once import Once
from pipeline.settings import NAMES, Settings, allowed_values, shown
from pipeline.spec import Arch, BaseSpec, ImageSpec, ReqsFile, Target, TorchSpec
from pipeline.validate_source import Resolve, Wanted, compiles, unresolved, wheel_specs
from pipeline.validate_source import kind as kind_of

T = TypeVar("T")


class _Mistakes(list[Problem]):
    """Collects problems, and hands on the answers that are none.

    `wrong` are the settings that hold a default in place of what the user wrote. What follows from
    those is none of the user's mistakes.
    """

    def __init__(self, wrong: frozenset[str]) -> None:
        super().__init__()
        self.wrong = wrong

    def guess(self, *names: str) -> bool:
        """Say whether one of these settings is not as the user wrote it."""
        return not self.wrong.isdisjoint(names)

    def unless(self, answer: T | Problem) -> T | None:
        if isinstance(answer, Problem):
            self.append(answer)
            return None
        return answer

    def add(self, problem: Problem | None) -> None:
        if problem is not None:
            self.append(problem)


def image_spec(
    settings: Settings,
    target: str = "",
    *,
    folder: Path = reqs.FOLDER,
    gpus: Callable[[], list[Arch]] = list,
    resolve: Resolve = unresolved,
    problems: Sequence[Problem] = (),
    wheels_only: bool = False,
    once: Once | None = None,
) -> ImageSpec:
    """Return the image that the settings describe; `target` goes before SERVICE.

    `gpus` answers with the compute capabilities of this machine, and is asked if CCA is ``auto``;
    `resolve` with the commit of a branch. With `wheels_only` no image is made of it, so a torch
    that is fetched only to link to need not have code for the wanted architectures.
    `once` is handed in where many images share what is read and asked.
    `problems` are those that reading the settings found, and are raised along with all others.

    Raises:
        ConfigError: every mistake in the settings, in what they mean together, and in ``reqs/``.

    """
    once = once or Once()
    mistakes = _Mistakes(frozenset(problem.field for problem in problems))
    if target and target not in (services := allowed_values(NAMES["SERVICE"])).split(", "):
        mistakes.append(Problem("target", target, "not something to build", allowed=services))
    kind = _TARGETS.get(target or settings.service, "train")
    below = once.reading(
        _below,
        settings,
        "train" if kind == "devel" else kind,
        folder,
        gpus,
        resolve,
        once,
        wrong=mistakes.wrong,
        wheels_only=wheels_only,
    )
    mistakes += below.problems
    if kind == "devel" and kind_of(settings, "TORCH") == "index":
        mistakes.append(
            Problem(
                "BUILD_MODE",
                settings.build_mode,
                "the devel image holds what compiles torch, and this torch is not compiled",
                allowed="include",
                next_step="set BUILD_MODE=include, or TORCH_SOURCE",
            )
        )
    ground = below.ground
    packages = once(_packages, folder, ground.python)
    mistakes += packages.problems
    found = list(problems)
    if mistakes:
        written = dict.fromkeys(_as_written(problem, settings) for problem in mistakes)
        found += (problem for problem in written if problem.field not in mistakes.wrong)
    if found or ground.base is None or ground.distribution is None:
        raise ConfigError(found)
    return ImageSpec(
        target=kind,
        base=ground.base,
        python=ground.python,
        python_from_distribution=ground.python == ground.distribution.python,
        torch=below.torch,
        ngc=ground.month,
        arches=below.arches,
        mkl=below.torch is not None and settings.mkl_mode == "include",
        timezone=settings.tz,
        project_root=settings.project_root,
        shell=packages.shell,
        apt=packages.apt,
        pip=packages.pip,
        compression=settings.compression,
        recipe=packages.recipe,
    )


@dataclass(frozen=True)
class _Below:
    """What an image has below its packages, and what is wrong with that."""

    ground: _Ground
    arches: tuple[Arch, ...]
    torch: TorchSpec | None
    problems: tuple[Problem, ...]


def _below(
    settings: Settings,
    kind: Target,
    folder: Path,
    gpus: Callable[[], list[Arch]],
    resolve: Resolve,
    once: Once,
    *,
    wrong: frozenset[str],
    wheels_only: bool,
) -> _Below:
    ground = once.reading(_ground, settings, kind, once, wrong=wrong)
    mistakes = _Mistakes(wrong)
    mistakes += ground.problems
    # What NVIDIA compiled, and by which Python, is not to be chosen.
    arches, wrong_arches = ((), ()) if kind == "ngc" else once(_arches, settings.cca, gpus)
    mistakes += wrong_arches
    wanted, torch = ground.wanted, ground.torch
    if wanted is not None:
        mistakes += _check_torch(settings, wanted, arches, wheels_only=wheels_only)
    if wanted is not None and torch is not None and ground.base is not None and compiles(settings):
        torch_wheel, vision_wheel, wrong_wheels = wheel_specs(
            settings, wanted, arches, ground.base, folder, resolve, once
        )
        mistakes += wrong_wheels
        torch = torch.model_copy(update={"torch_wheel": torch_wheel, "vision_wheel": vision_wheel})
    return _Below(ground, arches, torch, tuple(mistakes))


@dataclass(frozen=True, eq=False)
class _Ground:
    """What is below an image for whatever GPUs, and what is wrong with that."""

    distribution: Distribution | None
    base: BaseSpec | None
    month: str
    python: str
    wanted: Wanted | None
    torch: TorchSpec | None
    """None where there is none; without what is compiled, which is for some GPUs."""
    problems: tuple[Problem, ...]


def _ground(settings: Settings, kind: Target, once: Once, *, wrong: frozenset[str]) -> _Ground:
    mistakes = _Mistakes(wrong)
    month = (mistakes.unless(validate_ngc.month(settings)) or "") if kind == "ngc" else ""
    distribution = mistakes.unless(
        validate_ngc.distribution(settings, month)
        if month
        else lookup.distribution(settings.linux_distro, settings.distro_version)
    )
    python = distribution.python if distribution else ""
    if kind != "ngc":
        python = settings.python_version or python
    wanted = torch = base = None
    if kind == "ngc":
        mistakes += rules.check_installer(distribution) if distribution else ()
    elif kind == "simple" or mistakes.guess(*_CHOOSE_WHEEL):
        _check_python(settings, mistakes, python, distribution)
    elif distribution is not None:
        wanted = _wanted(settings, mistakes, python, distribution)
        torch = None if wanted is None else _torch(settings, wanted)
    mistakes += _check_mirrors(settings, wrong)
    _check_base_image(settings, mistakes)
    if distribution is not None:
        cuda = None if torch is None else torch.cuda
        base, wrong_base = _base(settings, wrong, distribution, cuda, once)
        mistakes += wrong_base
    return _Ground(distribution, base, month, python, wanted, torch, tuple(mistakes))


_TARGETS: Mapping[str, Target] = {"devel": "devel", "simple": "simple", "ngc": "ngc"}
"""Targets by what users call them; all else is train."""

_CHOOSE_WHEEL = (
    "BUILD_MODE", "CUDA_VERSION", "PYTORCH_VERSION", "PYTORCH_VERSION_TAG", "TORCH_SOURCE",
    "VISION_SOURCE",
)  # fmt: skip


def _as_written(problem: Problem, settings: Settings) -> Problem:
    """Return the problem told of the variable that the user set; the rules know only the tags."""
    for package in ("PYTORCH", "TORCHVISION"):
        tag = f"{package}_VERSION_TAG"
        name, value = _asked(settings, package)
        if problem.field == tag and value:
            problem = replace(problem, field=name, value=value)
        if name != tag:
            step = problem.next_step.replace(f"{tag}=v", f"{name}=")
            problem = replace(problem, next_step=step)
    return problem


def check_requirements(spec: ImageSpec, folder: Path = reqs.FOLDER) -> None:
    """Refuse pip requirements that cannot be right, before an engine finds out in minutes.

    Raises:
        ConfigError: every such line.

    """
    if problems := reqs.check_pip(folder, spec):
        raise ConfigError(problems)


@cache
def _with_ptx(arch: Arch, *, ptx: bool) -> Arch:
    """Return the architecture with PTX or without, each the same object again."""
    return arch.model_copy(update={"ptx": ptx})


def arch_list(text: str) -> list[Arch]:
    """Return the architectures of a TORCH_CUDA_ARCH_LIST; ValueError naming what is none.

    Each is there once, in order, with PTX if any mention of it had that: the order in which they
    were written, or a name for some of them, compiles nothing else.
    """
    named = lookup.named_archs()
    arches: list[Arch] = []
    for word in text.replace(";", " ").split():
        base, plus, _ = word.partition("+")
        if expansion := named.get(base.lower()):
            arches += [a.model_copy(update={"ptx": a.ptx or bool(plus)}) for a in expansion]
        else:
            arches.append(Arch.parse(word))
    with_ptx = {arch.sm for arch in arches if arch.ptx}
    each = {arch.sm: _with_ptx(arch, ptx=arch.sm in with_ptx) for arch in arches}
    return sorted(each.values(), key=lambda arch: (arch.major, arch.minor, arch.suffix))


def _arches(
    text: str, gpus: Callable[[], list[Arch]]
) -> tuple[tuple[Arch, ...], tuple[Problem, ...]]:
    """Return the architectures that CCA names, and what is wrong with it."""
    allowed = allowed_values(NAMES["CCA"])
    if text.lower() == "auto":
        found = tuple(gpus())
        problem = Problem(
            "CCA",
            text,
            "no NVIDIA driver answers on this machine",
            allowed=allowed,
            next_step="name the compute capability of the GPU that will run the image",
            source="https://developer.nvidia.com/cuda-gpus",
        )
        return found, () if found else (problem,)
    words = {word.partition("+")[0].lower() for word in text.replace(";", " ").split()}
    if not words.isdisjoint({"all", "common"}):
        problem = Problem(
            "CCA",
            text,
            "one image for every architecture is what the official wheels are; name the GPUs",
            allowed=allowed,
            next_step="leave CCA empty with BUILD_MODE=exclude to take the wheels as they are",
        )
        return (), (problem,)
    try:
        arches = tuple(arch_list(text))
    except ValueError as error:
        return (), (Problem("CCA", text, str(error), allowed=allowed),)
    unknown = tuple(it for arch in arches if (it := lookup.known_arch(arch)))
    return (() if unknown else arches), unknown


def _check_python(
    settings: Settings, mistakes: _Mistakes, python: str, distribution: Distribution | None
) -> None:
    """Refuse a Python that could not be right whatever the torch."""
    unknown = lookup.known_python(python) if python else None
    mistakes.add(unknown)
    if distribution is not None:
        chosen = "" if unknown else settings.python_version
        mistakes += rules.check_installer(distribution, chosen)


def _wanted(
    settings: Settings, mistakes: _Mistakes, python: str, distribution: Distribution
) -> Wanted | None:
    """Return which torch and torchvision are wanted, wherever they come from."""
    version = _version(settings, "PYTORCH")
    release = mistakes.unless(lookup.torch_release(version)) if version else lookup.newest_torch()
    if release is None:
        return None
    vision = _version(settings, "TORCHVISION") or release.vision
    cuda = settings.cuda_version or release.wheel.cuda
    return Wanted(release, vision, cuda, python, distribution)


def _torch(settings: Settings, wanted: Wanted) -> TorchSpec | None:
    """Return torch as it is fetched, or the frame for what is compiled; None if neither can be."""
    cuda, index = ".".join(wanted.cuda.split(".")[:2]), ""
    if kind_of(settings, "TORCH") == "index":
        wheel = rules.wheel_for(wanted.release, wanted.cuda)
        if isinstance(wheel, Problem):
            return None
        cuda, index = wheel.cuda, wheel.index_url
    return TorchSpec(
        version=wanted.release.version,
        vision=wanted.vision,
        cuda=cuda,
        index=index,
        constraints=rules.companions(wanted.release),
    )


def _check_torch(
    settings: Settings, wanted: Wanted, arches: tuple[Arch, ...], *, wheels_only: bool
) -> list[Problem]:
    """Return what is wrong with fetching or compiling this torch for these GPUs."""
    release, vision, python, cuda = wanted.release, wanted.vision, wanted.python, wanted.cuda
    old = rules.check_installer(wanted.distribution, settings.python_version, release)
    found: list[Problem] = []
    if compiles(settings):
        found += rules.check_source(release, vision, python, cuda, arches, dist=wanted.distribution)
    if kind_of(settings, "TORCH") == "index":
        covered = () if wheels_only else arches
        found += rules.check_wheel(release, vision, python, cuda, covered, wanted.distribution)
    elif kind_of(settings, "VISION") == "index":
        found += rules.check_vision_wheel(release, python, cuda, arches, wanted.distribution)
    # Pip has said already what there is to say of a Python.
    return [*old, *(it for it in found if not old or it.field != "PYTHON_VERSION")]


def _version(settings: Settings, package: str) -> str:
    """Return the release of a package that is asked for; empty if none is."""
    return _asked(settings, package)[1].removeprefix("v")


def _asked(settings: Settings, package: str) -> tuple[str, str]:
    """Return the setting that says which release of a package is wanted, and its value.

    With BUILD_MODE=exclude a wheel's version goes before a tag, as in the original, whatever else
    is compiled.
    """
    tag = f"{package}_VERSION_TAG"
    names = (tag, f"{package}_VERSION")
    for name in reversed(names) if settings.build_mode == "exclude" else names:
        if value := str(getattr(settings, name.lower())):
            return name, value
    return tag, ""


def _base(
    settings: Settings,
    wrong: frozenset[str],
    distribution: Distribution,
    cuda: str | None,
    once: Once,
) -> tuple[BaseSpec, tuple[Problem, ...]]:
    """Return what an image stands on, with torch for this CUDA or without; and what is wrong."""
    mistakes = _Mistakes(wrong)
    image = distribution.image
    # The simple target stands on the plain distribution: it has no torch and assumes no CUDA.
    flavor = settings.image_flavor if cuda is not None else ""
    if flavor and cuda is not None:
        answer = toolkit.nvidia_image(
            settings.cuda_version or cuda, settings.cudnn_version, flavor, distribution
        )
        image = mistakes.unless(answer) or ""
    if flavor in {"runtime", "devel"}:
        mistakes.append(
            Problem(
                "IMAGE_FLAVOR",
                flavor,
                "the wheels bring the CUDA libraries along, and this base has them already",
                allowed="base, or empty",
                next_step="leave IMAGE_FLAVOR out: the plain distribution serves",
                source="https://github.com/amaiya/onprem/issues/73",
            )
        )
    archive = settings.base_archive
    goes_together = (settings.base_source == "archive") == bool(archive)
    if not goes_together and not mistakes.guess("BASE_SOURCE"):
        mistakes.append(
            Problem(
                "BASE_ARCHIVE",
                archive,
                "goes together with BASE_SOURCE=archive",
                next_step="set both or neither",
            )
        )
    if settings.base_source == "archive" and settings.base_image:
        mistakes.append(
            Problem(
                "BASE_IMAGE",
                shown(settings.base_image, "BASE_IMAGE"),
                "BASE_SOURCE=archive takes the base from a file, and this names another one",
                allowed="one or the other",
                next_step="leave BASE_IMAGE out, or BASE_SOURCE and BASE_ARCHIVE",
            )
        )
    is_ngc = distribution.image.startswith(toolkit.NGC_IMAGE)
    if settings.base_source == "bootstrap" and not is_ngc:
        mistakes.add(rules.check_bootstrap(distribution))
    if settings.base_source == "bootstrap" and (settings.base_image or flavor or is_ngc):
        mistakes.append(
            Problem(
                "BASE_SOURCE",
                settings.base_source,
                "makes a plain distribution, and BASE_IMAGE, IMAGE_FLAVOR or the target ngc asks "
                "for another base",
                allowed="auto, image, archive",
            )
        )
    sha256, unreadable = once(_sha256, archive) if archive else ("", ())
    mistakes += unreadable
    base = BaseSpec(
        distribution=distribution.name,
        version=distribution.version,
        codename=distribution.codename,
        image=settings.base_image or image,
        source=settings.base_source,
        can_bootstrap=distribution.bootstrap and not settings.base_image and not flavor,
        archive_sha256=sha256,
        apt_mirror=(settings.deb_old, settings.deb_new) if settings.deb_new else None,
    )
    return base, tuple(mistakes)


def _sha256(archive: str) -> tuple[str, tuple[Problem, ...]]:
    try:
        with Path(archive).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest(), ()
    except OSError as error:
        problem = Problem("BASE_ARCHIVE", archive, f"cannot be read: {error.strerror}",
                          allowed="a file that holds an OCI archive")  # fmt: skip
        return "", (problem,)


_INDEXES = ("INDEX_URL", "EXTRA_INDEX_URL", "PYTORCH_INDEX_URL")


def _check_mirrors(settings: Settings, wrong: frozenset[str]) -> list[Problem]:
    mistakes = _Mistakes(wrong)
    together = bool(settings.deb_old) == bool(settings.deb_new)
    if not together and not mistakes.guess("DEB_OLD", "DEB_NEW"):
        mistakes.append(
            Problem(
                "DEB_NEW",
                shown(settings.deb_new, "DEB_NEW"),
                "DEB_OLD and DEB_NEW go together",
                next_step="set both or neither",
            )
        )
    together = bool(settings.git_old) == bool(settings.git_new)
    if not together and not mistakes.guess("GIT_OLD", "GIT_NEW"):
        mistakes.append(
            Problem(
                "GIT_NEW",
                shown(settings.git_new, "GIT_NEW"),
                "GIT_OLD and GIT_NEW go together",
                next_step="set both or neither",
            )
        )
    if not settings.trusted_host or mistakes.guess(*_INDEXES):
        return mistakes
    schemes = {
        url.partition("://")[0]
        for url in (getattr(settings, name.lower()) for name in _INDEXES)
        if re.match(rf"https?://([^/]*@)?{re.escape(settings.trusted_host)}(:\d+)?(/|$)", url)
    }
    if schemes != {"http"}:
        mistakes.append(
            Problem(
                "TRUSTED_HOST",
                shown(settings.trusted_host, "TRUSTED_HOST"),
                "TLS checks are never turned off, and "
                + ("an https:// index has this host" if schemes else "no http:// index has it"),
                allowed="the host of an http:// index, which has no TLS to check",
                next_step="put the CA certificate of the host into the machine's own bundle "
                "(update-ca-certificates); builds trust what the machine trusts",
            )
        )
    return mistakes


def _check_base_image(settings: Settings, mistakes: _Mistakes) -> None:
    """Refuse a base that would be another one tomorrow."""
    name = settings.base_image.rpartition("/")[2]
    if not name or "@" in name:
        return
    tag = name.partition(":")[2]
    if tag in {"", "latest"}:
        mistakes.append(
            Problem(
                "BASE_IMAGE",
                shown(settings.base_image, "BASE_IMAGE"),
                "names whatever is newest on the day of the build",
                allowed="registry/name:tag with a tag that stays, or registry/name@sha256:…",
                next_step="write the tag, or the digest, that you mean",
            )
        )


@dataclass(frozen=True)
class _Packages:
    """What ``reqs/`` puts into an image, what turns that into layers, and what is wrong with it."""

    shell: tuple[str, ...]
    apt: tuple[str, ...]
    pip: tuple[ReqsFile, ...]
    recipe: str
    problems: tuple[Problem, ...]


def _packages(folder: Path, python: str) -> _Packages:
    shell, wrong_shell = _apt(folder, reqs.APT_SHELL, python)
    apt, wrong_apt = _apt(folder, reqs.APT_TRAIN, python)
    pip, wrong_pip = reqs.pip_files(folder, reqs.PIP_TRAIN)
    wrong = (*wrong_shell, *wrong_apt, *wrong_pip)
    return _Packages(shell, apt, tuple(pip), recipe(folder), wrong)


def _apt(folder: Path, name: str, python: str) -> tuple[tuple[str, ...], tuple[Problem, ...]]:
    path = folder / name
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        problem = Problem(str(path), "", f"cannot be read: {reason}",
                          next_step=f"run from a checkout, or create an empty {path}")  # fmt: skip
        return (), (problem,)
    packages, wrong = reqs.apt_packages(text, python=python or "3.13", file=str(path))
    return tuple(packages), tuple(wrong)


def recipe(folder: Path) -> str:
    """Return the hash of what turns a spec into an image: base, stages, what they install by."""
    digest = hashlib.sha256()
    stages = resources.files("pipeline.stages")
    inside = resources.files("pipeline.stages.inside")
    for source in sorted((*stages.iterdir(), *inside.iterdir()), key=str):
        if source.is_file():
            digest.update(source.read_bytes())
    digest.update((resources.files("pipeline.host") / "bootstrap.py").read_bytes())
    for name in (reqs.PIP_BUILD, reqs.PIP_MKL, reqs.PIP_NPM):
        path = folder / name
        digest.update(path.read_bytes() if path.is_file() else b"")
    return digest.hexdigest()
