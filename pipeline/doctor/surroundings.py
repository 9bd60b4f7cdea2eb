"""Findings about what is around a build: room, proxies, certificates, logins, user, engine."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from pipeline.doctor import shell
from pipeline.doctor.finding import Finding, error, note, warning
from pipeline.host import room
from pipeline.host.machine import Machine
from pipeline.host.room import COMPILER, GB, Kind
from pipeline.settings import Settings
from pipeline.validate_source import compiles, kind

FREE_FOR_CACHE: Final = 0.2
"""The share of a disk that Dagger's engine keeps free, by throwing its cache away if it must."""

_PRUNE: Final = "docker system prune --all"  # it asks before it deletes

_LOCAL: Final = ("localhost", "127.")


def judge(machine: Machine, settings: Settings, *, simple: bool = False) -> Iterator[Finding]:
    """Yield what is wrong around a build."""
    yield from _engine(machine, settings)
    yield from _disk(machine, _kind(settings, simple=simple))
    if _kind(settings, simple=simple) == "compile":
        yield from _memory(machine, torch=_compiles_torch(settings))
    yield from _proxy(machine, settings)
    yield from _certificates(machine)
    yield from _registry(machine, settings)
    yield from _user(machine, settings)
    if machine.unread:
        yield note(
            "unread",
            f"not all could be looked at ({'; '.join(machine.unread)})",
            "what is wrong there is not said here",
            "python -m pipeline doctor --json > doctor.json",
        )


def _kind(settings: Settings, *, simple: bool) -> Kind:
    if simple:
        return "simple"
    return "compile" if compiles(settings) else "wheels"


def _compiles_torch(settings: Settings) -> bool:
    return kind(settings, "TORCH") != "index"


def serves(machine: Machine) -> bool:
    """Say whether Docker can run an engine, which wants containers with all privileges."""
    docker = machine.docker
    return docker is not None and bool(docker.server) and not docker.rootless and not docker.podman


def _engine(machine: Machine, settings: Settings) -> Iterator[Finding]:
    engine = machine.engine
    if engine is None:
        return
    ways = {
        "session": engine.session,
        "remote": engine.remote,
        "docker": serves(machine),
        "local": not engine.lacks,
    }
    if settings.engine != "auto" and not ways[settings.engine] and any(ways.values()):
        yield error(
            "engine-other",
            f"ENGINE={settings.engine} names an engine that cannot be used here",
            f"these could: {', '.join(way for way, usable in ways.items() if usable)}",
            "python -m pipeline build --engine auto",
            "https://docs.dagger.io/reference/container-runtimes/",
            stops="build",
        )
    if any(ways.values()):
        return
    lacks = "; ".join(f"{it.what}, which {it.why}" for it in engine.lacks)
    packages = sorted({it.package for it in engine.lacks if it.package})
    docker = machine.docker
    if all(it.package for it in engine.lacks):
        mend = shell.install(machine, apt=" ".join(packages))
    elif docker and docker.program and not docker.server and not docker.podman:
        mend = shell.start_docker(machine)
    else:
        mend = shell.GET_DOCKER
    rootless = " (Docker is rootless, and the engine needs a privileged container)"
    yield error(
        "engine-none",
        "nothing here can build an image",
        "no Dagger session, no remote engine, no Docker that could run one"
        + (rootless if docker and docker.rootless else "")
        + f"; the local engine lacks {lacks}",
        mend,
        "https://docs.dagger.io/reference/container-runtimes/",
        stops="build",
    )


