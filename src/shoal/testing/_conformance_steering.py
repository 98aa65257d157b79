"""Tests of what steers runs from outside; part of `StoreConformance`."""

from __future__ import annotations

import json
from typing import Any

from shoal._errors.exceptions import NotData
from shoal.stores._history import QuestionAnswered, QuestionAsked, Steered, play
from shoal.stores._protocol import FindsOrphans
from shoal.stores._watching import Inspects, Steers

from ._conformance_watching import WatchingConformance
from ._hand_made import ROOT, HandMadeRun, claimed, has, save, update_of

PAUSED = Steered("pause", "ops", 1.5, {"reason": "lunch", "id": "1"})
RESUMED = Steered("resume", "", 2.5)
CANCELLED = Steered("cancel", "ops", 3.0)


class SteeringConformance(WatchingConformance):
    """Tests of steered runs; part of ``StoreConformance``."""

    async def test_how_a_run_was_steered_is_kept_in_its_history(self, store: Any) -> None:
        async with claimed(store):
            await save(store, updates=(update_of(1),))
            await save(store, steered=(PAUSED,), before=1)
            await save(store, updates=(update_of(2),), steered=(RESUMED,), before=1)
            await save(store, step_completed="map", before=2)
            for each in (store, self.another(store)):
                entries = list(await each.read(ROOT))
                assert [one for one in entries if isinstance(one, Steered)] == [PAUSED, RESUMED]
                assert play({}, entries[:2]).paused == PAUSED
                assert play({}, entries).paused is None
        inspects = has(store, Inspects)
        found, further = await inspects.entries(ROOT, kinds=("steered",))
        assert further is None
        assert [(one.kind, one.step, one.number) for one in found] == [
            ("steered", "", 1), ("steered", "", 2)
        ]  # fmt: skip
        assert json.loads(found[0].data) == ["pause", "ops", 1.5, {"reason": "lunch", "id": "1"}]

    async def test_the_schema_of_answers_is_kept_with_a_question(self, store: Any) -> None:
        schema = {"type": "object", "properties": {"stars": {"type": "integer"}}}
        asked = QuestionAsked("review", "stars", None, "q1", schema)
        async with claimed(store):
            await save(store, questions=(asked,))
            for each in (store, self.another(store)):
                assert list(await each.read(ROOT)) == [asked]
        found, _ = await has(store, Inspects).entries(ROOT, kinds=("asked",))
        assert json.loads(found[0].data) == ["stars", None, "q1", schema]

    async def test_a_run_is_steered_while_no_process_executes_it(self, store: Any) -> None:
        store = has(store, Steers)
        assert not await store.steer("root", (PAUSED,)), "there is no such run"
        async with claimed(store):
            await save(store, updates=(update_of(1),))
            await save(store, HandMadeRun(status="halted"), ended="halted", before=1)
            for each in (store, has(self.another(store), Steers)):
                assert not await each.steer("root", (PAUSED,)), "a process executes it"
        answered = QuestionAnswered("q1", {"stars": 3})
        assert await has(self.another(store), Steers).steer("root", (answered, PAUSED))
        for each in (store, self.another(store)):
            entries = list(await each.read(ROOT))
            assert entries == [update_of(1), answered, PAUSED]
            record = await each.load("root")
            assert record is not None
            assert record.status == "halted", "it is not executed by that"
        async with claimed(store, begin=False):
            await save(store, updates=(update_of(2),), before=1)
            assert list(await store.read(ROOT)) == [*(update_of(1), answered, PAUSED, update_of(2))]

    async def test_an_answer_that_can_not_be_saved_steers_nothing(self, store: Any) -> None:
        store = has(store, Steers)
        async with claimed(store):
            await save(store)
        try:
            await store.steer("root", (PAUSED, QuestionAnswered("q1", object())))
        except NotData:
            assert list(await store.read(ROOT)) == []

    async def test_orphans_say_that_they_are_paused(self, store: Any) -> None:
        steers = has(store, Steers)
        async with claimed(store):
            await save(store)
        for entry in (PAUSED, PAUSED, RESUMED, PAUSED, CANCELLED):  # then it lacks its end alone
            assert await steers.steer("root", (entry,))
            for each in (store, self.another(store)):
                (orphan,) = await has(each, FindsOrphans).orphans()
                assert orphan.is_paused is (entry is PAUSED)
