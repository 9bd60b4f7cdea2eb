"""The README says what the code does; the shell and the workflows name what there is."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from pipeline.settings import HIDDEN, NAMES, shown
from tests import readme
from tests.unit.running import ROOT, checkout, run
from tests.unit.specs import spec


def test_the_generated_parts_of_the_readme_are_those_of_the_code() -> None:
    text = readme.README.read_text()
    assert readme.renewed(text) == text, "run `make docs`"


def test_every_make_target_that_the_readme_names_is_there() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"(?:`|^)make ([a-z-]+)", readme.README.read_text(), re.MULTILINE))
    assert named <= targets


def examples() -> list[tuple[str, ...]]:
    """Return the commands of the README that make something, with their arguments."""
    lines = re.findall(r"^(?:make|python -m pipeline) .*$", readme.README.read_text(), re.MULTILINE)
    commands = (shlex.split(line, comments=True) for line in lines)
    return [
        tuple(command[1:] if command[0] == "make" else command[3:])
        for command in commands
        if {"build", "wheels", "plan"} & set(command)
    ]


@pytest.mark.parametrize("command", examples(), ids=" ".join)
def test_every_example_of_the_readme_is_accepted(command: tuple[str, ...], tmp_path: Path) -> None:
    settings = dict(word.split("=", 1) for word in command[1:] if re.match("[A-Z_]+=", word))
    words = [word for word in command if not re.match("[A-Z_]+=", word)]
    dry = [] if words[0] == "plan" else ["--dry-run"]
    # A registry would be asked what it has.
    with checkout(tmp_path / "checkout"):
        ran = run(*words, *dry, environ=settings | {"WHEEL_STORE": "off"})
    assert ran.code == 0, ran.err


def test_a_shell_completes_verbs_and_settings(tmp_path: Path) -> None:
    def completed(words: str) -> list[str]:
        asked = {"_CRESSET_COMPLETE": "complete_bash", "COMP_WORDS": words}
        return run(environ=asked | {"COMP_CWORD": str(words.count(" "))}).out.split()

    with checkout(tmp_path):
        assert completed("cresset bu") == ["build", "build-only"]
        assert "--pytorch-version-tag" in completed("cresset build --pytorch")


WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def test_what_the_compile_workflow_asks_for_shapes_the_wheels() -> None:
    text = (ROOT / ".github" / "workflows" / "compile-once.yml").read_text()
    asked = dict(re.findall(r"^ +([A-Z_]+): \$\{\{ inputs\.(\w+) \}\}$", text, re.MULTILINE))
    one = {"CCA": "8.6", "PYTORCH_VERSION_TAG": "v2.6.0", "CUDA_VERSION": "12.6"}
    other = {"CCA": "7.5", "PYTORCH_VERSION_TAG": "v2.7.0", "CUDA_VERSION": "12.8"}
    assert asked == {name: name.lower() for name in one}
    assert set(re.findall(r"inputs\.(\w+)", text)) == {*asked.values(), "link"}

    def keys(settings: dict[str, str]) -> list[str]:
        lower = {name.lower(): value for name, value in settings.items()}
        it = spec(build_mode="include", linux_distro="ubuntu", **lower)
        return [wheel.key for wheel in it.compiled]

    # The releases differ in the CUDA versions that they know.
    for name in ("CCA", "PYTORCH_VERSION_TAG"):
        assert keys(one | {name: other[name]}) != keys(one)
    assert keys(other | {"CUDA_VERSION": one["CUDA_VERSION"]}) != keys(other)


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.name)
def test_what_may_hold_a_password_is_no_variable_of_a_workflow(workflow: Path) -> None:
    # Variables stand unmasked in the log, and secrets do not:
    # https://docs.github.com/en/actions/concepts/workflows-and-actions/variables
    addresses = {name for name in NAMES if HIDDEN in shown("me:hunter2@host", name)}
    assert "CACHE_URL" in addresses
    assert addresses.isdisjoint(re.findall(r"\bvars\.(\w+)", workflow.read_text()))