def _disk(machine: Machine, what: Kind) -> Iterator[Finding]:
    used = {"engine", "here"} | ({"docker"} if serves(machine) else set())
    disks = [it for it in machine.disks if it.what in used]
    if not disks:
        return
    least = min(disks, key=lambda it: it.free + it.held)
    mend = (
        _PRUNE
        if least.what == "docker" or (serves(machine) and least.what == "here")
        else "python -m pipeline engine prune"
    )
    verdict = room.disk(what, least.free, least.held)
    if verdict != "fits":
        free = f"{least.free / GB:.0f} GB are free"
        if least.held:
            free += f", and {least.held / GB:.0f} GB are the local engine's"
        need = room.DISK[what]
        if verdict == "full":
            why = f"a first build of this kind takes {need.least / GB:.0f} GB at the very least"
            yield error("disk-full", free, why, mend, stops="build")
        else:
            why = f"a first build of this kind takes up to {need.usual / GB:.0f} GB"
            yield warning("disk-low", free, why, mend)
    own = next((it for it in disks if it.what == "docker"), None)
    if own and own.total and own.free < FREE_FOR_CACHE * own.total:
        yield warning(
            "cache-thrown-away",
            f"Docker's disk is {1 - own.free / own.total:.0%} full",
            f"Dagger's engine in Docker keeps {FREE_FOR_CACHE:.0%} free by throwing its cache "
            "away, and every build begins anew",
            _PRUNE,
            "https://github.com/dagger/dagger/pull/14181",
        )


def _memory(machine: Machine, *, torch: bool) -> Iterator[Finding]:
    memory = machine.memory + machine.swap
    verdict = room.memory(memory, torch=torch)
    if not machine.memory or verdict == "fits":
        return
    add = (
        "sudo fallocate -l 16G /swapfile && sudo chmod 600 /swapfile && sudo mkswap /swapfile "
        "&& sudo swapon /swapfile"
    )
    what = f"{memory / GB:.1f} GB of memory, swap included"
    why = f"one compiler of CUDA takes up to {COMPILER / GB:.1f} GB"
    source = "https://github.com/pytorch/pytorch/issues/124018"
    if verdict == "full":
        yield error("memory-none", what, f"{why}, and would be killed", add, source, stops="build")
    else:
        yield warning("memory-low", what, f"{why}, so files are compiled one by one", add, source)


def _proxy(machine: Machine, settings: Settings) -> Iterator[Finding]:
    proxies = {it: value for it, value in machine.proxies.items() if it != "no_proxy"}
    if not proxies:
        return
    here = {
        it: value
        for it, value in proxies.items()
        if value.rpartition("@")[2].removeprefix("http://").startswith(_LOCAL)
    }
    if here:
        name, value = next(iter(here.items()))
        yield warning(
            "proxy-here",
            f"{name} is {value}, a proxy on this machine itself",
            "in a container that address is the container's own, where no proxy listens",
            f'export {name}="http://$(hostname -I | cut -d" " -f1):{value.rpartition(":")[2]}"',
            "https://github.com/docker/for-win/issues/9400",
        )
    docker = machine.docker
    if docker and docker.server and not docker.proxied and not docker.podman:
        yield warning(
            "proxy-docker",
            f"{' and '.join(proxies)} are set, and Docker's daemon has no proxy",
            "what it pulls itself goes past the proxy, and times out behind a firewall",
            "sudo mkdir -p /etc/systemd/system/docker.service.d && printf "
            '\'[Service]\\nEnvironment="HTTP_PROXY=%s" "HTTPS_PROXY=%s" "NO_PROXY=%s"\\n\' '
            '"$http_proxy" "$https_proxy" "$no_proxy" '
            "| sudo tee /etc/systemd/system/docker.service.d/proxy.conf "
            f"&& sudo systemctl daemon-reload && {shell.RESTART}",
            "https://docs.docker.com/engine/daemon/proxy/",
        )
    past = machine.proxies.get("no_proxy", "")
    if settings.registry.startswith(_LOCAL) and not any(it in past for it in (*_LOCAL, "*")):
        yield error(
            "proxy-registry",
            f"{settings.registry} would be asked for through the proxy",
            "no_proxy does not except this machine",
            'export no_proxy="localhost,127.0.0.1,$no_proxy"',
            "https://docs.docker.com/engine/daemon/proxy/",
            stops="delivery",
        )


