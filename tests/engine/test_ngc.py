"""The target ngc on a stand-in: NVIDIA's own image is of 20 GB and on a registry of NVIDIA's.

The stand-in is Debian with what matters of it: a torch in its Python's dist-packages, constraints
for pip and variables of its own. Whether NVIDIA's image takes the same, this does not tell.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from pipeline.engine import local
from tests.engine.conftest import ROOT, Checkout, Pulled, make_wheel, new_name, tags
from tests.engine.test_build import in_image

pytestmark = pytest.mark.engine

DIST = "/usr/local/lib/python3.13/dist-packages"
TORCH = "2.9.0a0+stand.in"
PATH = "/opt/nvidia/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

STAND_IN = f"""
import asyncio, sys
import dagger
from pipeline.host.bootstrap import base_archive
from pipeline.stages.base import base_from_archive
from pipeline.stages.packages import apt_install
from tests.unit.specs import spec

base = spec("simple", base_source="bootstrap").base
archive = base_archive(base, print)
files = {{
    "torch/__init__.py": "__version__ = {TORCH!r}",
    "torch-{TORCH}.dist-info/METADATA": "Metadata-Version: 2.1\\nName: torch\\nVersion: {TORCH}\\n",
}}

async def main(ref, constraint):
    async with dagger.connection(dagger.Config(log_output=sys.stderr, retry=None)):
        image = base_from_archive(str(archive))
        image = apt_install(image, base, ["ca-certificates", "python3-venv"])
        for name, text in files.items():
            image = image.with_new_file(f"{DIST}/{{name}}", text)
        image = image.with_new_file("/etc/pip/constraint.txt", constraint)
        image = image.with_env_variable("PIP_CONSTRAINT", "/etc/pip/constraint.txt")
        image = image.with_env_variable("PATH", {PATH!r})
        image = image.with_env_variable("NVIDIA_PRODUCT_NAME", "stand-in")
        image = image.with_entrypoint(["/opt/nvidia/nvidia_entrypoint.sh"])
        await image.publish(ref)

asyncio.run(main(*sys.argv[1:]))
"""

PROGRAM = """
import json, os, sys, torch
print(json.dumps([torch.__version__, torch.__file__, sys.prefix, os.environ["PATH"]]))
"""


def publish_stand_in(ref: str, constraint: str) -> None:
    """Publish a stand-in for NVIDIA's image, whose pip is held by a constraint."""
    endpoint = local.ensure(print)
    engine = {
        "_EXPERIMENTAL_DAGGER_RUNNER_HOST": endpoint.runner_host,
        "_EXPERIMENTAL_DAGGER_CLI_BIN": str(endpoint.session_bin),
    }
    command = [sys.executable, "-c", STAND_IN, ref, constraint]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | engine, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_our_layers_stand_on_an_image_like_nvidias_and_leave_it_as_it_is(
    checkout: Checkout, repository: str
) -> None:
    # Always the same stand-in, so that the engine has the layers on it already.
    held, needs_torch = "cresset_test_held", new_name()
    reference = f"{repository}/pytorch:25.09-py3"
    publish_stand_in(reference, f"{held}==2.0\n")
    settings = {
        "REGISTRY": repository, "BASE_IMAGE": reference, "LINUX_DISTRO": "debian",
        "DISTRO_VERSION": "13", "NGC_YEAR": "25", "NGC_MONTH": "09", "CCA": "9.0",
    }  # fmt: skip
    # The package index has torch as well, and it is not fetched: it is there.
    metadata = f"Metadata-Version: 2.1\nName: {needs_torch}\nVersion: 1.0\nRequires-Dist: torch\n"
    wheel = make_wheel(
        checkout.reqs, needs_torch, {f"{needs_torch}-1.0.dist-info/METADATA": metadata}
    )
    checkout.require(f"./{wheel.name}")
    ran = checkout.cresset("build", "ngc", "--json", **settings)
    assert ran.code == 0, ran.err
    assert "note: CCA is set and changes nothing" in ran.err
    told = ran.json
    assert told["variant"] == "ngc25.09-py313-trixie"
    # By the reference under which the engine first had this digest.
    assert "/pytorch:25.09-py3@sha256:" in told["base"]

    image = Pulled.of(told["ref"])
    assert image.config["Entrypoint"] == ["/usr/local/bin/enter"]
    assert image.config["Cmd"] == ["zsh"]
    assert image.config["WorkingDir"] == "/opt/project"
    assert image.env == {
        "LANG": "C.UTF-8", "NVIDIA_PRODUCT_NAME": "stand-in", "PATH": f"/opt/venv/bin:{PATH}",
        "PIP_CONSTRAINT": "/etc/pip/constraint.txt", "TZ": "UTC", "VIRTUAL_ENV": "/opt/venv",
    }  # fmt: skip
    program = f"import {needs_torch}\n{PROGRAM}"
    version, file, prefix, path = json.loads(in_image(told["ref"], program))
    assert (version, file) == (TORCH, f"{DIST}/torch/__init__.py")
    assert prefix == "/opt/venv"
    assert path == f"/opt/venv/bin:{PATH}"

    delivered = tags(repository)
    checkout.require(f"./{make_wheel(checkout.reqs, held).name}")
    refused = checkout.cresset("build", "ngc", **settings)
    assert refused.code == 5
    assert "stage: pip" in refused.err
    assert f"{held.replace('_', '-')}==2.0" in refused.err.replace("_", "-")
    assert tags(repository) == delivered
