"""Handing cells to engines: whatever happens, in whatever order."""

from __future__ import annotations

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.fleet import handout
from pipeline.fleet.handout import Job, Outcome, State
from tests.unit.specs import spec

WHEELS = [f"torchvision:{letter}" for letter in "abc"] + ["torch:a", "torch:b"]
INPUTS = [f"{kind}:{letter}" for kind in ("base", "python", "magma") for letter in "xy"]


@st.composite
def fleets(draw: st.DrawFn) -> State:
    """Draw cells, of which some share wheels, and engines."""
    jobs = {
        f"cell{number}": Job(
            frozenset(draw(st.sets(st.sampled_from([*WHEELS, "magma:m"]), max_size=2))),
            frozenset(draw(st.sets(st.sampled_from(INPUTS)))),
            draw(st.sampled_from(["", "libtorch:x"])),
        )
        for number in range(draw(st.integers(0, 12)))
    }
    engines = {f"engine{it}": draw(st.integers(1, 3)) for it in range(draw(st.integers(0, 4)))}
    stored = frozenset(draw(st.sets(st.sampled_from(WHEELS), max_size=1)))
    return handout.begin(jobs, engines, stored=stored)


def handed_out(state: State) -> State:
    """Hand out all that can be, and check every rule on the way."""
    while pair := handout.next_pair(state):
        cell, engine = pair
        assert engine not in {*state.dead, *state.asked}
        assert cell in state.pending
        state = handout.hand(state, cell, engine)
        assert state.load(engine) <= 1
        making = Counter(wheel for it in state.running for wheel in state.awaited(it))
        assert max(making.values(), default=0) <= 1, "compiled twice at a time"
        for name in state.engines:
            on_it = [it for it, at in state.running.items() if at == name]
            here = [it for it in on_it if state.compiles(it, name)]
            assert len(here) <= 1, "two compiles at a time in one engine"
    return state


@settings(max_examples=100, deadline=None)
@given(fleets(), st.data())
def test_every_cell_ends_exactly_once_whatever_happens(state: State, data: st.DataObject) -> None:
    everything = set(state.jobs)
    handed = Counter[str]()
    ended: set[str] = set()
    while True:
        before = set(state.running)
        state = handed_out(state)
        handed.update(set(state.running) - before)
        if state.asked and (not state.running or data.draw(st.booleans())):
            engine = data.draw(st.sampled_from(sorted(state.asked)))
            back = data.draw(st.booleans())
            state = (
                handout.joined(state, engine, 1) if back else handout.absent(state, engine, "off")
            )
            ended = set(state.ended)
            continue
        if not state.running:
            break
        cell = data.draw(st.sampled_from(sorted(state.running)))
        what = data.draw(st.sampled_from(["delivered", "failed", "unpublished", "lost"]))
        if what == "delivered":
            state = handout.delivered(state, cell)
        elif what == "failed":
            stage = data.draw(st.sampled_from(["torchvision-wheel", "pip", "deliver"]))
            state = handout.failed(state, cell, data.draw(st.sampled_from([2, 5, 6, 8])), stage)
        elif what == "unpublished":
            state = handout.failed(state, cell, 7, "deliver")
        else:
            state = handout.lost(state, cell, "it died")
        assert ended <= set(state.ended), "what has ended stays so"
        ended = set(state.ended)
        assert sorted([*state.pending, *state.running, *state.ended]) == sorted(everything)
    assert not state.pending, "nothing is forgotten"
    assert set(state.ended) == everything
    # A delivery that failed gets one more, and so does each engine that was lost.
    assert max(handed.values(), default=0) <= state.most + 1


@settings(max_examples=100, deadline=None)
@given(fleets())
def test_where_nothing_goes_wrong_all_is_delivered_and_no_wheel_is_made_twice(
    state: State,
) -> None:
    made = Counter[str](state.stored)
    able = bool(state.engines)
    while True:
        state = handed_out(state)
        if not state.running:
            break
        cell = next(iter(state.running))
        made.update(state.to_make(cell))
        state = handout.delivered(state, cell)
    outcomes = {end.outcome for end in state.ended.values()}
    assert outcomes <= {Outcome.DELIVERED if able else Outcome.NOT_BUILT}
    assert max(made.values(), default=1) == 1


def cells(**compiles: str) -> dict[str, Job]:
    """Return cells by name, each with the words of what it compiles."""
    return {name: Job(frozenset(text.split())) for name, text in compiles.items()}


def test_a_wheel_in_the_making_is_waited_for_and_takes_no_place() -> None:
    state = handout.begin(cells(a="torch:x", b="torch:x", c="torch:y", d=""), {"one": 2, "two": 2})
    state = handed_out(state)
    assert state.running.keys() == {"a", "c", "d"}
    assert state.pending == ("b",)
    state = handout.delivered(state, "a")
    assert state.to_make("b") == frozenset(), "it takes the wheel from the store"
    assert "b" in handed_out(state).running


