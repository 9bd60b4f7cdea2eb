"""The build base: the toolchain with PyTorch's source in it, one command away from a build."""

from __future__ import annotations

from collections.abc import Mapping

from dagger import Container, Directory

from pipeline.spec import ImageSpec, WheelSpec
from pipeline.stages.finish import finish
from pipeline.stages.inputs import Inputs
from pipeline.stages.packages import apt_install, installer
from pipeline.stages.shell import prompt, shell
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
    # On top here: below it is what wheels are compiled in, which is the same whoever looks at it.
    made_by = installer(build_base, spec, inputs)
    files = prompt(made_by, inputs)
    with_shell = shell(with_source, spec, files)
    with_apt = apt_install(with_shell, spec.base, ["tzdata", *spec.apt])
    return {
        "toolchain": tools,
        **stages,
        "torch-tools": ready,
        "torch-source": code,
        "installer": made_by,
        "prompt": files,
        "shell": with_shell,
        "apt": with_apt,
        "image": finish(with_apt, spec, labels),
    }
