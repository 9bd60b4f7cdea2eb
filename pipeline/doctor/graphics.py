"""Findings about the driver and the GPUs, and about an image beside them."""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.compat import rules, tables
from pipeline.compat.tables import numbers
from pipeline.doctor import shell
from pipeline.doctor.finding import Finding, error, note, warning
from pipeline.doctor.fit import Advice, Subject, covers
from pipeline.host.machine import Machine, Nvidia
from pipeline.spec import Arch

MISMATCH = "https://github.com/NVIDIA/nvidia-container-toolkit/issues/394"
NOUVEAU = "https://github.com/mattshma/bigdata/issues/133"
NOT_LOADED = "https://github.com/NVIDIA/nvidia-docker/issues/365"
VANISHED = "https://github.com/NVIDIA/nvidia-container-toolkit/issues/48"
WSL = "https://docs.nvidia.com/cuda/wsl-user-guide/index.html"
WSL_DRIVER = "https://github.com/NVIDIA/nvidia-docker/issues/1508"
MIG = "https://docs.nvidia.com/datacenter/tesla/mig-user-guide/"
SECURE_BOOT = "https://github.com/acidanthera/bugtracker/issues/2237"
WSL_KERNEL = "5.10.16"
"""The oldest kernel of WSL 2 that NVIDIA's guide lets CUDA run on."""

_WSL_LIBRARY = "/usr/lib/wsl/"
_NO_GPU = "no NVIDIA GPU or driver answers here"


def judge(machine: Machine, subject: Subject | None, advice: Advice | None) -> Iterator[Finding]:
    """Yield what is wrong with the driver and the GPUs, or with the image for them."""
    if machine.cpu not in {"", "x86_64", "amd64"}:
        yield error(
            "not-amd64",
            f"this machine's processor is {machine.cpu}",
            "the images are linux/amd64: they run under emulation here, slowly and without the GPU",
            "docker run --privileged --rm tonistiigi/binfmt --install amd64",
            "https://github.com/pytorch/pytorch/issues/157139",
        )
    if machine.wsl == 1:
        yield error(
            "wsl-1",
            "this is WSL 1",
            "only WSL 2 has a kernel of its own, which Docker and the GPU need",
            'wsl.exe --set-version "$WSL_DISTRO_NAME" 2',
            "https://github.com/microsoft/WSL/issues/3847",
        )
        return
    nvidia = machine.nvidia
    if nvidia is None:
        return
    if machine.wsl:
        yield from _wsl(machine, nvidia)
    yield from _driver(machine, nvidia)
    yield from _mig(nvidia)
    if subject is not None and nvidia.gpus:
        yield from _image(machine, nvidia, subject, advice)


def _wsl(machine: Machine, nvidia: Nvidia) -> Iterator[Finding]:
    own = [it for it in nvidia.libraries if not it.startswith(_WSL_LIBRARY)]
    if own:
        yield error(
            "wsl-linux-driver",
            f"a Linux driver is installed inside WSL ({own[0]})",
            "the driver of WSL is that of Windows; a Linux one hides it, and CUDA finds no GPU",
            "sudo apt-get purge -y '^nvidia-.*' '^libnvidia-.*' '^cuda-drivers.*' "
            "&& wsl.exe --shutdown",
            WSL_DRIVER,
        )
    kernel = machine.kernel.partition("-")[0]
    if numbers(kernel) and numbers(kernel) < numbers(WSL_KERNEL):
        yield warning(
            "wsl-old",
            f"the kernel of WSL is {kernel}",
            f"NVIDIA supports CUDA in WSL from {WSL_KERNEL} on",
            "wsl.exe --update",
            WSL,
        )
    yield note(
        "wsl-memory",
        "WSL cannot share the host's IPC with a container",
        "data loaders pass tensors through shared memory, of which a container has 64 MB unless "
        "told otherwise",
        "docker run --rm -it --gpus all --shm-size 8g IMAGE",
        "https://github.com/cresset-template/cresset#known-issues",
    )


