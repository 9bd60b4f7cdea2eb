"""NVIDIA's PyTorch image of a month with the same shell, packages and entrypoint on top.

Its Python, torch and CUDA stay as they are: what is installed goes into a venv beside them.
"""

from __future__ import annotations

from collections.abc import Mapping

from dagger import Container, Directory

from pipeline.reqs import PIP_TRAIN
from pipeline.spec import ImageSpec
from pipeline.stages.finish import finish
from pipeline.stages.inputs import Inputs
from pipeline.stages.packages import VENV, apt_install, installer, python
from pipeline.stages.shell import prompt, shell

_REQS = "/mnt/reqs"
_CONSTRAINT = "PIP_CONSTRAINT"


def ngc(
    spec: ImageSpec, base: Container, inputs: Inputs, labels: Mapping[str, str]
) -> dict[str, Container | Directory]:
    """Return every stage of the ngc image above its base, the image last, all lazy."""
    # The base pins versions of its own, which those of our pip and npm are not.
    tools = installer(base.without_env_variable(_CONSTRAINT), spec, inputs)
    files = prompt(tools, inputs)
    with_shell = shell(base, spec, files)
    ready = apt_install(with_shell, spec.base, ["python3-venv", "tzdata"])
    with_apt = apt_install(ready, spec.base, spec.apt)
    with_pip = _pip_install(with_apt, spec, inputs)
    return {
        "installer": tools,
        "prompt": files,
        "shell": with_shell,
        "system": ready,
        "apt": with_apt,
        "pip": with_pip,
        "image": finish(with_pip, spec, labels),
    }


def _pip_install(container: Container, spec: ImageSpec, inputs: Inputs) -> Container:
    """Return the container with reqs/pip-train in a venv that sees the base's own packages.

    By pip and not by uv: pip takes what the base has already as installed, and obeys the
    constraints that the base names in its environment.
    """
    pip = [
        f"{VENV}/bin/pip", "install", "--no-cache-dir", "--no-input", "--progress-bar", "off",
        "--disable-pip-version-check", "--requirement", f"{_REQS}/{PIP_TRAIN}",
    ]  # fmt: skip
    project = f"{VENV}/lib/python{spec.python}/site-packages/project.pth"
    return (
        container.with_exec([python(spec), "-m", "venv", "--system-site-packages", VENV])
        .with_(inputs.network.for_packages)
        .with_mounted_directory(_REQS, inputs.pip_train)
        # As uv, pip takes a relative path from the folder that it runs in.
        .with_workdir(_REQS)
        .with_exec(pip)
        .without_workdir()
        .without_mount(_REQS)
        .with_(inputs.network.out_of)
        # PYTHONPATH may be the base's own.
        .with_new_file(project, f"{spec.project_root}\n")
        # As in the other images, pip of any user may install.
        .with_exec(["find", VENV, "-type", "d", "!", "-perm", "-g+w", "-exec", "chmod", "g+w", "{}",
                    "+"])
    )  # fmt: skip
