"""Findings about Docker, Compose, Podman and NVIDIA's container toolkit."""

from __future__ import annotations

import re
from collections.abc import Iterator

from pipeline.compat.tables import numbers
from pipeline.doctor import shell
from pipeline.doctor.finding import Finding, error, note, warning
from pipeline.host.machine import Docker, Machine, Toolkit
from pipeline.settings import Settings

GUIDE = (
    "https://docs.nvidia.com/datacenter/cloud-native/container-toolkit/latest/install-guide.html"
)
VANISHING = "https://github.com/NVIDIA/nvidia-container-toolkit/issues/48"
COMPOSE_EOL = "https://github.com/FusionAuth/fusionauth-site/pull/2310"

BAD_COMPOSE = {
    "2.3.4": ("its terminals are broken", "https://github.com/docker/compose/issues/9315"),
    "2.27.1": ("it ignores --env-file", "https://github.com/docker/compose/issues/11906"),
    "2.32.0": (
        "it has a regression for which 2.32.1 was made within days",
        "https://github.com/docker/compose/issues/12383",
    ),
}
"""Releases of Compose that fail at what any project does."""

BAD_TOOLKIT = {
    "1.17.0": (
        "devices cannot be injected by CDI",
        "https://github.com/cncf-tags/container-device-interface/issues/239",
    ),
}
BAD_TOOLKIT_ROOTLESS = {
    "1.14.0": (
        "it does not read no-cgroups, without which rootless Docker cannot start it",
        "https://github.com/NVIDIA/nvidia-container-toolkit/issues/106",
    ),
    "1.18.0": (
        "rootless Docker cannot start it",
        "https://github.com/NVIDIA/nvidia-container-toolkit/issues/1487",
    ),
}
SAFE_TOOLKIT = "1.17.8"
"""The first without CVE-2025-23266 and CVE-2024-0132, by which an image takes over its host."""


def older(version: str, than: str) -> bool:
    """Say whether a version, as far as its numbers go, is known and older than another."""
    found = re.match(r"\d+(\.\d+)*", version)
    return found is not None and numbers(found[0]) < numbers(than)


def has_gpu(machine: Machine) -> bool:
    """Say whether there is a GPU for a container to be given."""
    nvidia = machine.nvidia
    return nvidia is not None and bool(nvidia.gpus or nvidia.pci or nvidia.smi)


def judge(machine: Machine, settings: Settings) -> Iterator[Finding]:
    """Yield what is wrong with that which runs containers."""
    docker = machine.docker
    if docker is None or machine.wsl == 1:
        return
    if docker.podman or (machine.podman and not docker.program):
        yield from _podman(machine)
        return
    if not docker.server:
        yield from _absent(machine, docker)
    else:
        yield from _server(machine, docker, settings)
        yield from _gpu(machine, docker)
    if docker.program:
        yield from _compose(machine)


def _absent(machine: Machine, docker: Docker) -> Iterator[Finding]:
    """Yield why no daemon answers: an error where there is a GPU to run an image on."""
    finding = error if has_gpu(machine) else warning
    said = docker.error.lower()
    if not docker.program:
        yield finding(
            "docker-none",
            "Docker is not installed",
            "an image can be built without it, and goes into a file, but nothing here runs it",
            shell.GET_DOCKER,
            "https://docs.docker.com/engine/install/",
        )
    elif "permission denied" in said:
        join = "newgrp docker" if docker.member else 'sudo usermod -aG docker "$USER"'
        yield error(
            "docker-denied",
            "this user may not speak to Docker's daemon",
            "its socket belongs to the group docker, which this session is not in"
            + (" yet" if docker.member else ""),
            join if docker.member else f"{join} && newgrp docker",
            "https://docs.docker.com/engine/install/linux-postinstall/",
        )
    elif "client version" in said and "too old" in said:
        yield error(
            "docker-client-old",
            f"Docker's client {docker.client} is too old for its daemon",
            f"the daemon says: {docker.error}",
            shell.install(machine, apt="docker-ce-cli"),
            "https://github.com/distribution/distribution-library-image/issues/193",
        )
    elif not docker.daemon and docker.context in {"", "default"}:
        yield finding(
            "docker-client-only",
            "Docker's client is installed, and its daemon is not",
            f"the client says: {docker.error}; an image can be built without it, and goes into a "
            "file, but nothing here runs it",
            shell.GET_DOCKER,
            "https://docs.docker.com/engine/install/",
        )
    else:
        elsewhere = docker.context not in {"", "default"}
        yield finding(
            "docker-down",
            "Docker's daemon does not answer"
            + (f", by the context {docker.context}" if elsewhere else ""),
            f"the client says: {docker.error}; an image can be built by the local engine, but "
            "nothing here runs it",
            "docker context use default" if elsewhere else shell.start_docker(machine),
            "https://docs.docker.com/engine/daemon/troubleshoot/",
        )


