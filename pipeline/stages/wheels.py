"""The wheels of an image in one directory: fetched from an index, compiled, or both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dagger import Container, Directory, dag

from pipeline.compat.flags import FATBIN
from pipeline.spec import ImageSpec, Locked, SourceSpec, TorchSpec, WheelSpec
from pipeline.stages.inputs import Inputs
from pipeline.stages.locked import requirements
from pipeline.stages.magma import magma
from pipeline.stages.packages import INSTALLER, PINS, VENV, python, python_install, uv, uv_binary
from pipeline.stages.source import source, source_tools
from pipeline.stages.tarball import source_from_tarball
from pipeline.stages.toolchain import toolchain, with_wheels
from pipeline.stages.torch import torch_tools, torch_wheel
from pipeline.stages.vision import vision_wheel

_OUT = "/wheels"
_COMPILED = "/mnt/compiled"
_MOUNTED = "/mnt/wheels"
_LOCKED = "/mnt/locked.txt"


def wheels(
    installer: Container,
    spec: ImageSpec,
    torch: TorchSpec,
    inputs: Inputs,
    compiled: Sequence[Directory] = (),
    before: Directory | None = None,
) -> Directory:
    """Return a directory with the wheels of torch, torchvision and all they depend on.

    What is `compiled` goes before what is fetched; what is in `before` is not fetched again.
    """
    pinned = [*_download(spec), "--require-hashes", "--requirement", PINS]
    if before is not None:
        installer = installer.with_directory(_OUT, before)
    fetched = (
        _fetch(installer, spec, torch, inputs, compiled, torch.pins)
        .with_(inputs.network.for_packages)
        .with_mounted_file(PINS, inputs.pip_build)
        .with_exec(pinned)
    )
    if spec.mkl:
        fetched = fetched.with_mounted_file(PINS, inputs.pip_mkl).with_exec(pinned)
    return fetched.directory(_OUT)


def wheel_stages(
    base: Container,
    bottom: Container,
    installer: Container,
    spec: ImageSpec,
    torch: TorchSpec,
    inputs: Inputs,
    stored: Mapping[str, Directory],
) -> dict[str, Container | Directory]:
    """Return every stage up to ``torch``, the image with all wheels installed, lazy.

    `base` is what is compiled on, and `bottom` what the image has below torch: a wheel is checked
    there, where nothing of the toolchain can stand in for what it should bring along. `stored` are
    finished wheels by key; what is in it is not compiled.
    """
    stages: dict[str, Container | Directory] = {}
    compiled: list[Directory] = []
    fetched: Directory | None = None
    layer = _environment(bottom, installer, spec, inputs)
    if wheel := torch.torch_wheel:
        made = stored.get(wheel.key)
        if made is None:
            tools = toolchain(base, wheel.toolchain, inputs)
            own, ready, code = torch_stages(base, tools, wheel, inputs)
            made = torch_wheel(ready, code, wheel, inputs.compiling)
            stages |= {"toolchain": tools, **own}
            stages |= {"torch-tools": ready, "torch-source": code, "torch-wheel": made}
        compiled.append(made)
    if torch.compiled:
        # torch has a layer of its own, gigabytes that a change of torchvision leaves as they are.
        fetched = torch_wheels(installer, spec, torch, inputs, compiled)
        layer = _with_wheels(layer, installer, fetched, torch.pins[:1], inputs)
        if "torch-wheel" in stages:
            stages["torch-check"] = layer
    if wheel := torch.vision_wheel:
        made = stored.get(wheel.key)
        if made is None:
            assert fetched is not None
            tools = toolchain(base, wheel.toolchain, inputs)
            ready = with_wheels(tools, fetched, torch.pins[:1])
            code = wheel_source(base, wheel, wheel.source, inputs)
            made = vision_wheel(ready, code, wheel, inputs.compiling)
            stages |= {"toolchain": tools, "torchvision-tools": ready}
            stages |= {"torchvision-source": code, "torchvision-wheel": made}
        compiled.append(made)
    everything = wheels(installer, spec, torch, inputs, compiled, fetched)
    pins = ["pip", *torch.pins, *(["intel-openmp"] if spec.mkl else [])]
    layer = _with_wheels(layer, installer, everything, pins, inputs)
    if "torchvision-wheel" in stages:
        stages["torchvision-check"] = layer
    return stages | {"wheels": everything, "torch": layer}


def _environment(
    bottom: Container, installer: Container, spec: ImageSpec, inputs: Inputs
) -> Container:
    """Return the container with an empty virtual environment."""
    return uv(bottom, uv_binary(installer), inputs, ["venv", "--python", python(spec), VENV])


def _with_wheels(
    layer: Container, installer: Container, fetched: Directory, pins: Sequence[str], inputs: Inputs
) -> Container:
    """Return the container with packages of a directory of wheels in its virtual environment."""
    install = [
        "pip", "install", "--python", f"{VENV}/bin/python", "--no-index", "--no-cache",
        "--find-links", _MOUNTED, "--compile-bytecode", "--link-mode", "copy", *pins,
    ]  # fmt: skip
    mounted = layer.with_mounted_directory(_MOUNTED, fetched)
    return uv(mounted, uv_binary(installer), inputs, install).without_mount(_MOUNTED)


def torch_stages(
    base: Container, tools: Container, wheel: WheelSpec, inputs: Inputs
) -> tuple[dict[str, Container | Directory], Container, Directory]:
    """Return the stages of MAGMA, if it is compiled, torch's tools and torch's source."""
    stages: dict[str, Container | Directory] = {}
    made = None
    if wheel.magma and wheel.magma.is_compiled:
        magma_source = wheel_source(base, wheel, wheel.magma.source, inputs)
        flags = dict(wheel.flags).get("TORCH_NVCC_FLAGS", FATBIN)
        made = magma(tools, magma_source, wheel.magma, wheel.arches, flags, inputs.compiling)
        stages = {"magma-source": magma_source, "magma": made}
    ready = torch_tools(tools, wheel, made)
    return stages, ready, wheel_source(base, wheel, wheel.source, inputs)


def wheel_source(base: Container, wheel: WheelSpec, spec: SourceSpec, inputs: Inputs) -> Directory:
    """Return the source, fetched apart from the toolchain, which changes oftener than it does."""
    if tarball := inputs.sources.get(spec.tarball):
        return source_from_tarball(tarball, base)
    return source(
        spec,
        source_tools(base, wheel.toolchain.base),
        wheel.toolchain.base,
        access=inputs.network.git,
        untracked=inputs.untracked.get(spec.location, ()),
    )


def torch_wheels(
    installer: Container,
    spec: ImageSpec,
    torch: TorchSpec,
    inputs: Inputs,
    compiled: Sequence[Directory],
) -> Directory:
    """Return a directory with the wheels of torch and all it depends on, without torchvision."""
    return _fetch(installer, spec, torch, inputs, compiled, torch.pins[:1]).directory(_OUT)


def _fetch(
    installer: Container,
    spec: ImageSpec,
    torch: TorchSpec,
    inputs: Inputs,
    compiled: Sequence[Directory],
    pins: Sequence[str],
) -> Container:
    """Return the container after the download."""
    fetcher = installer
    if not spec.python_from_distribution:
        fetcher = python_install(installer, spec, uv_binary(installer), inputs)
    for number, directory in enumerate(compiled):
        fetcher = fetcher.with_mounted_directory(f"{_COMPILED}{number}", directory)
    # Wheels alone are held to bases and commits: what they run with is locked once they are there.
    if spec.lock is not None and spec.lock.torch:
        return _fetch_locked(fetcher, spec, spec.lock, inputs)
    own = {f"{wheel.package}=={wheel.version}" for wheel in torch.compiled}
    wanted = [*(pin for pin in pins if pin not in own), *torch.constraints]
    download = [*_download(spec), *wanted]
    if compiled:
        # By their paths: PyTorch's index has wheels of the very same version.
        download = ["sh", "-ec", f'exec "$@" {_COMPILED}*/*.whl', "download", *download]
    return fetcher.with_(inputs.network.for_torch).with_exec(download).with_(inputs.network.out_of)


def _fetch_locked(fetcher: Container, spec: ImageSpec, lock: Locked, inputs: Inputs) -> Container:
    """Return the container after the download of the locked files, and of no other."""
    text = requirements(lock.torch)
    # What was compiled is known by its key, and lies there by its path.
    script = f'mkdir -p {_OUT}; cp {_COMPILED}*/*.whl {_OUT}/ 2>/dev/null || true; exec "$@"'
    command = [*_download(spec), "--no-deps", "--require-hashes", "--requirement", _LOCKED]
    return (
        fetcher.with_(inputs.network.for_packages)
        .with_mounted_file(_LOCKED, dag.file("locked.txt", text))
        .with_exec(["sh", "-ec", script, "download", *command])
        .without_mount(_LOCKED)
        .with_(inputs.network.out_of)
    )


def _download(spec: ImageSpec) -> list[str]:
    return [
        f"{INSTALLER}/bin/pip", "--python", python(spec), "download", "--no-cache-dir",
        "--progress-bar", "off", "--only-binary", ":all:", "--dest", _OUT,
    ]  # fmt: skip
