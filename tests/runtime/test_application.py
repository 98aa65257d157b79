"""Applications: run, run again, run at once; what they give and what they raise."""

from __future__ import annotations

import dataclasses
import gc
import threading
import weakref
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Literal, cast

import anyio
import anyio.lowlevel
import pytest

from shoal import (
    Application,
    Budget,
    Cancelled,
    Context,
    ErrorInfo,
    Failed,
    Graph,
    Hook,
    Limits,
    RunResult,
    Runtime,
    Skipped,
    State,
    StoreFailed,
    Tolerate,
    action,
    fan_out,
)
from shoal._errors.exceptions import kind_of
from shoal.errors import (
    BadUse,
    BudgetExceeded,
    DefinitionError,
    HookFailed,
    MissingField,
    MissingInput,
    StateError,
)
from shoal.events import ChildEnded, StateUpdated
from shoal.stores._protocol import Batch, NullStore
from shoal.testing import RecordingHook, no_leaks
from shoal.types import Act

pytestmark = pytest.mark.anyio


@action(reads=["name"], writes=["greeting"])
async def greet(name: str, politely: bool = False) -> str:
    await anyio.sleep(1)
    return f"good day, {name}" if politely else f"hello, {name}"


@action(reads=["item"], writes=["out"])
async def odd_only(item: int) -> int:
    await anyio.sleep(item)
    if item % 2 == 0:
        raise LookupError(f"{item} is even")
    return item


@action(reads=["name"], writes=["page"])
async def needy(name: str, client: object, retries: int = 3) -> str:
    return name


# -- results -------------------------------------------------------------------------------------


async def test_a_run_gives_its_final_state_and_its_id():
    result = await Application(greet).run({"name": "shoal"}, id="mine")
    assert type(result) is RunResult
    assert result.run_id == "mine"
    assert type(result.state) is State
    assert result.state == {"name": "shoal", "greeting": "hello, shoal"}
    frozen: Any = result
    with pytest.raises(dataclasses.FrozenInstanceError):
        frozen.state = State()


async def test_what_a_run_starts_with_is_not_changed():
    fields = {"name": "shoal", "log": [1]}

    @action(writes=["log"])
    async def log(state: State) -> State:
        return state.append(log=2)

    result = await Application(Graph.chain(greet, log)).run(fields)
    assert result.state["log"] == [1, 2]
    assert fields == {"name": "shoal", "log": [1]}


async def test_a_run_may_start_with_a_state_or_with_nothing():
    @action(writes=["out"])
    async def one() -> int:
        return 1

    assert (await Application(one).run()).state == {"out": 1}
    assert (await Application(one).run({})).state == {"out": 1}
    first = await Application(greet).run(State(name="shoal"))
    second = await Application(one).run(first.state)
    assert second.state == {"name": "shoal", "greeting": "hello, shoal", "out": 1}


async def test_the_final_state_may_be_read_and_written_freely():
    state = (await Application(greet).run({"name": "shoal"})).state
    assert state.get("absent") is None
    assert state.update(anything=1)["anything"] == 1


@pytest.mark.parametrize("given", [[("name", "x")], "name", 5, {"name"}])
async def test_a_state_or_inputs_of_the_wrong_kind_are_named(given: Any):
    with pytest.raises(TypeError, match=f"state as a mapping.*not {kind_of(given)}"):
        await Application(greet).run(given)
    with pytest.raises(TypeError, match=f"inputs as a mapping.*not {kind_of(given)}"):
        await Application(greet).run({"name": "x"}, inputs=given)


@pytest.mark.parametrize("wrong", [5, b"id", 0])
async def test_an_id_is_a_string(wrong: Any):
    with pytest.raises(TypeError, match=f"id.*{wrong!r}"):
        await Application(greet).run({"name": "x"}, id=wrong)


async def test_names_of_fields_and_inputs_are_strings():
    fields: Any = {"name": "x", 1: 2}
    with pytest.raises(StateError, match="field names are strings, not 1"):
        await Application(greet).run(fields)


