"""Log records name the run, the action and the child that they come from."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import anyio
import pytest

from shoal import Application, Graph, Hook, Retry, action, fan_out
from shoal.watch.logging import LogContext

pytestmark = pytest.mark.anyio

logger = logging.getLogger("example")


class Kept(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.records: list[Any] = []
        self.setFormatter(logging.Formatter("%(run_id)s %(action)s %(key)s %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        self.format(record)
        self.records.append(record)

    @property
    def places(self) -> set[tuple[str, str, object]]:
        return {(one.message, one.action, one.key) for one in self.records}


@pytest.fixture
def context() -> LogContext:
    return LogContext()


@pytest.fixture
def kept(context: LogContext) -> Iterator[Kept]:
    handler = Kept()
    handler.addFilter(context)
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield handler
    logger.removeHandler(handler)


@action(reads=["n"], writes=["m"])
async def work(n: int) -> int:
    logger.info("begun")
    await anyio.sleep(0.01)

    async def deeper() -> None:
        logger.info("deeper")

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(deeper)
    return n


@action(reads=["m"], writes=["text"])
def block(m: int) -> str:
    logger.info("in a thread")
    return str(m)


async def test_records_name_their_run_also_in_tasks_and_threads(context: LogContext, kept: Kept):
    chain = Graph.chain(work, block, name="both")
    app = Application(
        fan_out(chain, over="ns", item="n", key=str, into="x", take="text"), hooks=[context]
    )
    await app.run({"ns": [1, 2]}, id="one")
    assert kept.places == {
        (what, step, key)
        for key in ("1", "2")
        for what, step in (("begun", "work"), ("deeper", "work"), ("in a thread", "block"))
    }
    assert {one.root_id for one in kept.records} == {"one"}
    assert len({one.run_id for one in kept.records}) == 2


async def test_outside_of_runs_the_attributes_are_empty(context: LogContext, kept: Kept):
    logger.info("before")
    await Application(block, hooks=[context]).run({"m": 1}, id="one")
    logger.info("after")
    assert kept.places == {("before", "", ""), ("in a thread", "block", ""), ("after", "", "")}
    assert [one.run_id for one in kept.records] == ["", "one", ""]


async def test_what_the_program_gave_a_record_stays(context: LogContext, kept: Kept):
    @action()
    async def own() -> None:
        logger.info("own", extra={"key": "mine"})

    await Application(own, hooks=[context]).run()
    assert kept.places == {("own", "own", "mine")}


async def test_attempts_and_failures_leave_the_context_as_it_was(context: LogContext, kept: Kept):
    tried: list[int] = []

    @action(retry=Retry(3, on=ValueError, initial=0.01))
    async def fail() -> None:
        tried.append(1)
        logger.info("tried")
        raise ValueError

    with pytest.raises(ValueError):
        await Application(fail, hooks=[context]).run()
    logger.info("after")
    assert [one.action for one in kept.records] == ["fail"] * 3 + [""]


async def test_other_hooks_log_within_the_step_that_they_are_told_of(
    context: LogContext, kept: Kept
):
    class Telling(Hook):
        def around_step(self, event: Any) -> Any:
            logger.info("around")
            return anyio.CancelScope()

    await Application(block, hooks=[context, Telling()]).run({"m": 1})
    assert ("around", "block", "") in kept.places
