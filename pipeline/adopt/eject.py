"""A folder with a plain Dockerfile and the few files it copies: an image without Cresset."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from pipeline import reqs
from pipeline.adopt import dockerfile
from pipeline.adopt.dockerfile import WHEELS, Copied
from pipeline.errors import CressetError
from pipeline.labels import BASE, labels
from pipeline.publish import KEY_LABEL
from pipeline.spec import ImageSpec

_README = """\
# {variant}

The image as plain Docker builds it, with BuildKit (Docker 23 and newer, or DOCKER_BUILDKIT=1):

    docker build --tag {name}:{variant} .

Its packages are in `reqs/{pip}` (pip) and in the Dockerfile's own lists (apt). A
container becomes the user of UID, GID, USR and GRP as it starts:

    docker run --rm -it --gpus all -e UID=$(id -u) -e GID=$(id -g) {name}:{variant}
"""
_WHEELS = """
What is compiled comes from `{folder}/`. Put {wheels} there first, which Cresset makes with
`python -m pipeline wheels --output {folder}` and the settings of this image.
"""
_LEFT_OUT = (KEY_LABEL, BASE)


def ejected(spec: ImageSpec, name: str, folder: Path = reqs.FOLDER) -> dict[str, Copied]:
    """Return the Dockerfile of the image, and what is beside it, by path.

    No mirror, no password and no key of the image is in it; `folder` has the requirements.
    """
    from pipeline.stages import base, inputs, targets  # noqa: PLC0415 - they import the SDK

    bottom = base.base_from_registry(spec.base.image)
    given = inputs.inputs(
        folder,
        [file.name for file in spec.pip],
        torch_index_url=spec.torch.index if spec.torch and not spec.torch.torch_wheel else "",
    )
    stored = {it.key: inputs.finished_wheel(Path(WHEELS), it.package) for it in spec.compiled}
    written = {key: text for key, text in labels(spec, "").items() if key not in _LEFT_OUT}
    stages = targets.stages(spec, bottom, bottom, given, written, stored)
    text, files = dockerfile.written({"base": bottom, **stages})
    readme = _README.format(variant=spec.variant, name=name, pip=reqs.PIP_TRAIN)
    if spec.compiled:
        wheels = " and ".join(it.variant for it in spec.compiled)
        readme += _WHEELS.format(folder=WHEELS, wheels=wheels)
        files[f"{WHEELS}/README"] = Copied(b"The wheels of torch and torchvision belong here.\n")
    content = {"Dockerfile": text, "README.md": readme}
    return {name: Copied(text.encode()) for name, text in content.items()} | files


def write(files: Mapping[str, Copied], output: Path) -> None:
    """Write the files to a new folder, all of them or none.

    Raises:
        CressetError: the folder is there and not empty, or cannot be written.

    """
    try:
        if output.exists() and (not output.is_dir() or any(output.iterdir())):
            raise CressetError(
                f"{output} is there already, and nothing is written over",
                next_step="name another folder with --output, or move that one away",
            )
        output.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent))
        try:
            for name, file in files.items():
                path = partial / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(file.content)
                path.chmod(file.mode)
            partial.chmod(0o755)
            # A rename takes the place of an empty folder.
            partial.rename(output)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        raise CressetError(
            f"{output} cannot be written",
            why=error.strerror or str(error),
            next_step="name a folder with --output that you may write to",
        ) from error
