"""The plain image: the distribution with the same requirements and nothing of CUDA."""

from __future__ import annotations

from collections.abc import Mapping

from dagger import Container, Directory

from pipeline.spec import ImageSpec
from pipeline.stages import locked
from pipeline.stages.base import Bottom
from pipeline.stages.finish import finish
from pipeline.stages.inputs import Inputs
from pipeline.stages.packages import VENV, apt_install, pip_install, python, uv, uv_binary


def simple(
    spec: ImageSpec, below: Bottom, inputs: Inputs, labels: Mapping[str, str]
) -> dict[str, Container | Directory]:
    """Return every stage of the simple image above its base, the image last, all lazy."""
    binary = uv_binary(below.installer)
    with_apt = apt_install(below.system, spec.base, spec.apt)
    # A lock has pip among its packages.
    seed = [] if spec.lock else ["--seed"]
    venv = ["venv", *seed, "--link-mode", "copy", "--python", python(spec), VENV]
    files = locked.pip_train(inputs, spec.lock)
    with_pip = pip_install(uv(with_apt, binary, inputs, venv), spec, binary, files)
    return {
        **below.stages(),
        "apt": with_apt,
        "pip": with_pip,
        "image": finish(with_pip, spec, labels),
    }
