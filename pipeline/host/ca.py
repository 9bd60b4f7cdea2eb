"""The certificates that this machine trusts."""

from __future__ import annotations

import hashlib
import os
import re
import ssl
from collections.abc import Iterable
from pathlib import Path

from platformdirs import user_state_path

from pipeline.errors import ConfigError, Problem
from pipeline.host import whole

_CERTIFICATE = re.compile(r"-----BEGIN CERTIFICATE-----(.+?)-----END CERTIFICATE-----", re.DOTALL)
_OWN = Path("/usr/local/share/ca-certificates")
_MOZILLA = Path("/usr/share/ca-certificates/mozilla")


def bundle() -> str | bool:
    """Return the machine's CA file or folder for requests, which trusts certifi's unless told.

    True, which means certifi's, where the machine has none.
    """
    paths = ssl.get_default_verify_paths()
    return paths.cafile or paths.capath or True


def trust(file: str) -> None:
    """Let this process, and an engine that it starts, trust the CAs of a PEM file as well.

    Nothing for an empty name, which is no file.

    Raises:
        ConfigError: there is no certificate in it.

    """
    if not file:
        return
    path = Path(file).expanduser()
    try:
        text = path.read_text(errors="replace")
    except OSError as error:
        raise _no_bundle(file, error.strerror or str(error)) from error
    if not _CERTIFICATE.search(text):
        raise _no_bundle(file, "there is no certificate in it")
    both = str(_kept([*texts([_machine()]), text]))
    # OpenSSL, Go and the engine's root read the first; requests and git put theirs before it.
    os.environ |= dict.fromkeys(("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "GIT_SSL_CAINFO"), both)


def _no_bundle(file: str, why: str) -> ConfigError:
    step = "name a PEM file: lines of BEGIN CERTIFICATE, the CA's own"
    return ConfigError([Problem("CA_BUNDLE", file, why, allowed="a PEM file", next_step=step)])


def for_containers() -> Path | None:
    """Return a file with all CAs of this machine, None where those are what every image has."""
    known = "".join(texts([public(), *_MOZILLA.glob("*.crt")]))
    mine = texts([_machine(), *sorted(_OWN.rglob("*.crt"))])
    return _kept([*texts([public()]), *mine]) if private(mine, known) else None


def private(machine: Iterable[str], public: str) -> dict[str, str]:
    """Return name and PEM of each certificate in `machine` that is not in the `public` bundle."""
    known = {_identity(found[1]) for found in _CERTIFICATE.finditer(public)}
    return {
        f"cresset-{identity[:16]}.crt": f"{found[0]}\n"
        for bundle in machine
        for found in _CERTIFICATE.finditer(bundle)
        if (identity := _identity(found[1])) not in known
    }


def texts(files: Iterable[Path]) -> list[str]:
    """Return the content of those of the files that there are."""
    return [file.read_text(errors="replace") for file in files if file.is_file()]


def _machine() -> Path:
    found = bundle()
    return Path(found) if isinstance(found, str) and Path(found).is_file() else public()


def public() -> Path:
    """Return the file of the CAs that everybody trusts."""
    import certifi  # noqa: PLC0415 - few verbs ask

    return Path(certifi.where())


def _kept(bundles: Iterable[str]) -> Path:
    """Return a file with each certificate of these once, named by what is in it."""
    text = "".join(private(bundles, "").values())
    name = hashlib.sha256(text.encode()).hexdigest()[:16]
    path = user_state_path("cresset") / "ca" / f"{name}.pem"
    if not path.exists():
        whole.write(path, text, mode=0o644)  # whoever a container runs as
    return path


def _identity(body: str) -> str:
    return hashlib.sha256("".join(body.split()).encode()).hexdigest()
