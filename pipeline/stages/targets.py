"""Every target by name: which stages make it."""

from __future__ import annotations

from collections.abc import Mapping

from dagger import Container, Directory

from pipeline.spec import ImageSpec
from pipeline.stages.base import bottom
from pipeline.stages.devel import devel
from pipeline.stages.inputs import Inputs
from pipeline.stages.ngc import ngc
from pipeline.stages.simple import simple
from pipeline.stages.train import train


def stages(
    spec: ImageSpec,
    base: Container,
    build_base: Container,
    inputs: Inputs,
    labels: Mapping[str, str],
    stored: Mapping[str, Directory],
) -> dict[str, Container | Directory]:
    """Return the stages of the spec's target by name, lazy, in the order of the plan.

    `stored` are compiled wheels that exist already, by key.
    """
    if spec.target == "ngc":
        return ngc(spec, base, inputs, labels)
    if spec.torch is None:
        return simple(spec, bottom(base, spec, inputs), inputs, labels)
    if spec.target == "devel":
        assert spec.torch.torch_wheel is not None
        return devel(spec, spec.torch.torch_wheel, build_base, inputs, labels)
    below = bottom(base, spec, inputs)
    return train(spec, spec.torch, below, build_base, inputs, labels, stored)
