"""What containers have to know of the network of this machine: CAs, proxies, mirrors."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from platformdirs import user_state_path

from pipeline.host import ca, whole
from pipeline.settings import Settings
from pipeline.spec import without_login

CA: Final = "/run/cresset/ca.pem"
"""Where compose/network.yaml puts the CAs."""

_PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY")
_CA_FILES = (
    "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "PIP_CERT", "CURL_CA_BUNDLE", "GIT_SSL_CAINFO",
    "NODE_EXTRA_CA_CERTS",
)  # fmt: skip
"""By which OpenSSL, Go and uv, then requests, pip, curl, git and Node are told of a CA."""


@dataclass(frozen=True)
class Network:
    """Variables for containers, and the file of CAs that some of them name."""

    variables: Mapping[str, str]
    ca_file: Path
    left_out: tuple[str, ...] = ()
    """What holds a login, which `docker inspect` would show to everybody who may ask Docker."""

    @property
    def is_own(self) -> bool:
        """Whether a container has to be told of anything."""
        return bool(self.variables)

    def for_compose(self) -> dict[str, str]:
        """Return what compose/network.yaml reads; the variables are in a file that it names."""
        text = "".join(f"{name}={value}\n" for name, value in self.variables.items())
        name = hashlib.sha256(text.encode()).hexdigest()[:16]
        path = user_state_path("cresset") / "network" / f"{name}.env"
        if not path.exists():
            whole.write(path, text, mode=0o600)
        return {"COMPOSE_NETWORK_ENV": str(path), "COMPOSE_CA_FILE": str(self.ca_file)}


def look(settings: Settings, environ: Mapping[str, str]) -> Network:
    """Return what containers need on this machine; nothing of it is in any image."""
    found: dict[str, str] = {}
    for name in _PROXIES:
        # curl reads http_proxy in lower case alone, and others the other case alone.
        if value := environ.get(name) or environ.get(name.lower()):
            found |= {name: value, name.lower(): value}
    for names, value in (
        (("PIP_INDEX_URL", "UV_DEFAULT_INDEX"), settings.index_url),
        (("PIP_EXTRA_INDEX_URL", "UV_INDEX"), settings.extra_index_url),
        (("PIP_TRUSTED_HOST",), settings.trusted_host),
        (("npm_config_registry",), settings.npm_registry),
    ):
        found |= dict.fromkeys(names, value) if value else {}
    # All up to an @ may be a login: with or without a scheme, whatever is in the password.
    left_out = tuple(name for name, value in found.items() if "@" in value)
    kept = {name: value for name, value in found.items() if name not in left_out}
    mirror = (settings.git_old, settings.git_new)
    if any(map(_has_login, mirror)):
        left_out = (*left_out, "GIT_NEW")
    elif settings.git_new:
        kept |= _instead_of(*mirror)
    own = ca.for_containers()
    if own:
        kept |= dict.fromkeys(_CA_FILES, CA)
    return Network(kept, own or ca.public(), left_out)


def _has_login(url: str) -> bool:
    """Say whether a URL of git holds what nobody else may see; the user of ssh is no secret."""
    if url.startswith("ssh://"):
        return urlsplit(url).password is not None
    return without_login(url) != url


def _instead_of(old: str, new: str) -> dict[str, str]:
    """Return the variables by which git, 2.31 and later, takes a mirror without a file."""
    return {
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": f"url.{new}.insteadOf",
        "GIT_CONFIG_VALUE_0": old,
    }
