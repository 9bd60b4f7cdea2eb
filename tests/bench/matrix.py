"""``make bench-matrix``: planning ten thousand cells, beside planning them one by one.

Every cell compiles, and none shares its image with another: the least that there is to share. The
one by one is a sample of the same cells, each as ``build`` would plan it. Both are timed by the
processor's clock, so that what else the machine does changes little.
"""

from __future__ import annotations

import itertools
import random
import tempfile
import time
from pathlib import Path

from pipeline import matrix, validate
from pipeline.settings import Settings

ROUNDS = 3
SAMPLE = 200
GPUS = ("7.0", "7.5", "8.0", "8.6", "8.9", "9.0")


def main() -> None:
    """Print the seconds of both, and their ratio."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "images.toml")
        file.write_text(text())
        read = matrix.read(file)
    settings = Settings()
    taken, found = min((planned(read, settings) for _ in range(ROUNDS)), key=lambda it: it[0])
    sample = random.Random(0).sample(found, SAMPLE)  # noqa: S311 - not a secret
    begun = time.process_time()
    for cell in sample:
        spec = validate.image_spec(matrix.applied(settings, cell.settings))
        assert (spec.variant, spec.key) == (cell.variant, cell.key)
    single = (time.process_time() - begun) / SAMPLE * len(found)
    print(f"cells, each with an image of its own     {len(found):8}")
    print(f"planned together, best of {ROUNDS}, in s         {taken:8.2f}")
    print(f"planned one by one, from {SAMPLE} of them, in s {single:8.2f}")
    print(f"    ratio                                {single / taken:8.1f}")


def planned(read: matrix.Matrix, settings: Settings) -> tuple[float, tuple[matrix.Cell, ...]]:
    """Return the seconds that planning took, and the cells, each named and keyed."""
    begun = time.process_time()
    found = matrix.cells(read, settings)
    assert len({(cell.variant, cell.key) for cell in found}) == len(found)
    return time.process_time() - begun, found


def text() -> str:
    """Return a matrix of every set of six GPUs with what else there is to choose."""
    sets = [
        " ".join(chosen)
        for size in range(1, len(GPUS) + 1)
        for chosen in itertools.combinations(GPUS, size)
    ]
    return f"""
[settings]
BUILD_MODE = "include"
LINUX_DISTRO = "ubuntu"
[axes]
SERVICE = ["train", "devel"]
DISTRO_VERSION = ["22.04", "24.04"]
PYTHON_VERSION = ["3.10", "3.11", "3.12", "3.13"]
PYTORCH_VERSION_TAG = ["v2.6.0", "v2.7.1", "v2.8.0", "v2.9.1", "v2.10.0"]
CUDA_VERSION = ["12.6", "12.8"]
CCA = {sets}
"""


if __name__ == "__main__":
    main()
