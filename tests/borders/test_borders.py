"""Border programs: all pairs of features, and random programs, against the model."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from typing import Any

import pytest

from shoal import Tolerate
from shoal.stores._protocol import Batch

from .coverage import Coverage
from .generate import covering_rows, program
from .known import is_known
from .model import Model
from .play import MOST_LIVES, Report, play, play_all
from .program import PLAIN, Backend, Program, Trip
from .shrink import shrink
from .stores import Mortal, stores_of

pytestmark = pytest.mark.sweep

BLOCK = 1000  # programs


@pytest.fixture(autouse=True)
def quietly() -> Iterator[None]:
    """What programs do is logged as what it is: errors."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.fixture
def nothing_blocks_the_loop() -> None:
    """Here, files are read in the event loop's thread: see `stores.InOneThread`."""


def check(programs: Iterable[Program], backend: Backend, kind: str = "memory") -> None:
    with stores_of(kind) as make_store:
        failed = [
            report
            for report in play_all(programs, backend, make_store)
            if report.violations and not is_known(report.program, report.violations)
        ]
        if not failed:
            return

        def again(tried: Program) -> Report:
            return play(tried, backend, make_store, collect=True)

        smallest = shrink(failed[0], again, tries=200)
    pytest.fail(f"{len(failed)} programs fail; one, made small: {smallest}", pytrace=False)


def test_every_pair_of_features_occurs():
    coverage = Coverage()
    for seed in range(len(covering_rows())):
        coverage.add(program(seed).row)
    assert not coverage.missing


@pytest.mark.timeout(300)
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_programs_of_all_pairs(backend: Backend):
    check(map(program, range(len(covering_rows()))), backend)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_random_programs(backend: Backend):
    check(map(program, range(1000, 1100)), backend)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_programs_in_a_file(backend: Backend):
    check(map(program, range(1200, 1260)), backend, "sqlite")


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("block", range(10))
@pytest.mark.parametrize("kind", ["memory", "sqlite"])
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_many_programs(backend: Backend, kind: str, block: int):
    first = 10_000 + block * BLOCK
    check(map(program, range(first, first + BLOCK)), backend, kind)


def test_a_program_is_the_same_each_time():
    first, second = (play(program(1003), "asyncio") for _ in range(2))
    assert first.ends == second.ends
    assert first.program == second.program


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_neither_program_need_go_on_where_each_has_begun_the_fan_out_of_another_child(
    backend: Backend,
):
    """The child that the former program has begun waits for answers, and is not compared yet."""
    row = {**PLAIN, "place": "fan", "steps": "2", "asks": "yes", "outer_limits": "one",
           "outer_width": "2", "change": "folded"}  # fmt: skip
    played = play(Program(13326, row, (Trip(1, "save", 12, "fails"),)), backend)
    assert not played.violations
    assert played.ends == ["stopped", "halted", "refused", "refused"]


@pytest.mark.parametrize("nth", [9, 15, 19])
def test_no_program_need_go_on_if_the_changed_one_was_quicker_in_another_child(nth: int):
    """It may have results of the second child before the first is compared: turns decide."""
    row = {**PLAIN, "place": "fan", "outer_width": "2", "saving": "slow", "change": "folded"}
    played = play(Program(8011397, row, (Trip(1, "anything", nth, "fails"),)), "asyncio")
    assert not played.violations
    assert played.ends[:2] == ["stopped", "refused"]
    assert played.ends[2:] in (["refused"], ["succeeded"])


