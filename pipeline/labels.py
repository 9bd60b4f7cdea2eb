"""What is written on an image: labels of its config, and the same as annotations of its manifest.

Those of ``org.opencontainers.image`` are the OCI image specification's (annotations.md); those of
``dev.cresset`` are what a person or a program asks before it pulls. Nothing that differs from one
build of the same key and checkout to the next is among them, so `org.opencontainers.image.created`
is not: a label is part of the config, and a build that changes nothing would get another digest by
its clock alone. When it was made is in its provenance, and in the dated tag of its delivery.
"""

from __future__ import annotations

import importlib.metadata
import re
from typing import Final

from pipeline.compat import rules
from pipeline.publish import KEY_LABEL
from pipeline.spec import ImageSpec

PROJECT: Final = "https://github.com/cresset-template/cresset"
ARCHES: Final = "dev.cresset.arches"
"""GPU code in it by the names that cuobjdump lists, spaces between; known once it is checked."""
BASE: Final = "dev.cresset.base"
TARGET: Final = "dev.cresset.target"

_DESCRIPTIONS = {
    "train": "Deep-learning development image: PyTorch, a shell and the team's packages",
    "devel": "Toolchain and sources to compile PyTorch with",
    "simple": "Development image: Python, a shell and the team's packages",
    "ngc": "NVIDIA's PyTorch image with a shell and the team's packages",
}


def labels(spec: ImageSpec, origin: str, source: str = "", revision: str = "") -> dict[str, str]:
    """Return the labels of an image, none of them empty.

    `origin` is where its base came from, `source` and `revision` the repository that this is a
    checkout of, and its commit.
    """
    pulled = re.fullmatch(r"image \S+@(sha256:[0-9a-f]{64})", origin)
    torch = spec.torch
    written = {
        "org.opencontainers.image.title": "cresset",
        "org.opencontainers.image.description": _DESCRIPTIONS[spec.target],
        "org.opencontainers.image.version": spec.variant,
        "org.opencontainers.image.vendor": "Cresset",
        "org.opencontainers.image.url": PROJECT,
        "org.opencontainers.image.documentation": f"{PROJECT}#readme",
        "org.opencontainers.image.source": source or PROJECT,
        "org.opencontainers.image.revision": revision,
        # Its own files, and those of the packages in it, each of which has a license of its own.
        "org.opencontainers.image.licenses": "Apache-2.0 AND LicenseRef-packages",
        "org.opencontainers.image.base.name": spec.base.image,
        # The digest of a manifest, which a base made by mmdebstrap has none of.
        "org.opencontainers.image.base.digest": pulled[1] if pulled else "",
        KEY_LABEL: spec.key,
        TARGET: spec.target,
        "dev.cresset.python": spec.python,
        "dev.cresset.cuda": torch.cuda if torch else "",
        "dev.cresset.torch": torch.version if torch else "",
        "dev.cresset.torchvision": torch.vision if torch else "",
        "dev.cresset.driver": rules.least_driver(torch.cuda) if torch else "",
        BASE: origin,
        "dev.cresset.version": importlib.metadata.version("cresset"),
    }
    return {name: text for name, text in written.items() if text}
