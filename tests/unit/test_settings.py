"""Settings as a user meets them: by flag, shell, ``.env`` and default."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest

from pipeline.host import user
from pipeline.settings import NAMES, RETIRED
from pipeline.settings import shown as printable
from pipeline.spec import Arch
from tests.unit.running import Result, run

pytestmark = pytest.mark.usefixtures("checkout", "no_machine")

ENV = Path(".env")


def shown(*argv: str, environ: dict[str, str] | None = None) -> dict[str, tuple[str, str]]:
    """Return what ``config --json`` says: value and origin by name."""
    result = succeeded(run("config", "--json", *argv, environ=environ))
    return {name: (it["value"], it["origin"]) for name, it in json.loads(result.out).items()}


def succeeded(result: Result) -> Result:
    assert result.code == 0, result.err
    return result


# Precedence


@pytest.mark.parametrize(
    ("sources", "expected"),
    [
        ("", ("UTC", "default")),
        ("file", ("Asia/Tokyo", ".env")),
        ("file shell", ("Asia/Seoul", "shell")),
        ("file shell flag", ("Europe/Paris", "flag")),
        ("file flag", ("Europe/Paris", "flag")),
        ("shell", ("Asia/Seoul", "shell")),
        ("flag", ("Europe/Paris", "flag")),
    ],
)
def test_a_flag_goes_before_the_shell_before_the_file(
    sources: str, expected: tuple[str, str]
) -> None:
    if "file" in sources:
        ENV.write_text("TZ=Asia/Tokyo\n")
    shell = {"TZ": "Asia/Seoul"} if "shell" in sources else {}
    flags = ["--tz", "Europe/Paris"] if "flag" in sources else []
    assert shown(*flags, environ=shell)["TZ"] == expected
    line = next(it for it in run("config", *flags, environ=shell).out.splitlines() if "TZ " in it)
    assert line.split() == ["TZ", *expected]


def test_what_is_empty_counts_as_not_set() -> None:
    ENV.write_text("TZ=Asia/Tokyo\nPROJECT=\nLINUX_DISTRO=''\n")
    settings = shown("--tz", "", environ={"TZ": ""})
    assert settings["TZ"] == ("Asia/Tokyo", ".env")
    assert settings["LINUX_DISTRO"] == ("debian", "default")
    assert settings["PROJECT"] == ("", "default")


def test_every_setting_has_a_flag_and_a_line_in_config() -> None:
    flags = succeeded(run("config", "--help")).out
    assert [name for name in NAMES if f"--{name.lower().replace('_', '-')}" not in flags] == []
    assert list(shown()) == list(NAMES)
    assert [line.split()[0] for line in run("config").out.splitlines()] == list(NAMES)


# The form of the file


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("CCA=8.6              # for RTX3090", "8.6"),
        ("CCA='7.5 8.6+PTX'  # two of them", "7.5 8.6+PTX"),
        ('CCA="7.5 8.6"', "7.5 8.6"),
        ("export CCA=8.6", "8.6"),
        ("CCA = 8.6", "8.6"),
        ("CCC=8.6", "8.6"),
        ("CCC=8.0\nCCA=8.6", "8.6"),
        ("CCA=8.6\r\nTZ=UTC\r", "8.6"),
        ("\ufeffCCA=8.6", "8.6"),
        ("CCA=8.0\nCCA=8.6", "8.6"),
        ("# CCA=8.0\n\nCCA=8.6", "8.6"),
    ],
    ids=repr,
)
def test_a_line_of_the_file_is_read_as_compose_reads_it(line: str, value: str) -> None:
    ENV.write_bytes(f"{line}\n".encode())
    assert shown()["CCA"] == (value, ".env")


def test_a_dollar_and_a_hash_inside_a_value_stay() -> None:
    ENV.write_text("COMMAND=echo $HOME#1\n")
    assert shown()["COMMAND"] == ("echo $HOME#1", ".env")


def test_the_shell_knows_the_alias_too() -> None:
    ENV.write_text("CCA=8.0\n")
    assert shown(environ={"CCC": "8.6"})["CCA"] == ("8.6", "shell")


@pytest.mark.parametrize(
    ("key", "nearest"),
    [("PYTORCH_VERSION_TAGS", "PYTORCH_VERSION_TAG"), ("CUDA_VERISON", "CUDA_VERSION")],
)
def test_an_unknown_key_is_refused_with_the_nearest(key: str, nearest: str) -> None:
    ENV.write_text(f"{key}=1\n")
    result = run("config")
    assert result.code == 2
    assert f"{key}='***'" in result.err
    assert f"did you mean {nearest}?" in result.err


@pytest.mark.parametrize("key", RETIRED)
def test_a_retired_key_is_noted_and_not_refused(key: str) -> None:
    ENV.write_text(f"{key}=1\n")
    result = succeeded(run("config"))
    assert f"note: .env: {key} is not used any more: {RETIRED[key]}" in result.err
    assert key not in {line.split()[0] for line in result.out.splitlines()}


@pytest.mark.parametrize("key", ["COMPOSE_PROJECT_NAME", "DOCKER_HOST", "USE_NCCL"])
def test_keys_of_compose_and_of_a_source_build_are_let_be(key: str) -> None:
    ENV.write_text(f"{key}=1\n")
    succeeded(run("config"))


# Secrets

SECRET = "s3cr3t"  # noqa: S105 - of nobody


@pytest.mark.parametrize(
    ("line", "left"),
    [
        (f"HF_TOKEN={SECRET}", "HF_TOKEN='***'"),
        (f"HF_TOKEN='{SECRET}", ".env:1='HF_TOKEN=***'"),
        (f"export HF_TOKEN = '{SECRET}", ".env:1='export HF_TOKEN =***'"),
        (f"HF_TOKEN: {SECRET}", ".env:1='***'"),
        (SECRET, ".env:1='***'"),
        (f"INDEX_URL=me:{SECRET}@host/simple", "INDEX_URL='***@host/simple'"),
        (f"REGISTRY=me:{SECRET}@ghcr.io", "REGISTRY='***@ghcr.io'"),
        (f"TRUSTED_HOST={SECRET}@host", "TRUSTED_HOST='***@host'"),
        (f"TORCH_URL=ftp://me:{SECRET}@host/x", "TORCH_URL='ftp://***@host/x'"),
        (f"VISION_URL=ftp://{SECRET}@host/x", "VISION_URL='ftp://***@host/x'"),
        (f"MAGMA_URL=ftp://me:{SECRET}@host/x", "MAGMA_URL='ftp://***@host/x'"),
        (f"GIT_NEW=https://me:{SECRET}@host/", "GIT_NEW='https://***@host/'"),
        (f"GIT_OLD=ftp://me:{SECRET}@host/", "GIT_OLD='ftp://***@host/'"),
        (f"CACHE_URL=memcached://:{SECRET}@host", "CACHE_URL='memcached://***@host'"),
    ],
)
def test_no_mistake_prints_a_secret(line: str, left: str) -> None:
    ENV.write_text(f"{line}\n")
    result = run("plan")
    assert result.code == 2
    assert left in result.err
    assert SECRET not in result.err


@pytest.mark.parametrize(
    "userinfo", ["TOKEN", "me:pass", "me:p@ss", "me:p:ss", ":pass", "TOKEN:", "me:p/ss", "me:p@/s"]
)
def test_no_part_of_a_user_in_a_url_is_shown(userinfo: str) -> None:
    assert printable(f"https://{userinfo}@host:8080/simple") == "https://***@host:8080/simple"


def test_what_has_no_user_is_shown_as_it_is() -> None:
    assert printable("https://host/simple") == "https://host/simple"
    digest = f"debian@sha256:{'0' * 64}"
    assert printable(digest, "BASE_IMAGE") == digest


# env and over


def test_env_writes_the_gpus_of_the_machine() -> None:
    run("env", gpus=(Arch.parse("8.6"), Arch.parse("9.0")))
    assert shown()["CCA"] == ("8.6 9.0", ".env")


@pytest.mark.parametrize("name", ["CORP\\jdoe", "domain users", "1me"])
def test_env_writes_no_name_that_would_be_refused(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(user, "user_name", lambda _: name)
    monkeypatch.setattr(user, "group_name", lambda _: name)
    succeeded(run("env"))
    assert shown()["USR"] == shown()["GRP"] == ("user", ".env")


def test_a_full_disk_leaves_no_half_of_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    before = set(Path.cwd().iterdir())
    monkeypatch.setattr(Path, "hardlink_to", full)
    result = run("env")
    assert result.code == 1
    assert "No space left on device" in result.err
    # Beside it the machine's own state, which is no file of the checkout.
    assert set(Path.cwd().iterdir()) - {Path.cwd() / "state"} == before


def test_config_and_over_name_every_mistake() -> None:
    ENV.write_text("XYZZY=1\nTZ=Nowhere\n")
    for verb in ("config", "over"):
        result = run(verb)
        assert result.code == 2
        assert "2 mistakes" in result.err
    assert not Path("docker-compose.override.yaml").exists()


@pytest.mark.parametrize("name", ["a.b", "a_b", "a__b", "a---b", "team/a-b.c", "Cresset:My-Tag"])
def test_names_that_docker_takes_are_taken(name: str) -> None:
    assert shown("--image-name", name)["IMAGE_NAME"] == (name, "flag")


def test_env_writes_a_commented_file_that_loads_as_it_is() -> None:
    before = shown()
    assert "written" in succeeded(run("env")).err
    after = shown()
    from_file = {name for name, (_, origin) in after.items() if origin == ".env"}
    containers = {"HOST_ROOT", "IMAGE", "IMAGE_NGC", "IMAGE_SIMPLE", "PROJECT"}
    assert from_file == {"UID", "GID", "USR", "GRP", "TZ", *containers}
    assert after["HOST_ROOT"][0] == str(Path.cwd())
    assert after["IMAGE"][0] == "cresset:py313-torch2.15.0-cu132-trixie"
    assert {n: it for n, it in after.items() if n not in from_file} == {
        n: it for n, it in before.items() if n not in from_file
    }
    text = ENV.read_text()
    assert [name for name in NAMES if f"{name}=" not in text] == []
    assert [f.description for f in NAMES.values() if str(f.description) not in text] == []


def test_every_line_of_env_may_be_uncommented() -> None:
    run("env")
    lines = ENV.read_text().splitlines()
    settings = [line.removeprefix("# ") for line in lines if line.partition("=")[0][2:] in NAMES]
    assert len(settings) > 20
    before = shown()
    ENV.write_text("\n".join([*lines, *settings]))
    assert {n: value for n, (value, _) in shown().items()} == {n: v for n, (v, _) in before.items()}


@pytest.mark.parametrize(
    ("verb", "name"), [("env", ".env"), ("over", "docker-compose.override.yaml")]
)
def test_what_is_there_is_never_overwritten(verb: str, name: str) -> None:
    path = Path(name)
    path.write_text("# mine\n")
    assert "left as it is" in succeeded(run(verb)).err
    assert path.read_text() == "# mine\n"


@pytest.mark.parametrize("service", ["train", "simple"])
def test_over_names_the_service(service: str) -> None:
    succeeded(run("over", "--service", service))
    assert f"\n  {service}:\n" in Path("docker-compose.override.yaml").read_text()


@pytest.mark.usefixtures("checkout")
def test_a_driver_that_is_too_old_for_the_image_is_said_and_does_not_stop_it() -> None:
    planned = run("plan", driver="535.54.03")
    assert planned.code == 0
    assert "needs driver 580" in planned.err
    assert "535.54.03" in planned.err
    assert "driver" not in run("plan", driver="595.58.03").err