async def test_outcomes_that_are_not_done_are_kept():
    act = fan_out(odd_only, over="items", into="out", on_error="collect", key=str)
    result = await Application(act).run({"items": [1, 2, 3, 4], "out": {"3": "known"}})
    ledger = result.outcomes("out")
    assert (ledger.done, ledger.failed, ledger.cancelled, ledger.skipped) == (1, 2, 0, 1)
    assert ledger.total == 4
    assert len(ledger) == 3
    first, second, third = ledger
    assert isinstance(first, Failed)
    assert isinstance(second, Skipped)
    assert isinstance(third, Failed)
    assert [outcome.key for outcome in ledger] == ["2", "3", "4"]
    assert (first.position, first.element, first.act) == (1, 2, "odd_only")
    assert (first.elapsed, first.attempts, second.attempts) == (2, 1, 0)
    assert second.reason == "already in out"
    assert result.state["out"] == {"1": 1, "3": "known"}
    with pytest.raises(KeyError) as caught:
        result.outcomes("other")
    message = caught.value.args[0]
    assert "no fan-out named 'other'" in message
    assert "(it did: out)" in message
    assert result.run_id in message


async def test_a_run_without_a_fan_out_says_so():
    result = await Application(greet).run({"name": "x"})
    with pytest.raises(KeyError, match="it did: none"):
        result.outcomes("out")


# -- inputs --------------------------------------------------------------------------------------


async def test_inputs_are_given_by_name():
    application = Application(greet)
    assert (await application.run({"name": "x"}, inputs={"politely": True})).state[
        "greeting"
    ] == "good day, x"


async def test_a_missing_input_is_reported_before_any_action():
    hook = RecordingHook()
    called: list[int] = []

    @action()
    async def first() -> None:
        called.append(1)

    pages = fan_out(needy, over="names", item="name", into="pages")

    @action()
    async def last(database: object, retries: int = 3) -> None: ...

    application = Application(Graph.chain(first, pages, last), name="crawl", hooks=[hook])
    with pytest.raises(MissingInput) as caught:
        await application.run({"names": ["x"]}, inputs={"retries": 1})
    message = str(caught.value)
    assert "application 'crawl'" in message
    assert "'client' (action 'needy')" in message
    assert "'database' (action 'last')" in message
    assert "retries" not in message
    assert "run(inputs=...)" in message
    assert "reads=[...]" in message
    assert called == []
    assert hook.events == []
    with pytest.raises(MissingInput, match="'client'"):
        await application.run({"names": ["x"]}, inputs={"database": None})


async def test_an_input_may_be_none():
    await Application(needy).run({"name": "x"}, inputs={"client": None})


# -- errors --------------------------------------------------------------------------------------


def notes_of(error: BaseException) -> str:
    return "\n".join(getattr(error, "__notes__", ()))


async def test_a_failing_step_raises_its_own_exception_with_a_note():
    error = LookupError("mine")

    @action()
    async def fail() -> None:
        raise error

    with pytest.raises(LookupError) as caught:
        await Application(Graph.chain(greet, fail)).run({"name": "x"}, id="run-7")
    assert caught.value is error
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None
    assert notes_of(error) == "shoal: in action 'fail', run run-7"


async def test_a_failing_child_is_raised_in_a_group_with_notes_naming_action_key_and_run():
    hook = RecordingHook()
    chain = Graph.chain(odd_only, name="page")
    act = fan_out(chain, over="items", into="out", key=str, limits=None)
    with pytest.raises(ExceptionGroup) as caught:
        await Application(act, hooks=[hook]).run({"items": [3, 2, 5]}, id="run-7")
    group = caught.value
    assert "a child of fan-out 'out' failed" in str(group)
    assert notes_of(group) == "shoal: in fan-out 'out', run run-7"
    (error,) = group.exceptions
    assert isinstance(error, LookupError)
    ended = {event.outcome.key: event.outcome.run_id for event in hook.of(ChildEnded)}
    assert notes_of(error) == f"shoal: in action 'odd_only' of 'out', key '2', run {ended['2']}"


async def test_failures_of_nested_fan_outs_nest():
    inner = fan_out(odd_only, over="item", item="item", into="inner", key=str)
    outer = fan_out(inner, over="groups", item="item", into="outer", take="inner")
    with pytest.raises(ExceptionGroup) as caught:
        await Application(outer).run({"groups": [[1, 2], [3]]})
    group: Any = caught.value.exceptions[0]
    assert isinstance(group, ExceptionGroup)
    error: Any = cast("Any", group).exceptions[0]
    assert isinstance(error, LookupError)
    assert "in fan-out 'inner' of 'outer', key 0" in notes_of(cast("Any", group))
    assert "in action 'odd_only' of 'inner', key '2'" in notes_of(error)
    assert "in fan-out 'outer'" in notes_of(caught.value)


