"""Clients pause runs, change limits, and give answers that have a type."""

from __future__ import annotations

from collections import Counter
from typing import Any

import anyio
import pytest
from pydantic import BaseModel, Field

from shoal import Application, Context, Limits, MemoryStore, Runtime, action, fan_out
from shoal._runtime import steering
from shoal.testing import no_leaks
from shoal.watch import Control, Queries
from tests.fastapi.inside import client_of, service_of

pytestmark = pytest.mark.anyio

began = Counter[int]()


@action(reads=["item"], writes=["done"], limits=Limits(2, by=lambda _: "k"), name="work")
async def work(item: int) -> int:
    began[item] += 1
    await anyio.sleep(1)
    return item


class Verdict(BaseModel):
    merge: bool
    stars: int = Field(ge=1, le=5)


@action(reads=["change"], writes=["stars"])
async def review(change: str, context: Context) -> int:
    return (await context.ask("verdict", change, answer=Verdict)).stars


step = fan_out(work, over="items", item="item", into="found", limits=Limits(2), name="step")


def jobs() -> Application[Any]:
    return Application(step, name="jobs", watch=True)


@pytest.mark.parametrize("elsewhere", [False, True])
async def test_a_run_is_drained_by_any_worker_and_goes_on(elsewhere: bool):
    began.clear()
    store = MemoryStore()
    async with no_leaks():
        first, second = [service_of(jobs(), store=store)[0] for _ in range(2)]
        async with client_of(first) as one, client_of(second) as two:
            client = two if elsewhere else one
            body = {"id": "a", "state": {"items": [*range(6)]}}
            assert (await one.post("/jobs", json=body)).status_code == 202
            await anyio.sleep(0.5)
            told = {"by": "ops", "reason": "a rollout"}
            for _ in range(2):
                drained = await client.post("/jobs/a/drain", json=told)
                assert drained.status_code == 202, drained.text
                await anyio.sleep(5)
            found = (await client.get("/jobs/a")).json()
            assert (found["status"], found["reason"]) == ("halted", "a rollout")
            assert began.total() == 2
            assert (await two.post("/jobs/wait", json={"id": "a"})).json()["status"] == "succeeded"
            assert began.total() == 6


@pytest.mark.parametrize("elsewhere", [False, True])
async def test_a_run_is_paused_and_resumed_by_any_worker(elsewhere: bool):
    began.clear()
    store = MemoryStore()
    async with no_leaks():
        first, second = [service_of(jobs(), store=store)[0] for _ in range(2)]
        async with client_of(first) as one, client_of(second) as two:
            client = two if elsewhere else one
            body = {"id": "a", "state": {"items": [*range(6)]}}
            assert (await one.post("/jobs", json=body)).status_code == 202
            await anyio.sleep(0.5)
            told = {"by": "ops", "reason": "lunch"}
            response = await client.post("/jobs/a/pause", json=told)
            assert response.status_code == 202, response.text
            paused = response.json()["paused"]
            assert (paused["by"], paused["reason"]) == ("ops", "lunch")
            await anyio.sleep(5)
            assert began.total() == 2
            assert (await client.post("/jobs/a/pause")).json()["paused"] == paused
            for each in (one, two):
                assert (await each.get("/jobs/a")).json()["paused"] == paused
            limit = {"owner": "step", "part": -1, "n": 6, "by": "ops"}
            assert (await client.post("/jobs/a/limits", json=limit)).status_code == 202
            key = {"owner": "work", "paused": True, "key": "k"}
            assert (await client.post("/jobs/a/limits", json=key)).status_code == 202
            assert "paused" not in (await client.post("/jobs/a/resume")).json()
            assert (await client.post("/jobs/a/resume")).status_code == 202
            await anyio.sleep(5)
            assert began.total() == 2
            key = {"owner": "work", "paused": False, "key": "k"}
            assert (await client.post("/jobs/a/limits", json=key)).status_code == 202
            await anyio.sleep(0.1)
            assert began.total() == 4
            refused = await client.post("/jobs/a/limits", json={"owner": "nobody", "n": 3})
            assert refused.status_code == 409
            assert "there is no limit of 'nobody' here" in refused.json()["detail"]
            for wrong in ({"owner": "step"}, {"owner": "step", "n": 0}, {"n": 3}):
                assert (await client.post("/jobs/a/limits", json=wrong)).status_code == 422
            await anyio.sleep(5)
            assert (await one.get("/jobs/a")).json()["status"] == "succeeded"
            for what in ("pause", "resume"):
                response = await two.post(f"/jobs/{what[0]}/{what}")
                assert response.status_code == 404
            assert (await two.post("/jobs/a/pause")).status_code == 409
    entries = [(one.what, one.by) for one in await Queries(store).steered("a")]
    assert entries[:2] == [("pause", "ops"), ("change limits", "ops")]


