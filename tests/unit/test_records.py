"""What is known before a compile: whether the store has the wheel, and what others took."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline import records
from pipeline.records import Record
from pipeline.run import Compiled
from pipeline.spec import WheelSpec
from tests.unit.running import run
from tests.unit.specs import spec

pytestmark = pytest.mark.usefixtures("checkout")

COMPILED = {"build_mode": "include", "pytorch_version_tag": "v2.6.0", "cca": "8.6"}
FACTS = {
    "seconds": 7200,
    "jobs": 8,
    "steps": 6000,
    "of": 6000,
    "peak_memory": 12_000_000_000,
    "retried_for_memory": False,
    "cache": {"c++": {"hits": 10, "misses": 90}, "cuda": {"misses": 5, "uncacheable": 2}},
}
COLD = {"hits": 0, "misses": 100}


def torch(**settings: str) -> WheelSpec:
    return spec(**COMPILED | settings).compiled[0]


def took(wheel: WheelSpec, seconds: int, *, hits: int = 0, misses: int = 100) -> Record:
    made = records.record(records.job(wheel), FACTS, 300_000_000)
    return replace(made, seconds=seconds, hits=hits, misses=misses)


# Records


def test_a_record_holds_what_a_compile_took() -> None:
    made = records.record(records.job(torch()), FACTS, 300_000_000)
    assert (made.package, made.variant, made.arches) == ("torch", torch().variant, 1)
    assert (made.seconds, made.jobs, made.steps, made.size) == (7200, 8, 6000, 300_000_000)
    assert (made.hits, made.misses) == (10, 95)


def test_nothing_is_known_before_the_first_compile() -> None:
    assert not records.path().exists()
    assert records.estimate(records.job(torch())) is None
    assert not records.seen(took(torch(), 1))


def test_the_same_variant_goes_first_and_of_those_the_newest() -> None:
    for wheel, seconds in (
        (torch(), 1),
        (torch(), 2),
        (torch(cca="8.0"), 3),
        (torch(cca="9.0"), 4),
    ):
        records.keep(took(wheel, seconds))
    assert records.estimate(records.job(torch())) == took(torch(), 2)


def test_then_what_has_about_as_many_architectures() -> None:
    for cca, seconds in (("7.5 8.0 9.0", 3), ("8.0", 1), ("7.0", 2), ("7.0 7.5 8.0 9.0", 4)):
        records.keep(took(torch(cca=cca), seconds))
    assert records.estimate(records.job(torch())) == took(torch(cca="7.0"), 2)
    assert records.estimate(records.job(torch(cca="5.0 6.0 7.0 7.5 8.0"))) == took(
        torch(cca="7.0 7.5 8.0 9.0"), 4
    )


def test_what_the_compiler_cache_did_says_nothing_of_a_first_compile() -> None:
    records.keep(took(torch(cca="8.0"), 9000))
    records.keep(took(torch(), 60, hits=90, misses=10))
    assert records.estimate(records.job(torch())) == took(torch(cca="8.0"), 9000)


def test_one_that_the_cache_did_is_better_than_none() -> None:
    records.keep(took(torch(), 60, hits=90, misses=10))
    assert records.estimate(records.job(torch())) == took(torch(), 60, hits=90, misses=10)


def test_of_the_same_source_what_the_cache_did_least_goes_first() -> None:
    for seconds, misses in ((112, 30), (400, 40), (4, 0)):
        records.keep(took(torch(), seconds, hits=1000 - misses, misses=misses))
    assert (found := records.estimate(records.job(torch())))
    assert found.seconds == 400


def test_the_same_source_goes_before_another_of_the_variant() -> None:
    records.keep(took(torch(), 1))
    records.keep(took(torch(torch_ref="1" * 40), 2))
    assert records.estimate(records.job(torch())) == took(torch(), 1)


def test_torchvision_says_nothing_of_torch() -> None:
    records.keep(took(spec(**COMPILED).compiled[1], 60))
    assert records.estimate(records.job(torch())) is None


@pytest.mark.parametrize(
    "line",
    ["", "{", "[]", "7", '"torch"', "null", '{"package": "torch"}', '{"seconds": 1, "more": 2}'],
)
def test_a_line_that_is_broken_is_passed_over(line: str) -> None:
    records.keep(took(torch(), 1))
    with records.path().open("a") as file:
        file.write(f"{line}\n")
    assert records.estimate(records.job(torch())) == took(torch(), 1)
    records.keep(took(torch(), 2))
    assert records.estimate(records.job(torch())) == took(torch(), 2)


def test_half_a_line_at_the_end_costs_no_other() -> None:
    for seconds in (1, 2):
        records.keep(took(torch(), seconds))
    text = records.path().read_text()
    records.path().write_text(text[:-20])
    assert records.estimate(records.job(torch())) == took(torch(), 1)
    records.keep(took(torch(), 3))
    assert records.estimate(records.job(torch())) == took(torch(), 3)


def test_a_shared_cache_that_failed_is_told_with_what_to_look_at() -> None:
    cache = {"c++": {"misses": 9, "unreached": 9}, "cuda": {"hits": 3}}
    told = Compiled("key", "torch.whl", took(torch(), 60), cache).lines()
    (warning,) = [line for line in told if line.startswith("warning")]
    assert "did not answer 9 of the c++ compiles" in warning
    assert "CACHE_URL" in warning


def test_a_compile_is_known_by_all_of_its_figures() -> None:
    records.keep(took(torch(), 60))
    assert records.known(took(torch(), 60))
    assert not records.known(took(torch(), 61))
    assert not records.known(took(torch(cca="8.0"), 60))


def test_the_oldest_go() -> None:
    for seconds in range(205):
        records.keep(took(torch(), seconds))
    kept = [json.loads(line)["seconds"] for line in records.path().read_text().splitlines()]
    assert kept == list(range(5, 205))


def test_the_same_source_for_the_same_gpus_has_been_seen() -> None:
    records.keep(took(torch(), 1))
    assert records.seen(took(torch(), 2))
    assert not records.seen(took(torch(cca="8.0"), 2))
    assert not records.seen(took(torch(torch_ref="1" * 40), 2))


# What the plan says of it


def plan(*more: str) -> str:
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in COMPILED.items()]
    result = run("plan", *flags, *more)
    assert result.code == 0, result.err
    return result.out


def test_the_plan_says_what_is_expected_of_each_compile() -> None:
    assert plan().count("is compiled; none is on record") == 2
    records.keep(took(torch(), 7200))
    said = plan()
    assert (
        f"torch-wheel        is compiled; {torch().variant} took 120 min with 8 jobs and 12.0 GB "
        "of memory for a wheel of 300 MB, with 0 of 100 objects from the compiler cache\n" in said
    )
    assert said.count("is compiled; none is on record") == 1


def test_the_plan_says_where_a_time_is_that_of_the_compiler_cache() -> None:
    records.keep(took(torch(), 112, hits=97, misses=3))
    assert "97 of 100 objects from the compiler cache: without them it takes longer" in plan()


def test_the_plan_says_what_is_in_the_store(checkout: Path) -> None:
    folder = checkout / "cache" / "cresset" / "wheels"
    wheel = folder / f"{torch().variant}-{torch().key[:16]}" / "torch.whl"
    wheel.parent.mkdir(parents=True)
    wheel.touch()
    assert f"torch-wheel        is in the wheel store {folder}" in plan()
    assert "is in the wheel store" not in plan("--wheel-store=off")
    expected = {it["package"]: it["store"] for it in json.loads(plan("--json"))["compile"]}
    assert expected == {"torch": f"the wheel store {folder}", "torchvision": ""}


def test_a_magma_of_ones_own_is_expected_before_torch() -> None:
    own = "--magma-source=git"
    before = plan(own).partition("torch-wheel        is compiled")[0]
    assert "\nmagma              is compiled; none is on record" in before
    job = records.magma_job(torch(magma_source="git"))
    assert job is not None
    assert job.variant == "magma-2.9.0-cu124-sm86-trixie"
    records.keep(records.record(job, FACTS, 100_000_000))
    after = plan(own)
    assert "magma              is compiled; magma-2.9.0-cu124-sm86-trixie took 120 min" in after
    assert "for a library of 100 MB" in after
    assert records.magma_job(torch()) is None


def test_of_the_devel_image_only_magma_is_expected(checkout: Path) -> None:
    assert json.loads(plan("devel", "--json"))["compile"] == []
    # Its torch may be in the store, and MAGMA is compiled all the same.
    wheel = torch(magma_source="git")
    kept = checkout / "cache" / "cresset" / "wheels" / f"{wheel.variant}-{wheel.key[:16]}"
    kept.mkdir(parents=True)
    said = json.loads(plan("devel", "--magma-source=git", "--json"))
    (magma,) = said["compile"]
    assert magma["stage"] in {step["name"] for step in said["steps"]}
    assert (magma["package"], magma["store"]) == ("magma", "")


def test_wheels_of_an_index_are_nothing_to_expect() -> None:
    said = run("plan", "--json")
    assert json.loads(said.out)["compile"] == []
