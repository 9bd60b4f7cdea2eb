"""Bundles as files: what is in them, what is refused, and what packages are answered with."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest
import requests

from pipeline import build
from pipeline.bundle import export, importing, layout, packages, supply
from pipeline.bundle.layout import NAME, Bundle
from pipeline.bundle.supply import ORIGIN, Given, Taken
from pipeline.engine.local import build as programs
from pipeline.engine.local import places, rootfs
from pipeline.errors import BundleError
from pipeline.settings import Settings
from pipeline.spec import SourceSpec
from pipeline.stages import tarball
from pipeline.stages import wheels as stages_of_wheels
from tests.unit.specs import spec

if TYPE_CHECKING:
    from pipeline.run import Run

WHEEL = b"a wheel" * 1000
PACKAGES = "http://deb.example.com/debian/dists/trixie/InRelease"


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def base_archive(folder: Path) -> Path:
    """Write an OCI archive of one layer."""
    blobs = {"config": b"{}", "layer": b"layer" * 500}
    described = {
        name: {"mediaType": "x", "digest": f"sha256:{sha256(content)}", "size": len(content)}
        for name, content in blobs.items()
    }
    manifest = json.dumps({"config": described["config"], "layers": [described["layer"]]}).encode()
    at = {"mediaType": "m", "digest": f"sha256:{sha256(manifest)}", "size": len(manifest)}
    files = {f"blobs/sha256/{sha256(it)}": it for it in (*blobs.values(), manifest)}
    files["index.json"] = json.dumps({"manifests": [at]}).encode()
    path = folder / "base.oci.tar"
    with tarfile.open(path, "w") as tar:
        for name, content in files.items():
            (folder / "content").write_bytes(content)
            tar.add(folder / "content", name)
    return path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Return a bundle with a base, a wheel and a file of apt's."""
    path = tmp_path / "it.tar"
    with layout.written(path) as writer:
        for role, name, content in (
            ("python", "index/einops/einops-1.0-py3-none-any.whl", WHEEL),
            ("apt", PACKAGES, b"signed"),
        ):
            (tmp_path / "partial").write_bytes(content)
            writer.add(role, name, tmp_path / "partial")  # type: ignore[arg-type]
            assert not (tmp_path / "partial").exists()
        notes = {NAME: spec("simple").base.image, ORIGIN: "image it@sha256:1"}
        writer.add_image("base", base_archive(tmp_path), notes)
        writer.close({"dev.cresset.version": "1"})
    return path


@pytest.fixture
def bundle(file: Path) -> Iterator[Bundle]:
    """Yield it, opened."""
    opened = Bundle.opened(file)
    yield opened
    opened.close()


def test_a_bundle_is_an_oci_layout_whose_blobs_are_what_their_names_say(file: Path) -> None:
    with tarfile.open(file) as tar:
        content = {it.name: tar.extractfile(it).read() for it in tar}  # type: ignore[union-attr]
    assert json.loads(content.pop("oci-layout")) == {"imageLayoutVersion": "1.0.0"}
    index = json.loads(content.pop("index.json"))
    assert [it["annotations"][layout.ROLE] for it in index["manifests"]] == [
        "base", "python", "apt",
    ]  # fmt: skip
    assert all(name == f"blobs/sha256/{sha256(it)}" for name, it in content.items())
    for described in index["manifests"]:
        manifest = json.loads(content[f"blobs/sha256/{described['digest'][7:]}"])
        for it in (manifest["config"], *manifest["layers"]):
            assert len(content[f"blobs/sha256/{it['digest'][7:]}"]) == it["size"]


def test_what_is_whole_is_read_back(bundle: Bundle, tmp_path: Path) -> None:
    said: list[str] = []
    once = {blob.digest: blob.size for part in bundle.parts for blob in part.blobs}
    assert bundle.check(said.append) == sum(once.values())
    assert said
    (blob,) = bundle.files("python").values()
    bundle.write(blob, tmp_path / "back.whl")
    assert (tmp_path / "back.whl").read_bytes() == WHEEL


def test_an_image_comes_out_as_an_archive_of_its_own(bundle: Bundle, tmp_path: Path) -> None:
    (part,) = bundle.of("base")
    bundle.write_image(part, tmp_path / "out.tar", "cresset:it")
    with tarfile.open(tmp_path / "out.tar") as tar:
        names = set(tar.getnames())
        (told,) = json.load(tar.extractfile("manifest.json"))  # type: ignore[arg-type]
    assert told["RepoTags"] == ["cresset:it"]
    assert {told["Config"], *told["Layers"], "index.json", "oci-layout"} <= names


