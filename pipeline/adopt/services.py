"""Services of the original: what ours offer of them, and what goes into the override.

Pure: the original's services in, items and the content of ``docker-compose.override.yaml`` out.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from pipeline.adopt.original import Original, expanded
from pipeline.adopt.report import Fate, Item
from pipeline.settings import ALIASES, NAMES, RETIRED

ALL: Final = ("train", "full", "devel", "simple", "ngc")
"""Our services; full is train."""
OVERRIDE: Final = "docker-compose.override.yaml"
_COMPOSE: Final = "compose/compose.yaml"

_TRAIN: Final = ("train", "full")
_BECOMES: Final[Mapping[str, tuple[str, ...]]] = {
    "base": ALL, "train": _TRAIN, "full": _TRAIN, "ssh": _TRAIN, "deploy": _TRAIN, "hub": _TRAIN,
    "devel": ("devel",), "simple": ("simple",), "ngc": ("ngc",),
}  # fmt: skip
_SERVICE_WORDS: Final = {
    "base": "each of our services: train, full, devel, simple, ngc",
    "deploy": "train: every image can be published, and holds no user",
    "full": "train; full is another name of it",
    "hub": "train, with BUILD_MODE=exclude, the default",
    "ssh": "train; SSH_PORT serves ssh in it",
}

ENVIRONMENT: Final = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_MODULE_LOADING": "LAZY"}
"""What compose/compose.yaml sets to just this."""
OF_SETTINGS: Final = ("HISTSIZE", "TMUX_HIST_LIMIT", "TZ")
"""What compose/compose.yaml sets to the setting of the same name."""
OF_IMAGE: Final = {
    "KMP_BLOCKTIME": "0",
    "MALLOC_CONF": "background_thread:true,metadata_thp:auto,"
    "dirty_decay_ms:30000,muzzy_decay_ms:30000",
}
"""What the image itself sets to just this."""
_OLD_CUDNN: Final = ("TORCH_CUDNN_V8_API_ENABLED", "TORCH_CUDNN_V8_API_DEBUG")

_IDES: Final = (".vscode-server", ".vscode-server-insiders", ".cursor-server", ".windsurf-server")

_EQUAL: Final = {
    "tty": True, "init": True, "stdin_open": True,
}  # fmt: skip
_ARGUMENTS: Final = {
    "CUDA_SHORT_VERSION": "CUDA_VERSION names it in full",
    "CLEAN_CACHE_BEFORE_BUILD": "ccache finds what it compiled before, and nothing else",
    "DEBUG": "a debug build of torch: TORCH_FLAGS=DEBUG=1 with BUILD_MODE=include",
    "YEAR": RETIRED.get("NGC_YEAR", "NGC_YEAR"),
    "MONTH": RETIRED.get("NGC_MONTH", "NGC_MONTH"),
    "BUILD_CAFFE2": "Caffe2 is no part of torch any more",
    "BUILD_CAFFE2_OPS": "Caffe2 is no part of torch any more",
}
# What an argument of the original defaulted to is not what its user chose.
_ONLY_IF_CHOSEN: Final = {
    "CCA": "whatever the wheels have code for; BUILD_MODE=include wants it",
    "CUDNN_VERSION": "the cuDNN that goes with that CUDA",
    "EXTRA_INDEX_URL": "no second index is needed",
    "IMAGE_FLAVOR": "the plain distribution: wheels bring CUDA along",
    "INDEX_URL": "PyPI",
    "PYTORCH_INDEX_URL": "PyTorch's own index of CUDA_VERSION",
    "TRUSTED_HOST": "TLS is never turned off",
    "TMUX_HIST_LIMIT": "the same",
    "UID": "whoever owns the project's folder",
    "GID": "whoever owns the project's folder",
    "USR": "user",
    "GRP": "user",
    "DEB_OLD": "the distribution's own mirror",
    "DEB_NEW": "the distribution's own mirror",
}


@dataclass
class Found:
    """What the Compose files come to."""

    items: list[Item] = field(default_factory=list)
    settings: dict[str, str] = field(default_factory=dict)
    """What a setting should be, unless ``.env`` has it."""
    defaults: dict[str, str] = field(default_factory=dict)
    """What the build of the service in use took where ``.env`` said nothing."""
    override: dict[str, Any] = field(default_factory=dict)


class Override(list[Any]):
    """A list that takes the place of the one in the files before, in place of adding to it."""


class Reset:
    """No value, in place of the one in the files before."""


@dataclass(frozen=True)
class _Service:
    """One service of one file, and what it becomes."""

    place: str
    name: str
    targets: tuple[str, ...]
    in_use: bool
    leave: str = ""
    """Why none of it goes into the override."""


def services(original: Original, service: str) -> Found:
    """Return what the Compose files come to; `service` is the one in use."""
    found = Found()
    for file, content in (("", original.compose), (OVERRIDE, original.override)):
        prefix = f"{file}: " if file else ""
        listed = content.get("services") or {}
        for name, it in listed.items():
            place = f"{prefix}service {name}"
            options = it or {}
            targets = _BECOMES.get(name, ())
            if not targets:
                _own_service(place, name, options, original, found)
                continue
            word = _SERVICE_WORDS.get(name, f"{name}, by {_COMPOSE}")
            fate = Fate.MAPPED if name in _SERVICE_WORDS else Fate.CARRIED
            found.items.append(Item(place, "service", name, fate, word))
            gone = name in {"deploy", "hub"} and name != service
            leave = f"of {name}, which is not the service in use" if gone else ""
            in_use = name in {service, "base"} or (name == "train" and service not in listed)
            _options(_Service(place, name, targets, in_use, leave), options, original, found)
        _top(prefix or "docker-compose.yaml: ", content, original, found)
    return found


def _options(it: _Service, options: Mapping[str, Any], original: Original, found: Found) -> None:
    for name, value in options.items():
        match name:
            case "environment":
                for key, text in _pairs(value):
                    _variable(it, key, text, original, found)
            case "volumes":
                for volume in value or ():
                    _volume(it, volume, original, found)
            case "build":
                _build(it, value, original, found)
            case "deploy":
                _deploy(it, value, original, found)
            case _:
                _option(it, name, value, original, found)
    network = original.compose.get("networks", {}).get("default") or {}
    host = network.get("name") == "host"
    if (
        it.in_use
        and not {"network_mode", "networks", "extends"} & options.keys()
        and not (host or it.place.startswith(OVERRIDE))
    ):
        word = "NETWORK_MODE=bridge, which Compose took where nothing was said; ours is host"
        found.items.append(Item(it.place, "option", "network_mode", Fate.MAPPED, word))
        found.settings.setdefault("NETWORK_MODE", "bridge")


def _pairs(value: Any) -> Iterator[tuple[str, Any]]:  # noqa: ANN401 - of YAML
    """Yield the variables of either form: a mapping, or a list of ``NAME=value``."""
    if isinstance(value, Mapping):
        yield from ((str(name), text) for name, text in value.items())
        return
    for line in value or ():
        name, equals, text = str(line).partition("=")
        yield name, text if equals else None


def _text(value: Any) -> str | None:  # noqa: ANN401
    if isinstance(value, bool):
        return str(value).lower()
    return None if value is None else str(value)


def _variable(it: _Service, name: str, raw: Any, original: Original, found: Found) -> None:  # noqa: ANN401
    written = _text(raw)
    value = None if written is None else expanded(written, original.variables)

    def became(fate: Fate, word: str) -> None:
        found.items.append(Item(it.place, "variable", name, fate, word))

    if ENVIRONMENT.get(name) == value and value is not None:
        became(Fate.CARRIED, f"{_COMPOSE} sets it to the same")
    elif OF_IMAGE.get(name) == value and value is not None:
        became(Fate.CARRIED, "every image with torch sets it to the same")
    elif name in OF_SETTINGS:
        if it.in_use and value and value != NAMES[name].default:
            found.settings[name] = value
        became(Fate.CARRIED, f"{_COMPOSE} sets it to the setting {name}")
    elif name in _OLD_CUDNN and not _torch_1(original):
        became(Fate.LEFT, "torch 2 uses cuDNN's version 8 and later without it")
    else:
        _into_override(it, "variable", name, ("environment", name), written, original, found)


def _torch_1(original: Original) -> bool:
    named = [original.env.get(name, "") for name in ("PYTORCH_VERSION_TAG", "PYTORCH_VERSION")]
    return any(it.removeprefix("v").startswith("1.") for it in named)


def _volume(it: _Service, volume: Any, original: Original, found: Found) -> None:  # noqa: ANN401
    variables = original.variables
    if isinstance(volume, Mapping):
        source = expanded(str(volume.get("source") or ""), variables)
        target = expanded(str(volume.get("target") or ""), variables)
    else:
        text = expanded(str(volume), variables)
        # A default that is not known yet holds a colon: ${DATA:-x}.
        parts = re.split(r":(?![-+?])", text)
        source, target = (parts[0], parts[1]) if len(parts) > 1 else ("", parts[0])
    root = original.env.get("PROJECT_ROOT") or "/opt/project"

    def became(fate: Fate, word: str) -> None:
        found.items.append(Item(it.place, "volume", target, fate, word))

    if target == root and source and not it.leave:
        place = _absolute(source, original.root)
        if it.in_use or it.name == "base":
            found.settings["HOST_ROOT"] = place
        became(Fate.MAPPED, f"HOST_ROOT={place}")
    elif target == root:
        became(Fate.MAPPED, f"{_COMPOSE} mounts HOST_ROOT there")
    elif target.rstrip("/").endswith(_IDES):
        word = (
            "the volume `ide`, linked into the home: servers of IDEs outlive the container, and "
            "the machine's own folder is not touched"
        )
        became(Fate.MAPPED, word)
    else:
        made = _mount(volume, original)
        _into_override(it, "volume", target, ("volumes", target), made, original, found)


def _mount(volume: Any, original: Original) -> Any:  # noqa: ANN401
    """Return a volume as the override has it: the same, from an absolute place."""
    if isinstance(volume, Mapping):
        made = _deep(dict(volume), original)
        if "source" in made and made.get("type") == "bind":
            made["source"] = _absolute(made["source"], original.root)
        return made
    text = expanded(str(volume), original.variables, escape=True)
    source, colon, rest = text.partition(":")
    return f"{_absolute(source, original.root)}:{rest}" if colon else text


def _absolute(place: str, root: Path) -> str:
    """Return a place of this machine without the folder that it was relative to."""
    if place == "." or place.startswith(("./", "../")) or place == "..":
        return os.path.normpath(root / place)
    return place


def _deep(value: Any, original: Original) -> Any:  # noqa: ANN401
    """Return a value of YAML with its variables filled in, as the override has it."""
    if isinstance(value, Mapping):
        return {str(key): _deep(it, original) for key, it in value.items()}
    if isinstance(value, list):
        return [_deep(it, original) for it in value]
    if isinstance(value, str):
        return expanded(value, original.variables, escape=True)
    return value


def _into_override(
    it: _Service, kind: str, name: str, where: tuple[str, str], value: object, original: Original,
    found: Found,
) -> None:  # fmt: skip
    """Put a variable, a volume or an option into the override, for every service it is for."""
    if it.leave:
        found.items.append(Item(it.place, kind, name, Fate.LEFT, it.leave))
        return
    part, key = where
    content = _deep(value, original)
    for target in it.targets:
        into = found.override.setdefault("services", {}).setdefault(target, {})
        # What is said of a service itself goes before what is said of one that became it.
        if part in {"environment", "volumes"}:
            into = into.setdefault(part, {})
        if it.name in {target, "base"} or key not in into or it.in_use:
            into[key] = content
    fate = Fate.CARRIED if it.name in it.targets else Fate.MAPPED
    for_whom = ", ".join(it.targets)
    found.items.append(Item(it.place, kind, name, fate, f"{OVERRIDE}, for {for_whom}"))


def _build(it: _Service, value: Any, original: Original, found: Found) -> None:  # noqa: ANN401
    options = value if isinstance(value, Mapping) else {"context": value}
    for name, content in options.items():
        if name != "args":
            word = "no service builds: `make build` makes the image, and containers take it"
            if name == "target" and it.name != "base":
                word = f"name the target instead: `python -m pipeline build {it.targets[0]}`"
            found.items.append(Item(it.place, "build", name, Fate.LEFT, word))
            continue
        for argument, raw in _pairs(content):
            _argument(it, argument, _text(raw), original, found)


def _argument(it: _Service, name: str, raw: str | None, original: Original, found: Found) -> None:
    value = original.env.get(name, "") if raw is None else expanded(raw, original.variables)
    # A variable without a default stays as it is written, and Compose makes nothing of it.
    value = "" if "${" in value else value.strip("'\"")
    setting = {"TORCH_CUDA_ARCH_LIST": "CCA"}.get(name, ALIASES.get(name, name))

    def became(fate: Fate, word: str) -> None:
        found.items.append(Item(it.place, "build arg", name, fate, word))

    if setting in NAMES and not (it.name == "simple" and name == "BASE_IMAGE"):
        chosen = any(original.env.get(it) for it in (name, setting, *_aliases(setting)))
        if setting in _ONLY_IF_CHOSEN and not chosen:
            became(Fate.MAPPED, f"the setting {setting}; nobody set it: {_ONLY_IF_CHOSEN[setting]}")
            return
        if it.in_use and value:
            found.defaults[setting] = value
        became(Fate.MAPPED if setting != name else Fate.CARRIED, f"the setting {setting}")
    elif name == "BASE_IMAGE":
        distro, _, version = value.partition(":")
        if it.in_use and version:
            found.defaults |= {"LINUX_DISTRO": distro, "DISTRO_VERSION": version}
        became(Fate.MAPPED, "the settings LINUX_DISTRO and DISTRO_VERSION")
    elif name in RETIRED or name in _ARGUMENTS:
        became(Fate.LEFT, RETIRED.get(name) or _ARGUMENTS[name])
    elif re.fullmatch(r"USE_\w+|BUILD_\w+", name):
        flag(it.place, "build arg", name, value, original, found)
    else:
        became(Fate.LEFT, "an argument of a Dockerfile, and there is none")


def _aliases(setting: str) -> list[str]:
    return [alias for alias, name in ALIASES.items() if name == setting]


def flag(place: str, kind: str, name: str, value: str, original: Original, found: Found) -> None:
    """Put a flag of torch's own build into TORCH_FLAGS, if anything is compiled."""
    if original.env.get("BUILD_MODE") == "include" and re.fullmatch(r"\S+", value):
        flags = found.settings.get("TORCH_FLAGS", "")
        if f"{name}=" not in flags:
            found.settings["TORCH_FLAGS"] = f"{flags} {name}={value}".strip()
        found.items.append(Item(place, kind, name, Fate.MAPPED, f"TORCH_FLAGS: {name}={value}"))
    else:
        word = "TORCH_FLAGS takes it where torch is compiled, which BUILD_MODE=exclude does not"
        found.items.append(Item(place, kind, name, Fate.LEFT, word))


