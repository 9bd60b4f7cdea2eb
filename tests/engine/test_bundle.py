"""Bundles with a real engine: written where there is a network, built from where there is none."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.engine import local
from tests import services
from tests.engine.conftest import Checkout, Ran, vision_source

# An engine that starts with nothing fetches everything anew, and again from the bundle.
pytestmark = [pytest.mark.engine, pytest.mark.slow]

NO_ROUTE = ("unshare", "--net", "sh", "-ec", 'ip link set lo up; [ -z "$(ip route)" ]; exec "$@"')


@pytest.fixture
def away(checkout: Checkout, tmp_path: Path) -> Iterator[Checkout]:
    """Yield the same checkout on a machine that has nothing and no network at all."""
    own = {"XDG_STATE_HOME": str(tmp_path / "state"), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    environment = {
        name: value for name, value in checkout.environment.items() if "proxy" not in name.lower()
    }
    away = replace(checkout, environment={**environment, **own}, wrapper=(*NO_ROUTE, "sh"))
    yield away
    away.cresset("engine", "stop")


def exported(checkout: Checkout, target: str) -> Ran:
    ran = checkout.cresset(
        "bundle", "export", target, "--output", "it.tar", "--compression", "zstd", "--json"
    )
    assert ran.code == 0, ran.err
    return ran


@pytest.mark.parametrize("target", ["simple", "train"])
def test_the_image_is_built_from_the_bundle_without_any_route(
    target: str, checkout: Checkout, away: Checkout
) -> None:
    requirements = checkout.pip_train
    requirements.write_text("einops\ntqdm\n")
    assert checkout.cresset("engine", "start").code == 0
    engine = local.status().pid
    told = exported(checkout, target).json
    assert local.status().pid == engine, "the machine's own engine has no part in it"
    assert told["checked"]
    assert set(told["parts"]) == {"apt", "base", "engine", "image", "npm", "python"}

    imported = away.cresset("bundle", "import", "it.tar", "--json")
    assert imported.code == 0, imported.err
    assert imported.json["digest"] == told["digest"]
    assert imported.json["engine"]
    # The image that came along is the one that a build with the same settings would make.
    asked = ("build-only", target, "--bundle", "it.tar", "--compression", "zstd", "--json")
    found = away.cresset(*asked)
    assert found.code == 0, found.err
    assert "nothing to do" in found.err
    assert found.json["key"] == told["key"]

    requirements.write_text("einops\n")
    changed = away.cresset(*asked)
    assert changed.code == 0, changed.err
    assert changed.json["key"] != told["key"]
    assert "pip" not in changed.json["cached"]

    requirements.write_text("einops\nrequests\n")
    lacking = away.cresset(*asked)
    assert lacking.code == 5
    assert "requests" in lacking.err


def test_what_was_compiled_for_a_bundle_is_compiled_for_another_gpu_without_any_route(
    checkout: Checkout, away: Checkout, tmp_path: Path, figure: Callable[[str], None]
) -> None:
    checkout.pip_train.write_text("")
    vision_source(tmp_path / "vision")
    packed = tmp_path / "vision.tar.gz"
    subprocess.run(["tar", "-C", tmp_path, "-czf", packed, "vision"], check=True)
    content = packed.read_bytes()
    with services.serving(lambda _: services.Answer(200, content)) as host:
        asked = {
            "VISION_SOURCE": "archive",
            "VISION_URL": f"http://{host}/vision.tar.gz",
            "VISION_SHA256": hashlib.sha256(content).hexdigest(),
            "PYTORCH_VERSION": "2.6.0",
            "WHEEL_STORE": "off",
        }
        out = ("--output", "it.tar", "--no-check", "--compression", "zstd", "--json")
        done = checkout.cresset("bundle", "export", "train", *out, **asked, CCA="8.6")
    assert done.code == 0, done.err
    assert {"sources", "wheels"} <= set(done.json["parts"])
    figure(f"written in {done.seconds:.0f} s, {done.json['parts']}")
    assert away.cresset("bundle", "import", "it.tar").code == 0
    made = away.cresset("wheels", "--bundle", "it.tar", **asked, CCA="8.0")
    assert made.code == 0, made.err
    assert "torchvision/_C.so sm_80" in made.err
    figure(f"compiled for another GPU without a network in {made.seconds:.0f} s")
    # A wheel that is in the bundle is not compiled again because nobody has imported it.
    store = Path(away.environment["XDG_CACHE_HOME"]) / "cresset" / "wheels"
    shutil.rmtree(store)
    refused = away.cresset(
        "wheels", "--bundle", "it.tar", **{**asked, "WHEEL_STORE": "auto"}, CCA="8.6"
    )
    assert refused.code == 6, refused.err
    assert "bundle import it.tar" in refused.err


def test_a_bundle_that_was_damaged_puts_nothing_in_place(
    checkout: Checkout, away: Checkout
) -> None:
    done = checkout.cresset("bundle", "export", "simple", "--output", "it.tar", "--no-check")
    assert done.code == 0, done.err
    assert not done.err.count("built from it")
    shown = json.loads(checkout.cresset("bundle", "show", "it.tar", "--json").out)
    assert {it["role"] for it in shown["parts"]} >= {"base", "engine", "image"}
    file = checkout.path / "it.tar"
    with file.open("r+b") as content:
        content.seek(file.stat().st_size // 2)
        content.write(b"damaged")
    refused = away.cresset("bundle", "import", "it.tar")
    assert refused.code == 6
    assert "is damaged" in refused.err
    engine = Path(away.environment["XDG_CACHE_HOME"]) / "cresset" / "engine"
    assert not list(engine.glob("*-*"))
    with file.open("r+b") as content:
        content.truncate(file.stat().st_size // 2)
    assert away.cresset("bundle", "import", "it.tar").code == 6
    assert not (checkout.path / "dist").exists()
