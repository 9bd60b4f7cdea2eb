"""The wheels of an image, fetched in a throw-away container into one directory."""

from __future__ import annotations

from dagger import Container, Directory

from pipeline.spec import ImageSpec, TorchSpec
from pipeline.stages.inputs import Inputs
from pipeline.stages.packages import INSTALLER, PINS, python, python_install, uv_binary

_OUT = "/wheels"


def wheels(installer: Container, spec: ImageSpec, torch: TorchSpec, inputs: Inputs) -> Directory:
    """Return a directory with the wheels of torch, torchvision and all they depend on."""
    fetcher = installer
    if not spec.python_from_distribution:
        fetcher = python_install(installer, spec, uv_binary(installer), inputs)
    download = [
        f"{INSTALLER}/bin/pip", "--python", python(spec), "download", "--no-cache-dir",
        "--progress-bar", "off", "--only-binary", ":all:", "--dest", _OUT,
    ]  # fmt: skip
    wanted = [*torch.pins, *torch.constraints]
    pinned = [*download, "--require-hashes", "--requirement", PINS]
    fetched = (
        fetcher.with_(inputs.network.for_torch)
        .with_exec([*download, *wanted])
        .with_(inputs.network.out_of)
        .with_(inputs.network.for_packages)
        .with_mounted_file(PINS, inputs.pip_build)
        .with_exec(pinned)
    )
    if spec.mkl:
        fetched = fetched.with_mounted_file(PINS, inputs.pip_mkl).with_exec(pinned)
    return fetched.directory(_OUT)