def _deploy(it: _Service, value: Any, original: Original, found: Found) -> None:  # noqa: ANN401
    deploy = _deep(value or {}, original)
    devices = deploy.get("resources", {}).get("reservations", {}).pop("devices", [])
    for device in devices:
        some = device.get("device_ids") or (
            device.get("count") if device.get("count") not in {None, "all", -1} else None
        )
        name = "deploy.resources.reservations.devices"
        if not some:
            word = (
                "compose/gpu.yaml or gpu-cdi.yaml, whichever this machine's Docker takes: all GPUs"
            )
            found.items.append(Item(it.place, "option", name, Fate.MAPPED, word))
            continue
        new = {"resources": {"reservations": {"devices": Override([device])}}}
        _into_override(it, "option", name, ("deploy", "deploy"), None, original, found)
        _set(it, "deploy", new, found)
    rest = _pruned(deploy)
    if rest:
        for name in rest:
            _into_override(
                it, "option", f"deploy.{name}", ("deploy", "deploy"), rest, original, found
            )


def _pruned(value: Any) -> Any:  # noqa: ANN401
    """Return a mapping without the mappings in it that hold nothing."""
    if not isinstance(value, Mapping):
        return value
    kept = {key: _pruned(it) for key, it in value.items()}
    return {key: it for key, it in kept.items() if it not in ({}, [])}