def test_what_no_store_names_is_not_looked_for():
    """A child below the second child was saved, and the second itself was not."""
    row = {**PLAIN, "form": "acts over", "place": "fan", "result": "reduce", "until": "function",
           "asks": "yes", "outer_until": "first", "outer_width": "2"}  # fmt: skip
    played = play(Program(8001201, row, (Trip(1, "save", 6, "dies"),)), "asyncio")
    assert not played.violations
    assert played.ends[:2] == ["stopped", "succeeded"]


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_visit_to_which_only_failures_are_left_may_exceed_a_tolerated_share(backend: Backend):
    """The visit before has done the others, and what is skipped has not ended here."""
    row = {**PLAIN, "place": "loop", "on_error": "share", "known": "never again", "width": "6",
           "bad": "act"}  # fmt: skip
    played = play(Program(77285, row), backend)
    assert not played.violations
    assert played.ends == ["failed", "failed"]


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_lives_that_fail_by_a_body_that_misbehaves_once_are_not_counted(backend: Backend):
    row = {**PLAIN, "place": "fan", "grow": "yes", "width": "6", "steps": "2",
           "manners": "spurious", "outer_limits": "one", "outer_width": "2"}  # fmt: skip
    played = play(Program(5010806, row), backend)
    assert not played.violations
    assert played.ends.count("failed") > MOST_LIVES


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
@pytest.mark.parametrize("what", ["fails", "hangs"])
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_result_may_be_void_in_the_store_though_no_hook_was_told(
    backend: Backend, what: str, kind: str
):
    """The store keeps that a child of another version begins afresh, and says that it failed."""
    row = {**PLAIN, "change": "version"}
    trips = (Trip(1, "act end", 3, "raises"), Trip(2, "saved", 1, what))
    with stores_of(kind) as make_store:
        played = play(Program(1, row, trips), backend, make_store)
    assert not played.violations
    assert played.ends == ["failed", "stopped", "succeeded"]


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_hook_that_has_raised_is_not_told_how_another_attempt_ends(backend: Backend):
    """Both children around are tried again at once; the breaker skips what is in them."""
    row = {**PLAIN, "place": "fan", "breaker": "act", "width": "1", "outer_retry": "yes",
           "outer_width": "2", "bad": "act"}  # fmt: skip
    played = play(Program(1, row, (Trip(1, "hook", 24, "raises"),)), backend)
    assert not played.violations
    assert played.ends == ["stopped", "succeeded"]


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize(
    "played",
    [
        Program(
            10015153,
            {**PLAIN, "place": "fan", "at_most": "few", "on_error": "share", "manners": "spurious",
             "outer_limits": "one", "outer_width": "2", "change": "renamed"},
            changes_in=3,
        ),
        Program(
            10212869,
            {**PLAIN, "place": "fan", "on_error": "share", "steps": "2", "bad": "act",
             "change": "one more act"},
            (Trip(1, "act", 5, "cancel"), Trip(2, "anything", 8, "scope")),
            changes_in=3,
        ),
        Program(
            10304030,
            {**PLAIN, "place": "fan", "grow": "yes", "on_error": "share", "limits": "two",
             "each_retry": "yes", "width": "6", "pauses": "turns", "saving": "slow", "bad": "act",
             "change": "step added"},
            (Trip(1, "act", 4, "scope"),),
        ),
    ],
    ids=["renamed", "one more act", "step added"],
)  # fmt: skip
def test_what_was_done_in_a_child_that_begins_afresh_has_not_ended(
    backend: Backend, played: Program
):
    """Its own fan-out begins afresh, and tolerates a share of what ends in this life."""
    report = play(played, backend)
    assert not report.violations
    assert len(report.ends) >= played.changes_in


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize(
    "played",
    [
        Program(
            10106652,
            {**PLAIN, "form": "acts over", "result": "reduce", "on_error": "share",
             "telling": "turns", "bad": "act"},
            (Trip(1, "anything", 41, "raises"),),
        ),
        Program(
            1684,
            {**PLAIN, "form": "acts over", "on_error": "share", "store": "own", "saving": "slow",
             "bad": "act"},
        ),
    ],
    ids=["reduced", "in a store of their own"],
)  # fmt: skip
def test_children_that_a_life_has_left_done_count_in_the_next_one(
    backend: Backend, played: Program
):
    """See `fanout/test_tolerated_share`."""
    report = play(played, backend)
    assert not report.violations
    assert report.ends[:2] in (["stopped", "succeeded"], ["failed", "succeeded"])


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_life_that_is_cancelled_before_its_run_begins_leaves_what_a_broken_store_has(
    backend: Backend, kind: str
):
    """The store has the end of the first life, and what the second one has begun."""
    row = {**PLAIN, "stagger": "seconds", "asks": "yes", "saving": "slow"}
    trips = (
        Trip(1, "anything", 20, "scope"),
        Trip(2, "anything", 12, "fails"),
        Trip(3, "anything", 1, "scope"),
    )
    with stores_of(kind) as make_store:
        played = play(Program(1, row, trips), backend, make_store)
    assert not played.violations
    assert played.ends[:3] == ["cancelled", "stopped", "cancelled"]
    assert played.ends[-1] == "succeeded"


