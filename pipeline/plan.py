"""The order of the work for one image, and its picture: what needs what, before anything runs."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.spec import ImageSpec


@dataclass(frozen=True)
class Step:
    """One stage of the build: what it makes, and which steps it needs."""

    name: str
    makes: str
    needs: tuple[str, ...] = ()


def plan(spec: ImageSpec) -> tuple[Step, ...]:
    """Return the steps that build, check and deliver the image, each after those it needs."""
    source = (
        "image" if spec.base.source == "auto" and not spec.base.can_bootstrap else spec.base.source
    )
    base = f"{spec.base.distribution} {spec.base.version} from {_SOURCES[source]}"
    python = f"Python {spec.python}, certificates, time zones, jemalloc"
    steps = [
        Step("base", base),
        Step("installer", "pinned pip and uv, thrown away after", ("base",)),
        # Only a Python that is not the distribution's own comes by uv.
        Step(
            "system", python, ("base",) if spec.python_from_distribution else ("base", "installer")
        ),
    ]
    below_apt = "system"
    if spec.torch is not None:
        torch = f"torch {spec.torch.version} and torchvision {spec.torch.vision}"
        steps += [
            Step("wheels", f"wheels for CUDA {spec.torch.cuda}", ("installer",)),
            Step("torch", torch, ("system", "installer", "wheels")),
        ]
        below_apt = "torch"
    return (
        *steps,
        Step("apt", f"{len(spec.apt)} packages of reqs/apt-train", (below_apt,)),
        Step("pip", "packages of reqs/pip-train", ("apt", "installer")),
        Step("image", "time zone, environment, labels", ("pip",)),
        Step("verify", "checks made inside the image", ("image",)),
        Step("deliver", "registry, Docker, or a file in dist/", ("image", "verify")),
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
