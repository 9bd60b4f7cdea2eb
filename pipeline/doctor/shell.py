"""Commands that mend, in the words of a machine's own distribution."""

from __future__ import annotations

from typing import Final

from pipeline.host.machine import Machine

RESTART: Final = "sudo systemctl restart docker"
CONFIGURE: Final = f"sudo nvidia-ctk runtime configure --runtime=docker && {RESTART}"
CDI: Final = "sudo mkdir -p /etc/cdi && sudo nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml"
GET_DOCKER: Final = "curl -fsSL https://get.docker.com | sudo sh"
_KEYRING: Final = "/usr/share/keyrings/nvidia-container-toolkit-keyring.gpg"
_TOOLKIT: Final = "https://nvidia.github.io/libnvidia-container"


def family(machine: Machine) -> str:
    """Return the package manager that a distribution has: apt, dnf, zypper or pacman."""
    words = {machine.system, *machine.like.split()}
    if words & {"fedora", "rhel", "centos", "rocky", "almalinux", "amzn", "ol"}:
        return "dnf"
    if words & {"suse", "opensuse", "sles", "opensuse-leap", "opensuse-tumbleweed"}:
        return "zypper"
    return "pacman" if words & {"arch", "manjaro"} else "apt"


def install(machine: Machine, **packages: str) -> str:
    """Return the command that installs packages, which are named by family; apt's where one is not.

    apt reads its lists anew, since a machine that nobody has touched for long has old ones.
    """
    kind = family(machine)
    names = packages.get(kind, packages["apt"])
    return {
        "apt": f"sudo apt-get update && sudo apt-get install -y {names}",
        "dnf": f"sudo dnf install -y {names}",
        "zypper": f"sudo zypper install -y {names}",
        "pacman": f"sudo pacman -S --noconfirm {names}",
    }[kind]


def toolkit(machine: Machine) -> str:
    """Return what installs the container toolkit from NVIDIA's repository and tells Docker of it.

    The steps of NVIDIA's install guide.
    """
    kind = family(machine)
    if kind == "pacman":
        source = "sudo pacman -S --noconfirm nvidia-container-toolkit"
    elif kind == "dnf":
        source = (
            f"curl -fsSL {_TOOLKIT}/stable/rpm/nvidia-container-toolkit.repo "
            "| sudo tee /etc/yum.repos.d/nvidia-container-toolkit.repo "
            "&& sudo dnf install -y nvidia-container-toolkit"
        )
    elif kind == "zypper":
        source = (
            f"sudo zypper addrepo {_TOOLKIT}/stable/rpm/nvidia-container-toolkit.repo "
            "&& sudo zypper --gpg-auto-import-keys install -y nvidia-container-toolkit"
        )
    else:
        source = (
            f"curl -fsSL {_TOOLKIT}/gpgkey | sudo gpg --dearmor -o {_KEYRING} "
            f"&& curl -fsSL {_TOOLKIT}/stable/deb/nvidia-container-toolkit.list "
            f"| sed 's#deb https://#deb [signed-by={_KEYRING}] https://#g' "
            "| sudo tee /etc/apt/sources.list.d/nvidia-container-toolkit.list "
            "&& sudo apt-get update && sudo apt-get install -y nvidia-container-toolkit"
        )
    return f"{source} && {CONFIGURE}"


def driver(machine: Machine) -> str:
    """Return what installs, or brings up to date, the NVIDIA driver."""
    if machine.wsl:
        return "explorer.exe https://www.nvidia.com/drivers"
    if machine.system == "ubuntu" or "ubuntu" in machine.like.split():
        return "sudo ubuntu-drivers install && sudo reboot"
    packages = install(
        machine,
        apt="nvidia-driver",
        dnf="akmod-nvidia" if machine.system == "fedora" else "nvidia-driver-cuda",
        zypper="nvidia-open-driver-G06-signed-kmp-default",
        pacman="nvidia-open",
    )
    return f"{packages} && sudo reboot"


def start_docker(machine: Machine) -> str:
    """Return what starts Docker's daemon."""
    # WSL has systemd only where its wsl.conf says so, and a container mostly has none.
    return "sudo systemctl start docker" if machine.systemd else "sudo service docker start"


def compose(machine: Machine) -> str:
    """Return what gives this user Compose V2 as a plugin of Docker's client.

    Packages differ by where Docker came from, and those of distributions are often older than the
    one that knows ``gpus:``; a user's own plugin goes before the system's.
    """
    has_docker = machine.docker is not None and machine.docker.daemon
    return "python -m pipeline install-compose --force" if has_docker else GET_DOCKER