def test_failures_that_only_the_changed_program_would_have_reduced_may_be_tried_again():
    """The former program goes on after a refusal, and does not reduce."""
    row = {**PLAIN, "place": "fan", "on_error": "count", "breaker": "act", "width": "6",
           "asks": "yes", "outer_width": "2", "bad": "act", "change": "folded"}  # fmt: skip
    report = play(Program(80966, row), "trio")
    assert not report.violations
    assert report.ends == ["halted", "refused", "succeeded"]


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
@pytest.mark.parametrize("at_most", ["no", "few"])
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_contestant_that_was_taken_back_does_not_begin_on_top_of_its_history(
    backend: Backend, at_most: str, kind: str
):
    """Asking its limits fails once, so another attempt begins the race again."""
    row = {**PLAIN, "place": "fan", "result": "take", "at_most": at_most, "until": "restart",
           "limits": "cost", "outer_retry": "yes", "bad": "take", "width": "1"}  # fmt: skip
    with stores_of(kind) as make_store:
        played = play(Program(1, row, (Trip(2, "cost", 1, "raises"),)), backend, make_store)
    assert not played.violations
    assert played.ends == ["failed", "failed", "failed"]


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
def test_a_hook_whose_call_is_torn_down_may_not_be_told_that_a_child_is_tried_again(kind: str):
    """All tasks are cancelled while the hook is told that child 3 starts once more."""
    row = {**PLAIN, "form": "start", "place": "fan", "outer_retry": "yes", "max_live": "1",
           "telling": "turns", "bad": "all acts"}  # fmt: skip
    with stores_of(kind) as make_store:
        program = Program(30056302, row, (Trip(1, "act", 6, "teardown"),))
        played = play(program, "asyncio", make_store)
    assert not played.violations
    assert played.ends[0] == "cancelled"
    assert played.ends[-1] == "failed"


def test_a_program_that_fails_is_made_small():
    """Here, one fails that has three things in it; all else is left out."""

    def pretend(tried: Program) -> Report:
        has = tried["grow"] == "yes" and tried["width"] == "6" and tried.trips
        return Report(tried, "asyncio", ["it fails"] if has else [])

    trips = (Trip(1, "act", 8, "raises"), Trip(2, "save", 3, "dies"))
    row = {**PLAIN, "grow": "yes", "width": "6", "limits": "rate", "after": "yes", "steps": "3"}
    small = shrink(pretend(Program(1, row, trips, 7)), pretend).program
    assert small.features == {"grow": "yes", "width": "6"}
    assert small.trips == (Trip(2, "save", 1, "dies"),)
    assert small.schedule is None


def forget_ends(store: Mortal, batch: Batch) -> Any:
    """Keep what is applied, and not of whom it is."""
    return _save(store, batch._replace(applied=()))


def keep_twice(store: Mortal, batch: Batch) -> Any:
    """Keep an update a second time."""
    return _save(store, batch._replace(updates=(*batch.updates, *batch.updates[-1:])))


def keep_late(store: Mortal, batch: Batch) -> Any:
    """Say that something is kept, and forget it."""
    return None if batch.unapplied else _save(store, batch)


_save = Mortal.save