def _server(machine: Machine, docker: Docker, settings: Settings) -> Iterator[Finding]:
    if older(docker.api, docker.least_api):
        yield error(
            "docker-client-old",
            f"Docker's client {docker.client} is too old for its daemon {docker.server}",
            f"it speaks API {docker.api}, and the daemon from {docker.least_api} on",
            shell.install(machine, apt="docker-ce-cli"),
            "https://github.com/distribution/distribution-library-image/issues/193",
        )
    if older(docker.client, "19.03") or older(docker.server, "19.03"):
        yield error(
            "docker-no-gpus",
            f"Docker does not know --gpus: its client is {docker.client or '?'}, its daemon "
            f"{docker.server}",
            "19.03 brought it, to both of them",
            shell.GET_DOCKER,
            "https://github.com/NVIDIA/nvidia-docker/issues/1199",
        )
    elif older(docker.server, "20.10"):
        yield warning(
            "docker-old",
            f"Docker {docker.server} is older than 20.10",
            "Compose V2 ends without a word on it",
            shell.GET_DOCKER,
            "https://github.com/cresset-template/cresset#known-issues",
        )
    if settings.compression == "zstd" and older(docker.server, "23"):
        yield error(
            "docker-no-zstd",
            f"Docker {docker.server} cannot pull layers compressed by zstd",
            "23.0 can, and COMPRESSION=zstd asks for them",
            "make build COMPRESSION=gzip",
            "https://github.com/blakeblackshear/frigate/pull/7308",
            stops="settings",
        )


def _gpu(machine: Machine, docker: Docker) -> Iterator[Finding]:
    """Yield why a container gets no GPU, or loses it; nothing where there is none to get."""
    if not has_gpu(machine):
        return
    if docker.remote:
        yield note(
            "docker-remote",
            "Docker's daemon is on another machine",
            "containers get that machine's GPU, of which nothing is said here",
            "docker context use default",
            "https://docs.docker.com/engine/manage-resources/contexts/",
        )
        return
    desktop = "docker desktop" in docker.system.lower()
    if desktop and machine.wsl:
        return  # it has a toolkit of its own there
    if desktop or docker.context == "desktop-linux":
        yield error(
            "docker-desktop",
            "containers run in Docker Desktop's virtual machine",
            "on Linux the GPU is not given to it, and the toolkit does not serve it",
            f"docker context use default || {shell.GET_DOCKER}",
            "https://github.com/NVIDIA/nvidia-container-toolkit/issues/814",
        )
        return
    toolkit = machine.toolkit or Toolkit()
    registered = "nvidia" in docker.runtimes or _injects(docker, toolkit)
    if "/snap/" in docker.program or docker.root.startswith("/var/snap/"):
        if not registered:
            yield error(
                "docker-snap",
                "Docker is a snap, and has no nvidia runtime",
                "a snap does not see the toolkit of the system",
                f"sudo snap remove --purge docker && {shell.GET_DOCKER}",
                "https://github.com/NVIDIA/nvidia-container-toolkit/issues/522",
            )
        return
    if machine.toolkit is None:
        return
    if toolkit.daemon_json:
        yield error(
            "daemon-json",
            "/etc/docker/daemon.json is not JSON",
            f"Docker will not start again with it: {toolkit.daemon_json}",
            "sudo mv /etc/docker/daemon.json /etc/docker/daemon.json.bad && sudo nvidia-ctk "
            f"runtime configure --runtime=docker && {shell.RESTART}",
            "https://docs.docker.com/engine/daemon/troubleshoot/",
        )
    elif not (toolkit.version or registered):
        yield error(
            "toolkit-none",
            "NVIDIA's container toolkit is not installed",
            'Docker could not select device driver "" with capabilities: [[gpu]]',
            shell.toolkit(machine),
            GUIDE,
        )
    elif not registered and "nvidia" in toolkit.runtimes:
        yield error(
            "docker-restart",
            "Docker has not read its daemon.json since the nvidia runtime was put there",
            "the runtime is unknown to it until it starts anew",
            _restart(docker),
            "https://github.com/NVIDIA/nvidia-container-toolkit/issues/378",
        )
    elif not registered:
        yield error(
            "toolkit-unconfigured",
            "the container toolkit is installed, and Docker was not told of it",
            "`docker info` names no nvidia runtime and no CDI device",
            _configure(docker),
            GUIDE,
        )
    yield from _toolkit(machine, docker, toolkit)


