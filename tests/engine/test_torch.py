"""PyTorch itself, from the distribution's source to an image: hours, so `make test-torch` runs it.

Cut off, it goes on where it stopped when it is run again: it uses the machine's own caches.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable

import pytest

from tests.engine.conftest import Checkout, Running
from tests.engine.test_build import in_image

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.hours]

TORCH = {
    "TORCH_SOURCE": "apt",
    "VISION_SOURCE": "apt",
    "MAGMA_SOURCE": "apt",
    "PYTORCH_VERSION_TAG": "v2.6.0",
    "CUDA_VERSION": "12.4",
    "CCA": "8.6",
}

# The distribution's source is fetched while it builds, so one file of it is edited there.
EDITED = """
import sys
from pipeline.__main__ import main
from pipeline.stages import wheels

def edited(tools, source, *others):
    line = f"int {name} = 1;"
    edit = ["sh", "-c", f"echo '{line}' >> /edited/aten/src/ATen/native/Distance.cpp"]
    source = tools.with_directory("/edited", source).with_exec(edit).directory("/edited")
    return as_it_is(tools, source, *others)

as_it_is, wheels.torch_wheel = wheels.torch_wheel, edited
name = sys.argv.pop()  # another each time, or the compiler cache knows the edited file too
main()
"""


def test_torch_is_compiled_proved_and_in_an_image(checkout: Checkout, repository: str) -> None:
    process = checkout.start("build", "--json", **TORCH, REGISTRY=repository).process
    out, err = process.communicate()
    assert process.returncode == 0, err
    assert "torch: GPU code by cuobjdump: torch/lib/libtorch_cuda.so sm_86" in err
    ref = out.partition('"ref": "')[2].partition('"')[0]
    said = in_image(
        ref, "import torch, torchvision; print(torch.__version__, torch.cuda.has_magma)"
    )
    assert said.split() == ["2.6.0+cu124", "True"]


def test_one_file_of_torch_changed_is_one_file_compiled(
    checkout: Checkout, figure: Callable[[str], None]
) -> None:
    """Runs after the test above, which fills the compiler cache."""
    name = f"cresset_{time.time_ns()}"
    command = (sys.executable, "-c", EDITED, "wheels", "--output", "out", name)
    env = {**checkout.environment, **TORCH, "WHEEL_STORE": "off"}
    ran = Running(command, checkout.path, env).end(timeout=7200)
    assert ran.code == 0, ran.err
    (torch,) = re.findall(r"^torch-2.*: (\d+ MB in \d+ s, .*)$", ran.err, re.MULTILINE)
    found = re.findall(r"compiler cache, (\S+): (\d+) of (\d+) hits", ran.err)[:2]
    rates = {kind: (int(hits), int(total)) for kind, hits, total in found}
    figure(f"one C++ file of torch changed: {rates}; {torch}; {ran.seconds:.0f} s in all")
    assert rates["c++"][1] - rates["c++"][0] == 1
    assert rates["cuda"][1] == rates["cuda"][0]
