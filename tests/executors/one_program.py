"""One program that uses what functions can do, for each place in which they can be called.

In a module of its own, because workers import it.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

import anyio

from shoal import (
    Application,
    Context,
    Done,
    Each,
    Failed,
    Graph,
    Limits,
    Result,
    Retry,
    State,
    action,
    fan_out,
    race,
)
from shoal.events import Item
from shoal.executors import Executor, ExecutorName
from shoal.testing import RecordingHook


@action(reads=["word"], writes=["length"])
def measure(word: str) -> int:
    if word == "bad":
        raise ValueError(f"{word!r} is no word")
    return len(word)


@action(reads=["word"], writes=["spelled"])
async def spell(word: str, context: Context) -> str:
    for letter in word:
        await context.emit(letter)
    context.note(f"spelled {word}")
    return "-".join(word)


@action(reads=["n"], writes=["next"])
async def halve(n: int) -> int:
    await anyio.sleep(0)
    return n // 2


@action(reads=["start"], writes=["path"])
async def descend(start: int, context: Context) -> list[int]:
    path = [start]
    async with context.fan_out(name="halves") as group:
        group.start(halve, {"n": start})
        async for outcome in group:
            if isinstance(outcome, Done) and outcome.value > 0:
                path.append(outcome.value)
                group.start(halve, {"n": outcome.value})
    return path


@action(reads=["n"], writes=["tries"])
async def stumble(n: int, context: Context) -> list[str]:
    context.charge(2.0)
    if context.attempt == 1 and n % 2:
        raise ConnectionError("stumbled")
    return [f"attempt {context.attempt} of {n} as child {context.key}"]


@action(reads=["words"], writes=["text"])
async def tell(words: list[str]) -> AsyncGenerator[str | Result[str]]:
    for word in words:
        await anyio.sleep(0)
        yield word
    yield Result(" ".join(words))


@action(reads=["counts", "words"], writes=["counts"])
def count(state: State) -> State:
    for word in state["words"]:
        state = state.put("counts", word, len(word))
    return state


@action(reads=["words"], writes=["winner"])
async def answer(words: list[str], seconds: float, model: str) -> str:
    await anyio.sleep(seconds)
    return f"{model} of {len(words)}"


def graph() -> Graph:
    """Return the graph, made anew."""
    lengths = fan_out(
        measure, over="words", item="word", into="lengths", errors_into="errors", on_error="collect"
    )
    spelled = fan_out(spell, over="words", item="word", into="spelled", limits=Limits(3))
    paths = fan_out(descend, over="starts", item="start", into="paths")
    tries = fan_out(
        stumble,
        over="starts",
        item="n",
        into="tries",
        each=Each(retry=Retry(3, on=(ConnectionError,), initial=0.001)),
    )
    winner = race(
        answer.bind(name="slow", model="big", seconds=100.0),
        answer.bind(name="quick", model="small", seconds=0.0),
        into="winner",
    )
    return Graph.chain(lengths, spelled, paths, tries, tell, count, winner)


INPUTS: dict[str, Any] = {
    "words": ["shoal", "bad", "of", "fish"],
    "starts": [9, 5, 40],
    "counts": {},
}


async def final_state(
    executor: Executor | ExecutorName | None, **given: Any
) -> tuple[dict[str, Any], list[Any], list[str]]:
    """Run it; return the final state, the items in each action's order, and how children ended."""
    hook = RecordingHook()
    app = Application(graph(), executor=executor, hooks=[hook])
    result = await app.run(INPUTS, id="one", **given)
    items = [(str(event.path), str(event.item)) for event in hook.of(Item)]
    items.sort(key=lambda item: item[0])
    ends = [
        f"{name} {outcome.key}: {type(outcome).__name__}"
        + (f" {outcome.error}" if isinstance(outcome, Failed) else "")
        for name in ("lengths", "spelled", "paths", "tries", "winner")
        for outcome in result.outcomes(name)
    ]
    state = {name: str(result.state[name]) for name in sorted(result.state)}
    return state, items, ends
