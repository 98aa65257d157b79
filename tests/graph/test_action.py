"""Actions: what is refused at decoration, what a function is given, what it may return."""

from __future__ import annotations

import functools
import inspect
import threading
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import anyio
import anyio.from_thread
import anyio.lowlevel
import pytest

from shoal import Application, Graph, State, action, fan_out
from shoal.errors import (
    BadResult,
    DefinitionError,
    MissingField,
    MissingInput,
    UndeclaredRead,
    UndeclaredWrite,
)
from shoal.types import FunctionAction

pytestmark = pytest.mark.anyio
variable: ContextVar[str] = ContextVar("variable")


async def run(
    act: FunctionAction[..., Any], state: Mapping[str, Any] | None = None, **inputs: Any
) -> State:
    return (await Application(act).run(state, inputs=inputs)).state


# -- what it is ----------------------------------------------------------------------------------


def test_an_action_says_what_it_is():
    @action(reads=["b", "a"], writes={"page"}, version="2")
    async def fetch(a: int, b: int, client: object, retries: int = 3) -> str:
        """Fetch it."""
        return ""

    assert fetch.name == fetch.__name__ == "fetch"
    assert fetch.__doc__ == "Fetch it."
    assert fetch.reads == {"a", "b"}
    assert fetch.writes == {"page"}
    assert fetch.version == "2"
    assert {name for name, need in fetch.takes.items() if need.required} == {"client"}
    assert repr(fetch) == "<action fetch reads=['a', 'b'] writes=['page']>"


def test_an_action_may_be_given_another_name():
    @action(name="again")
    def fetch() -> None: ...

    assert fetch.name == "again"
    assert fetch.version == "1"


async def test_an_action_is_called_as_its_function_is():
    @action(reads=["n"], writes=["m"])
    def add(n: int, more: int = 1) -> int:
        return n + more

    @action(reads=["n"], writes=["m"])
    async def later(n: int, *, more: int = 1) -> int:
        return n + more

    assert add(1) == 2
    assert add(1, more=5) == 6
    assert await later(1, more=2) == 3
    with pytest.raises(TypeError, match="missing 1 required"):
        add()  # pyright: ignore[reportCallIssue]


async def test_an_action_may_be_declared_again_under_another_name():
    @action(reads=["a"], writes=["b"])
    async def plus(a: int) -> int:
        return a + 1

    again = action(reads=["a"], writes=["c"], name="again")(plus)
    assert again.name == "again"
    assert plus.name == "plus"
    assert await run(again, {"a": 1}) == {"a": 1, "c": 2}


# -- what is refused -----------------------------------------------------------------------------


def named_state(state: object) -> None: ...
def named_context(context: object) -> None: ...
def takes_rest(*rest: object) -> None: ...
def takes_keywords(**rest: object) -> None: ...
def positional_only(a: object, /) -> None: ...
def takes_title(title: object) -> None: ...
def takes_self(self: object, a: object) -> None: ...
def plain() -> None: ...
def generator() -> Any:
    yield


class Generating:
    def __call__(self) -> Any:
        yield


