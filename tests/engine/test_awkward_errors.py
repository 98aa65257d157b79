"""An exception of a user's may be anything: the engine runs none of its code to find out what.

Whatever that would raise is not taken for a failure of the engine's own, and what an exception
answers (that it is false, or equal to all others) decides nothing.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from shoal import (
    AIMD,
    Application,
    Breaker,
    Context,
    Each,
    Failed,
    Hook,
    Limits,
    MemoryStore,
    NobodyAccepted,
    Retry,
    SQLiteStore,
    State,
    Tolerate,
    action,
    fan_out,
    first,
    first_item,
    race,
)
from shoal.errors import SpuriousCancel

pytestmark = pytest.mark.anyio


armed: list[bool] = []
"""Whether awkward exceptions refuse: not while pytest shows them."""


@pytest.fixture(autouse=True)
def arm() -> Iterator[None]:
    armed.append(True)
    yield
    armed.clear()


def refuse(self: object, *args: object, **options: object) -> Any:
    if armed:
        raise ZeroDivisionError
    return ""


def never(self: object, *args: object) -> bool:
    return False


def always(self: object, *args: object) -> bool:
    return True


def nothing(self: object) -> int:
    return 0


GROUPS = dict.fromkeys(("split", "subgroup", "derive"), refuse)
TEXTS = dict.fromkeys(("__str__", "__repr__", "__format__"), refuse)
METHODS: dict[str, Any] = {
    **TEXTS,
    "add_note": refuse,
    "with_traceback": refuse,
    "__bool__": refuse,
    "__len__": refuse,
    "__eq__": refuse,
    "__hash__": refuse,
    "__copy__": refuse,
    "__deepcopy__": refuse,
    "__reduce__": refuse,
    "__reduce_ex__": refuse,
    "__getstate__": refuse,
    "__setattr__": refuse,
    "__delattr__": refuse,
}


def group_of(kind: Any) -> Callable[[], BaseException]:
    return lambda: kind("two requests failed", [ConnectionError("a"), TimeoutError("b")])


def forgetful() -> BaseException:
    """A group whose ``derive`` expects what it isn't given."""

    class Failures(ExceptionGroup[Exception]):
        def __new__(cls, message: str, errors: Sequence[Exception], code: int = 0) -> Any:
            return super().__new__(cls, message, errors)

        def __init__(self, message: str, errors: Sequence[Exception], code: int = 0) -> None:
            if code:
                self.code = code

        def derive(self, errors: Sequence[Exception]) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
            return Failures(self.message, errors, self.code)

    return Failures("two requests failed", [ConnectionError("a"), TimeoutError("b")])


KINDS: dict[str, Callable[[], BaseException]] = {
    "refuses": type("RefusesError", (Exception,), METHODS),
    "is false": type("FalseError", (Exception,), {"__bool__": never}),
    "is empty": type("EmptyError", (Exception,), {"__len__": nothing}),
    "equals all": type("EqualError", (Exception,), {"__eq__": always, "__hash__": nothing}),
    "group": group_of(type("GroupError", (ExceptionGroup,), METHODS | GROUPS)),
    "group of no class": group_of(type("BaseGroupError", (BaseExceptionGroup,), METHODS | GROUPS)),
    "forgetful group": forgetful,
}


def made(kind: str) -> BaseException:
    return KINDS[kind]()


kinds = pytest.mark.parametrize("kind", KINDS)


def raising(kind: str, **options: Any) -> Any:
    @action(reads=["x"], writes=["y"], name="raises", **options)
    async def act(x: int) -> int:
        await anyio.lowlevel.checkpoint()
        if x == 1:
            raise made(kind)
        return x

    return act


@action(reads=["x"], writes=["y"])
async def good(x: int) -> int:
    await anyio.sleep(0.01)
    return x


def is_one(error: object, kind: str) -> bool:
    """Whether that is the error, or a group of Python's own in its place."""
    made = KINDS[kind]()
    return type(error).__name__ in (type(made).__name__, "ExceptionGroup")


def over(act: Any, **options: Any) -> Any:
    return fan_out(act, over="xs", item="x", key=int, into="ys", name="over", **options)


@kinds
@pytest.mark.parametrize("store", [None, MemoryStore, SQLiteStore])
async def test_it_fails_its_child_alone(kind: str, store: Any, tmp_path: Path):
    kept = store and (store() if store is MemoryStore else store(tmp_path / "runs.db"))
    app = Application(
        over(raising(kind), on_error="collect", errors_into="bad"), store=kept, name="app"
    )
    result = await app.run({"xs": [0, 1, 2]}, id="r")
    assert dict(result.state["ys"]) == {0: 0, 2: 2}
    assert list(result.state["bad"]) == [1]
    (failed,) = [one for one in result.outcomes("over") if isinstance(one, Failed)]
    assert is_one(failed.error, kind)
    if kept is not None:
        await app.run(id="r")


