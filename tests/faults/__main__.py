"""Bring about every fault and print the table of what happened, as Markdown.

``python -m tests.faults [FILE] [-- PYTEST ARGUMENT ...]``; nothing is in the table that did not run
just now. ``-- -m "not slow"`` leaves out the slow rows, ``-- -k registry`` runs a part.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

import pytest

from tests.faults.rows import ROW

TABLES: Final = (
    "tests/faults/test_quick.py",
    "tests/engine/test_fault_table.py",
    "tests/engine/test_faulty_registry.py",
)

_GONE_ON: Final = "ends in words, and the next run succeeds"
_SOURCE: Final = "tests/engine/test_source.py::test_"
_OBJECTS: Final = "tests/engine/test_objects.py::test_"
_LOCAL: Final = "tests/engine/test_local_engine.py::test_"
_FAULTS: Final = "tests/engine/test_faults.py::test_"
_STORE: Final = "tests/unit/test_store.py::test_"

# Rows that other tests check for reasons of their own, by what they are called there.
ELSEWHERE: Final[dict[str, tuple[str, str, str]]] = {
    f"{_SOURCE}what_fails_three_times_is_tried_once_more[resets]": (
        "git server", "connection reset three times", "the source arrives whole"),
    f"{_SOURCE}what_fails_three_times_is_tried_once_more[unavailable]": (
        "git server", "503 three times", "the source arrives whole"),
    f"{_SOURCE}what_fails_three_times_is_tried_once_more[cuts]": (
        "git server", "packs end in the middle three times", "the source arrives whole"),
    f"{_SOURCE}a_server_that_comes_up_late_is_waited_for": (
        "git server", "down for the first seconds", "the source arrives whole"),
    f"{_SOURCE}a_ref_that_does_not_exist_is_an_error_at_once[main]": (
        "git server", "the branch is gone", "exit 5 that names it, at once"),
    f"{_SOURCE}a_submodule_whose_repository_is_missing_is_named_at_once": (
        "git server", "a submodule's repository is gone", "exit 5 that names it, at once"),
    f"{_SOURCE}a_wrong_password_is_an_error_at_once_and_is_not_told": (
        "git server", "wrong password", "exit 5 at once, the password untold"),
    f"{_SOURCE}a_tarball_is_unpacked_if_its_sum_is_right[url]": (
        "source tarball", "another file than its hash says", "refused; the right one is taken"),
    f"{_SOURCE}a_tree_that_changes_while_the_build_begins_is_refused[edited]": (
        "working tree", "edited while a build begins", "refused: key and source are one"),
    f"{_OBJECTS}half_an_object_is_none[20971520]": (
        "compiler cache", "a client ends in the middle of a put", "no half object is kept"),
    f"{_OBJECTS}half_an_object_does_not_replace_a_whole_one": (
        "compiler cache", "the same, over a whole object", "the whole one stays"),
    f"{_OBJECTS}a_killed_pipeline_leaves_no_half_object": (
        "compiler cache", "the pipeline is killed with -9", "no half object is kept"),
    f"{_OBJECTS}a_full_disk_holds_no_half_object[31457280]": (
        "compiler cache", "its disk is full", "no half object is kept; compiles go on"),
    f"{_OBJECTS}a_compilation_does_without_a_store_that_fails": (
        "compiler cache", "it fails altogether", "compiles go on without"),
    f"{_OBJECTS}clients_that_misbehave_are_no_news": (
        "compiler cache", "clients that speak nonsense", "served on, with nothing said"),
    f"{_OBJECTS}a_bucket_that_refuses_is_told_without_secrets": (
        "compiler cache, S3", "wrong credentials", "said, the secret untold; compiles go on"),
    f"{_OBJECTS}a_slow_bucket_that_fails_is_not_asked_by_every_compilation": (
        "compiler cache, S3", "slow, and fails", "asked no more; compiles go on"),
    f"{_OBJECTS}a_bucket_out_of_reach_is_told": (
        "compiler cache, S3", "out of reach", "said; compiles go on"),
    f"{_LOCAL}sessions_end_when_the_engine_is_killed": (
        "engine", "killed with -9 in a session", "the session ends with a reason"),
    f"{_LOCAL}a_session_without_its_engine_does_not_hang[1.0]": (
        "engine", "gone when a session ends", "the command ends all the same"),
    f"{_LOCAL}a_killed_engine_is_noticed_and_started_again[engine]": (
        "engine", "killed with -9 between builds", "noticed, cleaned up after, started anew"),
    f"{_LOCAL}a_killed_engine_is_noticed_and_started_again[supervisor]": (
        "engine", "its watcher is killed with -9", "noticed, cleaned up after, started anew"),
    f"{_LOCAL}two_starts_at_once_give_one_engine": (
        "engine", "started twice at once", "one engine"),
    f"{_LOCAL}an_engine_that_is_not_on_record_is_left_alone": (
        "engine", "one runs that nobody wrote down", "exit 4 that says how to find it"),
    f"{_LOCAL}an_engine_starts_again_where_the_folder_of_a_killed_one_was_deleted": (
        "engine", "killed with -9, and its folder deleted", "cleaned up after, started anew"),
    f"{_LOCAL}an_engine_that_cannot_start_says_why": (
        "engine", "it cannot start", "exit 4 with its last lines and its log"),
    f"{_FAULTS}an_engine_that_is_killed_ends_the_build_and_not_the_next": (
        "engine", "killed with -9 in a stage", f"exit 4 {_GONE_ON}"),
    f"{_FAULTS}ctrl_c_stops_the_work_in_the_engine_too": (
        "stage pip", "Ctrl-C while the engine works", f"its work stops; {_GONE_ON}"),
    f"{_FAULTS}two_builds_at_once_share_one_engine": (
        "pipeline", "two builds of two images at once", "both delivered, by one engine"),
    f"{_FAULTS}a_base_that_cannot_be_pulled[not there]": (
        "registry, base", "404", "exit 5 in words, at once"),
    f"{_FAULTS}a_base_that_cannot_be_pulled[nobody home]": (
        "registry, base", "nobody listens", "exit 5 in words, at once"),
    f"{_STORE}half_a_wheel_is_none": (
        "wheel store, folder", "looked at in the middle of a put", "no half wheel is found"),
    f"{_STORE}the_wheel_of_another_build_that_was_faster_stays": (
        "wheel store, folder", "two builds put the same wheel", "one whole wheel"),
    f"{_STORE}what_cannot_be_written_is_a_publish_error": (
        "wheel store, folder", "its disk is full, or it is a file", "exit 7, nothing half-written"),
    f"{_STORE}what_was_left_half_written_goes_after_a_day": (
        "wheel store, folder", "a build was killed in a put", "what it left goes, others' stays"),
}  # fmt: skip


class Results:
    """What became of each row, in the order they ran."""

    def __init__(self) -> None:
        self.rows: dict[str, tuple[tuple[str, str, str], str]] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Take down how a phase of a test ended (pytest's hook)."""
        given = dict(report.user_properties).get(ROW) or ELSEWHERE.get(report.nodeid)
        if given is None or (report.when != "call" and not report.failed):
            return
        assert isinstance(given, tuple)
        lost = "nothing" if report.passed else f"**{report.outcome}**"
        self.rows[report.nodeid] = (given, lost)

    def markdown(self) -> str:
        """Return the table, worst first, then by what fails."""
        lines = [
            "| # | What fails | How | What held after it | Lost |",
            "| --- | --- | --- | --- | --- |",
        ]
        ordered = sorted(self.rows.values(), key=lambda it: (it[1] == "nothing", it[0]))
        for number, ((where, fault, holds), lost) in enumerate(ordered, 1):
            lines.append(f"| {number} | {where} | {fault} | {holds} | {lost} |")
        bad = sum(lost != "nothing" for _, lost in self.rows.values())
        total = len(self.rows)
        return "\n".join([f"{total} faults, {total - bad} without a loss.", "", *lines, ""])


def main() -> int:
    """Run the rows and write the table; return pytest's exit code."""
    at = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    files, arguments = sys.argv[1:at], sys.argv[at + 1 :]
    results = Results()
    chosen = ["-q", "-m", "not hours", *TABLES, *ELSEWHERE, *arguments]
    code = pytest.main(chosen, plugins=[results])
    text = results.markdown()
    if files:
        Path(files[0]).write_text(text)
    else:
        sys.stdout.write(text)
    return int(code)


if __name__ == "__main__":
    raise SystemExit(main())