PLAIN_PROGRAM = Program(1, PLAIN)
FAILING_PROGRAM = PLAIN_PROGRAM.with_(bad="act")
RAISING_HOOK_PROGRAM = Program(1, {**PLAIN, "bad": "act"}, (Trip(1, "hook", 9, "raises"),))


@pytest.mark.parametrize(
    ("breaks", "played", "expected"),
    [
        (forget_ends, PLAIN_PROGRAM, "was told, its record says None"),
        (keep_twice, PLAIN_PROGRAM, "comes after update 1"),
        (keep_late, FAILING_PROGRAM, "was told, its record says None"),
        (keep_late, RAISING_HOOK_PROGRAM, "was told, its record says None"),
    ],
)
def test_a_store_that_is_wrong_is_found(
    monkeypatch: pytest.MonkeyPatch, breaks: Any, played: Program, expected: str
):
    assert not play(played, "asyncio").violations
    monkeypatch.setattr(Mortal, "save", breaks)
    found = play(played, "asyncio").violations
    assert any(expected in one for one in found), found


def test_what_is_done_twice_is_found(monkeypatch: pytest.MonkeyPatch):
    """Here, a new life is told that nobody has ever been done."""

    async def nobody(store: Mortal, *_: object) -> list[Any]:
        return []

    again = Program(1, PLAIN, (Trip(1, "act end", 3, "raises"),))
    assert not play(again, "asyncio").violations
    monkeypatch.setattr(Mortal, "children", nobody)
    found = play(again, "asyncio").violations
    assert any("was Done, and a1 is executed again" in one for one in found), found


def never(_self: Tolerate, _failed: int, _ended: int, *, at_end: bool = False) -> bool:
    """Tolerate everything."""
    del at_end
    return False


def at_end_only(tolerate: Tolerate, failed: int, ended: int, *, at_end: bool = False) -> bool:
    """Go on though there are too many."""
    return at_end and _is_exceeded(tolerate, failed, ended, at_end=True)


def at_once(_self: Tolerate, failed: int, _ended: int, *, at_end: bool = False) -> bool:
    """Tolerate nothing."""
    del at_end
    return failed > 0


_is_exceeded = Tolerate.is_exceeded


@pytest.mark.parametrize(
    ("wrong", "row", "expected"),
    [
        (never, {"bad": "all acts"}, "has succeeded with 3 failures and 0 done"),
        (never, {"bad": "all acts", "on_error": "count"}, "has succeeded with 3 failures"),
        (at_end_only, {"form": "acts over"}, "has succeeded with 2 failures and 4 done"),
        (at_once, {"on_error": "count"}, "and it has not too many failures"),
        (at_once, {"pauses": "seconds"}, "and it has not too many failures"),
    ],
)
def test_a_tolerance_that_is_wrong_is_found(
    monkeypatch: pytest.MonkeyPatch, wrong: Any, row: dict[str, str], expected: str
):
    """Two at the same place, of different acts, are more than a half when they end first."""
    tolerant = Program(1, {**PLAIN, "on_error": "share", "bad": "act", "place": "fan", **row})
    assert not play(tolerant, "asyncio").violations
    monkeypatch.setattr(Tolerate, "is_exceeded", wrong)
    found = play(tolerant, "asyncio").violations
    assert any(expected in one for one in found), found


@pytest.mark.parametrize(
    ("wrong", "expected"),
    [("loses", "is missing"), ("mixes up", "is none of"), ("turns round", "not in input order")],
)
def test_a_result_that_is_wrong_is_found(wrong: str, expected: str):
    right = {"1": "a1(r.1)", "2": "a1(r.2)", "3": "a1(r.3)"}
    check_of = Model(PLAIN_PROGRAM).whole().check
    assert check_of({"fan": right}) is None
    keys = ["1", "3"] if wrong == "loses" else ["3", "2", "1"] if wrong == "turns round" else right
    value = {key: "a1(r.1)" if wrong == "mixes up" else right[key] for key in keys}
    problem = check_of({"fan": value})
    assert problem is not None
    assert expected in problem
