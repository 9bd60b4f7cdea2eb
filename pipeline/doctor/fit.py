"""Which image fits a machine's GPUs and driver: the one asked about, and the best there is."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

from pipeline.compat import lookup, rules, tables
from pipeline.compat.tables import numbers
from pipeline.errors import ConfigError, Problem
from pipeline.host.machine import Machine
from pipeline.listing import Image
from pipeline.settings import Settings
from pipeline.spec import Arch, ImageSpec
from pipeline.tags import repository

_TAG = re.compile(
    r"(?:(?P<target>devel)-)?py(?P<python>\d{2,})-torch(?P<torch>\d+(?:\.\d+)+)-cu(?P<cuda>\d{3,})"
    r"(?:-sm(?P<arches>\d+[af]?(?:ptx)?(?:-\d+[af]?(?:ptx)?)*))?-(?P<codename>[a-z]+)"
)
_TAG_ARCH = re.compile(r"(\d+)(\d)([af]?)(ptx)?")


@dataclass(frozen=True)
class Subject:
    """An image with torch, by what of it a GPU and a driver must go with."""

    name: str
    """What it is called in a message."""
    torch: str
    cuda: str
    arches: tuple[Arch, ...]
    """What it has code for; empty where that is not known."""
    driver: str = ""
    """The oldest driver that it runs with, as it tells itself."""


@dataclass(frozen=True)
class Advice:
    """The image that fits a machine: its tag, and what to type to have it."""

    tag: str
    ref: str
    command: str
    why: str
    published: bool = False
    least_driver: str = ""
    """The driver that it needs, where the machine's is older and nothing else would do."""


def by_spec(spec: ImageSpec) -> Subject | None:
    """Return what an image is to a GPU; None where it has no torch."""
    if spec.torch is None:
        return None
    wheel = spec.torch.torch_wheel
    arches = wheel.arches if wheel else _of_wheel(spec.torch.version, spec.torch.cuda)
    return Subject(f"the image {spec.variant}", spec.torch.version, spec.torch.cuda, arches)


def by_tag(text: str) -> Subject | Problem:
    """Return what an image is to a GPU, by its tag or a reference that ends in it."""
    tag = text.partition("@")[0].rpartition(":")[2]
    match = _TAG.fullmatch(tag)
    if match is None:
        return Problem(
            "tag",
            text,
            "not the tag of an image of Cresset's that has torch",
            allowed="such as py313-torch2.6.0-cu124-sm86-trixie",
            next_step="`python -m pipeline plan` prints that of the settings",
        )
    cuda = f"{match['cuda'][:-1]}.{match['cuda'][-1]}"
    for found in (lookup.torch_release(match["torch"]), lookup.cuda_release(cuda)):
        if isinstance(found, Problem):
            return replace(found, field="tag", value=tag)
    named = _TAG_ARCH.findall(match["arches"] or "")
    compiled = tuple(
        Arch.parse(f"{major}.{minor}{suffix}{'+PTX' if ptx else ''}")
        for major, minor, suffix, ptx in named
    )
    return Subject(
        f"the image {tag}", match["torch"], cuda, compiled or _of_wheel(match["torch"], cuda)
    )


def by_image(image: Image) -> Subject | None:
    """Return what a published image is to a GPU by its labels; None where it has no torch."""
    if not image.told("torch"):
        return None
    return Subject(
        image.tag, image.told("torch"), image.told("cuda"), image.arches, image.told("driver")
    )


def _of_wheel(torch: str, cuda: str) -> tuple[Arch, ...]:
    release = lookup.torch_release(torch)
    wheel = release if isinstance(release, Problem) else rules.wheel_for(release, cuda)
    return () if isinstance(wheel, Problem) else wheel.archs


def covers(subject: Subject, gpu: Arch) -> Literal["code", "ptx", "no"]:
    """Say whether an image has code for a GPU, only PTX that the driver compiles, or neither."""
    if not subject.arches:
        return "code"
    if any(it.model_copy(update={"ptx": False}).runs_on(gpu) for it in subject.arches):
        return "code"
    return "ptx" if any(it.runs_on(gpu) for it in subject.arches) else "no"


_COMPUTES: Final = 5
"""GPUs of an older major than that are there for a display, where there are others."""


def gpus(machine: Machine) -> tuple[Arch, ...]:
    """Return the compute capabilities of a machine that an image is to serve, each once."""
    found = machine.nvidia.gpus if machine.nvidia else ()
    each = tuple(dict.fromkeys(Arch.parse(it.capability) for it in found if it.capability))
    return tuple(it for it in each if it.major >= _COMPUTES) or each


def fits(subject: Subject, devices: Sequence[Arch], driver: str) -> bool:
    """Say whether an image runs on all of these GPUs, with this driver."""
    return not misfits(subject, devices, driver)


def misfits(subject: Subject, devices: Sequence[Arch], driver: str) -> list[str]:
    """Return why an image does not run on all of these GPUs with this driver; empty if it does."""
    ways = {device: covers(subject, device) for device in devices}
    wrong = [
        f"no code for {device}: it has {' '.join(map(str, subject.arches))}"
        for device, way in ways.items()
        if way == "no"
    ]
    unknown = isinstance(lookup.cuda_release(subject.cuda), Problem)
    if driver and unknown and subject.driver:
        # Made by a newer Cresset, which has written down what it knows.
        if numbers(driver) < numbers(subject.driver):
            wrong.append(f"it needs driver {subject.driver} or newer, and this is {driver}")
    elif driver and (
        problem := rules.check_driver(subject.cuda, driver, ptx="ptx" in ways.values())
    ):
        wrong.append(problem.why)
    return wrong


