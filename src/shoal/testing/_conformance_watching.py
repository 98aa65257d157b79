"""Tests of the protocols for watchers, ``Inspects`` and ``KeepsReports``."""

from __future__ import annotations

import json
import math
import time
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Any, cast

import anyio

from shoal._events.events import ChildName, Decision, Update
from shoal._events.identity import RunPath
from shoal._state.state import Set
from shoal.stores._history import QuestionAnswered, QuestionAsked
from shoal.stores._protocol import Prunes, Store
from shoal.stores._watching import Command, Inspects, KeepsReports, Order, Row, StepTally

from ._hand_made import (
    BEGINNING,
    ROOT,
    HandMadeRun,
    cancelled_after,
    child_run,
    claimed,
    has,
    save,
    update_of,
)

ORDERS: tuple[Order, ...] = ("failed first", "position", "ended last", "slowest")
EVERYTHING: Any = ("succeeded", "failed", "cancelled", "halted", "running")
SLACK = 60.0
"""Seconds by which clocks may differ."""


class WatchingConformance:
    """Tests of a store that can be watched; part of ``StoreConformance``."""

    def another(self, store: Any) -> Store:
        """Return a second store with the same runs; by default the same one."""
        return cast("Store", store)

    # -- children -------------------------------------------------------------------------------

    async def test_a_watcher_sees_a_run(self, store: Any) -> None:
        store = has(store, Inspects)
        other = has(self.another(store), Inspects)
        assert await store.row(ROOT) is None
        async with claimed(store):
            for each in (store, other):
                row = await each.row(ROOT)
                assert row is not None
                assert (row.path, row.status, row.has_children) == (ROOT, "running", False)
                assert (row.ended_at, row.elapsed, row.error) == (None, 0.0, "")
                assert is_now(row.began_at)
            await save(store, updates=(update_of(1),), applied=(child_run("a"),))
            ended = HandMadeRun(status="failed", error=LookupError("no page"))
            await save(store, ended, ended="failed")
        for each in (store, other):
            row = await each.row(ROOT)
            assert row is not None
            assert (row.status, row.has_children) == ("failed", True)
            assert (row.error_type, row.error) == ("LookupError", "LookupError: no page")
            assert row.began_at is not None
            assert row.ended_at == row.began_at + row.elapsed
            assert await each.row(RunPath(run_id="unknown")) is None
            assert await each.row(child_run("unknown").path) is None

    async def test_a_watcher_sees_how_children_have_ended(self, store: Any) -> None:
        store = has(store, Inspects)
        error = ExceptionGroup("two", [LookupError("no"), ValueError("none")])
        path = child_run("nested").path
        async with claimed(store):
            nested = child_run("nested", status=None, position=4)
            inner = child_run("inner", parent=path)
            await save(store, nested, updates=(update_of(1),), applied=(inner,))
            good = child_run("good", value=1, elapsed=0.25, attempts=3, element="x")
            bad = child_run(7, status="failed", error=error, step="map", act="leaf")
            await save(store, updates=(update_of(1),), applied=(good,))
            lost = child_run(
                "lost", status="cancelled", reason="beaten", winner=ChildName("leaf", "good")
            )
            late = child_run("late", used=False)
            skipped = child_run("skipped", status=None, reason="in already")
            bad.step = "second"
            await save(store, unapplied=(bad, lost, late, skipped), before=1)
        for each in (store, has(self.another(store), Inspects)):
            rows = {row.path.key: row for row in (await each.rows(ROOT)).rows}
            assert [row.status for row in rows.values()] == [
                "failed",
                "running",
                "cancelled",
                "succeeded",
                "succeeded",
                "skipped",
            ]
            for row in rows.values():
                if row.status == "running":
                    assert (row.began_at, row.ended_at) == (None, None)
                    continue
                assert is_now(row.ended_at)
                assert row.ended_at is not None
                assert row.began_at == row.ended_at - row.elapsed
            good, bad = rows["good"], rows[7]
            assert good.path == child_run("good").path
            assert good.path.parent == ROOT
            assert (good.elapsed, good.attempts, good.used, good.applied) == (0.25, 3, True, 1)
            assert (bad.error_type, bad.applied, bad.failed_step) == (
                "ExceptionGroup",
                None,
                "second",
            )
            assert bad.error == "ExceptionGroup: two: LookupError: no; ValueError: none"
            assert (rows["lost"].reason, rows["lost"].winner) == ("beaten", good.path)
            assert not rows["late"].used
            assert rows["skipped"].reason == "in already"
            assert [row.path.key for row in rows.values() if row.has_children] == ["nested"]
            assert rows["nested"].position == 4
            assert [row.path for row in (await each.rows(path)).rows] == [inner.path]
            for row in rows.values():
                assert await each.row(row.path) == row

    async def test_pages_of_children_are_complete_in_every_order(self, store: Any) -> None:
        store = has(store, Inspects)
        await crowd(store)
        for each in (store, has(self.another(store), Inspects)):
            everyone = await paged(each, "position", 1000)
            assert len(everyone) == CROWD
            for order in ORDERS:
                rows = await paged(each, order, 1000)
                assert sorted(row.path.id for row in rows) == sorted(
                    row.path.id for row in everyone
                )
                assert rows == sorted(rows, key=partial(place, order=order))
                for limit in (1, 7):
                    assert await paged(each, order, limit) == rows
                for step, status in (("map", None), (None, "failed"), ("again", "succeeded")):
                    expected = [
                        row
                        for row in rows
                        if step in (None, row.path.step) and status in (None, row.status)
                    ]
                    assert expected
                    found = await paged(each, order, 4, step=step, status=status)
                    assert found == expected
                assert await paged(each, order, 4, status="halted") == []
                assert await paged(each, order, 4, step="none") == []

    async def test_children_are_found_by_a_part_of_their_keys(self, store: Any) -> None:
        store = has(store, Inspects)
        keys = ["page/1", "page/2", "other", 12, 21, "#1", "a%b_c", "two\0parts", "\udc80"]
        async with claimed(store):
            await save(store, unapplied=[child_run(key) for key in keys])
        for each in (store, has(self.another(store), Inspects)):
            for text, expected in (
                ("page", ["page/1", "page/2"]),
                ("1", ["page/1", 12, 21, "#1"]),
                ("%", ["a%b_c"]),
                ("_", ["a%b_c"]),
                ("PAGE", []),
            ):
                page = await each.rows(ROOT, key=text, order="position")
                assert (page.after, page.left_out) == (None, "")
                found = [row.path.key for row in page.rows]
                assert sorted(map(str, found)) == sorted(map(str, expected))

    async def test_a_cursor_holds_while_children_end(self, store: Any) -> None:
        store = has(store, Inspects)
        async with claimed(store):
            first = [child_run(f"a{at}", status="failed", error=ValueError()) for at in range(6)]
            await save(store, updates=[update_of(at + 1) for at in range(6)], applied=first)
            page = await store.rows(ROOT, limit=3)
            assert [row.path.key for row in page.rows] == ["a0", "a1", "a2"]
            more = [child_run(f"b{at}") for at in range(3)]
            await save(store, updates=[update_of(at + 7) for at in range(3)], applied=more)
            page = await store.rows(ROOT, limit=3, after=page.after)
            assert [row.path.key for row in page.rows] == ["a3", "a4", "a5"]
            page = await store.rows(ROOT, limit=3, after=page.after)
            assert [row.path.key for row in page.rows] == ["b0", "b1", "b2"]
            assert page.after is None

    async def test_a_text_that_is_no_cursor_is_refused(self, store: Any) -> None:
        store = has(store, Inspects)
        async with claimed(store):
            await save(store, unapplied=(child_run("a"),))
        for after in ("nonsense", '"x"', "[[1]]", "{}", "null", "[]", "[1]", "[1e999, 1, 1]"):
            try:
                await store.rows(ROOT, after=after)
            except ValueError:
                continue
            raise AssertionError(f"{after!r} was not refused")

    # -- many children at once ------------------------------------------------------------------

    async def test_children_are_tallied_by_step_and_act(self, store: Any) -> None:
        store = has(store, Inspects)
        assert list(await store.tallies(ROOT)) == []
        winner = ChildName("one", "k")
        async with claimed(store):
            first = [child_run(at, step="z", act="leaf") for at in range(5)]
            await save(store, updates=[update_of(at + 1, "z") for at in range(5)], applied=first)
            failed = child_run("f", step="z", act="leaf", status="failed", error=ValueError())
            halted = child_run("h", step="z", visit=1, act="leaf", status="halted")
            await save(store, unapplied=(failed, halted), before=5)
            race = [
                child_run("k", step="a", act="one"),
                child_run("k", step="a", act="two", status="failed", error=ValueError()),
                child_run("k", step="a", act="three", status="cancelled", winner=winner),
                child_run("k", step="a", act="four", status="cancelled", reason="closed"),
            ]
            decision = Decision("a", winner, (winner,), "the first")
            await save(
                store,
                updates=(update_of(6, "a"),),
                applied=race[:1],
                unapplied=race[1:],
                decision=decision,
                before=5,
            )
        for each in (store, has(self.another(store), Inspects)):
            tallies = list(await each.tallies(ROOT))
            assert tallies[:2] == [
                StepTally("z", 0, "leaf", {"failed": 1, "succeeded": 5}),
                StepTally("z", 1, "leaf", {"halted": 1}),
            ]
            assert sorted(tallies[2:]) == [
                StepTally("a", 0, "four", {"cancelled": 1}),
                StepTally("a", 0, "one", {"succeeded": 1}),
                StepTally("a", 0, "three", {"cancelled": 1}, lost=1),
                StepTally("a", 0, "two", {"failed": 1}, lost=1),
            ]
            assert [row.path.key for row in await each.failed_rows(ROOT)] == ["f"]
            assert list(await each.failed_rows(ROOT, limit=0)) == []
            assert list(await each.failed_rows(RunPath(run_id="unknown"))) == []

    async def test_a_timeline_has_every_end(self, store: Any) -> None:
        store = has(store, Inspects)
        assert list(await store.timeline(ROOT)) == []
        await crowd(store)
        for each in (store, has(self.another(store), Inspects)):
            ends = [row.ended_at for row in await paged(each, "position", 1000) if row.ended_at]
            for bins in (1, 3, 60):
                found = list(await each.timeline(ROOT, bins=bins))
                assert len(found) <= bins
                assert math.isclose(found[0].begins_at, min(ends))
                assert math.isclose(found[-1].ends_at, max(ends))
                for one, following in pairwise(found):
                    assert math.isclose(one.ends_at, following.begins_at)
                total: dict[Any, int] = {}
                for one in found:
                    assert 0 not in one.counts.values()
                    for status, count in one.counts.items():
                        total[status] = total.get(status, 0) + count
                counts = dict(await each.counts(ROOT))
                assert counts.pop("running") == 1
                assert total == counts

    async def test_updates_have_the_times_of_their_saves(self, store: Any) -> None:
        store = has(store, Inspects)
        assert list(await store.times(ROOT)) == []
        path = child_run("two").path
        async with claimed(store):
            await save(store, updates=(update_of(1),), step_completed="a")
            several = [child_run(at) for at in range(3)]
            await save(
                store, updates=[update_of(at + 2) for at in range(3)], applied=several, before=1
            )
            await save(
                store, child_run("two", status=None), updates=(update_of(1),), step_completed="a"
            )
            await save(store, updates=(update_of(5),), before=4)
        for each in (store, has(self.another(store), Inspects)):
            times = list(await each.times(ROOT))
            assert [number for number, _ in times] == [1, 4, 5]
            assert all(is_now(at) for _, at in times)
            assert [number for number, _ in await each.times(ROOT, after=1, limit=1)] == [4]
            assert [number for number, _ in await each.times(path)] == [1]
            assert list(await each.times(RunPath(run_id="unknown"))) == []
            row = await each.row(child_run(1).path)
            assert row is not None
            assert row.ended_at == times[1][1], "a child ended when its update was saved"

    async def test_a_history_is_read_in_parts_as_it_is_stored(self, store: Any) -> None:
        store = has(store, Inspects)
        assert list((await store.entries(ROOT))[0]) == []
        path = child_run("two").path
        async with claimed(store):
            await save(store, updates=(update_of(1),), step_completed="a")
            number = 1
            for turn in range(4):
                children = [
                    child_run(f"{turn}.{at}", status="failed" if at == 2 else "succeeded")
                    for at in range(5)
                ]
                updates = [update_of(number + at) for at in range(1, 6)]
                await save(store, updates=updates, applied=children, before=number)
                number += 5
            asked = QuestionAsked("map", "name", {"ok": None}, "q")
            await save(store, questions=(asked, QuestionAnswered("q", [1])), before=number)
            await save(
                store, child_run("two", status=None), updates=(update_of(1),), step_completed="a"
            )
            done = child_run("two", last_update=update_of(2, "b"))
            await save(store, updates=(update_of(number + 1),), applied=(done,), before=number)
        for each in (store, has(self.another(store), Inspects)):
            whole, further = await each.entries(ROOT, limit=1000)
            assert further is None
            kinds = [one.kind for one in whole]
            assert kinds == ["update", "completed", *["update"] * 20, "asked", "answered", "update"]
            updates = [one for one in whole if one.kind == "update"]
            assert [one.number for one in updates] == [*range(1, number + 2)]
            for one in updates:
                data = json.loads(one.data)
                assert (data["number"], data["step"], one.step) == (one.number, "map", "map")
                assert data["do"] == [["set", f"f{one.number}", one.number]]
                assert (one.child is None) == (one.number == 1)
                assert one.child is None or one.child.applied == one.number
                assert is_now(one.at)
            (asks, answers), _ = await each.entries(ROOT, kinds=("asked", "answered"))
            assert json.loads(asks.data) == ["name", {"ok": None}, "q"]
            assert json.loads(answers.data) == ["q", [1]]
            for kinds in (None, ("update",), ("asked", "completed"), ("asked", "answered"), ()):
                expected = [one for one in whole if kinds is None or one.kind in kinds]
                for limit in (1, 3, 7):
                    found: list[Any] = []
                    start: int | None = 0
                    while start is not None:
                        part, start = await each.entries(
                            ROOT, kinds=kinds, from_number=start, limit=limit
                        )
                        found += part
                    assert found == expected
            part, _ = await each.entries(ROOT, from_number=number)
            assert part == [one for one in whole if one.number >= number]
            own, _ = await each.entries(path)
            assert [(one.number, one.kind) for one in own] == [
                (1, "update"),
                (1, "completed"),
                (2, "update"),
            ]
            assert json.loads(own[-1].data)["do"] == [["set", "f2", 2]]

    # -- one run --------------------------------------------------------------------------------

    async def test_values_are_returned_as_json(self, store: Any) -> None:
        store = has(store, Inspects)
        error = LookupError("no page")
        async with claimed(store):
            good = child_run("good", element={"a": [1]}, value="é")
            update = Update(1, "map", (Set("out", good.value),))
            bad = child_run("bad", element=1, status="failed", error=error)
            await save(store, updates=(update,), applied=(good,), unapplied=(bad,))
        for each in (store, has(self.another(store), Inspects)):
            first = await each.text(ROOT, "first")
            assert first is not None
            assert json.loads(first) == {"n": 1}
            for path, what, expected in (
                (good.path, "element", {"a": [1]}),
                (good.path, "value", "é"),
                (bad.path, "element", 1),
            ):
                text = await each.text(path, what)
                assert text is not None
                assert json.loads(text) == expected
            text = await each.text(bad.path, "error")
            assert text is not None
            assert "no page" in text
            for path, what in (
                (good.path, "error"),
                (bad.path, "value"),
                (bad.path, "first"),
                (ROOT, "value"),
                (RunPath(run_id="unknown"), "first"),
                (child_run("unknown").path, "element"),
            ):
                assert await each.text(path, what) is None

    async def test_a_key_is_followed_through_visits_and_acts(self, store: Any) -> None:
        store = has(store, Inspects)
        async with claimed(store):
            children = [
                child_run(key, step=step, visit=visit, act=act)
                for visit in (0, 1)
                for step, act in (("map", "one"), ("map", "two"), ("other", "one"))
                for key in ("a", "b", 1, "1")
            ]
            await save(store, unapplied=children)
        for each in (store, has(self.another(store), Inspects)):
            for key in ("a", 1, "1"):
                rows = await each.children_of_key(ROOT, "map", key)
                assert {row.path.key for row in rows} == {key}
                assert [row.path.visit for row in rows] == [0, 0, 1, 1]
                assert sorted(row.path.act for row in rows) == ["one", "one", "two", "two"]
            assert list(await each.children_of_key(ROOT, "map", "c")) == []
            assert list(await each.children_of_key(RunPath(run_id="x"), "map", "a")) == []

    async def test_runs_that_a_run_has_started_are_found(self, store: Any) -> None:
        store = has(store, Inspects)
        odd = child_run("\udc80 '\0é", parent=child_run(10**30, visit=3).path).path
        spawners = {"one": (odd, "call"), "two": (ROOT, "call"), "three": (odd, "other")}
        async with claimed(store):
            for run_id, spawned_by in spawners.items():
                run = HandMadeRun(path=RunPath(run_id=run_id, act="app"))
                await store.claim(run_id, "me")
                await save(store, run, begun=replace(BEGINNING, spawned_by=spawned_by))
                await store.release(run_id, "me")
        for each in (store, has(self.another(store), Inspects)):
            assert [run.run_id for run in await each.spawned(odd)] == ["three", "one"]
            assert [run.run_id for run in await each.spawned(ROOT)] == ["two"]
            assert list(await each.spawned(child_run("a").path)) == []
            for run_id, spawned_by in spawners.items():
                summary = await each.summary(run_id)
                assert summary is not None
                assert summary.spawned_by == spawned_by
                record = await each.load(run_id)
                assert record.beginning.spawned_by == spawned_by
            summary = await each.summary("root")
            assert summary is not None
            assert summary.spawned_by is None

    async def test_a_mark_differs_after_every_change(self, store: Any) -> None:
        store = has(store, Inspects)
        other = has(self.another(store), Inspects)
        await other.claim("at work", "you")  # keeps it open
        is_reporting = isinstance(cast("object", store), KeepsReports)
        marks = [await other.mark()]

        async def differs(what: str) -> None:
            mark = await other.mark()
            assert mark != marks[-1], f"the mark is the same after {what}"
            marks.append(mark)

        async with claimed(store):
            await differs("a beginning")
            await save(store, updates=(update_of(1),), applied=(child_run("a"),))
            await differs("a save")
            for _ in range(20):
                before = await other.mark()
                await other.rows(ROOT)
                if await other.mark() == before:
                    break
            else:
                raise AssertionError("reading has changed the mark each time")
            marks.append(await other.mark())
            if is_reporting:
                await store.report({"root": "{}"})
                await differs("a report")
            await save(store, HandMadeRun(status="succeeded"), ended="succeeded")
        await differs("an end")
        await other.release("at work", "you")

    async def test_a_child_that_runs_again_has_no_end(self, store: Any) -> None:
        store = has(store, Inspects)
        async with claimed(store):
            failed = child_run("a", status="failed", error=ValueError("no"))
            failed.step = "second"
            await save(store, unapplied=(failed,))
            again = child_run("a", status=None)
            await save(store, again, updates=(update_of(1),), afresh=True)
            for each in (store, has(self.another(store), Inspects)):
                row = await each.row(again.path)
                assert row is not None
                assert (row.status, row.ended_at, row.failed_step) == ("running", None, "")
                assert [number for number, _ in await each.times(again.path)] == [1]

    # -- reports and commands -------------------------------------------------------------------

    async def test_the_last_report_is_kept(self, store: Any) -> None:
        store = has(store, KeepsReports)
        other = has(self.another(store), KeepsReports)
        assert await store.reported("root") is None
        assert list(await store.report({"root": "{}"})) == []
        assert await store.reported("root") is None, "nothing was saved of the run"
        assert list(await store.report({})) == []
        async with claimed(store):
            for text in ('{"n": 1}', '{"n": "é\udc80"}'):
                assert list(await store.report({"root": text})) == []
                for each in (store, other):
                    report = await each.reported("root")
                    assert report is not None
                    assert report.run_id == "root"
                    assert json.loads(report.text) == json.loads(text)
                    assert is_now(report.at)
            await store.report({"root": ""})
            assert await other.reported("root") == report
        assert await other.reported("root") == report, "it outlives the execution"
        if isinstance(store, Prunes):
            await save_end(store)
            assert await store.prune(0, EVERYTHING) == 1
            assert await other.reported("root") is None

    async def test_a_command_is_taken_once(self, store: Any) -> None:
        store = has(store, KeepsReports)
        other = has(self.another(store), KeepsReports)
        cancel = Command(run_id="root", kind="cancel", arguments={"reason": "é"})
        answer = Command(run_id="root", kind="answer", arguments={"id": "q", "answer": [1]})
        async with claimed(store):
            await other.command(cancel)
            await other.command(answer)
            assert list(await store.report({"another": ""})) == []
            assert list(await store.report({"root": "", "another": ""})) == [cancel, answer]
            assert list(await store.report({"root": ""})) == []

    async def test_a_command_is_for_one_execution(self, store: Any) -> None:
        store = has(store, KeepsReports)
        other = has(self.another(store), KeepsReports)
        cancel = Command(run_id="root", kind="cancel")
        await other.command(cancel)
        async with claimed(store):
            assert list(await store.report({"root": ""})) == [], "no run of that id was there"
            await other.command(cancel)
        await other.command(cancel)
        async with claimed(store, begin=False):
            assert list(await store.report({"root": ""})) == []
            await other.command(cancel)
            assert list(await store.report({"root": ""})) == [cancel]

    async def test_an_interrupted_report_loses_or_takes_commands(self, store: Any) -> None:
        store = has(store, KeepsReports)
        other = has(self.another(store), KeepsReports)
        cancel = Command(run_id="root", kind="cancel")
        async with claimed(store):
            for turns in range(6):
                await other.command(cancel)
                has_ended = await cancelled_after(turns, lambda: store.report({"root": "{}"}))
                taken = list(await store.report({"root": ""}))
                assert taken in ([], [cancel])
                assert not (has_ended and taken), "a command was returned twice"

    async def test_reports_come_between_saves(self, store: Any) -> None:
        store = has(store, KeepsReports)
        async with claimed(store), anyio.create_task_group() as tasks:
            for number in range(1, 11):
                tasks.start_soon(store.report, {"root": f"[{number}]"})
                await save(store, updates=(update_of(number),))
        report = await store.reported("root")
        assert report is not None
        assert report.text.startswith("[")