wrong: Any = 5
refused: list[tuple[Callable[[], object], str]] = [
    (lambda: action(reads=["state"])(named_state), "'named_state'.*'state'.*rename the field"),
    (lambda: action(reads=["context"])(named_context), "'named_context'.*'context'.*rename"),
    (lambda: action()(takes_rest), r"'takes_rest'.*\*rest.*by name"),
    (lambda: action()(takes_keywords), r"'takes_keywords'.*\*\*rest.*by name"),
    (lambda: action(reads=["a"])(positional_only), "'positional_only'.*parameter a.*by name"),
    (lambda: action(writes=["title"])(takes_title), "'takes_title'.*'title'.*writes"),
    (lambda: action()(generator), "'generator' is a generator function.*async def.*Result"),
    (lambda: action(name="g")(functools.partial(generator)), "'g' is a generator function"),
    (lambda: action(name="g")(Generating()), "'g' is a generator function"),
    (lambda: action()(lambda: None), "lambda.*no name.*name="),
    (lambda: action()(functools.partial(plain)), r"partial.*no name.*name="),
    (lambda: action(name="")(plain), "no name"),
    (lambda: action(name=wrong)(plain), r"name.*5"),
    (lambda: action(version=wrong)(plain), r"version.*5"),
    (lambda: action(reads=wrong)(plain), r"reads=.*5"),
    (lambda: action(writes=wrong)(plain), r"writes=.*5"),
    (lambda: action(reads=["a"])(takes_self), r"'takes_self'.*'self'.*method"),
    (lambda: action(name="largest", reads=["a"])(max), r"'largest'.*parameters"),
    (lambda: action(reads="url")(plain), r"reads='url' is one string.*reads=\['url'\]"),
    (lambda: action(writes="url")(plain), r"writes='url' is one string.*writes=\['url'\]"),
    (lambda: action(reads=[1])(plain), "reads= lists field names.*not 1"),  # type: ignore[list-item] # pyright: ignore[reportArgumentType]
    (lambda: action(writes=[None])(plain), "writes= lists field names.*not None"),  # type: ignore[list-item] # pyright: ignore[reportArgumentType]
    (lambda: action(executor="process")(plain), "executor= is 'loop', .*, not 'process'"),  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
    (lambda: action(reads=plain), r"without parentheses.*@action\(\)"),  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
]


@pytest.mark.parametrize(("define", "message"), refused)
def test_what_cannot_work_is_refused_at_decoration(define: Callable[[], object], message: str):
    with pytest.raises(DefinitionError, match=message):
        define()


def test_a_bare_decorator_is_refused():
    bare: Any = action
    with pytest.raises(DefinitionError, match=r"without parentheses.*@action\(\)"):

        @bare
        def fetch() -> None: ...


@pytest.mark.parametrize("number", [None, 5, "name"])
def test_what_is_no_function_is_refused(number: object):
    decorate: Any = action(name="odd")
    with pytest.raises(DefinitionError, match=f"{number!r}"):
        decorate(number)


# -- what a function is given --------------------------------------------------------------------


async def test_reads_inputs_and_defaults_are_bound_by_name():
    given: dict[str, Any] = {}

    @action(reads=["url", "depth"])
    async def fetch(
        client: str, url: str, retries: int = 3, *, depth: int, pause: float = 0.5
    ) -> None:
        given.update(locals())

    await run(fetch, {"url": "u", "depth": 2, "other": 0}, client="c", pause=2.0)
    del given["given"]
    assert given == {"client": "c", "url": "u", "retries": 3, "depth": 2, "pause": 2.0}


async def test_a_field_wins_over_a_default():
    @action(reads=["n"], writes=["m"])
    async def add(n: int = 5) -> int:
        return n

    assert await run(add, {"n": 1}) == {"n": 1, "m": 1}
    with pytest.raises(MissingField, match=r"action 'add' reads field 'n'"):
        await run(add)


async def test_an_input_never_fills_a_field_nor_a_field_an_input():
    @action(reads=["n"])
    async def read(n: int) -> None: ...

    @action()
    async def take(n: int) -> None: ...

    with pytest.raises(MissingField, match="'n'"):
        await run(read, {}, n=1)
    with pytest.raises(MissingInput, match=r"'n'.*'take'"):
        await run(take, {"n": 1})


async def test_what_it_reads_but_does_not_name_is_not_passed():
    @action(reads=["a", "b"], writes=["c"])
    async def f(a: int, state: State) -> State:
        return state.update(c=a + state["b"])

    assert (await run(f, {"a": 1, "b": 2}))["c"] == 3


async def test_state_is_narrowed_to_what_is_declared():
    seen: list[object] = []

    @action(reads=["a"], writes=["b"])
    async def look(state: State) -> State:
        seen.append(dict(state))
        with pytest.raises(UndeclaredRead, match="action 'look' reads field 'c'"):
            state.get("c")
        with pytest.raises(UndeclaredWrite, match="action 'look' writes field 'a'"):
            state.update(a=1)
        return state.update(b=5).increment(b=1)

    assert await run(look, {"a": 1, "c": 2}) == {"a": 1, "c": 2, "b": 6}
    assert seen == [{"a": 1}]