def _injects(docker: Docker, toolkit: Toolkit) -> bool:
    """Say whether Docker has the GPU as a CDI device; before 28.3 it has no list of those."""
    listed = any(it.startswith("nvidia.com/gpu") for it in docker.cdi_devices)
    return listed or bool(docker.cdi_folders and toolkit.specs)


def _restart(docker: Docker) -> str:
    return "systemctl --user restart docker" if docker.rootless else shell.RESTART


def _configure(docker: Docker) -> str:
    if not docker.rootless:
        return shell.CONFIGURE
    config = "$HOME/.config/docker/daemon.json"
    return f"nvidia-ctk runtime configure --runtime=docker --config={config} && {_restart(docker)}"


def _toolkit(machine: Machine, docker: Docker, toolkit: Toolkit) -> Iterator[Finding]:
    bad = BAD_TOOLKIT | (BAD_TOOLKIT_ROOTLESS if docker.rootless else {})
    if toolkit.version in bad:
        why, source = bad[toolkit.version]
        yield error(
            "toolkit-bad",
            f"version {toolkit.version} of the container toolkit is a bad one",
            why,
            _update(machine),
            source,
        )
    elif docker.cgroup_version == "2" and older(toolkit.version, "1.8"):
        yield error(
            "toolkit-no-cgroup-2",
            f"version {toolkit.version} of the container toolkit knows no cgroup v2",
            "1.8.0 brought it, and this machine has no other",
            _update(machine),
            "https://github.com/pop-os/beta/issues/289",
        )
    elif older(toolkit.version, SAFE_TOOLKIT):
        yield warning(
            "toolkit-unsafe",
            f"version {toolkit.version} of the container toolkit has known holes",
            f"before {SAFE_TOOLKIT} an image could take over the machine that runs it",
            _update(machine),
            "https://nvidia.custhelp.com/app/answers/detail/a_id/5659",
        )
    if docker.rootless and not (toolkit.no_cgroups or _injects(docker, toolkit)):
        yield error(
            "rootless-cgroups",
            "Docker is rootless, and the toolkit is to set up cgroups",
            "only root may: bpf_prog_query(BPF_CGROUP_DEVICE) failed: operation not permitted",
            "sudo nvidia-ctk config --set nvidia-container-cli.no-cgroups --in-place",
            "https://github.com/NVIDIA/libnvidia-container/issues/154",
        )
    if toolkit.no_cgroups and not docker.rootless and not _injects(docker, toolkit):
        yield error(
            "no-cgroups",
            "the toolkit's config.toml has no-cgroups = true, and Docker runs as root",
            "the container may not open the GPU then: Failed to initialize NVML: Unknown Error",
            "sudo nvidia-ctk config --set nvidia-container-cli.no-cgroups=false --in-place",
            "https://github.com/NVIDIA/nvidia-container-toolkit/issues/381",
        )
    yield from _cdi(machine, docker, toolkit)


def _update(machine: Machine) -> str:
    return shell.install(machine, apt="nvidia-container-toolkit")


