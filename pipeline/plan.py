"""The order of the work for one image, and its picture: what needs what, before anything runs."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.spec import ImageSpec, SourceSpec, TorchSpec, WheelSpec


@dataclass(frozen=True)
class Step:
    """One stage of the build: what it makes, and which steps it needs."""

    name: str
    makes: str
    needs: tuple[str, ...] = ()


def plan(spec: ImageSpec, *, attest: bool = True) -> tuple[Step, ...]:
    """Return the steps that build, check and deliver the image, each after those it needs.

    The last one attaches what proves it, unless that is not to be done.
    """
    steps = _plan(spec)
    return steps if attest else steps[:-1]


def _plan(spec: ImageSpec) -> tuple[Step, ...]:
    source = (
        "image" if spec.base.source == "auto" and not spec.base.can_bootstrap else spec.base.source
    )
    base = f"{spec.base.distribution} {spec.base.version} from {_SOURCES[source]}"
    if spec.target == "ngc":
        base = f"NVIDIA's PyTorch image of {spec.ngc}, {base}"
    python = f"Python {spec.python}, certificates, time zones, jemalloc"
    if spec.target == "devel" and spec.torch is not None:
        wheel = spec.torch.torch_wheel
        assert wheel is not None
        return (
            Step("base", base),
            _toolchain(wheel),
            *_ready(wheel),
            *_shell(spec, ("torch-tools", "torch-source")),
            Step("apt", f"{len(spec.apt)} packages of reqs/apt-train", ("shell",)),
            Step("image", "time zone, environment, labels", ("apt",)),
            *_ENDING,
        )
    if spec.target == "ngc":
        return (
            Step("base", base),
            *_shell(spec, ("base",)),
            Step("system", "time zones, what makes a venv", ("shell",)),
            Step("apt", f"{len(spec.apt)} packages of reqs/apt-train", ("system",)),
            Step("pip", f"packages of reqs/pip-train, beside the base's, Python {spec.python}",
                 ("apt",)),
            Step("image", "time zone, environment, labels", ("pip",)),
            *_ENDING,
        )  # fmt: skip
    steps = [
        Step("base", base),
        *_shell(spec, ("base",)),
        # Only a Python that is not the distribution's own comes by uv.
        Step(
            "system",
            python,
            ("shell",) if spec.python_from_distribution else ("shell", "installer"),
        ),
    ]
    below_apt = "system"
    if spec.torch is not None:
        torch = f"torch {spec.torch.version} and torchvision {spec.torch.vision}"
        compiling = _compiling(spec.torch)
        made = tuple(step.name for step in compiling if step.name.endswith("-wheel"))
        # Each is checked in the very layer that the image has.
        checked = tuple(step.name for step in compiling if step.name.endswith("-check"))
        steps += [
            *compiling,
            Step("wheels", f"wheels for CUDA {spec.torch.cuda}", ("installer", *made)),
            Step("torch", torch, ("system", "installer", "wheels", *checked)),
        ]
        below_apt = "torch"
    return (
        *steps,
        Step("apt", f"{len(spec.apt)} packages of reqs/apt-train", (below_apt,)),
        Step("pip", "packages of reqs/pip-train", ("apt", "installer")),
        Step("image", "time zone, environment, labels", ("pip",)),
        *_ENDING,
    )


def _shell(spec: ImageSpec, below: tuple[str, ...]) -> tuple[Step, ...]:
    """Return the steps that make the shell, on top of those that are `below`."""
    return (
        Step("installer", "pinned pip and uv, thrown away after", ("base",)),
        Step("prompt", "the prompt of the shell, by npm", ("installer",)),
        Step("shell", f"zsh, tmux, {len(spec.shell)} packages of reqs/apt-shell, entrypoint",
             (*below, "prompt")),
    )  # fmt: skip


def wheel_plan(spec: ImageSpec) -> tuple[Step, ...]:
    """Return the steps that compile the wheels of the image and write them to a folder."""
    compiling = _compiling(spec.torch) if spec.torch else ()
    made = tuple(step.name for step in compiling if step.name.endswith("-wheel"))
    base, installer, prompt, shell, system, *_ = plan(spec)
    return (
        base,
        installer,
        prompt,
        shell,
        system,
        *compiling,
        Step("export", "the wheels, in a folder", made),
    )


def _compiling(torch: TorchSpec) -> tuple[Step, ...]:
    """Return the steps that compile, none where all comes from an index."""
    steps = [_toolchain(wheel) for wheel in torch.compiled[:1]]
    for wheel in torch.compiled:
        name = wheel.package
        needs: tuple[str, ...] = ()
        below: tuple[str, ...] = ("system", "installer")
        if name == "torchvision":
            needs = ("installer",)
            if torch.torch_wheel:
                needs, below = (*needs, "torch-wheel"), (*below, "torch-check")
        steps += [
            *_ready(wheel, *needs),
            Step(f"{name}-wheel", f"{name} {wheel.version} for {wheel.arch_list}{_magma(wheel)}",
                 (f"{name}-tools", f"{name}-source")),
            Step(f"{name}-check", "GPU code, features and libraries of the wheel",
                 (*below, f"{name}-wheel")),
        ]  # fmt: skip
    return tuple(steps)


def _toolchain(wheel: WheelSpec) -> Step:
    tools = wheel.toolchain
    makes = f"CUDA {tools.cuda} by {tools.cuda_source}, GCC {tools.gcc}, {tools.tools.name}"
    return Step("toolchain", makes, ("base",))


def _ready(wheel: WheelSpec, *needs: str) -> tuple[Step, ...]:
    """Return the steps between the toolchain and the compile, whose tools have more needs."""
    magma: tuple[Step, ...] = ()
    if wheel.magma and wheel.magma.is_compiled:
        magma = (
            Step("magma-source", _from(wheel.magma.source), ("base",)),
            Step("magma", f"MAGMA {wheel.magma.version} for {wheel.arch_list}",
                 ("magma-source", "toolchain")),
        )  # fmt: skip
    made = tuple(step.name for step in magma[1:])
    return (
        *magma,
        Step(f"{wheel.package}-tools", "what it needs beside the toolchain",
             ("toolchain", *made, *needs)),
        Step(f"{wheel.package}-source", _from(wheel.source), ("base",)),
    )  # fmt: skip


def _magma(wheel: WheelSpec) -> str:
    if wheel.package != "torch":
        return ""
    return f", MAGMA {wheel.magma.version}" if wheel.magma else ", no MAGMA"


def _from(source: SourceSpec) -> str:
    at = source.ref or source.sha256[:12]
    return f"source by {source.kind}: {source.public_location}{f' at {at}' if at else ''}"


_ENDING = (
    Step("verify", "checks made inside the image", ("image",)),
    Step("deliver", "registry, Docker, or a file in dist/", ("image", "verify")),
    Step("attest", "SBOM, provenance, signature", ("deliver",)),
)

_SOURCES = {
    "auto": "a registry, else by mmdebstrap",
    "image": "a registry",
    "archive": "an OCI archive",
    "bootstrap": "mmdebstrap",
}


def mermaid(steps: tuple[Step, ...]) -> str:
    """Return the steps as a Mermaid flow chart, which GitHub and GitLab draw."""
    nodes = [f'    {step.name}["<b>{step.name}</b><br>{step.makes}"]' for step in steps]
    edges = [f"    {need} --> {step.name}" for step in steps for need in step.needs]
    return "\n".join(["flowchart TD", *nodes, *edges])