async def test_an_error_that_is_raised_again_is_noted_once_for_each_run():
    error = LookupError("shared")

    @action()
    async def fail() -> None:
        raise error

    for name in ("a", "a", "b"):
        with pytest.raises(LookupError):
            await Application(fail).run(id=name)
    assert notes_of(error).splitlines() == [
        "shoal: in action 'fail', run a",
        "shoal: in action 'fail', run b",
    ]


class Traced(Exception):
    pass


async def test_a_failed_run_leaves_no_cycle_of_garbage():
    @action()
    async def fail() -> None:
        raise Traced

    async def run_and_look() -> weakref.ref[Traced]:
        try:
            await Application(fail).run()
        except Traced as error:
            return weakref.ref(error)
        raise AssertionError

    gc.collect()
    gc.disable()
    try:
        reference = await run_and_look()
        await anyio.lowlevel.checkpoint()
        assert reference() is None
    finally:
        gc.enable()


@action(reads=["item"], writes=["out"])
async def fail_traced(item: int) -> int:
    await anyio.sleep(1)
    raise Traced


@action(reads=["items"], writes=["out"])
async def fail_by_hand(items: list[int], context: Context) -> None:
    async with context.fan_out(name="all") as group:
        group.start_each(fail_traced, over=items)


@action(reads=["items"], writes=["out"])
async def fail_and_go_on(items: list[int], context: Context) -> int:
    async with context.fan_out(name="all") as group:
        group.start_each(fail_traced, over=items)
        return len([outcome async for outcome in group])


failing = fan_out(fail_traced, over="items", into="out")
FAILING: dict[str, Act] = {
    "fan-out": failing,
    "tolerated": fan_out(fail_traced, over="items", into="out", on_error=Tolerate(count=1)),
    "collected": fan_out(fail_traced, over="items", into="out", on_error="collect"),
    "nested": fan_out(failing, over="many", item="_", into="outs", take="out"),
    "node": Graph.chain(Graph.chain(fail_traced, name="node")),
    "fan-out in a node": Graph.chain(Graph.chain(failing, name="node")),
    "by hand": fail_by_hand,
    "by hand, consumed": fail_and_go_on,
}


@pytest.mark.parametrize("shape", FAILING)
async def test_an_error_from_below_a_run_is_freed_with_its_handler(
    shape: str, monkeypatch: pytest.MonkeyPatch
):
    """With its traceback, and so with all that the frames of the user's code hold."""
    references: list[weakref.ref[Traced]] = []

    def note_that_it_lives(self: Traced) -> None:
        references.append(weakref.ref(self))

    monkeypatch.setattr(Traced, "__init__", note_that_it_lives)

    async def run_and_catch() -> None:
        with suppress(Traced, ExceptionGroup):
            await Application(FAILING[shape]).run({"items": [1, 2], "many": [1, 2], "item": 1})

    gc.collect()
    gc.disable()
    try:
        await run_and_catch()
        await anyio.lowlevel.checkpoint()
        assert references
        assert [reference() for reference in references] == [None] * len(references)
    finally:
        gc.enable()


async def test_a_runtime_that_was_closed_is_no_garbage():
    async def run() -> weakref.ref[Runtime]:
        async with Runtime() as runtime:
            await runtime.run(Application(greet), {"name": "shoal"})
        return weakref.ref(runtime)

    gc.collect()
    gc.disable()
    try:
        reference = await run()
        await anyio.lowlevel.checkpoint()
        assert reference() is None
    finally:
        gc.enable()


@pytest.mark.parametrize(
    "limits", [Limits(1), Budget(1, "USD", worst=lambda _: 2)], ids=["slots", "budget"]
)
async def test_a_runtime_and_its_limiters_are_no_garbage(limits: Limits):
    """Also after a request that waited for a limit, and was refused."""

    @action(reads=["name"], writes=["greeting"], limits=limits)
    async def limited(name: str) -> str:
        return f"hello, {name}"

    async def run() -> list[weakref.ref[object]]:
        async with Runtime() as runtime:
            with suppress(BudgetExceeded):
                await runtime.run(Application(limited), {"name": "shoal"})
            return [weakref.ref(runtime), weakref.ref(runtime.limiter(limited))]

    gc.collect()
    gc.disable()
    try:
        references = await run()
        await anyio.lowlevel.checkpoint()
        assert [reference() for reference in references] == [None, None]
    finally:
        gc.enable()


