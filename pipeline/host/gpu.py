"""The GPUs of this machine, by NVIDIA's management library."""

from __future__ import annotations

from pipeline.spec import Arch


def capabilities() -> list[Arch]:
    """Return the compute capabilities of the GPUs here, each once; empty without a driver."""
    import pynvml  # noqa: PLC0415 - only CCA=auto asks

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return []
    try:
        handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
        found = (pynvml.nvmlDeviceGetCudaComputeCapability(handle) for handle in handles)
        return list(dict.fromkeys(Arch(major=major, minor=minor) for major, minor in found))
    finally:
        pynvml.nvmlShutdown()