def _driver(machine: Machine, nvidia: Nvidia) -> Iterator[Finding]:
    """Yield the one reason why no GPU is there, if none is."""
    if nvidia.gpus:
        return
    said = f"{nvidia.error}\n{nvidia.smi}".lower()
    installed = bool(nvidia.smi or nvidia.libraries or nvidia.driver)
    if "version mismatch" in said:
        yield error(
            "driver-mismatch",
            "the driver in the kernel and its libraries are of different versions",
            "an update replaced the libraries while the old module stays loaded, and until it goes "
            "nothing reaches the GPU",
            "sudo reboot",
            MISMATCH,
        )
    elif machine.wsl:
        yield from _wsl_without(machine, nvidia, installed=installed)
    elif machine.container and "unknown error" in said:
        yield error(
            "gpu-vanished",
            "this container has lost its GPU",
            "systemd has read its units anew (`systemctl daemon-reload`, an update of any package) "
            "and taken from the container what it knew nothing of; only a restart brings it back",
            'docker restart "$(hostname)"',
            VANISHED,
        )
    elif "nouveau" in nvidia.modules:
        yield error(
            "nouveau",
            "nouveau drives the GPU",
            "CUDA needs NVIDIA's driver, which cannot load while the kernel's own has the GPU",
            "printf 'blacklist nouveau\\noptions nouveau modeset=0\\n' "
            "| sudo tee /etc/modprobe.d/blacklist-nouveau.conf && "
            + (
                "sudo dracut --force"
                if shell.family(machine) == "dnf"
                else "sudo update-initramfs -u"
            )
            + f" && {shell.driver(machine)}",
            NOUVEAU,
        )
    elif "insufficient permissions" in said:
        yield error(
            "gpu-denied",
            "this user may not open the GPU",
            "the driver's device files belong to a group that the user is not in",
            'sudo usermod -aG video,render "$USER"',
            "https://github.com/NVIDIA/nvidia-docker/issues/1608",
        )
    elif "gpu is lost" in said or "no devices were found" in said or nvidia.driver:
        yield error(
            "gpu-lost",
            "the driver is loaded, and finds no GPU",
            "it fell off the bus (heat, power, a fault), or was given to a virtual machine; "
            "`sudo dmesg | grep NVRM` tells which",
            "sudo reboot",
            "https://docs.nvidia.com/deploy/xid-errors/index.html",
        )
    elif installed and (nvidia.pci or nvidia.smi):
        yield from _not_loaded(machine)
    elif nvidia.pci:
        yield error(
            "driver-none",
            f"{nvidia.pci} NVIDIA GPU{'s' if nvidia.pci > 1 else ''} and no driver",
            "the image brings CUDA along, but the driver has to be the machine's own",
            shell.driver(machine),
            "https://docs.nvidia.com/datacenter/tesla/driver-installation-guide/",
        )
    else:
        yield _none()


def _none() -> Finding:
    return note(
        "gpu-none",
        _NO_GPU,
        "builds need none; name the GPU that will run the image, and its code is checked",
        "make plan CCA=8.6",
        "https://developer.nvidia.com/cuda-gpus",
    )


def _wsl_without(machine: Machine, nvidia: Nvidia, *, installed: bool) -> Iterator[Finding]:
    if not (installed or (machine.toolkit and machine.toolkit.version)):
        yield _none()
    elif not any(it.startswith(_WSL_LIBRARY) for it in nvidia.libraries):
        yield error(
            "wsl-no-driver",
            "Windows has no NVIDIA driver that WSL can use",
            "the driver of WSL is that of Windows, which puts libcuda.so into /usr/lib/wsl/lib",
            shell.driver(machine),
            WSL,
        )
    elif all(it.startswith(_WSL_LIBRARY) for it in nvidia.libraries):
        yield error(
            "wsl-driver-fails",
            "the NVIDIA driver of Windows does not answer in WSL",
            f"it says: {_first_line(nvidia)}; WSL or the driver has been updated without the other",
            "wsl.exe --update && wsl.exe --shutdown",
            "https://github.com/microsoft/WSL/issues/6925",
        )


def _first_line(nvidia: Nvidia) -> str:
    return next(iter(f"{nvidia.error}\n{nvidia.smi}".strip().splitlines()), "nothing")