@action(writes=["out"])
async def one() -> int:
    return 1


class Guard(Hook):
    def on_state_updated(self, event: StateUpdated) -> None:
        raise Traced


class BrokenStore(NullStore):
    def save(self, batch: Batch) -> None:
        raise Traced


def references_to(error: BaseException) -> list[weakref.ref[BaseException]]:
    assert error.__cause__ is not None
    return [weakref.ref(error), weakref.ref(error.__cause__)]


@pytest.mark.parametrize("how", ["run", "open", "children"])
@pytest.mark.parametrize("what", ["hook", "store"])
async def test_an_error_that_ended_an_execution_is_freed_with_its_handler(how: str, what: str):
    act = fan_out(one, over="items", into="out") if how == "children" else one
    application = Application(act, hooks=[Guard()] if what == "hook" else [])

    async def run() -> None:
        async with Runtime(store=BrokenStore() if what == "store" else None) as runtime:
            if how == "open":
                async with application.open({"items": [1, 2]}, runtime=runtime) as opened:
                    await opened.result()
            else:
                await application.run({"items": [1, 2]}, runtime=runtime)

    async def run_and_look() -> list[weakref.ref[BaseException]]:
        try:
            await run()
        except (HookFailed, StoreFailed) as error:
            return references_to(error)
        raise AssertionError("it didn't fail")

    gc.collect()
    gc.disable()
    try:
        references = await run_and_look()
        await anyio.lowlevel.checkpoint()
        assert [reference() for reference in references] == [None, None]
    finally:
        gc.enable()


# -- again and at once ---------------------------------------------------------------------------


async def test_one_application_runs_again_and_again():
    act = fan_out(odd_only, over="items", into="out", on_error="collect")
    application = Application(act)
    for _ in range(2):
        result = await application.run({"items": [1, 2]})
        assert result.state["out"] == [1]
        assert result.outcomes("out").total == 2


async def test_one_application_runs_beside_itself():
    act = fan_out(odd_only, over="items", into="out", on_error="collect")
    application = Application(act)
    results: dict[int, RunResult] = {}

    async def run(number: int) -> None:
        results[number] = await application.run({"items": [number, number + 1, 2]})

    async with no_leaks(), anyio.create_task_group() as tasks:
        for number in (1, 3, 5):
            tasks.start_soon(run, number)
    assert {number: list(result.state["out"]) for number, result in results.items()} == {
        1: [1],
        3: [3],
        5: [5],
    }
    assert len({result.run_id for result in results.values()}) == 3
    assert anyio.current_time() == pytest.approx(6)


async def test_a_failure_in_one_run_does_not_touch_another():
    application = Application(fan_out(odd_only, over="items", into="out"))
    results: list[object] = []

    async def run(items: list[int]) -> None:
        try:
            results.append((await application.run({"items": items})).state["out"])
        except ExceptionGroup as error:
            results.append(type(error.exceptions[0]))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run, [1, 5])
        tasks.start_soon(run, [1, 2, 7])
    assert results == [LookupError, [1, 5]]


async def test_an_action_may_run_an_application():
    @action(reads=["name"], writes=["out"])
    async def outer(name: str) -> str:
        inner = await Application(greet).run({"name": name})
        return inner.state["greeting"]

    assert (await Application(outer).run({"name": "x"})).state["out"] == "hello, x"


async def test_cancelling_the_caller_cancels_the_run_and_its_children():
    ended: list[int] = []

    @action(reads=["item"], writes=["out"])
    async def clean(item: int) -> int:
        try:
            await anyio.sleep(60)
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(item)
            ended.append(item)
        return item

    hook = RecordingHook()
    async with no_leaks():
        with anyio.move_on_after(1) as scope:
            act = fan_out(clean, over="items", into="out")
            await Application(act, hooks=[hook]).run({"items": [1, 2, 3]})
        assert scope.cancelled_caught
    assert ended == [1, 2, 3]
    assert anyio.current_time() == pytest.approx(4)
    assert [type(event.outcome) for event in hook.of(ChildEnded)] == [Cancelled] * 3


