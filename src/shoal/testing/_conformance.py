"""`StoreConformance`: the tests that every store must pass."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime
from itertools import count
from typing import Any

import anyio

from shoal._errors.exceptions import LeaseLost, NotData, RunClaimed
from shoal._events.events import ChildName, Decision, Status, Update
from shoal._events.identity import Key, RunPath
from shoal._state.state import Drop, Extend, Increment, Operation, Put, PutWithin, Set
from shoal.stores._history import (
    BudgetLevel,
    Completed,
    Entry,
    QuestionAnswered,
    QuestionAsked,
    Rewound,
    StepBegun,
)
from shoal.stores._protocol import Batch, Beginning, ChildRecord, Store

from ._conformance_applications import ApplicationConformance
from ._hand_made import (
    BEGINNING,
    ROOT,
    HandMadeRun,
    cancelled_after,
    child_run,
    claimed,
    keys,
    known,
    refused,
    save,
    saved,
    update_at,
    update_of,
)

MANY = 10


class StoreConformance(ApplicationConformance):
    """Tests of all that the engine needs of a store. Derive from it, and add a ``store`` fixture.

    For pytest, with anyio's plugin. If several objects can hold the same runs, in several processes
    say, override ``another`` to return a second one, and more is tested::

        import pytest
        from shoal.testing import StoreConformance


        @pytest.mark.anyio
        class TestMyStore(StoreConformance):
            @pytest.fixture
            def store(self, tmp_path):
                return MyStore(tmp_path / "runs")

            def another(self, store):
                return MyStore(store.path)

    With ``pytest.register_assert_rewrite("shoal.testing")`` in ``conftest.py``, before the first
    import of it, pytest shows the values of a comparison that fails.

    Optional protocols (``FindsOrphans``, ``ReadsInParts``, ``CachesResults``, ``Prunes``,
    ``Browses``, ``Inspects``, ``KeepsReports``) are tested if the store has
    them, and skipped otherwise.

    Test in your own tests that a lease expires, and what happens then to a process that has lost
    it: stores differ too much in how to make that happen.
    """

    # -- claims ---------------------------------------------------------------------------------

    async def test_a_new_store_knows_nothing(self, store: Store) -> None:
        assert await store.load("root") is None
        assert list(await store.read(ROOT)) == []
        assert list(await store.children(ROOT)) == []
        assert list(await store.children(ROOT, "map", 0)) == []

    async def test_one_execution_at_a_time_has_a_run(self, store: Store) -> None:
        await store.claim("root", "me")
        await store.claim("other", "you")
        for holder in ("you", "me"):
            await refused(RunClaimed, lambda holder=holder: store.claim("root", holder))
        await refused(RunClaimed, lambda: self.another(store).claim("root", "you"))
        await store.release("root", "you")  # has no effect: it is claimed by "me"
        await refused(RunClaimed, lambda: store.claim("root", "you"))
        await store.release("root", "me")
        await store.claim("root", "you")
        await store.release("root", "me")  # has no effect: it is claimed by "you"
        await refused(RunClaimed, lambda: store.claim("root", "me"))
        await store.release("unknown", "you")
        await store.release("root", "you")
        await store.release("other", "you")

    async def test_of_many_that_claim_a_run_one_has_it(self, store: Store) -> None:
        won: list[tuple[Store, str]] = []
        lost: list[str] = []

        async def claim(holder: str) -> None:
            asked = store if len(holder) % 2 else self.another(store)
            try:
                await asked.claim("root", holder)
            except RunClaimed:
                lost.append(holder)
            else:
                won.append((asked, holder))

        async with anyio.create_task_group() as tasks:
            for number in range(8):
                tasks.start_soon(claim, "x" * (number + 1))
        for asked, holder in won:
            await asked.release("root", holder)
        assert len(won) == 1, f"claimed by {[holder for _, holder in won]}"
        assert len(lost) == 7

    async def test_a_claim_of_a_run_is_of_no_other(self, store: Store) -> None:
        async with claimed(store, begin=False):
            await refused(
                LeaseLost,
                lambda: save(store, HandMadeRun(path=RunPath(run_id="other")), begun=BEGINNING),
            )

    async def test_a_run_that_was_not_claimed_can_not_be_saved(self, store: Store) -> None:
        await refused(LeaseLost, lambda: save(store, begun=BEGINNING))
        async with claimed(store):
            pass
        await store.claim("root", "you")
        for run in (HandMadeRun(), child_run("a")):
            await refused(LeaseLost, lambda run=run: save(store, run, updates=(update_of(1),)))
        await save(store, updates=(update_of(1),), holder="you")
        await store.release("root", "you")
        await refused(LeaseLost, lambda: save(store, updates=(update_of(2),), holder="you"))
        assert list(await store.read(ROOT)) == [update_of(1)]

    # -- root runs ------------------------------------------------------------------------------

    async def test_a_run_is_known_by_its_beginning_and_its_end(self, store: Store) -> None:
        async with claimed(store):
            assert await known(store) == (BEGINNING, None, "")
            cancelled = HandMadeRun(status="cancelled", reason="closed")
            await save(store, cancelled, ended="cancelled")
            assert await known(store) == (BEGINNING, "cancelled", "closed")
            await save(store, updates=(update_of(1),))  # the run goes on
            assert await known(store) == (BEGINNING, None, "")
            await save(store, HandMadeRun(status="succeeded"), ended="succeeded")
        assert await known(self.another(store)) == (BEGINNING, "succeeded", "")

    async def test_a_beginning_is_kept_as_it_is(self, store: Store) -> None:
        beginning = Beginning(
            application="crawl",
            version="2.1",
            first={"urls": ["a", "b"], "at": datetime(2026, 1, 2, tzinfo=UTC), "none": None},
            after="fetch",
            visits={"fetch": 2, "parse": 1},
            forked_from=("crawl-1", 17),
            secret=frozenset({"token", "password"}),
            owner="eve",
            priority="batch",
        )
        async with claimed(store, begin=False):
            await save(store, begun=beginning)
        assert (await known(self.another(store)))[0] == beginning

    async def test_a_run_of_any_id_may_have_been_forked(self, store: Store) -> None:
        for run_id in ("", "1", "#1", "a\0b", "half \ud800 of it", "é" * 700):
            beginning = replace(BEGINNING, forked_from=(run_id, 3))
            async with claimed(store, begin=False):
                await save(store, begun=beginning)
            assert (await known(self.another(store)))[0] == beginning

    async def test_what_was_never_begun_is_not_known(self, store: Store) -> None:
        async with claimed(store, begin=False):
            await save(store, child_run("a", status=None), updates=(update_of(1),))
            assert await store.load("root") is None, "a run that has not begun is loaded"
            assert await keys(store) == ["a"]

    # -- histories ------------------------------------------------------------------------------

    async def test_a_history_is_in_the_order_of_its_saves(self, store: Store) -> None:
        async with claimed(store):
            await save(store, updates=(update_of(1), update_of(2)))
            await save(store, updates=(update_of(3),), step_completed="map", before=2)
            await save(store, step_completed="next", before=3)
            back = Rewound("map", 0)
            await save(store, updates=(update_of(4),), rewound=back, before=3)
            whole: list[Entry] = [
                *map(update_of, (1, 2, 3)),
                Completed("map", 2),
                Completed("next", 3),
                back,
                update_of(4),
            ]
            for each in (store, self.another(store)):
                assert list(await each.read(ROOT)) == whole
                assert list(await each.read(ROOT, 1)) == whole
                assert list(await each.read(ROOT, 3)) == whole[2:]
                assert list(await each.read(ROOT, 4)) == whole[6:]
                assert list(await each.read(ROOT, 5)) == []

    async def test_every_operation_is_kept(self, store: Store) -> None:
        operations: tuple[Operation, ...] = (
            Set("page", {"title": "Home", "size": (3, 4)}),
            Extend("log", ("a", 2, None)),
            Put("titles", "x", 1, 3),
            Put("titles", 1, "one"),
            Put("titles", "1", "text", 0.5),
            PutWithin("both", "x", "act", [1], 2, 2),
            Increment("count", 2),
            Increment("weight", -0.5),
            Drop("page"),
        )
        update = Update(1, "step", operations, ("found", ("a", 1)), 7)
        async with claimed(store):
            await save(store, updates=(update,), step_completed="step")
        assert list(await self.another(store).read(ROOT)) == [update, Completed("step", 0)]

    async def test_a_decision_stands_behind_its_update(self, store: Store) -> None:
        winner = ChildName("leaf", 1)
        decision = Decision("race", winner, (winner, ChildName("leaf", "1")), "it was first")
        async with claimed(store):
            applied = Update(1, "race", (Set("answer", 7),))
            won = child_run(1, step="race", value=7)
            await save(store, updates=(applied,), applied=(won,), decision=decision)
            await save(store, step_completed="race", before=1)
            await save(store, decision=decision, before=1)
            whole = [applied, decision, Completed("race", 1), decision]
            assert list(await store.read(ROOT)) == whole

    async def test_what_a_step_declares_stands_before_its_updates(self, store: Store) -> None:
        begun = StepBegun("map", {"acts": ["leaf"], "into": "out", "take": None, "grows": False})
        async with claimed(store):
            await save(store, updates=(update_of(1),), step_completed="step")
            child = child_run(1, value=7)
            applied = Update(2, "map", (Put("out", 1, 7, 0),))
            await save(store, updates=(applied,), applied=(child,), step_begun=begun, before=1)
            await save(store, step_begun=begun, before=2)
            whole = [update_of(1), Completed("step", 0), begun, applied, begun]
            for each in (store, self.another(store)):
                assert list(await each.read(ROOT)) == whole
                assert list(await each.read(ROOT, 2)) == [applied, begun]

    async def test_questions_and_answers_are_kept_where_they_were_saved(self, store: Store) -> None:
        asked = QuestionAsked("review", "ok", {"diff": ["+1", ("-", 2)], "none": None}, "q1")
        changed = QuestionAsked("review", "ok", None, "q1")
        answers = (QuestionAnswered("q1", {"yes": True}), QuestionAnswered("q2", None))
        async with claimed(store):
            await save(store, updates=(update_of(1),), questions=(asked,))
            await save(store, questions=(changed,), before=1)
            await save(store, questions=answers, before=1)
            await save(store, updates=(update_of(2),), step_completed="review", before=1)
            run = child_run("a", status=None)
            await save(store, run, questions=(asked,))
            await save(store, run, updates=(update_of(1, "review"),), step_completed="review")
            whole = [update_of(1), asked, changed, *answers, update_of(2), Completed("review", 1)]
            for each in (store, self.another(store)):
                assert list(await each.read(ROOT)) == whole
                assert list(await each.read(run.path)) == [
                    *(asked, update_of(1, "review"), Completed("review", 0))
                ]

    async def test_what_is_spent_of_budgets_is_kept(self, store: Store) -> None:
        first = BudgetLevel("USD", "", "USD", 0.5, 0.25, {"ask": 0.5})
        then = BudgetLevel("USD", "", "USD", 0.75, 0.0, {"ask": 0.5, "again": 0.25})
        keyed = BudgetLevel("calls", "'a'", "requests", 3.0, 1.0, {})
        async with claimed(store):
            await save(store, updates=(update_of(1),))
            await save(store, spent=(first,), before=1)
            await save(store, spent=(then, keyed), before=1)
            await save(store, updates=(update_of(2),), before=1)
            whole = [update_of(1), first, then, keyed, update_of(2)]
            for each in (store, self.another(store)):
                assert list(await each.read(ROOT)) == whole

    async def test_children_s_updates_stand_among_the_others(self, store: Store) -> None:
        async with claimed(store):
            whole: list[Entry] = []
            for number in range(1, 10):
                update = Update(number, "map", (Put("out", number, number, number),))
                run = child_run(number, value=number, position=number)
                applied = (run,) if number % 3 else ()
                step = "map" if number % 2 else None
                await save(
                    store,
                    updates=(update,),
                    applied=applied,
                    step_completed=step,
                    before=number - 1,
                )
                whole.append(update)
                if step is not None:
                    whole.append(Completed("map", number - 1))
            for each in (store, self.another(store)):
                assert list(await each.read(ROOT)) == whole
                assert list(await each.read(ROOT, 4)) == whole[whole.index(update_at(whole, 4)) :]

    async def test_a_history_only_grows(self, store: Store) -> None:
        """Entries about a child stay, although the child's record changes later."""
        first = Update(1, "map", (Put("bad", "a", "no", 0),))
        async with claimed(store):
            error = ValueError("no")
            failed = child_run("a", status="failed", error=error)
            await save(store, updates=(first,), applied=(failed,))
            run = child_run("a", status=None)
            await save(store, run, updates=(update_of(1, "one"),), step_completed="one")
            second = Update(2, "map", (Put("out", "a", 5, 0),))
            own = Update(2, "two", (Set("out", 5),))
            done = child_run("a", value=5, last_update=own)
            await save(store, updates=(second,), applied=(done,))
            third = Update(3, "map", (Put("out", "a", 5, 4),))
            moved = child_run("a", value=5, position=4)
            await save(store, updates=(third,), applied=(moved,), step_completed="map", before=2)
            whole = [first, second, third, Completed("map", 2)]
            for each in (store, self.another(store)):
                assert list(await each.read(ROOT)) == whole
                assert list(await each.read(ROOT, 2)) == whole[1:]
                inner = list(await each.read(done.path))
                assert inner == [update_of(1, "one"), Completed("one", 0), own]
                (record,) = await each.children(ROOT)
                assert (record.applied, record.position, record.value) == (3, 4, 5)

    # -- children -------------------------------------------------------------------------------

    async def test_a_child_s_end_its_last_update_and_the_parent_s_are_one_save(
        self, store: Store
    ) -> None:
        error = ValueError("no")
        own = update_of(1, "leaf")
        done = child_run("a", value=7, last_update=own, position=1)
        failed = child_run(1, status="failed", error=error, position=2)
        skipped = child_run("1", status=None, reason="already in out", attempts=0)
        late = child_run(
            "b", status="cancelled", reason="too late", position=3, winner=ChildName("leaf", 1)
        )
        unused = child_run("c", value=[1, 2], position=4, used=False, abandoned=True)
        updates = tuple(map(update_of, (1, 2, 3)))
        async with claimed(store):
            store.pack(done)
            await save(
                store, updates=updates, applied=(done, failed, skipped), unapplied=(late, unused)
            )
        common: dict[str, Any] = {"step": "map", "visit": 0, "act": "leaf", "digest": "digest"}
        common["elapsed"] = 0.5
        expected = [
            ChildRecord(
                **common, key="a", position=1, element="a", status="succeeded", value=7, applied=1
            ),
            ChildRecord(
                **common, key=1, position=2, element=1, status="failed", applied=2, error=error
            ),
            ChildRecord(
                **common,
                key="1",
                position=0,
                element="1",
                status="skipped",
                applied=3,
                reason="already in out",
                attempts=0,
            ),
            ChildRecord(
                **common,
                key="b",
                position=3,
                element="b",
                status="cancelled",
                reason="too late",
                winner=ChildName("leaf", 1),
            ),
            ChildRecord(
                **common,
                key="c",
                position=4,
                element="c",
                status="succeeded",
                value=[1, 2],
                used=False,
                abandoned=True,
            ),
        ]
        for each in (store, self.another(store)):
            found = {(type(one.key), one.key): one for one in await each.children(ROOT)}
            for wanted in expected:
                record = found.pop((type(wanted.key), wanted.key))
                assert repr(record.error) == repr(wanted.error)
                assert record._replace(error=None) == wanted._replace(error=None)
            assert not found
            assert list(await each.read(done.path)) == [own]
            assert list(await each.read(failed.path)) == []
            assert list(await each.read(ROOT)) == list(updates)

    async def test_what_a_fan_out_makes_of_values_is_kept_as_it_is(self, store: Store) -> None:
        value = {"title": "Home", "tags": ("a", "b"), "at": datetime(2026, 1, 2, tzinfo=UTC)}
        makers: list[Callable[[HandMadeRun], Operation]] = [
            lambda run: Put("out", run.path.key, run.value, run.position),
            lambda run: Put("out", run.path.act, run.value, run.position),
            lambda run: PutWithin(
                "out", run.path.key, run.path.act, run.value, run.position, run.position
            ),
            lambda run: Put("out", run.path.key, dict(value, more=1), run.position),
            lambda run: Put("out", run.path.key, run.value, run.position + 1),
            lambda _: Increment("count", 1),
        ]
        async with claimed(store):
            updates: list[Update] = []
            for number, make in enumerate(makers, 1):
                run = child_run(number, value=value, position=number)
                run.last_update = Update(1, "leaf", (Set("page", value),))
                run.packed = store.pack(run)
                updates.append(Update(number, "map", (make(run),)))
                await save(store, updates=updates[-1:], applied=(run,))
        another = self.another(store)
        assert list(await another.read(ROOT)) == updates
        for record in await another.children(ROOT):
            assert record.value == value
            assert list(await another.read(child_run(record.key).path)) == [
                Update(1, "leaf", (Set("page", value),))
            ]

    async def test_a_child_that_is_halted_is_kept_with_what_it_waits_for(
        self, store: Store
    ) -> None:
        waits = [[[["map", 0, "leaf", "a"]], "review", "ok", {"diff": (1, None)}, "q1"]]
        async with claimed(store):
            run = child_run("a", status=None, position=2)
            asked = QuestionAsked("review", "ok", {"diff": (1, None)}, "q1")
            await save(store, run, questions=(asked,))
            resting = child_run("a", status="halted", value=waits, position=2)
            await save(store, unapplied=(resting,))
            for each in (store, self.another(store)):
                (record,) = await each.children(ROOT)
                assert (record.status, record.value, record.applied) == ("halted", waits, None)
                assert list(await each.read(run.path)) == [asked]
            done = child_run("a", value=7, position=2, last_update=update_of(1, "review"))
            await save(store, updates=(update_of(1),), applied=(done,))
            (record,) = await store.children(ROOT)
            assert (record.status, record.value, record.applied) == ("succeeded", 7, 1)
            assert list(await store.read(run.path)) == [asked, update_of(1, "review")]

    async def test_a_child_that_saves_a_step_is_known_to_be_under_way(self, store: Store) -> None:
        async with claimed(store):
            run = child_run("a", status=None, position=3)
            await save(store, run, updates=(update_of(1, "one"),), step_completed="one")
            (record,) = await store.children(ROOT)
            assert (record.key, record.status, record.digest, record.position) == (
                "a",
                None,
                "digest",
                3,
            )
            grandchild = child_run(3, parent=run.path, step="inner")
            await save(store, grandchild, updates=(update_of(1, "leaf"),))
            assert [one.key for one in await store.children(run.path)] == [3]
            assert await keys(store) == ["a"]
            assert list(await store.read(run.path)) == [update_of(1, "one"), Completed("one", 0)]

    async def test_descendants_of_a_child_that_has_saved_nothing_are_kept(
        self, store: Store
    ) -> None:
        async with claimed(store):
            path = child_run("a").path
            grandchild = child_run(3, parent=path, step="inner")
            await save(store, grandchild, updates=(update_of(1, "leaf"),))
            assert await keys(store) == [], "a child that has saved nothing is listed"
            assert [one.key for one in await store.children(path)] == [3]
            await save(store, updates=(update_of(1),), applied=(child_run("a", value=1),))
            assert await keys(store) == ["a"]
            assert [one.key for one in await store.children(path)] == [3]

    async def test_what_is_to_count_no_more_is_forgotten_with_all_below_it(
        self, store: Store
    ) -> None:
        async with claimed(store):
            run = child_run("a", status=None)
            await save(store, run, updates=(update_of(1, "one"),), step_completed="one")
            grandchild = child_run(3, parent=run.path, step="inner")
            await save(store, grandchild, updates=(update_of(1, "leaf"),))
            done = child_run("a", value=1, last_update=update_of(2, "two"))
            await save(store, updates=(update_of(1),), applied=(done,))
            await save(store, updates=(update_of(2),), applied=(child_run("b", value=1),))
            changed = child_run("a", status=None, digest="another", element="A")
            await save(store, changed, afresh=True)
            assert list(await store.read(run.path)) == []
            assert list(await store.children(run.path)) == []
            record = {one.key: one for one in await store.children(ROOT)}["a"]
            assert (record.status, record.applied, record.value) == (None, None, None)
            assert (record.digest, record.element) == ("another", "A")
            assert await keys(store) == ["a", "b"]
            again = child_run("a", value=2, digest="another", last_update=update_of(1, "two"))
            await save(store, updates=(update_of(3),), applied=(again,))
            assert list(await store.read(run.path)) == [update_of(1, "two")]
            numbers = [one.number for one in await store.read(ROOT) if isinstance(one, Update)]
            assert numbers == [1, 2, 3], "the parent's own history must stay"

    async def test_children_are_found_by_step_and_visit(self, store: Store) -> None:
        ends = [
            child_run(key, step=step, visit=visit, act=act)
            for step, visit, act, key in [
                ("map", 0, "leaf", "a"),
                ("map", 0, "other", "a"),
                ("map", 1, "leaf", "a"),
                ("next", 0, "leaf", 1),
                ("next", 0, "leaf", "1"),
            ]
        ]
        async with claimed(store):
            await save(store, unapplied=ends)
            assert len(await store.children(ROOT)) == len(ends)
            assert await keys(store, "map") == ["a", "a", "a"]
            acts = sorted(one.act for one in await store.children(ROOT, "map", 0))
            assert acts == ["leaf", "other"]
            assert sorted(await keys(store, "next", 0), key=str) in ([1, "1"], ["1", 1])
            assert await keys(store, "next", 1) == []
            assert await keys(store, "nowhere") == []

    async def test_keys_are_what_they_were(self, store: Store) -> None:
        wanted: list[Key] = [
            *("", "a", "1", "é", "\0", "a\0b", "half \ud800 of it", "x" * 500, "'; DROP"),
            *(0, 1, -1, 2**31, 2**63 - 1, -(2**63), 2**63, 10**40),
        ]
        async with claimed(store):
            ends = [child_run(key, value=index) for index, key in enumerate(wanted)]
            await save(store, unapplied=ends)
            other = self.another(store)
            found = {(type(one.key), one.key): one.value for one in await other.children(ROOT)}
            assert found == {(type(key), key): index for index, key in enumerate(wanted)}
            for key in wanted:
                run = child_run(key, step="next", status=None)
                await save(store, run, updates=(update_of(1),))
                assert list(await other.read(run.path)) == [update_of(1)]

    async def test_runs_are_kept_apart(self, store: Store) -> None:
        ids = ("root", "Root", "root ", "röot")
        for run_id in ids:
            run = HandMadeRun(path=RunPath(run_id=run_id))
            async with claimed(store, run):
                done = child_run("a", parent=run.path, value=run_id)
                await save(store, run, updates=(update_of(1, run_id),), applied=(done,))
        for run_id in ids:
            path = RunPath(run_id=run_id)
            assert list(await store.read(path)) == [update_of(1, run_id)]
            assert [one.value for one in await store.children(path)] == [run_id]

    # -- all or nothing -------------------------------------------------------------------------

    async def test_a_save_that_is_refused_keeps_nothing(self, store: Store) -> None:
        class Undigested(HandMadeRun):
            def __getattribute__(self, name: str) -> Any:
                if name == "digest":
                    raise NotData("a lock is not data")
                return super().__getattribute__(name)

        bad = Undigested(path=child_run("b").path, status="succeeded")
        async with claimed(store):
            await refused(
                NotData,
                lambda: save(
                    store, updates=tuple(map(update_of, (1, 2))), applied=(child_run("a"), bad)
                ),
            )
            await refused(NotData, lambda: save(store, bad, updates=(update_of(1),)))
            assert list(await store.read(ROOT)) == []
            assert await keys(store) == []
            await save(store, updates=(update_of(1),))
            assert list(await store.read(ROOT)) == [update_of(1)]

    async def test_many_runs_save_at_once(self, store: Store) -> None:
        async def live(number: int) -> None:
            run = HandMadeRun(path=RunPath(run_id=f"run{number}"))
            async with claimed(store, run):
                for at in range(1, 11):
                    ends = [child_run(f"{at}.{i}", parent=run.path) for i in range(3)]
                    await save(store, run, updates=(update_of(at),), unapplied=ends)
                    if at % 5 == 0:
                        entries = await store.read(run.path)
                        assert list(entries) == [update_of(n) for n in range(1, at + 1)]

        async with anyio.create_task_group() as tasks:
            for number in range(8):
                tasks.start_soon(live, number)
        for number in range(8):
            path = RunPath(run_id=f"run{number}")
            assert len(await store.read(path)) == 10
            assert len(await store.children(path)) == 30

    async def test_saves_are_kept_in_order_though_nobody_waits_in_between(
        self, store: Store
    ) -> None:
        async with claimed(store):
            pending = [
                store.save(Batch(HandMadeRun(), (update_of(number),), holder="me"))
                for number in range(1, 30)
            ]
            for one in reversed(pending):
                if one is not None:
                    await one
            assert list(await store.read(ROOT)) == [update_of(n) for n in range(1, 30)]

    async def test_a_wait_for_a_save_may_be_cancelled(self, store: Store) -> None:
        """The save, and those after it, have then happened as a whole or not at all."""
        async with claimed(store):
            turns = 0
            for number in count(1):
                ended: Any = child_run(f"k{number}", value=number)
                batch = Batch(HandMadeRun(), (update_of(number),), (ended,), holder="me")
                finished = await cancelled_after(turns, lambda one=batch: saved(store, one))
                turns += 1 + turns // 8  # faster and faster, because a slow store takes very many
                await save(store, before=number)  # behind it, the save before has happened or not
                known_keys = await keys(store)
                numbers = [one.number for one in await store.read(ROOT) if isinstance(one, Update)]
                assert (f"k{number}" in known_keys) == (number in numbers)
                if finished:
                    break
        await store.claim("root", "you")
        await store.release("root", "you")

    async def test_a_read_may_be_cancelled(self, store: Store) -> None:
        asking: list[Callable[[], Awaitable[object]]] = [
            lambda: store.load("root"),
            lambda: store.read(ROOT),
            lambda: store.children(ROOT),
        ]
        async with claimed(store):
            await save(store, updates=(update_of(1),), unapplied=(child_run("a"),))
            for ask in asking:
                for turns in range(4):
                    await cancelled_after(turns, ask)
            assert list(await store.read(ROOT)) == [update_of(1)]
            assert await keys(store) == ["a"]

    # -- in use ---------------------------------------------------------------------------------

    async def test_children_at_work_in_a_crash_are_known(self, store: Store) -> None:
        async def crashes(key: str = "a") -> list[tuple[int, Status | str | None]]:
            found = await self.another(store).children(ROOT, "map", 0)
            return [(record.crashes, record.status) for record in found if record.key == key]

        error = ValueError("no")
        async with claimed(store):
            await save(store, child_run("a", status=None, crashes=1))
            assert await crashes() == [(1, None)]
            await save(store, child_run("a", status=None, crashes=2))
            assert await crashes() == [(2, None)]
            got_further = child_run("a", status=None)
            await save(store, got_further, updates=(update_of(1, "one"),), step_completed="one")
            assert await crashes() == [(0, None)]
            failed = child_run("a", status="failed", error=error, crashes=3)
            await save(store, unapplied=(failed,))
            assert await crashes() == [(3, "failed")]
            await save(store, child_run("a", status=None, crashes=1))  # it runs again
            assert [number for number, _ in await crashes()] == [1]
            await save(store, unapplied=(child_run("a"),))
            assert await crashes() == [(0, "succeeded")]
            assert list(await store.read(got_further.path)) == [
                update_of(1, "one"),
                Completed("one", 0),
            ]
            await save(store, child_run("b", status=None, crashes=2))
            await save(store, child_run("b", status=None), afresh=True)
            assert await crashes("b") == [(0, None)]
