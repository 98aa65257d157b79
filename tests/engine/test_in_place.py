"""Under ``debug=True``, a step that changes a value of its state in place is found."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from threading import Lock
from typing import Any

import anyio
import pytest

from shoal import Application, Context, Result, Runtime, State, action, fan_out
from shoal.errors import ChangedInPlace, DefinitionError
from shoal.types import Act

pytestmark = pytest.mark.anyio


@dataclass
class Page:
    links: list[str]


async def run_debug(act: Act, state: dict[str, Any], **options: Any) -> Any:
    async with Runtime(debug=True) as runtime:
        return await runtime.run(Application(act, **options), state, id="r")


@action(reads=["xs"], writes=["n"])
async def plain(xs: list[int]) -> int:
    xs.append(1)
    return len(xs)


@action(reads=["xs"], writes=["xs"])
async def returned(xs: list[int]) -> list[int]:
    xs.append(1)
    return xs


@action(reads=["xs"], writes=["n"])
async def by_state(state: State) -> State:
    state["xs"].append(1)
    return state.update(n=1)


@action(reads=["xs"], writes=["n"])
async def with_context(xs: list[int], context: Context) -> int:
    xs.append(context.attempt)
    return 1


@action(reads=["xs"], writes=["n"])
async def streaming(xs: list[int]) -> AsyncIterator[int | Result[int]]:
    xs.append(1)
    yield 1
    yield Result(1)


@action(reads=["xs"], writes=["n"])
def threaded(xs: list[int]) -> int:
    xs.append(1)
    return 1


@action(reads=["xs"], writes=["n"], executor="loop")
def on_the_loop(xs: list[int]) -> int:
    xs.append(1)
    return 1


@action(reads=["xs"], writes=["n"], cache=60)
async def cached(xs: list[int]) -> int:
    xs.append(1)
    return 1


KINDS: list[Act] = [
    plain,
    returned,
    by_state,
    with_context,
    streaming,
    threaded,
    on_the_loop,
    cached,
]


@pytest.mark.parametrize("act", KINDS, ids=lambda act: act.name)
async def test_a_list_that_is_changed_in_place_is_found(act: Act):
    with pytest.raises(
        ChangedInPlace, match="of run r changed field 'xs' in place, a list"
    ) as info:
        await run_debug(act, {"xs": [0]})
    assert info.value.field == "xs"
    assert f"action {act.name!r}" in str(info.value)
    assert "xs = [*xs, value]" in str(info.value)


@pytest.mark.parametrize("act", KINDS, ids=lambda act: act.name)
async def test_without_debug_nothing_looks(act: Act):
    async with Runtime(debug=False) as runtime:
        await runtime.run(Application(act), {"xs": [0]})


def put(value: dict[str, int]) -> None:
    value["a"] = 2


def add(value: set[int]) -> None:
    value.add(2)


def link(value: Page) -> None:
    value.links.append("b")


def clear_second(value: list[list[int]]) -> None:
    value[1].clear()


def extend(value: bytearray) -> None:
    value.extend(b"b")


def put_beside_a_lock(value: dict[str, object]) -> None:
    value["a"] = 2


CASES: list[tuple[Callable[[], object], Callable[[Any], None], str]] = [
    (lambda: {"a": 1}, put, "value = {**value, key: value}"),
    (lambda: {1}, add, "value = value | {value}"),
    (lambda: Page(["a"]), link, "dataclasses.replace(value, ...)"),
    (lambda: {"a": 1, "lock": Lock()}, put_beside_a_lock, "{**value, key: value}"),
    (lambda: [[1], [2]], clear_second, "[*value, value]"),
    (lambda: bytearray(b"a"), extend, "copy.deepcopy(value)"),
]


@pytest.mark.parametrize(
    ("new", "change", "mended"),
    CASES,
    ids=["dict", "set", "dataclass", "no data", "nested", "other"],
)
async def test_any_value_is_compared_and_the_line_is_mended(
    new: Callable[[], object], change: Callable[[Any], None], mended: str
):
    @action(reads=["value"], writes=["n"])
    async def act(value: object) -> int:
        change(value)
        return 1

    with pytest.raises(ChangedInPlace) as info:
        await run_debug(act, {"value": new()})
    assert mended in str(info.value)
    assert "writes=['value']" in str(info.value)


async def test_a_child_is_named_by_its_key():
    pages = fan_out(plain, over="lists", item="xs", key=len, into="counts")
    with pytest.raises(ExceptionGroup) as info:
        await run_debug(pages, {"lists": [[], [1, 2]]})
    texts = [str(error) for error in info.value.exceptions]
    assert any("(key 0 of " in text or "(key 2 of " in text for text in texts)
    assert all("or one that ran at the same time" in text for text in texts)


async def test_a_reducer_is_found_too():
    @action(reads=["x"], writes=["y"])
    async def double(x: int) -> int:
        return 2 * x

    def collect(state: State, outcome: Any) -> State:
        state["found"].append(outcome.value)
        return state

    doubled = fan_out(
        double, over="numbers", item="x", take="y", reduce=collect, name="doubled", writes=["found"]
    )
    with pytest.raises(ChangedInPlace, match="'found'"):
        await run_debug(doubled, {"numbers": [1, 2], "found": []})


async def test_a_step_that_fails_keeps_its_error_with_a_note():
    @action(reads=["xs"], writes=["n"])
    async def act(xs: list[int]) -> int:
        xs.clear()
        raise LookupError("gone")

    with pytest.raises(LookupError) as info:
        await run_debug(act, {"xs": [0]})
    assert any("changed field 'xs' in place" in note for note in info.value.__notes__)


async def test_a_secret_is_compared_and_not_shown():
    @action(reads=["keys"], writes=["n"])
    async def act(keys: list[str]) -> int:
        keys.append("hidden-2")
        return 1

    with pytest.raises(ChangedInPlace) as info:
        await run_debug(act, {"keys": ["hidden-1"]}, secret=["keys"])
    assert "hidden" not in str(info.value)


async def test_new_values_are_no_changes():
    @action(reads=["xs", "page"], writes=["xs", "page"])
    async def act(xs: list[int], page: Page) -> dict[str, object]:
        return {"xs": [*xs, 1], "page": Page([*page.links, "b"])}

    loops: list[Any] = []
    loops.append(loops)
    result = await run_debug(act, {"xs": [0], "page": Page([])})
    assert result.state["xs"] == [0, 1]

    @action(reads=["xs", "locks"])
    async def look(xs: list[Any], locks: list[Any]) -> None: ...

    await run_debug(look, {"xs": loops, "locks": [Lock(), loops]})


def test_the_environment_turns_it_on_for_programs_without_a_runtime(monkeypatch: Any):
    app = Application(plain)
    monkeypatch.setenv("SHOAL_DEBUG", "1")
    with pytest.raises(ChangedInPlace):
        app.run_sync({"xs": []})
    monkeypatch.setenv("SHOAL_DEBUG", "0")
    app.run_sync({"xs": []})

    async def main() -> None:
        async with Runtime(debug=False) as runtime:
            await runtime.run(app, {"xs": []})

    monkeypatch.setenv("SHOAL_DEBUG", "1")
    anyio.run(main)


def test_debug_is_a_bool():
    with pytest.raises(DefinitionError, match="debug="):
        Runtime(debug="yes")  # pyright: ignore[reportArgumentType]
