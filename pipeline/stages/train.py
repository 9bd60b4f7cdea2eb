"""The dev image: distribution, Python, torch, then what users change, the often changed last."""

from __future__ import annotations

from collections.abc import Mapping

from dagger import Container, Directory

from pipeline.spec import ImageSpec, TorchSpec
from pipeline.stages import locked
from pipeline.stages.base import Bottom
from pipeline.stages.finish import finish
from pipeline.stages.inputs import Inputs
from pipeline.stages.packages import apt_install, pip_install, uv_binary
from pipeline.stages.wheels import wheel_stages


def train(
    spec: ImageSpec,
    torch: TorchSpec,
    below: Bottom,
    build_base: Container,
    inputs: Inputs,
    labels: Mapping[str, str],
    stored: Mapping[str, Directory],
) -> dict[str, Container | Directory]:
    """Return every stage of the train image above its base, the image last, all lazy."""
    to_torch = wheel_stages(build_base, below.system, below.installer, spec, torch, inputs, stored)
    with_torch = to_torch["torch"]
    assert isinstance(with_torch, Container)
    with_apt = apt_install(with_torch, spec.base, spec.apt)
    files = locked.pip_train(inputs, spec.lock)
    with_pip = pip_install(with_apt, spec, uv_binary(below.installer), files)
    return {
        **below.stages(),
        **to_torch,
        "apt": with_apt,
        "pip": with_pip,
        "image": finish(with_pip, spec, labels),
    }
