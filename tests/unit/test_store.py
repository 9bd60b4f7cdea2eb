"""The wheel store in a folder: whole wheels, by their keys, whoever else is at it."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import cast

import dagger
import pytest
from dagger._exceptions import QueryErrorValue
from gql import GraphQLRequest

from pipeline import store
from pipeline.errors import PublishError
from pipeline.settings import load
from pipeline.spec import WheelSpec
from pipeline.store import Folder, Registry
from tests.graph.graph import calls
from tests.unit.specs import spec

WHEEL = "torch.whl"


def torch(**settings: str) -> WheelSpec:
    compiled = {"build_mode": "include", "pytorch_version_tag": "v2.6.0", "cca": "8.6"}
    return spec(**compiled | settings).compiled[0]


def tag(wheel: WheelSpec) -> str:
    return f"{wheel.variant}-{wheel.key[:16]}"


def settings(**values: str) -> store.Store | None:
    return store.store(load(values, environ={}, env_file=Path("/nonexistent")).settings)


class FakeDirectory:
    """Stands for a Directory of an engine: writes one file where it is exported to.

    `then` is what goes on elsewhere meanwhile.
    """

    def __init__(self, then: Callable[[], object] = lambda: None) -> None:
        self.then = then

    async def export(self, path: str) -> str:
        self.write(Path(path))
        return path

    def write(self, folder: Path) -> None:
        (folder / WHEEL).write_text("mine")
        self.then()


def put(folder: Path, fake: FakeDirectory) -> None:
    asyncio.run(Folder(folder).put(torch(), cast("dagger.Directory", fake)))


def left(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_the_store_is_in_the_registry_else_in_a_folder(checkout: Path) -> None:
    assert settings() == Folder(checkout / "cache" / "cresset" / "wheels")
    named = settings(registry="localhost:5000", image_name="team/Cresset:tag")
    assert named == Registry("localhost:5000/team/cresset-wheels")
    assert settings(wheel_store="off") is None
    assert settings(wheel_store="off", registry="localhost:5000") is None


def test_what_was_put_is_there_by_its_key(tmp_path: Path) -> None:
    it = Folder(tmp_path / "not" / "yet")
    assert not it.has(torch())
    put(it.path, FakeDirectory())
    assert it.has(torch())
    (found,) = calls(it.wheel(torch()), "directory")
    assert Path(found["path"], WHEEL).read_text() == "mine"
    assert left(it.path) == {tag(torch())}
    other = torch(torch_flags="USE_GLOO=0")
    assert other.variant == torch().variant
    assert not it.has(other)


def test_half_a_wheel_is_none(tmp_path: Path) -> None:
    halves = []
    put(tmp_path, FakeDirectory(lambda: halves.append(Folder(tmp_path).has(torch()))))
    assert halves == [False]


def test_the_wheel_of_another_build_that_was_faster_stays(tmp_path: Path) -> None:
    put(tmp_path, FakeDirectory(lambda: put_by_another(tmp_path)))
    assert (tmp_path / tag(torch()) / WHEEL).read_text() == "theirs"
    assert left(tmp_path) == {tag(torch())}


def put_by_another(folder: Path) -> None:
    (folder / tag(torch())).mkdir()
    (folder / tag(torch()) / WHEEL).write_text("theirs")


def test_what_cannot_be_written_is_a_publish_error(tmp_path: Path) -> None:
    def full() -> None:
        raise OSError(28, "No space left on device")

    def refused() -> None:
        said = QueryErrorValue("no space left in the engine")
        raise dagger.QueryError([said], GraphQLRequest("{ version }"))

    (tmp_path / "file").touch()
    for folder, fake, why in (
        (tmp_path / "store", FakeDirectory(full), "No space left on device"),
        (tmp_path / "store", FakeDirectory(refused), "no space left in the engine"),
        (tmp_path / "file", FakeDirectory(), "File exists"),
    ):
        with pytest.raises(PublishError) as raised:
            put(folder, fake)
        assert why in raised.value.why
        assert str(folder) in raised.value.what
    assert left(tmp_path / "store") == set()


def test_a_file_where_the_wheel_should_lie_is_a_publish_error(tmp_path: Path) -> None:
    (tmp_path / tag(torch())).touch()
    with pytest.raises(PublishError):
        put(tmp_path, FakeDirectory())


def test_a_folder_without_a_wheel_is_none(tmp_path: Path) -> None:
    (tmp_path / tag(torch())).mkdir()
    assert not Folder(tmp_path).has(torch())
    put(tmp_path, FakeDirectory())
    assert Folder(tmp_path).has(torch())


def test_what_was_left_half_written_goes_after_a_day(tmp_path: Path) -> None:
    hour = 3600
    for name, age in ((".other-wheel.x1", 30 * hour), (".other-wheel.x2", hour)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "half").touch()
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    put(tmp_path, FakeDirectory())
    assert left(tmp_path) == {tag(torch()), ".other-wheel.x2"}
    assert left(tmp_path / tag(torch())) == {WHEEL}