def _certificates(machine: Machine) -> Iterator[Finding]:
    by_kind = {
        kind: [name for name, it in machine.certificates.items() if it == kind]
        for kind in ("missing", "own")
    }
    if missing := by_kind["missing"]:
        yield error(
            "ca-missing",
            f"{' and '.join(missing)} name a file that does not exist",
            "no TLS connection can be checked, and so none is made",
            f"unset {' '.join(missing)}",
            "https://requests.readthedocs.io/en/latest/user/advanced/#ssl-cert-verification",
            stops="build",
        )
    # SSL_CERT_FILE is the one that the local engine takes over too.
    if own := [it for it in by_kind["own"] if it != "SSL_CERT_FILE"]:
        yield warning(
            "ca-own",
            f"{own[0]} names certificates outside the system's own",
            "builds and engines trust what the system trusts, and will refuse what they sign",
            f'sudo cp "${own[0]}" /usr/local/share/ca-certificates/own.crt '
            "&& sudo update-ca-certificates",
            "https://github.com/dagger/dagger/issues/6599",
        )


def _registry(machine: Machine, settings: Settings) -> Iterator[Finding]:
    logins = machine.logins
    if logins and not logins.helper_found:
        yield error(
            "login-helper",
            f"docker-credential-{logins.helper} is not on PATH",
            "Docker's config.json has it keep the passwords, and without it every pull and push "
            "fails, of public images too",
            "sed -i '/\"credsStore\"/d' ~/.docker/config.json",
            "https://github.com/docker/for-win/issues/12091",
            stops="delivery",
        )
    host = settings.registry.partition("/")[0]
    if not host:
        return
    said = machine.registry.error if machine.registry else ""
    if any(word in said.lower() for word in ("401", "403", "denied", "unauthorized")):
        yield error(
            "registry-denied",
            f"{host} does not let this user in",
            f"it says: {said}",
            f"docker login {host}",
            "https://docs.docker.com/reference/cli/docker/login/",
            stops="delivery",
        )
    elif said:
        yield error(
            "registry-away",
            f"{host} does not answer as a registry",
            f"asked for the image's tags, it says: {said}",
            # Of one elsewhere this shows whether name, proxy or certificate is at fault.
            f"docker run -d -p {host.partition(':')[2] or 80}:5000 registry:2"
            if host.startswith(_LOCAL)
            else f"curl -v https://{host}/v2/",
            "https://distribution.github.io/distribution/spec/api/",
            stops="delivery",
        )
    elif logins and not host.startswith(_LOCAL) and not _logged_in(host, logins.hosts):
        yield warning(
            "registry-login",
            f"there is no login for {host}",
            "most registries let nobody push without one",
            f"docker login {host}",
            "https://docs.docker.com/reference/cli/docker/login/",
        )


def _logged_in(host: str, hosts: tuple[str, ...]) -> bool:
    hub = {"docker.io", "index.docker.io"}
    return any(
        host == (known := it.removeprefix("https://").partition("/")[0]) or {host, known} <= hub
        for it in hosts
    )


def _user(machine: Machine, settings: Settings) -> Iterator[Finding]:
    wanted = {"UID": (settings.uid, machine.uid), "GID": (settings.gid, machine.gid)}
    other = {
        name: (given, has)
        for name, (given, has) in wanted.items()
        if given and has is not None and given != str(has)
    }
    if machine.uid == 0 and settings.add_user == "include" and settings.uid in {"", "0"}:
        yield note(
            "user-root",
            "this is root",
            "the container's user would be root as well, and what it writes into the project "
            "belongs to root",
            "echo ADD_USER=exclude >> .env",
        )
    elif other:
        name, (given, has) = next(iter(other.items()))
        yield warning(
            "user-differs",
            f"{name}={given}, and this user has {has}",
            "the container's user could not write into a project that belongs to this one; an .env "
            "that came from another machine has such ids",
            'sed -i "s/^UID=.*/UID=$(id -u)/; s/^GID=.*/GID=$(id -g)/" .env',
            "https://github.com/microsoft/vscode-remote-release/issues/9641",
        )
    unset = [it for it in machine.odd_names if not getattr(settings, it.lower())]
    if unset and settings.add_user == "include":
        yield note(
            "user-name",
            f"the name of this {'user' if unset[0] == 'USR' else 'group'} cannot be that of one in "
            "an image",
            "a directory service has names such as CORP\\jdoe, which Linux refuses",
            f"echo {unset[0]}=user >> .env",
        )
