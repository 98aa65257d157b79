"""Planted bugs that a replay or a probe finds, each in one run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import anyio
import pytest

from shoal import Application, Graph, action
from shoal.testing import (
    Attempt,
    BlockingError,
    LeakError,
    MemoryGrows,
    ReplayDiffers,
    cancel_everywhere,
    flat_memory,
    no_blocking,
    no_leaks,
    replay,
    run_virtual,
)

from .blocking import hold_up
from .planted import crawl, search


@pytest.fixture(autouse=True)
def nothing_stays_open() -> Iterator[None]:
    yield
    for engine in search.ENGINES:
        engine.close()
    search.ENGINES.clear()


def test_a_changed_graph_under_a_stored_run():
    app = crawl.application()
    run_virtual(lambda: app.run(crawl.STATE, id="r", inputs=crawl.INPUTS()))
    store = app.store
    assert store is not None
    replayed = replay(app, store, "r")
    assert (replayed.status, replayed.served) == ("succeeded", 10)
    with pytest.raises(ReplayDiffers) as raised:
        replay(crawl.application(version="2"), store, "r")
    found = raised.value.difference
    assert (found.kind, found.path) == ("edge", "r/texts:0:both:a")
    assert found.recorded == "at the start came 'fetch'"
    assert found.now == "at the start comes 'download'"


@pytest.mark.parametrize("bug", ["", "leak"])
def test_a_leak_of_a_loser(bug: str):
    async def main() -> None:
        async with no_leaks():
            await search.application(bug).run(search.STATE, inputs=search.INPUTS())

    if not bug:
        run_virtual(main)
        return
    with pytest.raises(LeakError, match=r"file descriptor .*null"):
        run_virtual(main)


@pytest.mark.parametrize("bug", ["", "swallowed cancellation"])
def test_a_swallowed_cancellation(bug: str):
    asked: list[str] = []

    @action(reads=["question"], writes=["answer"])
    async def ask(question: str) -> str:
        try:
            await anyio.sleep(1)
        except BaseException:
            if bug:
                return "no answer"
            raise
        return "here"

    @action(reads=["answer"])
    async def write(answer: str) -> None:
        await anyio.lowlevel.cancel_shielded_checkpoint()
        asked.append(answer)

    async def scenario(attempt: Attempt) -> None:
        asked.clear()
        app = Application(Graph.chain(ask, write))

        async def run() -> None:
            await app.run(search.STATE)

        await attempt(run)
        assert asked in ([], ["here"]), "what was cancelled goes on"

    if not bug:
        assert cancel_everywhere(scenario, limit=20) > 5
        return
    with pytest.raises(AssertionError):
        cancel_everywhere(scenario, limit=20)


class Messages:
    """Pushes a message a millisecond to a listener that takes one a second."""

    async def pushed(self, count: int, most: float) -> Any:
        send, receive = anyio.create_memory_object_stream[str](most)

        async def push() -> None:
            async with send:
                for number in range(count):
                    await anyio.sleep(0.001)
                    await send.send(f"message {number} " * 10)

        async with anyio.create_task_group() as tasks, receive:
            tasks.start_soon(push)
            async for _ in receive:
                await anyio.sleep(1)


def test_an_unbounded_queue():
    def scenario_of(most: float) -> Any:
        @action(reads=["count"])
        async def listen(count: int) -> None:
            await Messages().pushed(count, most)

        async def scenario(count: int) -> None:
            await Application(listen).run({"count": count})

        return scenario

    flat_memory(scenario_of(5), sizes=(20, 80))
    with pytest.raises(MemoryGrows, match=r"test_planted_probes\.py"):
        flat_memory(scenario_of(float("inf")), sizes=(20, 80))


def test_a_blocking_call():
    @action(reads=["page"], writes=["words"])
    async def parse(page: str) -> int:
        hold_up(0.2)
        return len(page.split())

    async def main() -> None:
        async with no_blocking(0.02):
            await Application(parse).run({"page": "a b"})

    with pytest.raises(BlockingError, match=r"hold_up\(0\.2\)"):
        run_virtual(main)
