"""``context.ask``: an attempt that waits for a person, however it ends; its answer, every time."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Any

import anyio
import anyio.from_thread
import anyio.lowlevel
import pytest

from shoal import (
    AIMD,
    END,
    Application,
    Breaker,
    Context,
    Each,
    Failed,
    Graph,
    Hook,
    Limits,
    MemoryStore,
    Result,
    Retry,
    RetryLater,
    RunCancelled,
    RunResult,
    Runtime,
    UnknownQuestion,
    action,
    fan_out,
    when,
)
from shoal.errors import BadUse, Halting, HookFailed, NotData
from shoal.events import AttemptEnded, ChildEnded, Item, RunEnded, StepEnded
from shoal.testing import RecordingHook, no_leaks

pytestmark = pytest.mark.anyio

ran = list[str]()


@pytest.fixture(autouse=True)
def nothing_ran() -> None:
    ran.clear()


@action(reads=["change"], writes=["merged"])
async def review(change: str, context: Context) -> str:
    ran.append("before")
    answer = await context.ask("approve", {"change": change})
    ran.append("after")
    return f"{change}: {answer}"


# -- asking and answering --------------------------------------------------------------------------


async def test_a_run_halts_where_it_asks_and_goes_on_with_the_answer():
    hook = RecordingHook()
    app = Application(review, store=MemoryStore(), hooks=[hook])
    async with no_leaks():
        halted = await app.run({"change": "typo"}, id="pr")
    assert (halted.status, halted.state.to_plain(), ran) == (
        "halted",
        {"change": "typo"},
        ["before"],
    )
    (question,) = halted.questions
    assert (question.run_id, question.step, question.name) == ("pr", "review", "approve")
    assert (question.question, question.key) == ({"change": "typo"}, "")
    ended = hook.of(RunEnded)[-1]
    assert (ended.status, ended.questions, ended.error) == ("halted", halted.questions, None)
    assert [(event.status, event.error) for event in hook.of(StepEnded)] == [("halted", None)]

    done = await app.run(id="pr", answers={"approve": "yes"})
    assert (done.status, done.questions) == ("succeeded", ())
    assert done.state["merged"] == "typo: yes"
    assert ran == ["before", "before", "after"]  # the attempt runs again from its start
    hook.assert_paired()


async def test_without_an_answer_a_step_that_asks_is_not_attempted_again():
    app = Application(review, store=MemoryStore())
    first = await app.run({"change": "typo"}, id="pr")
    again = await app.run(id="pr")
    assert (again.status, again.questions) == ("halted", first.questions)
    assert ran == ["before"]


async def test_several_questions_are_asked_one_after_the_other():
    @action(writes=["trip"])
    async def plan(context: Context) -> list[str]:
        ran.append("plan")
        return [await context.ask(what, f"{what}?") for what in ("where", "when", "why")]

    app = Application(plan, store=MemoryStore())
    result = await app.run(id="trip")
    for name, answer in (("where", "Rome"), ("when", "May"), ("why", "art")):
        assert [(one.name, one.question) for one in result.questions] == [(name, f"{name}?")]
        result = await app.run(id="trip", answers={name: answer})
    assert result.state["trip"] == ["Rome", "May", "art"]
    assert ran == ["plan"] * 4


async def test_a_name_stands_for_one_question_in_an_attempt():
    @action(writes=["out"])
    async def twice(context: Context) -> list[str]:
        return [await context.ask("sure", 1), await context.ask("sure", 1)]

    app = Application(twice, store=MemoryStore())
    await app.run(id="x")
    assert (await app.run(id="x", answers={"sure": "y"})).state["out"] == ["y", "y"]

    @action(writes=["out"])
    async def confused(context: Context) -> list[str]:
        return [await context.ask("sure", 1), await context.ask("sure", 2)]

    app = Application(confused, store=MemoryStore())
    await app.run(id="x")
    with pytest.raises(BadUse, match=r"action 'confused' of run x asks 'sure' twice, and for diff"):
        await app.run(id="x", answers={"sure": "y"})


async def test_what_is_asked_may_have_changed_in_the_next_attempt():
    drafts = iter(["first", "second", "third"])

    @action(writes=["out"])
    async def ask_both(context: Context) -> list[str]:
        async def ask(name: str, draft: str) -> None:
            answers[name] = await context.ask(name, draft)

        answers = dict[str, str]()
        draft = next(drafts)
        async with anyio.create_task_group() as tasks:  # both are asked before either is cancelled
            tasks.start_soon(ask, "a", "always the same")
            tasks.start_soon(ask, "b", draft)
        return [answers["a"], answers["b"], draft]

    app = Application(ask_both, store=MemoryStore())
    first = await app.run(id="x")
    assert {one.name: one.question for one in first.questions} in (
        {"a": "always the same"},
        {"a": "always the same", "b": "first"},
        {"b": "first"},
    )
    result = first
    for _ in range(2):
        if not result.questions:
            break
        answers = {one.address: one.name.upper() for one in result.questions}
        result = await app.run(id="x", answers=answers)
    assert result.state["out"][:2] == ["A", "B"]


async def test_an_answer_belongs_to_one_visit_of_its_step():
    @action(reads=["n"], writes=["n"])
    async def count(n: int, context: Context) -> int:
        return n + await context.ask("add", n)

    graph = Graph((count, count, when(lambda n: n < 3)), (count, END), entry=count)
    app = Application(graph, store=MemoryStore())
    result = await app.run({"n": 0}, id="x")
    asked: list[Any] = []
    while result.status == "halted":
        asked.append(result.questions[0].question)
        result = await app.run(id="x", answers={"add": 1})
    assert (asked, result.state["n"]) == ([0, 1, 2], 3)


async def test_a_later_step_asks_anew_though_an_earlier_one_has_asked_the_same():
    @action(reads=["merged", "change"], writes=["released"])
    async def release(merged: str, change: str, context: Context) -> str:
        return await context.ask("approve", {"change": change})

    app = Application(Graph.chain(review, release), store=MemoryStore())
    await app.run({"change": "x"}, id="pr")
    between = await app.run(id="pr", answers={"approve": 1}, halt_before=[release])
    assert (between.status, between.questions) == ("halted", ())
    assert [one.step for one in (await app.run(id="pr")).questions] == ["release"]


async def test_a_save_that_has_failed_counts_more_than_a_question():
    class Breaks(Hook):
        def on_item(self, event: Item) -> None:
            raise OSError

    @action(writes=["out"])
    async def hides(context: Context) -> str:
        try:
            return await context.ask("go", "?")
        finally:
            with suppress(HookFailed):
                await context.emit("told to nobody")

    app = Application(hides, store=MemoryStore(), hooks=[Breaks()])
    with pytest.raises(HookFailed):
        await app.run(id="x")
    many = fan_out(hides, over="xs", into="outs", take="out", on_error="collect", name="many")
    with pytest.raises(HookFailed):
        await Application(many, store=MemoryStore(), hooks=[Breaks()]).run({"xs": [1]}, id="x")


async def test_every_attempt_gets_the_same_answer():
    @action(writes=["out"], retry=Retry(3, on=ValueError))
    async def stubborn(context: Context) -> str:
        answer = await context.ask("go", None)
        ran.append(answer)
        if len(ran) < 3:
            raise ValueError
        if len(ran) == 3:
            raise OSError
        return answer

    app = Application(stubborn, store=MemoryStore())
    await app.run(id="x")
    with pytest.raises(OSError):
        await app.run(id="x", answers={"go": "now"})
    assert (await app.run(id="x")).state["out"] == "now"
    assert ran == ["now"] * 4


async def test_answers_may_be_anything_that_is_data():
    app = Application(review, store=MemoryStore())
    await app.run({"change": "x"}, id="pr")
    result = await app.run(id="pr", answers={("pr", "approve"): None})
    assert result.state["merged"] == "x: None"


# -- what is refused -------------------------------------------------------------------------------


async def test_without_a_store_nobody_can_be_asked():
    with pytest.raises(
        BadUse, match=r"action 'review' of run \w+ asks 'approve', and this run has"
    ):
        await Application(review).run({"change": "x"})
    many = fan_out(review, over="changes", item="change", into="out", store=None)
    with pytest.raises(ExceptionGroup) as raised:
        await Application(many, store=MemoryStore()).run({"changes": ["x"]})
    (error,) = raised.value.exceptions
    assert isinstance(error, BadUse)
    assert "this child is kept nowhere: nothing would remember the question" in str(error)


async def test_a_question_that_is_no_data_is_refused_where_it_is_asked():
    @action(reads=["item"], writes=["out"])
    async def bad(item: str, context: Context) -> str:
        return await context.ask("lock", {"a": [item, threading.Lock()]})

    many = fan_out(bad, over="items", item="item", key=str, into="outs")
    app = Application(many, store=MemoryStore())
    with pytest.raises(ExceptionGroup) as raised:
        await app.run({"items": ["k"]}, id="x")
    (error,) = raised.value.exceptions
    assert isinstance(error, NotData)
    text = str(error)
    assert "action 'bad' of run" in text
    assert "(key 'k' of 'outs') asks 'lock' with a question that can't be kept" in text
    assert "question['a'][1]: a lock is not data" in text
    assert await app.questions("x") == []


@pytest.mark.parametrize("name", ["", None, 5])
async def test_a_question_has_a_name(name: Any):
    @action(writes=["out"])
    async def ask(context: Context) -> str:
        return await context.ask(name, "?")

    with pytest.raises(BadUse, match=r"action 'ask': context.ask\(name, ...\) takes a name, not"):
        await Application(ask, store=MemoryStore()).run()


async def test_a_plain_function_asks_from_its_thread():
    @action(writes=["out"])
    def plain(context: Context) -> str:
        ran.append("plain")
        try:
            answer: str = anyio.from_thread.run(context.ask, "go", "?")
        except Exception:
            ran.append("caught")
            raise
        return answer.upper()

    app = Application(plain, store=MemoryStore())
    assert (await app.run(id="x")).status == "halted"
    assert (await app.run(id="x", answers={"go": "yes"})).state["out"] == "YES"
    assert ran == ["plain", "plain"]


async def test_a_plain_function_that_asks_by_itself_gets_advice():
    @action(writes=["out"])
    def plain(context: Context) -> None:
        context.ask("go", "?")  # pyright: ignore[reportUnusedCoroutine] # the mistake

    with pytest.raises(
        BadUse, match=r"'plain' is a plain function, which can't await an answer.*ask"
    ):
        await Application(plain, store=MemoryStore()).run()


async def test_what_an_action_has_left_behind_can_not_ask():
    left: list[Context] = []

    @action(writes=["out"])
    async def leaves(context: Context) -> str:
        left.append(context)
        return "done"

    @action(writes=["more"])
    async def asks(context: Context) -> str:
        return await left[0].ask("go", "?")

    app = Application(Graph.chain(leaves, asks), store=MemoryStore())
    with pytest.raises(
        BadUse, match="action 'leaves' of run x has ended, and something it left beh"
    ):
        await app.run(id="x")


@pytest.mark.parametrize("grouped", [False, True])
async def test_a_child_that_asks_with_the_context_of_another_has_failed(grouped: bool):
    hook = RecordingHook()

    @action(writes=["inner"])
    async def thief(parents: list[Context]) -> str:
        if not grouped:
            return await parents[0].ask("go", "?")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(parents[0].ask, "go", "?")
        return "never"

    @action(writes=["out"])
    async def parent(context: Context, parents: list[Context]) -> str:
        parents.append(context)
        async with context.fan_out(name="thieves") as group:
            group.start(thief)
        return "done"

    app = Application(parent, store=MemoryStore(), hooks=[hook])
    result = await app.run(id="x", inputs={"parents": []})
    (thiefs,) = hook.of(ChildEnded)
    assert isinstance(thiefs.outcome, Failed)
    assert "the question of another run halted this one" in str(thiefs.outcome.error)
    assert result.status == "halted"  # whose context it is has asked
    assert [one.run_id for one in result.questions] == ["x"]


# -- however it ends -------------------------------------------------------------------------------


async def swallowed(context: Context) -> str:
    try:
        return await context.ask("go", "?")
    except BaseException:
        return "as if nothing had happened"


async def replaced(context: Context) -> str:
    try:
        return await context.ask("go", "?")
    except BaseException:
        raise ValueError from None


async def in_a_task_group(context: Context) -> str:
    async def ask() -> None:
        answers.append(await context.ask("go", "?"))

    answers: list[str] = []
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(ask)
        tasks.start_soon(anyio.lowlevel.checkpoint)
    return answers[0]


async def beside_a_failure(context: Context) -> str:
    async def fail() -> None:
        try:
            await anyio.sleep(10)
        finally:
            if not answered:
                raise ValueError

    answered: list[str] = []
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(fail)
        await anyio.lowlevel.checkpoint()
        answered.append(await context.ask("go", "?"))
        tasks.cancel_scope.cancel()
    return answered[0]


async def with_a_cleanup(context: Context) -> str:
    try:
        return await context.ask("go", "?")
    finally:
        await anyio.sleep(1)
        ran.append("cleaned up")


async def longer_than_its_timeout(context: Context) -> str:
    try:
        return await context.ask("go", "?")
    finally:
        if not ran:
            ran.append("cleaned up")
            await anyio.sleep(100)


async def later(context: Context) -> str:
    try:
        return await context.ask("go", "?")
    except BaseException:
        raise RetryLater(5) from None


async def inside_of_a_timeout(context: Context) -> str:
    with anyio.fail_after(3):
        return await context.ask("go", "?")


async def in_a_fan_out(context: Context) -> str:
    async with context.fan_out(name="inner") as group:
        group.start(review, {"change": "never asked"})
        return await context.ask("go", "?")


async def beside_who_has_asked(context: Context) -> str:
    async with context.fan_out(name="inner") as group:
        group.start(review, {"change": "asked first"})
        await anyio.sleep(1)
        return await context.ask("go", "?")


WAYS = [
    swallowed,
    replaced,
    in_a_task_group,
    with_a_cleanup,
    longer_than_its_timeout,
    later,
    inside_of_a_timeout,
]


MORE_WAYS = [*WAYS, beside_a_failure, in_a_fan_out, beside_who_has_asked]


@pytest.mark.parametrize("way", MORE_WAYS, ids=lambda way: way.__name__)
async def test_an_attempt_that_has_asked_is_halted_however_it_ends(way: Callable[[Context], Any]):
    asks = action(writes=["out"], name="asks", timeout=20, retry=Retry(5, on=Exception))(way)
    hook = RecordingHook()
    app = Application(asks, store=MemoryStore(), hooks=[hook])
    async with no_leaks():
        result = await app.run(id="x")
    assert result.status == "halted"
    assert [one.name for one in result.questions] == ["go"]
    assert list(await app.questions("x")) == list(result.questions)
    assert not hook.of(AttemptEnded)  # so it wasn't tried again
    assert hook.of(RunEnded)[-1].status == "halted"
    hook.assert_paired()
    answers = {one.address: "yes" for one in result.questions}
    answered = await app.run(id="x", answers=answers)
    if answered.status == "halted":  # a child asks as well, which was cancelled before
        assert [one.name for one in answered.questions] == ["approve"]
        answered = await app.run(id="x", answers={"approve": "yes"})
    assert answered.state["out"] == "yes"


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
async def test_a_child_that_has_asked_is_halted_however_it_ends(way: Callable[[Context], Any]):
    asks = action(writes=["out"], name="asks", timeout=20)(way)
    breaker = Breaker(failures=1)
    each = Each(retry=Retry(5, on=Exception), timeout=1000, breaker=breaker)
    many = fan_out(asks, over="xs", into="outs", take="out", each=each, on_error="fail")
    hook = RecordingHook()
    app = Application(many, store=MemoryStore(), hooks=[hook])
    async with no_leaks(), Runtime() as runtime:
        result = await app.run({"xs": [1, 2]}, id="x", runtime=runtime)
        statistics = runtime.circuits(many).statistics()
    assert (result.status, len(result.questions)) == ("halted", 2)
    assert (statistics.failing, statistics.skipped) == (0, 0)
    assert not hook.of(AttemptEnded)
    assert (result.outcomes("outs").halted, result.outcomes("outs").total) == (2, 0)
    hook.assert_paired()
    answers = {one.address: f"yes {n}" for n, one in enumerate(result.questions)}
    answered = await app.run(id="x", answers=answers)
    assert answered.state["outs"] == ["yes 0", "yes 1"]


async def test_a_streaming_action_that_asks_is_closed_and_halted():
    @action(writes=["out"])
    async def stream(context: Context) -> AsyncIterator[str | Result[str]]:
        try:
            yield "an item"
            yield Result(await context.ask("go", "?"))
        finally:
            await anyio.sleep(0.1)
            ran.append("closed")

    app = Application(stream, store=MemoryStore())
    assert (await app.run(id="x")).status == "halted"
    assert ran == ["closed"]
    assert (await app.run(id="x", answers={"go": "yes"})).state["out"] == "yes"


async def test_what_waits_for_a_person_says_nothing_of_a_limit():
    limits = Limits(8, adapt=AIMD(overload=lambda error: True))  # whatever it is
    asks = action(reads=["change"], writes=["merged"], name="r", limits=limits)(review.function)
    app = Application(asks, store=MemoryStore())
    async with Runtime() as runtime:
        await app.run({"change": "x"}, id="x", runtime=runtime)
        (statistics,) = runtime.limiter(asks).statistics()
    assert (statistics.slots, statistics.in_use) == (8, 0)


# -- cancellation ----------------------------------------------------------------------------------


@action(writes=["out"])
async def cleans_up(context: Context) -> str:
    try:
        return await context.ask("go", "?")
    finally:
        await anyio.sleep(10)


@action(writes=["out"])
async def hides_it_all(context: Context) -> str:
    try:
        return await context.ask("go", "?")
    finally:
        with anyio.CancelScope(shield=True):
            await anyio.sleep(10)
        raise ValueError


@pytest.mark.parametrize("act", [cleans_up, hides_it_all], ids=lambda act: act.name)
async def test_a_run_that_is_cancelled_while_it_halts_is_cancelled(act: Any):
    hook = RecordingHook()
    app = Application(act, store=MemoryStore(), hooks=[hook])
    async with no_leaks():
        with anyio.move_on_after(5) as scope:
            await app.run(id="x")
    assert scope.cancelled_caught
    assert hook.of(RunEnded)[-1].status == "cancelled"
    hook.assert_paired()
    assert [one.name for one in await app.questions("x")] == ["go"]
    again = await app.run(id="x")
    assert again.status == "halted"


@pytest.mark.parametrize("act", [cleans_up, hides_it_all], ids=lambda act: act.name)
async def test_a_child_that_is_cancelled_while_it_halts_is_cancelled(act: Any):
    many = fan_out(act, over="xs", key=str, into="outs")
    hook = RecordingHook()
    app = Application(many, store=MemoryStore(), hooks=[hook])
    async with no_leaks(), app.open({"xs": [1, 2]}, id="x") as run:
        with anyio.move_on_after(5):
            await run.result()
        assert run.cancel_child("1", "not needed")
        result = await run.result()
    assert [one.key for one in result.questions] == ["2"]
    assert result.outcomes("outs").cancelled == 1
    hook.assert_paired()


async def test_a_run_that_is_cancelled_by_hand_while_it_halts_has_no_result():
    app = Application(cleans_up, store=MemoryStore())
    async with app.open(id="x") as run:
        with anyio.move_on_after(5):
            await run.result()
        run.cancel("enough")
        with pytest.raises(RunCancelled, match="enough"):
            await run.result()


async def test_no_except_exception_swallows_it():
    @action(writes=["out"])
    async def careless(context: Context) -> str:
        try:
            return await context.ask("go", "?")
        except Exception:
            ran.append("alarm")
            return ""
        except Halting:
            ran.append("halting")
            raise

    assert (await Application(careless, store=MemoryStore()).run(id="x")).status == "halted"
    assert ran == ["halting"]


async def test_an_answer_comes_back_as_it_is_from_a_result() -> None:
    app = Application(review, store=MemoryStore())
    result: RunResult[Any] = await app.run({"change": "x"}, id="pr")
    with pytest.raises(UnknownQuestion, match=r"has not asked 'aprove'; did you mean 'approve'\?"):
        await app.run(id="pr", answers={"aprove": True})
    result = await app.run(id="pr", answers={one.address: True for one in result.questions})
    assert result.state["merged"] == "x: True"
