"""The workflows and actions of ``.github``, read as GitHub reads them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
ACTIONS = sorted((ROOT / ".github" / "actions").glob("*/action.yml"))
EXPRESSION = re.compile(r"\$\{\{\s*(.*?)\s*\}\}", re.DOTALL)


@dataclass(frozen=True)
class Step:
    """One step, with the environment that its workflow and its job give it."""

    place: str
    """The workflow and the job, or the action, as ``link/work``."""
    content: Mapping[str, Any]
    env: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """How the step is called here: its place, and its name or what it uses."""
        return f"{self.place}: {self.content.get('name') or self.content.get('uses')}"

    @property
    def script(self) -> str:
        return str(self.content.get("run", ""))


def read(path: Path) -> dict[str, Any]:
    """Return a workflow or an action; what starts a workflow is under ``on``."""
    content: dict[Any, Any] = yaml.safe_load(path.read_text())
    # In YAML 1.1 the word is a boolean.
    return {"on" if key is True else key: value for key, value in content.items()}


def jobs() -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Yield each job's place, the job, and its workflow."""
    for path in WORKFLOWS:
        workflow = read(path)
        for name, job in workflow["jobs"].items():
            yield f"{path.stem}/{name}", job, workflow


def steps() -> Iterator[Step]:
    """Yield every step of every job and of every action."""
    for place, job, workflow in jobs():
        env = workflow.get("env", {}) | job.get("env", {})
        for step in job.get("steps", ()):
            yield Step(place, step, env | step.get("env", {}))
    for path in ACTIONS:
        for step in read(path)["runs"]["steps"]:
            yield Step(path.parent.name, step, step.get("env", {}))


def substituted(text: object, values: Mapping[str, str]) -> str:
    """Return a text with each expression replaced; KeyError for one that `values` lacks."""
    said = str(text).lower() if isinstance(text, bool) else str(text)
    return EXPRESSION.sub(lambda it: values[it[1]], said)