async def test_a_run_is_cancelled_by_any_worker_and_may_be_started_again():
    store = MemoryStore()
    async with no_leaks():
        (first, runtime), (second, _) = [service_of(jobs(), store=store) for _ in range(2)]
        async with client_of(first) as one, client_of(second) as two:
            for run_id in ("a", "b"):
                body = {"id": run_id, "state": {"items": [*range(40)]}}
                assert (await one.post("/jobs", json=body)).status_code == 202
            await anyio.sleep(0.5)
            told = {"by": "ops", "reason": "by another"}
            cancelled = await two.post("/jobs/a/cancel", json=told)
            assert cancelled.status_code == 202, cancelled.text
            await anyio.sleep(0.1)
            found = (await two.get("/jobs/a")).json()
            assert (found["status"], found["reason"]) == ("cancelled", "by another")
            assert [run.run_id for run in runtime.runs()] == ["b"]
            (steered,) = await Queries(store).steered("a")
            assert (steered.what, steered.by, steered.reason) == ("cancel", "ops", "by another")
            # A request is for the execution that it found, and not for a later one.
            assert (await two.post("/jobs", json={"id": "a"})).status_code == 202
            await anyio.sleep(1)
            assert (await one.get("/jobs/a")).json()["status"] == "running"


async def test_a_run_that_a_dead_process_has_left_is_cancelled_too():
    began.clear()
    store = MemoryStore()
    dead = Runtime(store=store)
    async with no_leaks(), client_of(service_of(jobs(), store=store)[0]) as client:
        async with dead:
            await dead.start(jobs(), {"items": [*range(6)]}, id="a")
            await anyio.sleep(0.5)
            await dead.drain(0)  # leaves it as a process that has died
        summary = await store.summary("a")
        assert summary is not None
        assert (summary.status, summary.holder) == ("running", "")
        cancelled = await client.post("/jobs/a/cancel", json={"reason": "not needed"})
        assert cancelled.status_code == 202, cancelled.text
        await anyio.sleep(0.1)
        found = (await client.get("/jobs/a")).json()
        assert (found["status"], found["reason"]) == ("cancelled", "not needed")
        assert began.total() <= 4, "only what was under way may have begun again"


async def test_a_run_that_is_not_watched_says_why_no_other_worker_cancels_it(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(steering, "SILENT", 0)  # real time, unlike what passes here
    store = MemoryStore()
    unwatched = Application(step, name="jobs", watch=False)
    first, second = [service_of(unwatched, store=store)[0] for _ in range(2)]
    async with no_leaks(), client_of(first) as one, client_of(second) as two:
        await one.post("/jobs", json={"id": "a", "state": {"items": [*range(40)]}})
        refused = await two.post("/jobs/a/cancel")
        assert refused.status_code == 409
        assert "leave out watch=False" in refused.json()["detail"]
        assert (await one.post("/jobs/a/cancel")).status_code == 202
        await anyio.sleep(0.1)
        assert (await two.get("/jobs/a")).json()["status"] == "cancelled"


async def test_a_run_without_a_process_is_paused_too():
    store = MemoryStore()
    reviews = Application(review, name="reviews", store=store)
    await reviews.run({"change": "a"}, id="a")
    async with client_of(service_of(reviews, store=store)[0]) as client:
        assert (await client.post("/reviews/a/pause", json={"by": "me"})).status_code == 202
        assert (await client.get("/reviews/a")).json()["paused"]["by"] == "me"
        assert await Control(store).resume("a") is not None
        assert "paused" not in (await client.get("/reviews/a")).json()


async def test_answers_of_a_type_are_refused_with_the_place():
    store = MemoryStore()
    reviews = Application(review, name="reviews", store=store)
    async with client_of(service_of(reviews, store=store)[0]) as client:
        await client.post("/reviews/wait", json={"id": "a", "state": {"change": "b"}})
        (question,) = (await client.get("/reviews/a")).json()["questions"]
        assert question["answer_schema"] == Verdict.model_json_schema()
        wrong = [{"name": "verdict", "value": {"merge": True, "stars": 7}}]
        refused = await client.post("/reviews/a/answers", json={"answers": wrong})
        assert refused.status_code == 422
        assert refused.json()["detail"] == [
            {
                "type": "bad_answer",
                "loc": ["body", "answers", 0, "value", "stars"],
                "msg": "must be at most 5",
            }
        ]
        right = [{"name": "verdict", "value": {"merge": True, "stars": 5}}]
        assert (await client.post("/reviews/a/answers", json={"answers": right})).status_code == 202
        await anyio.sleep(1)
        assert (await client.get("/reviews/a")).json()["state"]["stars"] == 5
        schema = (await client.get("/openapi.json")).json()["components"]["schemas"]
        assert "answer_schema" in schema["Asked"]["properties"]
        assert "paused" in schema["RunInfo"]["properties"]