async def test_a_missing_field_names_action_and_field_and_what_there_is():
    @action(reads=["url"])
    async def fetch(url: str) -> None: ...

    with pytest.raises(MissingField) as caught:
        await run(fetch, {"urls": [], "depth": 1})
    message = str(caught.value)
    assert "action 'fetch' reads field 'url'" in message
    assert "(it has: depth, urls)" in message


# -- what it may be ------------------------------------------------------------------------------


class Scaler:
    def __init__(self, factor: int) -> None:
        self.factor = factor

    def __call__(self, n: int) -> int:
        return n * self.factor

    def scaled(self, n: int, by: int = 1) -> int:
        return n * self.factor * by

    async def later(self, n: int) -> int:
        await anyio.sleep(1)
        return n * self.factor


class Later:
    async def __call__(self, n: int) -> int:
        await anyio.sleep(1)
        return n * 10


async def later(factor: int, n: int) -> int:
    await anyio.sleep(1)
    return n * factor


CALLABLES: list[Callable[[Any], Any]] = [
    Scaler(10),
    Later(),
    Scaler(10).scaled,
    Scaler(10).later,
    functools.partial(later, 10),
    functools.partial(later, factor=10),
    functools.partial(Later()),
    functools.partial(functools.partial(Scaler(5).scaled, by=1), by=2),
    lambda n: 10 * n,
]


@pytest.mark.parametrize("function", CALLABLES, ids=range(len(CALLABLES)))
async def test_anything_callable_is_an_action(function: Callable[..., Any]):
    decorate: Any = action(reads=["n"], writes=["out"], name="scale", executor="loop")
    assert await run(decorate(function), {"n": 2}) == {"n": 2, "out": 20}


async def test_what_a_partial_binds_by_keyword_is_a_default():
    decorate: Any = action(reads=["n"], writes=["out"], name="scale")
    act = decorate(functools.partial(later, factor=10))
    assert not any(need.required for need in act.takes.values())
    assert (await run(act, {"n": 2}, factor=3))["out"] == 6


async def test_a_wrapped_coroutine_function_keeps_its_parameters():
    def traced(
        function: Callable[..., Coroutine[Any, Any, int]],
    ) -> Callable[..., Coroutine[Any, Any, int]]:
        @functools.wraps(function)
        async def wrapper(*args: Any, **kwargs: Any) -> int:
            return await function(*args, **kwargs) + 1

        return wrapper

    @action(reads=["n"], writes=["out"])
    @traced
    async def add(n: int, more: int = 1) -> int:
        return n + more

    assert add.name == "add"
    assert await run(add, {"n": 1}, more=5) == {"n": 1, "out": 7}


# -- what it returns -----------------------------------------------------------------------------


async def test_one_write_is_the_value_itself():
    @action(writes=["out"])
    async def give(value: object) -> object:
        return value

    for value in (5, None, {"other": 1}, [1], State()):
        assert await run(give, value=value) == {"out": value}


async def test_several_writes_are_a_mapping_of_them():
    @action(writes=["a", "b"])
    async def give(value: object) -> object:
        return value

    assert await run(give, value={"b": 2, "a": 1}) == {"a": 1, "b": 2}
    assert await run(give, value=State(a=1, b=2)) == {"a": 1, "b": 2}


async def test_no_write_is_none():
    @action()
    async def give() -> None: ...

    assert await run(give, {"a": 1}) == {"a": 1}


async def test_a_state_may_change_some_of_the_writes_or_none():
    @action(writes=["a", "b"])
    async def some(state: State) -> State:
        return state.update(a=1)

    @action(writes=["a"])
    async def none(state: State) -> State:
        return state

    assert await run(some) == {"a": 1}
    assert await run(none, {"a": 5}) == {"a": 5}


