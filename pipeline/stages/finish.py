"""The last touch: time zone, environment, labels. Nothing is installed or compiled after it."""

from __future__ import annotations

from collections.abc import Mapping

from dagger import Container

from pipeline.spec import ImageSpec
from pipeline.stages.locked import let_go
from pipeline.stages.packages import OPENMP, VENV
from pipeline.stages.shell import ENTER
from pipeline.stages.torch import SOURCE

_INHERITED = "${PATH}"


def finish(container: Container, spec: ImageSpec, labels: Mapping[str, str]) -> Container:
    """Return the image: what `container` holds, ready to be started by anyone."""
    image = (
        let_go(container, spec.lock)
        .without_file("/etc/localtime")
        .with_symlink(f"/usr/share/zoneinfo/{spec.timezone}", "/etc/localtime")
        .with_new_file("/etc/timezone", f"{spec.timezone}\n")
        .with_workdir(SOURCE if spec.target == "devel" else spec.project_root)
        .with_entrypoint([ENTER])
        .with_default_args(["zsh"])
    )
    for name, value in environment(spec).items():
        image = image.with_env_variable(name, value, expand=_INHERITED in value)
    return with_labels(image, labels)


def with_labels(image: Container, labels: Mapping[str, str]) -> Container:
    """Return the image with the labels, and with the same as annotations of its manifest."""
    for name, value in labels.items():
        image = image.with_label(name, value).with_annotation(name, value)
    return image


def environment(spec: ImageSpec) -> dict[str, str]:
    """Return the variables of a container of this image."""
    if spec.target == "devel":
        # The toolchain has set all that a build reads.
        return {"LANG": "C.UTF-8", "TZ": spec.timezone}
    if spec.target == "ngc":
        # All else is the base's own, and so is the rest of PATH.
        return {
            "PATH": f"{VENV}/bin:{_INHERITED}",
            "VIRTUAL_ENV": VENV,
            "LANG": "C.UTF-8",
            "TZ": spec.timezone,
        }
    variables = {
        "PATH": f"{VENV}/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "VIRTUAL_ENV": VENV,
        "PYTHONPATH": spec.project_root,
        "LANG": "C.UTF-8",
        "LC_ALL": "C.UTF-8",
        "TZ": spec.timezone,
    }
    if spec.torch is None:
        return variables
    preload = ["libjemalloc.so.2"]
    if spec.mkl:
        # MKL's threads and torch's own then share Intel's OpenMP pool; it also serves GNU's
        # entry points, which the wheels are linked to.
        preload.append(OPENMP)
        variables["KMP_BLOCKTIME"] = "0"
    return variables | {
        "LD_PRELOAD": ":".join(preload),
        "MALLOC_CONF": "background_thread:true,metadata_thp:auto,"
        "dirty_decay_ms:30000,muzzy_decay_ms:30000",
        # The container toolkit gives a container no GPU and no library unless these ask for them.
        "NVIDIA_VISIBLE_DEVICES": "all",
        "NVIDIA_DRIVER_CAPABILITIES": "compute,utility",
    }