def _set(it: _Service, key: str, value: Any, found: Found) -> None:  # noqa: ANN401
    """Put a value that is already as the override has it."""
    if it.leave:
        return
    for target in it.targets:
        found.override.setdefault("services", {}).setdefault(target, {})[key] = value


def _option(it: _Service, name: str, raw: Any, original: Original, found: Found) -> None:  # noqa: ANN401, PLR0912, PLR0915 - one case an option
    value = _deep(raw, original)
    text = str(value)

    def became(fate: Fate, word: str) -> None:
        found.items.append(Item(it.place, "option", name, fate, word))

    match name:
        case "tty" | "init" | "stdin_open" if value is _EQUAL[name]:
            became(Fate.CARRIED, f"{_COMPOSE} has it")
        case "profiles":
            became(Fate.LEFT, f"{_COMPOSE} gives each service a profile of its name")
        case "extends":
            became(Fate.CARRIED, f"what base had, every service of {_COMPOSE} has")
        case "working_dir" if text == (original.env.get("PROJECT_ROOT") or "/opt/project"):
            became(Fate.CARRIED, f"{_COMPOSE} sets it to PROJECT_ROOT")
        case "user" if text.split(":", maxsplit=1)[0] in {"0", "root"}:
            if it.in_use:
                found.settings["ADD_USER"] = "exclude"
            became(Fate.MAPPED, "ADD_USER=exclude: the container starts as root")
        case "user":
            _user(it, text, original, found)
            became(Fate.MAPPED, "UID and GID: the container becomes that user as it starts")
        case "image":
            became(Fate.MAPPED, "IMAGE, which `make build` writes down")
        case "network_mode" if text in {"host", "bridge", "none"}:
            if it.in_use and text != NAMES["NETWORK_MODE"].default:
                found.settings["NETWORK_MODE"] = text
            became(Fate.CARRIED, f"NETWORK_MODE={text}")
        case "networks":
            _into_override(it, "option", name, (name, name), raw, original, found)
            # A service has one or the other.
            _set(it, "network_mode", Reset(), found)
        case "ipc" if text == "host":
            became(Fate.CARRIED, f"{_COMPOSE} has it; wsl.yaml and rootless.yaml take it out")
        case "shm_size":
            if it.in_use:
                found.settings["SHM_SIZE"] = text.lower()
            _set(it, "ipc", "private", found)
            _into_override(it, "option", name, (name, name), raw, original, found)
        case "runtime" if text == "nvidia":
            became(Fate.MAPPED, "compose/gpu.yaml; gpu-runtime.yaml where Docker is too old for it")
        case "hostname" if text in {it.name, "${SERVICE}", original.env.get("SERVICE")}:
            became(Fate.LEFT, "containers on the machine's own network have its name, too")
        case "extra_hosts" if all(str(host).endswith("127.0.0.1") for host in value or ()):
            became(Fate.LEFT, "it let sudo find the hostname, and there is none of its own")
        case "ports" if _ssh_port(value):
            port = _ssh_port(value)
            if it.in_use:
                found.settings["SSH_PORT"] = port
            became(Fate.MAPPED, f"SSH_PORT={port}: ssh on loopback, by keys")
        case "command" if it.name == "ssh":
            became(Fate.LEFT, "a container starts with zsh; COMMAND is what `make exec` runs")
        case "env_file" | "secrets" | "configs" | "dns" | "depends_on" | _:
            content = _with_places(name, raw, original)
            _into_override(it, "option", name, (name, name), content, original, found)


