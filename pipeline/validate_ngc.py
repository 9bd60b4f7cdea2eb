"""From what the user wrote to the base of the target ngc: NVIDIA's PyTorch image of a month."""

from __future__ import annotations

from dataclasses import replace

from pipeline.compat import lookup
from pipeline.compat.tables import Distribution
from pipeline.compat.toolkit import NGC_IMAGE
from pipeline.errors import Problem
from pipeline.settings import NAMES, SOURCES, Settings, group_of

_SOURCE = "https://docs.nvidia.com/deeplearning/frameworks/pytorch-release-notes/index.html"


def month(settings: Settings) -> str | Problem:
    """Return the month of NVIDIA's image, as ``25.09``: the one that is set, else the newest."""
    year, number = settings.ngc_year, settings.ngc_month
    if not year and not number:
        return lookup.newest_ngc_month()
    if year and number:
        asked = f"{year}.{number}"
        row = lookup.ngc_months(asked)
        return row if isinstance(row, Problem) else asked
    return Problem(
        "NGC_YEAR" if number else "NGC_MONTH",
        "",
        "NGC_YEAR and NGC_MONTH go together",
        allowed="a year and a month, each of two digits",
        next_step="set both or neither",
        source=_SOURCE,
    )


def distribution(settings: Settings, month: str) -> Distribution | Problem:
    """Return what the image of a month stands on, with that image in place of the plain one.

    A BASE_IMAGE may be of another distribution, which DISTRO_VERSION tells.
    """
    row = lookup.ngc_months(month)
    if isinstance(row, Problem):
        return row
    name, version = row.distribution, row.version
    if _tells_base(settings):
        name, version = settings.linux_distro, settings.distro_version
    found = lookup.distribution(name, version)
    if isinstance(found, Problem):
        return found
    return replace(found, image=f"{NGC_IMAGE}:{month}-py3", bootstrap=False)


def unread(settings: Settings) -> list[str]:
    """Return what was set and changes nothing, for the base has its own, each with why."""
    own = {*_OWN, *(name for name, field in NAMES.items() if group_of(field) == SOURCES)}
    if not _tells_base(settings):
        own |= _DISTRIBUTION
    return [
        f"{name} is set and changes nothing: what NVIDIA's image has of that is its own"
        for name, field in NAMES.items()
        if name in own and getattr(settings, name.lower()) != field.default
    ]


_DISTRIBUTION = {"LINUX_DISTRO", "DISTRO_VERSION"}
_OWN = {
    "BUILD_MODE", "CCA", "CUDA_VERSION", "CUDNN_VERSION", "IMAGE_FLAVOR", "MKL_MODE",
    "PYTHON_VERSION", "PYTORCH_INDEX_URL", "PYTORCH_VERSION", "PYTORCH_VERSION_TAG",
    "TORCHVISION_VERSION", "TORCHVISION_VERSION_TAG", "TORCH_FLAGS",
}  # fmt: skip


def _tells_base(settings: Settings) -> bool:
    return bool(settings.distro_version and (settings.base_image or settings.base_archive))