def test_one_changed_byte_is_found_and_leaves_nothing(file: Path, tmp_path: Path) -> None:
    content = file.read_bytes()
    at = content.index(WHEEL) + 77
    file.write_bytes(content[:at] + b"X" + content[at + 1 :])
    bundle = Bundle.opened(file)
    with pytest.raises(BundleError, match="damaged") as refused:
        bundle.check(print)
    assert f"sha256:{sha256(WHEEL)}" in refused.value.why
    (blob,) = bundle.files("python").values()
    with pytest.raises(BundleError):
        bundle.write(blob, tmp_path / "back.whl")
    assert not list(tmp_path.glob("*back.whl*"))
    bundle.close()


@pytest.mark.parametrize("part", [0.3, 0.7, 0.9])
def test_one_that_is_cut_off_is_refused(file: Path, part: float) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content.rstrip(b"\0")) * part)])
    with pytest.raises(BundleError, match=r"is no bundle|is not whole"):
        Bundle.opened(file)


def test_what_is_no_bundle_is_said(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="there is no bundle"):
        Bundle.opened(tmp_path / "none.tar")
    (tmp_path / "text.tar").write_text("text" * 1000)
    with pytest.raises(BundleError, match="is no bundle"):
        Bundle.opened(tmp_path / "text.tar")
    with pytest.raises(BundleError, match="this version of Cresset"):
        Bundle.opened(base_archive(tmp_path))