CROWD = 40
"""The children that ``crowd`` saves."""


async def crowd(store: Any) -> None:
    """Save children of all kinds, over several saves."""
    async with claimed(store):
        number = 0
        for turn in range(5):
            step, visit = ("map", 0) if turn < 3 else ("again", turn - 3)
            applied = [
                child_run(
                    f"{turn}.{at}",
                    step=step,
                    visit=visit,
                    position=100 - 7 * turn - at,
                    elapsed=(at * 7 % 5) / 8,
                    status="failed" if at == 3 else "succeeded",
                    error=ValueError(f"no {at}") if at == 3 else None,
                )
                for at in range(5)
            ]
            unapplied = [
                child_run(f"{turn}.f", step=step, visit=visit, status="failed", error=ValueError()),
                child_run(f"{turn}.c", step=step, visit=visit, status="cancelled", elapsed=0.3),
            ]
            if turn == 4:
                unapplied += [
                    child_run(f"{turn}.s{at}", step=step, visit=visit, status=None, position=at)
                    for at in range(4)
                ]
            updates = [update_of(number + at, step) for at in range(1, 6)]
            await save(store, updates=updates, applied=applied, unapplied=unapplied, before=number)
            number += 5
            await anyio.sleep(0.002)
        await save(store, child_run("under way", status=None), updates=(update_of(1),))


async def paged(store: Any, order: Order, limit: int, **more: Any) -> list[Row]:
    """Return all children of the root run, read page by page."""
    rows: list[Row] = []
    after: str | None = None
    while True:
        page = await store.rows(ROOT, order=order, after=after, limit=limit, **more)
        assert len(page.rows) <= limit
        rows += page.rows
        after = page.after
        if after is None:
            return rows
        assert len(page.rows) == limit


def place(row: Row, order: Order) -> tuple[float, ...]:
    """Return what an order orders by, as far as a watcher sees it."""
    ranks = ("failed", "running", "halted", "cancelled", "succeeded", "skipped")
    if order == "failed first":
        return ranks.index(row.status), row.applied or 0
    if order == "position":
        return (row.position,)
    if order == "slowest":
        return (-row.elapsed,)
    return -(row.ended_at or 0.0), -(row.applied or 0)


def is_now(at: float | None) -> bool:
    """Return whether a time is about the present."""
    return at is not None and abs(time.time() - at) < SLACK


async def save_end(store: Any) -> None:
    """Save the end of the root run."""
    async with claimed(store, begin=False):
        await save(store, HandMadeRun(status="succeeded"), ended="succeeded")
