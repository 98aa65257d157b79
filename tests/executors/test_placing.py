"""Which worker gets a call, and what becomes of it if that changes: the workers answer by hand."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from shoal.errors import NoWorker, WorkerDied
from shoal.executors import _messages as m
from shoal.executors._port import Job
from shoal.executors._remote_pool import RemotePool
from shoal.executors._sending import dump, dump_error, load
from tests.executors.links import ThreadLink, ThreadTransport, job, pool_of

pytestmark = pytest.mark.anyio


def add(a: int, b: int) -> int:
    return a + b


async def aadd(a: int, b: int) -> int:
    return a + b


class Table:
    """A pool whose workers are played by the test."""

    def __init__(self, pool: RemotePool, transport: ThreadTransport, tasks: Any) -> None:
        self.pool, self.transport, self._tasks = pool, transport, tasks
        self.results: dict[int, object] = {}
        self.plain, self.other = job(add), job(aadd, "async")

    @property
    def links(self) -> list[ThreadLink]:
        return self.transport.links

    async def call(self, number: int, of: Job | None = None, **options: Any) -> anyio.CancelScope:
        scope = anyio.CancelScope()

        async def run() -> None:
            with scope:
                try:
                    kwargs = {"a": number, "b": 0}
                    call = self.pool.call()
                    self.results[number] = await call.call(of or self.plain, kwargs, **options)
                except Exception as error:
                    self.results[number] = error

        self._tasks.start_soon(run)
        await self.settle()  # trio would begin several in any order
        return scope

    async def settle(self) -> None:
        for _ in range(10):
            await checkpoint()

    def sent(self, link: ThreadLink) -> list[int]:
        """The calls that were sent to a worker and not ended, by what they add."""
        return [load(message[3])["a"] for message in link.sent if message[0] == m.CALL]

    def numbers(self, link: ThreadLink) -> list[int]:
        return [message[1] for message in link.sent if message[0] == m.CALL]

    async def ready(self, *links: ThreadLink) -> None:
        for link in links or self.links:
            link._on_batch([(m.READY,)])
        await self.settle()

    async def done(self, link: ThreadLink, at: int = 0, seconds: float = 0.005) -> None:
        """End the call that was sent as the ``at``-th."""
        link._on_batch([(m.DONE, self.numbers(link)[at], dump(None), seconds)])
        await self.settle()


@asynccontextmanager
async def table(workers: int = 2, **options: Any) -> AsyncGenerator[Table]:
    async with (
        pool_of(workers, runs=False, **options) as (pool, transport),
        anyio.create_task_group() as tasks,
    ):
        yield Table(pool, transport, tasks)
        for link in list(transport.links):
            link.die("the test is over")
        tasks.cancel_scope.cancel()


async def test_each_call_gets_an_idle_worker_if_there_is_one():
    async with table(3) as at:
        for number in range(3):
            await at.call(number)
        await at.settle()
        assert len(at.links) == 3
        await at.ready()
        assert [len(at.sent(link)) for link in at.links] == [1, 1, 1]


async def test_nothing_is_sent_ahead_before_the_first_call_has_ended():
    async with table(1) as at:
        for number in range(4):
            await at.call(number)
        await at.settle()
        await at.ready()
        (link,) = at.links
        assert at.sent(link) == [0]
        await at.done(link, 0, seconds=0.005)
        assert at.sent(link) == [0, 1, 2, 3]  # one is at work, and the others wait behind it


@pytest.mark.parametrize(("seconds", "ahead"), [(0.1, 0), (0.005, 6), (0.001, 30), (0.0001, 64)])
async def test_as_many_are_sent_ahead_as_fill_thirty_milliseconds(seconds: float, ahead: int):
    async with table(1) as at:
        for number in range(100):
            await at.call(number)
        await at.settle()
        await at.ready()
        (link,) = at.links
        await at.done(link, 0, seconds=seconds)
        assert abs(len(at.sent(link)) - 2 - ahead) <= 1
        assert at.pool.gate.slots >= 1 + ahead


async def test_calls_that_wait_behind_a_long_one_are_taken_back():
    async with table(2) as at:
        for number in range(5):
            await at.call(number)
        await at.settle()
        first, second = at.links
        await at.ready()
        await at.done(first, 0, seconds=0.005)
        # One more call at each, sent ahead.
        assert (at.sent(first), at.sent(second)) == ([0, 2, 4], [1, 3])
        for sent in (1, 2):
            await at.done(first, sent)
        await anyio.sleep(0.006)
        withdrawn = [message for message in second.sent if message[0] == m.WITHDRAW]
        assert withdrawn == [(m.WITHDRAW, [at.numbers(second)[1]])]
        second._on_batch([(m.WITHDRAWN, withdrawn[0][1])])
        await at.settle()
        assert at.sent(first)[-1] == 3
        assert (
            at.numbers(first)[-1] != withdrawn[0][1][0]
        )  # an old answer would not be taken for it


async def test_a_worker_that_dies_moves_what_had_not_begun():
    async with table(1) as at:
        for number in range(3):
            await at.call(number)
        await at.settle()
        await at.ready()
        (link,) = at.links
        await at.done(link, 0)
        link.mark = at.numbers(link)[1]
        link.die("it was killed")
        await at.settle()
        died = at.results[1]
        assert isinstance(died, WorkerDied)
        assert died.others == 0
        (other,) = at.links
        await at.ready(other)
        assert at.sent(other) == [2]
        await at.done(other)
        assert at.results[2] is None


async def test_whose_answers_are_lost_and_who_was_not_at_work_is_not_to_blame():
    """The worker had ended all calls that it had, and not sent that yet."""
    async with table(1) as at:
        await at.call(0)
        await at.settle()
        await at.ready()
        (link,) = at.links
        link.mark = 0
        link.die("it was killed")
        await at.settle()
        assert at.results == {}
        await at.ready(at.links[0])
        assert at.sent(at.links[0]) == [0]


async def test_coroutines_are_spread_and_share_a_worker():
    async with table(2, concurrency=3) as at:
        for number in range(8):
            await at.call(number, at.other)
        await at.settle()
        await at.ready()
        assert [len(at.sent(link)) for link in at.links] == [3, 3]
        died_with = at.links[0]
        died_with._on_batch([(m.BEGAN, at.numbers(died_with)[:2])])
        died_with.die("it was killed")
        await at.settle()
        died = [one for one in at.results.values() if isinstance(one, WorkerDied)]
        assert [one.others for one in died] == [1, 1]


async def test_a_call_that_is_to_be_alone_waits_for_a_worker_of_its_own():
    async with table(2) as at:
        for number in range(2):
            await at.call(number)
        await at.settle()
        await at.ready()
        await at.call(9, alone=True)
        await at.settle()
        for number in range(2, 4):
            await at.call(number)
        await at.settle()
        kept, other = at.links
        assert at.sent(kept) == [0]
        await at.done(kept)
        assert at.sent(kept) == [0, 9]
        await at.done(other)
        assert at.sent(kept) == [0, 9]
        assert set(at.sent(other)) >= {1, 2}
        await at.done(kept, 1)
        await at.done(other, 1)
        assert 3 in [*at.sent(kept), *at.sent(other)]


async def test_a_call_that_waits_for_children_lets_others_into_its_worker():
    """They may be its children, also where it, or they, are to be alone."""
    async with table(1) as at:
        await at.call(0, at.other, alone=True)
        await at.settle()
        await at.ready()
        (link,) = at.links
        await at.call(1, at.other)
        await at.call(2, at.other, alone=True)
        await at.settle()
        assert at.sent(link) == [0]
        first = next(one for one in at.pool._workers[0].calls.values())
        at.pool.rest(first, True)
        await at.settle()
        assert at.sent(link) == [0, 1]  # 2 waits until 1 has ended
        await at.done(link, 1)
        assert at.sent(link) == [0, 1, 2]
        await at.call(3, at.other)
        await at.settle()
        await at.done(link, 2)
        assert at.sent(link) == [0, 1, 2, 3]
        at.pool.rest(first, False)
        await at.call(4, at.other)
        await at.settle()
        await at.done(link, 3)
        assert at.sent(link) == [0, 1, 2, 3]  # 0 is to be alone again
        await at.done(link, 0)
        assert at.sent(link) == [0, 1, 2, 3, 4]


async def test_a_call_that_was_to_be_alone_and_is_cancelled_keeps_no_worker():
    async with table(1) as at:
        await at.call(0)
        await at.settle()
        await at.ready()
        scope = await at.call(9, alone=True)
        await at.settle()
        scope.cancel()
        await at.settle()
        await at.call(1)
        (link,) = at.links
        await at.done(link)
        assert at.sent(link) == [0, 1]


async def test_a_worker_is_killed_when_the_others_in_it_have_ended():
    async with table(1, grace=1.0) as at:
        scope = await at.call(0, at.other)
        await at.call(1, at.other)
        await at.settle()
        await at.ready()
        (link,) = at.links
        link._on_batch([(m.BEGAN, at.numbers(link))])
        scope.cancel()
        await anyio.sleep(1.5)  # the grace is over
        assert at.links == [link]
        await at.call(2, at.other)
        await at.settle()
        assert at.sent(link) == [0, 1]  # it gets no more calls
        await at.done(link, 1)
        with anyio.fail_after(5):
            while link in at.links:
                await anyio.sleep(0.01)
        assert at.results[1] is None


async def test_the_others_in_it_get_another_grace_and_no_more():
    async with table(1, grace=1.0) as at:
        scope = await at.call(0, at.other)
        await at.call(1, at.other)
        await at.settle()
        await at.ready()
        (link,) = at.links
        link._on_batch([(m.BEGAN, at.numbers(link))])
        scope.cancel()
        await anyio.sleep(2.5)
        assert link not in at.links
        assert isinstance(at.results[1], WorkerDied)


async def test_an_initializer_that_raises_fails_all_that_wait_and_those_that_come_soon():
    async with table(1) as at:
        for number in range(3):
            await at.call(number)
        await at.settle()
        (link,) = at.links
        link._on_batch([(m.REFUSED, dump_error(OSError("no model")))])
        link.die("it has ended")
        await at.settle()
        assert [str(at.results[number]) for number in range(3)] == ["no model"] * 3
        await at.call(3)
        await at.settle()
        assert str(at.results[3]) == "no model"
        assert at.transport.started == 1
        await anyio.sleep(1.1)
        await at.call(4)
        await at.settle()
        assert at.transport.started == 2


async def test_what_the_system_refuses_fails_the_calls():
    async with table(1) as at:
        at.transport.refusal = OSError("too many processes")
        await at.call(0)
        await at.settle()
        assert isinstance(at.results[0], NoWorker)
        at.transport.refusal = None
        await at.call(1)
        await at.settle()
        assert len(at.links) == 1


async def test_workers_are_listened_to_only_while_they_start_or_have_calls():
    async with table(1) as at:
        await at.call(0)
        await at.settle()
        (link,) = at.links
        assert link.listening[-1]
        await at.ready()
        await at.done(link)
        assert not link.listening[-1]
        await at.call(1)
        await at.settle()
        assert link.listening[-1]


async def test_a_function_that_is_gone_is_forgotten_by_the_workers():
    async with table(1) as at:
        await at.call(0, job(add))
        await at.settle()
        await at.ready()
        (link,) = at.links
        await at.done(link)
        await at.call(1)
        await at.settle()
        assert any(message[0] == m.FORGET for message in link.sent)
