"""The GPUs of this machine and their driver, by NVIDIA's management library."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import Any, Final, Literal

from pipeline.spec import Arch, Frozen

QUERY: Final = "driver_version,name,compute_cap,memory.total,mig.mode.current"
"""What nvidia-smi is asked for; `by_smi` reads it."""


class Gpu(Frozen):
    """One GPU; `mig` is ``empty`` where it is to be cut into instances and has none."""

    name: str
    capability: str = ""
    memory: int = 0
    mig: Literal["", "on", "empty"] = ""


class Seen(Frozen):
    """What answers of the driver and its GPUs, or why nothing does."""

    driver: str = ""
    cuda: str = ""
    gpus: tuple[Gpu, ...] = ()
    error: str = ""


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


def seen() -> Seen:
    """Return the driver and each GPU, or the error of the library."""
    import pynvml as nvml  # noqa: PLC0415 - few commands ask

    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        return Seen(error=str(error))
    version = cuda = ""
    try:
        version = str(nvml.nvmlSystemGetDriverVersion())
        number = nvml.nvmlSystemGetCudaDriverVersion_v2()
        cuda = f"{number // 1000}.{number % 1000 // 10}"
        handles = [nvml.nvmlDeviceGetHandleByIndex(i) for i in range(nvml.nvmlDeviceGetCount())]
        return Seen(driver=version, cuda=cuda, gpus=tuple(_gpu(nvml, it) for it in handles))
    except nvml.NVMLError as error:
        return Seen(driver=version, cuda=cuda, error=str(error))
    finally:
        nvml.nvmlShutdown()


def _gpu(nvml: Any, handle: Any) -> Gpu:  # noqa: ANN401 - a library without types
    major, minor = nvml.nvmlDeviceGetCudaComputeCapability(handle)
    memory = 0
    # GB10 shares the machine's memory and tells of none of its own.
    with contextlib.suppress(nvml.NVMLError):
        memory = int(nvml.nvmlDeviceGetMemoryInfo(handle).total)
    return Gpu(
        name=str(nvml.nvmlDeviceGetName(handle)),
        capability=f"{major}.{minor}",
        memory=memory,
        mig=_mig(nvml, handle),
    )


def _mig(nvml: Any, handle: Any) -> Literal["", "on", "empty"]:  # noqa: ANN401
    try:
        if not nvml.nvmlDeviceGetMigMode(handle)[0]:
            return ""
        for index in range(nvml.nvmlDeviceGetMaxMigDeviceCount(handle)):
            with contextlib.suppress(nvml.NVMLError):
                nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, index)
                return "on"
    except nvml.NVMLError:
        return ""  # most GPUs cannot be cut
    return "empty"


def by_smi(text: str, query: str, error: str) -> Seen:
    """Return what nvidia-smi's head and its answer to `QUERY` tell; `error` is the library's."""
    cuda = re.search(r"CUDA Version:\s*(\d+\.\d+)", text)
    driver = re.search(r"Driver Version:\s*(\d+(?:\.\d+)+)", text)
    rows = [[cell.strip() for cell in line.split(",")] for line in query.splitlines()]
    whole = [row for row in rows if len(row) == len(QUERY.split(","))]
    gpus = tuple(
        Gpu(
            name=name,
            capability=capability if re.fullmatch(r"\d+\.\d", capability) else "",
            memory=int(memory) * 2**20 if memory.isdecimal() else 0,
            mig="on" if mig == "Enabled" else "",
        )
        for _, name, capability, memory, mig in whole
    )
    return Seen(
        driver=driver[1] if driver else "", cuda=cuda[1] if cuda else "", gpus=gpus, error=error
    )
