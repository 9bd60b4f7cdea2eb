"""The READMEs say what the code does, in two languages; the shell and workflows name what is."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from pipeline.cli import app
from pipeline.settings import HIDDEN, NAMES, shown
from tests import readme
from tests.unit.running import ROOT, checkout, run
from tests.unit.specs import spec
from tests.unit.translation import Section, drift, facts, sections
from tests.workflows import WORKFLOWS, read


@pytest.mark.parametrize("file", [readme.README, readme.KOREAN], ids=lambda path: path.name)
def test_the_generated_parts_of_a_readme_are_those_of_the_code(file: Path) -> None:
    text = file.read_text()
    assert readme.renewed(text) == text, "run `make docs`"


ENGLISH = sections(readme.README.read_text())
KOREAN = sections(readme.KOREAN.read_text())
VERBS = next(it.text for it in ENGLISH if it.title == "Verbs")


def test_each_readme_begins_with_a_link_to_the_other() -> None:
    first = [file.read_text().splitlines()[0] for file in (readme.README, readme.KOREAN)]
    assert first == ["[한국어](README.ko.md)", "[English](README.md)"]


def test_the_korean_readme_has_the_sections_of_the_english_one() -> None:
    differs = drift([it.heading for it in ENGLISH], [it.heading for it in KOREAN])
    assert not differs, "\n".join(["the READMEs differ in their sections:", *differs])


@pytest.mark.parametrize("english", ENGLISH, ids=lambda section: section.title)
def test_a_section_says_the_same_in_korean(english: Section) -> None:
    korean = [it for it in KOREAN if it.title == english.title]
    assert korean, f"README.ko.md has no section below `<!-- {english.title} -->`"
    differs = drift(facts(english.text), facts(korean[0].text))
    assert not differs, "\n".join([f"the READMEs differ in {english.heading!r}:", *differs])


def test_every_make_target_that_the_readme_names_is_there() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"(?:`|^)make ([a-z-]+)", readme.README.read_text(), re.MULTILINE))
    assert named <= targets


def test_the_readme_names_the_verbs_that_take_no_settings() -> None:
    words = re.search(
        r"all but (.*?) and most of `engine` take every setting as an option", VERBS, re.DOTALL
    )
    assert words
    verbs = dict(leaves(get_command(app)))
    without = {name for name, command in verbs.items() if not takes_settings(command)}
    of_engine = {name for name in verbs if name.startswith("engine ")}
    assert set(re.findall("`([^`]+)`", words[1])) == without - of_engine
    assert len(without & of_engine) > len(of_engine) / 2


def leaves(group: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield each verb with its command, those of groups as ``bundle import``."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from leaves(command, f"{prefix}{name} ")
        else:
            yield f"{prefix}{name}", command


def takes_settings(command: Any) -> bool:
    options = {option for it in command.params for option in it.opts}
    return {f"--{name.lower().replace('_', '-')}" for name in NAMES} <= options


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
        assert completed("cresset bu") == ["build", "build-only", "bundle"]
        assert "--pytorch-version-tag" in completed("cresset build --pytorch")


def test_what_the_compile_workflow_asks_for_shapes_the_wheels() -> None:
    workflow = read(ROOT / ".github" / "workflows" / "compile.yml")
    given = workflow["jobs"]["wheels"]["with"]["settings"].splitlines()
    asked = dict(
        re.findall(r"^([A-Z_]+)=\$\{\{ inputs\.(\w+) \}\}$", "\n".join(given), re.MULTILINE)
    )
    one = {"CCA": "8.6", "PYTORCH_VERSION_TAG": "v2.6.0", "CUDA_VERSION": "12.6"}
    other = {"CCA": "7.5", "PYTORCH_VERSION_TAG": "v2.7.0", "CUDA_VERSION": "12.8"}
    assert asked == {name: name.lower() for name in one}
    assert set(workflow["on"]["workflow_dispatch"]["inputs"]) == set(asked.values())
    fixed = dict(line.split("=", 1) for line in given if "inputs" not in line)

    def keys(settings: dict[str, str]) -> list[str]:
        lower = {name.lower(): value for name, value in (fixed | settings).items()}
        return [wheel.key for wheel in spec(**lower).compiled]

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
