"""The build base: the toolchain with PyTorch's source in it, one command away from a build."""

from __future__ import annotations

from collections.abc import Mapping

from dagger import Container, Directory

from pipeline.spec import ImageSpec, WheelSpec
from pipeline.stages.finish import finish
from pipeline.stages.inputs import Inputs
from pipeline.stages.packages import apt_install
from pipeline.stages.toolchain import toolchain
from pipeline.stages.torch import SOURCE, torch_source
from pipeline.stages.wheels import torch_stages


def devel(
    spec: ImageSpec, wheel: WheelSpec, build_base: Container, inputs: Inputs,
    labels: Mapping[str, str],
) -> dict[str, Container | Directory]:  # fmt: skip
    """Return every stage of the devel image above its base, the image last, all lazy."""
    tools = toolchain(build_base, wheel.toolchain, inputs)
    stages, ready, code = torch_stages(build_base, tools, wheel, inputs)
    with_source = torch_source(ready.with_directory(SOURCE, code), wheel)
    with_apt = apt_install(with_source, spec.base, ["tzdata", *spec.apt])
    return {
        "toolchain": tools,
        **stages,
        "torch-tools": ready,
        "torch-source": code,
        "apt": with_apt,
        "image": finish(with_apt, spec, labels),
    }
