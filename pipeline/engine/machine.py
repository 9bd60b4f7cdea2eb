"""What the machine of an engine holds, which may be another than this one."""

from __future__ import annotations

import uuid
from typing import Final

from dagger import Container

_ASK: Final = """
nproc
sed -n 's/^MemTotal: *\\([0-9]*\\) kB/\\1/p' /proc/meminfo
cat /sys/fs/cgroup/memory.max 2>/dev/null || cat /sys/fs/cgroup/memory/memory.limit_in_bytes || true
"""


async def ask(base: Container) -> tuple[int, int]:
    """Return the cores and the bytes of memory that a container of the engine may use."""
    # The engine may have been moved since it was asked last, so it never has the answer at hand.
    asked = base.with_env_variable("CRESSET_ASKED", uuid.uuid4().hex)
    cores, total, *limit = (await asked.with_exec(["sh", "-c", _ASK]).stdout()).split()
    memory = int(total) * 1024
    # A control group without a limit says "max", or a number that no machine has.
    return int(cores), min([memory, *(int(it) for it in limit if it.isdecimal())])
