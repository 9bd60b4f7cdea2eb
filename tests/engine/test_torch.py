"""PyTorch itself, from the distribution's source to an image: hours, so `make test-torch` runs it.

Cut off, it goes on where it stopped when it is run again: it uses the machine's own caches.
"""

from __future__ import annotations

import pytest

from tests.engine.conftest import Checkout
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
