"""The engine's own root file system: a small Debian, and what is laid into it at each start."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.engine.local import places
from pipeline.errors import EngineError
from pipeline.host import ca

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pipeline.engine.local.places import Say

SUITE = "bookworm"
PACKAGES = (
    "ca-certificates",
    "containernetworking-plugins",
    "dnsmasq-base",
    "git",
    "iproute2",
    "iptables",
    "runc",
)
CNI_PLUGINS = "/usr/lib/cni"
"""Where Debian keeps the plugins; build.py puts Dagger's DNS plugin there too."""

# The engine picks the variant that the kernel serves and links it as /usr/bin/iptables. It looks
# for both in /usr/bin, and Debian's own choice in /usr/sbin must not be found before its pick.
_XTABLES = ("xtables-legacy-multi", "xtables-nft-multi")
_ALTERNATIVES = tuple(
    f"{family}{verb}" for family in ("iptables", "ip6tables") for verb in ("", "-save", "-restore")
)

# The engine's name server would listen on port 53 of every address of the host, where another
# (systemd-resolved, libvirt, a second engine) may listen on its own: ours keeps to its bridge.
_DNSMASQ = """#!/bin/sh
exec /usr/sbin/dnsmasq --bind-dynamic "$@"
"""

GIB = 1 << 30


def place() -> Path:
    """Return the root file system's folder, be it there or not."""
    recipe = repr((SUITE, PACKAGES, _XTABLES, _ALTERNATIVES, _DNSMASQ))
    return places.cache() / f"root-{places.digest(recipe.encode())}"


def made() -> Path | None:
    """Return the root file system's folder, None where it is not made."""
    folder = place()
    return folder if folder.exists() else None


def root(say: Say) -> Path:
    """Return the root file system's folder, made first if need be: 20 seconds, 300 MB.

    EngineError where mmdebstrap fails; the log is named in it.
    """
    if folder := made():
        return folder
    folder = place()
    lock = places.cache() / "lock"
    with places.locked(lock, lambda: say("waiting: another process builds the engine")):
        if folder.exists():
            return folder
        with places.under_construction(folder) as draft:
            places.work("making the engine's root file system", bootstrap(draft), say)
            for variant in _XTABLES:
                (draft / "usr/bin" / variant).symlink_to(f"../sbin/{variant}")
            for link in _ALTERNATIVES:
                (draft / "usr/sbin" / link).unlink()
            dnsmasq = draft / "usr/local/bin/dnsmasq"
            dnsmasq.write_text(_DNSMASQ)
            dnsmasq.chmod(0o755)
        return folder


def bootstrap(target: Path) -> list[str]:
    """Return the mmdebstrap command for `target`: this machine's own mirrors and proxies."""
    return [
        "mmdebstrap",
        "--variant=minbase",
        f"--include={','.join(PACKAGES)}",
        *(f"--aptopt={option}" for option in proxies(_ask("apt-config", "dump"))),
        SUITE,
        str(target),
        *mirrors(_ask("apt-get", "indextargets", "--format", _TARGET, "Created-By: Packages")),
    ]


_TARGET = "$(ORIGIN)|$(REPO_URI)|$(CODENAME)|$(COMPONENT)"


def mirrors(targets: str) -> list[str]:
    """Return a ``deb`` line for each of apt's index targets that serves our Debian release."""
    lines = []
    for target in targets.splitlines():
        origin, uri, codename, component = target.split("|")
        if origin == "Debian" and codename.split("-")[0] == SUITE:
            lines.append(f"deb {uri} {codename} {component}")
    # Updates alone make no system: without the release itself, the tool's own default serves.
    return lines if any(f" {SUITE} " in line for line in lines) else []


def proxies(config: str) -> list[str]:
    """Return the lines of apt's configuration that name a proxy."""
    return [line for line in config.splitlines() if re.match(r'Acquire::\S*Proxy\S* "[^"]', line)]


def _ask(*argv: str) -> str:
    try:
        return subprocess.run(argv, capture_output=True, text=True, check=False).stdout
    except FileNotFoundError:  # not a Debian: the tool's default serves
        return ""


def storage(total: int, free: int, used: int) -> dict[str, int]:
    """Return the engine's garbage collection limits in bytes.

    `total` and `free` are the disk's, `used` is what the engine holds already. The engine's own
    defaults are shares of the whole disk, and throw the cache away on a disk that is well filled.
    """
    budget = min(free + used, total)
    spare = min(max(budget // 10, GIB), 20 * GIB)
    most = max(budget - spare, GIB)
    return {"maxUsedSpace": most, "reservedSpace": most // 4, "minFreeSpace": spare}


def configuration(limits: Mapping[str, int], own: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of engine.json; `own` is the user's and wins, key by key."""
    return {
        "logLevel": "info",
        # The engine's default policies drop cache volumes (ccache, uv, pip) that nobody used for
        # two days, whatever room there is. Ours go by room alone.
        "gc": {"policies": [dict(limits), {"all": True, **limits}]},
        **own,
    }


def users_configuration() -> dict[str, Any]:
    """Return the engine.json that the user wrote, where Dagger documents it, or nothing.

    EngineError where it is not JSON.
    """
    file = _dagger_folder() / "engine.json"
    try:
        own = json.loads(file.read_text())
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise EngineError(f"{file} is not JSON", why=str(error), next_step="mend it") from error
    return dict(own)


def _dagger_folder() -> Path:
    config = os.environ.get("XDG_CONFIG_HOME") or "~/.config"
    return Path(config).expanduser() / "dagger"


def authorities(root: Path) -> dict[str, str]:
    """Return name and PEM of the certificates that this machine trusts and a Debian does not."""
    files = [
        Path(os.environ.get("SSL_CERT_FILE") or "/etc/ssl/certs/ca-certificates.crt"),
        Path("/etc/ssl/certs/ca-certificates.crt"),
        *sorted(Path("/usr/local/share/ca-certificates").rglob("*.crt")),
        *sorted((_dagger_folder() / "ca-certificates").glob("*")),
    ]
    public = [
        root / "etc/ssl/certs/ca-certificates.crt",
        # The same package in another version: what only this machine's has is public all the same.
        *Path("/usr/share/ca-certificates/mozilla").glob("*.crt"),
    ]
    # Only these are handed on: the engine installs them into every container that it runs.
    return ca.private(ca.texts(files), "".join(ca.texts(public)))