bad_results: list[tuple[list[str], object, type[Exception], str]] = [
    ([], 5, BadResult, "'give' declares no writes and returned an int.*writes="),
    (["a", "b"], 5, BadResult, r"'give' writes several fields.*mapping.*\(a, b\), not an int"),
    (["a", "b"], None, BadResult, "'give' writes several fields.*not None"),
    (["a", "b"], [("a", 1), ("b", 2)], BadResult, "'give' writes several.*not a list"),
    (["a", "b"], {"a": 1}, BadResult, r"'give' returned no value for b.*state\.update"),
    (["a", "b"], {"a": 1, "b": 2, "c": 3}, UndeclaredWrite, r"'give'.*for c.*declared: a, b"),
    (["a", "b"], {"a": 1, 5: 2}, UndeclaredWrite, "'give'.*for 5"),
]


@pytest.mark.parametrize(("writes", "value", "kind", "message"), bad_results)
async def test_a_result_against_the_declaration_is_refused(
    writes: list[str], value: object, kind: type[Exception], message: str
):
    @action(writes=writes)
    async def give() -> object:
        return value

    with pytest.raises(kind, match=message):
        await run(give)


@pytest.mark.parametrize("value", [None, {"a": 1}, 5, State(a=1)])
async def test_an_action_that_takes_the_state_returns_one_made_of_it(value: object):
    @action(writes=["a"])
    async def give(state: State) -> object:
        return value

    with pytest.raises(BadResult, match="action 'give' returned"):
        await run(give, {"a": 0})


@pytest.mark.parametrize("writes", [[], ["a"], ["a", "b"]])
@pytest.mark.parametrize("takes_state", [False, True])
async def test_a_plain_function_that_returns_a_coroutine_is_refused(
    writes: list[str], takes_state: bool
):
    async def forgotten() -> None: ...

    made: list[Coroutine[Any, Any, None]] = []

    def give() -> Awaitable[None]:
        made.append(forgotten())
        return made[-1]

    def give_of_state(state: State) -> Awaitable[None]:
        return give()

    function: Any = give_of_state if takes_state else give
    act = action(writes=writes, executor="loop", name="give")(function)
    with pytest.raises(BadResult, match=r"action 'give' is a plain function.*awaited.*async def"):
        await run(act)
    state = inspect.getcoroutinestate(made[0])
    assert state == inspect.CORO_CLOSED, "no warning that it was never awaited"


async def test_what_it_raises_is_raised_unchanged():
    error = LookupError("mine")

    @action()
    async def fail() -> None:
        raise error

    with pytest.raises(LookupError) as caught:
        await run(fail)
    assert caught.value is error


# -- where it runs -------------------------------------------------------------------------------


@pytest.mark.realtime
async def test_plain_functions_run_in_threads_and_others_on_the_loop():
    @action(writes=["out"])
    def threaded() -> int:
        return threading.get_ident()

    @action(writes=["out"], executor="loop")
    def looped() -> int:
        return threading.get_ident()

    @action(writes=["out"])
    async def awaited() -> int:
        return threading.get_ident()

    here = threading.get_ident()
    assert (await run(threaded))["out"] != here
    assert (await run(looped))["out"] == here
    assert (await run(awaited))["out"] == here


@pytest.mark.realtime
async def test_a_thread_sees_context_variables_and_changes_none():
    @action(writes=["out"])
    def threaded() -> str:
        before = variable.get()
        variable.set("changed in the thread")
        return before

    variable.set("set outside")
    assert (await run(threaded))["out"] == "set outside"
    assert variable.get() == "set outside"


@pytest.mark.realtime
async def test_a_thread_does_not_hold_up_the_loop():
    turned = threading.Event()

    @action(writes=["out"])
    def wait() -> bool:
        return turned.wait(timeout=10)

    results: list[State] = []

    async def collect() -> None:
        results.append(await run(wait))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(collect)
        await anyio.lowlevel.checkpoint()
        turned.set()
    assert results == [{"out": True}]


