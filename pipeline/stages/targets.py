"""Every target by name: which stages make it."""

from __future__ import annotations

from collections.abc import Mapping

from dagger import Container, Directory

from pipeline.spec import ImageSpec
from pipeline.stages.inputs import Inputs
from pipeline.stages.simple import simple
from pipeline.stages.train import train


def stages(
    spec: ImageSpec, base: Container, inputs: Inputs, labels: Mapping[str, str]
) -> dict[str, Container | Directory]:
    """Return the stages of the spec's target by name, lazy, in the order of the plan."""
    if spec.torch is None:
        return simple(spec, base, inputs, labels)
    return train(spec, spec.torch, base, inputs, labels)
