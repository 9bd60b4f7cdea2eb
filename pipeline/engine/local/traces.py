"""What the engine leaves on the host, and how it is taken off again.

The engine shares the host's network, so that a registry or a mirror on a loopback port is
reached as it is from a shell. Its bridge and its firewall rules are therefore on the host, and
so are the control groups of its containers.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import re
import shlex
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_FORWARDING = Path("/proc/sys/net/ipv4/ip_forward")
_INTERFACES = Path("/sys/class/net")
_CGROUPS = Path("/sys/fs/cgroup")
_SHARED = ("CNI-FORWARD", "CNI-ADMIN")
"""Chains that all users of CNI plugins share."""


def routes(table: str) -> list[ipaddress.IPv4Network]:
    """Return the networks in `table`, which is written as /proc/net/route is."""
    found = []
    for line in table.splitlines()[1:]:
        fields = line.split()
        address, mask = (int.from_bytes(bytes.fromhex(fields[i])[::-1], "big") for i in (1, 7))
        if mask:  # the default route overlaps with everything
            found.append(ipaddress.IPv4Network((address, mask.bit_count())))
    return found


def free_range(taken: Iterable[ipaddress.IPv4Network]) -> str:
    """Return the first of our /16 networks that overlaps with none of `taken`, or the first."""
    ours = [ipaddress.IPv4Network(f"10.{second}.0.0/16") for second in range(213, 223)]
    taken = list(taken)
    free = [network for network in ours if not any(network.overlaps(t) for t in taken)]
    return str((free or ours)[0])


def host_routes() -> list[ipaddress.IPv4Network]:
    """Return the networks that this host has routes to."""
    return routes(Path("/proc/net/route").read_text())


def bridge(name: str) -> Path:
    """Return the folder of the bridge `name`0 in sysfs; it is there while the bridge is."""
    return _INTERFACES / f"{name}0"


def in_use(name: str) -> bool:
    """Say whether anything hangs on the bridge `name`0, as on that of each engine that runs."""
    return any(bridge(name).glob("brif/*"))


def range_of(root: Path, name: str) -> str:
    """Return the network of the bridge `name`0, as ``10.213.0.0/16``; without one, nobody's."""
    argv = ["ip", "-json", "-4", "address", "show", "dev", bridge(name).name]
    for found in json.loads(_run(root, *argv)):
        for it in found.get("addr_info", ()):
            ours = ipaddress.IPv4Network(f"{it['local']}/{it['prefixlen']}", strict=False)
            return str(ours)
    return "255.255.255.255/32"


def forwarding() -> str:
    """Return ``1`` where this host forwards packets between its networks, else ``0``."""
    return _FORWARDING.read_text().strip()


def leftovers(saved: str, name: str, cidr: str, keep: Sequence[str]) -> str:
    """Return iptables-restore's input that removes the rules of our network, or nothing.

    `saved` is iptables-save's output. Ours are the rules that name the network or an address in
    it, and the chains that only those lead to. The shared chains go too once they are empty,
    except those in `keep`, which were there before us.
    """
    ours = ipaddress.IPv4Network(cidr)
    script: list[str] = []
    for table, rules in _tables(saved):
        mine = [rule for rule in rules if _is_ours(rule, name, ours)]
        chains = {_target(rule) for rule in mine if re.fullmatch(r"CNI-[0-9a-f]+", _target(rule))}
        mine = [rule for rule in mine if rule.split()[1] not in chains]
        rest = [r for r in rules if r not in mine and r.split()[1] not in chains]
        if not any(rule.split()[1] in _SHARED and _target(rule) not in _SHARED for rule in rest):
            mine += [r for r in rest if _target(r) in _SHARED and _target(r) not in keep]
            present = {_target(rule) for rule in rest} & set(_SHARED)
            chains |= present - set(keep)
        if mine or chains:
            script += [f"*{table}", *(f"-D{rule[2:]}" for rule in mine)]
            script += [f"-F {chain}" for chain in sorted(chains)]
            script += [f"-X {chain}" for chain in sorted(chains)]
            script += ["COMMIT"]
    return "".join(f"{line}\n" for line in script)


def _tables(saved: str) -> list[tuple[str, list[str]]]:
    tables: list[tuple[str, list[str]]] = []
    for line in saved.splitlines():
        if line.startswith("*"):
            tables.append((line[1:], []))
        elif line.startswith("-A "):
            tables[-1][1].append(line)
    return tables


def _is_ours(rule: str, name: str, ours: ipaddress.IPv4Network) -> bool:
    words = shlex.split(rule)
    if any(f'name: "{name}"' in word for word in words):
        return True
    addresses = [words[i + 1] for i, word in enumerate(words) if word in ("-s", "-d")]
    return any(ipaddress.IPv4Network(address).subnet_of(ours) for address in addresses)


def _target(rule: str) -> str:
    words = rule.split()
    return words[words.index("-j") + 1] if "-j" in words else ""


def shared_chains(root: Path) -> list[str]:
    """Return which of the chains that CNI users share are on this host."""
    saved = _run(root, f"{_iptables()}-save", "-t", "filter")
    return [chain for chain in _SHARED if f":{chain} " in saved]


def clean(root: Path, name: str, cidr: str, keep: Sequence[str], forwarded: str) -> None:
    """Take off this host the bridge `name`0, its ports and firewall rules, and the cgroups `name`.

    `forwarded` is what :func:`forwarding` said before the engine started.
    """
    there = bridge(name)
    bridged = there.exists()
    if bridged:
        for port in [*(there / "brif").iterdir(), there]:
            _run(root, "ip", "link", "delete", port.name, check=False)  # may be ending by itself
    for table in ("nat", "filter"):
        saved = _run(root, f"{_iptables()}-save", "-t", table)
        if script := leftovers(saved, name, cidr, keep):
            _run(root, f"{_iptables()}-restore", "--noflush", text=script)
    # Another bridge needs forwarding and may have come after ours; without ours there was a reboot.
    others = any((interface / "bridge").exists() for interface in _INTERFACES.iterdir())
    if forwarded == "0" and bridged and not others:
        _FORWARDING.write_text("0")
    for top in (*_CGROUPS.glob(f"*/{name}"), *_CGROUPS.glob(name)):
        for group in sorted((top, *top.rglob("*/")), reverse=True):
            with contextlib.suppress(OSError):  # version 1 may give one folder several names
                group.rmdir()


def _iptables() -> str:
    """Return the variant that the engine picks on this host, by the same rule."""
    legacy = Path("/proc/net/ip_tables_names").exists()
    return "iptables-legacy" if legacy else "iptables-nft"


def _run(root: Path, *argv: str, text: str = "", check: bool = True) -> str:
    """Return what `argv` prints, run in the engine's root: the host may have no iptables."""
    enter = (
        'mount --rbind /proc "$0/proc"; mount --rbind /sys "$0/sys"; mount --rbind /run "$0/run"; '
        'exec chroot "$0" "$@"'
    )
    return subprocess.run(
        ["unshare", "--mount", "--propagation", "private", "sh", "-euc", enter, str(root), *argv],
        input=text,
        capture_output=True,
        text=True,
        check=check,
        env={"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
    ).stdout
