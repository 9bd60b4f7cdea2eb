"""What containers are told of the machine's network, and of CAs."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from pipeline import compose, settings
from pipeline.errors import ConfigError
from pipeline.host import ca, network

PRIVATE = "-----BEGIN CERTIFICATE-----\ncHJpdmF0ZQ==\n-----END CERTIFICATE-----\n"


@pytest.fixture(autouse=True)
def _own_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let it be a machine that trusts what everybody does."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    for name in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "GIT_SSL_CAINFO"):
        monkeypatch.setenv(name, str(ca.public()))
    monkeypatch.setattr(ca, "_OWN", tmp_path / "none")


def looked(environ: dict[str, str] | None = None, **values: str) -> network.Network:
    given = settings.load(values, environ={}, env_file=Path("/nonexistent")).settings
    return network.look(given, environ or {})


def test_an_ordinary_machine_tells_nothing(tmp_path: Path) -> None:
    found = looked()
    assert not found.is_own
    given = settings.load({}, environ={}, env_file=Path("/nonexistent")).settings
    assert compose.FOLDER / "network.yaml" not in compose.files(given, None, tmp_path, "", found)


def test_a_private_ca_goes_to_all_who_ask_and_public_ones_stay(tmp_path: Path) -> None:
    (tmp_path / "own.pem").write_text(PRIVATE)
    ca.trust(str(tmp_path / "own.pem"))
    found = looked()
    told = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "PIP_CERT", "GIT_SSL_CAINFO", "CURL_CA_BUNDLE")
    assert {found.variables[name] for name in told} == {network.CA}
    text = found.ca_file.read_text()
    assert text.count("BEGIN CERTIFICATE") == ca.public().read_text().count("BEGIN CERTIFICATE") + 1
    assert PRIVATE in text
    assert found.ca_file.stat().st_mode & 0o777 == 0o644
    given = settings.load({}, environ={}, env_file=Path("/nonexistent")).settings
    files = compose.files(given, None, tmp_path, "mine.yaml", found)
    assert files == (Path("mine.yaml"), compose.FOLDER / "network.yaml")


@pytest.mark.parametrize("proxy", ["me:s3cr3t@proxy:3128", "http://me:p/w@proxy:3128"])
def test_a_login_is_one_however_it_is_written(proxy: str) -> None:
    found = looked({"HTTP_PROXY": proxy})
    assert set(found.left_out) == {"HTTP_PROXY", "http_proxy"}
    assert proxy not in found.variables.values()


def test_proxies_and_indexes_are_told_but_no_login() -> None:
    environ = {"https_proxy": "http://proxy:3128", "HTTP_PROXY": "http://me:s3cr3t@proxy:3128"}
    found = looked(environ, INDEX_URL="https://me:s3cr3t@host/simple", NPM_REGISTRY="https://n/")
    assert found.variables["HTTPS_PROXY"] == "http://proxy:3128"
    assert found.variables["https_proxy"] == "http://proxy:3128"
    assert found.variables["npm_config_registry"] == "https://n/"
    assert set(found.left_out) == {
        "HTTP_PROXY", "http_proxy", "PIP_INDEX_URL", "UV_DEFAULT_INDEX",
    }  # fmt: skip
    written = Path(found.for_compose()["COMPOSE_NETWORK_ENV"]).read_text()
    assert "s3cr3t" not in written
    assert "HTTPS_PROXY=http://proxy:3128\n" in written


def test_a_mirror_of_git_is_one_in_containers_too(tmp_path: Path) -> None:
    old, new = "https://github.com/", "https://127.0.0.1/mirror/"
    found = looked(GIT_OLD=old, GIT_NEW=new)
    assert found.is_own
    assert not found.left_out
    # As git itself reads it.
    environ = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), **found.variables}
    asked = ["git", "config", "--get-regexp", r"^url\."]
    said = subprocess.run(asked, env=environ, capture_output=True, text=True, check=True).stdout
    assert said == f"url.{new}.insteadof {old}\n"


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("https://github.com/", "https://me:s3cr3t@git.example/", False),
        ("https://github.com/", "https://token@git.example/", False),
        ("https://me:s3cr3t@github.com/", "https://git.example/", False),
        ("git@github.com:", "git@git.example:mirror/", True),
        ("https://github.com/", "ssh://git@git.example/", True),
        ("https://github.com/", "ssh://git:s3cr3t@git.example/", False),
    ],
)
def test_a_mirror_with_a_login_is_left_out_whole(old: str, new: str, told: bool) -> None:
    found = looked(GIT_OLD=old, GIT_NEW=new)
    assert found.left_out == (() if told else ("GIT_NEW",))
    assert sum(name.startswith("GIT_CONFIG_") for name in found.variables) == (3 if told else 0)


@pytest.mark.parametrize("content", [None, "no certificate"])
def test_a_ca_bundle_that_is_none_is_refused(content: str | None, tmp_path: Path) -> None:
    file = tmp_path / "it.pem"
    if content:
        file.write_text(content)
    with pytest.raises(ConfigError, match="CA_BUNDLE"):
        ca.trust(str(file))