@kinds
@pytest.mark.parametrize(
    "options",
    [
        {"on_error": "ignore"},
        {"on_error": Tolerate(count=1)},
        {"on_error": "ignore", "each": Each(timeout=1, retry=Retry(2, on=KeyError, initial=0.01))},
        {"on_error": "ignore", "each": Each(breaker=Breaker(failures=2))},
        {"on_error": "ignore", "limits": Limits(2, adapt=AIMD())},
    ],
)
async def test_it_is_no_matter_of_its_siblings(kind: str, options: Any):
    result = await Application(over(raising(kind), **options)).run({"xs": [0, 1, 2]})
    assert dict(result.state["ys"]) == {0: 0, 2: 2}


@kinds
async def test_it_only_leaves_a_race(kind: str):
    result = await Application(race(raising(kind), good, into="y")).run({"x": 1})
    assert result.state["y"] == 1


@kinds
async def test_nobody_wins_by_it(kind: str):
    with pytest.raises(NobodyAccepted) as caught:
        await Application(race(raising(kind), into="y")).run({"x": 1})
    assert is_one(caught.value.exceptions[0], kind)


@kinds
@pytest.mark.parametrize("options", [{}, {"retry": Retry(2, on=Exception, initial=0.01)}])
async def test_a_step_raises_it_as_it_is(kind: str, options: Any):
    with pytest.raises(BaseException) as caught:
        await Application(raising(kind, **options)).run({"x": 1})
    assert is_one(caught.value, kind)


@kinds
async def test_a_fan_out_raises_it_in_a_group(kind: str):
    nested = fan_out(over(raising(kind)), over="xss", item="xs", into="yss", take="ys")
    with pytest.raises(ExceptionGroup) as caught:
        await Application(nested).run({"xss": [[0, 1]]})
    inner: Any = caught.value.exceptions[0]
    assert is_one(inner.exceptions[0], kind)


@kinds
async def test_it_comes_out_of_a_fan_out_of_an_action(kind: str):
    @action(writes=["y"])
    async def own(context: Context) -> int:
        async with context.fan_out(name="kids") as group:
            group.start_each(raising(kind), over=range(3), item="x")
            return len([one async for one in group if isinstance(one, Failed)])

    assert (await Application(own).run()).state["y"] == 1


@kinds
async def test_a_reducer_raises_it(kind: str):
    def reduce(state: State, outcome: Any) -> State:
        raise made(kind)

    app = Application(
        fan_out(good, over="xs", item="x", reduce=reduce, writes=["z"], name="reduced")
    )
    with pytest.raises(BaseException) as caught:
        await app.run({"xs": [0, 1, 2]})
    assert is_one(caught.value, kind)


@kinds
async def test_a_judge_raises_it(kind: str):
    def accept(value: object) -> bool:
        raise made(kind)

    with pytest.raises(NobodyAccepted):
        await Application(race(good, into="y", until=first(accept=accept))).run({"x": 1})


@kinds
async def test_a_streaming_action_raises_it(kind: str):
    @action(reads=["x"], writes=["y"])
    async def stream(x: int) -> AsyncIterator[int]:
        yield x
        await anyio.lowlevel.checkpoint()
        raise made(kind)

    with pytest.raises(BaseException) as caught:
        await Application(race(stream, into="y", until=first_item())).run({"x": 1})
    assert any(
        is_one(one, kind) for one in (caught.value, *getattr(caught.value, "exceptions", ()))
    )


@kinds
async def test_an_observer_raises_it(kind: str, caplog: pytest.LogCaptureFixture):
    class Observer(Hook):
        observer = True

        async def on_child_ended(self, event: object) -> None:
            raise made(kind)

    caplog.set_level(logging.CRITICAL)
    result = await Application(over(good), hooks=[Observer()]).run({"xs": [0, 1]})
    assert dict(result.state["ys"]) == {0: 0, 1: 1}


@kinds
async def test_it_is_masked(kind: str):
    state = State({"xs": [0, 1], "token": "hunter2"}, secret={"token"})
    result = await Application(over(raising(kind), on_error="ignore")).run(state)
    assert dict(result.state["ys"]) == {0: 0}
    (failed,) = [one for one in result.outcomes("over") if isinstance(one, Failed)]
    assert is_one(failed.error, kind)


@pytest.mark.realtime
async def test_a_generator_s_exit_out_of_a_thread_fails_its_child_alone():
    @action(reads=["x"], writes=["y"])
    def work(x: int) -> int:
        if x == 1:
            raise GeneratorExit
        return x

    app = Application(over(work, on_error="collect", errors_into="bad"))
    result = await app.run({"xs": [0, 1, 2]})
    assert dict(result.state["ys"]) == {0: 0, 2: 2}
    (failed,) = [one for one in result.outcomes("over") if isinstance(one, Failed)]
    assert isinstance(failed.error, SpuriousCancel)