def _user(it: _Service, text: str, original: Original, found: Found) -> None:
    uid, _, gid = text.partition(":")
    for name, number in (("UID", uid), ("GID", gid)):
        # Where it is the default of the variable itself, nobody chose it.
        chosen = original.env.get(name) or number != "1000"
        if it.in_use and chosen and number.isdigit():
            found.settings[name] = number


def _ssh_port(value: Any) -> str:  # noqa: ANN401
    """Return the port of this machine that led to ssh in the container, empty if that is not it."""
    ports = [re.fullmatch(r"(?:[\d.]+:)?(\d+):22", str(port)) for port in value or ()]
    return ports[0][1] if len(ports) == 1 and ports[0] else ""


def _with_places(name: str, raw: Any, original: Original) -> Any:  # noqa: ANN401
    """Return an option with the files that it names in absolute places."""
    if name == "env_file":
        files = raw if isinstance(raw, list) else [raw]
        return [_place(it, original) if isinstance(it, str) else it for it in files]
    return raw


def _place(text: str, original: Original) -> str:
    filled = expanded(text, original.variables)
    if filled.startswith(("/", "~", "$")):
        return filled
    return os.path.normpath(original.root / filled)


def _own_service(
    place: str, name: str, options: Mapping[str, Any], original: Original, found: Found
) -> None:
    """Carry a service over that the original has not, as it is, from absolute places."""
    if "extends" in options:
        word = "it extends a service of the original; write it anew, with `extends: {file: …}`"
        found.items.append(Item(place, "service", name, Fate.LEFT, word))
        return
    made = _deep(options, original)
    if volumes := options.get("volumes"):
        made["volumes"] = [_mount(it, original) for it in volumes]
    if env_file := options.get("env_file"):
        made["env_file"] = _with_places("env_file", env_file, original)
    build = made.get("build")
    if isinstance(build, str):
        made["build"] = _place(build, original)
    elif isinstance(build, dict) and "context" in build:
        build["context"] = _place(str(build["context"]), original)
    found.override.setdefault("services", {})[name] = made
    found.items.append(Item(place, "service", name, Fate.CARRIED, f"{OVERRIDE}, as it is"))