def _rank(subject: Subject, devices: Sequence[Arch]) -> tuple[Any, ...]:
    """Return what to sort images by that run on a machine, the best first.

    Code for each GPU goes before PTX, which the driver has to compile; then the newest torch and
    the newest CUDA.
    """
    ptx = any(covers(subject, device) == "ptx" for device in devices)
    newest = ([-it for it in numbers(text)] for text in (subject.torch, subject.cuda))
    return ptx, *newest


@dataclass(frozen=True)
class Judged:
    """A published image and why it does not run on a machine; nothing where it does."""

    image: Image
    why_not: tuple[str, ...]


def judged(images: Sequence[Image], devices: Sequence[Arch], driver: str) -> list[Judged]:
    """Return published images that have torch: the best for a machine first, and why not others.

    Of two that are alike in all that `_rank` looks at goes the smaller: it has less for others.
    """
    found = []
    for image in images:
        subject = by_image(image)
        if subject is not None and image.told("target") == "train":
            why_not = misfits(subject, devices, driver)
            rank = (bool(why_not), _rank(subject, devices), image.size, image.tag)
            found.append((rank, Judged(image, tuple(why_not))))
    return [it for _, it in sorted(found, key=lambda it: it[0])]


def best(
    machine: Machine, settings: Settings, image: Callable[[Settings], ImageSpec]
) -> Advice | None:
    """Return the image to take here: one that is published, else the settings that make it.

    The settings themselves go first, then another CUDA for their torch, then the newest torch that
    has a wheel, then a compile. Where nothing goes with the driver, it is to be updated. `image`
    makes the spec of settings, or raises ConfigError. None where nothing on record serves the GPUs.
    """
    driver = machine.nvidia.driver if machine.nvidia else ""
    found = _best(machine, driver, settings, image)
    if found is None and driver:
        found = _best(machine, "", settings, image)
    return found


def _best(
    machine: Machine, driver: str, settings: Settings, image: Callable[[Settings], ImageSpec]
) -> Advice | None:
    devices = gpus(machine)
    for changes in _candidates(settings, devices, driver):
        changed = settings.model_copy(update=dict(changes))
        try:
            spec = image(changed)
        except ConfigError:
            continue
        subject = by_spec(spec)
        if subject is None or fits(subject, devices, driver):
            break
    else:
        return None
    has = machine.nvidia.driver if machine.nvidia else ""
    least = ""
    if subject and has and not driver:
        least = tables.cuda()[subject.cuda].driver_min
    why = _why(devices, driver, subject)
    name = repository(settings.image_name, settings.registry)
    if tag := _published(machine, spec.variant, devices, driver):
        ref = f"{name}:{tag}"
        return Advice(tag, ref, f"docker pull {ref}", why, published=True, least_driver=least)
    differ = {
        key.upper(): value
        for key, value in changes.items()
        if value != getattr(settings, key) and (value or getattr(settings, key))
    }
    words = " ".join(f"{key}={_quoted(value)}" for key, value in differ.items())
    command = f"make build {words}".strip()
    return Advice(spec.variant, f"{name}:{spec.variant}", command, why, least_driver=least)


def _quoted(value: str) -> str:
    return f"'{value}'" if " " in value else value


def _why(devices: Sequence[Arch], driver: str, subject: Subject | None) -> str:
    if subject is None:
        return "it has no torch, and runs anywhere"
    what = f"torch {subject.torch} for CUDA {subject.cuda}"
    if not (devices or driver):
        return f"{what}, which runs without a GPU as well"
    code = f" has code for {' and '.join(map(str, devices))}" if devices else ""
    runs = f"{' and' if code else ''} runs with driver {driver}" if driver else ""
    return f"{what}{code}{runs}"


_WHEEL = {
    "build_mode": "exclude", "torch_source": "", "vision_source": "", "torchvision_version_tag": "",
    "pytorch_version": "", "torchvision_version": "", "cca": "",
}  # fmt: skip


def _candidates(
    settings: Settings, devices: Sequence[Arch], driver: str
) -> Iterator[Mapping[str, str]]:
    yield {}
    if not (devices or driver):
        return
    releases = list(tables.torch().values())[::-1]
    asked = (settings.pytorch_version_tag or settings.pytorch_version).removeprefix("v")
    releases.sort(key=lambda it: it.version != asked)  # stable: that one first
    for release in releases:
        for wheel in reversed(release.wheels):
            subject = Subject("", release.version, wheel.cuda, wheel.archs)
            if fits(subject, devices, driver):
                yield _WHEEL | {
                    "pytorch_version_tag": f"v{release.version}",
                    "cuda_version": wheel.cuda,
                }
    if not devices:
        return
    named = [it.number for it in devices]
    cudas = [
        it.version
        for it in list(tables.cuda().values())[::-1]
        if set(named) <= set(it.archs)
        and it.gcc_max
        and not (driver and rules.check_driver(it.version, driver))
    ]
    bases = (settings.linux_distro, "ubuntu", "debian")
    for release in releases:
        for cuda in filter(release.cuda.holds, cudas):
            for base in dict.fromkeys(bases):
                yield _WHEEL | {
                    "build_mode": "include",
                    "cca": " ".join(named),
                    "pytorch_version_tag": f"v{release.version}",
                    "cuda_version": cuda,
                    "linux_distro": base,
                    "distro_version": settings.distro_version
                    if base == settings.linux_distro
                    else "",
                }


def _published(machine: Machine, own: str, devices: Sequence[Arch], driver: str) -> str:
    """Return the tag of the registry's that fits best: that of the settings, else the newest."""
    there = machine.registry.tags if machine.registry else ()
    if own in there:
        return own
    able = [
        (_rank(it, devices), tag)
        for tag in there
        if not isinstance(it := by_tag(tag), Problem) and it.arches and fits(it, devices, driver)
    ]
    return min(able)[1] if able and devices else ""