def _not_loaded(machine: Machine) -> Iterator[Finding]:
    if machine.secure_boot:
        yield error(
            "secure-boot",
            "the NVIDIA driver is installed and not loaded, and Secure Boot is on",
            "the kernel refuses a module that is not signed by a key which the firmware knows; "
            "after the reboot the firmware asks whether to enrol it",
            "sudo mokutil --import /var/lib/dkms/mok.pub && sudo reboot",
            SECURE_BOOT,
        )
        return
    yield error(
        "driver-not-loaded",
        "the NVIDIA driver is installed and not loaded",
        "a new kernel has no module of it yet, or the module failed to build for it",
        "sudo dkms autoinstall && sudo modprobe nvidia",
        NOT_LOADED,
    )


def _mig(nvidia: Nvidia) -> Iterator[Finding]:
    if empty := [it.name for it in nvidia.gpus if it.mig == "empty"]:
        yield error(
            "mig-empty",
            f"{empty[0]} is in MIG mode and has no instance",
            "CUDA sees no device on it until it is cut up or made whole again",
            "sudo nvidia-smi -mig 0",
            MIG,
        )
    if cut := [it.name for it in nvidia.gpus if it.mig == "on"]:
        yield note(
            "mig",
            f"{cut[0]} is cut up by MIG",
            "a process uses one instance, however many a container has",
            "docker run --rm -it --gpus '\"device=0:0\"' IMAGE",
            MIG,
        )


def _image(
    machine: Machine, nvidia: Nvidia, subject: Subject, advice: Advice | None
) -> Iterator[Finding]:
    ways: dict[str, list[str]] = {"code": [], "ptx": [], "no": []}
    for gpu in nvidia.gpus:
        if gpu.capability:
            way = covers(subject, Arch.parse(gpu.capability))
            ways[way].append(f"{gpu.name} ({gpu.capability})")
    instead = advice.command if advice else "python -m pipeline build simple"
    if advice and advice.least_driver:
        instead = shell.driver(machine)
    has = " ".join(map(str, subject.arches))
    unserved = ", ".join(dict.fromkeys(ways["no"]))
    if unserved and (ways["code"] or ways["ptx"]):
        yield warning(
            "arch-some",
            f"{subject.name} has no code for {unserved}, and for the other GPUs it has",
            f"it has code for {has}; what runs on the wrong one says that no kernel image is "
            "available",
            instead,
            "https://github.com/pytorch/pytorch/blob/main/RELEASE.md",
        )
    elif unserved:
        yield error(
            "arch-missing",
            f"{subject.name} has no code for {unserved}",
            f"it has code for {has}, and CUDA would say that no kernel image is available",
            instead,
            "https://github.com/pytorch/pytorch/blob/main/RELEASE.md",
            stops="settings",
        )
    # What cannot run at all need not be judged for its driver too.
    if not (nvidia.driver and (ways["code"] or ways["ptx"] or not any(ways.values()))):
        return
    problem = rules.check_driver(subject.cuda, nvidia.driver, ptx=bool(ways["ptx"]))
    if problem:
        yield error(
            "driver-old",
            f"driver {nvidia.driver} is too old for CUDA {subject.cuda}",
            f"{problem.why}; a package for forward compatibility, which only GPUs of data centres "
            "can use, is not in the image",
            instead if advice else shell.driver(machine),
            problem.source,
            stops="settings",
        )
        return
    if ways["ptx"]:
        yield warning(
            "arch-jit",
            f"{subject.name} has only PTX for {', '.join(dict.fromkeys(ways['ptx']))}",
            "the driver compiles it at first use, which takes minutes and a folder to keep it in",
            instead,
            "https://developer.nvidia.com/blog/cuda-pro-tip-understand-fat-binaries-jit-caching/",
        )
    own = tables.cuda()[subject.cuda].driver if subject.cuda in tables.cuda() else ""
    if own and numbers(nvidia.driver) < numbers(own):
        yield note(
            "driver-minor",
            f"driver {nvidia.driver} is older than CUDA {subject.cuda}'s own, {own}",
            "minor-version compatibility lets it run all that is compiled, but no PTX",
            shell.driver(machine),
            rules.DRIVERS,
        )