def test_torch_for_another_python_waits_for_libtorch_and_goes_where_its_objects_are() -> None:
    x = "libtorch:x"
    jobs = {
        name: Job(frozenset(compiles.split()), frozenset({x}), x)
        for name, compiles in {
            "py312": "torch:12", "py313": "torch:13", "vision": "torch:14 torchvision:v",
        }.items()
    }  # fmt: skip
    jobs["other"] = Job(frozenset({"torch:y"}), libtorch="libtorch:y")
    engines = {"one": 1, "two": 1, "three": 1}
    state = handed_out(handout.begin(jobs, engines, stored=frozenset({"torch:14"})))
    assert state.running == {"py312": "one", "vision": "two", "other": "three"}
    assert state.pending == ("py313",)
    state = handed_out(handout.delivered(handout.delivered(state, "vision"), "other"))
    assert state.pending == ("py313",), "engines that have nothing of it are free, and it waits"
    assert handed_out(handout.delivered(state, "py312")).running == {"py313": "one"}


def test_a_devel_image_compiles_magma_where_it_is_not_at_hand() -> None:
    state = handout.begin(cells(a="torch:x magma:m", b="magma:m"), {"one": 2})
    state = handed_out(state)
    assert state.running.keys() == {"a"}, "one compile at a time"
    state = handout.begin(cells(a="torch:x magma:m", b="magma:m"), {"one": 2},
                          holds={"one": frozenset({"magma:m"})})  # fmt: skip
    assert handed_out(state).running.keys() == {"a", "b"}


def test_what_compiles_goes_first() -> None:
    state = handout.begin(cells(a="", b="torch:x"), {"one": 1})
    assert handout.next_pair(state) == ("b", "one")


def test_what_needs_a_wheel_that_cannot_be_made_is_not_tried() -> None:
    state = handout.begin(
        cells(a="torch:x torchvision:v", b="torch:x torchvision:w", c="torchvision:v", d=""),
        {"one": 1},
    )
    state = handout.hand(state, "a", "one")
    state = handout.failed(state, "a", 5, "torchvision-wheel")
    assert state.ended["c"].outcome == Outcome.NOT_TRIED
    assert state.ended["c"].why == "needs the torchvision v, which failed in a"
    assert state.ended["c"].code == 5
    assert set(state.pending) == {"b", "d"}, "torch itself may well have been made"


def test_a_failure_of_its_own_stops_no_other_cell() -> None:
    for stage, code in (("pip", 5), ("torchvision-source", 5), ("torchvision-wheel", 8)):
        state = handout.begin(cells(a="torchvision:v", b="torchvision:v"), {"one": 1})
        state = handout.failed(handout.hand(state, "a", "one"), "a", code, stage)
        assert state.pending == ("b",), (stage, code)


def test_a_magma_that_fails_stops_those_that_link_it() -> None:
    state = handout.begin(cells(a="torch:x magma:m", b="torch:y magma:m"), {"one": 1})
    state = handout.failed(handout.hand(state, "a", "one"), "a", 5, "magma")
    assert state.ended["b"].outcome == Outcome.NOT_TRIED


def test_a_delivery_that_fails_is_tried_once_more_after_all_others() -> None:
    state = handout.begin(cells(a="", b="", c=""), {"one": 1})
    state = handout.failed(handout.hand(state, "a", "one"), "a", 7, "deliver")
    order = []
    while pair := handout.next_pair(state):
        state = handout.hand(state, *pair)
        order.append(pair[0])
        state = (
            handout.failed(state, "a", 7, "deliver")
            if pair[0] == "a"
            else handout.delivered(state, pair[0])
        )
    assert order == ["b", "c", "a"]
    assert state.ended["a"].code == 7


def test_a_dead_engine_gives_its_cells_to_another() -> None:
    state = handed_out(handout.begin(cells(a="", b="", c=""), {"one": 1, "two": 1}))
    on_one = next(cell for cell, engine in state.running.items() if engine == "one")
    state = handout.lost(state, on_one, "it was killed")
    state = handout.absent(state, "one", "it was killed")
    assert handout.next_pair(state) is None, "the other is busy"
    assert state.pending[0] == on_one
    other = next(iter(state.running))
    state = handout.delivered(state, other)
    assert handout.next_pair(state) == (on_one, "two")