def test_one_that_is_given_up_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), layout.written(tmp_path / "it.tar"):
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_the_base_of_the_spec_is_given_and_no_other(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    given = Given(bundle, packages.Replay(bundle), tmp_path)
    archive, origin = given.base(spec("simple").base)
    assert origin == "image it@sha256:1"
    with tarfile.open(archive) as tar:
        assert "index.json" in tar.getnames()
    with pytest.raises(BundleError, match="has no base ubuntu:") as refused:
        given.base(spec("simple", linux_distro="ubuntu").base)
    assert spec("simple").base.image in refused.value.why


def test_a_source_is_given_as_it_was_taken_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    wanted = SourceSpec(kind="git", location="https://me:secret@git.example/vision.git", ref="v1")
    other = wanted.model_copy(update={"ref": "v2"})
    (tmp_path / "made").write_bytes(WHEEL)
    with layout.written(tmp_path / "it.tar") as writer:
        recorder = packages.Recorder(packages.Upstream(packages.URL), writer, tmp_path)
        Taken(writer, tmp_path, recorder).add_source(wanted, tmp_path / "made")
        writer.close({})
    with supply.given(Settings(bundle=str(tmp_path / "it.tar"))) as given:
        assert given
        file = given.source(wanted)
        assert file.read_bytes() == WHEEL
        with pytest.raises(BundleError, match=r"has no source https://git\.example/vision\.git v2"):
            given.source(other)
    assert not file.exists()


def test_the_sources_of_a_wheel_that_a_store_had_are_taken_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = spec(VISION_SOURCE="apt", PYTORCH_VERSION="2.6.0", CCA="8.6")
    (wheel,) = image.compiled

    class Packed:
        async def export(self, path: str) -> None:
            Path(path).write_text("packed")  # noqa: ASYNC240 - a few bytes

    monkeypatch.setattr(stages_of_wheels, "wheel_source", lambda *_: None)
    monkeypatch.setattr(tarball, "tarball", lambda *_: Packed())
    run = SimpleNamespace(spec=image, stored={wheel.key: None}, build_base=None, inputs=None)
    path = tmp_path / "bundle.tar"
    with layout.written(path) as writer:
        taken = Taken(writer, tmp_path, cast("packages.Packages", None))
        asyncio.run(build._take_sources(taken, cast("Run", run)))
        writer.close({})
    with contextlib.closing(Bundle.opened(path)) as made:
        assert made.files("sources").keys() == {it.tarball for it in wheel.sources}


def write_wheel(path: Path, folder: Path) -> None:
    """Write a bundle of one compiled wheel and its record."""
    made = folder / "made"
    made.mkdir()
    (made / "torch-1-cp313.whl").write_bytes(WHEEL)
    (made / "record.json").write_text("{}")
    with layout.written(path) as writer:
        recorder = packages.Recorder(packages.Upstream(packages.URL), writer, folder)
        Taken(writer, folder, recorder).add_wheel("torch-1-abc", made)
        writer.close({})


def test_a_finished_wheel_that_was_not_imported_is_not_compiled_again(tmp_path: Path) -> None:
    write_wheel(tmp_path / "it.tar", tmp_path)
    with contextlib.closing(Bundle.opened(tmp_path / "it.tar")) as bundle:
        given = Given(bundle, packages.Replay(bundle), tmp_path)
        given.check_imported(["torch-1-other"])
        with pytest.raises(BundleError, match="has torch-1-abc") as refused:
            given.check_imported(["torch-1-abc"])
    assert f"bundle import {tmp_path / 'it.tar'}" in refused.value.next_step


def test_a_compiled_wheel_goes_from_the_store_into_the_bundle_and_into_another_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_wheel(tmp_path / "it.tar", tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    importing.put_in_place(tmp_path / "it.tar")
    importing.put_in_place(tmp_path / "it.tar")  # what is there stays
    (kept,) = (tmp_path / "cache" / "cresset" / "wheels").iterdir()
    assert kept.name == "torch-1-abc"
    assert sorted(it.name for it in kept.iterdir()) == ["record.json", "torch-1-cp313.whl"]
    assert (kept / "torch-1-cp313.whl").read_bytes() == WHEEL


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of the wheel store, in a cache of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "cache" / "cresset" / "wheels"


def with_wheel(folder: Path) -> Path:
    """Write a bundle with a compiled wheel, and no image."""
    (folder / "partial").write_bytes(WHEEL)
    with layout.written(folder / "wheel.tar") as writer:
        writer.add("wheels", "torch-1-abc/torch-1-cp313.whl", folder / "partial")
        writer.close({})
    return folder / "wheel.tar"


def test_nothing_is_taken_from_a_bundle_without_an_image(wheels: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no bundle to import") as refused:
        importing.bring_in(with_wheel(tmp_path), tmp_path / "dist")
    assert refused.value.why == "it has no image"
    assert "bundle export" in refused.value.next_step
    assert not wheels.exists()


def before(monkeypatch: pytest.MonkeyPatch, where: Any, name: str, first: Any) -> None:
    """Let something happen once, before a function is called."""
    called = getattr(where, name)
    happened: list[bool] = []

    def wrapped(*args: Any, **named: Any) -> Any:
        if not happened:
            happened.append(True)
            first()
        return called(*args, **named)

    monkeypatch.setattr(where, name, wrapped)


def test_two_imports_at_once_do_not_meet(
    wheels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = with_wheel(tmp_path)
    before(monkeypatch, Bundle, "write", lambda: importing.put_in_place(path))
    importing.put_in_place(path)
    (kept,) = wheels.iterdir()
    assert (kept / "torch-1-cp313.whl").read_bytes() == WHEEL


@pytest.mark.usefixtures("wheels")
def test_an_engine_that_another_import_has_put_in_place_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(programs, "go_version", lambda: "")
    with layout.written(tmp_path / "it.tar") as writer:
        for name in (export.ROOT, export.PROGRAMS):
            (tmp_path / "partial").write_bytes(b"packed")
            writer.add("engine", name, tmp_path / "partial")
        writer.annotate("engine", {export.RECIPE: export.recipe()})
        writer.close({})

    def another() -> None:
        for place in (rootfs.place(), programs.imported()):
            place.mkdir(parents=True)
            (place / "theirs").touch()

    before(monkeypatch, places, "locked", another)
    monkeypatch.setattr(export, "unpack", lambda *_: pytest.fail("it is there already"))
    importing.put_in_place(tmp_path / "it.tar")
    assert (rootfs.place() / "theirs").exists()


def test_only_what_is_in_it_is_answered(bundle: Bundle) -> None:
    replay = packages.Replay(bundle)
    assert replay.indexes == {"index"}
    shown = b"".join(replay.answer("/index/Einops/").body).decode()
    (link,) = packages.listed(shown, "text/html", packages.URL)
    assert link.sha256 == sha256(WHEEL)
    assert b"".join(replay.answer(link.url.removeprefix(packages.URL)).body) == WHEEL
    assert b"".join(replay.answer(PACKAGES).body) == b"signed"
    for other in (
        "/index/torch/",
        "/torch/einops/",
        "http://example.com/",
        "/npm/x",
        "/etc/passwd",
    ):
        assert replay.answer(other).status == 404


def test_an_export_is_no_way_to_what_only_its_machine_reaches(tmp_path: Path) -> None:
    with layout.written(tmp_path / "it.tar") as writer:
        recorder = packages.Recorder(packages.Upstream(packages.URL), writer, tmp_path)
        for path in ("latest/meta-data", "", "pool", "dists/", "a?b=/pool/"):
            assert recorder.answer(f"http://169.254.169.254/{path}").status == 404
        recorder.close()
        writer.close({})


JSON = json.dumps(
    {
        "files": [
            {
                "filename": "a-1.tar.gz",
                "url": "../../packages/a-1.tar.gz",
                "hashes": {"sha256": "1" * 64},
                "requires-python": ">=3.8",
                "yanked": "a reason",
                "core-metadata": {"sha256": "2" * 64},
            }
        ]
    }
)
HTML = (
    f'<a href="../../packages/a-1.tar.gz#sha256={"1" * 64}" data-requires-python="&gt;=3.8" '
    'data-yanked="a reason" data-core-metadata="true">a-1.tar.gz</a>'
)


@pytest.mark.parametrize(
    ("text", "kind"), [(JSON, "application/vnd.pypi.simple.v1+json"), (HTML, "text/html")]
)
def test_both_kinds_of_index_are_read_and_written_alike(text: str, kind: str) -> None:
    (found,) = packages.listed(text, kind, "https://host/simple/a/")
    assert found == packages.Listed(
        "a-1.tar.gz", "https://host/packages/a-1.tar.gz", "1" * 64, ">=3.8", True, True
    )
    place = "3" * 64
    (again,) = packages.listed(packages.page({place: found}), "text/html", packages.URL)
    assert again.url == f"{packages.URL}/files/{place}/a-1.tar.gz"
    assert (again.requires_python, again.yanked, again.has_metadata) == (">=3.8", True, True)


def served(packages_: packages.Packages, target: str) -> tuple[str, str]:
    """Return what a build is answered, and what its report says of that afterwards."""
    told = packages.Served(0, packages_)
    server = SimpleNamespace(served=told, answering=contextlib.nullcontext)
    handler: Any = packages._Handler.__new__(packages._Handler)
    handler.rfile = io.BytesIO(f"GET {target} HTTP/1.1\r\n\r\n".encode())
    handler.wfile, handler.server, handler.client_address = io.BytesIO(), server, ("", 0)
    handler.handle_one_request()
    return handler.wfile.getvalue().decode(), told.broken


@pytest.fixture
def recorded(tmp_path: Path) -> Iterator[packages.Recorder]:
    """Yield what asks an index, and keeps what it answers."""
    with layout.written(tmp_path / "it.tar") as writer:
        upstream = packages.Upstream("https://me:secret@index.invalid/simple")
        recorder = packages.Recorder(upstream, writer, tmp_path)
        yield recorder
        recorder.close()
        writer.close({})


def answers(
    monkeypatch: pytest.MonkeyPatch, status: int, content: bytes = b"", **headers: str
) -> None:
    """Let every server answer with that."""

    def get(_: requests.Session, url: str, **__: Any) -> requests.Response:
        response = requests.Response()
        response.status_code, response.url, response._content = status, url, content
        response._content_consumed = True  # type: ignore[attr-defined]
        response.headers.update({name.replace("_", "-"): it for name, it in headers.items()})
        return response

    monkeypatch.setattr(requests.Session, "get", get)


@pytest.mark.parametrize("target", ["/index/einops/", "/npm/pure-prompt", PACKAGES])
def test_a_status_that_http_does_not_name_is_handed_on(
    target: str, recorded: packages.Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers(monkeypatch, 520)
    said, broken = served(recorded, target)
    assert said.startswith("HTTP/1.1 520 ")
    assert broken == ""


@pytest.mark.parametrize("content", [b"{", b"[]", b"{}", b'{"files": [{}]}', b'{"files": 1}'])
def test_an_index_that_makes_no_sense_is_a_bad_gateway_and_is_told(
    content: bytes, recorded: packages.Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers(monkeypatch, 200, content, Content_Type="application/vnd.pypi.simple.v1+json")
    said, broken = served(recorded, "/index/einops/")
    assert said.startswith("HTTP/1.1 502 ")
    assert broken.startswith("/index/einops/: ")
    assert "secret" not in broken


def test_an_answer_that_breaks_off_is_told() -> None:
    def pieces() -> Iterator[bytes]:
        yield b"half"
        raise ValueError("the rest is gone")

    class Half:
        indexes = frozenset[str]()

        def answer(self, _: str) -> packages.Answer:
            return packages.Answer(200, pieces(), 8)

    said, broken = served(Half(), "/index/einops/")
    assert said.endswith("half")
    assert broken == "/index/einops/: ValueError: the rest is gone"
