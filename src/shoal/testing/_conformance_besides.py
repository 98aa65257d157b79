"""Tests of a store's optional protocols; part of `StoreConformance`."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from typing import Any

from shoal._errors.exceptions import NotData
from shoal._events.events import Update
from shoal._events.identity import RunPath
from shoal._state.state import Drop, Extend, Increment, Operation, Put, PutWithin, Set
from shoal.stores._history import QuestionAsked
from shoal.stores._protocol import (
    Browses,
    CachesResults,
    FindsOrphans,
    Orphan,
    Prunes,
    ReadsInParts,
    Store,
)

from ._conformance_steering import SteeringConformance
from ._hand_made import BEGINNING, ROOT, HandMadeRun, child_run, claimed, has, keys, save, update_of

AT_ONCE = 1e-9
"""Seconds after which anything has expired: shorter than one call of a store."""


class OptionalConformance(SteeringConformance):
    """Tests of the optional protocols of a store; part of ``StoreConformance``."""

    # -- orphans --------------------------------------------------------------------------------

    async def test_orphans_are_runs_without_an_end_that_nobody_has(self, store: Any) -> None:
        store = has(store, FindsOrphans)
        assert list(await store.orphans()) == []
        async with claimed(store):
            await save(store, child_run("a", status=None), updates=(update_of(1),))
            assert list(await store.orphans()) == [], "a claimed run is no orphan"
        for each in (store, has(self.another(store), FindsOrphans)):
            assert list(await each.orphans()) == [Orphan("root", "app", "1")]
        for status in ("failed", "cancelled", "halted", "succeeded"):
            async with claimed(store, begin=False):
                await save(store, HandMadeRun(status=status), ended=status)
            assert list(await store.orphans()) == [], f"a {status} run is no orphan"
        async with claimed(store, begin=False):
            await save(store, begun=replace(BEGINNING, secret=frozenset({"token"})))
        assert [one.secret for one in await store.orphans()] == [{"token"}]
        async with claimed(store, begin=False):
            await save(store, begun=replace(BEGINNING, priority="batch"))
        assert [one.priority for one in await store.orphans()] == ["batch"]
        async with claimed(store, begin=False):
            await save(store, HandMadeRun(status="succeeded"), ended="succeeded")
        await store.claim("new", "me")
        await store.release("new", "me")
        assert list(await store.orphans()) == [], "a run that never began is no orphan"

    # -- parts ----------------------------------------------------------------------------------

    async def test_parts_come_to_what_is_read_at_once(self, store: Any) -> None:
        store = has(store, ReadsInParts)
        async with claimed(store):
            number = 0
            for turn in range(5):
                children = [
                    child_run(
                        f"{turn}.{at}",
                        position=turn * 1000 + at,
                        step="map" if turn < 3 else "again",
                        visit=turn % 2,
                        value=at,
                        used=at != 7,
                    )
                    for at in range(1000)
                ]
                updates = [
                    Update(number + at, run.path.step, (Put("out", run.path.key, at, at),))
                    for at, run in enumerate(children, 1)
                ]
                late = child_run(f"late {turn}", status="failed", error=ValueError("no"))
                skipped = child_run(f"skip {turn}", status=None, reason="already in out")
                await save(
                    store,
                    updates=[*updates, update_of(number + 1001)],
                    applied=[*children[:-1], skipped],
                    unapplied=[children[-1], late],
                    step_completed="map",
                    before=number,
                )
                number += 1001
            for _ in range(6):
                updates = [update_of(number + at) for at in range(1, 501)]
                await save(store, updates=updates, step_completed="a", before=number)
                number += 500
            asked = [QuestionAsked("a", f"{at}", None, f"{at}") for at in range(2500)]
            await save(store, questions=asked, before=number)
            number += 1
            await save(store, updates=(update_of(number),))
        begins = (0, 1, 999, 1001, 5004, 5007, number, number + 1)
        for each, starts in ((store, begins), (has(self.another(store), ReadsInParts), (0, 5004))):
            whole = list(await each.read(ROOT))
            assert len(whole) == 5 * 1002 + 6 * 501 + 2501
            for start in starts:
                entries: list[object] = []
                following: int | None = start
                while following is not None:
                    part, following = await each.read_part(ROOT, following)
                    entries += part
                assert entries == list(await each.read(ROOT, start))
            children = list(await each.children(ROOT))
            done = [
                one
                for one in children
                if one.status == "succeeded" and one.applied is not None and one.used
            ]
            assert len(done) == 5 * 998
            assert await each.done(ROOT) == Counter((one.step, one.visit) for one in done)
            names = {(one.step, one.visit, one.act, one.key): one for one in children}
            for step, visit in (("map", 0), ("map", None), ("again", 1), ("none", None)):
                of_step = [one for one in done if one.step == step and visit in (None, one.visit)]
                found: list[Any] = []
                after: int | None = 0
                while after is not None:
                    part, after = await each.done_part(ROOT, step, visit, after)
                    found += part
                assert [one.applied for one in found] == sorted(one.applied for one in of_step)
                for one in found:
                    record = names[one[:4]]
                    assert (*one[:6], one.applied, one.elapsed) == (
                        *(*record[:5], record.digest),
                        *(record.applied, record.elapsed),
                    )
                others = await each.not_done(ROOT, step, visit)
                expected = await each.children(ROOT, step, visit)
                assert len(others) + len(found) == len(expected)
                assert not {one[:4] for one in others} & {one[:4] for one in found}
            assert len(await each.not_done(ROOT)) == len(children) - len(done)
        assert await store.read_part(child_run("nobody").path) == ((), None)
        assert await store.done(child_run("nobody").path) == {}

    # -- results --------------------------------------------------------------------------------

    async def test_results_are_remembered_as_they_are(self, store: Any) -> None:
        store = has(store, CachesResults)
        operations: tuple[Operation, ...] = (
            Set("page", {"title": "Home", "size": (3, 4), "none": None}),
            Extend("log", ("a", 2)),
            Put("titles", 1, "one", 3),
            PutWithin("both", "x", "act", [1], 2, 2),
            Increment("count", -0.5),
            Drop("old"),
        )
        assert await store.recall("a") is None
        await store.remember("a", operations, 60)
        await store.remember("b", (), math.inf)
        for each in (store, has(self.another(store), CachesResults)):
            found = await each.recall("a")
            assert found is not None
            assert tuple(found) == operations
            nothing = await each.recall("b")
            assert nothing is not None
            assert list(nothing) == []
            assert await each.recall("c") is None

    async def test_a_result_replaces_the_one_before(self, store: Any) -> None:
        store = has(store, CachesResults)
        for value in (1, 2):
            await store.remember("a", (Set("n", value),), 60)
        found = await store.recall("a")
        assert found is not None
        assert list(found) == [Set("n", 2)]
        await store.remember("a", (Set("n", 3),), AT_ONCE)
        assert await store.recall("a") is None

    async def test_results_that_have_run_out_are_not_returned(self, store: Any) -> None:
        store = has(store, CachesResults)
        async with claimed(store):
            for number in range(3):
                await store.remember(f"{number}", (Set("n", number),), AT_ONCE)
            await store.remember("a", (), 60)
            for each in (store, has(self.another(store), CachesResults)):
                assert await each.recall("1") is None
                assert await each.recall("a") is not None

    async def test_results_are_of_no_run(self, store: Any) -> None:
        store = has(store, CachesResults)
        async with claimed(store):
            await store.remember("a", (Set("n", 1),), 60)
            await save(store, updates=(update_of(1),))
        assert list(await store.read(ROOT)) == [update_of(1)]
        assert list(await store.recall("a") or ()) == [Set("n", 1)]

    async def test_results_that_can_not_be_kept_are_refused(self, store: Any) -> None:
        """A store that can't keep objects of every kind refuses, and has nothing under the key."""
        store = has(store, CachesResults)

        class Unknown:
            pass

        try:
            await store.remember("a", (Set("n", Unknown()),), 60)
        except NotData:
            assert await store.recall("a") is None

    # -- old runs -------------------------------------------------------------------------------

    async def test_old_runs_are_deleted_with_all_below_them(self, store: Any) -> None:
        store = has(store, Prunes)
        for run_id in ("a", "b"):
            await grown(store, run_id)
        assert await store.prune(3600) == 0
        assert await store.prune(0, dry_run=True) == 2
        for each in (store, self.another(store)):
            assert await each.load("a") is not None
        assert await store.prune(0) == 2
        assert await store.prune(0) == 0
        for each in (store, self.another(store)):
            for run_id in ("a", "b"):
                path, inner = family(run_id)
                assert await each.load(run_id) is None
                for one in (path, inner, child_run("c", parent=path).path):
                    assert list(await each.read(one)) == []
                    assert list(await each.children(one)) == []

    async def test_only_those_that_stand_so_are_deleted(self, store: Any) -> None:
        store = has(store, Prunes)
        await store.claim("at work", "me")  # keeps the store open
        for status in ("succeeded", "failed", "cancelled", "halted", None):
            run_id = status or "left"
            async with claimed(store, root_run(run_id)):
                if status is not None:
                    await save(store, root_run(run_id, status), ended=status)
        assert await store.prune(0, ["failed"]) == 1
        assert await store.load("failed") is None
        assert await store.prune(0) == 2
        assert await store.load("left") is not None, "it may be resumed"
        assert await store.load("halted") is not None, "it waits for an answer"
        assert await store.prune(0, ["halted"]) == 1
        assert await store.prune(0, ["running"]) == 1
        assert await store.load("left") is None
        await store.release("at work", "me")

    async def test_what_somebody_has_is_not_deleted(self, store: Any) -> None:
        store = has(store, Prunes)
        await grown(store, "root")
        everything: Any = ("succeeded", "failed", "cancelled", "halted", "running")
        await store.claim("root", "me")
        for each in (store, has(self.another(store), Prunes)):
            assert await each.prune(0, everything) == 0
            assert await each.prune(0, everything, dry_run=True) == 0
        await save(store, updates=(update_of(3),))
        await store.release("root", "me")
        assert await store.prune(0, everything) == 1

    async def test_a_run_that_was_deleted_may_begin_anew(self, store: Any) -> None:
        """Also if another store object deleted it, and whatever this one has cached of it."""
        other = has(self.another(store), Prunes)
        await store.claim("at work", "me")  # keeps the store open, and its caches
        await grown(store, "a")
        assert await other.prune(0) == 1
        await grown(other, "b")
        await grown(store, "a")
        await grown(store, "b", afresh=True)
        for each in (store, other):
            for run_id in ("a", "b"):
                path, inner = family(run_id)
                assert list(await each.read(path)) == [update_of(1), update_of(2)]
                assert await keys(each, path=path) == ["c", "d"]
                assert await keys(each, path=inner) == ["e"]
        await store.release("at work", "me")

    # -- lists of runs --------------------------------------------------------------------------

    async def test_runs_are_listed_the_newest_first(self, store: Any) -> None:
        store = has(store, Browses)
        other = has(self.another(store), Browses)
        assert list(await store.runs()) == []
        names = [f"run {number}" for number in range(7)]
        await store.claim("at work", "me")  # keeps the store open
        for number, name in enumerate(names):
            status = "succeeded" if number % 3 else "failed"
            async with claimed(store, root_run(name)):
                await save(store, root_run(name, status), ended=status)
        await store.release("at work", "me")
        names.reverse()
        for each in (store, other):
            assert [run.run_id for run in await each.runs()] == names
            first = await each.runs(limit=3)
            assert [run.run_id for run in first] == names[:3]
            assert [run.run_id for run in await each.runs(after=names[2])] == names[3:]
            assert list(await each.runs(after="unknown")) == []
            assert list(await each.runs(after=names[-1])) == []
            failed = [run.run_id for run in await each.runs(status="failed")]
            assert failed == ["run 6", "run 3", "run 0"]
            after = await each.runs(status="failed", after="run 4", limit=1)
            assert [run.run_id for run in after] == ["run 3"]
            assert list(await each.runs(status="running")) == []

    async def test_runs_are_listed_by_owner(self, store: Any) -> None:
        store = has(store, Browses)
        await store.claim("at work", "me")  # keeps the store open
        for number in range(6):
            run, owner = root_run(f"run {number}"), ("", "eve", "bob")[number % 3]
            async with claimed(store, run, begin=False):
                await save(store, run, begun=replace(BEGINNING, owner=owner))
        await store.release("at work", "me")
        for each in (store, has(self.another(store), Browses)):
            found = [(run.run_id, run.owner) for run in await each.runs(owner="eve")]
            assert found == [("run 4", "eve"), ("run 1", "eve")]
            assert [run.run_id for run in await each.runs(owner="eve", limit=1)] == ["run 4"]
            after = await each.runs(owner="eve", status="running", after="run 4")
            assert [run.run_id for run in after] == ["run 1"]
            assert list(await each.runs(owner="nobody")) == []
            assert len(await each.runs()) == 6

    async def test_a_run_in_short(self, store: Any) -> None:
        store = has(store, Browses)
        other = has(self.another(store), Browses)
        assert await store.summary("root") is None
        async with claimed(store):
            for each in (store, other):
                run = await each.summary("root")
                assert run is not None
                assert run[:4] == ("root", "app", "1", "running")
                assert run.ended_at is None
                assert run.holder, "a claimed run has no holder"
                assert list(await each.runs(status="running")) == [run]
            error = ExceptionGroup("two", [LookupError("no such\0page"), ValueError("no")])
            await save(store, root_run("root", "failed", error=error), ended="failed")
        run = await other.summary("root")
        assert run is not None
        assert run.status == "failed"
        assert run.error.startswith("ExceptionGroup: two")
        assert "LookupError: no such" in run.error
        assert (run.reason, run.holder, run.forked_from) == ("", "", None)
        assert run.ended_at is not None
        assert run.ended_at >= run.began_at
        async with claimed(store, begin=False):
            cancelled = root_run("root", "cancelled", reason="closed")
            await save(store, cancelled, ended="cancelled")
        run = await other.summary("root")
        assert run is not None
        assert (run.status, run.reason, run.error) == ("cancelled", "closed", "")
        assert await store.summary("unknown") is None

    async def test_children_are_counted_by_how_they_stand(self, store: Any) -> None:
        store = has(store, Browses)
        assert dict(await store.counts(ROOT)) == {}
        async with claimed(store):
            for status, count in (("succeeded", 3), ("failed", 2), ("cancelled", 1)):
                ends = [
                    child_run(f"{status} {n}", status=status, error=ValueError("no"))
                    for n in range(count)
                ]
                await save(store, unapplied=ends)
            await save(store, unapplied=(child_run("s", status=None, reason="in already"),))
            await save(store, child_run("two steps", status=None), updates=(update_of(1),))
            for each in (store, has(self.another(store), Browses)):
                assert dict(await each.counts(ROOT)) == {
                    "succeeded": 3,
                    "failed": 2,
                    "cancelled": 1,
                    "skipped": 1,
                    "running": 1,
                }
        assert dict(await store.counts(child_run("two steps").path)) == {}
        assert dict(await store.counts(RunPath(run_id="unknown"))) == {}

    async def test_failures_come_in_the_order_in_which_they_were_applied(self, store: Any) -> None:
        store = has(store, Browses)
        async with claimed(store):
            for number in range(1, 8):
                child = child_run(
                    f"k{number}",
                    status="failed" if number % 2 else "succeeded",
                    error=LookupError(number) if number % 2 else None,
                    position=10 - number,
                )
                await save(store, updates=(update_of(number),), applied=(child,))
            errors = ExceptionGroup("two", [LookupError(7), ValueError("late")])
            late = child_run("late", status="failed", error=errors)
            await save(store, unapplied=(late,))
        for each in (store, has(self.another(store), Browses)):
            found = await each.failures(ROOT)
            assert [child.key for child in found] == ["late", "k1", "k3", "k5", "k7"]
            assert found[0].error == "ExceptionGroup: two: LookupError: 7; ValueError: late"
            assert found[1].error == "LookupError: 1"
            assert (found[1].step, found[1].visit, found[1].act) == ("map", 0, "leaf")
            assert (found[1].position, found[1].attempts, found[1].elapsed) == (9, 1, 0.5)
            assert [one.applied for one in found] == [None, 1, 3, 5, 7]
            assert [child.key for child in await each.failures(ROOT, limit=2)] == ["late", "k1"]
            assert [child.key for child in await each.failures(ROOT, limit=2, skip=3)] == [
                "k5",
                "k7",
            ]
            assert list(await each.failures(RunPath(run_id="unknown"))) == []