def test_an_engine_that_is_lost_twice_in_a_row_gets_nothing_more() -> None:
    state = handout.begin(cells(a="", b=""), {"one": 1})
    state = handout.lost(handout.hand(state, "a", "one"), "a", "gone")
    assert handout.next_pair(state) is None, "nobody knows yet whether it is there"
    state = handout.joined(state, "one", 1)
    assert handout.next_pair(state) == ("a", "one"), "it came back"
    state = handout.lost(handout.hand(state, "a", "one"), "a", "gone")
    assert {end.outcome for end in state.ended.values()} == {Outcome.NOT_BUILT}
    assert {end.code for end in state.ended.values()} == {4}


def test_all_cells_that_go_with_one_engine_are_one_loss() -> None:
    state = handed_out(handout.begin(cells(a="", b=""), {"one": 2}))
    for cell in ("a", "b"):
        state = handout.lost(state, cell, "gone")
    assert not state.dead
    assert handed_out(handout.joined(state, "one", 2)).running.keys() == {"a", "b"}


def test_engines_that_answer_late_are_waited_for_and_join() -> None:
    state = handout.begin(cells(a="", b=""), {}, asked=frozenset({"one", "two"}))
    assert handout.next_pair(state) is None
    assert not state.ended, "one may still come"
    state = handout.joined(state, "one", 1)
    assert handed_out(state).running == {"a": "one"}
    assert not handout.absent(state, "two", "off").ended
    state = handout.begin(cells(a="", b=""), {}, asked=frozenset({"one"}))
    assert set(handout.absent(state, "one", "off").ended) == {"a", "b"}


def test_cells_go_where_most_of_them_is_built_already_once_the_load_is_even() -> None:
    jobs = {
        "a13": Job(inputs=frozenset({"base:t", "python:13"})),
        "b13": Job(inputs=frozenset({"base:t", "python:13"})),
        "a12": Job(inputs=frozenset({"base:t", "python:12"})),
        "b12": Job(inputs=frozenset({"base:t", "python:12"})),
    }
    state = handed_out(handout.begin(jobs, {"one": 1, "two": 1}))
    first = {engine: cell for cell, engine in state.running.items()}
    assert {cell[1:] for cell in first.values()} == {"12", "13"}, "a family each"
    for cell in first.values():
        state = handout.delivered(state, cell)
    state = handed_out(state)
    second = {engine: cell for cell, engine in state.running.items()}
    assert {engine: cell[1:] for engine, cell in second.items()} == {
        engine: cell[1:] for engine, cell in first.items()
    }


def test_what_an_engine_built_in_an_earlier_run_draws_cells_to_it() -> None:
    jobs = {"x": Job(inputs=frozenset({"python:12"})), "y": Job(inputs=frozenset({"python:13"}))}
    state = handout.begin(jobs, {"one": 1, "two": 1}, holds={"one": frozenset({"python:13"})})
    assert handout.next_pair(state) == ("y", "one")


def test_real_specs_share_what_their_stages_share() -> None:
    vision = {"VISION_SOURCE": "apt", "PYTORCH_VERSION": "2.6.0"}
    one, same, other = (
        handout.job(spec(**vision, **more))
        for more in ({"CCA": "8.6"}, {"CCA": "8.6", "TZ": "Asia/Seoul"}, {"CCA": "8.0"})
    )
    assert one.compiles == same.compiles != other.compiles
    assert one.wheels == one.compiles
    assert {it.partition(":")[0] for it in one.compiles} == {"torchvision"}
    shared = {it.partition(":")[0] for it in one.inputs & other.inputs}
    assert {"base", "python", "apt", "pip", "toolchain"} <= shared
    plain, devel = (
        handout.job(spec("simple")),
        handout.job(spec("devel", BUILD_MODE="include", CCA="8.6")),
    )
    assert plain.compiles == frozenset()
    assert not devel.wheels


def test_real_specs_share_libtorch_over_pythons_and_over_nothing_else() -> None:
    settings = {"BUILD_MODE": "include", "PYTORCH_VERSION": "2.6.0"}
    ours, old, other = (
        handout.job(spec(**settings, **more))
        for more in ({"CCA": "8.6"}, {"CCA": "8.6", "PYTHON_VERSION": "3.12"}, {"CCA": "8.0"})
    )
    assert ours.libtorch == old.libtorch != other.libtorch
    assert ours.libtorch in ours.inputs & old.inputs
    assert not ours.wheels & old.wheels
    assert handout.job(spec("devel", CCA="8.6", **settings)).libtorch == ""


def test_the_exit_code_is_that_of_the_worst_cell() -> None:
    assert handout.exit_code([0, 0]) == 0
    assert handout.exit_code([]) == 0
    assert handout.exit_code([7, 0, 5]) == 5
    assert handout.exit_code([4, 8]) == 8
    assert handout.exit_code([-9, 7]) == 1
    assert handout.exit_code([130, 2]) == 130
    assert handout.exit_code([143, 2]) == 143
