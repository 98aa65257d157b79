"""Questions that say of what type their answers are."""

from __future__ import annotations

import enum
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import anyio
import pytest
from pydantic import BaseModel, Field, field_validator

from shoal import (
    Application,
    Context,
    Failed,
    Graph,
    Limits,
    MemoryStore,
    Runtime,
    SQLiteStore,
    action,
    fan_out,
)
from shoal.errors import BadAnswer, DefinitionError, UnknownQuestion
from shoal.executors import Processes
from shoal.stores import Command
from shoal.testing import no_leaks
from shoal.watch import Queries

pytestmark = pytest.mark.anyio


class Decision(BaseModel):
    verdict: Literal["merge", "close"]
    stars: int = Field(default=3, ge=1, le=5)
    why: str | None = None

    @field_validator("why")
    @classmethod
    def no_shouting(cls, value: str | None) -> str | None:
        if value and value.isupper():
            raise ValueError("don't shout")
        return value


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


seen: list[object] = []


@pytest.fixture(autouse=True)
def see_anew() -> None:
    seen.clear()


@action(reads=["change"], writes=["merged"])
async def review(change: str, context: Context) -> bool:
    decision = await context.ask("approve", {"change": change}, answer=Decision)
    seen.append(decision)
    return decision.verdict == "merge"


def stores(tmp_path: Path) -> list[Any]:
    return [MemoryStore(), SQLiteStore(tmp_path / "runs.db")]


async def test_an_instance_is_returned_and_a_wrong_answer_is_refused(tmp_path: Path):
    for store in stores(tmp_path):
        seen.clear()
        app = Application(review, store=store)
        result = await app.run({"change": "a"}, id="pr")
        (question,) = result.questions
        assert question.answer_schema == Decision.model_json_schema()
        (asked,) = (await Queries(store).questions("pr")).open
        assert asked.answer_schema == question.answer_schema
        with pytest.raises(BadAnswer, match=r"is no answer to \('pr', 'approve'\): verdict: ") as e:
            await app.run(id="pr", answers={"approve": {"verdict": "no"}})
        assert (e.value.at, e.value.place) == ("approve", "verdict")
        assert e.value.why == "must be one of 'merge', 'close'"
        assert isinstance(e.value, ValueError)
        assert (await app.questions("pr")) == [question]
        result = await app.run(id="pr", answers={"approve": Decision(verdict="merge")})
        assert result.state["merged"] is True
        assert seen == [Decision(verdict="merge")]


@pytest.mark.parametrize(
    ("kind", "answer", "instance"),
    [
        (float, 5, 5.0),
        (bool, True, True),
        (Colour, "blue", Colour.BLUE),
        (Literal["a", "b"], "a", "a"),
        (list[int], [1, 2], [1, 2]),
        ({"type": "integer"}, 3, 3),
    ],
)
async def test_plain_types(kind: Any, answer: Any, instance: Any):
    @action(writes=["said"])
    async def consult(context: Context) -> str:
        seen.append(await context.ask("what", answer=kind))
        return "said"

    app = Application(consult, store=MemoryStore())
    await app.run({}, id="r")
    with pytest.raises(BadAnswer):
        await app.run(id="r", answers={"what": {"no": None}})
    await app.run(id="r", answers={"what": answer})
    assert seen == [instance]
    assert type(seen[0]) is type(instance)


async def test_an_answer_that_no_longer_fits_is_refused_and_can_be_replaced():
    """The program changed after the answer was given."""
    store = MemoryStore()

    def consult(kind: Any) -> Application[Any]:
        @action(writes=["said"], name="consult")
        async def ask(context: Context) -> str:
            return repr(await context.ask("what", "?", answer=kind))

        return Application(ask, name="app", store=store)

    await consult(str).run({}, id="r")
    await consult(str).run(id="r", answers={"what": "three"})
    await consult(str).run({}, id="s")
    # Saved, and not used: the process dies before the action reads it.
    later = store.copy()
    store = later
    assert await later.steer("s", _answered(later, "s", "three"))
    for _ in range(2):
        with pytest.raises(BadAnswer, match="'three', is none: must be a whole number"):
            await consult(int).run(id="s")
    result = await consult(int).run(id="s", answers={"what": 3})
    assert result.state["said"] == "3"


def _answered(store: MemoryStore, run_id: str, value: object) -> Any:
    from shoal.stores import QuestionAnswered, QuestionAsked

    (asked,) = [
        one
        for one in store._roots[run_id].history  # pyright: ignore[reportPrivateUsage]
        if isinstance(one, QuestionAsked)
    ]
    return [QuestionAnswered(asked.id, value)]