def _top(place: str, content: Mapping[str, Any], original: Original, found: Found) -> None:
    """Put what stands beside the services where it belongs."""
    for part, value in content.items():
        if part == "services" or not value:
            continue
        if part in {"version", "name"} or part.startswith("x-"):
            words = {"version": "Compose has no use for it", "name": "PROJECT names the project"}
            word = words.get(part, "its content is in the services that refer to it")
            found.items.append(Item(place[:-2], "option", part, Fate.LEFT, word))
            continue
        for name, it in value.items():
            if part == "networks" and name == "default" and (it or {}).get("name") == "host":
                word = f"{_COMPOSE} takes the machine's own network: NETWORK_MODE=host"
                found.items.append(Item(place[:-2], "network", name, Fate.MAPPED, word))
                continue
            made = _deep(it, original)
            if isinstance(made, dict) and "file" in made:
                made["file"] = _place(str(made["file"]), original)
            found.override.setdefault(part, {})[name] = made
            word = f"{OVERRIDE}, as it is"
            found.items.append(Item(place[:-2], part.rstrip("s"), name, Fate.CARRIED, word))


def override_text(content: Mapping[str, Any], header: str) -> str:
    """Return the override as YAML."""
    import yaml  # noqa: PLC0415 - as in original

    class Dumper(yaml.SafeDumper):
        def ignore_aliases(self, _: Any) -> bool:  # noqa: ANN401
            return True

    Dumper.add_representer(
        Override, lambda dumper, it: dumper.represent_sequence("!override", list(it))
    )
    Dumper.add_representer(Reset, lambda dumper, _: dumper.represent_scalar("!reset", "null"))
    made = {part: dict(it) for part, it in content.items()}
    for name, service in made.get("services", {}).items():
        volumes = service.get("volumes")
        if isinstance(volumes, dict):
            made["services"][name] = service | {"volumes": list(volumes.values())}
    text: str = yaml.dump(made, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=100)
    return header + text
