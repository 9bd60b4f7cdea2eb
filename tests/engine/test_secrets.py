"""Every kind of secret that a build uses, and everywhere it could have been left behind."""

from __future__ import annotations

import base64
import io
import json
import os
import subprocess
import threading
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from pipeline.bundle.packages import NPM
from pipeline.engine import local
from tests import services
from tests.engine.conftest import Checkout, Pulled, Ran, make_wheel, new_name, vision_source
from tests.engine.test_compile import VISION
from tests.git_server import git, git_server
from tests.proxy import proxy
from tests.secret_scan import USER, Secrets

pytestmark = [pytest.mark.engine, pytest.mark.slow]


@contextmanager
def private_registry(folder: Path, password: str) -> Iterator[str]:
    """Run a registry that knows the user by the password."""
    hashed = subprocess.run(
        ["perl", "-e", 'print crypt(<STDIN>, q($2y$05$abcdefghijklmnopqrstuu))'],
        input=password, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert hashed.startswith("$2y$")
    htpasswd = folder / "htpasswd"
    htpasswd.write_text(f"{USER}:{hashed}\n")
    with services.registry(folder, htpasswd=htpasswd) as host:
        yield host


@contextmanager
def npm_registry(login: str) -> Iterator[str]:
    """Serve what npm's own registry has to who knows the login; yield the URL with it."""
    basic = f"Basic {base64.b64encode(login.encode()).decode()}"

    def answer(request: services.Asked) -> services.Answer:
        if request.headers.get("Authorization") != basic:
            return services.Answer(401, headers={"WWW-Authenticate": 'Basic realm="tests"'})
        return services.Answer(302, headers={"Location": NPM.rstrip("/") + request.path})

    with services.serving(answer, services.own_address()) as host:
        yield f"http://{login}@{host}/"


def signing_key(folder: Path, known: Secrets) -> tuple[str, str]:
    """Make a key to sign with, encrypted; return its file, and its password."""
    key, password = ec.generate_private_key(ec.SECP256R1()), known.new("COSIGN_PASSWORD")
    number = key.private_numbers().private_value.to_bytes(32, "big")
    known.values["the key itself"] = number.hex()
    known.values["the key in base64"] = base64.b64encode(number)[4:-4].decode()
    form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    opened = serialization.BestAvailableEncryption(password.encode())
    pem = key.private_bytes(*form, opened)
    known.values["its file"] = pem.splitlines()[3].decode()
    file = folder / "sign.key"
    file.write_bytes(pem)
    return str(file), password


def log_in(checkout: Checkout, host: str, password: str) -> None:
    auth = base64.b64encode(f"{USER}:{password}".encode()).decode()
    config = Path(checkout.environment["DOCKER_CONFIG"], "config.json")
    config.write_text(json.dumps({"auths": {host: {"auth": auth}}}))


@contextmanager
def watched(known: Secrets) -> Iterator[list[str]]:
    """Yield what is found in command lines, of containers too, for as long as the context is."""
    found: list[str] = []
    ended = threading.Event()

    def look() -> None:
        while not ended.wait(0.2):
            for process in Path("/proc").glob("[0-9]*"):
                try:
                    words = (process / "cmdline").read_bytes()
                except OSError:
                    continue
                if names := known.found_in(words):
                    program = words.partition(b"\0")[0].decode(errors="replace")
                    found.append(f"{names} in the command line of {program}")

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield found
    finally:
        ended.set()
        thread.join()


def knowing(known: Secrets, *, but: str = "") -> list[str]:
    """Return the processes that still have a secret in their environment, `but` for one."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            content, name = (process / "environ").read_bytes(), (process / "comm").read_text()
        except OSError:
            continue
        names = [it for it in known.found_in(content) if it != but]
        if names and int(process.name) != os.getpid():
            found.append(f"{names} in the environment of {name.strip()}")
    return found


def left(known: Secrets, places: Mapping[str, bytes]) -> list[str]:
    """Return what is found of secrets, by place."""
    return [f"{names} in {place}" for place, it in places.items() if (names := known.found_in(it))]


def folder(path: Path) -> Iterator[tuple[str, bytes]]:
    """Yield every file below a folder, and what is in the wheels among them."""
    for file in path.rglob("*"):
        if file.is_file() and not file.is_symlink():
            yield from unpacked(str(file), file.read_bytes())


def unpacked(name: str, content: bytes) -> Iterator[tuple[str, bytes]]:
    yield name, content
    if name.endswith(".whl"):
        with zipfile.ZipFile(io.BytesIO(content)) as wheel:
            for member in wheel.namelist():
                yield f"{name}/{member}", wheel.read(member)


def image(ref: str, login: str) -> Iterator[tuple[str, bytes]]:
    """Yield manifest, config with its history, and every file of every layer."""
    pulled = Pulled.of(ref, login)
    yield "manifest", json.dumps(pulled.manifest).encode()
    yield "config", json.dumps(pulled.about).encode()
    for name, content in pulled.files():
        yield from unpacked(name, content)


def told(ran: Ran) -> dict[str, bytes]:
    return {"stdout": ran.out.encode(), "stderr": ran.err.encode(), "its log": ran.log.encode()}


def since(log: Path, begun: int) -> bytes:
    with log.open("rb") as file:
        file.seek(begun)
        return file.read()


def test_an_image_holds_none_of_what_it_was_made_with(
    checkout: Checkout, tmp_path: Path, figure: Callable[[str], None]
) -> None:
    known, state = Secrets(), tmp_path / "state"
    password = known.new("registry")
    with (
        private_registry(tmp_path, password) as registry,
        proxy(known.login("proxy")) as way_out,
        services.package_index(known.login("INDEX_URL")) as index,
        services.package_index(known.login("EXTRA_INDEX_URL")) as extra,
        npm_registry(known.login("NPM_REGISTRY")) as npm,
        watched(known) as seen,
    ):
        key, opened_by = signing_key(tmp_path, known)
        address = services.own_address()
        for it in (index, extra):
            wheel = make_wheel(tmp_path, new_name())
            it.add(wheel)
            checkout.require(wheel.name.partition("-")[0])
        (checkout.path / ".env").write_text("TZ=UTC\n")
        alone = replace(
            checkout,
            environment={
                **checkout.environment,
                "XDG_STATE_HOME": str(state),
                **dict.fromkeys(("http_proxy", "https_proxy"), way_out.url),
                "no_proxy": f"localhost,127.0.0.1,{address}",
                "INDEX_URL": index.url,
                "EXTRA_INDEX_URL": extra.url,
                "TRUSTED_HOST": address,
                "NPM_REGISTRY": npm,
                "SIGN_KEY": key,
                "COSIGN_PASSWORD": opened_by,
                "REGISTRY": registry,
            },
        )
        log_in(alone, registry, password)
        try:
            ran = alone.cresset("build", "simple", "--json")
            assert ran.code == 0, ran.err
            config = alone.cresset("config")
            doctor = alone.cresset("doctor", "--json")
            still = knowing(known, but="proxy")
        finally:
            assert alone.cresset("engine", "stop").code == 0
        assert way_out.passed, "the proxy was used"
        places = {
            **told(ran),
            "config": config.out.encode(),
            "doctor": doctor.out.encode(),
            "engine.log": (state / "cresset/engine/engine.log").read_bytes(),
            **dict(folder(state / "cresset/logs")),
            **dict(folder(checkout.path)),
            **dict(image(ran.json["ref"], f"{USER}:{password}")),
            # With what is attached to the image: SBOM, provenance, signatures.
            **dict(folder(tmp_path / "data")),
        }
    assert "signed by the key of SIGN_KEY" in ran.err
    assert seen == []
    assert still == []
    assert left(known, places) == []
    size = sum(map(len, places.values()))
    figure(f"{len(known.values)} secrets looked for in {len(places)} files, {size / 1e6:.0f} MB")


def test_a_compiled_wheel_holds_none_of_what_it_was_made_with(
    checkout: Checkout, tmp_path: Path, figure: Callable[[str], None]
) -> None:
    known = Secrets()
    password = known.new("registry")
    engine_log = local.log_path()
    logged = engine_log.stat().st_size if engine_log.exists() else 0
    served = tmp_path / "served"
    tree(served / "pytorch/vision.git")
    with (
        private_registry(tmp_path, password) as registry,
        services.package_index(known.login("INDEX_URL")) as index,
        services.redis(tmp_path, known.new("CACHE_URL")) as redis,
        git_server(served) as repositories,
        watched(known) as seen,
    ):
        repositories.login = known.login("GIT_NEW")
        log_in(checkout, registry, password)
        given = {
            **VISION,
            "VISION_SOURCE": "git",
            "GIT_OLD": "https://github.com/",
            "GIT_NEW": f"http://{repositories.login}@{repositories.host}/",
            "INDEX_URL": index.url,
            "TRUSTED_HOST": services.own_address(),
            "CACHE_URL": redis,
            "REGISTRY": registry,
        }
        ran = checkout.cresset("wheels", "--output", "out", "--json", **given)
        assert ran.code == 0, ran.err
        plan = checkout.cresset("plan", "--json", **given)
        stored = plan.json["compile"][0]["store"].rpartition(" ")[2]
        still = knowing(known)
        (tag,) = Pulled.tags(stored, f"{USER}:{password}")
        places = {
            **told(ran),
            "plan": plan.out.encode(),
            "engine.log": since(engine_log, logged),
            "records": (Path.home() / ".local/state/cresset/compiles.jsonl").read_bytes(),
            **dict(folder(checkout.path)),
            **dict(image(f"{stored}:{tag}@{tag}", f"{USER}:{password}")),
        }
    assert any("git-upload-pack" in it for it in repositories.asked)
    assert "compiler cache" in ran.err
    assert seen == []
    assert still == []
    assert left(known, places) == []
    size = sum(map(len, places.values()))
    figure(f"{len(known.values)} secrets looked for in {len(places)} files, {size / 1e6:.0f} MB")


def tree(repository: Path) -> None:
    """Make a repository of torchvision's source, with the tag of its release."""
    vision_source(repository)
    git(repository, "init", "-q", "-b", "main")
    git(repository, "add", "-A")
    git(repository, "commit", "-q", "-m", "as released")
    git(repository, "tag", "v0.21.0")
