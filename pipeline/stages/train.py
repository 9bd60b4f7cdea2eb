"""The dev image: distribution, Python, torch, then what users change, the often changed last."""

from __future__ import annotations

from collections.abc import Mapping

from dagger import Container, Directory, File

from pipeline.spec import ImageSpec, TorchSpec
from pipeline.stages.base import system
from pipeline.stages.finish import finish
from pipeline.stages.inputs import Inputs
from pipeline.stages.packages import (
    VENV,
    apt_install,
    installer,
    pip_install,
    python,
    uv,
    uv_binary,
)  # fmt: skip
from pipeline.stages.wheels import wheel_stages

_WHEELS = "/mnt/wheels"


def train(
    spec: ImageSpec,
    torch: TorchSpec,
    base: Container,
    build_base: Container,
    inputs: Inputs,
    labels: Mapping[str, str],
    stored: Mapping[str, Directory],
) -> dict[str, Container | Directory]:
    """Return every stage of the train image above its base, the image last, all lazy."""
    tools = installer(base, spec, inputs)
    binary = uv_binary(tools)
    bottom = system(base, spec, binary, inputs)
    to_wheels = wheel_stages(build_base, tools, spec, torch, inputs, stored)
    fetched = to_wheels["wheels"]
    assert isinstance(fetched, Directory)
    with_torch = torch_layer(bottom, spec, torch, binary, fetched, inputs)
    with_apt = apt_install(with_torch, spec.base, spec.apt)
    with_pip = pip_install(with_apt, spec, binary, inputs)
    return {
        "installer": tools,
        "system": bottom,
        **to_wheels,
        "torch": with_torch,
        "apt": with_apt,
        "pip": with_pip,
        "image": finish(with_pip, spec, labels),
    }


def torch_layer(
    bottom: Container,
    spec: ImageSpec,
    torch: TorchSpec,
    binary: File,
    fetched: Directory,
    inputs: Inputs,
) -> Container:
    """Return the container with the wheels installed into a new virtual environment."""
    packages = ["pip", *torch.pins]
    if spec.mkl:
        packages.append("intel-openmp")
    install = [
        "pip", "install", "--python", f"{VENV}/bin/python", "--no-index", "--no-cache",
        "--find-links", _WHEELS, "--compile-bytecode", "--link-mode", "copy", *packages,
    ]  # fmt: skip
    return (
        bottom.with_(lambda c: uv(c, binary, inputs, ["venv", "--python", python(spec), VENV]))
        .with_mounted_directory(_WHEELS, fetched)
        .with_(lambda c: uv(c, binary, inputs, install))
        .without_mount(_WHEELS)
    )
