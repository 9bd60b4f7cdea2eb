"""The GPUs of this machine and their driver, by NVIDIA's management library."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from pipeline.spec import Arch


@contextlib.contextmanager
def _library() -> Iterator[Any]:
    """Yield the management library, or None where there is no driver."""
    import pynvml  # noqa: PLC0415 - few commands ask

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        yield None
        return
    try:
        yield pynvml
    finally:
        pynvml.nvmlShutdown()


def capabilities() -> list[Arch]:
    """Return the compute capabilities of the GPUs here, each once; empty without a driver."""
    with _library() as nvml:
        if nvml is None:
            return []
        handles = [nvml.nvmlDeviceGetHandleByIndex(i) for i in range(nvml.nvmlDeviceGetCount())]
        found = (nvml.nvmlDeviceGetCudaComputeCapability(handle) for handle in handles)
        return list(dict.fromkeys(Arch(major=major, minor=minor) for major, minor in found))


def driver() -> str:
    """Return the version of the driver, empty without one."""
    with _library() as nvml:
        return "" if nvml is None else str(nvml.nvmlSystemGetDriverVersion())