def _cdi(machine: Machine, docker: Docker, toolkit: Toolkit) -> Iterator[Finding]:
    driver = machine.nvidia.driver if machine.nvidia else ""
    stale = [it for it in toolkit.specs if it.driver and driver and it.driver != driver]
    if stale:
        yield error(
            "cdi-stale",
            f"{stale[0].path} is made for driver {stale[0].driver}, and this one is {driver}",
            "it names libraries that went with the old driver, so no container with it starts",
            f"sudo nvidia-ctk cdi generate --output={stale[0].path}",
            "https://github.com/HaveAGitGat/Tdarr/issues/1423",
        )
    if toolkit.specs and not docker.cdi_folders and not older(docker.server, "25"):
        if not older(docker.server, "28.2"):
            return  # on by itself; an info that says nothing of it is an old client's
        yield note(
            "cdi-off",
            f"there is a CDI specification, and Docker {docker.server} does not look at it",
            "it has CDI since 25.0, switched on by itself only since 28.2",
            f"sudo nvidia-ctk runtime configure --runtime=docker --cdi.enabled && {shell.RESTART}",
            "https://github.com/docker/docs/issues/22926",
        )
    if docker.cgroup_driver == "systemd" and not machine.wsl and not docker.rootless:
        if _injects(docker, toolkit) or not (toolkit.version or "nvidia" in docker.runtimes):
            return
        yield warning(
            "gpu-vanishes",
            "running containers will lose the GPU when systemd reads its units anew",
            "systemd has the cgroups and knows nothing of devices that the toolkit's hook adds: "
            "after `systemctl daemon-reload`, which updates of packages run, a container says "
            "Failed to initialize NVML: Unknown Error; devices by CDI stay",
            _by_cdi(docker),
            VANISHING,
        )


def _by_cdi(docker: Docker) -> str:
    """Return what makes the GPU a CDI device, which Docker has to be asked for where it is old."""
    if older(docker.server, "25"):
        return f"{shell.GET_DOCKER} && {shell.CDI} && {shell.RESTART}"
    if older(docker.server, "28.2"):
        on = "sudo nvidia-ctk runtime configure --runtime=docker --cdi.enabled"
        return f"{shell.CDI} && {on} && {shell.RESTART}"
    return f"{shell.CDI} && {shell.RESTART}"


def _podman(machine: Machine) -> Iterator[Finding]:
    version = machine.podman or (machine.docker.client if machine.docker else "")
    if not has_gpu(machine):
        return
    if older(version, "4.1"):
        yield error(
            "podman-old",
            f"Podman {version} has no CDI",
            "its --gpus does nothing, and devices by CDI came with 4.1",
            shell.install(machine, apt="podman"),
            "https://github.com/NVIDIA/nvidia-container-toolkit/issues/63",
        )
        return
    toolkit = machine.toolkit
    if toolkit is None:
        return
    if not toolkit.specs:
        make = shell.CDI
        if not toolkit.version:
            make = f"{shell.toolkit(machine).removesuffix(f' && {shell.CONFIGURE}')} && {make}"
        yield error(
            "cdi-none",
            "there is no CDI specification of the GPU",
            "Podman gives a GPU to a container by CDI alone: unresolvable CDI devices "
            "nvidia.com/gpu=all",
            make,
            "https://github.com/NVIDIA/nvidia-container-toolkit/issues/146",
        )
    yield from (it for it in _cdi(machine, Docker(), toolkit) if it.id == "cdi-stale")
    yield note(
        "podman",
        "containers are run by Podman",
        "its --gpus is there for form's sake; the GPU comes as a device",
        "podman run --rm -it --device nvidia.com/gpu=all --security-opt label=disable IMAGE",
        "https://github.com/NVIDIA/nvidia-container-runtime/issues/190",
    )


def _compose(machine: Machine) -> Iterator[Finding]:
    compose = machine.compose
    if compose is None:
        return
    get = shell.compose(machine)
    # The program of the old name may be the new one.
    old = compose.old if older(compose.old, "2") else ""
    version = compose.plugin or (compose.old if not old else "")
    if not version:
        yield warning(
            "compose-1" if old else "compose-none",
            f"only docker-compose {old} is here" if old else "Docker has no Compose",
            "Compose V1 gets no updates since July 2023 and does not read today's files"
            if old
            else "the services that start an image with your project in it are Compose's",
            get,
            COMPOSE_EOL if old else "https://docs.docker.com/compose/install/linux/",
        )
        return
    bad = BAD_COMPOSE.get(version)
    if bad:
        yield warning("compose-bad", f"Compose {version} is a bad release", bad[0], get, bad[1])
    if older(version, "2.30") and has_gpu(machine):
        yield warning(
            "compose-no-gpus",
            f"Compose {version} does not know gpus:",
            "2.30 brought it; a file that has it is refused as a whole",
            get,
            "https://github.com/NVIDIA-AI-Blueprints/Multi-Agent-Intelligent-Warehouse/pull/68",
        )