async def test_a_validator_that_is_not_in_the_schema_refuses_in_the_action():
    app = Application(review, store=MemoryStore())
    await app.run({"change": "a"}, id="pr")
    bad = {"verdict": "merge", "why": "NOW"}
    with pytest.raises(BadAnswer, match="don't shout") as e:
        await app.run(id="pr", answers={"approve": bad})
    assert e.value.place == "why"
    again = await app.run(id="pr", answers={"approve": {"verdict": "close", "why": "not now"}})
    assert again.state["merged"] is False


async def test_the_type_of_an_open_question_may_change():
    store = MemoryStore()

    def consult(kind: Any) -> Application[Any]:
        @action(writes=["said"], name="consult")
        async def ask(context: Context) -> object:
            await context.ask("first")
            return await context.ask("what", "?", answer=kind)

        return Application(ask, name="app", store=store)

    await consult(int).run({}, id="r")
    result = await consult(int).run(id="r", answers={"first": 1})
    assert result.questions[0].answer_schema == {"type": "integer"}
    # A step whose question is open isn't attempted, so the first answer decides what is asked.
    with pytest.raises(BadAnswer):
        await consult(str).run(id="r", answers={"what": "a"})


async def test_children_ask_and_answers_are_refused_from_outside(caplog: pytest.LogCaptureFixture):
    @action(reads=["item"], writes=["said"])
    async def consult(item: int, context: Context) -> int:
        if item:
            await anyio.sleep(5)
            return item
        return await context.ask("how many", answer=int)

    store = MemoryStore()
    step = fan_out(consult, over="items", item="item", into="found", limits=Limits(3))
    app = Application(step, name="app", watch=True)
    async with no_leaks(), Runtime(store=store) as runtime:
        run = await app.start({"items": [0, 1]}, id="r", runtime=runtime)
        await anyio.sleep(1)
        (asked,) = (await Queries(store).questions("r")).open
        assert asked.answer_schema == {"type": "integer"}
        for answer in ("three", 3):
            given = {"question": asked.id, "answer": answer, "by": "ops"}
            await store.command(Command(run_id="r", kind="answer", arguments=given))
            await anyio.sleep(0.5)
        assert (await run.result()).state["found"] == [3, 1]
    assert "is dropped: must be a whole number" in caplog.text
    assert [(one.what, one.by) for one in await Queries(store).steered("r")] == [("answer", "ops")]


async def test_a_child_that_reads_an_unfit_answer_fails_alone():
    @action(reads=["item"], writes=["said"])
    async def consult(item: str, context: Context) -> str:
        decision = await context.ask("approve", item, answer=Decision)
        return decision.verdict

    step = fan_out(
        consult, over="items", item="item", key=str, into="said", on_error="ignore", name="all"
    )
    app = Application(Graph.chain(step), store=MemoryStore())
    result = await app.run({"items": ["a", "b"]}, id="r")
    answers = {
        one.address: {"verdict": "merge", "why": "NOW" if one.question == "a" else "well"}
        for one in result.questions
    }
    result = await app.run(id="r", answers=answers)
    assert result.state["said"] == {"b": "merge"}
    (failed,) = [one for one in result.outcomes("all") if isinstance(one, Failed)]
    assert "don't shout" in str(failed.error)


async def test_what_is_no_type_is_refused_where_it_is_asked():
    @action(writes=["said"])
    async def consult(context: Context) -> object:
        return await context.ask("what", answer=object())

    app = Application(consult, store=MemoryStore())
    with pytest.raises(DefinitionError, match="pydantic makes no JSON schema"):
        await app.run({}, id="r")
    with pytest.raises(UnknownQuestion):
        await app.run(id="r", answers={"what": 1})


@action(writes=["said"], executor=Processes(1))
async def elsewhere(context: Context) -> object:
    decision = await context.ask("approve", os.getpid(), answer=Decision)
    return type(decision).__name__, decision.verdict


@action(writes=["said"])
def in_a_thread(context: Context) -> object:
    ask: Callable[..., Any] = context.ask
    decision = anyio.from_thread.run(partial(ask, "approve", answer=Decision))
    same = anyio.from_thread.run(context.ask, "approve", None, Decision)
    assert decision == same
    return type(decision).__name__, decision.verdict


@pytest.mark.realtime
@pytest.mark.parametrize("where", [elsewhere, in_a_thread])
async def test_actions_in_workers_ask_too(where: Any):
    async with Runtime(store=MemoryStore()) as runtime:  # which keeps the worker
        run = partial(runtime.run, Application(where))
        result = await run({}, id="r")
        assert result.questions[0].answer_schema == Decision.model_json_schema()
        with pytest.raises(BadAnswer, match="stars: must be at most 5"):
            await run(id="r", answers={"approve": {"verdict": "merge", "stars": 7}})
        with pytest.raises(BadAnswer, match="don't shout"):
            await run(id="r", answers={"approve": {"verdict": "merge", "why": "NOW"}})
        result = await run(id="r", answers={"approve": {"verdict": "merge"}})
        assert tuple(result.state["said"]) == ("Decision", "merge")
