"""Whole builds as a user runs them: a checkout, the command line, a real engine and registry."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from pipeline.engine import local
from pipeline.stages.packages import OPENMP, VENV
from tests import services
from tests.engine.conftest import ROOT, Checkout, Pulled, Ran, make_wheel, new_name, tags

pytestmark = pytest.mark.engine

# The probe's own words, without the run that follows them.
FEATURES = (
    (ROOT / "pipeline/stages/inside/probe.py").read_text().partition("if __name__ ==")[0]
    + """
import torch
print(json.dumps(features(torch)))
"""
)

IN_IMAGE = """
import asyncio, sys
import dagger

async def main():
    async with dagger.connection(dagger.Config(log_output=sys.stderr, retry=None)):
        image = dagger.dag.container().from_({ref!r})
        print(await image.with_exec(["python", "-c", {program!r}]).stdout())

asyncio.run(main())
"""


def in_image(ref: str, program: str) -> str:
    """Return what a Python program prints in a container of the image, run by the engine."""
    endpoint = local.ensure(print)
    dagger = {
        "_EXPERIMENTAL_DAGGER_RUNNER_HOST": endpoint.runner_host,
        "_EXPERIMENTAL_DAGGER_CLI_BIN": str(endpoint.session_bin),
    }
    done = subprocess.run(
        [sys.executable, "-c", IN_IMAGE.format(ref=ref, program=program)],
        env=dagger,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def built(checkout: Checkout, registry: str, *args: str, **env: str) -> Ran:
    """Return a build of ``simple`` that succeeded."""
    ran = checkout.cresset("build", "simple", *args, REGISTRY=registry, **env)
    assert ran.code == 0, ran.err
    return ran


# What comes out


def test_the_default_image_is_delivered_as_promised(checkout: Checkout, registry: str) -> None:
    shutil.copytree(ROOT / "reqs", checkout.reqs, dirs_exist_ok=True)
    ran = checkout.cresset("build", "--json", REGISTRY=registry, TZ="Asia/Seoul")
    assert ran.code == 0, ran.err
    told = ran.json
    stages = ["engine", "base", "installer", "prompt", "shell", "system", "wheels", "torch", "apt",
              "pip", "image", "verify", "deliver", "attest"]  # fmt: skip
    assert list(told["seconds"]) == stages
    assert set(told["cached"]) <= set(stages)
    assert told["engine"] == "local"
    assert told["digest"] == told["ref"].partition("@")[2]
    assert told["size"] > 2e9
    assert told["base"].startswith(("image ", "bootstrap "))

    image = Pulled.of(told["ref"])
    labels = image.config["Labels"]
    assert labels["dev.cresset.key"] == told["key"]
    assert labels["dev.cresset.base"] == told["base"]
    assert labels["org.opencontainers.image.version"] == told["variant"]
    assert not image.config.get("User")
    assert image.config["WorkingDir"] == "/opt/project"
    assert image.config["Entrypoint"] == ["/usr/local/bin/enter"]
    assert image.config["Cmd"] == ["zsh"]
    assert image.env["NVIDIA_VISIBLE_DEVICES"] == "all"
    assert image.env["PATH"].startswith(f"{VENV}/bin:")
    # Nothing that only the build needed: no index, no prompt switch, no secret.
    assert set(image.env) == {
        "KMP_BLOCKTIME", "LANG", "LC_ALL", "LD_PRELOAD", "MALLOC_CONF",
        "NVIDIA_DRIVER_CAPABILITIES", "NVIDIA_VISIBLE_DEVICES", "PATH", "PYTHONPATH", "TZ",
        "VIRTUAL_ENV",
    }  # fmt: skip

    # Standard output is the reference and nothing else, from a build that finds it as well.
    again = checkout.cresset("build", REGISTRY=registry, TZ="Asia/Seoul")
    assert again.out == f"{told['ref']}\n"

    program = "import time, torch; print(time.tzname[0], *open('/proc/self/maps'))"
    out, features = in_image(told["ref"], f"{program}\n{FEATURES}").strip().rsplit("\n", 1)
    assert out.startswith("KST ")
    for preloaded in ("libjemalloc.so.2", OPENMP):
        assert preloaded in out
    # What a compiled wheel is asked for, this one has: the official torch 2.15 dropped XNNPACK.
    found = json.loads(features)
    assert [flag for flag, there in found.items() if not there] == ["USE_XNNPACK"]
    assert found.keys() == {
        "USE_CUSPARSELT", "USE_FBGEMM", "USE_FLASH_ATTENTION", "USE_KINETO", "USE_MKLDNN",
        "USE_NUMPY", "USE_OPENMP", "USE_PYTORCH_QNNPACK", "USE_TENSORPIPE", "USE_XNNPACK",
    }  # fmt: skip


def test_the_image_starts_in_its_time_zone_and_imports_from_the_project(
    checkout: Checkout, repository: str
) -> None:
    ran = built(checkout, repository, TZ="Asia/Seoul", PROJECT_ROOT="/srv/work")
    program = "import json, os, sys, time; print(json.dumps([os.getcwd(), time.tzname, sys.path]))"
    cwd, zone, path = json.loads(in_image(ran.out.strip(), program))
    assert cwd == "/srv/work"
    assert zone == ["KST", "KST"]
    assert "/srv/work" in path[1:]  # the first entry is where Python was started


# What is done again


def test_the_second_build_has_nothing_to_do_and_needs_no_engine(
    checkout: Checkout, repository: str
) -> None:
    first = built(checkout, repository)
    again = built(checkout, repository, ENGINE="session", PATH="/nowhere")
    assert again.out == first.out
    assert "nothing to do" in again.err


def test_a_new_pip_package_touches_nothing_before_it(checkout: Checkout, repository: str) -> None:
    first = built(checkout, repository).out
    checkout.require_something_new()
    ran = built(checkout, repository, "--json")
    assert {"base", "installer", "system", "apt"} <= set(ran.json["cached"])
    assert "pip" not in ran.json["cached"]
    before, _, after = ran.log.partition("=== pip\n")
    assert "--- withExec" not in before
    assert "--- withExec" in after
    assert ran.json["ref"] != first.strip()


@pytest.mark.parametrize("line", ["# why we need it", "tmux ; python_version < '3'"])
def test_an_apt_line_that_changes_nothing_builds_nothing(
    checkout: Checkout, repository: str, line: str
) -> None:
    first = built(checkout, repository)
    with (checkout.reqs / "apt-train.requirements.txt").open("a") as file:
        file.write(f"{line}\n")
    assert built(checkout, repository, ENGINE="session").out == first.out


# What goes wrong


def test_a_package_that_does_not_exist_is_told_with_all_one_needs(
    checkout: Checkout, repository: str
) -> None:
    name = new_name().replace("_", "-")
    checkout.require(name)
    ran = checkout.cresset("build", "simple", REGISTRY=repository)
    assert ran.code == 5
    assert ran.out == ""
    lines = ran.err.splitlines()
    assert "stage: pip" in lines
    assert any(line.startswith("command: /mnt/uv ") for line in lines)
    assert "exit code: 1" in lines
    told = ran.err.partition("last lines:")[2]
    assert name in told
    assert "Traceback" not in ran.err
    assert lines[-1] == f"log: {lines[0].removeprefix('log: ')}"
    assert told.splitlines()[1].strip() in ran.log
    assert tags(repository) == []


def test_an_image_that_is_not_what_was_asked_for_is_not_delivered(
    checkout: Checkout, repository: str
) -> None:
    name = new_name()
    program = {f"{name}-1.0.data/scripts/gcc": "#!/bin/sh\n"}
    checkout.require(f"./{make_wheel(checkout.reqs, name, program).name}")
    ran = checkout.cresset("build", "simple", REGISTRY=repository)
    assert ran.code == 6
    assert ran.out == ""
    assert f"compilers='{VENV}/bin/gcc'" in ran.err
    assert "stage: verify" in ran.err
    assert tags(repository) == []


# What never gets in


SPYING_BACKEND = """
import os, zipfile

