"""What containers are told of the machine's network, and of CAs."""

from __future__ import annotations

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


@pytest.mark.parametrize("content", [None, "no certificate"])
def test_a_ca_bundle_that_is_none_is_refused(content: str | None, tmp_path: Path) -> None:
    file = tmp_path / "it.pem"
    if content:
        file.write_text(content)
    with pytest.raises(ConfigError, match="CA_BUNDLE"):
        ca.trust(str(file))
