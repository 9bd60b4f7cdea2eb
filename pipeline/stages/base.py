"""The bottom of every image: a distribution, and the few packages all else stands on."""

from __future__ import annotations

import re

from dagger import Container, File, Platform, dag

from pipeline.spec import PLATFORM, BaseSpec, ImageSpec
from pipeline.stages.inputs import Inputs
from pipeline.stages.packages import apt_install, python_install

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


def system(base: Container, spec: ImageSpec, uv_binary: File, inputs: Inputs) -> Container:
    """Return the base with certificates, time zones, jemalloc and Python."""
    packages = apt_install(base, spec.base, ["ca-certificates", "libjemalloc2", "tzdata"])
    return python_install(packages, spec, uv_binary, inputs)