def build_wheel(folder, config_settings=None, metadata_directory=None):
    sent = [os.path.join(top, f) for top, _, files in os.walk("/mnt/reqs") for f in files]
    info = "{name}-1.0.dist-info"
    with zipfile.ZipFile(os.path.join(folder, "{name}-1.0-py3-none-any.whl"), "w") as wheel:
        wheel.writestr("{name}.txt", "\\n".join(sorted(sent)))
        wheel.writestr(info + "/METADATA", open("PKG-INFO").read())
        wheel.writestr(info + "/WHEEL", "Wheel-Version: 1.0\\nTag: py3-none-any\\n")
        wheel.writestr(info + "/RECORD", "")
    return "{name}-1.0-py3-none-any.whl"
"""


def spying_sdist(folder: Path) -> Path:
    """Write a source package that puts a list of what its build sees of reqs/ into itself."""
    name = new_name()
    files = {
        "PKG-INFO": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n",
        "backend.py": SPYING_BACKEND.format(name=name),
        "pyproject.toml": f'[project]\nname = "{name}"\nversion = "1.0"\n[build-system]\n'
        'requires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n',
    }
    path = folder / f"{name}-1.0.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        for file, text in files.items():
            member = tarfile.TarInfo(f"{name}-1.0/{file}")
            member.size = len(text.encode())
            tar.addfile(member, io.BytesIO(text.encode()))
    return path


def test_only_files_that_the_requirements_name_are_sent(
    checkout: Checkout, repository: str
) -> None:
    spy = spying_sdist(checkout.reqs)
    (checkout.reqs / "more").mkdir()
    (checkout.reqs / "more/pip.txt").write_text(f"./{spy.name}\n")
    checkout.require("-r more/pip.txt")
    for secret in ("token", "reqs/token", "reqs/more/id_rsa", "reqs/private.requirements.txt"):
        (checkout.path / secret).write_text("s3cret")
    image = Pulled.of(built(checkout, repository).out.strip())
    written = f"/{spy.name.partition('-')[0]}.txt"
    (listing,) = [content for name, content in image.files() if name.endswith(written)]
    assert listing.decode().split() == [
        f"/mnt/reqs/{spy.name}",
        "/mnt/reqs/more/pip.txt",
        "/mnt/reqs/pip-train.requirements.txt",
    ]


def test_the_password_of_an_index_is_nowhere(checkout: Checkout, repository: str) -> None:
    engine_log = local.log_path()
    logged = engine_log.stat().st_size
    with services.package_index("somebody:s3cret") as index:
        wheel = make_wheel(checkout.path, new_name())
        index.add(wheel)
        checkout.require(wheel.name.partition("-")[0])
        address = index.host.partition(":")[0]
        ran = built(checkout, repository, INDEX_URL=index.url, TRUSTED_HOST=address)
    image = Pulled.of(ran.out.strip())
    files = list(image.files())
    assert any(name.endswith(wheel.name.partition("-")[0] + ".py") for name, _ in files)
    with engine_log.open() as log:
        log.seek(logged)
        said = log.read()
    told = [ran.out, ran.err, ran.log, said, json.dumps(image.manifest), json.dumps(image.about)]
    assert not [text for text in told if "s3cret" in text]
    assert [name for name, content in files if b"s3cret" in content] == []