@pytest.mark.realtime
async def test_a_cancelled_run_waits_for_its_thread():
    began, may_end = anyio.Event(), threading.Event()
    log: list[str] = []

    @action()
    def stubborn() -> None:
        anyio.from_thread.run_sync(began.set)
        may_end.wait(timeout=10)
        log.append("the thread ended")

    async with anyio.create_task_group() as tasks:

        async def cancelled() -> None:
            try:
                await run(stubborn)
            finally:
                log.append("the run ended")

        tasks.start_soon(cancelled)
        await began.wait()
        tasks.cancel_scope.cancel()
        with anyio.CancelScope(shield=True):
            for _ in range(20):
                await anyio.lowlevel.checkpoint()
            assert log == []
            may_end.set()
    assert log == ["the thread ended", "the run ended"]


@pytest.mark.realtime
@pytest.mark.parametrize("error", [ValueError("mine"), StopIteration(5)])
async def test_what_a_thread_raises_reaches_the_caller(error: Exception):
    @action()
    def fail() -> None:
        raise error

    with pytest.raises((ValueError, RuntimeError)) as caught:
        await run(fail)
    if isinstance(error, StopIteration):
        assert "StopIteration" in str(caught.value)
    else:
        assert caught.value is error


@pytest.mark.realtime
async def test_a_threads_return_value_and_state_are_checked_too():
    @action(writes=["a", "b"])
    def give() -> dict[str, int]:
        return {"a": 1}

    @action(reads=["a"], writes=["b"])
    def peek(state: State) -> State:
        return state.update(c=1)

    with pytest.raises(BadResult, match="no value for b"):
        await run(give)
    with pytest.raises(UndeclaredWrite, match="'peek' writes field 'c'"):
        await run(peek, {"a": 1})


# -- mistakes that would go unnoticed --------------------------------------------------------------


async def test_a_mapping_of_the_only_field_is_refused_with_the_mended_line():
    @action(reads=["n"], writes=["out"])
    async def wrapped(n: int) -> dict[str, int]:
        return {"out": n}

    with pytest.raises(BadResult, match=r"returns the value itself.*state\.update\(out=\.\.\.\)"):
        await run(wrapped, {"n": 1})


@pytest.mark.parametrize("value", [{}, {"other": 1}, {"out": 1, "other": 2}])
async def test_other_mappings_are_values(value: dict[str, int]):
    @action(writes=["out"])
    async def mapping() -> dict[str, int]:
        return value

    assert (await run(mapping, {}))["out"] == value


async def test_a_mapping_with_the_key_of_its_field_is_written_through_the_state():
    @action(writes=["out"])
    async def mapping(state: State[Any]) -> State[Any]:
        return state.update(out={"out": 1})

    assert (await run(mapping, {}))["out"] == {"out": 1}


@action(reads=["n"], writes=["out"])
async def unread(n: int, other: int = 3) -> int:
    return n + other


@action(writes=["other"])
async def writes_other() -> int:
    return 1


@dataclass
class Declared:
    n: int
    other: int = 1
    out: int = 0


@pytest.mark.parametrize(
    ("act", "given"),
    [
        (unread, {"n": 1, "other": 2}),
        (Graph.chain(writes_other, unread), {"n": 1}),
        (fan_out(unread, over="ns", item="n", into="all"), {"ns": [1], "other": 2}),
    ],
    ids=["of the run", "of an action", "of the parent"],
)
async def test_a_parameter_that_is_a_field_and_not_in_reads_is_refused(act: Any, given: Any):
    with pytest.raises(
        DefinitionError, match=r"'unread' has a parameter 'other', which is a field.*add it to read"
    ):
        await Application(act).run(given)
    # Given as an input, it is one: nothing is unclear then.
    await Application(act).run(given, inputs={"other": 5})
    await Application(act.bind(other=5)).run(given)


# Made here, since a model's source is read for it, and that blocks.
declared = Application(unread, state=Declared)


async def test_a_parameter_that_is_a_field_of_the_model_is_refused():
    with pytest.raises(DefinitionError, match="'unread' has a parameter 'other'"):
        await declared.run(Declared(1))


def test_a_parameter_that_is_the_element_is_refused_where_it_is_defined():
    with pytest.raises(DefinitionError, match=r"'unread' has a parameter 'other'.*its element"):
        fan_out(unread, over="ns", item="other", into="all")