# -- from synchronous code -----------------------------------------------------------------------

backends = pytest.mark.parametrize("backend", ["asyncio", "trio"])
Backend = Literal["asyncio", "trio"]


@action(reads=["item"], writes=["out"])
async def here(item: int) -> tuple[int, int]:
    await anyio.lowlevel.checkpoint()
    return item, threading.get_ident()


@action(writes=["loop"], executor="loop")
def which_loop() -> str:
    return anyio.get_cancelled_exc_class().__module__.partition(".")[0]


@backends
def test_run_sync_runs_on_either_backend(backend: Backend):
    act = Graph.chain(which_loop, fan_out(here, over="items", into="out"))
    result = Application(act).run_sync({"items": [1, 2]}, id="mine", backend=backend)
    assert result.state["loop"] == backend
    assert result.state["out"] == [(1, threading.get_ident()), (2, threading.get_ident())]
    assert result.run_id == "mine"


def test_run_sync_uses_asyncio_by_default():
    assert Application(which_loop).run_sync().state["loop"] == "asyncio"


@backends
def test_run_sync_takes_inputs(backend: Backend):
    result = Application(needy).run_sync({"name": "x"}, inputs={"client": 1}, backend=backend)
    assert result.state["page"] == "x"


@backends
def test_run_sync_raises_what_run_raises(backend: Backend):
    with pytest.raises(MissingField, match="'name'"):
        Application(greet).run_sync({}, backend=backend)
    with pytest.raises(MissingInput, match="'client'"):
        Application(needy).run_sync({"name": "x"}, backend=backend)


@pytest.mark.realtime
async def test_run_sync_is_refused_inside_a_loop():
    with pytest.raises(RuntimeError, match=r"[Aa]lready running|Attempted to call run"):
        Application(greet).run_sync({"name": "x"})


# -- definition ----------------------------------------------------------------------------------


def test_an_application_is_checked_when_it_is_built():
    wrong: list[Callable[[], object]] = [
        lambda: Application(len),  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
        lambda: Application(greet, hooks=[object()]),  # type: ignore[list-item] # pyright: ignore[reportArgumentType]
    ]
    for build in wrong:
        with pytest.raises(DefinitionError):
            build()


async def test_run_sync_in_a_running_loop_says_what_to_write_instead():
    @action(writes=["out"])
    async def one() -> int:
        return 1

    with pytest.raises(BadUse, match=r"'one'.* await app.run\(...\) instead"):
        Application(one).run_sync()


def test_a_group_as_data_says_what_is_in_it():
    inner = ExceptionGroup("children of 'x' failed", [ValueError("one"), KeyError("two")])
    group = ExceptionGroup("a child failed", [inner, OSError("three"), OSError("four")])
    info = ErrorInfo.of(group)
    assert info.type == "ExceptionGroup"
    assert info.message == (
        "a child failed: ValueError: one; KeyError: 'two'; OSError: three; and 1 more"
    )
    assert "children of 'x' failed" in info.traceback


def test_an_error_of_a_module_with_an_odd_loader_as_data_says_where_it_was_raised():
    class Loader:
        def get_source(self, name: str) -> str:
            raise RuntimeError("no source")

    module = {"__name__": "odd", "__loader__": Loader()}
    exec(compile("def act():\n    raise ValueError('one')", "odd.py", "exec"), module)
    act: Any = module["act"]
    with pytest.raises(ValueError, match="one") as raised:
        act()
    info = ErrorInfo.of(raised.value)
    assert info.traceback.endswith('  File "odd.py", line 2, in act\nValueError: one\n')


@pytest.mark.filterwarnings("error::DeprecationWarning")
def test_an_error_of_a_module_without_a_spec_is_data():
    module: dict[str, Any] = {"__name__": "odd", "__spec__": None}  # Python 3.15 warns of that
    exec(compile("def act():\n    raise ValueError('one')", "unspecified.py", "exec"), module)
    with pytest.raises(ValueError, match="one") as raised:
        module["act"]()
    assert 'File "unspecified.py", line 2, in act' in ErrorInfo.of(raised.value).traceback
