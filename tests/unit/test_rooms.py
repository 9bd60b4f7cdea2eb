"""Who may import what, so that a command starts fast and a stage can be read alone."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.running import ROOT

PIPELINE = ROOT / "pipeline"
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PIPELINE.rglob("*.py"))
}
PURE = ("spec", "compat", "matrix", "plan", "tags", "errors")
SPEAK_DAGGER = ("engine", "caches", "stages", "store", "publish", "attest")


def room(module: str) -> str:
    """Return the part of the pipeline that a module belongs to."""
    return module.split(".")[1] if "." in module else ""


def imported(path: Path, *, when_running: bool = False) -> set[str]:
    """Return every module that a file imports, inside functions too.

    `when_running` leaves out what only the type checker sees.
    """
    return set(_imports(ast.parse(path.read_text()), when_running=when_running))


def _imports(node: ast.AST, *, when_running: bool) -> Iterator[str]:
    if when_running and isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
        return
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        assert node.level == 0, "relative"
        yield node.module or ""
        yield from (f"{node.module}.{alias.name}" for alias in node.names)
    for child in ast.iter_child_nodes(node):
        yield from _imports(child, when_running=when_running)


def of(module: str, *packages: str) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


@pytest.mark.parametrize("module", [it for it in MODULES if room(it) in PURE])
def test_what_is_pure_knows_no_dagger(module: str) -> None:
    assert {it for it in imported(MODULES[module]) if of(it, "dagger")} == set()


@pytest.mark.parametrize("module", [it for it in MODULES if room(it) == "stages"])
def test_a_stage_knows_no_settings_and_no_command_line(module: str) -> None:
    wanted = ("pipeline.settings", "pipeline.cli", "os.environ", "dotenv")
    assert {it for it in imported(MODULES[module]) if of(it, *wanted)} == set()


def test_only_some_rooms_speak_to_dagger() -> None:
    speaking = {
        room(it)
        for it, path in MODULES.items()
        if any(of(name, "dagger") for name in imported(path, when_running=True))
    }
    assert speaking <= set(SPEAK_DAGGER)
    assert {"engine", "caches", "stages"} <= speaking, "or nothing is looked at"


def test_imports_inside_functions_count(tmp_path: Path) -> None:
    file = tmp_path / "it.py"
    file.write_text("if TYPE_CHECKING:\n    import a.b\ndef f():\n    from c import d\n")
    assert imported(file) == {"a.b", "c", "c.d"}
    assert imported(file, when_running=True) == {"c", "c.d"}


def test_one_place_opens_a_connection_and_one_makes_caches() -> None:
    called = {
        name: {module for module, path in MODULES.items() if f"{name}(" in path.read_text()}
        for name in ("dagger.connection", "dag.cache_volume")
    }
    assert called == {
        "dagger.connection": {"pipeline.engine.session"},
        "dag.cache_volume": {"pipeline.caches"},
    }


@pytest.mark.parametrize("module", [it for it in MODULES if ".inside." in it])
def test_what_runs_inside_a_container_needs_python_alone(module: str) -> None:
    elsewhere = {it.partition(".")[0] for it in imported(MODULES[module])} - sys.stdlib_module_names
    # What it is to look at is what it may import.
    assert elsewhere <= ({"torch", "torchvision"} if module.endswith("probe") else set())


def test_the_command_line_starts_without_anything_heavy() -> None:
    heavy = ["dagger", "httpx", "oras", "requests", "rich.live", "packaging", "anyio", "asyncio"]
    code = f"import sys, pipeline.cli; print([it for it in {heavy} if it in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