def root_run(run_id: str, status: Any = None, **more: Any) -> HandMadeRun:
    """Return a root run made by hand."""
    return HandMadeRun(path=RunPath(run_id=run_id, act="app"), status=status, **more)


def family(run_id: str) -> tuple[RunPath, RunPath]:
    """Return the paths of a run that ``grown`` saves, and of its child that has children."""
    path = RunPath(run_id=run_id, act="app")
    return path, child_run("d", parent=path).path


async def grown(
    store: Store, run_id: str, *, status: Any = "succeeded", afresh: bool = False
) -> None:
    """Save a run that has ended, with children, and children of these."""
    path, inner = family(run_id)
    run = root_run(run_id)
    async with claimed(store, run, begin=not afresh):
        if afresh:
            await save(store, run, begun=BEGINNING, afresh=True)
        plain = child_run("c", parent=path)
        await save(store, run, updates=(update_of(1),), applied=(plain,))
        parent = child_run("d", parent=path, status=None)
        leaf = child_run("e", parent=inner)
        await save(store, parent, updates=(update_of(1),), applied=(leaf,))
        await save(store, parent, step_completed="map", before=1)
        done = child_run("d", parent=path)
        await save(store, run, updates=(update_of(2),), applied=(done,))
        await save(store, root_run(run_id, status, error=ValueError("no")), ended=status)
