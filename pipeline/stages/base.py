"""The bottom of every image: a distribution, and the few packages all else stands on."""

from __future__ import annotations

import re
from dataclasses import dataclass

from dagger import Container, Directory, File, Platform, dag

from pipeline.spec import PLATFORM, BaseSpec, ImageSpec
from pipeline.stages.inputs import Inputs
from pipeline.stages.packages import apt_install, installer, python_install, uv_binary
from pipeline.stages.shell import prompt, shell

_MIRROR = """
find /etc/apt -name '*.list' -o -name '*.sources' | xargs -r sed -i "s%$1%$2%g"
"""


def nothing() -> Container:
    """Return a container with nothing in it, where no base is needed."""
    return dag.container(platform=Platform(PLATFORM))


def base_from_registry(reference: str) -> Container:
    """Return the base that a registry serves under `reference`."""
    # `from_` has to follow `container()` directly: only then is it cached by the image's digest.
    return dag.container(platform=Platform(PLATFORM)).from_(reference)


def base_from_archive(path: str) -> Container:
    """Return the base that an OCI archive of this machine holds."""
    return dag.container(platform=Platform(PLATFORM)).import_(dag.host().file(path))


def with_apt_mirror(base: Container, spec: BaseSpec) -> Container:
    """Return the base with DEB_OLD replaced by DEB_NEW in its apt sources, if that is asked."""
    if spec.apt_mirror is None:
        return base
    old, new = spec.apt_mirror
    pattern, replacement = (
        re.sub(r"[][\\.*^$%]", r"\\\g<0>", old),
        re.sub(r"[\\&%]", r"\\\g<0>", new),
    )
    return base.with_exec(["sh", "-ec", _MIRROR, "apt-mirror", pattern, replacement])


# The lists of a bundle are as old as it is, and signed all the same; there are no others that a
# difference could lead from.
_OLD_LISTS = "-o Acquire::Check-Valid-Until=false -o Acquire::PDiffs=false"


def by_proxy(base: Container, url: str) -> Container:
    """Return the base with a proxy for what speaks plain HTTP, apt above all.

    It is in the environment of all that runs on it, and in no image.
    """
    variables = {"http_proxy": url, "no_proxy": "localhost", "APT_OPTIONS": _OLD_LISTS}
    for name, value in variables.items():
        base = base.with_volatile_variable(name, value)
    return base


@dataclass(frozen=True)
class Bottom:
    """The stages below torch."""

    installer: Container
    prompt: Directory
    shell: Container
    system: Container

    def stages(self) -> dict[str, Container | Directory]:
        """Return them by the names that the plan has for them."""
        return dict(vars(self))


def bottom(base: Container, spec: ImageSpec, inputs: Inputs) -> Bottom:
    """Return what every image has below torch, and what installs it."""
    tools = installer(base, spec, inputs)
    files = prompt(tools, inputs)
    with_shell = shell(base, spec, files)
    return Bottom(tools, files, with_shell, system(with_shell, spec, uv_binary(tools), inputs))


def system(container: Container, spec: ImageSpec, uv_binary: File, inputs: Inputs) -> Container:
    """Return the container with certificates, time zones, jemalloc and Python."""
    packages = apt_install(container, spec.base, ["ca-certificates", "libjemalloc2", "tzdata"])
    return python_install(packages, spec, uv_binary, inputs)
